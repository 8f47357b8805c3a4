//! The kernel's state that delivers packets for a given network, and the commands from one such state to the
//! next. Pure.

use crate::topology::{Hop, Network, Plug};
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// The packets that a device may send at all: its MAC address and the sources that its NIC holds. A device's
/// own chain jumps to `of_vm` or `of_host`.
pub(super) const BASE: &str = "
table netdev azure
delete table netdev azure
table netdev azure {
  set nics { type ifname . ether_addr; }
  set forwarding { type ifname . ether_addr; }
  set held { type ifname . ether_addr . ipv4_addr; }
  chain of_vm {
    iifname . ether saddr != @nics drop
    ether type arp accept
    ether type != ip drop
    iifname . ether saddr . ip saddr @held accept
    iifname . ether saddr @forwarding accept
    drop
  }
  chain of_host {
    ether type { arp, ip } accept
    drop
  }
}
";

/// Sends everything that comes in on a device through a chain of the table.
pub(super) fn guard(device: &str, chain: &str) -> String {
    format!(
        "add chain netdev azure {device} {{ type filter hook ingress device \"{device}\" priority 0; policy drop; }}\n\
         add rule netdev azure {device} goto {chain}\n"
    )
}

pub(super) fn unguard(device: &str) -> String {
    format!("flush chain netdev azure {device}\ndelete chain netdev azure {device}\n")
}

/// The link to a NIC.
#[derive(Clone, Debug)]
pub(super) struct Port {
    pub(super) device: String,
    pub(super) netns: String,
    pub(super) interface: String,
    pub(super) mac: String,
    pub(super) primary: Ipv4Addr,
}

impl Port {
    /// Whether the link is still the one the NIC needs.
    pub(super) fn fits(&self, plug: &Plug) -> bool {
        let is_there = self.netns == plug.netns && self.interface == plug.interface;
        is_there && self.mac == plug.mac && self.primary == plug.address.addr()
    }
}

/// The routing table in which every held address has its route. Other tables decide which of them a place may
/// use.
const MAIN: u32 = 254;
const FIRST_MARK: u32 = 100_000;

/// Elements of the table's sets, routes, and the routing table of each device's packets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rules {
    sets: BTreeMap<&'static str, BTreeSet<String>>,
    /// By table and destination: the type, if it is a special one, and the rest of the route.
    routes: BTreeMap<(u32, Ipv4Net), (&'static str, String)>,
    /// Selectors of `ip rule`.
    lookups: BTreeSet<String>,
}

/// Commands, in the order in which they have to run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) nft: String,
    pub(super) ip: String,
}

impl Rules {
    /// `ports` are the links to NICs, `gateways` the devices of virtual networks' gateways, `tables` the
    /// numbers of the routing tables, all by the ids the network uses.
    pub(super) fn of(
        network: &Network,
        ports: &BTreeMap<String, Port>,
        gateways: &BTreeMap<String, String>,
        tables: &BTreeMap<String, u32>,
    ) -> Self {
        let wired: Vec<(&Port, &Plug)> =
            ports.iter().filter_map(|(nic, port)| Some((port, network.plugs.get(nic)?))).collect();
        let mut rules = Self::default();
        for prefix in &network.space {
            // No packet takes it, but it lets the kernel answer ARP requests for addresses that no machine
            // has.
            rules.routes.insert((MAIN, *prefix), ("", "dev lo".into()));
        }
        let mut places: Vec<(&str, &str)> =
            wired.iter().map(|(port, plug)| (port.device.as_str(), plug.subnet.as_str())).collect();
        places.extend(gateways.iter().map(|(vnet, device)| (device.as_str(), vnet.as_str())));
        for (device, place) in places {
            let (Some(table), Some(routes)) = (tables.get(place), network.routes.get(place)) else {
                continue;
            };
            rules.lookups.insert(format!("iif {device} lookup {table} priority 1000"));
            rules.routes.extend(routes.iter().map(|(prefix, hop)| ((*table, *prefix), route(*hop, &wired))));
        }
        for (Port { device, mac, primary, .. }, plug) in wired {
            rules.element("nics", format!("{device} . {mac}"));
            let (mark, table) = (mark(device), mark(device));
            rules.lookups.insert(format!("fwmark {mark} lookup {table} priority 900"));
            rules
                .routes
                .insert((table, Ipv4Net::default()), ("", format!("via {primary} onlink dev {device}")));
            // A member answers from the frontend that the packet still had as its destination.
            let balanced = network.exposure.balanced.iter().filter(|balanced| balanced.floating);
            for balanced in balanced.filter(|b| b.members.iter().any(|member| plug.live.contains(member))) {
                rules.element("held", format!("{device} . {mac} . {}", balanced.frontend));
            }
            if plug.forwards {
                rules.element("forwarding", format!("{device} . {mac}"));
            }
            for address in &plug.live {
                rules.element("held", format!("{device} . {mac} . {address}"));
                let via = if address == primary { String::new() } else { format!("via {primary} onlink ") };
                rules.routes.insert((MAIN, Ipv4Net::from(*address)), ("", format!("{via}dev {device}")));
            }
        }
        rules
    }

