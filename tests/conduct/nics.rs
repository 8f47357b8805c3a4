//! VMs with several NICs: the pool's subnet decides which one serves, and Azure counts them all together.

use crate::Test;
use crate::stage::{Stage, find, quick, subnet};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use vnetpool_azure_sim::{Effect, NewVm, VmInfo};
use vnetpool_crds::condition::{INTERFACE_FOUND, READY};
use vnetpool_crds::{NodeIPAllocation, names};
use vnetpool_tests::control_plane::ControlPlane;
use vnetpool_tests::eventually;
use vnetpool_tests::wait::throughout;

pub const TESTS: &[Test] = crate::tests![
    a_pool_uses_the_nodes_nic_in_its_subnet_and_reads_each_nic_once,
    the_limit_of_a_vm_counts_addresses_of_its_other_nics,
    a_node_goes_over_to_another_nic_when_the_first_is_empty,
    our_addresses_on_a_nic_that_does_not_serve_go_back,
    addresses_of_a_late_write_on_a_former_serving_nic_go_back_without_a_boot,
    what_a_nic_beside_the_one_that_serves_holds_goes_back_though_its_node_goes_while_nobody_leads,
    a_nic_beside_the_one_that_serves_that_gets_no_answer_holds_up_no_address_of_its_node,
    a_nic_beside_the_one_that_serves_that_azure_does_not_show_keeps_no_address_from_its_node,
    a_release_without_effect_from_a_nic_that_does_not_serve_is_not_repeated_at_once,
    a_nic_that_cannot_be_read_keeps_no_other_of_a_gone_node_from_being_emptied,
    a_nic_that_its_node_has_left_and_that_azure_does_not_show_keeps_no_address_from_the_node,
    a_nic_that_its_node_has_left_and_that_gets_no_answer_holds_up_no_address_of_the_node,
    a_nic_that_its_node_has_left_leaves_its_groups_though_it_is_plugged_into_the_nodes_vm_again,
    a_nic_that_its_node_has_left_stays_recorded_while_the_former_machine_has_it,
    a_nic_beside_the_serving_one_that_azure_shows_is_recorded_until_it_is_empty_though_a_third_is_hidden,
    what_a_former_machines_other_nic_holds_goes_back_when_the_node_has_another_machine,
    a_second_nic_that_azure_refuses_to_show_keeps_no_address_from_a_new_node,
    a_second_nic_that_azure_refuses_to_show_is_missed_by_a_new_node_whose_pool_wants_its_subnet,
];

/// A VM with its primary NIC in `first` and a second one, `NAME-second`, in `second`, that holds `others`
/// ipConfigurations of other clients besides its own; and its Node.
pub(crate) async fn node(
    stage: &Stage<'_>,
    name: &str,
    first: &str,
    second: &str,
    others: usize,
) -> Result<()> {
    let new = NewVm { name: name.into(), subnet: Some(first.into()), ..NewVm::default() };
    let vm = stage.sim.add_vm(new).await?;
    let configuration = |index: usize| {
        json!({ "name": format!("ipconfig{index}"),
            "properties": { "primary": index == 0, "subnet": { "id": subnet(second) } } })
    };
    let all: Vec<Value> = (0..=others).map(configuration).collect();
    let nic = format!("Microsoft.Network/networkInterfaces/{name}-second");
    let nic = stage.put(&nic, json!({ "properties": { "ipConfigurations": all } })).await?;
    plug(stage, &nic, &vm.vm_id).await?;
    stage.join(name, &vm.provider_id).await
}

/// Plugs a NIC into a VM, beside those that it has.
async fn plug(stage: &Stage<'_>, nic: &str, vm: &str) -> Result<()> {
    let mut document = stage.get_vm(vm).await?;
    let nics = document["properties"]["networkProfile"]["networkInterfaces"].as_array_mut();
    nics.context("no NICs")?.push(json!({ "id": nic, "properties": { "primary": false } }));
    stage.put_vm(vm, document).await
}

fn second(stage: &Stage, name: &str) -> usize {
    let nic = stage.sim.nic(&format!("{name}-second")).unwrap_or_default();
    let all = nic["properties"]["ipConfigurations"].as_array().cloned().unwrap_or_default();
    all.iter().filter(|one| one["name"].as_str().is_some_and(|name| name.starts_with("vnp-"))).count()
}

