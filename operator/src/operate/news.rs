//! Whom a change of a virtual network or of a subnet's free addresses concerns.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use kube::ResourceExt;
use vnetpool_crds::NodeIPAllocation;

use crate::azure::ResourceId;
use crate::context::Context;
use crate::lock::lock;
use crate::network::{FreeAddresses, News};

/// Requeues the nodes of a subnet when the network around it has changed, and its pools when it or another
/// subnet of the network has become fuller or emptier. A subnet that had run out is tried again when there
/// seems to be room in it. Never ends.
pub async fn follow(ctx: Arc<Context>) {
    let in_use = || {
        let allocations = ctx.cluster.allocations().state();
        let subnets = allocations.iter().flat_map(|one| one.spec.interfaces.iter().map(|nic| &nic.subnet.id));
        subnets.filter_map(|id| id.parse().ok()).collect()
    };
    ctx.networks.refresh(in_use, |subnet, news| changed(&ctx, subnet, news)).await;
}

fn changed(ctx: &Context, subnet: &ResourceId, news: News) {
    let has_room = || {
        let free = ctx.networks.subnet(subnet).map(|subnet| subnet.free);
        matches!(free, Some(FreeAddresses::Counted(count)) if count > 0)
    };
    if news == News::Network || (news == News::Free && has_room()) {
        let mut shortages = lock(&ctx.shortages);
        let woken = shortages.try_now(&subnet.as_str().to_ascii_lowercase(), None, Instant::now());
        ctx.wake(&woken);
    }
    let in_subnet = ctx.cluster.allocations().state_filter(|allocation| is_in(allocation, subnet));
    if news == News::Network {
        in_subnet.iter().for_each(|allocation| ctx.waker.allocation(&allocation.name_any()));
    }
    let pools: BTreeSet<&String> = in_subnet.iter().map(|allocation| &allocation.spec.pool).collect();
    pools.iter().for_each(|pool| ctx.waker.pool(pool));
}

fn is_in(allocation: &NodeIPAllocation, subnet: &ResourceId) -> bool {
    let mut nics = allocation.spec.interfaces.iter();
    nics.any(|nic| nic.subnet.id.eq_ignore_ascii_case(subnet.as_str()))
}
