//! Microsoft.Resources/deployments: a template is applied resource by resource, each through its provider's
//! front door.
//!
//! In Azure this takes as long as the slowest resource. Here each resource is finished before the next is
//! begun, in no time.

use super::{Call, action, dispatch, not_found, unknown_type};
use crate::permission;
use crate::reply::Reply;
use crate::request::Request;
use crate::template::{Resource, Template};
use crate::throttle::Kind;
use crate::world::World;
use serde_json::{Value, json};

const DEPLOYMENTS: &str = "Microsoft.Resources/deployments";

/// Requests below `…/providers/Microsoft.Resources`.
pub(super) fn answer(world: &mut World, call: &Call, resource: &[&str]) -> Result<Reply, Reply> {
    let id = world.resource_id(call.group(), DEPLOYMENTS, call.segment(7));
    let known = world.deployments.get(&id.to_lowercase()).cloned();
    let missing = || not_found(DEPLOYMENTS, call.segment(7), call.group());
    match (call.method(), resource) {
        ("PUT", ["deployments", _]) => put(world, call, &id),
        ("POST", ["deployments", _, "validate"]) => validate(world, call, &id),
        ("GET", ["deployments", _]) => known.map(|document| Reply::new(200, document)).ok_or_else(missing),
        ("GET", ["deployments", _, "operationstatuses", _]) => {
            let properties = known.ok_or_else(missing)?["properties"].take();
            let mut status = json!({ "status": properties["provisioningState"] });
            if !properties["error"].is_null() {
                status["error"] = properties["error"].clone();
            }
            Ok(Reply::new(200, status))
        }
        _ => Err(unknown_type(call)),
    }
}

/// A deployment that could be begun: its resources in their order, and its outputs.
struct Planned {
    resources: Vec<Resource>,
    outputs: Value,
}

/// # Errors
/// What Azure answers before it begins anything.
fn planned(world: &World, call: &Call) -> Result<(Value, Planned), Reply> {
    let invalid = |why: String| {
        let message = format!("Deployment template validation failed: '{why}'.");
        Reply::gateway(400, "InvalidTemplate", message)
    };
    let properties = call.document()?["properties"].take();
    if properties["mode"] != "Incremental" {
        return Err(invalid("only the mode Incremental is simulated".into()));
    }
    let group = &world.groups[&world.group_id(call.group()).to_lowercase()];
    let template =
        Template { document: &properties["template"], parameters: &properties["parameters"], group };
    if let Some(unknown) = template.unknown_parameters().first() {
        return Err(invalid(format!("the template parameter '{unknown}' is not declared")));
    }
    let resources = template.resources().map_err(invalid)?;
    let outputs = template.outputs().map_err(invalid)?;
    Ok((properties, Planned { resources, outputs }))
}

/// What a write would begin, without beginning it.
fn validate(world: &World, call: &Call, id: &str) -> Result<Reply, Reply> {
    let (properties, Planned { resources, .. }) = planned(world, call)?;
    let mut document = document(call, id, &properties);
    document["properties"]["validatedResources"] = ids(&resources);
    Ok(Reply::new(200, document))
}

/// A deployment with these properties that succeeds.
fn document(call: &Call, id: &str, properties: &Value) -> Value {
    json!({
        "id": id,
        "name": call.segment(7),
        "type": DEPLOYMENTS,
        "properties": {
            "mode": "Incremental",
            "parameters": properties["parameters"],
            "provisioningState": "Succeeded",
            "timestamp": jiff::Timestamp::now().to_string(),
            "correlationId": uuid::Uuid::new_v4().to_string(),
        },
    })
}

fn ids(resources: &[Resource]) -> Value {
    resources.iter().map(|resource| json!({ "id": resource.id })).collect()
}

fn put(world: &mut World, call: &Call, id: &str) -> Result<Reply, Reply> {
    let (properties, Planned { resources, outputs }) = planned(world, call)?;
    let applied = resources.iter().try_for_each(|resource| apply(world, call, resource));
    let mut document = document(call, id, &properties);
    document["properties"]["outputs"] = outputs;
    document["properties"]["outputResources"] = ids(&resources);
    if let Err(refusal) = applied {
        document["properties"]["provisioningState"] = json!("Failed");
        document["properties"]["error"] = json!({
            "code": "DeploymentFailed",
            "message": "At least one resource deployment operation failed. Please list deployment operations for details.",
            "details": [refusal.body.unwrap_or_default()["error"].take()],
        });
    }
    world.deployments.insert(id.to_lowercase(), document.clone());
    // Azure's immediate answer, whatever the outcome.
    document["properties"]["provisioningState"] = json!("Accepted");
    for later in ["outputs", "outputResources", "error"] {
        crate::document::remove(&mut document["properties"], later);
    }
    let operation = format!(
        "{}{id}/operationStatuses/{}?api-version={}",
        call.base(),
        uuid::Uuid::new_v4().simple(),
        call.version
    );
    Ok(Reply::new(201, document).header("azure-asyncoperation", operation))
}

