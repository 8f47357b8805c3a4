//! A node's inside, seen from outside it: its processes and its ledger.

use crate::cluster::{Cluster, Host};
use crate::workload::ProbePod;
use anyhow::{Context, Result};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use vnetpool_plugin::ledger::file::Store;
use vnetpool_plugin::ledger::{self, Ledger, Sandbox};

impl Host {
    /// The node's ledger as it is now.
    ///
    /// # Errors
    /// When there is none, or it can't be read.
    pub fn ledger(&self) -> Result<Ledger> {
        let boot_id = std::fs::read_to_string(self.path("/proc/sys/kernel/random/boot_id"))?;
        Store::at(self.path("/run/vnetpool"))
            .of_boot(boot_id.trim())
            .read()
            .with_context(|| format!("the ledger of {}", self.name))
    }

    /// The ids of the processes on this machine that were started under this name.
    pub fn processes(&self, program: &str) -> Vec<u32> {
        processes_in(&PathBuf::from(format!("/proc/{}/ns/net", self.pid)), program)
    }
}

/// The name of the link that leads to a pod on its node; the pod is in the namespace `default`.
pub fn host_link(pod: &ProbePod) -> String {
    let sandbox = Sandbox { container_id: String::new(), ifname: "eth0".to_owned() };
    let pod = ledger::Pod { namespace: "default".to_owned(), name: pod.name.clone(), uid: String::new() };
    sandbox.host_link(&pod)
}

/// The ids of the processes in a network namespace, given by a file of it, that were started under this name.
/// Kubernetes' programs are one file of many names, so the file's name isn't enough.
pub fn processes_in(namespace: &Path, program: &str) -> Vec<u32> {
    let id = |file: &Path| std::fs::metadata(file).ok().map(|file| (file.dev(), file.ino()));
    let Some(theirs) = id(namespace) else { return vec![] };
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            let process = PathBuf::from(format!("/proc/{pid}"));
            let arguments = std::fs::read(process.join("cmdline")).unwrap_or_default();
            let name = arguments.split(|byte| *byte == 0).next().unwrap_or_default();
            let name = name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
            name == program.as_bytes() && id(&process.join("ns/net")) == Some(theirs)
        })
        .collect()
}

impl Cluster {
    /// How many records in all ledgers are assigned to a sandbox.
    pub fn assigned_records(&self) -> Result<usize> {
        let nodes = self.state.nodes.iter();
        nodes.map(|node| Ok(self.host(&node.name)?.ledger()?.assignments().count())).sum()
    }

    /// Keeps the node agent away from a node until [`Cluster::agent_back`]; returns when no process of it is
    /// left there.
    pub async fn agent_away(&self, node: &str) -> Result<()> {
        self.kubectl(&["label", "node", node, "vnetpool.io/agent=away", "--overwrite"]).await?;
        let affinity = r#"{"spec":{"template":{"spec":{"affinity":{"nodeAffinity":{
            "requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[
            {"key":"vnetpool.io/agent","operator":"NotIn","values":["away"]}]}]}}}}}}}"#;
        self.patch_agent(affinity).await?;
        let host = self.host(node)?;
        crate::eventually(&format!("no agent on {node}"), Duration::from_secs(120), || async {
            Ok(host.processes("vnetpool-node-agent").is_empty().then_some(()))
        })
        .await
    }

    /// Lets the node agent run everywhere again, and waits until it does.
    pub async fn agent_back(&self, node: &str) -> Result<()> {
        self.kubectl(&["label", "node", node, "vnetpool.io/agent-", "--overwrite"]).await?;
        self.patch_agent(r#"{"spec":{"template":{"spec":{"affinity":null}}}}"#).await?;
        let rollout =
            ["rollout", "status", "daemonset/vnetpool-node-agent", "-n", "vnetpool-system", "--timeout=180s"];
        self.kubectl(&rollout).await.map(drop)
    }

    async fn patch_agent(&self, patch: &str) -> Result<()> {
        let daemonset = [
            "patch",
            "daemonset",
            "vnetpool-node-agent",
            "-n",
            "vnetpool-system",
            "--type=merge",
            "-p",
            patch,
        ];
        self.kubectl(&daemonset).await.map(drop)
    }
}
