//! All writes to the object but its conditions: `spec`, and the object's end.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;
use tokio::time::sleep;
use tracing::{info, warn};
use vnetpool_apiserver::reading::Reading;
use vnetpool_apiserver::{doubled, jittered};
use vnetpool_crds::allocation::{Interface, NodeIPAllocation, NodeIPAllocationSpec};
use vnetpool_crds::condition::{self, ADOPTED};
use vnetpool_crds::names;
use vnetpool_crds::pool::{MetadataAccess, Mode, Sizing, Wiring};

use super::error::Error;
use super::memory::known::Known;
use super::memory::left::{Left, public_addresses};
use super::observe::Seen;
use super::observe::taken_off;
use super::strays::Strays;
use crate::api_server::{CONFLICT, NOT_FOUND, is_status, read_again};
use crate::azure::ResourceId;
use crate::cluster::kept;
use crate::context::Context;
use crate::deadline::uncounted;
use crate::node_object::Node;
use crate::planner::{Plan, attachments};

/// The next `spec`. Parts that aren't known now stay as they were.
pub fn spec(
    before: &NodeIPAllocationSpec,
    node: &Node,
    seen: &Seen,
    plan: &Plan,
    attachments: &attachments::Plan,
    (strays, left): (&Strays, &Left),
) -> NodeIPAllocationSpec {
    let pool = seen.pool.as_ref();
    let mut ip_configurations = plan.publish.clone();
    for one in &mut ip_configurations {
        if let Some(mark) = attachments.marks.get(&one.name) {
            one.attached_to = Some(mark.attached_to.clone());
            one.public_address.clone_from(&mark.public_address);
        }
    }
    let interface = seen.nic.clone().map(|nic| Interface { ip_configurations, ..nic });
    let (left_interfaces, lost) = left.record(before, &seen.left, seen.nic.as_ref());
    let recorded = attachments.recorded.iter().map(ResourceId::as_str);
    let recorded = recorded.chain(lost.iter().flat_map(public_addresses));
    NodeIPAllocationSpec {
        detached_public_addresses: detached(recorded, interface.as_ref()),
        stray_interfaces: strays.nics().iter().map(ToString::to_string).collect(),
        left_interfaces,
        node_uid: node.metadata.uid.clone().unwrap_or_default(),
        // Only a NIC that was read in this boot vouches for it.
        boot_id: interface.as_ref().map(|_| node.boot_id().to_owned()).unwrap_or_default(),
        pool: pool.map_or_else(|| before.pool.clone(), |pool| pool.name_any()),
        mode: pool.map_or(before.mode, |pool| pool.spec.mode),
        route_table_id: seen.backend.route_table_id(),
        wiring: pool.map_or(before.wiring, |pool| pool.spec.wiring),
        target: plan.target,
        sizing: pool.map_or_else(|| before.sizing.clone(), |pool| Some(pool.spec.sizing.clone())),
        cooldown: pool.map_or(before.cooldown, |pool| pool.spec.cooldown),
        pod_metadata_access: pool.map_or(before.pod_metadata_access, |pool| pool.spec.pod_metadata_access),
        warm: pool.map_or(before.warm, |pool| pool.spec.sizing.warm),
        report_holders: before.report_holders,
        snat_exclusions: seen.snat_exclusions.clone(),
        elsewhere: seen.elsewhere,
        taken_off_at: taken_off::noted(&before.taken_off_at, seen.is_taken_off, Timestamp::now()),
        interfaces: interface.into_iter().chain(seen.primary_nic.clone()).collect(),
    }
}

/// Of these public addresses, those that no ipConfiguration of these interfaces has. A mark goes with its
/// ipConfiguration, and no other memory keeps what was made for its pod.
fn detached<'a>(
    recorded: impl Iterator<Item = &'a str>,
    interfaces: impl IntoIterator<Item = &'a Interface>,
) -> Vec<String> {
    let named = interfaces.into_iter().flat_map(|one| &one.ip_configurations);
    let named = named.filter_map(|one| one.public_address.as_ref()?.id.parse().ok());
    let named: HashSet<ResourceId> = named.collect();
    let is_named = |id: &str| id.parse().is_ok_and(|id: ResourceId| named.contains(&id));
    let detached: BTreeSet<&str> = recorded.filter(|id| !is_named(id)).collect();
    detached.into_iter().map(str::to_owned).collect()
}

