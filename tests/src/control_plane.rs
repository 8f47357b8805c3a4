//! A real API server on loopback with Vnetpool's CRDs, rights and admission policies in it. No node, no
//! controller.

use crate::project::{pinned, root, search_path, tool};
use crate::snippets::Snippet;
use crate::wait::Limit;
use anyhow::{Context, Result, bail, ensure};
use kube::config::{KubeConfigOptions, Kubeconfig};
use reqwest::header::{HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

pub const NAMESPACE: &str = "vnetpool-system";

/// Taken down when dropped.
pub struct ControlPlane {
    dir: PathBuf,
    pub kubeconfig: PathBuf,
}

/// The identity under which kubectl asks.
#[derive(Clone, Copy)]
pub enum User<'a> {
    Administrator,
    Operator,
    /// The agent with a token of a pod on that node.
    Agent(&'a str),
    /// The agent's account with a token that isn't bound to a pod.
    AgentWithoutNode,
}

impl ControlPlane {
    /// In a folder of its own below `target/cluster`, so that several can be up at once.
    ///
    /// # Errors
    /// When a process doesn't start or an object of Vnetpool's isn't accepted; everything that was up is
    /// taken down again.
    pub fn up(name: &str) -> Result<Self> {
        let dir = root().join("target/cluster").join(name);
        // The remains of a run that was killed.
        cluster(&["down"], &dir, &[])?;
        let older = is_older().then_some("--older");
        cluster(&["up"], &dir, &["--control-plane-only"].into_iter().chain(older).collect::<Vec<_>>())?;
        let mut plane = Self { dir, kubeconfig: PathBuf::new() };
        let state = std::fs::read_to_string(plane.dir.join("state.json"))?;
        let state: serde_json::Value = serde_json::from_str(&state)?;
        plane.kubeconfig = state["kubeconfig"].as_str().context("state.json names no kubeconfig")?.into();
        plane.kubectl(&["apply", "--server-side", "--filename", &path("crds/manifests")])?;
        plane.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"])?;
        plane.kubectl(&["create", "namespace", NAMESPACE])?;
        let rendered = template(&[])?;
        let admission = rendered.split("\n---\n").filter(|object| {
            let source = object.lines().find(|line| line.starts_with("# Source: ")).unwrap_or_default();
            ["admission/", "role", "serviceaccount", "flowschema"].iter().any(|part| source.contains(part))
        });
        plane.apply(&admission.collect::<Vec<_>>().join("\n---\n"))?;
        plane.let_kubectl_patch_statuses()?;
        plane.wait_for_policies()?;
        Ok(plane)
    }

    /// Keeps a copy of all that is stored.
    ///
    /// # Errors
    /// When it can't be copied.
    pub fn back_up(&self) -> Result<()> {
        cluster(&["backup", "save"], &self.dir, &[])
    }

    /// Brings the copy back: the API server starts anew with the objects of then. Versions of objects go
    /// backwards.
    ///
    /// # Errors
    /// When there is no copy, or a process doesn't start.
    pub fn restore(&self) -> Result<()> {
        cluster(&["backup", "restore"], &self.dir, &[])
    }

    /// `kubectl patch --subresource=status` reads the status first, which our programs never do and have no
    /// right to.
    fn let_kubectl_patch_statuses(&self) -> Result<()> {
        let resources = "--resource=nodeipallocations.vnetpool.io/status,nodeippools.vnetpool.io/status";
        self.kubectl(&["create", "clusterrole", "status-reader", "--verb=get", resources])?;
        let group = "--group=system:serviceaccounts";
        self.kubectl(&["create", "clusterrolebinding", "status-reader", "--clusterrole=status-reader", group])
            .map(drop)
    }

    /// The API server takes policies up some moments after they were made.
    fn wait_for_policies(&self) -> Result<()> {
        let probe = allocation("probe", "node-uid");
        let mut limit = Limit::new(Duration::from_secs(30));
        loop {
            match self.try_kubectl(User::Administrator, &["create", "--dry-run=server", "-f", "-"], &probe)? {
                Err(message) if message.contains("only Vnetpool's operator") => return Ok(()),
                other if limit.is_over() => {
                    bail!("no admission policy works after 30 s: {other:?}")
                }
                _ => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// How a client asks in this user's name.
    ///
    /// # Errors
    /// When the kubeconfig can't be used.
    pub async fn config(&self, user: User<'_>) -> Result<kube::Config> {
        user.config(&self.kubeconfig).await
    }

    /// kubectl's output, or its complaint.
    pub fn try_kubectl(&self, user: User, args: &[&str], input: &str) -> Result<Result<String, String>> {
        let mut kubectl = Command::new(tool("kubectl"));
        kubectl.args(user.flags()).args(args).env("KUBECONFIG", &self.kubeconfig);
        kubectl.env("PATH", search_path());
        run(kubectl, input)
    }

    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.kubectl_as(User::Administrator, args)
    }

    pub fn kubectl_as(&self, user: User, args: &[&str]) -> Result<String> {
        self.try_kubectl(user, args, "")?.map_err(|error| anyhow::anyhow!("kubectl {args:?}: {error}"))
    }

    /// The output of our plugin of kubectl for an administrator, as JSON.
    ///
    /// # Errors
    /// Its own, in its words.
    pub fn vnetpool(&self, args: &[&str], input: &str) -> Result<serde_json::Value> {
        let args = [&["vnetpool"], args, &["--output", "json"]].concat();
        let printed = self.try_kubectl(User::Administrator, &args, input)?;
        let printed = printed.map_err(|error| anyhow::anyhow!("kubectl {args:?}: {error}"))?;
        serde_json::from_str(&printed).with_context(|| printed)
    }

    /// Runs commands of a document, as [`Snippet::command`] has them run, and returns their output.
    ///
    /// # Errors
    /// When one of them fails.
    pub fn type_in(&self, snippet: &Snippet, variables: &[(&str, &str)]) -> Result<String> {
        let mut shell = snippet.command("", variables);
        shell.env("KUBECONFIG", &self.kubeconfig);
        run(shell, "")?.map_err(|error| anyhow::anyhow!("{}: {error}", snippet.place))
    }

    pub fn apply(&self, manifest: &str) -> Result<String> {
        self.apply_as(User::Administrator, manifest)
    }

    pub fn apply_as(&self, user: User, manifest: &str) -> Result<String> {
        let applied = self.try_kubectl(user, &["apply", "-f", "-"], manifest)?;
        applied.map_err(|error| anyhow::anyhow!("not applied: {error}\n{manifest}"))
    }

    /// The API server's message when it refuses this.
    pub fn refusal(&self, user: User, args: &[&str], input: &str) -> Result<String> {
        match self.try_kubectl(user, args, input)? {
            Ok(output) => bail!("kubectl {args:?} was accepted: {output}\n{input}"),
            Err(message) => Ok(message),
        }
    }

    /// Helm, with this control plane as its cluster.
    pub fn helm(&self, args: &[&str]) -> Result<String> {
        let mut helm = Command::new(tool("helm"));
        helm.args(args).args(["--namespace", NAMESPACE]).env("KUBECONFIG", &self.kubeconfig);
        run(helm, "")?.map_err(|error| anyhow::anyhow!("helm {args:?}: {error}"))
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        if let Err(error) = cluster(&["down"], &self.dir, &[]) {
            eprintln!("the control plane could not be taken down: {error:#}");
        }
    }
}

/// The groups of every service account.
const GROUPS: [&str; 2] = ["system:serviceaccounts", "system:authenticated"];
/// Where the API server writes the node that a pod's token is bound to.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

impl User<'_> {
    /// How a client with an administrator's kubeconfig asks in this user's name.
    ///
    /// # Errors
    /// When the kubeconfig can't be used.
    pub async fn config(self, kubeconfig: &Path) -> Result<kube::Config> {
        // reqwest and kube want a default; a second installation only reports that there is one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
        let mut config =
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        config.headers = self.headers()?;
        Ok(config)
    }

    /// None: the administrator asks in their own name.
    fn account(self) -> Option<String> {
        let name = match self {
            User::Administrator => return None,
            User::Operator => "vnetpool-operator",
            User::Agent(_) | User::AgentWithoutNode => "vnetpool-node-agent",
        };
        Some(format!("system:serviceaccount:{NAMESPACE}:{name}"))
    }

    /// How kubectl asks in this name.
    fn flags(self) -> Vec<String> {
        let Some(account) = self.account() else { return vec![] };
        let mut flags = vec![format!("--as={account}")];
        flags.extend(GROUPS.map(|group| format!("--as-group={group}")));
        if let User::Agent(node) = self {
            flags.push(format!("--as-user-extra={NODE_NAME}={node}"));
        }
        flags
    }

    /// How a request asks in this name.
    fn headers(self) -> Result<Vec<(HeaderName, HeaderValue)>> {
        let Some(account) = self.account() else { return Ok(vec![]) };
        let mut headers =
            vec![(HeaderName::from_static("impersonate-user"), HeaderValue::from_str(&account)?)];
        headers
            .extend(GROUPS.map(|group| {
                (HeaderName::from_static("impersonate-group"), HeaderValue::from_static(group))
            }));
        if let User::Agent(node) = self {
            // A key's slash would end the header's name.
            let key = format!("impersonate-extra-{}", NODE_NAME.replace('/', "%2f"));
            headers.push((key.parse()?, HeaderValue::from_str(node)?));
        }
        Ok(headers)
    }
}

/// Whether the tests are to have the oldest Kubernetes that the chart takes (`make older-kubernetes`).
fn is_older() -> bool {
    std::env::var("KUBERNETES").is_ok_and(|word| word == "older")
}

/// The version of the API server, as `tests/cluster` pins it.
///
/// # Errors
/// When it can't be read there.
pub fn kubernetes() -> Result<String> {
    pinned(if is_older() { "older" } else { "" }, "k8s.io/kubernetes")
}

/// The chart, rendered with these further arguments of helm; helm's complaint is the error.
pub fn template(args: &[&str]) -> Result<String> {
    template_of(&path("charts/vnetpool"), args)
}

/// The same of the chart in a folder, for instance of one that this chart is a part of.
pub fn template_of(chart: &str, args: &[&str]) -> Result<String> {
    let mut helm = Command::new(tool("helm"));
    // Helm built from its module doesn't know which Kubernetes it is for.
    helm.args([
        "template",
        "vnetpool",
        chart,
        "--kube-version",
        &kubernetes()?,
        "--namespace",
        NAMESPACE,
        "--set",
        "image.registry=registry.example",
    ]);
    helm.args(args);
    run(helm, "")?.map_err(|error| anyhow::anyhow!(error))
}

/// The objects of a rendered chart by the template they come from.
pub type Objects = BTreeMap<String, Vec<Value>>;

/// The objects that `template` renders.
///
/// # Errors
/// When helm refuses, or its output is no YAML.
pub fn rendered(args: &[&str]) -> Result<Objects> {
    let mut objects = Objects::new();
    for document in template(args)?.split("\n---\n") {
        let source = document.lines().find_map(|line| line.strip_prefix("# Source: vnetpool/templates/"));
        let object = Value::deserialize(serde_yaml_ng::Deserializer::from_str(document))?;
        if !object.is_null() {
            objects.entry(source.unwrap_or_default().into()).or_default().push(object);
        }
    }
    Ok(objects)
}

/// A NodeIPAllocation as the operator makes it.
pub fn allocation(node: &str, uid: &str) -> String {
    let network = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network";
    format!(
        "apiVersion: vnetpool.io/v1alpha1
kind: NodeIPAllocation
metadata:
  name: {node}
spec:
  nodeUID: {uid}
  bootID: boot
  pool: default
  target: 8
  cooldown: 30s
  interfaces:
  - id: {network}/networkInterfaces/{node}-nic
    mac: 00:0d:3a:00:00:01
    primaryAddress: 10.240.0.4
    subnet: {{ id: {network}/virtualNetworks/vnet/subnets/nodes, prefixes: [10.240.0.0/20] }}
    ipConfigurations:
    - {{ name: vnp-0123456789abcdef, address: 10.240.0.5/32 }}
"
    )
}

/// A path of the project as an argument.
pub fn path(relative: &str) -> String {
    root().join(relative).to_string_lossy().into_owned()
}

fn cluster(verb: &[&str], dir: &Path, args: &[&str]) -> Result<()> {
    let program = tool("cluster");
    let mut command = Command::new(&program);
    command.args(verb).arg("--dir").arg(dir).args(args).stdin(Stdio::null());
    let status =
        command.status().with_context(|| format!("{}: run `make cluster-build`", program.display()))?;
    ensure!(status.success(), "cluster {verb:?}: {status}");
    Ok(())
}

/// Runs a command to its end. An error only if it can't be run; a failure returns its standard error.
fn run(mut command: Command, input: &str) -> Result<Result<String, String>> {
    let what = format!("{:?}", command.get_program());
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{what}: run `make cluster-build`"))?;
    child.stdin.take().context("no standard input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) })
}
