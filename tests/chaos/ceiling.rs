//! Hostile peers fill every buffer that a hub's limits allow, and its process stays under the ceiling that
//! [`HubBuilder::memory_ceiling`](iroh_hub::HubBuilder::memory_ceiling) states.

use std::time::Duration;

use iroh::{EndpointAddr, endpoint::Connection};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    attacked::{Attacked, Do, MIB, Setup, State},
    common::{
        LIMIT, bind,
        raw::{self, COMPAT, NATIVE, RawStream},
    },
};

/// Bytes of an event: little more than fits one frame, as events are that go out in parts.
const EVENT: usize = 60 << 10;

/// A peer that takes what little it must, and has an endpoint of its own.
struct Peer {
    connection: Connection,
    stream: RawStream,
}

impl Peer {
    async fn connect(hub: &EndpointAddr, alpn: &[u8]) -> Self {
        let endpoint = bind().await;
        let connecting = timeout(LIMIT, endpoint.connect(hub.clone(), alpn)).await;
        let connection = connecting.expect("in time").expect("accepted");
        let (send, recv) = connection.open_bi().await.expect("a stream");
        Self {
            connection,
            stream: RawStream {
                send,
                recv,
                endpoint,
            },
        }
    }

    /// One that becomes a spoke.
    async fn spoke(hub: &EndpointAddr, alpn: &[u8]) -> Self {
        let mut peer = Self::connect(hub, alpn).await;
        match alpn {
            NATIVE => peer.stream.greet().await,
            _ => peer.stream.write(raw::frame(b"")).await,
        }
        peer
    }

    /// Sends half of the largest event, and then as much as it can, until nobody takes it any more.
    async fn send_half(&mut self, alpn: &[u8]) {
        let begin = match alpn {
            NATIVE => {
                let part = vec![b'x'; raw::MAX_PART];
                let parts = (0..15).map(|n| raw::publish(1, n, 16, &part));
                parts.collect::<Vec<_>>().concat()
            }
            _ => [
                &(MIB as u32 - 100).to_be_bytes()[..],
                &vec![b'{'; MIB - 1000],
            ]
            .concat(),
        };
        let _ = timeout(STUCK, self.stream.send.write_all(&begin)).await;
    }
}

/// Who cannot write for so long is taken to be held back.
const STUCK: Duration = Duration::from_secs(4);

fn mib(state: &State) -> (u64, u64) {
    (state.memory_kib >> 10, state.peak_kib >> 10)
}

/// Waits until so many are there.
async fn until(hub: &mut Attacked, what: &str, mut is: impl FnMut(&State) -> bool) -> State {
    for _ in 0..600 {
        let state = hub.ask(Do::Nothing);
        if is(&state) {
            return state;
        }
        sleep(Duration::from_millis(100)).await;
    }
    panic!("waited in vain until {what}: {:?}", hub.ask(Do::Nothing));
}

/// Fills a hub whose limits are of this scale. Says what its memory came to, of its ceiling.
async fn fill(scale: usize) -> f64 {
    let setup = Setup::Small(scale);
    let ceiling = setup.builder().memory_ceiling();
    let mut hub = Attacked::start(setup);
    let addr = hub.addr.clone();
    let begin = hub.ask(Do::Nothing);
    println!(
        "\na ceiling of {} MiB; at first {:?} MiB",
        ceiling >> 20,
        mib(&begin)
    );
    // One that reads everything, so that the log has every event as plain spokes get it.
    let mut reader = Peer::spoke(&addr, COMPAT).await;
    let reading = tokio::spawn(async move {
        while let Ok(Some(_)) = reader.stream.recv.read_chunk(1 << 20).await {}
    });
    // Spokes that read nothing, each stuck with events of its own.
    let natives = 3 * scale;
    let mut stuck = Vec::new();
    for n in 0..natives {
        stuck.push((NATIVE, Peer::spoke(&addr, NATIVE).await));
        hub.ask(Do::Broadcast {
            events: 44,
            bytes: EVENT,
        });
        if n % 8 == 7 {
            println!(
                "  {} spokes are stuck: {:?} MiB",
                n + 1,
                mib(&hub.ask(Do::Nothing))
            );
        }
    }
    // The log, anew.
    let events = scale * 7 * MIB / EVENT;
    let state = hub.ask(Do::Broadcast {
        events,
        bytes: EVENT,
    });
    println!("  the log is full: {:?} MiB", mib(&state));
    let state = hub.ask(Do::Mail { bytes: EVENT });
    println!("  so are the mailboxes: {:?} MiB", mib(&state));
    // The last places for spokes; those of the plain protocol are closed once they are behind the log.
    for _ in natives + 1..4 * scale {
        stuck.push((COMPAT, Peer::spoke(&addr, COMPAT).await));
    }
    until(&mut hub, "every place is taken", |state| {
        state.spokes == 4 * scale
    })
    .await;
    // Halves of large events, and what is not read behind them.
    let mut halves = JoinSet::new();
    for (alpn, mut peer) in stuck {
        halves.spawn(async move {
            peer.send_half(alpn).await;
            peer
        });
    }
    let stuck = halves.join_all().await;
    let state = hub.ask(Do::Nothing);
    println!("  halves of events: {:?} MiB", mib(&state));
    assert!(state.reads_held > 0, "{state:?}");
    // Strangers, and what they send before they are read from.
    let mut strangers = JoinSet::new();
    for _ in 0..2 * scale {
        let addr = addr.clone();
        strangers.spawn(async move {
            let mut peer = Peer::connect(&addr, COMPAT).await;
            peer.send_half(COMPAT).await;
            peer
        });
    }
    let strangers = strangers.join_all().await;
    let state = hub.ask(Do::Nothing);
    println!("  and strangers: {:?} MiB; {state:?}", mib(&state));
    let there = stuck.iter().chain(&strangers);
    let open = there.filter(|peer| peer.connection.close_reason().is_none());
    println!(
        "  {} peers of {} are still there",
        open.count(),
        stuck.len() + strangers.len()
    );
    assert!(
        state.peak_kib << 10 <= ceiling,
        "{} MiB are over the ceiling of {}",
        state.peak_kib >> 10,
        ceiling >> 20
    );
    reading.abort();
    (state.peak_kib << 10) as f64 / (ceiling - HANDSHAKES) as f64
}

/// What is not filled: packets for handshakes that wait for their turn.
const HANDSHAKES: u64 = 100 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_fill_every_buffer_do_not_get_a_small_hub_over_its_ceiling() {
    let share = fill(3).await;
    println!("  {share:.2} of the ceiling");
    // A good third of it is the process itself.
    assert!(share >= 0.4, "{share:.2}: the ceiling is a fantasy");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; see the module"]
async fn peers_that_fill_every_buffer_get_a_hub_to_more_than_half_of_its_ceiling_and_not_over_it() {
    let share = fill(16).await;
    println!("  {share:.2} of the ceiling");
    assert!(share >= 0.5, "{share:.2}: the ceiling is a fantasy");
}
