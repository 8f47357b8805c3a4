//! What programs print, as the auditor reads it.

use super::{Addresses, Answer, Dial};
use crate::azure::expanded;
use anyhow::Result;
use serde::Deserialize;
use serde_json::{Deserializer, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

/// Links of pods begin so.
pub const LINK_PREFIX: &str = "vnp";
/// The one that begins so and leads to all pods of a node, and stays there without any.
pub const BRIDGE: &str = "vnpbridge";

/// Shows all routes of a node, whatever table they are in.
pub const SHOW_ROUTES: [&str; 7] = ["ip", "-4", "-json", "route", "show", "table", "all"];
/// The table in which the kernel keeps the addresses of the node's own links. It leads to nobody else.
const OWN_TABLE: &str = "local";

/// The addresses that [`SHOW_ROUTES`] leads to pods.
///
/// # Errors
/// When it isn't the output of `ip`.
pub fn led_to_pods(routes: &str) -> Result<BTreeSet<Ipv4Addr>> {
    #[derive(Deserialize)]
    struct Route {
        dst: String,
        #[serde(default)]
        dev: String,
        #[serde(default)]
        table: String,
    }
    let routes: Vec<Route> = serde_json::from_str(routes)?;
    let is_to_pods = |route: &&Route| route.dev.starts_with(LINK_PREFIX) && route.table != OWN_TABLE;
    Ok(routes.iter().filter(is_to_pods).flat_map(|route| expanded(&route.dst)).collect())
}

/// Prints the addresses inside of all pods of the node on which a shell runs it, a line for each network
/// namespace. One that ends meanwhile has none.
pub const PRINT_INSIDE: &str = r#"for file in /run/netns/*; do
    addresses=$(nsenter --net="$file" ip -json -4 address show scope global 2>&1) &&
        printf '{"name": "%s", "links": %s}\n' "${file##*/}" "$addresses"
done; true"#;

/// The addresses in each network namespace, by what [`PRINT_INSIDE`] prints.
///
/// # Errors
/// When it isn't that.
pub fn inside_pods(printed: &str) -> Result<BTreeMap<String, BTreeSet<Ipv4Addr>>> {
    #[derive(Deserialize)]
    struct Namespace {
        name: String,
        links: Vec<Link>,
    }
    /// `ip` prints an empty one for each link that it leaves out.
    #[derive(Deserialize)]
    struct Link {
        #[serde(default)]
        addr_info: Vec<Info>,
    }
    #[derive(Deserialize)]
    struct Info {
        local: Ipv4Addr,
    }
    let of = |Namespace { name, links }: Namespace| {
        (name, { links }.into_iter().flat_map(|link| link.addr_info).map(|info| info.local).collect())
    };
    let namespaces = Deserializer::from_str(printed).into_iter::<Namespace>();
    { namespaces }.map(|one| Ok(of(one?))).collect()
}

/// Whether a line of `ip -brief link show` is about a link that was made for one pod, or one of `ip neighbour
/// show` about a pod's address.
pub fn is_of_a_pod(line: &str) -> bool {
    let name = line.split([' ', '@']).next().unwrap_or_default();
    let is_link = name.starts_with(LINK_PREFIX) && name != BRIDGE;
    is_link || line.contains(&format!(" dev {LINK_PREFIX}"))
}

/// What a node's ledger records.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Records {
    /// One for each record: an address that is there twice is twice in it.
    pub assigned: Vec<Ipv4Addr>,
    pub free: Vec<Ipv4Addr>,
    /// How many pods wait for an address.
    pub waiting: usize,
}

/// The records of a ledger's text.
pub fn recorded(ledger: &str) -> Records {
    let addresses = |state: &str| {
        let address = |line: &str| line.strip_prefix(state)?.split(' ').nth(1)?.parse().ok();
        ledger.lines().filter_map(address).collect()
    };
    let waiting = ledger.lines().filter(|line| line.starts_with("waiting ")).count();
    Records { assigned: addresses("assigned "), free: addresses("free "), waiting }
}

/// The addresses that each `spec` of a list of NodeIPAllocations shows.
pub fn reserved(list: &Value) -> Addresses {
    let of = |object: &Value| {
        let interfaces = object["spec"]["interfaces"].as_array().into_iter().flatten();
        let all = interfaces.filter_map(|nic| nic["ipConfigurations"].as_array()).flatten();
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        (name, all.filter_map(|one| one["address"].as_str()).flat_map(expanded).collect())
    };
    list["items"].as_array().into_iter().flatten().map(of).collect()
}

/// The pods' answers at their addresses, by the output of probes one behind the other.
pub fn answers(printed: &str) -> BTreeMap<Ipv4Addr, Answer> {
    #[derive(Deserialize)]
    struct Whoami {
        local: Ipv4Addr,
        name: String,
        source: Ipv4Addr,
    }
    let answers = Deserializer::from_str(printed).into_iter::<Whoami>();
    { answers }.flatten().map(|Whoami { local, name, source }| (local, Answer { name, source })).collect()
}

