//! The output of `kubectl vnetpool`, held against what the operator does.

use crate::Test;
use crate::stage::{Stage, quick};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;
use vnetpool_azure_sim::Config;
use vnetpool_crds::{NodeIPAllocation, names};
use vnetpool_tests::control_plane::{ControlPlane, User};
use vnetpool_tests::{eventually, snippets};

pub const TESTS: &[Test] = crate::tests![
    the_operator_does_as_the_forecast_of_an_edit_shows,
    an_address_leads_to_its_pod_and_back,
    a_bundle_for_others_holds_no_ids_and_names_its_missing_parts,
    the_documented_commands_that_inspect_work,
    a_nic_that_a_person_asks_for_is_read_though_nothing_has_happened_to_it,
];

fn pool(minimum: u32) -> Value {
    json!({ "apiVersion": "vnetpool.io/v1alpha1", "kind": "NodeIPPool", "metadata": { "name": "default" },
        "spec": { "sizing": { "minimum": minimum, "warm": 1, "batch": 1 } } })
}

async fn the_operator_does_as_the_forecast_of_an_edit_shows(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::set(plane, quick(), pool(2)["spec"].clone()).await?;
    stage.node("n1", None).await?;
    stage.bind("n1", 3).await?;
    stage.until_holds("n1", 4).await?;
    stage.until_assigned("n1", 3).await?;

    let status = plane.vnetpool(&["status"], "")?;
    let node = &status["nodes"][0];
    ensure!(node["name"] == "n1" && node["target"] == 4 && node["counts"]["assigned"] == 3, "{status}");
    let explained = plane.vnetpool(&["explain", "n1"], "")?;
    ensure!(explained["steps"]["pods"] == 3 && explained["steps"]["wanted"] == 4, "{explained}");

    let edit = pool(7).to_string();
    let forecast = plane.vnetpool(&["plan", "--filename", "-"], &edit)?;
    let node = &forecast["nodes"][0];
    ensure!(node["wanted"] == json!({ "before": 4, "after": 7 }), "{forecast}");
    ensure!(node["next"] == "reserves 3 addresses", "{forecast}");
    ensure!(forecast["fields"].as_array().map(Vec::len) == Some(1), "{forecast}");
    ensure!(stage.node_pool("default").await?.spec.sizing.minimum == 2, "a forecast has applied the edit");
    plane.apply(&edit)?;
    stage.until_holds("n1", 7).await?;
    let explained = plane.vnetpool(&["explain", "n1"], "")?;
    ensure!(explained["held"] == 7 && explained["next"] == "does nothing", "{explained}");

    // The API server's refusals are refusals here.
    let mode = edit.replace("\"sizing\"", "\"mode\":\"Prefix\",\"sizing\"");
    let refused =
        plane.vnetpool(&["plan", "--filename", "-"], &mode).err().context("another mode was planned")?;
    ensure!(format!("{refused:#}").contains("mode can't be changed"), "{refused:#}");
    Ok(())
}

async fn an_address_leads_to_its_pod_and_back(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::set(plane, quick(), pool(2)["spec"].clone()).await?;
    stage.node("n1", None).await?;
    // A pod with a wish finds its address in its status.
    let pod = stage.pod("n1", json!({ "about": "anything" })).await?;
    let of_pod = plane.vnetpool(&["who", &pod], "")?;
    let address = of_pod["addresses"][0]["address"].as_str().context("no address")?.to_owned();
    let of_address = plane.vnetpool(&["who", &address], "")?;
    ensure!(of_pod["addresses"] == of_address["addresses"], "{of_pod} {of_address}");
    let one = &of_address["addresses"][0];
    ensure!(
        one["pod"] == format!("default/{pod}") && one["node"] == "n1" && one["pool"] == "default",
        "{one}"
    );
    ensure!(one["nic"].as_str().is_some_and(|nic| nic.ends_with("n1-nic")), "{one}");
    // There is no agent to ask here, and the answer shows it.
    let unread = of_address["unread"][0].as_str().unwrap_or_default();
    ensure!(unread.contains("no pod of vnetpool-node-agent runs"), "{of_address}");
    let unknown = plane.vnetpool(&["who", "10.240.255.1"], "")?;
    ensure!(unknown["addresses"][0]["state"] == "unknown", "{unknown}");

    let subnets = plane.vnetpool(&["subnets"], "")?;
    ensure!(subnets["subnets"][0]["pool"] == "default", "{subnets}");
    Ok(())
}

