//! Microsoft.Network: network interfaces, virtual networks, subnets; the rest is in `resource`.

mod peering;
mod resource;
mod usages;

use super::{Call, not_allowed, not_found, unknown_type};
use crate::document::{has_id, list as children};
use crate::nic;
use crate::operation::{Effect, Operation, retry_after};
use crate::permission;
use crate::reply::Reply;
use crate::resource::Kind as ResourceKind;
use crate::throttle::Kind;
use crate::vnet;
use crate::world::{World, attachment, new_etag};
use serde_json::{Value, json};
use std::net::Ipv4Addr;

const NICS: &str = "Microsoft.Network/networkInterfaces";
const VNETS: &str = "Microsoft.Network/virtualNetworks";

/// Requests below a resource group; `resource` are the lower-case segments after the provider.
pub(super) fn answer(world: &mut World, call: &Call, resource: &[&str]) -> Result<Reply, Reply> {
    if world.config.limits {
        let verb = if call.kind == Kind::Read { "Get" } else { call.method() };
        world.limits.network(call.kind, &format!("{verb} {}", resource[0]), call.now)?;
    }
    if let [collection, path @ ..] = resource
        && let Some(kind) = ResourceKind::of(collection)
    {
        return self::resource::answer(world, call, kind, path);
    }
    match (call.method(), resource) {
        ("GET", [list_of]) => list(world, call, list_of),
        ("GET", ["networkinterfaces", _]) => tagged(200, known_nic(world, call)?.clone()),
        ("PUT", ["networkinterfaces", _]) => put_nic(world, call),
        ("PATCH", ["networkinterfaces", _]) => patch_nic(world, call),
        ("DELETE", ["networkinterfaces", _]) => delete_nic(world, call),
        ("GET", ["networkinterfaces", _, "ipconfigurations"]) => {
            Ok(Reply::new(200, json!({ "value": nic::ip_configurations(known_nic(world, call)?) })))
        }
        ("GET", ["networkinterfaces", _, "ipconfigurations", name]) => {
            let nic = known_nic(world, call)?;
            let named = |c: &&Value| c["name"].as_str().is_some_and(|own| own.eq_ignore_ascii_case(name));
            let found = nic::ip_configurations(nic).iter().find(named);
            found.map(|c| Reply::new(200, c.clone())).ok_or_else(|| child_not_found(call))
        }
        ("GET", ["virtualnetworks", _]) => tagged(200, shown_vnet(world, known_vnet(world, call)?)),
        ("PUT", ["virtualnetworks", _]) => put_vnet(world, call),
        ("DELETE", ["virtualnetworks", _]) => delete_vnet(world, call),
        ("GET", ["virtualnetworks", _, "usages"]) => Ok(usages::of(world, call, known_vnet(world, call)?)),
        ("GET", ["virtualnetworks", _, "checkipaddressavailability"]) => availability(world, call),
        ("GET", ["virtualnetworks", _, "subnets"]) => {
            let vnet = known_vnet(world, call)?;
            let subnets: Vec<Value> = vnet::subnets(vnet).iter().map(|s| shown_subnet(world, s)).collect();
            Ok(Reply::new(200, json!({ "value": subnets })))
        }
        ("GET" | "PUT" | "DELETE", ["virtualnetworks", _, "virtualnetworkpeerings", _]) => {
            let vnet = known_vnet(world, call)?["id"].as_str().unwrap_or_default().to_owned();
            peering::answer(world, call, &vnet)
        }
        ("GET", ["virtualnetworks", _, "virtualnetworkpeerings"]) => {
            let vnet = known_vnet(world, call)?;
            Ok(Reply::new(200, json!({ "value": vnet["properties"]["virtualNetworkPeerings"] })))
        }
        (method, ["virtualnetworks", _, "subnets", _]) => {
            known_vnet(world, call)?;
            match method {
                "GET" => {
                    let subnet = world.subnet_document(&subnet_id(world, call));
                    tagged(200, shown_subnet(world, subnet.ok_or_else(|| child_not_found(call))?))
                }
                "PUT" => put_subnet(world, call),
                "DELETE" => delete_subnet(world, call),
                _ => Err(not_allowed(call)),
            }
        }
        (_, ["networkinterfaces" | "virtualnetworks", ..]) => Err(not_allowed(call)),
        _ => Err(unknown_type(call)),
    }
}

