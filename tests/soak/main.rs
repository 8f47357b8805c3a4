//! Chaos on a real cluster. Pods come and go on every node while everything that can be ended, stopped or
//! refused is, drawn by a seed. All the while an auditor compares Azure, the kernels, the objects and the
//! answers of pods, and at the end all four have to agree.
//!
//! `make soak MINUTES=10 SEED=7 MODE=Prefix WIRING=Bridge`; the defaults are two minutes of seed 1 with
//! `Address` and `Routed`. The faults depend on the seed alone, their outcome also on the machine, so a seed
//! that shows a fault may need to be run more than once.
//!
//! ```text
//!   churn      pods, and who of them has started
//!   faults     what is done to the cluster
//!   conntrack  how a node's table of connections is filled
//!   hunt       how plugins are killed or stopped in the middle of a verb
//!   auditor    checks the invariants again and again
//!   logs       where the timeline of an address comes from
//!   progress   what is printed each minute
//!   world      what all of them share
//! ```

mod auditor;
mod churn;
mod conntrack;
mod faults;
mod hunt;
mod logs;
mod progress;
mod world;

use anyhow::{Context, Result, bail, ensure};
use auditor::Auditor;
use faults::Faults;
use libtest_mimic::{Arguments, Trial};
use serde_json::json;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::time::sleep;
use vnetpool_azure_sim::Draws;
use vnetpool_crds::pool::{Mode, Wiring};
use vnetpool_tests::asked::{choice, number};
use vnetpool_tests::audit::excuses::{BLOCKS_NOTICED, Excuses, NOTICED};
use vnetpool_tests::audit::rest::Sizing;
use vnetpool_tests::cluster::Cluster;
use vnetpool_tests::eventually;
use vnetpool_tests::project::root;
use world::{BATCH, MINIMUM, World};

/// The pause between two faults, at least; as much again is drawn.
const BETWEEN: Duration = Duration::from_secs(3);
/// After the last fault all pods have what they need within this time, or so long after a NIC that was wiped
/// is noticed. Azure's refusals are tried again within two minutes.
const SETTLED: Duration = Duration::from_secs(120);
/// One run.
struct Run {
    length: Duration,
    seed: u64,
    mode: Mode,
    wiring: Wiring,
}

impl Run {
    /// The one that the environment names.
    fn asked_for() -> Result<Self> {
        let length = Duration::from_secs(number("MINUTES", 2)? * 60);
        Ok(Self { length, seed: number("SEED", 1)?, mode: choice("MODE")?, wiring: choice("WIRING")? })
    }

    /// How long it takes to notice what others have done to a NIC, and how many addresses a node holds: with
    /// so many free ones that blocks come and go.
    fn expects(&self) -> Result<(Duration, Sizing)> {
        let sizing = |warm, grain| Sizing { minimum: MINIMUM + 1, warm, batch: BATCH, grain };
        match self.mode {
            Mode::Address => Ok((NOTICED, sizing(2, 1))),
            Mode::Prefix => Ok((BLOCKS_NOTICED, sizing(12, 16))),
            Mode::Route => bail!("the soak's network has no route table: MODE is Address or Prefix"),
        }
    }

    async fn soak(&self) -> Result<()> {
        let Run { length, seed, mode, wiring } = self;
        println!("MINUTES={} SEED={seed} MODE={mode:?} WIRING={wiring:?}", length.as_secs() / 60);
        let (noticed, sizing) = self.expects()?;
        let world = self.world(sizing, Excuses::new(noticed)).await?;
        let took = self.chaos(&world, noticed).await.with_context(|| format!("SEED={seed}"));
        // The figures are wanted of a run that has failed, too.
        world.sums(|sums| print!("{sums}"));
        println!("after the last fault all agreed within {:.1} s", took?.as_secs_f64());
        world.sums(|sums| sums.verdict(*length, &faults::names())).with_context(|| format!("SEED={seed}"))
    }

    /// How long it took after the last fault until all agreed.
    async fn chaos(&self, world: &World, noticed: Duration) -> Result<Duration> {
        let Run { length, seed, .. } = self;
        let mut auditor = Auditor::new(world)?;
        let until = Instant::now() + *length;
        let faults = Faults::new(Draws::of(*seed), *length);
        // The first that fails ends the others: each goes on until then.
        tokio::try_join!(
            churn::run(world, *seed, until),
            strike(world, faults, until),
            auditor.run(until),
            progress::run(world, until)
        )?;
        world.cluster.azure.mend_all().await?;
        let settled = Instant::now();
        eventually("all pods run, and NIC, spec, ledger and kernel agree", noticed + SETTLED, || {
            auditor.agreement()
        })
        .await?;
        let took = settled.elapsed();
        churn::end(world).await?;
        eventually("nothing of a pod is left on any node", noticed + SETTLED, || auditor.emptiness()).await?;
        Ok(took)
    }

    /// A cluster whose nodes are all served in this mode and with this wiring.
    async fn world(&self, sizing: Sizing, excuses: Excuses) -> Result<World> {
        let Run { mode, wiring, .. } = self;
        let dir = root().join("target/cluster/soak");
        let cluster = Cluster::up(&dir, 3, 1).await?;
        let pool = json!({ "mode": mode, "wiring": wiring });
        cluster.install_with(&["--set-json", &format!("defaultPool.spec={pool}")]).await?;
        for node in &cluster.state.nodes {
            let spec = cluster.allocation(&node.name).await?.spec;
            let is_so = spec.mode == *mode && spec.wiring == *wiring;
            ensure!(
                is_so,
                "{} is served in mode {:?} with the wiring {:?}",
                node.name,
                spec.mode,
                spec.wiring
            );
        }
        // Azure's real ten seconds would leave time for few writes only.
        cluster.azure.admin("PATCH", "/settings", json!({ "write_seconds": 1, "limits": false })).await?;
        let pool =
            json!({ "minimum": MINIMUM, "warm": sizing.warm, "batch": sizing.batch, "releaseAfter": "5s" });
        cluster.patch_pool(json!({ "cooldown": "3s", "sizing": pool })).await?;
        Ok(World::new(cluster, dir, sizing, excuses))
    }
}

async fn strike(world: &World, mut faults: Faults, until: Instant) -> Result<()> {
    while Instant::now() < until {
        let (fault, wait) = faults.draw()?;
        if let Err(error) = faults.strike(world, fault).await {
            println!("{} failed: {error:#}", fault.name);
            world.sums(|sums| sums.failed(fault.name, format!("{error:#}")));
        }
        sleep(BETWEEN + wait).await;
    }
    Ok(())
}

fn main() -> ExitCode {
    let run = || -> Result<()> { tokio::runtime::Runtime::new()?.block_on(Run::asked_for()?.soak()) };
    let name = "no_address_is_doubled_or_lost_or_left_behind_whatever_ends";
    let trial = Trial::test(name, move || run().map_err(|error| format!("{error:#}").into()));
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit_code()
}
