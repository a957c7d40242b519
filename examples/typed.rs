//! Typed events, and replies to the one who asked: `cargo run --example typed`.

use anyhow::{Context, Result};
use iroh_hub::{EventTarget, EventTargetExt, Hub, Source, Spoke, TypedEvent, endpoint};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
struct OrderPlaced {
    item: String,
    count: u32,
}

impl TypedEvent for OrderPlaced {
    const TYPE: &'static str = "order.placed";
}

#[derive(Debug, Serialize, Deserialize)]
struct OrderConfirmed {
    item: String,
    cents: u64,
}

impl TypedEvent for OrderConfirmed {
    const TYPE: &'static str = "order.confirmed";
}

/// Confirms each order to the spoke that placed it.
async fn sell(hub: Hub) -> Result<()> {
    let mut orders = hub.listen_typed::<OrderPlaced>();
    while let Some(next) = orders.recv().await {
        let order = match next {
            Ok(order) => order,
            // A payload of another shape, or events that were missed: the listening goes on.
            Err(error) => {
                eprintln!("skipped: {error}");
                continue;
            }
        };
        // Whose spoke it is was proven by its connection.
        let Source::Spoke(customer) = order.event.source else {
            continue;
        };
        let OrderPlaced { item, count } = order.value;
        let cents = 250 * u64::from(count);
        let reply = OrderConfirmed { item, cents }.to_envelope()?;
        if let Err(error) = hub.send(customer, reply).await {
            eprintln!("{customer:?} is gone: {error}");
        }
    }
    Ok(())
}

/// Knows only that events go somewhere: a hub, a spoke, or a `LocalTarget` in a test.
async fn place(target: &impl EventTarget, item: &str, count: u32) -> Result<()> {
    let item = item.to_owned();
    target.emit(&OrderPlaced { item, count }).await?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let hub = Hub::builder().spawn(endpoint::bind_local().await?)?;
    let shop = tokio::spawn(sell(hub.clone()));

    for (item, count) in [("tea", 2), ("bread", 3)] {
        let customer = Spoke::connect(endpoint::bind_local().await?, hub.addr()).await?;
        let mut confirmed = customer.listen_typed::<OrderConfirmed>();
        place(&customer, item, count).await?;
        let reply = confirmed.recv().await.context("the hub is gone")??;
        println!("{:?}, targeted: {}", reply.value, reply.event.targeted);
        customer.shutdown().await;
    }
    // Ends the hub's listeners, and so the shop.
    hub.shutdown().await;
    shop.await?
}
