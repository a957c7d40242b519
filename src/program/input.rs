//! Reads lines that may be anything: too long, not UTF-8, endless. Memory stays bounded.

use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader, Stdin};

/// How much is read from stdin at once.
const BUFFER: usize = 256 * 1024;

/// Begins to read stdin, line by line, once it may be read: a program in the background that reads
/// from its terminal would be stopped.
pub(super) async fn stdin(limit: usize) -> Lines<BufReader<Stdin>> {
    #[cfg(unix)]
    while is_in_background() {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    Lines::new(BufReader::with_capacity(BUFFER, tokio::io::stdin()), limit)
}

#[cfg(unix)]
fn is_in_background() -> bool {
    // Fails if stdin is no terminal.
    rustix::termios::tcgetpgrp(std::io::stdin())
        .is_ok_and(|foreground| foreground != rustix::process::getpgrp())
}

/// What stands between two newlines.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Line<'a> {
    Text(&'a str),
    /// Longer than the limit, passed over without being held.
    TooLong,
    NotUtf8,
}

/// The lines of `reader`, numbered from 1.
#[derive(Debug)]
pub(super) struct Lines<R> {
    reader: R,
    limit: usize,
    number: u64,
    line: Vec<u8>,
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    /// A line has at most `limit` bytes.
    pub(super) fn new(reader: R, limit: usize) -> Self {
        Self {
            reader,
            limit,
            number: 0,
            line: Vec::new(),
        }
    }

    /// The number of the line that was read last.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The next line without its newline; the last one may lack it. Not cancel safe.
    pub(super) async fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        self.line.clear();
        let mut begun = false;
        let mut too_long = false;
        loop {
            let bytes = self.reader.fill_buf().await?;
            if bytes.is_empty() {
                if !begun {
                    return Ok(None);
                }
                break;
            }
            begun = true;
            let newline = bytes.iter().position(|byte| *byte == b'\n');
            let piece = bytes.get(..newline.unwrap_or(bytes.len())).unwrap_or(bytes);
            if too_long || self.line.len() + piece.len() > self.limit {
                too_long = true;
                self.line = Vec::new();
            } else {
                self.line.extend_from_slice(piece);
            }
            let taken = newline.map_or(bytes.len(), |at| at + 1);
            self.reader.consume(taken);
            if newline.is_some() {
                break;
            }
        }
        self.number += 1;
        Ok(Some(if too_long {
            Line::TooLong
        } else {
            std::str::from_utf8(&self.line).map_or(Line::NotUtf8, Line::Text)
        }))
    }
}

#[cfg(test)]
mod tests {
    use n0_future::future::now_or_never;

    use super::*;

    /// Reads with a small buffer, so that lines span several.
    async fn all(bytes: &[u8], limit: usize) -> Vec<(u64, Option<String>)> {
        let mut lines = Lines::new(BufReader::with_capacity(3, bytes), limit);
        let mut all = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            let text = match line {
                Line::Text(text) => Some(text.to_owned()),
                Line::TooLong | Line::NotUtf8 => None,
            };
            all.push((lines.number(), text));
        }
        all
    }

    #[tokio::test]
    async fn lines_are_numbered_and_kept_as_they_are() {
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(all(b"", 9).await, []);
        assert_eq!(all(b"\n", 9).await, [(1, text(""))]);
        assert_eq!(
            all(b"one\n\n three \r\nfour", 9).await,
            [
                (1, text("one")),
                (2, text("")),
                (3, text(" three \r")),
                (4, text("four"))
            ]
        );
    }

    #[tokio::test]
    async fn a_bad_line_costs_itself_only() {
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(
            all(b"abcd\nabcde\nb\xffd\nlast", 4).await,
            [(1, text("abcd")), (2, None), (3, None), (4, text("last"))]
        );
        let mut lines = Lines::new(BufReader::new(b"abcdefghijkl".as_slice()), 4);
        assert_eq!(lines.next().await.unwrap(), Some(Line::TooLong));
        assert_eq!(lines.line.capacity(), 0);
    }
    fn real() -> Vec<(&'static str, Vec<u8>)> {
        // How much is read at once, and how long a line may be, come first.
        vec![
            ("lines", b"\x03\x20one\n\n three \r\nfour".to_vec()),
            ("bad-long", b"\x02\x04abcd\nabcde\nb\xffd\nlast".to_vec()),
        ]
    }

    crate::fuzz::decoder!(stdin_lines, real(), |bytes| {
        let Some(([at_once, limit], bytes)) = bytes.split_first_chunk() else {
            return;
        };
        let limit = usize::from(*limit);
        let reader = BufReader::with_capacity(1 + usize::from(*at_once), bytes);
        let mut lines = Lines::new(reader, limit);
        let mut expected = bytes.split(|byte| *byte == b'\n').collect::<Vec<_>>();
        if expected.last().is_some_and(|last| last.is_empty()) {
            expected.pop();
        }
        for expected in expected {
            // The bytes are all there, so it never waits.
            let line = now_or_never(lines.next()).unwrap().unwrap().unwrap();
            match line {
                Line::Text(text) => assert_eq!(text.as_bytes(), expected),
                Line::TooLong => assert!(expected.len() > limit),
                Line::NotUtf8 => assert!(std::str::from_utf8(expected).is_err()),
            }
            assert!(expected.len() <= limit || lines.line.capacity() == 0);
        }
        assert_eq!(now_or_never(lines.next()).unwrap().unwrap(), None);
    });
}
