//! The one table of reasons: of conditions, and of the Events that the operator publishes.
//!
//! Conditions and Events are made with a [`Reason`], so no reason is missing here. The reference page
//! `docs/reference/conditions.md` is generated from this table.

use std::fmt;

use crate::condition::Type::{self, *};

/// The person who has to act before a condition with the reason turns to its normal status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// Nobody: all is well, or Vnetpool goes on without help.
    Nobody,
    /// The administrator of the cluster, who edits the pools.
    Cluster,
    /// The administrator of the subscription: roles, quotas, policies, subnets.
    Azure,
    /// The administrator of the node: its kernel, firewall and other daemons.
    Node,
    /// The owner of the pod that the message names.
    Pod,
}

impl Actor {
    pub const fn name(self) -> &'static str {
        match self {
            Actor::Nobody => "nobody",
            Actor::Cluster => "the cluster's administrator",
            Actor::Azure => "Azure's administrator",
            Actor::Node => "the node's administrator",
            Actor::Pod => "the pod's owner",
        }
    }
}

/// How loud an Event is. Kubernetes knows these two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loudness {
    Normal,
    Warning,
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub reason: Reason,
    pub name: &'static str,
    /// The condition types that can have the reason. Besides, `Ready` and `AgentReporting` repeat that of a
    /// failing part.
    pub conditions: &'static [Type],
    /// How loud the Event of that reason is, if there is one.
    pub event: Option<Loudness>,
    /// The event or state behind the reason.
    pub meaning: &'static str,
    pub actor: Actor,
    /// That person's task; empty if nobody has to act.
    pub remedy: &'static str,
}

/// Any refusal or failure of Azure's can be what keeps these from their normal status.
const AZURE: &[Type] = &[
    InterfaceFound,
    Reserved,
    Full,
    OperationsTracked,
    Attached,
    ApplicationSecurityGroups,
    SubnetExhausting,
    NetworkExhausting,
];
/// A scope that isn't there, besides.
const SCOPE: &[Type] = &[
    InterfaceFound,
    Reserved,
    Full,
    OperationsTracked,
    Attached,
    ApplicationSecurityGroups,
    SubnetExhausting,
    GroupFound,
];
const NORMAL: Option<Loudness> = Some(Loudness::Normal);
const WARNING: Option<Loudness> = Some(Loudness::Warning);

macro_rules! table {
    ($($reason:ident: $conditions:expr, $event:expr, $meaning:literal, $actor:ident, $remedy:literal;)*) => {
        /// Why a condition has its status, or the subject of an Event.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $(#[doc = $meaning] $reason,)*
        }

        /// Every reason there is, in the order of the reference page.
        pub const TABLE: &[Row] = &[$(Row {
            reason: Reason::$reason,
            name: stringify!($reason),
            conditions: $conditions,
            event: $event,
            meaning: $meaning,
            actor: Actor::$actor,
            remedy: $remedy,
        },)*];
    };
}

