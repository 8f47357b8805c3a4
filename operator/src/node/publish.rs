//! All writes of a reconcile but its conditions: the NIC, then `spec`; the taint; and the end of the object.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::{Node, Taint};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;
use tracing::info;
use uuid::Uuid;
use vnetpool_crds::allocation::{Interface, NodeIPAllocation, NodeIPAllocationSpec};
use vnetpool_crds::names;
use vnetpool_crds::pool::Mode;

use super::memory::Memory;
use super::observe::{Seen, groups};
use super::setback::{Setback, Stage};
use super::{Error, Round, growth};
use crate::api_server::{NOT_FOUND, is_status};
use crate::azure::{self, ResourceId};
use crate::cluster::kept;
use crate::context::Context;
use crate::events;
use crate::planner::attachments::Mark;
use crate::planner::{Plan, addresses};

/// Carries the plan's change out on the NIC. The caller has said so in the condition `Writing` before.
///
/// # Errors
/// Azure's. What became of the NIC is then to be read again.
pub async fn write_nic(
    ctx: &Context,
    round: &Round,
    node: &Node,
    memory: &mut Memory,
) -> Result<(), azure::Error> {
    let Round { allocation, need, seen: Some(seen), plan: Some(plan), .. } = round else { return Ok(()) };
    let Some(nic) = &seen.nic else { return Ok(()) };
    let id: ResourceId = nic.id.parse()?;
    let change = azure::Change {
        reserve: (0..plan.change.reserve).map(|_| new_name()).collect(),
        restore: plan.change.restore.iter().map(|address| (new_name(), *address)).collect(),
        release: plan.change.release.clone(),
        blocks: seen.pool.as_ref().is_some_and(|pool| pool.spec.mode == Mode::Prefix),
        adopt: plan.change.adopt.clone(),
        join: plan.change.join.clone(),
        leave: plan.change.leave.clone(),
        repair: plan.change.repair,
        ..Default::default()
    };
    let grain = seen.observed.grain;
    let count = |all: &[azure::IpConfiguration]| all.iter().map(|one| addresses(one, grain)).sum::<u32>();
    let released: Vec<_> =
        seen.observed.held.iter().filter(|one| change.release.contains(&one.name)).cloned().collect();
    let result = ctx.azure.update(&id, &change, need.of_write(&seen.observed, plan.priority)).await;
    if let Err(error @ azure::Error::Outgrown { .. }) = result {
        return Err(error);
    }
    let now = Instant::now();
    growth::written(ctx, &node.name_any(), seen, plan, &released, result.as_ref().map(|_| ()));
    match result {
        Ok(nic) => {
            ctx.metrics.nic_written("ok");
            memory.nic_known = Some(now);
            memory.setback = None;
            let restored = plan.change.restore.len() as u32 * grain;
            let (held, reserved) = (count(&nic.ip_configurations), plan.change.reserve * grain);
            info!(reserved, released = count(&released), held, nic = %id, "NIC written");
            let about = [node.object_ref(&()), allocation.object_ref(&())];
            if restored > 0 {
                ctx.events.say(&about, events::restored(restored, id.name()));
            }
            if !change.reserve.is_empty() {
                ctx.events.say(&about, events::reserved(reserved, held, id.name()));
            }
            if !change.release.is_empty() {
                ctx.events.say(&about, events::released(count(&released), held, id.name()));
            }
            if !change.adopt.is_empty() {
                ctx.events.say(&about, events::adopted(&change.adopt, id.name()));
            }
            if !change.join.is_empty() || !change.leave.is_empty() {
                ctx.events.say(&about, events::regrouped(&change.join, &change.leave, id.name()));
            }
            if !change.join.iter().all(|group| nic.groups.contains(group)) {
                // Written once more at once it would show them no sooner.
                let error = azure::Error::Unexpected {
                    resource: id.to_string(),
                    message: "it doesn't show application security groups that it has joined".to_owned(),
                };
                memory.grouping = Some(Setback::after(memory.grouping.as_ref(), Stage::Write, &error, now));
            }
            Ok(())
        }
        Err(error) => {
            ctx.metrics.nic_written(error.reason());
            memory.taken.extend(error.taken(&plan.change.restore));
            if !plan.change.join.is_empty() && groups::may_be_refused(&error) {
                memory.grouping = Some(Setback::after(memory.grouping.as_ref(), Stage::Write, &error, now));
                return Err(error);
            }
            let stage = if plan.change.repair { Stage::Repair } else { Stage::Write };
            memory.setback = Some(Setback::after(memory.setback.as_ref(), stage, &error, now));
            Err(error)
        }
    }
}

/// 62 random bits: no two ipConfigurations of a NIC ever share a name, not even years apart.
fn new_name() -> String {
    format!("{}{:016x}", names::IP_CONFIGURATION_PREFIX, Uuid::new_v4().as_u64_pair().1)
}

