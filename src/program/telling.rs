//! What a spoke says of each thing that it hears: a line on stdout, a word on stderr, or nothing.

use iroh_hub::{Closed, Event, Incoming, Pattern, Position, SpokeStatus};

use super::{
    args::OutputFormat,
    output::{put_connected, put_heard, put_lagged, put_missed, put_reconnecting, put_recovered},
    say::say,
};

#[derive(Debug)]
pub(super) struct Telling {
    format: OutputFormat,
    filter: Pattern,
    /// How many more events are wanted.
    count: Option<u64>,
    /// Whether there was a link, and whether there is none now.
    linked: bool,
    away: bool,
}

impl Telling {
    pub(super) fn new(format: OutputFormat, filter: Pattern, count: Option<u64>) -> Self {
        Self {
            format,
            filter,
            count,
            linked: false,
            away: false,
        }
    }

    /// Puts the item's line into `lines`, if it has one. Says whether that was the last that is wanted.
    pub(super) fn tell(&mut self, item: &Incoming, lines: &mut Vec<u8>) -> bool {
        match item {
            Incoming::Event(event) => return self.event(event, lines),
            Incoming::Missed(missed) => {
                say(format_args!(
                    "this spoke {missed}: the hub no longer has them"
                ));
                if self.is_json() {
                    put_missed(lines, missed);
                }
            }
            Incoming::Lagged(lagged) => {
                let events = lagged.events;
                say(format_args!(
                    "stdout was too slow; {events} events are not printed"
                ));
                if self.is_json() {
                    put_lagged(lines, events);
                }
            }
            Incoming::Status(status) => self.status(status, lines),
            _ => {}
        }
        false
    }

    fn event(&mut self, event: &Event, lines: &mut Vec<u8>) -> bool {
        if !self.filter.matches(event.envelope.event_type()) {
            return false;
        }
        put_heard(lines, event, self.format);
        if let Some(count) = &mut self.count {
            *count = count.saturating_sub(1);
        }
        self.count == Some(0)
    }

    fn status(&mut self, status: &SpokeStatus, lines: &mut Vec<u8>) {
        match status {
            SpokeStatus::Connected { .. } => {
                if std::mem::take(&mut self.away) {
                    say(format_args!("there is a link to the hub again"));
                    if self.is_json() {
                        put_connected(lines);
                    }
                }
                self.linked = true;
            }
            SpokeStatus::Reconnecting {
                attempt,
                after,
                closed,
            } => {
                if !std::mem::replace(&mut self.away, true) {
                    self.say_away(closed);
                }
                if self.is_json() {
                    put_reconnecting(lines, *attempt, *after, &closed.to_string());
                }
            }
            SpokeStatus::Recovered { wholly } if self.is_json() => put_recovered(lines, *wholly),
            _ => {}
        }
    }

    fn say_away(&self, closed: &Closed) {
        if self.linked {
            say(format_args!(
                "the link to the hub is lost ({closed}); this spoke tries to come back"
            ));
        } else {
            say(format_args!(
                "no link to the hub yet ({closed}); this spoke goes on trying"
            ));
        }
    }

    fn is_json(&self) -> bool {
        self.format == OutputFormat::Json
    }
}

/// Where to go on when this item was handled, if that is news.
pub(super) fn position_behind(item: &Incoming) -> Option<Position> {
    match item {
        Incoming::Event(event) => event.position.map(Position::next),
        Incoming::Missed(missed) => Some(missed.to),
        Incoming::Status(SpokeStatus::Connected { position }) => *position,
        _ => None,
    }
}
