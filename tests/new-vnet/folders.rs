//! The folders that k3s gives its runtime. Each of its plugins is a link to a program in the folder of the
//! release, which the agent's container doesn't show.

use crate::{PATIENCE, World};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use vnetpool_crds::condition;
use vnetpool_tests::cluster::Cluster;
use vnetpool_tests::eventually;
use vnetpool_tests::place::{Place, Seen};
use vnetpool_tests::workload::{PORT, container};

pub const BIN: &str = "/var/lib/rancher/k3s/data/cni";
pub const CONF: &str = "/var/lib/rancher/k3s/agent/etc/cni/net.d";
/// Named by a digest of the release.
const RELEASE: &str = "/var/lib/rancher/k3s/data/0123456789abcdef/bin";
/// Those of the nodes as they are made.
const DEFAULTS: [(&str, &str); 2] = [("/opt/cni/bin", BIN), ("/etc/cni/net.d", CONF)];

/// On every node, before anything of ours is there. The runtimes begin anew.
pub fn lay_out_as_k3s(cluster: &Cluster) -> Result<()> {
    for node in &cluster.state.nodes {
        for folder in [BIN, CONF, RELEASE] {
            fs::create_dir_all(node.path(folder))?;
        }
        for plugin in fs::read_dir(node.path(DEFAULTS[0].0))? {
            let plugin = plugin?;
            let target = Path::new(RELEASE).join(plugin.file_name());
            fs::copy(plugin.path(), node.path(&target.to_string_lossy()))?;
            fs::remove_file(plugin.path())?;
            symlink(target, node.path(BIN).join(plugin.file_name()))?;
        }
        let configuration = node.path("/etc/containerd/config.toml");
        let mut text = fs::read_to_string(&configuration)?;
        for (default, other) in DEFAULTS {
            ensure!(text.contains(default), "containerd reads other folders: {text}");
            text = text.replace(default, other);
        }
        fs::write(&configuration, text)?;
        for runtime in node.processes("containerd") {
            kill(Pid::from_raw(runtime.try_into()?), Signal::SIGTERM)?;
        }
    }
    Ok(())
}

pub async fn a_host_port_leads_to_its_pod_where_the_runtime_has_the_folders_of_k3s(
    world: &World,
) -> Result<()> {
    const HOST_PORT: u16 = 8188;
    let node = world.cluster.host("node-1")?;
    eventually("the agent has found the plugins to chain", PATIENCE, || async {
        let seen = world.cluster.allocation("node-1").await?.status.context("no status")?.conditions;
        let found = condition::find(&seen, condition::CNI_INSTALLED).context("no condition")?;
        ensure!(found.reason == "Installed", "{}: {}", found.reason, found.message);
        Ok(Some(()))
    })
    .await?;
    for (default, _) in DEFAULTS {
        let left: Vec<_> = fs::read_dir(node.path(default))?.collect::<Result<_, _>>()?;
        ensure!(left.is_empty(), "the agent has put into {default}: {left:?}");
    }
    let mut container = container(PORT);
    container["ports"] = json!([{ "containerPort": PORT, "hostPort": HOST_PORT }]);
    let pod = json!({ "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "hosted", "namespace": "default", "labels": { "app": "hosted" } },
        "spec": { "terminationGracePeriodSeconds": 1, "nodeName": "node-1",
            "automountServiceAccountToken": false, "containers": [container] } });
    world.cluster.apply(&pod.to_string()).await?;
    let pod = world.cluster.running("hosted", 1, PATIENCE).await?.pop().context("no pod")?;
    let client = Place::host(world.cluster.state.vms.first().context("no plain VM")?);
    let seen = client.seen_at(&node.address, HOST_PORT).await?;
    ensure!(seen == Seen::new(&client.address, pod.address), "the pod sees {seen:?}");
    world.cluster.kubectl(&["delete", "pod", "hosted"]).await.map(drop)
}
