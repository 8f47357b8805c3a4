//! The conditions `SubnetExhausting` and `NetworkExhausting`: is a subnet about to run out of addresses, or a
//! virtual network? Pure.

mod network;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use vnetpool_crds::condition::{self, SUBNET_EXHAUSTING};
use vnetpool_crds::pool::SubnetUse;
use vnetpool_crds::reason::Reason;
use vnetpool_crds::verdict::Verdict;
use vnetpool_crds::{NodeIPPool, NodeIPPoolStatus};

pub use network::report as report_networks;

use crate::network::{FreeAddresses, Hint, Subnet};

/// Shows in the status the known facts about its subnets, and the forecast.
pub fn report(
    pool: &NodeIPPool,
    status: &mut NodeIPPoolStatus,
    known: impl Fn(&str) -> Option<Subnet>,
    now: Timestamp,
) {
    let mut frees = vec![];
    for subnet in &mut status.subnets {
        let known = known(&subnet.id);
        subnet.size = known.as_ref().map(|known| known.size);
        let free = known.map(|known| known.free).unwrap_or_default();
        if let FreeAddresses::Counted(free) = free {
            subnet.free = Some(free);
        }
        frees.push(free);
    }
    // Where nodes have no more than NICs that they have left, nobody needs an address, and nobody asks Azure.
    let all = status.subnets.iter().zip(&frees);
    let in_use: Vec<(&SubnetUse, &FreeAddresses)> = all.filter(|(subnet, _)| subnet.nodes > 0).collect();
    let before = condition::find(&status.conditions, SUBNET_EXHAUSTING);
    if let Some(verdict) = forecast(pool, &in_use, before) {
        let next = verdict.condition(SUBNET_EXHAUSTING, pool.metadata.generation, now);
        condition::set(&mut status.conditions, next);
    }
}

/// `None` leaves the last report.
fn forecast(
    pool: &NodeIPPool,
    subnets: &[(&SubnetUse, &FreeAddresses)],
    before: Option<&Condition>,
) -> Option<Verdict> {
    let percent = pool.spec.subnet_exhausting_percent;
    if percent == 0 {
        return Some(Verdict::no(Reason::Off, "subnetExhaustingPercent of this pool is 0"));
    }
    let was_exhausting = before.is_some_and(|before| before.status == "True");
    let short = subnets.iter().filter(|(subnet, _)| is_short(subnet, percent, was_exhausting));
    let short: Vec<&str> = short.map(|(subnet, _)| subnet.id.as_str()).collect();
    if !short.is_empty() {
        return Some(Verdict::yes(
            Reason::FewFree,
            format!(
                "of the addresses of {} fewer are free than the {percent} % of NodeIPPool {}; status.subnets counts them. Free up \
                 addresses there, lower minimum, warm or maximum of the pools that use it, or give new nodes another subnet.",
                short.join(", "),
                pool.name_any()
            ),
        ));
    }
    let frees = subnets.iter().map(|(subnet, free)| (*free, subnet.id.as_str()));
    match uncounted(frees, before.is_some()) {
        Some(verdict) => verdict,
        None if subnets.is_empty() => Some(Verdict::no(Reason::NoNodes, "no node is served by this pool")),
        // Without counts, each of which would be news: they are in status.subnets.
        None => Some(Verdict::no(
            Reason::EnoughFree,
            format!("each subnet has more than {percent} % of its addresses free"),
        )),
    }
}

/// The verdict while not all of these are known. `Some(None)` leaves the last report.
fn uncounted<'a, T: PartialEq + 'a>(
    hints: impl Iterator<Item = (&'a Hint<T>, &'a str)>,
    is_reported: bool,
) -> Option<Option<Verdict>> {
    let mut is_pending = false;
    for (hint, id) in hints {
        match hint {
            Hint::Unreadable { reason, message } => {
                let message = format!(
                    "how many addresses are free in {id} isn't known; nothing else suffers. {message}"
                );
                return Some(Some(Verdict::unknown(*reason, message)));
            }
            Hint::Uncounted => {
                let message = format!("Azure doesn't report how many addresses are free in {id}");
                return Some(Some(Verdict::unknown(Reason::UsageUnknown, message)));
            }
            Hint::Pending => is_pending = true,
            Hint::Counted(_) => {}
        }
    }
    // The last report stands until Azure has answered, in a moment: otherwise each start of the operator
    // would turn it.
    is_pending
        .then(|| (!is_reported).then(|| Verdict::unknown(Reason::Pending, "Azure is about to be asked")))
}

/// A subnet that was short stays so until a quarter more is free: addresses come and go all the time around
/// the limit.
fn is_short(subnet: &SubnetUse, percent: u32, was_short: bool) -> bool {
    let (Some(size), Some(free)) = (subnet.size, subnet.free) else { return false };
    is_below(free, size, percent, was_short)
}

