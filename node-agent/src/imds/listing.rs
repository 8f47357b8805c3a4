//! Which of a node's addresses the instance metadata service no longer lists: another client than the
//! operator may have taken them off the NIC, as an upgrade of a scale set's model does. [`Listing`] is pure;
//! [`watch()`] asks.
//!
//! The service is local to the VM and free, so every node can ask twice a minute, where reading thousands of
//! NICs would use Azure's limits up. But it is a hint and no more. How long a change takes to show there
//! isn't published, so an address that was never listed proves nothing, and one answer may be a bad one. The
//! agent reports the difference to the operator, which reads the NIC.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    net::Ipv4Addr,
    time::Duration,
};

use ipnet::Ipv4Net;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use vnetpool_crds::allocation::Interface;

use super::{Network, client, hardware_address};
use crate::{beat::Beat, object::Seen};

/// Before a reservation that is missing for the first time is checked again, at least, and up to three times
/// as long: many nodes that lose addresses at one moment must not all come to the operator at another.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// So many answers in a row must lack a reservation that was listed.
const MISSES: u32 = 2;
/// So many requests in a row without a usable answer make the service a silent one: for four minutes or
/// five. A VM that Azure moves to another host may be without it for a moment.
pub const SILENT: u32 = 8;

/// The result of the requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Names of reservations that were listed and aren't any more.
    pub unlisted: BTreeSet<String>,
    /// Whether the service reports nothing of the NIC. `None`: this process hasn't found out yet.
    pub is_silent: Option<bool>,
}

/// The service's listing of a NIC since this process started.
#[derive(Debug, Default)]
pub struct Listing {
    /// By the reservation's name, how many answers in a row have lacked it since it was listed.
    missed: BTreeMap<String, u32>,
    /// How many requests in a row had no usable answer.
    unanswered: u32,
    is_silent: Option<bool>,
}

impl Listing {
    /// Takes in one answer, given the NIC as `spec` has it. An answer that lacks the NIC or its primary
    /// address, from which the agent asks, isn't to be believed and changes nothing.
    pub fn take_in(&mut self, nic: &Interface, answer: &Network) {
        let has_mac = |one: &&super::Nic| {
            hardware_address(&one.mac_address).is_ok_and(|mac| mac.eq_ignore_ascii_case(&nic.mac))
        };
        let interface = answer.interface.iter().find(has_mac);
        let listed: BTreeSet<&str> = interface.into_iter().flat_map(super::Nic::listed).collect();
        if !listed.contains(nic.primary_address.as_str()) {
            return self.ask_in_vain();
        }
        (self.unanswered, self.is_silent) = (0, Some(false));
        let held: BTreeMap<&str, Ipv4Addr> = singles(nic).collect();
        self.missed.retain(|name, _| held.contains_key(name.as_str()));
        for (name, address) in held {
            if listed.contains(address.to_string().as_str()) {
                self.missed.insert(name.to_owned(), 0);
            } else if let Some(missed) = self.missed.get_mut(name) {
                *missed = missed.saturating_add(1);
            }
        }
    }

    /// No answer came, or none that can be believed.
    pub fn ask_in_vain(&mut self) {
        self.unanswered = self.unanswered.saturating_add(1);
        if self.unanswered >= SILENT {
            self.is_silent = Some(true);
        }
    }

    /// The names of reservations that were listed and aren't any more, and whether the service answers.
    pub fn comparison(&self) -> Comparison {
        let unlisted = self.missed.iter().filter(|(_, missed)| **missed >= MISSES);
        Comparison { unlisted: unlisted.map(|(name, _)| name.clone()).collect(), is_silent: self.is_silent }
    }

    /// Whether the next answer will show whether something is missing.
    fn is_in_doubt(&self) -> bool {
        self.missed.values().any(|missed| (1..MISSES).contains(missed))
    }
}

