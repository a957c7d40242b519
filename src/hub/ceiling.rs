//! How much memory a hub takes at most, from its settings. [`HubBuilder::memory_ceiling`](super::HubBuilder::memory_ceiling)
//! has the formula in words; a test in `tests/chaos` fills every buffer and holds the process against it.

use super::{config::HubConfig, desk::BATCH_BYTES};
use crate::{
    fan_out::FanOut,
    link_io::{READ_BYTES, SMALL},
    wire::run,
};

const KIB: u64 = 1 << 10;

/// The program, its runtime, the endpoint, and what is the same for every hub.
const BASE: u64 = 64 << 20;
/// What noq keeps of packets for handshakes that wait for their turn, its default for one endpoint.
const INCOMING: u64 = 100 << 20;
/// What an event of the log costs beside its bytes.
const ENTRY: u64 = 512;
/// What is known of a spoke that is connected or away.
const SESSION: u64 = 4 * KIB;
const DEPARTED: u64 = 256;
/// QUIC's and TLS's state of a connection, the tasks around it, and the packets on their way.
const CONNECTION: u64 = 128 * KIB;
/// What QUIC may keep of packets whose bytes it has for a stream, beyond so many times the bytes.
const STREAM: u64 = 32 * KIB;

/// What is received in small pieces takes up to two and a half times its bytes until it is put together.
const fn received(bytes: u64) -> u64 {
    bytes.saturating_mul(5) / 2
}

pub(super) fn of(config: &HubConfig) -> u64 {
    let limits = &config.limits;
    let n = |n: usize| n as u64;
    let times = |count: usize, bytes: u64| n(count).saturating_mul(bytes);
    // As itself, as spokes read it by itself and in a run, and as plain ones do.
    let log = times(4, n(config.log.max_bytes).max(n(limits.max_event_bytes)))
        .saturating_add(times(config.log.max_events, ENTRY));
    let sessions = times(
        limits.max_spokes.saturating_add(limits.away_spokes),
        SESSION,
    )
    .saturating_add(times(limits.remembered_spokes, DEPARTED));
    let connections = limits.max_connections.saturating_add(limits.max_handshakes);
    let windows = times(limits.max_connections, limits.waiting_window.into());
    // A frame that is being put together grows by doubling; behind it is what was read with it.
    let reading = 2 * n(SMALL) + n(READ_BYTES) + STREAM;
    let spoke = u64::from(limits.send_window)
        .saturating_add(n(limits.max_event_bytes))
        .saturating_add(n(BATCH_BYTES) + reading)
        // What is left to write of a run keeps all of it, at both ends.
        .saturating_add(times(2, n(run::MAX_BYTES)));
    let parts = [
        BASE,
        INCOMING,
        log,
        n(limits.targeted_bytes_of_all),
        sessions,
        times(connections, CONNECTION),
        received(windows.saturating_add(n(limits.receive_bytes))),
        times(2, n(limits.intake_bytes)),
        times(limits.max_spokes, spoke),
        times(limits.max_waiting, reading),
        topic(config),
    ];
    parts.into_iter().fold(0, u64::saturating_add)
}

fn topic(config: &HubConfig) -> u64 {
    if config.fan_out == FanOut::Direct {
        return 0;
    }
    let (gossip, limits) = (&config.gossip, &config.limits);
    let connections = gossip.max_connections.saturating_add(gossip.max_unproven) as u64;
    let connection = received(limits.waiting_window.into())
        .saturating_add(limits.send_window.into())
        .saturating_add(CONNECTION)
        // A message is read into a buffer that grows by doubling.
        .saturating_add((gossip.inbound_bytes() as u64).saturating_mul(2));
    let queues = (gossip.active_view as u64).saturating_mul(gossip.queue_bytes as u64);
    (gossip.cache_bytes as u64)
        .saturating_add(queues)
        .saturating_add(connections.saturating_mul(connection))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{gossip::GossipConfig, wire::broadcast};

    #[test]
    fn larger_frames_and_events_are_counted() {
        let of = |change: fn(&mut HubConfig)| {
            let mut config = HubConfig {
                fan_out: FanOut::Gossip,
                ..HubConfig::default()
            };
            config.limits.max_event_bytes = 4 << 20;
            config.limits.max_spokes = 0;
            config.limits.intake_of_one = 1 << 20;
            config.limits.intake_bytes = 1 << 20;
            change(&mut config);
            super::of(&config.sound())
        };
        let less = of(|_| {});
        let frames = of(|config| config.gossip.max_frame_size = usize::MAX);
        let connections = GossipConfig::default();
        let connections = connections.max_connections + connections.max_unproven;
        // Two of the largest messages of each connection, and their buffer.
        let more = 4 * broadcast::MAX_FRAME_SIZE - (512 << 10);
        assert!(frames - less >= (connections * more) as u64);
        // An event that is taken in counts twice, though it is larger than what was set.
        let events = of(|config| config.limits.max_event_bytes = 8 << 20);
        assert!(events - less >= 2 * (4 << 20));
    }
}