/// The resources of a group, or of the subscription when the path names no group.
pub(super) fn list(world: &World, call: &Call, kind: &str) -> Result<Reply, Reply> {
    let scope = call.request.path.to_lowercase();
    let scope = scope.split("/providers/").next().unwrap_or_default();
    let value: Vec<Value> = match kind {
        "networkinterfaces" => {
            // NICs of scale sets are listed only below their sets.
            let own = |key: &String| key.starts_with(scope) && key.contains("/microsoft.network/");
            let nics = world.nics.iter().filter(|(key, _)| own(key));
            nics.map(|(_, nic)| nic.document.clone()).collect()
        }
        "virtualnetworks" => {
            let vnets = world.vnets.iter().filter(|(key, _)| key.starts_with(scope));
            vnets.map(|(_, vnet)| shown_vnet(world, vnet)).collect()
        }
        _ => {
            let kind = ResourceKind::of(kind).ok_or_else(|| unknown_type(call))?;
            return resource::all(world, call, kind);
        }
    };
    Ok(Reply::new(200, json!({ "value": value })))
}

/// The answer to a GET has the etag in a header, too.
fn tagged(status: u16, document: Value) -> Result<Reply, Reply> {
    let etag = document["etag"].as_str().unwrap_or_default().to_owned();
    Ok(Reply::new(status, document).header("etag", etag))
}

fn known_nic<'a>(world: &'a World, call: &Call) -> Result<&'a Value, Reply> {
    let key = world.resource_id(call.group(), NICS, call.segment(7)).to_lowercase();
    let nic = world.nics.get(&key).map(|nic| &nic.document);
    nic.ok_or_else(|| not_found(NICS, call.segment(7), call.group()))
}

fn known_vnet<'a>(world: &'a World, call: &Call) -> Result<&'a Value, Reply> {
    let key = world.resource_id(call.group(), VNETS, call.segment(7)).to_lowercase();
    world.vnets.get(&key).ok_or_else(|| not_found(VNETS, call.segment(7), call.group()))
}

/// Only the provider knows sub-resources, and it words their absence in its own way.
fn child_not_found(call: &Call) -> Reply {
    Reply::nrp(404, "NotFound", format!("Resource {} not found.", call.request.path), json!([]))
}

fn subnet_id(world: &World, call: &Call) -> String {
    format!("{}/subnets/{}", world.resource_id(call.group(), VNETS, call.segment(7)), call.segment(9))
}

/// `If-Match` against a document's etag. The provider itself writes a bare value as a weak etag.
fn check_etag(call: &Call, id: &str, known: Option<&Value>) -> Result<(), Reply> {
    let Some(asked) = call.request.header("if-match").filter(|asked| *asked != "*") else { return Ok(()) };
    let asked =
        if asked.starts_with("W/") { asked.to_owned() } else { format!("W/\"{}\"", asked.trim_matches('"')) };
    let current = known.and_then(|document| document["etag"].as_str()).unwrap_or_default();
    if asked == current {
        return Ok(());
    }
    let message = format!(
        "Etag provided in if-match header {asked} does not match etag {current} of resource {id} in NRP data store."
    );
    let details = json!([{ "code": "PreconditionFailedEtagMismatch", "message": message }]);
    Err(Reply::nrp(412, "PreconditionFailed", "Precondition failed.", details))
}

fn announce(world: &World, call: &Call, operation: &Operation, reply: Reply) -> Reply {
    operation.announce(reply, &call.base(), &world.config.subscription, &call.version)
}

