//! Peerings of virtual networks. A peering works when both networks have one to the other. Before that it is
//! `Initiated`, and when the other peering has gone it is `Disconnected` (documentation of virtual network
//! peering).

use super::{check_etag, child_not_found, tagged};
use crate::arm::Call;
use crate::document::{default, has_id, list};
use crate::reply::Reply;
use crate::vnet;
use crate::world::{World, new_etag};
use ipnet::Ipv4Net;
use serde_json::{Value, json};

/// Requests for one peering; `vnet` is the id of an existing virtual network.
pub(super) fn answer(world: &mut World, call: &Call, vnet: &str) -> Result<Reply, Reply> {
    let key = vnet.to_lowercase();
    let id = format!("{vnet}/virtualNetworkPeerings/{}", call.segment(9));
    let known = world.vnets.get(&key).and_then(|vnet| {
        list(vnet, "virtualNetworkPeerings").iter().find(|peering| has_id(peering, &id)).cloned()
    });
    match call.method() {
        "GET" => tagged(200, known.ok_or_else(|| child_not_found(call))?),
        "PUT" => put(world, call, &key, &id, known),
        _ => {
            let Some(known) = known else { return Ok(Reply::empty(204)) };
            check_etag(call, &id, Some(&known))?;
            set(world, &key, &id, None);
            announce_to_peer(world, &key, &known, "Disconnected");
            Ok(Reply::empty(200))
        }
    }
}

fn put(world: &mut World, call: &Call, key: &str, id: &str, known: Option<Value>) -> Result<Reply, Reply> {
    let mut body = call.document()?;
    check_etag(call, id, known.as_ref())?;
    let remote_id =
        body["properties"]["remoteVirtualNetwork"]["id"].as_str().unwrap_or_default().to_lowercase();
    let (Some(own), Some(remote)) = (world.vnets.get(key), world.vnets.get(&remote_id)) else {
        let message = format!("Resource {remote_id} referenced by resource {id} was not found.");
        return Err(Reply::nrp(400, "InvalidResourceReference", message, json!([])));
    };
    let space = vnet::address_space(remote);
    let overlaps = vnet::address_space(own)
        .into_iter()
        .any(|own| space.iter().any(|other| own.contains(other) || other.contains(&own)));
    if overlaps {
        // The code is from memory, the rule from the documentation.
        let message =
            format!("Cannot create or update peering {id}. The address spaces of both networks overlap.");
        return Err(Reply::nrp(400, "VnetAddressSpacesOverlap", message, json!([])));
    }
    let part = vnet::peered_part(remote, &body);
    let answers = list(remote, "virtualNetworkPeerings")
        .iter()
        .any(|peering| has_id(&peering["properties"]["remoteVirtualNetwork"], key));
    body["id"] = json!(id);
    body["name"] = json!(call.segment(9));
    body["type"] = json!("Microsoft.Network/virtualNetworks/virtualNetworkPeerings");
    body["etag"] = json!(new_etag());
    let properties = &mut body["properties"];
    for (field, value) in [
        ("allowVirtualNetworkAccess", json!(true)),
        ("allowForwardedTraffic", json!(false)),
        ("allowGatewayTransit", json!(false)),
        ("useRemoteGateways", json!(false)),
        ("peerCompleteVnets", json!(true)),
    ] {
        default(properties, field, value);
    }
    properties["provisioningState"] = json!("Succeeded");
    properties["peeringState"] = json!(if answers { "Connected" } else { "Initiated" });
    // What there was stays until it is asked for: "Parameter indicates the intention to sync the peering with
    // the current address space on the remote vNet after it's updated".
    let asks = call.request.parameter("syncRemoteAddressSpace").is_some_and(|asks| asks == "true");
    let stays =
        known.as_ref().filter(|_| !asks).map(|known| known["properties"]["remoteAddressSpace"].clone());
    properties["remoteAddressSpace"] = stays.unwrap_or_else(|| json!({ "addressPrefixes": part }));
    show_space(&mut body, &space);
    set(world, key, id, Some(body.clone()));
    announce_to_peer(world, key, &body, "Connected");
    Ok(Reply::new(if known.is_some() { 200 } else { 201 }, body))
}

/// Shows the space that the remote network has now. Which of the sync levels goes with it is an assumption.
fn show_space(peering: &mut Value, space: &[Ipv4Net]) {
    let properties = &mut peering["properties"];
    properties["remoteVirtualNetworkAddressSpace"] = json!({ "addressPrefixes": space });
    let is_whole = properties["peerCompleteVnets"] != json!(false);
    let is_synced = properties["remoteAddressSpace"] == properties["remoteVirtualNetworkAddressSpace"];
    let level = if is_synced || !is_whole { "FullyInSync" } else { "RemoteNotInSync" };
    properties["peeringSyncLevel"] = json!(level);
}

/// A network has been written: its peers see its space, and go on with the one of before.
pub(super) fn announce_space(world: &mut World, key: &str) {
    let Some(space) = world.vnets.get(key).map(vnet::address_space) else { return };
    for vnet in world.vnets.values_mut() {
        let peerings = vnet["properties"]["virtualNetworkPeerings"].as_array_mut();
        let to_it = |peering: &&mut Value| has_id(&peering["properties"]["remoteVirtualNetwork"], key);
        peerings.into_iter().flatten().filter(to_it).for_each(|peering| show_space(peering, &space));
    }
}

/// Replaces or removes one peering of a network.
fn set(world: &mut World, key: &str, id: &str, peering: Option<Value>) {
    let Some(vnet) = world.vnets.get_mut(key) else { return };
    vnet["etag"] = json!(new_etag());
    if let Some(peerings) = vnet["properties"]["virtualNetworkPeerings"].as_array_mut() {
        peerings.retain(|known| !has_id(known, id));
        peerings.extend(peering);
    }
}

/// Sets the state of the other network's peering to this one.
fn announce_to_peer(world: &mut World, key: &str, peering: &Value, state: &str) {
    let remote =
        peering["properties"]["remoteVirtualNetwork"]["id"].as_str().unwrap_or_default().to_lowercase();
    let Some(remote) = world.vnets.get_mut(&remote) else { return };
    let peerings = remote["properties"]["virtualNetworkPeerings"].as_array_mut();
    let back = |peering: &&mut Value| has_id(&peering["properties"]["remoteVirtualNetwork"], key);
    for peering in peerings.into_iter().flatten().filter(back) {
        peering["properties"]["peeringState"] = json!(state);
        peering["etag"] = json!(new_etag());
    }
}
