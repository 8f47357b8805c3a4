//! Gives a container its address by hand, for runtimes without CNI: `docker run --network none`, or a bare
//! network namespace.
//!
//! The CNI plugin does it, run in this process as a runtime would run it, so the container is like any other.
//! A container that ends without being detached is found by the agent's sweep.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use serde_json::Value;
use vnetpool_plugin::{
    cni::{self, Program},
    plugin::{Answer, run},
};

use crate::install;

/// The network that these containers are of. It differs from the network of runtimes with CNI: their GC would
/// free the addresses of containers that they don't know.
const NETWORK: &str = "vnetpool-attached";

/// Which container.
#[derive(Clone, Debug, clap::Args)]
pub struct Container {
    /// The container's id or name: the key of its address.
    #[arg(long)]
    container: String,
    /// The name of its interface.
    #[arg(long, default_value = "eth0")]
    ifname: String,
}

/// Its network namespace, named one way or the other.
#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct Namespace {
    /// A process in the container, as `docker inspect -f '{{.State.Pid}}'` prints it.
    #[arg(long)]
    pid: Option<u32>,
    /// The namespace's file.
    #[arg(long)]
    netns: Option<PathBuf>,
}

/// Prints the result of CNI.
pub fn attach(container: &Container, namespace: &Namespace, conf_dir: &Path) -> anyhow::Result<()> {
    let path = match namespace {
        Namespace { pid: Some(pid), .. } => PathBuf::from(format!("/proc/{pid}/ns/net")),
        Namespace { netns, .. } => netns.clone().unwrap_or_default(),
    };
    invoke("ADD", container, &path.to_string_lossy(), conf_dir)
}

/// Takes the address back; fine if there is none.
pub fn detach(container: &Container, conf_dir: &Path) -> anyhow::Result<()> {
    invoke("DEL", container, "", conf_dir)
}

fn invoke(verb: &str, container: &Container, netns: &str, conf_dir: &Path) -> anyhow::Result<()> {
    let configuration = configuration(&conf_dir.join(install::CONFLIST))?;
    let Container { container, ifname } = container;
    let env = |name: &str| {
        let value = match name {
            "CNI_COMMAND" => verb,
            "CNI_CONTAINERID" => container,
            "CNI_NETNS" => netns,
            "CNI_IFNAME" => ifname,
            _ => return None,
        };
        Some(value.to_owned())
    };
    let Answer { stdout, exit_code } = run(Program::Network, env, configuration.to_string().as_bytes());
    if exit_code != 0 {
        let error: Value = serde_json::from_slice(&stdout).unwrap_or_default();
        bail!("{verb} of {container}: {}", error["msg"].as_str().unwrap_or_default());
    }
    io::stdout().write_all(&stdout).context("can't print the result")
}

/// The runtime's input to the plugin: a network's name, the list's version and our entry. Others may have put
/// entries of theirs before it.
fn configuration(conflist: &Path) -> anyhow::Result<Value> {
    let text = fs::read(conflist).with_context(|| {
        format!("can't read {}; the agent writes it when the node has its first address", conflist.display())
    })?;
    let list: Value =
        serde_json::from_slice(&text).with_context(|| format!("can't read {}", conflist.display()))?;
    let entries = list["plugins"].as_array();
    let ours = entries.into_iter().flatten().find(|entry| entry["type"] == cni::PLUGIN);
    let mut configuration =
        ours.with_context(|| format!("{} has no entry of Vnetpool's", conflist.display()))?.clone();
    configuration["cniVersion"] = list["cniVersion"].clone();
    configuration["name"] = NETWORK.into();
    Ok(configuration)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::Chain;
    use vnetpool_plugin::wiring::Uplink;

    #[test]
    fn attached_containers_are_of_a_network_that_no_runtime_collects_garbage_of() {
        let conf_dir = tempfile::tempdir().unwrap();
        let conflist = conf_dir.path().join(install::CONFLIST);
        let chain = Chain::default();
        let made = install::conflist(
            &Uplink { mtu: 1400, ..Uplink::default() },
            Default::default(),
            &chain,
            Path::new(cni::STATE_DIR),
        );
        fs::write(&conflist, made.to_string()).unwrap();
        let list: Value = serde_json::from_slice(&fs::read(&conflist).unwrap()).unwrap();
        let ours = configuration(&conflist).unwrap();
        assert_ne!(ours["name"], list["name"]);
        assert_eq!((&ours["type"], &ours["mtu"]), (&"vnetpool".into(), &1400.into()));
        assert_eq!(ours["cniVersion"], list["cniVersion"]);
    }
}
