//! The targeted events of one spoke, through all links of its session: sans-IO.
//!
//! An event is numbered when it is first written, and kept until the spoke acknowledges it; the next
//! link of the session begins with what the spoke has not taken. Events that overtake are written before
//! those that wait for their place among the broadcasts. When the session ends, every sender is told
//! what became of its event.
//!
//! Not for: how long a session lives, or whether a link is who it says.

use std::collections::VecDeque;

use n0_error::e;

use crate::{
    delivery::{Loss, SendReceipt, Ticket},
    event::Envelope,
    link_io::LinkError,
    protocol::Protocol,
    spoke_id::SpokeId,
};

/// What an event costs beside its own bytes while its spoke is away.
pub(super) const OVERHEAD: usize = 256;

/// The bounds of a [`Mailbox`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct MailboxLimits {
    /// The most events that wait, written or not, until they are acknowledged.
    pub(crate) events: usize,
    /// The most bytes of them; one event is always taken.
    pub(crate) bytes: usize,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Mailbox {
    spoke: SpokeId,
    protocol: Protocol,
    limits: MailboxLimits,
    /// The link that writes and acknowledges; none while the spoke is away.
    link: Option<u64>,
    /// Numbered and not acknowledged. The last one has the number `last_seq`.
    kept: VecDeque<Kept>,
    last_seq: u64,
    /// How many of `kept` this link need not write: it has written them, or the spoke had taken them.
    written: usize,
    /// Not numbered yet: those that overtake, and those that wait for their place.
    overtaking: VecDeque<Kept>,
    waiting: VecDeque<Kept>,
    /// Bytes of all that is here.
    bytes: usize,
    /// The session has ended.
    ended: bool,
}

#[derive(Debug)]
struct Kept {
    /// To be seen when every broadcast below was. An offset is enough: a hub whose log begins a new epoch
    /// goes on counting.
    after: u64,
    envelope: Envelope,
    /// None once its sender has been told.
    ticket: Option<Ticket>,
}

/// An event to be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Due {
    pub(crate) seq: u64,
    pub(crate) after: u64,
    pub(crate) envelope: Envelope,
}

/// An event was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NoRoom {
    /// There is no room now.
    Full,
    /// The spoke is away, and it was not said that it may be.
    Away,
    /// The session has ended.
    Ended,
}

impl Mailbox {
    pub(crate) fn new(spoke: SpokeId, protocol: Protocol, limits: MailboxLimits) -> Self {
        Self {
            spoke,
            protocol,
            limits,
            link: None,
            kept: VecDeque::new(),
            last_seq: 0,
            written: 0,
            overtaking: VecDeque::new(),
            waiting: VecDeque::new(),
            bytes: 0,
            ended: false,
        }
    }

    fn len(&self) -> usize {
        self.kept.len() + self.overtaking.len() + self.waiting.len()
    }

    /// Whether the session has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether every event has reached the spoke, as far as its protocol can tell.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is kept here costs so many bytes.
    pub(crate) fn cost(&self) -> usize {
        self.bytes
            .saturating_add(self.len().saturating_mul(OVERHEAD))
    }

    /// Takes an event, sent when `end` was the offset of the next broadcast.
    pub(crate) fn push(
        &mut self,
        envelope: &Envelope,
        end: u64,
        overtake: bool,
    ) -> Result<SendReceipt, NoRoom> {
        if self.ended {
            return Err(NoRoom::Ended);
        }
        let bytes = self.bytes.saturating_add(envelope.size());
        let fits = self.len() < self.limits.events && bytes <= self.limits.bytes;
        if !fits && !self.is_empty() {
            return Err(NoRoom::Full);
        }
        self.bytes = bytes;
        let (ticket, receipt) = Ticket::new(Some(self.spoke));
        let (queue, after) = if overtake {
            // Offset 0 has nothing before it.
            (&mut self.overtaking, 0)
        } else {
            (&mut self.waiting, end)
        };
        queue.push_back(Kept {
            after,
            envelope: envelope.clone(),
            ticket: Some(ticket),
        });
        Ok(receipt)
    }

    /// The number of the last event that is acknowledged.
    fn acked_seq(&self) -> u64 {
        self.last_seq - self.kept.len() as u64
    }

    /// Whether a spoke of this session can have taken its events up to `taken`, and no more.
    pub(crate) fn check_taken(&self, taken: u64) -> Result<(), LinkError> {
        if taken > self.last_seq {
            return Err(e!(LinkError::Misbehaved {
                what: "took a targeted event that was not sent"
            }));
        }
        if taken < self.acked_seq() {
            return Err(e!(LinkError::Misbehaved {
                what: "lacks a targeted event that it acknowledged"
            }));
        }
        Ok(())
    }

