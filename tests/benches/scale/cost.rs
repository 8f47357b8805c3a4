//! What a phase has cost: the difference of two looks at the operator's process, its requests to Azure, and
//! those the API server has served.

use crate::metrics::Metrics;
use crate::stage::Stage;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;
use vnetpool_tests::control_plane::ControlPlane;

/// The operator as a process of its own: this program once more. Killed when dropped.
pub struct Process(Child);

impl Process {
    pub fn start(stage: &Stage<'_>, plane: &ControlPlane) -> Result<Process> {
        let mut program = Command::new(std::env::current_exe()?);
        program.arg("operator").arg(&plane.kubeconfig).args([stage.sim.arm_url(), &stage.admin.to_string()]);
        Ok(Process(program.arg(stage.new_identity()).stdin(Stdio::null()).spawn()?))
    }

    pub fn kill(mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait().map(drop).context("the operator's end")
    }

    /// Seconds of processor time so far.
    fn processor(&self) -> Result<f64> {
        const TICKS_A_SECOND: f64 = 100.0;
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        // The fields after the name, which may hold anything but another closing parenthesis; utime and
        // stime.
        let fields = stat.rsplit_once(')').context("/proc/PID/stat")?.1.split_whitespace();
        let ticks: f64 = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
        Ok(ticks / TICKS_A_SECOND)
    }

    /// Megabytes in memory now, and at most so far.
    fn memory(&self) -> Result<[f64; 2]> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<f64>().ok()
        };
        Ok(["VmRSS:", "VmHWM:"].map(|name| field(name).unwrap_or_default() / 1024.0))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Everything so far: what is counted, by what it is.
pub struct Cost {
    counts: BTreeMap<String, f64>,
    processor: f64,
}

impl Cost {
    pub async fn so_far((plane, stage): (&ControlPlane, &Stage<'_>), operator: &Process) -> Result<Cost> {
        let mut counts = BTreeMap::new();
        // An operator that has just started has asked nothing yet, and doesn't tell either.
        if let Ok(metrics) = Metrics::scrape(stage).await {
            for kind in ["read", "write", "poll", "delete"] {
                let all = metrics.sum("vnetpool_operator_arm_requests_total", &[&format!("kind=\"{kind}\"")]);
                counts.insert(format!("Azure: {kind}"), all);
            }
            let throttled = metrics.sum("vnetpool_operator_arm_requests_total", &[r#"status="429""#]);
            counts.insert("Azure: throttled".into(), throttled);
        }
        let text = plane.kubectl(&["get", "--raw", "/metrics"])?;
        for line in text.lines().filter(|line| line.starts_with("apiserver_request_total{")) {
            let label = |name: &str| {
                let from = line.split_once(&format!("{name}=\""))?.1;
                Some(from.split_once('"')?.0.to_owned())
            };
            let what = |name: &str| label(name).unwrap_or_default();
            let (resource, part) = (what("resource"), what("subresource"));
            let kind = format!("API: {} {resource} {part}, {}", what("verb"), what("code"));
            let count = line.rsplit(' ').next().and_then(|count| count.parse::<f64>().ok());
            *counts.entry(kind).or_default() += count.unwrap_or_default();
        }
        counts.insert("agents' reports".into(), stage.agents.reports.load(Ordering::Relaxed) as f64);
        Ok(Cost { counts, processor: operator.processor()? })
    }

    /// Prints what has come since, and gives all so far.
    pub async fn next(
        self,
        phase: &str,
        took: Duration,
        world: (&ControlPlane, &Stage<'_>),
        operator: &Process,
    ) -> Result<Cost> {
        let now = Cost::so_far(world, operator).await?;
        let [memory, most] = operator.memory()?;
        println!(
            "\n{phase}: {:.1} s, operator {:.1} s of processor, {memory:.0} MB now, {most:.0} MB at most",
            took.as_secs_f64(),
            now.processor - self.processor,
        );
        for (kind, count) in &now.counts {
            let count = count - self.counts.get(kind).copied().unwrap_or_default();
            if count > 0.0 {
                println!("  {count:7} {kind}");
            }
        }
        Ok(now)
    }
}
