//! The operator's Azure client on the wire: against simulated Azure, and against scripts for what that
//! wouldn't do.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod identity;
mod listed;
mod lost;
mod operations;
mod preflight;
mod role;
mod routes;
mod script;
mod scripted;
mod simulated;
mod uniform;
