//! The operator as a process of its own: this program once more, which runs what the operator's own does.

use crate::metrics::Metrics;
use crate::operator;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use vnetpool_operator::Waits;
use vnetpool_tests::control_plane::{ControlPlane, User, rendered};

/// The first argument of this program when it is to be the operator.
pub const ROLE: &str = "operator";

const WITHOUT_TLS: &str = "http://";

/// Killed when dropped.
pub struct Process {
    child: Child,
    admin: SocketAddr,
}

/// A reading of a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Seconds of processor time so far.
    pub processor: f64,
    /// Megabytes in memory now, and at most so far.
    pub memory: [f64; 2],
}

impl Process {
    pub fn start(plane: &ControlPlane, arm: &str, identity: &str) -> Result<Process> {
        Process::of(&plane.kubeconfig.display().to_string(), arm, identity)
    }

    /// Before an API server without TLS.
    pub fn start_behind(gateway: SocketAddr, arm: &str, identity: &str) -> Result<Process> {
        Process::of(&format!("{WITHOUT_TLS}{gateway}"), arm, identity)
    }

    fn of(server: &str, arm: &str, identity: &str) -> Result<Process> {
        let admin = operator::free_address()?;
        let mut program = Command::new(std::env::current_exe()?);
        program.args([ROLE, server, arm, &admin.to_string(), identity]).envs(allocator()?);
        let child = program.stdin(Stdio::null()).spawn()?;
        Ok(Process { child, admin })
    }

    pub async fn metrics(&self) -> Result<Metrics> {
        Metrics::at(self.admin).await
    }

    /// Waits until its caches are synced.
    pub async fn until_ready(&self, patience: Duration) -> Result<()> {
        operator::until_ready(self.admin, patience).await
    }

    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop).context("the operator's end")
    }

    /// Asks it to end, and waits until it has.
    pub fn end(mut self) -> Result<()> {
        let signalled = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status()?;
        ensure!(signalled.success(), "kill: {signalled}");
        self.child.wait().map(drop).context("the operator's end")
    }

    /// From now on the most memory is that of the time since.
    pub fn forget_most(&self) -> Result<()> {
        let path = format!("/proc/{}/clear_refs", self.child.id());
        fs::write(&path, "5").context(path)
    }

    pub fn usage(&self) -> Result<Usage> {
        const TICKS_A_SECOND: f64 = 100.0;
        let id = self.child.id();
        let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
        // The fields after the name, which may hold anything but another closing parenthesis; utime and
        // stime.
        let fields = stat.rsplit_once(')').context("/proc/PID/stat")?.1.split_whitespace();
        let ticks: f64 = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
        let status = fs::read_to_string(format!("/proc/{id}/status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<f64>().ok()
        };
        let memory = ["VmRSS:", "VmHWM:"].map(|name| field(name).unwrap_or_default() / 1024.0);
        Ok(Usage { processor: ticks / TICKS_A_SECOND, memory })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How the chart has the operator's allocator go about with memory.
fn allocator() -> Result<Vec<(String, String)>> {
    let objects = rendered(&[])?;
    let deployment = objects.get("operator/deployment.yaml").and_then(|all| all.first());
    let env = deployment.and_then(|one| one.pointer("/spec/template/spec/containers/0/env")?.as_array());
    let set = env.context("the operator's environment in the chart")?.iter().filter_map(|one| {
        let (name, value) = (one["name"].as_str()?, one["value"].as_str()?);
        name.starts_with("MALLOC_").then(|| (name.to_owned(), value.to_owned()))
    });
    Ok(set.collect())
}

/// The process's work: the arguments are those after [`ROLE`], the first a kubeconfig or an address without
/// TLS.
pub async fn run([server, arm, admin, identity]: [&str; 4]) -> Result<()> {
    let config = operator::config(arm.parse()?, arm.parse()?, admin.parse()?, identity.to_owned());
    let config = vnetpool_operator::Config { waits: Waits::FULL, ..config };
    let kube = match server.starts_with(WITHOUT_TLS) {
        true => kube::Config::new(server.parse()?),
        false => User::Operator.config(Path::new(server)).await?,
    };
    let client = || vnetpool_apiserver::client::client(kube.clone());
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async move {
        terminate.recv().await;
    };
    Ok(vnetpool_operator::run(config, client()?, client()?, stop).await?)
}