/// What the next object wouldn't find of what `spec` names: public addresses of ours that are attached to
/// none of these interfaces, and NICs that the node has left. Each address may be there, also one that is
/// about to be made.
pub fn named_only_here<'a>(
    spec: &'a NodeIPAllocationSpec,
    interfaces: &[Interface],
) -> impl Iterator<Item = &'a str> {
    let all = interfaces.iter().flat_map(|one| &one.ip_configurations);
    let attached = all.filter_map(|one| one.public_address.as_ref()).filter(|one| one.address.is_some());
    let attached: HashSet<ResourceId> = attached.filter_map(|one| one.id.parse().ok()).collect();
    let is_ours = move |id: &ResourceId| attachments::pod_of(id).is_some() && !attached.contains(id);
    let public =
        spec.public_addresses().filter(move |id| id.parse().is_ok_and(|id: ResourceId| is_ours(&id)));
    public.chain(spec.left_interfaces.iter().map(|nic| nic.id.as_str()))
}

/// Whether others' ipConfigurations are to leave the NIC, for which each pod must be known to have an address
/// of ours.
pub fn adopts(allocation: &NodeIPAllocation, seen: &Seen) -> bool {
    match &seen.adoption {
        Some(adoption) => adoption.is_left,
        None if seen.is_read => false,
        None => condition::find(allocation.conditions(), ADOPTED)
            .is_some_and(|condition| condition.status == "False"),
    }
}

/// Applies `spec`, planned from `allocation`, unless the object has the same already.
///
/// # Errors
/// A conflict if another writer has changed the object since: then this plan is out of date.
pub async fn publish(
    ctx: &Context,
    allocation: Arc<NodeIPAllocation>,
    spec: NodeIPAllocationSpec,
    nic: &mut Known,
) -> Result<Arc<NodeIPAllocation>, Error> {
    if in_order(&allocation.spec) == in_order(&spec) {
        return Ok(allocation);
    }
    let answer = apply(ctx, &allocation, &spec).await.map_err(Error::Publish)?;
    info!(target_addresses = spec.target, held = spec.addresses(), "published");
    let answer = Arc::new(answer);
    ctx.cluster.answered(&answer);
    nic.spec_written(&answer);
    Ok(answer)
}

/// Server-side apply to an object that must be as it is `there`.
async fn apply(
    ctx: &Context,
    there: &NodeIPAllocation,
    spec: &NodeIPAllocationSpec,
) -> kube::Result<NodeIPAllocation> {
    let name = there.name_any();
    let params = PatchParams::apply(names::OPERATOR).force();
    let api = allocations(ctx);
    let patch = Patch::Apply(body(there, spec));
    let mut answer = ctx.writes.urgent(api.patch(&name, &params, &patch)).await?.readable()?;
    kept::strip_allocation(&mut answer);
    Ok(answer)
}

/// What a write sends. The API server refuses it of any other version than this one.
fn body(there: &NodeIPAllocation, spec: &NodeIPAllocationSpec) -> serde_json::Value {
    let (name, version) = (there.name_any(), there.resource_version());
    json!({
        "apiVersion": NodeIPAllocation::api_version(&()),
        "kind": NodeIPAllocation::kind(&()),
        "metadata": {"name": name, "resourceVersion": version, "finalizers": [names::FINALIZER]},
        "spec": spec,
    })
}

/// The fields of `spec` that no later one lacks. Who creates a field goes on to own it beside those who apply
/// it: an apply could take nothing else out again.
pub struct Lasting {
    pub node_uid: String,
    pub pool: String,
    pub mode: Mode,
    pub wiring: Wiring,
    pub sizing: Option<Sizing>,
    pub cooldown: kube::core::Duration,
    pub pod_metadata_access: MetadataAccess,
}

/// Makes an object that has these fields and records nothing. Created, not applied: one that exists by now,
/// unseen by the watch, must keep its content.
///
/// # Errors
/// A conflict if there is one of that name.
pub async fn create(ctx: &Context, name: &str, fields: Lasting) -> kube::Result<NodeIPAllocation> {
    let mut object = NodeIPAllocation::new(name, fields.alone());
    object.metadata.finalizers = Some(vec![names::FINALIZER.into()]);
    let params = PostParams { field_manager: Some(names::OPERATOR.into()), ..Default::default() };
    ctx.writes.urgent(Api::all(ctx.client.clone()).create(&params, &object)).await
}

