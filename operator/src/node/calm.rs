//! Which pods may come to a node, or leave it, without a reconcile. Pure.
//!
//! It rests on this: a reconcile reads of pods that ask for no attachment how many there are, and nothing
//! else, unless it compares them with the holders that the agent names. And it does what its plan has, which
//! the planner finds to be alike for some numbers of pods. Everything else that it reads wakes the node when
//! it changes, or has a time at which the node is reconciled again. But how coarse steps are while writes are
//! scarce is heeded at the node's next reconcile only, by which it keeps a surplus for longer at most. In
//! doubt each pod wakes its node.

use super::memory::Memory;
use super::progress::Progress;
use super::publish;
use super::takeup::Place;
use crate::demand::Calm;
use crate::planner;

/// What a reconcile that has got so far rules out until the next one; `None`: nothing.
pub fn calm(progress: &Progress, boot_id: &str, memory: &Memory) -> Option<Calm> {
    let (seen, plan) = (progress.seen.as_deref()?, progress.plan.as_deref()?);
    let (spec, status) = (&progress.allocation.spec, progress.allocation.status.as_ref()?);
    let is_free = progress.place == Place::Unneeded
        && progress.pause.is_none()
        && progress.rehearsal.is_none()
        && seen.pool_change.is_none();
    let has_nothing_to_do = progress.is_settled(boot_id, memory) && !progress.wants_write() && !plan.replaces;
    let is_refused_nothing = memory.setback.is_none() && memory.left_out.is_empty();
    let names_holders =
        spec.report_holders || memory.reports.outlived.asks || publish::adopts(&progress.allocation, seen);
    (is_free && has_nothing_to_do && is_refused_nothing && !names_holders).then(|| Calm {
        alike: planner::alike(&seen.observed, plan),
        counted: status.pods,
        exceeds: seen.observed.demand.bound < status.pods,
    })
}

#[cfg(test)]
mod tests {
    use super::super::blame::Part;
    use super::super::memory::Memories;
    use super::super::need::Need;
    use super::super::observe::Seen;
    use super::super::observe::obstacle::Obstacle;
    use super::super::setback::{Setback, Stage};
    use super::*;
    use crate::azure;
    use crate::cluster::Cluster;
    use crate::planner::tests::observed;
    use serde_json::json;
    use std::sync::Arc;
    use vnetpool_crds::{NodeIPAllocation, NodeIPPool};

    /// A node with twelve pods and twenty addresses, as its pool asks, after a reconcile without work.
    fn rested() -> (Progress, Memory) {
        let object = json!({
            "metadata": {"name": "n", "uid": "a", "generation": 3},
            "spec": {"nodeUID": "u", "bootID": "b", "pool": "p", "cooldown": "30s", "target": 20},
            "status": {"bootID": "b", "observedGeneration": 3, "pods": 12},
        });
        let allocation: Arc<NodeIPAllocation> = Arc::new(serde_json::from_value(object).unwrap());
        let memory = Memories::default().take(&allocation);
        let (cluster, waker) = Cluster::sample(vec![], vec![], vec![]);
        let mut progress = Progress::of(allocation.clone(), Need::of(&cluster, &waker, "n"));
        let nowhere = Seen::sample(&allocation, Obstacle::NoPool, &memory, progress.observed_at);
        let pool = NodeIPPool::new("p", serde_json::from_value(json!({})).unwrap());
        let observed = observed(20, 12);
        progress.plan = Some(Box::new(planner::plan(&observed)));
        progress.seen =
            Some(Box::new(Seen { pool: Some(Arc::new(pool)), obstacle: None, observed, ..nowhere }));
        (progress, memory)
    }

    fn refused(progress: &Progress) -> Setback {
        let error = azure::Error::WithoutEffect { resource: "nic".into() };
        Setback::after(None, Stage::Write, &error, progress.observed_at)
    }

    fn change(progress: &mut Progress, change: impl FnOnce(&mut NodeIPAllocation)) {
        change(Arc::make_mut(&mut progress.allocation));
    }

    type Trouble = fn(&mut Progress, &mut Memory);

    #[test]
    fn a_node_rules_out_that_pods_are_news_only_while_it_has_nothing_to_do_and_to_wait_for() {
        let (progress, memory) = rested();
        let found = Calm { alike: 9..=12, counted: 12, exceeds: false };
        assert_eq!(calm(&progress, "b", &memory), Some(found));
        assert_eq!(calm(&progress, "b2", &memory), None, "its agent hasn't reported in this boot");
        let causes: [(&str, Trouble); 14] = [
            ("unseen", |progress, _| progress.seen = None),
            ("an edit to take up", |progress, _| progress.place = Place::Awaited),
            ("an edit under way", |progress, _| progress.place = Place::Given),
            ("a dry run", |progress, _| progress.rehearsal = Some(Default::default())),
            ("growth", |progress, _| progress.plan.as_mut().unwrap().grows = true),
            ("a release", |progress, _| progress.plan.as_mut().unwrap().releases = true),
            ("a lost address", |progress, _| progress.plan.as_mut().unwrap().replaces = true),
            ("a write", |progress, _| progress.plan.as_mut().unwrap().change.repair = true),
            ("a write under way", |_, memory| memory.nic.writing = true),
            ("a refusal", |progress, memory| memory.setback = Some(refused(progress))),
            ("a part that is refused", |progress, memory| {
                memory.left_out.insert(Part::Groups, refused(progress));
            }),
            ("holders to compare", |progress, _| change(progress, |one| one.spec.report_holders = true)),
            ("holders to ask for", |_, memory| memory.reports.outlived.asks = true),
            ("an agent behind", |progress, _| change(progress, |one| one.metadata.generation = Some(4))),
        ];
        for (cause, trouble) in causes {
            let (mut progress, mut memory) = rested();
            trouble(&mut progress, &mut memory);
            assert_eq!(calm(&progress, "b", &memory), None, "{cause}");
        }
    }
}
