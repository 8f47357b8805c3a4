//! The operator's process.

use std::path::Path;

use anyhow::Context;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use vnetpool_operator::args::{Args, Command, Crds};
use vnetpool_operator::{crds, telemetry};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let outcome = run(Args::parse()).await;
    if let Err(error) = &outcome {
        // Shown by `kubectl describe pod`; where there is no such file, stderr has the error, too.
        let log = Path::new("/dev/termination-log");
        if log.exists() {
            let _ = std::fs::write(log, format!("{error:#}"));
        }
    }
    outcome
}

async fn run(args: Args) -> anyhow::Result<()> {
    // Two TLS providers are in the tree, so neither is the default (azure-facts, section 9).
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a TLS provider is installed already"))?;
    telemetry::init(args.log_format());
    let client = kube::Client::try_default().await.context("configuring the Kubernetes client")?;
    if let Some(Command::Crds(Crds::Apply)) = args.command {
        return crds::apply(client).await;
    }
    let config = args.config().context("reading the configuration")?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    Ok(vnetpool_operator::run(config, client, stop).await?)
}
