//! The node agent's process: reads its flags and runs what they ask for.

use clap::Parser;
use vnetpool_node_agent::args::Args;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    Args::parse().run().await
}
