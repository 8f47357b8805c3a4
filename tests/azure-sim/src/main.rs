//! The simulator as a process: flags, one line on standard output when it is ready, then it serves until a
//! signal ends it.

use anyhow::Context;
use clap::Parser;
use serde::de::DeserializeOwned;
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
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
    /// ARM template to deploy into the world's resource group, whose first virtual network is then the
    /// template's
    #[arg(long, conflicts_with = "world")]
    template: Option<PathBuf>,
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
        None if args.template.is_some() => Config { vnets: vec![], ..Config::default() },
        None => Config::default(),
        Some(path) => read(path)?,
    };
    let mut sim =
        if args.fabric { Sim::start_fabric(config).await? } else { Sim::listen(config, args.listen).await? };
    if let Some(path) = &args.template {
        sim.deploy(&read(path)?).await?;
    }
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

fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} isn't what it should be", path.display()))
}
