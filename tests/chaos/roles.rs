//! Processes that are this test program once more: a hub or bare iroh whose resources are watched, and a crowd of spokes.
//! One request a line on stdin, one answer a line on stdout.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use iroh::{
    Endpoint, EndpointAddr,
    endpoint::Connection,
    protocol::{AcceptError, ProtocolHandler, Router},
};
use iroh_hub::{FanOut, Hub, Incoming, Listener, Spoke, endpoint, log::LogConfig};
use iroh_tickets::endpoint::EndpointTicket;
use rand::RngExt;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::AsyncBufReadExt,
    runtime::{Builder, Handle},
    task::{JoinHandle, JoinSet},
    time::{interval, sleep, timeout},
};

use crate::{attacked, heard::number, load};

const ROLE: &str = "CHAOS_ROLE";
const KIND: &str = "CHAOS_KIND";
const TICKET: &str = "CHAOS_TICKET";

const ALPN: &[u8] = b"bare";
/// Between two events, of the hub and of bare iroh.
const EVERY: Duration = Duration::from_millis(100);
/// Bytes of an event.
const SIZE: usize = 200;
/// Joins at a time.
const AT_ONCE: u64 = 8;
/// How long anything with one peer may take.
const LIMIT: Duration = Duration::from_secs(60);

/// What connects the two: this crate, or nothing but iroh, with the same connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Hub,
    Bare,
}

/// What a process uses.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Usage {
    pub files: u64,
    pub tasks: u64,
    pub memory_kib: u64,
    /// Who is connected.
    pub peers: u64,
    /// What spokes of the process have heard, over all of them.
    pub heard: u64,
    /// How often that was not what comes next.
    pub wrong: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Ticket(pub String);

/// What a crowd can be asked for. Each is answered when it is done.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub enum Ask {
    /// So many join and leave again, a few at a time.
    JoinAndLeave(u64),
    /// So many join and stay.
    Stay(u64),
    /// For so many seconds, so many a second of those that stay leave, and others join.
    Churn {
        seconds: u64,
        per_s: u64,
    },
    /// All leave.
    Leave,
    Nothing,
}

/// A process in one of the roles. It is killed when it is dropped.
pub struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    /// Starts it; what `kind` and `ticket` say depends on the role.
    pub fn start(role: &str, kind: &str, ticket: &str) -> Self {
        let mut child = Command::new(env::current_exe().expect("this program"))
            .args(["--exact", "roles::this_program_in_a_role", "--nocapture"])
            .env(ROLE, role)
            .env(KIND, kind)
            .env(TICKET, ticket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program runs");
        Self {
            stdin: child.stdin.take().expect("piped"),
            stdout: BufReader::new(child.stdout.take().expect("piped")),
            child,
        }
    }

    pub fn answer<A: DeserializeOwned>(&mut self) -> A {
        let mut line = String::new();
        loop {
            line.clear();
            let read = self.stdout.read_line(&mut line).expect("readable");
            assert!(read > 0, "the process has ended");
            // The test harness has its own to say.
            let answer = line.split_once('>').map(|(_, answer)| answer);
            if let Some(answer) = answer {
                return serde_json::from_str(answer).expect("an answer");
            }
        }
    }

    pub fn ask<A: DeserializeOwned>(&mut self, request: &impl Serialize) -> A {
        let line = serde_json::to_string(request).expect("JSON");
        writeln!(self.stdin, "{line}").expect("it reads");
        self.answer()
    }
}

/// A hub, or bare iroh, in a process of its own.
pub struct Host(Process);

impl Host {
    /// Starts it, and gives back its ticket too.
    pub fn start(kind: Kind) -> (Self, String) {
        let mut process = Process::start("host", &format!("{kind:?}"), "");
        let Ticket(ticket) = process.answer();
        (Self(process), ticket)
    }

    pub fn usage(&mut self) -> Usage {
        self.0.ask(&())
    }
}

/// Spokes, or bare connections, in a process of their own.
pub struct Crowd(Process);

impl Crowd {
    pub fn start(kind: Kind, ticket: &str) -> Self {
        Self(Process::start("crowd", &format!("{kind:?}"), ticket))
    }

