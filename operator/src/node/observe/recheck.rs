//! When a NIC without any event is read again: another client may have changed it. Pure.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::time::{Duration, Instant};

use kube::ResourceExt;
use vnetpool_crds::NodeIPAllocation;

use crate::node::memory::known::Known;

/// Where the node's metadata service shows what leaves the NIC: after this long, or up to twice as long. The
/// reads of many nodes must not come at once.
const RECHECK: Duration = Duration::from_secs(4 * 3600);
/// Even a node without any event is reconciled again after this long; that alone costs no request to Azure.
pub const REQUEUE: Duration = Duration::from_secs(3600);

/// When a NIC is to be read again.
pub struct Recheck {
    due: Instant,
    /// When all of the VM's are, where it has others: something of ours may have come there late, or in an
    /// earlier release. `None`: it has one.
    all_due: Option<Instant>,
}

impl Recheck {
    /// By what is known since this process `started`; `often` is
    /// [`Waits::unlisted`](crate::Waits::unlisted).
    pub fn of(allocation: &NodeIPAllocation, known: &Known, started: Instant, often: Duration) -> Recheck {
        let (node, has_others) = (allocation.name_any(), allocation.spec.elsewhere > 0);
        let often = (!is_listed(allocation)).then_some(often);
        let all_due = has_others.then(|| Recheck::after(&node, None, known.all_at, started).due);
        Recheck { all_due, ..Recheck::after(&node, often, known.at, started) }
    }

    fn after(node: &str, often: Option<Duration>, known: Option<Instant>, started: Instant) -> Recheck {
        let spread = |over: Duration| {
            let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(node);
            Duration::from_millis(hash % over.as_millis() as u64)
        };
        let due = match often {
            None => known.unwrap_or(started) + RECHECK + spread(RECHECK),
            // At times of the node's own: many may have been read or written at the same moment.
            Some(often) => {
                let first = started + spread(often);
                let since = known.and_then(|known| known.checked_duration_since(first));
                let passed = since.map_or(0, |since| since.as_secs() / often.as_secs() + 1);
                first + often * u32::try_from(passed).unwrap_or(u32::MAX)
            }
        };
        Recheck { due, all_due: None }
    }

    pub fn is_due(&self, now: Instant) -> bool {
        self.due <= now
    }

    pub fn are_all_due(&self, now: Instant) -> bool {
        self.all_due.is_some_and(|due| due <= now)
    }

    /// How long until a node without any event is to be reconciled again: until its NIC is due, so that the
    /// spread isn't lost to the beat in which all nodes are reconciled after a start.
    pub fn due_in(&self, now: Instant) -> Duration {
        let all = [Some(self.due), self.all_due].into_iter().flatten();
        // A read that is due and wasn't made is held back by an error, which has a time of its own.
        let waits = all.map(|due| due.saturating_duration_since(now)).filter(|wait| !wait.is_zero());
        waits.min().map_or(REQUEUE, |wait| wait.min(REQUEUE))
    }
}

