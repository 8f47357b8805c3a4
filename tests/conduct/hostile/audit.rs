//! What has to be true once all has healed.

use super::world::{Machine, World};
use crate::attachments::NETWORK;
use crate::machines::held;
use crate::routes;
use crate::stage::Stage;
use anyhow::{Context, Result, ensure};
use ipnet::Ipv4Net;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use vnetpool_crds::names::IP_CONFIGURATION_PREFIX;
use vnetpool_crds::{NodeIPAllocation, condition};

/// The addresses and blocks on a NIC, by name.
type Held = BTreeMap<String, Ipv4Net>;

/// Every node holds as many addresses as it wants, `spec` shows those of its NIC and no others, each pod has
/// an address of its own and what it asks for, and nothing is left of machines and pods that are gone.
pub async fn audit(stage: &Stage<'_>, world: &World) -> Result<()> {
    let on_nics = match &world.table {
        Some(table) => on_routes(stage, world, table).await?,
        None => on_nics(stage)?,
    };
    let mut all: Vec<Ipv4Net> = on_nics.values().flat_map(Held::values).copied().collect();
    all.sort();
    ensure!(!all.windows(2).any(|two| two[0].contains(&two[1])), "doubled: {on_nics:?}");
    let living: BTreeSet<&String> = world.nodes.values().map(|machine| &machine.nic).collect();
    let left: Vec<_> =
        on_nics.iter().filter(|(nic, held)| !living.contains(nic) && !held.is_empty()).collect();
    ensure!(left.is_empty(), "leaked: {left:?}");
    let objects = Api::<NodeIPAllocation>::all(stage.client.clone()).list(&ListParams::default()).await?;
    let mut assigned = BTreeSet::new();
    for object in &objects {
        let node = object.name_any();
        let machine =
            world.nodes.get(&node).with_context(|| format!("{node} is gone and its object isn't"))?;
        let held = on_nics.get(&machine.nic).cloned().unwrap_or_default();
        for address in one_node(stage, object, (machine, world.wanted(machine)), &held).await? {
            ensure!(assigned.insert(address), "{address} has two pods");
        }
    }
    let nodes = world.nodes.len();
    ensure!(objects.items.len() == nodes, "{} objects of {nodes} nodes", objects.items.len());
    attachments(stage, world, &objects.items).await
}

/// The reservations of ours on each NIC, by the NICs' ids in lower case.
fn on_nics(stage: &Stage<'_>) -> Result<BTreeMap<String, Held>> {
    let state = stage.sim.state();
    let ids = state["nics"].as_array().into_iter().flatten().filter_map(|nic| nic["id"].as_str());
    let one = |id: &str| -> Result<(String, Held)> {
        let held = held(stage, id).into_iter().map(|(name, address)| Ok((name, net(&address)?)));
        Ok((id.to_lowercase(), held.collect::<Result<_>>()?))
    };
    ids.map(one).collect()
}

/// The same of machines to which routes lead. The table's other routes are another client's, and all there.
async fn on_routes(stage: &Stage<'_>, world: &World, table: &str) -> Result<BTreeMap<String, Held>> {
    let mut all = BTreeMap::<String, Held>::new();
    let mut theirs = BTreeSet::new();
    for (name, range, hop) in routes::routes(stage, table).await? {
        if !name.starts_with(IP_CONFIGURATION_PREFIX) {
            theirs.insert(name);
            continue;
        }
        let machine = world.nodes.values().find(|machine| machine.hop == hop);
        let at = machine.map_or(hop, |machine| machine.nic.clone());
        all.entry(at).or_default().insert(name, net(&range)?);
    }
    ensure!(theirs == BTreeSet::from(["to-firewall".to_owned()]), "others' routes are {theirs:?}");
    for node in world.nodes.keys() {
        let forwards = stage.nic(node)["properties"]["enableIPForwarding"] == true;
        ensure!(forwards, "the NIC of {node} doesn't forward");
    }
    Ok(all)
}

fn net(address: &str) -> Result<Ipv4Net> {
    Ok(if address.contains('/') { address.parse()? } else { address.parse::<Ipv4Addr>()?.into() })
}

