//! The cluster's objects, read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use vnetpool_apiserver::reading::{Reading, Unreadable};
use vnetpool_crds::{NodeIPAllocation, NodeIPPool};
use vnetpool_operator::outlook::{Facts, Node, Outlook, needs_address, outlook};

use crate::kubectl::Kubectl;
use crate::pod::node_of;

const POOLS: &str = "/apis/vnetpool.io/v1alpha1/nodeippools";
const ALLOCATIONS: &str = "/apis/vnetpool.io/v1alpha1/nodeipallocations";

/// All that is shown is made from these, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    pub pools: Vec<Arc<NodeIPPool>>,
    pub allocations: Vec<NodeIPAllocation>,
    pub nodes: Vec<Node>,
    pub pods: Vec<Pod>,
    /// Objects that are there and can't be read.
    pub unreadable: Vec<Unreadable>,
    pub now: Timestamp,
}

impl Objects {
    /// Pools and the nodes' addresses.
    ///
    /// # Errors
    /// When the API server refuses, or Vnetpool isn't installed.
    pub fn ours(kubectl: &Kubectl) -> Result<Objects> {
        let mut unreadable = vec![];
        let read = "is Vnetpool installed in this cluster, and may you read its objects?";
        let pools = readable::<NodeIPPool>(kubectl.list(POOLS).context(read)?, &mut unreadable);
        let allocations = readable(kubectl.list(ALLOCATIONS).context(read)?, &mut unreadable);
        let pools = pools.into_iter().map(Arc::new).collect();
        Ok(Objects { pools, allocations, unreadable, now: Timestamp::now(), ..Objects::default() })
    }

    /// These, the Nodes, and every pod.
    ///
    /// # Errors
    /// When the API server refuses.
    pub fn all(kubectl: &Kubectl) -> Result<Objects> {
        let objects = Objects::ours(kubectl)?;
        Ok(Objects { nodes: kubectl.list("/api/v1/nodes")?, pods: kubectl.list("/api/v1/pods")?, ..objects })
    }

    pub fn allocation(&self, node: &str) -> Option<&NodeIPAllocation> {
        self.allocations.iter().find(|one| one.metadata.name.as_deref() == Some(node))
    }

    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|one| one.metadata.name.as_deref() == Some(name))
    }

    pub fn pool(&self, name: &str) -> Option<&NodeIPPool> {
        self.pools.iter().find(|one| one.metadata.name.as_deref() == Some(name)).map(AsRef::as_ref)
    }

    /// How many pods of each node need an address.
    pub fn bound(&self) -> BTreeMap<&str, u32> {
        let mut bound = BTreeMap::new();
        for pod in self.pods.iter().filter(|pod| needs_address(pod)) {
            if let Some(node) = node_of(pod) {
                *bound.entry(node).or_default() += 1;
            }
        }
        bound
    }

    /// The operator's decisions for a node; `None` for one without Node or NodeIPAllocation.
    pub fn outlook(&self, node: &str, bound: u32, pools: &[Arc<NodeIPPool>]) -> Option<Outlook> {
        let (allocation, node) = (self.allocation(node)?, self.node(node)?);
        Some(outlook(&Facts { allocation, node, bound, pools, now: self.now }))
    }

    /// The UIDs by which nodes know the pods there are: static ones by the UID of their manifest.
    pub fn uids(&self) -> BTreeSet<&str> {
        let mirrored = self.pods.iter().filter_map(|pod| pod.annotations().get(MIRROR).map(String::as_str));
        self.pods.iter().filter_map(|pod| pod.metadata.uid.as_deref()).chain(mirrored).collect()
    }
}

/// The kubelet's mark of a pod that stands for a static one. Its value is the static pod's UID.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Why there is nothing to show of it.
pub fn cannot_be_read(one: &Unreadable) -> String {
    format!("{} {} can't be read: {}", one.kind, one.name(), one.error)
}

fn readable<K>(all: Vec<Reading<K>>, unreadable: &mut Vec<Unreadable>) -> Vec<K>
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    let read = |Reading(one): Reading<K>| match one {
        Ok(object) => Some(object),
        Err(one) => {
            unreadable.push(*one);
            None
        }
    };
    all.into_iter().filter_map(read).collect()
}