fn put_nic(world: &mut World, call: &Call) -> Result<Reply, Reply> {
    let name = call.segment(7);
    let id = world.resource_id(call.group(), NICS, name);
    let key = id.to_lowercase();
    let body = call.document()?;
    permission::check_joins(world, &call.request.path, &body)?;
    let habits = world.config.habits.clone();
    if habits.refuses_second_write && world.is_under_way(&key) {
        let message = format!(
            "Operation PutNicOperation ({}) is updating resource {id}. The call can be retried in 1 seconds.",
            uuid::Uuid::new_v4()
        );
        return Err(Reply::retryable("RetryableErrorDueToAnotherOperation", message));
    }
    check_etag(call, &id, world.nics.get(&key).map(|nic| &nic.document))?;
    let status = if world.nics.contains_key(&key) { 200 } else { 201 };
    let takes = Some(world.write_time()).filter(|_| !world.config.synchronous);
    let operation = world.put_nic((&id, name), body, takes, call.now)?;
    let reply = Reply::new(status, world.nics[&key].document.clone());
    Ok(match operation {
        Some(operation) if habits.answers_location_only => {
            operation.locate(Reply::empty(202), &call.base(), &world.config.subscription, &call.version)
        }
        None if habits.names_ended_operations => {
            let location = world.config.location.clone();
            let ended = world.start(Effect::FinishNic, &key, &location, call.now);
            announce(world, call, &ended, reply)
        }
        Some(operation) => {
            let reply = reply.header("retry-after", retry_after(world.write_time()));
            announce(world, call, &operation, reply)
        }
        None => reply,
    })
}

/// PATCH of a NIC sets its tags and nothing else.
fn patch_nic(world: &mut World, call: &Call) -> Result<Reply, Reply> {
    let id = known_nic(world, call)?["id"].as_str().unwrap_or_default().to_owned();
    let body = call.request.body.as_ref().ok().cloned().flatten().unwrap_or_default();
    let Some(nic) = world.nics.get_mut(&id.to_lowercase()) else { return Err(child_not_found(call)) };
    check_etag(call, &id, Some(&nic.document))?;
    nic.document["tags"] = body["tags"].clone();
    nic::set_etag(&mut nic.document, &new_etag());
    Ok(Reply::new(200, nic.document.clone()))
}

fn delete_nic(world: &mut World, call: &Call) -> Result<Reply, Reply> {
    let key = world.resource_id(call.group(), NICS, call.segment(7)).to_lowercase();
    let Some(nic) = world.nics.get_mut(&key) else { return Ok(Reply::empty(204)) };
    let id = nic.document["id"].as_str().unwrap_or_default().to_owned();
    check_etag(call, &id, Some(&nic.document))?;
    if let Some(vm) = nic::vm_id(&nic.document) {
        let message = format!(
            "Network Interface {id} is used by existing resource {vm}. In order to delete the network interface, it \
             must be dissociated from the resource. To learn more, see aka.ms/deletenic."
        );
        return Err(Reply::nrp(400, "NicInUse", message, json!([])));
    }
    nic::set_state(&mut nic.document, "Deleting", &new_etag());
    nic.live.clear();
    let (status, location) = (
        if nic.was_attached { 202 } else { 200 },
        nic.document["location"].as_str().unwrap_or_default().to_owned(),
    );
    let takes = if nic.was_attached { world.write_time() } else { std::time::Duration::ZERO };
    let operation = world.start(Effect::RemoveNic, &key, &location, call.now + takes);
    if status == 200 {
        world.advance(call.now);
    }
    Ok(announce(world, call, &operation, Reply::empty(status)))
}

/// A subnet as GET shows it: with references to the ipConfigurations in it.
fn shown_subnet(world: &World, subnet: &Value) -> Value {
    let mut shown = subnet.clone();
    let id = subnet["id"].as_str().unwrap_or_default();
    let all = world.nics.values().flat_map(|nic| nic::ip_configurations(&nic.document));
    let inside = all.filter(|c| has_id(&c["properties"]["subnet"], id));
    let references: Vec<Value> = inside.map(|c| json!({ "id": c["id"] })).collect();
    if !references.is_empty() {
        shown["properties"]["ipConfigurations"] = json!(references);
    }
    shown
}

