//! Application security groups of a pool: Azure has one set for a whole NIC, part of which may be others'.

use crate::Test;
use crate::nics::node;
use crate::routes::settled;
use crate::stage::{Stage, find, quick, subnet};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;
use vnetpool_azure_sim::{Access, Effect, Grant, NewInstance, NewScaleSet, NewVm};
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::condition::{APPLICATION_SECURITY_GROUPS as GROUPS, DRY_RUN, READY, RESERVED, WRITING};
use vnetpool_operator::azure::role::PARTS;
use vnetpool_tests::control_plane::ControlPlane;
use vnetpool_tests::eventually;

pub const TESTS: &[Test] = crate::tests![
    a_nic_of_the_pods_own_joins_its_pools_groups_with_its_first_write_and_leaves_only_those,
    a_nic_that_the_node_uses_too_joins_only_if_its_pool_allows_it,
    a_node_without_a_pool_leaves_the_groups_with_its_last_address,
    a_node_that_goes_over_to_another_nic_takes_its_groups_along,
    groups_that_azure_refuses_are_reported_once_and_keep_no_address_from_pods,
    without_the_right_to_join_groups_the_action_is_named_and_pods_get_addresses,
    an_operator_that_dies_before_groups_are_joined_is_followed_by_one_that_joins_them,
    groups_joined_by_an_operator_that_died_are_taken_off_by_the_next_if_unwanted,
    an_instance_of_a_uniform_scale_set_joins_its_pools_groups,
    a_nic_left_without_its_vm_leaves_its_groups,
    a_node_that_has_joined_its_groups_costs_a_new_operator_no_request,
    a_dry_run_joins_no_groups_and_names_those_it_would,
];

fn id(name: &str) -> String {
    format!(
        "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/vnetpool/providers/Microsoft.Network/applicationSecurityGroups/{name}"
    )
}

/// Groups of these names exist from now on.
async fn make(stage: &Stage<'_>, names: &[&str]) -> Result<()> {
    for name in names {
        let resource = format!("Microsoft.Network/applicationSecurityGroups/{name}");
        stage.put(&resource, json!({ "properties": {} })).await?;
    }
    Ok(())
}

/// A pool whose nodes hold two addresses and are in these groups; or, without any, in none.
fn pool(names: &[&str], on_shared_nic: bool) -> Value {
    let sizing = json!({ "minimum": 2, "warm": 0, "batch": 1, "releaseAfter": "0s" });
    let ids: Vec<String> = names.iter().map(|name| id(name)).collect();
    let mut spec = json!({ "sizing": sizing, "cooldown": "0s" });
    if !ids.is_empty() {
        spec["applicationSecurityGroups"] = json!({ "ids": ids, "onSharedNIC": on_shared_nic });
    }
    spec
}

