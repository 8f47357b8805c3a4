//! An address of the node, and the sandbox that has one.

use std::net::Ipv4Addr;

use crate::sandbox::{Pod, Sandbox};

/// An address that the node holds, as published in the spec. Its identity is the name of its ipConfiguration,
/// which is never used twice. The addresses of a block are entries of one name: each is assigned separately,
/// but they come, go and are relinquished only together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Empty after a rebuild for an address in use that no spec has named yet.
    pub name: String,
    pub address: Ipv4Addr,
    /// UID of the only pod that may have it: a resource of Azure's is attached to this address.
    pub attached_to: Option<String>,
}

/// The sandbox that has an entry, and how to see whether it lives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tenant {
    pub sandbox: Sandbox,
    pub pod: Pod,
    /// The name of the CNI network whose ADD asked for it. Empty if it isn't known: the wiring doesn't record
    /// it, nor did the release before.
    pub network: String,
    pub proof: Proof,
}

impl Tenant {
    /// Whose it is, for people: the pod as `namespace/name`, or the container where the runtime named none.
    pub fn whose(&self) -> String {
        match self.pod.name.is_empty() {
            true => self.sandbox.container_id.clone(),
            false => self.pod.to_string(),
        }
    }
}

/// How to find out whether a sandbox lives. One that can't be checked lives.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Proof {
    /// By the host's end of its veth pair, which is our wiring and ends with the sandbox's network namespace.
    /// The name is the one that ADD gave the link. It may have changed since; the link's alias names its
    /// sandbox.
    Link(String),
    /// By the file of its network namespace and, if known, the namespace's inode: another plugin wired the
    /// sandbox and asked only for the address (delegated IPAM). An inode number comes again, but not behind
    /// the same path.
    Namespace { path: String, inode: Option<u64> },
}

impl Default for Proof {
    fn default() -> Proof {
        Proof::Link(String::new())
    }
}
