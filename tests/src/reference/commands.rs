//! What both programs print for `--help`.

use super::wrapped;
use anyhow::Result;
use clap::{Command, CommandFactory};
use std::fmt::Write;

pub(super) fn page() -> Result<String> {
    let mut page = super::head("Commands, flags and variables", "the programs' own help");
    let text = "Each flag can be given by the variable that `[env: …]` names. The chart sets variables, so that a \
                program which is started beside the one that runs (`kubectl exec`) sees the same.";
    page += &format!("\n{}", wrapped("", "", text));
    help(&mut page, &mut vnetpool_operator::args::Args::command().name("vnetpool-operator"), "");
    help(&mut page, &mut vnetpool_node_agent::args::Args::command(), "");
    Ok(page)
}

fn help(page: &mut String, command: &mut Command, above: &str) {
    let name = format!("{above}{}", command.get_name());
    // What the variables are just now is no part of it.
    let text = command.clone().mut_args(|arg| arg.hide_env_values(true)).bin_name(&name).render_help();
    let _ = write!(page, "\n## {name}\n\n```text\n");
    for line in text.to_string().lines() {
        if line.chars().count() > 110 {
            let indent = &line[..line.len() - line.trim_start().len()];
            *page += &wrapped(indent, &format!("{indent}    "), line);
        } else {
            *page += line.trim_end();
            page.push('\n');
        }
    }
    *page += "```\n";
    let below: Vec<Command> =
        command.get_subcommands().filter(|one| one.get_name() != "help").cloned().collect();
    for mut one in below {
        help(page, &mut one, &format!("{name} "));
    }
}
