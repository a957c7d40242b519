//! What can go wrong with a log that is kept in a file.

use std::{io, path::PathBuf};

use iroh::EndpointId;
use n0_error::{e, stack_error};

/// A log file could not be opened. It was not changed.
#[stack_error(derive, add_meta)]
#[non_exhaustive]
pub enum OpenLogError {
    /// The file cannot be read or written, or not be made.
    #[error("the log {} cannot be opened; give a place that can be read and written", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        #[error(std_err)]
        source: io::Error,
    },
    /// Another hub has it open.
    #[error("the log {} is in use by another hub; end that one, or give another file", path.display())]
    InUse {
        /// Which file.
        path: PathBuf,
    },
    /// The file is something else.
    #[error("{} is not the log of a hub ({what}); give another name to begin a new log", path.display())]
    NotALog {
        /// Which file.
        path: PathBuf,
        /// How this shows.
        what: String,
    },
    /// The file was a log, and parts of it are missing or not what was written.
    #[error("the log {} is damaged ({what}); restore it from a copy, or give another name to begin a new log", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// How this shows.
        what: String,
    },
    /// It was written by a version of this library that lays it out otherwise.
    #[error("the log {} has layout {found}, this version reads layout {known}; use the version that wrote it", path.display())]
    Version {
        /// Which file.
        path: PathBuf,
        /// The layout of the file.
        found: u32,
        /// The layout that this version knows.
        known: u32,
    },
    /// It is the log of a hub with another key.
    #[error("the log {} is that of hub {found}, and this is hub {expected}; give the key that belongs to the log, or another log", path.display())]
    OtherHub {
        /// Which file.
        path: PathBuf,
        /// Whose log it is.
        found: EndpointId,
        /// Who wanted to open it.
        expected: EndpointId,
    },
}

/// The log takes no more events, because its file could not be written.
///
/// What was synced before is still served. The hub has to be started again, once the cause is gone.
#[stack_error(derive, add_meta)]
#[derive(Clone)]
#[error("the log cannot be written ({reason}); start the hub again once that is mended")]
#[non_exhaustive]
pub struct LogFailed {
    /// What the system said.
    pub reason: String,
}

impl LogFailed {
    pub(crate) fn because(reason: impl Into<String>) -> Self {
        let reason = reason.into();
        e!(Self { reason })
    }
}
