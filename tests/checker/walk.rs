//! Follows what one spoke printed.

use std::collections::BTreeMap;

use super::{
    Fault, Known, Report, Spoke,
    lines::{Content, Life, Line, Position, Via},
};

pub(super) struct Walk<'a> {
    spoke: &'a Spoke,
    known: &'a mut Known,
    report: &'a mut Report,
    /// What must come next; nothing is known before the first line.
    next: Option<Position>,
    /// Epochs that it has left.
    left: Vec<String>,
    /// The ranges that it lost or missed.
    gaps: Vec<(Position, Position)>,
    /// What it did not have when it left an epoch without a word.
    owed: BTreeMap<(u64, String), Content>,
    /// Whether it missed or lost something since it lost its link.
    incomplete: bool,
    /// It lost its link, and has not said since that it has caught up.
    recovering: bool,
    /// How many events a `lagged` line still explains.
    lag: u64,
    /// Where the last line begins, if a life that was killed may have been writing it.
    last: Option<Position>,
    /// The same, while the first line of the next life is looked at.
    again: Option<Position>,
}

fn before(offset: u64, other: &Position) -> Position {
    Position {
        epoch: other.epoch.clone(),
        offset,
    }
}

impl<'a> Walk<'a> {
    pub(super) fn new(spoke: &'a Spoke, known: &'a mut Known, report: &'a mut Report) -> Self {
        let first = known.epochs.first();
        let next = spoke.begins_at.and_then(|offset| {
            Some(Position {
                epoch: first?.clone(),
                offset,
            })
        });
        Self {
            spoke,
            known,
            report,
            next,
            left: Vec::new(),
            gaps: Vec::new(),
            owed: BTreeMap::new(),
            incomplete: false,
            recovering: false,
            lag: 0,
            last: None,
            again: None,
        }
    }

    pub(super) fn run(mut self) {
        let mut killed = false;
        for life in &self.spoke.lives {
            self.again = self.last.take().filter(|_| killed);
            self.incomplete = false;
            self.recovering = false;
            self.life(life);
            killed = life.killed;
        }
        if self.spoke.has_all {
            self.end();
        }
        self.tell_owed();
    }

    fn life(&mut self, life: &Life) {
        for line in life.lines() {
            match line {
                Ok(Line::Event {
                    position,
                    content,
                    via,
                }) => match self.place(position, content) {
                    Some(at) => {
                        self.report.by_gossip += u64::from(via == Via::Gossip);
                        self.report.repaired += u64::from(via == Via::Repair);
                        self.event(at, content);
                    }
                    None => self.fault(|who| Fault::Forged {
                        who,
                        at: "an event without a position".to_owned(),
                    }),
                },
                Ok(Line::Missed { from, to }) => self.missed(from, to),
                Ok(Line::Lagged { events }) => {
                    self.lag += events;
                    self.report.lagged += events;
                }
                // One for each attempt: what is missed between two of them counts.
                Ok(Line::Reconnecting) => {
                    if !std::mem::replace(&mut self.recovering, true) {
                        self.incomplete = false;
                    }
                }
                Ok(Line::Recovered { wholly }) => self.recovered(wholly),
                Ok(Line::Targeted | Line::Status) => {}
                Err(line) => self.fault(|who| Fault::Garbage { who, line }),
            }
            self.again = None;
        }
    }

    fn fault(&mut self, fault: impl FnOnce(String) -> Fault) {
        self.report.fault(fault(self.spoke.name.clone()));
    }

    fn recovered(&mut self, wholly: bool) {
        self.recovering = false;
        self.report.recovered += 1;
        self.report.recovered_wholly += u64::from(wholly);
        if wholly && self.incomplete {
            self.fault(|who| Fault::FalselyRecovered { who });
        }
    }

    /// Where a line stands that may not say so itself.
    fn place(&self, position: Option<Position>, content: Content) -> Option<Position> {
        let expected = |at: &&Position| {
            let log = self.known.logs.get(&at.epoch);
            log.and_then(|log| log.get(at.offset)) == Some(content)
        };
        position
            .or_else(|| self.next.as_ref().filter(expected).cloned())
            .or_else(|| self.known.first_at.get(&content).cloned())
    }

    fn event(&mut self, at: Position, content: Content) {
        self.compare(&at, content);
        if self.again.as_ref() == Some(&at) {
            self.report.written_again += 1;
            self.last = Some(at);
            return;
        }
        match self.next.clone() {
            None => {}
            Some(next) if next.epoch != at.epoch => {
                if self.left.contains(&at.epoch) {
                    return self.fault(|who| Fault::Reordered { who, at });
                }
                self.leave(&next, &at);
            }
            Some(next) if at.offset > next.offset => self.hole(next, at.clone()),
            Some(next) if at.offset < next.offset => {
                let within = |(from, to): &(Position, Position)| {
                    from.epoch == at.epoch && *from <= at && (at < *to || to.epoch != at.epoch)
                };
                let came_late = self.gaps.iter().any(within);
                return self.fault(|who| match came_late {
                    true => Fault::Reordered { who, at },
                    false => Fault::Repeated { who, at },
                });
            }
            Some(_) => {}
        }
        self.report.events += 1;
        self.owed
            .retain(|(offset, _), owed| *offset != at.offset || *owed != content);
        self.next = Some(before(at.offset + 1, &at));
        self.last = Some(at);
    }

