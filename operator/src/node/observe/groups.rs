//! The application security groups of a pool for its pods: which of them the NIC is to join and leave, and
//! what the condition reports. Pure.
//!
//! Azure has one set for a whole NIC, so ours are added to those that others have put the NIC into, and only
//! the groups that `spec` names as ours are ever taken off: a group that was there before stays when the pool
//! doesn't name it any more.

use vnetpool_crds::allocation::Interface;
use vnetpool_crds::condition::{self, APPLICATION_SECURITY_GROUPS};
use vnetpool_crds::reason::Reason;
use vnetpool_crds::verdict::Verdict;
use vnetpool_crds::{NodeIPAllocation, NodeIPPool};

use crate::azure::{Nic, ResourceId};
use crate::node::setback::Setback;

/// Everything the decision may depend on.
pub struct Facts<'a> {
    /// The pool that serves the node on this NIC.
    pub pool: Option<&'a NodeIPPool>,
    pub allocation: &'a NodeIPAllocation,
    /// `None`: it is as `spec` has it.
    pub nic: Option<&'a Nic>,
    /// It is the VM's primary NIC, by which the node itself sends, too.
    pub is_shared: bool,
    /// The NIC is about to join no group.
    pub is_dry_run: bool,
}

/// The NIC's part in application security groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grouping {
    /// The pool's, as far as the NIC isn't in them.
    pub lacks: Vec<ResourceId>,
    /// Ours that the NIC is in and isn't to be in any more.
    pub leave: Vec<ResourceId>,
    /// The groups that `spec` is to name as ours: before the NIC joins them, until it has left them.
    pub ours: Vec<ResourceId>,
    /// How many the pool names, for this NIC.
    wanted: usize,
    /// The pool names some, but not for a NIC that is the node's own, too.
    is_withheld: bool,
}

pub fn decide(facts: &Facts) -> Grouping {
    let Facts { pool, allocation, nic, is_shared, is_dry_run } = *facts;
    let named = pool.and_then(|pool| pool.spec.application_security_groups.as_ref());
    let allowed = named.filter(|named| named.on_shared_nic || !is_shared);
    let wanted: Vec<ResourceId> = ids(allowed.map(|named| named.ids.as_slice()).unwrap_or_default());
    let same = |known: &&Interface| nic.is_none_or(|nic| known.id.eq_ignore_ascii_case(nic.id.as_str()));
    // One that the node had left serves again.
    let left = || nic.and_then(|nic| allocation.spec.left(nic.id.as_str()));
    let known = allocation.spec.serving().filter(same).or_else(left);
    let recorded = ids(known.map(|known| known.application_security_groups.as_slice()).unwrap_or_default());
    let joined = match nic {
        Some(nic) => nic.groups.as_slice(),
        None if vouches(allocation) => &recorded,
        None => &[],
    };
    let lacks: Vec<ResourceId> = wanted.iter().filter(|id| !joined.contains(id)).cloned().collect();
    let has = |id: &ResourceId| nic.is_none_or(|nic| nic.groups.contains(id));
    let leave = recorded.iter().filter(|id| has(id) && !wanted.contains(id)).cloned().collect();
    // While another client's write is under way, the NIC's next groups aren't known.
    let is_settled = nic.is_none_or(Nic::is_settled);
    let still_ours = recorded.iter().filter(|id| !is_settled || has(id) || wanted.contains(id));
    let announced = lacks.iter().filter(|id| !is_dry_run && !recorded.contains(id));
    let ours = still_ours.chain(announced).cloned().collect();
    Grouping { lacks, leave, ours, wanted: wanted.len(), is_withheld: named.is_some() && allowed.is_none() }
}

/// The ids as our kind names them; the API server has checked them.
fn ids(all: &[String]) -> Vec<ResourceId> {
    all.iter().filter_map(|id| id.parse().ok()).collect()
}

/// Whether the operator before this one has seen the NIC in the groups that `spec` names, and `spec` is still
/// the same. Without that they may only have been announced.
fn vouches(allocation: &NodeIPAllocation) -> bool {
    condition::find(allocation.conditions(), APPLICATION_SECURITY_GROUPS).is_some_and(|joined| {
        joined.status == "True" && joined.observed_generation == allocation.metadata.generation
    })
}

