//! The node's nftables tables `inet vnetpool` and `arp vnetpool`: their wanted content, as text. [`apply`]
//! puts them into the kernel, [`events`] reports changes by others, and [`known`] decides whether they stand.
//!
//! Its duties. **Guard**: a packet that comes in from a pod's link must have a source address that the node
//! routes back to that link, so no pod can send under another's address or the node's. **Platform**: pods
//! reach no more of Azure's services on the host than they need, and the network reaches none of them through
//! the node, since these trust every client on the machine. **SNAT**: Azure lets only a NIC's primary address
//! out of the VNet, so pods' packets to other destinations leave under that. **ARP**: no pod fills the node's
//! table of neighbours, or takes another's place there ([`arp`]). And with a second NIC, **steering**
//! ([`Steered`]): what its pods send under an address of the first NIC leaves by the first. Nothing of this
//! is per pod: the rules change when the NIC or the ranges do, not when pods come and go.

pub mod apply;
pub mod arp;
mod bridge;
mod equal;
pub mod events;
pub mod known;
pub mod netlink;
mod steered;

use std::{
    collections::BTreeSet,
    fmt::{self, Write},
    net::Ipv4Addr,
    time::Duration,
};

use ipnet::Ipv4Net;
use vnetpool_crds::NodeIPAllocationSpec;
use vnetpool_crds::{
    allocation::IpConfiguration,
    pool::{BLOCK, MetadataAccess, NIC_SLOTS},
    refusal::Service,
};
use vnetpool_plugin::sandbox::LINK_PREFIX;

pub use steered::Steered;

const WIRE_SERVER: Ipv4Addr = Service::WireServer.address();
const METADATA: Ipv4Addr = Service::Metadata.address();
/// They answer a NIC's primary address only, so they are translated for even if a range that holds them is
/// excluded.
const PLATFORM: [Ipv4Addr; 2] = [WIRE_SERVER, METADATA];

/// The set of each table that packets fill. Here it is of pods that asked Azure's services in vain, by
/// address and service, each with its packets.
const ASKED: &str = "asked";
/// As many as a NIC brings addresses, when each reservation is a block, for each service. No node's range has
/// more.
const ASKED_AT_MOST: u32 = NIC_SLOTS * BLOCK * PLATFORM.len() as u32;
/// How long one stays there, so that addresses which the node has given up take no room. The agent reads the
/// set every half a minute.
const ASKED_FOR: Duration = Duration::from_secs(600);

/// Counters of dropped packets, by their aim.
const COUNTERS: [&str; 4] = ["loopback", Service::Metadata.word(), "spoofed", Service::WireServer.word()];

/// A family in which there is a table `vnetpool`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Inet,
    Arp,
}

impl Family {
    pub const ALL: [Family; 2] = [Family::Inet, Family::Arp];

    const fn word(self) -> &'static str {
        match self {
            Family::Inet => "inet",
            Family::Arp => "arp",
        }
    }

    /// NFPROTO_* of `linux/netfilter.h`.
    const fn number(self) -> u8 {
        match self {
            Family::Inet => 1,
            Family::Arp => 3,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The transaction after which the family has no table `vnetpool`, whether it had one or not.
fn no_table(family: Family) -> String {
    format!("table {family} vnetpool\ndelete table {family} vnetpool\n")
}

/// The facts from which the table is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    pub uplinks: Vec<Egress>,
    /// Destinations that see a pod's own address; sorted, without overlaps.
    pub direct: Vec<Ipv4Net>,
    /// Pod addresses with a public address of their own, under which Azure lets them out.
    pub public: BTreeSet<Ipv4Addr>,
    /// How much of the instance metadata service pods reach.
    pub metadata: MetadataAccess,
    /// The pods of a secondary NIC; `None` if the node has one NIC.
    pub steered: Option<Steered>,
}

/// A way out of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Egress {
    /// Name of the link.
    pub link: String,
    /// The NIC's primary address, which is let out of the VNet.
    pub address: Ipv4Addr,
}

