//! What is true: which events each position stands for, what the spoke's listeners saw, and what was said of it.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;
use tracing::trace;

use crate::{
    delivery::{Delivery, SendReceipt},
    position::{Epoch, Position},
};

/// What happened in a case, or in many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Events that were broadcast and could be read.
    pub broadcasts: u64,
    /// Events that the spoke's listeners saw.
    pub deliveries: u64,
    /// Links that were welcomed.
    pub links: u64,
    /// Of those, how many went on with a session.
    pub resumed: u64,
    /// Links that a newer one of the same spoke fenced off.
    pub fenced: u64,
    /// Sessions that were given up.
    pub expired: u64,
    /// Times that the log dropped events.
    pub trims: u64,
    /// New lives of the hub: in memory, with its log, with an older copy of it.
    pub hub_restarts: u64,
    /// Those with an older copy.
    pub restored: u64,
    /// Events that were appended and lost before anyone could read them.
    pub unsynced: u64,
    /// New lives of the spoke.
    pub spoke_restarts: u64,
    /// Positions that were made up: from the future, or of another log.
    pub false_positions: u64,
    /// Epochs that began.
    pub epochs: u64,
    /// Claims to have recovered wholly.
    pub recovered_wholly: u64,
    /// Claims to have recovered with holes.
    pub recovered_with_holes: u64,
    /// Claims to have recovered, one way or the other, that are not true.
    pub false_claims: u64,
    /// Times that events could not be had any more, and listeners were told so.
    pub losses: u64,
    /// Times that listeners were told of a loss.
    pub losses_reported: u64,
    /// Times that listeners saw an event that does not follow what they had, without a word.
    pub losses_unreported: u64,
    /// Times that listeners were told of a loss that was none.
    pub false_losses: u64,
    /// Events for the spoke alone.
    pub targeted: u64,
    /// Those that it saw.
    pub targeted_seen: u64,
    /// Those that their receipts call delivered, not delivered, and neither.
    pub targeted_delivered: u64,
    /// See above.
    pub targeted_not_delivered: u64,
    /// See above.
    pub targeted_unknown: u64,
    /// Events of the spoke.
    pub published: u64,
    /// Those that the hub's listeners saw.
    pub published_seen: u64,
    /// Receipts that are not true, of either kind.
    pub false_receipts: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: &Self) {
        let Self {
            broadcasts,
            deliveries,
            links,
            resumed,
            fenced,
            expired,
            trims,
            hub_restarts,
            restored,
            unsynced,
            spoke_restarts,
            false_positions,
            epochs,
            recovered_wholly,
            recovered_with_holes,
            false_claims,
            losses,
            losses_reported,
            losses_unreported,
            false_losses,
            targeted,
            targeted_seen,
            targeted_delivered,
            targeted_not_delivered,
            targeted_unknown,
            published,
            published_seen,
            false_receipts,
        } = self;
        for (sum, more) in [
            (broadcasts, other.broadcasts),
            (deliveries, other.deliveries),
            (links, other.links),
            (resumed, other.resumed),
            (fenced, other.fenced),
            (expired, other.expired),
            (trims, other.trims),
            (hub_restarts, other.hub_restarts),
            (restored, other.restored),
            (unsynced, other.unsynced),
            (spoke_restarts, other.spoke_restarts),
            (false_positions, other.false_positions),
            (epochs, other.epochs),
            (recovered_wholly, other.recovered_wholly),
            (recovered_with_holes, other.recovered_with_holes),
            (false_claims, other.false_claims),
            (losses, other.losses),
            (losses_reported, other.losses_reported),
            (losses_unreported, other.losses_unreported),
            (false_losses, other.false_losses),
            (targeted, other.targeted),
            (targeted_seen, other.targeted_seen),
            (targeted_delivered, other.targeted_delivered),
            (targeted_not_delivered, other.targeted_not_delivered),
            (targeted_unknown, other.targeted_unknown),
            (published, other.published),
            (published_seen, other.published_seen),
            (false_receipts, other.false_receipts),
        ] {
            *sum += more;
        }
    }
}

/// One epoch: the events from where it parted from the one before.
#[derive(Debug)]
struct Life {
    parent: Option<Epoch>,
    fork: u64,
    events: Vec<u64>,
    /// The log's highest head in it.
    head: u64,
}

