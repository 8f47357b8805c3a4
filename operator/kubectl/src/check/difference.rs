//! Differences: on one node between the records of its addresses, and between nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde::Serialize;
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::allocation::IpConfiguration;
use vnetpool_crds::inspection::{AddressView, NodeView, ReservedView, State};

use super::{Findings, Snapshot};
use crate::pod::{addresses_of, full_name};
use crate::who::{contains, ends};

/// A fact that two places record differently.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Difference {
    pub node: String,
    pub between: Between,
    /// An address, or a reservation.
    pub what: String,
    pub message: String,
    /// Two snapshots have seen the same only if this was the same at both.
    #[serde(skip)]
    pub(super) at: Option<i64>,
}

impl Difference {
    pub(super) fn is(&self, other: &Difference) -> bool {
        let key = |one: &Difference| (one.node.clone(), one.between, one.what.clone(), one.at);
        key(self) == key(other)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Between {
    NicAndSpec,
    SpecAndLedger,
    LedgerAndKernel,
    LedgerAndPods,
    NodeAndNode,
}

impl fmt::Display for Between {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Between::NicAndSpec => "NIC, spec",
            Between::SpecAndLedger => "spec, ledger",
            Between::LedgerAndKernel => "ledger, kernel",
            Between::LedgerAndPods => "ledger, pods",
            Between::NodeAndNode => "node, node",
        })
    }
}

/// Addresses that more than one node has, by its `spec` or its ledger.
pub(super) fn shared(snapshot: &Snapshot) -> Vec<Difference> {
    struct Claim<'a> {
        node: String,
        range: (u32, u32),
        what: &'a str,
        by: &'static str,
    }
    let claim = |node: &str, what, by| Some(Claim { node: node.to_owned(), range: ends(what)?, what, by });
    let width = |one: &Claim<'_>| one.range.1 - one.range.0;
    let specs = snapshot.objects.allocations.iter().flat_map(|one| {
        let node = one.name_any();
        one.spec.ip_configurations().filter_map(move |held| claim(&node, &held.address, "spec"))
    });
    let ledgers = snapshot.ledgers.iter().filter_map(|(node, ledger)| Some((node, ledger.as_ref().ok()?)));
    let ledgers = ledgers.flat_map(|(node, ledger)| {
        let records = ledger.addresses.iter().filter(|record| record.state != State::Withdrawn);
        records.filter_map(move |record| claim(node, &record.address, "ledger"))
    });
    let mut claims: Vec<Claim<'_>> = specs.chain(ledgers).collect();
    claims.sort_by_key(|claim| claim.range);
    let mut found = BTreeMap::new();
    let mut open: Vec<&Claim<'_>> = vec![];
    for one in &claims {
        open.retain(|other| other.range.1 >= one.range.0);
        for other in open.iter().filter(|other| other.node != one.node) {
            let narrower = if width(other) < width(one) { other.what } else { one.what };
            let what = narrower.trim_end_matches("/32");
            for (at, with) in
                [(one, *other), (*other, one)].into_iter().filter(|(at, _)| snapshot.is_at(&at.node))
            {
                let message = format!(
                    "{} has it by its {}, and {} by its {} ({}).",
                    at.node, at.by, with.node, with.by, with.what
                );
                found.entry((at.node.clone(), what)).or_insert(message);
            }
        }
        open.push(one);
    }
    let difference = |((node, what), message): ((String, &str), String)| Difference {
        node,
        between: Between::NodeAndNode,
        what: what.to_owned(),
        message,
        at: None,
    };
    found.into_iter().map(difference).collect()
}

/// A node that is checked.
pub(super) struct Node<'a> {
    pub(super) allocation: &'a NodeIPAllocation,
    pub(super) name: String,
    pub(super) found: &'a mut Findings,
}

