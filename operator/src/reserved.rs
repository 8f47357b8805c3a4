//! `vnetpool-operator reserved`: what Azure has on a NIC, or in a route table, now. Reads only.

use vnetpool_crds::inspection::{Reservation, ReservedView};
use vnetpool_crds::names::IP_CONFIGURATION_PREFIX;

use crate::azure::{Azure, Error, Freshness, Priority, ResourceId};

/// One that can't be read says why.
pub async fn view(azure: &Azure, id: &ResourceId) -> ReservedView {
    let read = match id.is("Microsoft.Network", "routeTables") {
        true => table(azure, id).await,
        false => nic(azure, id).await,
    };
    let failed = |error: Error| ReservedView { error: Some(error.to_string()), ..ReservedView::default() };
    ReservedView { id: id.to_string(), ..read.unwrap_or_else(failed) }
}

async fn nic(azure: &Azure, id: &ResourceId) -> Result<ReservedView, Error> {
    let nic = azure.nic(id, Freshness::Fresh, Priority::WarmRefill).await?;
    let reservations = nic.ip_configurations.iter().map(|one| Reservation {
        name: one.name.clone(),
        address: one.address.map(|address| address.to_string()),
        state: format!("{:?}", one.state),
    });
    Ok(ReservedView { reservations: reservations.collect(), others: nic.foreign, ..ReservedView::default() })
}

async fn table(azure: &Azure, id: &ResourceId) -> Result<ReservedView, Error> {
    let table = azure.route_table(id, Priority::WarmRefill).await?;
    let (ours, others): (Vec<_>, Vec<_>) =
        table.routes.iter().partition(|route| route.name.starts_with(IP_CONFIGURATION_PREFIX));
    let reservations = ours.into_iter().map(|route| Reservation {
        name: route.name.clone(),
        address: route.range.map(|range| range.to_string()),
        state: format!("{:?}", route.state),
    });
    Ok(ReservedView {
        reservations: reservations.collect(),
        others: others.len() as u32,
        ..ReservedView::default()
    })
}