/// A node that wants so many addresses. Gives its pods' addresses.
async fn one_node(
    stage: &Stage<'_>,
    object: &NodeIPAllocation,
    (machine, wanted): (&Machine, usize),
    held: &Held,
) -> Result<Vec<Ipv4Addr>> {
    let node = object.name_any();
    let on_nic: BTreeSet<&String> = held.keys().collect();
    let shown: BTreeSet<&String> = object.spec.ip_configurations().map(|one| &one.name).collect();
    ensure!(on_nic == shown, "{node} has {on_nic:?} on its NIC and {shown:?} in spec");
    let served: Vec<Ipv4Addr> = stage.agents.addresses(&node).into_values().collect();
    for address in &served {
        let is_held = held.values().any(|one| one.contains(address));
        ensure!(is_held, "{node} lacks {address}, which a pod has: {held:?}");
    }
    ensure!(served.len() == machine.pods, "{node} has {served:?} for {} pods", machine.pods);
    // A block goes once it is wholly free.
    let in_use = held.values().filter(|one| served.iter().any(|address| one.contains(address))).count();
    let least = wanted.div_ceil(machine.grain).max(in_use);
    let conditions = || object.status.as_ref().map(|status| json!(status.conditions).to_string());
    ensure!(held.len() == least, "{node} holds {held:?}, and {least} are right: {:?}", conditions());
    let settled =
        condition::find(object.conditions(), condition::WRITING).is_some_and(|one| one.status == "False");
    ensure!(settled, "{node} is being written");
    Ok(served)
}

/// Each pod that asks for a public address or a backend pool has it, nothing else is attached to an address
/// of ours, and there is no public address without its pod. `spec` shows each public address.
async fn attachments(stage: &Stage<'_>, world: &World, objects: &[NodeIPAllocation]) -> Result<()> {
    let public = |uid: &str| format!("{NETWORK}/publicIPAddresses/{IP_CONFIGURATION_PREFIX}{uid}");
    let (mut wanted, mut wanted_public) = (BTreeSet::new(), BTreeSet::new());
    for pod in world.asking(stage).await? {
        let address = stage.agents.addresses(&pod.node).get(&pod.uid).copied();
        let address = address.with_context(|| format!("pod {} has no address", pod.uid))?;
        wanted.extend(pod.backend_pool.map(|pool| (address.to_string(), pool.to_lowercase())));
        if pod.public_address {
            let id = public(&pod.uid).to_lowercase();
            wanted.insert((address.to_string(), id.clone()));
            wanted_public.insert(id);
        }
    }
    let documents = world.nodes.keys().map(|node| stage.nic(node));
    let attached: BTreeSet<_> = documents.flat_map(|nic| attached(&nic)).collect();
    ensure!(attached == wanted, "attached is {attached:?}, asked for {wanted:?}");
    let there = stage.get(&format!("{NETWORK}/publicIPAddresses")).await?;
    let there = there["value"].as_array().context("no list of public addresses")?;
    let ids = there.iter().filter_map(|one| one["id"].as_str()).map(str::to_lowercase);
    let there: BTreeSet<String> = ids.filter(|id| id.contains("/vnp-")).collect();
    ensure!(there == wanted_public, "public addresses: there are {there:?}, asked for {wanted_public:?}");
    let shown = objects.iter().flat_map(|one| one.spec.ip_configurations());
    let shown = shown.filter_map(|one| one.public_address.as_ref());
    let shown = shown.filter(|one| one.address.as_ref().is_some_and(|address| !address.is_empty()));
    let shown: BTreeSet<String> = shown.map(|one| one.id.to_lowercase()).collect();
    ensure!(shown == wanted_public, "spec shows the public addresses {shown:?} of {wanted_public:?}");
    Ok(())
}

/// What is attached to addresses of ours on a NIC: each address with the attached resource's id in lower
/// case.
fn attached(nic: &Value) -> Vec<(String, String)> {
    let all = nic["properties"]["ipConfigurations"].as_array().into_iter().flatten();
    let ours =
        all.filter(|one| one["name"].as_str().is_some_and(|name| name.starts_with(IP_CONFIGURATION_PREFIX)));
    let of_one = |one: &Value| {
        let properties = &one["properties"];
        let address = properties["privateIPAddress"].as_str().unwrap_or_default().to_owned();
        let pools = properties["loadBalancerBackendAddressPools"].as_array().into_iter().flatten();
        let all = pools.chain([&properties["publicIPAddress"]]).filter_map(|one| one["id"].as_str());
        all.map(|id| (address.clone(), id.to_lowercase())).collect::<Vec<_>>()
    };
    ours.flat_map(of_one).collect()
}
