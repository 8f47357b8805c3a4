//! Where the node's addresses come from and where things are on the node: the flags that every subcommand
//! shares.

use std::{fs, net::SocketAddr, path::PathBuf};

use anyhow::Context;
use clap::ValueEnum;

use crate::{
    chain::{Chained, Further},
    imds::Settings,
};

/// The source of the node's addresses.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum SourceKind {
    /// The node's NodeIPAllocation, kept by the operator.
    Cluster,
    /// The instance metadata service, on a VM of no cluster: all secondary addresses of the primary NIC are
    /// handed out.
    Imds,
}

/// Where things are on this node.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Where the node's addresses come from.
    #[arg(long, global = true, env = "VNETPOOL_SOURCE", value_enum, default_value_t = SourceKind::Cluster)]
    pub source: SourceKind,
    #[command(flatten)]
    pub imds: Settings,
    /// Name of the Node, and so of its NodeIPAllocation. Not for --source imds.
    #[arg(long, global = true, env = "VNETPOOL_NODE_NAME", default_value = "")]
    pub node_name: String,
    /// The folder with the ledger, shared with the CNI plugin; must be on a tmpfs.
    #[arg(long, global = true, env = "VNETPOOL_STATE_DIR", default_value = vnetpool_plugin::cni::STATE_DIR)]
    pub state_dir: PathBuf,
    /// The folder in which the container runtime finds CNI plugins.
    #[arg(long, global = true, env = "VNETPOOL_CNI_BIN_DIR", default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,
    /// The folder in which the container runtime finds CNI configurations. Its parent folder must be writable
    /// and on the same mount: the configuration is written there and renamed in.
    #[arg(long, global = true, env = "VNETPOOL_CNI_CONF_DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// The CNI plugin to install.
    #[arg(long, global = true, env = "VNETPOOL_PLUGIN", default_value = "/vnetpool")]
    pub plugin: PathBuf,
    /// The upstream plugins to chain behind ours where the folder of plugins has them, in this order.
    #[arg(long, global = true, env = "VNETPOOL_CHAIN", value_enum, value_delimiter = ',')]
    pub chain: Vec<Chained>,
    /// Entries of further plugins to chain behind these, as a JSON list: `[{"type": "tuning", …}]`. No pod
    /// starts on a node that doesn't have them.
    #[arg(long, global = true, env = "VNETPOOL_FURTHER_PLUGINS", default_value = "[]")]
    pub further_plugins: Further,
    /// Install no CNI configuration, only the plugins: another plugin wires the pods and asks `vnetpool-ipam`
    /// for their addresses.
    #[arg(long, global = true, env = "VNETPOOL_IPAM_ONLY")]
    pub ipam_only: bool,
    /// The node's boot id as the CNI plugin sees it.
    #[arg(
        long,
        global = true,
        env = "VNETPOOL_BOOT_ID_FILE",
        default_value = "/proc/sys/kernel/random/boot_id"
    )]
    pub boot_id_file: PathBuf,
    /// Where the kernel's network settings can be written: /proc/sys/net, or the place it is mounted at in a
    /// container whose own /proc/sys is read-only.
    #[arg(long, global = true, env = "VNETPOOL_SYSCTL_NET_DIR", default_value = "/proc/sys/net")]
    pub sysctl_net_dir: PathBuf,
    /// Put rules before those of other firewalls on the node (docker's, ufw's, firewalld's) that drop what
    /// pods send or receive. Without it they are only named in the condition `Undisturbed`.
    #[arg(long, global = true, env = "VNETPOOL_OPEN_FORWARD")]
    pub open_forward: bool,
    /// Where to serve /healthz, /readyz and /metrics. The agent is on the host network, so by default only
    /// the node itself (the kubelet's probes) can reach it.
    #[arg(long, global = true, env = "VNETPOOL_ADMIN_ADDRESS", default_value = "127.0.0.1:9471")]
    pub admin_address: SocketAddr,
    /// Where to serve /metrics to others than the node itself, beside `--admin-address`.
    #[arg(long, global = true, env = "VNETPOOL_METRICS_ADDRESS")]
    pub metrics_address: Option<SocketAddr>,
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
