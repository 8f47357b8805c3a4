//! `check`: do NIC, `spec`, ledger, kernel and pods agree?
//!
//! They are read one after the other while all of them change, so each snapshot shows differences that are
//! only moments of a change. Only a difference that two snapshots show counts. The second is at nodes in
//! doubt alone, so it reads the compared sources close together.
//!
//! What a NIC holds that its node has left, or that is beside the serving one, is shown and is no difference.

mod beside;
mod difference;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use anyhow::{Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::{Resource, ResourceExt};
use serde::Serialize;
use vnetpool_crds::inspection::{NodeView, ReservedView};
use vnetpool_crds::{NodeIPAllocation, NodeIPPool};
use vnetpool_operator::outlook::needs_address;

use crate::cluster::{Objects, cannot_be_read};
use crate::kubectl::{Answers, Kubectl};
use crate::pod::node_of;
use crate::show::{indented, short, table};
pub use beside::Beside;
pub use difference::{Between, Difference};
use difference::{Node, shared};

/// Everything that is compared, as one snapshot has seen it. A source without an answer couldn't be seen.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub objects: Objects,
    /// The nodes that it is at; all, if none.
    pub only: Option<BTreeSet<String>>,
    /// By the id of the NIC, or of the route table, in lower case.
    pub reserved: Answers<ReservedView>,
    /// By node.
    pub ledgers: Answers<NodeView>,
}

/// Compares all nodes, or one. With `repair` the operator is asked to read the NICs that differ from `spec`,
/// and what differs after that counts.
///
/// # Errors
/// When the API server refuses, or the node has nothing to compare.
pub fn check(kubectl: &Kubectl, node: Option<&str>, apart: Duration, repair: bool) -> Result<Verdict> {
    let first = Snapshot::take(kubectl, node.map(|node| BTreeSet::from([node.to_owned()])))?;
    first.has(node)?;
    // A part that was well at the first snapshot needs no second.
    let doubtful = Findings::of(&first).doubtful();
    if doubtful.is_empty() {
        return Ok(Verdict::of(&first, &first));
    }
    std::thread::sleep(apart);
    let second = Snapshot::take(kubectl, Some(doubtful.clone()))?;
    let verdict = Verdict::of(&first, &second);
    let asked = if repair { verdict.unlike_their_nics() } else { BTreeSet::new() };
    if asked.is_empty() {
        return Ok(verdict);
    }
    kubectl.ask_to_read(&asked.iter().map(String::as_str).collect::<Vec<_>>(), second.objects.now)?;
    std::thread::sleep(apart);
    let third = Snapshot::take(kubectl, Some(doubtful))?;
    let beside = beside::all(&[&first, &second, &third]);
    Ok(Verdict { nodes: verdict.nodes, asked, beside, ..Verdict::of(&second, &third) })
}

impl Snapshot {
    fn take(kubectl: &Kubectl, only: Option<BTreeSet<String>>) -> Result<Snapshot> {
        // The NICs first: an address that is on one and in no `spec` that is read later has been forgotten.
        let before = Snapshot { objects: Objects::ours(kubectl)?, only, ..Snapshot::default() };
        let reserved = kubectl.reserved(places(before.allocations()));
        let nodes: Vec<String> = before.allocations().map(ResourceExt::name_any).collect();
        let ledgers = kubectl.nodes(nodes.iter().map(String::as_str));
        Ok(Snapshot { objects: Objects::all(kubectl)?, reserved, ledgers, ..before })
    }

    /// An error names a node of which there is no record.
    fn has(&self, node: Option<&str>) -> Result<()> {
        if let Some(node) = node
            && self.objects.allocation(node).is_none()
            && !self.objects.unreadable.iter().any(|one| is_of(one, node))
        {
            bail!("node {node} has no NodeIPAllocation: `kubectl vnetpool status` shows why not");
        }
        Ok(())
    }

