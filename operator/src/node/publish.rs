//! All writes to the object but its conditions: `spec`, and the object's end.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;
use tracing::{info, warn};
use vnetpool_crds::allocation::{Interface, NodeIPAllocation, NodeIPAllocationSpec};
use vnetpool_crds::condition::{self, ADOPTED};
use vnetpool_crds::names;

use super::error::Error;
use super::memory::known::Known;
use super::observe::Seen;
use super::observe::taken_off;
use super::strays::Strays;
use crate::api_server::{NOT_FOUND, is_status};
use crate::azure::ResourceId;
use crate::cluster::kept;
use crate::context::Context;
use crate::planner::{Plan, attachments};

/// The next `spec`. Parts that aren't known now stay as they were.
pub fn spec(
    before: &NodeIPAllocationSpec,
    node: &Node,
    seen: &Seen,
    plan: &Plan,
    attachments: &attachments::Plan,
    strays: &Strays,
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
    let recorded = attachments.recorded.iter().map(ResourceId::as_str);
    NodeIPAllocationSpec {
        detached_public_addresses: detached(recorded, interface.as_ref()),
        stray_interfaces: strays.nics().iter().map(ToString::to_string).collect(),
        node_uid: node.metadata.uid.clone().unwrap_or_default(),
        // Only a NIC that was read in this boot vouches for it.
        boot_id: interface.as_ref().map(|_| kept::boot_id(node).to_owned()).unwrap_or_default(),
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

/// Whether others' ipConfigurations are to leave the NIC, for which each pod must be known to have an address
/// of ours.
pub fn adopts(allocation: &NodeIPAllocation, seen: &Seen) -> bool {
    match &seen.adoption {
        Some(adoption) => adoption.left > 0,
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
    let version = allocation.resource_version();
    let answer = apply(ctx, &allocation.name_any(), version, &spec).await.map_err(Error::Publish)?;
    info!(target = spec.target, held = spec.addresses(), "published");
    let answer = Arc::new(answer);
    ctx.cluster.answered(&answer);
    nic.spec_written(&answer);
    Ok(answer)
}

/// Server-side apply: of an object that must be at `version`, or of a new one.
async fn apply(
    ctx: &Context,
    name: &str,
    version: Option<String>,
    spec: &NodeIPAllocationSpec,
) -> kube::Result<NodeIPAllocation> {
    let object = json!({
        "apiVersion": NodeIPAllocation::api_version(&()),
        "kind": NodeIPAllocation::kind(&()),
        "metadata": {"name": name, "resourceVersion": version, "finalizers": [names::FINALIZER]},
        "spec": spec,
    });
    let params = PatchParams::apply(names::OPERATOR).force();
    let api = allocations(ctx);
    let mut answer = ctx.writes.urgent(api.patch(name, &params, &Patch::Apply(&object))).await?;
    kept::strip_allocation(&mut answer);
    Ok(answer)
}

/// The same content in one order: the API server doesn't promise to keep that of lists with keys.
fn in_order(spec: &NodeIPAllocationSpec) -> NodeIPAllocationSpec {
    let mut spec = spec.clone();
    spec.snat_exclusions.sort();
    spec.detached_public_addresses.sort();
    spec.stray_interfaces.sort();
    spec.interfaces.sort_by(|a, b| a.id.cmp(&b.id));
    for interface in &mut spec.interfaces {
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
/// `interfaces`.
///
/// The object's status is lost with it, and so is the list of relinquished names. Therefore it is made
/// without a bootID, so that no agent builds a new ledger from it before the NIC has been read again, when
/// every earlier release is known to be done or not.
pub async fn replace(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    interfaces: Vec<Interface>,
) -> Result<(), Error> {
    let name = allocation.name_any();
    drop_finalizer(ctx, allocation).await?;
    let spec = NodeIPAllocationSpec {
        boot_id: String::new(),
        detached_public_addresses: detached(allocation.spec.public_addresses(), &interfaces),
        interfaces,
        ..allocation.spec.clone()
    };
    apply(ctx, &name, None, &spec).await.map_err(Error::Publish)?;
    info!("object was deleted though its Node lives: made again");
    Ok(())
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
    let found = allocations(ctx).get_opt(&allocation.name_any()).await.map_err(Error::Delete)?;
    Ok(found.is_some_and(|found| found.uid() == allocation.uid()))
}

async fn drop_finalizer(ctx: &Context, allocation: &NodeIPAllocation) -> Result<(), Error> {
    let api = allocations(ctx);
    let found = api.get_opt(&allocation.name_any()).await.map_err(Error::Delete)?;
    let Some(found) = found.filter(|found| found.uid() == allocation.uid()) else { return Ok(()) };
    let others: Vec<_> = found.finalizers().iter().filter(|one| *one != names::FINALIZER).collect();
    let patch = json!({"metadata": {"finalizers": others, "resourceVersion": found.resource_version()}});
    let (name, params, patch) = (found.name_any(), PatchParams::default(), Patch::Merge(patch));
    match ctx.writes.urgent(api.patch(&name, &params, &patch)).await {
        Ok(_) => Ok(()),
        Err(error) if is_status(&error, NOT_FOUND) => Ok(()),
        Err(error) => Err(Error::Delete(error)),
    }
}

fn allocations(ctx: &Context) -> Api<NodeIPAllocation> {
    Api::all(ctx.client.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource_id::sample_public_address;

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
}
