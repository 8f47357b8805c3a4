//! The simulator as a process: flags, one line on standard output when it is ready, then it serves until it is told to stop.

use anyhow::Context;
use clap::Parser;
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};
use vnetpool_azure_sim::{Config, Sim};

/// Simulated Azure: ARM and the instance metadata service.
#[derive(Parser)]
struct Args {
    /// Where to open the admin API (a Unix socket)
    #[arg(long)]
    admin_socket: Option<PathBuf>,
    /// Make the network namespace of this process the network between the machines
    #[arg(long, conflicts_with = "listen")]
    fabric: bool,
    /// JSON file with the world to start from (see the README); without it, the default world
    #[arg(long)]
    world: Option<PathBuf>,
    /// Where to serve ARM and IMDS without a fabric; port 0 takes any
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let args = Args::parse();
    let config = match &args.world {
        None => Config::default(),
        Some(path) => {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
            serde_json::from_str(&text).with_context(|| format!("{} is no world", path.display()))?
        }
    };
    let mut sim =
        if args.fabric { Sim::start_fabric(config).await? } else { Sim::listen(config, args.listen).await? };
    if let Some(path) = &args.admin_socket {
        sim.open_admin(path)?;
    }
    writeln!(std::io::stdout(), "{}", serde_json::json!({ "arm": sim.arm_url() }))?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        outcome = tokio::signal::ctrl_c() => outcome?,
    }
    Ok(())
}
