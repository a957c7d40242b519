//! The file in which a spoke keeps its position.
//!
//! Text: two lines of a head that name the hub, then a line for each position that was saved, of which the last
//! one counts. To save is to append one line, so that it can be done for every event; when the lines are many,
//! the file is replaced by a short one as a whole. Whenever the process is killed, the last whole line is a
//! position that was saved. A file with anything else in it is left as it is.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use data_encoding::HEXLOWER;
use iroh::EndpointId;
use iroh_hub::Position;

use super::file::sync_dir;

/// The first line.
const HEAD: &str = "iroh-hub spoke position 1";

/// The file is replaced when it is longer, in bytes.
const LONG: u64 = 256 * 1024;

/// No file of ours is longer; what is, is some other file.
const TOO_LONG: u64 = 2 * LONG;

/// How old what is saved may become before it is safe from a loss of power, while events come.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// A position in a file.
#[derive(Debug)]
pub(super) struct PositionFile {
    path: PathBuf,
    hub: EndpointId,
    /// None until something was saved.
    file: Option<File>,
    len: u64,
    saved: Option<Position>,
    synced: Instant,
    dirty: bool,
    line: Vec<u8>,
}

impl PositionFile {
    /// The file at `path`, of a spoke of this hub. It need not exist.
    ///
    /// # Errors
    ///
    /// If it cannot be used: it is damaged, some other file, of another hub, or in use. It is left as it is.
    pub(super) fn open(path: &Path, hub: EndpointId) -> anyhow::Result<Self> {
        let mut this = Self {
            path: path.to_owned(),
            hub,
            file: None,
            len: 0,
            saved: None,
            synced: Instant::now(),
            dirty: false,
            line: Vec::new(),
        };
        let opened = OpenOptions::new().read(true).append(true).open(path);
        let mut file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(this),
            Err(error) => {
                return Err(error).with_context(|| {
                    let path = path.display();
                    format!(
                        "the position file {path} cannot be opened; make it writable, or give another"
                    )
                });
            }
        };
        lock(&file, path)?;
        let mut bytes = Vec::new();
        (&mut file)
            .take(TOO_LONG + 1)
            .read_to_end(&mut bytes)
            .with_context(|| format!("the position file {} cannot be read", path.display()))?;
        let (position, len) = read(&bytes, hub).with_context(|| {
            format!(
                "the position file {} is left as it is; move it away or give another",
                path.display()
            )
        })?;
        this.saved = Some(position);
        this.file = Some(file);
        this.len = len;
        // Half a line, which a killed process left, must not become part of the next one.
        if len < bytes.len() as u64 {
            this.replace(position)
                .with_context(|| format!("{} cannot be written", path.display()))?;
        }
        Ok(this)
    }

    /// The position that was saved last.
    pub(super) fn position(&self) -> Option<Position> {
        self.saved
    }

    /// Saves a position. When this returns, no kill takes it back.
    pub(super) fn save(&mut self, position: Position) -> io::Result<()> {
        if self.saved == Some(position) {
            return Ok(());
        }
        let due = self.dirty && self.synced.elapsed() >= SYNC_EVERY;
        match &mut self.file {
            Some(file) if self.len < LONG => {
                self.line.clear();
                put_line(&mut self.line, self.hub, position);
                file.write_all(&self.line)?;
                self.len += self.line.len() as u64;
                self.dirty = true;
                self.saved = Some(position);
                if due { self.sync() } else { Ok(()) }
            }
            _ => self.replace(position),
        }
    }

    /// Makes what was saved safe from a loss of power too.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if let Some(file) = &self.file
            && std::mem::take(&mut self.dirty)
        {
            file.sync_data()?;
        }
        self.synced = Instant::now();
        Ok(())
    }

    /// Puts a new file with one position in the place of the old one, as a whole.
    fn replace(&mut self, position: Position) -> io::Result<()> {
        let mut beside = OsString::from(".");
        let name = self.path.file_name();
        beside.push(name.ok_or(io::ErrorKind::IsADirectory)?);
        beside.push(".iroh-hub-new");
        let beside = self.path.with_file_name(beside);
        let mut bytes = format!("{HEAD}\nhub {}\n", self.hub).into_bytes();
        put_line(&mut bytes, self.hub, position);
        let write = || -> io::Result<File> {
            let mut file = OpenOptions::new().create(true).append(true).open(&beside)?;
            // One that a killed process left is ours too.
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            file.try_lock()?;
            std::fs::rename(&beside, &self.path)?;
            sync_dir(&self.path)?;
            Ok(file)
        };
        let written = write();
        if written.is_err() {
            let _ = std::fs::remove_file(&beside);
        }
        self.file = Some(written?);
        self.len = bytes.len() as u64;
        self.saved = Some(position);
        self.dirty = false;
        self.synced = Instant::now();
        Ok(())
    }
}