/// The groups of a NIC by name, if all its ipConfigurations are in the same.
fn groups_of(nic: &Value) -> Result<BTreeSet<String>> {
    let names = |one: &Value| -> BTreeSet<String> {
        let groups = one["properties"]["applicationSecurityGroups"].as_array().into_iter().flatten();
        groups.filter_map(|group| Some(group["id"].as_str()?.rsplit('/').next()?.to_owned())).collect()
    };
    let all: BTreeSet<_> =
        nic["properties"]["ipConfigurations"].as_array().context("no NIC")?.iter().map(names).collect();
    ensure!(all.len() == 1, "{all:?}");
    Ok(all.into_iter().next().unwrap_or_default())
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// Waits until a NIC is in exactly these groups, and `spec` names these as ours.
async fn until_grouped(stage: &Stage<'_>, node: &str, nic: &str, all: &[&str], ours: &[&str]) -> Result<()> {
    let what = format!("{nic} is in {all:?}, {ours:?} of these by our doing");
    let is_so = |seen: &NodeIPAllocation| {
        let named = seen.spec.serving().map(|nic| nic.application_security_groups.clone());
        let named =
            named.unwrap_or_default().iter().filter_map(|id| id.rsplit('/').next()).collect::<BTreeSet<_>>()
                == ours.iter().copied().collect();
        let is_in = groups_of(&stage.sim.nic(nic)?).is_ok_and(|groups| groups == set(all));
        let settled = find(seen, WRITING).is_some_and(|one| one.status == "False");
        (named && is_in && settled).then_some(())
    };
    stage.until(&what, node, is_so).await
}

async fn a_nic_of_the_pods_own_joins_its_pools_groups_with_its_first_write_and_leaves_only_those(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    make(&stage, &["web", "api", "theirs"]).await?;
    let own = |names: &[&str]| {
        let mut spec = pool(names, false);
        spec["subnetID"] = json!(subnet("small"));
        spec
    };
    stage.pool("default", own(&["web", "theirs"])).await?;
    node(&stage, "n1", "nodes", "small", 0).await?;
    let mut theirs = stage.sim.nic("n1-second").context("no NIC")?["properties"]["ipConfigurations"].clone();
    theirs[0]["properties"]["applicationSecurityGroups"] = json!([{ "id": id("theirs") }]);
    stage.sim.patch_nic("n1-second", &json!({ "properties": { "ipConfigurations": theirs } })).await?;
    stage.sim.clear_log();
    stage.start().await?;
    stage.until_offers("n1", 2).await?;
    until_grouped(&stage, "n1", "n1-second", &["web", "theirs"], &["web"]).await?;
    stage.until_condition("n1", GROUPS, "Joined").await?;
    let writes = || stage.asked().iter().filter(|one| one.method == "PUT").count();
    ensure!(writes() == 1, "{:?}", stage.asked());
    ensure!(groups_of(&stage.nic("n1"))?.is_empty(), "the node's own NIC is in groups");
    stage.until_events("n1", "SecurityGroupsChanged", 1).await?;
    // A later reservation is in the same.
    stage.bind("n1", 5).await?;
    stage.until_offers("n1", 5).await?;
    until_grouped(&stage, "n1", "n1-second", &["web", "theirs"], &["web"]).await?;
    // Another set, in one write.
    stage.sim.clear_log();
    stage.pool("default", own(&["api"])).await?;
    until_grouped(&stage, "n1", "n1-second", &["api", "theirs"], &["api"]).await?;
    ensure!(writes() == 1, "{:?}", stage.asked());
    // And none: groups that were there before us stay.
    stage.pool("default", own(&[])).await?;
    until_grouped(&stage, "n1", "n1-second", &["theirs"], &[]).await?;
    stage.until("nothing is reported any more", "n1", |seen| find(seen, GROUPS).is_none().then_some(())).await
}

async fn a_nic_that_the_node_uses_too_joins_only_if_its_pool_allows_it(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    make(&stage, &["web"]).await?;
    stage.pool("default", pool(&["web"], false)).await?;
    stage.start().await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 2).await?;
    let condition = stage.until_condition("n1", GROUPS, "SharedNIC").await?;
    for part in ["n1-nic", "NodeIPPool default", "onSharedNIC", "second NIC", "subnetID"] {
        ensure!(condition.message.contains(part), "{part:?} isn't in {:?}", condition.message);
    }
    stage.until_condition("n1", READY, "Ready").await?;
    until_grouped(&stage, "n1", "n1-nic", &[], &[]).await?;
    stage.pool("default", pool(&["web"], true)).await?;
    stage.until_condition("n1", GROUPS, "Joined").await?;
    until_grouped(&stage, "n1", "n1-nic", &["web"], &["web"]).await?;
    stage.pool("default", pool(&["web"], false)).await?;
    stage.until_condition("n1", GROUPS, "SharedNIC").await?;
    until_grouped(&stage, "n1", "n1-nic", &[], &[]).await?;
    // Once for each time, about the node and about its object.
    eventually("the shared NIC is reported", Duration::from_secs(10), || async {
        let events = stage.events("n1", "SharedNIC").await?;
        let times: i32 = events.iter().map(|(_, times)| times).sum();
        ensure!(times == 4, "{events:?}");
        Ok(Some(()))
    })
    .await
}

