//! How many addresses nodes hold, computed by the planner itself.

use super::{head, wrapped};
use std::fmt::Write;
use vnetpool_crds::pool::{BLOCK, Sizing};
use vnetpool_operator::planner::sizing::{Demand, wanted};

/// A NIC takes 256 ipConfigurations, one of them the node's own.
const ROOM: u32 = 255;
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
    let text = "In mode `Address`, for the nodes' own addresses, too, and with a tenth of the subnet left, at \
                which `SubnetExhausting` warns. A VNet takes 65,536 addresses in all.";
    page += &format!("\n## The smallest subnet for a number of nodes\n\n{}\n", wrapped("", "", text));
    page += "| nodes, pods on each | defaults | tight | steady | bursts |\n|---|---|---|---|---|\n";
    for (nodes, pods) in [(3, 30), (10, 30), (50, 30), (100, 30), (100, 110), (500, 30), (1000, 30)] {
        let _ = write!(page, "| {nodes}, {pods} |");
        for (_, sizing) in profiles() {
            let needed = nodes * (held(&sizing, pods, 1) + 1);
            let _ = write!(page, " {} |", prefix(needed));
        }
        page.push('\n');
    }
    let text = "In mode `Prefix` a subnet must have whole blocks of 16 free, so give it one of its own, and one size \
                more. In mode `Route` pods take nothing of the subnet: a `podCIDR` of /16 does for 256 nodes with a /24 \
                each.";
    page += &format!("\n{}", wrapped("", "", text));
    page += &most_nodes();
    page
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
        PODS.iter().for_each(|pods| section += &format!(" {} |", 65_536 * 9 / 10 / taken(*pods)));
        section.push('\n');
    }
    section
}

/// The prefix of the smallest subnet with so many addresses, nine tenths full at most.
fn prefix(needed: u32) -> String {
    let fits = |length: &u32| {
        let size = (1_u32 << (32 - length)) - KEPT;
        u64::from(needed) * 10 <= u64::from(size) * 9
    };
    (8..=29).rev().find(fits).map_or("none".to_owned(), |length| format!("/{length} for {needed}"))
}
