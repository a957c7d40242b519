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
    /// Processes that wanted a core in the minute before, where the system tells.
    pub(crate) load: Option<f64>,
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
            load: load(),
            command: command(std::env::args_os().map(|arg| arg.to_string_lossy().into_owned())),
        }
    }

    /// What makes the figures doubtful.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.optimized {
            warnings.push("this is a debug build, its figures are far too slow".to_owned());
        }
        if let Some(load) = self.load
            && load > self.cores as f64 / 2.0
        {
            warnings.push(format!(
                "the machine was busy with other things (load {load:.1} on {} cores), figures are too slow",
                self.cores
            ));
        }
        warnings
    }

    /// As names and values for a reader.
    pub(crate) fn facts(&self) -> Vec<(&'static str, String)> {
        let build = if self.optimized {
            "release build"
        } else {
            "debug build"
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

fn load() -> Option<f64> {
    let loads = std::fs::read_to_string("/proc/loadavg").ok()?;
    loads.split_whitespace().next()?.parse().ok()
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
