//! The conditions of a NodeIPAllocation, made from the facts about its node. Pure.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::events::Event;
use vnetpool_crds::allocation::{NodeIPAllocation, NodeIPAllocationStatus};
use vnetpool_crds::condition::{
    self, ADDRESSES_KEPT, ADOPTED, AGENT_REPORTING, APPLICATION_SECURITY_GROUPS, ATTACHED, DRY_RUN, FULL,
    INTERFACE_FOUND, OPERATIONS_TRACKED, PAUSED, READY, RESERVED, SANDBOXES_ENDED, SELECTED, SURPLUS, Type,
    UPDATING, WRITING,
};
use vnetpool_crds::pool::NIC_SLOTS;
use vnetpool_crds::reason::Reason;
use vnetpool_crds::verdict::Verdict;

use crate::node::lag::{AGENT_GRACE, Lag, lag};
use crate::node::observe::adopt::Adoption;
use crate::node::observe::obstacle::Obstacle;
use crate::node::observe::{Seen, groups};
use crate::node::pause::Pause;
use crate::node::setback::{Setback, Stage};
use crate::planner::{Plan, Rehearsal};
use crate::{azure, events};

/// The facts from which the conditions are made.
pub struct Facts<'a> {
    /// As last published.
    pub allocation: &'a NodeIPAllocation,
    /// The node's boot.
    pub boot_id: &'a str,
    /// `None` while an error keeps us from reading it.
    pub seen: Option<&'a Seen>,
    pub plan: Option<&'a Plan>,
    /// How long the policy of a pool that serves the node no more holds.
    pub grace: Duration,
    pub dry_run: bool,
    /// The node has a place in the rollout of its pool's edit.
    pub is_updating: bool,
    /// It holds what its pool asks for, and its agent has taken that up.
    pub is_settled: bool,
    /// Why nothing may be written to Azure.
    pub pause: Option<&'a Pause>,
    /// In a dry run, the writes that would be made.
    pub rehearsal: Option<&'a Rehearsal>,
    pub setback: Option<&'a Setback>,
    /// Why writes go without a part.
    pub lacking: Option<&'a Setback>,
    /// What isn't well with NICs that don't serve the node.
    pub beside: Option<String>,
    pub writing: bool,
    /// Whether Azure lets us follow writes to the NIC; `None` if it isn't known.
    pub tracked: Option<Result<(), Arc<azure::Error>>>,
    /// The verdict on application security groups.
    pub grouped: Option<Verdict>,
    /// The verdict on attachments.
    pub attached: Option<Verdict>,
    /// The verdict on sandboxes that outlive their pods; `None`: the last one stands.
    pub outlived: Option<Verdict>,
    /// The condition on missing resource groups, with the time of its first report.
    pub missing: Option<Condition>,
    /// The verdict on others who take addresses off the NIC.
    pub taken_off: Option<Verdict>,
    /// How long the agent has lagged behind.
    pub behind_for: Duration,
    /// The kubelet's report of a runtime that has found no network for longer than it needs to take up our
    /// configuration.
    pub networkless: Option<&'a str>,
    /// How long more has been held than wanted, as far as this process knows.
    pub surplus_for: Duration,
}

/// The operator's conditions as an object has them, and that a write is under way.
pub fn announced(allocation: &NodeIPAllocation, now: Timestamp) -> Vec<Condition> {
    let mut next = Next::of(allocation, now);
    next.set(WRITING, writing(true));
    next.conditions
}

