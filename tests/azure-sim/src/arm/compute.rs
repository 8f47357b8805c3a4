//! Microsoft.Compute: virtual machines that stand alone; sets of them are in `scale_set`.

mod scale_set;

use super::{Call, not_allowed, not_found, unknown_type};
use crate::operation::Effect;
use crate::reply::Reply;
use crate::vm;
use crate::world::{Vm, World};
use serde_json::{Value, json};

const VMS: &str = "Microsoft.Compute/virtualMachines";

/// Requests below a resource group; `resource` are the lower-case segments after the provider.
pub(super) fn answer(world: &mut World, call: &Call, resource: &[&str]) -> Result<Reply, Reply> {
    match (call.method(), resource) {
        ("GET", ["virtualmachines"]) => list(world, call, "virtualmachines"),
        ("GET", ["virtualmachines", name]) => get(world, call, name),
        ("GET", ["virtualmachines", name, "instanceview"]) => {
            get(world, call, name)?;
            let key = world.resource_id(call.group(), VMS, name).to_lowercase();
            Ok(Reply::new(200, vm::instance_view(!world.stopped.contains(&key))))
        }
        ("PUT", ["virtualmachines", _]) => put(world, call),
        ("DELETE", ["virtualmachines", _]) => delete(world, call),
        (_, ["virtualmachines", ..]) => Err(not_allowed(call)),
        (_, ["virtualmachinescalesets", ..]) => scale_set::answer(world, call, resource),
        _ => Err(unknown_type(call)),
    }
}

/// The machines of a group, or of the subscription when the path names no group.
pub(super) fn list(world: &World, call: &Call, kind: &str) -> Result<Reply, Reply> {
    if kind == "virtualmachinescalesets" {
        return Ok(scale_set::listed(scale_set::list(world, call)));
    }
    if kind != "virtualmachines" {
        return Err(unknown_type(call));
    }
    let scope = call.request.path.to_lowercase();
    let scope = scope.split("/providers/").next().unwrap_or_default();
    // Compute's only filter is by scale set, and instances of a Uniform set aren't listed here.
    let machines: Vec<&Value> = if call.request.parameter("$filter").is_some() {
        Vec::new()
    } else {
        let own = |key: &&String| key.starts_with(scope) && !key.contains("/virtualmachinescalesets/");
        world.vms.iter().filter(|(key, _)| own(key)).map(|(_, vm)| &vm.document).collect()
    };
    let reply = Reply::new(200, json!({ "value": machines }));
    if machines.is_empty() {
        return Ok(reply);
    }
    Ok(reply.header("x-ms-original-request-ids", uuid::Uuid::new_v4().to_string()))
}

fn get(world: &mut World, call: &Call, name: &str) -> Result<Reply, Reply> {
    let key = world.resource_id(call.group(), VMS, name).to_lowercase();
    if world.config.limits {
        world.limits.compute(&key, (36.0, 12.0), call.now)?;
    }
    let vm = world.vms.get(&key).ok_or_else(|| not_found(VMS, call.segment(7), call.group()))?;
    let mut document = vm.document.clone();
    if call.request.parameter("$expand").is_some_and(|expand| expand.eq_ignore_ascii_case("instanceView")) {
        document["properties"]["instanceView"] = vm::instance_view(!world.stopped.contains(&key));
    }
    Ok(Reply::new(200, document).header("etag", vm::quoted(vm.etag)))
}

fn put(world: &mut World, call: &Call) -> Result<Reply, Reply> {
    let name = call.segment(7);
    let id = world.resource_id(call.group(), VMS, name);
    let key = id.to_lowercase();
    let body = call.document()?;
    let known = world.vms.get(&key);
    check_etag(call, known.map(|vm| vm.etag))?;
    let nics = vm::nic_ids(&body);
    for nic in &nics {
        if !world.nics.contains_key(&nic.to_lowercase()) {
            let message =
                format!("The entity name '{nic}' is invalid or does not exist: the NIC was not found.");
            return Err(Reply::error(404, "NotFound", message));
        }
    }
    let location = body["location"].as_str().unwrap_or(&world.config.location).to_owned();
    let netns = known.and_then(|vm| vm.netns.clone());
    if let Some(vm) = known {
        // An update that needs no work on the machine is done when it is answered, although the answer says
        // Updating.
        let etag = vm.etag + 1;
        let document = vm::replace(&id, name, Some(&vm.document), body, etag, "Updating");
        let mut after = document.clone();
        vm::finish(&mut after, etag);
        world.vms.insert(key, Vm { document: after, etag, netns });
        world.attach(&id, &nics);
        return Ok(Reply::new(200, document).header("etag", vm::quoted(etag)));
    }
    let document = vm::replace(&id, name, None, body, 1, "Creating");
    world.vms.insert(key.clone(), Vm { document: document.clone(), etag: 1, netns });
    world.attach(&id, &nics);
    let operation = world.start(Effect::FinishVm, &key, &location, call.now + world.write_time());
    let reply = Reply::new(201, document).header("etag", vm::quoted(1));
    Ok(operation.announce(reply, &call.base(), &world.config.subscription, &call.version))
}

fn delete(world: &mut World, call: &Call) -> Result<Reply, Reply> {
    let key = world.resource_id(call.group(), VMS, call.segment(7)).to_lowercase();
    let Some(vm) = world.vms.get_mut(&key) else { return Ok(Reply::empty(204)) };
    vm.document["properties"]["provisioningState"] = json!("Deleting");
    let location = vm.document["location"].as_str().unwrap_or_default().to_owned();
    let operation = world.start(Effect::RemoveVm, &key, &location, call.now + world.write_time());
    Ok(operation.announce(Reply::empty(202), &call.base(), &world.config.subscription, &call.version))
}

/// `If-Match` against the small integer that Compute has for an etag.
fn check_etag(call: &Call, known: Option<u64>) -> Result<(), Reply> {
    let Some(asked) = call.request.header("if-match").filter(|asked| *asked != "*") else { return Ok(()) };
    let current = known.unwrap_or_default();
    if asked.trim_matches('"') == current.to_string() {
        return Ok(());
    }
    let message = format!(
        "Etag provided in if-match header \"{}\" does not match etag \"{current}\" of resource.",
        asked.trim_matches('"')
    );
    Err(Reply::error(412, "PreconditionFailed", message))
}
