//! What the events carry: the lines of a file, or filling of a size.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use super::probe::{Probe, overhead};

/// Lines are held in memory by the hub's process, so that reading them is not measured.
const MAX_FILE_BYTES: u64 = 256 * 1024 * 1024;

/// Where events come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Input {
    /// Payloads of exactly this many bytes.
    Size(u64),
    /// The first `limit` lines of a file.
    Lines { path: PathBuf, limit: usize },
}

/// Bodies, ready to send.
#[derive(Debug)]
pub(crate) enum Bodies {
    Size { size: usize, filling: String },
    Lines(Vec<String>),
}

impl Input {
    /// Reads or makes the bodies.
    pub(crate) fn load(&self) -> anyhow::Result<Bodies> {
        Ok(match self {
            Self::Size(size) => {
                let size = usize::try_from(*size)?;
                Bodies::Size {
                    size,
                    filling: "x".repeat(size),
                }
            }
            Self::Lines { path, limit } => Bodies::Lines(read_lines(path, *limit)?),
        })
    }
}

impl Bodies {
    /// The payload of one event. A file that is shorter than the phase starts again.
    pub(crate) fn probe(&self, round: u32, index: u64, sent_ns: u64) -> Probe<'_> {
        let body = match self {
            Self::Size { size, filling } => {
                let room = size.saturating_sub(overhead(round, index, sent_ns));
                filling.get(..room).unwrap_or_default()
            }
            Self::Lines(lines) => {
                let line = index as usize % lines.len().max(1);
                lines.get(line).map_or("", String::as_str)
            }
        };
        Probe(round, index, sent_ns, body)
    }
}

/// The first `limit` lines of a text file, without their line ends.
pub(crate) fn read_lines(path: &Path, limit: usize) -> anyhow::Result<Vec<String>> {
    let file = File::open(path)
        .with_context(|| format!("cannot open {}; give a text file", path.display()))?;
    let mut lines = Vec::new();
    let mut bytes = 0;
    for line in BufReader::new(file).lines().take(limit) {
        let line = line.with_context(|| {
            format!(
                "cannot read line {} of {} as UTF-8",
                lines.len() + 1,
                path.display()
            )
        })?;
        bytes += line.len() as u64;
        if bytes > MAX_FILE_BYTES {
            bail!(
                "{} has more than {} in its first {} lines; take fewer with --events",
                path.display(),
                super::stats::bytes(MAX_FILE_BYTES as f64),
                lines.len(),
            );
        }
        lines.push(line);
    }
    ensure!(!lines.is_empty(), "{} has no line to send", path.display());
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn generated_payloads_have_exactly_their_size() {
        for size in [48, 64, 1024, 16 * 1024] {
            let bodies = Input::Size(size).load().expect("loads");
            for (index, at) in [(0, 5), (123_456, u64::MAX)] {
                let text = serde_json::to_string(&bodies.probe(1, index, at)).expect("encodes");
                assert_eq!(text.len() as u64, size);
            }
        }
    }

    #[test]
    fn a_file_gives_its_lines_and_starts_again() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        write!(file, "one\r\ntwo\n\nfour").expect("written");
        let path = file.path().to_owned();
        let bodies = Input::Lines {
            path: path.clone(),
            limit: 10,
        }
        .load()
        .expect("loads");
        let body = |index| bodies.probe(0, index, 0).3;
        assert_eq!(
            [body(0), body(1), body(2), body(3), body(4)],
            ["one", "two", "", "four", "one"]
        );
        assert_eq!(read_lines(&path, 2).expect("reads").len(), 2);
    }

    #[test]
    fn a_file_without_text_is_refused() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        assert!(read_lines(file.path(), 5).is_err());
        file.write_all(b"ok\n\xff\xfe\n").expect("written");
        let error = read_lines(file.path(), 5)
            .expect_err("not UTF-8")
            .to_string();
        assert!(error.contains("line 2"), "{error}");
        assert!(read_lines(Path::new("/does/not/exist"), 5).is_err());
    }
}
