//! Chaos on a real cluster. Pods come and go on every node while everything that can be ended, stopped or
//! refused is, drawn by a seed. All the while an auditor compares Azure, the kernels, the objects and the
//! answers of pods, and at the end all four have to agree.
//!
//! `make soak MINUTES=10 SEED=7`; the defaults are two minutes of seed 1. The faults depend on the seed
//! alone, their outcome also on the machine, so a seed that shows a fault may need to be run more than once.
//!
//! ```text
//!   churn    pods, and who of them has started
//!   faults   what is done to the cluster
//!   auditor  checks the invariants again and again
//!   sums     what was done, how long it took to heal, and what was violated
//! ```

mod auditor;
mod churn;
mod faults;
mod sums;

use anyhow::{Context, Result};
use auditor::Auditor;
use faults::Faults;
use libtest_mimic::{Arguments, Trial};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use sums::Sums;
use tokio::time::sleep;
use vnetpool_azure_sim::Draws;
use vnetpool_process::lock::lock;
use vnetpool_tests::cluster::{Cluster, root};
use vnetpool_tests::eventually;

/// The pause between two faults, at least; as much again is drawn.
const BETWEEN: Duration = Duration::from_secs(3);
/// After the last fault all pods have what they need within this time. A NIC that was wiped is noticed within
/// three minutes, and Azure's refusals are tried again within two.
const SETTLED: Duration = Duration::from_secs(300);

/// The state that all parts share.
pub struct World {
    pub cluster: Cluster,
    pub dir: PathBuf,
    pub sums: Mutex<Sums>,
}

impl World {
    pub fn sums<T>(&self, change: impl FnOnce(&mut Sums) -> T) -> T {
        change(&mut lock(&self.sums))
    }
}

fn number(name: &str, usual: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(given) => given.parse().with_context(|| format!("{name}={given}")),
        Err(_) => Ok(usual),
    }
}

async fn soak(minutes: u64, seed: u64) -> Result<()> {
    println!("MINUTES={minutes} SEED={seed}");
    let dir = root().join("target/cluster/soak");
    let cluster = Cluster::up(&dir, 3, 1).await?;
    cluster.install().await?;
    // Azure's real ten seconds would leave time for few writes only.
    cluster.azure.admin("PATCH", "/settings", json!({ "write_seconds": 1, "limits": false })).await?;
    let sizing = json!({ "minimum": 2, "warm": 2, "batch": 2, "releaseAfter": "5s" });
    cluster.patch_pool(json!({ "cooldown": "3s", "sizing": sizing })).await?;
    let world = World { cluster, dir, sums: Mutex::new(Sums::default()) };
    let mut auditor = Auditor::new(&world);
    let begun = Instant::now();
    let until = begun + Duration::from_secs(minutes * 60);
    // The first that fails ends the others: each goes on until then.
    tokio::try_join!(churn::run(&world, seed, until), strike(&world, seed, until), auditor.run(until))?;
    world.cluster.azure.mend_all().await?;
    let settled = Instant::now();
    eventually("all pods run, and NIC, spec, ledger and kernel agree", SETTLED, || auditor.agreement())
        .await
        .inspect_err(|_| world.sums(|sums| sums.print()))?;
    let took = settled.elapsed();
    churn::end(&world).await?;
    eventually("nothing of a pod is left on any node", SETTLED, || auditor.emptiness()).await?;
    world.sums(|sums| {
        sums.print();
        println!("after the last fault all agreed within {:.1} s", took.as_secs_f64());
        sums.verdict().with_context(|| format!("SEED={seed}"))
    })
}

async fn strike(world: &World, seed: u64, until: Instant) -> Result<()> {
    let mut faults = Faults::new(Draws::of(seed));
    while Instant::now() < until {
        let (fault, wait) = faults.draw();
        match faults.strike(world, fault).await {
            Ok(node) => world.sums(|sums| sums.struck(fault.name, node)),
            // Another fault may be in its way, such as an API server that stands still.
            Err(error) => println!("{} failed: {error:#}", fault.name),
        }
        sleep(BETWEEN + wait).await;
    }
    Ok(())
}

fn main() -> ExitCode {
    let run = || -> Result<()> {
        let (minutes, seed) = (number("MINUTES", 2)?, number("SEED", 1)?);
        tokio::runtime::Runtime::new()?.block_on(soak(minutes, seed))
    };
    let name = "no_address_is_doubled_or_lost_or_left_behind_whatever_ends";
    let trial = Trial::test(name, move || run().map_err(|error| format!("{error:#}").into()));
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit_code()
}
