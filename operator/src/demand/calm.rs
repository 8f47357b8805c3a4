//! Which changes of a node's pods are no news to it. A reconcile takes a thousand times as long as the event
//! of a pod, and most pods come to nodes that have addresses for them. Pure.

use std::ops::RangeInclusive;
use std::time::Duration;

/// How long bound pods must be fewer than those that have addresses: as long as a pod's end may take.
pub const LASTING: Duration = Duration::from_secs(60);

/// What the last reconcile of a node has found: nothing to do, and nothing that hangs on which pods these
/// are. Whatever else changes for the node wakes it, and the next reconcile finds this anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calm {
    /// With so many bound pods its plan is the same.
    pub alike: RangeInclusive<u32>,
    /// So many pods have addresses, by the agent's last count.
    pub counted: u32,
    /// Fewer were bound: there may be sandboxes that have outlived their pods.
    pub exceeds: bool,
}

/// Whether a node is to be reconciled for what has become of its pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    Nothing,
    Now,
    IfItLasts,
}

impl Calm {
    /// Of so many bound pods, none of which has a wish.
    pub fn news(&self, bound: u32) -> News {
        if !self.alike.contains(&bound) {
            News::Now
        } else if (bound < self.counted) != self.exceeds {
            News::IfItLasts
        } else {
            News::Nothing
        }
    }
}
