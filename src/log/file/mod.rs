//! The file of a durable log: what is in it, and how it is opened and written. Blocking; who waits for
//! the disk, and when, is the hub's business.
//!
//! It is a redb database of two tables. One says whose log it is, its epochs, and which file it was
//! written to; the other has an event under each offset, without holes. A commit appends and trims in
//! one transaction, so that a process that is killed leaves all of it or nothing.
//!
//! A file is looked at before it is opened for writing ([`Overlay`]), so what is refused stays as it is.

mod identity;
mod mark;
mod overlay;
#[cfg(test)]
mod tests;

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use iroh::EndpointId;
use n0_error::e;
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend,
    StorageError, TableDefinition, TableError, backends::FileBackend,
};
use serde::{Deserialize, Serialize};

use self::{
    identity::Identity,
    mark::{Mark, Reached},
    overlay::Overlay,
};
use super::{OpenLogError, resume::Previous};
use crate::position::Epoch;

/// The layout that this version writes and reads. Raise it with every change to what is in the tables.
const LAYOUT: u32 = 1;
const ABOUT: TableDefinition<&str, &[u8]> = TableDefinition::new("iroh-hub.log");
const EVENTS: TableDefinition<u64, &[u8]> = TableDefinition::new("iroh-hub.events");
const LAYOUT_KEY: &str = "layout";
const HEADER_KEY: &str = "header";

/// How a redb file begins.
const MAGIC: [u8; 9] = *b"redb\x1a\x0a\xa9\x0d\x0a";
/// Reads are served from the log in memory, so the database needs little of its own.
const CACHE: usize = 8 << 20;
/// The most previous epochs that a log remembers; positions of older ones are of a stranger.
const MAX_PREVIOUS: usize = 64;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Header {
    hub: [u8; 32],
    epoch: Epoch,
    previous: Vec<Previous>,
    identity: Identity,
}

/// The open file of a log. Nobody else has it open meanwhile.
#[derive(Debug)]
pub(crate) struct LogFile {
    database: Database,
    file: File,
    header: Header,
    tip: u64,
    mark: Mark,
}

/// What is written at once: all of it, or none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Commit {
    /// Events below go.
    pub(crate) head: u64,
    /// The events from the tip on.
    pub(crate) bodies: Vec<Bytes>,
    /// Begins this epoch, which shares with the one before what was written until now.
    pub(crate) begin: Option<Epoch>,
}

impl LogFile {
    /// Opens the log of `hub`, or begins one if there is no such file. `each` is given every event and
    /// its offset in order, and refuses one that it cannot read.
    ///
    /// A log in a file other than it was written to is a copy. It begins a new epoch: the original, if
    /// it went on, gave the next offsets to other events. So does one that is behind the mark beside it
    /// ([`mark`]).
    pub(crate) fn open(
        path: &Path,
        hub: EndpointId,
        each: impl FnMut(u64, Vec<u8>) -> Result<(), String>,
    ) -> Result<Self, OpenLogError> {
        Self::open_over(path, hub, each, |backend| backend)
    }

