//! `bundle`: objects, ledgers and logs in a folder, without ids and secrets, for whoever is to help.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kube::ResourceExt;
use serde_json::Value;

use crate::check::place;
use crate::cluster::Objects;
use crate::kubectl::{Kubectl, Program};
use crate::redact::Redaction;

/// So many lines of each log.
const LINES: &str = "--tail=5000";

/// A folder that is being filled.
struct Folder {
    path: PathBuf,
    redaction: Redaction,
    /// What couldn't be had, and why not.
    missing: Vec<String>,
}

/// Writes the folder and gives what is missing in it.
///
/// # Errors
/// When the folder is there, or can't be written.
pub fn bundle(kubectl: &Kubectl, folder: &Path) -> Result<Vec<String>> {
    fs::create_dir(folder).with_context(|| format!("making the folder {}", folder.display()))?;
    let mut folder = Folder { path: folder.to_owned(), redaction: Redaction::default(), missing: vec![] };
    let namespace = &kubectl.namespace;
    let objects = [
        ("nodeippools.json", "/apis/vnetpool.io/v1alpha1/nodeippools".to_owned()),
        ("nodeipallocations.json", "/apis/vnetpool.io/v1alpha1/nodeipallocations".to_owned()),
        ("nodes.json", "/api/v1/nodes".to_owned()),
        ("pods.json", format!("/api/v1/namespaces/{namespace}/pods")),
        ("workloads-deployments.json", format!("/apis/apps/v1/namespaces/{namespace}/deployments")),
        ("workloads-daemonsets.json", format!("/apis/apps/v1/namespaces/{namespace}/daemonsets")),
        ("events.json", "/api/v1/namespaces/default/events".to_owned()),
        ("version.json", "/version".to_owned()),
    ];
    for (file, path) in objects {
        folder.json(file, || kubectl.get(&path))?;
    }
    for program in [Program::Operator, Program::NodeAgent] {
        let pods = kubectl.pods(program, None);
        let pods = pods.unwrap_or_else(|error| {
            folder.missing.push(format!("logs of {}: {error:#}", program.name()));
            vec![]
        });
        for pod in pods.iter().map(ResourceExt::name_any) {
            let args = ["logs", "--namespace", namespace, &pod, "--container", program.name(), LINES];
            folder.text(&format!("log-{pod}.txt"), || kubectl.run(&args))?;
        }
    }
    if let Ok(ours) = Objects::ours(kubectl) {
        for node in ours.allocations.iter().map(ResourceExt::name_any) {
            folder
                .json(&format!("ledger-{node}.json"), || Ok(serde_json::to_value(kubectl.node(&node)?)?))?;
        }
        let ids: Vec<&str> = ours.allocations.iter().filter_map(place).collect();
        folder.json("reserved.json", || Ok(serde_json::to_value(kubectl.reserved(&ids)?)?))?;
    }
    if !folder.missing.is_empty() {
        fs::write(folder.path.join("missing.txt"), folder.missing.join("\n") + "\n")?;
    }
    Ok(folder.missing)
}

impl Folder {
    fn json(&mut self, file: &str, read: impl FnOnce() -> Result<Value>) -> Result<()> {
        match read() {
            Ok(mut value) => {
                self.redaction.object(&mut value);
                fs::write(self.path.join(file), serde_json::to_vec_pretty(&value)?)?;
            }
            Err(error) => self.lack(file, &error),
        }
        Ok(())
    }

    fn text(&mut self, file: &str, read: impl FnOnce() -> Result<Vec<u8>>) -> Result<()> {
        match read() {
            Ok(text) => {
                let clean = self.redaction.text(&String::from_utf8_lossy(&text));
                fs::write(self.path.join(file), clean)?;
            }
            Err(error) => self.lack(file, &error),
        }
        Ok(())
    }

    fn lack(&mut self, file: &str, error: &anyhow::Error) {
        let line = self.redaction.text(&format!("{file}: {error:#}"));
        self.missing.push(line);
    }
}
