//! Microsoft.Compute: scale sets in Uniform orchestration mode, their instances, and the instances' NICs.

use super::check_etag;
use crate::arm::{Call, action, not_allowed, not_found};
use crate::fault::Ending;
use crate::operation::{Effect, retry_after};
use crate::permission::{self, PRINCIPAL};
use crate::reply::Reply;
use crate::scale_set;
use crate::vm::quoted;
use crate::world::World;
use serde_json::{Value, json};

const SETS: &str = "Microsoft.Compute/virtualMachineScaleSets";

/// Requests for a scale set or below it; `resource` are the lower-case segments after the provider.
pub(super) fn answer(world: &mut World, call: &Call, resource: &[&str]) -> Result<Reply, Reply> {
    match (call.method(), resource) {
        ("GET", [_]) => Ok(listed(list(world, call))),
        ("GET", [_, _]) => get(world, call),
        ("PUT", [_, _]) => put(world, call),
        ("DELETE", [_, _]) => delete(world, call),
        ("GET", [_, _, "virtualmachines"]) => instances(world, call),
        (_, [_, _, "virtualmachines", id, ..]) if id.parse::<u64>().is_err() => Err(bad_instance_id()),
        ("GET", [_, _, "virtualmachines", _]) => get_instance(world, call),
        ("GET", [_, _, "virtualmachines", _, "instanceview"]) => {
            let key = known_instance(world, call)?;
            Ok(charged(Reply::new(200, scale_set::instance_view(&world.vms[&key].document))))
        }
        ("PUT", [_, _, "virtualmachines", _]) => put_instance(world, call),
        ("DELETE", [_, _, "virtualmachines", _]) => delete_instance(world, call),
        ("GET", [_, _, "networkinterfaces"] | [_, _, "virtualmachines", _, "networkinterfaces"]) => {
            let below = call.request.path.to_lowercase();
            let below = below.trim_end_matches("/networkinterfaces");
            let nics = world.nics.iter().filter(|(key, _)| key.starts_with(&format!("{below}/")));
            let nics: Vec<Value> = nics.map(|(_, nic)| scale_set::shown_nic(&nic.document)).collect();
            Ok(Reply::new(200, json!({ "value": nics })))
        }
        ("GET", [_, _, "virtualmachines", _, "networkinterfaces", _]) => {
            let nic = world.nics.get(&call.request.path.to_lowercase());
            let nic = nic.ok_or_else(|| absent(&call.request.path))?;
            Ok(Reply::new(200, scale_set::shown_nic(&nic.document)))
        }
        // The words are azure-powershell#11835's; the code is not certain.
        (_, [_, _, "virtualmachines", _, "networkinterfaces", ..]) => {
            let verb = if call.method() == "DELETE" { "delete" } else { "write" };
            let message = format!(
                "The operation '{verb}' on resource type 'virtualMachineScaleSets/virtualMachines/networkInterfaces' is \
                 disallowed."
            );
            Err(Reply::error(400, "OperationNotAllowed", message))
        }
        _ => Err(not_allowed(call)),
    }
}

/// The sets of a group, or of the subscription when the path names no group.
pub(super) fn list(world: &World, call: &Call) -> Vec<Value> {
    let scope = call.request.path.to_lowercase();
    let scope = scope.split("/providers/").next().unwrap_or_default();
    let sets = world.scale_sets.iter().filter(|(key, _)| key.starts_with(scope));
    sets.map(|(_, set)| set.document.clone()).collect()
}

pub(super) fn listed(sets: Vec<Value>) -> Reply {
    let original = uuid::Uuid::new_v4().to_string();
    Reply::new(200, json!({ "value": sets })).header("x-ms-original-request-ids", original)
}

/// Compute's answers name the cost of a call.
fn charged(reply: Reply) -> Reply {
    reply.header("x-ms-request-charge", "1")
}

fn set_id(world: &World, call: &Call) -> String {
    world.resource_id(call.group(), SETS, call.segment(7))
}

fn known_set(world: &World, call: &Call) -> Result<String, Reply> {
    let key = set_id(world, call).to_lowercase();
    if world.scale_sets.contains_key(&key) {
        return Ok(key);
    }
    Err(not_found(SETS, call.segment(7), call.group()))
}

