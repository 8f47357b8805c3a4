//! The programs' output for `--help`.

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
    help(&mut page, &mut vnetpool_kubectl::args::Args::command().name("kubectl vnetpool"), "");
    Ok(page)
}

fn help(page: &mut String, command: &mut Command, above: &str) {
    let name = format!("{above}{}", command.get_name());
    // The variables' present values are no part of it.
    let text = command.clone().mut_args(|arg| arg.hide_env_values(true)).bin_name(&name).render_long_help();
    let _ = write!(page, "\n## {name}\n\n```text\n");
    for line in text.to_string().lines() {
        let (first, rest) = line.split_at(column(line));
        *page += &wrapped(first, &" ".repeat(first.chars().count()), rest);
    }
    *page += "```\n";
    let is_shown = |one: &&Command| one.get_name() != "help" && !one.is_hide_set();
    let below: Vec<Command> = command.get_subcommands().filter(is_shown).cloned().collect();
    for mut one in below {
        help(page, &mut one, &format!("{name} "));
    }
}

/// Where the text of a line begins: behind its indent, and in a table behind the first column.
fn column(line: &str) -> usize {
    let begin = |from: usize| line[from..].find(|one| one != ' ').map_or(line.len(), |blanks| from + blanks);
    let indent = begin(0);
    line[indent..].find("  ").map_or(indent, |gap| begin(indent + gap))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_goes_on_in_the_column_of_its_text() {
        for (line, at) in [("  a     text here", 8), ("      text here", 6), ("Usage: a [b]", 0), ("", 0)] {
            assert_eq!(column(line), at, "{line:?}");
        }
        let mut page = String::new();
        let long = "word ".repeat(30);
        let below = Command::new("below").about(&long).subcommand(Command::new("hidden").hide(true));
        help(&mut page, &mut Command::new("above").subcommand(below), "");
        let (first, next) = (page.find("  below  word").unwrap(), page.find("\n         word").unwrap());
        assert!(first < next && !page.contains("hidden"), "{page}");
    }
}
