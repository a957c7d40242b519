//! How the program ends: its exit codes, and errors that bring one.

use std::{fmt, process::ExitCode};

/// How the program ended. The numbers are documented in `--help` and do not change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Exit {
    Ok = 0,
    Other = 1,
    Usage = 2,
    Refused = 3,
    NotConnected = 4,
    HubGone = 5,
    LinesSkipped = 6,
    Behind = 7,
    ContractBroken = 8,
}

/// What `--help` says about them.
pub(super) const HELP: &str = "\
Exit codes:
  0    all went well; a spoke: the hub said goodbye
  1    another error, as stderr says
  2    the command line is wrong
  3    the hub refused this spoke
  4    the hub was not reached
  5    the hub is gone without a goodbye
  6    lines of stdin were skipped, each with an error on stderr
  7    some spokes did not get everything before the hub ended, or a line of stdin for one spoke, or of a
       spoke for the hub, is not known to have been delivered; stderr names them
  8    simulate: the contract was broken
  130  interrupted twice (143: terminated twice); nothing was waited for";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error that ends the program, with its exit code.
#[derive(Debug)]
pub(super) struct Failure {
    exit: Exit,
    error: anyhow::Error,
}

impl Failure {
    pub(super) fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self {
            exit,
            error: error.into(),
        }
    }

    pub(super) fn usage(words: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, anyhow::anyhow!("{words}"))
    }

    pub(super) fn exit(&self) -> Exit {
        self.exit
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(Exit::Other, error)
    }
}

/// One line: the error and what caused it, nothing twice.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = String::new();
        for cause in self.error.chain() {
            let words = cause.to_string();
            if said.is_empty() {
                f.write_str(&words)?;
            } else if words != said {
                write!(f, ": {words}")?;
            }
            said = words;
        }
        Ok(())
    }
}
