//! The bytes that repairs and fallback may take, shared out oldest first: sans-IO.
//!
//! Whoever has a batch to write asks first. While there is room the answer is yes, and what was written is
//! paid for afterwards, so a batch may be larger than what is left and the next ones wait longer. Who is
//! refused has a place in a line, and is called when it is its turn. Having written a batch, it stands at
//! the end again: so the one that lacks most cannot hold up the rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::instant::after;

/// So much of a second's bytes may be spent at once.
const BURST: u32 = 10;
/// and at least so many.
const MIN_BURST: u64 = 256 * 1024;
/// How many may have been called and not come yet,
const CALLED: usize = 16;
/// and for how long: after that, others are called too.
const COMES_WITHIN: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(crate) struct Budget<Who> {
    per_s: u64,
    /// Below zero while the last batches are being paid off.
    room: i64,
    filled: Instant,
    /// The ticket of each who waits or was called: the lower, the longer it has waited.
    tickets: BTreeMap<Who, u64>,
    next_ticket: u64,
    line: BTreeSet<(u64, Who)>,
    called: BTreeMap<Who, Instant>,
    /// Called, and late: they do not hold the next ones up, and are let in all the same if there is room
    /// when they come. A hub that is short of CPU makes everybody late.
    late: BTreeSet<Who>,
}

impl<Who: Copy + Ord> Budget<Who> {
    pub(crate) fn new(now: Instant, per_s: u64) -> Self {
        let per_s = per_s.max(1);
        Self {
            per_s,
            room: Self::burst(per_s),
            filled: now,
            tickets: BTreeMap::new(),
            next_ticket: 0,
            line: BTreeSet::new(),
            called: BTreeMap::new(),
            late: BTreeSet::new(),
        }
    }

    fn burst(per_s: u64) -> i64 {
        i64::try_from((per_s / u64::from(BURST)).max(MIN_BURST)).unwrap_or(i64::MAX)
    }

    /// Whether a batch may be written now. If not, who asked is called later.
    pub(crate) fn ask(&mut self, now: Instant, who: Who) -> bool {
        self.fill(now);
        let called = self.called.remove(&who).is_some() | self.late.remove(&who);
        if self.room > 0 && (called || self.line.is_empty()) {
            self.tickets.remove(&who);
            return true;
        }
        let ticket = *self.tickets.entry(who).or_insert_with(|| {
            self.next_ticket += 1;
            self.next_ticket
        });
        self.line.insert((ticket, who));
        false
    }

    /// So much was written.
    pub(crate) fn spend(&mut self, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.room = self.room.saturating_sub(bytes);
    }

    /// It has nothing to write any more.
    pub(crate) fn leave(&mut self, who: Who) {
        self.called.remove(&who);
        self.late.remove(&who);
        if let Some(ticket) = self.tickets.remove(&who) {
            self.line.remove(&(ticket, who));
        }
    }

