//! The program: reads the objects that a command needs, and prints the result.

use std::io::{Write, stderr, stdout};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{CommandFactory, Parser};
use kube::ResourceExt;
use serde::Serialize;
use vnetpool_kubectl::args::{Args, Command, Output};
use vnetpool_kubectl::cluster::Objects;
use vnetpool_kubectl::kubectl::{Kubectl, Program};
use vnetpool_kubectl::migrate::Before;
use vnetpool_kubectl::who::Question;
use vnetpool_kubectl::{bundle, check, complete, explain, migrate, plan, status, subnets, who};

/// The failures; a `check` that finds differences ends with 1.
const FAILED: u8 = 2;

fn main() -> ExitCode {
    run(Args::parse()).unwrap_or_else(|error| {
        // Without the backtrace that `main` would print.
        let _ = writeln!(stderr(), "{error:#}");
        FAILED.into()
    })
}

fn run(Args { command, access, output }: Args) -> Result<ExitCode> {
    let kubectl = Kubectl::new(&access)?;
    match command {
        Command::Status => {
            let nodes = kubectl.list("/api/v1/nodes")?;
            print(&status::status(&Objects { nodes, ..Objects::ours(&kubectl)? }), output)?;
        }
        Command::Who { what } => {
            let (objects, asked) = (Objects::all(&kubectl)?, Question::parse(&what));
            let nodes = who::nodes_to_ask(&objects, &asked);
            let answers = kubectl.nodes(nodes.iter().map(String::as_str));
            print(&who::who(&objects, &asked, &answers)?, output)?;
        }
        Command::Explain { node } => print(&explain::explain(&Objects::all(&kubectl)?, &node)?, output)?,
        Command::Subnets => print(&subnets::subnets(&Objects::ours(&kubectl)?), output)?,
        Command::Plan { filename } => {
            let applied = kubectl.rehearse(&filename)?;
            print(&plan::plan(&Objects::all(&kubectl)?, applied)?, output)?;
        }
        Command::Check { node, apart, repair } => {
            let verdict = check::check(&kubectl, node.as_deref(), Duration::from_secs(apart), repair)?;
            print(&verdict, output)?;
            return Ok(if verdict.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Migrate { check: _, architectures } => {
            let architectures = architectures.into_iter().collect();
            let report = migrate::report(&Before::read(&kubectl)?, &architectures);
            print(&report, output)?;
            return Ok(if report.is_free() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Preflight { options } => {
            let args: Vec<&str> =
                ["preflight"].into_iter().chain(options.iter().map(String::as_str)).collect();
            return Ok(kubectl.attach(Program::Operator, &args)?.into());
        }
        Command::Bundle { folder } => {
            let missing = bundle::bundle(&kubectl, &folder)?;
            writeln!(stdout(), "written to {}; read it before you give it to others", folder.display())?;
            missing.iter().try_for_each(|one| writeln!(stdout(), "missing: {one}"))?;
        }
        Command::Completions => write!(stdout(), "{}", complete::SCRIPT)?,
        Command::Complete { words } => {
            let nodes = || {
                let ours = Objects::ours(&kubectl).unwrap_or_default();
                ours.allocations.iter().map(ResourceExt::name_any).collect()
            };
            let lines = complete::complete(&Args::command(), &words, nodes);
            lines.iter().try_for_each(|line| writeln!(stdout(), "{line}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print<T: Serialize + std::fmt::Display>(view: &T, output: Output) -> Result<()> {
    match output {
        Output::Table => write!(stdout(), "{view}")?,
        Output::Json => writeln!(stdout(), "{}", serde_json::to_string_pretty(view)?)?,
    }
    Ok(())
}
