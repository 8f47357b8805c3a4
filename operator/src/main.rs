//! The operator's process.

use std::io::{Write, stdin, stdout};
use std::path::Path;
use std::pin::pin;

use anyhow::Context;
use clap::Parser;
use futures::StreamExt;
use tokio::signal::unix::{SignalKind, signal};
use vnetpool_apiserver::client;
use vnetpool_operator::args::{Args, Command, Crds};
use vnetpool_operator::azure::{Azure, role};
use vnetpool_operator::datapath::{self, Here};
use vnetpool_operator::{crds, preflight, reserved};
use vnetpool_process::log;

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
    // Both of rustls's providers, ring and aws-lc-rs, can be in the tree, and with both rustls has no default
    // and panics.
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a TLS provider is installed already"))?;
    log::init(args.log_format());
    let command = args.command.clone();
    match command {
        None => operate(args).await,
        Some(Command::Crds(Crds::Apply)) => crds::apply(client().await?).await,
        Some(Command::Role { scope, name, part }) => {
            let parts = if part.is_empty() { role::PARTS.iter().collect() } else { part };
            let definition = role::Definition::of(name, &parts, scope);
            writeln!(stdout(), "{}", serde_json::to_string_pretty(&definition)?)?;
            Ok(())
        }
        Some(Command::Preflight { subscription, resource_group, subnet }) => {
            let azure = Azure::new(&args.config().context("reading the configuration")?.azure)?;
            let subject = Command::subject(subscription, resource_group, subnet);
            let report = preflight::run(&azure, subject, client).await?;
            write!(stdout(), "{report}")?;
            anyhow::ensure!(report.lacks() == 0, "{} permissions are missing or of no use", report.lacks());
            Ok(())
        }
        Some(Command::Reserved) => {
            let azure = Azure::new(&args.config().context("reading the configuration")?.azure)?;
            let ids = std::io::read_to_string(stdin()).context("reading the ids")?;
            let mut views = pin!(reserved::views(&azure, ids.lines()));
            while let Some(view) = views.next().await {
                writeln!(stdout(), "{}", serde_json::to_string(&view)?)?;
            }
            Ok(())
        }
        Some(Command::Datapath { node, address, kubelet_port }) => {
            let report = datapath::run(client().await?, &Here { node, address }, kubelet_port).await?;
            write!(stdout(), "{report}")?;
            anyhow::ensure!(
                report.wrong.is_empty(),
                "the pod network doesn't work: {}",
                report.wrong.join("; ")
            );
            Ok(())
        }
    }
}

async fn client() -> anyhow::Result<kube::Client> {
    let config = kube::Config::infer().await.context("configuring the Kubernetes client")?;
    client::client(config).context("configuring the Kubernetes client")
}

async fn operate(args: Args) -> anyhow::Result<()> {
    let (client, lease) = (client().await?, client().await?);
    let config = args.config().context("reading the configuration")?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    Ok(vnetpool_operator::run(config, client, lease, stop).await?)
}