/// The reservations that the service would list one by one: it shows neither blocks nor routes.
fn singles(nic: &Interface) -> impl Iterator<Item = (&str, Ipv4Addr)> {
    nic.ip_configurations.iter().filter_map(|one| {
        let range: Ipv4Net = one.address.parse().ok()?;
        (range.prefix_len() == 32).then(|| (one.name.as_str(), range.addr()))
    })
}

/// Asks at each beat for as long as the node holds single addresses, and keeps the result in `comparison`.
/// If the service doesn't answer, for instance because a node's administrator has closed it, no pod misses
/// it: the operator reads the NIC more often instead.
pub async fn watch(
    mut objects: watch::Receiver<Seen>,
    comparison: watch::Sender<Comparison>,
    beat: Beat,
) -> anyhow::Result<()> {
    let mut listing = Listing::default();
    for count in 0_u64.. {
        let has_singles = |seen: &Seen| {
            let nic = seen.object().and_then(|object| object.spec.serving());
            nic.is_some_and(|nic| singles(nic).next().is_some())
        };
        objects.wait_for(has_singles).await?;
        let answer = client::network().await;
        // As `spec` is now that there is an answer: a reservation that came after the request may well not be
        // in it, and wasn't listed before.
        let seen = objects.borrow().clone();
        let Some(object) = seen.object() else { continue };
        match (answer, object.spec.serving()) {
            (Ok(answer), Some(nic)) => listing.take_in(nic, &answer),
            (Err(error), _) => {
                tracing::debug!(error = format!("{error:#}"), "not checked for lost addresses");
                listing.ask_in_vain();
            }
            (Ok(_), None) => {}
        }
        let now = listing.comparison();
        comparison.send_if_modified(|before| std::mem::replace(before, now.clone()) != now);
        let again = if listing.is_in_doubt() {
            Instant::now() + pause(&object.spec.node_uid, count)
        } else {
            beat.next()
        };
        sleep_until(again).await;
    }
    Ok(())
}

