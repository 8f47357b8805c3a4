//! `bundle`: objects, ledgers and logs in a folder, without ids and secrets, for a person who is to help.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde_json::Value;
use vnetpool_crds::NodeIPAllocation;

use crate::check::places;
use crate::cluster::{Objects, cannot_be_read};
use crate::kubectl::{Kubectl, Program};
use crate::redact::Redaction;

/// So many lines of each log.
const LINES: &str = "--tail=5000";
/// The parts that couldn't be read.
const MISSING: &str = "missing.txt";

/// Writes the folder and returns the parts that are missing in it.
///
/// # Errors
/// When the folder is there, or can't be written.
pub fn bundle(kubectl: &Kubectl, folder: &Path) -> Result<Vec<String>> {
    let mut folder = Folder::new(folder)?;
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
        folder.json(file, kubectl.get::<Value>(&path))?;
    }
    for program in [Program::Operator, Program::NodeAgent] {
        match kubectl.pods(program, None) {
            Ok(pods) => {
                let pods: Vec<String> = pods.iter().map(ResourceExt::name_any).collect();
                kubectl
                    .logs(program, &pods, LINES, |pod, log| folder.text(&format!("log-{pod}.txt"), log))?;
            }
            Err(error) => folder.lack(&format!("logs of {}", program.name()), &error),
        }
    }
    match Objects::ours(kubectl) {
        Ok(ours) => {
            ours.unreadable.iter().for_each(|one| folder.lack("objects", &anyhow!(cannot_be_read(one))));
            // Also of a node whose object can't be read: its ledger has the most facts.
            let unread = ours.unreadable.iter().filter(|one| one.kind == NodeIPAllocation::kind(&()));
            let nodes: BTreeSet<String> = ours
                .allocations
                .iter()
                .map(ResourceExt::name_any)
                .chain(unread.map(|one| one.name()))
                .collect();
            for (node, ledger) in kubectl.nodes(nodes.iter().map(String::as_str)) {
                folder.json(&format!("ledger-{node}.json"), ledger.map_err(anyhow::Error::msg))?;
            }
            let (mut views, mut failed) = (vec![], BTreeMap::<String, Vec<String>>::new());
            for (id, view) in kubectl.reserved(places(&ours.allocations)) {
                match view {
                    Ok(view) => views.push(view),
                    // One failure may be that of many.
                    Err(why) => failed.entry(why).or_default().push(id),
                }
            }
            folder.json("reserved.json", Ok(views))?;
            for (why, ids) in failed {
                folder.lack(&format!("reserved.json: {}", ids.join(", ")), &anyhow!(why));
            }
        }
        Err(error) => folder.lack("ledgers and reserved.json", &error),
    }
    folder.finish()
}

/// A folder that is being filled. Nothing gets into it, or to the user, that isn't redacted.
struct Folder {
    path: PathBuf,
    redaction: Redaction,
    /// The files written so far, and the names known then.
    written: Vec<(String, usize)>,
    /// The parts that couldn't be read, and why not.
    missing: String,
}

impl Folder {
    fn new(path: &Path) -> Result<Folder> {
        fs::create_dir(path).with_context(|| format!("making the folder {}", path.display()))?;
        let (written, missing) = (vec![], String::new());
        Ok(Folder { path: path.to_owned(), redaction: Redaction::default(), written, missing })
    }

    fn json(&mut self, file: &str, read: Result<impl Serialize>) -> Result<()> {
        match read.and_then(|value| Ok(serde_json::to_value(value)?)) {
            Ok(mut value) => {
                self.redaction.object(&mut value);
                self.write(file, &serde_json::to_string_pretty(&value)?)
            }
            Err(error) => {
                self.lack(file, &error);
                Ok(())
            }
        }
    }

    fn text(&mut self, file: &str, read: Result<Vec<u8>>) -> Result<()> {
        match read {
            Ok(text) => {
                let clean = self.redaction.text(&String::from_utf8_lossy(&text));
                self.write(file, &clean)
            }
            Err(error) => {
                self.lack(file, &error);
                Ok(())
            }
        }
    }

    fn lack(&mut self, what: &str, error: &anyhow::Error) {
        let line = self.redaction.text(&format!("{what}: {error:#}"));
        self.missing += &(line.replace('\n', " ") + "\n");
    }

    fn write(&mut self, file: &str, clean: &str) -> Result<()> {
        fs::write(self.path.join(file), clean).with_context(|| format!("writing {file}"))?;
        self.written.push((file.to_owned(), self.redaction.knows()));
        Ok(())
    }

    /// A name that was learned late may stand in the files written before. Returns the missing parts.
    fn finish(mut self) -> Result<Vec<String>> {
        for (file, known) in std::mem::take(&mut self.written) {
            if known < self.redaction.knows() {
                let path = self.path.join(&file);
                let clean = self.redaction.again(&fs::read_to_string(&path)?);
                fs::write(&path, clean).with_context(|| format!("writing {file}"))?;
            }
        }
        let missing = self.redaction.again(&self.missing);
        if !missing.is_empty() {
            fs::write(self.path.join(MISSING), &missing).with_context(|| format!("writing {MISSING}"))?;
        }
        Ok(missing.lines().map(str::to_owned).collect())
    }
}
