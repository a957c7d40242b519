//! Checks what spokes printed against what the hub's receipts name.
//!
//! It knows nothing of the implementation: only the documented lines of `iroh-hub spoke`, of `hub --receipts`, and
//! the contract. What must hold of a history:
//!
//! - a spoke prints the broadcasts of an epoch in order, without a hole, each once; a `missed` line explains a
//!   hole, a `lagged` line explains as many events as it says;
//! - what it prints is what the receipt of that position names, and no position ever has two events;
//! - it goes from one epoch to another without a word only if it had everything of the old one, or gets it
//!   under the same offsets in the new one;
//! - a life that was killed may end in half a line, and the next one may begin with the line that it was writing;
//! - `missed` never names what was printed; and who says that it recovered wholly missed nothing since it lost its link.
//!
//! Not for: timing, and events that are sent to one spoke (they have no position).
#![allow(dead_code, reason = "each test file uses some of it")]

mod lines;
mod walk;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

pub use self::lines::{Life, Position};
use self::{
    lines::{Content, Line},
    walk::Walk,
};

/// One spoke: what its lives printed, in order.
#[derive(Clone, Debug)]
pub struct Spoke {
    name: String,
    lives: Vec<Life>,
    begins_at: Option<u64>,
    has_all: bool,
}

impl Spoke {
    /// A spoke that may begin anywhere and end anywhere.
    pub fn new(name: impl fmt::Display, lives: Vec<Life>) -> Self {
        Self {
            name: name.to_string(),
            lives,
            begins_at: None,
            has_all: false,
        }
    }

    /// The first thing that it prints is this offset of the first epoch, or that it missed it.
    pub fn begins_at(mut self, offset: u64) -> Self {
        self.begins_at = Some(offset);
        self
    }

    /// It must have everything that the receipts name, from where it begins.
    pub fn has_all(mut self) -> Self {
        self.has_all = true;
        self
    }
}

/// What is wrong. `who` is a spoke's name, or `receipts`.
#[derive(Clone, PartialEq, Debug)]
pub enum Fault {
    /// A line that is not one of the documented ones.
    Garbage {
        who: String,
        line: String,
    },
    /// The receipt of this position names something else.
    Altered {
        who: String,
        at: Position,
    },
    /// Someone printed something else at this position, or there are two receipts for it.
    TwoEvents {
        who: String,
        at: Position,
    },
    /// No receipt names it, though no hub was killed.
    Forged {
        who: String,
        at: String,
    },
    Repeated {
        who: String,
        at: Position,
    },
    /// It came after events that stand behind it.
    Reordered {
        who: String,
        at: Position,
    },
    /// The events before `to` did not come, and nothing was said of them.
    Lost {
        who: String,
        from: Position,
        to: Position,
    },
    /// It says that it missed what it printed, or nothing at all.
    FalselyMissed {
        who: String,
        from: Position,
        to: Position,
    },
    /// It says that it recovered wholly, and missed or lost something since it lost its link.
    FalselyRecovered {
        who: String,
    },
}

impl Fault {
    /// Its kind, in a word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Garbage { .. } => "garbage",
            Self::Altered { .. } => "altered",
            Self::TwoEvents { .. } => "two events",
            Self::Forged { .. } => "forged",
            Self::Repeated { .. } => "repeated",
            Self::Reordered { .. } => "reordered",
            Self::Lost { .. } => "lost",
            Self::FalselyMissed { .. } => "falsely missed",
            Self::FalselyRecovered { .. } => "falsely recovered",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind();
        match self {
            Self::Garbage { who, line } => write!(f, "{who}: {kind}: {line}"),
            Self::FalselyRecovered { who } => write!(f, "{who}: {kind}"),
            Self::Forged { who, at } => write!(f, "{who}: {kind}: {at}"),
            Self::Altered { who, at }
            | Self::TwoEvents { who, at }
            | Self::Repeated { who, at }
            | Self::Reordered { who, at } => write!(f, "{who}: {kind}: {at}"),
            Self::Lost { who, from, to } | Self::FalselyMissed { who, from, to } => {
                write!(f, "{who}: {kind}: {from} to before {to}")
            }
        }
    }
}

/// How many faults are kept; the rest is only counted.
const KEPT: usize = 1000;