/// The part of the spec that can't be made a rule of. Everything is parsed before it becomes text for nft.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("{0:?} is not a range of IPv4 addresses (a.b.c.d/n)")]
    Range(String),
    #[error("the primary address {0:?} of NIC {1} is not an IPv4 address")]
    Primary(String, String),
    #[error("the address {0:?} of ipConfiguration {1} is not an IPv4 address (a.b.c.d/32)")]
    Address(String, String),
    #[error("the name of link {0:?} can't be written in a rule")]
    Link(String),
}

impl Rules {
    /// The rules for a node with this spec; `links` are the names of its links by the hardware address of the
    /// NIC. A NIC whose link is not there yet gets no rules yet.
    pub fn new(
        spec: &NodeIPAllocationSpec,
        links: impl Fn(&str) -> Option<String>,
    ) -> Result<Rules, Invalid> {
        let (mut uplinks, mut steered) = (Vec::new(), None);
        let (mut direct, mut public) = (BTreeSet::new(), BTreeSet::new());
        for interface in &spec.interfaces {
            let invalid = || Invalid::Primary(interface.primary_address.clone(), interface.id.clone());
            let address = interface.primary_address.parse().map_err(|_| invalid())?;
            let mut subnet = Vec::new();
            for prefix in &interface.subnet.prefixes {
                subnet.extend(range(prefix)?);
            }
            direct.extend(&subnet);
            if let Some(link) = links(&interface.mac) {
                if link.contains(['"', '\\', '*']) {
                    return Err(Invalid::Link(link));
                }
                let uplink = Egress { link, address };
                if interface.secondary {
                    let sources = [subnet, own_ranges(spec)].concat();
                    steered = Some(Steered { uplink: uplink.clone(), sources });
                }
                uplinks.push(uplink);
            }
            let has_own = |one: &&IpConfiguration| {
                one.public_address.as_ref().is_some_and(|public| public.address.is_some())
            };
            for one in interface.ip_configurations.iter().filter(has_own) {
                let range: Option<Ipv4Net> = one.address.parse().ok();
                let address = range.filter(|range| range.prefix_len() == 32).map(|range| range.addr());
                public
                    .insert(address.ok_or_else(|| Invalid::Address(one.address.clone(), one.name.clone()))?);
            }
        }
        for exclusion in &spec.snat_exclusions {
            direct.extend(range(exclusion)?);
        }
        uplinks.sort_by(|a, b| a.link.cmp(&b.link));
        let direct = Ipv4Net::aggregate(&direct.into_iter().collect());
        Ok(Rules { uplinks, direct, public, metadata: spec.pod_metadata_access, steered })
    }

    /// The transaction for `nft -f`: the old table is replaced as a whole, whatever was in it. Established
    /// connections keep their translation, since that is looked up in the connection table and not here.
    pub fn render(&self) -> String {
        let mut text = no_table(Family::Inet) + "table inet vnetpool {\n";
        for counter in COUNTERS {
            let _ = writeln!(text, "\tcounter {counter} {{}}");
        }
        text.push_str(&set_by_packets(ASKED, "ipv4_addr . ipv4_addr", ASKED_AT_MOST, ASKED_FOR));
        if !self.direct.is_empty() {
            text.push_str(&set_of_ranges("direct", &self.direct));
        }
        text.push_str(&bridge::set_and_chain());
        if !self.public.is_empty() {
            let addresses = joined(&self.public);
            let _ =
                write!(text, "\tset public {{\n\t\ttype ipv4_addr\n\t\telements = {{ {addresses} }}\n\t}}\n");
        }
        // Before connection tracking: a packet with a false source must not even make an entry there.
        text.push_str(
            "\tchain guard {\n\
             \t\ttype filter hook prerouting priority raw; policy accept;\n",
        );
        let spoofed = "fib saddr . iif oif missing counter name \"spoofed\" drop";
        let _ = writeln!(text, "\t\tiifname \"{LINK_PREFIX}*\" {spoofed}");
        // The kernel drops these itself, unless `route_localnet` is on for the link, as portmap and Felix
        // have it.
        let loopback = "ip daddr 127.0.0.0/8 counter name \"loopback\" drop";
        let _ = writeln!(text, "\t\tiifname \"{LINK_PREFIX}*\" {loopback}");
        text.push_str(&bridge::guard());
        text.push_str("\t}\n");
        text.extend(self.steered.as_ref().map(Steered::set_and_chains));
        text.push_str(&self.platform());
        text.push_str(
            "\tchain egress {\n\
             \t\ttype nat hook postrouting priority srcnat; policy accept;\n",
        );
        let platform = joined(&PLATFORM);
        let mut outside = String::new();
        if !self.direct.is_empty() {
            outside.push_str("ip daddr != @direct ");
        }
        if !self.public.is_empty() {
            outside.push_str("ip saddr != @public ");
        }
        for Egress { link, address } in &self.uplinks {
            let pods = format!("\t\tiifname \"{LINK_PREFIX}*\" oifname \"{link}\"");
            // Random ports: with the kernel's first choice, connections opened at once on several CPUs
            // collide and drop.
            let translate = format!("counter snat ip to {address} fully-random\n");
            let _ = write!(text, "{pods} ip daddr {{ {platform} }} {translate}{pods} {outside}{translate}");
        }
        text.push_str("\t}\n}\n");
        text
    }

