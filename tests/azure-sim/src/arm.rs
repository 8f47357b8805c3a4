//! ARM's front door: token, limits, api-version, permissions, then the provider that owns the resource.

mod authorization;
mod compute;
mod deployment;
mod identity;
mod network;

use crate::permission::{self, PRINCIPAL};
use crate::reply::Reply;
use crate::request::{Request, decode};
use crate::throttle::Kind;
use crate::world::{Token, World, group_document};
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

/// A request that has passed the front door.
struct Call<'a> {
    request: &'a Request,
    kind: Kind,
    /// The path's segments, decoded, as sent.
    segments: Vec<String>,
    version: String,
    now: Instant,
}

impl Call<'_> {
    fn method(&self) -> &str {
        &self.request.method
    }

    /// The segment at `index`, as sent.
    fn segment(&self, index: usize) -> &str {
        self.segments.get(index).map_or("", String::as_str)
    }

    fn group(&self) -> &str {
        self.segment(3)
    }

    fn base(&self) -> String {
        base(self.request)
    }

    /// The JSON object in the body, with an object `properties`.
    fn document(&self) -> Result<Value, Reply> {
        let body = self.object()?;
        if !body["properties"].is_object() {
            return Err(malformed("'properties' has to be an object"));
        }
        Ok(body)
    }

    /// The JSON object in the body.
    fn object(&self) -> Result<Value, Reply> {
        let body = self.request.body.as_ref().map_err(|why| malformed(why))?.clone().unwrap_or_default();
        if !body.is_object() || !(body["properties"].is_object() || body["properties"].is_null()) {
            return Err(malformed("an object is required"));
        }
        Ok(body)
    }
}

fn malformed(why: &str) -> Reply {
    let message = format!("The request content was invalid and could not be deserialized: '{why}'.");
    Reply::gateway(400, "InvalidRequestContent", message)
}

/// Answers one request.
pub(crate) fn answer(world: &mut World, request: &Request, now: Instant) -> Reply {
    let kind = Kind::of(&request.method);
    let mut reply = front_door(world, request, kind, now).unwrap_or_else(|refusal| refusal);
    if !reply.is_of_gateway() {
        for (name, value) in world.limits.headers(kind) {
            reply = reply.header(name, value);
        }
        let path = request.path.to_lowercase();
        // As recorded: also with reads of a scale set's instances.
        let is_instance = path.contains("/virtualmachinescalesets/") && path.contains("/virtualmachines");
        if kind != Kind::Read || path.contains("/operations/") || is_instance {
            let identifier = format!(
                "tenantId={},objectId={PRINCIPAL}/{}/{}",
                world.config.tenant,
                world.config.location,
                uuid::Uuid::new_v4()
            );
            reply = reply.header("x-ms-operation-identifier", identifier);
        }
        if is_of_compute(request) {
            reply = reply.header("x-ms-need-to-refresh-epl-cache", "False");
        }
    }
    let id = uuid::Uuid::new_v4().to_string();
    for (name, value) in [
        ("cache-control", "no-cache"),
        ("expires", "-1"),
        ("pragma", "no-cache"),
        ("strict-transport-security", "max-age=31536000; includeSubDomains"),
        ("x-cache", "CONFIG_NOCACHE"),
        ("x-content-type-options", "nosniff"),
        ("x-ms-request-id", &id),
        ("x-ms-correlation-request-id", request.header("x-ms-correlation-request-id").unwrap_or(&id)),
    ] {
        reply = reply.header(name, value);
    }
    reply
}

fn is_of_compute(request: &Request) -> bool {
    request.path.to_lowercase().contains("/microsoft.compute/")
}

