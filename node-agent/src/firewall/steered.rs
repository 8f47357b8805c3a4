//! The part of the table for pods of a secondary NIC: which of their packets leave by another NIC.
//!
//! Routing goes by a packet's source ([`steer`](vnetpool_plugin::wiring::steer)), and the node replaces that
//! only afterwards. A connection that kube-proxy or `portmap` led to a pod came to an address of the first
//! NIC, as a rule, and its replies leave under that address. So do packets that kube-proxy gives the node's
//! address, and those to Azure's services on the host, which answer the first NIC only. Azure takes none of
//! these from the second NIC, so a mark has them routed like the node's own packets.
//!
//! The mark is one bit of many. It is set behind all translations of the prerouting hook, and taken off
//! before the filters of the forward hook, so that rules of others that ask for marks don't meet it.

use ipnet::Ipv4Net;
use vnetpool_plugin::wiring::steer::MARK;

use super::{Egress, PLATFORM, joined, set_of_ranges};

/// The set of the pods' addresses.
const SET: &str = "steered";
/// kube-proxy's mark on the first packet of a connection that is about to get the node's address. Where it is
/// configured to use another bit, that packet is lost, and the next is known by its connection.
const MASQUERADED: u32 = 0x4000;

/// The pods of a secondary NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steered {
    /// The NIC by which their packets leave.
    pub uplink: Egress,
    /// The ranges that have their addresses.
    pub sources: Vec<Ipv4Net>,
}

impl Steered {
    /// The set, and the chains; nothing if there are no addresses.
    pub(super) fn set_and_chains(&self) -> String {
        let Steered { uplink: Egress { link, address }, sources } = self;
        if sources.is_empty() {
            return String::new();
        }
        let set = set_of_ranges(SET, &Ipv4Net::aggregate(sources));
        let (platform, rest) = (joined(&PLATFORM), !MARK);
        let mark = format!("meta mark set meta mark or {MARK:#x}");
        // By the NIC itself comes the bulk, for pods, which needs no mark. Nor would one be safe: where the
        // kernel heeds marks as it filters reverse paths (`src_valid_mark`), it leads back by another NIC. An
        // answer to a connection that left under the node's address goes on to its client, and needs it.
        format!(
            "{set}\
             \tchain by_another_nic {{\n\
             \t\tct direction reply ct status dnat ct original ip daddr != {address} {mark}\n\
             \t\tct direction original ct status snat ct reply ip daddr != @{SET} {mark}\n\
             \t\tct direction original meta mark and {MASQUERADED:#x} != 0 {mark}\n\
             \t\tct direction original ip daddr {{ {platform} }} {mark}\n\
             \t}}\n\
             \tchain steer {{\n\
             \t\ttype filter hook prerouting priority dstnat + 1; policy accept;\n\
             \t\tiifname \"{link}\" ct status and snat == 0 accept\n\
             \t\tip saddr @{SET} goto by_another_nic\n\
             \t}}\n\
             \tchain unmark {{\n\
             \t\ttype filter hook forward priority mangle; policy accept;\n\
             \t\tmeta mark and {MARK:#x} != 0 ip saddr @{SET} meta mark set meta mark and {rest:#x}\n\
             \t}}\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eth1(sources: &[&str]) -> Steered {
        let uplink = Egress { link: "eth1".to_owned(), address: [10, 240, 32, 4].into() };
        Steered { uplink, sources: sources.iter().map(|range| range.parse().unwrap()).collect() }
    }

    #[test]
    fn the_part_for_pods_of_a_second_nic_reads_as_it_should() {
        assert_eq!(
            eth1(&["10.244.3.0/24", "10.240.32.0/24"]).set_and_chains(),
            r#"	set steered {
		type ipv4_addr
		flags interval
		elements = { 10.240.32.0/24, 10.244.3.0/24 }
	}
	chain by_another_nic {
		ct direction reply ct status dnat ct original ip daddr != 10.240.32.4 meta mark set meta mark or 0x1000
		ct direction original ct status snat ct reply ip daddr != @steered meta mark set meta mark or 0x1000
		ct direction original meta mark and 0x4000 != 0 meta mark set meta mark or 0x1000
		ct direction original ip daddr { 168.63.129.16, 169.254.169.254 } meta mark set meta mark or 0x1000
	}
	chain steer {
		type filter hook prerouting priority dstnat + 1; policy accept;
		iifname "eth1" ct status and snat == 0 accept
		ip saddr @steered goto by_another_nic
	}
	chain unmark {
		type filter hook forward priority mangle; policy accept;
		meta mark and 0x1000 != 0 ip saddr @steered meta mark set meta mark and 0xffffefff
	}
"#
        );
    }

    /// nft takes no set with an empty list.
    #[test]
    fn a_nic_without_an_ipv4_range_has_no_such_part() {
        assert_eq!(eth1(&[]).set_and_chains(), "");
    }
}
