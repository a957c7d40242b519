//! Which addresses we tell others, and which of theirs we dial.
//!
//! A peer may claim any address for itself or for others, so what it says must not make us knock at doors on our own machine or
//! our own network that it could not reach itself: such addresses are used only by a node that is on that
//! kind of network too.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::Bytes;
use iroh::{EndpointAddr, EndpointId, RelayUrl, TransportAddr};

use super::core::MAX_PEER_DATA;

/// How many addresses of one peer are told, and dialled.
const MAX_ADDRS: usize = 4;

/// What kind of network an address belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Public,
    Loopback,
    /// A private network; which of the ranges set aside for such.
    Private(u8),
    Never,
}

/// Our addresses, as others get them. Addresses that can be dialled from anywhere come first.
pub(super) fn encode(own: &EndpointAddr) -> Bytes {
    let mut addrs: Vec<_> = own.addrs.iter().cloned().collect();
    addrs.sort_by_key(|addr| match addr {
        TransportAddr::Relay(_) => 0,
        TransportAddr::Ip(ip) if reach(ip.ip()) == Reach::Public => 1,
        TransportAddr::Ip(_) => 2,
        _ => 3,
    });
    addrs.truncate(MAX_ADDRS);
    loop {
        let short = EndpointAddr::from_parts(own.id, addrs.iter().cloned());
        let bytes = postcard::to_stdvec(&short).unwrap_or_default();
        if bytes.len() <= MAX_PEER_DATA || addrs.pop().is_none() {
            return bytes.into();
        }
    }
}

/// The addresses that a peer, or another one for it, told us, as far as we may dial them.
pub(super) fn decode(peer: EndpointId, data: &[u8], own: &EndpointAddr) -> EndpointAddr {
    let none = EndpointAddr::new(peer);
    if data.len() > MAX_PEER_DATA {
        return none;
    }
    match postcard::take_from_bytes::<EndpointAddr>(data) {
        Ok((addr, [])) if addr.id == peer => {
            let allowed = addr.addrs.into_iter().filter(|addr| may_dial(addr, own));
            EndpointAddr::from_parts(peer, allowed.take(MAX_ADDRS))
        }
        _ => none,
    }
}

/// What of the addresses that the hub told a spoke for another one may be dialled.
///
/// As for those that peers tell, with two differences. A relay with a name in public may be gone to though we are on
/// none: when the hub tells them, our own relay may not have been found yet. And a node on a private network may dial
/// into others, which a router may lead to: the hub tells where it sees a spoke, not what somebody claims.
pub(crate) fn told_by_hub(addr: EndpointAddr, own: &EndpointAddr) -> EndpointAddr {
    let allowed = addr.addrs.into_iter().filter(|addr| match addr {
        TransportAddr::Relay(url) => is_ours(url, own) || is_public(url),
        TransportAddr::Ip(addr) if addr.port() != 0 && is_private(addr.ip()) => {
            own.ip_addrs().any(|ours| is_private(ours.ip()))
        }
        // Without such a transport it leads nowhere.
        TransportAddr::Custom(_) => true,
        other => may_dial(other, own),
    });
    EndpointAddr::from_parts(addr.id, allowed.take(MAX_ADDRS))
}

fn may_dial(addr: &TransportAddr, own: &EndpointAddr) -> bool {
    match addr {
        TransportAddr::Ip(addr) => may_dial_ip(*addr, own),
        // Only a node that is on a relay anyway goes to others'.
        TransportAddr::Relay(url) => {
            is_ours(url, own) || (is_public(url) && own.relay_urls().next().is_some())
        }
        TransportAddr::Custom(custom) => own
            .addrs
            .iter()
            .any(|ours| matches!(ours, TransportAddr::Custom(ours) if ours.id() == custom.id())),
        _ => false,
    }
}

fn is_ours(url: &RelayUrl, own: &EndpointAddr) -> bool {
    own.relay_urls().any(|ours| ours == url)
}

/// Whether a relay has a name in public.
fn is_public(url: &RelayUrl) -> bool {
    url.scheme() == "https"
        && url.domain().is_some_and(|domain| {
            let domain = domain.trim_end_matches('.');
            domain.contains('.')
                && !domain.ends_with(".local")
                && !domain.ends_with(".localhost")
                && !domain.ends_with(".internal")
        })
}

fn may_dial_ip(addr: SocketAddr, own: &EndpointAddr) -> bool {
    if addr.port() == 0 {
        return false;
    }
    match reach(addr.ip()) {
        Reach::Public => true,
        Reach::Never => false,
        kind => own.ip_addrs().any(|ours| reach(ours.ip()) == kind),
    }
}

/// Of a private network that may have routers.
fn is_private(ip: IpAddr) -> bool {
    matches!(reach(ip), Reach::Private(kind) if !LINK_LOCAL.contains(&kind))
}

