//! The taint of a node that has no address left and gets no more.

use k8s_openapi::api::core::v1::{self, Taint};
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use tracing::info;
use vnetpool_apiserver::reading::Reading;
use vnetpool_crds::names;

use crate::api_server::read;
use crate::context::Context;
use crate::node::error::Error;
use crate::node_object::Node;

/// Puts the taint on a full node, or takes it off; every other taint stays. Guarded by the Node's
/// resourceVersion, because a list of taints can only be written whole.
pub async fn set(ctx: &Context, node: &Node, full: bool) -> Result<(), Error> {
    if node.has_taint(names::FULL_TAINT) == full {
        return Ok(());
    }
    ctx.writes.report(write(ctx, node, full)).await
}

async fn write(ctx: &Context, node: &Node, full: bool) -> Result<(), Error> {
    let found: Option<v1::Node> = read(&ctx.client, &node.name_any()).await.map_err(Error::Taint)?;
    let Some(found) = found else { return Ok(()) };
    let mut taints = found.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    if taints.iter().any(|taint| taint.key == names::FULL_TAINT) == full {
        return Ok(());
    }
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
    let api = Api::<Reading<v1::Node>>::all(ctx.client.clone());
    api.patch(&found.name_any(), &params, &Patch::Merge(patch)).await.map_err(Error::Taint)?;
    info!(full, "taint changed");
    Ok(())
}