    /// Returns when it is done, with what the crowd uses then.
    pub fn ask(&mut self, ask: Ask) -> Usage {
        self.0.ask(&ask)
    }
}

/// Does nothing but in a process that [`Process::start`] has started.
#[test]
fn this_program_in_a_role() {
    let Ok(role) = env::var(ROLE) else {
        return;
    };
    let what = env::var(KIND).expect("what to be");
    let kind = || match what.as_str() {
        "Hub" => Kind::Hub,
        "Bare" => Kind::Bare,
        other => panic!("{other:?}"),
    };
    let ticket = env::var(TICKET).expect("a ticket, or none");
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        match role.as_str() {
            "host" => host(kind()).await,
            "attacked" => attacked::hub(&what).await,
            "attacker" => attacked::attacker(&ticket).await,
            _ => crowd(kind(), &ticket).await,
        }
    });
}

pub fn say(answer: &impl Serialize) {
    let answer = serde_json::to_string(answer).expect("JSON");
    println!(">{answer}");
}

pub async fn requests<R: DeserializeOwned>(mut handle: impl AsyncFnMut(R)) {
    let mut lines = tokio::io::BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        handle(serde_json::from_str(&line).expect("a request")).await;
    }
}

async fn host(kind: Kind) {
    let endpoint = endpoint::bind_local().await.expect("loopback binds");
    let ticket = Ticket(EndpointTicket::new(endpoint.addr()).to_string());
    let peers: Box<dyn Fn() -> u64> = match kind {
        Kind::Hub => {
            // A log that is full at once grows no more.
            let log = LogConfig::default().with_max_events(100);
            let builder = Hub::builder().fan_out(FanOut::Gossip).log(log);
            let hub = builder.spawn(endpoint);
            let hub = hub.expect("a fresh endpoint");
            tokio::spawn(broadcast(hub.clone()));
            Box::new(move || hub.spoke_count() as u64)
        }
        Kind::Bare => {
            let bare = Bare::default();
            let router = Router::builder(endpoint).accept(ALPN, bare.clone());
            let router = router.spawn();
            Box::new(move || {
                assert!(!router.is_shutdown());
                Arc::strong_count(&bare.0) as u64 - 2
            })
        }
    };
    say(&ticket);
    requests(async |(): ()| say(&usage(peers()))).await;
}

static HEARD: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);

/// Counts what a spoke hears, which is one number after the other.
async fn hear(mut listener: Listener) {
    let mut next = None;
    while let Some(item) = listener.recv().await {
        let n = match &item {
            Incoming::Event(event) => number(event),
            _ => None,
        };
        let right = n.is_some() && (next.is_none() || next == n);
        WRONG.fetch_add(u64::from(!right), Ordering::Relaxed);
        HEARD.fetch_add(1, Ordering::Relaxed);
        next = n.map(|n| n + 1);
    }
}

fn usage(peers: u64) -> Usage {
    Usage {
        files: std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as u64,
        tasks: Handle::current().metrics().num_alive_tasks() as u64,
        memory_kib: memory_kib(),
        peers,
        heard: HEARD.load(Ordering::Relaxed),
        wrong: WRONG.load(Ordering::Relaxed),
    }
}

/// What of this process is in memory.
pub fn memory_kib() -> u64 {
    in_status("VmRSS:")
}

/// The most of it that ever was.
pub fn peak_kib() -> u64 {
    in_status("VmHWM:")
}

fn in_status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|n| n.parse().ok()).unwrap_or_default()
}

async fn broadcast(hub: Hub) {
    let mut tick = interval(EVERY);
    let mut n = 0;
    loop {
        tick.tick().await;
        if hub.broadcast(load::event(n, SIZE)).await.is_err() {
            return;
        }
        n += 1;
    }
}

/// Takes a stream of each connection and writes to it now and then.
#[derive(Clone, Debug, Default)]
struct Bare(Arc<()>);

