//! A subnet that runs out of addresses: how each of its nodes acts, and which of them gets the addresses that
//! come free.

use crate::Test;
use crate::budget::used_up;
use crate::machines::{NODE, held};
use crate::metrics::Metrics;
use crate::stage::{Stage, find, quick};
use anyhow::{Context, Result, ensure};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;
use vnetpool_azure_sim::{Config, Effect, NewInstance, NewScaleSet, VmInfo, VnetConfig};
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::condition::RESERVED;
use vnetpool_tests::control_plane::{ControlPlane, User};
use vnetpool_tests::eventually;

pub const TESTS: &[Test] = crate::tests![
    a_full_subnet_slows_all_its_nodes_at_once_and_shares_freed_addresses_by_need,
    a_full_subnet_is_probed_by_one_node_after_a_restart,
    a_node_whose_nic_is_gone_delays_no_node_in_a_full_subnet,
    a_virtual_network_at_azures_limit_shares_freed_addresses_as_a_full_subnet_does,
    an_instance_in_a_nearly_full_subnet_gets_the_rest_and_its_model_stays_clean,
    what_a_failed_write_has_left_in_a_model_goes_though_no_pod_asks_any_more,
    what_a_failed_write_has_left_in_a_model_is_found_by_the_next_leader,
    what_a_dropped_write_has_left_in_a_model_goes_though_no_pod_asks_any_more,
];

pub const LONG: &[Test] = crate::tests![
    a_node_in_need_whose_read_hangs_delays_others_for_no_longer_than_its_turn,
    writes_that_wait_for_their_turn_when_a_subnet_runs_out_are_not_sent,
];

/// A /28 gives eleven addresses; three nodes take one each for themselves.
const SMALL: Option<&str> = Some("small");

/// How long a node has the turn of a full subnet at most.
const TURN: Duration = Duration::from_secs(30);

/// Nodes a, b and c in the small subnet with 4, 3 and 1 addresses, all there are, where c has pods for four;
/// d elsewhere.
async fn full<'a>(plane: &'a ControlPlane) -> Result<Stage<'a>> {
    let sizing = json!({ "minimum": 0, "warm": 0, "batch": 1, "releaseAfter": "0s" });
    let stage = Stage::set(plane, quick(), json!({ "sizing": sizing })).await?;
    for (node, pods) in [("a", 4), ("b", 3)] {
        stage.node(node, SMALL).await?;
        stage.bind(node, pods).await?;
        stage.until_holds(node, pods).await?;
    }
    stage.node("d", None).await?;
    stage.node("c", SMALL).await?;
    stage.bind("c", 4).await?;
    stage.until_holds("c", 1).await?;
    stage.until_condition("c", RESERVED, "SubnetFull").await?;
    Ok(stage)
}

async fn a_full_subnet_slows_all_its_nodes_at_once_and_shares_freed_addresses_by_need(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = full(plane).await?;
    let asked: Vec<u16> = stage.writes("c").iter().map(|write| write.status).collect();
    ensure!(asked == [400, 400, 200], "four, two and one were asked for: {asked:?}");

    // a doesn't ask for the addresses that c was refused, and reports so as c does; another subnet has
    // nothing to do with it.
    let before = stage.writes("a").len();
    stage.bind("a", 2).await?;
    stage.bind("d", 3).await?;
    let reported = stage.until_condition("a", RESERVED, "SubnetFull").await?;
    ensure!(
        reported.message.contains("small (10.240.16.0/28)") && reported.message.contains("a-nic"),
        "{}",
        reported.message
    );
    stage.until_holds("d", 3).await?;
    ensure!(stage.writes("a").len() == before, "asked all the same: {:?}", stage.writes("a"));

    // Releases go on. c, with 1 of 4, is in greater need than a, with 4 of 6.
    stage.unbind("b", 2).await?;
    stage.until_holds("c", 3).await?;
    stage.until_holds("b", 1).await?;
    ensure!(stage.held("a").len() == 4, "a was not in need first: {:?}", stage.held("a"));
    // Now a is.
    stage.unbind("b", 1).await?;
    stage.until_holds("a", 5).await?;
    ensure!(stage.held("c").len() == 3 && stage.held("b").is_empty(), "{:?}", stage.held("c"));
    let refused = |node: &str| stage.writes(node).iter().filter(|write| write.status == 400).count();
    ensure!((refused("a"), refused("b"), refused("c")) == (0, 0, 2), "asked for what isn't there");

    for node in ["a", "c"] {
        stage.until_reported(node, "SubnetFull", &["Node", "NodeIPAllocation"]).await?;
    }
    // The end of it: the pods go, and no report of a full subnet remains.
    stage.unbind("a", 3).await?;
    stage.until_holds("c", 4).await?;
    stage.until_condition("c", RESERVED, "Reserved").await?;
    stage.until_condition("a", RESERVED, "Reserved").await?;
    Ok(())
}