    /// As [`open`](Self::open), with what `wrap` makes of the file.
    fn open_over<B: StorageBackend>(
        path: &Path,
        hub: EndpointId,
        each: impl FnMut(u64, Vec<u8>) -> Result<(), String>,
        wrap: impl FnOnce(FileBackend) -> B,
    ) -> Result<Self, OpenLogError> {
        let refused = |why: Refused| why.about(path, hub);
        let file = match open_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if path.symlink_metadata().is_ok() {
                    let error = io::Error::other("it is a link to a file that does not exist");
                    return Err(refused(error.into()));
                }
                create(path, hub).map_err(|error| refused(error.into()))?;
                open_file(path)
            }
            opened => opened,
        };
        let file = file.map_err(|error| refused(error.into()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(refused(Refused::InUse)),
            Err(TryLockError::Error(error)) => return Err(refused(error.into())),
        }
        // A damaged file makes some of the database's own assertions fail.
        let found = catch_unwind(AssertUnwindSafe(|| inspect(&file, hub, each)))
            .unwrap_or_else(|_| Err(Refused::damaged("its parts do not fit together")))
            .map_err(refused)?;
        Self::open_inspected(path, &file, found, wrap).map_err(refused)
    }

    fn open_inspected<B: StorageBackend>(
        path: &Path,
        file: &File,
        found: Found,
        wrap: impl FnOnce(FileBackend) -> B,
    ) -> Result<Self, Refused> {
        let backend = FileBackend::new(file.try_clone()?)?;
        let database = Builder::new()
            .set_cache_size(CACHE)
            .create_with_backend(wrap(backend))?;
        let mut this = Self {
            database,
            file: file.try_clone()?,
            header: found.header,
            tip: found.tip,
            mark: Mark::none(),
        };
        let identity = Identity::of(file)?;
        let (mark, reached) = Mark::open(path);
        this.mark = mark;
        let moved = !this.header.identity.is_same(&identity);
        let set_back = reached.is_some_and(|reached| this.is_behind(&reached, &identity));
        if moved || set_back {
            this.header.identity = identity;
            let begin = Commit {
                begin: Some(Epoch::random()),
                ..Commit::default()
            };
            this.commit(&begin)?;
        }
        this.set_mark();
        Ok(this)
    }

    /// Whether this very file has had what is not in it any more.
    fn is_behind(&self, reached: &Reached, identity: &Identity) -> bool {
        if !reached.identity.is_same(identity) {
            return false;
        }
        let header = &self.header;
        let before = |previous: &Previous| previous.epoch == reached.epoch;
        if reached.epoch == header.epoch {
            reached.tip > self.tip
        } else {
            // Where an epoch before this one ended is known already.
            !header.previous.iter().any(before)
        }
    }

    fn set_mark(&mut self) {
        self.mark.set(Reached {
            identity: self.header.identity,
            epoch: self.header.epoch,
            tip: self.tip,
        });
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.header.epoch
    }

    /// The epochs before this one, oldest first.
    pub(crate) fn previous(&self) -> &[Previous] {
        &self.header.previous
    }

    /// The offset that the next event will get.
    pub(crate) fn tip(&self) -> u64 {
        self.tip
    }

    /// The size of the file.
    pub(crate) fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Writes and syncs. After an error it is not known whether the commit is in the file, and nothing
    /// more can be written.
    pub(crate) fn commit(&mut self, commit: &Commit) -> io::Result<()> {
        let mut header = None;
        if let Some(epoch) = commit.begin {
            let mut next = self.header.clone();
            next.previous.push(Previous {
                epoch: next.epoch,
                fork: self.tip,
            });
            let surplus = next.previous.len().saturating_sub(MAX_PREVIOUS);
            next.previous.drain(..surplus);
            next.epoch = epoch;
            header = Some(next);
        }
        let tip = self.write(commit, header.as_ref()).map_err(to_io)?;
        self.tip = tip;
        if let Some(header) = header {
            self.header = header;
        }
        self.set_mark();
        Ok(())
    }

    fn write(&self, commit: &Commit, header: Option<&Header>) -> Result<u64, redb::Error> {
        let mut write = self.database.begin_write()?;
        // Otherwise a damaged last commit looks like one that was cut short, and its offsets would be
        // given to other events.
        write.set_two_phase_commit(true);
        let mut next = self.tip;
        {
            let mut events = write.open_table(EVENTS)?;
            for body in &commit.bodies {
                events.insert(next, body.as_ref())?;
                next += 1;
            }
            events.retain_in(..commit.head, |_, _| false)?;
        }
        if let Some(header) = header {
            put_header(&write, header)?;
        }
        write.commit()?;
        Ok(next)
    }

    /// Closes the file, so that it opens faster next time.
    pub(crate) fn close(self) -> io::Result<()> {
        self.database.close().map_err(|error| to_io(error.into()))
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    // A pipe or a device would be waited for, or written.
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("it is not a regular file"))
    }
}

