//! Which keys seal the frames of a topic, who is to be told of them, and when they change: sans-IO.
//!
//! A *generation* is a key and a signing key; see [`seal`](crate::seal). There are two ways to the next one.
//! A [`rotate`](Keys::rotate) tells the spokes first and goes over when nearly all have it, so that nothing
//! waits. A [`revoke`](Keys::revoke) goes over at once: nothing is sealed any more under keys that the one
//! who is revoked may have, and frames wait until nearly all others have the new ones, for a quarter of a
//! second at most, and of any second.
//!
//! A spoke with a *floor* may read nothing that was broadcast before. It is given only keys under which
//! nothing older has been sealed, and from then on nothing older is ([`admit`](Keys::admit)).
//!
//! Not for: how spokes are told (the switchboard and the links do that).

use std::{
    collections::BTreeSet,
    fmt::Debug,
    time::{Duration, Instant},
};

use bytes::Bytes;
use iroh::EndpointId;
use rand::Rng;

use crate::{
    instant::after,
    position::Epoch,
    seal::{Context, CounterExhausted, Sealer},
    wire::native::{GenerationKeys, MAX_EVICTED, PartOf, Rekey},
};

/// How long frames wait for spokes to have new keys after somebody was revoked,
pub(crate) const REVOKED_WAIT: Duration = Duration::from_millis(250);
/// and how long they go on in any case before they wait again, however often somebody is revoked.
const GO_ON: Duration = Duration::from_millis(750);
/// How long a rotation waits for them.
const ROTATION_WAIT: Duration = Duration::from_secs(5);
/// One in so many may lack the keys when frames go on: it asks for what it cannot open.
const NEARLY_ALL: usize = 50;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Keys<Id> {
    context: Context,
    epoch: Epoch,
    current: Generation,
    /// Spokes are being told of it; it takes over once nearly all have it.
    next: Option<Next>,
    /// Until when frames wait for spokes to have the current generation.
    held: Option<Instant>,
    /// Until when they do not wait again.
    goes_on: Option<Instant>,
    /// Nothing is sealed any more.
    closed: bool,
    round: Option<Round<Id>>,
    /// The newest generation is to be told.
    untold: bool,
    /// Who is to be named when it is.
    evict: Vec<EndpointId>,
    /// Somebody was revoked since it was told last.
    revoked: bool,
    /// Nothing below is sealed any more: there is a spoke that may not read it.
    floor: u64,
}

#[derive(Debug)]
struct Generation {
    sealer: Sealer,
    since: Instant,
    /// Somebody was given the keys.
    given: bool,
    /// The oldest offset that was sealed.
    oldest: Option<u64>,
}

#[derive(Debug)]
struct Next {
    generation: Generation,
    /// It takes over with the first frame of new events that begins here or later.
    from: u64,
}

/// Who is waited for.
#[derive(Debug)]
struct Round<Id> {
    generation: u32,
    asked: usize,
    /// Those that have not answered.
    missing: BTreeSet<Id>,
    until: Instant,
}

/// Why a frame was not sealed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NotSealed {
    /// Spokes are being told of new keys. Look again, and try again.
    Held,
    /// There is a spoke on the topic that may not read so old an event.
    TooOld,
    /// The topic is over, or the generation used up.
    Over,
}

impl<Id: Copy + Ord + Debug> Keys<Id> {
    /// The keys of a topic that begins: its first generation, of which nobody knows.
    pub(crate) fn new(now: Instant, context: Context, epoch: Epoch, rng: &mut impl Rng) -> Self {
        let sealer = Sealer::with_rng(context.clone(), epoch, 0, rng);
        Self {
            context,
            epoch,
            current: Generation::new(sealer, now),
            next: None,
            held: None,
            goes_on: None,
            closed: false,
            round: None,
            untold: false,
            evict: Vec::new(),
            revoked: false,
            floor: 0,
        }
    }