    fn element(&mut self, set: &'static str, element: String) {
        self.sets.entry(set).or_default().insert(element);
    }

    /// A deleted device has taken its routes along.
    pub(super) fn forget_routes_of(&mut self, device: &str) {
        self.routes.retain(|_, (_, route)| route.rsplit(' ').next() != Some(device));
    }

    /// The commands from the programmed `self` to the wanted `next`: removals first.
    pub(super) fn change_to(&self, next: &Self) -> Change {
        let mut change = Change::default();
        let none = BTreeSet::new();
        for (verb, from, to) in [("delete", next, self), ("add", self, next)] {
            for (set, elements) in &to.sets {
                let gone: Vec<&str> =
                    elements.difference(from.sets.get(set).unwrap_or(&none)).map(String::as_str).collect();
                if !gone.is_empty() {
                    change.nft += &format!("{verb} element netdev azure {set} {{ {} }}\n", gone.join(", "));
                }
            }
        }
        let command = |verb: &str, (table, destination): &(u32, Ipv4Net), (kind, rest): &(&str, String)| {
            let table = if *table == MAIN { String::new() } else { format!(" table {table}") };
            let words = [verb, *kind, &destination.to_string(), rest].map(str::to_owned);
            let words: Vec<String> = words.into_iter().filter(|word| !word.is_empty()).collect();
            format!("route {}{table}\n", words.join(" "))
        };
        for (place, route) in &self.routes {
            // `replace` keeps a route of another type beside the new one.
            if next.routes.get(place).is_none_or(|(kind, _)| *kind != route.0) {
                change.ip += &command("delete", place, route);
            }
        }
        for (place, route) in &next.routes {
            if self.routes.get(place) != Some(route) {
                change.ip += &command("replace", place, route);
            }
        }
        for lookup in self.lookups.difference(&next.lookups) {
            change.ip += &format!("rule delete {lookup}\n");
        }
        for lookup in next.lookups.difference(&self.lookups) {
            change.ip += &format!("rule add {lookup}\n");
        }
        change
    }
}

/// The mark of packets that go to a device whatever their destination, and the number of the routing table
/// for it.
pub(super) fn mark(device: &str) -> u32 {
    let number = device.trim_start_matches(|c: char| c.is_ascii_alphabetic()).parse::<u32>();
    FIRST_MARK + number.unwrap_or_default()
}

