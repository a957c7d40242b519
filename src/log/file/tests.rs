use std::{
    fs,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
};

use iroh::SecretKey;
use proptest::prelude::*;

use super::*;

/// What is in a log: offsets and bodies.
type Events = Vec<(u64, Vec<u8>)>;

fn hub(n: u8) -> EndpointId {
    SecretKey::from_bytes(&[n; 32]).public()
}

fn commit(head: u64, bodies: &[&[u8]]) -> Commit {
    Commit {
        head,
        bodies: bodies
            .iter()
            .map(|body| Bytes::copy_from_slice(body))
            .collect(),
        begin: None,
    }
}

/// Opens the log and reads what is in it.
fn open(path: &Path) -> Result<(LogFile, Events), OpenLogError> {
    let mut events = Vec::new();
    let file = LogFile::open(path, hub(1), |offset, body| {
        events.push((offset, body));
        Ok(())
    })?;
    Ok((file, events))
}

/// A closed log with a few events in it.
fn some_log(path: &Path) -> Epoch {
    let (mut log, _) = open(path).unwrap();
    for n in 0..20u8 {
        log.commit(&commit(5, &[&[n; 300], &[n; 2000]])).unwrap();
    }
    let epoch = log.epoch();
    log.close().unwrap();
    epoch
}

#[test]
fn a_log_is_made_once_and_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let (mut log, events) = open(&path).unwrap();
    assert!(events.is_empty());
    assert_eq!(log.tip(), 0);
    let epoch = log.epoch();
    log.commit(&commit(0, &[b"a", b"b"])).unwrap();
    log.commit(&commit(1, &[b"c"])).unwrap();
    drop(log);
    let (mut log, events) = open(&path).unwrap();
    assert_eq!(log.epoch(), epoch);
    assert_eq!(events, [(1, b"b".to_vec()), (2, b"c".to_vec())]);
    // All go but the one that comes.
    log.commit(&commit(3, &[b"d"])).unwrap();
    drop(log);
    let (log, events) = open(&path).unwrap();
    assert_eq!(events, [(3, b"d".to_vec())]);
    assert_eq!((log.tip(), log.previous()), (4, &[][..]));
    let files: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(files.len(), 2, "it and its mark: {files:?}");
}

#[test]
fn a_new_epoch_is_there_with_what_came_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let (mut log, _) = open(&path).unwrap();
    let first = log.epoch();
    log.commit(&commit(0, &[b"a", b"b"])).unwrap();
    let second = Epoch::from_u64(2);
    let begin = Commit {
        begin: Some(second),
        ..commit(0, &[b"c"])
    };
    log.commit(&begin).unwrap();
    drop(log);
    let (mut log, events) = open(&path).unwrap();
    assert_eq!(events.len(), 3);
    assert_eq!(log.epoch(), second);
    let fork = |epoch, fork| Previous { epoch, fork };
    assert_eq!(log.previous(), [fork(first, 2)]);
    // What is remembered is bounded.
    for n in 0..2 * MAX_PREVIOUS as u64 {
        let begin = Commit {
            begin: Some(Epoch::from_u64(100 + n)),
            ..Commit::default()
        };
        log.commit(&begin).unwrap();
    }
    drop(log);
    let (log, _) = open(&path).unwrap();
    assert_eq!(log.previous().len(), MAX_PREVIOUS);
    let last = Epoch::from_u64(100 + 2 * MAX_PREVIOUS as u64 - 2);
    assert_eq!(log.previous().last(), Some(&fork(last, 3)));
}

#[test]
fn a_copy_begins_a_new_epoch_and_the_original_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let copy = folder.path().join("copy");
    let epoch = some_log(&path);
    fs::copy(&path, &copy).unwrap();
    let (log, events) = open(&copy).unwrap();
    assert_ne!(log.epoch(), epoch);
    assert_eq!(log.previous(), [Previous { epoch, fork: 40 }]);
    assert_eq!(events.len(), 35);
    let second = log.epoch();
    drop(log);
    // It is the log's own file from now on.
    assert_eq!(open(&copy).unwrap().0.epoch(), second);
    assert_eq!(open(&path).unwrap().0.epoch(), epoch);
    // Restored under the old name.
    fs::remove_file(&path).unwrap();
    fs::copy(&copy, &path).unwrap();
    assert_ne!(open(&path).unwrap().0.epoch(), second);
    // Moved, it is the same file.
    let moved = folder.path().join("moved");
    fs::rename(&copy, &moved).unwrap();
    assert_eq!(open(&moved).unwrap().0.epoch(), second);
}

