//! How far a log has come, in a small file beside it.
//!
//! A log that is overwritten in place with an older copy of itself is the same file as before, and says nothing of what it
//! has lost. The mark does: it is written after each commit, so a log that is behind it was set back.
//!
//! It need not be synced: it is a witness, and one that is missing, older than the log, or not whole says nothing.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tracing::debug;

use super::identity::Identity;
use crate::position::Epoch;

const MAGIC: &[u8; 16] = b"iroh-hub log tip";
/// More than a mark takes.
const MOST: u64 = 256;
const CHECK: usize = 16;

/// What a mark says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Reached {
    /// Which file it is about.
    pub(super) identity: Identity,
    pub(super) epoch: Epoch,
    pub(super) tip: u64,
}

/// The file beside the log; none if it cannot be had, or is something else's.
#[derive(Debug)]
pub(super) struct Mark(Option<File>);

/// `FILE.tip`, beside the log itself and not beside a link to it.
pub(super) fn path(log: &Path) -> PathBuf {
    let log = log.canonicalize().unwrap_or_else(|_| log.to_owned());
    let mut name = OsString::from(log);
    name.push(".tip");
    name.into()
}

impl Mark {
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// Opens the mark of a log, or makes one; with what it says, if it says anything.
    pub(super) fn open(log: &Path) -> (Self, Option<Reached>) {
        match Self::try_open(&path(log)) {
            Ok((file, reached)) => (Self(Some(file)), reached),
            Err(error) => {
                debug!(%error, "the log goes without a mark of its tip");
                (Self(None), None)
            }
        }
    }

    fn try_open(path: &Path) -> io::Result<(File, Option<Reached>)> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt;
            options.mode(0o600);
        }
        let mut file = options.open(path)?;
        let mut bytes = Vec::new();
        (&mut file).take(MOST).read_to_end(&mut bytes)?;
        if !bytes.is_empty() && !bytes.starts_with(MAGIC) {
            return Err(io::Error::other("there is another file of its name"));
        }
        Ok((file, read(&bytes)))
    }

    /// The log has come so far.
    pub(super) fn set(&mut self, reached: Reached) {
        let Some(file) = &mut self.0 else { return };
        let written = write(&reached).and_then(|bytes| {
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&bytes)
        });
        if let Err(error) = written {
            debug!(%error, "the mark of the log's tip cannot be written");
            self.0 = None;
        }
    }
}

fn write(reached: &Reached) -> io::Result<Vec<u8>> {
    let said = postcard::to_stdvec(reached).map_err(io::Error::other)?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&check(&said));
    bytes.push(u8::try_from(said.len()).map_err(io::Error::other)?);
    bytes.extend(said);
    Ok(bytes)
}

fn read(bytes: &[u8]) -> Option<Reached> {
    let (sum, rest) = bytes.strip_prefix(MAGIC)?.split_at_checked(CHECK)?;
    let (len, rest) = rest.split_first()?;
    // What is behind it is left of a longer one.
    let said = rest.get(..usize::from(*len))?;
    if check(said) != *sum {
        return None;
    }
    postcard::from_bytes(said).ok()
}

fn check(said: &[u8]) -> [u8; CHECK] {
    let mut sum = [0; CHECK];
    let hash = blake3::hash(said);
    sum.copy_from_slice(&hash.as_bytes()[..CHECK]);
    sum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reached(tip: u64) -> Reached {
        let file = tempfile::tempfile().unwrap();
        Reached {
            identity: Identity::of(&file).unwrap(),
            epoch: Epoch::from_u64(u64::MAX - tip),
            tip,
        }
    }

    #[test]
    fn a_mark_says_what_was_written_last() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let (mut mark, before) = Mark::open(&log);
        assert_eq!(before, None);
        for tip in [u64::MAX, 3, 1 << 40] {
            let reached = reached(tip);
            mark.set(reached);
            assert_eq!(Mark::open(&log).1, Some(reached));
        }
    }

    #[test]
    fn a_file_that_is_no_mark_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        std::fs::write(path(&log), "notes of somebody").unwrap();
        let (mut mark, before) = Mark::open(&log);
        mark.set(reached(5));
        assert_eq!(before, None);
        assert_eq!(std::fs::read(path(&log)).unwrap(), b"notes of somebody");
    }

    proptest! {
        #[test]
        fn a_mark_that_is_not_whole_says_nothing(tip: u64, at: prop::sample::Index, bit in 0..8u8, keep: prop::sample::Index) {
            let bytes = write(&reached(tip)).unwrap();
            prop_assert_eq!(read(&bytes), Some(read(&bytes).unwrap()));
            prop_assert_eq!(read(&bytes[..keep.index(bytes.len())]), None);
            let mut changed = bytes.clone();
            changed[at.index(bytes.len())] ^= 1 << bit;
            prop_assert_eq!(read(&changed), None);
        }
    }
    /// The same in each run, of a file that is not there.
    fn real() -> Vec<(&'static str, Vec<u8>)> {
        let reached = Reached {
            identity: Identity::default(),
            epoch: Epoch::from_u64(5),
            tip: 300,
        };
        let mark = write(&reached).unwrap();
        let longer = [&mark[..], b"left over"].concat();
        vec![("mark", mark), ("longer", longer)]
    }

    crate::fuzz::decoder!(log_mark, real(), |bytes| {
        if let Some(reached) = read(bytes) {
            assert_eq!(read(&write(&reached).unwrap()), Some(reached));
        }
        // As if it had been damaged before it was summed up.
        let sum = check(bytes);
        if let Ok(len) = u8::try_from(bytes.len()) {
            let _ = read(&[&MAGIC[..], &sum, &[len], bytes].concat());
        }
    });
}
