//! `check`: do NIC, `spec`, ledger, kernel and pods agree?
//!
//! They are read one after the other while all of them change, so that each look sees differences that are none.
//! Only what two looks see counts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use anyhow::Result;
use kube::ResourceExt;
use serde::Serialize;
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::allocation::IpConfiguration;
use vnetpool_crds::inspection::{AddressView, NodeView, ReservedView, State};
use vnetpool_operator::outlook::needs_address;

use crate::cluster::{Objects, addresses_of, full_name, node_of};
use crate::kubectl::Kubectl;
use crate::show::{indented, table};
use crate::who::contains;

/// Everything that is compared, as one look has seen it.
#[derive(Clone, Debug, Default)]
pub struct Look {
    pub objects: Objects,
    /// By the id of the NIC, or of the route table, in lower case.
    pub reserved: BTreeMap<String, ReservedView>,
    /// By node.
    pub ledgers: BTreeMap<String, NodeView>,
    /// What couldn't be looked at, and why not.
    pub unseen: Vec<String>,
}

impl Look {
    /// Reads everything, of one node or of all.
    ///
    /// # Errors
    /// When the API server refuses.
    pub fn take(kubectl: &Kubectl, node: Option<&str>) -> Result<Look> {
        // The NICs first: what is on one and in no `spec` that is read later has been forgotten.
        let mut objects = Objects::ours(kubectl)?;
        objects.allocations.retain(|one| node.is_none_or(|node| one.name_any() == node));
        let ids: BTreeSet<&str> = objects.allocations.iter().filter_map(place).collect();
        let (mut reserved, mut unseen) = (BTreeMap::new(), objects.unreadable.clone());
        match kubectl.reserved(&ids.into_iter().collect::<Vec<_>>()) {
            Ok(views) => {
                for view in views {
                    match &view.error {
                        None => drop(reserved.insert(view.id.to_lowercase(), view)),
                        Some(error) => unseen.push(format!("{}: {error}", view.id)),
                    }
                }
            }
            Err(error) => unseen.push(format!("what Azure has reserved: {error:#}")),
        }
        let mut ledgers = BTreeMap::new();
        for node in objects.allocations.iter().map(ResourceExt::name_any) {
            match kubectl.node(&node) {
                Ok(view) => drop(ledgers.insert(node, view)),
                Err(error) => unseen.push(format!("node {node}: {error:#}")),
            }
        }
        let mut objects = Objects::all(kubectl)?;
        objects.allocations.retain(|one| node.is_none_or(|node| one.name_any() == node));
        Ok(Look { objects, reserved, ledgers, unseen })
    }
}

/// Something that two places say differently.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Difference {
    pub node: String,
    pub between: Between,
    /// An address, or a reservation.
    pub what: String,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Between {
    NicAndSpec,
    SpecAndLedger,
    LedgerAndKernel,
    LedgerAndPods,
}

impl fmt::Display for Between {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Between::NicAndSpec => "NIC, spec",
            Between::SpecAndLedger => "spec, ledger",
            Between::LedgerAndKernel => "ledger, kernel",
            Between::LedgerAndPods => "ledger, pods",
        })
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    pub nodes: usize,
    pub differences: Vec<Difference>,
    pub unseen: Vec<String>,
}

impl Verdict {
    /// Whether everything was looked at, and agrees.
    pub fn is_well(&self) -> bool {
        self.differences.is_empty() && self.unseen.is_empty()
    }

    /// What both looks have seen. What one of them couldn't look at isn't well.
    pub fn of(first: &Look, second: &Look) -> Verdict {
        let (before, after) = (differences(first), differences(second));
        let lasts = |one: &Difference| {
            before
                .iter()
                .any(|other| (&other.node, other.between, &other.what) == (&one.node, one.between, &one.what))
        };
        Verdict {
            nodes: second.objects.allocations.len(),
            differences: after.into_iter().filter(lasts).collect(),
            unseen: second.unseen.clone(),
        }
    }
}

/// What one look has seen.
pub fn differences(look: &Look) -> Vec<Difference> {
    let mut all = vec![];
    for allocation in &look.objects.allocations {
        let mut found = Found { node: allocation.name_any(), differences: &mut all };
        if let Some(reserved) = look.reserved.get(&place(allocation).unwrap_or_default().to_lowercase()) {
            found.nic_and_spec(allocation, reserved);
        }
        let Some(ledger) = look.ledgers.get(&allocation.name_any()) else { continue };
        found.spec_and_ledger(allocation, ledger);
        found.ledger_and_kernel(ledger);
        found.ledger_and_pods(&look.objects, ledger);
    }
    all.sort();
    all
}

