//! The machines: bring the cluster up, install the chart into it, run things on its machines, take it down.

use crate::azure::Azure;
use crate::project::{root, search_path, tool};
use crate::snippets::Snippet;
use crate::wait::eventually;
use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use serde::Deserialize;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

/// A running cluster. Dropped, it is taken down, unless [`Cluster::keep`] was used.
pub struct Cluster {
    pub state: State,
    pub client: Client,
    pub azure: Azure,
    dir: PathBuf,
    kept: bool,
}

/// The cluster tool's description of the cluster it brought up.
#[derive(Clone, Debug, Deserialize)]
pub struct State {
    pub kubeconfig: PathBuf,
    pub admin_socket: PathBuf,
    pub arm_endpoint: String,
    pub nodes: Vec<Host>,
    pub vms: Vec<Host>,
    pub internet: Host,
}

/// A machine: a node, a plain VM or the host on the internet.
#[derive(Clone, Debug, Deserialize)]
pub struct Host {
    pub name: String,
    pub netns: String,
    pub address: String,
    #[serde(default)]
    pub nic_id: String,
    #[serde(default)]
    pub pid: u32,
}

impl Host {
    /// A path of the node as this process can open it.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.pid))
    }
}

impl Cluster {
    /// Brings up simulated Azure, a control plane, nodes and plain VMs; the tool's output goes to our
    /// standard error.
    ///
    /// # Errors
    /// When the tool fails; everything that was up is taken down again.
    pub async fn up(dir: &Path, nodes: u32, vms: u32) -> Result<Self> {
        Self::up_with(dir, nodes, vms, "iptables").await
    }

    /// The same with kube-proxy in this mode, `iptables` or `nftables`.
    ///
    /// # Errors
    /// As [`Cluster::up`].
    pub async fn up_with(dir: &Path, nodes: u32, vms: u32, proxy_mode: &str) -> Result<Self> {
        Self::bring_up(dir, nodes, vms, &["--proxy-mode", proxy_mode]).await
    }

    /// The same in the network that an ARM template makes, instead of the simulator's own.
    ///
    /// # Errors
    /// As [`Cluster::up`].
    pub async fn up_in(template: &Path, dir: &Path, nodes: u32, vms: u32) -> Result<Self> {
        Self::bring_up(dir, nodes, vms, &["--template", &template.to_string_lossy()]).await
    }

    async fn bring_up(dir: &Path, nodes: u32, vms: u32, more: &[&str]) -> Result<Self> {
        let (nodes, vms, dir_arg) = (nodes.to_string(), vms.to_string(), dir.to_string_lossy());
        let sizes = ["up", "--dir", &dir_arg, "--nodes", &nodes, "--vms", &vms];
        run(&tool("cluster"), &[&sizes[..], more].concat()).await?;
        Self::attach(dir).await
    }

    /// A cluster that is up already.
    ///
    /// # Errors
    /// When there is none in `dir`.
    pub async fn attach(dir: &Path) -> Result<Self> {
        let (state, client) = connect(dir).await?;
        let azure = Azure::at(&state.admin_socket)?;
        Ok(Self { state, client, azure, dir: dir.to_owned(), kept: false })
    }

    /// Leaves the cluster running when this is dropped.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// Installs or upgrades the chart with the images built from the working tree, and waits until nodes are
    /// Ready.
    pub async fn install(&self) -> Result<()> {
        self.install_with(&[]).await
    }

    /// The same with more arguments for helm.
    pub async fn install_with(&self, more: &[&str]) -> Result<()> {
        let [chart, values] = ["charts/vnetpool", "tests/cluster/values.yaml"].map(|one| root().join(one));
        let (chart, values) = (chart.to_string_lossy(), values.to_string_lossy());
        let endpoint = format!("azure.armEndpoint={}", self.state.arm_endpoint);
        let install = ["upgrade", "--install", "vnetpool", "--create-namespace", &chart, "--values", &values];
        let settings = ["--set", &endpoint, "--wait", "--timeout", "4m"];
        self.helm(&[&install[..], &settings, more].concat()).await?;
        self.nodes_ready().await
    }

    /// Deploys CoreDNS as clusters have it, and waits until it serves.
    pub async fn bring_coredns(&self) -> Result<()> {
        self.load("coredns").await?;
        self.apply(include_str!("coredns.yaml")).await?;
        self.roll_out_coredns("status").await
    }

    /// `restart`, or `status`: waits until it serves.
    pub async fn roll_out_coredns(&self, verb: &str) -> Result<()> {
        let rollout = ["rollout", verb, "deployment/coredns", "--namespace=kube-system"];
        self.kubectl(&rollout).await.map(drop)
    }

