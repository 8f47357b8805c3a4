//! The real agent and the real plugin while the API server can't be heard, refuses or hangs up: pods that
//! wait are served within a stated time.

use crate::Test;
use crate::gateway::{Gateway, Trouble};
use crate::machine::Machine;
use crate::proxy::{Fault, Proxy};
use crate::stage::{Stage, quick};
use anyhow::{Result, ensure};
use axum::http::StatusCode;
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::time::timeout;
use vnetpool_azure_sim::NewVm;
use vnetpool_plugin::ledger::file::boot_id;
use vnetpool_tests::control_plane::{ControlPlane, User};
use vnetpool_tests::eventually;
use vnetpool_tests::wait::patience;

pub const LONG: &[Test] = crate::tests![
    an_agent_serves_pods_that_wait_though_its_watch_is_silent_and_though_its_api_server_dies,
    an_agent_serves_pods_that_wait_though_answers_never_come_or_stop_in_the_middle,
    an_agent_serves_pods_that_wait_though_its_api_server_hangs_up_forgets_and_refuses,
];

/// Promised, as [`DEAD`] and [`LOST`] are. While a pod waits, an agent whose watch is silent reads its object
/// every 5 s: once before the operator's write has ended, perhaps, and once after it.
const SILENT: Duration = Duration::from_secs(12);
/// As long as the operator may take: a request on a dead connection, and the next one.
const DEAD: Duration = Duration::from_secs(60);
/// As long as the operator may take: a request that isn't answered ends after 15 s, and is made again.
const LOST: Duration = Duration::from_secs(30);

/// A node with the real agent, which reaches its API server through a gateway with a proxy before it.
struct Secluded<'a> {
    stage: Stage<'a>,
    gateway: Gateway,
    proxy: Proxy,
    machine: Machine,
    kube: kube::Config,
}

impl<'a> Secluded<'a> {
    async fn set(plane: &'a ControlPlane) -> Result<Self> {
        let stage = Stage::set(plane, quick(), sizing(1)).await?;
        let gateway = Gateway::start(plane, User::Administrator).await?;
        let mut machine = machine(&stage, "n1").await?;
        let proxy = Proxy::at(machine.listen()?, gateway.address)?;
        let mut kube = plane.config(User::Agent("n1")).await?;
        kube.cluster_url = format!("http://{}", proxy.address).parse()?;
        machine.start_agent("n1", kube.clone()).await?;
        served_within(&stage, &machine, SILENT).await?;
        Ok(Self { stage, gateway, proxy, machine, kube })
    }

    /// From now on, until the proxy has met this fault of connections.
    async fn fault(&self, fault: Fault) -> Result<()> {
        let before = self.proxy.met();
        self.proxy.fault(fault);
        eventually(&format!("{fault:?} strikes"), Duration::from_secs(20), || async {
            Ok((self.proxy.met() > before).then_some(()))
        })
        .await
    }

    /// One more pod is served so soon after that, and another one as soon as always.
    async fn recovers(&self, from: &str, within: Duration) -> Result<()> {
        self.proxy.fault(Fault::None);
        eprintln!("{from}:");
        served_within(&self.stage, &self.machine, within).await?;
        served_within(&self.stage, &self.machine, SILENT).await
    }

    /// Each request that was to be refused has been: the last may be a report of counts, which waits for up
    /// to two minutes.
    async fn until_refused(&self) -> Result<()> {
        eventually("all were refused", Duration::from_secs(180), || async {
            ensure!(self.gateway.left() == 0, "{} weren't", self.gateway.left());
            Ok(Some(()))
        })
        .await
    }
}

pub fn sizing(minimum: u32) -> serde_json::Value {
    json!({ "sizing": { "minimum": minimum, "warm": 0, "batch": 1 } })
}

/// A node with a machine for the real agent.
pub async fn machine(stage: &Stage<'_>, node: &str) -> Result<Machine> {
    let vm = stage.sim.add_vm(NewVm { name: node.into(), ..NewVm::default() }).await?;
    stage.register(node, &vm.provider_id, &[], boot_id()?).await?;
    Machine::up(&vm)
}

async fn an_agent_serves_pods_that_wait_though_its_watch_is_silent_and_though_its_api_server_dies(
    plane: &ControlPlane,
) -> Result<()> {
    let all = Secluded::set(plane).await?;
    all.gateway.silence_watches(true);
    served_within(&all.stage, &all.machine, SILENT).await?;
    all.gateway.silence_watches(false);

    all.fault(Fault::Die).await?;
    all.recovers("its API server has died", DEAD).await
}

async fn an_agent_serves_pods_that_wait_though_answers_never_come_or_stop_in_the_middle(
    plane: &ControlPlane,
) -> Result<()> {
    let mut all = Secluded::set(plane).await?;
    // Its watch, begun anew, is taken and never answered.
    all.fault(Fault::Cut).await?;
    all.fault(Fault::LoseAnswers).await?;
    all.recovers("answers were lost", LOST).await?;

    // An agent that starts lists its object: more than the head of that answer passes, and not all of it.
    all.machine.stop_agent()?;
    let before = all.proxy.met();
    all.proxy.fault(Fault::StallAfter(600));
    all.machine.start_agent("n1", all.kube.clone()).await?;
    eventually("its list stops in the middle", Duration::from_secs(20), || async {
        Ok((all.proxy.met() > before).then_some(()))
    })
    .await?;
    all.recovers("a list stopped in the middle", LOST).await
}

async fn an_agent_serves_pods_that_wait_though_its_api_server_hangs_up_forgets_and_refuses(
    plane: &ControlPlane,
) -> Result<()> {
    let all = Secluded::set(plane).await?;
    all.fault(Fault::Cut).await?;
    all.recovers("its connections were cut", SILENT).await?;

    all.gateway.trouble(Trouble::ExpireOne, 1);
    all.fault(Fault::Cut).await?;
    all.recovers("its watch's version was too old", SILENT).await?;
    all.until_refused().await?;

    all.gateway.trouble(Trouble::RefuseToShow(StatusCode::SERVICE_UNAVAILABLE), 3);
    all.fault(Fault::Cut).await?;
    all.recovers("its watch was refused three times", SILENT).await?;
    all.until_refused().await?;

    for (status, retry_after) in
        [(StatusCode::INTERNAL_SERVER_ERROR, None), (StatusCode::TOO_MANY_REQUESTS, Some(2))]
    {
        all.gateway.trouble(Trouble::Refuse(status, retry_after), 3);
        all.recovers(&format!("three of its reports are answered {status}"), SILENT).await?;
        all.until_refused().await?;
    }
    Ok(())
}

/// One more pod comes to the node, and its runtime asks until it has an address.
pub async fn served_within(stage: &Stage<'_>, machine: &Machine, within: Duration) -> Result<()> {
    stage.bind("n1", 1).await?;
    let pod = machine.new_pod();
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
