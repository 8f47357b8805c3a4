//! A route table as ARM's JSON and as Vnetpool's type, and the changes from one document to the next. Pure.
//!
//! In mode Route each node has one route: its part of the pool's pod CIDR, with the node as next hop. A write
//! replaces the whole table, so its document is edited as JSON and everything that isn't ours goes back as it
//! came. One write carries the changes of all nodes that wait. A range is chosen here, from the document that
//! is then written with its ETag, so two writers can't give the same range to two nodes.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde_json::{Value, json};
use vnetpool_crds::names::IP_CONFIGURATION_PREFIX;
use vnetpool_crds::reason::Reason;

use super::{ProvisioningState, nic};

/// Azure's limit of routes in a table (Azure's documentation, "Networking limits").
const MOST_ROUTES: usize = 400;

/// A route table as last read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteTable {
    pub location: String,
    pub state: ProvisioningState,
    pub routes: Vec<Route>,
}

/// A route, ours or another's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub name: String,
    /// `None` if it isn't an IPv4 range but a service tag, for instance.
    pub range: Option<Ipv4Net>,
    /// The address of the appliance that it leads to, if it does. To Azure a node is an appliance.
    pub next_hop: Option<Ipv4Addr>,
    pub state: ProvisioningState,
}

/// The change that one node needs in the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A route to the node for its part of the pod CIDR: the one it has, corrected if necessary, or a new
    /// one.
    Claim(Claim),
    /// Remove these of its routes.
    Release { names: Vec<String> },
    /// The node is gone: remove all its routes. These are the routes with these names, and those that lead to
    /// the node and whose names begin as all names of the node's routes do.
    Leave { node: String, names: Vec<String>, next_hop: Ipv4Addr },
}

/// See [`Change::Claim`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub node: String,
    /// The name of a new route, from [`name`], if one is needed.
    pub name: String,
    /// The route that the node uses as far as known. It is put back if it was removed.
    pub held: Option<(String, Ipv4Net)>,
    /// The pool's pod CIDR, and the length of a node's part of it.
    pub within: Ipv4Net,
    pub length: u8,
    pub next_hop: Ipv4Addr,
    /// Parts that other nodes are known to use, even if the table doesn't show it.
    pub avoid: BTreeSet<Ipv4Net>,
}

/// Why a claim can't be met.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "it has {MOST_ROUTES} routes, which is all Azure allows. Remove routes nobody needs, or give other \
         nodes a pool with another route table and subnet."
    )]
    Full,
    #[error(
        "all parts of {within} with a prefix length of {length} are in use. Make a pool with another \
         podCIDR for new nodes, or remove nodes."
    )]
    Exhausted { within: Ipv4Net, length: u8 },
    #[error(
        "its route {by} covers {range}, which the node's pods use. Remove that route; Vnetpool then puts \
         the node's back."
    )]
    Taken { range: Ipv4Net, by: String },
}

impl Refusal {
    /// The reason of conditions and Events.
    pub fn reason(&self) -> Reason {
        match self {
            Refusal::Full => Reason::RouteTableFull,
            Refusal::Exhausted { .. } => Reason::PodCIDRExhausted,
            Refusal::Taken { .. } => Reason::RouteConflict,
        }
    }
}

impl RouteTable {
    /// `None` if the document is none of a route table: one without properties, or with routes that are no
    /// list.
    pub(super) fn read(document: &Value) -> Option<RouteTable> {
        let properties = &document["properties"];
        if !properties.is_object() || !(properties["routes"].is_null() || properties["routes"].is_array()) {
            return None;
        }
        Some(RouteTable {
            location: document["location"].as_str().unwrap_or_default().to_owned(),
            state: nic::provisioning_state(properties),
            // An empty table may come without the list.
            routes: properties["routes"].as_array().into_iter().flatten().map(Route::read).collect(),
        })
    }

    /// The route of a node: the one with a range within a pod CIDR (there is at most one, since `edit`
    /// makes no second), or one that leads to the node.
    pub fn of(&self, node: &str, within: Option<Ipv4Net>, next_hop: Ipv4Addr) -> Option<&Route> {
        let leads =
            |route: &Route| route.name.starts_with(&names_of(node)) && route.next_hop == Some(next_hop);
        self.routes
            .iter()
            .find(|route| within.is_some_and(|within| route.is_of(node, within)) || leads(route))
    }
}

impl Route {
    fn read(one: &Value) -> Route {
        let properties = &one["properties"];
        let is_appliance = properties["nextHopType"]
            .as_str()
            .is_some_and(|kind| kind.eq_ignore_ascii_case("VirtualAppliance"));
        Route {
            name: one["name"].as_str().unwrap_or_default().to_owned(),
            range: properties["addressPrefix"].as_str().and_then(|range| range.parse().ok()),
            next_hop: properties["nextHopIpAddress"]
                .as_str()
                .filter(|_| is_appliance)
                .and_then(|address| address.parse().ok()),
            state: nic::provisioning_state(properties),
        }
    }

    fn is_of(&self, node: &str, within: Ipv4Net) -> bool {
        self.name.starts_with(&names_of(node)) && self.range.is_some_and(|range| within.contains(&range))
    }
}

