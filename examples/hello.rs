//! A hub and two spokes in one process: `cargo run --example hello`.

use anyhow::Result;
use iroh_hub::{Envelope, Hub, Incoming, Spoke, endpoint};

#[tokio::main]
async fn main() -> Result<()> {
    // On loopback only. In the world: `Endpoint::bind(presets::N0)`, and the ticket as text.
    let hub = Hub::builder().spawn(endpoint::bind_local().await?)?;
    let mut from_spokes = hub.listen("hello");

    let ticket = hub.ticket().to_string();
    let alice = Spoke::builder().connect_ticket(endpoint::bind_local().await?, &ticket);
    let bob = Spoke::builder().connect_ticket(endpoint::bind_local().await?, &ticket);
    let spokes = [alice.await?, bob.await?];
    let mut listeners = spokes.each_ref().map(|spoke| spoke.listen("news.*"));

    // To everyone, in order, once each.
    for n in 1..=3 {
        let receipt = hub.broadcast(Envelope::new("news.number", &n)?).await?;
        println!("hub: broadcast {n} at offset {}", receipt.position().offset);
    }
    // To the hub.
    for spoke in &spokes {
        spoke.send(Envelope::new("hello", &"hi, hub")?).await?;
        if let Some(Incoming::Event(event)) = from_spokes.recv().await {
            println!(
                "hub: {:?} says {}",
                event.source,
                event.envelope.payload_json()
            );
        }
    }
    // Says goodbye once everyone has everything; then the listeners end.
    hub.shutdown().await;
    for (name, listener) in ["alice", "bob"].into_iter().zip(&mut listeners) {
        while let Some(incoming) = listener.recv().await {
            match incoming {
                Incoming::Event(event) => println!("{name}: {}", event.envelope.payload_json()),
                // Events that the hub no longer had, or that this listener was too slow for.
                hole => println!("{name}: {hole:?}"),
            }
        }
    }
    Ok(())
}
