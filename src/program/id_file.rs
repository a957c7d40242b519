//! A file of endpoint ids, one a line, that is read again while the program runs.
//!
//! What is done with the ids is the business of [`admitted`](super::admitted).

use std::{
    collections::BTreeSet,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail, ensure};
use iroh::EndpointId;

use super::file::open_regular;

/// The largest file, in bytes: more than sixty thousand ids.
const MAX_LEN: u64 = 4 << 20;

pub(super) type Ids = BTreeSet<EndpointId>;

/// What the ids of a file are for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    Allow,
    Deny,
}

impl Purpose {
    fn name(self) -> &'static str {
        match self {
            Self::Allow => "the list of allowed spokes",
            Self::Deny => "the list of denied spokes",
        }
    }
}

/// The last good list that a file held, and what was seen of the file since.
#[derive(Debug)]
pub(super) struct IdFile {
    path: PathBuf,
    purpose: Purpose,
    ids: Ids,
    /// What the list was taken from.
    taken: blake3::Hash,
    last: Seen,
    /// The fault that was told last, while it lasts.
    told: Option<String>,
}

/// What a look at the file showed.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Seen {
    Bytes(blake3::Hash),
    Fault(String),
}

/// What came of a look.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum News {
    None,
    /// There is another list.
    List,
    /// The file is of no use for this reason, and the last good list stands.
    Fault(String),
    /// The file holds the last good list again.
    Mended,
}

impl IdFile {
    /// Reads a file for the first time. May block.
    pub(super) fn open(path: &Path, purpose: Purpose) -> anyhow::Result<Self> {
        let read = || {
            let bytes = read(path)?;
            anyhow::Ok((parse_for(purpose, &bytes)?, blake3::hash(&bytes)))
        };
        let (ids, taken) =
            read().with_context(|| format!("{} {}", purpose.name(), path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            purpose,
            ids,
            taken,
            last: Seen::Bytes(taken),
            told: None,
        })
    }

    /// The last good list.
    pub(super) fn ids(&self) -> &Ids {
        &self.ids
    }

    /// What people call it.
    pub(super) fn name(&self) -> String {
        format!("{} {}", self.purpose.name(), self.path.display())
    }

    /// Looks at the file again. May block.
    pub(super) fn look(&mut self) -> News {
        let read = read(&self.path);
        self.see(read)
    }

    /// Believes what it sees the second time: a file that is being written, or replaced, looks different the
    /// first time.
    fn see(&mut self, read: anyhow::Result<Vec<u8>>) -> News {
        let seen = match &read {
            Ok(bytes) => Seen::Bytes(blake3::hash(bytes)),
            Err(error) => Seen::Fault(format!("{error:#}")),
        };
        if seen != self.last {
            self.last = seen;
            return News::None;
        }
        let parsed = match (seen, read) {
            (Seen::Bytes(hash), Ok(_)) if hash == self.taken => {
                return match self.told.take() {
                    Some(_) => News::Mended,
                    None => News::None,
                };
            }
            (Seen::Bytes(hash), Ok(bytes)) => {
                parse_for(self.purpose, &bytes).map(|ids| (ids, hash))
            }
            (Seen::Fault(fault), _) => Err(anyhow!(fault)),
            (_, Err(error)) => Err(error),
        };
        match parsed {
            Ok((ids, hash)) => {
                self.ids = ids;
                self.taken = hash;
                self.told = None;
                News::List
            }
            Err(error) => {
                let fault = format!("{error:#}");
                if self.told.as_ref() == Some(&fault) {
                    return News::None;
                }
                self.told = Some(fault.clone());
                News::Fault(fault)
            }
        }
    }
}

fn parse_for(purpose: Purpose, bytes: &[u8]) -> anyhow::Result<Ids> {
    let ids = parse(bytes)?;
    // A file that was cut off must not let in all whom it kept out.
    ensure!(
        purpose != Purpose::Deny || !ids.is_empty() || bytes.contains(&b'#'),
        "it is empty; to deny nobody, leave a line with # in it"
    );
    Ok(ids)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let file = open_regular(path).context("it cannot be read; give a readable text file")?;
    let mut bytes = Vec::new();
    file.take(MAX_LEN + 1)
        .read_to_end(&mut bytes)
        .context("it cannot be read")?;
    ensure!(
        bytes.len() as u64 <= MAX_LEN,
        "it is longer than {MAX_LEN} bytes; give a shorter list"
    );
    Ok(bytes)
}

