//! Flags and environment, read once into typed values; the tasks they start.

use std::{
    fs,
    io::{Write, stdout},
    net::SocketAddr,
    path::PathBuf,
};

use anyhow::Context;
use axum::http::{HeaderValue, header::USER_AGENT};
use clap::{Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use vnetpool_plugin::ledger::file::{self, Store};

use crate::{
    admin,
    agent::Agent,
    attach::{self, Container, Namespace},
    chain::Chained,
    cleanup,
    imds::Settings,
    metrics::Metrics,
    report::local,
    show,
    source::Source,
};

/// Supplies the node's ledger of pod addresses, reports it, and keeps the node's network rules.
#[derive(Debug, Parser)]
#[command(name = "vnetpool-node-agent", version)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    config: Config,
    /// How log lines look.
    #[arg(long, global = true, env = "LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    log_format: LogFormat,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Serve the node until told to end (the default).
    Run,
    /// Remove from the node what the agent put there. Refused while a pod has an address, or could get one again
    /// because the agent still runs: delete the DaemonSet first.
    Cleanup,
    /// Print who has which address of this node.
    Status,
    /// Give a container an address whose runtime doesn't use CNI; prints the result of CNI.
    Attach {
        #[command(flatten)]
        container: Container,
        #[command(flatten)]
        namespace: Namespace,
    },
    /// Take an address back that `attach` gave.
    Detach {
        #[command(flatten)]
        container: Container,
    },
}

/// Who says which addresses the node holds.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum From {
    /// The node's NodeIPAllocation, kept by the operator.
    Cluster,
    /// The instance metadata service, on a VM of no cluster: all secondary addresses of the primary NIC are handed out.
    Imds,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Json,
    Text,
}

/// Where things are on this node.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Where the node's addresses come from.
    #[arg(long, global = true, env = "SOURCE", value_enum, default_value_t = From::Cluster)]
    source: From,
    #[command(flatten)]
    imds: Settings,
    /// Name of the Node, and so of its NodeIPAllocation. Not for --source imds.
    #[arg(long, global = true, env = "NODE_NAME", default_value = "")]
    pub node_name: String,
    /// The folder with the ledger, shared with the CNI plugin; must be on a tmpfs.
    #[arg(long, global = true, env = "STATE_DIR", default_value = vnetpool_plugin::cni::STATE_DIR)]
    pub state_dir: PathBuf,
    /// Where the container runtime looks for CNI plugins.
    #[arg(long, global = true, env = "CNI_BIN_DIR", default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,
    /// Where the container runtime looks for CNI configurations. Its parent folder must be writable and on the same mount:
    /// the configuration is written there and renamed in.
    #[arg(long, global = true, env = "CNI_CONF_DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// The CNI plugin to install.
    #[arg(long, global = true, env = "PLUGIN", default_value = "/vnetpool")]
    pub plugin: PathBuf,
    /// The upstream plugins to chain behind ours where the folder of plugins has them, in this order.
    #[arg(long, global = true, env = "CHAIN", value_enum, value_delimiter = ',')]
    pub chain: Vec<Chained>,
    /// Install no CNI configuration, only the plugins: another plugin wires the pods and asks `vnetpool-ipam` for their addresses.
    #[arg(long, global = true, env = "IPAM_ONLY")]
    pub ipam_only: bool,
    /// The node's boot id as the CNI plugin sees it.
    #[arg(long, global = true, env = "BOOT_ID_FILE", default_value = "/proc/sys/kernel/random/boot_id")]
    pub boot_id_file: PathBuf,
    /// Where the kernel's network settings can be written: /proc/sys/net, or the place it is mounted at in a container
    /// whose own /proc/sys is read-only.
    #[arg(long, global = true, env = "SYSCTL_NET_DIR", default_value = "/proc/sys/net")]
    pub sysctl_net_dir: PathBuf,
    /// Put rules before those of other firewalls on the node (docker's, ufw's, firewalld's) that drop what pods send or
    /// receive. Without it they are only named in the condition `Undisturbed`.
    #[arg(long, global = true, env = "OPEN_FORWARD")]
    pub open_forward: bool,
    /// Where to serve /healthz, /readyz and /metrics. The agent is on the host network, so by default only the node itself
    /// (the kubelet's probes) can reach it.
    #[arg(long, global = true, env = "ADMIN_ADDRESS", default_value = "127.0.0.1:9471")]
    pub admin_address: SocketAddr,
}

impl Config {
    /// The boot that the node's CNI plugin goes by.
    pub fn boot_id(&self) -> anyhow::Result<String> {
        let file = &self.boot_id_file;
        let text = fs::read_to_string(file)
            .with_context(|| format!("can't read the boot id from {} (--boot-id-file)", file.display()))?;
        Ok(text.trim().to_owned())
    }
}

impl Args {
    /// Runs until SIGTERM, which leaves the node as it is and its pods at work, or until a task can't go on.
    pub async fn run(self) -> anyhow::Result<()> {
        let Args { command, config, log_format } = self;
        log(log_format);
        match command.unwrap_or(Command::Run) {
            Command::Run => serve(config).await,
            Command::Cleanup => cleanup::run(&config).await,
            Command::Status => status(&config),
            Command::Attach { container, namespace } => {
                attach::attach(&container, &namespace, &config.cni_conf_dir)
            }
            Command::Detach { container } => attach::detach(&container, &config.cni_conf_dir),
        }
    }
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let source = match config.source {
        From::Cluster => {
            let name = config.node_name.clone();
            anyhow::ensure!(!name.is_empty(), "--node-name (or NODE_NAME) must name this node");
            Source::Cluster { client: client().await.context("can't configure the Kubernetes client")?, name }
        }
        From::Imds => Source::Metadata {
            settings: config.imds.clone(),
            boot_id: config.boot_id()?,
            state_dir: config.state_dir.clone(),
        },
    };
    let metrics = Metrics::default();
    let admin = admin::serve(config.admin_address, metrics.clone());
    let agent = Agent::new(config, source, metrics)?;
    tokio::select! {
        result = agent.run() => result,
        result = admin => result,
        _ = terminate.recv() => Ok(()),
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

fn status(config: &Config) -> anyhow::Result<()> {
    let ledger = Store::at(&config.state_dir).of_boot(config.boot_id()?).read()?;
    let reported = local::read(&config.state_dir)?;
    writeln!(stdout(), "{}", show::show(&ledger, file::now(), reported.as_ref()))?;
    Ok(())
}

/// From the environment: the pod's service account or KUBECONFIG. The API server's logs shall say who asks.
async fn client() -> anyhow::Result<kube::Client> {
    let mut config = kube::Config::infer().await?;
    let name = concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"));
    config.headers.push((USER_AGENT, HeaderValue::from_static(name)));
    Ok(vnetpool_apiserver::client::client(config)?)
}

fn log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
        LogFormat::Text => subscriber.init(),
    }
}
