//! The report of sandboxes that outlive their pods. They are found and reported, never ended: an address in
//! doubt is in use.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::{Api, ResourceExt};
use vnetpool_apiserver::reading::Reading;
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::allocation::Holder;
use vnetpool_crds::condition::{self, SANDBOXES_ENDED};
use vnetpool_crds::reason::Reason;
use vnetpool_crds::verdict::{Verdict, name_some};

use crate::context::Context;
use crate::node::error::Error;
use crate::node::lag::{Lag, lag};
use crate::node::memory::outlived::{Finding, Outlived, Suspect};
use crate::node_object::Node;

/// How soon `spec` is published anew when no names are needed any more.
const NAMELESS: Duration = Duration::from_secs(1);
/// So many are named; a node that ends no sandbox at all has more than fit.
const NAMED: usize = 10;

/// The report of the node's sandboxes, if a new one is due, and the time until the next check. Reads the
/// object whole when there are others to name than before: of a holder, only address and UID are kept in
/// memory.
///
/// Ordinarily an agent only counts: a list of all pods would be written anew with each of them. So the counts
/// are compared, and names asked for when they can't be right.
pub async fn condition(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    node: &Node,
    outlived: &mut Outlived,
    now: Instant,
) -> Result<(Option<Verdict>, Option<Duration>), Error> {
    let name = allocation.name_any();
    let pods = ctx.cluster.bound_pods(&name);
    let condition = condition::find(allocation.conditions(), SANDBOXES_ENDED);
    let status = allocation.status.as_ref().filter(|status| status.boot_id == node.boot_id());
    let is_answered = allocation.spec.report_holders && lag(allocation, node.boot_id()) == Lag::None;
    let Some(holders) = status.filter(|_| is_answered).map(|status| status.holders.as_slice()) else {
        // An operator that has just started has to learn whether it has ended.
        outlived.asks |= condition.is_some_and(|condition| condition.status == "False");
        let exceeds = status.is_some_and(|status| status.pods as usize > pods.len());
        let counted_at = status.and_then(|status| status.counted_at.as_ref()).map(|at| at.0);
        return Ok((None, outlived.count(exceeds, counted_at, (now, Timestamp::now()))));
    };
    let asked = outlived.asks;
    let (finding, next) = outlived.observe(holders, &pods, now);
    // The names are no longer asked for once `spec` has been published without.
    let next = if asked && !outlived.asks { Some(NAMELESS) } else { next };
    let due = match finding {
        Finding::Due(due) => due,
        Finding::Early => return Ok((None, next)),
        Finding::Ended => {
            outlived.reported = None;
            let ended =
                || Verdict::yes(Reason::Ended, "no address is held by the sandbox of a pod that is gone");
            return Ok((condition.is_some().then(ended), next));
        }
    };
    let reported = outlived.reported.take().filter(|(whom, _)| *whom == due);
    let message = match reported {
        Some((_, message)) => message,
        None => {
            let api = Api::<Reading<NodeIPAllocation>>::all(ctx.client.clone());
            let whole = ctx.writes.read(api.get(&name)).await;
            let whole = whole.and_then(Reading::readable).map_err(Error::Report)?;
            let status = whole.status.unwrap_or_default();
            message(&name, &due, &status.holders)
        }
    };
    outlived.reported = Some((due, message.clone()));
    Ok((Some(Verdict::no(Reason::SandboxLeft, message)), next))
}

/// Names node, pods, addresses and sandboxes, the likely causes and the remedy. A pod that `holders` doesn't
/// list any more is named by its UID.
fn message(node: &str, due: &BTreeSet<Suspect>, holders: &[Holder]) -> String {
    let name = |(address, uid): &Suspect| {
        let one = holders.iter().find(|one| one.address == *address && one.pod_uid == *uid);
        let pod = one.map(|one| one.pod.as_str()).filter(|pod| !pod.is_empty());
        let sandbox = one.and_then(|one| one.sandbox.split_once('/')).map(|(id, _)| id);
        match (pod, sandbox) {
            (Some(pod), Some(sandbox)) => format!("{address} of pod {pod} (sandbox {sandbox})"),
            _ => format!("{address} of the pod with UID {uid}"),
        }
    };
    format!(
        "node {node} reports addresses in use by pods that have ended or are no more: {}. They stay in use as long as their \
         sandboxes are there. If crictl pods shows them on the node, end them there (crictl stopp SANDBOX, then crictl rmp \
         SANDBOX); if not, see whether the agent on the node still runs and reports.",
        name_some(due.iter().map(name), NAMED)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::memory::outlived::tests::assigned;

    #[test]
    fn the_message_names_node_pod_address_sandbox_and_remedy_and_has_an_end() {
        let node: Vec<Holder> =
            (0..12).map(|n| assigned(&format!("10.0.0.{}", n + 10), &format!("web-{n}"))).collect();
        let due: BTreeSet<Suspect> =
            node.iter().map(|one| (one.address.clone(), one.pod_uid.clone())).collect();
        let text = message("n1", &due, &node[1..]);
        for part in [
            "node n1",
            "10.0.0.10 of the pod with UID web-0",
            "10.0.0.11 of pod default/web-1 (sandbox sandbox-web-1)",
            " and more",
            "crictl stopp",
        ] {
            assert!(text.contains(part), "{part} isn't in {text}");
        }
        assert!(!text.contains("web-11"), "{text}");
    }
}
