//! How many addresses a node should hold: the formula of `NodeIPPool.spec.sizing`, and nothing else. Pure.

use serde::Serialize;
use vnetpool_crds::pool::Sizing;

/// The need of a node's pods, from the scheduler's side (`bound`) and from the node's (the rest).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Demand {
    /// Pods the scheduler has put on the node that need an address: known before the first CNI ADD.
    pub bound: u32,
    /// Addresses that sandboxes have.
    pub assigned: u32,
    /// ADDs that found no free address.
    pub waiting: u32,
    /// Addresses freed less than the cooldown ago: held, but no use to a new pod.
    pub cooling: u32,
    /// The kubelet's pod limit; `None` while the Node doesn't show it.
    pub pods_allowed: Option<u32>,
}

impl Demand {
    /// Pods that have an address or need one now. Sandboxes outlive their pods for a moment, and static pods
    /// are never bound, so neither side's count includes the other's.
    pub fn pods(&self) -> u32 {
        self.bound.max(self.assigned.saturating_add(self.waiting))
    }
}

/// How the number of wanted addresses follows from a node's pods, with the result of each step. `kubectl
/// vnetpool explain` shows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Steps {
    /// Pods that have an address or need one now.
    pub pods: u32,
    /// With the warm addresses, as far as the kubelet takes more pods.
    pub with_warm: u32,
    /// With those that cool: they are held, too.
    pub with_cooling: u32,
    /// The minimum, if that is more.
    pub at_least: u32,
    /// Rounded up to a multiple of the batch.
    pub in_batches: u32,
    /// Rounded up to whole reservations: the number before any limit.
    pub asked: u32,
    /// The pool's maximum, as far as it is whole reservations.
    pub maximum: u32,
    /// The room that Azure leaves us.
    pub room: u32,
    /// What the node should hold.
    pub wanted: u32,
    /// How many batches make a step: more than 1 where writes to Azure are scarce.
    pub coarseness: u32,
    /// The same as `wanted` in such steps: a node that lacks some grows up to it, and more than that is a
    /// surplus. What it holds between the two it keeps.
    pub coarse: u32,
}

/// The kubelet's limit caps the warm addresses, and what coarse steps add: the pods' own need is never cut.
/// `grain` is how many addresses come at once.
pub fn steps(sizing: &Sizing, demand: &Demand, (grain, room): (u32, u32), coarseness: u32) -> Steps {
    let rounded = |number: u32, step: u32| number.checked_next_multiple_of(step.max(1)).unwrap_or(number);
    let pods = demand.pods();
    let with_warm = pods.saturating_add(sizing.warm).min(demand.pods_allowed.unwrap_or(u32::MAX)).max(pods);
    let with_cooling = with_warm.saturating_add(demand.cooling);
    let at_least = with_cooling.max(sizing.minimum);
    let in_batches = rounded(at_least, sizing.batch);
    let asked = rounded(in_batches, grain);
    let maximum = sizing.maximum - sizing.maximum % grain.max(1);
    let wanted = asked.min(maximum).min(room);

    let of_use = demand.pods_allowed.map_or(u32::MAX, |most| most.saturating_add(demand.cooling));
    let in_steps = rounded(at_least, sizing.batch.saturating_mul(coarseness));
    let in_steps = in_steps.min(rounded(of_use.max(at_least), sizing.batch)).max(in_batches);
    let coarse = rounded(in_steps, grain).min(maximum).min(room);
    Steps {
        pods,
        with_warm,
        with_cooling,
        at_least,
        in_batches,
        asked,
        maximum,
        room,
        wanted,
        coarseness,
        coarse,
    }
}

/// What the node should hold: what is asked for, within the pool's maximum, of which only whole grains count,
/// and the `room` for addresses that Azure leaves us on the NIC.
pub fn wanted(sizing: &Sizing, demand: &Demand, grain: u32, room: u32) -> u32 {
    steps(sizing, demand, (grain, room), 1).wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizing(minimum: u32, warm: u32, maximum: u32, batch: u32) -> Sizing {
        Sizing { minimum, warm, maximum, batch, ..Sizing::default() }
    }

    fn bound(bound: u32) -> Demand {
        Demand { bound, ..Demand::default() }
    }

    #[test]
    fn an_idle_node_holds_the_minimum() {
        assert_eq!(wanted(&sizing(8, 0, 255, 1), &bound(0), 1, 255), 8);
    }

    #[test]
    fn warm_addresses_come_on_top_of_the_pods_demand() {
        assert_eq!(wanted(&sizing(0, 8, 255, 1), &bound(5), 1, 255), 13);
    }

    #[test]
    fn cooling_addresses_are_not_free() {
        let demand = Demand { bound: 5, cooling: 3, ..Demand::default() };
        assert_eq!(wanted(&sizing(0, 2, 255, 1), &demand, 1, 255), 10);
    }

    #[test]
    fn the_number_is_rounded_up_to_the_batch() {
        assert_eq!(wanted(&sizing(0, 0, 255, 16), &bound(17), 1, 255), 32);
    }

    #[test]
    fn the_maximum_wins_over_the_batch() {
        assert_eq!(wanted(&sizing(0, 0, 20, 16), &bound(17), 1, 255), 20);
    }

    #[test]
    fn azures_limit_wins_over_the_maximum() {
        assert_eq!(wanted(&sizing(0, 0, 255, 1), &bound(300), 1, 200), 200);
    }

    #[test]
    fn no_more_are_kept_warm_than_the_kubelet_takes_pods() {
        let demand = Demand { bound: 28, cooling: 2, pods_allowed: Some(30), ..Demand::default() };
        assert_eq!(wanted(&sizing(0, 8, 255, 1), &demand, 1, 255), 32);
    }

    #[test]
    fn a_waiting_pod_counts_even_before_the_operator_has_seen_it_bound() {
        let demand = Demand { bound: 1, assigned: 8, waiting: 2, ..Demand::default() };
        assert_eq!(wanted(&sizing(0, 0, 255, 1), &demand, 1, 255), 10);
    }

    #[test]
    fn a_coarse_step_is_so_many_batches_and_no_more_than_kubelet_maximum_and_room_allow() {
        let coarse = |demand: Demand, maximum: u32, room: u32, coarseness: u32| {
            let steps = steps(&sizing(0, 2, maximum, 4), &demand, (1, room), coarseness);
            (steps.wanted, steps.coarse)
        };
        assert_eq!([1, 2, 4].map(|by| coarse(bound(15), 255, 255, by)), [(20, 20), (20, 24), (20, 32)]);
        assert_eq!(coarse(bound(15), 22, 255, 4), (20, 22));
        assert_eq!(coarse(bound(15), 255, 21, 4), (20, 21));
        let few = Demand { pods_allowed: Some(22), cooling: 1, ..bound(15) };
        assert_eq!(coarse(few, 255, 255, 4), (20, 24));
        let steps = steps(&sizing(0, 2, 255, 4), &bound(15), (16, 4080), 4);
        assert_eq!((steps.wanted, steps.coarse), (32, 32));
    }

    #[test]
    fn blocks_are_asked_for_whole_and_the_maximum_is_never_exceeded_by_a_part_of_one() {
        assert_eq!(wanted(&sizing(8, 0, 255, 4), &bound(17), 16, 4080), 32);
        assert_eq!(wanted(&sizing(8, 0, 255, 4), &bound(250), 16, 4080), 240);
        assert_eq!(wanted(&sizing(8, 0, 256, 4), &bound(250), 16, 4080), 256);
        assert_eq!(wanted(&sizing(8, 0, 256, 4), &bound(250), 16, 32), 32);
    }
}
