//! Ends the program when it is asked to: the first signal in order, the second at once.

use std::io;

use tokio_util::sync::CancellationToken;

/// Whether the program was asked to end. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Stop(CancellationToken);

impl Stop {
    /// Listens to Ctrl-C and, where there is one, SIGTERM.
    pub(super) fn on_signals() -> io::Result<Self> {
        let stop = Self(CancellationToken::new());
        let mut signals = Signals::new()?;
        let token = stop.0.clone();
        tokio::spawn(async move {
            signals.next().await;
            token.cancel();
            let code = signals.next().await;
            std::process::exit(code);
        });
        Ok(stop)
    }

    pub(super) async fn requested(&self) {
        self.0.cancelled().await;
    }

    pub(super) fn is_requested(&self) -> bool {
        self.0.is_cancelled()
    }
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for a signal, and says with which code one that ends the program at once is reported.
    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.interrupt.recv() => 130,
            _ = self.terminate.recv() => 143,
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) -> i32 {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        130
    }
}
