//! Condition types, and the two operations on conditions: set, and compare without regard to time.
//!
//! Each type has one writer. `kubectl describe` shows type, status, reason and message. A message names the
//! object, the cause and the remedy. The table [`TYPES`] is the source of the CRDs' texts and of
//! `docs/reference/conditions.md`.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

/// The kind of object that has a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    NodeIPAllocation,
    NodeIPPool,
    Both,
}

impl On {
    /// The kinds of objects by name.
    pub const fn kinds(self) -> &'static [&'static str] {
        match self {
            On::NodeIPAllocation => &["NodeIPAllocation"],
            On::NodeIPPool => &["NodeIPPool"],
            On::Both => &["NodeIPAllocation", "NodeIPPool"],
        }
    }
}

/// The program that applies conditions of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    Operator,
    Agent,
}

/// Which status is the normal one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polarity {
    True,
    False,
    /// Both are: the condition informs.
    Either,
}

/// Bytes of a message, at most. The schema bounds its characters, of which there are no more.
pub const LONGEST_MESSAGE: usize = 32_768;

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub type_: Type,
    pub name: &'static str,
    pub on: On,
    pub writer: Writer,
    pub polarity: Polarity,
    /// The kinds whose objects are `Ready` only while this has its normal status.
    pub in_ready: &'static [On],
    pub meaning: &'static str,
}

macro_rules! table {
    ($($type:ident $alias:ident: $on:ident, $writer:ident, $polarity:ident, [$($in_ready:ident)?], $meaning:literal;)*) => {
        /// The subject of a condition.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Type {
            $(#[doc = $meaning] $type,)*
        }

        $(pub use Type::$type as $alias;)*

        /// Every condition type there is, in the order of the reference page.
        pub const TYPES: &[Row] = &[$(Row {
            type_: Type::$type,
            name: stringify!($type),
            on: On::$on,
            writer: Writer::$writer,
            polarity: Polarity::$polarity,
            in_ready: &[$(On::$in_ready)?],
            meaning: $meaning,
        },)*];
    };
}

