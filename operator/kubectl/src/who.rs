//! `who`: who has an address, which addresses a pod has, and where they are reserved.

use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde::Serialize;
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::allocation::{Interface, IpConfiguration};
use vnetpool_crds::inspection::{NodeView, State};
use vnetpool_crds::names;
use vnetpool_operator::outlook::needs_address;

use crate::cluster::{Objects, addresses_of, full_name, node_of};
use crate::show::{indented, length, or_dash, short, table};

/// What is known of some addresses.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    pub addresses: Vec<Address>,
    /// Nodes whose ledgers weren't read, and why not: what they know is missing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Address {
    pub address: String,
    /// In a word or two.
    pub state: String,
    pub pod: Option<String>,
    pub node: Option<String>,
    pub pool: Option<String>,
    /// The resource that the address is reserved on, and under which name.
    pub nic: Option<String>,
    pub reservation: Option<String>,
    /// What there is to know beyond that.
    pub notes: Vec<String>,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    Address(Ipv4Addr),
    /// With a namespace or in any.
    Pod(Option<String>, String),
}

impl Asked {
    pub fn parse(what: &str) -> Asked {
        match (what.parse(), what.split_once('/')) {
            (Ok(address), _) => Asked::Address(address),
            (_, Some((namespace, name))) => Asked::Pod(Some(namespace.to_owned()), name.to_owned()),
            (_, None) => Asked::Pod(None, what.to_owned()),
        }
    }

    fn is(&self, pod: &Pod) -> bool {
        match self {
            Asked::Address(_) => false,
            Asked::Pod(namespace, name) => {
                pod.name_any() == *name
                    && namespace.as_ref().is_none_or(|one| pod.namespace().as_ref() == Some(one))
            }
        }
    }

    /// Whether a ledger's name of a pod is meant.
    fn is_named(&self, pod: &str) -> bool {
        match self {
            Asked::Address(_) => false,
            Asked::Pod(Some(namespace), name) => pod.split_once('/') == Some((namespace, name)),
            Asked::Pod(None, name) => pod.rsplit('/').next() == Some(name),
        }
    }
}

/// The nodes whose ledgers can tell more: those that hold the address, or on which the pod is.
pub fn nodes_to_ask(objects: &Objects, asked: &Asked) -> Vec<String> {
    match asked {
        Asked::Address(address) => {
            let of_spec = objects.allocations.iter().filter(|one| reservation(one, *address).is_some());
            let of_pod = pods_with(objects, *address)
                .filter_map(node_of)
                .filter(|node| objects.allocation(node).is_some());
            let lost = objects.allocations.iter().filter(|one| {
                one.status
                    .iter()
                    .flat_map(|status| status.lost.iter().chain(&status.leases))
                    .any(|one| is(&one.address, *address))
            });
            let mut nodes: Vec<String> =
                of_spec.chain(lost).map(ResourceExt::name_any).chain(of_pod.map(str::to_owned)).collect();
            nodes.sort();
            nodes.dedup();
            // One that no object knows any more may still stand in the ledger of any node.
            if nodes.is_empty() {
                objects.allocations.iter().map(ResourceExt::name_any).collect()
            } else {
                nodes
            }
        }
        Asked::Pod(..) => {
            let on = objects.pods.iter().filter(|pod| asked.is(pod)).filter_map(node_of);
            on.filter(|node| objects.allocation(node).is_some()).map(str::to_owned).collect()
        }
    }
}