#[test]
fn a_log_that_was_overwritten_with_an_older_copy_begins_a_new_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let (path, copy) = (folder.path().join("log"), folder.path().join("copy"));
    let epoch = some_log(&path);
    fs::copy(&path, &copy).unwrap();
    let append = || {
        let (mut log, _) = open(&path).unwrap();
        log.commit(&commit(0, &[b"more"])).unwrap();
        (log.epoch(), log.tip())
    };
    assert_eq!(append(), (epoch, 41));
    assert_eq!(append(), (epoch, 42), "opened again, it goes on");
    // In place: the same inode, and the same time of creation.
    fs::write(&path, fs::read(&copy).unwrap()).unwrap();
    let (second, tip) = append();
    assert_ne!(second, epoch);
    assert_eq!(tip, 41);
    let (log, _) = open(&path).unwrap();
    assert_eq!(log.epoch(), second);
    assert_eq!(log.previous(), [Previous { epoch, fork: 40 }]);
    drop(log);
    // Set back to before that epoch.
    fs::write(&path, fs::read(&copy).unwrap()).unwrap();
    let (third, _) = append();
    assert!(third != epoch && third != second);
    // Without its mark nothing can be told.
    fs::remove_file(mark::path(&path)).unwrap();
    assert_eq!(append().0, third);
}

#[test]
fn a_link_to_nothing_is_refused_as_that() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(folder.path().join("nowhere"), &path).unwrap();
        let error = open(&path).unwrap_err();
        let words: Vec<_> =
            std::iter::successors(Some(&error as &dyn std::error::Error), |error| {
                error.source()
            })
            .map(ToString::to_string)
            .collect();
        assert!(
            words
                .join(": ")
                .contains("a link to a file that does not exist"),
            "{words:?}"
        );
    }
}

#[test]
fn a_log_in_use_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let (log, _) = open(&path).unwrap();
    assert!(matches!(open(&path), Err(OpenLogError::InUse { .. })));
    let link = folder.path().join("link");
    fs::hard_link(&path, &link).unwrap();
    assert!(matches!(open(&link), Err(OpenLogError::InUse { .. })));
    drop(log);
    open(&path).unwrap();
}

/// What is refused, and stays as it is.
#[track_caller]
fn refused(path: &Path) -> OpenLogError {
    let before = fs::read(path).unwrap();
    let error = open(path).unwrap_err();
    assert!(fs::read(path).unwrap() == before, "the file was changed");
    error
}

#[test]
fn what_is_no_log_is_refused_and_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let long = "no log at all\n".repeat(10_000);
    for content in [&b""[..], b"r", b"redb\x1a\x0a\xa9\x0d", long.as_bytes()] {
        fs::write(&path, content).unwrap();
        let error = refused(&path);
        assert!(matches!(error, OpenLogError::NotALog { .. }), "{error}");
    }
    fs::remove_file(&path).unwrap();
    // Of another program, closed and not.
    let table: TableDefinition<&str, u64> = TableDefinition::new("prices");
    let database = Database::create(&path).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(table).unwrap().insert("tea", 3).unwrap();
    write.commit().unwrap();
    let unclean = folder.path().join("unclean");
    fs::copy(&path, &unclean).unwrap();
    drop(database);
    for path in [&path, &unclean] {
        let error = refused(path);
        assert!(matches!(error, OpenLogError::NotALog { .. }), "{error}");
    }
    let error = open(folder.path()).unwrap_err();
    assert!(matches!(error, OpenLogError::Io { .. }), "{error}");
    let error = open(&folder.path().join("no/such/folder")).unwrap_err();
    assert!(matches!(error, OpenLogError::Io { .. }), "{error}");
}

/// Changes a log through the database, as another version might have written it.
fn rewrite(path: &Path, change: impl FnOnce(&redb::WriteTransaction)) {
    let database = Database::open(path).unwrap();
    let write = database.begin_write().unwrap();
    change(&write);
    write.commit().unwrap();
}

