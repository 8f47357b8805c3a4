//! Plugins of others around ours, as their installers put them there: a mesh's behind, and one in front that
//! hands pods on to ours. The programs are stand-ins that log for which pod they are called.

use crate::installers::{Installer, Mesh};
use crate::{PATIENCE, World, wired::wire};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::Duration;
use vnetpool_crds::condition;
use vnetpool_crds::pool::Wiring;
use vnetpool_tests::workload::ProbePod;
use vnetpool_tests::{eventually, throughout};

const NODE: &str = "node-2";
/// How long two programs that fight over a file leave it alone at most.
const QUIET: Duration = Duration::from_secs(3);
/// Where the stand-ins log, on the node.
const LOG: &str = "/run/called";

/// Comes behind ours, does nothing to the pod, and hands the result on.
const MESH: &str = r#"#!/bin/sh
echo "mesh $CNI_COMMAND $CNI_ARGS" >> /run/called
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}' ;;
ADD) jq .prevResult ;;
esac
"#;

/// Has the first plugin of the network that it delegates to wire the pod.
const IN_FRONT: &str = r#"#!/bin/sh
echo "front $CNI_COMMAND $CNI_ARGS" >> /run/called
jq '{ cniVersion, name } + .plugins[0]' /etc/cni/net.d/10-vnetpool.conflist | /opt/cni/bin/vnetpool
"#;

/// As linkerd-cni's installer does it: with jq, and from another file system.
const APPEND: &str = r#"cd /etc/cni/net.d
jq '.plugins += [{ "type": "linkerd-cni", "log_level": "info" }]' 10-vnetpool.conflist > /run/new
mv /run/new 10-vnetpool.conflist"#;

const TAKE_OUT: &str = r#"cd /etc/cni/net.d
jq 'del(.plugins[] | select(.type == "linkerd-cni"))' 10-vnetpool.conflist > /run/new
mv /run/new 10-vnetpool.conflist
rm /opt/cni/bin/linkerd-cni"#;

/// containerd heeds a name that goes away from the folder.
const FRONT: &str = r#"cd /etc/cni/net.d
echo '{ "cniVersion": "1.0.0", "name": "in-front", "type": "in-front", "clusterNetwork": "vnetpool" }' > .front
mv .front 00-in-front.conf"#;

impl World {
    async fn shell(&self, script: &str) -> Result<String> {
        self.cluster.run_on(NODE, &["sh", "-euc", script]).await
    }

    /// Puts a program into the folder of plugins.
    async fn plug_in(&self, name: &str, program: &str) -> Result<()> {
        let path = self.cluster.host(NODE)?.path(&format!("/opt/cni/bin/{name}"));
        std::fs::write(&path, program)?;
        self.shell(&format!("chmod 755 /opt/cni/bin/{name}")).await.map(drop)
    }

    /// Waits until the agent reports of the configuration with this reason and these words.
    async fn until_installed_is(&self, status: &str, reason: &str, words: &str) -> Result<()> {
        self.cluster.have_inspected(NODE).await?;
        eventually(&format!("CNIInstalled of {NODE} is {status}, {reason}"), PATIENCE, || async {
            let seen = self.cluster.allocation(NODE).await?.status.context("no status")?.conditions;
            let found = condition::find(&seen, condition::CNI_INSTALLED).context("no condition")?;
            let is_it = found.status == status && found.reason == reason && found.message.contains(words);
            ensure!(is_it, "it is {}, {}: {}", found.status, found.reason, found.message);
            Ok(Some(()))
        })
        .await
    }

    /// Whether a stand-in was called to start each of these pods.
    async fn each_was_called_for(&self, pods: &[ProbePod]) -> Result<()> {
        let log = self.shell(&format!("cat {LOG}")).await?;
        for pod in pods {
            let added = format!("K8S_POD_NAME={}", pod.name);
            let is_its = |line: &str| line.starts_with("mesh ADD ") && line.contains(&added);
            ensure!(log.lines().any(is_its), "{} runs outside of the mesh", pod.name);
        }
        Ok(())
    }

    /// Takes the pods of these deployments away, all at once.
    async fn end_together(&self, names: &[&str]) -> Result<()> {
        let delete = ["delete", "deployment", "--ignore-not-found"];
        self.cluster.kubectl(&[&delete[..], names].concat()).await?;
        self.end(names).await
    }

    /// Starts a pod and takes it away again. Returns the stand-ins that were called to start it.
    async fn called_for(&self, name: &str) -> Result<Vec<String>> {
        let pods = self.start(name, NODE, 1).await?;
        let added = format!("K8S_POD_NAME={}", pods.first().context("no pod")?.name);
        let log = self.shell(&format!("cat {LOG}")).await?;
        let is_its = |line: &&str| line.contains(" ADD ") && line.contains(&added);
        let called = log.lines().filter(is_its).filter_map(|line| line.split(' ').next());
        let called = called.map(str::to_owned).collect();
        self.end(&[name]).await?;
        Ok(called)
    }
}