/// `told` is what the ledgers of some nodes say.
///
/// # Errors
/// When there is no such pod.
pub fn who(objects: &Objects, asked: &Asked, told: &[(String, Result<NodeView>)]) -> Result<Answer> {
    let views: Vec<(&str, &NodeView)> =
        told.iter().filter_map(|(node, view)| Some((node.as_str(), view.as_ref().ok()?))).collect();
    let mut addresses: Vec<Ipv4Addr> = match asked {
        Asked::Address(address) => vec![*address],
        Asked::Pod(..) => {
            let pods: Vec<&Pod> = objects.pods.iter().filter(|pod| asked.is(pod)).collect();
            let in_ledgers = views.iter().flat_map(|(_, view)| &view.addresses);
            let in_ledgers: Vec<_> = in_ledgers
                .filter(|one| one.tenant.iter().any(|tenant| asked.is_named(&tenant.pod)))
                .collect();
            ensure!(!pods.is_empty() || !in_ledgers.is_empty(), "there is no such pod");
            let reported = pods.iter().flat_map(|pod| addresses_of(pod));
            reported
                .chain(in_ledgers.iter().map(|one| one.address.as_str()))
                .filter_map(|one| one.parse().ok())
                .collect()
        }
    };
    addresses.sort();
    addresses.dedup();
    let unread =
        told.iter().filter_map(|(node, view)| Some(format!("node {node}: {:#}", view.as_ref().err()?)));
    let mut answer = Answer {
        addresses: addresses.into_iter().map(|address| one(objects, address, &views)).collect(),
        unread: unread.collect(),
    };
    if let (Asked::Pod(..), true) = (asked, answer.addresses.is_empty()) {
        let pods = objects.pods.iter().filter(|pod| asked.is(pod));
        answer.addresses = pods.map(without_address).collect();
    }
    Ok(answer)
}

fn without_address(pod: &Pod) -> Address {
    let state = if needs_address(pod) { "waits for an address" } else { "needs no address" };
    Address {
        address: "-".to_owned(),
        state: state.to_owned(),
        pod: Some(full_name(pod)),
        node: node_of(pod).map(str::to_owned),
        ..Address::default()
    }
}

/// All that is known of one address.
fn one(objects: &Objects, address: Ipv4Addr, views: &[(&str, &NodeView)]) -> Address {
    let holder = objects
        .allocations
        .iter()
        .find_map(|allocation| Some((allocation, reservation(allocation, address)?)));
    let ledger = views.iter().find_map(|(node, view)| {
        let record = view.addresses.iter().find(|record| is(&record.address, address))?;
        Some((*node, record))
    });
    let pod = pods_with(objects, address).next();
    let node =
        holder.map(|(allocation, _)| allocation.name_any()).or(ledger.map(|(node, _)| node.to_owned()));
    let node = node.or(pod.and_then(node_of).map(str::to_owned));
    let allocation = node.as_deref().and_then(|node| objects.allocation(node));

    // Whether the ledger of the node that holds it was read.
    let is_read = holder.is_some_and(|(one, _)| views.iter().any(|(node, _)| *node == one.name_any()));

    let mut notes = vec![];
    let tenant = ledger.and_then(|(_, record)| record.tenant.as_ref());
    let outlived = tenant
        .filter(|tenant| !tenant.pod_uid.is_empty() && !objects.uids().contains(tenant.pod_uid.as_str()));
    let (nic, reservation) = holder.map(|(_, (nic, one))| (nic, one)).unzip();
    let is_given_up = reservation.is_some_and(|one| {
        allocation.iter().flat_map(|one| &one.status).any(|status| status.relinquished.contains(&one.name))
            || views.iter().any(|(_, view)| view.relinquished.contains(&one.name))
    });
    let cooldown: Duration = allocation.map(|one| one.spec.cooldown.into()).unwrap_or_default();
    let state = match (ledger.map(|(_, record)| (record.state, record.since_seconds)), pod) {
        (Some((State::Assigned, _)), _) if outlived.is_some() => "outlived",
        (Some((State::Assigned, _)), _) => "assigned",
        (Some((State::Vanished, _)), _) => "lost",
        (Some((State::Withdrawn, _)), _) => "withdrawn",
        (_, Some(pod)) if !needs_address(pod) => "the node's own",
        (Some((State::Free, _)), Some(_)) => "in doubt",
        (None, Some(_)) => "assigned",
        _ if is_given_up => "given up",
        _ if reservation.is_some_and(|one| one.attached_to.is_some()) => "kept",
        (Some((State::Free, Some(since))), None) if Duration::from_secs(since) < cooldown => {
            let rest = cooldown.saturating_sub(Duration::from_secs(since));
            notes.push(format!("A pod had it {since} s ago; another one can get it in {}.", length(rest)));
            "cooling"
        }
        (Some((State::Free, _)), None) => "free",
        (None, None) if reservation.is_some() && !is_read => "no pod has it, as far as objects say",
        (None, None) if reservation.is_some() => "leaked",
        (None, None) if primary(objects, address).is_some() => "a NIC's primary address",
        (None, None) => "unknown",
    };
    notes.extend(explanation(state).map(str::to_owned));
    if let Some(uid) = reservation.and_then(|one| one.attached_to.as_deref()) {
        notes.push(match uid {
            names::OTHERS => "Somebody else than Vnetpool has attached something to it in Azure.".to_owned(),
            uid => format!(
                "Something in Azure is attached to it, or is about to be, for the pod with UID {uid}."
            ),
        });
    }
    let node = node.or(primary(objects, address).map(|allocation| allocation.name_any()));
    Address {
        address: address.to_string(),
        state: state.to_owned(),
        pod: tenant.map(|tenant| tenant.pod.clone()).filter(|pod| !pod.is_empty()).or(pod.map(full_name)),
        pool: node.as_deref().and_then(|node| objects.allocation(node)).map(|one| one.spec.pool.clone()),
        node,
        nic: reservation.and_then(|_| {
            let table = allocation.and_then(|one| one.spec.route_table_id.clone());
            table.or(nic.map(|nic| nic.id.clone()))
        }),
        reservation: reservation.map(|one| one.name.clone()),
        notes,
    }
}