#[test]
fn another_layout_another_hub_and_a_hole_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    some_log(&path);
    let error = LogFile::open(&path, hub(2), |_, _| Ok(())).unwrap_err();
    let OpenLogError::OtherHub {
        found, expected, ..
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!((found, expected), (hub(1), hub(2)));

    // One that was not closed is not mended before it is known to be ours.
    let (log, _) = open(&path).unwrap();
    let unclean = folder.path().join("unclean");
    fs::copy(&path, &unclean).unwrap();
    drop(log);
    let before = fs::read(&unclean).unwrap();
    assert!(LogFile::open(&unclean, hub(2), |_, _| Ok(())).is_err());
    assert!(fs::read(&unclean).unwrap() == before);

    let refuses_an_event = LogFile::open(&path, hub(1), |_, _| Err("no event".to_owned()));
    assert!(matches!(
        refuses_an_event,
        Err(OpenLogError::Damaged { .. })
    ));

    rewrite(&path, |write| {
        let mut events = write.open_table(EVENTS).unwrap();
        events.remove(20).unwrap();
    });
    let error = refused(&path);
    assert!(matches!(error, OpenLogError::Damaged { .. }), "{error}");

    rewrite(&path, |write| {
        let mut about = write.open_table(ABOUT).unwrap();
        about.insert(HEADER_KEY, &b"what?"[..]).unwrap();
    });
    let error = refused(&path);
    assert!(matches!(error, OpenLogError::Damaged { .. }), "{error}");

    rewrite(&path, |write| {
        let mut about = write.open_table(ABOUT).unwrap();
        about.insert(LAYOUT_KEY, &9u32.to_le_bytes()[..]).unwrap();
    });
    let error = refused(&path);
    assert!(
        matches!(error, OpenLogError::Version { found: 9, .. }),
        "{error}"
    );
}

#[test]
fn the_file_does_not_grow_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let (mut log, _) = open(&path).unwrap();
    let mut sizes = Vec::new();
    // 200 events of 1,000 bytes are kept, of 6,000.
    for round in 0..300u64 {
        let tip = 20 * (round + 1);
        let body = [round as u8; 1000];
        let bodies = [&body[..]; 20];
        log.commit(&commit(tip.saturating_sub(200), &bodies))
            .unwrap();
        sizes.push(log.len().unwrap());
    }
    let early = *sizes[..150].iter().max().unwrap();
    let late = *sizes[150..].iter().max().unwrap();
    assert!(late <= early + 100_000, "{early}, then {late}");
    assert!(late < 5 * 200_000, "{late}");
}

/// A log as it is once closed, and as it is when its hub is killed. Always the same file, so that it is no
/// copy.
struct Sample {
    folder: tempfile::TempDir,
    clean: Vec<u8>,
    unclean: Vec<u8>,
    events: Events,
}

impl Sample {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        some_log(&path);
        let clean = fs::read(&path).unwrap();
        let (log, events) = open(&path).unwrap();
        let unclean = fs::read(&path).unwrap();
        drop(log);
        Self {
            folder,
            clean,
            unclean,
            events,
        }
    }

    fn bytes(&self, unclean: bool) -> Vec<u8> {
        let bytes = if unclean { &self.unclean } else { &self.clean };
        bytes.clone()
    }

    /// Whether this opens with all that was in it, or is refused and left as it is.
    fn is_refused_or_whole(&self, bytes: &[u8]) -> Result<(), String> {
        let path = self.folder.path().join("log");
        fs::write(&path, bytes).unwrap();
        match open(&path) {
            Ok((log, events)) if events == self.events && log.tip() == 40 => Ok(()),
            Ok((log, events)) => Err(format!("{} events to {}", events.len(), log.tip())),
            Err(OpenLogError::Damaged { .. } | OpenLogError::NotALog { .. }) => {
                if fs::read(&path).unwrap() == bytes {
                    Ok(())
                } else {
                    Err("it was changed".to_owned())
                }
            }
            Err(other) => Err(other.to_string()),
        }
    }
}

static SAMPLE: LazyLock<Mutex<Sample>> = LazyLock::new(|| Mutex::new(Sample::new()));

fn sample() -> MutexGuard<'static, Sample> {
    SAMPLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The parts of the header decide which of the last two commits counts.
#[test]
fn a_damaged_header_hides_no_commit() {
    let sample = sample();
    for unclean in [false, true] {
        for at in 0..320 {
            let mut bytes = sample.bytes(unclean);
            bytes[at] ^= 1 << (at % 8);
            let found = sample.is_refused_or_whole(&bytes);
            assert_eq!(found, Ok(()), "byte {at}, unclean {unclean}");
        }
    }
}