fn known_instance(world: &World, call: &Call) -> Result<String, Reply> {
    let key = format!("{}/virtualmachines/{}", known_set(world, call)?, call.segment(9));
    if world.vms.contains_key(&key) {
        return Ok(key);
    }
    let path = call.request.path.split("/instanceView").next().unwrap_or_default();
    Err(absent(path))
}

/// Only the provider knows the resources below a scale set. The code is not certain.
fn absent(path: &str) -> Reply {
    Reply::error(404, "NotFound", format!("The entity {path} was not found in this Azure location."))
}

fn bad_instance_id() -> Reply {
    charged(Reply::new(
        400,
        json!({ "error": { "code": "InvalidParameter", "target": "instanceId",
            "message": "Virtual Machine Scale Set VM instanceId must be a number." } }),
    ))
}

fn get(world: &World, call: &Call) -> Result<Reply, Reply> {
    let set = &world.scale_sets[&known_set(world, call)?];
    Ok(Reply::new(200, set.document.clone()).header("etag", quoted(set.etag)))
}

fn put(world: &mut World, call: &Call) -> Result<Reply, Reply> {
    let id = set_id(world, call);
    let key = id.to_lowercase();
    let body = call.document()?;
    let known = world.scale_sets.get(&key);
    check_etag(call, known.map(|set| set.etag))?;
    let (status, state) = if known.is_some() { (200, "Updating") } else { (201, "Creating") };
    let old = known.map(|set| (&set.document, set.etag));
    let (document, etag) = scale_set::replace(&id, call.segment(7), old, body, state);
    let capacity = document["sku"]["capacity"].as_u64().unwrap_or_default() as usize;
    let location = document["location"].as_str().unwrap_or_default().to_owned();
    world.put_scale_set(&key, document.clone(), etag);
    if let Err(refusal) = world.scale(&key, capacity, call.now) {
        if status == 201 {
            world.remove_scale_set(&key);
        }
        return Err(refusal);
    }
    let operation = world.start(Effect::FinishScaleSet, &key, &location, call.now + world.write_time());
    let reply = charged(Reply::new(status, document).header("etag", quoted(etag)));
    Ok(operation.announce(reply, &call.base(), &world.config.subscription, &call.version))
}

fn delete(world: &mut World, call: &Call) -> Result<Reply, Reply> {
    let Ok(key) = known_set(world, call) else { return Ok(Reply::empty(204)) };
    let Some(set) = world.scale_sets.get_mut(&key) else { return Ok(Reply::empty(204)) };
    set.document["properties"]["provisioningState"] = json!("Deleting");
    let location = set.document["location"].as_str().unwrap_or_default().to_owned();
    for (_, key) in world.instances(&key) {
        mark_deleting(world, &key);
    }
    let operation = world.start(Effect::RemoveScaleSet, &key, &location, call.now + world.write_time());
    let reply = charged(Reply::empty(202));
    Ok(operation.announce(reply, &call.base(), &world.config.subscription, &call.version))
}

fn instances(world: &World, call: &Call) -> Result<Reply, Reply> {
    let keys = world.instances(&known_set(world, call)?);
    let models: Vec<&Value> = keys.iter().map(|(_, key)| &world.vms[key].document).collect();
    Ok(charged(Reply::new(200, json!({ "value": models }))))
}

fn get_instance(world: &mut World, call: &Call) -> Result<Reply, Reply> {
    let key = known_instance(world, call)?;
    if world.config.limits {
        world.limits.compute(&key, (36.0, 12.0), call.now)?;
    }
    let vm = &world.vms[&key];
    Ok(charged(Reply::new(200, vm.document.clone()).header("etag", quoted(vm.etag))))
}