/// How the names of a node's routes begin, whatever the length and letters of the node's name. It has a
/// digest that every release computes alike: FNV-1a.
fn names_of(node: &str) -> String {
    format!("{IP_CONFIGURATION_PREFIX}{:016x}-", digest(node))
}

/// A name for a new route of a node. `unique` makes it a name that was never used before.
pub fn name(node: &str, unique: u32) -> String {
    format!("{}{unique:08x}", names_of(node))
}

fn digest(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The document to send for `changes`, and for each change whether it can be carried out. Releases come
/// first, since they make room. The document is one that [`RouteTable::read`] has read.
pub(super) fn edit(document: &Value, changes: &[Change]) -> (Value, Vec<Result<(), Refusal>>) {
    let mut edited = document.clone();
    if !edited["properties"]["routes"].is_array() {
        edited["properties"]["routes"] = json!([]);
    }
    if let Some(routes) = edited["properties"]["routes"].as_array_mut() {
        for change in changes {
            routes.retain(|one| !change.removes(&Route::read(one)));
        }
    }
    let outcomes = changes.iter().map(|change| match change {
        Change::Claim(claim) => meet(&mut edited["properties"]["routes"], claim),
        Change::Release { .. } | Change::Leave { .. } => Ok(()),
    });
    let outcomes = outcomes.collect();
    // An absent list and an empty one are the same to Azure, and no change.
    if edited["properties"]["routes"] == json!([]) && document["properties"]["routes"].is_null() {
        return (document.clone(), outcomes);
    }
    (edited, outcomes)
}

impl Change {
    /// Whether a route is to be gone afterwards.
    pub fn removes(&self, route: &Route) -> bool {
        if !route.name.starts_with(IP_CONFIGURATION_PREFIX) {
            return false;
        }
        match self {
            Change::Claim(_) => false,
            Change::Release { names } => names.contains(&route.name),
            Change::Leave { node, names, next_hop } => {
                names.contains(&route.name)
                    || (route.name.starts_with(&names_of(node)) && route.next_hop == Some(*next_hop))
            }
        }
    }
}

fn meet(routes: &mut Value, claim: &Claim) -> Result<(), Refusal> {
    let Value::Array(routes) = routes else { return Ok(()) };
    let known: Vec<Route> = routes.iter().map(Route::read).collect();
    let own = known.iter().position(|route| {
        claim
            .held
            .as_ref()
            .map_or_else(|| route.is_of(&claim.node, claim.within), |(name, _)| route.name == *name)
    });
    if let Some(index) = own {
        let right =
            (claim.held.as_ref().map(|(_, range)| *range).or(known[index].range), Some(claim.next_hop));
        if (known[index].range, known[index].next_hop) != right {
            let (name, range) = (known[index].name.clone(), right.0.unwrap_or(claim.within));
            routes[index] = route(&name, range, claim.next_hop);
        }
        return Ok(());
    }
    // A route that covers a larger range than the pod CIDR, such as a default route, doesn't conflict with
    // it: the longer prefix wins.
    let inside: Vec<&Route> = known
        .iter()
        .filter(|route| route.range.is_some_and(|range| range.prefix_len() >= claim.within.prefix_len()))
        .collect();
    let taken_by = |part: &Ipv4Net| {
        inside
            .iter()
            .find(|route| route.range.is_some_and(|range| range.contains(part) || part.contains(&range)))
    };
    let (name, range) = match &claim.held {
        Some((name, range)) => match taken_by(range) {
            Some(by) => return Err(Refusal::Taken { range: *range, by: by.name.clone() }),
            None => (name, *range),
        },
        None => {
            let is_free = |part: &Ipv4Net| {
                taken_by(part).is_none()
                    && !claim.avoid.iter().any(|used| used.contains(part) || part.contains(used))
            };
            let found = parts(claim).find(is_free);
            let exhausted = Refusal::Exhausted { within: claim.within, length: claim.length };
            (&claim.name, found.ok_or(exhausted)?)
        }
    };
    if routes.len() >= MOST_ROUTES {
        return Err(Refusal::Full);
    }
    routes.push(route(name, range, claim.next_hop));
    Ok(())
}

/// The parts of the pod CIDR, beginning with one that depends on the node. So a part that was given back
/// isn't the next to be used, while others still remember its addresses.
fn parts(claim: &Claim) -> impl Iterator<Item = Ipv4Net> {
    let all: Vec<Ipv4Net> = claim.within.subnets(claim.length).into_iter().flatten().collect();
    let count = all.len().max(1);
    let start = usize::try_from(digest(&claim.node) % count as u64).unwrap_or_default();
    (0..all.len()).map(move |step| all[(start + step) % count])
}

fn route(name: &str, range: Ipv4Net, next_hop: Ipv4Addr) -> Value {
    json!({
        "name": name,
        "properties": {
            "addressPrefix": range.to_string(),
            "nextHopType": "VirtualAppliance",
            "nextHopIpAddress": next_hop.to_string(),
        },
    })
}

#[cfg(test)]
mod tests;
