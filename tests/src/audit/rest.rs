//! What must hold once nothing is under way any more.

use super::excuses::Excuses;
use super::readings::is_of_a_pod;
use super::{Addresses, Ready};
use anyhow::{Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// The facts about each node when nothing is under way.
#[derive(Clone, Debug, Default)]
pub struct Rest {
    pub nics: Addresses,
    pub specs: Addresses,
    pub ledgers: Addresses,
    pub wired: Addresses,
}

impl Rest {
    /// Whether all of this many pods run, and NIC, `spec`, ledger and kernel show the same of each node.
    ///
    /// # Errors
    /// The disagreements.
    pub fn agrees(&self, pods: usize, ready: &Ready, excuses: &Excuses) -> Result<()> {
        let Rest { nics, specs, ledgers, wired } = self;
        ensure!(ready.len() == pods, "{} of {pods} pods are ready", ready.len());
        ensure!(nics == specs, "NICs hold {nics:?}, spec shows {specs:?}");
        ensure!(wired == ledgers, "kernels lead to {wired:?}, ledgers assign {ledgers:?}");
        for (node, addresses) in wired {
            let of_pods: BTreeSet<Ipv4Addr> =
                ready.values().filter(|pod| pod.node == *node).map(|pod| pod.address).collect();
            ensure!(*addresses == of_pods, "{node} leads to {addresses:?}, and its pods have {of_pods:?}");
            let held = nics.get(node).cloned().unwrap_or_default();
            let lacks: Vec<_> =
                addresses.difference(&held).filter(|&&address| !excuses.cover(node, address)).collect();
            ensure!(lacks.is_empty(), "the NIC of {node} lacks {lacks:?}");
        }
        Ok(())
    }

    /// Whether no route, link or record of a pod is left anywhere; `links` are all of each node.
    ///
    /// # Errors
    /// The rest.
    pub fn is_empty(&self, ready: &Ready, links: &BTreeMap<String, Vec<String>>) -> Result<()> {
        let Rest { nics, specs, ledgers, wired } = self;
        ensure!(ready.is_empty(), "pods are there");
        for (what, found) in [("a route", wired), ("a record", ledgers)] {
            let left: Vec<_> = found.iter().filter(|(_, addresses)| !addresses.is_empty()).collect();
            ensure!(left.is_empty(), "{what} is left: {left:?}");
        }
        for (node, links) in links {
            let left: Vec<_> = links.iter().filter(|link| is_of_a_pod(link)).collect();
            ensure!(left.is_empty(), "{node} has links of pods: {left:?}");
        }
        ensure!(nics == specs, "NICs hold {nics:?}, spec shows {specs:?}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::audit::Observation;
    use crate::audit::tests::{PODS, address, of, ready, sound};

    fn rest() -> Rest {
        let Observation { wired, nics, .. } = sound();
        Rest { specs: nics.clone(), ledgers: wired.clone(), wired, nics }
    }

    #[test]
    fn each_disagreement_is_named() {
        type Break = fn(&mut Rest, &mut Ready);
        let breaks: [(Break, &str); 6] = [
            (|_, ready| _ = ready.remove("uid-b"), "1 of 2 pods are ready"),
            (|rest, _| _ = rest.specs.get_mut("node-1").unwrap().remove(&address(3)), "NICs hold"),
            (|rest, _| _ = rest.specs.remove("node-2"), "NICs hold"),
            (|rest, _| _ = rest.ledgers.get_mut("node-1").unwrap().insert(address(3)), "ledgers assign"),
            (|_, ready| ready.get_mut("uid-a").unwrap().address = address(3), "node-1 leads to"),
            (
                |rest, _| {
                    rest.nics.get_mut("node-1").unwrap().remove(&address(1));
                    rest.specs = rest.nics.clone();
                },
                "the NIC of node-1 lacks [10.0.0.1]",
            ),
        ];
        rest().agrees(2, &ready(&PODS), &Excuses::default()).unwrap();
        for (break_it, expected) in breaks {
            let (mut rest, mut ready) = (rest(), ready(&PODS));
            break_it(&mut rest, &mut ready);
            let error = rest.agrees(2, &ready, &Excuses::default()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn every_remaining_trace_is_named() {
        let nothing = of(&[("node-1", &[]), ("node-2", &[])]);
        let empty = || Rest { ledgers: nothing.clone(), wired: nothing.clone(), ..rest() };
        let links = |left: &str| [("node-1".to_owned(), vec!["eth0".to_owned(), left.to_owned()])].into();
        empty().is_empty(&Ready::new(), &links("lo")).unwrap();
        let wired = Rest { wired: rest().wired, ..empty() };
        let recorded = Rest { ledgers: rest().ledgers, ..empty() };
        let unpublished = Rest { specs: nothing.clone(), ..empty() };
        for (rest, pods, link, expected) in [
            (empty(), &PODS[..], "lo", "pods are there"),
            (wired, &[], "lo", "a route is left"),
            (recorded, &[], "lo", "a record is left"),
            (empty(), &[], "vnp0123456789a", "node-1 has links of pods"),
            (unpublished, &[], "lo", "NICs hold"),
        ] {
            let error = rest.is_empty(&ready(pods), &links(link)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
