//! What a run has come to so far, printed each minute. An hour's run may end by somebody's hand.

use crate::logs::keep_azure_log;
use crate::world::World;
use anyhow::Result;
use std::time::{Duration, Instant};
use tokio::time::sleep;

const BETWEEN: Duration = Duration::from_secs(60);

/// Until then. It also has Azure's log kept, which grows in the simulator's memory.
pub async fn run(world: &World, until: Instant) -> Result<()> {
    let began = Instant::now();
    while Instant::now() < until {
        sleep(BETWEEN.min(until.saturating_duration_since(Instant::now()))).await;
        keep_azure_log(world).await?;
        let minutes = began.elapsed().as_secs() / 60;
        world.sums(|sums| println!("after {minutes} min: {}", sums.progress()));
    }
    Ok(())
}
