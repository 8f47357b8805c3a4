//! kubectl's request to a plugin when its user presses Tab: it runs the program `kubectl_complete-vnetpool`
//! with the words so far, and offers the lines that this prints. So these commands are completed in every
//! shell that kubectl knows.

use clap::{Arg, Command};

/// `kubectl_complete-vnetpool`.
pub const SCRIPT: &str = "#!/bin/sh\n# kubectl calls this to complete `kubectl vnetpool`.\nexec kubectl vnetpool complete -- \"$@\"\n";

/// Directives of kubectl's own completion (cobra's): offer files as well, or not.
const FILES: &str = ":0";
const NO_FILES: &str = ":4";

/// The lines for these words, of which the last is incomplete. `nodes` are asked for only where one is due.
pub fn complete(command: &Command, words: &[String], nodes: impl FnOnce() -> Vec<String>) -> Vec<String> {
    let (begun, before) = words.split_last().map_or(("", &[][..]), |(last, before)| (last.as_str(), before));
    let chosen = before.iter().find_map(|word| visible(command).find(|one| one.get_name() == word));
    let (offered, directive) = match chosen {
        _ if begun.starts_with('-') => {
            let of_chosen = chosen.into_iter().flat_map(Command::get_arguments);
            (command.get_arguments().chain(of_chosen).filter_map(flag).collect(), NO_FILES)
        }
        None => (visible(command).map(described).collect(), NO_FILES),
        Some(one) if matches!(one.get_name(), "explain" | "check") => (nodes(), NO_FILES),
        Some(one) if matches!(one.get_name(), "plan" | "bundle") => (vec![], FILES),
        Some(_) => (vec![], NO_FILES),
    };
    let fitting = offered.into_iter().filter(|one: &String| one.starts_with(begun));
    fitting.chain([directive.to_owned()]).collect()
}

fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|one| !one.is_hide_set())
}

/// The text behind a tab is shown beside the word.
fn described(command: &Command) -> String {
    format!("{}\t{}", command.get_name(), command.get_about().map(ToString::to_string).unwrap_or_default())
}

fn flag(arg: &Arg) -> Option<String> {
    Some(format!("--{}\t{}", arg.get_long()?, arg.get_help().map(ToString::to_string).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Args;
    use clap::CommandFactory;

    /// The words offered, without the text shown beside them.
    fn offered(words: &[&str]) -> Vec<String> {
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        let lines = complete(&Args::command(), &words, || vec!["node-1".to_owned(), "other".to_owned()]);
        lines.iter().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_begun_word_is_completed_with_matching_ones() {
        assert_eq!(offered(&["s"]), ["status", "subnets", ":4"]);
        assert_eq!(offered(&["explain", "no"]), ["node-1", ":4"]);
        assert_eq!(offered(&["check", "--ap"]), ["--apart", ":4"]);
        assert_eq!(offered(&["status", "--cont"]), ["--context", ":4"]);
        assert_eq!(offered(&["plan", "-f", "po"]), [":0"]);
        assert!(!offered(&[""]).contains(&"complete".to_owned()), "{:?}", offered(&[""]));
    }
}
