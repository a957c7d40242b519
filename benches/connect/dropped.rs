//! Datagrams that found no room in the buffer of a socket. A storm is the one load here that fills the hub's: what is dropped then
//! comes again when QUIC's timers have run out, and that, more than anybody's work, is what the last spoke waits for.

/// `RcvbufErrors` of `/proc/net/snmp`: those of all UDP sockets of this network namespace so far. Only Linux tells.
pub(crate) fn so_far() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/net/snmp").ok()?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let at = names
        .split_whitespace()
        .position(|name| name == "RcvbufErrors")?;
    values.split_whitespace().nth(at)?.parse().ok()
}
