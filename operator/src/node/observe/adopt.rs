//! The ipConfigurations that other network plugins have left on a NIC, and when they may go: the pool must
//! allow it, and every pod of the node must have an address of ours. Pure.

use std::collections::HashSet;

use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::pool::Adopt;

use crate::azure::Nic;
use crate::demand::Uid;
use crate::node::lag::{Lag, lag};
use crate::node::memory::others::Found;

/// How others' ipConfigurations on a NIC are treated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adoption {
    /// The agent has named the pods that have an address of ours.
    pub is_answered: bool,
    /// To be removed now, by name.
    pub ready: Vec<String>,
    /// Whether there is any to remove. None is while a pod of the node has no address of ours, since it may
    /// use one of those.
    pub is_left: bool,
    /// The names of those that stay for good: something is attached to them.
    pub attached: Vec<String>,
}

/// `None` unless the pool asks for it. `bound` are the UIDs of the node's pods that need an address,
/// `boot_id` is the node's boot.
///
/// Only an answer of the agent's counts, to a `spec` that asks for it: it is newer than the read of the NIC
/// that found something to remove. Later pods do no harm: a pod that has had an address of ours was wired by
/// our plugin and uses none of others'; a pod whose address isn't known yet keeps everything where it is.
pub fn adoption(
    adopt: Adopt,
    bound: &HashSet<Uid>,
    allocation: &NodeIPAllocation,
    boot_id: &str,
    (nic, found): (&Nic, &Found),
) -> Option<Adoption> {
    if adopt == Adopt::Nothing {
        return None;
    }
    let is_asked = allocation.spec.report_holders && found.is_past(allocation);
    let is_answer = is_asked && lag(allocation, boot_id) == Lag::None;
    let status = allocation.status.as_ref().filter(|_| is_answer);
    let holders = status.into_iter().flat_map(|status| &status.holders);
    let assigned: HashSet<Uid> = holders.map(|one| Uid::of(&one.pod_uid)).collect();
    let are_unused = is_answer && bound.is_subset(&assigned);
    Some(Adoption {
        is_answered: is_answer,
        ready: if are_unused { nic.others.idle.clone() } else { vec![] },
        is_left: !nic.others.idle.is_empty(),
        attached: nic.others.attached.clone(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::azure::Others;
    use crate::azure::sample_nic;

    /// `asked` and `taken_up` are whether `spec` asks, and the generation that the agent has answered to; the
    /// current one is 3.
    fn decided(bound: &[&str], assigned: &[&str], boot_id: &str, asked: bool, taken_up: i64) -> Adoption {
        let nic = Nic {
            others: Others { idle: vec!["ipconfig2".into()], attached: vec!["ipconfig3".into()] },
            ..sample_nic(&[])
        };
        let bound = bound.iter().map(|uid| Uid::of(uid)).collect();
        let holders: Vec<_> = assigned
            .iter()
            .enumerate()
            .map(|(n, uid)| json!({"address": format!("10.0.0.{}", n + 5), "podUID": uid, "sandbox": "s"}))
            .collect();
        let allocation: NodeIPAllocation = serde_json::from_value(json!({
            "metadata": {"name": "n", "generation": 3},
            "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s", "reportHolders": asked},
            "status": {"bootID": "b1", "observedGeneration": taken_up, "holders": holders},
        }))
        .unwrap();
        let read = (&nic, &Found::default());
        assert_eq!(adoption(Adopt::Nothing, &bound, &allocation, boot_id, read), None);
        adoption(Adopt::Secondaries, &bound, &allocation, boot_id, read).unwrap()
    }

    fn decide(bound: &[&str], assigned: &[&str], boot_id: &str) -> Adoption {
        decided(bound, assigned, boot_id, true, 3)
    }

    #[test]
    fn a_report_that_is_no_answer_to_the_spec_that_asks_removes_nothing() {
        let ready = |asked, taken_up| {
            let decided = decided(&["a"], &["a"], "b1", asked, taken_up);
            (decided.ready.len(), decided.is_answered)
        };
        assert_eq!(ready(true, 3), (1, true));
        assert_eq!(ready(true, 2), (0, false));
        assert_eq!(ready(false, 3), (0, false));
    }

    #[test]
    fn who_is_asked_already_for_another_reason_is_asked_anew_once_something_was_found() {
        let at = |generation: i64, asks: bool| -> NodeIPAllocation {
            let spec = json!({"nodeUID": "u", "pool": "p", "cooldown": "30s", "reportHolders": asks});
            let status = json!({"bootID": "b", "observedGeneration": generation});
            let metadata = json!({"name": "n", "generation": generation});
            serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status})).unwrap()
        };
        let nic = |idle: &[&str]| Nic {
            others: Others { idle: idle.iter().map(|&name| name.into()).collect(), attached: vec![] },
            ..sample_nic(&[])
        };
        let mut found = Found::default();
        let mut read = |idle: &[&str], object: &NodeIPAllocation| {
            found.note(&nic(idle), object);
            let seen = (&nic(idle), &found);
            let adoption = adoption(Adopt::Secondaries, &HashSet::new(), object, "b", seen).unwrap();
            (adoption.ready.len(), found.must_ask_anew(object))
        };
        assert_eq!(read(&[], &at(3, true)), (0, false));
        assert_eq!(read(&["a"], &at(3, true)), (0, true));
        assert_eq!(read(&["a"], &at(4, false)), (0, false));
        assert_eq!(read(&["a"], &at(5, true)), (1, false));
        assert_eq!(read(&["a", "b"], &at(5, true)), (0, true), "one more");
        assert_eq!(read(&["b"], &at(7, true)), (1, false), "one less");
    }

    #[test]
    fn nothing_is_adopted_while_a_pod_has_no_address_of_ours_however_many_are_assigned() {
        // The ledger may still have an entry of a pod that is gone.
        let waits = decide(&["a", "b"], &["a", "gone"], "b1");
        assert_eq!((waits.ready.len(), waits.is_answered, waits.is_left), (0, true, true));
        let ready = decide(&["a", "b"], &["a", "b", "gone"], "b1");
        assert_eq!(ready.ready, ["ipconfig2"]);
        assert_eq!(ready.attached, ["ipconfig3"]);
        assert_eq!(decide(&[], &[], "b1").ready, ["ipconfig2"]);
    }

    #[test]
    fn addresses_of_pods_from_before_the_boot_do_not_count() {
        assert_eq!(decide(&["a"], &["a"], "b1").ready, ["ipconfig2"]);
        assert!(decide(&["a"], &["a"], "b2").ready.is_empty());
    }
}