    /// From now on, `link` serves the spoke, which has taken its events up to `taken`. Any other link has
    /// nothing more to write here.
    pub(crate) fn attach(&mut self, link: u64, taken: u64) {
        self.link = Some(link);
        let written = taken.saturating_sub(self.acked_seq());
        self.written = usize::try_from(written).map_or(self.kept.len(), |n| n.min(self.kept.len()));
    }

    /// The link has ended; the spoke is away.
    pub(crate) fn detach(&mut self) {
        self.link = None;
    }

    /// Up to where a cursor may go before this link has an event to write.
    pub(crate) fn stop(&self, link: u64) -> Option<u64> {
        let first = self.waiting.front().filter(|_| self.link == Some(link))?;
        Some(first.after)
    }

    /// The next event for `link` to write, when everything below `written` was written to it, or is left to
    /// the topic.
    pub(crate) fn next(&mut self, link: u64, written: u64) -> Option<Due> {
        if self.link != Some(link) {
            return None;
        }
        if let Some(again) = self.kept.get(self.written) {
            // In the order of numbers, and the spoke keeps the order among the broadcasts.
            let due = Due {
                seq: self.acked_seq() + self.written as u64 + 1,
                after: again.after,
                envelope: again.envelope.clone(),
            };
            self.written += 1;
            return Some(due);
        }
        let first = match self.overtaking.pop_front() {
            Some(first) => first,
            None => {
                if self.waiting.front()?.after > written {
                    return None;
                }
                self.waiting.pop_front()?
            }
        };
        let due = Due {
            seq: self.last_seq + 1,
            after: first.after,
            envelope: first.envelope.clone(),
        };
        match self.protocol {
            Protocol::Native => {
                self.last_seq += 1;
                self.kept.push_back(first);
                self.written = self.kept.len();
            }
            Protocol::Compat => {
                self.bytes -= first.envelope.size();
                if let Some(ticket) = first.ticket {
                    ticket.maybe_delivered(Loss::CannotAcknowledge);
                }
            }
        }
        Some(due)
    }

    /// The spoke does not take the event number `seq`, since it is too large, it says on `link`. It
    /// acknowledges it all the same, in its turn.
    pub(crate) fn refused(&mut self, link: u64, seq: u64) -> Result<(), LinkError> {
        if self.link != Some(link) {
            return Ok(());
        }
        let Some(place) = seq.checked_sub(self.acked_seq() + 1) else {
            // It has said so before.
            return Ok(());
        };
        let place = usize::try_from(place).unwrap_or(usize::MAX);
        if place >= self.written {
            return Err(e!(LinkError::Misbehaved {
                what: "refused a targeted event that was not sent"
            }));
        }
        if let Some(ticket) = self.kept.get_mut(place).and_then(|kept| kept.ticket.take()) {
            ticket.not_delivered(Loss::TooLarge);
        }
        Ok(())
    }

    /// The spoke has handed its events up to `seq` to its listeners, it says on `link`. Says whether that
    /// makes room.
    pub(crate) fn acked(&mut self, link: u64, seq: u64) -> Result<bool, LinkError> {
        if self.link != Some(link) {
            return Ok(false);
        }
        if seq > self.acked_seq() + self.written as u64 {
            return Err(e!(LinkError::Misbehaved {
                what: "acknowledged a targeted event that was not sent"
            }));
        }
        let mut freed = false;
        while self.acked_seq() < seq
            && let Some(first) = self.kept.pop_front()
        {
            self.written -= 1;
            self.bytes -= first.envelope.size();
            if let Some(ticket) = first.ticket {
                ticket.delivered();
            }
            freed = true;
        }
        Ok(freed)
    }

