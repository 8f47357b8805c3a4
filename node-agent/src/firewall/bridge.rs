//! The part of the table for pods behind the bridge: to the rules they all come in by the same link.
//!
//! The MAC distinguishes them: each port is locked to its pod's, and that ends in the pod's address. So no
//! connection state is needed to see whether a packet's source is its sender's: the one is compared with the
//! other.

use std::fmt::Write;

use vnetpool_plugin::wiring::bridge::BRIDGE;

use super::equal::{self, Bytes};

/// The last four bytes of the frame's source MAC.
const MAC: Bytes = Bytes("ll", 64);
/// The source address of IPv4.
const SOURCE: Bytes = Bytes("nh", 96);

/// The rules in the guard's chain.
pub(super) fn guard() -> String {
    format!("\t\tiifname \"{BRIDGE}\" jump port\n")
}

/// The objects beside it.
pub(super) fn set_and_chain() -> String {
    let mut text = equal::set(MAC, SOURCE) + "\tchain port {\n";
    for differs in equal::differences(MAC, SOURCE) {
        let _ = writeln!(text, "\t\tmeta protocol ip {differs} counter name \"spoofed\" drop");
    }
    text.push_str("\t}\n");
    text
}
