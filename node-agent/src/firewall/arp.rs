//! The table `arp vnetpool`: what the node takes of pods' ARP. Nothing of it is per pod.
//!
//! The node's entry for a pod is permanent, and so is a pod's for its gateway: neither has to ask. What a pod
//! sends of its own accord does harm only. Each request that the node answers makes an entry in its table of
//! neighbours, which all links share, and made-up senders would fill it.
//!
//! But the node's entry may be missing: another program has removed it, or an earlier release made none.
//! Until the agent's next inspection adds it, the node asks by ARP, and the pod isn't cut off. All pods of
//! the bridge hear the question, and any of them may reply to it, or announce another's address unasked. So a
//! sender counts only if the node has asked for it on that link, and only with the MAC that the plugin gives
//! to the pod of that address. Whoever has sent the packet, the node learns nothing else from it.

use std::{fmt::Write, net::Ipv4Addr, time::Duration};

use vnetpool_crds::pool::{BLOCK, NIC_SLOTS};
use vnetpool_plugin::{sandbox::LINK_PREFIX, wiring::pod_mac};

use super::{
    ASKED, Family,
    equal::{self, Bytes},
    no_table, set_by_packets,
};

/// The last four bytes of the sender's MAC in ARP for Ethernet and IPv4 (RFC 826).
const MAC: Bytes = Bytes("nh", 80);
/// The sender's address there.
const SENDER: Bytes = Bytes("nh", 112);

/// The node asks for pods only, and has as many as a NIC brings addresses when each reservation is a block.
const ASKED_AT_MOST: u32 = NIC_SLOTS * BLOCK;
/// How long a reply may take. The kernel asks three times, once a second.
const REPLY_WITHIN: Duration = Duration::from_secs(5);

/// The transaction for the table. `ipam_only`: there is to be none, since other plugins wire the pods, and
/// the gateway of those may have to answer.
pub fn table(ipam_only: bool) -> String {
    let mut text = no_table(Family::Arp);
    if ipam_only {
        return text;
    }
    text.push_str("table arp vnetpool {\n");
    text.push_str(&set_by_packets(ASKED, "iface_index . ipv4_addr", ASKED_AT_MOST, REPLY_WITHIN));
    text.push_str(&equal::set(MAC, SENDER));
    let [first, second, ..] = pod_mac(Ipv4Addr::UNSPECIFIED);
    let _ = write!(
        text,
        "\tchain ask {{\n\
         \t\ttype filter hook output priority filter; policy accept;\n\
         \t\toifname \"{LINK_PREFIX}*\" arp operation request update @{ASKED} {{ oif . arp daddr ip }}\n\
         \t}}\n\
         \tchain pod {{\n\
         \t\tiif . arp saddr ip != @{ASKED} counter drop\n\
         \t\tarp saddr ether & ff:ff:00:00:00:00 != {first:02x}:{second:02x}:00:00:00:00 counter drop\n"
    );
    for differs in equal::differences(MAC, SENDER) {
        let _ = writeln!(text, "\t\t{differs} counter drop");
    }
    let _ = write!(
        text,
        "\t}}\n\
         \tchain guard {{\n\
         \t\ttype filter hook input priority filter; policy accept;\n\
         \t\tiifname \"{LINK_PREFIX}*\" jump pod\n\
         \t}}\n\
         }}\n"
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_arp_reads_as_it_should() {
        assert_eq!(
            table(false).replace(&equal::set(MAC, SENDER), ""),
            r#"table arp vnetpool
delete table arp vnetpool
table arp vnetpool {
	set asked {
		type iface_index . ipv4_addr
		size 4096
		flags dynamic, timeout
		timeout 5s
	}
	chain ask {
		type filter hook output priority filter; policy accept;
		oifname "vnp*" arp operation request update @asked { oif . arp daddr ip }
	}
	chain pod {
		iif . arp saddr ip != @asked counter drop
		arp saddr ether & ff:ff:00:00:00:00 != 0a:58:00:00:00:00 counter drop
		@nh,80,8 . @nh,112,8 != @equal counter drop
		@nh,88,8 . @nh,120,8 != @equal counter drop
		@nh,96,8 . @nh,128,8 != @equal counter drop
		@nh,104,8 . @nh,136,8 != @equal counter drop
	}
	chain guard {
		type filter hook input priority filter; policy accept;
		iifname "vnp*" jump pod
	}
}
"#
        );
    }
}
