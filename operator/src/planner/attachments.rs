//! Decides which of Azure's resources are attached to which of a node's addresses: the pods' load-balancer
//! pools and public addresses. Pure.
//!
//! An address with an attachment must never come to another pod, however slow Azure, the agent or this
//! operator is. So an ipConfiguration is *marked* with its pod in `spec` before the first attachment and
//! until Azure has shown that none is left; the node's ledger gives a marked address to that pod only.
//!
//! ```text
//!           pod asks, has the address          agent has taken up the mark, pod still has it
//!  unmarked ─────────────────────────► marked ─────────────────────────────────────────────► attached
//!      ▲                                 │ ▲                                                     │
//!      └── nothing attached, public ─────┘ └──────────── pod gone or asks no more: detached ◄────┘
//!          address deleted
//! ```
//!
//! When another client takes an ipConfiguration off the NIC, its mark goes, too. The public address is then
//! *detached*: `spec` goes on to name it until its pod has it again or it is deleted.
//!
//! Only the pod's end, or its own annotations, takes an attachment off: a living pod keeps what it has, even
//! if its pool doesn't offer it any more. Pools are edited, replaced and lost by accident.

mod wish;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::Ipv4Addr;

use vnetpool_crds::allocation::PublicAddress;
use vnetpool_crds::names;
use vnetpool_crds::pool::Attachments;

use crate::ip_configuration::{Attached, IpConfiguration};
use crate::resource_id::ResourceId;
pub use wish::Wish;
use wish::{Grant, grant};

/// Why `spec` keeps an ipConfiguration for one pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mark {
    /// The pod's UID, or [`names::OTHERS`].
    pub attached_to: String,
    pub public_address: Option<PublicAddress>,
}

/// Everything the decision may depend on.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// Our ipConfigurations on the NIC.
    pub held: &'a [IpConfiguration],
    /// The marks in `spec`, by ipConfiguration.
    pub marks: &'a BTreeMap<String, Mark>,
    /// The public addresses that `spec` names, in its marks or as detached.
    pub recorded: &'a HashSet<ResourceId>,
    /// Live pods of the node with a wish, by UID.
    pub wishes: &'a HashMap<String, Wish>,
    /// The holder of each address, see [`holders`].
    pub has: &'a HashMap<Ipv4Addr, String>,
    /// The agent reports from this boot and with all marks in its ledger.
    pub confirmed: bool,
    /// A write of the NIC may still come that makes an attachment: its answer was lost.
    pub in_doubt: bool,
    /// The offers of the pool to pods.
    pub offered: &'a Attachments,
    /// Why nothing can be attached to this node's addresses at all, and the remedy, if so.
    pub impossible: Option<&'static str>,
    /// Public addresses as Azure reported them; `None`: it is deleted. One that is being deleted is unknown,
    /// and so are one that is being made where there was none, and one that Azure doesn't find.
    pub public: &'a HashMap<ResourceId, Option<PublicAddress>>,
    /// Public addresses that aren't to be read now: Azure hasn't found them lately, or has refused to.
    pub unread: &'a HashSet<ResourceId>,
    /// Pods with a wish that Azure has refused lately, by UID.
    pub refused: &'a HashSet<String>,
    /// ipConfigurations from which Azure has refused lately to take something off.
    pub undetached: &'a HashSet<String>,
    /// How many to attach or to detach in one write: a write that asks for one thing too many gets nothing at
    /// all.
    pub batch: usize,
}

