//! The operator: it keeps Azure's reservations for each node at the number that the node's pods need.
//!
//! ```text
//!  Nodes, Pods, NodeIPPools, NodeIPAllocations ──watch──► cluster (stores, demand) ──names──► controllers
//!
//!  node:  observe (stores, NIC) → planner (pure) → write the NIC through azure → publish spec → report
//!  admit: a Node without a NodeIPAllocation gets one
//!  pool:  the nodes' sums and conditions → NodeIPPool.status
//! ```
//!
//! One replica leads by a Lease. It keeps no state that can't be lost: reservations are on the NICs, their
//! mirror in `NodeIPAllocation.spec`.

mod admin;
pub mod args;
pub mod azure;
mod beside;
mod caught;
mod causes;
mod cluster;
mod context;
pub mod crds;
pub mod datapath;
mod deadline;
mod demand;
mod events;
mod fence;
mod health;
#[cfg(test)]
mod heap;
mod ip_configuration;
mod leader;
mod left_alone;
pub mod metrics;
mod network;
mod node;
mod node_object;
mod operate;
pub mod planner;
mod pod_cidr;
mod pool;
pub mod preflight;
mod priority;
mod refusals;
pub mod reserved;
mod resource_id;
mod rollout;
mod rounds;
mod scarcity;
mod shortage;
mod woken;
mod writes;

// At home where the agent shares them.
use vnetpool_apiserver::answer as api_server;
use vnetpool_process::lock;

pub use context::Waits;
pub use demand::Uid;
pub use left_alone::Architectures;
pub use node::outlook;
pub use node::{Basis, Found, Known, Read, adoption, lost};
pub use operate::{Config, Error, run};
