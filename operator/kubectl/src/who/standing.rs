//! The standing of an address on a node, or on none: in words, and explained.

use serde::{Serialize, Serializer};

/// The standing of an address on a node, or on none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    Assigned,
    Outlived,
    Lost,
    Withdrawn,
    Withheld,
    InDoubt,
    GivenUp,
    Kept,
    Cooling,
    Free,
    /// The ledger wasn't read.
    Unheld,
    Leaked,
    OnLeftNic,
    NodesOwn,
    Primary,
    #[default]
    Unknown,
    /// Of a pod without an address.
    Waits,
    NeedsNone,
}

impl Standing {
    /// In a word or two.
    pub fn words(self) -> &'static str {
        match self {
            Standing::Assigned => "assigned",
            Standing::Outlived => "outlived",
            Standing::Lost => "lost",
            Standing::Withdrawn => "withdrawn",
            Standing::Withheld => "withheld",
            Standing::InDoubt => "in doubt",
            Standing::GivenUp => "given up",
            Standing::Kept => "kept",
            Standing::Cooling => "cooling",
            Standing::Free => "free",
            Standing::Unheld => "no pod has it, as far as objects show",
            Standing::Leaked => "leaked",
            Standing::OnLeftNic => "on a left NIC",
            Standing::NodesOwn => "the node's own",
            Standing::Primary => "a NIC's primary address",
            Standing::Unknown => "unknown",
            Standing::Waits => "waits for an address",
            Standing::NeedsNone => "needs no address",
        }
    }

    /// Further facts, if any.
    pub fn explanation(self) -> Option<&'static str> {
        Some(match self {
            Standing::Outlived => {
                "Its pod is gone, and its sandbox still has it. The runtime frees it when it ends the sandbox."
            }
            Standing::Lost => {
                "Somebody took it off the NIC while its pod has it. The operator asks Azure for it again."
            }
            Standing::Withdrawn => "Somebody took it off the NIC while it was free. No pod gets it.",
            Standing::Withheld => {
                "Its node lacks its rules, and no pod gets it until it has them: see the condition RulesApplied."
            }
            Standing::InDoubt => {
                "Its pod reports it, and by the node's ledger no pod has it. `check` shows whether that lasts."
            }
            Standing::GivenUp => {
                "The node has given it up for good. The operator is yet to take it off the NIC."
            }
            Standing::Leaked => {
                "It is reserved, and the node's ledger doesn't have it. `check` shows whether that lasts."
            }
            Standing::OnLeftNic => {
                "Its node has left that NIC, and what the NIC holds is given back. The condition InterfaceFound of \
                 the node's NodeIPAllocation shows what that waits for."
            }
            Standing::Unknown => "No node holds it, and no pod has it.",
            Standing::Assigned
            | Standing::Kept
            | Standing::Cooling
            | Standing::Free
            | Standing::Unheld
            | Standing::NodesOwn
            | Standing::Primary
            | Standing::Waits
            | Standing::NeedsNone => return None,
        })
    }
}

impl Serialize for Standing {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.words())
    }
}