/// One process at a time.
fn lock(file: &File, path: &Path) -> anyhow::Result<()> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => bail!(
            "the position file {} is in use by another spoke; end that one, or give another file",
            path.display()
        ),
        Err(TryLockError::Error(error)) => Err(error)
            .with_context(|| format!("the position file {} cannot be locked", path.display())),
    }
}

fn put_line(line: &mut Vec<u8>, hub: EndpointId, position: Position) {
    let begin = line.len();
    // Memory can be written.
    let _ = write!(line, "{position} ");
    let sum = checksum(hub, line.get(begin..).unwrap_or_default());
    line.extend_from_slice(sum.as_bytes());
    line.push(b'\n');
}

/// Tells a position from what only looks like one.
fn checksum(hub: EndpointId, text: &[u8]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(hub.as_bytes());
    hasher.update(text);
    let hash = hasher.finalize();
    HEXLOWER.encode(hash.as_bytes().get(..4).unwrap_or_default())
}

/// The last position in a file's bytes, and how many of them are whole lines.
fn read(bytes: &[u8], hub: EndpointId) -> anyhow::Result<(Position, u64)> {
    if bytes.len() as u64 > TOO_LONG {
        bail!("it is too long to be a position file");
    }
    let whole = bytes.iter().rposition(|byte| *byte == b'\n');
    let whole = whole.map_or(0, |last| last + 1);
    let text = bytes.get(..whole).unwrap_or_default();
    let text = std::str::from_utf8(text).map_err(|_| anyhow!("it is no position file"))?;
    let mut lines = text.lines();
    if lines.next() != Some(HEAD) {
        bail!("it is no position file");
    }
    let named = lines.next().and_then(|line| line.strip_prefix("hub "));
    if named != Some(hub.to_string().as_str()) {
        let other = named.and_then(|id| id.parse::<EndpointId>().ok());
        match other.filter(|other| *other != hub) {
            Some(other) => bail!("it is of another hub: of {other}, and the ticket is of {hub}"),
            None => bail!("it is damaged: it does not name its hub"),
        }
    }
    let mut last = None;
    for (line, number) in lines.zip(3..) {
        let position = read_line(line, hub);
        last =
            Some(position.ok_or_else(|| anyhow!("it is damaged: line {number} is none of ours"))?);
    }
    let last = last.ok_or_else(|| anyhow!("it is damaged: there is no position in it"))?;
    Ok((last, whole as u64))
}