/// All conditions of the operator's. Transition times go on from those the object has.
pub fn conditions(facts: &Facts, now: Timestamp) -> Vec<Condition> {
    let before = facts.allocation.conditions();
    let mut next = Next::of(facts.allocation, now);

    let found = interface_found(facts);
    let reserved = reserved(facts, !found.is_false());
    let agent = agent_reporting(facts, condition::is_true(before, AGENT_REPORTING));
    let ready = ready(&[&found, &reserved, &agent]);
    let agent_is_well = !agent.is_false();
    next.set(INTERFACE_FOUND, found);
    next.set(RESERVED, reserved);
    next.set(AGENT_REPORTING, agent);
    next.set(READY, ready);
    next.set(WRITING, writing(facts.writing));
    if let Some(is_reported) = facts.plan.and_then(|plan| reports_surplus(facts, plan)) {
        let since = if is_reported { now - facts.surplus_for } else { now };
        next.set_since(SURPLUS, surplus(is_reported), since);
    }
    next.set(FULL, full(facts));
    if let Some(seen) = facts.seen.filter(|seen| seen.is_read) {
        next.show(ADOPTED, seen.adoption.as_ref().map(adopted));
    }
    // While it is paused its place stays as it is.
    let keeps_place = facts.is_updating && (facts.pause.is_some() || !facts.is_settled || !agent_is_well);
    next.show(UPDATING, keeps_place.then(|| updating(facts)));
    next.show(PAUSED, facts.pause.map(Pause::verdict));
    match facts.seen.map(|seen| &seen.pool_change) {
        Some(Some(change)) => {
            let node = facts.allocation.name_any();
            let verdict = change.verdict(&node, &facts.allocation.spec.pool, facts.grace);
            // Its transition time is the clock of the grace, which another cause starts anew.
            next.remove(SELECTED);
            next.set_since(SELECTED, verdict, change.since());
        }
        Some(None) => next.remove(SELECTED),
        None => {}
    }
    if let Some(tracked) = &facts.tracked {
        next.set(OPERATIONS_TRACKED, operations_tracked(tracked));
    }
    // Without a plan it isn't known that there is nothing to report of these.
    for (type_, verdict) in [(ATTACHED, &facts.attached), (APPLICATION_SECURITY_GROUPS, &facts.grouped)] {
        if verdict.is_some() || facts.plan.is_some() {
            next.show(type_, verdict.clone());
        }
    }
    if let Some(outlived) = &facts.outlived {
        next.set(SANDBOXES_ENDED, outlived.clone());
    }
    next.show(ADDRESSES_KEPT, facts.taken_off.clone());
    if let Some(rehearsal) = facts.rehearsal {
        next.set(DRY_RUN, dry_run(facts, rehearsal));
    } else if !facts.dry_run {
        next.remove(DRY_RUN);
    }
    super::set_missing(&mut next.conditions, facts.missing.clone());
    next.conditions
}

/// The operator's conditions as they are to be.
struct Next {
    conditions: Vec<Condition>,
    generation: Option<i64>,
    now: Timestamp,
}

impl Next {
    /// As the object has them.
    fn of(allocation: &NodeIPAllocation, now: Timestamp) -> Next {
        Next { conditions: super::ours(allocation), generation: allocation.metadata.generation, now }
    }

    fn set(&mut self, type_: Type, verdict: Verdict) {
        self.set_since(type_, verdict, self.now);
    }

    /// If its status changes, it has since then.
    fn set_since(&mut self, type_: Type, verdict: Verdict, since: Timestamp) {
        condition::set(&mut self.conditions, verdict.condition(type_, self.generation, since));
    }

    fn remove(&mut self, type_: Type) {
        self.conditions.retain(|one| one.type_ != type_);
    }

    /// Has this condition exactly as long as there is a verdict.
    fn show(&mut self, type_: Type, verdict: Option<Verdict>) {
        match verdict {
            Some(verdict) => self.set(type_, verdict),
            None => self.remove(type_),
        }
    }
}

fn interface_found(facts: &Facts) -> Verdict {
    let published = facts.allocation.spec.serving();
    if let Some(Seen { obstacle: Some(Obstacle::Interface { reason, message }), .. }) = facts.seen {
        return Verdict::no(*reason, message);
    }
    match (facts.setback, published) {
        (Some(setback), _) if setback.is_gone => Verdict::no(setback.reason, &setback.message),
        (Some(setback), None) => Verdict::no(setback.reason, &setback.message),
        (_, Some(nic)) => {
            let beside = facts.beside.as_ref().map(|beside| format!("; {beside}")).unwrap_or_default();
            Verdict::yes(Reason::Found, format!("{} in {}{beside}", nic.id, nic.subnet.id))
        }
        (None, None) => match facts.seen.and_then(|seen| seen.obstacle.as_ref()) {
            Some(Obstacle::NoPool) => Verdict::no(Reason::NoPool, no_pool(facts)),
            _ => Verdict::no(Reason::Pending, "the node's VM is about to be read"),
        },
    }
}

fn no_pool(facts: &Facts) -> String {
    format!(
        "no NodeIPPool's nodeSelector matches node {}; its addresses are given back as its pods leave. Label the node, or \
         extend a pool's nodeSelector.",
        facts.allocation.name_any()
    )
}

