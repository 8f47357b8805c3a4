//! Which pool's policy holds for a node. Pure.
//!
//! A pool that is gone, or that doesn't select a node any more, may be a slip: a typing error, a sync, a pool
//! that is made again in a moment. Pods run by its last policy. So a node changes its policy at once only if
//! that takes nothing from it. Otherwise the last policy holds for a grace, and a condition reports so.

use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::{Timestamp, Unit};
use kube::ResourceExt;
use vnetpool_crds::allocation::NodeIPAllocationSpec;
use vnetpool_crds::condition::{self, SELECTED};
use vnetpool_crds::pool::{
    Adopt, ApplicationSecurityGroups, Attachments, Mode, NodeIPPoolSpec, PodRoute, Rollout, Sizing, Snat,
};
use vnetpool_crds::reason::Reason;
use vnetpool_crds::verdict::Verdict;
use vnetpool_crds::{NodeIPAllocation, NodeIPPool, names};

use crate::node::pause;
use crate::planner::{Demand, sizing};

/// Everything the decision may depend on.
pub struct Facts<'a> {
    pub allocation: &'a NodeIPAllocation,
    /// The pool that selects the node.
    pub selected: Option<Arc<NodeIPPool>>,
    /// The pool that served the node last, if it is there.
    pub last: Option<Arc<NodeIPPool>>,
    /// Nothing is to change for the node now.
    pub is_paused: bool,
    pub grace: Duration,
    pub now: Timestamp,
}

/// The policy of the node.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// None: no pool wants addresses for it.
    pub pool: Option<Arc<NodeIPPool>>,
    /// The pool that served the node last doesn't select it any more.
    pub change: Option<Change>,
}