/// The wanted state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The marks that `spec` should show.
    pub marks: BTreeMap<String, Mark>,
    /// The public addresses that `spec` should name: those that no published mark names are detached.
    pub recorded: HashSet<ResourceId>,
    /// The next step, once `spec` shows all this.
    pub step: Option<Step>,
    /// Public addresses to make beside that, likewise. Some may be under way already.
    pub make: Vec<Make>,
    /// Public addresses to read in Azure beside that: NICs have them, and more than the id isn't known. Some
    /// may be under way already.
    pub read: Vec<ResourceId>,
    /// Public addresses to delete beside that, which no ipConfiguration uses any more. Some may be under way
    /// already.
    pub delete: Vec<ResourceId>,
    /// Pods with a wish that can't be met as long as neither they nor the pool are changed.
    pub invalid: Vec<Invalid>,
    /// Pods that have all they ask for.
    pub attached: usize,
    /// Pods that will have it.
    pub pending: usize,
    /// Addresses with an attachment of others.
    pub foreign: Vec<Ipv4Addr>,
}

/// One step at a time: removals come before additions.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Take everything off these ipConfigurations.
    Detach(Vec<String>),
    /// Attach all in one write.
    Attach(Vec<Attach>),
}

/// A public address that a pod is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Make {
    pub id: ResourceId,
    /// The pod's UID, and its name for people.
    pub uid: String,
    pub pod: String,
    pub dns_label: Option<String>,
}

impl Make {
    /// Whether Azure's answer shows what was asked for.
    pub fn is_met_by(&self, public: Option<&PublicAddress>) -> bool {
        public.is_some_and(|public| label(public) == self.dns_label.as_deref())
    }
}

/// The attachments of one pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Attach {
    /// The ipConfiguration.
    pub name: String,
    /// The pod's UID, and its name for people.
    pub uid: String,
    pub pod: String,
    pub attached: Attached,
}

/// A pod with a wish that can't be met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    pub uid: String,
    pub pod: String,
    pub message: String,
}

/// The decision for one ipConfiguration.
#[derive(Default)]
struct Outcome {
    /// The pod for which `spec` should keep it.
    mark: Option<Mark>,
    /// The step that brings it nearer to its pod's wish.
    next: Option<Next>,
    /// Its pod has all it asks for.
    satisfied: bool,
    /// Another client than Vnetpool has attached a resource.
    foreign: bool,
}

/// One ipConfiguration's part of a [`Step`].
enum Next {
    Detach(String),
    Delete(ResourceId),
    Read(ResourceId),
    Make(Make),
    Attach(Attach),
}

/// UIDs of pods by their addresses. Only the agent knows the holder of a marked one, and reports it in
/// `confirmed`: something is attached to it, or is about to be. For any other address the kubelet's report of
/// the pod is enough, since a mark alone gives no pod anything.
pub fn holders(
    held: &[IpConfiguration],
    marks: &BTreeMap<String, Mark>,
    confirmed: impl Iterator<Item = (Ipv4Addr, String)>,
    wishes: &HashMap<String, Wish>,
) -> HashMap<Ipv4Addr, String> {
    let marked = held.iter().filter(|one| marks.contains_key(&one.name));
    let marked: HashSet<Ipv4Addr> = marked.filter_map(|one| Some(one.address?.addr())).collect();
    let reported = wishes.iter().filter_map(|(uid, wish)| Some((wish.address?, uid.clone())));
    let reported = reported.filter(|(address, _)| !marked.contains(address));
    reported.chain(confirmed.filter(|(address, _)| marked.contains(address))).collect()
}