/// Where the node's addresses are reserved: its route table, or its NIC.
pub fn place(allocation: &NodeIPAllocation) -> Option<&str> {
    let nic = allocation.spec.serving().map(|nic| nic.id.as_str());
    allocation.spec.route_table_id.as_deref().or(nic)
}

struct Found<'a> {
    node: String,
    differences: &'a mut Vec<Difference>,
}

impl Found<'_> {
    fn add(&mut self, between: Between, what: &str, message: impl Into<String>) {
        let (node, what, message) = (self.node.clone(), what.to_owned(), message.into());
        self.differences.push(Difference { node, between, what, message });
    }

    fn nic_and_spec(&mut self, allocation: &NodeIPAllocation, reserved: &ReservedView) {
        let spec = &allocation.spec;
        let shown: BTreeMap<&str, &IpConfiguration> =
            spec.ip_configurations().map(|one| (one.name.as_str(), one)).collect();
        // A route table has the routes of all nodes.
        let is_nic = spec.route_table_id.is_none();
        for one in reserved.reservations.iter().filter(|one| is_nic || shown.contains_key(one.name.as_str()))
        {
            let address = one.address.as_deref().unwrap_or("no address yet");
            match shown.get(one.name.as_str()) {
                None => self.add(
                    Between::NicAndSpec,
                    &one.name,
                    format!("Azure has it ({address}, {}), and spec doesn't: no pod can get it.", one.state),
                ),
                Some(known) if one.address.as_ref() != Some(&known.address) => self.add(
                    Between::NicAndSpec,
                    &one.name,
                    format!("Azure has it with {address}, and spec with {}.", known.address),
                ),
                Some(_) => {}
            }
        }
        let names: BTreeSet<&str> = reserved.reservations.iter().map(|one| one.name.as_str()).collect();
        for one in shown.values().filter(|one| !names.contains(one.name.as_str())) {
            let message = format!("spec has it ({}), and Azure doesn't: its packets are lost.", one.address);
            self.add(Between::NicAndSpec, &one.name, message);
        }
    }

    fn spec_and_ledger(&mut self, allocation: &NodeIPAllocation, ledger: &NodeView) {
        let generation = allocation.metadata.generation.unwrap_or_default();
        if ledger.generation != generation {
            let message = format!(
                "The ledger was supplied from generation {} of the object, which is at {generation}.",
                ledger.generation
            );
            // By this alone: with each write the numbers are others.
            return self.add(Between::SpecAndLedger, "generation", message);
        }
        let relinquished: BTreeSet<&str> = ledger.relinquished.iter().map(String::as_str).collect();
        for one in allocation.spec.ip_configurations().filter(|one| !relinquished.contains(one.name.as_str()))
        {
            let records = ledger.addresses.iter().filter(|record| record.name == one.name).count();
            if records < one.count() as usize {
                let message = format!(
                    "spec has it ({}), and the ledger has {records} of its {} addresses: no pod can get the others.",
                    one.address,
                    one.count()
                );
                self.add(Between::SpecAndLedger, &one.name, message);
            }
        }
        // One that was withdrawn is remembered until the node boots, and no pod gets it.
        for record in ledger.addresses.iter().filter(|record| record.state == State::Vanished) {
            let message = format!("{} has it, and it left the NIC.", whose(record));
            self.add(Between::SpecAndLedger, &record.address, message);
        }
    }

    fn ledger_and_kernel(&mut self, ledger: &NodeView) {
        let wired: BTreeSet<&str> = ledger.wired.iter().map(|one| one.address.as_str()).collect();
        for record in assigned(ledger).filter(|one| !one.is_leased && !wired.contains(one.address.as_str())) {
            let message =
                format!("{} has it by the ledger, and no link of the node leads to it.", whose(record));
            self.add(Between::LedgerAndKernel, &record.address, message);
        }
        let known: BTreeSet<&str> = assigned(ledger).map(|one| one.address.as_str()).collect();
        for one in ledger.wired.iter().filter(|one| !known.contains(one.address.as_str())) {
            let pod = if one.tenant.pod.is_empty() { "some pod" } else { &one.tenant.pod };
            let message =
                format!("A link of the node leads to it, for {pod}, and by the ledger no pod has it.");
            self.add(Between::LedgerAndKernel, &one.address, message);
        }
    }

    fn ledger_and_pods(&mut self, objects: &Objects, ledger: &NodeView) {
        let uids = objects.uids();
        for record in assigned(ledger) {
            let Some(tenant) = &record.tenant else { continue };
            if !tenant.pod_uid.is_empty() && !uids.contains(tenant.pod_uid.as_str()) {
                let message =
                    format!("{} has it by the ledger, and there is no such pod any more.", whose(record));
                self.add(Between::LedgerAndPods, &record.address, message);
            }
        }
        let node = self.node.clone();
        let here = objects.pods.iter().filter(|pod| node_of(pod) == Some(&node) && needs_address(pod));
        for pod in here {
            let own = addresses_of(pod).into_iter().find(|one| one.parse::<Ipv4Addr>().is_ok());
            let Some(address) = own else { continue };
            let is_ours = || {
                let address = address.parse().unwrap_or(Ipv4Addr::UNSPECIFIED);
                let allocation = objects.allocation(&node);
                allocation.is_some_and(|one| {
                    one.spec.ip_configurations().any(|one| contains(&one.address, address))
                })
            };
            let has = assigned(ledger).any(|record| record.address == address);
            if !has {
                let reserved = if is_ours() { "free" } else { "not the node's" };
                let message = format!("{} reports it, and by the ledger it is {reserved}.", full_name(pod));
                self.add(Between::LedgerAndPods, address, message);
            }
        }
    }
}