/// A node's way from the pool that served it last to another one, or to none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    cause: Cause,
    /// When it was first seen, for that cause or another of its reason.
    since: Timestamp,
    /// How much longer the last policy holds.
    pub rest: Rest,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Cause {
    /// There is no pool of that name any more.
    Gone,
    /// No pool selects the node.
    Deselected,
    /// The pool's own nodeSelector can't be read.
    SelectorInvalid,
    /// Another pool selects it, of which the node can have nothing as long as its pods keep what they have.
    Outweighed { by: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Until a person corrects the pool.
    Open,
    /// This long, from now on.
    Lasts(Duration),
    Over,
}

pub fn decide(facts: Facts) -> Policy {
    let Facts { allocation, selected, last, is_paused, grace, now } = facts;
    let spec = &allocation.spec;
    let last = last.filter(|last| last.spec.mode == spec.mode && last.metadata.deletion_timestamp.is_none());
    if is_paused {
        // The grace begins when the pause is over: a person can't watch for two things at once.
        return Policy { pool: Some(last.unwrap_or_else(|| Arc::new(recorded(spec)))), change: None };
    }
    if selected.as_ref().is_some_and(|pool| takes_nothing(spec, pool)) || holds_nothing(spec) {
        return Policy { pool: selected, change: None };
    }
    let cause = match (&last, &selected) {
        (Some(last), _) if last.spec.selector().is_err() => Cause::SelectorInvalid,
        (_, Some(by)) => Cause::Outweighed { by: by.name_any() },
        (Some(_), None) => Cause::Deselected,
        (None, None) => Cause::Gone,
    };
    let passed_since = |since| Duration::try_from(now.duration_since(since)).unwrap_or_default();
    // What comes then was said of this cause alone. A node that no pool serves has nothing left to wait for.
    let goes_on = |known: &&Condition| {
        let is_unserved =
            Reason::NoPool == known.reason.as_str() && passed_since(known.last_transition_time.0) >= grace;
        known.status == "False" && (cause.reason() == known.reason.as_str() || is_unserved)
    };
    let known = condition::find(allocation.conditions(), SELECTED).filter(goes_on);
    // Conditions have whole seconds.
    let since =
        known.map_or_else(|| now.round(Unit::Second).unwrap_or(now), |known| known.last_transition_time.0);
    let passed = passed_since(since);
    let is_confirmed = pause::is_confirmed_released(allocation);
    let rest = match grace.saturating_sub(passed) {
        _ if is_confirmed => Rest::Over,
        _ if cause == Cause::SelectorInvalid => Rest::Open,
        Duration::ZERO => Rest::Over,
        left => Rest::Lasts(left),
    };
    let pool = match rest {
        Rest::Over => selected,
        Rest::Open | Rest::Lasts(_) => Some(last.unwrap_or_else(|| Arc::new(recorded(spec)))),
    };
    Policy { pool, change: Some(Change { cause, since, rest }) }
}

/// Whether the node can go over to this pool and keep all that it has: another sizing is no harm, for no pod
/// loses an address by it.
fn takes_nothing(spec: &NodeIPAllocationSpec, pool: &NodeIPPool) -> bool {
    if pool.name_any() == spec.pool {
        // An edit of the pool that serves the node is meant. The mode of a pool can't be edited.
        return pool.spec.mode == spec.mode;
    }
    has_reservations(spec, pool)
}

/// Whether the node goes by all of this pool that is rolled out: nothing that it holds would change. A node
/// that holds nothing has nothing to lose.
pub fn follows(spec: &NodeIPAllocationSpec, pool: &NodeIPPool) -> bool {
    holds_nothing(spec) || (has_sizing(spec, pool) && has_all_else(spec, pool))
}

/// Whether pods of the node lack addresses that it gets from this pool, and nothing else of it has to change
/// for that.
pub fn is_needy(spec: &NodeIPAllocationSpec, pool: &NodeIPPool, demand: &Demand) -> bool {
    let Some(sizing) = &spec.sizing else { return false };
    let wanted = |sizing| sizing::wanted(sizing, demand, pool.spec.grain(), u32::MAX);
    let has = wanted(sizing);
    has_all_else(spec, pool) && demand.pods() > has && wanted(&pool.spec.sizing) > has
}

fn has_sizing(spec: &NodeIPAllocationSpec, pool: &NodeIPPool) -> bool {
    // A range has as many addresses as it has.
    pool.spec.mode == Mode::Route || spec.sizing.as_ref().is_none_or(|sizing| *sizing == pool.spec.sizing)
}

fn has_all_else(spec: &NodeIPAllocationSpec, pool: &NodeIPPool) -> bool {
    pool.spec.wiring == spec.wiring && has_reservations(spec, pool)
}

/// Whether the node's reservations are where the pool has them, so that they can all stay.
fn has_reservations(spec: &NodeIPAllocationSpec, pool: &NodeIPPool) -> bool {
    pool.spec.mode == spec.mode
        && has_subnet(spec, pool)
        && has_groups(spec, pool)
        && (spec.mode != Mode::Route || pool.spec.route.as_ref().is_some_and(|route| leads(spec, route)))
}

fn has_subnet(spec: &NodeIPAllocationSpec, pool: &NodeIPPool) -> bool {
    let Some(nic) = spec.serving() else { return true };
    let wanted = pool.spec.subnet_id.as_ref();
    wanted.map_or(!nic.secondary, |wanted| wanted.eq_ignore_ascii_case(&nic.subnet.id))
}

/// Whether the NIC is by our doing in no other groups than the pool's: leaving one is rolled out. Joining a
/// group takes nothing away, and the object doesn't record groups that the NIC was in before us.
fn has_groups(spec: &NodeIPAllocationSpec, pool: &NodeIPPool) -> bool {
    let Some(nic) = spec.serving() else { return true };
    let wanted = pool.spec.application_security_groups.as_ref();
    let wanted = wanted.filter(|groups| nic.secondary || groups.on_shared_nic);
    let names =
        |id: &String| wanted.is_some_and(|groups| groups.ids.iter().any(|one| one.eq_ignore_ascii_case(id)));
    nic.application_security_groups.iter().all(names)
}

/// The policy that the node has taken up: the fields that are rolled out are as its object has them, all
/// others as its pool has them now, if there is one.
pub fn held(spec: &NodeIPAllocationSpec, pool: Option<&NodeIPPool>) -> NodeIPPool {
    let recorded = recorded(spec);
    let Some(pool) = pool else { return recorded };
    let (was, is) = (recorded.spec, pool.spec.clone());
    let spec = NodeIPPoolSpec {
        sizing: if has_sizing(spec, pool) { is.sizing } else { was.sizing },
        subnet_id: if has_subnet(spec, pool) { is.subnet_id } else { was.subnet_id },
        application_security_groups: if has_groups(spec, pool) {
            is.application_security_groups
        } else {
            was.application_security_groups
        },
        wiring: was.wiring,
        ..is
    };
    NodeIPPool { spec, ..pool.clone() }
}

/// Whether the node's reservation is a range of this route.
pub fn leads(spec: &NodeIPAllocationSpec, route: &PodRoute) -> bool {
    let is_its_table =
        spec.route_table_id.as_ref().is_some_and(|id| id.eq_ignore_ascii_case(&route.route_table_id));
    let within: Option<Ipv4Net> = route.pod_cidr.parse().ok();
    let fits = |range: &Ipv4Net| {
        within.is_some_and(|within| within.contains(range))
            && u32::from(range.prefix_len()) == route.node_prefix_length
    };
    is_its_table && ranges(spec).all(|range| fits(&range))
}

fn ranges(spec: &NodeIPAllocationSpec) -> impl Iterator<Item = Ipv4Net> {
    spec.ip_configurations().filter_map(|one| one.address.parse().ok())
}

fn holds_nothing(spec: &NodeIPAllocationSpec) -> bool {
    spec.ip_configurations().next().is_none()
        && spec.interfaces.iter().all(|nic| nic.application_security_groups.is_empty())
}

/// The policy as the node's own object has it: enough to leave everything as it is, and to go on with pods
/// that come and go.
fn recorded(spec: &NodeIPAllocationSpec) -> NodeIPPool {
    let nic = spec.serving();
    let groups = nic.map(|nic| nic.application_security_groups.clone()).unwrap_or_default();
    let range = ranges(spec).next();
    let route = spec.route_table_id.clone().zip(range).map(|(route_table_id, range)| PodRoute {
        pod_cidr: range.to_string(),
        node_prefix_length: range.prefix_len().into(),
        route_table_id,
    });
    let policy = NodeIPPoolSpec {
        node_selector: None,
        weight: 0,
        mode: spec.mode,
        wiring: spec.wiring,
        subnet_id: nic.filter(|nic| nic.secondary).map(|nic| nic.subnet.id.clone()),
        route,
        sizing: spec.sizing.clone().unwrap_or_else(|| Sizing { minimum: spec.target, ..Sizing::default() }),
        cooldown: spec.cooldown,
        snat: Snat { non_masquerade_cidrs: spec.snat_exclusions.clone() },
        pod_metadata_access: spec.pod_metadata_access,
        adopt: Adopt::Nothing,
        // Pods keep their addresses.
        attachments: Attachments::default(),
        application_security_groups: (!groups.is_empty())
            .then_some(ApplicationSecurityGroups { ids: groups, on_shared_nic: true }),
        rollout: Rollout::default(),
        subnet_exhausting_percent: 0,
    };
    NodeIPPool::new(&spec.pool, policy)
}

impl Change {
    /// How long until there is more to do.
    pub fn due(&self) -> Option<Duration> {
        match self.rest {
            Rest::Lasts(left) => Some(left),
            Rest::Open | Rest::Over => None,
        }
    }

    pub fn since(&self) -> Timestamp {
        self.since
    }

    /// The condition's message for a node whose last pool is `last`.
    pub fn verdict(&self, node: &str, last: &str, grace: Duration) -> Verdict {
        let what = match &self.cause {
            Cause::Gone => format!("NodeIPPool {last} is gone, and no other selects node {node}."),
            Cause::Deselected => {
                format!("NodeIPPool {last} doesn't select node {node} any more, nor does any other.")
            }
            Cause::SelectorInvalid => format!("the nodeSelector of NodeIPPool {last} can't be read."),
            Cause::Outweighed { by } => format!(
                "NodeIPPool {by} selects node {node} now, but its addresses are of another mode, range or NIC, or it names \
                 other security groups."
            ),
        };
        let then = match &self.cause {
            Cause::Outweighed { by } => format!(
                "free addresses go back and NodeIPPool {by} takes over; pods keep their addresses and what is attached to \
                 them until they end"
            ),
            _ => "free addresses go back, and new pods get none; pods keep their addresses and what is attached to them \
                  until they end"
                .to_owned(),
        };
        let now = format!("kubectl annotate nodeipallocation {node} {}=true", names::RELEASE);
        let rest = match self.rest {
            Rest::Open => {
                format!("Until that is corrected, everything stays as it was. To give it up: {now}")
            }
            Rest::Lasts(_) => format!(
                "Until {}, {} from the change on, everything stays as NodeIPPool {last} had it. Then {then}. If it was a slip, \
                 have that pool select the node again; to have it at once: {now}",
                self.since.saturating_add(grace).unwrap_or(Timestamp::MAX),
                minutes(grace),
            ),
            Rest::Over => format!("Now {then}."),
        };
        Verdict::no(self.cause.reason(), format!("{what} {rest}"))
    }
}

impl Cause {
    /// Causes of one reason have the same consequence.
    fn reason(&self) -> Reason {
        match self {
            Cause::Gone | Cause::Deselected => Reason::NoPool,
            Cause::SelectorInvalid => Reason::SelectorInvalid,
            Cause::Outweighed { .. } => Reason::OtherPool,
        }
    }
}

fn minutes(grace: Duration) -> String {
    match grace.as_secs() {
        seconds if seconds % 60 == 0 => format!("{} minutes", seconds / 60),
        seconds => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests;
