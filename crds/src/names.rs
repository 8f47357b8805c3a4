//! Every string that more than one part of Vnetpool, or a user, has to spell the same way.

/// Field manager of the operator: owner of all `spec`s it applies and of its own condition types.
pub const OPERATOR: &str = "vnetpool-operator";
/// Field manager of the node agents: owner of `NodeIPAllocation.status` and of their own condition types.
pub const AGENT: &str = "vnetpool-node-agent";
/// Keeps a `NodeIPAllocation` until all our reservations on its NIC are accounted for.
pub const FINALIZER: &str = "vnetpool.io/nic";
/// `NoSchedule` taint of a node whose addresses are all taken and that can get no more for now.
///
/// The prefix is cluster-autoscaler's for taints that only reflect the moment. Under any other key the
/// autoscaler would take the taint over into its template of a new node, believe that a new node is full,
/// too, and add none.
pub const FULL_TAINT: &str = "status-taint.cluster-autoscaler.kubernetes.io/vnetpool-full";
/// Every ipConfiguration of ours on a NIC starts with this; others are never touched.
pub const IP_CONFIGURATION_PREFIX: &str = "vnp-";
/// Annotation of a pod: the load balancers' backend pools it joins, by the names its NodeIPPool gives them,
/// separated by commas.
pub const BACKEND_POOLS: &str = "vnetpool.io/backend-pools";
/// Annotation of a pod: `true` for a public address of its own.
pub const PUBLIC_ADDRESS: &str = "vnetpool.io/public-address";
/// Annotation of a pod with a public address: its name below the region's domain.
pub const DNS_LABEL: &str = "vnetpool.io/dns-label";
/// `attachedTo` of an ipConfiguration with an attachment of others.
pub const OTHERS: &str = "others";
/// Annotation of a NodeIPAllocation by which a person confirms that nothing of it is left in Azure, since the
/// subscription or resource group of its NIC is gone for good, or that what is left belongs to another
/// machine: `true` lets the object go.
pub const GONE: &str = "vnetpool.io/gone";
/// Annotation of a NodeIPAllocation by which a person says which of the NICs that the node has left belong to
/// another machine now, with all that they hold: their names or ids, separated by commas.
pub const LEFT: &str = "vnetpool.io/left";
/// Annotation of a NodeIPAllocation by which a person confirms that its node needn't keep what a pool that
/// doesn't serve it any more has given it, nor a pause of a Node or a pool that was deleted meanwhile: `true`
/// ends both.
pub const RELEASE: &str = "vnetpool.io/release";
/// Annotation of a NodeIPAllocation by which a person has the operator read the node's NIC now, where it
/// would believe `spec` for hours. Any value will do that it hasn't had, such as the time.
pub const READ: &str = "vnetpool.io/read";
/// Annotation of a Node or a NodeIPPool by which a person has nothing written to Azure for that node, or for
/// all of the pool's. Its value is the reason.
pub const PAUSED: &str = "vnetpool.io/paused";

#[cfg(test)]
mod tests {
    use super::*;

    /// Its `SanitizeTaints` leaves out taints that begin with this, whatever flags it was started with.
    #[test]
    fn cluster_autoscaler_leaves_the_full_taint_out_of_its_template_of_a_new_node() {
        let name = FULL_TAINT.strip_prefix("status-taint.cluster-autoscaler.kubernetes.io/");
        assert_eq!(name, Some("vnetpool-full"));
    }
}