fn assigned(ledger: &NodeView) -> impl Iterator<Item = &AddressView> {
    ledger.addresses.iter().filter(|one| matches!(one.state, State::Assigned | State::Vanished))
}

fn whose(record: &AddressView) -> String {
    match &record.tenant {
        Some(tenant) if !tenant.pod.is_empty() => tenant.pod.clone(),
        Some(tenant) => format!("sandbox {}", tenant.sandbox),
        None => "somebody".to_owned(),
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.differences.is_empty() {
            let row = |one: &Difference| {
                vec![one.node.clone(), one.between.to_string(), one.what.clone(), one.message.clone()]
            };
            let rows: Vec<_> = self.differences.iter().map(row).collect();
            writeln!(f, "{}", table(&["NODE", "BETWEEN", "WHAT", "HOW"], &rows))?;
        }
        if !self.unseen.is_empty() {
            writeln!(f, "Not looked at:")?;
            self.unseen.iter().try_for_each(|one| f.write_str(&indented(one)))?;
            writeln!(f)?;
        }
        match self.is_well() {
            true => writeln!(f, "NIC, spec, ledger, kernel and pods agree on each node: {}.", self.nodes),
            false => writeln!(
                f,
                "Nodes: {}; differences, each seen twice: {}; not looked at: {}.",
                self.nodes,
                self.differences.len(),
                self.unseen.len()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use serde_json::json;
    use vnetpool_crds::inspection::{Reservation, Tenant, Wired};

    fn tenant(pod: &str) -> Tenant {
        Tenant { pod: format!("shop/{pod}"), pod_uid: format!("uid-{pod}"), sandbox: format!("{pod}/eth0") }
    }

    fn record(n: u8, pod: Option<&str>) -> AddressView {
        AddressView {
            address: format!("10.240.0.{n}"),
            name: format!("vnp-{n}"),
            state: if pod.is_some() { State::Assigned } else { State::Free },
            tenant: pod.map(tenant),
            ..AddressView::default()
        }
    }

    fn wired(n: u8, pod: &str) -> Wired {
        Wired { address: format!("10.240.0.{n}"), tenant: tenant(pod) }
    }

    /// Node 1 of the fixture, with all in agreement.
    fn well() -> Look {
        let mut objects = fixture::objects();
        objects.allocations.truncate(1);
        let reserve = |n: u8| Reservation {
            name: format!("vnp-{n}"),
            address: Some(format!("10.240.0.{n}/32")),
            state: "Succeeded".into(),
        };
        let id = place(&objects.allocations[0]).unwrap().to_owned();
        let reserved = ReservedView {
            id: id.clone(),
            reservations: (10..14).map(reserve).collect(),
            ..Default::default()
        };
        let ledger = NodeView {
            boot_id: "boot".into(),
            generation: 3,
            addresses: vec![record(10, Some("a")), record(11, Some("b")), record(12, None), record(13, None)],
            wired: vec![wired(10, "a"), wired(11, "b")],
            ..NodeView::default()
        };
        Look {
            objects,
            reserved: [(id.to_lowercase(), reserved)].into(),
            ledgers: [("node-1".to_owned(), ledger)].into(),
            unseen: vec![],
        }
    }

    fn nic(look: &mut Look) -> &mut ReservedView {
        look.reserved.values_mut().next().unwrap()
    }

    fn ledger(look: &mut Look) -> &mut NodeView {
        look.ledgers.values_mut().next().unwrap()
    }

    /// What is found when this is changed.
    fn found(change: impl Fn(&mut Look)) -> Vec<(String, String)> {
        let mut look = well();
        change(&mut look);
        differences(&look).into_iter().map(|one| (one.between.to_string(), one.what)).collect()
    }

    fn only(between: Between, what: &str) -> Vec<(String, String)> {
        vec![(between.to_string(), what.to_owned())]
    }

    #[test]
    fn what_agrees_is_no_difference() {
        assert_eq!(differences(&well()), []);
        let verdict = Verdict::of(&well(), &well());
        assert!(verdict.is_well());
        assert_eq!(verdict.to_string(), "NIC, spec, ledger, kernel and pods agree on each node: 1.\n");
    }

    #[test]
    fn a_reservation_that_is_on_the_nic_alone_or_not_at_all_is_a_difference() {
        let leaked = found(|look| {
            nic(look).reservations.push(Reservation { name: "vnp-99".into(), ..Default::default() })
        });
        assert_eq!(leaked, only(Between::NicAndSpec, "vnp-99"));
        assert_eq!(found(|look| drop(nic(look).reservations.pop())), only(Between::NicAndSpec, "vnp-13"));
    }

    #[test]
    fn an_address_that_the_ledger_lacks_or_remembers_is_a_difference() {
        assert_eq!(found(|look| drop(ledger(look).addresses.pop())), only(Between::SpecAndLedger, "vnp-13"));
        let given_up = found(|look| {
            ledger(look).addresses.pop();
            ledger(look).relinquished.push("vnp-13".into());
        });
        assert_eq!(given_up, []);
        let gone = |state| {
            found(|look| {
                ledger(look).addresses.push(AddressView { state, ..record(9, Some("a")) });
                ledger(look).wired.push(wired(9, "a"));
            })
        };
        assert_eq!(gone(State::Vanished), only(Between::SpecAndLedger, "10.240.0.9"));
        let withdrawn = found(|look| {
            ledger(look).addresses.push(AddressView { state: State::Withdrawn, ..record(9, None) })
        });
        assert_eq!(withdrawn, []);
    }

    #[test]
    fn a_ledger_of_another_generation_is_one_difference_and_not_many() {
        let late = found(|look| {
            ledger(look).generation = 2;
            ledger(look).addresses.pop();
        });
        assert_eq!(late, only(Between::SpecAndLedger, "generation"));
    }

    #[test]
    fn a_record_without_a_link_and_a_link_without_a_record_are_differences() {
        assert_eq!(
            found(|look| drop(ledger(look).wired.pop())),
            only(Between::LedgerAndKernel, "10.240.0.11")
        );
        assert_eq!(
            found(|look| ledger(look).wired.push(wired(12, "x"))),
            only(Between::LedgerAndKernel, "10.240.0.12")
        );
        let leased = found(|look| {
            ledger(look).wired.pop();
            ledger(look).addresses[1].is_leased = true;
        });
        assert_eq!(leased, []);
    }

    #[test]
    fn an_outlived_sandbox_and_a_pod_that_the_ledger_does_not_know_are_differences() {
        let outlived = found(|look| look.objects.pods.retain(|pod| pod.name_any() != "a"));
        assert_eq!(outlived, only(Between::LedgerAndPods, "10.240.0.10"));
        let stranger = found(|look| look.objects.pods.push(fixture::pod("x", "node-1", "10.240.0.12")));
        assert_eq!(stranger, only(Between::LedgerAndPods, "10.240.0.12"));
        let host = found(|look| {
            let mut pod = serde_json::to_value(fixture::pod("x", "node-1", "10.240.0.4")).unwrap();
            pod["spec"]["hostNetwork"] = json!(true);
            look.objects.pods.push(serde_json::from_value(pod).unwrap());
        });
        assert_eq!(host, []);
    }

    #[test]
    fn only_what_two_looks_have_seen_counts_and_what_was_not_looked_at_is_not_well() {
        let mut leaked = well();
        nic(&mut leaked).reservations.push(Reservation {
            name: "vnp-99".into(),
            state: "Succeeded".into(),
            address: None,
        });
        assert!(Verdict::of(&well(), &leaked).is_well() && Verdict::of(&leaked, &well()).is_well());
        let expected = "\
NODE     BETWEEN     WHAT     HOW
node-1   NIC, spec   vnp-99   Azure has it (no address yet, Succeeded), and spec doesn't: no pod can get it.

Nodes: 1; differences, each seen twice: 1; not looked at: 0.
";
        assert_eq!(Verdict::of(&leaked, &leaked).to_string(), expected);
        let unseen = Look { unseen: vec!["node node-1: no agent".into()], ..well() };
        assert!(!Verdict::of(&well(), &unseen).is_well());
    }
}