fn damage() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    /// Damage is seen, unless it is where nothing lies.
    #[test]
    fn a_damaged_log_is_refused_or_whole(
        flips in damage(),
        in_page in prop::option::of(0usize..60),
        unclean in any::<bool>(),
    ) {
        let sample = sample();
        let mut bytes = sample.bytes(unclean);
        for (at, by) in &flips {
            let at = match in_page {
                Some(page) => at.index(4096) + page * 4096,
                None => at.index(bytes.len()),
            };
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= by;
            }
        }
        prop_assert_eq!(sample.is_refused_or_whole(&bytes), Ok(()));
    }

    #[test]
    fn a_truncated_log_is_refused_or_whole(at in any::<prop::sample::Index>(), unclean in any::<bool>()) {
        let sample = sample();
        let mut bytes = sample.bytes(unclean);
        bytes.truncate(at.index(bytes.len()));
        prop_assert_eq!(sample.is_refused_or_whole(&bytes), Ok(()));
    }
}

/// A disk that keeps what was synced, and of the rest what it likes.
#[derive(Debug)]
struct Disk {
    /// What is in the file for certain.
    synced: Vec<u8>,
    pending: Vec<Pending>,
    /// How many more writes and syncs there are before the power fails.
    left: usize,
}

#[derive(Clone, Debug)]
enum Pending {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

impl Disk {
    fn spend(&mut self) -> io::Result<()> {
        self.left = self.left.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
        Ok(())
    }
}

#[derive(Debug)]
struct OnDisk(FileBackend, Arc<Mutex<Disk>>);

impl StorageBackend for OnDisk {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.1.lock().unwrap();
        disk.spend()?;
        disk.pending.push(Pending::SetLen(len));
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.1.lock().unwrap();
        disk.spend()?;
        let mut all = vec![0; self.0.len()? as usize];
        self.0.read(0, &mut all)?;
        disk.synced = all;
        disk.pending.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.1.lock().unwrap();
        disk.spend()?;
        disk.pending.push(Pending::Write(offset, data.to_vec()));
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
}

fn open_on(path: &Path, left: usize) -> (LogFile, Events, Arc<Mutex<Disk>>) {
    let disk = Arc::new(Mutex::new(Disk {
        synced: fs::read(path).unwrap_or_default(),
        pending: Vec::new(),
        left: usize::MAX,
    }));
    let mut events = Vec::new();
    let each = |offset, body| {
        events.push((offset, body));
        Ok(())
    };
    let wrap = |backend| OnDisk(backend, disk.clone());
    let log = LogFile::open_over(path, hub(1), each, wrap).unwrap();
    disk.lock().unwrap().left = left;
    (log, events, disk)
}

#[test]
fn a_full_disk_is_an_error_and_stays_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let (mut log, _, disk) = open_on(&path, usize::MAX);
    log.commit(&commit(0, &[b"a"])).unwrap();
    disk.lock().unwrap().left = 0;
    assert!(log.commit(&commit(0, &[b"b"])).is_err());
    assert_eq!(log.tip(), 1);
    disk.lock().unwrap().left = usize::MAX;
    // Whether the last one is in the file is not known, so nothing may follow it.
    assert!(log.commit(&commit(0, &[b"c"])).is_err());
    drop(log);
    let (_, events) = open(&path).unwrap();
    assert!(events.len() <= 2 && events[0] == (0, b"a".to_vec()));
    assert!(
        events
            .get(1)
            .is_none_or(|event| *event == (1, b"b".to_vec()))
    );
}

#[derive(Clone, Debug)]
enum Op {
    /// So many events of so many bytes, and trims so many.
    Commit(Vec<usize>, u64),
    Begin,
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let sizes = || prop::collection::vec(prop_oneof![0usize..200, 3000usize..9000], 0..6);
    prop_oneof![
        8 => (sizes(), 0u64..6).prop_map(|(sizes, trim)| Op::Commit(sizes, trim)),
        1 => Just(Op::Begin),
        1 => Just(Op::Reopen),
    ]
}

#[derive(Clone, PartialEq, Debug, Default)]
struct Model {
    head: u64,
    events: Events,
    epochs: Vec<(Epoch, u64)>,
}

impl Model {
    fn tip(&self) -> u64 {
        self.events
            .last()
            .map_or(self.head, |(offset, _)| offset + 1)
    }