table! {
    // All is well, or soon will be.
    Ready: &[Ready], None, "Everything that `Ready` sums up holds.", Nobody, "";
    Pending: &[InterfaceFound, Reserved, SubnetExhausting, NetworkExhausting], None, "Vnetpool has not reconciled the object yet.", Nobody, "";
    Found: &[InterfaceFound], None, "The node's VM and its serving NIC were found.", Nobody, "";
    Reserved: &[Reserved], None, "The NIC holds as many addresses as are wanted.", Nobody, "";
    Reserving: &[Reserved], None, "More addresses are being reserved.", Nobody, "";
    Repairing: &[Reserved], None,
        "The NIC or an address on it has failed, and Vnetpool writes it again.", Nobody, "";
    Selected: &[Selected], None, "The pool selects every node that it serves.", Nobody, "";
    Reporting: &[AgentReporting], None, "The agent has taken up the object.", Nobody, "";
    Writing: &[Writing], None, "A write to the NIC is under way, or its outcome is not known.", Nobody, "";
    Settled: &[Writing], None, "No write to the NIC is under way.", Nobody, "";
    Updating: &[Updating], None, "The node takes up an edit of its pool.", Nobody, "";
    RollingOut: &[Reconciling], None, "Nodes take up an edit of the pool, so many at a time.", Nobody, "";
    MoreThanWanted: &[Surplus], None,
        "More addresses are held than wanted. They are given back after `sizing.releaseAfter`.", Nobody, "";
    AsWanted: &[Surplus], None, "No more addresses are held than wanted.", Nobody, "";
    NotFull: &[Full], None, "The node has free addresses, or can get more.", Nobody, "";
    Tracked: &[OperationsTracked], None, "Writes to the NIC are followed to their end.", Nobody, "";
    Ended: &[SandboxesEnded], None, "No sandbox of a pod that is gone holds an address.", Nobody, "";
    Joined: &[ApplicationSecurityGroups], None, "The NIC is in the pool's application security groups.", Nobody, "";
    Joining: &[ApplicationSecurityGroups], None,
        "The NIC is about to join application security groups of its pool.", Nobody, "";
    Leaving: &[ApplicationSecurityGroups], None,
        "The NIC is about to leave application security groups that its pool does not name.", Nobody, "";
    Attached: &[Attached], NORMAL,
        "The pods have the backend pools and the public addresses that they ask for.", Nobody, "";
    Attaching: &[Attached], None, "Some pods are yet to get what they ask for.", Nobody, "";
    Adopted: &[Adopted], None, "Nobody else has an address for pods on the NIC.", Nobody, "";
    Adopting: &[Adopted], None, "ipConfigurations that others made are being removed from the NIC.", Nobody, "";
    Valid: &[Valid], None, "The pool's fields make sense together and with Azure.", Nobody, "";
    Supported: &[NodesSupported], None, "Every node that the pool selects can be served.", Nobody, "";
    Readable: &[ObjectsReadable], None, "All objects of the pool's nodes can be read.", Nobody, "";
    NoNodes: &[NodesReady, SubnetExhausting, NetworkExhausting], None, "The pool serves no node.", Nobody, "";
    Off: &[SubnetExhausting, NetworkExhausting], None, "`subnetExhaustingPercent` of the pool is 0.", Nobody, "";
    EnoughFree: &[SubnetExhausting, NetworkExhausting], None,
        "Every subnet and network of the pool has more free addresses than `subnetExhaustingPercent`.", Nobody, "";
    UsageUnknown: &[SubnetExhausting, NetworkExhausting], None, "Azure does not report how many addresses are free.", Nobody, "";
    EnoughWrites: &[WritesScarce], None, "Azure lets through the writes that the nodes want.", Nobody, "";
    Supplied: &[Supplied], None, "The ledger holds the addresses of `spec`.", Nobody, "";
    Building: &[Supplied], None, "The node has no ledger, and the agent builds one.", Nobody, "";
    Copied: &[Supplied], None,
        "The object was made from a copy. The operator reads the NIC before the addresses are used.", Nobody, "";
    OtherBoot: &[Supplied], None, "`spec` is of another boot. The operator reads the NIC for this one.", Nobody, "";
    Applied: &[RulesApplied], None, "Forwarding is on, and the table `inet vnetpool` is in place.", Nobody, "";
    Installed: &[CNIInstalled], None, "The runtime uses the configuration of Vnetpool.", Nobody, "";
    Delegated: &[CNIInstalled], None,
        "The runtime uses a configuration of another program, which has Vnetpool wire the pods.", Nobody, "";
    IPAMOnly: &[CNIInstalled], None,
        "`vnetpool-ipam` is installed for another plugin that wires the pods.", Nobody, "";
    Backed: &[AssignmentsBacked], None, "Every pod's address is reserved for the node.", Nobody, "";
    Undisturbed: &[Undisturbed], None, "Nothing else on the node is in the way of its pods.", Nobody, "";
    Repaired: &[Undisturbed], None,
        "Another program on the node changed what pods need, and the agent has repaired it.", Node,
        "Keep the program that the message names from doing it again.";

    // Settings that a person has made, or has to make.
    DryRun: &[Reserved, ApplicationSecurityGroups], NORMAL,
        "The operator runs with `--dry-run` and writes nothing to Azure.", Cluster,
        "Start the operator without `--dry-run` to have it done.";
    Paused: &[Paused, Ready, Reserved, Full], None,
        "The Node, or the pool, has the annotation `vnetpool.io/paused`: nothing is written to Azure.", Cluster,
        "Remove the annotation, as the message says.";
    PoolPaused: &[Paused, Ready, Reserved, Full], None,
        "The node's pool has the annotation `vnetpool.io/paused`, or had it when deleted: nothing is written to Azure.",
        Cluster, "Remove the annotation, or make the pool again, as the message says.";
    NothingToDo: &[DryRun], None, "Dry run: nothing would be done.", Nobody, "";
    WouldWrite: &[DryRun], None, "Dry run: the message names the writes that would be made.", Cluster,
        "Start the operator without `--dry-run` to have it done.";
    NoPool: &[InterfaceFound, Reserved, Selected], WARNING, "No pool selects the node.", Cluster,
        "Label the node, or extend the nodeSelector of a pool.";
    OtherPool: &[Selected], WARNING, "Another pool selects the node, and has no use for what the node holds.", Cluster,
        "Have the former pool select the node, or drain the node.";
    NodesLeave: &[Selected], WARNING, "The pool doesn't select nodes any more that it serves.", Cluster,
        "Extend its nodeSelector or raise its weight, if that was a slip.";
    NoInterface: &[Reserved], None, "There is no NIC to reserve addresses on.", Cluster,
        "Follow the message of `InterfaceFound`.";
    NodeGone: &[Ready], None, "The Node was deleted while its VM lives, so its addresses stay reserved.", Cluster,
        "Delete the VM, or register a Node of that name with that VM. If the VM is another machine, annotate the \
         NodeIPAllocation with `vnetpool.io/gone=true`.";
    HeldByOthers: &[Ready], None,
        "The object was deleted while its Node lives. It is made again once other clients' finalizers are off it.", Cluster,
        "Find out whose finalizers the message names, if that lasts.";
    Moving: &[InterfaceFound], WARNING,
        "The node still has pods with addresses of its former pool's mode or range.", Cluster, "Drain the node.";
    ModeUnavailable: &[InterfaceFound], WARNING,
        "Azure has no blocks of addresses for an instance of a Uniform scale set.", Cluster,
        "Give the node a pool of mode `Address`.";
    SubnetMismatch: &[InterfaceFound], WARNING, "The node has no NIC in the subnet of its pool.", Cluster,
        "Give the VM a NIC there, let the pool leave the node out, or change its `subnetID`.";
    RouteTableNotAssociated: &[InterfaceFound], WARNING,
        "The subnet of the node has another route table than the pool.", Azure,
        "Associate the pool's route table with the subnet.";
    RangeOverlap: &[InterfaceFound, Valid, Ready, Stalled], WARNING,
        "The pool's `podCIDR` overlaps the VNet, a peered network or another pool.", Cluster,
        "Make a pool with another `podCIDR`.";
    SelectorInvalid: &[Valid, Ready, Stalled, Selected], WARNING, "The pool's nodeSelector cannot be read.", Cluster,
        "Use the operators In, NotIn, Exists and DoesNotExist.";
    NodesNotReady: &[NodesReady], None, "Some nodes of the pool are not ready.", Cluster,
        "List them by the command in the message: the column REASON has the cause.";
    AllReady: &[NodesReady], None, "All nodes of the pool are ready.", Nobody, "";
    WindowsNodes: &[NodesSupported], None, "The pool selects nodes that run Windows. They are left alone.", Cluster,
        "Let the nodeSelector ask for `kubernetes.io/os: linux`.";
    ForeignArchitecture: &[NodesSupported], None,
        "The pool selects nodes of an architecture that there is no image for. They are left alone.", Cluster,
        "Let the nodeSelector ask for `kubernetes.io/arch`, or build images and name it in `image.architectures`.";
    VirtualNodes: &[NodesSupported], None, "The pool selects virtual nodes. They are left alone.", Cluster,
        "Let the nodeSelector leave them out.";
    Unreadable: &[ObjectsReadable], WARNING,
        "An object has a field that this release cannot read. Nothing is done for its node.", Cluster,
        "Correct the field that the message names, or bring the operator to the release that wrote it.";
    RolloutStopped: &[Stalled], WARNING,
        "As many nodes as may take up an edit of the pool at a time can't settle, so no further one does.", Cluster,
        "Remove the causes that these nodes report, or take the edit back.";
    FewFree: &[SubnetExhausting, NetworkExhausting], None,
        "A subnet or a virtual network has fewer addresses left than `subnetExhaustingPercent`.", Azure,
        "Free up addresses in it, lower the pool's sizing, or give new nodes another one. In a network use mode `Prefix`.";
    CountAmbiguous: &[NetworkExhausting], None,
        "Azure's figures do not show whether it counts blocks as one address or as 16.", Azure,
        "Count what the network's subnets and virtual machines have, as the message says.";
    FewWrites: &[WritesScarce], None,
        "Much of the writes that Azure allows in a subscription is used, so nodes write less often and more at once.", Cluster,
        "Raise `sizing.batch` and `releaseAfter`, use mode `Prefix` or a further subscription, or raise `azure.budgetPercent`.";
    MaximumReached: &[Reserved, Full], None,
        "Pods lack an address: the pool's maximum, the NIC's 256 ipConfigurations or the node's range is used up.",
        Cluster, "Raise `sizing.maximum`, lower the kubelet's maxPods, or use more nodes.";
    Full: &[], WARNING, "A node has no free address and can get no more.", Cluster, "Follow the message.";
    SharedNIC: &[ApplicationSecurityGroups], WARNING,
        "The pool names security groups, and the NIC is the node's own, too.", Cluster,
        "Set `applicationSecurityGroups.onSharedNIC`, or give the VM a second NIC and the pool its `subnetID`.";
    PodsOfOthers: &[Adopted], None,
        "ipConfigurations of another network plugin stay until every pod has an address of Vnetpool's.", Pod,
        "Restart the pods that another network plugin has wired.";
    SandboxLeft: &[SandboxesEnded], WARNING,
        "A pod is gone, and its sandbox on the node still holds an address.", Node,
        "Remove the sandbox, or reboot the node.";
    Unavailable: &[Attached], WARNING,
        "A pod asks for a backend pool or a public address that it cannot have.", Pod,
        "Change the annotation, or `attachments` of the NodeIPPool.";
    AttachedByOthers: &[Attached], None,
        "Another client has attached a resource to an address of Vnetpool's, so no pod gets it.", Azure,
        "Detach it from the ipConfiguration that the message names.";
    InterfaceLeft: &[], WARNING,
        "A NIC that served the node belongs to another VM now and keeps its reservations.", Azure,
        "Register the other VM's Node, or delete the NIC.";
    DeletionWaits: &[], WARNING,
        "A NodeIPAllocation that somebody has deleted stays while nothing else names its public addresses, or NICs that its \
         node has left.",
        Azure, "Look for the cause in the Events of the node and of its pods.";

    // Reports of the agent.
    NotReported: &[AgentReporting], None, "The agent has not reported since the node booted.", Cluster,
        "Check the pod of the DaemonSet `vnetpool-node-agent` on that node.";
    Behind: &[AgentReporting], None, "The agent has not taken up the current `spec` for half a minute.", Cluster,
        "Check the pod of the DaemonSet `vnetpool-node-agent` on that node.";
    AgentComplains: &[AgentReporting, Ready], None,
        "The agent gives a reason that this release of the operator does not know.", Cluster,
        "Follow the message.";
    OtherNode: &[Supplied], None, "The object is about another Node of that name.", Nobody, "";
    InvalidSpec: &[Supplied, RulesApplied], None,
        "The agent cannot read `spec`, which a newer operator may have written.", Cluster,
        "Bring operator and agents to the same release.";
    RulesMissing: &[Supplied], None,
        "The node's rules are not in place, so no pod gets an address; pods that run keep theirs.", Node,
        "Follow the condition `RulesApplied`.";
    NotInspected: &[RulesApplied, CNIInstalled], None,
        "The agent's last inspection of the node has not reached this part.", Node,
        "Follow the conditions `Supplied`, `RulesApplied` and `Undisturbed`.";
    LinksUnlisted: &[RulesApplied], None, "The kernel does not list the node's links.", Node,
        "Follow the message. The agent tries again without help.";
    InterfaceMissing: &[RulesApplied], None, "The node has no link with the hardware address of its NIC.", Node,
        "Check `ip link` on the node.";
    ForwardingOff: &[RulesApplied], None, "IP forwarding cannot be turned on.", Node,
        "Let the agent write below `/proc/sys/net`.";
    BridgeMissing: &[RulesApplied], None, "The bridge of the wiring `Bridge` cannot be made.", Node,
        "Follow the message. Linux 5.18 or newer is needed.";
    NotSteered: &[RulesApplied], None, "Packets of a secondary NIC's pods cannot be steered to it.", Node,
        "Follow the message.";
    TableRefused: &[RulesApplied], None, "The kernel refuses the table `inet vnetpool`.", Node,
        "Follow the message of nft.";
    TableInDoubt: &[RulesApplied], None,
        "Whether the table `inet vnetpool` is in place cannot be seen: nft cannot be run, or does not end.", Node,
        "Follow the message. The agent tries again without help.";
    RangeOpen: &[RulesApplied], None, "The node's range cannot be closed to addresses that no pod has.", Node,
        "Follow the message.";
    KernelTooOld: &[RulesApplied], None, "The node's kernel is older than Linux 5.5.", Node,
        "Upgrade the node's kernel.";
    NotInstalled: &[CNIInstalled], None, "The CNI files cannot be written.", Node, "Follow the message.";
    OtherConfiguration: &[CNIInstalled], None,
        "The runtime uses another CNI configuration, whose name comes first.", Node,
        "Remove or rename the file that the message names.";
    RuntimeReadsElsewhere: &[AgentReporting], None,
        "The runtime finds no network though the CNI configuration is installed: it reads another folder.", Cluster,
        "Set `nodeAgent.cni.confDir` and `binDir` of the chart to the runtime's folders.";
    OthersPluginMissing: &[CNIInstalled], None,
        "A plugin that others chained behind Vnetpool's is not on the node, so no pod can start.", Node,
        "Install the plugin again, or take its entry out.";
    PluginMissing: &[CNIInstalled], None, "A plugin of the chain is not on the node; pods start without it.", Node,
        "Install the plugin that the message names.";
    AddressVanished: &[AssignmentsBacked], None, "An address left the NIC while a pod had it.", Pod,
        "Delete the pods that the message names.";
    PodsAsk: &[MetadataRefused], WARNING,
        "Pods ask the metadata service, from which `podMetadataAccess` of their pool keeps them, or the wire server.", Pod,
        "For the metadata service, give the pod a workload identity or the host network, or its nodes a pool with \
         `podMetadataAccess: All`. For the wire server, find out what asks in the pod.";
    InTheWay: &[Undisturbed], None,
        "Another program on the node cuts pods off, and the agent may not change it.", Node, "Follow the message.";

    // Answers of Azure.
    Throttled: AZURE, WARNING, "Azure limits requests, and Vnetpool waits as long as Azure asks for.", Nobody, "";
    SubnetFull: AZURE, WARNING, "The subnet has no free address for the node.", Azure,
        "Free up addresses in it, lower the pool's sizing, or give new nodes another subnet.";
    VirtualNetworkFull: AZURE, WARNING, "The virtual network has as many private addresses as Azure lets it have.", Azure,
        "Use mode `Prefix`, lower the pool's sizing, or give new nodes another virtual network.";
    TakenOffByOthers: &[AddressesKept], WARNING,
        "Another client takes Vnetpool's addresses off the NIC again and again.", Azure,
        "Have the template or Terraform that owns the NIC leave its ipConfigurations alone (`ignore_changes`).";
    AddressTaken: AZURE, WARNING, "An address that a pod had cannot be had any more.", Pod,
        "Delete the pod that `AssignmentsBacked` names.";
    AddressBeingFreed: AZURE, None, "Azure still frees an address that a pod had. It is asked for again.", Nobody, "";
    PermissionDenied: AZURE, WARNING, "The operator's identity lacks a permission.", Azure,
        "Grant the action that the message names, on its scope.";
    DenyAssignment: AZURE, WARNING, "A deny assignment forbids an action that roles grant.", Azure,
        "On AKS lift the lockdown of the node resource group.";
    ResourceLocked: AZURE, WARNING, "A lock forbids the write.", Azure, "Remove the lock.";
    QuotaExceeded: AZURE, WARNING, "A quota of the subscription is used up.", Azure,
        "Have the quota raised, or lower the pool's sizing.";
    PolicyForbidden: AZURE, WARNING, "An Azure Policy forbids the write.", Azure,
        "Exempt the resource, or change the policy.";
    SubscriptionUnusable: AZURE, WARNING, "The subscription is disabled, or lacks the provider.", Azure,
        "Enable the subscription, or register the provider that the message names.";
    Stale: AZURE, None, "Another client changed the resource; Vnetpool reads it again.", Nobody, "";
    Superseded: AZURE, None, "Another write took the place of Vnetpool's.", Nobody, "";
    ResourceBusy: AZURE, None, "The resource is busy with another operation, or Azure has asked to wait.", Nobody, "";
    ResourceConflict: AZURE, WARNING, "Azure refuses the request because of a conflict that lasts.", Azure,
        "Change what the message objects to.";
    ResourceNotFound: AZURE, WARNING, "The VM or the NIC does not exist, or the identity may not see it.", Azure,
        "Delete the Node if its VM is gone, or grant read access.";
    ScopeMissing: SCOPE, WARNING, "Azure does not know the subscription or resource group. Everything is kept.", Azure,
        "If it is gone for good, annotate the NodeIPAllocation with `vnetpool.io/gone=true`.";
    AzureUnavailable: AZURE, None, "Azure does not answer.", Nobody, "";
    OutcomeUnknown: AZURE, None, "A write was sent and its outcome is not known; the resource is read.", Nobody, "";
    Outgrown: AZURE, None, "A request gave its place in the queue up, unsent.", Nobody, "";
    Unconfirmed: AZURE, None, "The API server did not confirm a write that was announced; it was not sent.", Nobody, "";
    OperationFailed: AZURE, WARNING, "Azure took the write and gave it up later; Vnetpool makes it again.", Azure,
        "If it lasts, ask Azure's support about that operation.";
    WithoutEffect: AZURE, WARNING, "Azure reports writes as successes that change nothing.", Azure,
        "Find out what undoes them: an Azure Policy, a proxy or another client.";
    NotAttachable: AZURE, WARNING, "Azure cannot attach the resource that a pod asks for.", Azure, "Follow the message.";
    CredentialRefused: AZURE, WARNING, "The operator cannot sign in to Azure.", Azure,
        "Check the identity that the chart's `azure.identity` names.";
    ProviderIDUnusable: AZURE, WARNING, "The Node's `spec.providerID` names no VM of Azure's.", Cluster,
        "Follow the message.";
    ResourceIDMalformed: AZURE, WARNING, "A field that takes an Azure resource id has something else.", Cluster,
        "Correct the field that the message names.";
    UnexpectedAnswer: AZURE, WARNING, "Azure's answer makes no sense to Vnetpool.", Cluster,
        "Report the message to the project.";
    AzureRefused: AZURE, WARNING, "Azure refuses the request for a reason of its own.", Azure,
        "Change what the message objects to.";
    ConfigurationUnusable: AZURE, WARNING, "The operator's Azure configuration cannot be used.", Cluster,
        "Correct the chart's values that the message names.";
    RouteTableFull: AZURE, WARNING, "The route table has 400 routes, which is Azure's limit.", Azure,
        "Remove routes, or give new nodes a pool with another table and subnet.";
    PodCIDRExhausted: AZURE, WARNING, "All ranges of the pool's `podCIDR` are in use.", Cluster,
        "Make a pool with another `podCIDR` for new nodes.";
    RouteConflict: AZURE, WARNING, "Another route of the table covers the node's range.", Azure,
        "Remove that route; Vnetpool then puts the node's back.";

    // Events only.
    SubnetExhausting: &[], WARNING, "A subnet of the pool has few free addresses left.", Azure,
        "Free up addresses in it, lower the pool's sizing, or give new nodes another subnet.";
    NetworkExhausting: &[], WARNING, "A virtual network of the pool takes few more private addresses.", Azure,
        "Use mode `Prefix`, lower the pool's sizing, or give new nodes another virtual network.";
    AddressesReserved: &[], NORMAL, "Addresses were reserved on the node's NIC.", Nobody, "";
    AddressesReleased: &[], NORMAL, "Addresses were given back to Azure.", Nobody, "";
    AddressesRestored: &[], WARNING,
        "Addresses in use had left the NIC by another hand; they are back on it.", Azure,
        "Keep templates and tools from writing the NIC's ipConfigurations.";
    ForwardingEnabled: &[], NORMAL, "IP forwarding of the NIC was turned on for mode `Route`.", Nobody, "";
    RouteMended: &[], WARNING, "The node's route had been changed by another hand; it was put back.", Azure,
        "Keep others from writing the node's route.";
    SecurityGroupsChanged: &[], NORMAL, "The NIC joined or left application security groups.", Nobody, "";
    OthersRemoved: &[], NORMAL, "ipConfigurations of another network plugin were removed.", Nobody, "";
}

impl Reason {
    /// The line of the table about it.
    pub fn row(self) -> &'static Row {
        // The variants are numbered in the order of the table.
        &TABLE[self as usize]
    }

    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The reason of that name; `None` for one that only another release knows.
    pub fn of(name: &str) -> Option<Reason> {
        TABLE.iter().find(|row| row.name == name).map(|row| row.reason)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Objects have reasons as texts.
impl PartialEq<&str> for Reason {
    fn eq(&self, name: &&str) -> bool {
        self.name() == *name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_found_by_its_name() {
        for row in TABLE {
            assert_eq!(Reason::of(row.name), Some(row.reason));
            assert_eq!(row.reason.row().name, row.name);
        }
        assert_eq!(Reason::of("Novel"), None);
    }

    #[test]
    fn every_reason_is_used_and_names_a_remedy_if_it_has_an_actor() {
        for row in TABLE {
            assert!(!row.conditions.is_empty() || row.event.is_some(), "{}: nothing has it", row.name);
            assert!(row.meaning.ends_with('.'), "{}: {}", row.name, row.meaning);
            assert_eq!(row.remedy.is_empty(), row.actor == Actor::Nobody, "{}: {}", row.name, row.remedy);
        }
    }
}