/// The kinds of private networks that no router leads to.
const LINK_LOCAL: [u8; 2] = [4, 7];

fn reach(ip: IpAddr) -> Reach {
    match ip.to_canonical() {
        IpAddr::V4(ip) => reach_v4(ip),
        IpAddr::V6(ip) => reach_v6(ip),
    }
}

fn reach_v4(ip: Ipv4Addr) -> Reach {
    match ip.octets() {
        [127, ..] => Reach::Loopback,
        [10, ..] => Reach::Private(1),
        [172, 16..=31, ..] => Reach::Private(2),
        [192, 168, ..] => Reach::Private(3),
        [169, 254, ..] => Reach::Private(4),
        // Carrier-grade NAT.
        [100, 64..=127, ..] => Reach::Private(5),
        [0, ..] | [224..=255, ..] | [192, 0, 0 | 2, _] | [198, 18 | 19, ..] => Reach::Never,
        [198, 51, 100, _] | [203, 0, 113, _] => Reach::Never,
        _ => Reach::Public,
    }
}

fn reach_v6(ip: Ipv6Addr) -> Reach {
    let first = ip.segments()[0];
    if ip.is_loopback() {
        Reach::Loopback
    } else if ip.is_unspecified() || ip.is_multicast() {
        Reach::Never
    } else if first & 0xfe00 == 0xfc00 {
        Reach::Private(6)
    } else if first & 0xffc0 == 0xfe80 {
        Reach::Private(7)
    } else if first & 0xe000 == 0x2000 {
        Reach::Public
    } else {
        Reach::Never
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use iroh::SecretKey;

    use super::*;

    fn id() -> EndpointId {
        SecretKey::generate().public()
    }

    fn with(id: EndpointId, ips: &[&str]) -> EndpointAddr {
        let ips = ips.iter().map(|ip| TransportAddr::Ip(ip.parse().unwrap()));
        EndpointAddr::from_parts(id, ips)
    }

    fn left(claimed: &[&str], own: &[&str]) -> Vec<String> {
        let peer = id();
        let data = postcard::to_stdvec(&with(peer, claimed)).unwrap();
        let dialled = decode(peer, &data, &with(id(), own));
        dialled.ip_addrs().map(|addr| addr.to_string()).collect()
    }

    #[test]
    fn a_public_node_dials_nothing_on_its_own_machine_or_network() {
        let claimed = [
            "127.0.0.1:22",
            "[::1]:22",
            "[::ffff:127.0.0.1]:22",
            "10.0.0.1:22",
            "192.168.1.1:80",
            "169.254.169.254:80",
            "[fd00::1]:80",
            "0.0.0.0:80",
            "255.255.255.255:80",
            "[ff02::1]:80",
        ];
        for claimed in claimed {
            assert_eq!(left(&[claimed], &["8.8.4.4:1"]), Vec::<String>::new());
        }
        assert_eq!(left(&["9.9.9.9:7"], &["8.8.4.4:1"]), ["9.9.9.9:7"]);
        assert!(left(&["9.9.9.9:0"], &["8.8.4.4:1"]).is_empty());
    }

    #[test]
    fn a_node_dials_its_own_kind_of_network() {
        assert_eq!(left(&["127.0.0.1:7"], &["127.0.0.1:1"]), ["127.0.0.1:7"]);
        assert_eq!(
            left(&["192.168.7.7:7"], &["192.168.1.2:1"]),
            ["192.168.7.7:7"]
        );
        assert!(left(&["10.7.7.7:7"], &["192.168.1.2:1"]).is_empty());
    }

    #[test]
    fn few_addresses_are_told_and_few_are_dialled() {
        let many: Vec<String> = (1..100).map(|n| format!("9.9.9.{n}:7")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(left(&many[..30], &[]).len() <= MAX_ADDRS);
        assert!(left(&many, &[]).is_empty(), "over the size limit");
        let data = encode(&with(id(), &many));
        assert!(data.len() <= MAX_PEER_DATA);
    }

    #[test]
    fn what_the_hub_tells_of_others_goes_by_the_same_rules() {
        let told = |claimed: &[&str], own: &[&str]| -> Vec<String> {
            let told = told_by_hub(with(id(), claimed), &with(id(), own));
            told.ip_addrs().map(ToString::to_string).collect()
        };
        let home = ["192.168.1.2:1"];
        for inside in ["127.0.0.1:22", "169.254.169.254:80", "[fe80::1]:22"] {
            assert!(told(&[inside], &home).is_empty(), "{inside}");
        }
        // A router may lead there, from one private network to another.
        assert_eq!(told(&["10.0.0.1:7"], &home), ["10.0.0.1:7"]);
        assert!(told(&["10.0.0.1:7"], &["8.8.4.4:1"]).is_empty());
        for nowhere in ["9.9.9.9:0", "0.0.0.0:1", "[ff02::1]:1"] {
            assert!(told(&[nowhere], &home).is_empty(), "{nowhere}");
        }
        assert_eq!(told(&["192.168.7.7:7"], &home), ["192.168.7.7:7"]);
        assert_eq!(told(&["127.0.0.1:7"], &["127.0.0.1:1"]), ["127.0.0.1:7"]);
        let many: Vec<String> = (1..100).map(|n| format!("9.9.9.{n}:7")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(told(&many, &home).len(), MAX_ADDRS);

        let on_a_relay = |own: &EndpointAddr, url: &str| {
            let addr = EndpointAddr::new(id()).with_relay_url(url.parse().unwrap());
            !told_by_hub(addr, own).is_empty()
        };
        let none_yet = EndpointAddr::new(id());
        assert!(on_a_relay(&none_yet, "https://relay.example.com"));
        let here = "http://127.0.0.1:3340";
        assert!(!on_a_relay(&none_yet, here));
        let same = EndpointAddr::new(id()).with_relay_url(here.parse().unwrap());
        assert!(on_a_relay(&same, here));
        assert!(!on_a_relay(&same, "http://127.0.0.1:22"));
    }

    #[test]
    fn addresses_under_another_name_are_nothing() {
        let data = postcard::to_stdvec(&with(id(), &["9.9.9.9:7"])).unwrap();
        assert!(decode(id(), &data, &with(id(), &[])).is_empty());
    }

    #[test]
    fn relays_without_a_public_name_are_not_gone_to() {
        let peer = id();
        let mut own = EndpointAddr::new(id());
        own = own.with_relay_url("https://relay.example.com".parse().unwrap());
        for (url, goes) in [
            ("https://other.example.com", true),
            ("https://relay.example.com", true),
            ("http://other.example.com", false),
            ("https://127.0.0.1", false),
            ("https://localhost", false),
            ("https://[::1]", false),
            ("https://db.internal", false),
        ] {
            let addr = EndpointAddr::new(peer).with_relay_url(url.parse().unwrap());
            let data = postcard::to_stdvec(&addr).unwrap();
            assert_eq!(!decode(peer, &data, &own).is_empty(), goes, "{url}");
            if url != "https://relay.example.com" {
                assert!(decode(peer, &data, &EndpointAddr::new(id())).is_empty());
            }
        }
    }
    // To work out a public key takes longer than to decode.
    static PEER: LazyLock<EndpointId> = LazyLock::new(|| SecretKey::from_bytes(&[1; 32]).public());
    static PUBLIC: LazyLock<EndpointAddr> = LazyLock::new(|| {
        let own = SecretKey::from_bytes(&[3; 32]).public();
        with(own, &["8.8.4.4:1"])
    });
    static RELAYED: LazyLock<EndpointAddr> = LazyLock::new(|| {
        let own = PUBLIC.clone();
        own.with_relay_url("https://relay.example.com".parse().unwrap())
    });

    /// An address of each kind that there is.
    fn claimed() -> EndpointAddr {
        with(
            *PEER,
            &["9.9.9.9:7", "127.0.0.1:7", "[fd00::1]:7", "10.0.0.1:7"],
        )
        .with_relay_url("https://relay.example.com".parse().unwrap())
    }

    fn real() -> Vec<(&'static str, Vec<u8>)> {
        let other = SecretKey::from_bytes(&[2; 32]).public();
        let told = |addr: &EndpointAddr| encode(addr).to_vec();
        vec![
            ("none", told(&EndpointAddr::new(*PEER))),
            ("one", told(&with(*PEER, &["9.9.9.9:7"]))),
            ("mixed", postcard::to_stdvec(&claimed()).unwrap()),
            ("bad-other", told(&with(other, &["9.9.9.9:7"]))),
        ]
    }

    crate::fuzz::decoder!(gossip_addr, real(), |bytes| {
        let dialled = decode(*PEER, bytes, &PUBLIC);
        assert_eq!(dialled.id, *PEER);
        assert!(dialled.addrs.len() <= MAX_ADDRS);
        for addr in &dialled.addrs {
            // A node without a relay of its own, on no network of its own.
            let TransportAddr::Ip(addr) = addr else {
                panic!("{addr:?}")
            };
            assert!(addr.port() != 0 && reach(addr.ip()) == Reach::Public);
            assert!(!addr.ip().is_loopback() && !addr.ip().is_multicast());
        }
        for url in decode(*PEER, bytes, &RELAYED).relay_urls() {
            assert!(url.scheme() == "https" && url.domain().is_some());
        }
    });
}