    /// Which packets to Azure's services the node forwards. The rules are in the forward hook, where others'
    /// translations are done: packets that a proxy on the node takes over don't come by here, and packets to
    /// a Service that leads there do, also those that come to the node from the network.
    fn platform(&self) -> String {
        let closed = match self.metadata {
            MetadataAccess::None => &PLATFORM[..],
            MetadataAccess::All => &[WIRE_SERVER],
        };
        let [all, closed] = [&PLATFORM[..], closed].map(joined);
        // The set has a rule of its own: where it takes no more, a rule ends without its verdict.
        let mut text = format!(
            "\tchain refused {{\n\
             \t\tip daddr {METADATA} counter name \"{}\" drop\n\
             \t\tcounter name \"{}\" drop\n\
             \t}}\n\
             \tchain restricted {{\n\
             \t\tip daddr {WIRE_SERVER} meta l4proto {{ tcp, udp }} th dport 53 accept\n\
             \t\tadd @{ASKED} {{ ip saddr . ip daddr counter }}\n\
             \t\tgoto refused\n\
             \t}}\n\
             \tchain platform {{\n\
             \t\ttype filter hook forward priority filter; policy accept;\n",
            Service::Metadata.word(),
            Service::WireServer.word()
        );
        // Replies are answers to load balancers' probes.
        let _ = writeln!(text, "\t\tip daddr {{ {all} }} ct direction reply accept");
        let _ = writeln!(text, "\t\tiifname \"{LINK_PREFIX}*\" ip daddr {{ {closed} }} goto restricted");
        // Nobody in the network needs a node to get there, a pod of another node as little as a VM.
        for Egress { link, .. } in &self.uplinks {
            let _ = writeln!(text, "\t\tiifname \"{link}\" ip daddr {{ {all} }} goto refused");
        }
        text.push_str("\t}\n");
        text
    }
}

/// The range that Azure routes to the node as a whole, which only mode `Route` has.
pub fn own_ranges(spec: &NodeIPAllocationSpec) -> Vec<Ipv4Net> {
    let ranges = spec.ip_configurations().filter(|_| spec.route_table_id.is_some());
    ranges.filter_map(|one| one.address.parse().ok()).collect()
}

/// A set of these ranges, which don't overlap.
fn set_of_ranges(name: &str, ranges: &[Ipv4Net]) -> String {
    let ranges = joined(ranges);
    format!("\tset {name} {{\n\t\ttype ipv4_addr\n\t\tflags interval\n\t\telements = {{ {ranges} }}\n\t}}\n")
}

/// A set that packets fill with up to so many elements of this type, each of which stays for so long.
fn set_by_packets(name: &str, of: &str, most: u32, stays: Duration) -> String {
    let seconds = stays.as_secs();
    format!(
        "\tset {name} {{\n\
         \t\ttype {of}\n\
         \t\tsize {most}\n\
         \t\tflags dynamic, timeout\n\
         \t\ttimeout {seconds}s\n\
         \t}}\n"
    )
}