/// What a history comes to.
#[derive(Debug, Default)]
pub struct Report {
    pub faults: Vec<Fault>,
    /// Faults beyond those kept.
    pub more_faults: u64,
    pub spokes: u64,
    /// Epochs that receipts name.
    pub epochs: u64,
    /// Receipts, and events printed, each once.
    pub receipts: u64,
    pub events: u64,
    /// Events that spokes said they missed or were too slow for, as far as the lines tell.
    pub missed: u64,
    pub lagged: u64,
    /// Events that came by gossip, and as repairs.
    pub by_gossip: u64,
    pub repaired: u64,
    /// How often a spoke caught up after it had lost its link, and how often wholly.
    pub recovered: u64,
    pub recovered_wholly: u64,
    /// Lines that a life wrote and the one after it wrote again.
    pub written_again: u64,
}

impl Report {
    fn fault(&mut self, fault: Fault) {
        if self.faults.len() < KEPT {
            self.faults.push(fault);
        } else {
            self.more_faults += 1;
        }
    }

    /// # Panics
    ///
    /// If there is a fault.
    #[track_caller]
    pub fn assert_ok(&self) {
        assert!(self.faults.is_empty(), "{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults = self.faults.len() as u64 + self.more_faults;
        write!(
            f,
            "{} spokes printed {} events of {} receipts; {} missed, {} lagged, {} of {} recoveries whole, {} written again after a kill; {faults} faults",
            self.spokes,
            self.events,
            self.receipts,
            self.missed,
            self.lagged,
            self.recovered_wholly,
            self.recovered,
            self.written_again
        )?;
        for fault in self.faults.iter().take(20) {
            write!(f, "\n  {fault}")?;
        }
        Ok(())
    }
}

/// What is known of one epoch.
#[derive(Default)]
struct EpochLog {
    receipts: BTreeMap<u64, Content>,
    /// What was printed without a receipt.
    printed: BTreeMap<u64, Content>,
}

impl EpochLog {
    fn get(&self, offset: u64) -> Option<Content> {
        let known = self.receipts.get(&offset);
        known.or_else(|| self.printed.get(&offset)).copied()
    }
}

/// All that is known of what the hub broadcast.
#[derive(Default)]
struct Known {
    logs: HashMap<String, EpochLog>,
    /// Epochs that have receipts, in order.
    epochs: Vec<String>,
    /// Where a content stands first, for spokes that print no positions.
    first_at: HashMap<Content, Position>,
    /// Whether there is a receipt for everything.
    complete: bool,
}

impl Known {
    fn read(receipts: &[Life], report: &mut Report) -> Self {
        let mut known = Self {
            complete: receipts.iter().all(|life| !life.killed),
            ..Self::default()
        };
        for line in receipts.iter().flat_map(Life::lines) {
            let who = || "receipts".to_owned();
            match line {
                Ok(Line::Event {
                    position: Some(at),
                    content,
                    ..
                }) => known.receipt(at, content, report),
                Ok(other) => report.fault(Fault::Garbage {
                    who: who(),
                    line: format!("{other:?}"),
                }),
                Err(line) => report.fault(Fault::Garbage { who: who(), line }),
            }
        }
        known
    }

    fn receipt(&mut self, at: Position, content: Content, report: &mut Report) {
        let who = "receipts".to_owned();
        let current = self.epochs.last();
        if current != Some(&at.epoch) {
            if self.epochs.contains(&at.epoch) {
                return report.fault(Fault::Reordered { who, at });
            }
            self.epochs.push(at.epoch.clone());
            report.epochs += 1;
        }
        let log = self.logs.entry(at.epoch.clone()).or_default();
        match log.receipts.get(&at.offset) {
            Some(known) if *known == content => {
                return report.fault(Fault::Repeated { who, at });
            }
            Some(_) => return report.fault(Fault::TwoEvents { who, at }),
            None => {}
        }
        if log
            .receipts
            .last_key_value()
            .is_some_and(|(last, _)| *last > at.offset)
        {
            report.fault(Fault::Reordered {
                who,
                at: at.clone(),
            });
        }
        report.receipts += 1;
        log.receipts.insert(at.offset, content);
        self.first_at.entry(content).or_insert(at);
    }
}

/// Checks a history: what the file of receipts of each life of the hub says, and all spokes. A file that several
/// lives appended to is one life.
pub fn check(receipts: &[Life], spokes: &[Spoke]) -> Report {
    let mut report = Report::default();
    let mut known = Known::read(receipts, &mut report);
    for spoke in spokes {
        report.spokes += 1;
        Walk::new(spoke, &mut known, &mut report).run();
    }
    report
}
