//! How often others have taken addresses off a NIC: a template or a tool that owns the NIC takes off every
//! ipConfiguration that it doesn't list, each time it is applied. `spec` has the times, so that the next
//! operator goes on counting. Pure.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use vnetpool_crds::NodeIPAllocationSpec;
use vnetpool_crds::reason::Reason;
use vnetpool_crds::verdict::Verdict;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// So often in a day is no accident.
const PATTERN: usize = 3;

/// The times for `spec`, where it has happened once more as the case may be. The published `spec` doesn't
/// name the missing addresses any more, so none is counted twice.
pub fn noted(before: &[Time], is_taken_off: bool, now: Timestamp) -> Vec<Time> {
    let mut times = before.to_vec();
    if is_taken_off {
        times.push(Time(now));
        times.drain(..times.len().saturating_sub(PATTERN));
    }
    times
}

/// The message about it, and until when it stands.
pub fn verdict(spec: &NodeIPAllocationSpec, now: Timestamp) -> Option<(Verdict, Duration)> {
    let [first, ..] = spec.taken_off_at.as_slice() else { return None };
    let left = DAY.checked_sub(now.duration_since(first.0).try_into().unwrap_or_default())?;
    if left.is_zero() || spec.taken_off_at.len() < PATTERN {
        return None;
    }
    let nic = spec.serving().map_or("the NIC", |nic| &nic.id);
    let message = format!(
        "somebody has taken Vnetpool's addresses off {nic} {PATTERN} times within a day, as a template or Terraform does \
         that owns the NIC and lists its ipConfigurations. Have it leave them alone (Terraform: lifecycle {{ \
         ignore_changes = [ip_configuration] }}; Bicep and ARM templates: deploy the NIC once, not again). Until then \
         pods are cut off each time."
    );
    Some((Verdict::no(Reason::TakenOffByOthers, message), left))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_third_time_in_a_day_is_a_pattern_and_a_day_later_it_is_none() {
        let at = |hour: i64| Timestamp::UNIX_EPOCH + Duration::from_secs(hour as u64 * 3600);
        let mut spec: NodeIPAllocationSpec =
            serde_json::from_value(json!({"nodeUID": "u", "pool": "p", "cooldown": "30s"})).unwrap();
        let hours_left = |spec: &NodeIPAllocationSpec, hour| {
            verdict(spec, at(hour)).map(|(_, left)| left.as_secs() / 3600)
        };
        for hour in [0, 1, 9] {
            assert_eq!(hours_left(&spec, hour), None);
            spec.taken_off_at = noted(&spec.taken_off_at, true, at(hour));
            assert_eq!(noted(&spec.taken_off_at, false, at(hour)), spec.taken_off_at);
        }
        assert_eq!(hours_left(&spec, 9), Some(15));
        assert_eq!(hours_left(&spec, 24), None);
        // Two of the last day and a new one.
        spec.taken_off_at = noted(&spec.taken_off_at, true, at(24));
        assert_eq!((hours_left(&spec, 24), spec.taken_off_at.len()), (Some(1), 3));
    }
}