/// What `spec` should say. What isn't known now stays as it was.
pub fn spec(
    before: &NodeIPAllocationSpec,
    node: &Node,
    seen: &Seen,
    plan: &Plan,
    marks: Option<&BTreeMap<String, Mark>>,
) -> NodeIPAllocationSpec {
    let pool = seen.pool.as_ref();
    let mut ip_configurations = plan.publish.clone();
    for one in &mut ip_configurations {
        if let Some(mark) = marks.and_then(|marks| marks.get(&one.name)) {
            one.attached_to = Some(mark.attached_to.clone());
            one.public_address.clone_from(&mark.public_address);
        }
    }
    let interface = seen.nic.clone().map(|nic| Interface { ip_configurations, ..nic });
    NodeIPAllocationSpec {
        node_uid: node.metadata.uid.clone().unwrap_or_default(),
        // Only a NIC that was read in this boot vouches for it.
        boot_id: interface.as_ref().map(|_| kept::boot_id(node).to_owned()).unwrap_or_default(),
        pool: pool.map_or_else(|| before.pool.clone(), |pool| pool.name_any()),
        mode: pool.map_or(before.mode, |pool| pool.spec.mode),
        route_table_id: seen.routed.as_ref().map(|routed| routed.table.to_string()),
        wiring: pool.map_or(before.wiring, |pool| pool.spec.wiring),
        target: plan.target,
        cooldown: pool.map_or(before.cooldown, |pool| pool.spec.cooldown),
        pod_metadata_access: pool.map_or(before.pod_metadata_access, |pool| pool.spec.pod_metadata_access),
        snat_exclusions: seen.snat_exclusions.clone(),
        elsewhere: seen.elsewhere,
        interfaces: interface.into_iter().chain(seen.primary_nic.clone()).collect(),
    }
}

/// Applies `spec`, planned from `allocation`, unless it says the same already.
///
/// # Errors
/// A conflict if anybody has written the object since: then this was planned from the past.
pub async fn publish(
    ctx: &Context,
    allocation: Arc<NodeIPAllocation>,
    spec: NodeIPAllocationSpec,
    memory: &mut Memory,
) -> Result<Arc<NodeIPAllocation>, Error> {
    if in_order(&allocation.spec) == in_order(&spec) {
        return Ok(allocation);
    }
    let version = allocation.resource_version();
    let answer = apply(ctx, &allocation.name_any(), version, &spec).await.map_err(Error::Publish)?;
    info!(target = spec.target, held = spec.addresses(), "published");
    let answer = Arc::new(answer);
    ctx.cluster.answered(&answer);
    memory.wrote(&answer);
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
    let mut answer = allocations(ctx).patch(name, &params, &Patch::Apply(&object)).await?;
    kept::strip_allocation(&mut answer);
    Ok(answer)
}

/// The same content in one order: the API server doesn't promise to keep that of lists with keys.
fn in_order(spec: &NodeIPAllocationSpec) -> NodeIPAllocationSpec {
    let mut spec = spec.clone();
    spec.snat_exclusions.sort();
    spec.interfaces.sort_by(|a, b| a.id.cmp(&b.id));
    for interface in &mut spec.interfaces {
        interface.subnet.prefixes.sort();
        interface.ip_configurations.sort_by(|a, b| a.name.cmp(&b.name));
    }
    spec
}

/// Lets an object go that somebody deleted while its Node lives, and makes it again with the same content.
///
/// Its status is lost with it, and so is the list of relinquished names: therefore without a bootID, so that no agent
/// builds a new ledger from it before the NIC has been read again, when every release of before is known to be done or not.
pub async fn replace(ctx: &Context, allocation: &NodeIPAllocation) -> Result<(), Error> {
    let name = allocation.name_any();
    drop_finalizer(ctx, allocation).await?;
    let spec = NodeIPAllocationSpec { boot_id: String::new(), ..allocation.spec.clone() };
    apply(ctx, &name, None, &spec).await.map_err(Error::Publish)?;
    info!("object was deleted though its Node lives: made again");
    Ok(())
}

/// Deletes the object for good: nothing of ours is left on its NIC.
pub async fn delete(ctx: &Context, allocation: &NodeIPAllocation) -> Result<(), Error> {
    if allocation.metadata.deletion_timestamp.is_none() {
        let exactly = Preconditions { uid: allocation.uid(), resource_version: None };
        let params = DeleteParams { preconditions: Some(exactly), ..Default::default() };
        match allocations(ctx).delete(&allocation.name_any(), &params).await {
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
    match api.patch(&found.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(()),
        Err(error) if is_status(&error, NOT_FOUND) => Ok(()),
        Err(error) => Err(Error::Delete(error)),
    }
}

/// Puts the taint on a full node, or takes it off; every other taint stays. Guarded by the Node's resourceVersion, because
/// a list of taints can only be written whole.
pub async fn taint(ctx: &Context, node: &Node, full: bool) -> Result<(), Error> {
    if kept::is_tainted_full(node) == full {
        return Ok(());
    }
    let api = Api::<Node>::all(ctx.client.clone());
    let found = api.get_opt(&node.name_any()).await.map_err(Error::Taint)?;
    let Some(found) = found.filter(|found| kept::is_tainted_full(found) != full) else { return Ok(()) };
    let mut taints = found.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    taints.retain(|taint| taint.key != names::FULL_TAINT);
    if full {
        taints.push(Taint {
            key: names::FULL_TAINT.into(),
            effect: "NoSchedule".into(),
            ..Default::default()
        });
    }
    let patch =
        json!({"metadata": {"resourceVersion": found.resource_version()}, "spec": {"taints": taints}});
    let params = PatchParams { field_manager: Some(names::OPERATOR.into()), ..Default::default() };
    api.patch(&found.name_any(), &params, &Patch::Merge(patch)).await.map_err(Error::Taint)?;
    info!(full, "taint changed");
    Ok(())
}

fn allocations(ctx: &Context) -> Api<NodeIPAllocation> {
    Api::all(ctx.client.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_ours_and_never_the_same() {
        let names: HashSet<String> = (0..1000).map(|_| new_name()).collect();
        assert_eq!(names.len(), 1000);
        for name in &names {
            let digits = name.strip_prefix("vnp-").unwrap();
            assert!(
                digits.len() == 16 && digits.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c))
            );
        }
    }
}
