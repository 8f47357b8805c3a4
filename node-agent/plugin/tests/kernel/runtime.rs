//! The reference runtime, `cnitool` built from its module, and the reference plugins of Debian's package,
//! inside a node.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::node::{Answer, Namespace, Node};

/// Debian's containernetworking-plugins.
const REFERENCE: &str = "/usr/lib/cni";

/// Where cnitool remembers what it did; the path is fixed.
const CACHE: &str = "/var/lib/cni/results";

/// A node with a folder of plugins, ours under both names among them, and a network configuration.
pub struct Runtime {
    pub node: Node,
    /// Of the network: one that no other test has, since they share cnitool's memory.
    name: String,
    plugins: tempfile::TempDir,
    configurations: tempfile::TempDir,
    /// Where plugins find programs: portmap runs iptables.
    pub path: String,
}

impl Runtime {
    /// `plugins` are the chain.
    pub fn new(node: Node, version: &str, plugins: Value) -> Runtime {
        let new = || tempfile::tempdir().unwrap();
        let name = node.netns.path().file_name().unwrap().to_string_lossy().into_owned();
        let runtime = Runtime {
            node,
            name,
            plugins: new(),
            configurations: new(),
            path: "/usr/sbin:/usr/bin".to_owned(),
        };
        for name in ["vnetpool", "vnetpool-ipam"] {
            let link = runtime.plugins.path().join(name);
            std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_vnetpool"), link).unwrap();
        }
        runtime.configure(version, plugins);
        runtime
    }

    pub fn configure(&self, version: &str, plugins: Value) {
        self.write_network(&self.name, version, plugins);
    }

    /// Makes a second network in the same node.
    pub fn configure_other(&self, version: &str, plugins: Value) {
        self.write_network(&self.other(), version, plugins);
    }

    fn write_network(&self, name: &str, version: &str, plugins: Value) {
        let list = serde_json::json!({ "cniVersion": version, "name": name, "plugins": plugins });
        fs::write(self.configurations.path().join(format!("{name}.conflist")), list.to_string()).unwrap();
    }

    fn other(&self) -> String {
        format!("{}-other", self.name)
    }

    pub fn invoke(&self, verb: &str, netns: &Path, capabilities: Value) -> Answer {
        self.invoke_network(verb, &self.name, netns, capabilities)
    }

    /// Runs `cnitool VERB NETWORK NETNS` in the node. A runtime would put `capabilities` into
    /// `runtimeConfig`. cnitool derives the container's id from the namespace's path.
    fn invoke_network(&self, verb: &str, network: &str, netns: &Path, capabilities: Value) -> Answer {
        let cnitool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/cluster/bin/cnitool");
        assert!(cnitool.exists(), "{} is missing: run `make cluster-build`", cnitool.display());
        let mut command = Command::new(cnitool);
        command
            .args([verb, network])
            .arg(netns)
            .env_clear()
            .env("PATH", &self.path)
            .env("NETCONFPATH", self.configurations.path())
            .env("CNI_PATH", format!("{}:{REFERENCE}", self.plugins.path().display()))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if !capabilities.is_null() {
            command.env("CAP_ARGS", capabilities.to_string());
        }
        let output = self.node.netns.inside(|| command.spawn().unwrap().wait_with_output().unwrap());
        Answer::of_runtime(output)
    }

    pub fn run(&self, verb: &str, netns: &Namespace) -> Answer {
        self.invoke(verb, &netns.path(), Value::Null)
    }

    pub fn run_other(&self, verb: &str, netns: &Namespace) -> Answer {
        self.invoke_network(verb, &self.other(), &netns.path(), Value::Null)
    }

    /// Has cnitool forget its work in this test's networks.
    pub fn forget(&self) {
        let is_ours = |file: &fs::DirEntry| {
            file.file_name()
                .to_string_lossy()
                .strip_prefix(&self.name)
                .is_some_and(|rest| rest.starts_with("-cnitool-") || rest.starts_with("-other-cnitool-"))
        };
        for file in fs::read_dir(CACHE).into_iter().flatten().flatten().filter(is_ours) {
            let _ = fs::remove_file(file.path());
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.forget();
    }
}