fn reserved(facts: &Facts, found: bool) -> Verdict {
    let obstacle = facts.seen.and_then(|seen| seen.obstacle.as_ref());
    if obstacle == Some(&Obstacle::NoPool) {
        return Verdict::no(Reason::NoPool, no_pool(facts));
    }
    if !found {
        return Verdict::no(Reason::NoInterface, "there is no NIC to reserve addresses on");
    }
    // An earlier refusal means nothing while nothing is tried.
    if let Some(pause) = facts.pause.filter(|_| facts.plan.is_some_and(|plan| plan.grows || plan.repairs)) {
        return Verdict::no(pause.reason, pause.message());
    }
    // A re-check of a NIC that failed is no news while the node has all it needs.
    let matters = |setback: &&Setback| {
        setback.needs_change || setback.stage != Stage::Find || facts.plan.is_none_or(|plan| plan.grows)
    };
    if let Some(setback) = facts.setback.filter(matters).or(facts.lacking) {
        return Verdict::no(setback.reason, format!("{}{}", setback.message, of_blocks(facts, setback)));
    }
    let Some(plan) = facts.plan else {
        return Verdict::no(Reason::Pending, "the NIC is about to be read");
    };
    if plan.repairs {
        let message = "Azure gave up the last write to the NIC; Vnetpool writes it again";
        return Verdict::no(Reason::Repairing, message);
    }
    if plan.grows && facts.dry_run {
        let message = "dry run: more addresses are wanted, and none is reserved";
        return Verdict::no(Reason::DryRun, message);
    }
    if plan.grows {
        return Verdict::no(Reason::Reserving, "more addresses are being reserved");
    }
    if lacks(facts, plan) > 0 && plan.asked > plan.wanted {
        return Verdict::no(Reason::MaximumReached, format!("pods lack an address: {}", limit(facts)));
    }
    Verdict::yes(Reason::Reserved, "the NIC holds as many addresses as are wanted")
}

/// A subnet may have many free addresses and yet no block of them.
fn of_blocks(facts: &Facts, setback: &Setback) -> &'static str {
    if setback.reason == Reason::SubnetFull && facts.seen.is_some_and(|seen| seen.observed.grain > 1) {
        " In mode Prefix 16 free addresses in a row are needed, the first a multiple of 16: single addresses in use \
         scattered over the subnet leave none. Use a subnet for the pool alone, or mode Address."
    } else {
        ""
    }
}

/// Pods on the node that have no address and can't get one from those held.
fn lacks(facts: &Facts, plan: &Plan) -> u32 {
    facts.seen.map_or(0, |seen| seen.observed.demand.pods().saturating_sub(plan.kept))
}

/// Which limit keeps the node from more, and the remedy.
fn limit(facts: &Facts) -> String {
    let Some(seen) = facts.seen else { return String::new() };
    let maximum = seen.observed.sizing.as_ref().map_or(0, |sizing| sizing.maximum);
    if !seen.backend.draws_on_subnet() {
        return format!(
            "a node's range has {maximum} addresses with the route.nodePrefixLength of NodeIPPool {}. Lower the kubelet's \
             maxPods, use more nodes, or a pool with larger ranges.",
            facts.allocation.spec.pool
        );
    }
    if seen.observed.slots.saturating_mul(seen.observed.grain) < maximum {
        format!(
            "Azure takes {NIC_SLOTS} ipConfigurations on a NIC, others use {} of this one's. Lower the kubelet's maxPods or use \
             more nodes.",
            NIC_SLOTS - seen.observed.slots
        )
    } else {
        format!(
            "sizing.maximum of NodeIPPool {} is {maximum}, and more are asked for. Raise it, or use more nodes.",
            facts.allocation.spec.pool
        )
    }
}

fn agent_reporting(facts: &Facts, was_reporting: bool) -> Verdict {
    let name = facts.allocation.name_any();
    let status = facts.allocation.status.clone().unwrap_or_default();
    let in_grace = was_reporting && facts.behind_for < AGENT_GRACE;
    match lag(facts.allocation, facts.boot_id) {
        Lag::Silent if !in_grace => Verdict::no(
            Reason::NotReported,
            format!(
                "the agent on node {name} has not reported since the node booted. Read the log of its pod, vnetpool-node-agent, on \
                 that node."
            ),
        ),
        Lag::Behind if !in_grace => Verdict::no(
            Reason::Behind,
            format!(
                "the agent on node {name} has not taken up the current generation of this object yet. Read the log of its \
                 pod, vnetpool-node-agent, on that node."
            ),
        ),
        Lag::None | Lag::Silent | Lag::Behind => match wrong(&status) {
            Some(wrong) => Verdict::no(
                Reason::of(&wrong.reason).unwrap_or(Reason::AgentComplains),
                format!("{}: {}", wrong.type_, wrong.message),
            ),
            None => match facts.networkless {
                Some(complaint) => Verdict::no(
                    Reason::RuntimeReadsElsewhere,
                    format!(
                        "the agent has installed its CNI configuration, and the container runtime of node {name} doesn't \
                         use it. The kubelet reports: {complaint}. Give nodeAgent.cni.confDir and binDir of the chart the \
                         folders that the runtime is configured with."
                    ),
                ),
                None => Verdict::yes(Reason::Reporting, "the agent has taken up this object"),
            },
        },
    }
}

