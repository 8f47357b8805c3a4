//! What must hold once nothing is under way any more.

use super::excuses::Excuses;
use super::readings::{Records, is_of_a_pod};
use super::{Addresses, Observation};
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// By what the pool has each node hold addresses.
#[derive(Clone, Copy, Debug)]
pub struct Sizing {
    pub minimum: usize,
    pub warm: usize,
    pub batch: usize,
    /// How many addresses a reservation has.
    pub grain: usize,
}

impl Sizing {
    /// How many addresses a node holds at most whose pods have these: what the pool asks for, unless each
    /// reservation beyond that has an address of a pod. It is given back as a whole.
    fn most(&self, in_use: &BTreeSet<Ipv4Addr>) -> usize {
        let Sizing { minimum, warm, batch, grain } = *self;
        let wanted = minimum.max(in_use.len() + warm).next_multiple_of(batch).next_multiple_of(grain);
        // Azure aligns blocks to their size.
        let reserved: BTreeSet<usize> = in_use.iter().map(|one| one.to_bits() as usize / grain).collect();
        wanted.max(reserved.len() * grain)
    }
}

/// The facts about each node when nothing is under way.
#[derive(Clone, Debug)]
pub struct Rest {
    pub seen: Observation,
    pub specs: Addresses,
    pub ledgers: BTreeMap<String, Records>,
    pub sizing: Sizing,
}

impl Rest {
    /// Whether all of this many pods run and are reached under their own names, and NIC, `spec`, ledger,
    /// kernel and pods show the same of each node, which holds no more than it should.
    ///
    /// # Errors
    /// The disagreements.
    pub fn agrees(&self, pods: usize, excuses: &Excuses) -> Result<()> {
        let Rest { seen, specs, .. } = self;
        self.is_whole()?;
        ensure!(seen.after.len() == pods, "{} of {pods} pods are ready", seen.after.len());
        ensure!(seen.before == seen.after, "pods come and go");
        ensure!(seen.nics == *specs, "NICs hold {:?}, spec shows {specs:?}", seen.nics);
        for node in seen.hosts.keys() {
            self.agrees_on(node, excuses).with_context(|| node.clone())?;
        }
        let violations = seen.found(excuses).violations;
        ensure!(violations.is_empty(), "{violations:?}");
        let unreachable = seen.unreachable(excuses);
        ensure!(unreachable.is_empty(), "{unreachable:?}");
        Ok(())
    }

    fn agrees_on(&self, node: &str, excuses: &Excuses) -> Result<()> {
        let of = |all: &Addresses| all.get(node).cloned().unwrap_or_default();
        let (wired, held) = (of(&self.seen.wired), of(&self.seen.nics));
        let inside = self.seen.inside_of(node);
        let Records { assigned, free, waiting } = self.ledgers.get(node).context("there is no ledger")?;
        let set = |all: &[Ipv4Addr]| all.iter().copied().collect::<BTreeSet<_>>();
        ensure!(wired == set(assigned), "the kernel leads to {wired:?}, the ledger assigns {assigned:?}");
        ensure!(wired == inside, "the kernel leads to {wired:?}, and pods have {inside:?} inside");
        let of_pods: BTreeSet<Ipv4Addr> =
            self.seen.after.values().filter(|pod| pod.node == node).map(|pod| pod.address).collect();
        ensure!(wired == of_pods, "the kernel leads to {wired:?}, and the pods are {of_pods:?}");
        let lacks: Vec<_> = wired.difference(&held).filter(|one| !excuses.cover(node, **one)).collect();
        ensure!(lacks.is_empty(), "the NIC lacks {lacks:?}");
        let recorded: Vec<Ipv4Addr> =
            assigned.iter().chain(free).filter(|one| !excuses.cover(node, **one)).copied().collect();
        let spec: BTreeSet<_> =
            of(&self.specs).into_iter().filter(|one| !excuses.cover(node, *one)).collect();
        let is_same = set(&recorded) == spec && recorded.len() == spec.len();
        ensure!(
            is_same,
            "spec shows {spec:?}, of which the ledger assigns {assigned:?} and has {free:?} free"
        );
        ensure!(*waiting == 0, "{waiting} pods wait, by the ledger");
        self.holds_no_more_than_it_should(node)
    }

    /// What a node no longer needs is given back.
    fn holds_no_more_than_it_should(&self, node: &str) -> Result<()> {
        let of = |all: &Addresses| all.get(node).cloned().unwrap_or_default();
        let (held, most) = (of(&self.seen.nics).len(), self.sizing.most(&of(&self.seen.wired)));
        ensure!(held <= most, "the NIC holds {held} addresses, of which {most} are enough");
        Ok(())
    }

