//! `who`: which pod has an address, which addresses a pod has, and where they are reserved.

mod standing;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde::Serialize;
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::allocation::{Holder, Interface, IpConfiguration};
use vnetpool_crds::inspection::{NodeView, State};
use vnetpool_crds::names;
use vnetpool_operator::outlook::needs_address;

use crate::cluster::Objects;
use crate::kubectl::Answers;
use crate::pod::{addresses_of, full_name, node_of};
use crate::show::{indented, length, or_dash, short, table};
pub use standing::Standing;

/// The facts about some addresses.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    pub addresses: Vec<Address>,
    /// Nodes whose ledgers weren't read, and why not: their facts are missing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Address {
    pub address: String,
    pub state: Standing,
    pub pod: Option<String>,
    pub node: Option<String>,
    pub pool: Option<String>,
    /// The resource that the address is reserved on, and under which name.
    pub nic: Option<String>,
    pub reservation: Option<String>,
    /// Further facts.
    pub notes: Vec<String>,
}

/// The user's question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    Address(Ipv4Addr),
    /// With a namespace or in any.
    Pod(Option<String>, String),
}

impl Question {
    pub fn parse(what: &str) -> Question {
        match (what.parse(), what.split_once('/')) {
            (Ok(address), _) => Question::Address(address),
            (_, Some((namespace, name))) => Question::Pod(Some(namespace.to_owned()), name.to_owned()),
            (_, None) => Question::Pod(None, what.to_owned()),
        }
    }

    fn is(&self, pod: &Pod) -> bool {
        match self {
            Question::Address(_) => false,
            Question::Pod(namespace, name) => {
                pod.name_any() == *name
                    && namespace.as_ref().is_none_or(|one| pod.namespace().as_ref() == Some(one))
            }
        }
    }

    /// Whether a ledger's name of a pod is meant.
    fn is_named(&self, pod: &str) -> bool {
        match self {
            Question::Address(_) => false,
            Question::Pod(Some(namespace), name) => pod.split_once('/') == Some((namespace, name)),
            Question::Pod(None, name) => pod.rsplit('/').next() == Some(name),
        }
    }
}

/// The nodes whose ledgers can have more: those that hold the address, or on which the pod is. An address
/// that no object has any more may still stand in the ledger of any node.
pub fn nodes_to_ask(objects: &Objects, asked: &Question) -> Vec<String> {
    let holding = objects.allocations.iter().filter(|one| match asked {
        Question::Address(address) => {
            reservation(one, *address).is_some() || holders(one).any(|one| is(&one.address, *address))
        }
        Question::Pod(..) => holders(one).any(|one| asked.is_named(&one.pod)),
    });
    let pods: Vec<&Pod> = match asked {
        Question::Address(address) => pods_with(objects, *address).collect(),
        Question::Pod(..) => objects.pods.iter().filter(|pod| asked.is(pod)).collect(),
    };
    let on = pods.iter().filter_map(|pod| objects.allocation(node_of(pod)?));
    let nodes: BTreeSet<String> = holding.chain(on).map(ResourceExt::name_any).collect();
    let is_unknown = match asked {
        Question::Address(_) => nodes.is_empty(),
        Question::Pod(..) => pods.is_empty(),
    };
    match is_unknown {
        true => objects.allocations.iter().map(ResourceExt::name_any).collect(),
        false => nodes.into_iter().collect(),
    }
}

/// The pods that a node's agent names, with their addresses.
fn holders(allocation: &NodeIPAllocation) -> impl Iterator<Item = &Holder> {
    allocation
        .status
        .iter()
        .flat_map(|status| status.lost.iter().chain(&status.leases).chain(&status.holders))
}

