//! Which calls wait longer for Azure's request limits than others.

/// Why a call is made, highest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// A write has begun. Whatever it was for, the addresses it reserves are of no use before its end is
    /// known, and nothing else can be done for its node. Otherwise pods that came meanwhile would wait as
    /// long as the least urgent of its calls.
    UnderWay,
    /// Pods wait for an address.
    WaitingPods,
    /// A node has none yet.
    NewNode,
    /// Addresses held ready for pods to come, and what is attached to addresses that pods have.
    WarmRefill,
    /// Giving back addresses that are no longer needed, and re-checks.
    GiveBack,
}

impl Priority {
    pub const ALL: [Priority; 5] = [
        Priority::UnderWay,
        Priority::WaitingPods,
        Priority::NewNode,
        Priority::WarmRefill,
        Priority::GiveBack,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Priority::UnderWay => "under_way",
            Priority::WaitingPods => "waiting_pods",
            Priority::NewNode => "new_node",
            Priority::WarmRefill => "warm_refill",
            Priority::GiveBack => "give_back",
        }
    }

    /// The part of our share that calls of this priority leave to calls above it.
    pub fn leaves(self) -> f64 {
        match self {
            Priority::UnderWay | Priority::WaitingPods => 0.0,
            Priority::NewNode => 0.1,
            Priority::WarmRefill => 0.25,
            Priority::GiveBack => 0.5,
        }
    }
}