    fn is_at(&self, node: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(node))
    }

    /// Of the nodes that it is at.
    fn allocations(&self) -> impl Iterator<Item = &NodeIPAllocation> {
        self.objects.allocations.iter().filter(|one| self.is_at(&one.name_any()))
    }

    /// The reservations in the place that serves a node.
    fn reserved(&self, allocation: &NodeIPAllocation) -> Option<&ReservedView> {
        let place = place(allocation).filter(|id| self.why_unread(id, true).is_none())?;
        self.reserved.get(&place.to_lowercase())?.as_ref().ok()
    }

    /// Why it isn't known what a place has. One that serves a node must be there; any other has gone back
    /// with all that it had.
    fn why_unread(&self, id: &str, serves: bool) -> Option<&str> {
        match self.reserved.get(&id.to_lowercase()) {
            Some(Ok(view)) => view.error.as_deref().filter(|_| serves),
            Some(Err(why)) => Some(why),
            None => Some(MOVED),
        }
    }

    /// The parts that it couldn't read.
    fn unseen(&self) -> Vec<Unseen> {
        use Between::{LedgerAndKernel, LedgerAndPods, NicAndSpec, NodeAndNode, SpecAndLedger};
        let mut all = vec![];
        for one in &self.objects.unreadable {
            let nodes: BTreeSet<String> = match one.kind == NodeIPPool::kind(&()) {
                true => self
                    .allocations()
                    .filter(|at| at.spec.pool == one.name())
                    .map(ResourceExt::name_any)
                    .collect(),
                false => [one.name()].into_iter().filter(|node| self.is_at(node)).collect(),
            };
            let between: &[Between] = match is_of(one, &one.name()) {
                true => &[NicAndSpec, SpecAndLedger, LedgerAndKernel, LedgerAndPods, NodeAndNode],
                false => &[],
            };
            if !nodes.is_empty() {
                all.push(Unseen { nodes, between, why: cannot_be_read(one) });
            }
        }
        // One failure may be that of many NICs. Those that don't serve hide nothing of those that do.
        let mut failed = BTreeMap::<(&str, bool), (BTreeSet<&str>, BTreeSet<String>)>::new();
        for allocation in self.allocations() {
            let node = allocation.name_any();
            let serving = place(allocation).map(|id| (id, true));
            for (id, serves) in serving.into_iter().chain(beside::nics(allocation).map(|id| (id, false))) {
                if let Some(why) = self.why_unread(id, serves) {
                    let (places, nodes) = failed.entry((why, serves)).or_default();
                    places.insert(id);
                    nodes.insert(node.clone());
                }
            }
            let why = match self.ledgers.get(&node) {
                Some(Ok(_)) => continue,
                Some(Err(why)) => why.as_str(),
                None => MOVED,
            };
            all.push(Unseen {
                why: format!("node {node}: {why}"),
                nodes: [node].into(),
                between: &[SpecAndLedger, LedgerAndKernel, LedgerAndPods, NodeAndNode],
            });
        }
        for ((why, serves), (places, nodes)) in failed {
            let between: &[Between] = if serves { &[NicAndSpec] } else { &[] };
            let what = match places.iter().collect::<Vec<_>>().as_slice() {
                [one] => (**one).to_owned(),
                all => format!("what Azure has reserved in {} places", all.len()),
            };
            all.push(Unseen { nodes, between, why: format!("{what}: {why}") });
        }
        all
    }
}

fn is_of(one: &vnetpool_apiserver::reading::Unreadable, node: &str) -> bool {
    one.kind == NodeIPAllocation::kind(&()) && one.name() == node
}

const MOVED: &str = "it came up, or changed its NIC, during the snapshot";

/// A source that a snapshot couldn't see.
struct Unseen {
    nodes: BTreeSet<String>,
    /// The comparisons that fail with them.
    between: &'static [Between],
    why: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    pub nodes: usize,
    /// Nodes whose NICs the operator was asked to read.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub asked: BTreeSet<String>,
    pub differences: Vec<Difference>,
    pub unseen: Vec<String>,
    /// What NICs hold that don't serve their nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub beside: Vec<Beside>,
}

impl Verdict {
    /// Whether everything was checked, and agrees.
    pub fn is_well(&self) -> bool {
        self.differences.is_empty() && self.unseen.is_empty()
    }

    /// Nodes with a difference that the operator finds when it reads their NICs. An agent reads its node, and
    /// its object, all the time.
    fn unlike_their_nics(&self) -> BTreeSet<String> {
        let is_of_nic = |one: &&Difference| matches!(one.between, Between::NicAndSpec | Between::NodeAndNode);
        self.differences.iter().filter(is_of_nic).map(|one| one.node.clone()).collect()
    }

    /// The differences that both snapshots have seen. A difference that one has seen and the other couldn't
    /// check isn't well, and neither is a part that the second couldn't check.
    pub fn of(first: &Snapshot, second: &Snapshot) -> Verdict {
        let (before, after) = (Findings::of(first), Findings::of(second));
        let once = before.seen_once(&after).chain(after.seen_once(&before));
        let mut unseen: Vec<String> = after.unseen.iter().map(|one| one.why.clone()).chain(once).collect();
        unseen.sort();
        unseen.dedup();
        Verdict {
            nodes: first.allocations().count(),
            asked: BTreeSet::new(),
            differences: after.differences.iter().filter(|one| before.has(one)).cloned().collect(),
            unseen,
            beside: beside::all(&[first, second]),
        }
    }
}

/// The findings of one snapshot.
struct Findings {
    differences: Vec<Difference>,
    unseen: Vec<Unseen>,
    /// Nodes whose ledger is of another `spec` than the one it was to be compared with.
    behind: BTreeSet<String>,
}