/// The ids in a text. What is no id is not quoted: it may be a file of secrets.
fn parse(bytes: &[u8]) -> anyhow::Result<Ids> {
    let mut ids = Ids::new();
    for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        let line = line.split(|byte| *byte == b'#').next().unwrap_or_default();
        let Ok(id) = std::str::from_utf8(line) else {
            bail!("line {number} is not UTF-8; give a text file");
        };
        let id = id.trim();
        if !id.is_empty() {
            ids.insert(id.parse().with_context(|| {
                format!(
                    "line {number} is not an endpoint id, as `iroh-hub spoke` says its own at start"
                )
            })?);
        }
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use data_encoding::BASE32_NOPAD;
    use iroh::SecretKey;
    use proptest::prelude::*;

    use super::*;

    fn id(n: u8) -> EndpointId {
        SecretKey::from_bytes(&[n; 32]).public()
    }

    fn text(ids: &[u8]) -> Vec<u8> {
        let lines = ids.iter().map(|n| format!("{}\n", id(*n)));
        lines.collect::<String>().into_bytes()
    }

    fn file(purpose: Purpose, ids: &[u8]) -> IdFile {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list");
        std::fs::write(&path, text(ids)).unwrap();
        IdFile::open(&path, purpose).unwrap()
    }

    fn fault(news: News) -> String {
        match news {
            News::Fault(fault) => fault,
            other => panic!("no fault: {other:?}"),
        }
    }

    fn has(file: &IdFile, ids: &[u8]) -> bool {
        *file.ids() == ids.iter().map(|n| id(*n)).collect()
    }

    #[test]
    fn ids_are_read_in_hex_and_base32_beside_comments_and_empty_lines() {
        let base32 = BASE32_NOPAD.encode(id(2).as_bytes());
        let text = format!(
            "# ours\r\n\n  {} # the one\r\n{base32}\n{}",
            id(1),
            base32.to_lowercase()
        );
        assert_eq!(parse(text.as_bytes()).unwrap(), Ids::from([id(1), id(2)]));
        assert!(parse(b"").unwrap().is_empty());
    }

    #[test]
    fn a_line_that_is_no_id_is_named_and_not_quoted() {
        let half = &id(2).to_string()[..40];
        for (line, words) in [
            ("a secret", "line 2 is not an endpoint id"),
            (half, "line 2 is not an endpoint id"),
            ("\u{fffd}", "line 2 is not an endpoint id"),
        ] {
            let text = format!("{}\n{line}\n", id(1));
            let error = format!("{:#}", parse(text.as_bytes()).unwrap_err());
            assert!(error.starts_with(words), "{error}");
            assert!(!error.contains(line), "{error}");
        }
        let error = parse(b"\n\n\xff").unwrap_err().to_string();
        assert!(error.starts_with("line 3 is not UTF-8"), "{error}");
    }

    #[test]
    fn a_change_counts_once_it_is_seen_twice() {
        let mut file = file(Purpose::Allow, &[1, 2]);
        // Half-written where a line ends, which cannot be told from a list.
        assert_eq!(file.see(Ok(text(&[1]))), News::None);
        assert_eq!(file.see(Ok(text(&[1, 2, 3]))), News::None);
        assert!(has(&file, &[1, 2]));
        assert_eq!(file.see(Ok(text(&[1, 2, 3]))), News::List);
        assert!(has(&file, &[1, 2, 3]));
        assert_eq!(file.see(Ok(text(&[1, 2, 3]))), News::None);
    }

    #[test]
    fn a_file_of_no_use_is_told_once_and_the_last_good_list_stands() {
        let mut file = file(Purpose::Allow, &[1]);
        let gone = || Err(anyhow!("gone"));
        assert_eq!(file.see(gone()), News::None);
        assert_eq!(fault(file.see(gone())), "gone");
        assert_eq!(file.see(gone()), News::None);
        let bad = || Ok(b"nobody\n".to_vec());
        assert_eq!(file.see(bad()), News::None);
        assert!(fault(file.see(bad())).contains("line 1"));
        assert_eq!(file.see(bad()), News::None);
        assert!(has(&file, &[1]));
        assert_eq!(file.see(Ok(text(&[1]))), News::None);
        assert_eq!(file.see(Ok(text(&[1]))), News::Mended);
        assert_eq!(file.see(Ok(text(&[1]))), News::None);
    }

    #[test]
    fn an_emptied_file_allows_nobody_and_lets_nobody_in_who_was_denied() {
        let mut allowed = file(Purpose::Allow, &[1]);
        allowed.see(Ok(Vec::new()));
        assert_eq!(allowed.see(Ok(Vec::new())), News::List);
        assert!(has(&allowed, &[]));
        let mut denied = file(Purpose::Deny, &[1]);
        denied.see(Ok(Vec::new()));
        assert!(fault(denied.see(Ok(Vec::new()))).contains("empty"));
        assert!(has(&denied, &[1]));
        denied.see(Ok(b"# nobody".to_vec()));
        assert_eq!(denied.see(Ok(b"# nobody".to_vec())), News::List);
        assert!(has(&denied, &[]));
    }

    #[test]
    fn what_is_no_file_of_bounded_size_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("long");
        let comment = vec![b'#'; usize::try_from(MAX_LEN).unwrap()];
        std::fs::write(&long, &comment).unwrap();
        assert!(read(&long).is_ok());
        std::fs::write(&long, [comment.as_slice(), b"#"].concat()).unwrap();
        let missing = dir.path().join("missing");
        for (path, words) in [
            (long.as_path(), "longer than"),
            (dir.path(), "regular file"),
            (&missing, "cannot be read"),
        ] {
            let error = IdFile::open(path, Purpose::Allow).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains(words), "{error}");
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_up_an_id(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            // An id of random bytes is as good as impossible.
            if let Ok(ids) = parse(&text) {
                prop_assert!(ids.is_empty());
            }
        }
    }
}