async fn a_pool_uses_the_nodes_nic_in_its_subnet_and_reads_each_nic_once(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    // In another case than Azure's own.
    let wanted = subnet("small").replace("vnetpool", "VNETPOOL").replace("small", "Small");
    stage.pool("default", json!({ "subnetID": wanted, "sizing": { "minimum": 4, "warm": 0 } })).await?;
    node(&stage, "n1", "nodes", "small", 0).await?;
    stage.sim.clear_log();
    stage.start().await?;
    let seen = stage.until_offers("n1", 4).await?;
    ensure!(second(&stage, "n1") == 4 && stage.held("n1").is_empty(), "on the wrong NIC");
    let serving = seen.spec.serving().context("no NIC")?;
    ensure!(serving.secondary && serving.id.ends_with("n1-second"), "{:?}", seen.spec);
    let primary = seen.spec.interfaces.iter().find(|nic| !nic.secondary).context("no primary NIC")?;
    ensure!(primary.id.ends_with("n1-nic") && !primary.subnet.prefixes.is_empty(), "{primary:?}");
    let reads =
        |end: &str| stage.asked().iter().filter(|one| one.method == "GET" && one.path.ends_with(end)).count();
    ensure!(reads("/virtualMachines/n1") == 1 && reads("/n1-nic") == 1, "{:?}", stage.asked());
    // Before and after the write.
    ensure!(reads("/n1-second") == 2, "{:?}", stage.asked());
    Ok(())
}

async fn the_limit_of_a_vm_counts_addresses_of_its_other_nics(plane: &ControlPlane) -> Result<()> {
    let sizing = json!({ "minimum": 255, "warm": 0 });
    let stage = Stage::set(plane, quick(), json!({ "sizing": sizing })).await?;
    // 1 + 200 on the second NIC and 1 on the first leave 54 of 256.
    node(&stage, "n1", "nodes", "nodes", 200).await?;
    stage.until_offers("n1", 54).await?;
    ensure!(stage.held("n1").len() == 54, "{}", stage.held("n1").len());
    Ok(())
}

/// As a leader does that was paused, with a view of a pool for that subnet: two reservations on the second
/// NIC of `n1`. Gives what it held before.
async fn write_late(stage: &Stage<'_>) -> Result<Vec<Value>> {
    let mut document = stage.sim.nic("n1-second").context("no NIC")?;
    let all = document["properties"]["ipConfigurations"].as_array_mut().context("no ipConfigurations")?;
    let others = all.clone();
    let ours = |name: &str| json!({ "name": name, "properties": { "subnet": { "id": subnet("small") } } });
    all.extend([ours("vnp-0000000000000001"), ours("vnp-0000000000000002")]);
    stage.sim.patch_nic("n1-second", &document).await?;
    ensure!(second(stage, "n1") == 2, "{document}");
    Ok(others)
}

async fn our_addresses_on_a_nic_that_does_not_serve_go_back(plane: &ControlPlane) -> Result<()> {
    let sizing = json!({ "minimum": 2, "warm": 0, "batch": 1 });
    let stage = Stage::set(plane, quick(), json!({ "sizing": sizing })).await?;
    node(&stage, "n1", "nodes", "small", 1).await?;
    stage.bind("n1", 2).await?;
    stage.until_holds("n1", 2).await?;
    stage.until_assigned("n1", 2).await?;
    let others = write_late(&stage).await?;
    stage.boot("n1", "boot-2").await?;
    // It has ipConfigurations of others, which count.
    let is_counted = |seen: &NodeIPAllocation| {
        let is_booted = seen.spec.boot_id == "boot-2" && seen.spec.elsewhere == 2;
        (is_booted && second(&stage, "n1") == 0).then_some(())
    };
    stage.until("the second NIC holds nothing of ours", "n1", is_counted).await?;
    let left = stage.sim.nic("n1-second").unwrap_or_default();
    let names = |all: &Value| -> Vec<Value> {
        all.as_array().into_iter().flatten().map(|one| one["name"].clone()).collect()
    };
    ensure!(names(&left["properties"]["ipConfigurations"]) == names(&json!(others)), "{left}");
    stage.until_holds("n1", 2).await
}

