//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

/// Shows which pod has which address of the VNet, why a node has no more, and whether all records agree.
///
/// It reads through kubectl, with its user's rights, and writes nothing but what `check --repair` asks for.
#[derive(Debug, Parser)]
#[command(name = "kubectl-vnetpool", bin_name = "kubectl vnetpool", version)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub access: Access,
    /// How to print: a table for people, or JSON for programs.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// The options that are handed on to kubectl.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Access {
    /// The namespace that Vnetpool is installed in.
    #[arg(short, long, global = true, env = "VNETPOOL_NAMESPACE", default_value = "vnetpool-system")]
    pub namespace: String,
    /// The kubeconfig to use, if not kubectl's own choice.
    #[arg(long, global = true)]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig to use.
    #[arg(long, global = true)]
    pub context: Option<String>,
    /// The user in whose name to ask.
    #[arg(long = "as", global = true)]
    pub user: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Json,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Shows pools and nodes, which of them aren't well, and why.
    Status,
    /// Shows which pod has an address, or which addresses a pod has.
    ///
    /// Also shows addresses that cool, that were given up, or that were taken off a NIC by others, as the
    /// node's ledger has them.
    Who {
        /// An address, or a pod as NAMESPACE/NAME or NAME.
        #[arg(value_name = "ADDRESS|POD")]
        what: String,
    },
    /// Why a node holds as many addresses as it does: each step of the sizing with its number.
    Explain { node: String },
    /// Shows the size of each subnet, the addresses held and free there, and whether it is about to run out.
    Subnets,
    /// Shows the effect of `kubectl apply -f` of this file on each node. Applies nothing.
    ///
    /// The API server is asked to apply it as a dry run, so its rules and defaults hold, and the user needs
    /// the right to apply it.
    Plan {
        /// A file with NodeIPPools.
        #[arg(short, long)]
        filename: PathBuf,
    },
    /// Whether NIC, spec, ledger, kernel and pods agree. Ends with 1 if they don't.
    ///
    /// It checks twice, and only a difference that it sees twice counts. A part that can't be checked isn't
    /// well, either. What NICs hold that nodes have left, or that don't serve them, is shown, too: it is
    /// recorded and goes back, so it is no difference.
    Check {
        /// Only this node.
        node: Option<String>,
        /// How many seconds after the first snapshot it takes the second.
        #[arg(long, default_value_t = 30)]
        apart: u64,
        /// Where NIC and spec differ, ask the operator to read the NIC now, and check once more.
        ///
        /// Only the operator and the nodes' agents repair anything. The operator believes spec for hours, so
        /// this has it begin at once. It writes the annotation vnetpool.io/read and nothing else.
        #[arg(long)]
        repair: bool,
    },
    /// Shows what keeps the nodes of a cluster with another pod network from being moved to Vnetpool, before
    /// anything is installed. Ends with 1 if something does.
    Migrate {
        /// There is no more to it: the nodes' administrator moves them.
        #[arg(long, required = true)]
        check: bool,
        /// The architectures that you have images for, as the chart's value `image.architectures` will have
        /// them.
        #[arg(long, value_delimiter = ',', default_value = "amd64")]
        architectures: Vec<String>,
    },
    /// Tests each permission the operator needs in Azure, by the operator's own `preflight`.
    #[command(disable_help_flag = true)]
    Preflight {
        /// Options of `vnetpool-operator preflight`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Writes objects, ledgers, reservations and logs to a new folder, without ids and secrets.
    ///
    /// Ids are replaced by the same words everywhere. Addresses and names of nodes and pods stay: read it
    /// before you give it to others.
    Bundle { folder: PathBuf },
    /// Prints the program `kubectl_complete-vnetpool`: on the PATH, it has kubectl complete these commands.
    Completions,
    /// The completions that kubectl offers for the words so far.
    #[command(hide = true)]
    Complete { words: Vec<String> },
}
