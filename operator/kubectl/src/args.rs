//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

/// Who has which address of the VNet, why a node has no more, and whether all that is recorded agrees.
///
/// It reads through kubectl, with the rights of whoever calls it, and writes nothing.
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

/// What is handed on to kubectl.
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
    /// Pools, nodes, and what isn't well and why.
    Status,
    /// Who has an address, or which addresses a pod has.
    ///
    /// Also of addresses that cool, that were given up, or that somebody took off a NIC, as the ledger of the
    /// node tells.
    Who {
        /// An address, or a pod as NAMESPACE/NAME or NAME.
        #[arg(value_name = "ADDRESS|POD")]
        what: String,
    },
    /// Why a node holds as many addresses as it does: each step of the sizing with its number.
    Explain { node: String },
    /// Size of each subnet, what is held and free there, and whether it is about to run out.
    Subnets,
    /// What `kubectl apply -f` of this file would do to each node. Applies nothing.
    ///
    /// The API server is asked to apply it as a dry run, so its rules and defaults hold, and whoever asks
    /// needs the right to apply it.
    Plan {
        /// A file with NodeIPPools.
        #[arg(short, long)]
        filename: PathBuf,
    },
    /// Whether NIC, spec, ledger, kernel and pods agree. Ends with 1 if they don't.
    ///
    /// It looks twice, and only what it sees twice counts. What can't be looked at isn't well, either.
    Check {
        /// Only this node.
        node: Option<String>,
        /// How many seconds after the first snapshot it takes the second.
        #[arg(long, default_value_t = 30)]
        apart: u64,
    },
    /// What keeps the nodes of a cluster with another pod network from being moved to Vnetpool, before
    /// anything is installed. Ends with 1 if something does.
    Migrate {
        /// There is no more to it: nodes are moved by whoever administers them.
        #[arg(long, required = true)]
        check: bool,
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
    /// Ids are replaced by the same words everywhere. Addresses and names of nodes and pods stay: look
    /// through it before you give it to others.
    Bundle { folder: PathBuf },
    /// Prints the program `kubectl_complete-vnetpool`: on the PATH, it has kubectl complete these commands.
    Completions,
    /// What kubectl offers for the words so far.
    #[command(hide = true)]
    Complete { words: Vec<String> },
}
