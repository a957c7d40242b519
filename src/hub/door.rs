//! Which handshakes are begun: sans-IO.
//!
//! A handshake costs some thousand times what its first packet costs the sender, and nobody has said yet who they are. So each
//! remote address has a rate and a number in flight, all of them together have another number in flight, an address that begins many at
//! once gets them one after the other, so that they leave time for events, and when there are many,
//! an address that has not shown that it can be answered is asked to (QUIC Retry), which keeps nothing here. Whoever is over a limit gets no answer: an
//! honest client asks again by itself after a second, then two, and finds the door open.
//!
//! Not for: whom the hub lets in. Who it is turns out in the handshake.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use iroh::endpoint::IncomingAddr;
use tokio::time::Instant;

use crate::gossip::Bucket;

/// How many addresses are watched at most. One that has been quiet for two seconds is as good as one that never came.
const ADDRS: usize = 4096;
/// An address that was quiet may begin as many handshakes as in so many seconds, as fast as they get their turn.
const AT_ONCE_S: u32 = 2;
/// A turn comes after so many hundredths of the time between two handshakes at the lasting rate:
const TURN_PERCENT: u32 = 50;
/// for all but the first few.
const WITHOUT_TURN: u32 = 16;
/// How often the addresses are gone through for some to forget, at most.
const SWEEP: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug)]
pub(crate) struct DoorLimits {
    /// The most handshakes in flight.
    pub(crate) in_flight: usize,
    /// The most of them that are one address's.
    pub(crate) in_flight_of_addr: usize,
    /// With so many in flight, addresses have to be validated.
    pub(crate) validate_above: usize,
    /// How many handshakes one address may begin a second.
    pub(crate) of_addr_per_s: u32,
}

/// The handshakes that are in flight when somebody knocks.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct InFlight {
    pub(crate) all: usize,
    /// Those of the [address](Door::key) that knocks.
    pub(crate) of_addr: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// Begin the handshake after so long.
    Begin { after: Duration },
    /// Ask for proof that the address is its sender's.
    Retry,
    /// No answer: the address began too many.
    OverRate,
    /// No answer: too many are in flight, of the address or of all.
    Crowded,
}

/// What one address has begun.
#[derive(Debug)]
struct Addr {
    bucket: Bucket,
    /// When its next turn comes.
    turn: Instant,
}

impl Addr {
    fn new(limits: &DoorLimits, now: Instant) -> Self {
        let rate = limits.of_addr_per_s;
        Self {
            bucket: Bucket::new(rate, rate.saturating_mul(AT_ONCE_S), now),
            turn: now,
        }
    }

