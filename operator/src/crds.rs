//! `vnetpool-operator crds apply`: brings the CustomResourceDefinitions of this release into the cluster.
//!
//! Helm installs a chart's CRDs once and never upgrades them; so the chart runs this before each installation
//! and upgrade. It only ever adds to the installed ones: the objects of the kinds stay.

use std::time::Duration;

use anyhow::Context;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams};
use kube::runtime::wait::{await_condition, conditions::is_crd_established};
use kube::{Api, Client, ResourceExt};
use tracing::info;
use vnetpool_crds::names;

/// The API server takes a second or so.
const ESTABLISHED_WITHIN: Duration = Duration::from_secs(60);

/// Applies both definitions and waits until the API server serves them.
///
/// # Errors
/// When the API server refuses one, or doesn't serve it within a minute.
pub async fn apply(client: Client) -> anyhow::Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client);
    for crd in vnetpool_crds::definitions()? {
        let name = crd.name_any();
        // By force: helm, which made them first, is the manager of every field.
        let params = PatchParams::apply(names::OPERATOR).force();
        api.patch(&name, &params, &Patch::Apply(&crd)).await.with_context(|| format!("applying {name}"))?;
        let established = await_condition(api.clone(), &name, is_crd_established());
        tokio::time::timeout(ESTABLISHED_WITHIN, established)
            .await
            .with_context(|| {
                format!("{name} isn't served {} s after it was applied", ESTABLISHED_WITHIN.as_secs())
            })?
            .with_context(|| format!("watching {name}"))?;
        info!(kind = "CustomResourceDefinition", object = name, "applied");
    }
    Ok(())
}
