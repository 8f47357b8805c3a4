//! What this process has seen of its node's object.

use std::sync::Arc;

use tokio::sync::watch;
use vnetpool_crds::NodeIPAllocation;

/// Kept current by [`Source::follow`](crate::source::Source::follow).
pub type Objects = watch::Sender<Seen>;

/// The node's object as it was seen last.
#[derive(Clone, Debug, Default)]
pub enum Seen {
    /// No answer has come yet, or no version of the object that there is could be read.
    #[default]
    Unknown,
    /// There is none: no pool serves the node.
    Absent,
    There(Arc<NodeIPAllocation>),
}

impl Seen {
    /// The object's last version that could be read; `None` without one.
    pub fn object(&self) -> Option<&NodeIPAllocation> {
        match self {
            Seen::There(object) => Some(object),
            Seen::Unknown | Seen::Absent => None,
        }
    }
}
