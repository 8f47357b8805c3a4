//! The condition `Attached`: the attachments that pods have, or wait for. Pure.

use crate::node::memory::attaching::Attaching;
use crate::planner::attachments::Plan;
use vnetpool_crds::reason::Reason;
use vnetpool_crds::verdict::Verdict;

/// So many pods are named in a message.
const NAMED: usize = 3;

/// `None` while no pod asks for anything.
pub fn condition(plan: &Plan, attaching: &Attaching) -> Option<Verdict> {
    let some = |pods: Vec<String>| {
        let others = if pods.len() > NAMED { " And others." } else { "" };
        pods.into_iter().take(NAMED).collect::<Vec<_>>().join(" ") + others
    };
    let Plan { invalid, attached, pending, foreign, .. } = plan;
    if !invalid.is_empty() {
        let pods = invalid.iter().map(|one| format!("Pod {}: {}", one.pod, one.message)).collect();
        return Some(Verdict::no(Reason::Unavailable, some(pods)));
    }
    let mut refused: Vec<_> = attaching.refused.values().collect();
    refused.sort_by(|a, b| a.0.cmp(&b.0));
    if let Some((_, first)) = refused.first() {
        let pods = refused.iter().map(|(pod, setback)| format!("Pod {pod}: {}", setback.message)).collect();
        return Some(Verdict::no(first.reason, some(pods)));
    }
    let public = attaching.undeleted.values().chain(attaching.unread.values());
    let kept = public.chain(attaching.undetached.values()).min_by(|a, b| a.message.cmp(&b.message));
    if let Some(setback) = attaching.setback.as_ref().or(kept) {
        return Some(Verdict::no(setback.reason, &setback.message));
    }
    if !foreign.is_empty() {
        let mut addresses: Vec<String> = foreign.iter().map(ToString::to_string).collect();
        addresses.sort();
        let message = format!(
            "somebody else than Vnetpool has attached something to {}: no further pod gets such an address until it is detached in Azure.",
            addresses.join(", ")
        );
        return Some(Verdict::no(Reason::AttachedByOthers, message));
    }
    match (pending, attached) {
        (0, 0) => None,
        (0, _) => Some(Verdict::yes(Reason::Attached, "all pods that ask for something attached have it")),
        (_, _) => Some(Verdict::no(Reason::Attaching, "some pods are yet to get what they ask for")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::azure::Error;
    use crate::node::setback::{Setback, Stage};

    #[test]
    fn a_public_address_that_azure_keeps_is_reported_though_no_pod_wants_one() {
        let (plan, mut attaching) = (Plan::default(), Attaching::default());
        assert!(condition(&plan, &attaching).is_none());
        let id = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/publicIPAddresses/vnp-u";
        let locked = Error::Locked { resource: id.into(), scope: id.into(), message: "m".into() };
        let refusal = Setback::after(None, Stage::Write, &locked, Instant::now());
        attaching.undeleted.insert(id.parse().unwrap(), refusal.clone());
        let reported = Some(Verdict::no(refusal.reason, &refusal.message));
        assert_eq!(condition(&plan, &attaching), reported);
        // And one that can't be read.
        attaching.unread = std::mem::take(&mut attaching.undeleted);
        assert_eq!(condition(&plan, &attaching), reported);
        // And one that can't be detached.
        attaching.unread.clear();
        attaching.undetached.insert("vnp-1".into(), refusal);
        assert_eq!(condition(&plan, &attaching), reported);
    }
}
