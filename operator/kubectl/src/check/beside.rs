//! Reservations on NICs that don't serve their nodes: those that a node has left, and those beside its
//! serving one. The nodes' objects record these NICs, and the operator gives back what they hold. So none has
//! leaked.

use std::net::Ipv4Addr;

use kube::ResourceExt;
use serde::Serialize;
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::allocation::Interface;
use vnetpool_crds::inspection::Reservation;

use super::Snapshot;
use crate::who::contains;

/// A reservation that Azure shows on such a NIC.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Beside {
    pub node: String,
    /// Azure resource id.
    pub nic: String,
    /// Name of the reservation.
    pub what: String,
    pub message: String,
}

/// The ids of the NICs that an object records beside the serving one, each once.
pub(super) fn nics(allocation: &NodeIPAllocation) -> impl Iterator<Item = &str> {
    let spec = &allocation.spec;
    let strays = spec.stray_interfaces.iter().map(String::as_str);
    let left = spec.left_interfaces.iter().map(|nic| nic.id.as_str());
    left.chain(strays.filter(move |id| spec.left(id).is_none()))
}

/// All that these snapshots show, of each node as the last one at it does. A reservation that is recorded and
/// not shown has gone back.
pub(super) fn all(snapshots: &[&Snapshot]) -> Vec<Beside> {
    let mut found: Vec<Beside> = vec![];
    for snapshot in snapshots {
        found.retain(|one| !snapshot.is_at(&one.node));
        for allocation in snapshot.allocations() {
            for id in nics(allocation).filter(|id| !is_in_service(snapshot, allocation, id)) {
                let Some(Ok(view)) = snapshot.reserved.get(&id.to_lowercase()) else { continue };
                found.extend(view.reservations.iter().map(|one| Beside {
                    node: allocation.name_any(),
                    nic: id.to_owned(),
                    what: one.name.clone(),
                    message: message(allocation, id, one),
                }));
            }
        }
    }
    found.sort();
    found
}

/// Whether a NIC serves its node again, or another node has it: then its reservations are compared there.
fn is_in_service(snapshot: &Snapshot, allocation: &NodeIPAllocation, id: &str) -> bool {
    let is_it = |nic: &Interface| nic.id.eq_ignore_ascii_case(id);
    snapshot.objects.allocations.iter().any(|one| match one.metadata.name == allocation.metadata.name {
        true => one.spec.serving().is_some_and(is_it),
        false => one.spec.interfaces.iter().any(is_it),
    })
}

fn message(allocation: &NodeIPAllocation, nic: &str, one: &Reservation) -> String {
    let why = match allocation.spec.left(nic) {
        Some(_) => "the node has left this NIC",
        None => "this NIC doesn't serve the node",
    };
    let address = one.address.as_deref().unwrap_or("no address yet");
    let is_it = |lost: &str| lost.parse().is_ok_and(|lost: Ipv4Addr| contains(address, lost));
    let mut lost = allocation.status.iter().flat_map(|status| &status.lost);
    let ends = match lost.find(|holder| is_it(&holder.address)).map(|holder| holder.pod.as_str()) {
        None => "It goes back.".to_owned(),
        Some("") => "It goes back once its pod is gone.".to_owned(),
        Some(pod) => format!("It goes back once {pod} is gone."),
    };
    format!("Azure has it ({address}, {}), and {why}. {ends}", one.state)
}