impl Lasting {
    fn of(spec: &NodeIPAllocationSpec) -> Lasting {
        Lasting {
            node_uid: spec.node_uid.clone(),
            pool: spec.pool.clone(),
            mode: spec.mode,
            wiring: spec.wiring,
            sizing: spec.sizing.clone(),
            cooldown: spec.cooldown,
            pod_metadata_access: spec.pod_metadata_access,
        }
    }

    /// A `spec` of nothing else.
    fn alone(self) -> NodeIPAllocationSpec {
        let Lasting { node_uid, pool, mode, wiring, sizing, cooldown, pod_metadata_access } = self;
        NodeIPAllocationSpec {
            node_uid,
            boot_id: String::new(),
            pool,
            mode,
            route_table_id: None,
            wiring,
            target: 0,
            sizing,
            cooldown,
            warm: 0,
            report_holders: false,
            pod_metadata_access,
            snat_exclusions: vec![],
            elsewhere: 0,
            taken_off_at: vec![],
            interfaces: vec![],
            detached_public_addresses: vec![],
            stray_interfaces: vec![],
            left_interfaces: vec![],
        }
    }
}

/// The same content in one order: the API server doesn't promise to keep that of lists with keys.
fn in_order(spec: &NodeIPAllocationSpec) -> NodeIPAllocationSpec {
    let mut spec = spec.clone();
    spec.snat_exclusions.sort();
    spec.detached_public_addresses.sort();
    spec.stray_interfaces.sort();
    spec.interfaces.sort_by(|a, b| a.id.cmp(&b.id));
    spec.left_interfaces.sort_by(|a, b| a.id.cmp(&b.id));
    for interface in spec.interfaces.iter_mut().chain(&mut spec.left_interfaces) {
        interface.subnet.prefixes.sort();
        interface.ip_configurations.sort_by(|a, b| a.name.cmp(&b.name));
    }
    spec
}

/// Deletes an object of another past, to be made again, see [`replace`].
pub async fn begin_to_replace(ctx: &Context, allocation: &NodeIPAllocation) -> Result<(), Error> {
    warn!("this object is of another past: it is made again, and its NIC is read first");
    let exactly = Preconditions { uid: allocation.uid(), resource_version: allocation.resource_version() };
    let params = DeleteParams { preconditions: Some(exactly), ..Default::default() };
    let (api, name) = (allocations(ctx), allocation.name_any());
    ctx.writes.urgent(api.delete(&name, &params)).await.map_err(Error::Delete)?;
    Ok(())
}

/// Lets an object go that was deleted while its Node lives, and makes it again with the same content but for
/// `interfaces`. It has no finalizer but ours: as long as it has another, none can take its place, and it is
/// the only record of what it names.
///
/// The object's status is lost with it, and so is the list of relinquished names. Therefore it is made
/// without a bootID, so that no agent builds a new ledger from it before the NIC has been read again, when
/// every earlier release is known to be done or not.
///
/// # Errors
/// It is still there, and still recorded.
pub async fn replace(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    interfaces: Vec<Interface>,
) -> Result<(), Error> {
    let spec = NodeIPAllocationSpec {
        boot_id: String::new(),
        detached_public_addresses: detached(allocation.spec.public_addresses(), &interfaces),
        interfaces,
        ..allocation.spec.clone()
    };
    drop_finalizer(ctx, allocation).await?;
    if let Some(again) = make_again(ctx, allocation, &spec).await? {
        ctx.cluster.answered(&Arc::new(again));
        info!("object was deleted though its Node lives: made again");
    }
    Ok(())
}

/// The first wait between two attempts to make an object again, and the longest.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_AT_MOST: Duration = Duration::from_secs(16);

