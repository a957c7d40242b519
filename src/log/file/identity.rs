//! Which file it is, to tell a log from a copy of it.

use std::{fs::File, io, time::UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// What a copy of a file does not share with it. Moving a file within its file system keeps all of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(Default))]
pub(super) struct Identity {
    device: u64,
    /// Numbers are given out again when a file is removed, so they alone prove nothing.
    inode: u64,
    /// Nanoseconds since 1970, where the file system knows.
    created: Option<u64>,
}

impl Identity {
    /// Whether these are the same file. Devices are numbered anew when a machine starts or a volume is mounted
    /// again, so they count only where there is nothing better.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let device = self.created.is_some() || self.device == other.device;
        device && (self.inode, self.created) == (other.inode, other.created)
    }

    pub(super) fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let created = metadata.created().ok();
        let since = created.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        #[cfg(unix)]
        let (device, inode) = {
            use std::os::unix::fs::MetadataExt;
            (metadata.dev(), metadata.ino())
        };
        #[cfg(not(unix))]
        let (device, inode) = (0, 0);
        Ok(Self {
            device,
            inode,
            created: since.and_then(|since| u64::try_from(since.as_nanos()).ok()),
        })
    }
}