async fn a_node_whose_nic_is_gone_delays_no_node_in_a_full_subnet(plane: &ControlPlane) -> Result<()> {
    let stage = full(plane).await?;
    stage.bind("a", 2).await?;
    stage.until_condition("a", RESERVED, "SubnetFull").await?;
    // c, with 1 of 4, is in greater need than a, with 4 of 6. A spot VM goes, and its Node lingers.
    stage.sim.delete_vm("c", false).await?;
    stage.unbind("b", 2).await?;
    stage.until_holds("a", 6).await
}

async fn a_node_in_need_whose_read_hangs_delays_others_for_no_longer_than_its_turn(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = full(plane).await?;
    stage.bind("a", 2).await?;
    stage.until_condition("a", RESERVED, "SubnetFull").await?;
    // c, with 1 of 4, is in greater need than a, with 4 of 6. An old leader writes its object, so its NIC is
    // read, and Azure doesn't answer.
    let hangs = stage.fault("GET", "/c-nic", None, Effect::HoldBefore);
    let edit = Patch::Merge(json!({ "spec": { "target": 9 } }));
    let old = Client::try_from(plane.config(User::Operator).await?)?;
    let api = Api::<NodeIPAllocation>::all(old);
    api.patch("c", &PatchParams::default(), &edit).await?;
    stage.until_struck(hangs, 1).await?;
    // b's machine goes, and its three addresses come free.
    stage.sim.delete_vm("b", false).await?;
    stage.delete_node("b").await?;
    stage.until_gone("b").await?;
    eventually("a is served when the turn of c has ended", Duration::from_secs(30) + TURN, || async {
        ensure!(stage.held("a").len() == 6, "a holds {:?}", stage.held("a"));
        Ok(Some(()))
    })
    .await?;
    ensure!(stage.held("c").len() == 1, "c had its turn: {:?}", stage.held("c"));
    stage.sim.lift_fault(hangs)?;
    stage.until("c is served, too", "c", |_| (stage.held("c").len() > 1).then_some(())).await
}

async fn a_virtual_network_at_azures_limit_shares_freed_addresses_as_a_full_subnet_does(
    plane: &ControlPlane,
) -> Result<()> {
    let sizing = json!({ "minimum": 0, "warm": 0, "batch": 1, "releaseAfter": "0s" });
    // Three machines and eight of ours.
    let azure = Config { network_addresses: 11, ..quick() };
    let stage = Stage::set(plane, azure, json!({ "sizing": sizing })).await?;
    for (node, subnet) in [("a", None), ("b", SMALL), ("c", None)] {
        stage.node(node, subnet).await?;
    }
    stage.bind("a", 4).await?;
    stage.until_holds("a", 4).await?;
    stage.bind("b", 3).await?;
    stage.until_holds("b", 3).await?;
    stage.bind("c", 4).await?;
    stage.until_holds("c", 1).await?;
    let reported = stage.until_condition("c", RESERVED, "VirtualNetworkFull").await?;
    ensure!(
        reported.message.contains("c-nic") && reported.message.contains("mode Prefix"),
        "{}",
        reported.message
    );
    // Another subnet of the network doesn't ask for addresses that aren't there.
    stage.bind("b", 1).await?;
    stage.until_condition("b", RESERVED, "VirtualNetworkFull").await?;
    stage.unbind("a", 2).await?;
    stage.until_holds("c", 3).await?;
    stage.unbind("a", 2).await?;
    stage.until_holds("b", 4).await?;
    stage.until_holds("c", 4).await?;
    let refused = |node: &str| stage.writes(node).iter().filter(|write| write.status == 400).count();
    ensure!((refused("a"), refused("b"), refused("c")) == (0, 0, 2), "{:?}", ["a", "b", "c"].map(refused));
    stage.until_reported("b", "VirtualNetworkFull", &["Node", "NodeIPAllocation"]).await
}