/// The first of the agent's conditions that isn't as it should be.
fn wrong(status: &NodeIPAllocationStatus) -> Option<&Condition> {
    condition::by_agent()
        .filter_map(|type_| condition::find(&status.conditions, type_))
        .find(|one| one.status == "False")
}

/// Without counts: they have columns, and each would be news.
fn ready(parts: &[&Verdict]) -> Verdict {
    match parts.iter().find(|part| part.is_false()) {
        Some(part) => Verdict::no(part.reason, &part.message),
        None => Verdict::yes(Reason::Ready, "the node holds what its pool asks for, and its agent reports"),
    }
}

fn writing(is_under_way: bool) -> Verdict {
    if is_under_way {
        Verdict::yes(Reason::Writing, "a write to the NIC is under way or its outcome isn't known")
    } else {
        Verdict::no(Reason::Settled, "no write to the NIC is under way")
    }
}

fn updating(facts: &Facts) -> Verdict {
    let message = format!("the node takes up an edit of NodeIPPool {}", facts.allocation.spec.pool);
    Verdict::yes(Reason::Updating, message)
}

fn operations_tracked(tracked: &Result<(), Arc<azure::Error>>) -> Verdict {
    match tracked {
        Ok(()) => Verdict::yes(Reason::Tracked, "writes to the NIC are followed to their end"),
        Err(error) => Verdict::no(
            error.reason(),
            format!(
                "writes to the NIC work, but can't be followed, so the NIC is read until it shows their end: {error}"
            ),
        ),
    }
}

fn dry_run(facts: &Facts, rehearsal: &Rehearsal) -> Verdict {
    if rehearsal.is_empty() {
        return Verdict::yes(Reason::NothingToDo, "dry run: there is nothing to do");
    }
    let nic = facts.seen.and_then(|seen| seen.nic.as_ref()).map_or("the node's NIC", |nic| &nic.id);
    Verdict::yes(
        Reason::WouldWrite,
        format!("dry run: would {rehearsal} on {nic}; nothing is written to Azure"),
    )
}

fn adopted(adoption: &Adoption) -> Verdict {
    let Adoption { is_answered, ready, is_left, attached } = adoption;
    if !ready.is_empty() {
        return Verdict::no(Reason::Adopting, "ipConfigurations that others made are being removed");
    }
    if *is_left && !is_answered {
        let message = "the agent is asked which pods have an address of Vnetpool's";
        return Verdict::no(Reason::Adopting, message);
    }
    if *is_left {
        let message = "ipConfigurations that others made stay on the NIC until each pod of the node has an address of \
                       Vnetpool's, and some have none. Restart pods that another network plugin has wired.";
        return Verdict::no(Reason::PodsOfOthers, message);
    }
    if attached.is_empty() {
        return Verdict::yes(Reason::Adopted, "nobody else has an address for pods on the NIC");
    }
    let message =
        format!("what others made is gone but {}: something is attached to these", attached.join(", "));
    Verdict::yes(Reason::Adopted, message)
}

/// Whether to report that more is held than wanted; `None`: not yet. Each pod that goes leaves a surplus
/// until another comes, so the surplus must have lasted for a part of the time after which it is given back.
fn reports_surplus(facts: &Facts, plan: &Plan) -> Option<bool> {
    let is_reported = condition::is_true(facts.allocation.conditions(), SURPLUS);
    let is_soon = facts.surplus_for < surplus_is_reported_after(facts.seen);
    (!plan.surplus || is_reported || !is_soon).then_some(plan.surplus)
}

/// How long more must be held than wanted before it is reported.
pub fn surplus_is_reported_after(seen: Option<&Seen>) -> Duration {
    seen.map_or(Duration::ZERO, |seen| seen.observed.release_after / 10)
}

fn surplus(is_surplus: bool) -> Verdict {
    if is_surplus {
        Verdict::yes(
            Reason::MoreThanWanted,
            "more addresses are held than wanted; they are given back after sizing.releaseAfter",
        )
    } else {
        Verdict::no(Reason::AsWanted, "no more addresses are held than wanted")
    }
}