/// An event from one side to the other alone.
#[derive(Debug)]
struct Sent {
    overtake: bool,
    after: Position,
    receipt: SendReceipt,
    seen: bool,
}

/// Events of one session from one side to the other.
#[derive(Debug, Default)]
struct Stream {
    sent: BTreeMap<u64, Sent>,
    /// The last one that was seen, of those that overtake and of the others.
    last: [Option<u64>; 2],
}

#[derive(Debug, Default)]
pub(super) struct Model {
    lives: BTreeMap<Epoch, Life>,
    /// What the spoke's listeners see next, once that is known.
    next: Option<Position>,
    /// The epoch to which they lost others.
    crossed: Option<Epoch>,
    /// Every tip that a welcome named.
    named: Vec<Position>,
    /// Where links begin that did not say where they should.
    begins: BTreeMap<u64, Position>,
    /// They were told of a link, or have something from an earlier life of the spoke.
    linked: bool,
    /// The link was lost, and they were not told of a recovery since.
    recovering: bool,
    /// They were told of a loss since.
    missed: bool,
    /// The tip that the welcome named of the link that listeners know of,
    tip: Option<Position>,
    /// and of later ones, of which the last was in this epoch.
    welcomed: Option<Epoch>,
    tips: VecDeque<Position>,
    targeted: Stream,
    /// Of each life of the spoke; there is no order between them.
    published: Vec<Stream>,
    pub(super) counts: Counts,
    /// What was wrong first.
    pub(super) broken: Option<String>,
}

impl Model {
    fn broke(&mut self, words: impl FnOnce() -> String) {
        if self.broken.is_none() {
            self.broken = Some(words());
        }
    }

    /// An epoch begins. It shares with its parent what lies below the fork.
    pub(super) fn epoch(&mut self, epoch: Epoch, parent: Option<(Epoch, u64)>) {
        trace!(%epoch, ?parent, "an epoch begins");
        self.counts.epochs += 1;
        let life = Life {
            parent: parent.map(|(parent, _)| parent),
            fork: parent.map_or(0, |(_, fork)| fork),
            events: Vec::new(),
            head: 0,
        };
        self.lives.insert(epoch, life);
    }

    /// An event can be read.
    pub(super) fn readable(&mut self, epoch: Epoch, offset: u64, event: u64) {
        self.counts.broadcasts += 1;
        let life = self.lives.get_mut(&epoch);
        let next = life
            .as_ref()
            .map(|life| life.fork + life.events.len() as u64);
        match life {
            Some(life) if next == Some(offset) => life.events.push(event),
            _ => self.broke(|| format!("offset {offset} was given, {next:?} was next")),
        }
    }

    /// The log begins at `head`.
    pub(super) fn head(&mut self, epoch: Epoch, head: u64) {
        if let Some(life) = self.lives.get_mut(&epoch)
            && head > life.head
        {
            life.head = head;
            self.counts.trims += 1;
        }
    }

    fn event(&self, at: Position) -> Option<u64> {
        let life = self.lives.get(&at.epoch)?;
        match (at.offset.checked_sub(life.fork), life.parent) {
            (Some(index), _) => life.events.get(index as usize).copied(),
            (None, Some(parent)) => self.event(Position::new(parent, at.offset)),
            (None, None) => None,
        }
    }

    fn tip_of(&self, epoch: Epoch) -> Option<u64> {
        let life = self.lives.get(&epoch)?;
        Some(life.fork + life.events.len() as u64)
    }

    /// Up to which offset the events of `old` are those of `new`.
    fn shared(&self, old: Epoch, new: Epoch) -> Option<u64> {
        let mut shared = self.tip_of(new)?;
        let mut at = new;
        while at != old {
            let life = self.lives.get(&at)?;
            shared = shared.min(life.fork);
            at = life.parent?;
        }
        Some(shared)
    }

    /// Whether nothing lies between what listeners have and a position.
    fn joins_up(&self, next: Position, at: Position) -> bool {
        let shared = || self.shared(next.epoch, at.epoch);
        next.offset == at.offset
            && (next.epoch == at.epoch || shared().is_some_and(|shared| next.offset <= shared))
    }

    /// On this link the spoke, which has nothing yet, asked to begin at the tip or the head: this is where that is.
    pub(super) fn begins(&mut self, link: u64, at: Position) {
        self.begins.insert(link, at);
    }

