//! The ledger as `NodeIPAllocation.status`: composing it and comparing it with the published status. Pure;
//! [`publish`] writes it, and [`local`] where there is no cluster.

pub mod local;
pub mod pace;
pub mod publish;

use std::collections::BTreeSet;

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use vnetpool_crds::reason::Reason;
use vnetpool_crds::verdict::Verdict;
use vnetpool_crds::{NodeIPAllocationStatus, allocation::Holder, condition};
use vnetpool_plugin::ledger::{Assignment, Counts, Entry, Ledger, Millis, Occupant, Pod, Proof, Sandbox};

/// The node's report at one moment.
#[derive(Clone, Debug)]
pub struct Report {
    pub ledger: Ledger,
    /// CLOCK_BOOTTIME of the read of the ledger.
    pub at: Millis,
    /// The same moment by the wall clock.
    pub time: Timestamp,
    /// The generation of the spec in the ledger; None if the spec seen last isn't in it.
    pub generation: Option<i64>,
    /// `spec.warm` and `spec.reportHolders` of the object seen last.
    pub warm: u32,
    pub names_holders: bool,
    /// Names of the reservations that the metadata service no longer lists.
    pub unlisted: BTreeSet<String>,
    /// Whether it reports nothing of the NIC; `None` if this agent hasn't found out yet.
    pub metadata_silent: Option<bool>,
    /// The agent's conditions.
    pub conditions: Vec<Condition>,
}

/// The agent's part of the status, given the status published last: an unchanged part keeps its times.
pub fn compose(report: &Report, published: Option<&NodeIPAllocationStatus>) -> NodeIPAllocationStatus {
    let Report {
        ledger,
        at,
        time,
        generation,
        warm: _,
        names_holders,
        unlisted,
        metadata_silent,
        conditions,
    } = report;
    let Counts {
        held,
        assigned,
        cooling,
        free,
        waiting,
        relinquished: _,
        vanished,
        withdrawn: _,
        withheld: _,
    } = ledger.counts(*at);

    let mut relinquished: Vec<String> = ledger.relinquished().map(str::to_owned).collect();
    relinquished.sort();

    // An address that the node itself has given up is on its way off the NIC: that it isn't listed is no
    // news.
    let unlisted = unlisted.iter().filter(|name| !relinquished.contains(name)).cloned().collect();

    // An agent that has just started would have the operator wait for hints that don't come.
    let was_silent =
        || published.is_some_and(|last| last.metadata_silent && last.boot_id == ledger.boot_id());

    let pods: BTreeSet<&str> = ledger.assignments().map(|(_, one)| one.pod.uid.as_str()).collect();
    let mut merged = published.map(ours).unwrap_or_default();
    for condition in conditions {
        condition::set(&mut merged, condition.clone());
    }
    // This condition is part of every report, or it has ended.
    let is_reported = conditions.iter().any(|one| one.type_ == condition::METADATA_REFUSED);
    merged.retain(|one| is_reported || one.type_ != condition::METADATA_REFUSED);
    NodeIPAllocationStatus {
        observed_generation: generation.or(published.and_then(|status| status.observed_generation)),
        boot_id: ledger.boot_id().to_owned(),
        held,
        // An address that was taken away under its pod is no longer held: it stands in `lost` and a
        // condition.
        assigned: assigned - vanished,
        cooling,
        free,
        waiting,
        counted_at: Timestamp::from_second(time.as_second()).ok().map(Time),
        pods: pods.iter().filter(|uid| !uid.is_empty()).count() as u32,
        relinquished,
        unlisted,
        metadata_silent: metadata_silent.unwrap_or_else(was_silent),
        lost: holders(ledger, |_, one| one.vanished),
        // A mark that is in no `spec` any more, since its address isn't, confirms nothing.
        confirmed: holders(ledger, |entry, one| entry.attached_to.is_some() && !one.vanished),
        leases: holders(ledger, |_, one| matches!(one.proof, Proof::Namespace { .. })),
        holders: holders(ledger, |_, _| *names_holders),
        conditions: merged,
    }
}

/// Those of the pods' addresses that `is_meant`, by address.
fn holders(ledger: &Ledger, is_meant: impl Fn(&Entry, &Assignment) -> bool) -> Vec<Holder> {
    let mut meant: Vec<_> = ledger.assignments().filter(|(entry, one)| is_meant(entry, one)).collect();
    meant.sort_by_key(|(entry, _)| entry.address);
    let holder = |(entry, one): (&Entry, &Assignment)| Holder {
        address: entry.address.to_string(),
        pod: one.pod.to_string(),
        pod_uid: one.pod.uid.clone(),
        sandbox: format!("{}/{}", one.sandbox.container_id, one.sandbox.ifname),
        netns: match &one.proof {
            Proof::Link(_) => None,
            Proof::Namespace { path, .. } => Some(path.clone()),
        },
    };
    meant.into_iter().map(holder).collect()
}