    /// The number of the newest generation.
    fn newest(&self) -> u32 {
        let next = self.next.as_ref().map(|next| &next.generation);
        next.unwrap_or(&self.current).sealer.generation()
    }

    /// The number of the generation that seals.
    pub(crate) fn generation(&self) -> u32 {
        self.current.sealer.generation()
    }

    /// The keys of the generation that seals, to open its frames with.
    pub(crate) fn current(&self) -> GenerationKeys {
        self.current.sealer.keys()
    }

    /// Whether a spoke that may read nothing below `floor` may have the keys. If so, nothing below is sealed from
    /// now on. `sent` is where the topic's cursor stands.
    pub(crate) fn admit(&mut self, now: Instant, floor: u64, sent: u64) -> bool {
        self.look(now, sent);
        let oldest = self.current.oldest;
        let admits = floor == 0 || (sent >= floor && oldest.is_none_or(|oldest| oldest >= floor));
        if admits {
            self.floor = self.floor.max(floor);
        }
        admits
    }

    /// Nothing below is sealed any more.
    pub(crate) fn floor(&self) -> u64 {
        self.floor
    }

    /// The keys for a spoke that joins the topic and is [admitted](Self::admit), with those of the next
    /// generation if there is one.
    pub(crate) fn give(&mut self) -> (GenerationKeys, Option<Rekey>) {
        self.current.given = true;
        let next = self.next.as_mut().map(|next| {
            next.generation.given = true;
            Rekey {
                keys: next.generation.sealer.keys(),
                evict: Vec::new(),
                revoked: false,
                confirm: false,
            }
        });
        (self.current.sealer.keys(), next)
    }

    /// Begins a generation that tells nothing to those who only have the ones before, and names `ids` as such to the
    /// others. Until nearly all of these have it, frames wait.
    pub(crate) fn revoke(&mut self, now: Instant, ids: &[EndpointId], rng: &mut impl Rng) {
        for id in ids {
            if self.evict.len() < MAX_EVICTED && !self.evict.contains(id) {
                self.evict.push(*id);
            }
        }
        self.untold = true;
        self.revoked = true;
        let next_given = self.next.take().map(|next| next.generation.given);
        if next_given.is_none() && !self.current.given {
            // Nobody has heard of the generation that there is.
            return;
        }
        // What the next one's number was for stays that way.
        let number = match next_given {
            Some(_) => self.generation().saturating_add(2),
            None => self.generation().saturating_add(1),
        };
        self.current = Generation::new(self.sealer(number, rng), now);
        self.round = None;
        if self.goes_on.is_none_or(|until| until <= now) {
            let until = after(now, REVOKED_WAIT);
            self.held.get_or_insert(until);
        }
    }

    /// Begins to tell the spokes of another generation, which takes over with the first event from offset
    /// `from` on once nearly all have it. Says whether it does: not while another change is under way.
    pub(crate) fn rotate(&mut self, now: Instant, from: u64, rng: &mut impl Rng) -> bool {
        if self.held.is_some() || self.next.is_some() {
            return false;
        }
        let number = self.generation().saturating_add(1);
        let generation = Generation::new(self.sealer(number, rng), now);
        self.next = Some(Next { generation, from });
        self.untold = true;
        self.round = None;
        true
    }

    fn sealer(&self, number: u32, rng: &mut impl Rng) -> Sealer {
        Sealer::with_rng(self.context.clone(), self.epoch, number, rng)
    }