fn front_door(world: &mut World, request: &Request, kind: Kind, now: Instant) -> Result<Reply, Reply> {
    authenticate(world, request)?;
    let segments: Vec<String> = request.path.trim_matches('/').split('/').map(decode).collect();
    let subscription = segments.get(1).cloned().unwrap_or_default();
    if world.config.limits {
        world.limits.arm(kind, &subscription, now)?;
    } else {
        // Counted all the same, for the headers.
        drop(world.limits.arm(kind, &subscription, now));
    }
    let Some(version) = request.parameter("api-version") else {
        let message = "The api-version query parameter (?api-version=) is required for all requests.";
        return Err(Reply::gateway(400, "MissingApiVersionParameter", message));
    };
    if !is_version(&version) {
        let message =
            format!("The api-version '{version}' is invalid. It has the form yyyy-MM-dd[-preview].");
        return Err(Reply::gateway(400, "InvalidApiVersionParameter", message));
    }
    let is_of_subscriptions =
        segments.first().is_some_and(|first| first.eq_ignore_ascii_case("subscriptions"));
    if is_of_subscriptions && segments.len() == 1 && kind == Kind::Read {
        return Ok(Reply::new(200, json!({ "value": [subscription_document(world)] })));
    }
    if !is_of_subscriptions || !subscription.eq_ignore_ascii_case(&world.config.subscription) {
        let message = format!("The subscription '{subscription}' could not be found.");
        return Err(Reply::gateway(404, "SubscriptionNotFound", message));
    }
    let call = Call { request, kind, segments, version, now };
    permission::check(world, &action(&call), &authorized(world, &call))?;
    if world.config.limits && kind == Kind::Read && is_of_compute(request) {
        world.limits.compute_of_all(now)?;
    }
    dispatch(world, &call)
}

/// A token is required. Only the simulator's own tokens can be checked: they expire after a day, as Azure's
/// do.
fn authenticate(world: &World, request: &Request) -> Result<(), Reply> {
    let challenge = |code: &str, message: &str, description: &str| {
        let value = format!(
            "Bearer authorization_uri=\"https://login.microsoftonline.com/{}\", error=\"invalid_token\", \
             error_description=\"{description}\"",
            world.config.tenant
        );
        Reply::gateway(401, code, message).header("www-authenticate", value)
    };
    let authorization = request.header("authorization").unwrap_or_default();
    let token = authorization.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    match token.map(|(_, token)| token.trim()).filter(|token| !token.is_empty()) {
        None => {
            let message = "Authentication failed. The 'Authorization' header is missing.";
            Err(challenge(
                "AuthenticationFailed",
                message,
                "The authentication failed because of missing 'Authorization' header.",
            ))
        }
        Some(token) => match world.tokens.get(token) {
            Some(Token { ends, .. }) if *ends <= jiff::Timestamp::now().as_second() => {
                let message = "The access token expiry UTC time is earlier than current UTC time.";
                Err(challenge("ExpiredAuthenticationToken", message, "The access token has expired."))
            }
            Some(Token { audience, .. }) if !is_for(audience, request) => {
                let message = format!(
                    "The access token has been obtained for wrong audience or resource '{audience}'. It should exactly \
                     match with one of the allowed audiences '{}'.",
                    base(request)
                );
                Err(challenge("InvalidAuthenticationTokenAudience", &message, "The audience is wrong."))
            }
            _ => Ok(()),
        },
    }
}

/// Whether a token is for the requested ARM. If the request was to an address instead of a name, this is
/// every cloud's ARM.
fn is_for(audience: &str, request: &Request) -> bool {
    let asked = base(request);
    asked.starts_with("http:") || audience == asked
}

/// The URL by which the client reached ARM: a cloud's own name by HTTPS, an address without.
fn base(request: &Request) -> String {
    let host = request.header("host").unwrap_or("management.azure.com");
    let is_address = host.parse::<SocketAddr>().is_ok() || host.parse::<IpAddr>().is_ok();
    format!("{}://{host}", if is_address { "http" } else { "https" })
}

fn is_version(version: &str) -> bool {
    let date = version.get(..10).unwrap_or_default();
    let rest = version.get(10..).unwrap_or_default();
    date.parse::<jiff::civil::Date>().is_ok() && (rest.is_empty() || rest == "-preview")
}

