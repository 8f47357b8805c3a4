//! What somebody else has taken off a NIC, and how often: a template or a tool that owns the NIC takes off
//! whatever it doesn't list, each time it is applied. Pure.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::reason::Reason;

use crate::azure::Nic;
use crate::verdict::Verdict;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// So often in a day is no accident.
const PATTERN: usize = 3;

/// How often it has happened. Lost, it counts anew.
#[derive(Clone, Debug, Default)]
pub struct Wipes {
    at: VecDeque<Instant>,
    /// What is missing and was counted: until `spec` forgets it, it is seen again.
    counted: BTreeSet<String>,
}

impl Wipes {
    /// These names are missing now.
    pub fn note(&mut self, missing: BTreeSet<String>, now: Instant) {
        if !missing.is_subset(&self.counted) {
            self.at.push_back(now);
        }
        self.counted = missing;
        while self.at.len() > PATTERN || self.at.front().is_some_and(|at| *at + DAY <= now) {
            self.at.pop_front();
        }
    }

    /// What there is to say of it.
    pub fn verdict(&self, nic: &str) -> Option<Verdict> {
        let is_pattern = self.at.len() >= PATTERN;
        is_pattern.then(|| {
            let message = format!(
                "somebody has taken Vnetpool's addresses off {nic} {PATTERN} times within a day, as a template or Terraform does \
                 that owns the NIC and lists its ipConfigurations. Have it leave them alone (Terraform: lifecycle {{ \
                 ignore_changes = [ip_configuration] }}; Bicep and ARM templates: deploy the NIC once, not again). Until then \
                 pods are cut off each time."
            );
            Verdict::no(Reason::TakenOffByOthers, message)
        })
    }
}

/// The names that `spec` has and nobody has given up, and that the NIC lacks.
pub fn missing(allocation: &NodeIPAllocation, nic: &Nic) -> BTreeSet<String> {
    let is_it =
        |known: &&vnetpool_crds::allocation::Interface| known.id.eq_ignore_ascii_case(nic.id.as_str());
    let was = allocation.spec.serving().filter(is_it).into_iter().flat_map(|known| &known.ip_configurations);
    let given_up = |name: &str| {
        allocation.status.iter().any(|status| status.relinquished.iter().any(|given_up| given_up == name))
    };
    let is_there = |name: &str| nic.ip_configurations.iter().any(|one| one.name == name);
    was.map(|one| &one.name).filter(|name| !given_up(name) && !is_there(name)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::sample_nic;
    use serde_json::json;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn what_nobody_gave_up_and_the_nic_lacks_is_missing() {
        let nic = sample_nic(&[("vnp-1", "10.0.0.5/32")]);
        let configurations =
            ["vnp-1", "vnp-2", "vnp-3"].map(|name| json!({"name": name, "address": "10.0.0.5/32"}));
        let allocation = |id: &str| -> NodeIPAllocation {
            let interface = json!({"id": id, "mac": "m", "primaryAddress": "10.0.0.4", "subnet": {"id": "s"}, "ipConfigurations": configurations});
            serde_json::from_value(json!({
                "metadata": {"name": "n"},
                "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s", "interfaces": [interface]},
                "status": {"bootID": "b", "relinquished": ["vnp-2"]},
            }))
            .unwrap()
        };
        assert_eq!(missing(&allocation(&nic.id.as_str().to_uppercase()), &nic), names(&["vnp-3"]));
        assert_eq!(missing(&allocation("/another"), &nic), names(&[]));
    }

    #[test]
    fn the_third_time_in_a_day_is_a_pattern_and_a_day_later_it_is_none() {
        let (mut wipes, start) = (Wipes::default(), Instant::now());
        let hour = Duration::from_secs(3600);
        for (hours, name) in [(0, "vnp-1"), (1, "vnp-2"), (9, "vnp-3")] {
            assert!(wipes.verdict("nic").is_none());
            let now = start + hours * hour;
            wipes.note(names(&[name]), now);
            // It is the same until it is published.
            wipes.note(names(&[name]), now);
            wipes.note(names(&[]), now);
        }
        assert!(wipes.verdict("nic").is_some());
        wipes.note(names(&[]), start + 24 * hour);
        assert!(wipes.verdict("nic").is_none());
        // Two of the last day and a new one.
        wipes.note(names(&["vnp-4"]), start + 24 * hour);
        assert!(wipes.verdict("nic").is_some());
    }
}
