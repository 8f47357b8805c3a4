//! When a NIC that nothing has happened to is read again: somebody else may have changed it. Pure.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::time::{Duration, Instant};

/// After this long, or up to twice as long: the reads of many nodes must not come at once.
const RECHECK: Duration = Duration::from_secs(4 * 3600);
/// Even a node that nothing happens to is looked at again after this long; that alone asks Azure nothing.
pub const LOOK_AGAIN: Duration = Duration::from_secs(3600);

/// How long after it was last known the NIC is to be read again. Differs by node, but not from one time to
/// the next.
fn interval(node: &str) -> Duration {
    let spread = BuildHasherDefault::<DefaultHasher>::default().hash_one(node) % RECHECK.as_millis() as u64;
    RECHECK + Duration::from_millis(spread)
}

pub fn is_due(node: &str, known: Instant, now: Instant) -> bool {
    known + interval(node) <= now
}

/// When to look at a node again though nothing has happened: when its NIC is due, so that the spread isn't
/// lost to the beat in which all nodes are looked at after a start.
pub fn next_look(node: &str, known: Instant, now: Instant) -> Duration {
    let due = (known + interval(node)).saturating_duration_since(now);
    // What is due and wasn't done is held back by an error, which has a time of its own.
    if due.is_zero() { LOOK_AGAIN } else { due.min(LOOK_AGAIN) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: f64 = 3600.0;

    /// The moments, in seconds after a start that looks at all of them at once, at which NICs of idle nodes
    /// are read.
    fn reads(nodes: usize, hours: f64) -> Vec<f64> {
        let start = Instant::now();
        let mut reads = vec![];
        for node in (0..nodes).map(|index| format!("aks-pool-12345678-vmss{index:06}")) {
            let (mut known, mut now) = (start, start);
            while now < start + Duration::from_secs_f64(hours * HOUR) {
                if is_due(&node, known, now) {
                    reads.push(now.duration_since(start).as_secs_f64());
                    known = now;
                }
                now += next_look(&node, known, now);
            }
        }
        reads
    }

    #[test]
    fn an_idle_node_costs_a_quarter_of_a_request_an_hour_at_most() {
        let (nodes, hours) = (1000, 240.0);
        let per_node_and_hour = reads(nodes, hours).len() as f64 / nodes as f64 / hours;
        assert!((0.12..=0.25).contains(&per_node_and_hour), "{per_node_and_hour}");
    }

    #[test]
    fn no_minute_sees_many_of_the_rechecks() {
        let reads = reads(1000, 24.0);
        let mut minutes = [0; 24 * 60];
        for at in &reads {
            minutes[(at / 60.0) as usize] += 1;
        }
        // 1,000 nodes within the first four hours in which any is due are 4 a minute.
        assert!(minutes.iter().all(|count| *count <= 16), "{:?}", minutes.iter().max());
    }

    #[test]
    fn a_node_has_an_interval_of_its_own() {
        assert_eq!(interval("node-1"), interval("node-1"));
        assert_ne!(interval("node-1"), interval("node-2"));
        assert!(interval("node-1") >= RECHECK && interval("node-1") < 2 * RECHECK);
    }

    #[test]
    fn a_recheck_that_is_held_back_is_not_looked_for_all_the_time() {
        let known = Instant::now();
        let now = known + 3 * RECHECK;
        assert!(is_due("node-1", known, now));
        assert_eq!(next_look("node-1", known, now), LOOK_AGAIN);
    }
}
