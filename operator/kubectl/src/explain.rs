//! `explain`: each step of a node's sizing, with its number and its consequence.

use std::fmt;

use anyhow::{Result, anyhow, bail};
use kube::ResourceExt;
use serde::Serialize;
use vnetpool_crds::pool::{Mode, Sizing};
use vnetpool_operator::outlook::Outlook;
use vnetpool_operator::planner::{Demand, Plan, Steps};

use crate::cluster::Objects;
use crate::show::{Trouble, addresses, age, indented, length, list, table, troubles_of};

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    pub node: String,
    /// The pool whose policy holds.
    pub pool: Option<String>,
    pub mode: Mode,
    pub sizing: Option<Sizing>,
    pub demand: Demand,
    /// How old the node's own counts are.
    pub counted: Option<String>,
    pub steps: Option<Steps>,
    /// How many addresses a reservation brings.
    pub grain: u32,
    /// How many reservations the NIC takes, and how many ipConfigurations the VM has on other NICs.
    pub slots: u32,
    pub elsewhere: u32,
    pub held: u32,
    pub target: u32,
    pub next: String,
    /// Why the pool's policy doesn't hold, or not for long.
    pub hindrances: Vec<String>,
    pub troubles: Vec<Trouble>,
}

/// # Errors
/// When there is nothing to explain, with the reason.
pub fn explain(objects: &Objects, node: &str) -> Result<Explanation> {
    if objects.node(node).is_none() {
        bail!("there is no Node {node}");
    }
    let allocation = objects.allocation(node).ok_or_else(|| {
        anyhow!("node {node} has no NodeIPAllocation: `kubectl vnetpool status` shows why not")
    })?;
    let bound = objects.bound().get(node).copied().unwrap_or_default();
    let seen =
        objects.outlook(node, bound, &objects.pools).ok_or_else(|| anyhow!("there is no Node {node}"))?;
    let Outlook { pool, leaves, obstacle, demand, sizing, grain, slots, plan } = seen;
    let counted = allocation.status.as_ref().and_then(|status| status.counted_at.as_ref());
    Ok(Explanation {
        node: node.to_owned(),
        pool: pool.map(|pool| pool.name_any()),
        mode: allocation.spec.mode,
        sizing,
        demand,
        counted: counted.map(|counted| age(counted.0, objects.now)),
        steps: plan.steps,
        grain,
        slots,
        elsewhere: allocation.spec.elsewhere,
        held: plan.kept,
        target: plan.target,
        next: next(&plan, grain),
        hindrances: leaves.into_iter().chain(obstacle).collect(),
        troubles: troubles_of(allocation, objects.now),
    })
}

/// The operator's next steps, as far as nothing holds it back.
pub fn next(plan: &Plan, grain: u32) -> String {
    let mut steps = vec![];
    if plan.change.reserve > 0 {
        steps.push(format!("reserves {}", addresses(plan.change.reserve * grain)));
    }
    if !plan.change.release.is_empty() {
        steps.push(format!("takes {} reservations off the NIC", plan.change.release.len()));
    }
    if plan.surplus {
        let surplus = addresses(plan.kept - plan.wanted);
        steps.push(match plan.requeue.filter(|_| plan.target > plan.wanted) {
            Some(wait) => {
                format!("has the node give back {surplus} in {}, if they are still too many", length(wait))
            }
            None => format!("has the node give back {surplus}"),
        });
    }
    if steps.is_empty() { "does nothing".to_owned() } else { steps.join(", and ") }
}