impl Findings {
    fn of(snapshot: &Snapshot) -> Findings {
        let mut found = Findings { differences: vec![], unseen: snapshot.unseen(), behind: BTreeSet::new() };
        let uids = snapshot.objects.uids();
        let mut pods = BTreeMap::<&str, Vec<&Pod>>::new();
        for pod in snapshot.objects.pods.iter().filter(|pod| needs_address(pod)) {
            node_of(pod).into_iter().for_each(|node| pods.entry(node).or_default().push(pod));
        }
        for allocation in snapshot.allocations() {
            let mut node = Node { allocation, name: allocation.name_any(), found: &mut found };
            if let Some(reserved) = snapshot.reserved(allocation) {
                node.nic_and_spec(reserved);
            }
            let Some(Ok(ledger)) = snapshot.ledgers.get(&node.name) else { continue };
            node.spec_and_ledger(ledger);
            node.ledger_and_kernel(ledger);
            let here = pods.get(node.name.as_str()).map_or(&[][..], Vec::as_slice);
            node.ledger_and_pods(ledger, here, &uids);
        }
        found.differences.extend(shared(snapshot));
        found.differences.sort();
        found
    }

    fn has(&self, difference: &Difference) -> bool {
        self.differences.iter().any(|one| one.is(difference))
    }

    /// Nodes that a second snapshot is due at.
    fn doubtful(&self) -> BTreeSet<String> {
        let unseen = self.unseen.iter().flat_map(|one| one.nodes.iter().cloned());
        self.differences.iter().map(|one| one.node.clone()).chain(unseen).collect()
    }

    /// Why it couldn't have found this.
    fn blind(&self, one: &Difference) -> Option<&str> {
        let is_it =
            |unseen: &&Unseen| unseen.nodes.contains(&one.node) && unseen.between.contains(&one.between);
        let is_behind = one.between == Between::SpecAndLedger && self.behind.contains(&one.node);
        let behind = is_behind.then_some("the ledger was of another spec");
        self.unseen.iter().find(is_it).map(|unseen| unseen.why.as_str()).or(behind)
    }

    /// Its findings that the other snapshot couldn't check.
    fn seen_once<'a>(&'a self, other: &'a Findings) -> impl Iterator<Item = String> + 'a {
        // A snapshot shows that a ledger is behind only if it reads both the ledger and its object.
        self.differences.iter().filter(|one| one.at.is_none() && !other.has(one)).filter_map(|one| {
            let Difference { node, between, what, message, at: _ } = one;
            let why = other.blind(one)?;
            Some(format!(
                "node {node}: seen in one of two snapshots: {between}: {what}: {message} In the other: {why}"
            ))
        })
    }
}

/// Where the node's addresses are reserved: its route table, or its NIC.
fn place(allocation: &NodeIPAllocation) -> Option<&str> {
    let nic = allocation.spec.serving().map(|nic| nic.id.as_str());
    allocation.spec.route_table_id.as_deref().or(nic)
}

/// The places of all of these, and the NICs beside them that their objects record, each once.
pub fn places<'a>(
    allocations: impl IntoIterator<Item = &'a NodeIPAllocation>,
) -> impl Iterator<Item = &'a str> {
    let all = allocations.into_iter().flat_map(|one| place(one).into_iter().chain(beside::nics(one)));
    all.map(|id| (id.to_lowercase(), id)).collect::<BTreeMap<_, _>>().into_values()
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.asked.is_empty() {
            let nodes: Vec<&str> = self.asked.iter().map(String::as_str).collect();
            writeln!(f, "The operator was asked to read the NICs of {}. After that:\n", nodes.join(", "))?;
        }
        if !self.differences.is_empty() {
            let row = |one: &Difference| {
                vec![one.node.clone(), one.between.to_string(), one.what.clone(), one.message.clone()]
            };
            let rows: Vec<_> = self.differences.iter().map(row).collect();
            writeln!(f, "{}", table(&["NODE", "BETWEEN", "WHAT", "HOW"], &rows))?;
        }
        if !self.unseen.is_empty() {
            writeln!(f, "Not read:")?;
            self.unseen.iter().try_for_each(|one| f.write_str(&indented(one)))?;
            writeln!(f)?;
        }
        if !self.beside.is_empty() {
            let row =
                |one: &Beside| vec![one.node.clone(), short(&one.nic), one.what.clone(), one.message.clone()];
            let rows: Vec<_> = self.beside.iter().map(row).collect();
            writeln!(f, "Recorded and on its way back, which is no fault:\n")?;
            writeln!(f, "{}", table(&["NODE", "NIC", "WHAT", "HOW"], &rows))?;
        }
        match self.is_well() {
            true => writeln!(f, "NIC, spec, ledger, kernel and pods agree on each node: {}.", self.nodes),
            false => writeln!(
                f,
                "Nodes: {}; differences, each seen twice: {}; not read: {}.",
                self.nodes,
                self.differences.len(),
                self.unseen.len()
            ),
        }
    }
}

#[cfg(test)]
mod tests;
