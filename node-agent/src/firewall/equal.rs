//! Matches by which a pod's MAC is compared with the address that it ends in
//! ([`pod_mac`](vnetpool_plugin::wiring::pod_mac)). nftables compares a field with constants only, so both
//! are looked up, byte by byte, in a set of all pairs of equal bytes.

/// Where four bytes begin: the header, in nftables' words, and bits from its start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes(pub &'static str, pub u32);

impl Bytes {
    fn byte(self, index: u32) -> String {
        format!("@{},{},8", self.0, self.1 + 8 * index)
    }
}

/// The set, for comparing the last four bytes of a MAC with those of an address.
pub(super) fn set(mac: Bytes, address: Bytes) -> String {
    let pairs: Vec<String> = (0..=255).map(|byte| format!("{byte:#04x} . {byte:#04x}")).collect();
    format!(
        "\tset equal {{\n\t\ttypeof {} . {}\n\t\telements = {{ {} }}\n\t}}\n",
        mac.byte(0),
        address.byte(0),
        pairs.join(", ")
    )
}

/// A match for each byte, of which a packet meets one at least if the two differ.
pub(super) fn differences(mac: Bytes, address: Bytes) -> [String; 4] {
    [0, 1, 2, 3].map(|index| format!("{} . {} != @equal", mac.byte(index), address.byte(index)))
}
