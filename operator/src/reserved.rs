//! `vnetpool-operator reserved`: Azure's present reservations on NICs, or in route tables. Reads only.

use futures::{Stream, StreamExt, stream};
use vnetpool_crds::inspection::{Reservation, ReservedView};
use vnetpool_crds::names::IP_CONFIGURATION_PREFIX;

use crate::azure::{Azure, Error, Freshness, Priority, ResourceId};

/// So many are read at once; the budget paces them.
const AT_ONCE: usize = 8;
/// It doesn't know the payments of the operator's own process, so it leaves as much as a call can.
const PRIORITY: Priority = Priority::GiveBack;

/// One for each id, as it is read. One that can't be read has the reason.
pub fn views<'a>(
    azure: &'a Azure,
    ids: impl Iterator<Item = &'a str> + 'a,
) -> impl Stream<Item = ReservedView> + 'a {
    stream::iter(ids.map(async |id| view(azure, id).await)).buffer_unordered(AT_ONCE)
}

async fn view(azure: &Azure, id: &str) -> ReservedView {
    let read = match id.parse::<ResourceId>() {
        Ok(id) if id.is("Microsoft.Network", "routeTables") => table(azure, &id).await,
        Ok(id) => nic(azure, &id).await,
        Err(malformed) => Err(malformed.into()),
    };
    ReservedView { id: id.to_owned(), ..read.unwrap_or_else(|error| unread(&error)) }
}

/// A NIC that a node has left may be gone, which is no fault. So an absence differs from other errors.
fn unread(error: &Error) -> ReservedView {
    ReservedView {
        error: Some(error.to_string()),
        is_absent: matches!(error, Error::NotFound { .. }),
        ..ReservedView::default()
    }
}

async fn nic(azure: &Azure, id: &ResourceId) -> Result<ReservedView, Error> {
    let nic = azure.nic(id, Freshness::Fresh, PRIORITY).await?;
    let reservations = nic.ip_configurations.iter().map(|one| Reservation {
        name: one.name.clone(),
        address: one.address.map(|address| address.to_string()),
        next_hop: None,
        state: format!("{:?}", one.state),
    });
    Ok(ReservedView { reservations: reservations.collect(), others: nic.foreign, ..ReservedView::default() })
}

async fn table(azure: &Azure, id: &ResourceId) -> Result<ReservedView, Error> {
    let table = azure.route_table(id, PRIORITY).await?;
    let (ours, others): (Vec<_>, Vec<_>) =
        table.routes.iter().partition(|route| route.name.starts_with(IP_CONFIGURATION_PREFIX));
    let reservations = ours.into_iter().map(|route| Reservation {
        name: route.name.clone(),
        address: route.range.map(|range| range.to_string()),
        next_hop: route.next_hop.map(|address| address.to_string()),
        state: format!("{:?}", route.state),
    });
    Ok(ReservedView {
        reservations: reservations.collect(),
        others: others.len() as u32,
        ..ReservedView::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::Scope;

    #[test]
    fn a_nic_is_absent_only_if_azure_does_not_find_the_nic_itself() {
        let (resource, message) = ("nic".to_owned(), "not found".to_owned());
        let gone = Error::NotFound { resource: resource.clone(), message: message.clone() };
        // That may pass.
        let unknown = Error::ScopeMissing { resource, scope: Scope::Group, message };
        let views = [gone, unknown].map(|error| unread(&error));
        assert_eq!(views.each_ref().map(|view| view.is_absent), [true, false]);
        assert!(views.iter().all(|view| view.error.is_some()), "an older plugin reads no more than that");
    }
}