/// Whether the metadata service lists all that the node's pods need of its NIC: single addresses. It doesn't
/// where the node's agent reports, in this boot, that the service is silent.
fn is_listed(allocation: &NodeIPAllocation) -> bool {
    let spec = &allocation.spec;
    let status = allocation.status.as_ref().filter(|status| status.boot_id == spec.boot_id);
    !status.is_some_and(|status| status.metadata_silent)
        && spec.route_table_id.is_none()
        && spec.ip_configurations().all(|one| !one.address.contains('/') || one.address.ends_with("/32"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Waits;
    use serde_json::json;

    const HOUR: f64 = 3600.0;

    /// The moments, in seconds after a start that reconciles all of them at once, at which NICs of idle nodes
    /// are read. The start may read all of them.
    fn reads(nodes: usize, is_listed: bool, hours: f64, reads_all: bool) -> Vec<f64> {
        let start = Instant::now();
        let often = (!is_listed).then_some(Waits::FULL.unlisted);
        let mut reads = vec![];
        for node in (0..nodes).map(|index| format!("aks-pool-12345678-vmss{index:06}")) {
            let (mut known, mut now) = (reads_all.then_some(start), start);
            while now < start + Duration::from_secs_f64(hours * HOUR) {
                if Recheck::after(&node, often, known, start).is_due(now) {
                    reads.push(now.duration_since(start).as_secs_f64());
                    known = Some(now);
                }
                now += Recheck::after(&node, often, known, start).due_in(now);
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
    fn a_nic_that_no_agent_checks_is_read_four_times_an_hour_and_no_more() {
        let (nodes, hours) = (1000, 24.0);
        let per_node_and_hour = reads(nodes, false, hours, false).len() as f64 / nodes as f64 / hours;
        assert!((3.9..=4.0).contains(&per_node_and_hour), "{per_node_and_hour}");
        let node = |address: &str, table: Option<&str>, silent_in: &str| -> NodeIPAllocation {
            let held = json!({"name": "vnp-1", "address": address});
            let interface = json!({"id": "i", "mac": "m", "primaryAddress": "10.0.0.4", "subnet": {"id": "s"}, "ipConfigurations": [held]});
            let spec = json!({"nodeUID": "u", "bootID": "b", "pool": "p", "cooldown": "30s", "interfaces": [interface], "routeTableID": table});
            let status = json!({"bootID": silent_in, "metadataSilent": true});
            serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": spec, "status": status}))
                .unwrap()
        };
        let is_listed = |address, table, silent_in| is_listed(&node(address, table, silent_in));
        assert!(is_listed("10.0.0.5/32", None, "a") && is_listed("10.0.0.5", None, "a"));
        assert!(!is_listed("10.0.0.16/28", None, "a") && !is_listed("10.0.0.5/32", Some("table"), "a"));
        assert!(!is_listed("10.0.0.5/32", None, "b"), "the metadata service is closed to the agent");
    }

    /// Whenever the service falls silent and whenever the NIC is wiped, the NIC is read within a quarter of
    /// an hour, once the agent has reported it; and an agent that reports now this and now that costs no more
    /// reads.
    #[test]
    fn a_node_whose_metadata_service_falls_silent_has_its_nic_read_within_a_quarter_of_an_hour() {
        let (start, often) = (Instant::now(), Waits::FULL.unlisted);
        let second = Duration::from_secs(1);
        for after in (0..20_000).step_by(100) {
            let known = start + after * second;
            let due = Recheck::after("node-1", Some(often), Some(known), start).due;
            assert!(due <= known + often && due > known, "{:?}", due - known);
        }
        let (mut known, mut reads) = (start, 0);
        for minute in 0..600 {
            let (now, wait) = (start + minute * 60 * second, (minute % 2 == 0).then_some(often));
            if Recheck::after("node-1", wait, Some(known), start).is_due(now) {
                (known, reads) = (now, reads + 1);
            }
        }
        assert!((36..=40).contains(&reads), "{reads} in ten hours");
    }

    /// Writes and reads of the one that serves, a hundred of them, make no difference.
    #[test]
    fn where_a_vm_has_other_nics_all_of_them_are_read_every_four_to_eight_hours() {
        let (start, often) = (Instant::now(), Waits::FULL.unlisted);
        let node = |elsewhere: u32| -> NodeIPAllocation {
            let spec = json!({"nodeUID": "u", "pool": "p", "cooldown": "30s", "elsewhere": elsewhere});
            serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": spec})).unwrap()
        };
        let reads = |elsewhere: u32, touched: bool| {
            let node = node(elsewhere);
            let (mut known, mut all, mut now) = (Known::of(&node), 0, start);
            while now < start + Duration::from_secs(240 * 3600) {
                let recheck = Recheck::of(&node, &known, start, often);
                if recheck.are_all_due(now) {
                    (known.at, known.all_at, all) = (Some(now), Some(now), all + 1);
                } else if recheck.is_due(now) || touched {
                    known.at = Some(now);
                }
                now += Recheck::of(&node, &known, start, often).due_in(now);
            }
            all
        };
        assert_eq!((reads(0, false), reads(0, true)), (0, 0));
        for all in [reads(1, false), reads(1, true)] {
            assert!((30..=60).contains(&all), "{all} in 240 hours");
        }
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
        let wait = |node| Recheck::after(node, None, Some(start), start).due - start;
        assert_eq!(wait("node-1"), wait("node-1"));
        assert_ne!(wait("node-1"), wait("node-2"));
        assert!(wait("node-1") >= RECHECK && wait("node-1") < 2 * RECHECK);
    }

    #[test]
    fn a_recheck_that_is_held_back_does_not_requeue_at_once() {
        let start = Instant::now();
        let now = start + 3 * RECHECK;
        let recheck = Recheck::after("node-1", None, Some(start), start);
        assert!(recheck.is_due(now));
        assert_eq!(recheck.due_in(now), REQUEUE);
    }
}
