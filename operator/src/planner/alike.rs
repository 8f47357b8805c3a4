//! How many pods may come to a node, or leave it, before another plan is due. Pure.

use std::ops::RangeInclusive;

use super::{Demand, Observed, Plan, sizing};

/// With which numbers of bound pods the plan of a node that isn't to grow stays the same, whenever these pods
/// have come or gone: the node wants as many addresses, and as many pods lack one. All of that rises with the
/// number, so what lies between two that are alike is alike, too.
pub fn alike(observed: &Observed, plan: &Plan) -> RangeInclusive<u32> {
    let bound = observed.demand.bound;
    let (Some(sizing), Some(steps)) = (&observed.sizing, &plan.steps) else { return bound..=bound };
    let decisive = |bound: u32| {
        let demand = Demand { bound, ..observed.demand };
        let steps = sizing::steps(sizing, &demand, (observed.grain, steps.room), observed.coarseness);
        let pods = demand.pods();
        let lacks = (pods.saturating_sub(plan.kept), pods < plan.kept);
        (lacks, steps.asked, steps.wanted, steps.coarse)
    };
    let present = decisive(bound);
    let least = first(0, bound, |fewer| decisive(fewer) == present);
    let beyond = first(bound, u32::MAX, |more| decisive(more) != present);
    least..=beyond.saturating_sub(1).max(bound)
}

/// The first number from `from` on for which this holds, as it does for all after that; `until` if for none
/// before. An agent reports whatever it likes, so the numbers aren't tried one by one.
fn first(mut from: u32, mut until: u32, holds: impl Fn(u32) -> bool) -> u32 {
    while from < until {
        let middle = from + (until - from) / 2;
        if holds(middle) { until = middle } else { from = middle + 1 }
    }
    from
}
