//! The instance metadata service: a VM's identity, its NICs' addresses, and tokens for its managed identity.

use crate::document::has_id;
use crate::nic;
use crate::reply::Reply;
use crate::request::Request;
use crate::vnet;
use crate::world::{Nic, Token, Vm, World};
use ipnet::Ipv4Net;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

/// Newest first, as the error for an unknown version lists them.
const VERSIONS: [&str; 8] = [
    "2023-07-01",
    "2021-12-13",
    "2021-02-01",
    "2020-09-01",
    "2019-08-01",
    "2018-10-01",
    "2018-02-01",
    "2017-04-02",
];

/// Answers one request below `/metadata`.
pub(crate) fn answer(world: &mut World, request: &Request, now: Instant) -> Reply {
    let path = request.path.to_lowercase();
    let path: Vec<&str> = path.trim_matches('/').split('/').skip(1).collect();
    let is_identity = path.first() == Some(&"identity");
    let bad = |message: &str| {
        if is_identity { identity_error(message) } else { Reply::new(400, json!({ "error": message })) }
    };
    if request.method != "GET" {
        return Reply::new(405, json!({ "error": "Method not allowed" }));
    }
    if !request.header("metadata").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return bad("Bad request. Required metadata header not specified");
    }
    if request.header("x-forwarded-for").is_some() {
        return bad("Bad request. The X-Forwarded-For header is not allowed");
    }
    if !world.limits.metadata(&request.from.to_string(), is_identity, now) && world.config.limits {
        return Reply::new(429, json!({ "error": "Too many requests" }));
    }
    if path.as_slice() == ["versions"] {
        return Reply::new(200, json!({ "apiVersions": VERSIONS }));
    }
    if !request.parameter("api-version").is_some_and(|version| VERSIONS.contains(&version.as_str())) {
        let message = "Bad request. api-version is invalid or was not specified in the request.";
        if is_identity {
            return identity_error(message);
        }
        return Reply::new(400, json!({ "error": message, "newest-versions": &VERSIONS[..3] }));
    }
    match path.as_slice() {
        ["identity", "oauth2", "token"] => token(world, request),
        ["instance", rest @ ..] => match caller(world, request.from) {
            Some((vm, nic)) => instance(world, vm, nic, rest, request),
            None => Reply::new(404, json!({ "error": "Not found: no VM has this primary address" })),
        },
        _ => Reply::new(404, json!({ "error": "Not found" })),
    }
}

fn identity_error(message: &str) -> Reply {
    Reply::new(400, json!({ "error": "invalid_request", "error_description": message }))
}

/// The VM that asks. A loopback address doesn't identify one, so there it is the first VM.
fn caller(world: &World, from: IpAddr) -> Option<(&Vm, &Nic)> {
    match from {
        IpAddr::V4(from) if !from.is_loopback() => world.vm_at(from),
        _ => {
            let attached = |nic: &Nic| Some(nic::vm_id(&nic.document)?.to_lowercase());
            world.nics.values().find_map(|nic| Some((world.vms.get(&attached(nic)?)?, nic)))
        }
    }
}

fn token(world: &mut World, request: &Request) -> Reply {
    let Some(resource) = request.parameter("resource").filter(|resource| !resource.is_empty()) else {
        return identity_error("Required query variable 'resource' is missing");
    };
    let client = world.config.application.client_id.clone();
    let asked = request.parameter("client_id");
    if let Some(other) = asked.filter(|id| !id.eq_ignore_ascii_case(&client)) {
        return Reply::new(
            400,
            json!({ "error": "invalid_request", "error_description": format!("Identity not found: {other}") }),
        );
    }
    let (token, start) = Token::issue(world, &resource);
    let life = world.config.token_seconds;
    Reply::new(
        200,
        json!({
            "access_token": token,
            "client_id": client,
            "expires_in": life.to_string(),
            "expires_on": (start + life).to_string(),
            "ext_expires_in": life.to_string(),
            "not_before": start.to_string(),
            "resource": resource,
            "token_type": "Bearer",
        }),
    )
}