    fn apply(&mut self, commit: &Commit) {
        let tip = self.tip();
        if let Some(epoch) = commit.begin {
            self.epochs.push((epoch, tip));
        }
        let bodies = commit.bodies.iter().map(|body| body.to_vec());
        self.events.extend((tip..).zip(bodies));
        self.events.retain(|(offset, _)| *offset >= commit.head);
        self.head = commit.head.max(self.head);
    }

    fn check(&self, log: &LogFile, events: &Events) -> bool {
        let forks: Vec<u64> = self.epochs.iter().skip(1).map(|(_, fork)| *fork).collect();
        let found: Vec<u64> = log
            .previous()
            .iter()
            .map(|previous| previous.fork)
            .collect();
        *events == self.events
            && log.tip() == self.tip()
            && self
                .epochs
                .last()
                .is_some_and(|(epoch, _)| *epoch == log.epoch())
            && forks == found
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Whenever the power fails, the log is as after the last commit, or as after the one that was
    /// under way; never in between, and never older.
    #[test]
    fn a_log_is_what_was_committed_whenever_the_power_fails(
        lives in prop::collection::vec(
            (prop::collection::vec(op(), 1..12), 0usize..150, any::<u64>()),
            1..4,
        ),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        drop(open(&path).unwrap());
        let mut model = Model::default();
        model.epochs.push((open(&path).unwrap().0.epoch(), 0));
        for (ops, left, seed) in lives {
            let (mut log, events, mut disk) = open_on(&path, left);
            prop_assert!(model.check(&log, &events));
            let mut under_way = None;
            for op in ops {
                let commit = match op {
                    Op::Commit(sizes, trim) => {
                        let tip = model.tip() + sizes.len() as u64;
                        // One event stays.
                        let head = (model.head + trim).min(tip.saturating_sub(1));
                        let bodies = sizes.iter().map(|&len| Bytes::from(vec![len as u8; len]));
                        Commit { head, bodies: bodies.collect(), begin: None }
                    }
                    Op::Begin => Commit {
                        head: model.head,
                        begin: Some(Epoch::random()),
                        ..Commit::default()
                    },
                    Op::Reopen => {
                        let left = disk.lock().unwrap().left;
                        // Closing writes too; it may fail, and then nothing is lost.
                        drop(log);
                        let (reopened, events, new_disk) = open_on(&path, left);
                        (log, disk) = (reopened, new_disk);
                        prop_assert!(model.check(&log, &events));
                        continue;
                    }
                };
                match log.commit(&commit) {
                    Ok(()) => model.apply(&commit),
                    Err(_) => {
                        let mut next = model.clone();
                        next.apply(&commit);
                        under_way = Some(next);
                        break;
                    }
                }
            }
            // The power fails: of what was not synced, some is there.
            disk.lock().unwrap().left = 0;
            let (mut content, pending) = {
                let disk = disk.lock().unwrap();
                (disk.synced.clone(), disk.pending.clone())
            };
            drop(log);
            for (n, pending) in pending.into_iter().enumerate() {
                if seed >> (n % 64) & 1 == 0 {
                    continue;
                }
                match pending {
                    Pending::SetLen(len) => content.resize(len as usize, 0),
                    Pending::Write(at, data) => {
                        let end = at as usize + data.len();
                        content.resize(content.len().max(end), 0);
                        content[at as usize..end].copy_from_slice(&data);
                    }
                }
            }
            fs::write(&path, content).unwrap();
            let (log, events) = open(&path).unwrap();
            match under_way {
                Some(next) if next.check(&log, &events) => model = next,
                _ => prop_assert!(model.check(&log, &events)),
            }
        }
    }
}

fn real_headers() -> Vec<(&'static str, Vec<u8>)> {
    let previous = |n| Previous {
        epoch: Epoch::from_u64(n),
        fork: 100 * n,
    };
    let header = |forks: u64| Header {
        hub: [7; 32],
        epoch: Epoch::from_u64(5),
        previous: (0..forks).map(previous).collect(),
        identity: Identity::default(),
    };
    let encoded = |forks| postcard::to_stdvec(&header(forks)).unwrap();
    vec![("first", encoded(0)), ("forked", encoded(3))]
}

// What is kept of an event is its body, which is a target of its own.
crate::fuzz::decoder!(log_header, real_headers(), |bytes| {
    let Ok(header) = postcard::from_bytes::<Header>(bytes) else {
        return;
    };
    let again = postcard::to_stdvec(&header).unwrap();
    assert_eq!(postcard::from_bytes::<Header>(&again).unwrap(), header);
});