impl Explanation {
    /// Each step: its result, and why.
    fn lines(&self, steps: &Steps, sizing: &Sizing) -> Vec<Vec<String>> {
        let Demand { bound, assigned, waiting, cooling, pods_allowed } = self.demand;
        let counted = self.counted.as_ref().map(|age| format!(", counted {age} ago")).unwrap_or_default();
        let kubelet =
            pods_allowed.map(|most| format!(", as far as the kubelet takes {most} pods")).unwrap_or_default();
        let room = match self.mode {
            Mode::Route => "the node's range".to_owned(),
            Mode::Address | Mode::Prefix => format!(
                "what fits on the NIC: {} reservations, for 1 is the node's own and {} are on the VM's other NICs",
                self.slots, self.elsewhere
            ),
        };
        let step = |number: u32, why: String| vec![number.to_string(), why];
        let mut lines = vec![
            step(
                steps.pods,
                format!("pods: {bound} bound, or {assigned} with an address and {waiting} waiting{counted}"),
            ),
            step(steps.with_warm, format!("+ warm {}{kubelet}", sizing.warm)),
            step(steps.with_cooling, format!("+ {cooling} cooling")),
            step(steps.at_least, format!("at least minimum {}", sizing.minimum)),
            step(steps.in_batches, format!("rounded up to batch {}", sizing.batch)),
            step(steps.asked, format!("rounded up to whole reservations of {}", self.grain)),
            step(steps.asked.min(steps.maximum), format!("at most maximum {}", steps.maximum)),
            step(steps.wanted, format!("at most {}, {room}", steps.room)),
        ];
        if steps.coarseness > 1 {
            let why = format!(
                "as steps of {} batches, for writes are scarce in the subscription: a node that lacks some takes so \
                 many, and only more is given back",
                steps.coarseness
            );
            lines.push(step(steps.coarse, why));
        }
        lines
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Explanation { node, pool, mode, held, .. } = self;
        let pool = pool.as_ref().map_or("no NodeIPPool".to_owned(), |pool| format!("NodeIPPool {pool}"));
        writeln!(f, "Node {node}, {pool}, mode {mode:?}, holds {}.\n", addresses(*held))?;
        if let Some((steps, sizing)) = self.steps.as_ref().zip(self.sizing.as_ref()) {
            writeln!(f, "{}", table(&["ADDRESSES", "WHY"], &self.lines(steps, sizing)))?;
        }
        writeln!(f, "Next the operator {}.", self.next)?;
        for hindrance in &self.hindrances {
            write!(f, "\nBut:\n{}", indented(hindrance))?;
        }
        if !self.troubles.is_empty() {
            write!(f, "\nNot well:\n\n{}", list(&self.troubles))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use std::sync::Arc;
    use vnetpool_crds::pool::ScarceWrites;

    #[test]
    fn each_step_of_the_sizing_has_its_number() {
        let expected = "\
Node node-2, NodeIPPool default, mode Address, holds 3 addresses.

ADDRESSES   WHY
3           pods: 2 bound, or 2 with an address and 1 waiting, counted 42s ago
11          + warm 8, as far as the kubelet takes 110 pods
11          + 0 cooling
11          at least minimum 8
12          rounded up to batch 4
12          rounded up to whole reservations of 1
12          at most maximum 255
12          at most 255, what fits on the NIC: 255 reservations, for 1 is the node's own and 0 are on the VM's other NICs

Next the operator reserves 9 addresses.

Not well:

NodeIPAllocation node-2: Reserved is False for 2m (SubnetFull)
  subnet nodes has no address left. Free up some.
";
        assert_eq!(explain(&fixture::objects(), "node-2").unwrap().to_string(), expected);
    }

    #[test]
    fn a_coarse_step_is_shown_with_its_reason() {
        let mut objects = fixture::objects();
        let mut pool = fixture::pool();
        let scarce = ScarceWrites { subscription: "s".into(), coarseness: 4 };
        pool.status.get_or_insert_default().scarce_writes = vec![scarce];
        objects.pools = vec![Arc::new(pool)];
        let shown = explain(&objects, "node-2").unwrap().to_string();
        for line in [
            "16          as steps of 4 batches, for writes are scarce in the subscription: a node that lacks some takes so many, \
             and only more is given back\n",
            "Next the operator reserves 13 addresses.\n",
        ] {
            assert!(shown.contains(line), "{shown}");
        }
    }

    #[test]
    fn a_nic_that_the_node_has_left_is_named_and_holds_nothing_of_the_nodes_addresses() {
        let mut objects = fixture::objects();
        fixture::leave(&mut objects.allocations[0], &[30]);
        let explained = explain(&objects, "node-1").unwrap();
        assert_eq!(explained.held, 4);
        assert!(explained.troubles[0].what.contains("left NIC node-1-former"), "{explained}");
        assert!(explained.troubles[0].message.contains("has 1 address,"), "{explained}");
    }

    #[test]
    fn a_node_that_is_not_there_is_named() {
        let error = |node| explain(&fixture::objects(), node).unwrap_err().to_string();
        assert_eq!(error("node-9"), "there is no Node node-9");
        assert!(error("node-3").contains("has no NodeIPAllocation"));
    }
}
