//! What a spoke has for its hub: its own events until the hub has them, and what the reception orders.
//!
//! The session puts in, the writer of the link takes out. It lives as long as the spoke: what the hub has
//! not acknowledged when a link ends is written again on the next one of the session. Acknowledgements are
//! state, not a queue: only the latest is ever written.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::{
    delivery::{Loss, SendReceipt, Ticket},
    event::Envelope,
    protocol::Protocol,
    wire::{
        compat,
        native::{self, ToHub},
    },
};

/// How much is gathered for one write, in bytes.
const BATCH_BYTES: usize = 256 * 1024;
/// How many wants wait to be written; the inbox wants again what was not answered.
const MAX_WANTS: usize = 64;
/// How many ranges that this spoke gave up wait to be written.
const MAX_MISSED: usize = 1024;
/// How many events that this spoke refused are remembered, to be said again on a new link: more than a hub
/// has unacknowledged, in all likelihood.
pub(crate) const MAX_REFUSED: usize = 4096;
/// What an event costs beside its bytes.
const OVERHEAD: u64 = 256;

#[derive(Debug)]
pub(crate) struct Outbox {
    protocol: Protocol,
    /// The most bytes of events that are kept, unless it is one event.
    capacity: u64,
    state: Mutex<State>,
    /// Wakes the writer.
    pub(super) wake: Notify,
    /// Wakes who waits for room or for everything to be taken.
    pub(super) taken: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Every event that the hub is not known to have, oldest first, numbered one by one.
    events: VecDeque<Kept>,
    /// How many of them are written to the present link,
    written: usize,
    /// and how many parts of the next one.
    parts: u16,
    /// What `events` cost.
    bytes: u64,
    /// Bytes of those of them that are written.
    in_flight: u64,
    /// How many bytes may be in flight, unless it is one event.
    window: u64,
    last_seq: u64,
    /// Up to here, events were written to some link of the session.
    ever_written: u64,
    /// What was lost since somebody asked.
    lost: Lost,
    orders: Orders,
}

#[derive(Debug)]
struct Kept {
    seq: u64,
    envelope: Envelope,
    ticket: Ticket,
}

impl Kept {
    fn bytes(&self) -> u64 {
        cost(&self.envelope)
    }
}

fn cost(envelope: &Envelope) -> u64 {
    envelope.size() as u64 + OVERHEAD
}

/// Control frames for the present link.
#[derive(Debug, Default)]
struct Orders {
    ack: Option<(u64, u64)>,
    wants: VecDeque<ToHub>,
    /// What this spoke itself gave up: always said, and before the acknowledgement that covers it.
    missed: VecDeque<(u64, u64)>,
    refused: VecDeque<u64>,
    /// The newest keys that this spoke is to say it has.
    rekeyed: Option<u32>,
    /// The path that this spoke wants, as it stands; never dropped.
    path: Option<ToHub>,
}

/// Events that were sent and did not, or may not have, arrived.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Lost {
    pub(super) not_delivered: u64,
    pub(super) maybe_delivered: u64,
    pub(super) reason: Option<Loss>,
}

/// The hub claims to have what was never written to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NeverSent;

impl State {
    /// The hub has everything up to `seq`.
    fn take(&mut self, seq: u64) {
        while self.events.front().is_some_and(|event| event.seq <= seq)
            && let Some(event) = self.events.pop_front()
        {
            self.bytes -= event.bytes();
            if self.written > 0 {
                self.written -= 1;
                self.in_flight -= event.envelope.size() as u64;
            } else if std::mem::take(&mut self.parts) > 0 {
                // The hub cannot have it whole, but if it says so, it has it.
                self.in_flight -= event.envelope.size() as u64;
            }
            event.ticket.delivered();
        }
    }

    /// Gives up events that never left and are larger than the hub takes.
    fn refuse_larger(&mut self, most: u64) {
        let mut kept = VecDeque::with_capacity(self.events.len());
        for event in self.events.drain(..) {
            if event.envelope.size() as u64 <= most {
                kept.push_back(event);
                continue;
            }
            self.bytes -= event.bytes();
            self.lost.reason = Some(Loss::TooLarge);
            self.lost.not_delivered += 1;
            event.ticket.not_delivered(Loss::TooLarge);
        }
        self.events = kept;
    }

