//! What a process grows by per spoke. Memory that was freed is not always given back, so each figure takes a process
//! of its own: this program, started again.

use std::{process::Command, time::Duration};

use tokio::time::sleep;

use crate::{
    common::Result,
    process::{Layout, Process},
};

const FLAG: &str = "--memory";

/// What the child is to answer.
pub(crate) struct Asked {
    layout: Layout,
    spokes: usize,
}

impl Asked {
    /// If this is a child.
    pub(crate) fn from_args() -> Option<Self> {
        let mut args = std::env::args().skip_while(|arg| arg != FLAG).skip(1);
        let name = args.next()?;
        let layout = Layout::ALL
            .into_iter()
            .find(|layout| layout.name() == name)?;
        let spokes = args.next()?.parse().ok()?;
        Some(Self { layout, spokes })
    }

    /// Prints how many bytes it grew by.
    pub(crate) async fn answer(self) -> Result<()> {
        let mut process = Process::start(self.layout, self.spokes).await?;
        let before = resident().ok_or("no memory is told here")?;
        process.connect(self.spokes).await?;
        process.burst(8, 1024).await?;
        sleep(Duration::from_millis(100)).await;
        let after = resident().ok_or("no memory is told here")?;
        println!("{}", after.saturating_sub(before));
        process.stop().await;
        Ok(())
    }
}

/// Bytes per spoke; `None` where the system does not tell.
pub(crate) fn per_spoke(layout: Layout, spokes: usize) -> Result<Option<f64>> {
    if resident().is_none() {
        return Ok(None);
    }
    let mut child = Command::new(std::env::current_exe()?);
    let output = child
        .args([FLAG, layout.name(), &spokes.to_string()])
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let grew: f64 = String::from_utf8(output.stdout)?.trim().parse()?;
    Ok(Some(grew / spokes as f64))
}

/// `VmRSS` of `/proc/self/status`.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