/// `public_id` names the public address of a pod by its UID.
pub fn plan(facts: &Facts, public_id: impl Fn(&str) -> Option<ResourceId>) -> Plan {
    let mut plan = Plan::default();
    let mut grants = HashMap::new();
    // By UID: pods whose wish can't be met, and where that is reported.
    let mut refused = HashMap::new();
    let mut wishes: Vec<_> = facts.wishes.iter().collect();
    wishes.sort_by(|a, b| a.1.pod.cmp(&b.1.pod));
    for (uid, wish) in wishes {
        match grant(wish, facts, || public_id(uid)) {
            Ok(Some(grant)) => drop(grants.insert(uid.as_str(), grant)),
            Ok(None) => {}
            Err(message) => {
                refused.insert(uid.as_str(), plan.invalid.len());
                plan.invalid.push(Invalid { uid: uid.clone(), pod: wish.pod.clone(), message });
            }
        }
    }
    let (mut next, mut satisfied) = (vec![], HashSet::new());
    // While a pod's sandbox is made anew it may have two addresses; only one of them is marked.
    let mut claimed: HashSet<&str> = facts.marks.values().map(|mark| mark.attached_to.as_str()).collect();
    for entry in facts.held {
        let holder = entry.address.and_then(|address| facts.has.get(&address.addr())).map(String::as_str);
        let outcome = match facts.marks.get(&entry.name).filter(|mark| mark.attached_to != names::OTHERS) {
            None if entry.attached.is_empty() => match holder.and_then(|uid| Some((uid, grants.get(uid)?))) {
                Some((uid, grant)) if claimed.insert(uid) => unmarked(uid, grant),
                _ => Outcome::default(),
            },
            None => found(entry, holder, facts.offered),
            Some(mark) => {
                let uid = mark.attached_to.as_str();
                let stays = !has_moved(entry, uid, holder, facts);
                match (grants.get(uid).filter(|_| stays), refused.get(uid).filter(|_| stays)) {
                    (Some(grant), _) => granted(entry, mark, grant, holder, facts),
                    (None, Some(&index)) if has_something(entry, mark, facts) => {
                        plan.invalid[index].message += " Until it ends it keeps what it has.";
                        Outcome { mark: Some(mark.clone()), ..Outcome::default() }
                    }
                    (None, _) => ending(entry, mark, facts),
                }
            }
        };
        if outcome.foreign || entry.attached.other {
            plan.foreign.extend(entry.address.map(|address| address.addr()));
        }
        satisfied
            .extend(outcome.mark.iter().filter(|_| outcome.satisfied).map(|mark| mark.attached_to.clone()));
        plan.marks.extend(outcome.mark.map(|mark| (entry.name.clone(), mark)));
        next.extend(outcome.next);
    }
    plan.recorded = recorded(&plan.marks, facts);
    next.extend(forgotten(&plan, facts).into_iter().map(Next::Delete));
    plan.attached = satisfied.len();
    plan.pending = grants.len() - satisfied.len();
    plan.take(next, facts);
    plan
}

/// Nothing is attached yet, and its pod asks for an attachment: the mark comes first.
fn unmarked(uid: &str, grant: &Grant) -> Outcome {
    let public_address = grant.public.clone().map(announced);
    Outcome { mark: Some(Mark { attached_to: uid.to_owned(), public_address }), ..Outcome::default() }
}

/// There is an attachment, and `spec` doesn't name its pod.
fn found(entry: &IpConfiguration, holder: Option<&str>, offered: &Attachments) -> Outcome {
    let owner = owner(&entry.attached, holder, offered);
    let foreign = owner.is_none();
    let public_address = owner.as_ref().and(entry.attached.public_address.clone()).map(announced);
    let attached_to = owner.unwrap_or_else(|| names::OTHERS.into());
    Outcome { mark: Some(Mark { attached_to, public_address }), foreign, ..Outcome::default() }
}

/// Whether the pod that an address is marked for has another one. A live pod whose sandbox is being made anew
/// has no address for a moment; this one waits for it. It also waits while the kubelet still names the pod,
/// though another pod has the address: a mark that was removed would come back at once, by that report.
fn has_moved(entry: &IpConfiguration, uid: &str, holder: Option<&str>, facts: &Facts) -> bool {
    let reported = facts.wishes.get(uid).and_then(|wish| wish.address);
    let is_reported_here = reported.is_some() && reported == entry.address.map(|address| address.addr());
    let is_anothers = holder.is_some_and(|holder| holder != uid);
    let waits = is_reported_here && entry.attached.is_empty();
    facts.confirmed
        && !waits
        && (is_anothers || holder.is_none() && facts.has.values().any(|other| other == uid))
}