    /// Waits until every node is Ready that the cluster has by now.
    pub async fn nodes_ready(&self) -> Result<()> {
        let api: Api<Node> = Api::all(self.client.clone());
        let state = State::read(&self.dir)?;
        eventually("all nodes Ready", Duration::from_secs(180), || async {
            let nodes = api.list(&Default::default()).await?.items;
            let name = |node: &Node| node.metadata.name.clone().unwrap_or_default();
            let ready: Vec<_> = nodes.iter().filter(|node| is_ready(node)).map(name).collect();
            let all: Vec<_> = nodes.iter().map(name).collect();
            ensure!(ready.len() >= state.nodes.len(), "ready are {ready:?} of {all:?}");
            Ok(Some(()))
        })
        .await
    }

    /// Brings an image that `cluster images` has made on request onto every node.
    pub async fn load(&self, image: &str) -> Result<()> {
        self.load_archive(&root().join(format!("target/cluster/images/on-request/{image}.tar"))).await
    }

    /// Brings the images of an archive onto every node.
    pub async fn load_archive(&self, archive: &Path) -> Result<()> {
        let mut load = Command::new(tool("cluster"));
        load.args(["load", "--dir"]).arg(&self.dir).arg(archive);
        self.output(load).await.map(drop)
    }

    /// Runs kubectl and returns its output.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        let mut kubectl = Command::new(tool("kubectl"));
        kubectl.args(args);
        self.output(kubectl).await
    }

    /// Runs commands of a document, as [`Snippet::command`] has them run, and returns their output.
    ///
    /// # Errors
    /// When one of its commands fails.
    pub async fn type_in(
        &self,
        snippet: &Snippet,
        variables: &[(&str, &str)],
        before: &str,
    ) -> Result<String> {
        self.output(snippet.command(before, variables).into()).await.with_context(|| snippet.place.clone())
    }

    /// Runs helm in Vnetpool's namespace and returns its output.
    ///
    /// # Errors
    /// When it fails: with its output until then.
    pub async fn helm(&self, args: &[&str]) -> Result<String> {
        let mut helm = Command::new(tool("helm"));
        helm.args(["--namespace", "vnetpool-system"]).args(args);
        self.output(helm).await
    }

    /// Runs our plugin of kubectl, whose exit code may mean that something isn't well, and returns both.
    ///
    /// # Errors
    /// When it couldn't do its work: it ends with 2.
    pub async fn vnetpool(&self, args: &[&str]) -> Result<(Option<i32>, String)> {
        let mut kubectl = Command::new(tool("kubectl"));
        kubectl.arg("vnetpool").args(args).env("PATH", search_path());
        kubectl.env("KUBECONFIG", &self.state.kubeconfig).stdin(Stdio::null()).kill_on_drop(true);
        let output = kubectl.output().await?;
        let (code, printed) = (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned());
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(
            matches!(code, Some(0 | 1)),
            "kubectl vnetpool {args:?}: {}: {printed}{error}",
            output.status
        );
        Ok((code, printed))
    }

    /// Applies a manifest by `kubectl apply`, with its strict validation.
    pub async fn apply(&self, manifest: &str) -> Result<String> {
        let mut kubectl = Command::new(tool("kubectl"));
        kubectl.args(["apply", "-f", "-"]);
        self.output_of(kubectl, Some(manifest)).await
    }

    /// Runs a command in the namespaces of a machine and returns its output.
    pub async fn run_on(&self, host: &str, command: &[&str]) -> Result<String> {
        self.output(self.exec(host, command)).await
    }

    /// Has the agent of a node inspect it now, by some event of the network, instead of half a minute later.
    pub async fn have_inspected(&self, node: &str) -> Result<()> {
        let event = "ip address add 192.0.2.1/32 dev lo; ip address delete 192.0.2.1/32 dev lo";
        self.run_on(node, &["sh", "-euc", event]).await.map(drop)
    }

    /// Starts a program in the namespaces of a machine; its output goes to `logs/HOST.NAME.log` of the
    /// cluster's folder.
    ///
    /// # Errors
    /// When its log can't be written or it can't be started.
    pub fn start_on(&self, host: &str, name: &str, command: &[&str]) -> Result<Child> {
        let log = File::create(self.dir.join(format!("logs/{host}.{name}.log")))?;
        let mut exec = self.exec(host, command);
        Ok(exec.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true).spawn()?)
    }

    fn exec(&self, host: &str, command: &[&str]) -> Command {
        let mut exec = Command::new(tool("cluster"));
        exec.args(["exec", "--dir"]).arg(&self.dir).arg(host).arg("--").args(command);
        exec
    }

    /// Adds, deletes, stops, starts or reboots a node.
    pub async fn node(&self, verb: &str, name: &str) -> Result<()> {
        let mut node = Command::new(tool("cluster"));
        node.args(["node", verb, "--dir"]).arg(&self.dir).arg(name);
        self.output(node).await.map(drop)
    }

    /// Ends a part of the control plane, such as `etcd`, by SIGKILL; it is started again after a while.
    ///
    /// # Errors
    /// Also when the API server doesn't serve again then.
    pub async fn crash(&self, part: &str, away: Duration) -> Result<()> {
        let mut crash = Command::new(tool("cluster"));
        crash.args(["crash", "--dir"]).arg(&self.dir).arg(format!("--for={}ms", away.as_millis())).arg(part);
        self.output(crash).await.map(drop)
    }

    /// `save`: keeps what the API server stores. `restore`: brings it back.
    pub async fn backup(&self, verb: &str) -> Result<()> {
        let mut backup = Command::new(tool("cluster"));
        backup.args(["backup", verb, "--dir"]).arg(&self.dir);
        self.output(backup).await.map(drop)
    }

    /// A machine as it is now: a reboot changes its process.
    pub fn host(&self, name: &str) -> Result<Host> {
        let State { nodes, vms, internet, .. } = State::read(&self.dir)?;
        let mut hosts = nodes.into_iter().chain(vms).chain([internet]);
        hosts.find(|host| host.name == name).with_context(|| format!("no machine {name}"))
    }

    /// Writes the cluster's objects, as they are now, to `logs/objects.yaml` of its folder.
    fn record_objects(&self) -> Result<()> {
        let file = File::create(self.dir.join("logs/objects.yaml"))?;
        let mut get = std::process::Command::new(tool("kubectl"));
        get.args(["get", RECORDED, "--all-namespaces", "--output=yaml", "--request-timeout=10s"]);
        get.env("KUBECONFIG", &self.state.kubeconfig).stdin(Stdio::null());
        // A kind may be gone, or the API server: then there is less to record.
        get.stdout(file.try_clone()?).stderr(file).status()?;
        Ok(())
    }

    async fn output(&self, command: Command) -> Result<String> {
        self.output_of(command, None).await
    }

    async fn output_of(&self, mut command: Command, input: Option<&str>) -> Result<String> {
        // In files: a command that hangs has printed something before that.
        let (out, error) = (tempfile::tempfile()?, tempfile::tempfile()?);
        command.env("KUBECONFIG", &self.state.kubeconfig).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(out.try_clone()?).stderr(error.try_clone()?);
        let what = format!("{:?}", command.as_std());
        let mut child = command.spawn().with_context(|| what.clone())?;
        if let Some(mut stdin) = child.stdin.take() {
            use tokio::io::AsyncWriteExt;
            stdin.write_all(input.unwrap_or_default().as_bytes()).await?;
        }
        let ended = tokio::time::timeout(Duration::from_secs(300), child.wait()).await;
        let (out, error) = (printed(out)?, printed(error)?);
        let status = ended.with_context(|| format!("{what}: no end within 300 s: {out}{error}"))??;
        ensure!(status.success(), "{what}: {status}: {error}");
        Ok(out)
    }
}