pub async fn a_mesh_behind_ours_sees_every_pod_and_without_its_program_no_pod_starts(
    world: &World,
) -> Result<()> {
    wire(world, Wiring::Routed).await?;
    world.shell(&format!("> {LOG}")).await?;
    world.plug_in("linkerd-cni", MESH).await?;
    world.shell(APPEND).await?;
    let called = world.called_for("meshed").await?;
    ensure!(called == ["mesh"], "for a pod these were called: {called:?}");

    // An agent that starts writes the configuration anew, for other pods than before.
    for agent in world.cluster.host(NODE)?.processes("vnetpool-node-agent") {
        kill(Pid::from_raw(agent.try_into()?), Signal::SIGKILL)?;
    }
    wire(world, Wiring::Bridge).await?;
    let called = world.called_for("meshed-anew").await?;
    ensure!(called == ["mesh"], "after a rewrite these were called: {called:?}");
    world.until_installed_is("True", "Installed", "linkerd-cni behind it").await?;

    world.shell("mv /opt/cni/bin/linkerd-cni /opt/cni").await?;
    world.until_installed_is("False", "OthersPluginMissing", "linkerd-cni").await?;
    world.cluster.deploy("outside", 1, Some(NODE)).await?;
    world.cluster.until_plugin_is_missed("outside", "linkerd-cni", PATIENCE).await?;
    let pods = world.cluster.pods("outside").await?;
    if let Some(pod) = pods.iter().find_map(ProbePod::of) {
        bail!("{} runs outside of the mesh", pod.name);
    }
    // Without it the runtime can't end a pod either.
    world.shell("mv /opt/cni/linkerd-cni /opt/cni/bin").await?;
    world.end(&["outside"]).await?;
    let called = world.called_for("inside").await?;
    ensure!(called == ["mesh"], "once the plugin is back these were called: {called:?}");

    world.shell(TAKE_OUT).await?;
    world.until_installed_is("True", "Installed", "the runtime uses 10-vnetpool.conflist").await?;
    let called = world.called_for("after").await?;
    ensure!(called.is_empty(), "without a mesh these were called: {called:?}");
    world.shell(&format!("rm {LOG}")).await.map(drop)
}

/// The agent writes its file again and again, since it is to wire other pods than before, while pods start.
pub async fn an_installer_that_watches_our_file_is_not_fought_and_no_pod_starts_outside_its_mesh(
    world: &World,
) -> Result<()> {
    wire(world, Wiring::Routed).await?;
    let folder = world.cluster.host(NODE)?.path("/etc/cni/net.d");
    for mesh in Mesh::ALL {
        let plugin = mesh.plugin();
        world.shell(&format!("> {LOG}")).await?;
        world.plug_in(plugin, MESH).await?;
        let installer = Installer::start(mesh, folder.clone())?;
        until_last_is(&installer, plugin).await?;
        let (reason, words) = match mesh {
            Mesh::IstioInFront => ("Delegated", "02-istio-conf.conflist"),
            _ => ("Installed", plugin),
        };
        world.until_installed_is("True", reason, words).await?;

        for (name, wiring) in [("while-bridged", Wiring::Bridge), ("while-routed", Wiring::Routed)] {
            let (wired, pods) = tokio::join!(wire(world, wiring), world.start(name, NODE, 2));
            wired?;
            world.each_was_called_for(&pods?).await.with_context(|| format!("{mesh:?}, {wiring:?}"))?;
            until_last_is(&installer, plugin).await?;
        }
        let agreed = installer.configuration()?;
        world.cluster.have_inspected(NODE).await?;
        throughout("the file stays", QUIET, || async {
            ensure!(installer.configuration()? == agreed, "{mesh:?}: {:?}", installer.plugins());
            Ok(())
        })
        .await?;
        if mesh != Mesh::IstioInFront {
            let times = installer.put_back();
            ensure!(times == 1, "{mesh:?}: its entry wasn't there, {times} times with the first");
            // Somebody removes the file: the agent makes it anew, and the installer finds it.
            world.shell("rm /etc/cni/net.d/10-vnetpool.conflist").await?;
            world.cluster.have_inspected(NODE).await?;
            until_last_is(&installer, plugin).await?;
            let pods = world.start("made-anew", NODE, 1).await?;
            world.each_was_called_for(&pods).await.with_context(|| format!("{mesh:?}, made anew"))?;
        }
        world.end_together(&["while-bridged", "while-routed", "made-anew"]).await?;
        installer.end().await?;
        world.shell(&format!("rm /opt/cni/bin/{plugin}")).await?;
        world.until_installed_is("True", "Installed", "the runtime uses 10-vnetpool.conflist").await?;
    }
    world.shell(&format!("> {LOG}")).await?;
    let called = world.called_for("left").await?;
    ensure!(called.is_empty(), "without a mesh these were called: {called:?}");
    world.shell(&format!("rm {LOG}")).await.map(drop)
}

/// Until the plugin is the last of those that the runtime runs, and ours the first.
async fn until_last_is(installer: &Installer, plugin: &str) -> Result<()> {
    eventually(&format!("{plugin} is behind ours"), PATIENCE, || async {
        let plugins = installer.plugins()?;
        let are_right = plugins.first().is_some_and(|first| first == "vnetpool")
            && plugins.last().is_some_and(|last| last == plugin);
        ensure!(are_right, "the runtime runs {plugins:?}");
        Ok(Some(()))
    })
    .await
}

pub async fn a_plugin_in_front_that_hands_pods_on_to_ours_is_accepted_and_reported(
    world: &World,
) -> Result<()> {
    wire(world, Wiring::Routed).await?;
    world.shell(&format!("> {LOG}")).await?;
    world.plug_in("in-front", IN_FRONT).await?;
    world.shell(FRONT).await?;
    world.until_installed_is("True", "Delegated", "00-in-front.conf").await?;
    let called = world.called_for("handed-on").await?;
    ensure!(called == ["front"], "for a pod these were called: {called:?}");
    world.shell(&format!("rm /etc/cni/net.d/00-in-front.conf {LOG}")).await?;
    world.until_installed_is("True", "Installed", "the runtime uses 10-vnetpool.conflist").await?;
    world.shell("rm /opt/cni/bin/in-front").await.map(drop)
}
