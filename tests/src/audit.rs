//! The invariants of a cluster whatever happens to it, by an auditor's observations of Azure, the kernels,
//! the objects, the ledgers and the answers of pods. It uses no line of the product, so that a fault there
//! can't hide itself.

use crate::workload::ProbePod;
use anyhow::{Result, ensure};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// Links of pods begin so.
const LINK_PREFIX: &str = "vnp";

/// The pods that are ready, by UID.
pub type Ready = BTreeMap<String, ProbePod>;
/// Addresses of each node.
pub type Addresses = BTreeMap<String, BTreeSet<Ipv4Addr>>;

/// One observation, in the order in which an address comes into use, backwards: what has ended in between is
/// no fault.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    pub before: Ready,
    /// The name of the pod that answers at an address.
    pub answers: BTreeMap<Ipv4Addr, String>,
    /// The addresses that each node's kernel sends to pods.
    pub wired: Addresses,
    /// The addresses for pods that each node's NIC holds.
    pub nics: Addresses,
    pub after: Ready,
}

/// The findings of an observation.
#[derive(Debug, Default, PartialEq)]
pub struct Found {
    pub violations: BTreeSet<String>,
    /// Addresses in use that others have taken off their NIC.
    pub excused: u32,
}

impl Observation {
    pub fn found(&self, excuses: &Excuses) -> Found {
        let Observation { before, answers, wired, nics, after } = self;
        let mut found = Found::default();
        let mut holders: BTreeMap<Ipv4Addr, &String> = BTreeMap::new();
        for (node, address) in each(nics) {
            if let Some(other) = holders.insert(address, node) {
                found.violations.insert(format!("{address} is on the NICs of {other} and {node}"));
            }
        }
        let mut users: BTreeMap<Ipv4Addr, &String> = BTreeMap::new();
        for (node, address) in each(wired) {
            if let Some(other) = users.insert(address, node)
                && !excuses.cover(node, address)
                && !excuses.cover(other, address)
            {
                found.violations.insert(format!("{address} leads to a pod of {other} and to one of {node}"));
            }
            if !nics.get(node).is_some_and(|held| held.contains(&address)) {
                match excuses.cover(node, address) {
                    true => found.excused += 1,
                    false => {
                        let what = format!("{address} leads to a pod of {node}, whose NIC doesn't hold it");
                        found.violations.insert(what);
                    }
                }
            }
        }
        // Only of pods that were the same all the while.
        let lasting = after.iter().filter(|(uid, pod)| before.get(*uid) == Some(pod)).map(|(_, pod)| pod);
        let mut owners: BTreeMap<Ipv4Addr, &String> = BTreeMap::new();
        for ProbePod { name, node, address } in lasting {
            if excuses.cover(node, *address) {
                continue;
            }
            if let Some(other) = owners.insert(*address, name) {
                found.violations.insert(format!("{address} is the address of {other} and of {name}"));
            }
            if let Some(answers) = answers.get(address).filter(|answers| *answers != name) {
                let what = format!("{answers} answers at {address}, the address of {name} on {node}");
                found.violations.insert(what);
            }
        }
        found
    }
}

fn each(addresses: &Addresses) -> impl Iterator<Item = (&String, Ipv4Addr)> {
    addresses.iter().flat_map(|(node, all)| all.iter().map(move |&address| (node, address)))
}

/// A NIC that others have written is noticed within this time. Until then an address that it lost while it
/// was free may still be given to a pod.
const NOTICED: Duration = Duration::from_secs(180);

/// Addresses that others have taken off a NIC. Azure may give such an address away, so each is excused until
/// it is back on that NIC, or until that could be noticed and it leads to no pod of that node.
#[derive(Debug, Default)]
pub struct Excuses {
    /// The nodes whose NIC is being written.
    under_way: BTreeSet<String>,
    /// By node and address, when it was gone.
    taken: BTreeMap<(String, Ipv4Addr), Instant>,
}

impl Excuses {
    /// Another client is about to write this node's NIC.
    pub fn begin(&mut self, node: &str) {
        self.under_way.insert(node.to_owned());
    }

    /// These addresses are gone from it.
    pub fn taken(&mut self, node: &str, addresses: &[Ipv4Addr], now: Instant) {
        self.under_way.remove(node);
        self.taken.extend(addresses.iter().map(|&address| ((node.to_owned(), address), now)));
    }

    /// An observation that began then has seen this.
    pub fn end(&mut self, began: Instant, Observation { wired, nics, .. }: &Observation) {
        let has = |all: &Addresses, (node, address): &(String, Ipv4Addr)| {
            all.get(node).is_some_and(|addresses| addresses.contains(address))
        };
        self.taken.retain(|one, at| {
            let is_noticed = began.saturating_duration_since(*at) > NOTICED;
            *at > began || (!has(nics, one) && (!is_noticed || has(wired, one)))
        });
    }

