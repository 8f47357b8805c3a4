//! The plugins behind ours in the node's configuration: which of those wanted are there, and which CNI they speak.
//!
//! They are upstream's and on the node already, or not: nothing of them is installed. A list of plugins is run in one version, so
//! it can be offered as 1.1.0, for STATUS and GC, only if each of them speaks that. What they speak they are asked, once for
//! each file, since the older ones that distributions have don't.

use std::{
    collections::HashMap,
    fmt, fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, SystemTime},
};

use clap::ValueEnum;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

/// A plugin only prints a line when asked for its versions.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// A plugin that can be chained behind ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Chained {
    /// Pods' `hostPort`.
    Portmap,
    /// The annotations `kubernetes.io/ingress-bandwidth` and `kubernetes.io/egress-bandwidth`.
    Bandwidth,
}

impl Chained {
    /// Its file's name.
    pub fn name(self) -> &'static str {
        match self {
            Chained::Portmap => "portmap",
            Chained::Bandwidth => "bandwidth",
        }
    }

    /// Its part of the configuration.
    pub fn configuration(self) -> Value {
        match self {
            // Translates the source of a pod that reaches itself, and of the node's own 127.0.0.1; of nobody else.
            Chained::Portmap => {
                json!({ "type": self.name(), "capabilities": { "portMappings": true }, "snat": true })
            }
            Chained::Bandwidth => json!({ "type": self.name(), "capabilities": { "bandwidth": true } }),
        }
    }

    fn purpose(self) -> &'static str {
        match self {
            Chained::Portmap => "pods' hostPorts",
            Chained::Bandwidth => "pods' bandwidth limits",
        }
    }
}

/// What of the wanted chain there is on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    pub found: Vec<Chained>,
    pub missing: Vec<Chained>,
    /// Whether all that were found speak CNI 1.1.0.
    pub speaks_1_1: bool,
}

/// What is missing, why it matters, and what to do.
#[derive(Debug)]
pub struct Missing<'a>(pub &'a [Chained], pub &'a Path);

impl fmt::Display for Missing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Missing(missing, bin_dir) = self;
        let list = |word: fn(Chained) -> &'static str| {
            missing.iter().map(|&one| word(one)).collect::<Vec<_>>().join(" and ")
        };
        write!(
            f,
            "{} not found in {}, so that {} have no effect on this node: install the CNI project's plugins there, or take it out of nodeAgent.cni.chain",
            list(Chained::name),
            bin_dir.display(),
            list(Chained::purpose)
        )
    }
}

/// Looks plugins up; remembers what each file said.
#[derive(Debug, Default)]
pub struct Look {
    answers: HashMap<PathBuf, (Option<SystemTime>, u64, bool)>,
}

impl Look {
    /// Looks for the plugins in this folder.
    pub async fn at(&mut self, wanted: &[Chained], bin_dir: &Path) -> Chain {
        let mut chain = Chain { speaks_1_1: true, ..Chain::default() };
        for &plugin in wanted {
            let path = bin_dir.join(plugin.name());
            let Some(metadata) = fs::metadata(&path).ok().filter(fs::Metadata::is_file) else {
                chain.missing.push(plugin);
                continue;
            };
            chain.found.push(plugin);
            let file = (metadata.modified().ok(), metadata.len());
            let answer = match self.answers.get(&path) {
                Some(&(modified, size, answer)) if (modified, size) == file => Some(answer),
                _ => speaks_1_1(&path).await,
            };
            // One that couldn't be asked, while it is being installed for instance, is asked again with the next look.
            self.answers.extend(answer.map(|answer| (path, (file.0, file.1, answer))));
            chain.speaks_1_1 &= answer == Some(true);
        }
        chain
    }
}

/// Asks the plugin for its versions. One that can't be asked (`None`) counts as old: then the chain works, only without STATUS and
/// GC.
async fn speaks_1_1(plugin: &Path) -> Option<bool> {
    let ask = async {
        let mut child = Command::new(plugin)
            .env_clear()
            .env("CNI_COMMAND", "VERSION")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut pipe) = child.stdin.take() {
            // One that answers without having read this is none the worse.
            let _ = pipe.write_all(br#"{"cniVersion":"1.0.0"}"#).await;
        }
        child.wait_with_output().await
    };
    let output = timeout(ANSWER_WITHIN, ask).await.ok()?.ok()?;
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let versions = answer["supportedVersions"].as_array();
    Some(versions.is_some_and(|versions| versions.iter().any(|version| version == "1.1.0")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const BOTH: [Chained; 2] = [Chained::Portmap, Chained::Bandwidth];

    /// A plugin that says it speaks these versions.
    fn install(dir: &Path, plugin: Chained, versions: &str) {
        let script =
            format!("#!/bin/sh\necho '{{\"cniVersion\":\"1.0.0\",\"supportedVersions\":{versions}}}'\n");
        let (path, new) = (dir.join(plugin.name()), dir.join("new"));
        fs::write(&new, script).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, path).unwrap();
    }

    #[tokio::test]
    async fn what_is_there_is_chained_and_what_is_not_is_named() {
        let dir = tempfile::tempdir().unwrap();
        install(dir.path(), Chained::Bandwidth, r#"["1.0.0","1.1.0"]"#);
        let chain = Look::default().at(&BOTH, dir.path()).await;
        assert_eq!(chain.found, [Chained::Bandwidth]);
        let told = Missing(&chain.missing, dir.path()).to_string();
        assert!(told.contains("portmap not found in") && told.contains("hostPorts"), "{told}");
        assert!(!told.contains("bandwidth"), "{told}");
    }

    #[tokio::test]
    async fn the_newest_version_is_offered_only_if_every_chained_plugin_speaks_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut look = Look::default();
        assert!(look.at(&BOTH, dir.path()).await.speaks_1_1, "ours alone");
        install(dir.path(), Chained::Portmap, r#"["0.4.0","1.0.0","1.1.0"]"#);
        install(dir.path(), Chained::Bandwidth, r#"["0.4.0","1.0.0"]"#);
        assert!(!look.at(&BOTH, dir.path()).await.speaks_1_1);
        install(dir.path(), Chained::Bandwidth, r#"["0.4.0","1.0.0","1.1.0"]"#);
        // Another test's new process may hold the file open for a moment: then it can't be asked.
        let mut speaks = false;
        for _ in 0..1000 {
            speaks = speaks || look.at(&BOTH, dir.path()).await.speaks_1_1;
        }
        assert!(speaks, "another file is asked anew");
        fs::write(dir.path().join("portmap"), "no program").unwrap();
        assert!(!look.at(&BOTH, dir.path()).await.speaks_1_1, "can't be asked");
    }
}
