//! The node agent: keeps a node's ledger supplied, the node's rules in place, and the node's allocation
//! reported.
//!
//! ```text
//!   NodeIPAllocation.spec ── watch ──▶ supply ──▶ ledger ◀── CNI plugin, which never waits for us
//!                                │                  │
//!                                ├▶ firewall        ├▶ sweep: what leaked
//!                                ├▶ sysctl          ├▶ disturbance: what others on the node undo
//!                                │                  ▼
//!                                └▶ install       report ── server-side apply ──▶ NodeIPAllocation.status
//! ```
//!
//! On a VM of no cluster the instance metadata service stands in for the object, and a file for its status
//! ([`source`]).
//!
//! Nothing on the node depends on this process being alive: pods start and stop without it while addresses
//! last, and everything it has set up stays when it ends.

pub mod admin;
pub mod agent;
#[cfg(test)]
mod alone;
pub mod args;
pub mod attach;
pub mod beat;
mod chain;
mod child;
pub mod cleanup;
pub mod config;
pub mod disturbance;
mod error;
pub mod firewall;
#[cfg(test)]
mod fuzz;
mod host_ports;
pub mod imds;
mod install;
pub mod metrics;
mod object;
mod others_firewall;
mod refusals;
pub mod report;
#[cfg(test)]
mod sample;
pub mod show;
pub mod source;
pub mod supply;
pub mod sweep;
pub mod sysctl;
mod watch;