fn explanation(state: &str) -> Option<&'static str> {
    Some(match state {
        "outlived" => {
            "Its pod is gone, and its sandbox still has it. The runtime frees it when it ends the sandbox."
        }
        "lost" => "Somebody took it off the NIC while its pod has it. The operator asks Azure for it again.",
        "withdrawn" => "Somebody took it off the NIC while it was free. No pod gets it.",
        "in doubt" => {
            "Its pod reports it, and the node's ledger says that it is free. `check` says whether that lasts."
        }
        "given up" => "The node has given it up for good. The operator is yet to take it off the NIC.",
        "leaked" => "It is reserved, and the node's ledger doesn't have it. `check` says whether that lasts.",
        "unknown" => "No node holds it, and no pod has it.",
        _ => return None,
    })
}

/// Pods that report the address and haven't ended.
fn pods_with(objects: &Objects, address: Ipv4Addr) -> impl Iterator<Item = &Pod> {
    let has_ended = |pod: &Pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    };
    let has = move |pod: &&Pod| !has_ended(pod) && addresses_of(pod).iter().any(|one| is(one, address));
    // The node's own address is also that of each of its pods on the host network.
    objects.pods.iter().filter(has)
}

/// The reservation in `spec` that the address is of.
fn reservation(allocation: &NodeIPAllocation, address: Ipv4Addr) -> Option<(&Interface, &IpConfiguration)> {
    let of = |nic: &&Interface| nic.ip_configurations.iter().any(|one| contains(&one.address, address));
    let nic = allocation.spec.interfaces.iter().find(of)?;
    Some((nic, nic.ip_configurations.iter().find(|one| contains(&one.address, address))?))
}

fn primary(objects: &Objects, address: Ipv4Addr) -> Option<&NodeIPAllocation> {
    let has =
        |one: &&NodeIPAllocation| one.spec.interfaces.iter().any(|nic| is(&nic.primary_address, address));
    objects.allocations.iter().find(has)
}

fn is(text: &str, address: Ipv4Addr) -> bool {
    text.parse() == Ok(address)
}

