//! `NetworkExhausting`: Azure takes so many private addresses in a virtual network, whatever its subnets have
//! free.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use vnetpool_crds::condition::{self, NETWORK_EXHAUSTING};
use vnetpool_crds::pool::{NETWORK_ADDRESSES, NetworkUse};
use vnetpool_crds::reason::Reason;
use vnetpool_crds::verdict::Verdict;
use vnetpool_crds::{NodeIPPool, NodeIPPoolStatus};

use super::{is_below, uncounted};
use crate::azure::{ResourceId, Usages, vnet_of};
use crate::network::Hint;
use crate::pool::blocks::Blocks;

/// A virtual network, and what is known of it.
struct Known {
    id: ResourceId,
    usages: Hint<Arc<Usages>>,
    /// How many addresses are taken, at least and at most, where Azure counts them.
    taken: Option<(u32, u32)>,
}

/// Shows in the status what is known of the networks around its subnets with nodes, and what that promises.
pub fn report(
    pool: &NodeIPPool,
    status: &mut NodeIPPoolStatus,
    usages: impl Fn(&ResourceId) -> Hint<Arc<Usages>>,
    blocks: &Blocks,
    now: Timestamp,
) {
    let in_use = status.subnets.iter().filter(|subnet| subnet.nodes > 0);
    let vnets = in_use.filter_map(|subnet| vnet_of(&subnet.id.parse().ok()?).ok());
    let mut seen = BTreeSet::new();
    let vnets = vnets.filter(|vnet| seen.insert(vnet.key()));
    let known: Vec<Known> = vnets.map(|id| Known::of(id, &usages, blocks)).collect();
    let shown = |one: &Known| NetworkUse {
        id: one.id.to_string(),
        limit: NETWORK_ADDRESSES,
        used: one.taken.map(|(_, at_most)| at_most),
    };
    status.networks = known.iter().map(shown).collect();
    let before = condition::find(&status.conditions, NETWORK_EXHAUSTING);
    if let Some(verdict) = forecast(pool, &known, before) {
        let next = verdict.condition(NETWORK_EXHAUSTING, pool.metadata.generation, now);
        condition::set(&mut status.conditions, next);
    }
}

impl Known {
    fn of(id: ResourceId, usages: impl Fn(&ResourceId) -> Hint<Arc<Usages>>, blocks: &Blocks) -> Known {
        let usages = usages(&id);
        let taken = match &usages {
            Hint::Counted(usages) => Some(blocks.taken(&id, usages)),
            _ => None,
        };
        Known { id, usages, taken }
    }
}