/// Makes an empty log under another name first, so that there is never half of one under its own.
fn create(path: &Path, hub: EndpointId) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new-{:016x}", rand::random::<u64>()));
    let making = path.with_file_name(name);
    let made = create_at(&making, path, hub);
    if made.is_err() {
        let _ = std::fs::remove_file(&making);
    }
    made
}

fn create_at(making: &Path, path: &Path, hub: EndpointId) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // Events are for those who are admitted.
        options.mode(0o600);
    }
    let file = options.open(making)?;
    let header = Header {
        hub: *hub.as_bytes(),
        epoch: Epoch::random(),
        previous: Vec::new(),
        identity: Identity::of(&file)?,
    };
    init(file, &header).map_err(to_io)?;
    // Unlike a renaming, a link does not replace what somebody else put there meanwhile.
    match std::fs::hard_link(making, path) {
        Ok(()) => std::fs::remove_file(making)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            std::fs::remove_file(making)?;
            return Ok(());
        }
        // Some file systems have no links. A file that is new there holds the place.
        Err(_) => {
            match OpenOptions::new().write(true).create_new(true).open(path) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    std::fs::remove_file(making)?;
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
            if let Err(error) = std::fs::rename(making, path) {
                let _ = std::fs::remove_file(path);
                return Err(error);
            }
        }
    }
    sync_folder(path)
}

fn init(file: File, header: &Header) -> Result<(), redb::Error> {
    let database = Builder::new()
        .set_cache_size(CACHE)
        .create_with_backend(FileBackend::new(file)?)?;
    let mut write = database.begin_write()?;
    write.set_two_phase_commit(true);
    write.open_table(EVENTS)?;
    write
        .open_table(ABOUT)?
        .insert(LAYOUT_KEY, LAYOUT.to_le_bytes().as_slice())?;
    put_header(&write, header)?;
    write.commit()?;
    database.close()?;
    Ok(())
}

fn put_header(write: &redb::WriteTransaction, header: &Header) -> Result<(), redb::Error> {
    let bytes = postcard::to_stdvec(header)
        .map_err(|error| redb::Error::Io(io::Error::other(error.to_string())))?;
    write
        .open_table(ABOUT)?
        .insert(HEADER_KEY, bytes.as_slice())?;
    Ok(())
}

/// A new name is in its folder, and that has to reach the disk too.
#[cfg(unix)]
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    File::open(folder)?.sync_all()
}

#[cfg(not(unix))]
fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

/// What a file turned out to hold.
struct Found {
    header: Header,
    tip: u64,
}

/// Reads the whole file, checks it, and changes nothing.
fn inspect(
    mut file: &File,
    hub: EndpointId,
    mut each: impl FnMut(u64, Vec<u8>) -> Result<(), String>,
) -> Result<Found, Refused> {
    let mut begins = [0; MAGIC.len()];
    file.seek(SeekFrom::Start(0))?;
    match file.read_exact(&mut begins) {
        Ok(()) if begins == MAGIC => {}
        Ok(()) => return Err(Refused::not_a_log("it does not begin like one")),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(Refused::not_a_log("it is too short"));
        }
        Err(error) => return Err(error.into()),
    }
    let database = Builder::new()
        .set_cache_size(CACHE)
        .set_check_integrity_on_open(true)
        .create_with_backend(Overlay::new(file.try_clone()?)?)?;
    let read = database.begin_read().map_err(redb::Error::from)?;
    let header = read_header(&read, hub)?;
    let events = match read.open_table(EVENTS) {
        Err(TableError::TableDoesNotExist(_)) => return Err(Refused::damaged("it has no events")),
        opened => opened?,
    };
    let mut tip = None;
    for entry in events.iter()? {
        let (offset, body) = entry?;
        let offset = offset.value();
        if tip.is_some_and(|tip| tip != offset) {
            return Err(Refused::damaged("events are missing in the middle"));
        }
        each(offset, body.value().to_vec()).map_err(Refused::Damaged)?;
        let next = offset.checked_add(1);
        tip = Some(next.ok_or_else(|| Refused::damaged("its offsets are out of bounds"))?);
    }
    Ok(Found {
        header,
        tip: tip.unwrap_or(0),
    })
}

