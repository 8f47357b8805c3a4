//! Answers that don't come: reserved addresses are found and used, never leaked.

use crate::Test;
use crate::attachments::beside_balancer;
use crate::metrics::Metrics;
use crate::operator::free_address;
use crate::stage::{Stage, find, quick};
use anyhow::{Context, Result, ensure};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::json;
use vnetpool_azure_sim::{Effect, Sim};
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::condition::{ATTACHED, READY};
use vnetpool_crds::names::BACKEND_POOLS;
use vnetpool_tests::control_plane::ControlPlane;

pub const TESTS: &[Test] = crate::tests![
    a_node_gets_its_addresses_and_gives_the_surplus_back,
    a_write_whose_answer_is_cut_off_is_found_and_used,
    a_write_that_azure_has_asked_to_put_off_waits_and_its_nic_is_read_at_once,
    after_any_lost_answer_the_node_gets_its_addresses_and_none_leaks,
    an_attachment_missing_from_an_answer_is_not_reported_and_is_made_later,
    an_azure_that_is_not_there_yet_is_waited_for,
];

async fn a_node_gets_its_addresses_and_gives_the_surplus_back(plane: &ControlPlane) -> Result<()> {
    let sizing = json!({ "minimum": 2, "warm": 1, "batch": 1, "releaseAfter": "0s" });
    let stage = Stage::set(plane, quick(), json!({ "sizing": sizing })).await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 2).await?;
    stage.bind("n1", 5).await?;
    stage.until_holds("n1", 6).await?;
    stage.unbind("n1", 5).await?;
    stage.until_holds("n1", 2).await
}

async fn a_write_whose_answer_is_cut_off_is_found_and_used(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::set(plane, quick(), json!({ "sizing": { "minimum": 4, "warm": 0 } })).await?;
    stage.fault("PUT", "/networkInterfaces/", Some(1), Effect::CutAfterApply);
    stage.node("n1", None).await?;
    stage.until_holds("n1", 4).await?;
    ensure!(stage.writes("n1").len() == 1, "written again: {:?}", stage.asked());
    Ok(())
}

async fn a_write_that_azure_has_asked_to_put_off_waits_and_its_nic_is_read_at_once(
    plane: &ControlPlane,
) -> Result<()> {
    let sizing = json!({ "minimum": 2, "warm": 0, "batch": 2 });
    let stage = Stage::set(plane, quick(), json!({ "sizing": sizing })).await?;
    let body = json!({ "error": { "code": "ServerBusy", "message": "Later." } });
    let headers = [("Retry-After".to_owned(), "10".to_owned())].into();
    stage.fault("PUT", "/n1-nic", Some(1), Effect::Status { status: 503, body, headers });
    stage.node("n1", None).await?;
    stage.until_holds("n1", 2).await?;
    let mut asked = stage.asked().into_iter().filter(|one| one.path.ends_with("/n1-nic"));
    let mut next = |method: &str| -> Result<Timestamp> {
        let one = asked.find(|one| one.method == method).with_context(|| format!("no {method}"))?;
        Ok(one.time.parse()?)
    };
    let pause = SignedDuration::from_secs(10);
    let refused = next("PUT")?;
    let (read, again) = (next("GET")?, next("PUT")?);
    ensure!(read < refused + pause && again >= refused + pause, "{refused}, read {read}, again {again}");
    Ok(())
}