/// The condition; `None` where the pool names no groups and the NIC has left all of ours.
pub fn condition(
    grouping: &Grouping,
    nic: &str,
    pool: Option<&str>,
    setback: Option<&Setback>,
    dry_run: bool,
) -> Option<Verdict> {
    let Grouping { lacks, leave, ours: _, wanted, is_withheld } = grouping;
    let of_pool = format!("of NodeIPPool {}", pool.unwrap_or_default());
    if *is_withheld {
        let message = format!(
            "{nic} is in no application security group {of_pool}: it is the VM's primary one, and Azure has one set of them a NIC, so \
             they would hold for what the node itself sends and gets, too. Set applicationSecurityGroups.onSharedNIC if that is \
             right, or give the VM a second NIC and the pool its subnetID."
        );
        return Some(Verdict::no(Reason::SharedNIC, message));
    }
    if !lacks.is_empty() {
        return Some(match setback {
            Some(setback) => Verdict::no(
                setback.reason,
                format!("{nic} is not in the application security groups {of_pool}: {}", setback.message),
            ),
            None if dry_run => {
                Verdict::no(Reason::DryRun, format!("dry run: {nic} joins no application security group"))
            }
            None => Verdict::no(
                Reason::Joining,
                format!("{nic} is about to join {} application security groups {of_pool}", lacks.len()),
            ),
        });
    }
    if !leave.is_empty() {
        if let Some(setback) = setback {
            let message =
                format!("{nic} is in application security groups that it is to leave: {}", setback.message);
            return Some(Verdict::no(setback.reason, message));
        }
        let message = format!(
            "{nic} is about to leave {} application security groups that its pool doesn't name any more, or its former pool did; \
             without a pool it leaves them with its last pod address",
            leave.len()
        );
        return Some(Verdict::no(Reason::Leaving, message));
    }
    (*wanted > 0).then(|| {
        Verdict::yes(
            Reason::Joined,
            format!("{nic} is in the {wanted} application security groups {of_pool}"),
        )
    })
}