async fn a_node_without_a_pool_leaves_the_groups_with_its_last_address(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    make(&stage, &["web"]).await?;
    stage.pool("default", pool(&["web"], true)).await?;
    stage.start().await?;
    stage.node("n1", None).await?;
    stage.bind("n1", 1).await?;
    stage.until_condition("n1", GROUPS, "Joined").await?;
    stage.until_holds("n1", 2).await?;
    stage.delete_pool("default").await?;
    // The pod keeps its address, and the rules it was started under.
    stage.until_condition("n1", GROUPS, "Leaving").await?;
    stage.until_condition("n1", RESERVED, "NoPool").await?;
    until_grouped(&stage, "n1", "n1-nic", &["web"], &["web"]).await?;
    stage.sim.clear_log();
    stage.unbind("n1", 1).await?;
    stage.until_gone("n1").await?;
    ensure!(groups_of(&stage.nic("n1"))?.is_empty() && stage.held("n1").is_empty(), "{}", stage.nic("n1"));
    ensure!(stage.writes("n1").len() == 1, "{:?}", stage.writes("n1"));
    Ok(())
}

async fn a_node_that_goes_over_to_another_nic_takes_its_groups_along(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    make(&stage, &["web"]).await?;
    // It holds nothing but the groups: no other record shows which NIC that was.
    let mut first = pool(&["web"], true);
    first["sizing"] = json!({ "minimum": 0, "warm": 0, "batch": 1, "releaseAfter": "0s" });
    stage.pool("default", first).await?;
    stage.start().await?;
    node(&stage, "n1", "nodes", "small", 0).await?;
    until_grouped(&stage, "n1", "n1-nic", &["web"], &["web"]).await?;
    let mut second = pool(&["web"], false);
    (second["subnetID"], second["weight"]) = (json!(subnet("small")), json!(1));
    stage.pool("second", second).await?;
    until_grouped(&stage, "n1", "n1-second", &["web"], &["web"]).await?;
    ensure!(groups_of(&stage.nic("n1"))?.is_empty(), "left in its groups: {}", stage.nic("n1"));
    Ok(())
}

/// Waits until there is an Event with this reason about the node and one about its object, and sees that
/// there is no more.
async fn reported_once(stage: &Stage<'_>, reason: &str) -> Result<()> {
    let mut events = eventually(&format!("both Events {reason}"), Duration::from_secs(10), || async {
        let events = stage.events("n1", reason).await?;
        Ok((events.len() >= 2).then_some(events))
    })
    .await?;
    events.sort();
    ensure!(events == [("Node".to_owned(), 1), ("NodeIPAllocation".to_owned(), 1)], "{events:?}");
    Ok(())
}