/// A node whose second NIC, in another subnet, holds two reservations of ours. Its object names that NIC, and
/// nobody leads.
async fn with_stray(plane: &ControlPlane) -> Result<Stage<'_>> {
    let sizing = json!({ "minimum": 2, "warm": 0, "batch": 1 });
    let stage = Stage::set(plane, quick(), json!({ "sizing": sizing })).await?;
    node(&stage, "n1", "nodes", "small", 0).await?;
    stage.until_holds("n1", 2).await?;
    write_late(&stage).await?;
    let body = json!({ "error": { "code": "ScopeLocked", "message": "The scope is locked." } });
    let locked = Effect::Status { status: 409, body, headers: BTreeMap::new() };
    let fault = stage.fault("PUT", "/n1-second", None, locked);
    stage.boot("n1", "boot-2").await?;
    // The VM's NICs are read when it boots, and can't be once it is gone.
    stage.until_struck(fault, 1).await?;
    stage.kill().await?;
    stage.sim.lift_fault(fault)?;
    Ok(stage)
}

async fn a_nic_beside_the_one_that_serves_that_gets_no_answer_holds_up_no_address_of_its_node(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = with_stray(plane).await?;
    let fault = stage.fault("GET", "/n1-second", None, Effect::HoldBefore);
    // All of the VM's NICs are read once more when that has passed.
    stage.start_with(|config| config.waits.late = Duration::from_secs(120)).await?;
    stage.until_struck(fault, 1).await?;
    stage.bind("n1", 3).await?;
    stage.until_assigned("n1", 3).await?;
    ensure!(second(&stage, "n1") == 2, "released without a read");
    Ok(())
}

/// Azure answers 503 whenever it is to show a NIC.
pub(crate) fn not_shown(stage: &Stage<'_>, nic: &str) -> u64 {
    let away = Effect::Status { status: 503, body: Value::Null, headers: BTreeMap::new() };
    stage.fault("GET", nic, None, away)
}

async fn a_nic_beside_the_one_that_serves_that_azure_does_not_show_keeps_no_address_from_its_node(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = with_stray(plane).await?;
    let fault = not_shown(&stage, "/n1-second");
    stage.start().await?;
    // By itself, and with all of the VM's NICs.
    stage.until_struck(fault, 2).await?;
    stage.bind("n1", 3).await?;
    stage.until_assigned("n1", 3).await
}

async fn a_release_without_effect_from_a_nic_that_does_not_serve_is_not_repeated_at_once(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = with_stray(plane).await?;
    let body = stage.sim.nic("n1-second").context("no NIC")?;
    let unchanged = Effect::Status { status: 200, body, headers: BTreeMap::new() };
    let fault = stage.fault("PUT", "/n1-second", None, unchanged);
    stage.start().await?;
    stage.until_struck(fault, 1).await?;
    throughout("it isn't written again", Duration::from_secs(5), async || {
        let hits = stage.sim.faults().into_iter().find(|one| one.id == fault).map_or(0, |one| one.hits);
        ensure!(hits == 1, "written {hits} times");
        Ok(())
    })
    .await
}

async fn a_nic_that_cannot_be_read_keeps_no_other_of_a_gone_node_from_being_emptied(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = with_stray(plane).await?;
    stage.sim.delete_vm("n1", true).await?;
    stage.delete_node("n1").await?;
    let fault = not_shown(&stage, "/n1-nic");
    stage.start().await?;
    eventually("the second NIC is emptied", Duration::from_secs(30), || async {
        Ok((second(&stage, "n1") == 0).then_some(()))
    })
    .await?;
    ensure!(stage.held("n1").len() == 2, "emptied without a read");
    stage.sim.lift_fault(fault)?;
    stage.until_gone("n1").await?;
    ensure!(stage.held("n1").is_empty(), "something is left");
    Ok(())
}

async fn what_a_nic_beside_the_one_that_serves_holds_goes_back_though_its_node_goes_while_nobody_leads(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = with_stray(plane).await?;
    stage.sim.delete_vm("n1", true).await?;
    stage.delete_node("n1").await?;
    stage.start().await?;
    stage.until_gone("n1").await?;
    ensure!(stage.held("n1").is_empty() && second(&stage, "n1") == 0, "something is left");
    Ok(())
}

