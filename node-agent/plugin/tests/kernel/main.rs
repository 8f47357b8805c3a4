//! The plugin on a real kernel: nodes and pods are network namespaces, the plugin is the program that is
//! shipped.

#![allow(clippy::unwrap_used, clippy::panic)] // clippy takes only `#[test]` functions for tests, not what they share

mod bridge;
mod calls;
mod chain;
mod containerd;
mod crashes;
mod folder;
mod forged;
mod hazards;
mod names;
mod node;
mod reference;
mod runtime;
mod thrift;
mod verbs;
mod waiting;
mod wiring;