fn read_header(read: &redb::ReadTransaction, hub: EndpointId) -> Result<Header, Refused> {
    let about = match read.open_table(ABOUT) {
        Ok(about) => about,
        Err(TableError::Storage(error)) => return Err(error.into()),
        Err(_) => return Err(Refused::not_a_log("it is a database of another program")),
    };
    let layout = about.get(LAYOUT_KEY)?;
    let layout = layout.and_then(|layout| <[u8; 4]>::try_from(layout.value()).ok());
    match layout.map(u32::from_le_bytes) {
        Some(LAYOUT) => {}
        Some(found) => return Err(Refused::Version(found)),
        None => return Err(Refused::damaged("it does not say its layout")),
    }
    let header: Option<Header> = about
        .get(HEADER_KEY)?
        .and_then(|header| postcard::from_bytes(header.value()).ok());
    let header = header.ok_or_else(|| Refused::damaged("it does not say whose it is"))?;
    if header.hub != *hub.as_bytes() {
        return Err(match EndpointId::from_bytes(&header.hub) {
            Ok(found) => Refused::OtherHub(found),
            Err(_) => Refused::damaged("it does not say whose it is"),
        });
    }
    Ok(header)
}

/// Why a file was refused, without its name.
#[derive(Debug)]
enum Refused {
    Io(io::Error),
    InUse,
    NotALog(String),
    Damaged(String),
    Version(u32),
    OtherHub(EndpointId),
}

impl Refused {
    fn damaged(what: &str) -> Self {
        Self::Damaged(what.to_owned())
    }

    fn not_a_log(what: &str) -> Self {
        Self::NotALog(what.to_owned())
    }

    fn about(self, path: &Path, expected: EndpointId) -> OpenLogError {
        let path = PathBuf::from(path);
        match self {
            Self::Io(source) => e!(OpenLogError::Io { path, source }),
            Self::InUse => e!(OpenLogError::InUse { path }),
            Self::NotALog(what) => e!(OpenLogError::NotALog { path, what }),
            Self::Damaged(what) => e!(OpenLogError::Damaged { path, what }),
            Self::Version(found) => e!(OpenLogError::Version {
                path,
                found,
                known: LAYOUT
            }),
            Self::OtherHub(found) => e!(OpenLogError::OtherHub {
                path,
                found,
                expected
            }),
        }
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                Self::Damaged(error.to_string())
            }
            _ => Self::Io(error),
        }
    }
}

impl From<redb::Error> for Refused {
    fn from(error: redb::Error) -> Self {
        match error {
            redb::Error::Io(error) => error.into(),
            redb::Error::DatabaseAlreadyOpen => Self::InUse,
            redb::Error::UpgradeRequired(version) => {
                Self::NotALog(format!("it is a redb file of version {version}"))
            }
            redb::Error::Corrupted(what) => Self::Damaged(what),
            other => Self::Damaged(other.to_string()),
        }
    }
}

impl From<DatabaseError> for Refused {
    fn from(error: DatabaseError) -> Self {
        redb::Error::from(error).into()
    }
}

impl From<TableError> for Refused {
    fn from(error: TableError) -> Self {
        redb::Error::from(error).into()
    }
}

impl From<StorageError> for Refused {
    fn from(error: StorageError) -> Self {
        redb::Error::from(error).into()
    }
}

fn to_io(error: redb::Error) -> io::Error {
    match error {
        redb::Error::Io(error) => error,
        other => io::Error::other(other.to_string()),
    }
}
