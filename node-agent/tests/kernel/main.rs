//! The node's rules, routes and the sweep on a real kernel, in network namespaces that end with the test.
//! Needs root, nft and ip.

// Helpers of a test fail by panicking, too; clippy allows that in the test functions only.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod arp;
mod platform;
mod routes;
mod rules;
mod second_nic;
mod sweep;
mod world;
