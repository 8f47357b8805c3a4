//! The shortage that an earlier operator has recorded in a node's object. Pure.

use vnetpool_crds::allocation::NodeIPAllocation;
use vnetpool_crds::condition;
use vnetpool_crds::reason::Reason;

use crate::shortage::Said;

/// The shortage that the condition `Reserved` records.
#[derive(Clone, Debug)]
pub struct Recalled {
    pub is_network: bool,
    pub said: Said,
}

impl Recalled {
    pub fn of(allocation: &NodeIPAllocation) -> Option<Recalled> {
        let reserved = condition::find(allocation.conditions(), condition::RESERVED)?;
        let full = [Reason::SubnetFull, Reason::VirtualNetworkFull]
            .into_iter()
            .find(|full| *full == reserved.reason.as_str())?;
        let is_network = full == Reason::VirtualNetworkFull;
        let subnet = allocation.spec.serving()?.subnet.id.rsplit('/').next()?.to_owned();
        let said = Said { subnet, message: "it had none when it was last asked".to_owned() };
        Some(Recalled { is_network, said })
    }
}
