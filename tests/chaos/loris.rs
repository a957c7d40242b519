//! Peers that take their time: a thousand connections that never say hello, and as many that read nothing.

use std::time::Duration;

use iroh::{EndpointAddr, endpoint::Connection};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    attacked::{Attacked, Do, Setup, State},
    common::{
        LIMIT, bind,
        raw::{self, COMPAT, NATIVE, code},
    },
};

/// Connections of one endpoint.
const OF_ONE: usize = 50;

/// What a peer does that takes its time.
#[derive(Clone, Copy, Debug)]
enum Loris {
    /// Opens no stream.
    Silent,
    /// Opens a stream and sends half a frame on it.
    Half,
    /// Sends a byte a second of a frame.
    Slow,
    /// Becomes a spoke and reads nothing. One of the plain protocol, since the other kind may stay for as long as it likes.
    Deaf,
}

impl Loris {
    async fn run(self, connection: Connection, alpn: &'static [u8]) -> (u64, Duration) {
        let begin = Instant::now();
        let stream = async {
            let Self::Silent = self else {
                return connection.open_bi().await.ok();
            };
            None
        };
        let mut stream = stream.await;
        if let Some((send, _)) = &mut stream {
            let bytes = match self {
                Self::Deaf => raw::frame(b""),
                _ => vec![0, 0],
            };
            let _ = send.write_all(&bytes).await;
        }
        let slowly = async {
            if let (Self::Slow, Some((send, _))) = (self, &mut stream) {
                // The length of a frame of 64, byte by byte, and then the frame.
                let rest = [&[0, 64][..], &[7; 62]].concat();
                for byte in rest {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    if send.write_all(&[byte]).await.is_err() {
                        break;
                    }
                }
            }
            std::future::pending::<()>().await;
        };
        let closed = async {
            tokio::select! {
                () = slowly => unreachable!("it never ends"),
                closed = raw::closed(&connection) => closed,
            }
        };
        let (code, _) = closed.await;
        let _ = alpn;
        (code, begin.elapsed())
    }
}

/// So many connections of peers of all kinds. Each is closed with a code, in time.
async fn attack(
    addr: &EndpointAddr,
    count: usize,
    kinds: &[Loris],
) -> Vec<JoinSet<(u64, Duration)>> {
    let mut sets: Vec<JoinSet<(u64, Duration)>> = kinds.iter().map(|_| JoinSet::new()).collect();
    let mut endpoint = bind().await;
    for n in 0..count {
        if n % OF_ONE == OF_ONE - 1 {
            endpoint = bind().await;
        }
        let kind = n % kinds.len();
        let loris = kinds[kind];
        let alpn = match loris {
            Loris::Deaf => COMPAT,
            _ => [NATIVE, COMPAT][n / kinds.len() % 2],
        };
        let connecting = timeout(LIMIT, endpoint.connect(addr.clone(), alpn)).await;
        let connection = connecting.expect("in time").expect("accepted");
        let keep = endpoint.clone();
        sets[kind].spawn(async move {
            let _keep = keep;
            loris.run(connection, alpn).await
        });
    }
    sets
}

fn memory(state: &State) -> String {
    format!(
        "{} MiB, at most {}",
        state.memory_kib >> 10,
        state.peak_kib >> 10
    )
}

async fn lorises(count: usize) {
    let ceiling = Setup::Crowded.builder().memory_ceiling();
    let mut hub = Attacked::start(Setup::Crowded);
    let begin = hub.ask(Do::Nothing);
    println!(
        "\na ceiling of {} MiB; at first {}",
        ceiling >> 20,
        memory(&begin)
    );
    let kinds = [Loris::Silent, Loris::Half, Loris::Slow];
    let sets = attack(&hub.addr, count, &kinds).await;
    println!(
        "  {count} that say no hello: {}",
        memory(&hub.ask(Do::Nothing))
    );
    for (kind, set) in kinds.iter().zip(sets) {
        for (code, took) in set.join_all().await {
            assert_eq!(code, code::TIMED_OUT, "{kind:?}");
            // Twice the time it has: a stream may be opened late.
            assert!(took < LIMIT, "{kind:?} {took:?}");
        }
    }
    let state = hub.ask(Do::Nothing);
    assert_eq!((state.spokes, state.waiting), (0, 0), "{state:?}");
    println!("  all are closed: {}", memory(&state));
    let mut deaf = attack(&hub.addr, count, &[Loris::Deaf]).await;
    for _ in 0..600 {
        if hub.ask(Do::Nothing).spokes == count {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let state = hub.ask(Do::Nothing);
    assert_eq!(state.spokes, count, "{state:?}");
    println!("  {count} that read nothing: {}", memory(&state));
    let set = deaf.remove(0);
    let mut waited = Instant::now();
    while !set.is_empty() && hub.ask(Do::Nothing).spokes > 0 {
        hub.ask(Do::Broadcast {
            events: 100,
            bytes: 30_000,
        });
        assert!(waited.elapsed() < 10 * LIMIT, "they are not closed");
    }
    waited = Instant::now();
    for (code, _) in set.join_all().await {
        assert_eq!(code, code::FELL_BEHIND);
    }
    assert!(waited.elapsed() < LIMIT);
    let state = hub.ask(Do::Nothing);
    println!("  they were closed: {}", memory(&state));
    assert!(state.peak_kib << 10 <= ceiling, "{state:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_that_say_no_hello_or_read_nothing_are_closed() {
    lorises(100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; see the module"]
async fn a_thousand_that_say_no_hello_or_read_nothing_are_closed_and_the_hub_stays_under_its_ceiling()
 {
    lorises(1000).await;
}