    /// The spoke's process begins anew, and has everything before `at`; or has nothing yet.
    pub(super) fn spoke_begins(&mut self, at: Option<Position>) {
        self.next = at;
        self.recovering = at.is_some();
        self.linked = at.is_some();
        self.missed = false;
        self.tip = None;
        self.tips.clear();
        self.targeted.last = [None, None];
        self.published.push(Stream::default());
    }

    pub(super) fn next(&self) -> Option<Position> {
        self.next
    }

    /// The hub welcomed the spoke, when its tip was this.
    pub(super) fn welcomed(&mut self, link: u64, tip: Position, resumed: bool) {
        self.next = self.next.or(self.begins.get(&link).copied());
        self.counts.links += 1;
        self.counts.resumed += u64::from(resumed);
        self.tips.push_back(tip);
        self.welcomed = Some(tip.epoch);
        self.named.push(tip);
    }

    /// Listeners were told of a link.
    pub(super) fn connected(&mut self) {
        self.linked = true;
        self.tip = self.tips.pop_front();
    }

    /// Whether listeners that stand at `next` have all that there is up to a tip.
    pub(super) fn stands_at(&self, next: Position, tip: Position) -> bool {
        self.joins_up(next, tip)
    }

    /// Listeners saw a broadcast.
    pub(super) fn delivered(&mut self, at: Position, event: u64) {
        self.counts.deliveries += 1;
        let next = self.next;
        if !next.is_some_and(|next| self.joins_up(next, at)) {
            self.counts.losses_unreported += 1;
            self.broke(|| format!("event {at:?} came, {next:?} was next"));
        }
        let truth = self.event(at);
        if truth != Some(event) {
            self.broke(|| format!("{at:?} is {truth:?}, and event {event} came"));
        }
        self.next = Some(at.next());
    }

    /// Listeners were told of a loss.
    pub(super) fn missed(&mut self, from: Position, to: Position) {
        self.missed = true;
        self.counts.losses_reported += 1;
        let next = self.next;
        if !next.is_some_and(|next| self.joins_up(next, from)) {
            self.broke(|| format!("missed from {from:?} to {to:?}, {next:?} was next"));
        }
        let head = self.lives.get(&to.epoch).map_or(0, |life| life.head);
        let tip = self.tip_of(to.epoch).unwrap_or(0);
        let (real, fair) = if from.epoch == to.epoch && from.offset < to.offset {
            (true, to.offset <= head)
        } else if from.epoch == to.epoch {
            // It came from the future, as it was then.
            (true, self.named.contains(&to))
        } else {
            // Of another life, or from the future: it goes on behind what both share, or where the log begins.
            let shared = self.shared(from.epoch, to.epoch).unwrap_or(0);
            (!self.joins_up(from, to), to.offset <= head.max(shared))
        };
        self.counts.losses += u64::from(real);
        if !real || !fair {
            self.counts.false_losses += 1;
            self.broke(|| {
                format!(
                    "missed from {from:?} to {to:?}, but the log begins at {head}, its tip is {tip}"
                )
            });
        }
        if from.epoch != to.epoch {
            self.crossed = Some(to.epoch);
        }
        self.next = Some(to);
    }

    /// Listeners were told that the link is lost.
    pub(super) fn disconnected(&mut self) {
        // Who has nothing yet has nothing to recover; and it may be lost again on the way.
        if !self.linked {
            return;
        }
        if !std::mem::replace(&mut self.recovering, true) {
            self.missed = false;
        }
    }

    /// Listeners were told that the spoke has caught up.
    pub(super) fn recovered(&mut self, wholly: bool) {
        if wholly {
            self.counts.recovered_wholly += 1;
        } else {
            self.counts.recovered_with_holes += 1;
        }
        let (next, tip) = (self.next, self.tip);
        let there = match (next, tip) {
            (Some(next), Some(tip)) if next.epoch == tip.epoch => next.offset >= tip.offset,
            (Some(next), Some(tip)) => {
                // What was missed with a later epoch may be said already.
                let shared = self.joins_up(next, Position::new(tip.epoch, next.offset));
                (shared && next.offset >= tip.offset) || (!shared && !wholly)
            }
            _ => false,
        };
        let recovering = std::mem::take(&mut self.recovering);
        // A loss over several epochs is said once, before the first of the claims about it.
        let said = self.crossed.is_some() && self.crossed == tip.map(|tip| tip.epoch);
        let fits = if wholly {
            !self.missed
        } else {
            self.missed || said
        };
        if !there || !recovering || !fits {
            self.counts.false_claims += 1;
            let missed = self.missed;
            self.broke(|| format!("recovered (wholly: {wholly}) at {next:?}, the tip was {tip:?}, missed: {missed}"));
        }
    }