/// The members of a set, as nft reads them.
fn joined<'a, T: ToString + 'a>(members: impl IntoIterator<Item = &'a T>) -> String {
    members.into_iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

/// The range, if it is one of IPv4: a VNet's IPv6 ranges don't concern IPv4 pods.
fn range(text: &str) -> Result<Option<Ipv4Net>, Invalid> {
    match text.parse::<ipnet::IpNet>() {
        Ok(ipnet::IpNet::V4(range)) => Ok(Some(range.trunc())),
        Ok(ipnet::IpNet::V6(_)) => Ok(None),
        Err(_) => Err(Invalid::Range(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use vnetpool_crds::allocation::{Interface, PublicAddress, Subnet};

    fn spec(exclusions: &[&str]) -> NodeIPAllocationSpec {
        NodeIPAllocationSpec {
            snat_exclusions: exclusions.iter().map(|&text| text.into()).collect(),
            interfaces: vec![Interface {
                id: "nic".into(),
                mac: "00:0d:3a:e5:1c:c0".into(),
                primary_address: "10.240.0.4".into(),
                subnet: Subnet { id: "subnet".into(), prefixes: vec!["10.240.0.0/20".into()] },
                ..Default::default()
            }],
            ..sample::spec()
        }
    }

    fn eth0(mac: &str) -> Option<String> {
        (mac == "00:0d:3a:e5:1c:c0").then(|| "eth0".into())
    }

    #[test]
    fn the_table_reads_as_it_should() {
        let rules = Rules::new(&spec(&["10.240.0.0/16", "fd00::/64", "192.168.0.0/24"]), eth0).unwrap();
        let rendered = rules.render().replace(&bridge::set_and_chain(), "");
        assert_eq!(
            rendered,
            r#"table inet vnetpool
delete table inet vnetpool
table inet vnetpool {
	counter loopback {}
	counter metadata {}
	counter spoofed {}
	counter wire_server {}
	set asked {
		type ipv4_addr . ipv4_addr
		size 8192
		flags dynamic, timeout
		timeout 600s
	}
	set direct {
		type ipv4_addr
		flags interval
		elements = { 10.240.0.0/16, 192.168.0.0/24 }
	}
	chain guard {
		type filter hook prerouting priority raw; policy accept;
		iifname "vnp*" fib saddr . iif oif missing counter name "spoofed" drop
		iifname "vnp*" ip daddr 127.0.0.0/8 counter name "loopback" drop
		iifname "vnpbridge" jump port
	}
	chain refused {
		ip daddr 169.254.169.254 counter name "metadata" drop
		counter name "wire_server" drop
	}
	chain restricted {
		ip daddr 168.63.129.16 meta l4proto { tcp, udp } th dport 53 accept
		add @asked { ip saddr . ip daddr counter }
		goto refused
	}
	chain platform {
		type filter hook forward priority filter; policy accept;
		ip daddr { 168.63.129.16, 169.254.169.254 } ct direction reply accept
		iifname "vnp*" ip daddr { 168.63.129.16, 169.254.169.254 } goto restricted
		iifname "eth0" ip daddr { 168.63.129.16, 169.254.169.254 } goto refused
	}
	chain egress {
		type nat hook postrouting priority srcnat; policy accept;
		iifname "vnp*" oifname "eth0" ip daddr { 168.63.129.16, 169.254.169.254 } counter snat ip to 10.240.0.4 fully-random
		iifname "vnp*" oifname "eth0" ip daddr != @direct counter snat ip to 10.240.0.4 fully-random
	}
}
"#
        );
    }

    #[test]
    fn a_pod_with_a_public_address_leaves_under_its_own_but_for_the_platform() {
        let mut spec = spec(&["10.240.0.0/16"]);
        let public = |address: Option<&str>| PublicAddress {
            id: "pip".into(),
            address: address.map(Into::into),
            dns_name: None,
        };
        let entry = |name: &str, address: &str, public| IpConfiguration {
            name: name.into(),
            address: address.into(),
            public_address: public,
            ..Default::default()
        };
        spec.interfaces[0].ip_configurations = vec![
            entry("vnp-1", "10.240.0.5/32", Some(public(Some("20.0.0.1")))),
            // Not attached yet: until then the node's is the only way out.
            entry("vnp-2", "10.240.0.6/32", Some(public(None))),
            entry("vnp-3", "10.240.0.7/32", None),
        ];
        let text = Rules::new(&spec, eth0).unwrap().render();
        assert!(text.contains("elements = { 10.240.0.5 }"), "{text}");
        assert!(
            text.contains("ip daddr != @direct ip saddr != @public counter snat ip to 10.240.0.4"),
            "{text}"
        );
        assert!(text.contains("ip daddr { 168.63.129.16, 169.254.169.254 } counter snat"), "{text}");
    }

    #[test]
    fn a_second_nics_pods_are_those_of_its_subnet_and_of_the_nodes_range() {
        let mut spec = spec(&[]);
        let mac = "00:0d:3a:e5:1c:c1";
        let second = Interface {
            id: "second".into(),
            mac: mac.into(),
            secondary: true,
            primary_address: "10.240.32.4".into(),
            subnet: Subnet { id: "far".into(), prefixes: vec!["10.240.32.0/24".into(), "fd00::/64".into()] },
            ..Default::default()
        };
        spec.interfaces.insert(0, second);
        let range = IpConfiguration { address: "10.244.3.0/24".into(), ..Default::default() };
        spec.interfaces[0].ip_configurations.push(range);
        let links = |found: &str| if found == mac { Some("eth1".into()) } else { eth0(found) };
        let uplink = Egress { link: "eth1".into(), address: [10, 240, 32, 4].into() };
        for (route_table, ranges) in [(None, 1), (Some("table"), 2)] {
            spec.route_table_id = route_table.map(Into::into);
            let steered = Rules::new(&spec, links).unwrap().steered.unwrap();
            assert_eq!(steered.uplink, uplink);
            let all = ["10.240.32.0/24", "10.244.3.0/24"].map(|range| range.parse::<Ipv4Net>().unwrap());
            assert_eq!(steered.sources, all[..ranges]);
        }
        spec.interfaces.remove(0);
        let rules = Rules::new(&spec, links).unwrap();
        assert_eq!(rules.steered, None);
        assert!(!rules.render().contains("mark"), "packets of a node with one NIC have no mark");
    }

    #[test]
    fn no_rule_names_a_link_but_the_uplink_and_those_of_pods() {
        // With accelerated networking a virtual function stands beside eth0, and may be revoked at any time.
        let text = Rules::new(&spec(&["10.240.0.0/16"]), eth0).unwrap().render();
        let words: Vec<&str> = text.split_whitespace().collect();
        let named = words.windows(2).filter(|pair| matches!(pair[0], "iifname" | "oifname" | "iif" | "oif"));
        let links: BTreeSet<&str> = named.map(|pair| pair[1]).filter(|word| word.starts_with('"')).collect();
        // The last is the bridge of those pods that are wired by one.
        assert_eq!(links, BTreeSet::from(["\"eth0\"", "\"vnp*\"", "\"vnpbridge\""]));
    }

    #[test]
    fn the_order_and_overlap_of_ranges_change_nothing() {
        let a = Rules::new(&spec(&["10.1.0.0/16", "10.1.2.0/24", "10.0.0.0/16"]), eth0).unwrap();
        let b = Rules::new(&spec(&["10.0.0.0/16", "10.1.0.1/16"]), eth0).unwrap();
        assert_eq!(a.render(), b.render());
    }

    #[test]
    fn a_nic_whose_link_is_missing_gets_no_translation_yet() {
        let rules = Rules::new(&spec(&[]), |_| None).unwrap();
        assert!(!rules.render().contains("snat ip to"));
    }

    #[test]
    fn nothing_unparsed_reaches_nft() {
        let bad = "10.0.0.0/8 } } flush ruleset";
        assert_eq!(Rules::new(&spec(&[bad]), eth0), Err(Invalid::Range(bad.into())));
        let mut spec = spec(&[]);
        spec.interfaces[0].primary_address = "10.240.0.4; flush ruleset".into();
        assert!(matches!(Rules::new(&spec, eth0), Err(Invalid::Primary(..))));
    }
}