async fn a_node_goes_over_to_another_nic_when_the_first_is_empty(plane: &ControlPlane) -> Result<()> {
    let sizing = json!({ "minimum": 2, "warm": 0, "batch": 1, "releaseAfter": "0s" });
    let stage = Stage::set(plane, quick(), json!({ "sizing": sizing })).await?;
    node(&stage, "n1", "nodes", "small", 0).await?;
    stage.bind("n1", 1).await?;
    stage.until_holds("n1", 2).await?;
    stage.pool("second", json!({ "weight": 1, "subnetID": subnet("small"), "sizing": sizing })).await?;
    let found = stage.until_condition("n1", INTERFACE_FOUND, "SubnetMismatch").await?;
    ensure!(found.message.contains("drain the node"), "{}", found.message);
    ensure!(!stage.held("n1").is_empty(), "its pod lost its address");
    stage.unbind("n1", 1).await?;
    let moved = stage.until("the second NIC serves", "n1", |seen| {
        let serving = seen.spec.serving()?;
        (serving.secondary && serving.ip_configurations.len() == 2).then_some(())
    });
    moved.await?;
    ensure!(stage.held("n1").is_empty() && second(&stage, "n1") == 2, "both hold addresses");
    // And back, under the pool that names no subnet.
    stage.bind("n1", 1).await?;
    stage.delete_pool("second").await?;
    let found = stage.until_condition("n1", INTERFACE_FOUND, "SubnetMismatch").await?;
    ensure!(found.message.contains("drain the node"), "{}", found.message);
    // A reboot in between: the VM's NICs are read anew while the second one still holds addresses.
    stage.boot("n1", "boot-2").await?;
    let booted = |seen: &NodeIPAllocation| (seen.spec.boot_id == "boot-2").then_some(());
    stage.until("it has booted", "n1", booted).await?;
    stage.unbind("n1", 1).await?;
    let back = stage.until("the primary NIC serves", "n1", |seen| {
        let serving = seen.spec.serving()?;
        (!serving.secondary && serving.ip_configurations.len() == 2).then_some(())
    });
    back.await?;
    ensure!(stage.held("n1").len() == 2 && second(&stage, "n1") == 0, "both hold addresses");
    Ok(())
}

async fn addresses_of_a_late_write_on_a_former_serving_nic_go_back_without_a_boot(
    plane: &ControlPlane,
) -> Result<()> {
    let sizing = json!({ "minimum": 1, "warm": 0, "batch": 1, "releaseAfter": "0s" });
    let stage = Stage::empty(plane, quick()).await?;
    stage.pool("default", json!({ "sizing": sizing })).await?;
    stage.start_with(|config| config.waits.late = Duration::from_secs(10)).await?;
    node(&stage, "n1", "nodes", "small", 0).await?;
    stage.until_holds("n1", 1).await?;
    stage.pool("second", json!({ "weight": 1, "subnetID": subnet("small"), "sizing": sizing })).await?;
    let moved = |seen: &NodeIPAllocation| {
        let serving = seen.spec.serving()?;
        (serving.secondary && serving.ip_configurations.len() == 1).then_some(())
    };
    stage.until("the second NIC serves", "n1", moved).await?;
    let mut document = stage.nic("n1");
    let all = document["properties"]["ipConfigurations"].as_array_mut().context("no ipConfigurations")?;
    let late =
        json!({ "name": "vnp-0000000000000001", "properties": { "subnet": { "id": subnet("nodes") } } });
    all.push(late);
    stage.sim.patch_nic("n1-nic", &document).await?;
    ensure!(stage.held("n1").len() == 1, "{document}");
    let is_settled =
        |seen: &NodeIPAllocation| (stage.held("n1").is_empty() && moved(seen).is_some()).then_some(());
    stage.until("the first NIC holds nothing of ours", "n1", is_settled).await
}

/// A node of two addresses whose machine has come back as another, `n1-again`, while nobody led. Its former
/// NIC, `n1-nic`, has outlived its VM.
pub(crate) async fn on_another_machine(plane: &ControlPlane) -> Result<(Stage<'_>, VmInfo, VmInfo)> {
    let sizing = json!({ "minimum": 2, "warm": 0, "batch": 1 });
    let stage = Stage::set(plane, quick(), json!({ "sizing": sizing })).await?;
    move_to_another_machine(stage, false).await
}

