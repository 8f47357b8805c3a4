//! Kubernetes' own conformance specs of the network (its group is called sig-network) on a cluster with
//! Vnetpool: all of them pass, with both modes of kube-proxy, whatever the pool's mode and wiring.
//!
//! `make conformance PROXY_MODE=nftables MODE=Prefix WIRING=Bridge` runs them on one such cluster; the
//! defaults are `iptables`, `Address` and `Routed`. With `NIGHTLY` in the environment there is a test for
//! each combination that [`Combination::all`] names. The suite is `../cluster/conformance`.

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::json;
use std::fmt::{Display, Formatter};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::Instant;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::runtime::Runtime;
use vnetpool_crds::pool::{Mode, Wiring};
use vnetpool_tests::asked::{choice, variable};
use vnetpool_tests::chapters::is_nightly;
use vnetpool_tests::cluster::Cluster;
use vnetpool_tests::project::{root, tool};
use vnetpool_tests::specs::Specs;

/// How many specs the version of Kubernetes in `../cluster/go.mod` has; another version may have more.
const SPECS: usize = 47;
const FOCUS: &str = r"\[sig-network\].*\[Conformance\]";
const NODES: u32 = 3;

/// A cluster that the specs run on.
#[derive(Clone)]
struct Combination {
    proxy_mode: String,
    mode: Mode,
    wiring: Wiring,
}

impl Display for Combination {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        let Self { proxy_mode, mode, wiring } = self;
        write!(f, "{proxy_mode}-{mode:?}-{wiring:?}")
    }
}

impl Combination {
    /// The one that the environment names.
    fn asked_for() -> Result<Self> {
        let proxy_mode = variable("PROXY_MODE")?.unwrap_or_else(|| "iptables".to_owned());
        Ok(Self { proxy_mode, mode: choice("MODE")?, wiring: choice("WIRING")? })
    }

    /// Each way of reserving and each way of wiring, with both modes of kube-proxy.
    fn all() -> Vec<Self> {
        use {Mode::*, Wiring::*};
        let ways = [(Address, Routed), (Prefix, Routed), (Address, Bridge)];
        let with = |proxy_mode: &'static str| {
            ways.map(|(mode, wiring)| Self { proxy_mode: proxy_mode.to_owned(), mode, wiring })
        };
        ["iptables", "nftables"].into_iter().flat_map(with).collect()
    }

    async fn conforms(&self) -> Result<()> {
        let dir = root().join("target/cluster/conformance").join(self.to_string());
        let cluster = Cluster::up_with(&dir, NODES, 0, &self.proxy_mode).await?;
        cluster.azure.admin("PATCH", "/settings", json!({ "write_seconds": 1, "limits": false })).await?;
        let pool = json!({ "mode": self.mode, "wiring": self.wiring });
        cluster.install_with(&["--set-json", &format!("defaultPool.spec={pool}")]).await?;
        for node in &cluster.state.nodes {
            let spec = cluster.allocation(&node.name).await?.spec;
            let (mode, wiring) = (spec.mode, spec.wiring);
            let is_so = mode == self.mode && wiring == self.wiring;
            ensure!(is_so, "{} is served in mode {mode:?} with the wiring {wiring:?}", node.name);
        }
        cluster.bring_coredns().await?;
        cluster.load("agnhost").await?;
        let specs = run(&cluster, &dir.join("logs")).await?;
        println!("{self}: {specs}");
        specs.all_passed(SPECS)
    }
}

/// Runs the suite, prints a line for each spec that has ended, and returns the report.
async fn run(cluster: &Cluster, logs: &Path) -> Result<Specs> {
    let (report, log) = (logs.join("specs.json"), logs.join("suite.log"));
    let mut log = fs::File::create(&log).with_context(|| log.display().to_string())?;
    let mut suite = Command::new(tool("conformance"));
    suite.args(["--provider=skeleton", "--ginkgo.focus", FOCUS, "--ginkgo.no-color", "--num-nodes"]);
    suite.arg(NODES.to_string()).arg("--ginkgo.json-report").arg(&report);
    suite.arg("--kubeconfig").arg(&cluster.state.kubeconfig).arg("--kubectl-path").arg(tool("kubectl"));
    suite.arg("--e2e-output-dir").arg(logs).current_dir(logs);
    suite.env("KUBE_TEST_REPO_LIST", root().join("tests/cluster/conformance/registries.yaml"));
    suite.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log.try_clone()?).kill_on_drop(true);
    let mut suite = suite.spawn().context("the suite: run `make conformance`, which builds it")?;
    let mut lines = BufReader::new(suite.stdout.take().context("no output")?).lines();
    while let Some(line) = lines.next_line().await? {
        writeln!(log, "{line}")?;
        if line.starts_with("spec ") {
            println!("{line}");
        }
    }
    let status = suite.wait().await?;
    // A spec that failed has it end with an error, too: only the report counts.
    let report =
        fs::read_to_string(&report).with_context(|| format!("the suite reports nothing: {status}"))?;
    Specs::read(&report)
}

fn main() -> Result<ExitCode> {
    let combinations = if is_nightly() { Combination::all() } else { vec![Combination::asked_for()?] };
    let trials = combinations.into_iter().map(|combination| {
        Trial::test(format!("{combination}::every_conformance_spec_of_the_network_passes"), move || {
            let begun = Instant::now();
            let outcome = Runtime::new()?.block_on(combination.conforms());
            println!("{:.1} s", begun.elapsed().as_secs_f64());
            outcome.map_err(|error| Failed::from(format!("{error:#}")))
        })
    });
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    Ok(libtest_mimic::run(&arguments, trials.collect()).exit_code())
}
