//! Where a reader begins, and whether that joins up with what it has.
//!
//! Only arithmetic over what a log says of itself ([`Lives`]). Reading from there, and saying what was
//! trimmed on the way, is the business of the reader's cursor; beginning a new epoch that of the hub.

use crate::position::{Epoch, Position};

/// Where a reader asks to begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ask {
    /// With the next event.
    Tip,
    /// With the oldest event that is kept.
    Earliest,
    /// With the event at this position: the reader has everything before it.
    At(Position),
}

/// An epoch that has ended: the next one has the same events below `fork`, and others from there on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Previous {
    pub(crate) epoch: Epoch,
    pub(crate) fork: u64,
}

/// What a log says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Lives<'a> {
    pub(crate) epoch: Epoch,
    /// The oldest offset that is kept.
    pub(crate) head: u64,
    /// The offset after the newest event that may be read.
    pub(crate) tip: u64,
    /// The epochs before this one that the log went through, oldest first.
    pub(crate) previous: &'a [Previous],
}

/// The answer to an [`Ask`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Resume {
    /// The offset of the current epoch to begin at. It may be below the head: the cursor then says what
    /// was trimmed.
    pub(crate) start: u64,
    /// Whether nothing lies between what was asked for and `start`, and what the reader has are this
    /// log's own events.
    pub(crate) continues: bool,
    /// The position is of this epoch and beyond the tip. The reader has events that this log lost, so
    /// their offsets must not be given out again in this epoch: a log that outlives its process has to
    /// begin a new one, with its fork at the tip. One in memory cannot have lost any, so it is the
    /// reader that errs.
    pub(crate) begins_new_epoch: bool,
}