fn read_line(line: &str, hub: EndpointId) -> Option<Position> {
    let (text, sum) = line.split_at_checked(line.rfind(' ')? + 1)?;
    if sum != checksum(hub, text.as_bytes()) {
        return None;
    }
    let (epoch, offset) = text.trim_end().split_once('/')?;
    Some(Position::new(epoch.parse().ok()?, offset.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use iroh::SecretKey;
    use iroh_hub::Epoch;
    use proptest::prelude::*;

    use super::*;

    fn hub(n: u8) -> EndpointId {
        SecretKey::from_bytes(&[n; 32]).public()
    }

    fn at(offset: u64) -> Position {
        Position::new(Epoch::from_u64(7), offset)
    }

    #[test]
    fn what_was_saved_last_is_read_back_however_often_it_was_saved() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("position");
        let mut file = PositionFile::open(&path, hub(1)).unwrap();
        assert_eq!(file.position(), None);
        assert!(!path.exists(), "nothing was saved");
        for n in 0..20_000 {
            file.save(at(n)).unwrap();
            assert!(std::fs::metadata(&path).unwrap().len() <= LONG + 100);
        }
        file.sync().unwrap();
        drop(file);
        let file = PositionFile::open(&path, hub(1)).unwrap();
        assert_eq!(file.position(), Some(at(19_999)));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn half_a_line_is_what_a_kill_leaves_and_the_line_before_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("position");
        let mut file = PositionFile::open(&path, hub(1)).unwrap();
        for n in 0..3 {
            file.save(at(n)).unwrap();
        }
        drop(file);
        let whole = std::fs::read(&path).unwrap();
        let lines: Vec<_> = whole.split_inclusive(|byte| *byte == b'\n').collect();
        let last = lines.last().unwrap().len();
        for cut in 1..last {
            std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let mut file = PositionFile::open(&path, hub(1)).unwrap();
            assert_eq!(file.position(), Some(at(1)));
            file.save(at(9)).unwrap();
            drop(file);
            let file = PositionFile::open(&path, hub(1)).unwrap();
            assert_eq!(file.position(), Some(at(9)));
        }
        // Nothing but zeros, as after a loss of power.
        std::fs::write(&path, [&whole[..], &[0; 100]].concat()).unwrap();
        let file = PositionFile::open(&path, hub(1)).unwrap();
        assert_eq!(file.position(), Some(at(2)));
    }

    #[test]
    fn a_file_that_is_none_or_damaged_or_anothers_is_an_error_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("position");
        let mut file = PositionFile::open(&path, hub(1)).unwrap();
        file.save(at(1)).unwrap();
        file.save(at(2)).unwrap();
        drop(file);
        let good = std::fs::read_to_string(&path).unwrap();
        for (bytes, words) in [
            (String::new(), "no position file"),
            ("\n".to_owned(), "no position file"),
            ("some notes\n".to_owned(), "no position file"),
            (format!("{HEAD}\n"), "damaged"),
            (format!("{HEAD}\nhub me\n"), "damaged"),
            (format!("{HEAD}\nhub {}\n", hub(1)), "damaged"),
            (good.replace("/1 ", "/3 "), "line 3"),
            (good.replace("/2 ", "/3 "), "line 4"),
            (format!("{good}more\n"), "line 5"),
            (
                good.replace(&hub(1).to_string(), &hub(2).to_string()),
                "another hub",
            ),
            ("a".repeat(TOO_LONG as usize + 1), "too long"),
        ] {
            std::fs::write(&path, &bytes).unwrap();
            let error = PositionFile::open(&path, hub(1)).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains(words), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), bytes);
        }
        assert!(PositionFile::open(dir.path(), hub(1)).is_err());
        let nowhere = dir.path().join("no/where");
        let mut file = PositionFile::open(&nowhere, hub(1)).unwrap();
        assert!(file.save(at(1)).is_err());
    }

    #[test]
    fn two_spokes_do_not_share_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("position");
        let mut first = PositionFile::open(&path, hub(1)).unwrap();
        first.save(at(1)).unwrap();
        let error = PositionFile::open(&path, hub(1)).unwrap_err();
        assert!(error.to_string().contains("in use"), "{error}");
        drop(first);
        PositionFile::open(&path, hub(1)).unwrap();
    }

    proptest! {
        #[test]
        fn no_bytes_are_mistaken_for_a_position(
            junk in prop::collection::vec(any::<u8>(), 0..300),
            flip in any::<prop::sample::Index>(),
            bit in 0..8u8,
        ) {
            prop_assert!(read(&junk, hub(1)).is_err());
            let mut bytes = format!("{HEAD}\nhub {}\n", hub(1)).into_bytes();
            put_line(&mut bytes, hub(1), at(5));
            put_line(&mut bytes, hub(1), at(6));
            let at_byte = flip.index(bytes.len());
            bytes[at_byte] ^= 1 << bit;
            if let Ok((position, _)) = read(&bytes, hub(1)) {
                // The last newline is gone, and with it the last line.
                prop_assert!(position == at(5) && at_byte == bytes.len() - 1);
            }
        }
    }
    fn real() -> Vec<(&'static str, Vec<u8>)> {
        let head = format!("{HEAD}\nhub {}\n", hub(1)).into_bytes();
        let mut file = head.clone();
        put_line(&mut file, hub(1), at(5));
        put_line(&mut file, hub(1), at(6));
        let half = file[..file.len() - 7].to_vec();
        vec![("two", file), ("half", half), ("bad-none", head)]
    }

    crate::fuzz::decoder!(position_file, real(), |bytes| {
        // The checksum tells what was saved from everything else that an input this short can be.
        static HUB: LazyLock<EndpointId> = LazyLock::new(|| hub(1));
        if let Ok((position, len)) = read(bytes, *HUB) {
            assert!(position == at(5) || position == at(6));
            assert!(len <= bytes.len() as u64 && bytes[len as usize - 1] == b'\n');
        }
    });
}