/// `answers` are the ledgers of some nodes.
///
/// # Errors
/// When there is no such pod.
pub fn who(objects: &Objects, asked: &Question, answers: &Answers<NodeView>) -> Result<Answer> {
    let views =
        answers.iter().filter_map(|(node, view)| Some((node.as_str(), view.as_ref().ok()?))).collect();
    let unread: Vec<String> = answers
        .iter()
        .filter_map(|(node, view)| Some(format!("node {node}: {}", view.as_ref().err()?)))
        .collect();
    let known = Known { objects, asked, views, uids: objects.uids() };
    let pods: Vec<&Pod> = objects.pods.iter().filter(|pod| asked.is(pod)).collect();
    let addresses: BTreeSet<Ipv4Addr> = match asked {
        Question::Address(address) => [*address].into(),
        Question::Pod(..) => {
            let records = known.views.values().flat_map(|view| &view.addresses);
            let in_ledgers =
                records.filter(|one| one.tenant.iter().any(|tenant| asked.is_named(&tenant.pod)));
            let in_ledgers = in_ledgers.map(|one| one.address.as_str());
            let held = objects.allocations.iter().flat_map(holders).filter(|one| asked.is_named(&one.pod));
            let reported = pods.iter().flat_map(|pod| addresses_of(pod));
            let all = reported.chain(in_ledgers).chain(held.map(|one| one.address.as_str()));
            all.filter_map(|one| one.parse().ok()).collect()
        }
    };
    let mut rows: Vec<Address> = addresses.into_iter().flat_map(|address| known.rows(address)).collect();
    if let (Question::Pod(namespace, name), true) = (asked, rows.is_empty()) {
        let namespace = namespace.as_ref().map(|namespace| format!("{namespace}/")).unwrap_or_default();
        let unread = match unread.len() {
            0 => String::new(),
            count => format!(" The ledgers of {count} of them couldn't be read, such as of {}.", unread[0]),
        };
        ensure!(
            !pods.is_empty(),
            "there is no such pod as {namespace}{name}, and none of {} nodes is known to have an address for it.{unread} \
             `kubectl get pods --all-namespaces` lists the pods there are.",
            answers.len()
        );
        rows = pods.into_iter().map(without_address).collect();
    }
    Ok(Answer { addresses: rows, unread })
}

fn without_address(pod: &Pod) -> Address {
    Address {
        address: "-".to_owned(),
        state: if needs_address(pod) { Standing::Waits } else { Standing::NeedsNone },
        pod: Some(full_name(pod)),
        node: node_of(pod).map(str::to_owned),
        ..Address::default()
    }
}

/// The sources of the answer.
struct Known<'a> {
    objects: &'a Objects,
    asked: &'a Question,
    /// The ledgers that were read.
    views: BTreeMap<&'a str, &'a NodeView>,
    uids: BTreeSet<&'a str>,
}

