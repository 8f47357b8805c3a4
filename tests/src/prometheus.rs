//! A real Prometheus on a cluster's plain VM, which scrapes the programs by the chart's PodMonitors: any
//! machine in the VNet can.

use crate::cluster::Cluster;
use crate::control_plane::rendered;
use crate::monitoring;
use crate::place::Place;
use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Child;

const PORT: u16 = 9090;
/// Seconds between two points of a line.
const STEP: &str = "2";

/// Runs until it is dropped.
pub struct Prometheus {
    vm: Place,
    _process: Child,
    _folder: TempDir,
}

impl Prometheus {
    /// It finds the pods that are there now.
    ///
    /// # Errors
    /// When it can't be started, or the chart's objects can't be rendered.
    pub async fn start(cluster: &Cluster) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let [targets, configuration] =
            ["targets.json", "prometheus.yaml"].map(|name| folder.path().join(name));
        let pods: Value =
            serde_json::from_str(&cluster.kubectl(&["get", "pods", "-A", "-o", "json"]).await?)?;
        let pods = pods["items"].as_array().context("no pods")?;
        std::fs::write(&targets, monitoring::targets(pods).to_string())?;
        let objects = rendered(&["--set", "monitoring.podMonitors.enabled=true"])?;
        let monitors: Vec<&Value> =
            objects.values().flatten().filter(|object| object["kind"] == "PodMonitor").collect();
        ensure!(monitors.len() == 2, "{monitors:?}");
        std::fs::write(&configuration, monitoring::configuration(&monitors, &targets)?.to_string())?;
        let host = cluster.state.vms.first().context("no plain VM")?;
        let [configuration, data] =
            [configuration, folder.path().join("data")].map(|path| path.to_string_lossy().into_owned());
        let command = [
            "prometheus",
            &format!("--config.file={configuration}"),
            &format!("--storage.tsdb.path={data}"),
            &format!("--web.listen-address={}:{PORT}", host.address),
        ];
        let process = cluster.start_on(&host.name, "prometheus", &command)?;
        Ok(Self { vm: Place::host(host), _process: process, _folder: folder })
    }

    /// The series that an expression gives now.
    ///
    /// # Errors
    /// When Prometheus refuses the expression, or doesn't answer.
    pub async fn series(&self, expression: &str) -> Result<Vec<Value>> {
        self.results("query", &[&format!("query={expression}")]).await
    }

    /// The series that an expression has given since then, with their values.
    ///
    /// # Errors
    /// As [`Prometheus::series`].
    pub async fn range(&self, expression: &str, begin: Timestamp) -> Result<Vec<Value>> {
        let [begin, end] = [begin, Timestamp::now()].map(|at| at.as_second());
        let [query, begin, end, step] = [
            format!("query={expression}"),
            format!("start={begin}"),
            format!("end={end}"),
            format!("step={STEP}"),
        ];
        self.results("query_range", &[&query, &begin, &end, &step]).await
    }

    async fn results(&self, what: &str, fields: &[&str]) -> Result<Vec<Value>> {
        let arguments: Vec<&str> = fields.iter().flat_map(|field| ["--data-urlencode", *field]).collect();
        let answer = self.get(what, &arguments).await?;
        answer["result"].as_array().cloned().with_context(|| format!("{fields:?}: {answer}"))
    }

    /// An answer of its API; `arguments` are curl's.
    ///
    /// # Errors
    /// When it refuses, or doesn't answer.
    pub async fn get(&self, what: &str, arguments: &[&str]) -> Result<Value> {
        let url = format!("http://{}:{PORT}/api/v1/{what}", self.vm.address);
        let answer =
            self.vm.run("curl", &[&["-sS", "--max-time", "10", "--get", &url], arguments].concat()).await?;
        let mut answer: Value = serde_json::from_str(&answer).with_context(|| answer)?;
        ensure!(answer["status"] == "success", "{what} {arguments:?}: {answer}");
        Ok(answer["data"].take())
    }
}
