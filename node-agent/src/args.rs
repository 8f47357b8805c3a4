//! The program's subcommands and flags, from the command line and the environment.

use clap::{Parser, Subcommand, ValueEnum};
use vnetpool_process::log::LogFormat;

use crate::{
    attach::{Container, Namespace},
    config::Config,
};

/// Supplies the node's ledger of pod addresses, reports it, and keeps the node's network rules.
#[derive(Debug, Parser)]
#[command(name = "vnetpool-node-agent", version)]
pub struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub config: Config,
    /// How log lines are written; RUST_LOG chooses which.
    #[arg(long, global = true, env = "VNETPOOL_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Serve the node until a signal ends the process (the default).
    Run,
    /// Remove from the node what the agent put there. Refused while a pod has an address. End the agent first
    /// (delete the DaemonSet): an agent that runs puts everything back.
    Cleanup {
        /// Try until it is done, and then stay: as the chart's DaemonSet does with nodeAgent.cleanUp. Ready
        /// is a node that is clean.
        #[arg(long)]
        stay: bool,
    },
    /// Print which pod has which address of this node.
    Status {
        /// For people, or with the wiring, as JSON for `kubectl vnetpool`.
        #[arg(short, long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
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

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Output {
    Text,
    Json,
}
