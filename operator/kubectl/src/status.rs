//! `status`: pools, nodes, and which of them aren't well.

use std::fmt;

use kube::ResourceExt;
use serde::Serialize;
use vnetpool_crds::NodeIPPool;
use vnetpool_crds::condition::{self, READY};
use vnetpool_crds::pool::Mode;
use vnetpool_operator::outlook::is_never_served;

use crate::cluster::{Objects, cannot_be_read};
use crate::show::{Trouble, list, table, troubles, troubles_of};

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub pools: Vec<Pool>,
    pub nodes: Vec<Node>,
    pub troubles: Vec<Trouble>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    pub name: String,
    pub mode: Mode,
    pub nodes: u32,
    pub nodes_ready: u32,
    pub counts: Counts,
    pub ready: String,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    pub name: String,
    pub pool: String,
    pub target: u32,
    pub counts: Counts,
    pub ready: String,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Counts {
    pub held: u32,
    pub assigned: u32,
    pub free: u32,
    pub cooling: u32,
    pub waiting: u32,
}

impl Counts {
    fn cells(self) -> impl Iterator<Item = String> {
        let Counts { held, assigned, free, cooling, waiting } = self;
        [held, assigned, free, cooling, waiting].into_iter().map(|count| count.to_string())
    }
}

/// Of a pool's or of a node's status, which both have these.
macro_rules! counts {
    ($status:expr) => {{
        let status = &$status;
        Counts {
            held: status.held,
            assigned: status.assigned,
            free: status.free,
            cooling: status.cooling,
            waiting: status.waiting,
        }
    }};
}

pub fn status(objects: &Objects) -> Status {
    let ready = |conditions: &[_]| {
        condition::find(conditions, READY).map_or("Unknown".to_owned(), |ready| match ready.status.as_str() {
            "True" => "True".to_owned(),
            status => format!("{status} ({})", ready.reason),
        })
    };
    let (mut pools, mut nodes, mut all) = (vec![], vec![], vec![]);
    for pool in &objects.pools {
        let status = pool.status.clone().unwrap_or_default();
        all.extend(troubles(&format!("NodeIPPool {}", pool.name_any()), &status.conditions, objects.now));
        pools.push(Pool {
            name: pool.name_any(),
            mode: pool.spec.mode,
            nodes: status.nodes,
            nodes_ready: status.nodes_ready,
            counts: counts!(status),
            ready: ready(&status.conditions),
        });
    }
    for allocation in &objects.allocations {
        let status = allocation.status.clone().unwrap_or_default();
        all.extend(troubles_of(allocation, objects.now));
        nodes.push(Node {
            name: allocation.name_any(),
            pool: allocation.spec.pool.clone(),
            target: allocation.spec.target,
            counts: counts!(status),
            ready: ready(&status.conditions),
        });
    }
    let unserved = objects.nodes.iter().filter(|node| objects.allocation(&node.name_any()).is_none());
    for node in unserved.filter(|node| !is_never_served(node)) {
        let pool = NodeIPPool::serving(objects.pools.iter().map(AsRef::as_ref), &node.labels().to_map());
        all.push(Trouble {
            object: format!("Node {}", node.name_any()),
            what: "has no NodeIPAllocation".to_owned(),
            message: match pool {
                Some(pool) => format!(
                    "NodeIPPool {} selects it. The operator makes the object within a minute, unless the pool's condition \
                     NodesSupported names the node. If it doesn't, its log has the cause.",
                    pool.name_any()
                ),
                None => "No NodeIPPool selects it. Make one that does, or label the node.".to_owned(),
            },
        });
    }
    let unreadable = objects.unreadable.iter().map(|one| Trouble {
        object: "Object".to_owned(),
        what: "can't be read".to_owned(),
        message: cannot_be_read(one),
    });
    all.extend(unreadable);
    Status { pools, nodes, troubles: all }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pools = self.pools.iter().map(|pool| {
            let first = [pool.name.clone(), format!("{:?}", pool.mode)];
            let nodes = format!("{}/{}", pool.nodes_ready, pool.nodes);
            first.into_iter().chain([nodes]).chain(pool.counts.cells()).chain([pool.ready.clone()]).collect()
        });
        let columns = ["HELD", "ASSIGNED", "FREE", "COOLING", "WAITING", "READY"];
        let headers = [&["POOL", "MODE", "NODES-READY"][..], &columns].concat();
        f.write_str(&table(&headers, &pools.collect::<Vec<_>>()))?;
        let nodes = self.nodes.iter().map(|node| {
            let first = [node.name.clone(), node.pool.clone(), node.target.to_string()];
            first.into_iter().chain(node.counts.cells()).chain([node.ready.clone()]).collect()
        });
        let headers = [&["NODE", "POOL", "TARGET"][..], &columns].concat();
        write!(f, "\n{}", table(&headers, &nodes.collect::<Vec<_>>()))?;
        match self.troubles.as_slice() {
            [] => writeln!(f, "\nAll is well."),
            troubles => write!(f, "\nNot well:\n\n{}", list(troubles)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn pools_and_nodes_are_tables_and_each_trouble_names_its_cause() {
        let expected = "\
POOL      MODE      NODES-READY   HELD   ASSIGNED   FREE   COOLING   WAITING   READY
default   Address   1/2           7      4          2      1         1         True

NODE     POOL      TARGET   HELD   ASSIGNED   FREE   COOLING   WAITING   READY
node-1   default   8        4      2          1      1         0         True
node-2   default   12       3      2          1      0         1         False (SubnetFull)

Not well:

NodeIPPool default: SubnetExhausting is True for 5m (FewFree)
  vnet/nodes has 3 of 251 addresses free
NodeIPAllocation node-2: Reserved is False for 2m (SubnetFull)
  subnet nodes has no address left. Free up some.
Node node-3: has no NodeIPAllocation
  No NodeIPPool selects it. Make one that does, or label the node.
";
        assert_eq!(status(&fixture::objects()).to_string(), expected);
    }

    #[test]
    fn a_nic_that_a_node_has_left_is_named_with_what_no_count_has() {
        let mut objects = fixture::objects();
        objects.allocations.truncate(1);
        objects.nodes.truncate(1);
        objects.pools.clear();
        fixture::leave(&mut objects.allocations[0], &[30, 31]);
        let shown = status(&objects).to_string();
        let expected = "
node-1   default   8        4      2          1      1         0         True

Not well:

NodeIPAllocation node-1: its node has left NIC node-1-former
  The record of that NIC has 2 addresses, which none of the node's counts has. All of it goes back;
  the condition InterfaceFound shows what that waits for.
";
        assert!(shown.ends_with(expected), "{shown}");
    }

    #[test]
    fn a_healthy_fleets_status_ends_with_all_is_well() {
        let mut objects = fixture::objects();
        objects.nodes.truncate(1);
        objects.allocations.truncate(1);
        objects.pools.clear();
        assert!(status(&objects).to_string().ends_with("\n\nAll is well.\n"));
    }
}
