//! Route tables, security groups, public addresses, load balancers and gateways: one way of serving them all.
//! The answers follow the recordings of the same names: 201 or 200 with an operation, 202 for a deletion,
//! `etag` in the header of a GET.

use super::{announce, check_etag, child_not_found, tagged};
use crate::arm::{Call, not_allowed, not_found};
use crate::document::list;
use crate::operation::Effect;
use crate::reply::Reply;
use crate::resource::{self, Kind};
use crate::world::{World, attachment, new_etag};
use serde_json::{Value, json};

/// Requests below a resource group. `path` are the lower-case segments after the collection's.
pub(super) fn answer(world: &mut World, call: &Call, kind: Kind, path: &[&str]) -> Result<Reply, Reply> {
    match (call.method(), path) {
        ("GET", []) => all(world, call, kind),
        ("GET", [_]) => tagged(200, known(world, call, kind)?),
        ("PUT", [_]) => put(world, call, kind),
        ("PATCH", [_]) => tag(world, call, kind),
        ("DELETE", [_]) => delete(world, call, kind),
        (method, [_, children, name @ ..]) => {
            let parent = known(world, call, kind)?;
            let Some(children) = kind.child(children) else { return Err(not_allowed(call)) };
            match (method, name) {
                ("GET", []) => Ok(Reply::new(200, json!({ "value": list(&parent, children) }))),
                ("GET", [name]) => {
                    let child = list(&parent, children).iter().find(|child| is_named(child, name)).cloned();
                    tagged(200, child.ok_or_else(|| child_not_found(call))?)
                }
                ("PUT", [_]) if Kind::writes_children_singly(children) => {
                    put_child(world, call, kind, children)
                }
                ("DELETE", [_]) if Kind::writes_children_singly(children) => {
                    delete_child(world, call, kind, children)
                }
                _ => Err(not_allowed(call)),
            }
        }
        _ => Err(not_allowed(call)),
    }
}

/// The resources of a group, or of the subscription when the path names no group.
pub(super) fn all(world: &World, call: &Call, kind: Kind) -> Result<Reply, Reply> {
    let scope = call.request.path.to_lowercase();
    let scope = scope.split("/providers/").next().unwrap_or_default();
    let inside = world.resources.iter().filter(|(key, (own, _))| *own == kind && key.starts_with(scope));
    let value: Vec<Value> =
        inside.map(|(_, (_, document))| attachment::shown(world, kind, document)).collect();
    Ok(Reply::new(200, json!({ "value": value })))
}

fn is_named(child: &Value, name: &str) -> bool {
    child["name"].as_str().is_some_and(|own| own.eq_ignore_ascii_case(name))
}

fn id_of(world: &World, call: &Call, kind: Kind) -> String {
    world.resource_id(call.group(), kind.type_name(), call.segment(7))
}

/// The document as a GET shows it.
fn known(world: &World, call: &Call, kind: Kind) -> Result<Value, Reply> {
    let found = world.resource(kind, &id_of(world, call, kind));
    let document = found.ok_or_else(|| not_found(kind.type_name(), call.segment(7), call.group()))?;
    Ok(attachment::shown(world, kind, document))
}

fn put(world: &mut World, call: &Call, kind: Kind) -> Result<Reply, Reply> {
    let name = call.segment(7);
    let id = id_of(world, call, kind);
    // In the recordings `properties` is absent if it would be empty.
    let mut body = call.object()?;
    if body["properties"].is_null() {
        body["properties"] = json!({});
    }
    if !body["location"].is_string() {
        let message = "The location property is required for this definition.";
        return Err(Reply::gateway(400, "LocationRequired", message));
    }
    let old = world.resource(kind, &id);
    check_etag(call, &id, old)?;
    world.check_idle(kind, &id, call.now)?;
    let status = if old.is_some() { 200 } else { 201 };
    let put = resource::Put { kind, id: &id, name, old, body, etag: &new_etag() };
    let document = put.document();
    store(world, kind, &id, document)?;
    finish(world, call, kind, &id, Reply::new(status, shown(world, kind, &id)))
}

/// Checks the document's references and fills in what Azure allocates, then stores it.
fn store(world: &mut World, kind: Kind, id: &str, mut document: Value) -> Result<(), Reply> {
    attachment::check(world, kind, &document)?;
    attachment::allocate(world, kind, &mut document)?;
    world.resources.insert(id.to_lowercase(), (kind, document));
    world.give_public_addresses();
    world.give_instance_addresses();
    Ok(())
}

fn shown(world: &World, kind: Kind, id: &str) -> Value {
    world.resource(kind, id).map(|document| attachment::shown(world, kind, document)).unwrap_or_default()
}