table! {
    Ready READY: Both, Operator, True, [],
        "The AND of its parts. The reason is that of the first part that fails. A pool's doesn't cover its nodes.";
    InterfaceFound INTERFACE_FOUND: NodeIPAllocation, Operator, True, [NodeIPAllocation],
        "The node's VM and the NIC that serves its pool were found in Azure.";
    Reserved RESERVED: NodeIPAllocation, Operator, True, [NodeIPAllocation],
        "The NIC holds as many addresses as the pool's sizing asks for.";
    AgentReporting AGENT_REPORTING: NodeIPAllocation, Operator, True, [NodeIPAllocation],
        "The agent has taken up the current `spec`, and every condition of its own is True.";
    Selected SELECTED: Both, Operator, True, [],
        "The pool that serves a node selects it. False: its addresses are kept for a while, then given back.";
    Paused PAUSED: Both, Operator, False, [NodeIPPool],
        "A person has stopped all writes to Azure for the node, or for the pool's nodes. Absent otherwise.";
    Updating UPDATING: NodeIPAllocation, Operator, Either, [],
        "The node takes up an edit of its pool, one of those that may at a time. Absent once it has settled.";
    Writing WRITING: NodeIPAllocation, Operator, Either, [],
        "A NIC write is under way or its outcome isn't known. An operator that starts reads that NIC.";
    OperationsTracked OPERATIONS_TRACKED: NodeIPAllocation, Operator, True, [],
        "Azure lets the operator follow the writes it has begun. Absent until a write was followed.";
    Surplus SURPLUS: NodeIPAllocation, Operator, Either, [],
        "More addresses are held than wanted. Its transition time starts `releaseAfter`.";
    Adopted ADOPTED: NodeIPAllocation, Operator, True, [],
        "ipConfigurations of others are gone from the NIC, as the pool's `adopt` asks for. False while pods may use them.";
    Full FULL: NodeIPAllocation, Operator, False, [],
        "All addresses are taken and no more can be had. The node carries a taint as long.";
    Attached ATTACHED: NodeIPAllocation, Operator, True, [],
        "The pods that ask for backend pools or a public address have them. It concerns those pods, not the node.";
    SandboxesEnded SANDBOXES_ENDED: NodeIPAllocation, Operator, True, [],
        "No sandbox of a pod that is gone holds an address. False after one to 18 minutes; absent until there was one.";
    ApplicationSecurityGroups APPLICATION_SECURITY_GROUPS: NodeIPAllocation, Operator, True, [],
        "The NIC is in the pool's application security groups. Pods have addresses either way.";
    AddressesKept ADDRESSES_KEPT: NodeIPAllocation, Operator, True, [],
        "No other client takes addresses off the NIC. False from the third time in a day on; absent otherwise.";
    GroupFound GROUP_FOUND: NodeIPAllocation, Operator, True, [],
        "Azure knows the resource groups of this record. False since when it doesn't: a day counts as proof. Absent otherwise.";
    DryRun DRY_RUN: NodeIPAllocation, Operator, Either, [],
        "The writes that the operator would make to the node's NIC without `--dry-run`.";
    RulesApplied RULES_APPLIED: NodeIPAllocation, Agent, True, [NodeIPAllocation],
        "Forwarding is on and the nftables table `inet vnetpool` is in place. Without, no pod gets an address.";
    Supplied SUPPLIED: NodeIPAllocation, Agent, True, [NodeIPAllocation],
        "The node's ledger has been supplied from `spec` in this boot.";
    CNIInstalled CNI_INSTALLED: NodeIPAllocation, Agent, True, [NodeIPAllocation],
        "The CNI plugin is installed, and the runtime uses a configuration that leads to it.";
    AssignmentsBacked ASSIGNMENTS_BACKED: NodeIPAllocation, Agent, True, [NodeIPAllocation],
        "Every assigned address is still in `spec`. False names the pods whose address has been taken away.";
    Undisturbed UNDISTURBED: NodeIPAllocation, Agent, True, [NodeIPAllocation],
        "No other program on the node is in the way of its pods. The reason `Repaired` covers the last hour.";
    MetadataRefused METADATA_REFUSED: NodeIPAllocation, Agent, False, [],
        "Pods asked the metadata service or the wire server in vain within the last hour; the message names up to 20 for each. \
         Absent otherwise.";
    NodesSupported NODES_SUPPORTED: NodeIPPool, Operator, True, [],
        "Every node that the pool selects can be served. False names those that are left alone.";
    ObjectsReadable OBJECTS_READABLE: NodeIPPool, Operator, True, [],
        "All objects of the pool's nodes can be read. False names one that can't; absent until there was one.";
    Valid VALID: NodeIPPool, Operator, True, [NodeIPPool],
        "The pool's own fields make sense together and with Azure.";
    NodesReady NODES_READY: NodeIPPool, Operator, True, [],
        "Every node that the pool serves is `Ready`. False names the reasons of those that aren't.";
    Reconciling RECONCILING: NodeIPPool, Operator, Either, [],
        "An edit of the pool is on its way to its nodes. Absent otherwise, as kstatus reads it.";
    Stalled STALLED: NodeIPPool, Operator, False, [],
        "The pool serves no node, or an edit reaches no further one, until a person acts. Absent otherwise.";
    WritesScarce WRITES_SCARCE: NodeIPPool, Operator, False, [],
        "The pool's nodes want more writes than Azure lets through, and take coarser steps. Absent until they did.";
    SubnetExhausting SUBNET_EXHAUSTING: NodeIPPool, Operator, False, [],
        "A subnet of the pool has few free addresses. Unknown while Azure doesn't report how many.";
    NetworkExhausting NETWORK_EXHAUSTING: NodeIPPool, Operator, False, [],
        "A virtual network of the pool takes few more private addresses. Unknown while Azure doesn't report how many.";
}