/// Whether there is an attachment for the pod, or is to be one.
fn has_something(entry: &IpConfiguration, mark: &Mark, facts: &Facts) -> bool {
    !entry.attached.is_empty() || made(mark, facts).is_some()
}

/// The pod is gone, asks no more, or has moved: the attachment comes off, then its public address is deleted,
/// then the mark goes.
fn ending(entry: &IpConfiguration, mark: &Mark, facts: &Facts) -> Outcome {
    let attached = &entry.attached;
    let next = if !attached.backend_pools.is_empty() || attached.public_address.is_some() {
        Some(Next::Detach(entry.name.clone()))
    } else {
        made(mark, facts).map(Next::Delete)
    };
    let mark = (next.is_some() || attached.other || facts.in_doubt).then(|| mark.clone());
    Outcome { mark, next, ..Outcome::default() }
}

/// The pod's wish may be met.
fn granted(
    entry: &IpConfiguration,
    mark: &Mark,
    grant: &Grant,
    holder: Option<&str>,
    facts: &Facts,
) -> Outcome {
    let (attached, uid) = (&entry.attached, mark.attached_to.as_str());
    let public = grant.public.as_ref();
    let target = Attached {
        backend_pools: grant.backend_pools.clone(),
        public_address: public.cloned(),
        other: attached.other,
    };
    let known = public.and_then(|id| facts.public.get(id)).and_then(Option::as_ref);
    // A public address must stand in `spec` before it is made; otherwise an operator that dies in between
    // leaks it.
    let is_announced = public.is_none_or(|id| {
        mark.public_address.as_ref().is_some_and(|one| one.id.eq_ignore_ascii_case(id.as_str()))
    });
    let is_named = known.is_none_or(|known| label(known) == grant.dns_label.as_deref());
    let is_complete = *attached == target && is_named;
    let is_unknown = public.is_some() && known.is_none();
    // The pod asks for it no more. It stands in `spec` until it is deleted.
    let left = if public.is_none() { made(mark, facts) } else { None };
    let may_attach = facts.confirmed && holder == Some(uid) && !facts.refused.contains(uid) && is_announced;
    let next = if is_complete && is_unknown {
        public.filter(|id| !facts.unread.contains(id)).cloned().map(Next::Read)
    } else if is_complete {
        left.clone().map(Next::Delete)
    } else if !may_attach {
        None
    } else {
        let (uid, pod) = (uid.to_owned(), facts.wishes[uid].pod.clone());
        Some(match public.filter(|_| is_unknown || !is_named) {
            Some(id) => Next::Make(Make { id: id.clone(), uid, pod, dns_label: grant.dns_label.clone() }),
            None => Next::Attach(Attach { name: entry.name.clone(), uid, pod, attached: target }),
        })
    };
    let is_attached = attached.public_address.as_ref() == public;
    let public_address = match public {
        Some(id) => Some(known.filter(|_| is_attached).cloned().unwrap_or_else(|| announced(id.clone()))),
        None => left.map(announced),
    };
    Outcome {
        mark: Some(Mark { attached_to: uid.to_owned(), public_address }),
        next,
        satisfied: is_complete && !is_unknown,
        foreign: false,
    }
}

/// The public address that a mark names, unless Azure has reported that there is none.
fn made(mark: &Mark, facts: &Facts) -> Option<ResourceId> {
    let id: ResourceId = mark.public_address.as_ref()?.id.parse().ok()?;
    (facts.public.get(&id) != Some(&None)).then_some(id)
}

/// The public addresses of these marks.
fn named(marks: &BTreeMap<String, Mark>) -> impl Iterator<Item = ResourceId> {
    marks.values().filter_map(|mark| mark.public_address.as_ref()?.id.parse().ok())
}