/// The same of this stage. The former VM may live on.
async fn move_to_another_machine(stage: Stage<'_>, lives_on: bool) -> Result<(Stage<'_>, VmInfo, VmInfo)> {
    let first = stage.node("n1", None).await?;
    stage.until_holds("n1", 2).await?;
    stage.kill().await?;
    stage.delete_node("n1").await?;
    if !lives_on {
        stage.sim.delete_vm("n1", true).await?;
    }
    let second = stage.sim.add_vm(NewVm { name: "n1-again".into(), ..NewVm::default() }).await?;
    stage.join("n1", &second.provider_id).await?;
    stage.boot("n1", "boot-2").await?;
    Ok((stage, first, second))
}

/// The node is served with its present NIC, and its object goes on to name the other.
pub(crate) async fn until_served_beside(stage: &Stage<'_>, first: &VmInfo, second: &VmInfo) -> Result<()> {
    let is_served = |seen: &NodeIPAllocation| {
        let serving = seen.spec.serving().filter(|nic| nic.id.eq_ignore_ascii_case(&second.nic_id))?;
        let [left] = &seen.spec.left_interfaces[..] else { return None };
        let is_named = left.id.eq_ignore_ascii_case(&first.nic_id) && left.ip_configurations.len() == 2;
        (serving.ip_configurations.len() >= 2 && is_named).then_some(())
    };
    stage.until("the second NIC serves", "n1", is_served).await
}

async fn a_nic_that_its_node_has_left_and_that_azure_does_not_show_keeps_no_address_from_the_node(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, first, second) = on_another_machine(plane).await?;
    let fault = not_shown(&stage, "/n1-nic");
    stage.start().await?;
    until_served_beside(&stage, &first, &second).await?;
    stage.until_struck(fault, 1).await?;
    let is_named = |seen: &NodeIPAllocation| {
        let found = find(seen, INTERFACE_FOUND).filter(|one| one.status == "True")?;
        found.message.contains("which the node has left").then_some(())
    };
    stage.until("it says what is left", "n1", is_named).await?;
    ensure!(stage.held("n1").len() == 2, "emptied without a read");
    // The next leader knows of it, and looks twice for a VM before it empties it.
    stage.kill().await?;
    stage.sim.lift_fault(fault)?;
    stage.start().await?;
    until_forgotten(&stage).await?;
    ensure!(stage.held("n1").is_empty(), "{:?}", stage.held("n1"));
    ensure!(stage.held("n1-again").len() == 2, "{:?}", stage.held("n1-again"));
    Ok(())
}

async fn a_nic_that_its_node_has_left_and_that_gets_no_answer_holds_up_no_address_of_the_node(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, first, second) = on_another_machine(plane).await?;
    let fault = stage.fault("GET", "/n1-nic", None, Effect::HoldBefore);
    stage.start().await?;
    stage.until_struck(fault, 1).await?;
    until_served_beside(&stage, &first, &second).await?;
    stage.bind("n1", 3).await?;
    stage.until_assigned("n1", 3).await?;
    until_served_beside(&stage, &first, &second).await?;
    ensure!(stage.held("n1").len() == 2, "emptied without a read");
    Ok(())
}

async fn until_forgotten(stage: &Stage<'_>) -> Result<()> {
    let is_forgotten = |seen: &NodeIPAllocation| seen.spec.left_interfaces.is_empty().then_some(());
    stage.until("the first NIC is forgotten", "n1", is_forgotten).await
}

