//! What the kernel has to know for a given set of NICs, and the commands from one such state to the next. Pure.

use super::Plug;
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// The one table. A device's own chain jumps to `of_vm` or `of_internet`.
pub(super) const BASE: &str = "
table netdev azure
delete table netdev azure
table netdev azure {
  set nics { type ifname . ether_addr; }
  set forwarding { type ifname . ether_addr; }
  set held { type ifname . ether_addr . ipv4_addr; }
  set delivered { type ipv4_addr; }
  set primary { type ipv4_addr; }
  set space { type ipv4_addr; flags interval; }
  chain onward {
    ip daddr @delivered accept
    ip daddr @space drop
    ip saddr @primary ip daddr { 168.63.129.16, 169.254.169.254, 198.51.100.0/24, 203.0.113.0/24 } accept
    drop
  }
  chain of_vm {
    iifname . ether saddr != @nics drop
    ether type arp accept
    ether type != ip drop
    iifname . ether saddr . ip saddr @held goto onward
    iifname . ether saddr @forwarding goto onward
    drop
  }
  chain of_internet {
    ether type arp accept
    ether type != ip drop
    ip daddr @primary accept
    ip daddr { 198.51.100.0/24, 203.0.113.0/24 } accept
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
    pub(super) mac: String,
    pub(super) primary: Ipv4Addr,
}

impl Port {
    /// Whether the link is still the one the NIC needs.
    pub(super) fn fits(&self, plug: &Plug) -> bool {
        self.netns == plug.netns && self.mac == plug.mac && self.primary == plug.address.addr()
    }
}

/// Elements of the table's sets, and routes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rules {
    sets: BTreeMap<&'static str, BTreeSet<String>>,
    /// Destination and the rest of the route.
    routes: BTreeMap<Ipv4Net, String>,
}

/// Commands, in the order in which they have to run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) nft: String,
    pub(super) ip: String,
}

impl Rules {
    pub(super) fn of<'a>(
        wired: impl Iterator<Item = (&'a Port, &'a Plug)>,
        space: &BTreeSet<Ipv4Net>,
    ) -> Self {
        let mut rules = Self::default();
        for prefix in space {
            rules.element("space", prefix.to_string());
            // Never taken, but it lets the kernel answer ARP requests for addresses that nobody has.
            rules.routes.insert(*prefix, "dev lo".into());
        }
        for (Port { device, mac, primary, .. }, plug) in wired {
            rules.element("nics", format!("{device} . {mac}"));
            rules.element("primary", primary.to_string());
            if plug.forwards {
                rules.element("forwarding", format!("{device} . {mac}"));
            }
            for address in &plug.live {
                rules.element("held", format!("{device} . {mac} . {address}"));
                rules.element("delivered", address.to_string());
                let via = if address == primary { String::new() } else { format!("via {primary} onlink ") };
                rules.routes.insert(Ipv4Net::from(*address), format!("{via}dev {device}"));
            }
        }
        rules
    }

    fn element(&mut self, set: &'static str, element: String) {
        self.sets.entry(set).or_default().insert(element);
    }

    /// A deleted device has taken its routes along.
    pub(super) fn forget_routes_of(&mut self, device: &str) {
        self.routes.retain(|_, route| route.rsplit(' ').next() != Some(device));
    }

    /// What has to be done when `self` is programmed and `next` is wanted: removals first.
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
        for (destination, route) in &self.routes {
            if !next.routes.contains_key(destination) {
                change.ip += &format!("route delete {destination} {route}\n");
            }
        }
        for (destination, route) in &next.routes {
            if self.routes.get(destination) != Some(route) {
                change.ip += &format!("route replace {destination} {route}\n");
            }
        }
        change
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(live: &[[u8; 4]]) -> Rules {
        let port = Port {
            device: "vm1".into(),
            netns: "n".into(),
            mac: "00:0d:3a:00:00:01".into(),
            primary: Ipv4Addr::new(10, 0, 0, 4),
        };
        let plug = Plug {
            netns: "n".into(),
            mac: port.mac.clone(),
            address: "10.0.0.4/24".parse().unwrap(),
            gateway: Ipv4Addr::new(10, 0, 0, 1),
            forwards: false,
            live: live.iter().map(|octets| Ipv4Addr::from(*octets)).collect(),
        };
        Rules::of(std::iter::once((&port, &plug)), &BTreeSet::from(["10.0.0.0/16".parse().unwrap()]))
    }

    #[test]
    fn a_new_address_adds_its_elements_and_its_route_and_nothing_else() {
        let change = rules(&[[10, 0, 0, 4]]).change_to(&rules(&[[10, 0, 0, 4], [10, 0, 0, 9]]));
        assert_eq!(
            change.nft,
            "add element netdev azure delivered { 10.0.0.9 }\n\
             add element netdev azure held { vm1 . 00:0d:3a:00:00:01 . 10.0.0.9 }\n"
        );
        assert_eq!(change.ip, "route replace 10.0.0.9/32 via 10.0.0.4 onlink dev vm1\n");
    }

    #[test]
    fn an_address_that_goes_takes_its_elements_and_its_route_along() {
        let change = rules(&[[10, 0, 0, 4], [10, 0, 0, 9]]).change_to(&rules(&[[10, 0, 0, 4]]));
        assert!(
            change.nft.starts_with("delete element netdev azure delivered { 10.0.0.9 }\n"),
            "{}",
            change.nft
        );
        assert_eq!(change.ip, "route delete 10.0.0.9/32 via 10.0.0.4 onlink dev vm1\n");
    }

    #[test]
    fn nothing_changed_needs_no_command() {
        assert_eq!(rules(&[[10, 0, 0, 4]]).change_to(&rules(&[[10, 0, 0, 4]])), Change::default());
    }

    #[test]
    fn routes_of_a_deleted_device_are_not_deleted_again() {
        let mut programmed = rules(&[[10, 0, 0, 4]]);
        programmed.forget_routes_of("vm1");
        let change = programmed.change_to(&rules(&[]));
        assert_eq!(change.ip, "");
    }
}