    /// How old the generation that seals is.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.current.since)
    }

    /// What spokes on the topic are to be told now, if anything: all of them, as they are after this call.
    /// Say who was then [asked](Self::asked) to confirm it.
    pub(crate) fn tell(&mut self) -> Option<Rekey> {
        if !std::mem::take(&mut self.untold) {
            return None;
        }
        let next = self.next.as_mut().map(|next| &mut next.generation);
        let newest = next.unwrap_or(&mut self.current);
        newest.given = true;
        Some(Rekey {
            keys: newest.sealer.keys(),
            evict: std::mem::take(&mut self.evict),
            revoked: std::mem::take(&mut self.revoked),
            confirm: false,
        })
    }

    /// These were told of a generation, and are waited for.
    pub(crate) fn asked(
        &mut self,
        now: Instant,
        generation: u32,
        ids: impl IntoIterator<Item = Id>,
    ) {
        if generation != self.newest() {
            // There is news to be told already.
            return;
        }
        let missing: BTreeSet<Id> = ids.into_iter().collect();
        self.round = Some(Round {
            generation,
            asked: missing.len(),
            missing,
            until: after(now, ROTATION_WAIT),
        });
        self.release(now);
    }

    /// A spoke has the keys of a generation.
    pub(crate) fn confirmed(&mut self, now: Instant, id: Id, generation: u32) {
        if generation == self.newest() {
            self.gone(now, id);
        }
    }

    /// A spoke has left: it is not waited for.
    pub(crate) fn gone(&mut self, now: Instant, id: Id) {
        if let Some(round) = &mut self.round
            && round.missing.remove(&id)
        {
            self.release(now);
        }
    }

    /// Looks at the time, and at where the topic's cursor stands: whether frames need wait no longer, and whether it
    /// is time to go over to the next generation.
    pub(crate) fn look(&mut self, now: Instant, sent: u64) {
        self.release(now);
        let from = self.next.as_ref().map(|next| next.from);
        if from.is_some_and(|from| sent >= from)
            && self.is_told(now)
            && let Some(next) = self.next.take()
        {
            self.current = next.generation;
            // What is older goes along links, or those for whom this is done would have to wait again.
            self.floor = self.floor.max(next.from);
            self.round = None;
        }
    }

    fn release(&mut self, now: Instant) {
        if self.held.is_some_and(|until| until <= now) || self.held.is_some() && self.is_told(now) {
            self.held = None;
            self.goes_on = Some(after(now, GO_ON));
        }
    }

    /// Whether nearly all have the newest generation, or have had the time for it.
    fn is_told(&self, now: Instant) -> bool {
        let newest = self.newest();
        let told = |round: &Round<Id>| {
            let nearly_all = round.missing.len() * NEARLY_ALL <= round.asked;
            round.generation == newest && (nearly_all || round.until <= now)
        };
        !self.untold && self.round.as_ref().is_some_and(told)
    }

    /// When to [look](Self::look) though nothing happened.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.held
    }

    /// Whether frames wait.
    pub(crate) fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Whether no frames wait and no newer generation is about to be sealed with.
    pub(crate) fn is_settled(&self) -> bool {
        self.held.is_none() && self.next.is_none()
    }

    /// Seals nothing any more.
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    /// Seals `count` packed events from offset `first` on, or a part of one; `again` says that they were sealed
    /// before. A count of 0 is a beacon, and `first` the tip.
    pub(crate) fn seal(
        &mut self,
        now: Instant,
        (first, count, of): (u64, u16, PartOf),
        content: &[u8],
        again: bool,
    ) -> Result<Bytes, NotSealed> {
        if self.closed {
            return Err(NotSealed::Over);
        }
        if self.held.is_some() {
            return Err(NotSealed::Held);
        }
        if first < self.floor && count > 0 {
            return Err(NotSealed::TooOld);
        }
        if !again {
            self.look(now, first);
        }
        let current = &mut self.current;
        let sealed = current.sealer.seal(first, count, of, content);
        let frame = sealed.map_err(|CounterExhausted { .. }| NotSealed::Over)?;
        if count > 0 {
            current.oldest = Some(current.oldest.map_or(first, |oldest| oldest.min(first)));
        }
        Ok(frame)
    }
}

impl Generation {
    fn new(sealer: Sealer, now: Instant) -> Self {
        Self {
            sealer,
            since: now,
            given: false,
            oldest: None,
        }
    }
}

#[cfg(test)]
mod tests;