    /// The generic cell rate algorithm (ITU-T I.371), for a rate that is above the bucket's.
    fn begin(&mut self, limits: &DoorLimits, now: Instant) -> Verdict {
        if !self.bucket.take(1, now) {
            return Verdict::OverRate;
        }
        let each = Duration::from_secs(1) * TURN_PERCENT / 100 / limits.of_addr_per_s.max(1);
        let turn = self.turn.max(now);
        self.turn = turn + each;
        let after = (turn - now).saturating_sub(each * WITHOUT_TURN);
        Verdict::Begin { after }
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Door {
    limits: DoorLimits,
    hasher: RandomState,
    addrs: HashMap<u64, Addr>,
    /// For all addresses that there is no room to watch.
    others: Addr,
    swept: Instant,
}

impl Door {
    pub(crate) fn new(limits: DoorLimits, now: Instant) -> Self {
        Self {
            limits,
            hasher: RandomState::new(),
            addrs: HashMap::new(),
            others: Addr::new(&limits, now),
            swept: now,
        }
    }

    /// Somebody at this address wants to begin a handshake, while so many are in flight.
    pub(crate) fn knock(
        &mut self,
        now: Instant,
        from: &IncomingAddr,
        validated: bool,
        in_flight: InFlight,
    ) -> Verdict {
        let limits = &self.limits;
        // One that leaves its handshakes unfinished is not to have the places of all others.
        if in_flight.all >= limits.in_flight || in_flight.of_addr >= limits.in_flight_of_addr {
            return Verdict::Crowded;
        }
        if self.addrs.len() >= ADDRS / 2 {
            self.sweep(now);
        }
        // Who invents addresses never gets beyond this, so the second half of the places is for those that exist.
        let many = in_flight.all >= self.limits.validate_above || self.addrs.len() >= ADDRS / 2;
        if many && !validated {
            return Verdict::Retry;
        }
        let key = self.key(from);
        let limits = &self.limits;
        let addr = if self.addrs.len() >= ADDRS && !self.addrs.contains_key(&key) {
            &mut self.others
        } else {
            let new = || Addr::new(limits, now);
            self.addrs.entry(key).or_insert_with(new)
        };
        addr.begin(limits, now)
    }

    /// Whose handshakes are counted together.
    pub(crate) fn key(&self, from: &IncomingAddr) -> u64 {
        match from {
            IncomingAddr::Ip(addr) => self.hasher.hash_one((0, network(addr.ip()))),
            // A relay vouches for the id, so that is who it is.
            IncomingAddr::Relay { endpoint_id, .. } => self.hasher.hash_one((1, endpoint_id)),
            IncomingAddr::Custom(addr) => self.hasher.hash_one((2, addr)),
            _ => self.hasher.hash_one(3),
        }
    }

    /// Forgets the addresses that have been quiet.
    fn sweep(&mut self, now: Instant) {
        if now.saturating_duration_since(self.swept) < SWEEP {
            return;
        }
        self.swept = now;
        self.addrs.retain(|_, addr| !addr.bucket.is_full(now));
    }
}

/// A household has a /64 of IPv6 to itself, and may use any address in it.
pub(super) fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use proptest::prelude::*;

    use super::*;

    const LIMITS: DoorLimits = DoorLimits {
        in_flight: 100,
        in_flight_of_addr: 100,
        validate_above: 50,
        of_addr_per_s: 10,
    };

    const NONE: InFlight = InFlight { all: 0, of_addr: 0 };

    /// The first few do not wait for a turn.
    const AT_ONCE: Verdict = Verdict::Begin {
        after: Duration::ZERO,
    };

    fn begins(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Begin { .. })
    }

    fn ip(ip: impl Into<IpAddr>) -> IncomingAddr {
        IncomingAddr::Ip(SocketAddr::new(ip.into(), 7))
    }

    fn v4(n: u32) -> IncomingAddr {
        ip(Ipv4Addr::from_bits(n))
    }

    #[test]
    fn an_address_has_a_rate_and_the_others_do_not_notice() {
        let mut now = Instant::now();
        let mut door = Door::new(LIMITS, now);
        let mut begun = |now, addr: &IncomingAddr| {
            let knocks = (0..50).map(|_| door.knock(now, addr, false, NONE));
            knocks.filter(begins).count()
        };
        assert_eq!(begun(now, &v4(1)), 20);
        assert_eq!(begun(now, &v4(2)), 20);
        now += Duration::from_secs(1);
        assert_eq!(begun(now, &v4(1)), 10);
        now += Duration::from_secs(60);
        assert_eq!(begun(now, &v4(1)), 20);
    }

    #[test]
    fn an_address_that_begins_many_at_once_gets_them_one_after_the_other() {
        let now = Instant::now();
        let later = now + Duration::from_secs(10);
        let mut door = Door::new(LIMITS, now);
        let mut after = |now, addr| match door.knock(now, &v4(addr), false, NONE) {
            Verdict::Begin { after } => after.as_millis(),
            other => panic!("{other:?}"),
        };
        // Quiet time saves up no turns.
        for now in [now, later] {
            let waits: Vec<_> = (0..20).map(|_| after(now, 1)).collect();
            let (few, others) = waits.split_at(17);
            assert!(few.iter().all(|wait| *wait == 0), "{few:?}");
            assert_eq!(others, [50, 100, 150]);
        }
        assert_eq!(after(now, 2), 0);
    }

