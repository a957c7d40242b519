//! Random lives of one hub and one spoke: links that break, logs that are trimmed, hubs and spokes that start again.
//!
//! Each case is a random walk over what ships: the log and [where a reader begins](crate::log::resume), the hub's sessions,
//! mailboxes and desks, the spoke's reception, and every frame between them as bytes. Between them lies a [`case`] that
//! loses links and processes at any moment, of which one side may know before the other. In the end the case
//! lets both have everything, and a [`model`] that knows only what was appended, sent and let out says whether each claim was true.

mod case;
mod hub;
mod model;

use serde::Serialize;

pub use self::model::Counts;
use super::Breakage;

/// What became of all cases.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ResumeReport {
    /// The seed of the first case; the others follow.
    pub seed: u64,
    /// How many cases there were.
    pub cases: u64,
    /// What happened in them.
    #[serde(flatten)]
    pub counts: Counts,
    /// The first few cases that broke the contract, each with its seed and what was wrong.
    pub broken: Vec<(u64, String)>,
}

impl ResumeReport {
    /// Whether no case broke the contract.
    pub fn is_kept(&self) -> bool {
        self.broken.is_empty()
    }
}

/// How many broken cases are told of.
const TOLD: usize = 20;

/// Runs so many cases, each with a seed of its own from `seed` on. `progress` is told how many are done.
pub fn resume_cases(
    cases: u64,
    seed: u64,
    breakage: Breakage,
    mut progress: impl FnMut(u64),
) -> ResumeReport {
    let mut report = ResumeReport {
        seed,
        cases,
        ..ResumeReport::default()
    };
    for n in 0..cases {
        let seed = seed.wrapping_add(n);
        let (counts, broken) = case::Case::new(seed, breakage).run();
        report.counts.add(&counts);
        if let Some(words) = broken
            && report.broken.len() < TOLD
        {
            report.broken.push((seed, words));
        }
        progress(n + 1);
    }
    report
}