impl Type {
    /// The line of the table about it.
    pub fn row(self) -> &'static Row {
        // The variants are numbered in the order of the table.
        &TYPES[self as usize]
    }

    pub fn name(self) -> &'static str {
        self.row().name
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Objects have types as texts.
impl PartialEq<Type> for String {
    fn eq(&self, type_: &Type) -> bool {
        self == type_.name()
    }
}

/// The types on a `NodeIPAllocation` that its agent applies, in the order of the table.
pub fn by_agent() -> impl Iterator<Item = Type> {
    TYPES.iter().filter(|row| row.writer == Writer::Agent).map(|row| row.type_)
}

/// Whether a condition is one that the agent applies.
pub fn is_agents(condition: &Condition) -> bool {
    by_agent().any(|type_| condition.type_ == type_)
}

/// Whether a condition of a `NodeIPAllocation` is one that the operator applies. Of a type that isn't in the
/// table nobody knows: a later release's agent may apply it, or a program of others.
pub fn is_operators(condition: &Condition) -> bool {
    TYPES.iter().any(|row| row.writer == Writer::Operator && condition.type_ == row.type_)
}

/// Sets `condition` in `conditions`, in place of the one of its type. `lastTransitionTime` is kept when the
/// status is.
pub fn set(conditions: &mut Vec<Condition>, mut condition: Condition) {
    match conditions.iter_mut().find(|known| known.type_ == condition.type_) {
        Some(known) => {
            if known.status == condition.status {
                condition.last_transition_time = known.last_transition_time.clone();
            }
            *known = condition;
        }
        None => conditions.push(condition),
    }
}

pub fn find(conditions: &[Condition], type_: Type) -> Option<&Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

pub fn is_true(conditions: &[Condition], type_: Type) -> bool {
    find(conditions, type_).is_some_and(|condition| condition.status == "True")
}

/// Whether two lists are the same except for transition times and order: if so, there is nothing to write.
pub fn same(a: &[Condition], b: &[Condition]) -> bool {
    let content =
        |c: &Condition| (c.status.clone(), c.reason.clone(), c.message.clone(), c.observed_generation);
    a.len() == b.len()
        && a.iter()
            .all(|one| b.iter().any(|other| one.type_ == other.type_ && content(one) == content(other)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reason::Reason;
    use crate::verdict::Verdict;
    use k8s_openapi::jiff::Timestamp;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_condition_keeps_its_transition_time_until_its_status_turns() {
        let mut conditions = vec![];
        set(&mut conditions, Verdict::no(Reason::SubnetFull, "a").condition(READY, None, at(1)));
        set(&mut conditions, Verdict::no(Reason::Throttled, "b").condition(READY, None, at(2)));
        assert_eq!(find(&conditions, READY).unwrap().last_transition_time.0, at(1));
        assert_eq!(find(&conditions, READY).unwrap().reason, "Throttled");
        set(&mut conditions, Verdict::yes(Reason::Ready, "c").condition(READY, None, at(3)));
        assert_eq!(find(&conditions, READY).unwrap().last_transition_time.0, at(3));
        assert_eq!(conditions.len(), 1);
    }

    #[test]
    fn conditions_that_differ_only_in_time_are_the_same() {
        let ready =
            |message: &str, second| [Verdict::yes(Reason::Ready, message).condition(READY, None, at(second))];
        assert!(same(&ready("", 1), &ready("", 9)));
        assert!(!same(&ready("", 1), &ready("other", 1)));
        assert!(!same(&ready("", 1), &[]));
    }

    #[test]
    fn every_type_stands_in_its_own_row_of_the_table() {
        for row in TYPES {
            assert_eq!(row.type_.row().name, row.name);
            assert!(row.meaning.ends_with('.'), "{}: {}", row.name, row.meaning);
        }
    }
}
