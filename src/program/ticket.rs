//! Writes the hub's ticket to a file.

use std::{fs, io, path::Path};

/// Puts the ticket and a newline into `path`. Who reads it sees the old file or the whole new one.
pub(super) fn write(path: &Path, ticket: &str) -> io::Result<()> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "this is no name of a file"))?;
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(format!(".{}.new", std::process::id()));
    let beside = path.with_file_name(beside);
    let written =
        fs::write(&beside, format!("{ticket}\n")).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

#[cfg(test)]
mod tests {
    use iroh_tickets::endpoint::EndpointTicket;

    use super::*;

    #[test]
    fn the_ticket_replaces_what_was_there_and_leaves_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("T");
        fs::write(&path, "an older and longer ticket").unwrap();
        write(&path, "ticket").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "ticket\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(write(dir.path(), "ticket").is_err());
        assert!(write(Path::new("/"), "ticket").is_err());
    }
    fn real() -> Vec<(&'static str, Vec<u8>)> {
        let hub = iroh::SecretKey::from_bytes(&[1; 32]).public();
        let addr = iroh::EndpointAddr::new(hub);
        let reachable = addr
            .clone()
            .with_ip_addr(([127, 0, 0, 1], 4433).into())
            .with_relay_url("https://relay.example.com".parse().unwrap());
        let text = |addr| EndpointTicket::new(addr).to_string().into_bytes();
        vec![("id", text(addr)), ("addresses", text(reachable))]
    }

    // Encoded as text: few changes of it come through, so what it encodes is tried too.
    crate::fuzz::decoder!(ticket, real(), |bytes| {
        let encoded = data_encoding::BASE32_NOPAD
            .encode(bytes)
            .to_ascii_lowercase();
        let made = format!("endpoint{encoded}");
        for text in [std::str::from_utf8(bytes).unwrap_or_default(), &made] {
            let Ok(ticket) = text.trim().parse::<EndpointTicket>() else {
                continue;
            };
            let again = ticket.to_string().parse::<EndpointTicket>().unwrap();
            assert_eq!(again.endpoint_addr(), ticket.endpoint_addr());
        }
    });
}