    fn cover(&self, node: &str, address: Ipv4Addr) -> bool {
        self.under_way.contains(node) || self.taken.contains_key(&(node.to_owned(), address))
    }
}

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
            let left: Vec<_> = links.iter().filter(|link| link.starts_with(LINK_PREFIX)).collect();
            ensure!(left.is_empty(), "{node} has links of pods: {left:?}");
        }
        ensure!(nics == specs, "NICs hold {nics:?}, spec shows {specs:?}");
        Ok(())
    }
}

/// The addresses that `ip -json route show` leads to pods.
///
/// # Errors
/// When it isn't the output of `ip`.
pub fn led_to_pods(routes: &str) -> Result<BTreeSet<Ipv4Addr>> {
    #[derive(Deserialize)]
    struct Route {
        dst: String,
        #[serde(default)]
        dev: String,
    }
    let routes: Vec<Route> = serde_json::from_str(routes)?;
    let to_pods = routes.iter().filter(|route| route.dev.starts_with(LINK_PREFIX));
    Ok(to_pods.filter_map(|route| route.dst.parse().ok()).collect())
}

/// The addresses that the text of a ledger has assigned.
pub fn assigned(ledger: &str) -> BTreeSet<Ipv4Addr> {
    let address = |line: &str| line.strip_prefix("assigned ")?.split(' ').nth(1)?.parse().ok();
    ledger.lines().filter_map(address).collect()
}

/// The addresses that each `spec` of a list of NodeIPAllocations shows.
pub fn reserved(list: &Value) -> Addresses {
    let of = |object: &Value| {
        let interfaces = object["spec"]["interfaces"].as_array().into_iter().flatten();
        let all = interfaces.filter_map(|nic| nic["ipConfigurations"].as_array()).flatten();
        let address = |one: &Value| one["address"].as_str()?.trim_end_matches("/32").parse().ok();
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        (name, all.filter_map(address).collect())
    };
    list["items"].as_array().into_iter().flatten().map(of).collect()
}

