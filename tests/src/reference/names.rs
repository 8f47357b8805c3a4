//! The names that people meet in manifests, on nodes and in Azure: those of the code, with their meaning.

use super::facts::Ports;
use super::head;
use anyhow::Result;
use std::fmt::Write;
use vnetpool_crds::names::{
    AGENT, BACKEND_POOLS, DNS_LABEL, FINALIZER, FULL_TAINT, GONE, IP_CONFIGURATION_PREFIX, LEFT, OPERATOR,
    PAUSED, PUBLIC_ADDRESS, READ, RELEASE,
};
use vnetpool_operator::azure::role;
use vnetpool_plugin::cni::{IPAM, PLUGIN, STATE_DIR};
use vnetpool_plugin::sandbox::LINK_PREFIX;
use vnetpool_plugin::wiring::{bridge::BRIDGE, steer::MARK};

pub(super) fn page() -> Result<String> {
    let from = "the names in the code, and `tests/src/reference/names.rs`, which has their meaning";
    let mut page = head("Annotations, labels, taints, ports and files", from);

    let columns = ["annotation", "value", "asks for"];
    page += "\n## Annotations of pods\n\nThe pool must offer it ([load balancers](../load-balancers.md)).\n";
    let rows = [
        [BACKEND_POOLS, "names, separated by commas", "a place in these backend pools"],
        [PUBLIC_ADDRESS, "`true` or `false`", "a public address, which costs money"],
        [DNS_LABEL, "3 to 63 lower-case letters, digits, dashes", "a name for the public address"],
    ];
    table(&mut page, columns, &rows.map(named));

    let columns = ["annotation", "value", "meaning"];
    page += "\n## Annotations of Nodes and NodeIPPools\n";
    let meaning = "nothing is written to Azure [for the node, or for all of the pool's](../rollout.md)";
    table(&mut page, columns, &[named([PAUSED, "why, for people", meaning])]);

    page += "\n## Annotations of NodeIPAllocations\n";
    let rows = [
        [GONE, "`true`", "nothing of it is left in Azure, or only with another machine: let the object go"],
        [
            LEFT,
            "names or ids, with commas",
            "these NICs, which the node has left, belong to another machine now",
        ],
        [READ, "any it hasn't had, such as the time", "read the node's NIC now ([check](../inspect.md))"],
        [RELEASE, "`true`", "the node's pool, or its paused Node, is gone for good: give back now"],
    ];
    table(&mut page, columns, &rows.map(named));

    page += "\n## On nodes and objects\n";
    let rows = [
        named([FULL_TAINT, "taint of a Node, NoSchedule", "no free address, and no more to be had"]),
        named([FINALIZER, "finalizer of a NodeIPAllocation", "the NIC is not accounted for yet"]),
        [format!("`{OPERATOR}`, `{AGENT}`"), "field managers".to_owned(), "who wrote a field".to_owned()],
    ];
    table(&mut page, ["name", "where", "means"], &rows);

    page += "\n## In Azure\n";
    let ours =
        "an ipConfiguration, a route or a public address of Vnetpool's; anything else is never touched";
    let role = "the role that `vnetpool-operator role` prints, unless `--name` gives it another name";
    let rows = [
        [format!("`{IP_CONFIGURATION_PREFIX}…`"), ours.to_owned()],
        [format!("`{}`", role::NAME), role.to_owned()],
    ];
    table(&mut page, ["name", "means"], &rows);

    page += "\n## Ports and files of a node\n";
    let Ports { operator, agent, bin, conf } = Ports::of_the_chart()?;
    let rows = [
        (format!("port {operator}"), "the operator's `/metrics`, `/healthz`, `/readyz`"),
        (format!("port {agent}"), "the agent's"),
        (
            format!("`{STATE_DIR}`"),
            "ledger, locks, the plugin's log, pods' host ports, the source of the rules; end with the boot",
        ),
        (format!("`{bin}/{PLUGIN}`, `{IPAM}`"), "the plugin"),
        (format!("`{conf}/10-vnetpool.conflist`"), "the CNI configuration"),
        ("nftables tables `inet vnetpool`, `arp vnetpool`".to_owned(), "the rules"),
        (format!("links `{LINK_PREFIX}…`, bridge `{BRIDGE}`"), "the host ends of pods"),
        ("routes and rules of protocol 176".to_owned(), "routes to pods, of mode `Route` and of second NICs"),
        (
            format!("bit {MARK:#x} of packets' marks"),
            "packets of second NICs' pods that leave by the first, until they are routed",
        ),
    ];
    table(&mut page, ["where", "what"], &rows.map(|(place, what)| [place, what.to_owned()]));
    Ok(page)
}

/// A row about a name.
fn named([name, second, third]: [&str; 3]) -> [String; 3] {
    [format!("`{name}`"), second.to_owned(), third.to_owned()]
}

fn table<const COLUMNS: usize>(page: &mut String, head: [&str; COLUMNS], rows: &[[String; COLUMNS]]) {
    let _ = write!(page, "\n| {} |\n|{}\n", head.join(" | "), "---|".repeat(COLUMNS));
    for row in rows {
        let _ = writeln!(page, "| {} |", row.join(" | "));
    }
}