/// The agent's part of the status while it is about to build a ledger: as it was, but for a condition that is
/// never the same twice, so that applying it makes a new version of the object.
pub fn building(
    published: Option<&NodeIPAllocationStatus>,
    generation: Option<i64>,
    now: Timestamp,
) -> NodeIPAllocationStatus {
    let message = format!("the node has no ledger; one is being built since {now}");
    let mut status = published.cloned().unwrap_or_default();
    status.conditions = ours(&status);
    let supplied = Verdict::no(Reason::Building, message).condition(condition::SUPPLIED, generation, now);
    condition::set(&mut status.conditions, supplied);
    status
}

/// The sandboxes that other plugins wired, as this status listed them in the boot `boot_id`. Nothing else on
/// the node remembers them once the ledger is lost. The status doesn't have their namespaces' inodes, so
/// those are gone only with their files.
pub fn leased(status: &NodeIPAllocationStatus, boot_id: &str) -> Vec<Occupant> {
    let is_of_boot = status.boot_id == boot_id;
    let leases = status.leases.iter().filter(|_| is_of_boot);
    let occupant = |lease: &Holder| -> Option<Occupant> {
        let (container_id, ifname) = lease.sandbox.rsplit_once('/')?;
        let (namespace, name) = lease.pod.split_once('/').unwrap_or_default();
        Some(Occupant {
            sandbox: Sandbox { container_id: container_id.to_owned(), ifname: ifname.to_owned() },
            pod: Pod { namespace: namespace.to_owned(), name: name.to_owned(), uid: lease.pod_uid.clone() },
            address: lease.address.parse().ok()?,
            proof: Proof::Namespace { path: lease.netns.clone()?, inode: None },
        })
    };
    leases.filter_map(occupant).collect()
}

/// Whether the published status has the same report already, so that there is nothing to write.
pub fn is_published(status: &NodeIPAllocationStatus, published: Option<&NodeIPAllocationStatus>) -> bool {
    published.is_some_and(|published| {
        let timeless = |status| NodeIPAllocationStatus { counted_at: None, ..without_conditions(status) };
        timeless(status) == timeless(published) && condition::same(&ours(status), &ours(published))
    })
}

/// The API server doesn't promise to keep the order of lists with keys.
fn without_conditions(status: &NodeIPAllocationStatus) -> NodeIPAllocationStatus {
    let mut status = NodeIPAllocationStatus { conditions: vec![], ..status.clone() };
    status.relinquished.sort();
    status.unlisted.sort();
    for list in [&mut status.lost, &mut status.confirmed, &mut status.leases, &mut status.holders] {
        list.sort_by(|a, b| a.address.cmp(&b.address));
    }
    status
}

