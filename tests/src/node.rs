//! A node's inside, seen from outside it: its processes and its ledger.

use crate::cluster::{Cluster, Host};
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::time::Duration;
use vnetpool_plugin::ledger::Ledger;
use vnetpool_plugin::ledger::file::Store;

impl Host {
    /// A path of the node as this process can open it.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.pid))
    }

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

    /// The ids of the processes on this machine whose program has this name.
    pub fn processes(&self, program: &str) -> Vec<u32> {
        let network = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let ours = network(self.pid);
        let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|&pid: &u32| {
                let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
                exe.file_name().is_some_and(|name| name == program) && network(pid) == ours
            })
            .collect()
    }
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