async fn a_nic_that_its_node_has_left_leaves_its_groups_though_it_is_plugged_into_the_nodes_vm_again(
    plane: &ControlPlane,
) -> Result<()> {
    let sizing = json!({ "minimum": 2, "warm": 0, "batch": 1 });
    let stage = Stage::empty(plane, quick()).await?;
    let web = "Microsoft.Network/applicationSecurityGroups/web";
    let web = stage.put(web, json!({ "properties": {} })).await?;
    let groups = json!({ "ids": [web], "onSharedNIC": true });
    stage.pool("default", json!({ "sizing": sizing, "applicationSecurityGroups": groups })).await?;
    stage.start().await?;
    let grouped = |stage: &Stage<'_>| {
        let all = stage.nic("n1")["properties"]["ipConfigurations"].as_array().cloned().unwrap_or_default();
        all.iter().filter(|one| !one["properties"]["applicationSecurityGroups"][0].is_null()).count()
    };
    let (stage, first, second) = move_to_another_machine(stage, false).await?;
    let fault = not_shown(&stage, "/n1-nic");
    stage.start().await?;
    until_served_beside(&stage, &first, &second).await?;
    ensure!(grouped(&stage) > 0, "it isn't in the group: {}", stage.nic("n1"));
    stage.kill().await?;
    // A person plugs the former NIC into the new machine.
    plug(&stage, &first.nic_id, &second.vm_id).await?;
    stage.sim.lift_fault(fault)?;
    stage.start().await?;
    until_forgotten(&stage).await?;
    ensure!(stage.held("n1").is_empty(), "{:?}", stage.held("n1"));
    ensure!(grouped(&stage) == 0, "it is in the group still: {}", stage.nic("n1"));
    ensure!(stage.held("n1-again").len() == 2, "{:?}", stage.held("n1-again"));
    Ok(())
}

async fn a_nic_that_its_node_has_left_stays_recorded_while_the_former_machine_has_it(
    plane: &ControlPlane,
) -> Result<()> {
    let sizing = json!({ "minimum": 2, "warm": 0, "batch": 1 });
    let stage = Stage::set(plane, quick(), json!({ "sizing": sizing })).await?;
    let (stage, first, second) = move_to_another_machine(stage, true).await?;
    stage.start().await?;
    until_served_beside(&stage, &first, &second).await?;
    let is_named = |seen: &NodeIPAllocation| {
        let found = find(seen, INTERFACE_FOUND).filter(|one| one.status == "True")?;
        found.message.contains("no other node's object names it").then_some(())
    };
    stage.until("it says who has the NIC", "n1", is_named).await?;
    until_served_beside(&stage, &first, &second).await?;
    ensure!(stage.held("n1").len() == 2, "taken from a machine that lives");
    // The former machine is deleted, and leaves its NIC behind. A leader that starts looks at once.
    stage.kill().await?;
    stage.sim.delete_vm("n1", true).await?;
    stage.start().await?;
    until_forgotten(&stage).await?;
    ensure!(stage.held("n1").is_empty(), "{:?}", stage.held("n1"));
    Ok(())
}

async fn a_nic_beside_the_serving_one_that_azure_shows_is_recorded_until_it_is_empty_though_a_third_is_hidden(
    plane: &ControlPlane,
) -> Result<()> {
    let sizing = json!({ "minimum": 2, "warm": 0, "batch": 1 });
    let stage = Stage::set(plane, quick(), json!({ "sizing": sizing })).await?;
    node(&stage, "n1", "nodes", "small", 0).await?;
    stage.until_holds("n1", 2).await?;
    write_late(&stage).await?;
    let configuration = json!({ "name": "ipconfig0",
        "properties": { "primary": true, "subnet": { "id": subnet("nodes") } } });
    let third = "Microsoft.Network/networkInterfaces/n1-third";
    let third = stage.put(third, json!({ "properties": { "ipConfigurations": [configuration] } })).await?;
    let (group, _) = third.split_once("/providers/").context("no id")?;
    let vm = format!("{group}/providers/Microsoft.Compute/virtualMachines/n1");
    plug(&stage, &third, &vm).await?;
    forbidden(&stage, "/n1-third");
    let fault = stage.fault("PUT", "/n1-second", None, Effect::HoldBefore);
    stage.boot("n1", "boot-2").await?;
    stage.until_struck(fault, 1).await?;
    let is_recorded = |seen: &NodeIPAllocation| {
        let is_named = seen.spec.stray_interfaces.iter().any(|id| id.ends_with("/n1-second"));
        is_named.then_some(())
    };
    stage.until("the second NIC is recorded", "n1", is_recorded).await?;
    stage.sim.lift_fault(fault)?;
    let is_done_with = |seen: &NodeIPAllocation| {
        (seen.spec.stray_interfaces.is_empty() && second(&stage, "n1") == 0).then_some(())
    };
    stage.until("the second NIC is emptied, and not recorded any more", "n1", is_done_with).await?;
    // So the object can go while the node lives.
    stage.delete_pool("default").await?;
    stage.annotate::<NodeIPAllocation>("n1", names::RELEASE, Some("true")).await?;
    stage.until_gone("n1").await
}