async fn groups_that_azure_refuses_are_reported_once_and_keep_no_address_from_pods(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    stage.pool("default", pool(&["web"], true)).await?;
    stage.start().await?;
    stage.node("n1", None).await?;
    let condition = stage.until_condition("n1", GROUPS, "NotAttachable").await?;
    for part in [id("web").as_str(), "applicationSecurityGroups, or make it in Azure"] {
        ensure!(condition.message.contains(part), "{part:?} isn't in {:?}", condition.message);
    }
    stage.until_holds("n1", 2).await?;
    stage.bind("n1", 4).await?;
    stage.until_holds("n1", 4).await?;
    stage.until_condition("n1", READY, "Ready").await?;
    reported_once(&stage, "NotAttachable").await?;
    let refused = || stage.writes("n1").iter().filter(|one| one.status == 400).count();
    ensure!(refused() == 1, "tried {} times", refused());
    // The group is in another network now. An edit of the pool has it tried at once.
    let far = json!({ "properties": { "addressSpace": { "addressPrefixes": ["10.60.0.0/16"] },
        "subnets": [{ "name": "far", "properties": { "addressPrefix": "10.60.0.0/24" } }] } });
    let far = stage.put("Microsoft.Network/virtualNetworks/far", far).await?;
    settled(&stage, &far).await?;
    make(&stage, &["far", "web"]).await?;
    let vm = NewVm { name: "far".into(), vnet: Some("far".into()), ..NewVm::default() };
    stage.sim.add_vm(vm).await?;
    let mut member = stage.sim.nic("far-nic").context("no NIC")?["properties"]["ipConfigurations"].clone();
    member[0]["properties"]["applicationSecurityGroups"] = json!([{ "id": id("far") }]);
    stage.sim.patch_nic("far-nic", &json!({ "properties": { "ipConfigurations": member } })).await?;
    stage.pool("default", pool(&["far"], true)).await?;
    let condition = stage.until_condition("n1", GROUPS, "AzureRefused").await?;
    ensure!(condition.message.contains("must be in the same virtual network"), "{}", condition.message);
    until_grouped(&stage, "n1", "n1-nic", &[], &["far"]).await?;
    stage.pool("default", pool(&["web"], true)).await?;
    until_grouped(&stage, "n1", "n1-nic", &["web"], &["web"]).await
}

async fn without_the_right_to_join_groups_the_action_is_named_and_pods_get_addresses(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    make(&stage, &["web"]).await?;
    let join = "Microsoft.Network/applicationSecurityGroups/joinIpConfiguration/action";
    let group = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/vnetpool";
    let all = PARTS.iter().flat_map(|part| part.actions).map(|action| action.name.to_owned());
    let actions: Vec<String> = all.filter(|name| name != join).collect();
    let grant = |actions| Grant { scope: group.into(), actions, not_actions: vec![] };
    stage.sim.control(Access { grants: vec![grant(actions.clone())], ..Access::default() });
    stage.pool("default", pool(&["web"], true)).await?;
    stage.start().await?;
    stage.node("n1", None).await?;
    let condition = stage.until_condition("n1", GROUPS, "PermissionDenied").await?;
    ensure!(
        condition.message.contains(join) && condition.message.contains(&id("web")),
        "{}",
        condition.message
    );
    stage.until_holds("n1", 2).await?;
    stage.until_condition("n1", RESERVED, "Reserved").await?;
    reported_once(&stage, "PermissionDenied").await?;
    let with_it = actions.into_iter().chain([join.to_owned()]).collect();
    stage.sim.control(Access { grants: vec![grant(with_it)], ..Access::default() });
    let mut edited = pool(&["web"], true);
    edited["cooldown"] = json!("1s");
    stage.pool("default", edited).await?;
    until_grouped(&stage, "n1", "n1-nic", &["web"], &["web"]).await
}

/// A node that held its addresses without groups, and an operator that has been killed while it wrote the NIC
/// to join them.
async fn killed<'a>(plane: &'a ControlPlane, effect: Effect) -> Result<Stage<'a>> {
    let stage = Stage::empty(plane, quick()).await?;
    make(&stage, &["web"]).await?;
    stage.pool("default", pool(&[], false)).await?;
    stage.start().await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 2).await?;
    let fault = stage.fault("PUT", "/networkInterfaces/", None, effect);
    stage.pool("default", pool(&["web"], true)).await?;
    stage.until_struck(fault, 1).await?;
    let named = |seen: &NodeIPAllocation| {
        (seen.spec.serving()?.application_security_groups == [id("web")]).then_some(())
    };
    stage.until("the group is named", "n1", named).await?;
    stage.kill().await?;
    stage.sim.lift_fault(fault)?;
    Ok(stage)
}

async fn an_operator_that_dies_before_groups_are_joined_is_followed_by_one_that_joins_them(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = killed(plane, Effect::CutBeforeApply).await?;
    ensure!(groups_of(&stage.nic("n1"))?.is_empty(), "joined too early");
    stage.start().await?;
    until_grouped(&stage, "n1", "n1-nic", &["web"], &["web"]).await
}