/// Starts the operation that every write ends with.
fn finish(world: &mut World, call: &Call, kind: Kind, id: &str, reply: Reply) -> Result<Reply, Reply> {
    let location = location_of(world, kind, id);
    let ends = call.now + world.write_time();
    let operation = world.start(Effect::FinishResource(kind), id, &location, ends);
    Ok(announce(world, call, &operation, reply))
}

fn location_of(world: &World, kind: Kind, id: &str) -> String {
    let document = world.resource(kind, id);
    document.and_then(|document| document["location"].as_str()).unwrap_or_default().to_owned()
}

/// PATCH sets the tags and nothing else.
fn tag(world: &mut World, call: &Call, kind: Kind) -> Result<Reply, Reply> {
    known(world, call, kind)?;
    let id = id_of(world, call, kind);
    let tags = call.object()?["tags"].clone();
    if let Some((_, document)) = world.resources.get_mut(&id.to_lowercase()) {
        document["tags"] = tags;
        document["etag"] = json!(new_etag());
    }
    Ok(Reply::new(200, shown(world, kind, &id)))
}

fn delete(world: &mut World, call: &Call, kind: Kind) -> Result<Reply, Reply> {
    let id = id_of(world, call, kind);
    let Some(document) = world.resource(kind, &id) else { return Ok(Reply::empty(204)) };
    check_etag(call, &id, Some(document))?;
    if let Some(user) = attachment::user(world, kind, &id) {
        return Err(attachment::in_use(kind, &id, &user));
    }
    let location = location_of(world, kind, &id);
    if let Some((_, document)) = world.resources.get_mut(&id.to_lowercase()) {
        resource::set_state(kind, document, "Deleting", &new_etag());
    }
    let operation = world.start(Effect::RemoveResource(kind), &id, &location, call.now + world.write_time());
    Ok(announce(world, call, &operation, Reply::empty(202)))
}

/// Writes one child: the parent's document with that child replaced or added.
fn put_child(world: &mut World, call: &Call, kind: Kind, children: &str) -> Result<Reply, Reply> {
    let id = id_of(world, call, kind);
    let name = call.segment(9);
    let Some(mut parent) = world.resource(kind, &id).cloned() else { return Err(child_not_found(call)) };
    let body = call.object()?;
    let old = list(&parent, children).iter().position(|child| is_named(child, name));
    check_etag(call, &format!("{id}/{children}/{name}"), old.map(|index| &list(&parent, children)[index]))?;
    world.check_idle(kind, &id, call.now)?;
    let mut child = resource::child(kind, &id, children, name, body);
    let state = if old.is_some() { "Succeeded" } else { "Updating" };
    if let Some(items) = parent["properties"][children].as_array_mut() {
        match old {
            Some(index) => items[index] = child.take(),
            None => items.push(child.take()),
        }
    }
    resource::set_state(kind, &mut parent, state, &new_etag());
    store(world, kind, &id, parent)?;
    let shown = shown(world, kind, &id);
    let written = list(&shown, children).iter().find(|child| is_named(child, name)).cloned();
    let reply = Reply::new(if old.is_some() { 200 } else { 201 }, written.unwrap_or_default());
    finish(world, call, kind, &id, reply)
}

fn delete_child(world: &mut World, call: &Call, kind: Kind, children: &str) -> Result<Reply, Reply> {
    let id = id_of(world, call, kind);
    let name = call.segment(9);
    let Some(mut parent) = world.resource(kind, &id).cloned() else { return Err(child_not_found(call)) };
    let known = list(&parent, children).iter().find(|child| is_named(child, name));
    let Some(known) = known else { return Ok(Reply::empty(204)) };
    let child_id = known["id"].as_str().unwrap_or_default().to_owned();
    check_etag(call, &child_id, Some(known))?;
    world.check_idle(kind, &id, call.now)?;
    if let Some(user) = attachment::user_of_child(world, &parent, &child_id) {
        return Err(attachment::child_in_use(&child_id, &user));
    }
    if let Some(items) = parent["properties"][children].as_array_mut() {
        items.retain(|child| !is_named(child, name));
    }
    resource::set_state(kind, &mut parent, "Succeeded", &new_etag());
    let location = location_of(world, kind, &id);
    world.resources.insert(id.to_lowercase(), (kind, parent));
    // The path of the parent: two writes to one table get in each other's way
    // (RetryableErrorDueToAnotherOperation).
    let operation =
        world.start(Effect::FinishChildRemoval(kind), &id, &location, call.now + world.write_time());
    Ok(announce(world, call, &operation, Reply::empty(202)))
}
