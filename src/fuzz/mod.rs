//! Fuzz targets: functions that must not panic, whatever they are given.
//!
//! [`decoder!`] makes a target of a function of bytes, [`machine!`] one of a property of whatever proptest can
//! draw: a sequence of operations. The targets are beside what they try; all of them end in `::fuzz`. There is
//! one function for each, and three ways to call it:
//!
//! - `cargo test` goes through the corpus, and then tries a few hundred or thousand inputs that it draws.
//! - `FUZZ=10000000 cargo test --profile fuzz --lib --bins ::fuzz -- --nocapture` tries that many on each decoder and
//!   a tenth on each machine, and says how fast. `FUZZ_SEED` repeats a run of a decoder.
//! - With `RUSTC_WORKSPACE_WRAPPER=tests/fuzz/instrument` before it and `--test-threads 1` behind it, an input that
//!   reaches code that none has reached is kept, and others are made of it ([`coverage`]). A machine draws
//!   its operations from the input then.
//!
//! The corpus of a decoder is `tests/fuzz/corpus/NAME`: real frames, made by the target's own `seeds`, which
//! `UPDATE_CORPUS=1` writes again after a format has changed; and whatever other files are put there, such as an
//! input that was found to break something.
//!
//! Compiled for tests only, of the library and of the program.

mod corpus;
mod coverage;
mod memory;
mod mutate;

use std::{fmt::Write, io::Write as _, time::Instant};

use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{
        Config, FileFailurePersistence, RngAlgorithm, TestCaseError, TestRng, TestRunner,
    },
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use self::mutate::Mutator;

#[global_allocator]
static COUNTED: memory::Counted = memory::Counted;

/// How many inputs an ordinary run tries for a decoder.
const ORDINARY: u64 = 10_000;

/// A machine is tried so many times more rarely than a decoder: it does more each time.
const TIMES_FEWER: u64 = 10;

/// What a decoder may hold at once, in bytes: so much, because serde takes room for at most so much before it sees
/// that there is not enough behind a length,
const MOST: usize = (1 << 20) + (64 << 10);
/// and so much more for each byte of its input.
const MOST_A_BYTE: usize = 64;

/// A target of bytes: its name, which is its folder in the corpus, its real inputs, and what is done with one.
macro_rules! decoder {
    ($name:ident, $seeds:expr, $run:expr) => {
        mod $name {
            use super::*;

            #[test]
            fn fuzz() {
                $crate::fuzz::decode(stringify!($name), &$seeds, $run);
            }
        }
    };
}
pub(crate) use decoder;