    /// Whether everybody has the same there.
    fn compare(&mut self, at: &Position, content: Content) {
        let complete = self.known.complete;
        let log = self.known.logs.entry(at.epoch.clone()).or_default();
        let at = at.clone();
        if let Some(receipt) = log.receipts.get(&at.offset) {
            if *receipt != content {
                self.fault(|who| Fault::Altered { who, at });
            }
        } else if complete {
            let at = at.to_string();
            self.fault(|who| Fault::Forged { who, at });
        } else if *log.printed.entry(at.offset).or_insert(content) != content {
            self.fault(|who| Fault::TwoEvents { who, at });
        }
    }

    fn hole(&mut self, from: Position, to: Position) {
        let size = to.offset - from.offset;
        self.incomplete = true;
        self.gaps.push((from.clone(), to.clone()));
        if self.lag >= size {
            self.lag -= size;
        } else {
            self.fault(|who| Fault::Lost { who, from, to });
        }
    }

    /// It goes to another epoch without a word.
    fn leave(&mut self, next: &Position, at: &Position) {
        self.left.push(next.epoch.clone());
        let mut owed = BTreeMap::new();
        let order = &self.known.epochs;
        let place = |epoch: &String| order.iter().position(|known| known == epoch);
        // What is left of the old one, whole ones between, and what stands before it in the new one.
        let between = match (place(&next.epoch), place(&at.epoch)) {
            (Some(old), Some(new)) if old < new => &order[old..=new],
            _ => &[],
        };
        for epoch in between {
            let receipts = &self.known.logs[epoch].receipts;
            let first = if *epoch == next.epoch { next.offset } else { 0 };
            let end = if *epoch == at.epoch {
                at.offset
            } else {
                u64::MAX
            };
            for (offset, content) in receipts.range(first..end.max(first)) {
                let had = *epoch != next.epoch
                    && *offset < next.offset
                    && self.known.logs[&next.epoch].get(*offset) == Some(*content);
                if !had {
                    owed.insert((*offset, epoch.clone()), *content);
                }
            }
        }
        self.owed.append(&mut owed);
    }

    fn missed(&mut self, from: Position, to: Position) {
        let same_epoch = from.epoch == to.epoch;
        if same_epoch && from.offset >= to.offset {
            return self.fault(|who| Fault::FalselyMissed { who, from, to });
        }
        let again = self.again.as_ref() == Some(&from);
        match self.next.clone() {
            _ if again => self.report.written_again += 1,
            None => {}
            Some(next) if next.epoch != from.epoch => {
                if self.left.contains(&from.epoch) {
                    return self.fault(|who| Fault::FalselyMissed { who, from, to });
                }
                self.leave(&next, &from);
            }
            Some(next) if from.offset > next.offset => self.hole(next, from.clone()),
            Some(next) if from.offset < next.offset => {
                self.fault(|who| Fault::FalselyMissed {
                    who,
                    from: from.clone(),
                    to: to.clone(),
                });
            }
            Some(_) => {}
        }
        if same_epoch {
            self.report.missed += to.offset - from.offset;
        } else {
            self.left.push(from.epoch.clone());
        }
        let explained = |offset: u64| from.offset <= offset && (offset < to.offset || !same_epoch);
        self.owed.retain(|(offset, _), _| !explained(*offset));
        self.incomplete = true;
        self.gaps.push((from.clone(), to.clone()));
        self.last = Some(from);
        let ahead = self
            .next
            .as_ref()
            .is_some_and(|next| next.epoch == to.epoch && next.offset > to.offset);
        if !ahead {
            self.next = Some(to);
        }
    }

    /// What the receipts name, and it does not have.
    fn end(&mut self) {
        let Some(last) = self.known.epochs.last().cloned() else {
            return;
        };
        let first = || Position {
            epoch: self.known.epochs[0].clone(),
            offset: 0,
        };
        let next = self.next.clone().unwrap_or_else(first);
        let log = &self.known.logs[&last];
        let end = log
            .receipts
            .last_key_value()
            .map_or(0, |(last, _)| last + 1);
        let end = Position {
            epoch: last,
            offset: end,
        };
        if next.epoch != end.epoch {
            self.leave(&next, &end);
        } else if next.offset < end.offset {
            self.hole(next, end);
        }
    }

    /// One fault for each run of offsets.
    fn tell_owed(&mut self) {
        let owed: Vec<_> = std::mem::take(&mut self.owed).into_keys().collect();
        let mut by_epoch = BTreeMap::<String, Vec<u64>>::new();
        for (offset, epoch) in owed {
            by_epoch.entry(epoch).or_default().push(offset);
        }
        for (epoch, offsets) in by_epoch {
            for run in offsets.chunk_by(|a, b| a + 1 == *b) {
                let at = |offset| Position {
                    epoch: epoch.clone(),
                    offset,
                };
                let (from, to) = (at(run[0]), at(run[run.len() - 1] + 1));
                self.fault(|who| Fault::Lost { who, from, to });
            }
        }
    }
}
