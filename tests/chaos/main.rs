//! The contract while everything goes wrong: processes that are stopped and killed, packets that are lost, a hub that
//! is cut off, strangers that flood a hub or take their time. What spokes printed is read by the checker, which knows nothing of the implementation.
//!
//! A quick version of each runs with all tests. The long ones take most of an hour, print their figures, and want a machine of
//! their own. One command runs them, and the large runs of the simulator:
//!
//! ```sh
//! cargo test --release --test chaos --test simulate -- --ignored --nocapture --test-threads 1
//! ```
//!
//! Lost packets are made by nftables in a network namespace of the test's own, where that can be had (Linux, `nft`, and root or
//! user namespaces), and otherwise only by a transport inside of the test.

#[path = "../checker/mod.rs"]
mod checker;
#[path = "../common/mod.rs"]
mod common;
#[path = "../common/medium.rs"]
mod medium;

mod attacked;
mod ceiling;
mod cut;
mod figures;
mod flood;
mod heard;
mod hub_kills;
mod leaks;
mod lives;
mod load;
mod loris;
mod loss;
mod net;
mod refused;
mod roles;
mod spoke_kills;
mod stopped;
mod wire;