/// Differs by node and from request to request.
fn pause(node_uid: &str, count: u64) -> Duration {
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one((node_uid, count));
    ASK_AGAIN + Duration::from_millis(hash % (2 * ASK_AGAIN).as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use vnetpool_crds::allocation::IpConfiguration;

    fn nic(held: &[(&str, &str)]) -> Interface {
        let one = |(name, address): &(&str, &str)| IpConfiguration {
            name: (*name).to_owned(),
            address: (*address).to_owned(),
            ..IpConfiguration::default()
        };
        Interface {
            mac: "00:0d:3a:e5:1c:c0".into(),
            primary_address: "10.240.0.4".into(),
            ip_configurations: held.iter().map(one).collect(),
            ..Interface::default()
        }
    }

    fn answer_of(mac: &str, addresses: &[&str]) -> Network {
        let listed: Vec<Value> =
            addresses.iter().map(|address| json!({ "privateIpAddress": address })).collect();
        let other = json!({ "ipv4": { "ipAddress": [{ "privateIpAddress": "10.240.1.4" }], "subnet": [] },
            "macAddress": "000D3AE51CC9" });
        let asked = json!({ "ipv4": { "ipAddress": listed, "subnet": [] }, "macAddress": mac });
        serde_json::from_value(json!({ "interface": [other, asked] })).unwrap()
    }

    fn answer(addresses: &[&str]) -> Network {
        answer_of("000D3AE51CC0", &[&["10.240.0.4"], addresses].concat())
    }

    fn names(listing: &Listing) -> Vec<String> {
        listing.comparison().unlisted.into_iter().collect()
    }

    const TWO: [(&str, &str); 2] = [("vnp-1", "10.240.0.5/32"), ("vnp-2", "10.240.0.6/32")];

    #[test]
    fn an_address_missed_twice_in_a_row_is_reported_until_it_is_listed_again() {
        let (mut listing, nic) = (Listing::default(), nic(&TWO));
        listing.take_in(&nic, &answer(&["10.240.0.5", "10.240.0.6"]));
        listing.take_in(&nic, &answer(&["10.240.0.5"]));
        assert_eq!((names(&listing), listing.is_in_doubt()), (vec![], true));
        listing.take_in(&nic, &answer(&["10.240.0.5"]));
        assert_eq!((names(&listing), listing.is_in_doubt()), (vec!["vnp-2".to_owned()], false));
        listing.take_in(&nic, &answer(&["10.240.0.5", "10.240.0.6"]));
        assert_eq!(names(&listing), Vec::<String>::new());
        listing.take_in(&nic, &answer(&["10.240.0.5"]));
        assert_eq!(names(&listing), Vec::<String>::new(), "answers in a row count");
    }

    #[test]
    fn an_address_that_was_never_listed_is_never_missed() {
        let (mut listing, nic) = (Listing::default(), nic(&TWO));
        for _ in 0..10 {
            listing.take_in(&nic, &answer(&["10.240.0.5"]));
        }
        assert_eq!(names(&listing), Vec::<String>::new());
    }

    #[test]
    fn an_address_that_comes_back_under_another_name_is_as_if_never_listed() {
        let mut listing = Listing::default();
        listing.take_in(&nic(&TWO), &answer(&["10.240.0.5", "10.240.0.6"]));
        let restored = nic(&[("vnp-1", "10.240.0.5/32"), ("vnp-3", "10.240.0.6/32")]);
        for _ in 0..3 {
            listing.take_in(&restored, &answer(&["10.240.0.5"]));
        }
        assert_eq!(names(&listing), Vec::<String>::new());
    }

    #[test]
    fn an_answer_without_the_nic_or_its_own_address_is_not_believed() {
        let (mut listing, nic) = (Listing::default(), nic(&TWO));
        listing.take_in(&nic, &answer(&["10.240.0.5", "10.240.0.6"]));
        for _ in 0..3 {
            listing.take_in(&nic, &answer_of("000D3AE51CC1", &["10.240.0.4"]));
            listing.take_in(&nic, &answer_of("000D3AE51CC0", &[]));
        }
        assert_eq!((names(&listing), listing.is_in_doubt()), (vec![], false));
    }

    #[test]
    fn a_service_that_reports_nothing_eight_times_in_a_row_is_silent_until_it_reports_something() {
        let (mut listing, nic) = (Listing::default(), nic(&TWO));
        let is_silent = |listing: &Listing| listing.comparison().is_silent;
        (1..SILENT).for_each(|_| listing.ask_in_vain());
        assert_eq!(is_silent(&listing), None, "an agent that has just started doesn't know");
        listing.take_in(&nic, &answer_of("000D3AE51CC1", &["10.240.0.4"]));
        assert_eq!(is_silent(&listing), Some(true), "an answer without the NIC shows nothing of it");
        listing.take_in(&nic, &answer(&[]));
        assert_eq!(is_silent(&listing), Some(false));
        (1..SILENT).for_each(|_| listing.ask_in_vain());
        assert_eq!(is_silent(&listing), Some(false), "requests in a row count");
        listing.ask_in_vain();
        assert_eq!(is_silent(&listing), Some(true));
    }

    #[test]
    fn blocks_and_routes_are_not_expected_in_the_listing() {
        let mut listing = Listing::default();
        let blocks = nic(&[("vnp-1", "10.240.0.16/28"), ("vnp-2", "10.244.3.0/24")]);
        listing.take_in(&blocks, &answer(&["10.240.0.16", "10.244.3.0"]));
        listing.take_in(&blocks, &answer(&[]));
        listing.take_in(&blocks, &answer(&[]));
        assert_eq!(names(&listing), Vec::<String>::new());
    }

    #[test]
    fn nodes_ask_again_after_half_a_minute_at_most_and_not_in_step() {
        let pauses: BTreeSet<Duration> =
            (0..20).flat_map(|count| ["a", "b"].map(|node| pause(node, count))).collect();
        assert_eq!(pauses.len(), 40);
        assert!(pauses.iter().all(|pause| *pause >= ASK_AGAIN && *pause < 3 * ASK_AGAIN));
    }
}
