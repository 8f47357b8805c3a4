//! The one way to the cluster: kubectl itself, which has started us. It signs in as its user does.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use vnetpool_crds::inspection::{NodeView, ReservedView};

use crate::args::Access;

/// kubectl, as the user has chosen it.
pub struct Kubectl {
    flags: Vec<OsString>,
    pub namespace: String,
}

/// So many ids are handed over at once: they go into the request's URL.
const AT_ONCE: usize = 20;

/// A list as the API server answers it.
#[derive(Deserialize)]
#[serde(bound = "K: DeserializeOwned")]
struct List<K> {
    items: Vec<K>,
}

/// One of Vnetpool's programs, as its pods are labelled and its container is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Operator,
    NodeAgent,
}

impl Program {
    /// The component, which the container is named after, too.
    pub fn name(self) -> &'static str {
        match self {
            Program::Operator => "operator",
            Program::NodeAgent => "node-agent",
        }
    }

    fn command(self) -> String {
        format!("vnetpool-{}", self.name())
    }
}

impl Kubectl {
    pub fn new(access: &Access) -> Kubectl {
        let flag = |name: &str, value: Option<OsString>| {
            value.map(|value| [OsString::from(format!("--{name}")), value])
        };
        let flags = [
            flag("kubeconfig", access.kubeconfig.clone().map(Into::into)),
            flag("context", access.context.clone().map(Into::into)),
            flag("as", access.user.clone().map(Into::into)),
        ];
        Kubectl {
            flags: flags.into_iter().flatten().flatten().collect(),
            namespace: access.namespace.clone(),
        }
    }

    /// What kubectl prints.
    ///
    /// # Errors
    /// When it can't be started, or fails: then with what it said.
    pub fn run(&self, args: &[&str]) -> Result<Vec<u8>> {
        output(self.command(args))
    }

    /// What the API server answers, as it sends it.
    ///
    /// # Errors
    /// When the API server refuses, or the answer can't be read.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let answer = self.run(&["get", "--raw", path])?;
        serde_json::from_slice(&answer).with_context(|| format!("reading the answer to {path}"))
    }

    /// Every object of a list.
    ///
    /// # Errors
    /// When the API server refuses, or the answer can't be read.
    pub fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>> {
        Ok(self.get::<List<T>>(path)?.items)
    }

    /// The pods of a program, on one node or on all.
    ///
    /// # Errors
    /// When the API server refuses.
    pub fn pods(&self, program: Program, node: Option<&str>) -> Result<Vec<Pod>> {
        let node = node.map(|node| format!("&fieldSelector=spec.nodeName%3D{node}")).unwrap_or_default();
        self.list(&format!(
            "/api/v1/namespaces/{}/pods?labelSelector=app.kubernetes.io/name%3Dvnetpool,app.kubernetes.io/component%3D{}{node}",
            self.namespace,
            program.name(),
        ))
    }

    /// What a program prints when it is started once more, in a pod in which it runs.
    ///
    /// # Errors
    /// When it runs nowhere, when the user may not start it, or when it fails.
    pub fn exec(&self, program: Program, node: Option<&str>, args: &[&str]) -> Result<Vec<u8>> {
        output(self.in_pod(program, node, args)?)
    }

    fn in_pod(&self, program: Program, node: Option<&str>, args: &[&str]) -> Result<Command> {
        let pods = self.pods(program, node)?;
        let Some(pod) = pods.iter().find_map(running) else {
            let place = node.map(|node| format!(" on node {node}")).unwrap_or_default();
            bail!("no pod of {} runs in namespace {}{place}", program.command(), self.namespace);
        };
        let command = program.command();
        let mut all =
            vec!["exec", "--namespace", &self.namespace, pod, "--container", program.name(), "--", &command];
        all.extend(args);
        Ok(self.command(&all))
    }

    /// The ledger and the wiring of a node.
    ///
    /// # Errors
    /// When its agent doesn't tell.
    pub fn node(&self, node: &str) -> Result<NodeView> {
        let told = self.exec(Program::NodeAgent, Some(node), &["status", "--output", "json"])?;
        serde_json::from_slice(&told).with_context(|| format!("reading what the agent of node {node} says"))
    }

    /// What Azure has reserved in these places, as the operator reads it.
    ///
    /// # Errors
    /// When no operator runs, or the user may not start it.
    pub fn reserved(&self, ids: &[&str]) -> Result<Vec<ReservedView>> {
        let mut views = vec![];
        for some in ids.chunks(AT_ONCE) {
            let args: Vec<&str> = ["reserved"].into_iter().chain(some.iter().copied()).collect();
            let told = self.exec(Program::Operator, None, &args)?;
            let some: Vec<ReservedView> =
                serde_json::from_slice(&told).context("reading what the operator says")?;
            views.extend(some);
        }
        Ok(views)
    }

    /// Has a program of ours speak to the user itself, and gives its exit code.
    ///
    /// # Errors
    /// When it runs nowhere, or can't be started.
    pub fn attach(&self, program: Program, args: &[&str]) -> Result<u8> {
        let status = self.in_pod(program, None, args)?.status().context("kubectl can't be started")?;
        Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
    }

    /// The objects of a file as they would be if it were applied.
    ///
    /// # Errors
    /// When the API server refuses them.
    pub fn rehearse(&self, file: &Path) -> Result<Vec<Value>> {
        let file = file.to_string_lossy();
        let answer = self.run(&["apply", "--dry-run=server", "--output", "json", "--filename", &file])?;
        let mut answer: Value = serde_json::from_slice(&answer).context("reading what would be applied")?;
        Ok(match answer["items"].take() {
            Value::Array(items) => items,
            _ => vec![answer],
        })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.args(&self.flags).args(args);
        command
    }
}

/// The pod's name if it runs.
fn running(pod: &Pod) -> Option<&str> {
    let phase = pod.status.as_ref()?.phase.as_deref()?;
    pod.metadata.name.as_deref().filter(|_| phase == "Running" && pod.metadata.deletion_timestamp.is_none())
}

/// It inherits the standard input, for a file that is `-`.
fn output(mut command: Command) -> Result<Vec<u8>> {
    let Output { status, stdout, stderr } = command
        .stdin(Stdio::inherit())
        .output()
        .context("kubectl can't be started; it must be on the PATH")?;
    ensure!(status.success(), "{}", String::from_utf8_lossy(&stderr).trim());
    Ok(stdout)
}