impl Known<'_> {
    /// All that is known of one address: a row for each node that has anything to do with it.
    fn rows(&self, address: Ipv4Addr) -> Vec<Address> {
        let of_object = self.objects.allocations.iter().filter(|one| {
            reservation(one, address).is_some() || holders(one).any(|one| is(&one.address, address))
        });
        let has_record = |view: &NodeView| view.addresses.iter().any(|record| is(&record.address, address));
        let of_ledger =
            self.views.iter().filter(|(_, view)| has_record(view)).map(|(node, _)| (*node).to_owned());
        let of_pod = pods_with(self.objects, address).filter(|pod| needs_address(pod)).filter_map(node_of);
        let nodes: BTreeSet<String> =
            of_object.map(ResourceExt::name_any).chain(of_ledger).chain(of_pod.map(str::to_owned)).collect();
        match nodes.is_empty() {
            true => vec![self.of_nobody(address)],
            false => nodes.into_iter().map(|node| self.of_node(address, node)).collect(),
        }
    }

    /// The standing of an address on a node that has it, or whose pod does.
    fn of_node(&self, address: Ipv4Addr, node: String) -> Address {
        let allocation = self.objects.allocation(&node);
        let status = allocation.and_then(|one| one.status.as_ref());
        let (nic, reservation) = allocation.and_then(|one| reservation(one, address)).unzip();
        let is_left = reservation.is_some() && allocation.and_then(|one| present(one, address)).is_none();
        let view = self.views.get(node.as_str());
        let record = view.and_then(|view| view.addresses.iter().find(|record| is(&record.address, address)));
        let tenant = record.and_then(|record| record.tenant.as_ref());
        // The pod asked for, if it is one of them.
        let here =
            pods_with(self.objects, address).filter(|pod| node_of(pod) == Some(&node) && needs_address(pod));
        let pod = here.max_by_key(|pod| self.asked.is(pod));
        let is_given_up = reservation.is_some_and(|one| {
            status.is_some_and(|status| status.relinquished.contains(&one.name))
                || view.is_some_and(|view| view.relinquished.contains(&one.name))
        });
        let has_outlived = tenant
            .is_some_and(|tenant| !tenant.pod_uid.is_empty() && !self.uids.contains(tenant.pod_uid.as_str()));
        // The agent's report stands for a ledger that wasn't read.
        let holder = allocation
            .filter(|_| view.is_none())
            .and_then(|one| holders(one).find(|one| is(&one.address, address)));
        let is_lost = holder.is_some_and(|holder| status.is_some_and(|status| status.lost.contains(holder)));
        let cooldown: Duration = allocation.map(|one| one.spec.cooldown.into()).unwrap_or_default();
        let since = record.and_then(|record| record.since_seconds).map(Duration::from_secs);
        let rest = since.and_then(|since| cooldown.checked_sub(since)).filter(|rest| !rest.is_zero());

        let state = match (record.map(|record| record.state), pod) {
            (Some(State::Assigned), _) if has_outlived => Standing::Outlived,
            (Some(State::Assigned), _) => Standing::Assigned,
            (Some(State::Vanished), _) => Standing::Lost,
            (None, _) if is_lost => Standing::Lost,
            (None, Some(_)) if is_given_up => Standing::GivenUp,
            (None, Some(_)) if view.is_none() => Standing::Assigned,
            (_, Some(_)) => Standing::InDoubt,
            (_, None) if is_left && holder.is_none() => Standing::OnLeftNic,
            (Some(State::Withdrawn), None) => Standing::Withdrawn,
            (None, None) if holder.is_some() => Standing::Assigned,
            (_, None) if is_given_up => Standing::GivenUp,
            (_, None) if reservation.is_some_and(|one| one.attached_to.is_some()) => Standing::Kept,
            (Some(State::Free), None) if view.is_some_and(|view| view.lacks_rules) => Standing::Withheld,
            (Some(State::Free), None) if rest.is_some() => Standing::Cooling,
            (Some(State::Free), None) => Standing::Free,
            (None, None) if view.is_none() => Standing::Unheld,
            (None, None) => Standing::Leaked,
        };
        let mut notes = vec![];
        if let (Standing::Cooling, Some((since, rest))) = (state, since.zip(rest)) {
            let since = since.as_secs();
            notes.push(format!("A pod had it {since} s ago; another one can get it in {}.", length(rest)));
        }
        let in_use = "Its node has left the NIC that has it. It goes back once its pod is gone.";
        notes.extend((is_left && state != Standing::OnLeftNic).then(|| in_use.to_owned()));
        // Nobody took it off that NIC.
        let explanation = state.explanation().filter(|_| !is_left || state != Standing::Lost);
        notes.extend(explanation.map(str::to_owned));
        if let (Standing::GivenUp, Some(pod)) = (state, pod) {
            notes.push(format!("{} reports it: it is about to lose it.", full_name(pod)));
        }
        if let Some(uid) = reservation.and_then(|one| one.attached_to.as_deref()) {
            notes.push(match uid {
                names::OTHERS => {
                    "Somebody else than Vnetpool has attached something to it in Azure.".to_owned()
                }
                uid => format!(
                    "Something in Azure is attached to it, or is about to be, for the pod with UID {uid}."
                ),
            });
        }
        let names = tenant.map(|tenant| &tenant.pod).or(holder.map(|holder| &holder.pod));
        Address {
            address: address.to_string(),
            state,
            pod: names.filter(|pod| !pod.is_empty()).cloned().or(pod.map(full_name)),
            pool: allocation.map(|one| one.spec.pool.clone()),
            node: Some(node),
            nic: reservation.and_then(|_| {
                let table = allocation.and_then(|one| one.spec.route_table_id.clone()).filter(|_| !is_left);
                table.or(nic.map(|nic| nic.id.clone()))
            }),
            reservation: reservation.map(|one| one.name.clone()),
            notes,
        }
    }

    /// An address that no node has for a pod. That of a node is also that of each of its pods on the host
    /// network: only one that was asked for is named.
    fn of_nobody(&self, address: Ipv4Addr) -> Address {
        let pod = pods_with(self.objects, address).max_by_key(|pod| self.asked.is(pod));
        let (primary, left) = primary(self.objects, address).unzip();
        let left = left.flatten().filter(|_| pod.is_none());
        let state = match (pod, primary) {
            (Some(_), _) => Standing::NodesOwn,
            (None, Some(_)) => Standing::Primary,
            (None, None) => Standing::Unknown,
        };
        let note = left.map_or(state.explanation(), |_| Some("Its node has left that NIC."));
        let node = pod.and_then(node_of).map(str::to_owned).or(primary.map(ResourceExt::name_any));
        Address {
            address: address.to_string(),
            state,
            pod: pod.filter(|pod| self.asked.is(pod)).map(full_name),
            pool: node
                .as_deref()
                .and_then(|node| self.objects.allocation(node))
                .map(|one| one.spec.pool.clone()),
            node,
            nic: left.map(|nic| nic.id.clone()),
            notes: note.map(str::to_owned).into_iter().collect(),
            ..Address::default()
        }
    }
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

