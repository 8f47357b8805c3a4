//! When a NIC that nothing has happened to is read again: somebody else may have changed it. Pure.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::time::{Duration, Instant};

use kube::ResourceExt;
use vnetpool_crds::NodeIPAllocation;

/// Where the node's metadata service tells what leaves the NIC: after this long, or up to twice as long. The
/// reads of many nodes must not come at once.
const RECHECK: Duration = Duration::from_secs(4 * 3600);
/// Where it doesn't list what the node needs. Azure gives blocks that have left a NIC to others, so pods
/// could share an address for as long; and without IP forwarding the pods of a node with a route are cut off.
const OFTEN: Duration = Duration::from_secs(15 * 60);
/// Even a node that nothing happens to is looked at again after this long; that alone asks Azure nothing.
pub const REQUEUE: Duration = Duration::from_secs(3600);

/// When a NIC is to be read again.
pub struct Recheck {
    due: Instant,
}

impl Recheck {
    /// `known` is when this process last read or wrote it, if it has since it `started`.
    pub fn of(allocation: &NodeIPAllocation, known: Option<Instant>, started: Instant) -> Recheck {
        let node = allocation.name_any();
        Recheck::after(&node, is_listed(allocation), known, started)
    }

    fn after(node: &str, is_listed: bool, known: Option<Instant>, started: Instant) -> Recheck {
        let spread = |over: Duration| {
            let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(node);
            Duration::from_millis(hash % over.as_millis() as u64)
        };
        let due = match (is_listed, known) {
            (true, known) => known.unwrap_or(started) + RECHECK + spread(RECHECK),
            // At times of the node's own: many may have been read or written at the same moment.
            (false, known) => {
                let first = started + spread(OFTEN);
                let since = known.and_then(|known| known.checked_duration_since(first));
                let passed = since.map_or(0, |since| since.as_secs() / OFTEN.as_secs() + 1);
                first + OFTEN * u32::try_from(passed).unwrap_or(u32::MAX)
            }
        };
        Recheck { due }
    }

    pub fn is_due(&self, now: Instant) -> bool {
        self.due <= now
    }

    /// How long until the node is to be looked at again though nothing has happened: until its NIC is due, so
    /// that the spread isn't lost to the beat in which all nodes are looked at after a start.
    pub fn due_in(&self, now: Instant) -> Duration {
        let due = self.due.saturating_duration_since(now);
        // What is due and wasn't done is held back by an error, which has a time of its own.
        if due.is_zero() { REQUEUE } else { due.min(REQUEUE) }
    }
}

/// Whether the metadata service lists all that the node's pods need of its NIC: single addresses.
fn is_listed(allocation: &NodeIPAllocation) -> bool {
    let spec = &allocation.spec;
    spec.route_table_id.is_none()
        && spec.ip_configurations().all(|one| !one.address.contains('/') || one.address.ends_with("/32"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const HOUR: f64 = 3600.0;

    /// The moments, in seconds after a start that looks at all of them at once, at which NICs of idle nodes
    /// are read. The start may read all of them.
    fn reads(nodes: usize, is_listed: bool, hours: f64, reads_all: bool) -> Vec<f64> {
        let start = Instant::now();
        let mut reads = vec![];
        for node in (0..nodes).map(|index| format!("aks-pool-12345678-vmss{index:06}")) {
            let (mut known, mut now) = (reads_all.then_some(start), start);
            while now < start + Duration::from_secs_f64(hours * HOUR) {
                if Recheck::after(&node, is_listed, known, start).is_due(now) {
                    reads.push(now.duration_since(start).as_secs_f64());
                    known = Some(now);
                }
                now += Recheck::after(&node, is_listed, known, start).due_in(now);
            }
        }
        reads
    }

    #[test]
    fn an_idle_node_costs_a_quarter_of_a_request_an_hour_at_most() {
        let (nodes, hours) = (1000, 240.0);
        let per_node_and_hour = reads(nodes, true, hours, false).len() as f64 / nodes as f64 / hours;
        assert!((0.12..=0.25).contains(&per_node_and_hour), "{per_node_and_hour}");
    }

    #[test]
    fn where_nothing_else_tells_a_nic_is_read_four_times_an_hour_and_no_more() {
        let (nodes, hours) = (1000, 24.0);
        let per_node_and_hour = reads(nodes, false, hours, false).len() as f64 / nodes as f64 / hours;
        assert!((3.9..=4.0).contains(&per_node_and_hour), "{per_node_and_hour}");
        let node = |address: &str, table: Option<&str>| -> NodeIPAllocation {
            let held = json!({"name": "vnp-1", "address": address});
            let interface = json!({"id": "i", "mac": "m", "primaryAddress": "10.0.0.4", "subnet": {"id": "s"}, "ipConfigurations": [held]});
            let spec = json!({"nodeUID": "u", "pool": "p", "cooldown": "30s", "interfaces": [interface], "routeTableID": table});
            serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": spec})).unwrap()
        };
        assert!(is_listed(&node("10.0.0.5/32", None)) && is_listed(&node("10.0.0.5", None)));
        assert!(!is_listed(&node("10.0.0.16/28", None)) && !is_listed(&node("10.0.0.5/32", Some("table"))));
    }

    #[test]
    fn no_minute_sees_many_of_the_rechecks() {
        // 1,000 nodes within the first four hours in which any is due are 4 a minute; within a quarter of an
        // hour they are 67.
        for (is_listed, reads_all, most) in
            [(true, false, 16), (true, true, 16), (false, false, 100), (false, true, 100)]
        {
            let mut minutes = [0; 24 * 60];
            for at in reads(1000, is_listed, 24.0, reads_all) {
                minutes[(at / 60.0) as usize] += 1;
            }
            assert!(
                minutes.iter().all(|count| *count <= most),
                "{is_listed} {reads_all} {:?}",
                minutes.iter().max()
            );
        }
    }

    #[test]
    fn a_node_has_an_interval_of_its_own() {
        let start = Instant::now();
        let wait = |node| Recheck::after(node, true, Some(start), start).due - start;
        assert_eq!(wait("node-1"), wait("node-1"));
        assert_ne!(wait("node-1"), wait("node-2"));
        assert!(wait("node-1") >= RECHECK && wait("node-1") < 2 * RECHECK);
    }

    #[test]
    fn a_recheck_that_is_held_back_is_not_looked_for_all_the_time() {
        let start = Instant::now();
        let now = start + 3 * RECHECK;
        let recheck = Recheck::after("node-1", true, Some(start), start);
        assert!(recheck.is_due(now));
        assert_eq!(recheck.due_in(now), REQUEUE);
    }
}
