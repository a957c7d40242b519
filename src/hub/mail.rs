//! What waits in all mailboxes together, in bytes.
//!
//! A mailbox has a bound of its own, but there may be ten thousand of them. So that a few that are full leave something for the
//! others, one that has something already may have at most a quarter of what is left.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::mailbox::{Mailbox, OVERHEAD};
use crate::metrics::EventMetrics;

/// The part of what is left that one mailbox may have.
const PART: usize = 4;

#[derive(Debug)]
pub(crate) struct Mail {
    max: usize,
    used: AtomicUsize,
    metrics: Arc<EventMetrics>,
}

/// A mailbox, which counts.
#[derive(Debug)]
pub(crate) struct Counted {
    mailbox: Mailbox,
    mail: Arc<Mail>,
    /// What the mailbox is counted with.
    cost: usize,
}

impl Mail {
    pub(crate) fn new(max: usize, metrics: Arc<EventMetrics>) -> Self {
        Self {
            max,
            used: AtomicUsize::new(0),
            metrics,
        }
    }
}

impl Counted {
    pub(crate) fn new(mailbox: Mailbox, mail: Arc<Mail>) -> Self {
        Self {
            mailbox,
            mail,
            cost: 0,
        }
    }

    /// Sets room aside for an event of so many bytes; false: there is none. To be followed by a change.
    pub(crate) fn make_room(&mut self, bytes: usize) -> bool {
        let cost = bytes.saturating_add(OVERHEAD);
        let all = self.cost.saturating_add(cost);
        let Mail { max, used, metrics } = &*self.mail;
        let taken = used.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
            let after = used.checked_add(cost).filter(|after| after <= max)?;
            (self.cost == 0 || all <= (max - used) / PART).then_some(after)
        });
        if taken.is_err() {
            metrics.targeted_crowded.inc();
            return false;
        }
        self.cost = all;
        true
    }

    /// Looks at the mailbox, or changes it.
    pub(crate) fn change<T>(&mut self, change: impl FnOnce(&mut Mailbox) -> T) -> T {
        let done = change(&mut self.mailbox);
        self.count(self.mailbox.cost());
        done
    }

    fn count(&mut self, cost: usize) {
        let used = &self.mail.used;
        let before = std::mem::replace(&mut self.cost, cost);
        if cost >= before {
            used.fetch_add(cost - before, Ordering::AcqRel);
        } else {
            used.fetch_sub(before - cost, Ordering::AcqRel);
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.count(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Envelope, Protocol, SpokeId,
        delivery::Loss,
        hub::mailbox::{MailboxLimits, NoRoom},
    };

    fn mailbox(mail: &Arc<Mail>) -> Counted {
        let id = SpokeId {
            endpoint: iroh::SecretKey::from_bytes(&[7; 32]).public(),
            number: 1,
        };
        let limits = MailboxLimits {
            events: 1000,
            bytes: 1 << 20,
        };
        Counted::new(Mailbox::new(id, Protocol::Native, limits), mail.clone())
    }

    fn push(to: &mut Counted) -> bool {
        let event = Envelope::new("n", &"x".repeat(700)).unwrap();
        let room = to.make_room(event.size());
        let pushed = to.change(|mailbox| match room {
            true => mailbox.push(&event, 0, false).map(|_| ()),
            false => Err(NoRoom::Full),
        });
        pushed.is_ok()
    }

    #[test]
    fn full_mailboxes_leave_something_for_the_others_and_all_of_them_stay_within_the_bound() {
        let max = 100_000;
        let mail = Arc::new(Mail::new(max, Arc::default()));
        let mut boxes: Vec<Counted> = (0..200).map(|_| mailbox(&mail)).collect();
        let held: Vec<usize> = boxes
            .iter_mut()
            .map(|one| (0..).take_while(|_| push(one)).count())
            .collect();
        // A quarter of all, then less and less; and one event each while there is any room.
        assert!((19..=20).contains(&held[0]) && held[1] < held[0] && held[1] > held[5]);
        assert!(held[18] == 1 && held[199] == 0, "{held:?}");
        let used = mail.used.load(Ordering::Acquire);
        assert!(used <= max && used > max - 1000, "{used}");
        assert!(mail.metrics.targeted_crowded.get() >= 200);
        // What one takes out is there for another.
        boxes[0].change(|mailbox| mailbox.end(&Loss::Expired));
        assert!(push(&mut boxes[199]));
        boxes.clear();
        assert_eq!(mail.used.load(Ordering::Acquire), 0);
    }
}
