//! The link of a native spoke, in whatever state it is: waited for, in the making, or up.

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use iroh::{Endpoint, EndpointAddr, endpoint::Connection};
use n0_error::e;
use tokio::{
    task::JoinError,
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::Instrument;

use super::{
    ConnectError,
    hands::{self, Dialed, Greeted},
    shared::Shared,
    writer,
};
use crate::{
    link_io::{FrameReader, LinkError},
    protocol::Protocol,
    wire::native::{Hello, Welcome},
};

/// How long a hub that no longer reads may take to say the rest of what it has to say.
const LAST_WORDS: Duration = Duration::from_secs(10);

type Attempt<T> = Pin<Box<dyn Future<Output = Result<T, ConnectError>> + Send>>;

pub(super) enum Link {
    /// There is none; the next attempt is due then.
    Waiting(Instant),
    Dialing(Attempt<Dialed>),
    Greeting(Attempt<(Greeted, Welcome)>),
    Up(Box<Up>),
}

/// A link that the hub has welcomed.
pub(super) struct Up {
    connection: Connection,
    reader: FrameReader,
    /// None once it has ended.
    writer: Option<AbortOnDropHandle<Result<(), LinkError>>>,
    /// The writer failed: why, and how long the reader may go on.
    broken: Option<(LinkError, Instant)>,
}

/// What became of the link.
#[allow(clippy::large_enum_variant, reason = "moved once, where it is made")]
pub(super) enum Heard {
    /// The next attempt is due.
    Due,
    Dialed(Dialed),
    Greeted(Greeted, Welcome),
    /// The attempt failed.
    Failed(ConnectError),
    Frame(Bytes),
    /// The hub finished the stream.
    Goodbye,
    /// Everything is written and the stream finished: this spoke has said goodbye.
    Finished,
    /// The link broke.
    Broke(LinkError),
}

impl Link {
    /// Begins an attempt, which takes until `deadline` at most.
    pub(super) fn dial(endpoint: Endpoint, hub: EndpointAddr, deadline: Instant) -> Self {
        let dialing = hands::dial(endpoint, hub, Protocol::Native);
        Self::Dialing(Box::pin(within(deadline, dialing)))
    }

    pub(super) fn greet(dialed: Dialed, hello: Hello, shared: &Shared, deadline: Instant) -> Self {
        let greeting = hands::greet(dialed, hello, shared.config.limits.clone());
        Self::Greeting(Box::pin(within(deadline, greeting)))
    }

    /// `finish` asks the writer to end when the hub has everything.
    pub(super) fn up(greeted: Greeted, shared: Arc<Shared>, finish: CancellationToken) -> Self {
        let Greeted {
            connection,
            send,
            reader,
        } = greeted;
        let writing = writer::write(send, shared, finish).in_current_span();
        Self::Up(Box::new(Up {
            connection,
            reader,
            writer: Some(AbortOnDropHandle::new(tokio::spawn(writing))),
            broken: None,
        }))
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self, Self::Up(_))
    }

    /// Waits for the next thing to happen. Frames only if it `reads`.
    ///
    /// Cancel safe.
    pub(super) async fn next(&mut self, reads: bool) -> Heard {
        match self {
            Self::Waiting(until) => {
                sleep_until(*until).await;
                Heard::Due
            }
            Self::Dialing(attempt) => match attempt.await {
                Ok(dialed) => Heard::Dialed(dialed),
                Err(error) => Heard::Failed(error),
            },
            Self::Greeting(attempt) => match attempt.await {
                Ok((greeted, welcome)) => Heard::Greeted(greeted, welcome),
                Err(error) => Heard::Failed(error),
            },
            Self::Up(up) => up.next(reads).await,
        }
    }

    /// The next frame, if it has arrived whole.
    pub(super) fn buffered(&mut self) -> Result<Option<Bytes>, LinkError> {
        match self {
            Self::Up(up) => up.reader.buffered(),
            _ => Ok(None),
        }
    }

    /// The connection of a link that is up.
    pub(super) fn connection(&self) -> Option<&Connection> {
        match self {
            Self::Up(up) => Some(&up.connection),
            _ => None,
        }
    }

    /// Ends whatever there is, joining the writer.
    pub(super) async fn end(&mut self) {
        let link = std::mem::replace(self, Self::Waiting(Instant::now()));
        if let Self::Up(up) = link
            && let Some(writer) = up.writer
        {
            writer.abort();
            // It ends at its next step, and takes no more out of the outbox.
            let _ = writer.await;
        }
    }
}

impl Up {
    async fn next(&mut self, reads: bool) -> Heard {
        loop {
            let late = self.broken.as_ref().map(|(_, late)| *late);
            tokio::select! {
                frame = self.reader.next(), if reads => return match frame {
                    Ok(Some(frame)) => Heard::Frame(frame),
                    Ok(None) => Heard::Goodbye,
                    Err(error) => Heard::Broke(error),
                },
                // Who reads sees the end by that.
                error = self.connection.closed(), if !reads => return Heard::Broke(error.into()),
                written = ended(&mut self.writer) => {
                    self.writer = None;
                    let error = match written {
                        Ok(Ok(())) => return Heard::Finished,
                        Ok(Err(error)) => error,
                        Err(_) => LinkError::internal("the writer of the link failed"),
                    };
                    // The hub no longer reads, but what it wrote before is still to be taken: the
                    // reader sees the end of it.
                    self.broken = Some((error, Instant::now() + LAST_WORDS));
                }
                () = expired(late) => if let Some((error, _)) = self.broken.take() {
                    return Heard::Broke(error);
                },
            }
        }
    }
}

async fn ended<T>(task: &mut Option<AbortOnDropHandle<T>>) -> Result<T, JoinError> {
    match task {
        Some(task) => task.await,
        None => std::future::pending().await,
    }
}

async fn expired(late: Option<Instant>) {
    match late {
        Some(late) => sleep_until(late).await,
        None => std::future::pending().await,
    }
}

async fn within<T>(
    deadline: Instant,
    attempt: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    match timeout_at(deadline, attempt).await {
        Ok(result) => result,
        Err(_) => Err(e!(ConnectError::TimedOut)),
    }
}
