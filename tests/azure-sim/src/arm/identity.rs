//! Microsoft.ManagedIdentity: user-assigned identities, as documents. The simulated machines' own identity
//! is the metadata service's.

use super::{Call, not_allowed, not_found, unknown_type};
use crate::reply::Reply;
use crate::world::World;
use serde_json::json;

const IDENTITIES: &str = "Microsoft.ManagedIdentity/userAssignedIdentities";

/// Requests below a resource group; `resource` are the lower-case segments after the provider.
pub(super) fn answer(world: &mut World, call: &Call, resource: &[&str]) -> Result<Reply, Reply> {
    let ["userassignedidentities", _] = resource else { return Err(unknown_type(call)) };
    let name = call.segment(7);
    let id = world.resource_id(call.group(), IDENTITIES, name);
    let known = world.identities.get(&id.to_lowercase()).cloned();
    match (call.method(), known) {
        ("GET", Some(document)) => Ok(Reply::new(200, document)),
        ("GET", None) => Err(not_found(IDENTITIES, name, call.group())),
        ("PUT", known) => {
            let body = call.object()?;
            let status = if known.is_some() { 200 } else { 201 };
            let own = |field: &str| {
                let old = known.as_ref().map(|known| known["properties"][field].clone());
                old.unwrap_or_else(|| json!(uuid::Uuid::new_v4().to_string()))
            };
            let document = json!({
                "id": id, "name": name, "type": IDENTITIES,
                "location": body["location"], "tags": body["tags"],
                "properties": {
                    "tenantId": world.config.tenant,
                    "principalId": own("principalId"),
                    "clientId": own("clientId"),
                },
            });
            world.identities.insert(id.to_lowercase(), document.clone());
            Ok(Reply::new(status, document))
        }
        ("DELETE", _) => {
            world.identities.remove(&id.to_lowercase());
            Ok(Reply::empty(200))
        }
        _ => Err(not_allowed(call)),
    }
}