/// The small subnet, in which a node `a` has six addresses, and an instance finds three.
async fn beside_instance(plane: &ControlPlane) -> Result<(Stage<'_>, VmInfo)> {
    let sizing = json!({ "minimum": 0, "warm": 0, "batch": 1, "releaseAfter": "0s" });
    let stage = Stage::set(plane, quick(), json!({ "sizing": sizing, "cooldown": "0s" })).await?;
    stage.node("a", SMALL).await?;
    stage.bind("a", 6).await?;
    stage.until_holds("a", 6).await?;
    let subnet = SMALL.map(str::to_owned);
    stage.sim.add_scale_set(NewScaleSet { name: "pool".into(), subnet, ..NewScaleSet::default() })?;
    let new = NewInstance { instance_id: Some(0), ..NewInstance::default() };
    let vm = stage.sim.add_instance("pool", new).await?;
    stage.join(NODE, &vm.provider_id).await?;
    Ok((stage, vm))
}

async fn an_instance_in_a_nearly_full_subnet_gets_the_rest_and_its_model_stays_clean(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, vm) = beside_instance(plane).await?;
    // Three are left.
    stage.bind(NODE, 8).await?;
    stage.until_offers(NODE, 3).await?;
    stage.until_condition(NODE, RESERVED, "SubnetFull").await?;
    stage.unbind("a", 5).await?;
    stage.until_offers(NODE, 8).await?;
    stage.until_condition(NODE, RESERVED, "Reserved").await?;
    is_clean(&stage, &vm).await
}

async fn what_a_failed_write_has_left_in_a_model_goes_though_no_pod_asks_any_more(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, vm) = beside_instance(plane).await?;
    fail_to_grow(&stage).await?;
    stage.unbind(NODE, 1).await?;
    until_clean(&stage, &vm).await
}

async fn what_a_failed_write_has_left_in_a_model_is_found_by_the_next_leader(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, vm) = beside_instance(plane).await?;
    stage.bind(NODE, 3).await?;
    stage.until_offers(NODE, 3).await?;
    // The first leader can't clean it: only the write that fails reaches Azure.
    let grows = stage.fault("PUT", "/virtualMachines/0", Some(1), Effect::Delay { ms: 1 });
    let cut = stage.fault("PUT", "/virtualMachines/0", None, Effect::CutBeforeApply);
    stage.bind(NODE, 1).await?;
    stage.until_struck(grows, 1).await?;
    stage.until_struck(cut, 1).await?;
    stage.kill().await?;
    stage.unbind(NODE, 1).await?;
    stage.sim.lift_fault(cut)?;
    stage.start().await?;
    until_clean(&stage, &vm).await
}

async fn what_a_dropped_write_has_left_in_a_model_goes_though_no_pod_asks_any_more(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, vm) = beside_instance(plane).await?;
    stage.bind(NODE, 3).await?;
    stage.until_offers(NODE, 3).await?;
    stage.kill().await?;
    stage.start_with(|config| config.waits.deadline = Duration::from_secs(3)).await?;
    let fault = stage.fault("PUT", "/virtualMachines/0", Some(1), Effect::Hold);
    stage.bind(NODE, 1).await?;
    stage.until_struck(fault, 1).await?;
    stage.unbind(NODE, 1).await?;
    let dropped = [r#"controller="node""#, r#"outcome="Overdue""#];
    let is_dropped = |metrics: &Metrics| metrics.sum("vnetpool_operator_reconciles_total", &dropped) >= 1.0;
    Metrics::until(&stage, "the reconcile is dropped", is_dropped).await?;
    stage.sim.lift_fault(fault)?;
    until_clean(&stage, &vm).await
}

/// The instance has three pods and addresses, all there are, and a fourth pod comes.
async fn fail_to_grow(stage: &Stage<'_>) -> Result<()> {
    stage.bind(NODE, 3).await?;
    stage.until_offers(NODE, 3).await?;
    stage.bind(NODE, 1).await?;
    stage.until_condition(NODE, RESERVED, "SubnetFull").await?;
    Ok(())
}

async fn until_clean(stage: &Stage<'_>, vm: &VmInfo) -> Result<()> {
    eventually("the model has what the NIC has", Duration::from_secs(30), || async {
        is_clean(stage, vm).await.map(Some)
    })
    .await
}