impl ProtocolHandler for Bare {
    async fn accept(&self, connection: Connection) -> Result<(), AcceptError> {
        let _here = self.0.clone();
        let (mut send, mut recv) = connection.accept_bi().await?;
        let mut tick = interval(EVERY);
        let writing = async {
            loop {
                tick.tick().await;
                if send.write_all(&[0; SIZE]).await.is_err() {
                    return;
                }
            }
        };
        let reading = async { while let Ok(Some(_)) = recv.read_chunk(1024).await {} };
        tokio::select! {
            () = writing => {}
            () = reading => {}
        }
        Ok(())
    }
}

/// One of the crowd.
enum Peer {
    Spoke(Spoke),
    Bare {
        endpoint: Endpoint,
        connection: Connection,
        reading: JoinHandle<()>,
    },
}

impl Peer {
    async fn join(kind: Kind, hub: EndpointAddr) -> Self {
        let joining = async {
            let endpoint = endpoint::bind_local().await.expect("loopback binds");
            match kind {
                Kind::Hub => {
                    let spoke = Spoke::connect(endpoint, hub).await;
                    let spoke = spoke.expect("the hub lets us in");
                    tokio::spawn(hear(spoke.listen("*")));
                    Self::Spoke(spoke)
                }
                Kind::Bare => {
                    let connection = endpoint.connect(hub, ALPN).await.expect("accepted");
                    let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
                    send.write_all(b"here").await.expect("taken");
                    let mut first = [0];
                    recv.read_exact(&mut first).await.expect("a byte");
                    let reading = tokio::spawn(async move {
                        let _open = send;
                        while let Ok(Some(_)) = recv.read_chunk(1024).await {}
                    });
                    Self::Bare {
                        endpoint,
                        connection,
                        reading,
                    }
                }
            }
        };
        timeout(LIMIT, joining).await.expect("it joins in time")
    }

    async fn leave(self) {
        let leaving = async {
            match self {
                Self::Spoke(spoke) => spoke.shutdown().await,
                Self::Bare {
                    endpoint,
                    connection,
                    reading,
                } => {
                    connection.close(1u32.into(), b"goodbye");
                    let _ = reading.await;
                    endpoint.close().await;
                }
            }
        };
        timeout(LIMIT, leaving).await.expect("it leaves in time");
    }
}

async fn crowd(kind: Kind, ticket: &str) {
    let ticket: EndpointTicket = ticket.parse().expect("a ticket");
    let hub = ticket.endpoint_addr().clone();
    let mut here: Vec<Peer> = Vec::new();
    requests(async |ask| {
        match ask {
            Ask::JoinAndLeave(count) => join_and_leave(kind, &hub, count).await,
            Ask::Stay(count) => {
                for _ in 0..count {
                    here.push(Peer::join(kind, hub.clone()).await);
                }
            }
            Ask::Churn { seconds, per_s } => {
                let mut tick = interval(Duration::from_secs(1));
                let mut changing = JoinSet::new();
                for _ in 0..seconds {
                    tick.tick().await;
                    for _ in 0..per_s {
                        let who = rand::rng().random_range(..here.len());
                        let (leaving, hub) = (here.swap_remove(who), hub.clone());
                        changing.spawn(async move {
                            leaving.leave().await;
                            Peer::join(kind, hub).await
                        });
                    }
                }
                here.append(&mut changing.join_all().await);
            }
            Ask::Nothing => {}
            Ask::Leave => {
                let mut leaving: JoinSet<()> = here.drain(..).map(Peer::leave).collect();
                while let Some(left) = leaving.join_next().await {
                    left.expect("no panic");
                }
            }
        }
        say(&usage(here.len() as u64));
    })
    .await;
}

async fn join_and_leave(kind: Kind, hub: &EndpointAddr, count: u64) {
    let mut visits = JoinSet::new();
    for n in 0..count {
        if n >= AT_ONCE {
            visits.join_next().await.expect("one").expect("no panic");
        }
        let hub = hub.clone();
        visits.spawn(async move {
            let peer = Peer::join(kind, hub).await;
            let stay = rand::rng().random_range(0..100);
            sleep(Duration::from_millis(stay)).await;
            peer.leave().await;
        });
    }
    while let Some(visit) = visits.join_next().await {
        visit.expect("no panic");
    }
}