/// The public addresses of these marks, and all others that may be there: `spec` is the only record of them.
fn recorded(marks: &BTreeMap<String, Mark>, facts: &Facts) -> HashSet<ResourceId> {
    let there = facts.public.iter().filter(|(_, public)| public.is_some()).map(|(id, _)| id);
    let may_be_there = facts.recorded.iter().chain(there).filter(|id| facts.public.get(*id) != Some(&None));
    may_be_there.cloned().chain(named(marks)).collect()
}

/// Of the plan's public addresses, those that no mark names and no ipConfiguration has, and whose pods are
/// gone or ask for none any more: another client took their ipConfigurations off the NIC, and the marks went
/// with them.
fn forgotten(plan: &Plan, facts: &Facts) -> Vec<ResourceId> {
    let attached = facts.held.iter().filter_map(|entry| entry.attached.public_address.clone());
    let used: HashSet<ResourceId> = named(&plan.marks).chain(attached).collect();
    let asks = |uid: &str| facts.wishes.get(uid).is_some_and(Wish::asks_for_public_address);
    let is_idle = |id: &ResourceId| pod_of(id).is_some_and(|uid| !asks(uid)) && !used.contains(id);
    plan.recorded.iter().filter(|id| !facts.in_doubt && is_idle(id)).cloned().collect()
}

/// The UID of the pod that a public address of ours was made for: its name has it.
pub fn pod_of(public: &ResourceId) -> Option<&str> {
    public.name().strip_prefix(names::IP_CONFIGURATION_PREFIX)
}

impl Plan {
    /// Takes in what is next for each: the kind of step that comes first, for all that need it, and what is
    /// done beside it.
    fn take(&mut self, next: Vec<Next>, facts: &Facts) {
        let (mut detach, mut attach) = (vec![], vec![]);
        for one in next {
            match one {
                // It waits by itself, with its mark.
                Next::Detach(name) if facts.undetached.contains(&name) => {}
                Next::Detach(name) => detach.push(name),
                Next::Delete(id) => self.delete.push(id),
                Next::Read(id) => self.read.push(id),
                Next::Make(one) => self.make.push(one),
                Next::Attach(one) => attach.push(one),
            }
        }
        // Those that are ready wait for those that soon will be: one write does for all of them.
        if !self.make.is_empty() {
            attach.retain(|one: &Attach| one.attached.public_address.is_none());
        }
        let batch = facts.batch.max(1);
        attach.truncate(batch);
        detach.truncate(batch);
        self.step = if !detach.is_empty() {
            Some(Step::Detach(detach))
        } else {
            (!attach.is_empty()).then_some(Step::Attach(attach))
        };
    }
}

/// The pod of what is attached, though `spec` doesn't name it (Azure may have reported the ipConfiguration as
/// failed for a while, so that `spec` didn't show it). `None` if it isn't all of a sort that Vnetpool
/// attaches: then another client has attached it, the next pod with this address would get its packets, and
/// Vnetpool must not take it off.
fn owner(attached: &Attached, holder: Option<&str>, offered: &Attachments) -> Option<String> {
    let is_offered =
        |id: &ResourceId| offered.backend_pools.iter().any(|pool| pool.id.eq_ignore_ascii_case(id.as_str()));
    if attached.other || !attached.backend_pools.iter().all(is_offered) {
        return None;
    }
    match &attached.public_address {
        Some(id) => pod_of(id).map(str::to_owned),
        // No pod has the UID "unknown", so it is taken off.
        None => Some(holder.unwrap_or("unknown").to_owned()),
    }
}

/// An address of which only the id is known.
fn announced(id: ResourceId) -> PublicAddress {
    PublicAddress { id: id.to_string(), ..PublicAddress::default() }
}

/// The first part of its name in DNS.
fn label(public: &PublicAddress) -> Option<&str> {
    public.dns_name.as_ref().and_then(|name| name.split('.').next())
}

#[cfg(test)]
mod tests;