/// Targets in the form of `proptest!`. `#![cases(N)]` before them says how many an ordinary run tries.
macro_rules! machine {
    (#![cases($cases:expr)] $($rest:tt)*) => {
        $crate::fuzz::machine!(@each Some($cases); $($rest)*);
    };
    (@each $cases:expr; $(
        $(#[$meta:meta])*
        fn $name:ident($($input:pat in $strategy:expr),+ $(,)?) $body:block
    )+) => {$(
        mod $name {
            use super::*;

            $(#[$meta])*
            #[test]
            fn fuzz() {
                let strategy = ($($strategy,)+);
                let names = (file!(), module_path!());
                $crate::fuzz::operate(names, $cases, &strategy, |($($input,)+)| {
                    $body
                    Ok(())
                });
            }
        }
    )+};
    ($($rest:tt)*) => {
        $crate::fuzz::machine!(@each None; $($rest)*);
    };
}
pub(crate) use machine;

/// What a machine's property comes to.
pub(crate) type Outcome = Result<(), TestCaseError>;

/// How many inputs were asked for.
fn asked_for() -> Option<u64> {
    let number = std::env::var("FUZZ").ok()?;
    Some(number.parse().expect("FUZZ is a number of inputs"))
}

/// Goes through the corpus, and then as many inputs as were asked for.
pub(crate) fn decode(name: &str, seeds: &[(&str, Vec<u8>)], run: fn(&[u8])) {
    let within_memory = |bytes: &[u8]| {
        let held = memory::most_held_by(|| run(bytes));
        let most = MOST + MOST_A_BYTE * bytes.len();
        assert!(held <= most, "{held} bytes were held at once, over {most}");
    };
    let runs = asked_for().unwrap_or(ORDINARY);
    search(name, corpus::all(name, seeds), runs, within_memory);
}

/// Tries a machine with as many sequences of operations as were asked for.
pub(crate) fn operate<S: Strategy>(
    (file, name): (&'static str, &'static str),
    cases: Option<u32>,
    strategy: &S,
    run: impl Fn(S::Value) -> Outcome,
) {
    if coverage::is_there() {
        let runs = asked_for().unwrap_or(ORDINARY) / TIMES_FEWER;
        return search(name, Vec::new(), runs, |bytes| drawn(bytes, strategy, &run));
    }
    let mut config = Config {
        test_name: Some(name),
        source_file: Some(file),
        failure_persistence: Some(Box::new(FileFailurePersistence::default())),
        ..Config::default()
    };
    config.cases = cases.unwrap_or(config.cases);
    if let Some(asked) = asked_for() {
        config.cases = u32::try_from(asked / TIMES_FEWER).expect("not so many");
    }
    let runs = config.cases;
    let mut runner = TestRunner::new(config);
    let begin = Instant::now();
    if let Err(error) = runner.run(strategy, run) {
        panic!("{error}\n{runner}");
    }
    report(name, runs.into(), begin, "");
}

/// Calls a machine's property with what these bytes make proptest draw.
fn drawn<S: Strategy>(bytes: &[u8], strategy: &S, run: impl Fn(S::Value) -> Outcome) {
    let rng = TestRng::from_seed(RngAlgorithm::PassThrough, bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let Ok(tree) = strategy.new_tree(&mut runner) else {
        return;
    };
    if let Err(TestCaseError::Fail(why)) = run(tree.current()) {
        panic!("{why}");
    }
}

/// Runs all that is in the pool, and then what can be made of it. What reaches new code comes into it.
fn search(name: &str, pool: Vec<Vec<u8>>, runs: u64, run: impl Fn(&[u8])) {
    let tell = |bytes: &[u8]| {
        let _told = Told(name, bytes);
        run(bytes);
    };
    coverage::forget();
    pool.iter().for_each(|bytes| tell(bytes));
    let seed = match std::env::var("FUZZ_SEED") {
        Ok(seed) => seed.parse().expect("FUZZ_SEED is a number"),
        Err(_) => rand::rng().random(),
    };
    let began_with = pool.len();
    let mut mutator = Mutator::new(StdRng::seed_from_u64(seed), pool);
    let begin = Instant::now();
    for _ in 0..runs {
        let input = mutator.next();
        if coverage::finds(|| tell(input)) {
            mutator.keep();
        }
    }
    let kept = mutator.pool().len() - began_with;
    let found = if coverage::is_there() {
        format!(", {kept} inputs that reached new code")
    } else {
        String::new()
    };
    report(name, runs, begin, &found);
}

/// Says how fast it was, if a number was asked for.
fn report(name: &str, runs: u64, begin: Instant, more: &str) {
    if asked_for().is_some() {
        let seconds = begin.elapsed().as_secs_f64();
        let each = runs as f64 / seconds;
        // Past the test harness, which keeps what a test prints until it is over.
        let line =
            format!("{name}: {runs} in {seconds:.1} s, {each:.0} a second{more}: no finding\n");
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

/// Says which input it was, if the target panics.
struct Told<'a>(&'a str, &'a [u8]);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut hex = String::new();
            for byte in self.1 {
                let _ = write!(hex, "{byte:02x}");
            }
            eprintln!("{} does not stand this input: {hex}", self.0);
        }
    }
}

#[test]
fn what_breaks_a_target_is_found() {
    let pool = vec![b"version 1".to_vec(), b"version 2".to_vec()];
    let breaks = |bytes: &[u8]| assert!(!bytes.starts_with(b"version 3"));
    let found = std::panic::catch_unwind(|| search("a test", pool, 100_000, breaks));
    assert!(found.is_err());
}