/// The action a request needs, such as `Microsoft.Network/networkInterfaces/write`.
fn action(call: &Call) -> String {
    let verb = match call.method() {
        "GET" | "HEAD" => "read",
        "DELETE" => "delete",
        "POST" => "action",
        _ => "write",
    };
    let segments: Vec<&str> = call.segments.iter().map(String::as_str).collect();
    // An extension's resources are below those of other providers, so the last provider counts.
    let provider = segments.iter().rposition(|segment| segment.eq_ignore_ascii_case("providers"));
    match provider.map(|index| &segments[index + 1..]) {
        Some([namespace, types @ ..]) => {
            let types: Vec<&str> = types.iter().step_by(2).copied().collect();
            format!("{namespace}/{}/{verb}", types.join("/"))
        }
        _ => format!("Microsoft.Resources/subscriptions/resourceGroups/{verb}"),
    }
}

/// The resource of a request, for authorization. An extension's resources count as the resource they belong
/// to.
fn scope(path: &str) -> &str {
    path.to_lowercase().find("/providers/microsoft.authorization/").map_or(path, |end| &path[..end])
}

/// The scope on which an action must be granted. Following an operation needs a grant on the group of what it
/// changes; a grant on the resource alone can start an operation, but not follow it (Microsoft: "Track
/// asynchronous Azure operations").
fn authorized(world: &World, call: &Call) -> String {
    let path = &call.request.path;
    let operation = path.to_lowercase();
    let operation = operation.split_once("/operations/").and_then(|(_, id)| world.operations.get(id));
    let group = operation.and_then(|operation| operation.resource.split("/providers/").next());
    group.unwrap_or(scope(path)).to_owned()
}

/// The client's permissions at a scope, in pages of one entry, so that a client that stops at the first page
/// is found out. Azure itself decides how large pages are.
fn permissions(world: &World, call: &Call) -> Result<Reply, Reply> {
    if call.method() != "GET" {
        return Err(not_allowed(call));
    }
    let all = permission::list(world, scope(&call.request.path));
    let skip: usize = call.request.parameter("$skiptoken").and_then(|token| token.parse().ok()).unwrap_or(0);
    let mut page = json!({ "value": all.iter().skip(skip).take(1).collect::<Vec<_>>() });
    if skip + 1 < all.len() {
        let Call { request, version, .. } = call;
        let next = format!("{}{}?api-version={version}&$skiptoken={}", call.base(), request.path, skip + 1);
        page["nextLink"] = json!(next);
    }
    Ok(Reply::new(200, page))
}

fn dispatch(world: &mut World, call: &Call) -> Result<Reply, Reply> {
    let lower: Vec<String> = call.segments.iter().map(|segment| segment.to_lowercase()).collect();
    let lower: Vec<&str> = lower.iter().map(String::as_str).collect();
    // An extension, whose resources are below those of all other providers.
    let extension = lower.windows(2).position(|two| two == ["providers", "microsoft.authorization"]);
    if let Some(resource) = extension.and_then(|at| lower.get(at + 2..)) {
        return match resource {
            ["permissions"] => permissions(world, call),
            _ => authorization::answer(world, call, resource),
        };
    }
    match lower.as_slice() {
        ["subscriptions", _] if call.kind == Kind::Read => Ok(Reply::new(200, subscription_document(world))),
        ["subscriptions", _, "resourcegroups", _] => group(world, call),
        ["subscriptions", _, "operationresults", _] => Ok(Reply::empty(200)),
        [
            "subscriptions",
            _,
            "providers",
            provider,
            "locations",
            _,
            "operations" | "operationresults",
            id,
        ] => poll(world, call, provider, id),
        ["subscriptions", _, "providers", provider, list] => match *provider {
            "microsoft.network" => network::list(world, call, list),
            "microsoft.compute" => compute::list(world, call, list),
            _ => Err(unknown_type(call)),
        },
        ["subscriptions", _, "resourcegroups", group, "providers", provider, resource @ ..] => {
            if !world.groups.contains_key(&world.group_id(group).to_lowercase()) {
                return Err(group_not_found(call.group()));
            }
            match *provider {
                "microsoft.network" => network::answer(world, call, resource),
                "microsoft.compute" => compute::answer(world, call, resource),
                "microsoft.managedidentity" => identity::answer(world, call, resource),
                "microsoft.resources" => deployment::answer(world, call, resource),
                _ => Err(unknown_type(call)),
            }
        }
        _ => Err(unknown_type(call)),
    }
}