/// The model has the NIC's names, and is met.
async fn is_clean(stage: &Stage<'_>, vm: &VmInfo) -> Result<()> {
    let model = stage.get_vm(&vm.vm_id).await?;
    let list = "/properties/networkProfileConfiguration/networkInterfaceConfigurations/0/properties/ipConfigurations";
    let list = model.pointer(list).and_then(Value::as_array).context("no list")?;
    let names: BTreeSet<_> =
        list.iter().filter_map(|one| one["name"].as_str()).filter(|name| name.starts_with("vnp-")).collect();
    let on_nic = held(stage, &vm.nic_id);
    ensure!(
        names == on_nic.keys().map(String::as_str).collect(),
        "{names:?} in the model, {on_nic:?} on the NIC"
    );
    ensure!(model["properties"]["provisioningState"] == "Succeeded", "{model}");
    Ok(())
}

async fn writes_that_wait_for_their_turn_when_a_subnet_runs_out_are_not_sent(
    plane: &ControlPlane,
) -> Result<()> {
    // Of 27 addresses sixteen are the machines' own.
    let subnet = |name: &str, prefix: &str| Some((name.to_owned(), prefix.parse().ok()?));
    let vnet = VnetConfig {
        name: "vnet".into(),
        address_prefixes: "10.240.0.0/16".parse().into_iter().collect(),
        subnets: [subnet("nodes", "10.240.1.0/24"), subnet("tight", "10.240.2.0/27")]
            .into_iter()
            .flatten()
            .collect(),
    };
    let stage = Stage::empty(plane, Config { vnets: vec![vnet], ..quick() }).await?;
    let sizing = json!({ "minimum": 0, "warm": 0, "batch": 1, "releaseAfter": "0s" });
    stage.pool("default", json!({ "sizing": sizing })).await?;
    stage.start_with(|config| config.azure.budget_percent = 10).await?;
    let names: Vec<String> = (0..16).map(|index| format!("n{index:02}")).collect();
    for name in &names {
        stage.node(name, Some("tight")).await?;
        stage.until_condition(name, RESERVED, "Reserved").await?;
    }
    // From here on there is one write a second.
    stage.fault("PUT", "/networkInterfaces/", Some(1), used_up(4, "writes"));
    stage.bind(&names[0], 1).await?;
    let closed =
        |metrics: &Metrics| metrics.sum("vnetpool_operator_arm_requests_total", &[r#"status="429""#]) == 1.0;
    Metrics::until(&stage, "the writes are used up", closed).await?;
    // Two for each, of eleven.
    for name in &names[1..] {
        stage.bind(name, 2).await?;
    }
    let full = || async {
        let mut full = 0;
        for name in &names {
            let reserved = find(&stage.allocation(name).await?, RESERVED);
            full += usize::from(reserved.is_some_and(|one| one.reason == "SubnetFull"));
        }
        ensure!(full >= 9, "{full} nodes report it");
        Ok(Some(()))
    };
    eventually("those without an address report it", Duration::from_secs(40), full).await?;
    let refused = || -> usize {
        names.iter().map(|name| stage.writes(name).iter().filter(|one| one.status == 400).count()).sum()
    };
    ensure!(refused() <= 3, "asked {} times for what isn't there", refused());
    Ok(())
}

async fn a_full_subnet_is_probed_by_one_node_after_a_restart(plane: &ControlPlane) -> Result<()> {
    let stage = full(plane).await?;
    stage.bind("a", 2).await?;
    stage.bind("b", 2).await?;
    for node in ["a", "b"] {
        stage.until_condition(node, RESERVED, "SubnetFull").await?;
    }
    stage.kill().await?;
    stage.sim.clear_log();
    stage.start().await?;
    // Every node has been reconciled when each has seen another pod come.
    for node in ["a", "b", "c"] {
        stage.bind(node, 1).await?;
    }
    for (node, wanted) in [("a", 7), ("b", 6), ("c", 5)] {
        let seen = |seen: &NodeIPAllocation| (seen.spec.target == wanted).then_some(());
        stage.until("the new pod is seen", node, seen).await?;
    }
    let writes = || ["a", "b", "c"].iter().map(|node| stage.writes(node).len()).sum::<usize>();
    stage.until("one of them asks", "a", |_| (writes() > 0).then_some(())).await?;
    // Another subnet's node goes through all that they would go through.
    stage.bind("d", 1).await?;
    stage.until_holds("d", 1).await?;
    ensure!(writes() == 1, "{} writes for addresses that aren't there", writes());
    Ok(())
}
