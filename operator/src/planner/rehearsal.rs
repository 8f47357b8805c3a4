//! A dry run's version of a plan: it reports what would be done, and nothing is done. Pure.

use std::fmt;

use super::{Change, Plan};
use crate::resource_id::ResourceId;

/// The writes that would be made to a node's NIC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rehearsal {
    change: Change,
    /// How many addresses would be reserved.
    reserve: u32,
    /// How many addresses the agent would be asked to give up, to be released then.
    give_back: u32,
}

impl Plan {
    /// The plan without any effect, and the writes that it would have made. `grain` as in
    /// [`super::Observed::grain`].
    ///
    /// The target is never below the number held: the agent never hands out again what it gives up, and a dry
    /// run would neither take that off the NIC nor bring another.
    pub fn rehearse(self, grain: u32) -> (Plan, Rehearsal) {
        let ip_configurations = self.change.reserve.saturating_add(self.change.restore.len() as u32);
        let rehearsal = Rehearsal {
            change: self.change,
            reserve: ip_configurations.saturating_mul(grain),
            give_back: self.kept.saturating_sub(self.target),
        };
        let plan = Plan { target: self.target.max(self.kept), change: Change::default(), ..self };
        (plan, rehearsal)
    }
}

impl Rehearsal {
    pub fn is_empty(&self) -> bool {
        *self == Rehearsal::default()
    }
}

impl fmt::Display for Rehearsal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rehearsal { change, reserve, give_back } = self;
        let Change { reserve: _, restore: _, release, adopt, join, leave, repair, forward, mend } = change;
        let mut parts = vec![];
        if *reserve > 0 {
            parts.push(format!("reserve {reserve} addresses"));
        }
        if !release.is_empty() {
            parts.push(format!("release {}", release.join(", ")));
        }
        if !adopt.is_empty() {
            parts.push(format!("remove {}, which others made,", adopt.join(", ")));
        }
        let names =
            |groups: &[ResourceId]| groups.iter().map(ResourceId::name).collect::<Vec<_>>().join(", ");
        for (groups, does) in [(join, "put it into"), (leave, "take it out of")] {
            if !groups.is_empty() {
                parts.push(format!("{does} the application security groups {}", names(groups)));
            }
        }
        if *repair {
            parts.push("repeat the last write, which Azure gave up".to_owned());
        }
        if *forward {
            parts.push("turn IP forwarding on".to_owned());
        }
        if *mend {
            parts.push("put the node's route right".to_owned());
        }
        if *give_back > 0 {
            parts.push(format!("have {give_back} addresses given back"));
        }
        f.write_str(&parts.join(" and "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::priority::Priority;

    fn plan(target: u32, kept: u32, change: Change) -> Plan {
        Plan {
            steps: None,
            target,
            asked: target,
            wanted: target,
            change,
            priority: Priority::WarmRefill,
            publish: vec![],
            kept,
            surplus: target < kept,
            grows: target > kept,
            releases: false,
            repairs: false,
            reroutes: false,
            replaces: false,
            regroups: false,
            requeue: None,
        }
    }

    fn group(name: &str) -> ResourceId {
        let id = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/applicationSecurityGroups";
        format!("{id}/{name}").parse().unwrap()
    }

    #[test]
    fn nothing_of_a_rehearsed_plan_reaches_azure_and_all_of_it_is_reported() {
        let change = Change {
            reserve: 2,
            restore: vec![],
            release: vec!["vnp-1".into()],
            adopt: vec!["ipconfig2".into()],
            join: vec![group("web"), group("api")],
            leave: vec![group("old")],
            repair: true,
            forward: true,
            mend: true,
        };
        let (plan, rehearsal) = plan(40, 8, change).rehearse(16);
        assert!(plan.change.is_empty());
        assert_eq!(plan.target, 40);
        let expected = "reserve 32 addresses and release vnp-1 and remove ipconfig2, which others made, and put it into the \
                    application security groups web, api and take it out of the application security groups old and repeat \
                    the last write, which Azure gave up and turn IP forwarding on and put the node's route right";
        assert_eq!(rehearsal.to_string(), expected);
    }

    #[test]
    fn a_rehearsal_asks_no_agent_to_give_addresses_up() {
        let (plan, rehearsal) = plan(4, 12, Change::default()).rehearse(1);
        assert_eq!(plan.target, 12);
        assert_eq!(rehearsal.to_string(), "have 8 addresses given back");
    }

    #[test]
    fn a_node_with_enough_addresses_has_nothing_to_rehearse() {
        assert!(plan(8, 8, Change::default()).rehearse(1).1.is_empty());
    }
}