/// The pod that answers at each address, by the output of probes one behind the other.
pub fn answers(printed: &str) -> BTreeMap<Ipv4Addr, String> {
    #[derive(Deserialize)]
    struct Whoami {
        local: Ipv4Addr,
        name: String,
    }
    let answers = serde_json::Deserializer::from_str(printed).into_iter::<Whoami>();
    answers.flatten().map(|one| (one.local, one.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn address(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, number)
    }

    fn of(nodes: &[(&str, &[u8])]) -> Addresses {
        let of_node = |numbers: &[u8]| numbers.iter().copied().map(address).collect();
        nodes.iter().map(|(node, numbers)| ((*node).to_owned(), of_node(numbers))).collect()
    }

    fn ready(pods: &[(&str, &str, u8)]) -> Ready {
        let pod = |&(name, node, number): &(&str, &str, u8)| ProbePod {
            name: name.to_owned(),
            node: node.to_owned(),
            address: address(number),
        };
        pods.iter().map(|one| (format!("uid-{}", one.0), pod(one))).collect()
    }

    const PODS: [(&str, &str, u8); 2] = [("a", "node-1", 1), ("b", "node-2", 2)];

    /// Two pods on two nodes; each NIC has an address to spare.
    fn sound() -> Observation {
        Observation {
            before: ready(&PODS),
            answers: [(address(1), "a".to_owned()), (address(2), "b".to_owned())].into(),
            wired: of(&[("node-1", &[1]), ("node-2", &[2])]),
            nics: of(&[("node-1", &[1, 3]), ("node-2", &[2, 4])]),
            after: ready(&PODS),
        }
    }

    fn violations(observation: &Observation, excuses: &Excuses) -> Vec<String> {
        observation.found(excuses).violations.into_iter().collect()
    }

    #[test]
    fn where_all_is_well_nothing_is_found() {
        assert_eq!(sound().found(&Excuses::default()), Found::default());
    }

    #[test]
    fn each_violation_is_found_by_its_rule() {
        type Break = fn(&mut Observation);
        let breaks: [(Break, &str); 5] = [
            (
                |observation| _ = observation.nics.get_mut("node-2").unwrap().insert(address(1)),
                "10.0.0.1 is on the NICs of node-1 and node-2",
            ),
            (
                |observation| _ = observation.wired.get_mut("node-2").unwrap().insert(address(1)),
                "10.0.0.1 leads to a pod of node-1 and to one of node-2",
            ),
            (
                |observation| _ = observation.nics.get_mut("node-1").unwrap().remove(&address(1)),
                "10.0.0.1 leads to a pod of node-1, whose NIC doesn't hold it",
            ),
            (
                |observation| {
                    let doubled = ready(&[("a", "node-1", 1), ("b", "node-2", 2), ("c", "node-1", 1)]);
                    (observation.before, observation.after) = (doubled.clone(), doubled);
                    observation.answers.clear();
                },
                "10.0.0.1 is the address of a and of c",
            ),
            (
                |observation| _ = observation.answers.insert(address(1), "b".to_owned()),
                "b answers at 10.0.0.1, the address of a on node-1",
            ),
        ];
        for (break_it, expected) in breaks {
            let mut observation = sound();
            break_it(&mut observation);
            assert!(
                violations(&observation, &Excuses::default()).contains(&expected.to_owned()),
                "{observation:?}"
            );
        }
    }

    #[test]
    fn a_pod_that_comes_or_goes_during_an_observation_is_no_violation() {
        let mut observation = sound();
        observation.answers.insert(address(1), "b".to_owned());
        for pods in [&PODS[1..], &[("a", "node-1", 3), PODS[1]]] {
            observation.after = ready(pods);
            assert_eq!(violations(&observation, &Excuses::default()), [""; 0]);
        }
    }

    /// `node-1` has lost address 1, and `node-2` has been given it.
    fn taken() -> Observation {
        let mut observation = sound();
        observation.nics = of(&[("node-1", &[]), ("node-2", &[1, 2, 4])]);
        observation.wired = of(&[("node-1", &[1]), ("node-2", &[1, 2])]);
        observation.answers.insert(address(1), "c".to_owned());
        observation
    }

    const LOST: &str = "10.0.0.1 leads to a pod of node-1, whose NIC doesn't hold it";

    #[test]
    fn what_others_took_off_a_nic_is_excused_and_nothing_else() {
        let (now, mut excuses) = (Instant::now(), Excuses::default());
        excuses.begin("node-1");
        assert_eq!(taken().found(&excuses), Found { violations: BTreeSet::new(), excused: 1 });
        excuses.taken("node-1", &[address(3)], now);
        assert!(violations(&taken(), &excuses).contains(&LOST.to_owned()));
        excuses.taken("node-1", &[address(1)], now);
        let mut observation = taken();
        assert_eq!(observation.found(&excuses), Found { violations: BTreeSet::new(), excused: 1 });
        observation.nics.get_mut("node-2").unwrap().remove(&address(2));
        assert_eq!(
            violations(&observation, &excuses),
            ["10.0.0.2 leads to a pod of node-2, whose NIC doesn't hold it"]
        );
    }

    #[test]
    fn an_excuse_ends_when_its_address_is_back_or_could_have_been_noticed_and_leads_to_no_pod() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let noticed = later + NOTICED;
        let free = Observation { wired: Addresses::new(), ..taken() };
        for (began, seen, is_excused) in [
            // An observation that began before may have seen the state before.
            (now.checked_sub(Duration::from_secs(1)).unwrap(), sound(), true),
            (later, taken(), true),
            (noticed, taken(), true),
            // Its node has not noticed yet, and may give it to the next pod.
            (later, free.clone(), true),
            (noticed, free, false),
            (later, sound(), false),
        ] {
            let mut excuses = Excuses::default();
            excuses.taken("node-1", &[address(1)], now);
            excuses.end(began, &seen);
            assert_eq!(excuses.cover("node-1", address(1)), is_excused, "{seen:?}");
        }
    }

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
    fn whatever_is_left_is_named() {
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

    #[test]
    fn each_eye_sees_what_is_there() {
        let routes = json!([
            { "dst": "default", "gateway": "10.0.0.254", "dev": "eth0" },
            { "dst": "10.0.0.0/24", "dev": "eth0" },
            { "dst": "10.0.0.1", "dev": "vnp0123456789a", "scope": "link" },
            { "dst": "10.0.0.2", "dev": "vnpbridge", "scope": "link" },
            { "type": "unreachable", "dst": "10.1.0.0/28" },
        ]);
        assert_eq!(led_to_pods(&routes.to_string()).unwrap(), [address(1), address(2)].into());
        assert!(led_to_pods("").is_err());

        let ledger = "ledger 1\nfree vnp-1 10.0.0.3 - 81023\n\
            assigned vnp-2 10.0.0.1 - 90511 vnp0123456789a 4f1c eth0 uid default web-0 - vnetpool\n\
            waiting 95002 77aa eth0 uid default web-1 vnetpool\nend\n";
        assert_eq!(assigned(ledger), [address(1)].into());

        let list = json!({ "items": [
            { "metadata": { "name": "node-1" }, "spec": { "interfaces": [
                { "ipConfigurations": [{ "address": "10.0.0.1/32" }, { "address": "10.0.0.2" }] } ] } },
            { "metadata": { "name": "node-2" }, "spec": {} },
        ] });
        assert_eq!(reserved(&list), of(&[("node-1", &[1, 2]), ("node-2", &[])]));

        let printed = "{\"local\": \"10.0.0.1\", \"name\": \"a\", \"peer\": \"x\"}{\"local\": \"10.0.0.2\", \"name\": \"b\"}\n";
        let all = [(address(1), "a".to_owned()), (address(2), "b".to_owned())];
        assert_eq!(answers(printed), all.into());
    }
}