async fn what_a_former_machines_other_nic_holds_goes_back_when_the_node_has_another_machine(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = with_stray(plane).await?;
    stage.delete_node("n1").await?;
    stage.sim.delete_vm("n1", true).await?;
    let again = stage.sim.add_vm(NewVm { name: "n1-again".into(), ..NewVm::default() }).await?;
    stage.join("n1", &again.provider_id).await?;
    stage.boot("n1", "boot-3").await?;
    stage.start().await?;
    let is_served = |seen: &NodeIPAllocation| {
        let serving = seen.spec.serving().filter(|nic| nic.id.eq_ignore_ascii_case(&again.nic_id))?;
        (serving.ip_configurations.len() == 2).then_some(())
    };
    stage.until("the new machine's NIC serves", "n1", is_served).await?;
    until_forgotten(&stage).await?;
    ensure!(stage.held("n1").is_empty() && second(&stage, "n1") == 0, "something is left");
    let seen = stage.allocation("n1").await?;
    ensure!(seen.spec.stray_interfaces.is_empty(), "{:?}", seen.spec.stray_interfaces);
    Ok(())
}

/// Azure lets the operator read no NIC of a path with this end.
fn forbidden(stage: &Stage<'_>, nic: &str) -> u64 {
    let wide = subnet("nodes");
    let (provider, _) = wide.split_once("/virtualNetworks/").unwrap_or_default();
    let message = format!(
        "The client 'c' with object id 'o' does not have authorization to perform action \
         'Microsoft.Network/networkInterfaces/read' over scope '{provider}/networkInterfaces{nic}' or the scope is invalid."
    );
    let body = json!({ "error": { "code": "AuthorizationFailed", "message": message } });
    stage.fault("GET", nic, None, Effect::Status { status: 403, body, headers: BTreeMap::new() })
}

async fn a_second_nic_that_azure_refuses_to_show_keeps_no_address_from_a_new_node(
    plane: &ControlPlane,
) -> Result<()> {
    let sizing = json!({ "minimum": 2, "warm": 0, "batch": 1 });
    let stage = Stage::set(plane, quick(), json!({ "sizing": sizing })).await?;
    forbidden(&stage, "/n1-second");
    node(&stage, "n1", "nodes", "small", 0).await?;
    stage.until_holds("n1", 2).await?;
    let is_named = |seen: &NodeIPAllocation| {
        let found = find(seen, INTERFACE_FOUND).filter(|one| one.status == "True")?;
        let parts = ["/n1-second", "networkInterfaces/read"];
        parts.iter().all(|part| found.message.contains(part)).then_some(())
    };
    stage.until("it says why the second isn't known", "n1", is_named).await?;
    stage.until_condition("n1", READY, "Ready").await?;
    // It counts as one that has a primary ipConfiguration at least.
    ensure!(stage.allocation("n1").await?.spec.elsewhere == 1);
    stage.boot("n1", "boot-2").await?;
    let booted = |seen: &NodeIPAllocation| (seen.spec.boot_id == "boot-2").then_some(());
    stage.until("it has booted", "n1", booted).await
}

async fn a_second_nic_that_azure_refuses_to_show_is_missed_by_a_new_node_whose_pool_wants_its_subnet(
    plane: &ControlPlane,
) -> Result<()> {
    let wanted = json!({ "subnetID": subnet("small"), "sizing": { "minimum": 2, "warm": 0 } });
    let stage = Stage::set(plane, quick(), wanted).await?;
    let fault = forbidden(&stage, "/n1-second");
    node(&stage, "n1", "nodes", "small", 0).await?;
    stage.until_condition("n1", INTERFACE_FOUND, "PermissionDenied").await?;
    stage.until_struck(fault, 1).await?;
    ensure!(stage.held("n1").is_empty(), "served from another subnet than its pool's");
    Ok(())
}