async fn a_bundle_for_others_holds_no_ids_and_names_its_missing_parts(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::set(plane, quick(), pool(2)["spec"].clone()).await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 2).await?;
    let Config { subscription, resource_group, .. } = Config::default();
    let whole = plane.kubectl(&["get", "nodeipallocations", "--output", "json", "--show-managed-fields"])?;
    let manager = "\"k:{\\\"id\\\":\\\"/subscriptions/";
    ensure!(whole.contains(manager), "nobody manages an entry by its id, so this shows nothing: {whole}");
    let parent = tempfile::tempdir()?;
    let folder = parent.path().join("bundle");
    let path = folder.to_str().context("a path")?;
    let printed = plane.kubectl(&["vnetpool", "bundle", path])?;
    for file in std::fs::read_dir(&folder)? {
        let file = file?.path();
        let text = std::fs::read_to_string(&file)?;
        ensure!(!text.contains(&subscription), "{} has the subscription's id: {text}", file.display());
        let group = format!("resourceGroups/{resource_group}");
        ensure!(!text.contains(&group), "{} has the resource group: {text}", file.display());
    }
    let held = std::fs::read_to_string(folder.join("nodeipallocations.json"))?;
    ensure!(held.contains("/resourceGroups/group-") && held.contains("n1-nic"), "{held}");
    // There are neither agents nor an operator to ask here, and both answers show it.
    let missing = std::fs::read_to_string(folder.join("missing.txt"))?;
    for part in ["ledger-n1.json: no pod of vnetpool-node-agent runs", "no pod of vnetpool-operator runs"] {
        ensure!(missing.contains(part) && printed.contains(part), "no {part} in {missing} {printed}");
    }
    let refused = plane.try_kubectl(User::Administrator, &["vnetpool", "check", "--apart", "0"], "")?;
    ensure!(refused.is_err(), "a node without an agent is well: {refused:?}");
    let typo = plane.refusal(User::Administrator, &["vnetpool", "check", "n7"], "")?;
    ensure!(typo.contains("node n7 has no NodeIPAllocation"), "{typo}");
    Ok(())
}

/// What `check --repair` asks for. Otherwise the NIC of an idle node is read every four to eight hours.
async fn a_nic_that_a_person_asks_for_is_read_though_nothing_has_happened_to_it(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::set(plane, quick(), pool(2)["spec"].clone()).await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 2).await?;
    for leaked in ["vnp-leaked-1", "vnp-leaked-2"] {
        let mut all = stage.nic("n1")["properties"]["ipConfigurations"].clone();
        let subnet = all[0]["properties"]["subnet"]["id"].clone();
        let added = json!({ "name": leaked, "properties": { "primary": false,
            "privateIPAllocationMethod": "Dynamic", "subnet": { "id": subnet } } });
        all.as_array_mut().context("no ipConfigurations")?.push(added);
        stage.sim.patch_nic("n1-nic", &json!({ "properties": { "ipConfigurations": all } })).await?;
        stage.annotate::<NodeIPAllocation>("n1", names::READ, Some(leaked)).await?;
        eventually("spec has what the NIC has", Duration::from_secs(30), || async {
            let spec = stage.allocation("n1").await?.spec;
            Ok(spec.ip_configurations().any(|one| one.name == leaked).then_some(()))
        })
        .await?;
    }
    Ok(())
}

async fn the_documented_commands_that_inspect_work(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::set(plane, quick(), pool(2)["spec"].clone()).await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 2).await?;
    let spec = stage.allocation("n1").await?.spec;
    let one = spec.ip_configurations().next().context("no address")?;
    let address = one.address.trim_end_matches("/32");
    for snippet in snippets::of("inspect")? {
        let printed = plane.type_in(&snippet, &[("NODE", "n1"), ("ADDRESS", address)])?;
        for part in ["NODES-READY", "no pod has it, as far as objects show", "at least minimum 2", "FREE%"] {
            ensure!(printed.contains(part), "{}: no {part} in\n{printed}", snippet.place);
        }
    }
    Ok(())
}