fn put_instance(world: &mut World, call: &Call) -> Result<Reply, Reply> {
    let key = known_instance(world, call)?;
    if world.config.limits {
        // "Throttling in Compute": 12 at once and 4 a minute for one machine.
        world.limits.compute(&format!("{key}/put"), (12.0, 4.0), call.now)?;
    }
    let body = call.request.body.as_ref().ok().cloned().flatten().filter(Value::is_object);
    let Some(body) = body else {
        let message =
            "The request content was invalid and could not be deserialized: 'an object is required'.";
        return Err(Reply::gateway(400, "InvalidRequestContent", message));
    };
    let before = world.vms[&key].clone();
    check_etag(call, Some(before.etag))?;
    check_image(call, &body)?;
    if before.document["properties"]["provisioningState"] == "Deleting" {
        // The words are those that the cloud provider searches for.
        let message = format!(
            "'Put on Virtual Machine Scale Set VM Instance' is not allowed on Virtual Machine Scale Set '{}' since it is \
             marked for deletion.",
            call.segment(7)
        );
        return Err(Reply::error(409, "OperationNotAllowed", message));
    }
    let configurations = &body["properties"]["networkProfileConfiguration"]["networkInterfaceConfigurations"];
    if let Some(member) = scale_set::unknown_member(configurations) {
        let message =
            format!("Could not find member '{member}' on object of type 'IpConfigurationProperties'.");
        return Err(Reply::error(400, "BadRequest", message));
    }
    let location = &before.document["location"];
    for configuration in configurations.as_array().into_iter().flatten() {
        permission::check_joins(world, &call.request.path, &scale_set::nic_body(configuration, location))?;
    }
    let (model, etag) = scale_set::edit((&before.document, before.etag), &body, "Updating");
    let takes = world.write_time();
    if let Some(vm) = world.vms.get_mut(&key) {
        (vm.document, vm.etag) = (model.clone(), etag);
    }
    // After a failure everything is tried again, changed or not.
    let has_failed = before.document["properties"]["provisioningState"] == "Failed";
    let mut fate = None;
    if (etag != before.etag || has_failed)
        && let Err(refusal) = world.put_instance_nics(&key, Some(takes), call.now)
    {
        if !is_found_out_late(&refusal) {
            world.vms.insert(key, before);
            return Err(refusal);
        }
        fate = refusal.body.map(|body| body["error"].clone());
    }
    let location = location.as_str().unwrap_or_default();
    let operation = world.start(Effect::FinishInstance, &key, location, call.now + takes);
    if let Some(error) = fate {
        world.doom(&key, Ending::Failed, &error);
    }
    if world.config.habits.answers_location_only {
        let accepted = charged(Reply::empty(202));
        return Ok(operation.locate(accepted, &call.base(), &world.config.subscription, &call.version));
    }
    let reply = charged(Reply::new(200, model).header("etag", quoted(etag)));
    let reply = if takes.is_zero() { reply } else { reply.header("retry-after", retry_after(takes)) };
    Ok(operation.announce(reply, &call.base(), &world.config.subscription, &call.version))
}

/// Compute asks the network provider for addresses after it has answered: the operation ends Failed, the
/// model keeps what was asked for, and later writes try it again (kube-egress-gateway#981, cilium#43598).
fn is_found_out_late(refusal: &Reply) -> bool {
    matches!(refusal.code(), Some("SubnetIsFull" | "PrivateIPAddressLimitReached"))
}

/// Sending back an image's reference needs the right to read that image, and AKS' images are in a
/// subscription of Microsoft's (AKS#1819).
fn check_image(call: &Call, body: &Value) -> Result<(), Reply> {
    let image = body.pointer("/properties/storageProfile/imageReference/id").and_then(Value::as_str);
    let Some(image) = image.filter(|image| image.to_lowercase().contains("/galleries/")) else {
        return Ok(());
    };
    let message = format!(
        "The client '{PRINCIPAL}' with object id '{PRINCIPAL}' has permission to perform action '{}' on scope '{}'; \
         however, it does not have permission to perform action(s) 'Microsoft.Compute/galleries/images/versions/read' on \
         the linked scope(s) '{image}' (respectively) or the linked scope(s) are invalid.",
        action(call),
        call.request.path
    );
    Err(Reply::gateway(403, "LinkedAuthorizationFailed", message))
}

fn mark_deleting(world: &mut World, key: &str) {
    if let Some(vm) = world.vms.get_mut(key) {
        vm.document["properties"]["provisioningState"] = json!("Deleting");
    }
}

fn delete_instance(world: &mut World, call: &Call) -> Result<Reply, Reply> {
    let Ok(key) = known_instance(world, call) else { return Ok(Reply::empty(204)) };
    mark_deleting(world, &key);
    let location = world.vms[&key].document["location"].as_str().unwrap_or_default().to_owned();
    let operation = world.start(Effect::RemoveInstance, &key, &location, call.now + world.write_time());
    let reply = charged(Reply::empty(202));
    Ok(operation.announce(reply, &call.base(), &world.config.subscription, &call.version))
}