    /// The session has ended: what was never written was not delivered, and what was may have been. Says
    /// how many of both there are.
    pub(crate) fn end(&mut self, reason: &Loss) -> (usize, usize) {
        self.ended = true;
        self.link = None;
        self.bytes = 0;
        self.written = 0;
        let unknown = self.kept.iter().filter(|kept| kept.ticket.is_some());
        let ended = (self.overtaking.len() + self.waiting.len(), unknown.count());
        for ticket in self.kept.drain(..).filter_map(|kept| kept.ticket) {
            ticket.maybe_delivered(reason.clone());
        }
        let unwritten = self.overtaking.drain(..).chain(self.waiting.drain(..));
        for ticket in unwritten.filter_map(|kept| kept.ticket) {
            ticket.not_delivered(reason.clone());
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::delivery::Delivery;

    fn mailbox(protocol: Protocol, events: usize, bytes: usize) -> Mailbox {
        let spoke = SpokeId {
            endpoint: iroh::SecretKey::from_bytes(&[7; 32]).public(),
            number: 1,
        };
        Mailbox::new(spoke, protocol, MailboxLimits { events, bytes })
    }

    fn event(n: u64) -> Envelope {
        Envelope::new("n", &n).unwrap()
    }

    fn number(due: Option<Due>) -> Option<(u64, u64)> {
        due.map(|due| (due.seq, due.envelope.payload().unwrap()))
    }

    #[test]
    fn an_event_waits_for_its_place_unless_it_overtakes() {
        let mut mailbox = mailbox(Protocol::Native, 10, 1000);
        mailbox.attach(1, 0);
        mailbox.push(&event(1), 5, false).unwrap();
        mailbox.push(&event(2), 6, true).unwrap();
        assert_eq!(mailbox.stop(1), Some(5));
        assert_eq!(number(mailbox.next(1, 3)), Some((1, 2)));
        assert_eq!(number(mailbox.next(1, 4)), None);
        assert_eq!(number(mailbox.next(1, 5)), Some((2, 1)));
        assert_eq!(mailbox.stop(1), None);
    }

    #[test]
    fn the_next_link_begins_behind_what_the_spoke_took_and_the_last_one_has_no_say() {
        let mut mailbox = mailbox(Protocol::Native, 10, 1000);
        mailbox.attach(1, 0);
        let receipts: Vec<_> = (1..=4)
            .map(|n| mailbox.push(&event(n), 0, false).unwrap())
            .collect();
        for n in 1..=3 {
            assert_eq!(number(mailbox.next(1, 0)), Some((n, n)));
        }
        assert!(mailbox.acked(1, 1).unwrap());
        assert!(mailbox.acked(1, 4).is_err(), "it was not written");
        mailbox.detach();
        assert!(mailbox.check_taken(0).is_err(), "the first is acknowledged");
        assert!(mailbox.check_taken(4).is_err(), "it was never written");
        mailbox.check_taken(2).unwrap();
        mailbox.attach(2, 2);
        assert_eq!(number(mailbox.next(1, 0)), None);
        assert!(!mailbox.acked(1, 3).unwrap());
        assert!(mailbox.acked(2, 3).is_err(), "not written on this link");
        assert_eq!(number(mailbox.next(2, 0)), Some((3, 3)));
        assert_eq!(number(mailbox.next(2, 0)), Some((4, 4)));
        assert!(mailbox.acked(2, 3).unwrap());
        mailbox.push(&event(5), 0, false).unwrap();
        assert_eq!(mailbox.end(&Loss::Expired), (1, 1));
        let outcomes: Vec<_> = receipts.iter().map(SendReceipt::now).collect();
        assert!(outcomes[..3].iter().all(|o| *o == Delivery::Delivered));
        assert_eq!(outcomes[3], Delivery::MaybeDelivered(Loss::Expired));
        assert_eq!(mailbox.push(&event(6), 0, false).err(), Some(NoRoom::Ended));
    }

    #[test]
    fn what_a_spoke_refuses_was_not_delivered_though_it_acknowledges_it() {
        let mut mailbox = mailbox(Protocol::Native, 10, 1000);
        mailbox.attach(1, 0);
        let receipts: Vec<_> = (1..=3)
            .map(|n| mailbox.push(&event(n), 0, false).unwrap())
            .collect();
        mailbox.next(1, 0).unwrap();
        mailbox.next(1, 0).unwrap();
        assert!(mailbox.refused(1, 3).is_err(), "it was not sent");
        assert!(mailbox.refused(1, u64::MAX).is_err());
        for seq in [2, 2, 0] {
            mailbox.refused(1, seq).unwrap();
        }
        mailbox.acked(1, 2).unwrap();
        mailbox.refused(1, 1).unwrap();
        let outcomes: Vec<_> = receipts.iter().map(SendReceipt::now).collect();
        let refused = Delivery::NotDelivered(Loss::TooLarge);
        let expected = [Delivery::Delivered, refused, Delivery::Pending];
        assert_eq!(outcomes, expected);
    }

    #[test]
    fn one_event_always_fits_and_a_plain_spokes_stream_is_all_that_is_known() {
        let mut mailbox = mailbox(Protocol::Compat, 1, 1);
        mailbox.attach(1, 0);
        let receipt = mailbox.push(&event(1), 0, false).unwrap();
        assert_eq!(mailbox.push(&event(2), 0, false).err(), Some(NoRoom::Full));
        mailbox.next(1, 0).unwrap();
        let outcome = Delivery::MaybeDelivered(Loss::CannotAcknowledge);
        assert_eq!(receipt.now(), outcome);
        assert!(mailbox.is_empty() && mailbox.cost() == 0);
        let receipt = mailbox.push(&event(2), 0, false).unwrap();
        mailbox.end(&Loss::ShutDown);
        assert_eq!(receipt.now(), Delivery::NotDelivered(Loss::ShutDown));
    }

    #[derive(Clone, Debug)]
    enum Op {
        Push {
            overtake: bool,
        },
        /// The log grows, and the cursor goes on.
        Broadcast,
        Cursor,
        Park(bool),
        /// The writer writes one event, which the spoke takes, or which is lost with the link.
        Write {
            arrives: bool,
        },
        /// The spoke acknowledges some of what it took.
        Ack(u64),
        Lose,
        Return,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => any::<bool>().prop_map(|overtake| Op::Push { overtake }),
            2 => Just(Op::Broadcast),
            2 => Just(Op::Cursor),
            1 => any::<bool>().prop_map(Op::Park),
            6 => prop::bool::weighted(0.9).prop_map(|arrives| Op::Write { arrives }),
            2 => (0..4u64).prop_map(Op::Ack),
            1 => Just(Op::Lose),
            2 => Just(Op::Return),
        ]
    }

    /// A spoke that takes what follows what it has, as spokes do.
    #[derive(Default)]
    struct Spoke {
        taken: Vec<u64>,
        acked: u64,
    }

    crate::fuzz::machine! {
        fn every_event_is_taken_once_in_order_or_its_sender_knows_better(
            ops in prop::collection::vec(op(), 1..200),
            events in 1..6usize,
        ) {
            let mut mailbox = mailbox(Protocol::Native, events, 1 << 20);
            let mut spoke = Spoke::default();
            let (mut link, mut connected, mut torn) = (1, true, false);
            mailbox.attach(link, 0);
            let (mut tip, mut cursor, mut parked) = (0u64, 0u64, false);
            // What was sent: receipt, whether it overtakes, the tip then.
            let mut sent: Vec<(SendReceipt, bool, u64)> = Vec::new();
            for op in ops {
                match op {
                    Op::Push { overtake } => {
                        let n = sent.len() as u64;
                        let before = mailbox.len();
                        match mailbox.push(&event(n), tip, overtake) {
                            Ok(receipt) => {
                                prop_assert!(before < events);
                                sent.push((receipt, overtake, tip));
                            }
                            Err(refused) => {
                                prop_assert_eq!(refused, NoRoom::Full);
                                prop_assert!(before >= events);
                            }
                        }
                    }
                    Op::Broadcast => tip += 1,
                    Op::Cursor => {
                        let stop = mailbox.stop(link).unwrap_or(tip);
                        cursor = cursor.max((cursor + 1).min(stop).min(tip));
                    }
                    Op::Park(park) => parked = park,
                    Op::Write { arrives } => {
                        let due = mailbox.next(link, if parked { tip } else { cursor });
                        prop_assert!(due.is_none() || connected);
                        let Some(due) = due else { continue };
                        let n: u64 = due.envelope.payload().unwrap();
                        let (_, overtake, after) = sent[n as usize];
                        prop_assert_eq!(due.after, if overtake { 0 } else { after });
                        // A link that has lost a frame delivers nothing behind it.
                        torn |= !arrives;
                        if torn {
                            continue;
                        }
                        if due.seq <= spoke.taken.len() as u64 {
                            prop_assert_eq!(spoke.taken[due.seq as usize - 1], n, "the same number again");
                            prop_assert!(false, "what was taken is not sent again");
                        }
                        prop_assert_eq!(due.seq, spoke.taken.len() as u64 + 1);
                        spoke.taken.push(n);
                    }
                    Op::Ack(n) => {
                        if connected {
                            spoke.acked = (spoke.acked + n).min(spoke.taken.len() as u64);
                            mailbox.acked(link, spoke.acked).unwrap();
                        }
                    }
                    Op::Lose => {
                        connected = false;
                        mailbox.detach();
                    }
                    Op::Return => {
                        link += 1;
                        (connected, torn) = (true, false);
                        let taken = spoke.taken.len() as u64;
                        mailbox.check_taken(taken).unwrap();
                        mailbox.attach(link, taken);
                    }
                }
                let bytes: usize = mailbox.cost();
                prop_assert!(bytes <= events * (OVERHEAD + 64));
            }
            // Both kinds keep their own order.
            for kind in [true, false] {
                let of_kind: Vec<u64> = spoke.taken.iter().copied().filter(|n| sent[*n as usize].1 == kind).collect();
                prop_assert!(of_kind.is_sorted_by(|a, b| a < b), "{of_kind:?}");
            }
            mailbox.end(&Loss::Expired);
            for (n, (receipt, _, _)) in sent.iter().enumerate() {
                let place = spoke.taken.iter().position(|taken| *taken == n as u64);
                match receipt.now() {
                    Delivery::Delivered => prop_assert!(place.is_some_and(|place| (place as u64) < spoke.acked)),
                    Delivery::NotDelivered(_) => prop_assert_eq!(place, None),
                    Delivery::MaybeDelivered(_) => prop_assert!(place.is_none_or(|place| place as u64 >= spoke.acked)),
                    Delivery::Pending => prop_assert!(false, "everyone is told"),
                }
            }
        }
    }
}