/// What a failure is read from, beside the logs.
const RECORDED: &str = "nodeippools,nodeipallocations,nodes,pods,leases,events";

/// All that was written to the file.
fn printed(mut file: File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.kept {
            if let Err(error) = self.record_objects() {
                eprintln!("the cluster's objects aren't recorded: {error:#}");
            }
            let down =
                std::process::Command::new(tool("cluster")).args(["down", "--dir"]).arg(&self.dir).status();
            if !down.is_ok_and(|status| status.success()) {
                eprintln!("the cluster could not be taken down: run `make demo-down`");
            }
        }
    }
}

impl State {
    fn read(dir: &Path) -> Result<Self> {
        let file = dir.join("state.json");
        let text = std::fs::read_to_string(&file);
        let text = text.with_context(|| format!("no cluster: can't read {}", file.display()))?;
        serde_json::from_str(&text).context("state.json of the cluster tool")
    }
}

async fn connect(dir: &Path) -> Result<(State, Client)> {
    let state = State::read(dir)?;
    let kubeconfig = Kubeconfig::read_from(&state.kubeconfig)?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok((state, Client::try_from(config)?))
}

/// Runs a command whose output people should see.
async fn run(program: &Path, args: &[&str]) -> Result<()> {
    let status = Command::new(program).args(args).stdin(Stdio::null()).status().await;
    let status = status.with_context(|| format!("{}: run `make cluster-build` first", program.display()))?;
    if !status.success() {
        bail!("{} {}: {status}", program.display(), args.join(" "));
    }
    Ok(())
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}