/// The reservation in `spec` that the address is of, with its NIC: a present one, or else one on a NIC that
/// the node has left.
fn reservation(allocation: &NodeIPAllocation, address: Ipv4Addr) -> Option<(&Interface, &IpConfiguration)> {
    let has = |(_, one): &(&Interface, &IpConfiguration)| contains(&one.address, address);
    present(allocation, address).or_else(|| allocation.spec.left_reservations().find(has))
}

fn present(allocation: &NodeIPAllocation, address: Ipv4Addr) -> Option<(&Interface, &IpConfiguration)> {
    let of = |nic: &&Interface| nic.ip_configurations.iter().any(|one| contains(&one.address, address));
    let nic = allocation.spec.interfaces.iter().find(of)?;
    Some((nic, nic.ip_configurations.iter().find(|one| contains(&one.address, address))?))
}

/// The object with a NIC of this primary address. Where no node has it, one that has left it, with the NIC.
fn primary(objects: &Objects, address: Ipv4Addr) -> Option<(&NodeIPAllocation, Option<&Interface>)> {
    let (all, has) = (&objects.allocations, |nic: &&Interface| is(&nic.primary_address, address));
    let present = all.iter().find(|one| one.spec.interfaces.iter().any(|nic| has(&nic)));
    let left = || all.iter().find_map(|one| Some((one, Some(one.spec.left_interfaces.iter().find(has)?))));
    present.map(|one| (one, None)).or_else(left)
}

fn is(text: &str, address: Ipv4Addr) -> bool {
    text.parse() == Ok(address)
}

/// The first and the last address of a range, like `10.240.0.16/28`, or of a single one.
pub fn ends(range: &str) -> Option<(u32, u32)> {
    let (first, length) = range.split_once('/').unwrap_or((range, "32"));
    let host = u32::MAX.checked_shr(length.parse().ok()?).unwrap_or(0);
    let first = u32::from(first.parse::<Ipv4Addr>().ok()?) & !host;
    Some((first, first | host))
}

/// Whether a range has the address in it.
pub fn contains(range: &str, address: Ipv4Addr) -> bool {
    let ends = ends(range).filter(|_| range.contains('/'));
    ends.is_some_and(|(first, last)| (first..=last).contains(&u32::from(address)))
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.addresses.iter().map(|one| {
            vec![
                one.address.clone(),
                one.state.words().to_owned(),
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
            writeln!(f, "\nThese ledgers weren't read, so the above is what objects show:")?;
            self.unread.iter().try_for_each(|one| f.write_str(&indented(one)))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
