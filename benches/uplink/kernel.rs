//! The same narrow uplink made by the kernel: a token bucket (tbf) on the loopback of a network namespace, for what leaves
//! the hub's port. Needs root; without a delay, since that would take netem, which many kernels do not have.
//!
//! It is there to show that the model of `network` is none of a kind: sockets, their buffers and offloads are real here.

use std::{
    process::{Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use iroh::{Endpoint, EndpointAddr, endpoint::Builder};
use n0_future::boxed::BoxFuture;
use tokio::time::sleep;

use crate::{
    common::{Loopback, Place, Result, Role},
    network::{Carried, Shape},
};

/// Says that this process is in its namespace.
const INSIDE: &str = "--inside";
/// What is sent at once, in bytes; a batch of packets that is larger is cut.
const BURST: &str = "4kb";
/// Nothing is underway when nothing was sent for this long.
const IDLE: Duration = Duration::from_millis(30);

/// The numbers of classes; 1 is for what no hub sends.
static NEXT: AtomicU16 = AtomicU16::new(2);

/// Runs this bench again in a network namespace, unless this is that run.
///
/// # Errors
///
/// If there is no such namespace to be had, or the run in it fails.
pub fn enter() -> Result<bool> {
    if std::env::args().any(|arg| arg == INSIDE) {
        run("ip", &["link", "set", "lo", "up"])?;
        tc("qdisc add dev lo root handle 1: htb default 1")?;
        tc("class add dev lo parent 1: classid 1:1 htb rate 40gbit quantum 60000")?;
        return Ok(true);
    }
    let this = std::env::current_exe()?;
    let again = Command::new("unshare")
        .args(["--net", "--"])
        .arg(this)
        .args(std::env::args().skip(1))
        .arg(INSIDE)
        .status()
        .map_err(|error| format!("unshare (of util-linux) cannot be run: {error}"))?;
    match again.success() {
        true => Ok(false),
        false => Err(
            "the run in a network namespace failed; it takes root, iproute2, htb and tbf".into(),
        ),
    }
}

/// An uplink of one hub on loopback.
#[derive(Debug, Clone)]
pub struct Kernel {
    shape: Shape,
    /// The number of its class.
    number: u16,
    loopback: Loopback,
}

impl Kernel {
    /// An uplink with no hub behind it.
    pub fn new(shape: Shape) -> Result<Self> {
        if !shape.delay.is_zero() {
            return Err("the kernel's uplink has no delay".into());
        }
        Ok(Self {
            shape,
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            loopback: Loopback,
        })
    }

    /// Limits what is sent from a port.
    fn limit(&self, port: u16) -> Result<()> {
        let (number, rate, queue) = (self.number, self.shape.uplink_bits_per_s, self.shape.queue);
        tc(&format!(
            "class add dev lo parent 1: classid 1:{number:x} htb rate 40gbit quantum 60000"
        ))?;
        tc(&format!(
            "qdisc add dev lo parent 1:{number:x} handle {number:x}: tbf rate {rate}bit burst {BURST} limit {queue}"
        ))?;
        tc(&format!(
            "filter add dev lo parent 1: protocol ip prio 1 u32 match ip protocol 17 0xff match ip sport {port} 0xffff flowid 1:{number:x}"
        ))
    }

    /// What it has carried so far, and how many bytes wait.
    fn stats(&self) -> Result<(Carried, u64)> {
        let out = Command::new("tc")
            .args(["-s", "-j", "qdisc", "show", "dev", "lo"])
            .stderr(Stdio::inherit())
            .output()?;
        let all: serde_json::Value = serde_json::from_slice(&out.stdout)?;
        let handle = format!("{:x}:", self.number);
        let mut mine = all.as_array().into_iter().flatten();
        let mine = mine.find(|one| one["handle"] == handle.as_str());
        let mine = mine.ok_or("the uplink is not there")?;
        let count = |name: &str| mine[name].as_u64().unwrap_or(0);
        let carried = Carried {
            packets: count("packets"),
            bytes: count("bytes"),
            dropped: count("drops"),
            ..Carried::default()
        };
        Ok((carried, count("backlog")))
    }

    /// What it has carried so far.
    pub fn carried(&self) -> Carried {
        self.stats().map(|(carried, _)| carried).unwrap_or_default()
    }

    /// Returns once nothing waits and nothing is sent, or at the limit.
    pub async fn quiet(&self, limit: Duration) {
        let until = Instant::now() + limit;
        let mut before = None;
        while Instant::now() < until {
            match self.stats() {
                Ok((carried, 0)) if before == Some(carried.packets) => return,
                Ok((carried, _)) => before = Some(carried.packets),
                Err(_) => return,
            }
            sleep(IDLE).await;
        }
    }
}

impl Place for Kernel {
    fn bind(&self, role: Role, builder: Builder) -> BoxFuture<Result<Endpoint>> {
        let this = self.clone();
        Box::pin(async move {
            let endpoint = this.loopback.bind(role, builder).await?;
            if role == Role::Hub {
                let sockets = endpoint.bound_sockets();
                let port = sockets.first().ok_or("the hub has no socket")?.port();
                this.limit(port)?;
            }
            Ok(endpoint)
        })
    }

    fn addr_of(&self, endpoint: &Endpoint) -> EndpointAddr {
        self.loopback.addr_of(endpoint)
    }
}

fn tc(args: &str) -> Result<()> {
    run("tc", &args.split(' ').collect::<Vec<_>>())
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let status = Command::new(program).args(args).status();
    let status =
        status.map_err(|error| format!("{program} (of iproute2) cannot be run: {error}"))?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("{program} {} failed", args.join(" ")).into()),
    }
}