async fn groups_joined_by_an_operator_that_died_are_taken_off_by_the_next_if_unwanted(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = killed(plane, Effect::Hold).await?;
    ensure!(groups_of(&stage.nic("n1"))? == set(&["web"]), "not joined: {}", stage.nic("n1"));
    stage.pool("default", pool(&[], false)).await?;
    stage.start().await?;
    until_grouped(&stage, "n1", "n1-nic", &[], &[]).await
}

async fn an_instance_of_a_uniform_scale_set_joins_its_pools_groups(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    make(&stage, &["web"]).await?;
    stage.pool("default", pool(&["web"], true)).await?;
    stage.start().await?;
    stage.sim.add_scale_set(NewScaleSet { name: "pool".into(), ..NewScaleSet::default() })?;
    let new = NewInstance { instance_id: Some(0), ..NewInstance::default() };
    let vm = stage.sim.add_instance("pool", new).await?;
    stage.join("n1", &vm.provider_id).await?;
    stage.until_condition("n1", GROUPS, "Joined").await?;
    stage.until_offers("n1", 2).await?;
    let document = || async { stage.get_instance_nic(&vm.nic_id).await };
    ensure!(groups_of(&document().await?)? == set(&["web"]), "{}", document().await?);
    stage.pool("default", pool(&[], false)).await?;
    let gone =
        |seen: &NodeIPAllocation| seen.spec.serving()?.application_security_groups.is_empty().then_some(());
    stage.until("the groups are left", "n1", gone).await?;
    ensure!(groups_of(&document().await?)?.is_empty(), "{}", document().await?);
    Ok(())
}

async fn a_nic_left_without_its_vm_leaves_its_groups(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    make(&stage, &["web"]).await?;
    stage.pool("default", pool(&["web"], true)).await?;
    stage.start().await?;
    stage.node("n1", None).await?;
    stage.until_condition("n1", GROUPS, "Joined").await?;
    stage.sim.delete_vm("n1", true).await?;
    stage.delete_node("n1").await?;
    stage.until_gone("n1").await?;
    ensure!(groups_of(&stage.nic("n1"))?.is_empty(), "{}", stage.nic("n1"));
    Ok(())
}

async fn a_node_that_has_joined_its_groups_costs_a_new_operator_no_request(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    make(&stage, &["web"]).await?;
    stage.pool("default", pool(&["web"], true)).await?;
    stage.start().await?;
    stage.node("n1", None).await?;
    stage.until_condition("n1", GROUPS, "Joined").await?;
    stage.until_condition("n1", READY, "Ready").await?;
    stage.stop().await?;
    stage.sim.clear_log();
    stage.start().await?;
    // A node that comes after it has been reconciled after it.
    stage.node("n2", None).await?;
    stage.until_condition("n2", GROUPS, "Joined").await?;
    let asked = stage.asked();
    ensure!(!asked.iter().any(|one| one.path.ends_with("/n1-nic") || one.path.ends_with("/n1")), "{asked:?}");
    Ok(())
}

async fn a_dry_run_joins_no_groups_and_names_those_it_would(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    make(&stage, &["web"]).await?;
    stage.pool("default", pool(&["web"], true)).await?;
    stage.sim.clear_log();
    stage.start_with(|config| config.azure.dry_run = true).await?;
    stage.node("n1", None).await?;
    let condition = stage.until_condition("n1", DRY_RUN, "WouldWrite").await?;
    ensure!(
        condition.message.contains("put it into the application security groups web"),
        "{}",
        condition.message
    );
    stage.until_condition("n1", GROUPS, "DryRun").await?;
    until_grouped(&stage, "n1", "n1-nic", &[], &[]).await?;
    ensure!(stage.asked().iter().all(|one| one.method == "GET"), "{:?}", stage.asked());
    Ok(())
}
