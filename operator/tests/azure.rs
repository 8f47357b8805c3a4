//! The operator's Azure client on the wire: against simulated Azure, and against scripts for what that
//! wouldn't do.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "azure/identity.rs"]
mod identity;
#[path = "azure/lost.rs"]
mod lost;
#[path = "azure/operations.rs"]
mod operations;
#[path = "azure/preflight.rs"]
mod preflight;
#[path = "azure/role.rs"]
mod role;
#[path = "azure/routes.rs"]
mod routes;
#[path = "azure/script.rs"]
mod script;
#[path = "azure/scripted.rs"]
mod scripted;
#[path = "azure/simulated.rs"]
mod simulated;
#[path = "azure/uniform.rs"]
mod uniform;