/// As the subscription's reader sees it.
fn subscription_document(world: &World) -> Value {
    let id = &world.config.subscription;
    json!({
        "id": format!("/subscriptions/{id}"),
        "subscriptionId": id,
        "tenantId": world.config.tenant,
        "displayName": "Simulated",
        "state": "Enabled",
        "subscriptionPolicies": {
            "locationPlacementId": "Public_2014-09-01",
            "quotaId": "PayAsYouGo_2014-09-01",
            "spendingLimit": "Off",
        },
        "authorizationSource": "RoleBased",
        "managedByTenants": [],
    })
}

fn group(world: &mut World, call: &Call) -> Result<Reply, Reply> {
    let name = call.group();
    let id = world.group_id(name);
    let key = id.to_lowercase();
    let known = world.groups.get(&key).cloned();
    match (call.method(), known) {
        ("PUT", known) => {
            let body = call.request.body.as_ref().ok().cloned().flatten().unwrap_or_default();
            let location = body["location"].as_str().unwrap_or(&world.config.location).to_owned();
            let mut document = group_document(&id, name, &location);
            if let Some(tags) = body.get("tags") {
                document["tags"] = tags.clone();
            }
            world.groups.insert(key, document.clone());
            Ok(Reply::new(if known.is_some() { 200 } else { 201 }, document))
        }
        ("GET", Some(document)) => Ok(Reply::new(200, document)),
        ("DELETE", Some(_)) => {
            let inside = format!("{key}/");
            world.groups.remove(&key);
            world.vms.retain(|id, _| !id.starts_with(&inside));
            world.scale_sets.retain(|id, _| !id.starts_with(&inside));
            world.nics.retain(|id, _| !id.starts_with(&inside));
            world.vnets.retain(|id, _| !id.starts_with(&inside));
            world.resources.retain(|id, _| !id.starts_with(&inside));
            let location = format!(
                "{}/subscriptions/{}/operationresults/{}?api-version={}",
                call.base(),
                world.config.subscription,
                uuid::Uuid::new_v4().simple(),
                call.version
            );
            Ok(Reply::empty(202).header("location", location))
        }
        (_, None) => Err(group_not_found(name)),
        _ => Err(not_allowed(call)),
    }
}

fn poll(world: &mut World, call: &Call, provider: &str, id: &str) -> Result<Reply, Reply> {
    if provider == "microsoft.compute" && world.config.limits {
        world.limits.compute(&call.request.path, (45.0, 15.0), call.now)?;
    }
    let known = world.operations.get(id);
    let Some(operation) = known.filter(|o| call.request.query.ends_with(&o.signature())) else {
        let message = format!("The operation {id} was not found, or the signature of its address is wrong.");
        return Err(Reply::nrp(404, "NotFound", message, json!([])));
    };
    let reply = Reply::new(200, operation.poll());
    if operation.is_in_progress() {
        return Ok(reply.header("retry-after", crate::operation::retry_after(world.write_time())));
    }
    Ok(reply)
}

fn group_not_found(name: &str) -> Reply {
    Reply::gateway(404, "ResourceGroupNotFound", format!("Resource group '{name}' could not be found."))
}

/// ARM itself knows top-level resources, and answers before it asks a provider.
fn not_found(kind: &str, name: &str, group: &str) -> Reply {
    let message = format!(
        "The Resource '{kind}/{name}' under resource group '{group}' was not found. For more details please go to \
         https://aka.ms/ARMResourceNotFoundFix"
    );
    Reply::gateway(404, "ResourceNotFound", message)
}

fn unknown_type(call: &Call) -> Reply {
    let message = format!(
        "The resource type could not be found for api version '{}': the simulator does not serve {}.",
        call.version, call.request.path
    );
    Reply::gateway(404, "InvalidResourceType", message)
}

fn not_allowed(call: &Call) -> Reply {
    let message = format!("The HTTP method '{}' is not supported at the path.", call.method());
    Reply::gateway(405, "HttpMethodNotSupported", message)
}
