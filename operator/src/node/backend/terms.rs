//! The requests to all back-ends, and their answers.

use k8s_openapi::api::core::v1::ObjectReference;
use vnetpool_crds::allocation::Interface;

use crate::azure::{IpConfiguration, Urgency};
use crate::planner::{Change, Observed};

/// The NIC that serves the node, as it was found.
pub struct NicView<'a> {
    pub interface: &'a Interface,
    /// Our ipConfigurations on it.
    pub held: &'a [IpConfiguration],
    /// How many of ours it can take.
    pub slots: u32,
    /// This process has read it; otherwise it is as `spec` mirrors it.
    pub is_read: bool,
}

/// The reservations of the node.
#[derive(Debug, Default)]
pub struct Holding {
    pub held: Vec<IpConfiguration>,
    /// How many of ours there can be.
    pub slots: u32,
    /// The node's route isn't there any more, or doesn't lead to it.
    pub route_is_wrong: bool,
}

/// A planned change, and the facts that are needed to carry it out.
pub struct Task<'a> {
    /// The NIC's id.
    pub nic: &'a str,
    pub observed: &'a Observed,
    pub change: &'a Change,
    /// New reservations are blocks.
    pub blocks: bool,
    pub urgency: Urgency,
    /// The objects that Events are about.
    pub about: [ObjectReference; 2],
}

/// The result of a change.
#[derive(Debug, Default)]
pub struct Outcome {
    /// False: there was nothing to do, so Azure wasn't asked.
    pub was_sent: bool,
    /// All that the back-end holds is known from Azure's answer.
    pub is_known: bool,
    /// The part of the change that has had no effect, though Azure reports a success.
    pub lacks: Change,
}