fn shown_vnet(world: &World, vnet: &Value) -> Value {
    let mut shown = vnet.clone();
    shown["properties"]["subnets"] = vnet::subnets(vnet).iter().map(|s| shown_subnet(world, s)).collect();
    shown
}

fn put_vnet(world: &mut World, call: &Call) -> Result<Reply, Reply> {
    let name = call.segment(7);
    let id = world.resource_id(call.group(), VNETS, name);
    let key = id.to_lowercase();
    let body = call.document()?;
    let old = world.vnets.get(&key);
    check_etag(call, &id, old)?;
    // Recorded: an update that changes nothing answers Succeeded at once, and its status is 201, too.
    let state = if old.is_some() { "Succeeded" } else { "Updating" };
    let document = vnet::replace(&id, name, old, body, &new_etag(), state);
    vnet::subnets(&document).iter().try_for_each(|subnet| attachment::check_subnet(world, subnet))?;
    world.vnets.insert(key.clone(), document.clone());
    peering::announce_space(world, &key);
    let location = document["location"].as_str().unwrap_or_default().to_owned();
    let operation = world.start(Effect::FinishVnet, &key, &location, call.now + world.write_time());
    Ok(announce(world, call, &operation, Reply::new(201, document)))
}

/// The first ipConfiguration in any of these subnets; a used subnet can't be deleted.
fn user_of(world: &World, subnet: &str) -> Option<String> {
    let all = world.nics.values().flat_map(|nic| nic::ip_configurations(&nic.document));
    let gateways = world.of_kind(ResourceKind::ApplicationGateway);
    let gateways = gateways.flat_map(|gateway| children(gateway, "gatewayIPConfigurations"));
    let mut inside =
        all.chain(world.frontends()).chain(gateways).filter(|c| has_id(&c["properties"]["subnet"], subnet));
    inside.find_map(|c| c["id"].as_str().map(str::to_owned))
}

fn in_use(subnet: &str, user: &str) -> Reply {
    let name = subnet.rsplit('/').next().unwrap_or_default();
    let message = format!(
        "Subnet {name} is in use by {user} and cannot be deleted. In order to delete the subnet, delete all the \
         resources within the subnet. See aka.ms/deletesubnet."
    );
    Reply::nrp(400, "InUseSubnetCannotBeDeleted", message, json!([]))
}

fn delete_vnet(world: &mut World, call: &Call) -> Result<Reply, Reply> {
    let Ok(document) = known_vnet(world, call) else { return Ok(Reply::empty(204)) };
    let id = document["id"].as_str().unwrap_or_default().to_owned();
    check_etag(call, &id, Some(document))?;
    for subnet in vnet::subnets(document).iter().filter_map(|subnet| subnet["id"].as_str()) {
        if let Some(user) = user_of(world, subnet) {
            return Err(in_use(subnet, &user));
        }
    }
    let location = document["location"].as_str().unwrap_or_default().to_owned();
    let operation = world.start(Effect::RemoveVnet, &id, &location, call.now + world.write_time());
    if let Some(document) = world.vnets.get_mut(&id.to_lowercase()) {
        document["properties"]["provisioningState"] = json!("Deleting");
    }
    Ok(announce(world, call, &operation, Reply::empty(202)))
}