/// Whether this reason passes without an action.
pub fn is_passing(reason: &str) -> bool {
    [Reason::Joining, Reason::Leaving, Reason::DryRun].iter().any(|passing| *passing == reason)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::azure::{ProvisioningState, sample_nic};

    const NIC: &str = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/networkInterfaces/n";

    fn group(name: &str) -> String {
        format!(
            "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/applicationSecurityGroups/{name}"
        )
    }

    fn pool(names: &[&str], on_shared_nic: bool) -> NodeIPPool {
        let ids: Vec<String> = names.iter().map(|name| group(name)).collect();
        let spec: Value = match names {
            [] => json!({}),
            _ => json!({ "applicationSecurityGroups": { "ids": ids, "onSharedNIC": on_shared_nic } }),
        };
        NodeIPPool::new("p", serde_json::from_value(spec).unwrap())
    }

    /// With these groups as ours, and the condition of an earlier generation or of this one.
    fn allocation(ours: &[&str], reported: Option<i64>) -> NodeIPAllocation {
        let ids: Vec<String> = ours.iter().map(|name| group(name)).collect();
        let conditions: Vec<Value> = reported
            .iter()
            .map(|generation| {
                json!({ "type": "ApplicationSecurityGroups", "status": "True", "reason": "Joined", "message": "",
                    "observedGeneration": generation, "lastTransitionTime": "2026-01-01T00:00:00Z" })
            })
            .collect();
        serde_json::from_value(json!({
            "metadata": { "name": "n", "generation": 2 },
            "spec": { "nodeUID": "u", "pool": "p", "cooldown": "30s", "interfaces": [
                { "id": NIC, "mac": "", "primaryAddress": "10.0.0.4", "subnet": { "id": "s" }, "applicationSecurityGroups": ids } ] },
            "status": { "conditions": conditions },
        }))
        .unwrap()
    }

    fn nic(groups: &[&str]) -> Nic {
        let groups = groups.iter().map(|name| group(name).parse().unwrap()).collect();
        Nic { id: NIC.parse().unwrap(), groups, ..sample_nic(&[]) }
    }

    /// The groups that the NIC joins and leaves, and those that are recorded, by name.
    fn outcome(pool: &NodeIPPool, ours: &[&str], nic: Option<&Nic>, is_shared: bool) -> [Vec<String>; 3] {
        let allocation = allocation(ours, None);
        let facts = Facts { pool: Some(pool), allocation: &allocation, nic, is_shared, is_dry_run: false };
        let Grouping { lacks, leave, ours, .. } = decide(&facts);
        [lacks, leave, ours].map(|all| all.iter().map(|id| id.name().to_owned()).collect())
    }

    fn names(all: [&[&str]; 3]) -> [Vec<String>; 3] {
        all.map(|all| all.iter().map(|&name| name.to_owned()).collect())
    }

    #[test]
    fn groups_are_recorded_before_they_are_joined_and_until_they_are_left() {
        let (web, none) = (pool(&["Web"], false), pool(&[], false));
        assert_eq!(outcome(&web, &[], Some(&nic(&[])), false), names([&["Web"], &[], &["Web"]]));
        assert_eq!(outcome(&web, &["web"], Some(&nic(&["web"])), false), names([&[], &[], &["web"]]));
        assert_eq!(outcome(&none, &["web"], Some(&nic(&["web"])), false), names([&[], &["web"], &["web"]]));
        assert_eq!(outcome(&none, &["web"], Some(&nic(&[])), false), names([&[], &[], &[]]));
    }

    #[test]
    fn a_group_that_was_there_before_us_is_not_ours_and_stays() {
        let nic = nic(&["web", "theirs"]);
        assert_eq!(outcome(&pool(&["web"], false), &[], Some(&nic), false), names([&[], &[], &[]]));
        assert_eq!(outcome(&pool(&[], false), &[], Some(&nic), false), names([&[], &[], &[]]));
    }

    #[test]
    fn an_update_under_way_on_the_nic_keeps_our_groups_recorded() {
        let busy = Nic { state: ProvisioningState::Updating, ..nic(&[]) };
        assert_eq!(outcome(&pool(&[], false), &["web"], Some(&busy), false), names([&[], &[], &["web"]]));
    }

    #[test]
    fn another_nic_takes_over_no_record() {
        let mut other = nic(&["web"]);
        other.id = NIC.replace("/n", "/other").parse().unwrap();
        assert_eq!(outcome(&pool(&["web"], false), &["web"], Some(&other), false), names([&[], &[], &[]]));
    }

    #[test]
    fn a_nic_that_the_node_itself_uses_joins_only_if_the_pool_allows_it() {
        let (withheld, allowed) = (pool(&["web"], false), pool(&["web"], true));
        assert_eq!(outcome(&withheld, &[], Some(&nic(&[])), true), names([&[], &[], &[]]));
        assert_eq!(outcome(&allowed, &[], Some(&nic(&[])), true), names([&["web"], &[], &["web"]]));
        // The operator that takes the NIC back takes the groups off.
        assert_eq!(outcome(&withheld, &["web"], Some(&nic(&["web"])), true)[1], ["web"]);
        let allocation = allocation(&[], None);
        let facts = Facts {
            pool: Some(&withheld),
            allocation: &allocation,
            nic: None,
            is_shared: true,
            is_dry_run: false,
        };
        let verdict = condition(&decide(&facts), NIC, Some("p"), None, false).unwrap();
        assert_eq!((verdict.holds, verdict.reason), (Some(false), Reason::SharedNIC));
        for part in [NIC, "NodeIPPool p", "onSharedNIC", "subnetID"] {
            assert!(verdict.message.contains(part), "{part} isn't in {}", verdict.message);
        }
    }

    #[test]
    fn a_new_operator_believes_seen_groups_and_not_only_announced_ones() {
        let (wanted, none) = (pool(&["web"], false), pool(&[], false));
        let decided = |pool: &NodeIPPool, reported| {
            let allocation = allocation(&["web"], reported);
            let facts = Facts {
                pool: Some(pool),
                allocation: &allocation,
                nic: None,
                is_shared: false,
                is_dry_run: false,
            };
            let Grouping { lacks, leave, .. } = decide(&facts);
            (lacks.len(), leave.len())
        };
        assert_eq!(decided(&wanted, Some(2)), (0, 0));
        assert_eq!(decided(&wanted, None), (1, 0));
        assert_eq!(decided(&wanted, Some(1)), (1, 0), "reported of an older spec");
        assert_eq!(decided(&none, Some(2)), (0, 1));
    }

    #[test]
    fn a_dry_run_announces_nothing() {
        let (wanted, allocation) = (pool(&["web"], false), allocation(&[], None));
        let nic = nic(&[]);
        let facts = Facts {
            pool: Some(&wanted),
            allocation: &allocation,
            nic: Some(&nic),
            is_shared: false,
            is_dry_run: true,
        };
        let grouping = decide(&facts);
        assert_eq!((grouping.lacks.len(), grouping.ours.len()), (1, 0));
        assert_eq!(condition(&grouping, NIC, Some("p"), None, true).unwrap().reason, "DryRun");
    }
}
