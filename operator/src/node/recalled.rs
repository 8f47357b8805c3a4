//! The shortage that an earlier operator has recorded in a node's object. Pure.

use vnetpool_crds::allocation::NodeIPAllocation;
use vnetpool_crds::condition;
use vnetpool_crds::reason::Reason;

use crate::shortage::Answer;

/// The shortage that the condition `Reserved` records.
#[derive(Clone, Debug)]
pub struct Recalled {
    pub is_network: bool,
    pub answer: Answer,
}

impl Recalled {
    pub fn of(allocation: &NodeIPAllocation) -> Option<Recalled> {
        let reserved = condition::find(allocation.conditions(), condition::RESERVED)?;
        let full = [Reason::SubnetFull, Reason::VirtualNetworkFull]
            .into_iter()
            .find(|full| *full == reserved.reason.as_str())?;
        let is_network = full == Reason::VirtualNetworkFull;
        let subnet = allocation.spec.serving()?.subnet.id.rsplit('/').next()?.to_owned();
        let answer = Answer { subnet, message: "it had none when it was last asked".to_owned() };
        Some(Recalled { is_network, answer })
    }
}