/// Writes one resource as the deployment's client, and waits for it.
fn apply(world: &mut World, call: &Call, Resource { id, api_version, body }: &Resource) -> Result<(), Reply> {
    let request = Request {
        method: "PUT".into(),
        path: id.clone(),
        query: format!("api-version={api_version}"),
        body: Ok(Some(body.clone())),
        ..call.request.clone()
    };
    let write = Call {
        request: &request,
        kind: Kind::Write,
        segments: id.trim_matches('/').split('/').map(str::to_owned).collect(),
        version: api_version.clone(),
        now: call.now,
    };
    permission::check(world, &action(&write), id)?;
    dispatch(world, &write)?;
    world.finish(id, call.now);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Config;
    use std::net::{IpAddr, Ipv4Addr};
    use std::time::Instant;

    const TEMPLATE: &str = include_str!("../../../../examples/new-vnet/template.json");

    /// A request about the deployment `new`, or what is below it.
    fn ask(world: &mut World, method: &str, below: &str, body: Option<Value>) -> Reply {
        let request = Request {
            method: method.into(),
            path: format!("{}/providers/{DEPLOYMENTS}/new{below}", world.group_id("vnetpool")),
            query: "api-version=2021-04-01".into(),
            headers: [("authorization".to_owned(), "Bearer any".to_owned())].into(),
            body: Ok(body),
            from: IpAddr::V4(Ipv4Addr::LOCALHOST),
        };
        crate::arm::answer(world, &request, Instant::now())
    }

    fn body(parameters: &Value) -> Value {
        let template: Value = serde_json::from_str(TEMPLATE).unwrap();
        json!({ "properties": { "mode": "Incremental", "template": template, "parameters": parameters } })
    }

    fn deploy(world: &mut World, parameters: Value) -> Value {
        let accepted = ask(world, "PUT", "", Some(body(&parameters)));
        assert_eq!(accepted.status, 201, "{:?}", accepted.body);
        ask(world, "GET", "", None).body.unwrap()["properties"].take()
    }

    #[test]
    fn the_template_makes_a_network_whose_subnet_refers_to_its_table_and_group() {
        let mut world = World::new(Config { vnets: vec![], ..Config::default() });
        let done = deploy(&mut world, json!({ "nodesPrefix": { "value": "10.224.0.0/20" } }));
        assert_eq!(done["provisioningState"], "Succeeded", "{done}");
        let subnet = done["outputs"]["nodesSubnetId"]["value"].as_str().unwrap();
        let subnet = world.subnet_document(subnet).unwrap();
        assert_eq!(subnet["properties"]["addressPrefix"], "10.224.0.0/20");
        assert_eq!(subnet["properties"]["routeTable"]["id"], done["outputs"]["routeTableId"]["value"]);
        let group = subnet["properties"]["networkSecurityGroup"]["id"].as_str().unwrap();
        assert_eq!(
            group,
            format!(
                "{}/providers/Microsoft.Network/networkSecurityGroups/vnetpool-nodes",
                world.group_id("vnetpool")
            )
        );
        assert_eq!(subnet["properties"]["provisioningState"], "Succeeded");
        // Applied again, it changes nothing.
        assert_eq!(
            deploy(&mut world, json!({ "nodesPrefix": { "value": "10.224.0.0/20" } }))["provisioningState"],
            "Succeeded"
        );
    }

    #[test]
    fn a_deployment_that_is_only_validated_begins_nothing() {
        let mut world = World::new(Config { vnets: vec![], ..Config::default() });
        let good = ask(&mut world, "POST", "/validate", Some(body(&json!({}))));
        assert_eq!(good.status, 200, "{:?}", good.body);
        let named = json!({ "nodesPrefx": { "value": "10.224.0.0/20" } });
        let wrong = ask(&mut world, "POST", "/validate", Some(body(&named)));
        assert!(wrong.status == 400 && wrong.body.unwrap().to_string().contains("nodesPrefx"));
        assert_eq!((world.vnets.len(), world.resources.len()), (0, 0));
        assert_eq!(ask(&mut world, "GET", "", None).status, 404);
    }

    #[test]
    fn a_resource_that_is_refused_fails_the_deployment_with_its_reason() {
        let mut world = World::new(Config { vnets: vec![], ..Config::default() });
        world.config.denied = vec!["Microsoft.Network/routeTables/write".into()];
        let done = deploy(&mut world, json!({}));
        assert_eq!(done["provisioningState"], "Failed");
        assert_eq!(done["error"]["details"][0]["code"], "AuthorizationFailed", "{done}");
    }
}
