//! Lines for people, on stderr.

use std::{
    fmt::{self, Write as _},
    io::Write as _,
};

/// Writes one line to stderr. What peers said may be part of it, so control characters are shown, not
/// obeyed. That nobody reads stderr is no error.
pub(super) fn say(words: fmt::Arguments<'_>) {
    let mut line = Printable(String::new());
    let _ = line.write_fmt(words);
    line.0.push('\n');
    let _ = std::io::stderr().write_all(line.0.as_bytes());
}

struct Printable(String);

impl fmt::Write for Printable {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for c in s.chars() {
            if c.is_control() {
                self.0.extend(c.escape_default());
            } else {
                self.0.push(c);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_says_cannot_steer_the_terminal() {
        let words = "a\n\x1b[2Jé";
        let mut line = Printable(String::new());
        write!(line, "it said: {words}").unwrap();
        assert_eq!(line.0, "it said: a\\n\\u{1b}[2Jé");
    }
}
