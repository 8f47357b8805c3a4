//! The part of the table for pods behind the bridge: to the rules they all come in by the same link.
//!
//! The MAC distinguishes them: each port is locked to its pod's, and that ends in the pod's address. So no
//! connection state is needed to see whether a packet's source is its sender's: the last four bytes of the
//! one are compared with the four of the other, by looking both up in a set of all pairs of equal bytes,
//! since nftables compares a field with constants only.

use std::fmt::Write;

use vnetpool_plugin::wiring::bridge::BRIDGE;

/// Bits from the start of the frame to the last four bytes of its source MAC.
const MAC: u32 = 64;
/// Bits from the start of the IPv4 header to its source address.
const SOURCE: u32 = 96;

/// The rules in the guard's chain.
pub(super) fn guard() -> String {
    format!("\t\tiifname \"{BRIDGE}\" jump port\n")
}

/// The objects beside it.
pub(super) fn set_and_chain() -> String {
    let pairs: Vec<String> = (0..=255).map(|byte| format!("{byte:#04x} . {byte:#04x}")).collect();
    let mut text = format!(
        "\tset equal {{\n\t\ttypeof @ll,{MAC},8 . @nh,{SOURCE},8\n\t\telements = {{ {} }}\n\t}}\n\tchain port {{\n",
        pairs.join(", ")
    );
    for byte in 0..4 {
        let (mac, source) = (MAC + 8 * byte, SOURCE + 8 * byte);
        let _ = writeln!(
            text,
            "\t\tmeta protocol ip @ll,{mac},8 . @nh,{source},8 != @equal counter name \"spoofed\" drop"
        );
    }
    text.push_str("\t}\n");
    text
}