/// Makes an object with this content in the place of one that is gone. By now this is the only record of it,
/// so it is tried until it has succeeded. `None`: somebody has made another, perhaps this operator, whose
/// cache still shows the one that is gone.
///
/// It is created without what it records, and that is applied at the very version that was created. One that
/// records nothing is no other: [`admit`](super::admit) may have made it meanwhile.
async fn make_again(
    ctx: &Context,
    gone: &NodeIPAllocation,
    spec: &NodeIPAllocationSpec,
) -> Result<Option<NodeIPAllocation>, Error> {
    let name = gone.name_any();
    let attempt = async || {
        let created = match create(ctx, &name, Lasting::of(spec)).await {
            Err(error) if is_status(&error, CONFLICT) => {
                allocations(ctx).get(&name).await.and_then(Reading::readable)
            }
            created => created,
        };
        match created {
            Ok(there) if there.uid() == gone.uid() => Ok(Err(Error::StillThere)),
            Ok(there) if records_nothing(&there.spec) => {
                apply(ctx, &there, spec).await.map(|again| Ok(Some(again)))
            }
            Ok(_) => Ok(Ok(None)),
            Err(error) => Err(error),
        }
    };
    // However long it takes: a reconcile that was dropped in here would take the record along.
    uncounted(async {
        let mut failures = 0;
        loop {
            match attempt().await {
                Ok(ended) => return ended,
                Err(error) => warn!(%error, "object not made again yet"),
            }
            sleep(jittered(doubled(AGAIN, failures, AGAIN_AT_MOST))).await;
            failures += 1;
        }
    })
    .await
}

/// Whether nothing of Azure's is in no other record than this.
fn records_nothing(spec: &NodeIPAllocationSpec) -> bool {
    let NodeIPAllocationSpec { interfaces, detached_public_addresses, stray_interfaces, .. } = spec;
    let is_empty = interfaces.is_empty() && stray_interfaces.is_empty() && spec.route_table_id.is_none();
    is_empty && spec.left_interfaces.is_empty() && detached_public_addresses.is_empty()
}

/// Deletes the object for good: its NIC has no reservation of ours any more.
pub async fn delete(ctx: &Context, allocation: &NodeIPAllocation) -> Result<(), Error> {
    if allocation.metadata.deletion_timestamp.is_none() {
        let exactly = Preconditions { uid: allocation.uid(), resource_version: None };
        let params = DeleteParams { preconditions: Some(exactly), ..Default::default() };
        let (api, name) = (allocations(ctx), allocation.name_any());
        match ctx.writes.urgent(api.delete(&name, &params)).await {
            Ok(_) => {}
            Err(error) if is_status(&error, NOT_FOUND) => return Ok(()),
            Err(error) => return Err(Error::Delete(error)),
        }
    }
    drop_finalizer(ctx, allocation).await?;
    info!("object deleted: nothing of ours is left in Azure");
    Ok(())
}

/// Whether the object is still there and no other in its place, as the API server itself has it.
pub async fn is_there(ctx: &Context, allocation: &NodeIPAllocation) -> Result<bool, Error> {
    let found = read_again(&ctx.client, allocation).await.map_err(Error::Delete)?;
    Ok(found.is_some())
}

async fn drop_finalizer(ctx: &Context, allocation: &NodeIPAllocation) -> Result<(), Error> {
    let found = ctx.writes.read(read_again(&ctx.client, allocation)).await.map_err(Error::Delete)?;
    let Some(found) = found else { return Ok(()) };
    let others: Vec<_> = found.finalizers().iter().filter(|one| *one != names::FINALIZER).collect();
    let patch = json!({"metadata": {"finalizers": others, "resourceVersion": found.resource_version()}});
    let (name, params, patch) = (found.name_any(), PatchParams::default(), Patch::Merge(patch));
    match ctx.writes.urgent(allocations(ctx).patch(&name, &params, &patch)).await {
        Ok(_) => Ok(()),
        Err(error) if is_status(&error, NOT_FOUND) => Ok(()),
        Err(error) => Err(Error::Delete(error)),
    }
}

