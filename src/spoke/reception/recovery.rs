//! What a spoke may claim after a lost link: whether it has caught up, and whether wholly.

/// From the loss of a link, or a start at a saved position, to the tip that the hub named in the welcome
/// that followed. A link that is lost again before that goes into the same recovery.
#[derive(Debug)]
pub(super) struct Recovery(Option<Pending>);

#[derive(Debug)]
struct Pending {
    /// Nothing was missed since it began.
    wholly: bool,
    /// Where it ends; known when the hub has welcomed the spoke.
    tip: Option<u64>,
}

impl Recovery {
    pub(super) fn new(resumes: bool) -> Self {
        Self(resumes.then_some(Pending {
            wholly: true,
            tip: None,
        }))
    }

    pub(super) fn lost(&mut self) {
        match &mut self.0 {
            Some(pending) => pending.tip = None,
            None => *self = Self::new(true),
        }
    }

    pub(super) fn missed(&mut self) {
        if let Some(pending) = &mut self.0 {
            pending.wholly = false;
        }
    }

    pub(super) fn welcomed(&mut self, tip: u64) {
        if let Some(pending) = &mut self.0 {
            pending.tip = Some(tip);
        }
    }

    /// Everything below `next` was released or missed. Says whether the recovery was a whole one if that
    /// is its end.
    pub(super) fn reached(&mut self, next: u64) -> Option<bool> {
        let tip = self.0.as_ref()?.tip?;
        if next < tip {
            return None;
        }
        self.0.take().map(|pending| pending.wholly)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_at_the_tip_and_is_whole_if_nothing_was_missed_since_the_loss() {
        let mut recovery = Recovery::new(false);
        recovery.missed();
        recovery.welcomed(3);
        assert_eq!(recovery.reached(3), None, "nothing was lost");
        recovery.lost();
        assert_eq!(recovery.reached(9), None, "no hub has named a tip");
        recovery.welcomed(5);
        assert_eq!(recovery.reached(4), None);
        assert_eq!(recovery.reached(5), Some(true));
        assert_eq!(recovery.reached(6), None, "said once");
    }

    #[test]
    fn a_miss_counts_through_every_link_until_the_end() {
        let mut recovery = Recovery::new(true);
        recovery.welcomed(5);
        recovery.missed();
        recovery.lost();
        recovery.welcomed(7);
        assert_eq!(recovery.reached(5), None, "the old tip is of no matter");
        assert_eq!(recovery.reached(7), Some(false));
        recovery.lost();
        recovery.welcomed(7);
        assert_eq!(recovery.reached(7), Some(true));
    }
}
