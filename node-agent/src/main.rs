//! The node agent's process: reads its flags and runs the subcommand that they name.

use std::{
    io::{self, Write, stdout},
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Context;
use axum::{
    Router,
    http::{HeaderValue, header::USER_AGENT},
};
use clap::Parser;
use futures::future::OptionFuture;
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
};
use vnetpool_node_agent::{
    admin,
    agent::Agent,
    args::{Args, Command, Output},
    attach,
    beat::Beat,
    cleanup,
    config::{Config, SourceKind},
    metrics::Metrics,
    report::local,
    show,
    source::Source,
};
use vnetpool_plugin::{
    ledger::file::{self, Store},
    wiring,
};
use vnetpool_process::log;

/// How long a thread stays that has waited for the kernel: until the next inspection, and many more. Its end
/// would wake the process each time.
const THREADS_STAY: Duration = Duration::from_secs(3600);

/// How long a runtime is started anew at most to be in step with the beats: as long as fifty starts on a
/// machine that is at rest.
const STARTS: Duration = Duration::from_millis(50);

fn main() -> anyhow::Result<()> {
    let (runtime, beat) = in_step()?;
    runtime.block_on(run(beat))
}

/// A runtime, and beats that are in step with its clock. Otherwise each beat would end in the slot of its
/// timers before, and wake the process twice, four seconds apart.
fn in_step() -> io::Result<(Runtime, Beat)> {
    // The agent sleeps, and others wait for locks and for the kernel. Of several threads one would wait for
    // the timers that there were when it began to, and wake for those that another has dropped since.
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.thread_keep_alive(THREADS_STAY).enable_all();
    let begun = Instant::now();
    while begun.elapsed() < STARTS {
        let beat = Beat::begin();
        let started = runtime.build()?;
        if beat.has_just_begun() {
            return Ok((started, beat));
        }
    }
    // A start takes longer than that on a machine that is so busy. Beats that begin after it wake the process
    // twice, too, but within milliseconds.
    let started = runtime.build()?;
    Ok((started, Beat::begin()))
}

async fn run(beat: Beat) -> anyhow::Result<()> {
    let Args { command, config, log_format } = Args::parse();
    log::init(log_format);
    match command.unwrap_or(Command::Run) {
        Command::Run => serve(config, beat).await,
        Command::Cleanup { stay: false } => cleanup::run(&config).await,
        Command::Cleanup { stay: true } => clean(config).await,
        Command::Status { output } => status(&config, output),
        Command::Attach { container, namespace } => {
            attach::attach(&container, &namespace, &config.cni_conf_dir)
        }
        Command::Detach { container } => attach::detach(&container, &config.cni_conf_dir),
    }
}

/// Runs until SIGTERM, which leaves the node as it is and its pods at work, or until a task can't go on.
async fn serve(config: Config, beat: Beat) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let source = match config.source {
        SourceKind::Cluster => {
            let name = config.node_name.clone();
            anyhow::ensure!(!name.is_empty(), "--node-name (or VNETPOOL_NODE_NAME) must name this node");
            Source::Cluster { client: client().await.context("can't configure the Kubernetes client")?, name }
        }
        SourceKind::Imds => Source::Metadata {
            settings: config.imds.clone(),
            boot_id: config.boot_id()?,
            state_dir: config.state_dir.clone(),
        },
    };
    let metrics = Metrics::new(&config.state_dir);
    let scrapes = || {
        let metrics = metrics.clone();
        vnetpool_admin::scrapes(move || metrics.text())
    };
    let admin = listen(config.admin_address, admin::probes(&metrics).merge(scrapes()));
    let scraped = config.metrics_address.map(|address| listen(address, scrapes()));
    let scraped = OptionFuture::from(scraped);
    let agent = Agent::new(config, source, metrics, beat)?;
    tokio::select! {
        result = agent.run() => result,
        result = admin => result,
        Some(result) = scraped => result,
        _ = terminate.recv() => Ok(()),
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

/// Cleans the node until a signal ends the process.
async fn clean(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let metrics = Metrics::new(&config.state_dir);
    tokio::select! {
        result = cleanup::stay(&config, &metrics) => result,
        result = listen(config.admin_address, admin::probes(&metrics)) => result,
        _ = terminate.recv() => Ok(()),
    }
}

async fn listen(address: SocketAddr, routes: Router) -> anyhow::Result<()> {
    let served = vnetpool_admin::serve(address, routes).await;
    served.map(|never| match never {}).with_context(|| format!("can't listen on {address}"))
}

fn status(config: &Config, output: Output) -> anyhow::Result<()> {
    let ledger = Store::at(&config.state_dir).of_boot(config.boot_id()?).read()?;
    let text = match output {
        Output::Text => show::show(&ledger, file::now(), local::read(&config.state_dir)?.as_ref()),
        Output::Json => serde_json::to_string(&show::view(&ledger, &wiring::occupants()?, file::now()))?,
    };
    writeln!(stdout(), "{text}")?;
    Ok(())
}

/// A client for the pod's service account or KUBECONFIG. Its User-Agent names the agent in the API server's
/// logs.
async fn client() -> anyhow::Result<kube::Client> {
    let mut config = kube::Config::infer().await?;
    let name = concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"));
    config.headers.push((USER_AGENT, HeaderValue::from_static(name)));
    Ok(vnetpool_apiserver::client::client(config)?)
}