impl Node<'_> {
    pub(super) fn add(&mut self, between: Between, what: &str, message: impl Into<String>) {
        let (node, what, message) = (self.name.clone(), what.to_owned(), message.into());
        self.found.differences.push(Difference { node, between, what, message, at: None });
    }

    /// Whether an address is recorded of a NIC that the node has left.
    fn is_left(&self, address: Ipv4Addr) -> bool {
        self.allocation.spec.left_reservations().any(|(_, one)| contains(&one.address, address))
    }

    pub(super) fn nic_and_spec(&mut self, reserved: &ReservedView) {
        let spec = &self.allocation.spec;
        let shown: BTreeMap<&str, &IpConfiguration> =
            spec.ip_configurations().map(|one| (one.name.as_str(), one)).collect();
        // A route table has the routes of all nodes.
        let is_nic = spec.route_table_id.is_none();
        let hop = spec.serving().map(|nic| nic.primary_address.as_str());
        for one in reserved.reservations.iter().filter(|one| is_nic || shown.contains_key(one.name.as_str()))
        {
            let address = one.address.as_deref().unwrap_or("no address yet");
            let message = match shown.get(one.name.as_str()) {
                None => {
                    format!("Azure has it ({address}, {}), and spec doesn't: no pod can get it.", one.state)
                }
                Some(known) if one.address.as_ref() != Some(&known.address) => {
                    format!("Azure has it with {address}, and spec with {}.", known.address)
                }
                Some(_) if one.state == "Failed" => {
                    format!(
                        "spec has it ({address}), and in Azure its state is Failed: its packets may be lost."
                    )
                }
                Some(_) if !is_nic && one.next_hop.as_deref() != hop => format!(
                    "Azure leads {address} to {}, and the node is {}: its packets are another's.",
                    one.next_hop.as_deref().unwrap_or("no node"),
                    hop.unwrap_or("nowhere")
                ),
                Some(_) => continue,
            };
            self.add(Between::NicAndSpec, &one.name, message);
        }
        let names: BTreeSet<&str> = reserved.reservations.iter().map(|one| one.name.as_str()).collect();
        for one in shown.values().filter(|one| !names.contains(one.name.as_str())) {
            let message = format!("spec has it ({}), and Azure doesn't: its packets are lost.", one.address);
            self.add(Between::NicAndSpec, &one.name, message);
        }
    }

    pub(super) fn spec_and_ledger(&mut self, ledger: &NodeView) {
        // A withdrawn address is remembered until the node boots, and no pod gets it.
        for record in ledger.addresses.iter().filter(|record| record.state == State::Vanished) {
            let how = match record.address.parse().is_ok_and(|address| self.is_left(address)) {
                true => "its node has left the NIC that has it",
                false => "it left the NIC",
            };
            let message = format!("{} has it, and {how}.", whose(record));
            self.add(Between::SpecAndLedger, &record.address, message);
        }
        let spec = &self.allocation.spec;
        let generation = self.allocation.metadata.generation.unwrap_or_default();
        let is_booted = ledger.boot_id == spec.boot_id;
        if !is_booted || ledger.generation != generation {
            self.found.behind.insert(self.name.clone());
        }
        if !is_booted {
            let message = format!(
                "The ledger is of boot {:?} of the node, and the operator has read the NIC for {:?}.",
                ledger.boot_id, spec.boot_id
            );
            return self.add(Between::SpecAndLedger, "boot", message);
        }
        if ledger.generation != generation {
            let message = format!(
                "The ledger was supplied from generation {} of the object, which is at {generation}.",
                ledger.generation
            );
            self.add(Between::SpecAndLedger, "generation", message);
            // A ledger that moves follows, even if each snapshot finds it one write behind.
            self.found.differences.last_mut().into_iter().for_each(|one| one.at = Some(ledger.generation));
            return;
        }
        let relinquished: BTreeSet<&str> = ledger.relinquished.iter().map(String::as_str).collect();
        let mut records = BTreeMap::<&str, usize>::new();
        for record in &ledger.addresses {
            *records.entry(&record.name).or_default() += 1;
        }
        for one in spec.ip_configurations().filter(|one| !relinquished.contains(one.name.as_str())) {
            let records = records.get(one.name.as_str()).copied().unwrap_or_default();
            if records < one.count() as usize {
                let message = format!(
                    "spec has it ({}), and the ledger has {records} of its {} addresses: no pod can get the others.",
                    one.address,
                    one.count()
                );
                self.add(Between::SpecAndLedger, &one.name, message);
            }
        }
    }

    pub(super) fn ledger_and_kernel(&mut self, ledger: &NodeView) {
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

    /// `pods` are the node's that need an address, and `uids` those of all.
    pub(super) fn ledger_and_pods(&mut self, ledger: &NodeView, pods: &[&Pod], uids: &BTreeSet<&str>) {
        for record in assigned(ledger) {
            let Some(tenant) = &record.tenant else { continue };
            if !tenant.pod_uid.is_empty() && !uids.contains(tenant.pod_uid.as_str()) {
                let message =
                    format!("{} has it by the ledger, and there is no such pod any more.", whose(record));
                self.add(Between::LedgerAndPods, &record.address, message);
            }
        }
        let known: BTreeSet<&str> = assigned(ledger).map(|one| one.address.as_str()).collect();
        for pod in pods {
            let own =
                addresses_of(pod).into_iter().find_map(|one| Some((one, one.parse::<Ipv4Addr>().ok()?)));
            let Some((text, address)) = own.filter(|(text, _)| !known.contains(text)) else { continue };
            let is_ours = self.allocation.spec.ip_configurations().any(|one| contains(&one.address, address));
            let how = match (is_ours, self.is_left(address)) {
                (true, _) => "by the ledger it is free",
                (false, true) => "its node has left the NIC that has it",
                (false, false) => "by the ledger it is not the node's",
            };
            let message = format!("{} reports it, and {how}.", full_name(pod));
            self.add(Between::LedgerAndPods, text, message);
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
