//! Prints events one by one and saves the position behind each, so that a kill at any moment costs nothing
//! and repeats one line at most: a line is written whole before its position is saved, and saved before
//! the next one is written.
//!
//! For this the calls to the system are made one after the other on a thread of their own.

use std::{
    io::{self, Write},
    time::Duration,
};

use iroh_hub::{Incoming, Listener};
use n0_future::future::now_or_never;
use tokio::{runtime::Handle, time::timeout};

use super::{
    position::PositionFile,
    stop::Stop,
    telling::{Telling, position_behind},
};

/// How long there must be nothing to print before what was saved is made safe from a loss of power.
const QUIET: Duration = Duration::from_millis(200);

/// Why nothing more is printed.
#[derive(Debug)]
pub(super) enum Ended {
    /// The spoke has ended, and all that it got is printed.
    All,
    /// As many events as were wanted are, or the program is to end.
    Enough,
    /// stdout cannot be written.
    Stdout(io::Error),
    /// The position cannot be saved.
    Position(io::Error),
}

/// Prints until the end. Blocks: not for a thread of the runtime.
pub(super) fn print(
    mut heard: Listener,
    mut file: PositionFile,
    mut telling: Telling,
    stop: &Stop,
    runtime: &Handle,
) -> Ended {
    let ended = print_all(&mut heard, &mut file, &mut telling, stop, runtime);
    match (ended, file.sync()) {
        (Ended::All | Ended::Enough, Err(error)) => Ended::Position(error),
        (ended, _) => ended,
    }
}

fn print_all(
    heard: &mut Listener,
    file: &mut PositionFile,
    telling: &mut Telling,
    stop: &Stop,
    runtime: &Handle,
) -> Ended {
    let mut out = io::stdout().lock();
    let mut line = Vec::new();
    while !stop.is_requested() {
        let item = match next(heard, file, stop, runtime) {
            Ok(Next::Item(item)) => item,
            Ok(Next::End) => return Ended::All,
            Ok(Next::Stop) => return Ended::Enough,
            Err(error) => return Ended::Position(error),
        };
        line.clear();
        let enough = telling.tell(&item, &mut line);
        if !line.is_empty()
            && let Err(error) = out.write_all(&line).and_then(|()| out.flush())
        {
            return Ended::Stdout(error);
        }
        if let Some(position) = position_behind(&item)
            && let Err(error) = file.save(position)
        {
            return Ended::Position(error);
        }
        if enough {
            return Ended::Enough;
        }
    }
    Ended::Enough
}

enum Next {
    Item(Incoming),
    End,
    Stop,
}

fn next(
    heard: &mut Listener,
    file: &mut PositionFile,
    stop: &Stop,
    runtime: &Handle,
) -> io::Result<Next> {
    let ended = |item: Option<Incoming>| item.map_or(Next::End, Next::Item);
    if let Some(item) = now_or_never(heard.recv()) {
        return Ok(ended(item));
    }
    let mut wait = |quiet: Duration| {
        runtime.block_on(async {
            tokio::select! {
                item = timeout(quiet, heard.recv()) => item.ok().map(ended),
                () = stop.requested() => Some(Next::Stop),
            }
        })
    };
    if let Some(next) = wait(QUIET) {
        return Ok(next);
    }
    file.sync()?;
    loop {
        if let Some(next) = wait(Duration::from_secs(3600)) {
            return Ok(next);
        }
    }
}