fn instance(world: &World, vm: &Vm, nic: &Nic, path: &[&str], request: &Request) -> Reply {
    // The NIC that asks comes first. The service promises no order.
    let (own, id) = (nic.document["id"].as_str().unwrap_or_default(), nic::vm_id(&nic.document));
    let others = world
        .nics
        .values()
        .filter(|other| nic::vm_id(&other.document) == id && !has_id(&other.document, own));
    let interfaces: Vec<Value> =
        std::iter::once(nic).chain(others).map(|nic| interface(world, nic)).collect();
    let all = json!({ "compute": compute(world, vm), "network": { "interface": interfaces } });
    let mut place = &all;
    for step in path {
        let next = match place {
            Value::Array(items) => step.parse::<usize>().ok().and_then(|index| items.get(index)),
            _ => place
                .as_object()
                .and_then(|object| object.iter().find(|(key, _)| key.eq_ignore_ascii_case(step)))
                .map(|(_, value)| value),
        };
        let Some(next) = next else { return Reply::new(404, json!({ "error": "Not found" })) };
        place = next;
    }
    let text = request.parameter("format").as_deref() == Some("text");
    match place {
        Value::String(_) if text => {
            Reply::new(200, place.clone()).header("content-type", "text/plain; charset=utf-8")
        }
        Value::String(_) => Reply::new(400, json!({ "error": "Bad request. A leaf needs format=text" })),
        _ => Reply::new(200, place.clone()),
    }
}

fn compute(world: &World, vm: &Vm) -> Value {
    let properties = &vm.document["properties"];
    let text = |pointer: &str| properties.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let id = vm.document["id"].as_str().unwrap_or_default();
    // As documented, only an instance of a Uniform set gets its set's name.
    let uniform = vm.document["instanceId"].is_string();
    let set = if uniform { id.split('/').nth(8).unwrap_or_default() } else { "" };
    json!({
        "azEnvironment": "AzurePublicCloud",
        "evictionPolicy": "",
        "licenseType": "",
        "location": vm.document["location"],
        "name": vm.document["name"],
        "offer": text("/storageProfile/imageReference/offer"),
        "osProfile": {
            "adminUsername": text("/osProfile/adminUsername"),
            "computerName": text("/osProfile/computerName"),
            "disablePasswordAuthentication": "true",
        },
        "osType": text("/storageProfile/osDisk/osType"),
        "placementGroupId": "",
        "platformFaultDomain": "0",
        "platformUpdateDomain": "0",
        "priority": "",
        "provider": "Microsoft.Compute",
        "publisher": text("/storageProfile/imageReference/publisher"),
        "resourceGroupName": id.split('/').nth(4).unwrap_or_default(),
        "resourceId": id,
        "sku": text("/storageProfile/imageReference/sku"),
        "subscriptionId": world.config.subscription,
        "tags": "",
        "tagsList": [],
        "version": text("/storageProfile/imageReference/exactVersion"),
        "vmId": properties["vmId"],
        "vmScaleSetName": set,
        "vmSize": text("/hardwareProfile/vmSize"),
        "zone": "",
    })
}

fn interface(world: &World, nic: &Nic) -> Value {
    let stale = world.stale.as_ref().map(|stale| stale.get(nic.document["id"].as_str().unwrap_or_default()));
    let addresses: Vec<Value> = match stale {
        Some(stale) => stale.cloned().unwrap_or_default(),
        None => addresses(nic),
    }
    .iter()
    .map(|address| json!({ "privateIpAddress": address, "publicIpAddress": "" }))
    .collect();
    let mac = nic.document["properties"]["macAddress"].as_str().unwrap_or_default().replace('-', "");
    let subnets: Vec<Value> = prefixes(world, nic)
        .iter()
        .map(|prefix| json!({ "address": prefix.network(), "prefix": prefix.prefix_len().to_string() }))
        .collect();
    json!({
        "ipv4": { "ipAddress": addresses, "subnet": subnets },
        "ipv6": { "ipAddress": [] },
        "macAddress": mac,
    })
}

/// The service's listing of a NIC once it knows it: the first address of a block, and the primary address
/// before others.
fn addresses(nic: &Nic) -> Vec<Ipv4Addr> {
    let held = nic::ip_configurations(&nic.document).iter().filter_map(nic::address);
    held.map(|block| block.addr()).filter(|address| nic.live.contains(address)).collect()
}

/// The service's present listing of all NICs, by id.
pub(crate) fn listed(world: &World) -> BTreeMap<String, Vec<Ipv4Addr>> {
    let id = |nic: &Nic| nic.document["id"].as_str().unwrap_or_default().to_owned();
    world.nics.values().map(|nic| (id(nic), addresses(nic))).collect()
}

fn prefixes(world: &World, nic: &Nic) -> Vec<Ipv4Net> {
    let id = nic::primary(&nic.document).and_then(|primary| primary["properties"]["subnet"]["id"].as_str());
    id.and_then(|id| world.subnet_document(id)).map(vnet::prefixes).unwrap_or_default()
}