/// `None` leaves the last report.
fn forecast(pool: &NodeIPPool, known: &[Known], before: Option<&Condition>) -> Option<Verdict> {
    let percent = pool.spec.subnet_exhausting_percent;
    if percent == 0 {
        return Some(Verdict::no(Reason::Off, "subnetExhaustingPercent of this pool is 0"));
    }
    let was_short = before.is_some_and(|before| before.status == "True");
    let is_short =
        |taken: u32| is_below(NETWORK_ADDRESSES.saturating_sub(taken), NETWORK_ADDRESSES, percent, was_short);
    let taken = || known.iter().filter_map(|one| Some((one, one.taken?)));
    let short = taken().filter(|(_, (at_least, _))| is_short(*at_least));
    let short: Vec<&str> = short.map(|(one, _)| one.id.as_str()).collect();
    if !short.is_empty() {
        return Some(Verdict::yes(
            Reason::FewFree,
            format!(
                "of the {NETWORK_ADDRESSES} private addresses that Azure takes in {} fewer are left than the {percent} % of NodeIPPool {}, \
                 whatever the subnets have free. Use a pool of mode Prefix, whose blocks of 16 count as one address, lower \
                 minimum, warm or maximum of the pools that use it, or give new nodes another virtual network.",
                short.join(", "),
                pool.name_any()
            ),
        ));
    }
    if let Some((one, _)) = taken().find(|(_, (_, at_most))| is_short(*at_most)) {
        let message = format!(
            "{} is nearly full if Azure counts each block of 16 as one address, and isn't if it counts 16: the figures go with \
             both. See how many addresses its subnets and virtual machines have in all; Azure takes {NETWORK_ADDRESSES}.",
            one.id
        );
        return Some(Verdict::unknown(Reason::CountAmbiguous, message));
    }
    match uncounted(known.iter().map(|one| (&one.usages, one.id.as_str())), before.is_some()) {
        Some(verdict) => verdict,
        None if known.is_empty() => Some(Verdict::no(Reason::NoNodes, "no node is served by this pool")),
        None => Some(Verdict::no(
            Reason::EnoughFree,
            format!(
                "each virtual network has more than {percent} % of its {NETWORK_ADDRESSES} private addresses left"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::Usage;
    use crate::cluster::served::Served;
    use crate::cluster::served::tests::{VNET, node};
    use serde_json::json;
    use vnetpool_crds::pool::SubnetUse;

    /// What a pool reports of a network with these figures of the subnets `pods` and `others`, of which
    /// `pods` has so many blocks.
    fn reported(
        percent: u32,
        usages: Option<[(u32, u32); 2]>,
        blocks: u32,
        before: &[Condition],
    ) -> NodeIPPoolStatus {
        let spec = json!({ "subnetExhaustingPercent": percent });
        let pool = NodeIPPool::new("p", serde_json::from_value(spec).unwrap());
        let subnet =
            |name: &str| SubnetUse { id: format!("{VNET}/subnets/{name}"), nodes: 1, ..Default::default() };
        let left = SubnetUse { id: format!("{VNET}-former/subnets/left"), ..Default::default() };
        let subnets = vec![subnet("pods"), subnet("others"), left];
        let mut status = NodeIPPoolStatus { subnets, conditions: before.to_vec(), ..Default::default() };
        let usages = usages.map_or(Hint::Pending, |usages| {
            let all = ["pods", "others"].into_iter().zip(usages);
            Hint::Counted(Arc::new(
                all.map(|(name, (used, size))| (name.into(), Usage { used, size })).collect(),
            ))
        });
        let blocks = Blocks(Served::from_iter([&node("n", "p", "pods", blocks)]).blocks());
        report(&pool, &mut status, |_| usages.clone(), &blocks, Timestamp::UNIX_EPOCH);
        status
    }

    fn exhausting(status: &NodeIPPoolStatus) -> (&str, &str) {
        let condition = condition::find(&status.conditions, NETWORK_EXHAUSTING).unwrap();
        (&condition.status, &condition.reason)
    }

    const WIDE: u32 = 131_067;

    #[test]
    fn a_network_is_exhausting_by_the_sum_of_its_subnets_below_the_share_and_until_a_quarter_more_is_left() {
        // A tenth of the limit is 6,553.6, and a quarter more 8,192.
        let mut before = vec![];
        for (taken, turned) in
            [(58_982, "False"), (58_983, "True"), (57_345, "True"), (57_344, "False"), (58_900, "False")]
        {
            let status = reported(10, Some([(taken - 1000, WIDE), (1000, WIDE)]), 0, &before);
            assert_eq!(exhausting(&status).0, turned, "{taken}");
            assert_eq!(status.networks, [NetworkUse { id: VNET.into(), limit: 65_536, used: Some(taken) }]);
            before = status.conditions;
        }
        let status = reported(10, Some([(60_000, WIDE), (0, WIDE)]), 0, &[]);
        let message = &status.conditions[0].message;
        let later = reported(10, Some([(60_007, WIDE), (0, WIDE)]), 0, &[]);
        assert_eq!(*message, later.conditions[0].message, "another figure is no news");
        for part in [VNET, "10 % of NodeIPPool p", "mode Prefix", "another virtual network"] {
            assert!(message.contains(part), "{part}: {message}");
        }
        assert_eq!(exhausting(&reported(0, Some([(65_536, WIDE), (0, WIDE)]), 0, &[])), ("False", "Off"));
    }

    #[test]
    fn blocks_neither_alarm_by_their_addresses_nor_hide_others_whichever_way_azure_counts_them() {
        // 3,900 blocks hold 62,400 addresses.
        const BLOCKS: u32 = 3900;
        let of = |pods: u32, size: u32, others: u32| {
            exhausting(&reported(10, Some([(pods, size), (others, WIDE)]), BLOCKS, &[])).0.to_owned()
        };
        // The figures show that each counts once, or 16 times; nothing else is there, or much.
        assert_eq!([of(3900, WIDE, 0), of(3900, WIDE, 56_000)], ["False", "True"]);
        assert_eq!([of(62_400, 65_531, 0), of(62_400, 65_531, 56_000)], ["False", "True"]);
        // They go with both: it is said to be unknown where that matters, and nowhere else.
        assert_eq!([of(62_400, WIDE, 0), of(62_400, WIDE, 56_000)], ["Unknown", "True"]);
        assert_eq!(of(32_000, WIDE, 20_000), "False");
    }

    #[test]
    fn a_networks_last_forecast_stands_until_azure_was_asked() {
        assert_eq!(exhausting(&reported(10, None, 0, &[])), ("Unknown", "Pending"));
        let before = reported(10, Some([(60_000, WIDE), (0, WIDE)]), 0, &[]).conditions;
        assert_eq!(reported(10, None, 0, &before).conditions, before);
    }
}