    /// Gives up the events up to `seq`, which were written, or (`None`) all of them.
    fn give_up(&mut self, seq: Option<u64>, reason: &Loss) {
        while self
            .events
            .front()
            .is_some_and(|event| seq.is_none_or(|seq| event.seq <= seq))
            && let Some(event) = self.events.pop_front()
        {
            self.bytes -= event.bytes();
            self.lost.reason = Some(reason.clone());
            if event.seq <= self.ever_written {
                self.lost.maybe_delivered += 1;
                event.ticket.maybe_delivered(reason.clone());
            } else {
                self.lost.not_delivered += 1;
                event.ticket.not_delivered(reason.clone());
            }
        }
    }
}

impl Outbox {
    pub(crate) fn new(protocol: Protocol, capacity: u64) -> Self {
        Self {
            protocol,
            capacity,
            state: Mutex::default(),
            wake: Notify::new(),
            taken: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues an event if there is room.
    pub(crate) fn try_send(&self, envelope: &Envelope) -> Option<SendReceipt> {
        let bytes = cost(envelope);
        let (ticket, receipt) = Ticket::new(None);
        {
            let mut state = self.state();
            if state.bytes > 0 && state.bytes + bytes > self.capacity {
                return None;
            }
            state.bytes += bytes;
            state.last_seq += 1;
            let seq = state.last_seq;
            state.events.push_back(Kept {
                seq,
                envelope: envelope.clone(),
                ticket,
            });
        }
        self.wake.notify_one();
        Some(receipt)
    }

    /// Whether nothing waits for the hub, as far as its protocol can tell.
    pub(crate) fn is_empty(&self) -> bool {
        self.state().events.is_empty()
    }

    /// What was lost since this was asked last.
    pub(super) fn lost(&self) -> Lost {
        std::mem::take(&mut self.state().lost)
    }

    /// A link begins, with a hub that has everything up to `published` if the session is the old one
    /// (`resumed`), and that lets `window` bytes be in flight. With a new session, what is larger than the
    /// hub takes (`max_event_bytes`) comes back to its sender. Says what was lost.
    pub(crate) fn begin_link(
        &self,
        resumed: bool,
        published: u64,
        window: u64,
        max_event_bytes: u64,
    ) -> Result<Lost, NeverSent> {
        let before;
        let after;
        {
            let mut state = self.state();
            state.end_link();
            state.window = window;
            before = state.lost.clone();
            if resumed {
                if published > state.ever_written {
                    return Err(NeverSent);
                }
                state.take(published);
            } else {
                let written = state.ever_written;
                state.give_up(Some(written), &Loss::Forgotten);
                state.refuse_larger(max_event_bytes);
                // The rest never left, and gets the numbers of the new session.
                let mut seq = 0;
                for event in &mut state.events {
                    seq += 1;
                    event.seq = seq;
                }
                state.last_seq = seq;
                state.ever_written = 0;
            }
            after = state.lost.clone();
        }
        self.taken.notify_waiters();
        self.wake.notify_one();
        Ok(Lost {
            not_delivered: after.not_delivered - before.not_delivered,
            maybe_delivered: after.maybe_delivered - before.maybe_delivered,
            reason: after.reason,
        })
    }

    /// The link has ended, and its writer with it.
    pub(crate) fn end_link(&self) {
        self.state().end_link();
    }

    /// Nothing will be written any more. Says how much is lost with that.
    pub(crate) fn close(&self, reason: &Loss) -> Lost {
        let lost = {
            let mut state = self.state();
            state.end_link();
            let before = state.lost.clone();
            state.give_up(None, reason);
            Lost {
                not_delivered: state.lost.not_delivered - before.not_delivered,
                maybe_delivered: state.lost.maybe_delivered - before.maybe_delivered,
                reason: state.lost.reason.clone(),
            }
        };
        self.taken.notify_waiters();
        lost
    }

    /// Queues a frame of the reception. False if the hub is told too slowly what was given up.
    pub(crate) fn write(&self, frame: ToHub) -> bool {
        {
            let mut state = self.state();
            let orders = &mut state.orders;
            match frame {
                ToHub::Ack { offset, seq } => orders.ack = Some((offset, seq)),
                ToHub::Served { .. } | ToHub::Want { to: None, .. } => orders.path = Some(frame),
                // What finds no room is wanted again later.
                ToHub::Want { to: Some(_), .. } => {
                    if orders.wants.len() < MAX_WANTS {
                        orders.wants.push_back(frame);
                    }
                }
                ToHub::Missed { from, to } => {
                    if let Some((_, end)) = orders.missed.back_mut()
                        && *end == from
                    {
                        *end = to;
                    } else if orders.missed.len() < MAX_MISSED {
                        orders.missed.push_back((from, to));
                    } else {
                        return false;
                    }
                }
                ToHub::Refused { seq } => {
                    // Those that are said again, and as many new ones.
                    if orders.refused.len() >= 2 * MAX_REFUSED {
                        return false;
                    }
                    orders.refused.push_back(seq);
                }
                ToHub::Rekeyed { generation } => orders.rekeyed = Some(generation),
                ToHub::Hello(_) | ToHub::Publish { .. } => debug_assert!(false, "{frame:?}"),
            }
        }
        self.wake.notify_one();
        true
    }

    /// The hub has everything up to `seq`.
    pub(crate) fn acked(&self, seq: u64) -> Result<(), NeverSent> {
        {
            let mut state = self.state();
            if seq > state.ever_written {
                return Err(NeverSent);
            }
            state.take(seq);
        }
        self.taken.notify_waiters();
        // There is room in flight; or the writer is about to wait for the last acknowledgement.
        self.wake.notify_one();
        Ok(())
    }

    /// Gathers what is to be written next; `chunks` stays empty if there is nothing.
    pub(crate) fn next_batch(&self, chunks: &mut Vec<Bytes>) {
        let mut state = self.state();
        let state = &mut *state;
        state.orders.put(chunks);
        match self.protocol {
            Protocol::Native => state.put_events(chunks),
            Protocol::Compat => state.put_plain_events(chunks),
        }
    }
}

impl State {
    fn end_link(&mut self) {
        self.written = 0;
        self.parts = 0;
        self.in_flight = 0;
        self.orders = Orders::default();
    }

    fn put_events(&mut self, chunks: &mut Vec<Bytes>) {
        let mut gathered = 0;
        while gathered < BATCH_BYTES {
            let Some(event) = self.events.get(self.written) else {
                return;
            };
            if self.parts == 0 {
                let bytes = event.envelope.size() as u64;
                if self.in_flight > 0 && self.in_flight + bytes > self.window {
                    return;
                }
                self.ever_written = self.ever_written.max(event.seq);
                self.in_flight += bytes;
            }
            // Part by part, so that acknowledgements and wants do not wait for a whole large event.
            let body = event.envelope.body();
            let put = native::put_publish(chunks, event.seq, body, self.parts);
            let (len, last) = put.unwrap_or((0, true));
            gathered += len;
            if last {
                self.parts = 0;
                self.written += 1;
            } else {
                self.parts += 1;
            }
        }
    }

    /// A plain hub does not acknowledge; what is written is gone.
    fn put_plain_events(&mut self, chunks: &mut Vec<Bytes>) {
        let mut gathered = 0;
        while gathered < BATCH_BYTES {
            let Some(event) = self.events.pop_front() else {
                return;
            };
            gathered += event.envelope.size();
            self.bytes -= event.bytes();
            chunks.push(compat::encode(&event.envelope));
            event.ticket.maybe_delivered(Loss::CannotAcknowledge);
        }
    }
}

impl Orders {
    fn put(&mut self, chunks: &mut Vec<Bytes>) {
        if let Some(path) = self.path.take() {
            path.encode(chunks);
        }
        for want in self.wants.drain(..) {
            want.encode(chunks);
        }
        for (from, to) in self.missed.drain(..) {
            ToHub::Missed { from, to }.encode(chunks);
        }
        for seq in self.refused.drain(..) {
            ToHub::Refused { seq }.encode(chunks);
        }
        if let Some(generation) = self.rekeyed.take() {
            ToHub::Rekeyed { generation }.encode(chunks);
        }
        if let Some((offset, seq)) = self.ack.take() {
            ToHub::Ack { offset, seq }.encode(chunks);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        delivery::Delivery,
        wire::{
            assembly::Assembly,
            framing::{Deframer, PREFIX},
        },
    };

    fn event() -> Envelope {
        Envelope::from_json("t", "", &"1".repeat(96)).unwrap()
    }

    fn outbox(capacity: u64) -> Outbox {
        let outbox = Outbox::new(Protocol::Native, capacity);
        outbox.begin_link(false, 0, u64::MAX, u64::MAX).unwrap();
        outbox
    }

    /// The numbers of the events that are written now.
    fn written(outbox: &Outbox) -> Vec<u64> {
        let mut chunks = Vec::new();
        outbox.next_batch(&mut chunks);
        let mut deframer = Deframer::new(native::MAX_FRAME);
        let bytes = chunks.concat();
        assert!(bytes.is_empty() || bytes.len() > PREFIX);
        deframer.push(bytes.into());
        let frames = std::iter::from_fn(|| deframer.next().unwrap());
        frames
            .map(|frame| match ToHub::decode(frame).unwrap() {
                Some(ToHub::Publish { seq, .. }) => seq,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn room_comes_back_with_acknowledgements_and_one_event_always_fits() {
        let full = outbox(150);
        let receipt = full.try_send(&event()).unwrap();
        assert!(full.try_send(&event()).is_none());
        assert_eq!(full.acked(1), Err(NeverSent), "it was not written yet");
        assert_eq!(written(&full), [1]);
        assert_eq!(full.acked(2), Err(NeverSent));
        assert_eq!(receipt.now(), Delivery::Pending);
        assert_eq!(full.acked(1), Ok(()));
        assert_eq!(receipt.now(), Delivery::Delivered);
        assert!(full.is_empty());
        assert!(full.try_send(&event()).is_some());
        assert!(outbox(1).try_send(&event()).is_some());
    }

    #[test]
    fn no_more_is_in_flight_than_the_hub_allows() {
        let outbox = Outbox::new(Protocol::Native, 10_000);
        outbox.begin_link(false, 0, 250, u64::MAX).unwrap();
        for _ in 0..5 {
            assert!(outbox.try_send(&event()).is_some());
        }
        assert_eq!(written(&outbox), [1, 2]);
        assert!(written(&outbox).is_empty());
        outbox.acked(1).unwrap();
        assert_eq!(written(&outbox), [3]);
        outbox.end_link();
        outbox.begin_link(true, 1, 1, u64::MAX).unwrap();
        assert_eq!(written(&outbox), [2], "one is always allowed");
    }

    #[test]
    fn what_a_new_hub_does_not_take_comes_back_and_the_rest_is_sent() {
        let outbox = Outbox::new(Protocol::Native, 1 << 20);
        let sizes = [10, 500, 20, 700];
        let send = |size| {
            let payload = format!("\"{}\"", "x".repeat(size));
            outbox.try_send(&Envelope::from_json("t", "", &payload).unwrap())
        };
        let receipts: Vec<_> = sizes.iter().map(|size| send(*size).unwrap()).collect();
        let lost = outbox.begin_link(false, 0, u64::MAX, 400).unwrap();
        assert_eq!((lost.not_delivered, lost.maybe_delivered), (2, 0));
        assert_eq!(written(&outbox), [1, 2]);
        outbox.acked(2).unwrap();
        let outcomes: Vec<_> = receipts.iter().map(SendReceipt::now).collect();
        let (had, refused) = (Delivery::Delivered, Delivery::NotDelivered(Loss::TooLarge));
        assert_eq!(outcomes, [had.clone(), refused.clone(), had, refused]);
        assert!(outbox.is_empty());
    }

    #[test]
    fn an_acknowledgement_does_not_wait_for_a_whole_large_event() {
        let outbox = Outbox::new(Protocol::Native, u64::MAX);
        outbox.begin_link(false, 0, u64::MAX, u64::MAX).unwrap();
        let payload = format!("\"{}\"", "x".repeat(10 * BATCH_BYTES));
        let large = Envelope::from_json("t", "", &payload).unwrap();
        let receipts = [
            outbox.try_send(&large).unwrap(),
            outbox.try_send(&large).unwrap(),
        ];
        let mut deframer = Deframer::new(native::MAX_FRAME);
        let mut assembly = Assembly::default();
        let (mut batches, mut whole, mut acks) = (0, Vec::new(), 0);
        loop {
            outbox.write(ToHub::Ack {
                offset: batches,
                seq: 0,
            });
            batches += 1;
            let mut chunks = Vec::new();
            outbox.next_batch(&mut chunks);
            let bytes: usize = chunks.iter().map(Bytes::len).sum();
            assert!(bytes < 2 * BATCH_BYTES);
            deframer.push(chunks.concat().into());
            while let Some(frame) = deframer.next().unwrap() {
                match ToHub::decode(frame).unwrap().unwrap() {
                    ToHub::Ack { .. } => acks += 1,
                    ToHub::Publish { seq, of, body } => {
                        whole.extend(assembly.push(seq, of, body, usize::MAX).unwrap());
                    }
                    frame => panic!("{frame:?}"),
                }
            }
            if whole.len() == 2 {
                break;
            }
        }
        assert_eq!(acks, batches);
        assert!(batches > 20 && whole.iter().all(|body| body == large.body()));
        outbox.acked(2).unwrap();
        assert!(
            receipts
                .iter()
                .all(|receipt| receipt.now() == Delivery::Delivered)
        );
    }

    #[test]
    fn only_the_latest_acknowledgement_is_written() {
        let outbox = outbox(150);
        outbox.write(ToHub::Ack { offset: 1, seq: 0 });
        outbox.write(ToHub::Ack { offset: 9, seq: 2 });
        let mut chunks = Vec::new();
        outbox.next_batch(&mut chunks);
        let mut expected = Vec::new();
        ToHub::Ack { offset: 9, seq: 2 }.encode(&mut expected);
        assert_eq!(chunks, expected);
    }

    #[test]
    fn what_was_given_up_is_said_before_it_is_acknowledged_and_never_dropped() {
        let outbox = outbox(150);
        for n in 0..2 * MAX_WANTS as u64 {
            let (from, to) = (3 * n, 3 * n + 1);
            assert!(outbox.write(ToHub::Want { from, to: Some(to) }));
            assert!(outbox.write(ToHub::Missed { from, to }));
            assert!(outbox.write(ToHub::Missed {
                from: to,
                to: to + 1
            }));
        }
        outbox.write(ToHub::Ack { offset: 9, seq: 0 });
        let mut chunks = Vec::new();
        outbox.next_batch(&mut chunks);
        let missed = 2 * MAX_WANTS;
        assert_eq!(chunks.len(), MAX_WANTS + missed + 1);
        let mut expected = Vec::new();
        for n in 0..missed as u64 {
            let (from, to) = (3 * n, 3 * n + 2);
            ToHub::Missed { from, to }.encode(&mut expected);
        }
        ToHub::Ack { offset: 9, seq: 0 }.encode(&mut expected);
        assert_eq!(chunks[MAX_WANTS..], expected);
        let mut room = 0;
        while outbox.write(ToHub::Missed {
            from: 3 * room,
            to: 3 * room + 1,
        }) {
            room += 1;
        }
        assert_eq!(room, MAX_MISSED as u64);
    }

    #[test]
    fn a_session_that_goes_on_writes_again_what_the_hub_lacks() {
        let outbox = outbox(10_000);
        let receipts: Vec<_> = (0..4).map(|_| outbox.try_send(&event()).unwrap()).collect();
        assert_eq!(written(&outbox), [1, 2, 3, 4]);
        outbox.acked(1).unwrap();
        outbox.end_link();
        assert_eq!(outbox.begin_link(true, 5, 9999, u64::MAX), Err(NeverSent));
        let lost = outbox.begin_link(true, 2, 9999, u64::MAX).unwrap();
        assert_eq!(lost.not_delivered + lost.maybe_delivered, 0);
        assert_eq!(receipts[1].now(), Delivery::Delivered);
        // The hub had taken one more than it said when it said so.
        outbox.acked(3).unwrap();
        assert_eq!(written(&outbox), [4]);
        outbox.acked(4).unwrap();
        assert_eq!(receipts[3].now(), Delivery::Delivered);
        assert_eq!(outbox.lost(), Lost::default());
    }

    #[test]
    fn with_a_lost_session_what_was_written_may_have_arrived_and_the_rest_is_sent() {
        let outbox = outbox(10_000);
        let first = outbox.try_send(&event()).unwrap();
        assert_eq!(written(&outbox), [1]);
        let second = outbox.try_send(&event()).unwrap();
        outbox.end_link();
        let lost = outbox.begin_link(false, 0, 9999, u64::MAX).unwrap();
        assert_eq!((lost.not_delivered, lost.maybe_delivered), (0, 1));
        assert_eq!(first.now(), Delivery::MaybeDelivered(Loss::Forgotten));
        assert_eq!(written(&outbox), [1], "a number of the new session");
        let third = outbox.try_send(&event()).unwrap();
        outbox.close(&Loss::ShutDown);
        assert_eq!(second.now(), Delivery::MaybeDelivered(Loss::ShutDown));
        assert_eq!(third.now(), Delivery::NotDelivered(Loss::ShutDown));
        let lost = outbox.lost();
        assert_eq!((lost.not_delivered, lost.maybe_delivered), (1, 2));
        assert_eq!(outbox.lost(), Lost::default(), "said once");
    }

    #[derive(Clone, Debug)]
    enum Op {
        Send,
        Write,
        /// The hub takes so many of those that are on their way, and acknowledges them or not.
        Take(usize, bool),
        Cut,
        Link {
            forgets: bool,
        },
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => Just(Op::Send),
            4 => Just(Op::Write),
            4 => (0..5usize, any::<bool>()).prop_map(|(n, acks)| Op::Take(n, acks)),
            1 => Just(Op::Cut),
            2 => prop::bool::weighted(0.2).prop_map(|forgets| Op::Link { forgets }),
        ]
    }

    crate::fuzz::machine! {
        fn the_hub_gets_each_event_once_in_order_and_every_receipt_tells_the_truth(
            ops in prop::collection::vec(op(), 1..200),
        ) {
            let outbox = outbox(600 + 8 * OVERHEAD);
            let mut sent: Vec<SendReceipt> = Vec::new();
            let mut on_the_way: VecDeque<(u64, u64)> = VecDeque::new();
            // What the hub has taken: payloads; and the last number of its session.
            let mut taken: Vec<u64> = Vec::new();
            let mut last = 0;
            let mut linked = true;
            let batch = |outbox: &Outbox| {
                let mut chunks = Vec::new();
                outbox.next_batch(&mut chunks);
                let mut deframer = Deframer::new(native::MAX_FRAME);
                deframer.push(chunks.concat().into());
                let mut events = Vec::new();
                while let Some(frame) = deframer.next().unwrap() {
                    let Some(ToHub::Publish { seq, body, .. }) = ToHub::decode(frame).unwrap() else {
                        panic!("not an event");
                    };
                    let event = Envelope::from_body(body).unwrap();
                    events.push((seq, event.payload::<u64>().unwrap()));
                }
                events
            };
            for op in ops.into_iter().chain([Op::Cut, Op::Link { forgets: false }, Op::Write]) {
                match op {
                    Op::Send => {
                        let event = Envelope::new("n", &(sent.len() as u64)).unwrap();
                        sent.extend(outbox.try_send(&event));
                    }
                    Op::Write if linked => on_the_way.extend(batch(&outbox)),
                    Op::Take(count, acks) if linked => {
                        for _ in 0..count {
                            let Some((seq, payload)) = on_the_way.pop_front() else { break };
                            if seq <= last {
                                continue;
                            }
                            prop_assert_eq!(seq, last + 1);
                            last = seq;
                            taken.push(payload);
                        }
                        if acks {
                            prop_assert_eq!(outbox.acked(last), Ok(()));
                        }
                    }
                    Op::Cut if linked => {
                        outbox.end_link();
                        on_the_way.clear();
                        linked = false;
                    }
                    Op::Link { forgets } if !linked => {
                        if forgets {
                            last = 0;
                        }
                        prop_assert!(outbox.begin_link(!forgets, last, 1000, u64::MAX).is_ok());
                        linked = true;
                    }
                    _ => {}
                }
            }
            while let Some((seq, payload)) = on_the_way.pop_front() {
                prop_assert_eq!(seq, last + 1);
                last = seq;
                taken.push(payload);
                outbox.acked(last).unwrap();
                on_the_way.extend(batch(&outbox));
            }
            prop_assert!(outbox.is_empty());
            prop_assert!(taken.is_sorted_by(|a, b| a < b), "{taken:?}");
            for (n, receipt) in sent.iter().enumerate() {
                let has = taken.contains(&(n as u64));
                match receipt.now() {
                    Delivery::Delivered => prop_assert!(has),
                    Delivery::NotDelivered(_) => prop_assert!(!has),
                    Delivery::MaybeDelivered(_) => {}
                    Delivery::Pending => prop_assert!(false, "{n} is pending"),
                }
            }
        }
    }
}