impl Lives<'_> {
    /// Where a reader that asks for this begins.
    pub(crate) fn resume(&self, ask: Ask) -> Resume {
        let at = |start, continues| Resume {
            start,
            continues,
            begins_new_epoch: false,
        };
        let position = match ask {
            Ask::Tip => return at(self.tip, true),
            Ask::Earliest => return at(self.head, true),
            Ask::At(position) => position,
        };
        let Some(shared) = self.shared_with(position.epoch) else {
            // Nothing that is here is known to the reader.
            return at(self.head, false);
        };
        if position.offset <= shared {
            return at(position.offset, true);
        }
        Resume {
            // What it has below is the same; what it has beyond is not in this log.
            start: shared.max(self.head),
            continues: false,
            begins_new_epoch: position.epoch == self.epoch,
        }
    }

    /// Up to which offset the events of `epoch` are those of this log; `None` if it is of another log.
    fn shared_with(&self, epoch: Epoch) -> Option<u64> {
        if epoch == self.epoch {
            return Some(self.tip);
        }
        let mut shared = self.tip;
        for previous in self.previous.iter().rev() {
            shared = shared.min(previous.fork);
            if previous.epoch == epoch {
                return Some(shared);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: Epoch = Epoch::from_u64(0xa);
    const B: Epoch = Epoch::from_u64(0xb);
    const C: Epoch = Epoch::from_u64(0xc);

    fn resume(start: u64, continues: bool, begins_new_epoch: bool) -> Resume {
        Resume {
            start,
            continues,
            begins_new_epoch,
        }
    }

    #[test]
    fn every_kind_of_position_has_its_answer() {
        let previous = [Previous { epoch: A, fork: 4 }];
        let log = Lives {
            epoch: B,
            head: 2,
            tip: 9,
            previous: &previous,
        };
        let at = |epoch, offset| log.resume(Ask::At(Position::new(epoch, offset)));
        assert_eq!(log.resume(Ask::Tip), resume(9, true, false));
        assert_eq!(log.resume(Ask::Earliest), resume(2, true, false));
        // Before the head: the cursor says what was trimmed.
        assert_eq!(at(B, 0), resume(0, true, false));
        assert_eq!(at(B, 2), resume(2, true, false));
        assert_eq!(at(B, 9), resume(9, true, false));
        // From the future.
        assert_eq!(at(B, 10), resume(9, false, true));
        assert_eq!(at(B, u64::MAX), resume(9, false, true));
        // Of the epoch before, up to its fork and beyond.
        assert_eq!(at(A, 0), resume(0, true, false));
        assert_eq!(at(A, 4), resume(4, true, false));
        assert_eq!(at(A, 5), resume(4, false, false));
        // Of no epoch of this log.
        assert_eq!(at(C, 4), resume(2, false, false));
        // The fork was trimmed meanwhile: one hole, not two.
        let trimmed = Lives { head: 6, ..log };
        let beyond = trimmed.resume(Ask::At(Position::new(A, 5)));
        assert_eq!(beyond, resume(6, false, false));
    }

    /// An event that knows itself, so that events of forked lives are told apart.
    type Event = u64;

    /// What a hub's log may go through. The model keeps every event of every life.
    #[derive(Clone, Debug)]
    enum Op {
        Append(u8),
        Trim(u8),
        /// The file is replaced by a copy that is so many events shorter, and this is noticed.
        RestoreCopy(u8),
        /// The same, and it is not noticed: the epoch goes on.
        RestoreInSecret(u8),
        /// A reader takes down its position, having read up to the tip less so many.
        Read(u8),
        /// The so-manieth reader comes back.
        Return(prop::sample::Index),
        Stranger(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (1u8..6).prop_map(Op::Append),
            2 => (0u8..4).prop_map(Op::Trim),
            1 => (0u8..5).prop_map(Op::RestoreCopy),
            1 => (0u8..5).prop_map(Op::RestoreInSecret),
            4 => (0u8..6).prop_map(Op::Read),
            4 => any::<prop::sample::Index>().prop_map(Op::Return),
            1 => any::<u64>().prop_map(Op::Stranger),
        ]
    }

    #[derive(Clone, Debug)]
    struct Reader {
        position: Position,
        /// Every event below its position.
        has: Vec<Event>,
    }

    #[derive(Debug)]
    struct Model {
        epoch: Epoch,
        head: u64,
        events: Vec<Event>,
        previous: Vec<Previous>,
        drawn: u64,
        /// The restored copy was not noticed, and events were appended before any reader could tell:
        /// nobody can know then.
        blind: bool,
        secret: bool,
    }

    impl Model {
        fn draw(&mut self) -> u64 {
            self.drawn += 1;
            self.drawn
        }

        fn begin_epoch(&mut self) {
            let fork = self.events.len() as u64;
            self.previous.push(Previous {
                epoch: self.epoch,
                fork,
            });
            self.epoch = Epoch::from_u64(0x1000 + self.draw());
        }

        fn cut(&mut self, by: u8) {
            let kept = self.events.len().saturating_sub(by.into());
            self.events.truncate(kept);
            self.head = self.head.min(kept as u64);
        }

        fn lives(&self) -> Lives<'_> {
            Lives {
                epoch: self.epoch,
                head: self.head,
                tip: self.events.len() as u64,
                previous: &self.previous,
            }
        }
    }

    crate::fuzz::machine! {
        #![cases(2000)]

        /// Whoever is told that it continues has exactly the events below its start; whoever has is
        /// told so.
        fn continuing_means_having_what_is_below(ops in prop::collection::vec(op(), 1..60)) {
            let mut model = Model {
                epoch: Epoch::from_u64(0x1000),
                head: 0,
                events: Vec::new(),
                previous: Vec::new(),
                drawn: 0,
                blind: false,
                secret: false,
            };
            let mut readers: Vec<Reader> = Vec::new();
            for op in ops {
                match op {
                    Op::Append(n) => {
                        model.blind |= model.secret;
                        for _ in 0..n {
                            let event = model.draw();
                            model.events.push(event);
                        }
                    }
                    Op::Trim(n) => {
                        model.head = (model.head + u64::from(n)).min(model.events.len() as u64);
                    }
                    Op::RestoreCopy(n) => {
                        // A copy is from after the last fork: before, it was of another epoch.
                        let since = model.previous.last().map_or(0, |previous| previous.fork);
                        let room = (model.events.len() as u64 - since).min(u64::from(n));
                        model.cut(room as u8);
                        model.begin_epoch();
                        model.secret = false;
                    }
                    Op::RestoreInSecret(n) => {
                        let since = model.previous.last().map_or(0, |previous| previous.fork);
                        let room = (model.events.len() as u64 - since).min(u64::from(n));
                        model.secret |= room > 0;
                        model.cut(room as u8);
                    }
                    Op::Read(behind) => {
                        let tip = model.events.len() as u64;
                        let offset = tip.saturating_sub(behind.into());
                        readers.push(Reader {
                            position: Position::new(model.epoch, offset),
                            has: model.events[..offset as usize].to_vec(),
                        });
                    }
                    Op::Return(index) => {
                        if readers.is_empty() {
                            continue;
                        }
                        let reader = readers[index.index(readers.len())].clone();
                        let ask = Ask::At(reader.position);
                        let mut answer = model.lives().resume(ask);
                        if answer.begins_new_epoch {
                            prop_assert!(reader.position.epoch == model.epoch);
                            model.begin_epoch();
                            model.secret = false;
                            let again = model.lives().resume(ask);
                            prop_assert_eq!(again, Resume { begins_new_epoch: false, ..answer });
                            answer = again;
                        }
                        let tip = model.events.len();
                        prop_assert!(answer.start <= tip as u64);
                        let below = &model.events[..answer.start as usize];
                        let has_it = reader.has == below;
                        if answer.continues {
                            prop_assert_eq!(answer.start, reader.position.offset);
                            prop_assert!(has_it || model.blind);
                        } else {
                            prop_assert!(reader.has.len() > tip || reader.has != model.events[..reader.has.len()]);
                            // What it has not seen is not skipped, unless it was trimmed.
                            let common = reader.has.iter().zip(&model.events).take_while(|(a, b)| a == b).count();
                            prop_assert!(answer.start <= (common as u64).max(model.head) || model.blind);
                            prop_assert!(answer.start >= model.head);
                        }
                    }
                    Op::Stranger(offset) => {
                        let position = Position::new(Epoch::from_u64(7), offset);
                        let answer = model.lives().resume(Ask::At(position));
                        prop_assert_eq!(answer, resume(model.head, false, false));
                    }
                }
            }
        }
    }
}