/// A hop as a route of a place's own table. A packet that goes straight to a holder is routed by the main
/// table.
fn route(hop: Hop, wired: &[(&Port, &Plug)]) -> (&'static str, String) {
    // A device that drops everything. Unlike a blackhole it lets the kernel answer ARP requests.
    let nowhere = ("", "dev lo".to_owned());
    match hop {
        Hop::Direct | Hop::Internet => ("throw", String::new()),
        Hop::Nowhere => nowhere,
        Hop::Appliance(address) => {
            let appliance = wired.iter().find(|(_, plug)| plug.live.contains(&address));
            // A NIC that doesn't forward gets no packets that aren't for itself.
            match appliance.filter(|(_, plug)| plug.forwards) {
                Some((port, _)) => ("", format!("via {} onlink dev {}", port.primary, port.device)),
                None => nowhere,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: [(&str, Hop); 2] = [("0.0.0.0/0", Hop::Internet), ("10.0.0.0/16", Hop::Direct)];

    fn rules(live: &[[u8; 4]], routes: &[(&str, Hop)]) -> Rules {
        let port = Port {
            device: "vm1".into(),
            netns: "n".into(),
            interface: "eth0".into(),
            mac: "00:0d:3a:00:00:01".into(),
            primary: Ipv4Addr::new(10, 0, 0, 4),
        };
        let plug = Plug {
            netns: "n".into(),
            interface: "eth0".into(),
            mac: port.mac.clone(),
            address: "10.0.0.4/24".parse().unwrap(),
            gateway: Ipv4Addr::new(10, 0, 0, 1),
            subnet: "subnet".into(),
            forwards: true,
            live: live.iter().map(|octets| Ipv4Addr::from(*octets)).collect(),
        };
        let routes = routes.iter().map(|(prefix, hop)| (prefix.parse().unwrap(), *hop)).collect();
        let network = Network {
            plugs: BTreeMap::from([("nic".into(), plug)]),
            space: BTreeSet::from(["10.0.0.0/16".parse().unwrap()]),
            routes: BTreeMap::from([("subnet".into(), routes)]),
            ..Network::default()
        };
        let tables = BTreeMap::from([("subnet".into(), 1000)]);
        Rules::of(&network, &BTreeMap::from([("nic".into(), port)]), &BTreeMap::new(), &tables)
    }

    #[test]
    fn a_new_address_adds_its_element_and_its_route_and_nothing_else() {
        let change =
            rules(&[[10, 0, 0, 4]], &ROUTES).change_to(&rules(&[[10, 0, 0, 4], [10, 0, 0, 9]], &ROUTES));
        assert_eq!(change.nft, "add element netdev azure held { vm1 . 00:0d:3a:00:00:01 . 10.0.0.9 }\n");
        assert_eq!(change.ip, "route replace 10.0.0.9/32 via 10.0.0.4 onlink dev vm1\n");
    }

    #[test]
    fn an_address_that_goes_takes_its_element_and_its_route_along() {
        let change =
            rules(&[[10, 0, 0, 4], [10, 0, 0, 9]], &ROUTES).change_to(&rules(&[[10, 0, 0, 4]], &ROUTES));
        assert_eq!(change.nft, "delete element netdev azure held { vm1 . 00:0d:3a:00:00:01 . 10.0.0.9 }\n");
        assert_eq!(change.ip, "route delete 10.0.0.9/32 via 10.0.0.4 onlink dev vm1\n");
    }

    #[test]
    fn nothing_changed_needs_no_command() {
        let same = rules(&[[10, 0, 0, 4]], &ROUTES);
        assert_eq!(same.change_to(&same.clone()), Change::default());
    }

    #[test]
    fn routes_of_a_deleted_device_are_not_deleted_again() {
        let mut programmed = rules(&[[10, 0, 0, 4]], &ROUTES);
        programmed.forget_routes_of("vm1");
        let change = programmed.change_to(&Rules::default());
        assert!(!change.ip.contains("dev vm1"), "{}", change.ip);
    }

    #[test]
    fn a_route_to_an_appliance_goes_to_its_link_and_a_change_of_type_removes_the_old_one() {
        let steered = [ROUTES[0], ("10.0.0.0/16", Hop::Appliance(Ipv4Addr::new(10, 0, 0, 4)))];
        let change = rules(&[[10, 0, 0, 4]], &ROUTES).change_to(&rules(&[[10, 0, 0, 4]], &steered));
        assert_eq!(
            change.ip,
            "route delete throw 10.0.0.0/16 table 1000\n\
             route replace 10.0.0.0/16 via 10.0.0.4 onlink dev vm1 table 1000\n"
        );
    }
}
