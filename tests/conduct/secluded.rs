//! The real agent and the real plugin while the API server can't be heard: pods that wait are served within a
//! stated time.

use crate::Test;
use crate::gateway::Gateway;
use crate::machine::Machine;
use crate::proxy::{Fault, Proxy};
use crate::stage::{Stage, quick};
use anyhow::{Result, ensure};
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::time::timeout;
use vnetpool_azure_sim::NewVm;
use vnetpool_plugin::ledger::file::boot_id;
use vnetpool_tests::control_plane::{ControlPlane, User};
use vnetpool_tests::eventually;
use vnetpool_tests::wait::patience;

pub const TESTS: &[Test] =
    crate::tests![an_agent_serves_pods_that_wait_though_its_watch_is_silent_and_though_its_api_server_dies];

/// Promised, as [`DEAD`] is. While a pod waits, an agent whose watch is silent reads its object every 5 s:
/// once before the operator's write has ended, perhaps, and once after it.
const SILENT: Duration = Duration::from_secs(12);
/// As long as the operator may take: a request on a dead connection, and the next one.
const DEAD: Duration = Duration::from_secs(60);

async fn an_agent_serves_pods_that_wait_though_its_watch_is_silent_and_though_its_api_server_dies(
    plane: &ControlPlane,
) -> Result<()> {
    let sizing = json!({ "sizing": { "minimum": 1, "warm": 0, "batch": 1 } });
    let stage = Stage::set(plane, quick(), sizing).await?;
    let gateway = Gateway::start(plane).await?;
    let vm = stage.sim.add_vm(NewVm { name: "n1".into(), ..NewVm::default() }).await?;
    stage.register("n1", &vm.provider_id, &[], boot_id()?).await?;
    let mut machine = Machine::up(&vm)?;
    let proxy = Proxy::at(machine.listen()?, gateway.address)?;
    let mut kube = plane.config(User::Agent("n1")).await?;
    kube.cluster_url = format!("http://{}", proxy.address).parse()?;
    machine.start_agent("n1", kube).await?;
    served_within(&stage, &machine, SILENT).await?;

    gateway.silence_watches(true);
    served_within(&stage, &machine, SILENT).await?;
    gateway.silence_watches(false);

    proxy.fault(Fault::Die);
    eventually("its watch is dead", Duration::from_secs(5), || async {
        Ok((proxy.met() >= 1).then_some(()))
    })
    .await?;
    proxy.fault(Fault::None);
    served_within(&stage, &machine, DEAD).await?;
    served_within(&stage, &machine, SILENT).await
}

/// One more pod comes to the node, for which no address is free, and its runtime asks until it has one.
async fn served_within(stage: &Stage<'_>, machine: &Machine, within: Duration) -> Result<()> {
    stage.bind("n1", 1).await?;
    let pod = format!("pod-{}", stage.pods_bound("n1").await?);
    let begun = Instant::now();
    let mut refused = vec![];
    let added = timeout(patience(within), async {
        while let Err(error) = machine.add(&pod).await {
            refused.push(format!("{error:#}"));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let added = added.await;
    let agent = || async { json!(stage.allocation("n1").await.map(|one| one.status).ok()).to_string() };
    ensure!(added.is_ok(), "{pod} isn't served within {within:?}: {refused:?}, {}", agent().await);
    eprintln!("{pod} was served after {:.1} s", begun.elapsed().as_secs_f64());
    Ok(())
}
