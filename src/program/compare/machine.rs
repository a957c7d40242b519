//! What the figures were measured on.

use std::thread::available_parallelism;

/// The machine, the program and how it was called.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) cores: usize,
    /// Where the system tells.
    pub(crate) cpu: Option<String>,
    pub(crate) os: String,
    pub(crate) version: &'static str,
    pub(crate) optimized: bool,
    pub(crate) command: String,
}

impl Machine {
    /// This machine, for this process.
    pub(crate) fn here() -> Self {
        Self {
            cores: available_parallelism().map_or(1, Into::into),
            cpu: cpu_model(),
            os: os(),
            version: env!("CARGO_PKG_VERSION"),
            optimized: !cfg!(debug_assertions),
            command: command(std::env::args_os().map(|arg| arg.to_string_lossy().into_owned())),
        }
    }

    /// As names and values for a reader.
    pub(crate) fn facts(&self) -> Vec<(&'static str, String)> {
        let build = if self.optimized {
            "release build"
        } else {
            "debug build: figures are far too slow"
        };
        vec![
            ("Cores", self.cores.to_string()),
            ("CPU", self.cpu.clone().unwrap_or_else(|| "unknown".into())),
            ("System", self.os.clone()),
            ("iroh-hub", format!("{} ({build})", self.version)),
            ("Command", self.command.clone()),
        ]
    }
}

/// The command as one could type it again; the program by its name alone.
fn command(args: impl Iterator<Item = String>) -> String {
    let quoted = args.skip(1).map(|arg| {
        let plain = !arg.is_empty()
            && arg
                .chars()
                .all(|c| c.is_alphanumeric() || "-_=+,./:@%".contains(c));
        if plain {
            arg
        } else {
            format!("'{}'", arg.replace('\'', r"'\''"))
        }
    });
    std::iter::once("iroh-hub".to_owned())
        .chain(quoted)
        .collect::<Vec<_>>()
        .join(" ")
}

fn cpu_model() -> Option<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let (_, model) = info
        .lines()
        .find(|line| line.starts_with("model name"))?
        .split_once(':')?;
    Some(model.trim().to_owned())
}

fn os() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{} {} {}",
        std::env::consts::OS,
        kernel.trim(),
        std::env::consts::ARCH
    )
    .replace("  ", " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_can_be_typed_again() {
        let args = [
            "/some/where/iroh-hub",
            "compare",
            "--input",
            "a b's.txt",
            "--spokes",
            "10,50",
        ];
        assert_eq!(
            command(args.into_iter().map(str::to_owned)),
            r"iroh-hub compare --input 'a b'\''s.txt' --spokes 10,50"
        );
    }
}