    /// Whose turn it is: it is to ask again. Call until there is nobody, and again at
    /// [`deadline`](Self::deadline).
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Who> {
        self.fill(now);
        let late = |at: &Instant| now >= after(*at, COMES_WITHIN);
        for (who, _) in self.called.extract_if(.., |_, at| late(at)) {
            self.tickets.remove(&who);
            self.late.insert(who);
        }
        if self.room <= 0 || self.called.len() >= CALLED {
            return None;
        }
        let (_, who) = self.line.pop_first()?;
        self.called.insert(who, now);
        Some(who)
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        if self.line.is_empty() {
            return None;
        }
        if self.called.len() >= CALLED {
            let first = self.called.values().min();
            return first.map(|at| after(*at, COMES_WITHIN));
        }
        let owed = u64::try_from(1i64.saturating_sub(self.room)).unwrap_or(0);
        // Rounded up, so that there is room then.
        let wait = Duration::from_secs_f64(owed as f64 / self.per_s as f64);
        Some(after(self.filled, wait + Duration::from_micros(1)))
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled);
        let more = (passed.as_secs_f64() * self.per_s as f64) as i64;
        // What is less than a byte goes on counting.
        if more > 0 {
            self.filled = now;
            self.room = self.room.saturating_add(more).min(Self::burst(self.per_s));
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::wire::native::{GenerationKeys, Topic};
    use crate::{
        event::Envelope,
        hub::{
            config::Behind,
            desk::{Batch, Desk, TopicOrder},
            mailbox::{Mailbox, MailboxLimits},
            shared_log::SharedLog,
        },
        log::LogConfig,
        protocol::Protocol,
        spoke_id::SpokeId,
    };

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn who_waits_longest_is_called_first_and_stands_at_the_end_afterwards() {
        let now = Instant::now();
        let mut budget = Budget::new(now, MIN_BURST);
        assert!(budget.ask(now, 'a'));
        budget.spend(2 * MIN_BURST);
        for (n, who) in ['c', 'a', 'b'].into_iter().enumerate() {
            assert!(!budget.ask(now + n as u32 * MS, who));
        }
        assert!(
            !budget.ask(now + 10 * MS, 'c'),
            "asking again changes nothing"
        );
        assert_eq!(budget.poll(now + 10 * MS), None);
        let at = budget.deadline().unwrap();
        assert!((now + 990 * MS..now + 1010 * MS).contains(&at));
        assert_eq!(budget.poll(at), Some('c'));
        assert!(!budget.ask(at, 'd'), "it is not its turn");
        assert!(budget.ask(at, 'c'));
        budget.spend(MIN_BURST);
        assert!(!budget.ask(at, 'c'));
        for who in ['a', 'b', 'd', 'c'] {
            let at = budget.deadline().unwrap();
            assert_eq!(budget.poll(at), Some(who));
            assert!(budget.ask(at, who));
            budget.spend(MIN_BURST);
        }
        assert_eq!(budget.deadline(), None);
    }

    #[test]
    fn who_does_not_come_when_called_holds_nobody_up() {
        let now = Instant::now();
        let mut budget = Budget::new(now, MIN_BURST);
        budget.spend(MIN_BURST);
        for who in 0..100u32 {
            assert!(!budget.ask(now, who));
        }
        let mut at = now;
        let mut called = Vec::new();
        while let Some(next) = budget.deadline() {
            at = at.max(next);
            called.extend(std::iter::from_fn(|| budget.poll(at)));
        }
        assert_eq!(called, (0..100).collect::<Vec<_>>());
        assert!(at < now + 1000 * MS);
        assert!(budget.ask(at + COMES_WITHIN, 200));
    }

    #[test]
    fn who_comes_late_is_let_in_if_there_is_room() {
        let now = Instant::now();
        let mut budget = Budget::new(now, MIN_BURST);
        budget.spend(MIN_BURST);
        for who in 0..40u32 {
            assert!(!budget.ask(now, who));
        }
        // Everybody takes longer than is waited for, as on a machine that is short of CPU.
        let mut at = now + 2000 * MS;
        let mut come = Vec::new();
        let mut on_their_way = Vec::new();
        while come.len() < 40 {
            at += 2 * COMES_WITHIN;
            let called: Vec<_> = std::iter::from_fn(|| budget.poll(at)).collect();
            for who in std::mem::replace(&mut on_their_way, called) {
                assert!(budget.ask(at, who), "{who} has to call again");
                come.push(who);
            }
            assert!(at < now + 10_000 * MS);
        }
        assert_eq!(come, (0..40).collect::<Vec<_>>());
        assert!(budget.late.is_empty());
    }

    fn join() -> TopicOrder {
        TopicOrder::Join(Box::new(Topic {
            topic: [0; 32],
            keys: GenerationKeys {
                generation: 0,
                key: [0; 32],
                verify_key: [0; 32],
            },
            peers: Vec::new(),
            max_frame_bytes: 0,
            members: 1,
        }))
    }

    #[test]
    fn a_desk_leaves_alone_what_is_not_paid_for_and_says_what_the_rest_costs() {
        let log = SharedLog::new(LogConfig::default());
        for _ in 0..10 {
            log.append(Envelope::from_json("t", "", &"1".repeat(100)).unwrap())
                .unwrap();
        }
        let mut desk = Desk::new(Protocol::Native, 1, 0, Behind::Skip);
        let spoke = SpokeId {
            endpoint: iroh::SecretKey::from_bytes(&[7; 32]).public(),
            number: 1,
        };
        let limits = MailboxLimits {
            events: 1,
            bytes: 1,
        };
        let mut mailbox = Mailbox::new(spoke, Protocol::Native, limits);
        let mut next = |desk: &mut Desk, paid| {
            let mut chunks = Vec::new();
            let batch = desk.next_batch(&mut mailbox, &log, paid, &mut Vec::new(), &mut chunks);
            let len: usize = chunks.iter().map(Bytes::len).sum();
            (batch.unwrap(), len as u64)
        };
        // Who is not on the topic is served as ever.
        assert!(!desk.is_paid_for(10));
        let (batch, _) = next(&mut desk, false);
        let all = Batch::Frames {
            cursor: Some(10),
            cost: 0,
            all: true,
        };
        assert_eq!(batch, all);
        desk.order_topic(join());
        next(&mut desk, false);
        desk.park();
        desk.repair(3, 5);
        assert!(desk.is_paid_for(10));
        desk.acknowledge(7);
        let (batch, acknowledgement) = next(&mut desk, false);
        assert!(acknowledgement > 0);
        let control = Batch::Frames {
            cursor: None,
            cost: 0,
            all: false,
        };
        assert_eq!(batch, control);
        let (batch, len) = next(&mut desk, true);
        let repairs = Batch::Frames {
            cursor: None,
            cost: len,
            all: false,
        };
        assert_eq!(batch, repairs);
        assert!(len > 200 && !desk.is_paid_for(10));
        // Served around.
        desk.unpark(8);
        assert!(desk.is_paid_for(10));
        let idle = Batch::Idle { follows_tip: false };
        assert_eq!(next(&mut desk, false).0, idle);
        let (batch, len) = next(&mut desk, true);
        let rest = Batch::Frames {
            cursor: Some(10),
            cost: len,
            all: true,
        };
        assert_eq!(batch, rest);
        assert!(!desk.is_paid_for(10));
        // And so until it leaves the topic.
        desk.order_topic(TopicOrder::Leave);
        log.append(Envelope::from_json("t", "", "1").unwrap())
            .unwrap();
        assert!(!desk.is_paid_for(11));
        // The next topic finds it served directly, and so it is until that reaches it.
        desk.order_topic(join());
        assert!(!desk.is_paid_for(11));
    }

    #[derive(Clone, Debug)]
    enum Op {
        Ask(u8),
        Leave(u8),
        Pass(u16),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0u8..40).prop_map(Op::Ask),
            1 => (0u8..40).prop_map(Op::Leave),
            2 => (0u16..200).prop_map(Op::Pass),
        ]
    }

    crate::fuzz::machine! {
        fn no_more_than_the_rate_is_spent_and_everyone_gets_a_turn(
            per_s in 1u64..10_000_000,
            bytes in 1u64..1_000_000,
            ops in prop::collection::vec(op(), 1..200),
        ) {
            let begin = Instant::now();
            let mut now = begin;
            let mut budget = Budget::new(now, per_s);
            let burst = (per_s / u64::from(BURST)).max(MIN_BURST);
            let mut spent = 0;
            let mut waiting = BTreeSet::new();
            for op in ops {
                match op {
                    Op::Ask(who) => if budget.ask(now, who) {
                        budget.spend(bytes);
                        spent += bytes;
                        waiting.remove(&who);
                    } else {
                        waiting.insert(who);
                    },
                    Op::Leave(who) => {
                        budget.leave(who);
                        waiting.remove(&who);
                    }
                    Op::Pass(ms) => now += u32::from(ms) * MS,
                }
                let passed = now.duration_since(begin).as_secs_f64() * per_s as f64;
                // One batch may go over.
                prop_assert!(spent as f64 <= burst as f64 + passed + bytes as f64 + 1.0);
                prop_assert!(budget.line.len() <= 40 && budget.tickets.len() <= 40 && budget.called.len() <= CALLED);
            }
            // Each comes when it is called, and is served once.
            for _ in 0..1000 {
                let Some(at) = budget.deadline() else { break };
                now = now.max(at);
                while let Some(who) = budget.poll(now) {
                    if budget.ask(now, who) {
                        budget.spend(bytes);
                        waiting.remove(&who);
                    }
                }
            }
            prop_assert!(waiting.is_empty(), "{:?}", waiting);
        }
    }
}
