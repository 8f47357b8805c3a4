//! A machine for the real agent and the real plugin, which needs root: a network namespace with the link of
//! its VM's NIC, and folders. A pod is a further namespace.

use anyhow::{Context, Result, anyhow, ensure};
use clap::Parser;
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::Value;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use vnetpool_azure_sim::VmInfo;
use vnetpool_node_agent::agent::Agent;
use vnetpool_node_agent::args::Args;
use vnetpool_node_agent::beat::Beat;
use vnetpool_node_agent::metrics::Metrics;
use vnetpool_node_agent::source::Source;
use vnetpool_plugin::cni::Program;
use vnetpool_plugin::plugin::{Answer, run};
use vnetpool_process::lock::lock;
use vnetpool_tests::eventually;

const PATIENCE: Duration = Duration::from_secs(30);

/// Its agent ends when it is dropped.
pub struct Machine {
    namespace: Namespace,
    folder: TempDir,
    agent: Option<(oneshot::Sender<()>, JoinHandle<Result<()>>)>,
    pods: Mutex<Vec<Namespace>>,
    named: AtomicUsize,
}

impl Machine {
    pub fn up(vm: &VmInfo) -> Result<Machine> {
        let namespace = Namespace::new()?;
        let VmInfo { mac, address, prefix_len, .. } = vm;
        for words in [
            "link set lo up",
            &format!("link add eth0 address {mac} type veth peer name vnet"),
            &format!("address add {address}/{prefix_len} dev eth0"),
            "link set eth0 up",
            "link set vnet up",
        ] {
            let mut ip = Command::new("ip");
            let output = namespace.inside(|| ip.args(words.split(' ')).output())??;
            ensure!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
        }
        // The ledger belongs on a tmpfs.
        let folder = tempfile::tempdir_in("/dev/shm")?;
        for part in ["state", "net.d"] {
            fs::create_dir(folder.path().join(part))?;
        }
        // A runtime would run it; here it is called in this process.
        fs::write(folder.path().join("vnetpool"), "")?;
        Ok(Machine { namespace, folder, agent: None, pods: Mutex::default(), named: AtomicUsize::default() })
    }

    fn path(&self, part: &str) -> PathBuf {
        self.folder.path().join(part)
    }

    /// Listens on its 127.0.0.1.
    pub fn listen(&self) -> Result<TcpListener> {
        Ok(self.namespace.inside(|| TcpListener::bind("127.0.0.1:0"))??)
    }

    /// Starts its agent, and waits until pods can come.
    pub async fn start_agent(&mut self, node: &str, kube: kube::Config) -> Result<()> {
        let folders = [("state", "--state-dir"), ("bin", "--cni-bin-dir"), ("net.d", "--cni-conf-dir")];
        let paths = folders.into_iter().chain([("vnetpool", "--plugin")]);
        let flags = paths.map(|(part, flag)| format!("{flag}={}", self.path(part).display()));
        let words = ["vnetpool-node-agent".to_owned(), format!("--node-name={node}")];
        let config = Args::try_parse_from(words.into_iter().chain(flags))?.config;
        let (namespace, name) = (self.namespace.0.try_clone()?, node.to_owned());
        let (end, ended) = oneshot::channel::<()>();
        let run = move || {
            // Its threads are where the first one is.
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
            runtime.block_on(async {
                let source = Source::Cluster { client: vnetpool_apiserver::client::client(kube)?, name };
                let metrics = Metrics::new(&config.state_dir);
                let agent = Agent::new(config, source, metrics, Beat::begin())?;
                tokio::select! {
                    ended = agent.run() => ended,
                    _ = ended => Ok(()),
                }
            })
        };
        self.agent = Some((end, thread::Builder::new().name("agent".into()).spawn(run)?));
        eventually("the agent has installed its plugin", PATIENCE, || async {
            ensure!(!self.has_ended(), "the agent has ended");
            Ok(self.path("net.d").join(CONFLIST).exists().then_some(()))
        })
        .await
    }

    /// Ends its agent. Its ledger and its plugin stay, and the next agent finds them.
    pub fn stop_agent(&mut self) -> Result<()> {
        let Some((end, thread)) = self.agent.take() else { return Ok(()) };
        drop(end);
        thread.join().map_err(|_| anyhow!("the agent panicked"))?
    }

    fn has_ended(&self) -> bool {
        self.agent.as_ref().is_some_and(|(_, thread)| thread.is_finished())
    }

    /// The name of a pod that hasn't been here yet.
    pub fn new_pod(&self) -> String {
        format!("pod-{}", self.named.fetch_add(1, Ordering::Relaxed))
    }

    /// Calls the plugin as a runtime does when this pod starts. An error is the plugin's.
    pub async fn add(&self, pod: &str) -> Result<()> {
        let list: Value = serde_json::from_slice(&fs::read(self.path("net.d").join(CONFLIST))?)?;
        let mut configuration = list["plugins"][0].clone();
        for field in ["cniVersion", "name"] {
            configuration[field] = list[field].clone();
        }
        let (namespace, of_pod) = (self.namespace.0.try_clone()?, Namespace::new()?);
        let (pod, path) = (pod.to_owned(), of_pod.path());
        lock(&self.pods).push(of_pod);
        let call = move || {
            Namespace(namespace).inside(|| {
                let env = |name: &str| match name {
                    "CNI_COMMAND" => Some("ADD".to_owned()),
                    "CNI_CONTAINERID" => Some(pod.clone()),
                    "CNI_NETNS" => Some(path.clone()),
                    "CNI_IFNAME" => Some("eth0".to_owned()),
                    _ => None,
                };
                run(Program::Network, env, configuration.to_string().as_bytes())
            })
        };
        let Answer { stdout, exit_code } = spawn_blocking(call).await??;
        ensure!(exit_code == 0, "{}", String::from_utf8_lossy(&stdout));
        Ok(())
    }
}

/// The configuration that the agent installs.
const CONFLIST: &str = "10-vnetpool.conflist";

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.stop_agent() {
            eprintln!("the agent has ended: {error:#}");
        }
    }
}

/// A network namespace without a name: it ends with the last process and file that refer to it.
struct Namespace(File);

impl Namespace {
    fn new() -> Result<Namespace> {
        let make = || -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("this test needs root")?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        };
        let made = thread::spawn(make).join().map_err(|_| anyhow!("no namespace"))?;
        Ok(Namespace(made?))
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs code in here, on a thread of its own.
    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let enter = || -> Result<T> {
                setns(&self.0, CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            };
            scope.spawn(enter).join().map_err(|_| anyhow!("it panicked"))?
        })
    }
}
