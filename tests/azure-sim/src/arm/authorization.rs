//! Microsoft.Authorization: definitions and assignments of roles, as documents. What the one simulated
//! identity may do is set by the admin instead: it is the one, too, that writes these.

use super::{Call, not_allowed, unknown_type};
use crate::permission::PRINCIPAL;
use crate::reply::Reply;
use crate::world::World;
use serde_json::{Value, json};

const DEFINITIONS: &str = "roledefinitions";
const ASSIGNMENTS: &str = "roleassignments";

/// Requests below `{scope}/providers/Microsoft.Authorization`; `resource` are the lower-case segments after
/// the provider.
pub(super) fn answer(world: &mut World, call: &Call, resource: &[&str]) -> Result<Reply, Reply> {
    let key = call.request.path.to_lowercase();
    let scope = super::scope(&call.request.path).to_owned();
    match (call.method(), resource) {
        ("GET", [DEFINITIONS]) => Ok(Reply::new(200, json!({ "value": named(world, call) }))),
        ("PUT", [DEFINITIONS, _]) => define(world, call, &scope),
        ("PUT", [ASSIGNMENTS, _]) => assign(world, call, &scope),
        ("GET", [DEFINITIONS | ASSIGNMENTS, _]) => {
            let known = world.authorization.get(&key).cloned();
            known.map(|document| Reply::new(200, document)).ok_or_else(|| {
                Reply::gateway(404, "NotFound", format!("{} was not found.", call.request.path))
            })
        }
        ("DELETE", [DEFINITIONS | ASSIGNMENTS, _]) => Ok(match world.authorization.remove(&key) {
            Some(document) => Reply::new(200, document),
            None => Reply::empty(204),
        }),
        (_, [DEFINITIONS | ASSIGNMENTS, ..]) => Err(not_allowed(call)),
        _ => Err(unknown_type(call)),
    }
}

fn definitions(world: &World) -> impl Iterator<Item = &Value> {
    let is_one = |document: &&Value| document["type"] == "Microsoft.Authorization/roleDefinitions";
    world.authorization.values().filter(is_one)
}

/// The definitions of a name, or all of them. Only this filter is simulated.
fn named(world: &World, call: &Call) -> Vec<Value> {
    let filter = call.request.parameter("$filter").unwrap_or_default();
    let name = filter.strip_prefix("roleName eq '").and_then(|rest| rest.strip_suffix('\''));
    let is_asked = |document: &&Value| name.is_none_or(|name| document["properties"]["roleName"] == name);
    definitions(world).filter(is_asked).cloned().collect()
}

fn define(world: &mut World, call: &Call, scope: &str) -> Result<Reply, Reply> {
    let mut properties = call.document()?["properties"].take();
    let invalid = |code, message: &str| Err(Reply::gateway(400, code, message));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_lowercase();
    let scopes = properties["assignableScopes"].as_array().cloned().unwrap_or_default();
    if !scopes.iter().any(|one| text(one) == scope.to_lowercase()) {
        return invalid(
            "RoleDefinitionScopesInvalid",
            "The assignable scopes don't contain the scope of the request.",
        );
    }
    let actions = properties["permissions"][0]["actions"].as_array();
    let is_action = |one: &Value| one == "*" || text(one).matches('/').count() > 0;
    if actions.is_none_or(|actions| actions.is_empty() || !actions.iter().all(is_action)) {
        return invalid("InvalidActionOrNotAction", "The role's actions aren't actions.");
    }
    let name = properties["roleName"].clone();
    // A tenant has each name once.
    let (id, key) = (call.request.path.clone(), call.request.path.to_lowercase());
    let is_other = |one: &&Value| one["properties"]["roleName"] == name && text(&one["id"]) != key;
    if definitions(world).find(is_other).is_some() {
        let message = "The custom role cannot be created. A custom role with the same name already exists in this \
                       directory. Use a different name.";
        return Err(Reply::gateway(409, "RoleDefinitionWithSameNameExists", message));
    }
    stamp(&mut properties);
    properties["type"] = json!("CustomRole");
    let document = json!({
        "id": id, "name": call.segments.last(), "type": "Microsoft.Authorization/roleDefinitions",
        "properties": properties,
    });
    world.authorization.insert(key, document.clone());
    Ok(Reply::new(201, document))
}

fn assign(world: &mut World, call: &Call, scope: &str) -> Result<Reply, Reply> {
    let mut properties = call.document()?["properties"].take();
    let role = properties["roleDefinitionId"].as_str().unwrap_or_default().to_lowercase();
    let role = role.rsplit('/').next().unwrap_or_default();
    let role = definitions(world).find(|one| one["name"] == role);
    let Some(role) = role else {
        let message = "The specified role definition does not exist.";
        return Err(Reply::gateway(404, "RoleDefinitionDoesNotExist", message));
    };
    let covers = |one: &Value| {
        let outer = one.as_str().unwrap_or_default().to_lowercase();
        scope.to_lowercase().starts_with(&outer)
    };
    if !role["properties"]["assignableScopes"].as_array().is_some_and(|all| all.iter().any(covers)) {
        let message =
            format!("The role can't be assigned at '{scope}', which is none of its assignable scopes.");
        return Err(Reply::gateway(400, "RoleDefinitionNotAssignable", message));
    }
    stamp(&mut properties);
    properties["scope"] = json!(scope);
    let document = json!({
        "id": call.request.path, "name": call.segments.last(), "type": "Microsoft.Authorization/roleAssignments",
        "properties": properties,
    });
    world.authorization.insert(call.request.path.to_lowercase(), document.clone());
    Ok(Reply::new(201, document))
}

fn stamp(properties: &mut Value) {
    let now = jiff::Timestamp::now().to_string();
    for (field, value) in
        [("createdOn", &*now), ("updatedOn", &now), ("createdBy", PRINCIPAL), ("updatedBy", PRINCIPAL)]
    {
        properties[field] = json!(value);
    }
}
