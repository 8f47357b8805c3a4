//! How many addresses nodes hold, computed by the planner itself.

use super::{head, wrapped};
use std::fmt::Write;
use vnetpool_crds::pool::{BLOCK, NETWORK_ADDRESSES, NIC_SLOTS, Sizing};
use vnetpool_operator::planner::sizing::{Demand, wanted};

/// A NIC takes 256 ipConfigurations, one of them the node's own.
const ROOM: u32 = NIC_SLOTS - 1;
/// The addresses that Azure keeps of each subnet.
const KEPT: u32 = 5;
const PODS: [u32; 6] = [0, 5, 10, 30, 60, 110];

/// A pool's sizing, by its purpose.
fn profiles() -> [(&'static str, Sizing); 4] {
    let sizing = |minimum, warm, batch| Sizing { minimum, warm, batch, ..Sizing::default() };
    [
        ("defaults", Sizing::default()),
        ("tight: minimum 2, warm 2, batch 1", sizing(2, 2, 1)),
        ("steady: minimum 16, warm 4, batch 4", sizing(16, 4, 4)),
        ("bursts: minimum 30, warm 30, batch 15", sizing(30, 30, 15)),
    ]
}

/// With the 110 pods that a kubelet takes unless it is configured otherwise.
fn held(sizing: &Sizing, pods: u32, grain: u32) -> u32 {
    let demand = Demand { bound: pods, pods_allowed: Some(110), ..Demand::default() };
    wanted(sizing, &demand, grain, ROOM * grain)
}

pub(super) fn page() -> String {
    let mut page = head("How many addresses", "`planner::sizing`, which decides it");
    page += "\nPods that have just ended come on top: their addresses cool and are held. The kubelet takes 110 pods.\n";
    for (mode, grain) in [("Address", 1), ("Prefix", BLOCK)] {
        let _ = write!(page, "\n## A node in mode `{mode}`, by its pods\n\n| sizing |");
        PODS.iter().for_each(|pods| page += &format!(" {pods} |"));
        page += &format!("\n|---|{}\n", "---|".repeat(PODS.len()));
        for (name, sizing) in profiles() {
            let _ = write!(page, "| {name} |");
            PODS.iter().for_each(|pods| page += &format!(" {} |", held(&sizing, *pods, grain)));
            page.push('\n');
        }
    }
    page += &smallest_subnets();
    page += &most_nodes();
    page
}

/// The sizes of clusters, by nodes and the pods on each.
const CLUSTERS: [(u32, u32); 10] = [
    (3, 30),
    (10, 30),
    (50, 30),
    (100, 30),
    (100, 110),
    (500, 30),
    (1000, 30),
    (2000, 30),
    (5000, 30),
    (5000, 110),
];

/// The subnet that each of them needs, in both modes that take addresses of it.
fn smallest_subnets() -> String {
    let text = "With a tenth of the subnet left, at which `SubnetExhausting` warns. In mode `Address` the nodes' own \
                addresses are counted, too. In mode `Prefix` whole blocks of 16 must be free: leave single addresses of \
                other machines out of that subnet, or give pods one of their own by [a second NIC](../second-nic.md). \
                \"No VNet\" means more than the 65,536 addresses that a virtual network takes, of which a block counts as \
                one.";
    let mut section = format!(
        "\n## The smallest subnet for a number of nodes\n\n{}\n| nodes, pods on each |",
        wrapped("", "", text)
    );
    let modes = [("Address", 1), ("Prefix", BLOCK)];
    for (mode, _) in modes {
        for (name, _) in profiles() {
            let name = name.split(':').next().unwrap_or_default();
            let _ = write!(section, " `{mode}`, {name} |");
        }
    }
    section += &format!("\n|---|{}\n", "---|".repeat(modes.len() * profiles().len()));
    for (nodes, pods) in CLUSTERS {
        let _ = write!(section, "| {nodes}, {pods} |");
        for (_, grain) in modes {
            for (_, sizing) in profiles() {
                let _ = write!(section, " {} |", smallest_subnet(nodes, held(&sizing, pods, grain), grain));
            }
        }
        section.push('\n');
    }
    let text = "In mode `Route` pods take nothing of the subnet: a `podCIDR` of /16 does for 256 nodes with a /24 each.";
    section + &format!("\n{}", wrapped("", "", text))
}

/// The prefix of the smallest subnet for nodes that hold so many addresses each.
fn smallest_subnet(nodes: u32, held: u32, grain: u32) -> String {
    let (own, kept) = match grain {
        1 => (1, KEPT),
        // Those that Azure keeps are in the first block and in the last.
        _ => (0, 2 * grain),
    };
    let needed = nodes * (held + own);
    match nodes * (held / grain + 1) > NETWORK_ADDRESSES {
        true => format!("no VNet for {needed}"),
        false => prefix(needed, kept),
    }
}

/// How many nodes go into a virtual network, of which a tenth is left.
fn most_nodes() -> String {
    let text = "Azure takes 65,536 private addresses in a virtual network. A block counts once, and each node has an \
                address of its own. With a tenth left, at which `NetworkExhausting` warns, and with the defaults:";
    let mut section = format!(
        "\n## The most nodes of a virtual network, by their pods\n\n{}\n| mode |",
        wrapped("", "", text)
    );
    PODS.iter().for_each(|pods| section += &format!(" {pods} |"));
    section += &format!("\n|---|{}\n", "---|".repeat(PODS.len()));
    for (mode, grain) in [("Address", 1), ("Prefix", BLOCK)] {
        let _ = write!(section, "| `{mode}` |");
        let taken = |pods: u32| held(&Sizing::default(), pods, grain) / grain + 1;
        PODS.iter().for_each(|pods| section += &format!(" {} |", NETWORK_ADDRESSES * 9 / 10 / taken(*pods)));
        section.push('\n');
    }
    section
}

/// The prefix of the smallest subnet with so many addresses besides those that are kept, nine tenths full at
/// most.
fn prefix(needed: u32, kept: u32) -> String {
    let fits = |length: &u32| {
        let size = 1_u32 << (32 - length);
        size > kept && u64::from(needed) * 10 <= u64::from(size - kept) * 9
    };
    (8..=29).rev().find(fits).map_or("none".to_owned(), |length| format!("/{length} for {needed}"))
}
