//! The CNI plugin, and the parts that it shares with the node agent: the ledger of the node's addresses and
//! the wiring of pods.
//!
//! ```text
//!   runtime ── CNI ──▶ plugin ──▶ ledger  (which address)  ◀── agent: supplies, reports, sweeps
//!                        └──────▶ wiring  (veth, routes)   ◀──┘
//! ```

pub mod cni;
pub mod ledger;
pub mod plugin;
pub mod sandbox;
pub mod wiring;