fn is_below(free: u32, size: u32, percent: u32, was_short: bool) -> bool {
    let limit = u64::from(size) * u64::from(percent) * if was_short { 125 } else { 100 };
    u64::from(free) * 100 * 100 < limit
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ID: &str = "/s/subnets/nodes";

    fn pool(percent: u32) -> NodeIPPool {
        let spec = json!({ "subnetExhaustingPercent": percent });
        NodeIPPool::new("p", serde_json::from_value(spec).unwrap())
    }

    fn status(before: &[Condition]) -> NodeIPPoolStatus {
        let subnets = vec![SubnetUse { id: ID.into(), nodes: 1, held: 4, ..Default::default() }];
        NodeIPPoolStatus { subnets, conditions: before.to_vec(), ..Default::default() }
    }

    /// The verdict for this much knowledge.
    fn reported(percent: u32, known: Option<Subnet>, before: &[Condition]) -> NodeIPPoolStatus {
        let mut status = status(before);
        report(&pool(percent), &mut status, |_| known.clone(), Timestamp::UNIX_EPOCH);
        status
    }

    fn known(free: u32) -> Option<Subnet> {
        Some(Subnet { size: 200, free: FreeAddresses::Counted(free) })
    }

    fn exhausting(status: &NodeIPPoolStatus) -> &Condition {
        condition::find(&status.conditions, SUBNET_EXHAUSTING).unwrap()
    }

    #[test]
    fn a_subnet_is_exhausting_below_the_share_and_not_at_it() {
        for (free, turned) in [(20, "False"), (19, "True"), (0, "True"), (200, "False")] {
            let status = reported(10, known(free), &[]);
            assert_eq!(exhausting(&status).status, turned, "{free}");
            assert_eq!((status.subnets[0].size, status.subnets[0].free), (Some(200), Some(free)));
        }
    }

    #[test]
    fn the_message_names_the_subnet_the_limit_and_the_remedy() {
        let status = reported(10, known(3), &[]);
        let condition = exhausting(&status);
        assert_eq!(condition.reason, "FewFree");
        assert_eq!(condition, exhausting(&reported(10, known(5), &[])), "another figure is no news");
        for part in [ID, "10 % of NodeIPPool p", "lower minimum"] {
            assert!(condition.message.contains(part), "{part}: {}", condition.message);
        }
    }

    #[test]
    fn a_subnet_around_the_limit_does_not_flap() {
        let mut before = reported(10, known(19), &[]).conditions;
        for (free, turned) in [(20, "True"), (24, "True"), (25, "False"), (20, "False"), (19, "True")] {
            before = reported(10, known(free), &before).conditions;
            assert_eq!(before[0].status, turned, "{free}");
        }
    }

    #[test]
    fn zero_percent_switches_it_off() {
        assert_eq!(exhausting(&reported(0, known(0), &[])).status, "False");
    }

    #[test]
    fn a_subnets_last_forecast_stands_while_azure_was_not_asked() {
        let pending = Some(Subnet { size: 200, free: FreeAddresses::Pending });
        assert_eq!(exhausting(&reported(10, pending.clone(), &[])).reason, "Pending");
        let before = reported(10, known(3), &[]).conditions;
        assert_eq!(exhausting(&reported(10, pending, &before)), &before[0]);
        assert_eq!(exhausting(&reported(10, None, &before)), &before[0]);
    }

    #[test]
    fn a_subnet_in_which_nodes_have_no_more_than_left_nics_is_not_forecast() {
        for former in [None, known(3)] {
            let mut status = status(&[]);
            let left =
                SubnetUse { id: "/former".into(), held: 4, on_left_interfaces: 4, ..Default::default() };
            status.subnets.push(left);
            let known = |id: &str| if id == ID { known(100) } else { former.clone() };
            report(&pool(10), &mut status, known, Timestamp::UNIX_EPOCH);
            assert_eq!(exhausting(&status).reason, "EnoughFree", "{former:?}");
        }
    }

    #[test]
    fn without_permission_the_hint_is_absent_and_the_condition_names_the_grant() {
        let denied = FreeAddresses::Unreadable {
            reason: Reason::PermissionDenied,
            message: "Grant usages/read".into(),
        };
        let status = reported(10, Some(Subnet { size: 200, free: denied }), &[]);
        let condition = exhausting(&status);
        assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("Unknown", "PermissionDenied"));
        assert!(condition.message.contains("Grant usages/read") && condition.message.contains(ID));
        assert_eq!((status.subnets[0].size, status.subnets[0].free), (Some(200), None));
    }

    #[test]
    fn a_subnet_that_azure_has_no_figure_for_is_unknown() {
        let status = reported(10, Some(Subnet { size: 200, free: FreeAddresses::Uncounted }), &[]);
        assert_eq!(exhausting(&status).status, "Unknown");
    }
}
