//! What a process has used, by its own account, and the clock that the processes of one machine share.

use serde::{Deserialize, Serialize};

/// What one child process has used since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// CPU time of all threads, user and system.
    pub(crate) cpu_us: u64,
    /// Bytes that its endpoints gave to their sockets.
    pub(crate) bytes_sent: u64,
    /// The most memory it held; only Linux tells.
    pub(crate) peak_bytes: Option<u64>,
}

impl Usage {
    /// This process's CPU time and memory, beside what its endpoints count.
    pub(crate) fn now(bytes_sent: u64) -> Self {
        Self {
            cpu_us: cpu_us(),
            bytes_sent,
            peak_bytes: peak_bytes(),
        }
    }

    /// What was used between two accounts. A peak has no difference: the later one stands.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            cpu_us: self.cpu_us.saturating_sub(earlier.cpu_us),
            bytes_sent: self.bytes_sent.saturating_sub(earlier.bytes_sent),
            peak_bytes: self.peak_bytes,
        }
    }
}

/// The monotonic clock in nanoseconds. On Unix systems it is one clock for all processes of the machine, so a time
/// taken in the hub's process may be compared with one taken in the spokes'.
#[cfg(unix)]
pub(crate) fn clock_ns() -> u64 {
    nanoseconds(rustix::time::ClockId::Monotonic)
}

/// CPU time of this process, from the kernel's clock for it (Linux, macOS and the BSDs have one).
#[cfg(unix)]
fn cpu_us() -> u64 {
    nanoseconds(rustix::time::ClockId::ProcessCPUTime) / 1_000
}

#[cfg(unix)]
fn nanoseconds(clock: rustix::time::ClockId) -> u64 {
    let time = rustix::time::clock_gettime(clock);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// `VmHWM` of `/proc/self/status`.
#[cfg(unix)]
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn work_costs_cpu_time_and_the_clock_goes_on() {
        let (cpu, clock) = (Usage::now(0).cpu_us, clock_ns());
        let mut hash = blake3::hash(b"work");
        while Usage::now(0).cpu_us < cpu + 1_000 {
            hash = blake3::hash(hash.as_bytes());
        }
        assert!(clock_ns() > clock);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn linux_tells_the_peak_memory() {
        assert!(Usage::now(0).peak_bytes > Some(100_000));
    }
}