async fn after_any_lost_answer_the_node_gets_its_addresses_and_none_leaks(
    plane: &ControlPlane,
) -> Result<()> {
    let stage =
        Stage::set(plane, quick(), json!({ "sizing": { "minimum": 4, "warm": 0, "batch": 1 } })).await?;
    let status = |status| Effect::Status {
        status,
        body: json!({ "error": { "code": "InternalServerError", "message": "An error occurred." } }),
        headers: [("retry-after".to_owned(), "1".to_owned())].into(),
    };
    let losses = [
        Effect::CutBeforeApply,
        Effect::CutAfterApply,
        Effect::CutBody,
        status(500),
        status(502),
        status(503),
        status(504),
    ];
    // Each node meets one of them in its first write, in the read-back after its second, and in a poll of
    // any.
    for (index, loss) in losses.iter().enumerate() {
        stage.fault("PUT", &format!("/n{index}-nic"), Some(1), loss.clone());
        stage.fault("GET", "/operations/", Some(1), loss.clone());
        stage.node(&format!("n{index}"), None).await?;
    }
    // One node's polls may meet several of them, and each that is cut costs it ten seconds.
    let all_have_struck = |_: &Metrics| stage.sim.faults().iter().all(|fault| fault.hits > 0);
    Metrics::until(&stage, "every loss has struck", all_have_struck).await?;
    for index in 0..losses.len() {
        stage.until_holds(&format!("n{index}"), 4).await?;
    }
    for (index, loss) in losses.iter().enumerate() {
        stage.fault("GET", &format!("/n{index}-nic"), Some(1), loss.clone());
        stage.bind(&format!("n{index}"), 6).await?;
    }
    for (index, loss) in losses.iter().enumerate() {
        let node = format!("n{index}");
        stage.until_holds(&node, 6).await?;
        ensure!(stage.writes(&node).len() <= 3, "{loss:?}: {:?}", stage.writes(&node));
    }
    let unused: Vec<_> = stage.sim.faults().into_iter().filter(|fault| fault.hits == 0).collect();
    ensure!(unused.is_empty(), "never struck: {unused:?}");
    Ok(())
}

async fn an_attachment_missing_from_an_answer_is_not_reported_and_is_made_later(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = beside_balancer(plane).await?;
    // As a proxy answers in Azure's place.
    let nothing = Effect::Status { status: 200, body: json!({}), headers: Default::default() };
    let fault = stage.fault("PUT", "/n1-nic", Some(2), nothing);
    let pod = stage.pod("n1", json!({ BACKEND_POOLS: "web" })).await?;
    stage.until_struck(fault, 2).await?;
    stage.until_condition("n1", ATTACHED, "Attached").await?;
    stage.until_reported(&pod, "Attached", &["Pod"]).await
}

async fn an_azure_that_is_not_there_yet_is_waited_for(plane: &ControlPlane) -> Result<()> {
    let mut stage = Stage::empty(plane, quick()).await?;
    let address = free_address()?;
    // Reserved never to exist (RFC 6761).
    stage.azure_at("http://arm.invalid");
    let vm = stage.sim.add_vm(vnetpool_azure_sim::NewVm { name: "n1".into(), ..Default::default() }).await?;
    stage.pool("default", json!({ "sizing": { "minimum": 4, "warm": 0 } })).await?;
    stage.start().await?;
    stage.join("n1", &vm.provider_id).await?;
    let has_no_name = |condition: &Condition| condition.message.contains("dns error");
    let condition = stage.until_condition("n1", READY, "AzureUnavailable").await?;
    ensure!(has_no_name(&condition), "{}", condition.message);
    let answer = reqwest::get(format!("http://{}/healthz", stage.admin)).await?;
    ensure!(answer.status().is_success(), "an outage of Azure restarts it: {}", answer.text().await?);
    stage.stop().await?;
    stage.azure_at(&format!("http://{address}"));
    stage.start().await?;
    let is_named = |seen: &NodeIPAllocation| {
        find(seen, READY)
            .filter(|condition| condition.reason == "AzureUnavailable" && !has_no_name(condition))
            .map(drop)
    };
    stage.until("nobody listens there", "n1", is_named).await?;
    stage.sim = Sim::listen(quick(), address).await?;
    stage.sim.add_vm(vnetpool_azure_sim::NewVm { name: "n1".into(), ..Default::default() }).await?;
    stage.until_holds("n1", 4).await
}