    fn is_whole(&self) -> Result<()> {
        let unread = self.seen.unread();
        ensure!(unread.is_empty(), "these can't be read: {unread:?}");
        Ok(())
    }

    /// Whether no route, link or record of a pod is left anywhere, and no address that was for them; `links`
    /// are all of each node.
    ///
    /// # Errors
    /// The rest.
    pub fn is_empty(&self, links: &BTreeMap<String, Vec<String>>) -> Result<()> {
        let Rest { seen, specs, ledgers, .. } = self;
        self.is_whole()?;
        ensure!(seen.after.is_empty(), "pods are there");
        for node in seen.hosts.keys() {
            let Records { assigned, waiting, .. } = ledgers.get(node).context("there is no ledger")?;
            ensure!(assigned.is_empty(), "a record is left on {node}: {assigned:?}");
            ensure!(*waiting == 0, "{waiting} pods wait on {node}, by its ledger");
            let inside = seen.inside_of(node);
            ensure!(inside.is_empty(), "a namespace on {node} has {inside:?}");
            let wired = &seen.wired[node];
            ensure!(wired.is_empty(), "a route is left on {node}: {wired:?}");
            self.holds_no_more_than_it_should(node).with_context(|| node.clone())?;
        }
        for (node, links) in links {
            let left: Vec<_> = links.iter().filter(|link| is_of_a_pod(link)).collect();
            ensure!(left.is_empty(), "{node} has links of pods: {left:?}");
        }
        ensure!(seen.nics == *specs, "NICs hold {:?}, spec shows {specs:?}", seen.nics);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::audit::tests::{INTERNET, address, answer, of, sound};

    fn rest() -> Rest {
        let seen = sound();
        let records = |assigned: u8, free: u8| Records {
            assigned: vec![address(assigned)],
            free: vec![address(free)],
            waiting: 0,
        };
        let ledgers = [("node-1".to_owned(), records(1, 3)), ("node-2".to_owned(), records(2, 4))].into();
        let sizing = Sizing { minimum: 2, warm: 1, batch: 1, grain: 1 };
        Rest { specs: seen.nics.clone(), seen, ledgers, sizing }
    }

    /// One more address on a NIC, as its `spec` and its ledger show, too.
    fn hold_one_more(rest: &mut Rest) {
        rest.seen.nics.get_mut("node-1").unwrap().insert(address(9));
        rest.specs = rest.seen.nics.clone();
        ledger(rest).free.push(address(9));
    }

    fn ledger(rest: &mut Rest) -> &mut Records {
        rest.ledgers.get_mut("node-1").unwrap()
    }

    /// The whole error, with its causes.
    fn error(outcome: Result<()>) -> String {
        format!("{:#}", outcome.unwrap_err())
    }

    #[test]
    fn each_disagreement_is_named() {
        type Break = fn(&mut Rest);
        let breaks: [(Break, &str); 20] = [
            (|rest| _ = rest.seen.after.remove("uid-b"), "1 of 2 pods are ready"),
            (|rest| _ = rest.seen.before.remove("uid-b"), "pods come and go"),
            (|rest| rest.seen.are_pods_read = false, "these can't be read"),
            (|rest| _ = rest.seen.wired.remove("node-2"), "these can't be read"),
            (|rest| _ = rest.specs.get_mut("node-1").unwrap().remove(&address(3)), "NICs hold"),
            (|rest| _ = rest.specs.remove("node-2"), "NICs hold"),
            (|rest| _ = rest.ledgers.remove("node-1"), "node-1: there is no ledger"),
            (|rest| ledger(rest).assigned.push(address(3)), "the ledger assigns"),
            (|rest| ledger(rest).free.clear(), "node-1: spec shows"),
            (|rest| ledger(rest).free.push(address(9)), "node-1: spec shows"),
            (|rest| ledger(rest).free.push(address(1)), "node-1: spec shows"),
            (|rest| ledger(rest).waiting = 1, "node-1: 1 pods wait"),
            (hold_one_more, "node-1: the NIC holds 3 addresses, of which 2 are enough"),
            (
                |rest| {
                    let both = [&mut rest.seen.before, &mut rest.seen.after];
                    both.into_iter().for_each(|ready| ready.get_mut("uid-a").unwrap().address = address(3));
                },
                "node-1: the kernel leads to",
            ),
            (|rest| rest.seen.inside.get_mut("node-1").unwrap().clear(), "and pods have {} inside"),
            (
                |rest| {
                    rest.seen.nics.get_mut("node-1").unwrap().remove(&address(1));
                    rest.specs = rest.seen.nics.clone();
                },
                "node-1: the NIC lacks [10.0.0.1]",
            ),
            (
                |rest| _ = rest.seen.answers.insert(address(1), answer("b")),
                "b answers at 10.0.0.1, the address of a on node-1",
            ),
            (|rest| _ = rest.seen.answers.remove(&address(1)), "a on node-1 doesn't answer at 10.0.0.1"),
            (|rest| rest.seen.dials[1].answer = None, "a on node-1 with 10.0.0.1 doesn't reach 10.0.0.2"),
            (
                |rest| rest.seen.dials.retain(|dial| dial.from != "b" || dial.target != INTERNET),
                "b on node-2 with 10.0.0.2 doesn't reach 203.0.113.10",
            ),
        ];
        rest().agrees(2, &Excuses::default()).unwrap();
        for (break_it, expected) in breaks {
            let mut rest = rest();
            break_it(&mut rest);
            let error = error(rest.agrees(2, &Excuses::default()));
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    #[test]
    fn an_address_that_others_took_off_a_nic_is_no_disagreement() {
        let mut excuses = Excuses::default();
        excuses.taken("node-1", &[address(1)], std::time::Instant::now());
        let mut rest = rest();
        rest.seen.nics.get_mut("node-1").unwrap().remove(&address(1));
        rest.specs = rest.seen.nics.clone();
        rest.seen.answers.remove(&address(1));
        rest.seen.dials.iter_mut().filter(|one| one.target == address(1)).for_each(|one| one.answer = None);
        rest.agrees(2, &excuses).unwrap();
    }

    #[test]
    fn every_remaining_trace_is_named() {
        let nothing = of(&[("node-1", &[]), ("node-2", &[])]);
        let empty = || {
            let mut rest = rest();
            rest.seen.wired = nothing.clone();
            rest.seen.inside.values_mut().for_each(BTreeMap::clear);
            rest.ledgers.values_mut().for_each(|ledger| ledger.assigned.clear());
            (rest.seen.before, rest.seen.after) = Default::default();
            rest
        };
        let links = |left: &str| [("node-1".to_owned(), vec!["eth0".to_owned(), left.to_owned()])].into();
        empty().is_empty(&links("lo")).unwrap();
        let pods = Observation { after: rest().seen.after, ..empty().seen };
        let wired = Observation { wired: rest().seen.wired, ..empty().seen };
        let inside = Observation { inside: rest().seen.inside, ..empty().seen };
        let unread = Observation { nics: of(&[]), ..empty().seen };
        let (mut waiting, mut more) = (empty(), empty());
        ledger(&mut waiting).waiting = 1;
        hold_one_more(&mut more);
        for (rest, link, expected) in [
            (Rest { seen: pods, ..empty() }, "lo", "pods are there"),
            (Rest { seen: wired, ..empty() }, "lo", "a route is left"),
            (Rest { seen: inside, ..empty() }, "lo", "a namespace on node-1 has"),
            (Rest { seen: unread, ..empty() }, "lo", "these can't be read"),
            (Rest { ledgers: rest().ledgers, ..empty() }, "lo", "a record is left"),
            (waiting, "lo", "1 pods wait on node-1"),
            (more, "lo", "node-1: the NIC holds 3 addresses"),
            (empty(), "vnp0123456789a", "node-1 has links of pods"),
            (Rest { specs: nothing.clone(), ..empty() }, "lo", "NICs hold"),
        ] {
            let error = error(rest.is_empty(&links(link)));
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    #[test]
    fn a_node_holds_what_its_pool_asks_for_or_reservations_of_which_each_has_a_pod() {
        let single = Sizing { minimum: 3, warm: 2, batch: 2, grain: 1 };
        let blocks = Sizing { warm: 12, grain: 16, ..single };
        let most = |sizing: Sizing, pods: &[u8]| sizing.most(&pods.iter().map(|&pod| address(pod)).collect());
        assert_eq!([&[][..], &[1, 2], &[1, 2, 3]].map(|pods| most(single, pods)), [4, 4, 6]);
        assert_eq!([&[][..], &[1, 2, 3, 4], &[1, 2, 3, 4, 5]].map(|pods| most(blocks, pods)), [16, 16, 32]);
        // One pod in each of three blocks, none of which can be given back.
        assert_eq!(most(blocks, &[1, 17, 33]), 48);
    }
}