/// Whether a range, like `10.240.0.16/28`, has the address in it.
pub fn contains(range: &str, address: Ipv4Addr) -> bool {
    let Some((first, length)) = range.split_once('/') else { return false };
    let (Ok(first), Ok(length)) = (first.parse::<Ipv4Addr>(), length.parse::<u32>()) else { return false };
    let mask = u32::MAX.checked_shl(32_u32.saturating_sub(length)).unwrap_or(0);
    u32::from(first) & mask == u32::from(address) & mask
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.addresses.iter().map(|one| {
            vec![
                one.address.clone(),
                one.state.clone(),
                or_dash(one.pod.as_ref()),
                or_dash(one.node.as_ref()),
                or_dash(one.pool.as_ref()),
                or_dash(one.nic.as_deref().map(short)),
                or_dash(one.reservation.as_ref()),
            ]
        });
        let headers = ["ADDRESS", "STATE", "POD", "NODE", "POOL", "RESERVED ON", "AS"];
        f.write_str(&table(&headers, &rows.collect::<Vec<_>>()))?;
        for one in self.addresses.iter().filter(|one| !one.notes.is_empty()) {
            write!(f, "\n{}\n{}", one.address, indented(&one.notes.join(" ")))?;
        }
        if !self.unread.is_empty() {
            writeln!(f, "\nThese ledgers weren't read, so the above is what objects say:")?;
            self.unread.iter().try_for_each(|one| f.write_str(&indented(one)))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use anyhow::anyhow;
    use vnetpool_crds::inspection::{AddressView, Tenant};

    fn record(n: u8, state: State, since: u64, pod: &str) -> AddressView {
        let tenant =
            Tenant { pod: format!("shop/{pod}"), pod_uid: format!("uid-{pod}"), sandbox: "c/eth0".into() };
        AddressView {
            address: format!("10.240.0.{n}"),
            name: format!("vnp-{n}"),
            state,
            since_seconds: Some(since),
            tenant: (!pod.is_empty()).then_some(tenant),
            is_leased: false,
        }
    }

    fn told() -> Vec<(String, Result<NodeView>)> {
        let addresses = vec![
            record(10, State::Assigned, 60, "a"),
            record(11, State::Assigned, 60, "gone"),
            record(12, State::Free, 10, ""),
            record(9, State::Withdrawn, 60, ""),
            record(8, State::Vanished, 60, "b"),
        ];
        vec![("node-1".to_owned(), Ok(NodeView { addresses, ..NodeView::default() }))]
    }

    fn asked(what: &str) -> Answer {
        let mut objects = fixture::objects();
        objects.pods.retain(|pod| pod.name_any() != "b" || what != "10.240.0.11");
        who(&objects, &Asked::parse(what), &told()).unwrap()
    }

    #[test]
    fn an_address_leads_to_its_pod_its_node_its_pool_and_its_nic() {
        let expected = "\
ADDRESS       STATE      POD      NODE     POOL      RESERVED ON   AS
10.240.0.10   assigned   shop/a   node-1   default   node-1-nic    vnp-10
";
        assert_eq!(asked("10.240.0.10").to_string(), expected);
        assert_eq!(asked("shop/a").to_string(), expected);
        assert_eq!(asked("a").to_string(), expected);
    }

    #[test]
    fn what_the_ledger_alone_knows_is_told() {
        let state = |n: u8| asked(&format!("10.240.0.{n}")).addresses[0].state.clone();
        assert_eq!(
            [11, 12, 13, 9, 8, 99].map(state),
            ["outlived", "cooling", "leaked", "withdrawn", "lost", "unknown"]
        );
        let cooling = asked("10.240.0.12").to_string();
        assert!(cooling.contains("A pod had it 10 s ago; another one can get it in 20s."), "{cooling}");
    }

    #[test]
    fn without_the_ledger_the_objects_speak_and_the_answer_says_so() {
        let silent = vec![("node-1".to_owned(), Err(anyhow!("no pod of vnetpool-node-agent runs")))];
        let answer = who(&fixture::objects(), &Asked::parse("10.240.0.12"), &silent).unwrap();
        assert_eq!(answer.addresses[0].state, "no pod has it, as far as objects say");
        assert!(answer.to_string().contains("weren't read"), "{answer}");
    }

    #[test]
    fn an_address_that_no_object_knows_is_looked_for_in_every_ledger() {
        let nodes = |what: &str| nodes_to_ask(&fixture::objects(), &Asked::parse(what));
        assert_eq!(nodes("10.240.0.99"), ["node-1", "node-2"]);
        assert_eq!(
            (nodes("10.240.0.22"), nodes("d")),
            (vec!["node-2".to_owned()], vec!["node-2".to_owned()])
        );
    }

    #[test]
    fn an_address_of_a_block_is_reserved_with_it() {
        let of = |address: &str| contains("10.240.0.16/28", address.parse().unwrap());
        assert_eq!(
            ["10.240.0.15", "10.240.0.16", "10.240.0.31", "10.240.0.32"].map(of),
            [false, true, true, false]
        );
        assert!(!contains("10.240.0.16", "10.240.0.16".parse().unwrap()));
    }
}
