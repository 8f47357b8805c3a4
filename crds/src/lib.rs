//! The API of Vnetpool, group `vnetpool.io`, version `v1alpha1`: two cluster-scoped kinds.
//!
//! ```text
//!   NodeIPPool                    NodeIPAllocation (one per node, named after it)
//!   policy, written by people     ┌ spec   ─ what Azure has reserved for the node: only the operator writes it
//!   status: the sums of its ────► └ status ─ what the node does with it: only that node's agent writes it
//!   allocations (operator)          status.conditions: each side applies its own types under its own field manager
//! ```
//!
//! Nothing here talks to anything: types, defaults, validation rules, and the few pure functions that belong to them.
//! `cargo run -p vnetpool-crds` prints the CustomResourceDefinitions; `manifests/` holds them as generated.

// kube's printcolumn(...) repeats its inner keys for each column.
#![allow(clippy::duplicated_attributes)]

pub mod allocation;
pub mod condition;
pub mod names;
pub mod pool;

pub use allocation::{NodeIPAllocation, NodeIPAllocationSpec, NodeIPAllocationStatus};
pub use pool::{NodeIPPool, NodeIPPoolSpec, NodeIPPoolStatus};

pub const GROUP: &str = "vnetpool.io";
pub const VERSION: &str = "v1alpha1";
