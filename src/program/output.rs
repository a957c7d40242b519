//! Prints on stdout. Events one a line: at once when there is no more to print, many at a time when
//! there is.

use std::{
    io::{self, Write},
    time::Duration,
};

use iroh_hub::{Envelope, Event, Incoming, Listener, Missed, Source};
use n0_future::future::now_or_never;
use tokio::io::{AsyncWriteExt, Stdout};

use super::args::OutputFormat;

/// How much is gathered before it is written though there is more.
const ENOUGH: usize = 64 * 1024;

/// Lines for stdout.
#[derive(Debug)]
pub(super) struct Printer {
    out: Stdout,
    lines: Vec<u8>,
    /// How much of `lines` is written: who gives up waiting for a flush can flush again.
    written: usize,
}

impl Printer {
    pub(super) fn new() -> Self {
        Self {
            out: tokio::io::stdout(),
            lines: Vec::new(),
            written: 0,
        }
    }

    /// The listener's next item; what was printed before is written out before it is waited for.
    pub(super) async fn next(&mut self, listener: &mut Listener) -> io::Result<Option<Incoming>> {
        if self.lines.len() < ENOUGH {
            // Asked outside of the task's budget, or one ready item in a hundred would seem not to be.
            let ready = now_or_never(tokio::task::unconstrained(listener.recv()));
            if let Some(item) = ready {
                return Ok(item);
            }
        }
        self.flush().await?;
        Ok(listener.recv().await)
    }

    /// Writes out what was printed. Cancel safe: nothing is written twice.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        while let Some(rest) = self
            .lines
            .get(self.written..)
            .filter(|rest| !rest.is_empty())
        {
            match self.out.write(rest).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => self.written += written,
            }
        }
        self.lines.clear();
        self.written = 0;
        self.out.flush().await
    }

    /// Where lines are gathered.
    pub(super) fn lines(&mut self) -> &mut Vec<u8> {
        &mut self.lines
    }

    /// An event as a hub prints it.
    pub(super) fn sent(&mut self, event: &Event) {
        let Source::Spoke(id) = event.source else {
            return;
        };
        let lines = &mut self.lines;
        put(lines, b"{\"from\":");
        put_json(lines, &id.endpoint.to_string());
        put(lines, b",\"spoke\":");
        put_json(lines, &id.number);
        put_envelope(lines, &event.envelope);
        put(lines, b"}\n");
    }

    /// A hole that a slow stdout made.
    pub(super) fn lagged(&mut self, events: u64) {
        put_lagged(&mut self.lines, events);
    }
}

/// Prints a text as a whole. That its reader has enough of it is no error.
pub(super) fn print_text(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let printed = writeln!(out, "{text}").and_then(|()| out.flush());
    match printed {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed,
    }
}

/// An event as a spoke prints it.
pub(super) fn put_heard(lines: &mut Vec<u8>, event: &Event, format: OutputFormat) {
    match format {
        OutputFormat::Json => {
            put(lines, b"{\"position\":");
            put_json(lines, &event.position);
            put_envelope(lines, &event.envelope);
            put(lines, b",\"via\":");
            put_json(lines, &event.via);
            if event.targeted {
                put(lines, b",\"targeted\":true");
            }
            put(lines, b"}\n");
        }
        OutputFormat::Payload => {
            match event.envelope.payload::<String>() {
                Ok(text) => put(lines, text.as_bytes()),
                Err(_) => put_payload(lines, &event.envelope),
            }
            put(lines, b"\n");
        }
    }
}

/// A hole in what the hub broadcast.
pub(super) fn put_missed(lines: &mut Vec<u8>, missed: &Missed) {
    put(lines, b"{\"missed\":{\"from\":");
    put_json(lines, &missed.from);
    put(lines, b",\"to\":");
    put_json(lines, &missed.to);
    put(lines, b"}}\n");
}

/// A hole that a slow stdout made.
pub(super) fn put_lagged(lines: &mut Vec<u8>, events: u64) {
    put(lines, b"{\"lagged\":{\"events\":");
    put_json(lines, &events);
    put(lines, b"}}\n");
}

/// There is no link; what the hub broadcasts meanwhile comes later.
pub(super) fn put_reconnecting(lines: &mut Vec<u8>, attempt: u32, after: Duration, why: &str) {
    put(lines, b"{\"status\":\"reconnecting\",\"attempt\":");
    put_json(lines, &attempt);
    put(lines, b",\"after\":");
    put_json(lines, &after.as_secs_f64());
    put(lines, b",\"closed\":");
    put_json(lines, &why);
    put(lines, b"}\n");
}

/// Everything is here up to where the hub was when the link was made again.
pub(super) fn put_recovered(lines: &mut Vec<u8>, wholly: bool) {
    put(lines, b"{\"status\":\"recovered\",\"wholly\":");
    put_json(lines, &wholly);
    put(lines, b"}\n");
}

/// There is a link again.
pub(super) fn put_connected(lines: &mut Vec<u8>) {
    put(lines, b"{\"status\":\"connected\"}\n");
}

/// A receipt, for the file of receipts.
pub(super) fn put_receipt(lines: &mut Vec<u8>, position: &iroh_hub::Position, event: &Envelope) {
    put(lines, b"{\"position\":");
    put_json(lines, position);
    put_envelope(lines, event);
    put(lines, b"}\n");
}

fn put(lines: &mut Vec<u8>, bytes: &[u8]) {
    lines.extend_from_slice(bytes);
}

/// For values that are JSON whatever they hold; writing to memory does not fail.
fn put_json(lines: &mut Vec<u8>, value: &impl serde::Serialize) {
    let _ = serde_json::to_writer(lines, value);
}

/// `,"type":…,"id":…,"payload":…`
fn put_envelope(lines: &mut Vec<u8>, event: &Envelope) {
    put(lines, b",\"type\":");
    put_json(lines, &event.event_type());
    put(lines, b",\"id\":");
    put_json(lines, &event.id());
    put(lines, b",\"payload\":");
    put_payload(lines, event);
}

/// The payload on one line. JSON text has bare line breaks only where a space says the same.
fn put_payload(lines: &mut Vec<u8>, event: &Envelope) {
    let begin = lines.len();
    put(lines, event.payload_json().as_bytes());
    for byte in lines.iter_mut().skip(begin) {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_is_one_line_whatever_the_payload() {
        let payload = "{\n  \"a\": \"x\\ny\",\r\n  \"b\": []\n}";
        let event = Envelope::from_json("t\n", "i\"d", payload).unwrap();
        let position = iroh_hub::Position::new(iroh_hub::Epoch::from_u64(255), 7);
        let mut lines = Vec::new();
        put_receipt(&mut lines, &position, &event);
        let line = String::from_utf8(lines).unwrap();
        assert_eq!(line.find('\n'), Some(line.len() - 1));
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            value,
            serde_json::json!({
                "position": {"epoch": "00000000000000ff", "offset": 7},
                "type": "t\n", "id": "i\"d", "payload": {"a": "x\ny", "b": []}
            })
        );
    }
}