/// The agent's conditions among all.
fn ours(status: &NodeIPAllocationStatus) -> Vec<Condition> {
    let is_ours = |condition: &&Condition| condition::is_agents(condition);
    status.conditions.iter().filter(is_ours).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{net::Ipv4Addr, time::Duration};
    use vnetpool_plugin::ledger::{Claim, Entry, Pod, Sandbox, Supply};

    fn supply(names: &[u8]) -> Supply {
        let entry = |&n: &u8| Entry {
            name: format!("vnp-{n}"),
            address: Ipv4Addr::new(10, 240, 0, n),
            attached_to: None,
        };
        Supply {
            object: "object".into(),
            generation: 1,
            node_uid: "node".into(),
            boot_id: "boot".into(),
            cooldown: Duration::from_secs(30),
            entries: names.iter().map(entry).collect(),
        }
    }

    fn ledger(names: &[u8]) -> Ledger {
        Ledger::rebuild("boot", &[], &[], &supply(names), None, 0, true)
    }

    fn sandbox(id: &str) -> Sandbox {
        Sandbox { container_id: id.into(), ifname: "eth0".into() }
    }

    fn pod(name: &str) -> Pod {
        Pod { namespace: "default".into(), name: name.into(), uid: "uid".into() }
    }

    fn report(ledger: Ledger, at: Millis) -> Report {
        let time = Timestamp::from_millisecond(1_000_000_000_000 + at as i64).unwrap();
        let supplied = Verdict::yes(Reason::Supplied, "").condition(condition::SUPPLIED, Some(1), time);
        Report {
            ledger,
            at,
            time,
            generation: Some(1),
            warm: 0,
            names_holders: false,
            unlisted: BTreeSet::new(),
            metadata_silent: None,
            conditions: vec![supplied],
        }
    }

    #[test]
    fn the_status_counts_and_names_holders_only_on_request() {
        let mut ledger = ledger(&[9, 10, 11]);
        for id in ["a", "b"] {
            ledger.assign(&Claim::wired(&sandbox(id), &pod(id), ""), 5_000);
        }
        ledger.free(&sandbox("a"), 6_000);
        let reported = report(ledger, 7_000);
        let status = compose(&reported, None);
        assert_eq!(
            (status.held, status.assigned, status.cooling, status.free, status.waiting, status.pods),
            (3, 1, 1, 1, 0, 1)
        );
        assert_eq!(status.counted_at, Some(Time(Timestamp::from_second(1_000_000_007).unwrap())));
        let lists = |status: &NodeIPAllocationStatus| {
            [&status.lost, &status.confirmed, &status.leases, &status.holders].map(Vec::len)
        };
        assert_eq!(lists(&status), [0; 4]);
        let status = compose(&Report { names_holders: true, ..reported }, None);
        assert_eq!(lists(&status), [0, 0, 0, 1]);
        let Holder { address, pod, pod_uid, sandbox, netns } = &status.holders[0];
        assert_eq!(
            (address.as_str(), pod.as_str(), pod_uid.as_str(), sandbox.as_str(), netns),
            ("10.240.0.10", "default/b", "uid", "b/eth0", &None)
        );
    }

    /// The operator attaches a resource to an address only if no other pod can get the address: this is the
    /// agent's confirmation that no other pod has it or will.
    #[test]
    fn a_mark_is_confirmed_once_the_ledger_has_it_and_while_the_address_is_held() {
        let mut ledger = ledger(&[9, 10]);
        ledger.assign(&Claim::wired(&sandbox("a"), &pod("a"), ""), 0);
        let confirmed = |ledger: &Ledger| {
            let one = compose(&report(ledger.clone(), 0), None).confirmed;
            one.into_iter().map(|one| (one.address, one.pod_uid)).collect::<Vec<_>>()
        };
        assert_eq!(confirmed(&ledger), []);
        let marked = |generation, names: &[u8]| {
            let mut supply = Supply { generation, ..supply(names) };
            for entry in supply.entries.iter_mut().filter(|entry| entry.name == "vnp-9") {
                entry.attached_to = Some("uid".into());
            }
            supply
        };
        ledger.supply(&marked(2, &[9, 10]));
        assert_eq!(confirmed(&ledger), [("10.240.0.9".to_owned(), "uid".to_owned())]);
        ledger.supply(&marked(3, &[10]));
        assert_eq!(confirmed(&ledger), [], "somebody else may have the address by now");
        ledger.supply(&marked(4, &[9, 10]));
        ledger.free(&sandbox("a"), 0);
        assert_eq!(confirmed(&ledger), []);
    }

    #[test]
    fn a_new_ledgers_announcement_keeps_the_relinquished_names_and_differs_each_time() {
        let published = NodeIPAllocationStatus {
            relinquished: vec!["vnp-9".into()],
            conditions: vec![Verdict::yes(Reason::Ready, "").condition(
                condition::READY,
                None,
                Timestamp::UNIX_EPOCH,
            )],
            ..compose(&report(ledger(&[10]), 0), None)
        };
        let [first, second] = [1, 2].map(|nanosecond| {
            building(Some(&published), Some(1), Timestamp::new(1_000_000_000, nanosecond).unwrap())
        });
        assert_ne!(first, second);
        assert_eq!((&first.relinquished, first.held), (&published.relinquished, published.held));
        // The operator's conditions aren't ours to write.
        assert!(condition::find(&first.conditions, condition::READY).is_none());
        assert!(!condition::is_true(&first.conditions, condition::SUPPLIED));
    }

    #[test]
    fn leases_of_a_lost_ledger_are_known_from_the_status() {
        let mut ledger = ledger(&[9, 10, 11]);
        let proof = Proof::Namespace { path: "/run/netns/cni-1".into(), inode: Some(4) };
        let (sandbox_a, pod_a) = (sandbox("a"), pod("a"));
        let claim = Claim { sandbox: &sandbox_a, pod: &pod_a, network: "leased", proof: proof.clone() };
        ledger.assign(&claim, 0);
        ledger.assign(&Claim::wired(&sandbox("b"), &pod("b"), ""), 0);
        let status = compose(&report(ledger, 0), None);
        assert_eq!(status.leases.len(), 1);
        assert_eq!(status.leases[0].netns.as_deref(), Some("/run/netns/cni-1"));

        assert_eq!(leased(&status, "another boot"), []);
        let occupants = leased(&status, "boot");
        let rebuilt = Ledger::rebuild("boot", &occupants, &[], &supply(&[9, 10, 11]), Some(0), 0, true);
        assert_eq!(rebuilt.address_of(&sandbox("a")), Some(Ipv4Addr::new(10, 240, 0, 9)));
        assert_eq!(rebuilt.address_of(&sandbox("b")), None, "known from its link, if at all");
        let again = Proof::Namespace { path: "/run/netns/cni-1".into(), inode: None };
        assert_eq!(rebuilt.assignments().next().unwrap().1.proof, again);
    }

    #[test]
    fn that_the_metadata_service_is_silent_stands_until_an_agent_of_this_boot_knows_better() {
        let silent = |is_silent, published: Option<&NodeIPAllocationStatus>| {
            compose(&Report { metadata_silent: is_silent, ..report(ledger(&[9]), 0) }, published)
        };
        assert!(!silent(None, None).metadata_silent);
        let published = silent(Some(true), None);
        assert!(published.metadata_silent);
        assert!(silent(None, Some(&published)).metadata_silent, "the agent has started anew");
        assert!(!silent(Some(false), Some(&published)).metadata_silent);
        let of_another_boot = NodeIPAllocationStatus { boot_id: "before".into(), ..published };
        assert!(!silent(None, Some(&of_another_boot)).metadata_silent);
    }

    #[test]
    fn a_relinquished_address_is_reported_and_no_longer_held() {
        let mut ledger = ledger(&[9, 10, 11]);
        ledger.relinquish(1, 0);
        let status = compose(&report(ledger, 0), None);
        assert_eq!((status.held, status.free), (1, 1));
        assert_eq!(status.relinquished, ["vnp-10", "vnp-9"]);
    }

    #[test]
    fn an_unlisted_address_is_reported_unless_the_node_has_given_it_up() {
        let mut ledger = ledger(&[9, 10]);
        ledger.relinquish(1, 0);
        let given_up: Vec<String> = ledger.relinquished().map(str::to_owned).collect();
        let both = ["vnp-9", "vnp-10"].map(str::to_owned);
        let reported = Report { unlisted: both.clone().into(), ..report(ledger, 0) };
        let status = compose(&reported, None);
        let rest: Vec<String> = both.into_iter().filter(|name| !given_up.contains(name)).collect();
        assert_eq!(status.unlisted, rest);
        assert!(!is_published(&status, Some(&NodeIPAllocationStatus { unlisted: vec![], ..status.clone() })));
    }

    #[test]
    fn an_address_taken_away_under_its_pod_is_lost_and_no_longer_held() {
        let mut ledger = ledger(&[9]);
        ledger.assign(&Claim::wired(&sandbox("a"), &pod("a"), ""), 0);
        ledger.supply(&Supply { generation: 2, ..supply(&[10]) });
        let status = compose(&report(ledger, 0), None);
        assert_eq!((status.held, status.assigned, status.free), (1, 0, 1));
        let lost = [("10.240.0.9", "uid")];
        assert!(status.lost.iter().map(|one| (one.address.as_str(), one.pod_uid.as_str())).eq(lost));
    }

    #[test]
    fn time_alone_is_no_news() {
        let mut ledger = ledger(&[9]);
        ledger.assign(&Claim::wired(&sandbox("a"), &pod("a"), ""), 0);
        let published = compose(&report(ledger.clone(), 0), None);
        let mut later = report(ledger, 5_000);
        later.time += Duration::from_secs(1); // a step of the wall clock
        let status = compose(&later, Some(&published));
        assert!(is_published(&status, Some(&published)));
        let untimed = NodeIPAllocationStatus { counted_at: None, ..status };
        assert_eq!(
            untimed,
            NodeIPAllocationStatus { counted_at: None, ..published },
            "transition times stay"
        );
    }

    #[test]
    fn the_end_of_a_cooldown_is_news() {
        let mut ledger = ledger(&[9]);
        ledger.assign(&Claim::wired(&sandbox("a"), &pod("a"), ""), 0);
        ledger.free(&sandbox("a"), 0);
        let published = compose(&report(ledger.clone(), 0), None);
        let status = compose(&report(ledger, 30_000), Some(&published));
        assert_eq!((published.free, status.free), (0, 1));
        assert!(!is_published(&status, Some(&published)));
    }

    #[test]
    fn the_operators_conditions_are_neither_written_nor_compared() {
        let mut published = compose(&report(ledger(&[9]), 0), None);
        let time = Timestamp::from_second(0).unwrap();
        let full = Verdict::no(Reason::SubnetFull, "").condition(condition::READY, None, time);
        published.conditions.push(full);
        let status = compose(&report(ledger(&[9]), 0), Some(&published));
        assert!(condition::find(&status.conditions, condition::READY).is_none());
        assert!(is_published(&status, Some(&published)));
    }

    #[test]
    fn a_spec_that_was_not_taken_in_leaves_the_observed_generation_where_it_was() {
        let published = compose(&report(ledger(&[9]), 0), None);
        let status = compose(&Report { generation: None, ..report(ledger(&[9]), 0) }, Some(&published));
        assert_eq!(status.observed_generation, Some(1));
    }
}
