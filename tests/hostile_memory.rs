//! What a member that floods the topic costs the memory of its neighbours. The allocator counts, for everyone in the process,
//! so there is one test in this file.

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use common::{
    mesh::{Friend, Mesh},
    raw::code,
    raw_member::say,
};

/// Counts the bytes that are allocated, and the most that were at once.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is left to the system's allocator; only numbers are kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(live, Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What may be held of all that is sent: the windows of a few connections and what waits in queues.
const CEILING: usize = 16 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_floods_its_neighbours_costs_them_bounded_memory() {
    let mut mesh = Mesh::new(4).await;
    let addrs = mesh.addrs();
    // A spoke, and the hub.
    for addr in [&addrs[0], &addrs[4]] {
        for kind in ["frames", "announcements", "stories"] {
            let mut friend = Friend::of_all(&mesh).await;
            let frame = friend.takes(&mut mesh).await.remove(0);
            let member = friend.member;
            let mut neighbor = member.befriend(addr).await;
            let before = LIVE.load(Relaxed);
            MOST.store(before, Relaxed);
            let mut sent = 0;
            for n in 0u64.. {
                let message = match kind {
                    // Of a generation that nobody knows yet, so that nobody is to blame at first.
                    "frames" => {
                        let mut frame = frame.clone();
                        frame[9..13].copy_from_slice(&7u32.to_be_bytes());
                        frame[13..21].copy_from_slice(&n.to_be_bytes());
                        frame.resize(64 * 1024, 7);
                        say::data(&frame, 0)
                    }
                    "announcements" => {
                        let id = |k: u64| *blake3::hash(&(n * 1900 + k).to_be_bytes()).as_bytes();
                        let list: Vec<_> = (0..1900).map(|k| (id(k), 0)).collect();
                        say::ihave(&list)
                    }
                    _ => say::neighbor(true, Some(&[n as u8; 512])),
                };
                sent += message.len();
                if !neighbor.insist(&[message]).await {
                    let (closed, reason) = neighbor.closed().await;
                    if closed == code::MISBEHAVED {
                        assert_eq!(reason, "floods the topic");
                        break;
                    }
                    assert_eq!(closed, code::NOT_NEEDED, "{reason}");
                    neighbor = member.befriend(addr).await;
                }
                // A slow machine does not let it send so much that it counts as a flood.
                if sent > 12 * CEILING {
                    break;
                }
            }
            let most = MOST.load(Relaxed) - before;
            println!(
                "{kind}: {} KiB sent, {} KiB held at most",
                sent >> 10,
                most >> 10
            );
            assert!(
                most < CEILING,
                "{kind}: {most} bytes of {sent} were held at once"
            );
            if kind == "frames" {
                assert!(sent > 3 * CEILING, "{sent} bytes were not much");
            }
            member.leave().await;
            mesh.publish(20).await;
            mesh.all_hear().await;
        }
    }
    mesh.end().await;
}
