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
use vnetpool_tests::workload::{PORT, ProbePod, container};

pub const BIN: &str = "/var/lib/rancher/k3s/data/cni";
pub const CONF: &str = "/var/lib/rancher/k3s/agent/etc/cni/net.d";
/// Named by a digest of the release.
const RELEASE: &str = "/var/lib/rancher/k3s/data/0123456789abcdef/bin";
/// Those of the nodes as they are made.
const DEFAULTS: [(&str, &str); 2] = [("/opt/cni/bin", BIN), ("/etc/cni/net.d", CONF)];

/// A plugin of the CNI project that no node has by itself, and the setting of a pod that it is to make.
const TUNING: &str = "/usr/lib/cni/tuning";
const SETTING: &str = "/proc/sys/net/core/somaxconn";
const SET: &str = "517";

/// The value that has it run for each pod.
pub fn further_plugins() -> String {
    let entry = json!({ "type": "tuning", "sysctl": { "net.core.somaxconn": SET } });
    format!("nodeAgent.cni.furtherPlugins={}", json!([entry]))
}

/// On every node, before anything of ours is there. The runtimes begin anew.
pub fn lay_out_as_k3s(cluster: &Cluster) -> Result<()> {
    for node in &cluster.state.nodes {
        for folder in [BIN, CONF, RELEASE] {
            fs::create_dir_all(node.path(folder))?;
        }
        fs::copy(TUNING, node.path(DEFAULTS[0].0).join("tuning"))?;
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

/// Until the agent of a node reports of its configuration with this reason and these words.
async fn until_installed_is(world: &World, node: &str, reason: &str, words: &str) -> Result<()> {
    eventually(&format!("the configuration of {node} is {reason}"), PATIENCE, || async {
        let seen = world.cluster.allocation(node).await?.status.context("no status")?.conditions;
        let found = condition::find(&seen, condition::CNI_INSTALLED).context("no condition")?;
        let is_it = found.reason == reason && found.message.contains(words);
        ensure!(is_it, "{}: {}", found.reason, found.message);
        Ok(Some(()))
    })
    .await
}

pub async fn a_further_plugin_of_the_values_is_run_for_each_pod_and_none_starts_without_it(
    world: &World,
) -> Result<()> {
    let setting = async |pod: &ProbePod| Place::pod(pod)?.run("cat", &[SETTING]).await;
    for pod in &world.pods {
        let set = setting(pod).await?;
        ensure!(set.trim() == SET, "{} has {set:?}", pod.name);
    }
    let (plugin, aside) = (format!("{BIN}/tuning"), format!("{RELEASE}/aside"));
    world.cluster.run_on("node-2", &["mv", &plugin, &aside]).await?;
    world.cluster.have_inspected("node-2").await?;
    until_installed_is(world, "node-2", "OthersPluginMissing", "tuning").await?;
    world.cluster.deploy("untuned", 1, Some("node-2")).await?;
    world.cluster.until_plugin_is_missed("untuned", "tuning", PATIENCE).await?;
    world.cluster.run_on("node-2", &["mv", &aside, &plugin]).await?;
    world.cluster.have_inspected("node-2").await?;
    until_installed_is(world, "node-2", "Installed", "").await?;
    let pods = world.cluster.running("untuned", 1, PATIENCE).await?;
    let set = setting(pods.first().context("no pod")?).await?;
    ensure!(set.trim() == SET, "the pod that has waited has {set:?}");
    world.cluster.undeploy("untuned").await
}

pub async fn a_host_port_leads_to_its_pod_where_the_runtime_has_the_folders_of_k3s(
    world: &World,
) -> Result<()> {
    const HOST_PORT: u16 = 8188;
    let node = world.cluster.host("node-1")?;
    until_installed_is(world, "node-1", "Installed", "").await?;
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