fn allocations(ctx: &Context) -> Api<Reading<NodeIPAllocation>> {
    Api::all(ctx.client.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::lock;
    use crate::resource_id::sample_public_address;
    use axum::extract::State;
    use axum::http::{HeaderMap, Method, StatusCode};
    use axum::{Json, Router};
    use kube::Client;
    use serde_json::Value;
    use std::sync::Mutex;
    use tokio::net::TcpListener;

    fn public(uid: &str) -> String {
        sample_public_address(uid).to_string()
    }

    #[test]
    fn a_public_address_that_no_published_ip_configuration_has_stays_in_spec_as_detached() {
        let interface = |pods: &[&str]| -> Interface {
            let entry = |uid: &&str| {
                json!({"name": format!("vnp-{uid}"), "address": "10.0.0.5/32", "attachedTo": uid,
                    "publicAddress": {"id": public(uid).to_uppercase()}})
            };
            let all: Vec<_> = pods.iter().map(entry).collect();
            serde_json::from_value(json!({"id": "i", "mac": "m", "primaryAddress": "10.0.0.4",
                "subnet": {"id": "s"}, "ipConfigurations": all}))
            .unwrap()
        };
        let recorded = [public("b"), public("a")];
        let detached = |pods| detached(recorded.iter().map(String::as_str), [&interface(pods)]);
        assert_eq!(detached(&["a", "b"]), [""; 0]);
        assert_eq!(detached(&["a"]), [public("b")]);
        assert_eq!(detached(&[]), [public("a"), public("b")]);
    }

    #[test]
    fn a_public_address_is_on_no_nic_before_it_is_attached_and_after_its_ip_configuration_has_gone() {
        let spec = |named: &Value| -> NodeIPAllocationSpec {
            let entry = json!({"name": "vnp-1", "address": "10.0.0.5/32", "attachedTo": "a",
                "publicAddress": named});
            let interface = json!({"id": "i", "mac": "m", "primaryAddress": "10.0.0.4", "subnet": {"id": "s"},
                "ipConfigurations": [entry]});
            serde_json::from_value(json!({"nodeUID": "u", "pool": "p", "cooldown": "30s",
                "interfaces": [interface], "detachedPublicAddresses": [public("b"), "/subscriptions/s"]}))
            .unwrap()
        };
        let none = |spec: &NodeIPAllocationSpec, interfaces: &[Interface]| -> Vec<String> {
            named_only_here(spec, interfaces).map(str::to_owned).collect()
        };
        let attached = spec(&json!({"id": public("a").replace("providers", "PROVIDERS"),
            "address": "20.0.0.1"}));
        assert_eq!(none(&attached, &attached.interfaces), [public("b")]);
        assert_eq!(none(&attached, &[]).len(), 2, "by a newer read");
        let announced = spec(&json!({"id": public("a")}));
        assert_eq!(none(&announced, &announced.interfaces), [public("a"), public("b")]);
    }

    /// What an API server has of one object.
    #[derive(Debug, Default)]
    struct Store {
        object: Option<Value>,
        /// It is made as soon as there is none.
        next: Option<Value>,
        /// So often it fails to make one.
        fails: u32,
        /// The changes that were asked for, and how they were answered.
        asked: Vec<(Method, u16)>,
    }

    fn object(uid: &str, spec: Value) -> Value {
        let mut all = json!({"nodeUID": "u", "pool": "p", "cooldown": "30s"});
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        json!({
            "apiVersion": NodeIPAllocation::api_version(&()), "kind": NodeIPAllocation::kind(&()),
            "metadata": {"name": "n", "uid": uid, "resourceVersion": "7", "finalizers": [names::FINALIZER]},
            "spec": all,
        })
    }

    /// As the API server does it, as far as it is asked to.
    async fn answer(
        State(store): State<Arc<Mutex<Store>>>,
        method: Method,
        headers: HeaderMap,
        body: String,
    ) -> (StatusCode, Json<Value>) {
        let mut store = lock(&store);
        let sent: Value = serde_json::from_str(&body).unwrap_or_default();
        let is_apply = headers.get("content-type").is_some_and(|one| one == "application/apply-patch+yaml");
        let makes = method == Method::POST || (is_apply && store.object.is_none());
        let (mut object, fails) = (store.object.take(), makes && store.fails > 0);
        let (code, answer) = match (&method, &mut object) {
            _ if fails => {
                store.fails -= 1;
                (500, None)
            }
            (&Method::GET, there) => (if there.is_some() { 200 } else { 404 }, there.clone()),
            (&Method::POST, Some(_)) => (409, None),
            (_, None) if makes => {
                let mut made = sent;
                made["metadata"]["uid"] = json!("again");
                made["metadata"]["resourceVersion"] = json!("8");
                object = Some(made.clone());
                (201, Some(made))
            }
            (_, None) => (404, None),
            (_, Some(there)) => {
                let version = &sent["metadata"]["resourceVersion"];
                if !version.is_null() && *version != there["metadata"]["resourceVersion"] {
                    (409, None)
                } else if is_apply {
                    there["spec"] = sent["spec"].clone();
                    (200, Some(there.clone()))
                } else {
                    assert_eq!(sent["metadata"]["finalizers"], json!([]));
                    let gone = object.take();
                    object = store.next.take();
                    (200, gone)
                }
            }
        };
        store.object = object;
        if method != Method::GET {
            store.asked.push((method, code));
        }
        let refused = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "",
            "reason": "", "code": code});
        (StatusCode::from_u16(code).unwrap(), Json(answer.unwrap_or(refused)))
    }

    /// Has the object of UID "old", which records this, made again, and gives what there is then.
    async fn replaced(store: Store) -> Store {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let store = Arc::new(Mutex::new(store));
        let routes = Router::new().fallback(answer).with_state(store.clone());
        let server = tokio::spawn(async move { axum::serve(listener, routes).await });
        let client = Client::try_from(kube::Config::new(url)).unwrap();
        let ctx = Context { client, ..Context::sample() };
        let old = object(
            "old",
            json!({"bootID": "b", "target": 4, "strayInterfaces": ["s"], "detachedPublicAddresses": [public("a")]}),
        );
        replace(&ctx, &serde_json::from_value(old).unwrap(), vec![]).await.unwrap();
        server.abort();
        std::mem::take(&mut lock(&store))
    }

    fn old() -> Option<Value> {
        Some(object("old", json!({})))
    }

    /// Whether it is this one, with all that the old one recorded.
    fn has_all(store: &Store, uid: &str) {
        let there = store.object.as_ref().unwrap();
        assert_eq!(there["metadata"]["uid"], uid, "{store:?}");
        let spec = &there["spec"];
        let records = [&spec["strayInterfaces"][0], &spec["detachedPublicAddresses"][0], &spec["bootID"]];
        assert_eq!(records, [&json!("s"), &json!(public("a")), &json!("")], "{store:?}");
    }

    #[tokio::test]
    async fn an_object_that_goes_is_made_again_however_often_that_fails_for_nothing_else_has_its_record() {
        let store = replaced(Store { object: old(), fails: 1, ..Store::default() }).await;
        has_all(&store, "again");
        assert_eq!(store.asked.iter().filter(|(method, _)| *method == Method::POST).count(), 2, "{store:?}");
    }

    #[tokio::test]
    async fn a_blank_object_that_is_made_as_soon_as_the_old_one_goes_gets_all_that_that_recorded() {
        let blank = object("admitted", json!({"warm": 1}));
        let store = replaced(Store { object: old(), next: Some(blank), ..Store::default() }).await;
        has_all(&store, "admitted");
    }

    #[tokio::test]
    async fn a_reconcile_that_sees_an_object_that_has_gone_leaves_the_new_one_as_it_is() {
        let newer = object(
            "new",
            json!({"bootID": "b", "interfaces": [
            {"id": "i", "mac": "m", "primaryAddress": "10.0.0.4", "subnet": {"id": "s"}}]}),
        );
        let store = replaced(Store { object: Some(newer.clone()), ..Store::default() }).await;
        assert_eq!((store.object.as_ref(), &store.asked[..]), (Some(&newer), &[(Method::POST, 409)][..]));
    }

    #[test]
    fn a_spec_is_written_to_exactly_the_version_that_it_was_planned_from() {
        let there: NodeIPAllocation = serde_json::from_value(object("u", json!({}))).unwrap();
        assert_eq!(body(&there, &there.spec)["metadata"]["resourceVersion"], "7");
    }

    #[test]
    fn what_is_created_has_no_field_that_a_later_spec_may_lack() {
        let spec = json!({"nodeUID": "u", "bootID": "b", "pool": "p", "cooldown": "30s", "warm": 3, "elsewhere": 2,
            "routeTableID": "t", "reportHolders": true, "snatExclusions": ["10.0.0.0/8"], "target": 4,
            "takenOffAt": ["2026-01-01T00:00:00Z"], "strayInterfaces": ["s"],
            "detachedPublicAddresses": ["p"], "interfaces": [
                {"id": "i", "mac": "m", "primaryAddress": "10.0.0.4", "subnet": {"id": "s"}}],
            "sizing": vnetpool_crds::pool::Sizing::default()});
        let created =
            serde_json::to_value(Lasting::of(&serde_json::from_value(spec).unwrap()).alone()).unwrap();
        let least = json!({"nodeUID": "u", "pool": "p", "cooldown": "30s"});
        let least: NodeIPAllocationSpec = serde_json::from_value(least).unwrap();
        let always = serde_json::to_value(least).unwrap();
        let names = |one: &Value| one.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
        // An object that has once had a sizing keeps one.
        assert_eq!(&names(&created) - &names(&always), BTreeSet::from(["sizing".to_owned()]));
        assert_eq!((&created["target"], &created["bootID"]), (&json!(0), &json!("")));
    }
}
