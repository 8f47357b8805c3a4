//! The shell commands of README and the documents, read out of the Markdown itself: tests run the commands
//! that people are given to type.
//!
//! A comment stands right before each block of commands. `<!-- run: GROUP -->` names the test that runs the
//! block, by [`GROUPS`]; `<!-- not run: REASON -->` gives the reason why none does.

use crate::project::{root, search_path};
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The test that runs the blocks of a group.
pub const GROUPS: [(&str, &str); 14] = [
    ("azure", "the_documented_commands_of_az_work_on_simulated_azure"),
    ("install", "the_documented_commands_work"),
    ("read", "the_documented_commands_work"),
    ("inspect", "the_documented_commands_that_inspect_work"),
    ("gitops", "a_persons_pool_survives_upgrade_rollback_and_a_new_installation"),
    ("gone", "a_subscription_that_azure_does_not_know_ends_no_record_before_a_person_confirms"),
    ("migrate", "the_documented_step_keeps_another_network_on_the_nodes_there_were"),
    ("plain-vm-agent", "the_documented_commands_for_a_plain_vm_work"),
    ("plain-vm", "the_documented_commands_for_a_plain_vm_work"),
    ("plain-vm-end", "the_documented_commands_for_a_plain_vm_work"),
    ("upgrade", "an_upgrade_and_a_rollback_as_documented_restart_no_pod"),
    ("uninstall", "nothing_stays_after_the_uninstall_that_is_documented"),
    ("hanging", "a_record_whose_operator_is_gone_ends_by_the_documented_command"),
    ("uninstall-node", "nothing_stays_after_the_uninstall_that_is_documented"),
];
/// The languages of fences that are commands.
const SHELLS: [&str; 5] = ["sh", "bash", "shell", "console", "zsh"];

/// A block of commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snippet {
    /// File and line.
    pub place: String,
    /// The program that the fence names.
    pub shell: String,
    pub script: String,
    pub fate: Fate,
    /// The block of text that follows: the documented output of the commands.
    pub prints: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// A test of this group runs it.
    Run(String),
    /// No test runs it, for this reason.
    NotRun(String),
}

impl Snippet {
    /// Its commands with our kubectl, its plugin and helm, in the project's folder and the shell that the
    /// document names, as an administrator of the cluster would type them; the shell runs `before` first.
    pub fn command(&self, before: &str, variables: &[(&str, &str)]) -> Command {
        let mut shell = Command::new(&self.shell);
        shell.args(["-euxc", &format!("{before}\n{}", self.script)]);
        shell.env("PATH", search_path()).envs(variables.iter().copied()).current_dir(root());
        shell
    }

    /// The lines of `prints` that head a table, as words: people search for these columns.
    pub fn headers(&self) -> Vec<Vec<&str>> {
        let lines = self.prints.iter().flat_map(|text| text.lines());
        let is_header = |line: &&str| {
            line.chars().any(char::is_alphabetic) && !line.chars().any(|one| one.is_ascii_lowercase())
        };
        lines.filter(is_header).map(|line| line.split_whitespace().collect()).collect()
    }
}

/// The blocks of a group, in the order of the files' names.
///
/// # Errors
/// When there is none, or a document can't be read.
pub fn of(group: &str) -> Result<Vec<Snippet>> {
    let mut found = all()?;
    found.retain(|one| matches!(&one.fate, Fate::Run(name) if name == group));
    ensure!(!found.is_empty(), "no document has a block `run: {group}`");
    Ok(found)
}

/// README and every document of `docs` and `examples`.
///
/// # Errors
/// When a folder can't be read.
pub fn documents() -> Result<Vec<PathBuf>> {
    let mut files = vec![root().join("README.md")];
    for folder in ["docs", "examples"] {
        visit(&root().join(folder), &mut files)?;
    }
    files.sort();
    Ok(files)
}

/// Every block of the documents.
///
/// # Errors
/// When a document can't be read, or one has a block without a marker.
pub fn all() -> Result<Vec<Snippet>> {
    let mut found = vec![];
    for file in documents()? {
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let name = file.strip_prefix(root()).unwrap_or(&file).display().to_string();
        found.extend(parse(&name, &text)?);
    }
    Ok(found)
}

fn visit(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            visit(&path, files)?;
        } else if path.extension().is_some_and(|ending| ending == "md") {
            files.push(path);
        }
    }
    Ok(())
}

/// The blocks of commands of one document.
///
/// # Errors
/// When a block has no marker, no language, or no end.
pub fn parse(name: &str, text: &str) -> Result<Vec<Snippet>> {
    let mut found: Vec<Snippet> = vec![];
    // The line right before a fence: a marker, or a block whose output may follow.
    let (mut marker, mut last_was_block) = (None, false);
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let place = format!("{name}:{}", number + 1);
        let Some(language) = line.trim_start().strip_prefix("```") else {
            if !line.trim().is_empty() {
                (marker, last_was_block) = (fate(line), false);
            }
            continue;
        };
        let mut block = String::new();
        loop {
            let Some((_, line)) = lines.next() else { bail!("{place}: the block doesn't end") };
            if line.trim() == "```" {
                break;
            }
            block += line;
            block.push('\n');
        }
        ensure!(!language.is_empty(), "{place}: the fence names no language; `text` is one");
        let is_command = SHELLS.contains(&language);
        if is_command {
            let fate = marker.take().with_context(|| {
                format!("{place}: neither `<!-- run: GROUP -->` nor `<!-- not run: REASON -->` stands before")
            })?;
            let shell = language.to_owned();
            found.push(Snippet { place, shell, script: block, fate, prints: None });
        } else if language == "text"
            && last_was_block
            && let Some(snippet) = found.last_mut()
        {
            snippet.prints = Some(block);
        }
        (marker, last_was_block) = (None, is_command);
    }
    Ok(found)
}

fn fate(line: &str) -> Option<Fate> {
    let comment = line.trim().strip_prefix("<!--")?.strip_suffix("-->")?;
    let (key, value) = comment.split_once(':')?;
    let value = value.trim().to_owned();
    match key.trim() {
        "run" => Some(Fate::Run(value)),
        "not run" if !value.is_empty() => Some(Fate::NotRun(value)),
        _ => None,
    }
}
