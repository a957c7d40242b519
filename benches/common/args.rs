//! How a bench of its own harness was called, and the runtime that it runs on.

use tokio::runtime::Runtime;

/// Whether this is to show that the bench works and nothing else: always, unless `cargo bench` called it.
pub fn is_smoke() -> bool {
    let has = |flag| std::env::args().any(|arg| arg == flag);
    !has("--bench") || has("--test")
}

/// The cases to run: those whose names contain one of these, and all if there are none.
#[derive(Debug)]
pub struct Filter(Vec<String>);

impl Filter {
    /// Takes every case.
    pub const ALL: Self = Self(Vec::new());

    /// The arguments that are no flags.
    pub fn from_args() -> Self {
        let args = std::env::args().skip(1);
        Self(args.filter(|arg| !arg.starts_with('-')).collect())
    }

    /// Whether a case is to run.
    pub fn takes(&self, case: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|part| case.contains(part.as_str()))
    }
}

/// Two workers, whatever the machine has.
///
/// # Errors
///
/// If the system has no threads to give.
pub fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
}
