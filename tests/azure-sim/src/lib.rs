//! Simulated Azure: ARM and the metadata service over HTTP, as far as an operator of secondary addresses
//! meets them, and the network that ARM programs.
//!
//! ```text
//!   http ──> fault ──> azure ──┬─> arm  ──> arm/network, arm/compute, arm/scale_set ──> world (documents, operations, limits)
//!                              ├─> imds ──────────────────────────────────^
//!   admin (Unix socket) ───────┤
//!                              └─> fabric (the kernel): follows the world after each request
//! ```
//! `world` and the code that works on it are pure: time is an argument, nothing is awaited. Comments state
//! Azure's behaviour and its source. Behaviour without a known source is marked as an assumption there.

mod admin;
mod arm;
mod azure;
mod dns;
mod document;
mod draws;
mod entra;
mod fabric;
mod fault;
mod health;
mod http;
mod imds;
mod lock;
mod log;
mod nic;
mod operation;
mod permission;
mod proxy;
mod reply;
mod request;
mod resource;
mod scale_set;
#[cfg(feature = "schema")]
pub mod schema;
mod seclusion;
mod sim;
mod subnet;
mod template;
mod throttle;
mod topology;
mod vm;
mod vnet;
mod world;

pub use azure::{
    Azure, Error, NewInstance, NewNic, NewScaleSet, NewVm, Peering, Premises, Question, Settings, VmInfo,
};
pub use draws::Draws;
pub use fault::{Effect, Ending, Fault, Standing};
pub use log::LogEntry;
pub use proxy::Proxy;
pub use seclusion::seclude;
pub use sim::Sim;
pub use world::{Access, Application, Config, DenyAssignment, Grant, Habits, Lock, LockLevel, VnetConfig};