    #[test]
    fn all_addresses_of_a_household_count_as_one() {
        let now = Instant::now();
        let mut door = Door::new(LIMITS, now);
        let home = "2001:db8:1:2::".parse::<Ipv6Addr>().unwrap().to_bits();
        for n in 0..20 {
            let addr = ip(Ipv6Addr::from_bits(home + n * 977));
            assert!(begins(&door.knock(now, &addr, false, NONE)));
        }
        let next = ip(Ipv6Addr::from_bits(home + 7));
        assert_eq!(door.knock(now, &next, false, NONE), Verdict::OverRate);
        let other = ip(Ipv6Addr::from_bits(home + (1 << 64)));
        assert_eq!(door.knock(now, &other, false, NONE), AT_ONCE);
        // An IPv4 address is the same however it is written.
        for n in 0..20 {
            assert!(begins(&door.knock(now, &v4(n / 20 + 9), false, NONE)));
        }
        let mapped = ip(Ipv4Addr::from_bits(9).to_ipv6_mapped());
        assert_eq!(door.knock(now, &mapped, false, NONE), Verdict::OverRate);
    }

    #[test]
    fn with_many_in_flight_addresses_are_validated_and_with_too_many_none_begins() {
        let now = Instant::now();
        let mut door = Door::new(LIMITS, now);
        let mut knock = |validated, all| {
            let in_flight = InFlight { all, of_addr: 0 };
            door.knock(now, &v4(1), validated, in_flight)
        };
        assert_eq!(knock(false, 49), AT_ONCE);
        assert_eq!(knock(false, 50), Verdict::Retry);
        assert_eq!(knock(true, 99), AT_ONCE);
        assert_eq!(knock(true, 100), Verdict::Crowded);
    }

    #[test]
    fn an_address_with_too_many_in_flight_begins_none_and_the_others_do() {
        let now = Instant::now();
        let limits = DoorLimits {
            in_flight_of_addr: 10,
            ..LIMITS
        };
        let mut door = Door::new(limits, now);
        let mut knock = |n, of_addr| {
            let in_flight = InFlight { all: 49, of_addr };
            door.knock(now, &v4(n), false, in_flight)
        };
        assert_eq!(knock(1, 9), AT_ONCE);
        assert_eq!(knock(1, 10), Verdict::Crowded);
        assert_eq!(knock(2, 0), AT_ONCE);
    }

    #[test]
    fn addresses_are_not_validated_any_more_once_many_were_quiet() {
        let mut now = Instant::now();
        let mut door = Door::new(LIMITS, now);
        for n in 0..ADDRS as u32 {
            door.knock(now, &v4(n), false, NONE);
        }
        assert_eq!(door.knock(now, &v4(1 << 30), false, NONE), Verdict::Retry);
        now += Duration::from_secs(u64::from(AT_ONCE_S));
        assert_eq!(door.knock(now, &v4(1 << 30), false, NONE), AT_ONCE);
        assert_eq!(door.addrs.len(), 1);
    }

    #[test]
    fn invented_addresses_fill_half_of_the_places_at_most() {
        let now = Instant::now();
        let mut door = Door::new(LIMITS, now);
        for n in 0..100_000 {
            door.knock(now, &v4(n), false, NONE);
        }
        assert_eq!(door.addrs.len(), ADDRS / 2);
        assert_eq!(door.knock(now, &v4(1 << 30), false, NONE), Verdict::Retry);
        assert_eq!(door.knock(now, &v4(1 << 30), true, NONE), AT_ONCE);
    }

    proptest! {
        #[test]
        fn whatever_the_addresses_the_table_is_bounded_and_what_is_begun_too(
            seconds in 1u32..5, addrs in 1u32..20_000, knocks in 1u32..30_000
        ) {
            let begin = Instant::now();
            let mut door = Door::new(LIMITS, begin);
            let mut begun = 0;
            for n in 0..knocks {
                let at = f64::from(seconds) * f64::from(n) / f64::from(knocks);
                let now = begin + Duration::from_secs_f64(at);
                begun += u32::from(begins(&door.knock(now, &v4(n % addrs), true, NONE)));
                prop_assert!(door.addrs.len() <= ADDRS);
            }
            let watched = addrs.min(ADDRS as u32 * (seconds * 10 + 1)) + 1;
            prop_assert!(begun <= watched.saturating_mul(LIMITS.of_addr_per_s * (seconds + AT_ONCE_S)));
        }
    }
}