    /// The hub sent the spoke an event.
    pub(super) fn target(
        &mut self,
        event: u64,
        after: Position,
        overtake: bool,
        receipt: SendReceipt,
    ) {
        self.counts.targeted += 1;
        let sent = Sent {
            overtake,
            after,
            receipt,
            seen: false,
        };
        self.targeted.sent.insert(event, sent);
    }

    /// Listeners saw an event for them alone.
    pub(super) fn targeted(&mut self, event: u64) {
        self.counts.targeted_seen += 1;
        let next = self.next;
        let seen = self.targeted.see(event);
        if let Err(words) = seen {
            self.broke(|| format!("targeted {words}"));
        }
        let Some(sent) = self.targeted.sent.get(&event) else {
            return;
        };
        // A new epoch sets it free.
        let epoch = self.welcomed;
        let early = |next: Position| {
            let same = next.epoch == sent.after.epoch && epoch == Some(next.epoch);
            same && next.offset < sent.after.offset
        };
        if !sent.overtake && next.is_none_or(early) {
            let after = sent.after;
            self.broke(|| {
                format!("targeted event {event} came at {next:?}, its place is {after:?}")
            });
        }
    }

    /// The spoke sent the hub an event.
    pub(super) fn publish(&mut self, event: u64, receipt: SendReceipt) {
        self.counts.published += 1;
        let sent = Sent {
            overtake: false,
            after: Position::new(Epoch::from_u64(0), 0),
            receipt,
            seen: false,
        };
        if self.published.is_empty() {
            self.published.push(Stream::default());
        }
        if let Some(stream) = self.published.last_mut() {
            stream.sent.insert(event, sent);
        }
    }

    /// The hub's listeners saw an event of the spoke.
    pub(super) fn heard(&mut self, event: u64) {
        self.counts.published_seen += 1;
        let stream = self
            .published
            .iter_mut()
            .find(|stream| stream.sent.contains_key(&event));
        let seen = stream.map_or_else(
            || Err(format!("event {event} was never sent")),
            |stream| stream.see(event),
        );
        if let Err(words) = seen {
            self.broke(|| format!("published {words}"));
        }
    }

    /// The case is over: every receipt has to be true by now.
    pub(super) fn judge(&mut self) {
        let mut words = None;
        for sent in self.targeted.sent.values() {
            match sent.receipt.now() {
                Delivery::Delivered => self.counts.targeted_delivered += 1,
                Delivery::NotDelivered(_) => self.counts.targeted_not_delivered += 1,
                Delivery::Pending | Delivery::MaybeDelivered(_) => {
                    self.counts.targeted_unknown += 1
                }
            }
        }
        let published = self.published.iter().map(|stream| ("published", stream));
        for (name, stream) in published.chain([("targeted", &self.targeted)]) {
            for (event, sent) in &stream.sent {
                let now = sent.receipt.now();
                let is_true = match now {
                    Delivery::Delivered => sent.seen,
                    Delivery::NotDelivered(_) => !sent.seen,
                    Delivery::MaybeDelivered(_) => true,
                    Delivery::Pending => false,
                };
                if !is_true {
                    self.counts.false_receipts += 1;
                    let seen = sent.seen;
                    words.get_or_insert_with(|| {
                        format!("{name} event {event} is {now:?}, seen: {seen}")
                    });
                }
            }
        }
        if let Some(words) = words {
            self.broke(|| words);
        }
    }
}

impl Stream {
    /// An event was seen: for the first time, and in order.
    fn see(&mut self, event: u64) -> Result<(), String> {
        let Some(sent) = self.sent.get_mut(&event) else {
            return Err(format!("event {event} was never sent"));
        };
        if std::mem::replace(&mut sent.seen, true) {
            return Err(format!("event {event} came again"));
        }
        let [overtaking, waiting] = &mut self.last;
        let last = if sent.overtake { overtaking } else { waiting };
        if last.is_some_and(|last| last > event) {
            return Err(format!("event {event} came after {last:?}"));
        }
        *last = Some(event);
        Ok(())
    }
}