fn put_subnet(world: &mut World, call: &Call) -> Result<Reply, Reply> {
    let id = subnet_id(world, call);
    let body = call.document()?;
    let known = world.subnet_document(&id).cloned();
    check_etag(call, &id, known.as_ref())?;
    let prefixes = vnet::prefixes(&body);
    let vnet = known_vnet(world, call)?;
    let space = vnet::address_space(vnet);
    if let Some(outside) = prefixes.iter().find(|prefix| !space.iter().any(|space| space.contains(*prefix))) {
        let message = format!(
            "Subnet '{}' is not valid in virtual network: {outside} is outside of its address space.",
            call.segment(9)
        );
        return Err(Reply::nrp(400, "NetcfgInvalidSubnet", message, json!([])));
    }
    let others = vnet::subnets(vnet).iter().filter(|subnet| !has_id(subnet, &id));
    for (other, taken) in
        others.flat_map(|subnet| vnet::prefixes(subnet).into_iter().map(move |p| (subnet, p)))
    {
        if prefixes.iter().any(|prefix| prefix.contains(&taken) || taken.contains(prefix)) {
            let message = format!(
                "Subnet '{}' is not valid because its IP address range overlaps with that of an existing subnet in \
                 virtual network: {}.",
                call.segment(9),
                other["name"].as_str().unwrap_or_default()
            );
            return Err(Reply::nrp(400, "NetcfgSubnetRangesOverlap", message, json!([])));
        }
    }
    let location = vnet["location"].as_str().unwrap_or_default().to_owned();
    let (status, state) = if known.is_some() { (200, "Succeeded") } else { (201, "Updating") };
    let document = vnet::replace_subnet(&id, call.segment(9), body, &new_etag(), state);
    attachment::check_subnet(world, &document)?;
    let key = world.resource_id(call.group(), VNETS, call.segment(7)).to_lowercase();
    if let Some(subnets) = world.vnets.get_mut(&key).and_then(|v| v["properties"]["subnets"].as_array_mut()) {
        subnets.retain(|subnet| !has_id(subnet, &id));
        subnets.push(document.clone());
    }
    let operation = world.start(Effect::FinishSubnet, &id, &location, call.now + world.write_time());
    Ok(announce(world, call, &operation, Reply::new(status, document)))
}

fn delete_subnet(world: &mut World, call: &Call) -> Result<Reply, Reply> {
    let id = subnet_id(world, call);
    let Some(document) = world.subnet_document(&id) else { return Ok(Reply::empty(204)) };
    check_etag(call, &id, Some(document))?;
    if let Some(user) = user_of(world, &id) {
        return Err(in_use(&id, &user));
    }
    let location = known_vnet(world, call)?["location"].as_str().unwrap_or_default().to_owned();
    let operation = world.start(Effect::RemoveSubnet, &id, &location, call.now + world.write_time());
    Ok(announce(world, call, &operation, Reply::empty(202)))
}

fn availability(world: &World, call: &Call) -> Result<Reply, Reply> {
    let vnet = known_vnet(world, call)?;
    let asked = call.request.parameter("ipAddress").unwrap_or_default();
    let Ok(address) = asked.parse::<Ipv4Addr>() else {
        let message = format!("The IP address {asked} is invalid.");
        return Err(Reply::nrp(400, "InvalidIPAddressFormat", message, json!([])));
    };
    let block = ipnet::Ipv4Net::from(address);
    let subnets = vnet::subnets(vnet).iter().filter_map(|s| world.subnet(s["id"].as_str()?, ""));
    let Some(mut subnet) = subnets.into_iter().find(|subnet| subnet.contains(block)) else {
        let message = format!("The IP address {asked} does not belong to any subnet of the virtual network.");
        return Err(Reply::nrp(400, "PrivateIPAddressNotInAnySubnet", message, json!([])));
    };
    let reserved = subnet.reserves(block);
    if !reserved && subnet.holder(block).is_none() {
        return Ok(Reply::new(200, json!({ "available": true, "isPlatformReserved": false })));
    }
    let mut free = Vec::new();
    while let Some(next) = subnet.lowest_free(32).filter(|_| free.len() < 5) {
        free.push(next.addr());
        subnet.taken.insert(next, String::new());
    }
    let answer = json!({ "available": false, "availableIPAddresses": free, "isPlatformReserved": reserved });
    Ok(Reply::new(200, answer))
}