/// The connections that were tried, by the output of probes that have dialed, one behind the other.
pub fn dials(printed: &str) -> Vec<Dial> {
    #[derive(Deserialize)]
    struct Outcome {
        name: String,
        target: SocketAddrV4,
        source_seen_by_target: String,
        #[serde(default)]
        answered_by: String,
    }
    let outcomes = Deserializer::from_str(printed).into_iter::<Vec<Outcome>>().flatten().flatten();
    // A target that wasn't reached has seen nothing.
    let dial = |outcome: Outcome| {
        let source = outcome.source_seen_by_target.parse().ok();
        let answer = source.map(|source| Answer { name: outcome.answered_by, source });
        Dial { from: outcome.name, target: *outcome.target.ip(), answer }
    };
    { outcomes }.map(dial).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::audit::tests::{address, of};
    use serde_json::json;

    #[test]
    fn each_audit_reading_finds_its_addresses() {
        let routes = json!([
            { "dst": "default", "gateway": "10.0.0.254", "dev": "eth0" },
            { "dst": "10.0.0.0/24", "dev": "eth0" },
            { "dst": "10.0.0.1", "dev": "vnp0123456789a", "scope": "link" },
            { "dst": "10.0.0.2", "dev": "vnpbridge", "scope": "link" },
            { "dst": "10.0.0.3", "dev": "vnpabcdef012345", "table": "4705" },
            { "dst": "10.0.0.4/31", "dev": "vnpabcdef012345" },
            { "type": "local", "dst": "10.0.0.6", "dev": "vnpbridge", "table": "local" },
            { "type": "unreachable", "dst": "10.1.0.0/28" },
        ]);
        assert_eq!(led_to_pods(&routes.to_string()).unwrap(), [1, 2, 3, 4, 5].map(address).into());
        assert!(led_to_pods("").is_err());

        let ledger = "ledger 1\nfree vnp-1 10.0.0.3 - 81023\n\
            assigned vnp-2 10.0.0.1 - 90511 vnp0123456789a 4f1c eth0 uid default web-0 - vnetpool\n\
            waiting 95002 77aa eth0 uid default web-1 vnetpool\nend\n";
        let records = Records { assigned: vec![address(1)], free: vec![address(3)], waiting: 1 };
        assert_eq!(recorded(ledger), records);

        let list = json!({ "items": [
            { "metadata": { "name": "node-1" }, "spec": { "interfaces": [
                { "ipConfigurations": [{ "address": "10.0.0.1/32" }, { "address": "10.0.0.2" }] } ] } },
            { "metadata": { "name": "node-2" }, "spec": { "interfaces": [
                { "ipConfigurations": [{ "address": "10.0.0.240/28" }] } ] } },
            { "metadata": { "name": "node-3" }, "spec": {} },
        ] });
        let block: Vec<u8> = (240..=255).collect();
        assert_eq!(reserved(&list), of(&[("node-1", &[1, 2]), ("node-2", &block), ("node-3", &[])]));
    }

    #[test]
    fn the_addresses_inside_of_pods_are_read_one_namespace_behind_the_other() {
        let eth0 = json!({ "ifname": "eth0", "addr_info": [{ "family": "inet", "local": "10.0.0.1" }] });
        let printed = format!(
            "{{\"name\": \"cni-a\", \"links\": [{{}},{eth0}]}}\n{{\"name\": \"cni-b\", \"links\": [{{}}]}}\n"
        );
        let found = inside_pods(&printed).unwrap();
        assert_eq!(found, [("cni-a".into(), [address(1)].into()), ("cni-b".into(), [].into())].into());
        assert_eq!(inside_pods("").unwrap(), BTreeMap::new());
        assert!(inside_pods("nsenter: not found").is_err());
    }

    #[test]
    fn only_links_that_were_made_for_one_pod_and_neighbours_behind_them_are_of_a_pod() {
        for (link, is_one) in [
            ("vnp0123456789a@if2 UP 0a:58:0a:01:02:03", true),
            ("vnpbridge        UP 02:76:6e:70:00:01", false),
            ("eth0@if7         UP 00:0d:3a:e5:1c:c0", false),
            ("10.0.0.1 dev vnpbridge lladdr 0a:58:0a:01:02:03 PERMANENT", true),
            ("10.0.0.254 dev eth0 lladdr 12:34:56:78:9a:bc REACHABLE", false),
        ] {
            assert_eq!(is_of_a_pod(link), is_one, "{link}");
        }
    }

    #[test]
    fn answers_and_dials_are_read_one_behind_the_other() {
        let printed = "{\"source\": \"10.0.0.9\", \"local\": \"10.0.0.1\", \"name\": \"a\", \"peer\": \"x\"}\
            {\"source\": \"10.0.0.9\", \"local\": \"10.0.0.2\", \"name\": \"b\"}\n";
        let answer = |name: &str| Answer { name: name.to_owned(), source: address(9) };
        assert_eq!(answers(printed), [(address(1), answer("a")), (address(2), answer("b"))].into());

        let outcome = |name: &str, target: u8, source: &str| {
            json!({ "name": name, "target": format!("10.0.0.{target}:8080"), "ok": !source.is_empty(),
                "source_seen_by_target": source, "answered_by": "b", "error": "" })
        };
        let of_a = json!([outcome("a", 9, "10.0.0.1"), outcome("a", 2, "")]);
        let printed = format!("{of_a}\n{}\n", json!([outcome("b", 9, "10.0.0.2")]));
        let dial = |from: &str, target: u8, source: Option<u8>| Dial {
            from: from.to_owned(),
            target: address(target),
            answer: source.map(|source| Answer { name: "b".to_owned(), source: address(source) }),
        };
        assert_eq!(dials(&printed), [dial("a", 9, Some(1)), dial("a", 2, None), dial("b", 9, Some(2))]);
    }
}