/// Only a node whose NIC is known can be full: a node outside Azure may get its pods' addresses elsewhere.
fn full(facts: &Facts) -> Verdict {
    let none = || Verdict::no(Reason::NotFull, "there are addresses, or more can be had");
    let (Some(seen), Some(plan)) = (facts.seen, facts.plan) else {
        // While the NIC can't be read, the last report stands.
        let before = condition::find(facts.allocation.conditions(), FULL);
        return match before.map(|one| (one, Reason::of(&one.reason))) {
            Some((one, Some(reason))) if one.status == "True" => Verdict::yes(reason, &one.message),
            _ => none(),
        };
    };
    let status = facts.allocation.status.as_ref().filter(|status| status.boot_id == facts.boot_id);
    let free = status.map_or(0, |status| status.free);
    if seen.nic.is_none() || seen.obstacle.is_some() || free > 0 || seen.observed.demand.pods() < plan.kept {
        return none();
    }
    if let Some(pause) = facts.pause.filter(|_| plan.grows) {
        return Verdict::yes(pause.reason, pause.message());
    }
    // A write that a dry run holds back shows nothing of the subnet.
    let holds_back = |setback: &&Setback| setback.needs_change && setback.reason != Reason::DryRun;
    match facts.setback.filter(holds_back) {
        Some(setback) if plan.grows => {
            Verdict::yes(setback.reason, format!("{}{}", setback.message, of_blocks(facts, setback)))
        }
        None | Some(_) if !plan.grows && plan.asked > plan.wanted => {
            Verdict::yes(Reason::MaximumReached, limit(facts))
        }
        None | Some(_) => none(),
    }
}

/// A condition that passes, or is reported elsewhere, gets no Event.
const PASSING: [Reason; 8] = [
    Reason::Pending,
    Reason::Reserving,
    Reason::DryRun,
    Reason::Paused,
    Reason::PoolPaused,
    Reason::Repairing,
    Reason::NoInterface,
    Reason::MaximumReached,
];

/// The Events of conditions that turned: one for each, however often it is reported again.
pub fn turned(before: &[Condition], next: &[Condition], setback: Option<&Setback>) -> Vec<Event> {
    let news = |type_: Type, status: &str| {
        let now = condition::find(next, type_).filter(|now| now.status == status)?;
        let was = condition::find(before, type_);
        let same = was.is_some_and(|was| was.status == now.status && was.reason == now.reason);
        (!same).then_some(now)
    };
    let is_passing = |reason: &str| PASSING.iter().any(|passing| *passing == reason);
    let mut events = vec![];
    // `Reserved` turns for the same cause, with the same words.
    let is_reported_below = |now: &Condition| Reason::NoPool == now.reason.as_str();
    let found = news(INTERFACE_FOUND, "False").filter(|now| !is_passing(&now.reason));
    if let Some(now) = found.filter(|now| !is_reported_below(now)) {
        events.push(events::turned(now, "Find"));
    }
    let is_stuck = setback.is_none_or(|setback| setback.needs_change);
    if let Some(now) = news(RESERVED, "False").filter(|now| !is_passing(&now.reason) && is_stuck) {
        events.push(events::turned(now, "Reserve"));
    }
    if let Some(now) = news(SELECTED, "False") {
        events.push(events::turned(now, "Select"));
    }
    if let Some(now) = news(OPERATIONS_TRACKED, "False") {
        events.push(events::turned(now, "Track"));
    }
    if let Some(now) = news(ADDRESSES_KEPT, "False") {
        events.push(events::turned(now, "Observe"));
    }
    if let Some(now) = news(SANDBOXES_ENDED, "False") {
        events.push(events::turned(now, "Observe"));
    }
    if let Some(now) =
        news(APPLICATION_SECURITY_GROUPS, "False").filter(|now| !groups::is_passing(&now.reason))
    {
        events.push(events::turned(now, "Join"));
    }
    let would = condition::find(next, DRY_RUN).filter(|now| Reason::NothingToDo != now.reason.as_str());
    let last = condition::find(before, DRY_RUN).map(|was| was.message.as_str());
    if let Some(now) = would.filter(|now| Some(now.message.as_str()) != last) {
        events.push(events::dry_run(&now.message));
    }
    if let Some(now) = news(FULL, "True") {
        events.push(events::full(&now.message));
    }
    events
}

#[cfg(test)]
mod tests;
