//! The simulator's behaviour over the wire, beyond the shape of bodies.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is how a test fails")]

mod client;
mod requests;
mod scale_sets;
