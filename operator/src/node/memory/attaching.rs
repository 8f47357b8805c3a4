//! The state of a node's attachments so far.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vnetpool_crds::allocation;

use crate::azure::{self, PublicAddress, ResourceId};
use crate::lock::lock;
use crate::node::absences::{Absences, Recorded};
use crate::node::setback::{Setback, Stage};
use crate::planner::attachments::{Make, Wish, pod_of};

/// When so many addresses by themselves have been refused the same, the others are likely to be, too.
const ALIKE: usize = 3;

/// What this process remembers of a node's attachments. All of it can be lost.
#[derive(Clone, Debug)]
pub struct Attaching {
    /// Public addresses as Azure reported them; `None`: it is deleted.
    pub public: HashMap<ResourceId, Option<allocation::PublicAddress>>,
    /// Pods with a wish that Azure has refused, by UID, with their names. Each pod has an Event about it.
    pub refused: HashMap<String, (String, Setback)>,
    /// Pods whose public address is made anew, because Azure didn't find it: by UID.
    pub anew: HashSet<String>,
    /// Public addresses that Azure hasn't found, or has refused to show.
    pub unread: HashMap<ResourceId, Setback>,
    /// The wishes of the node's pods when they were last seen, by UID.
    wishes: HashMap<String, Wish>,
    /// Public addresses that Azure has refused to delete, or hasn't found.
    pub undeleted: HashMap<ResourceId, Setback>,
    /// Since when it hasn't.
    absences: Absences,
    /// ipConfigurations off which Azure has refused to take something, by name.
    pub undetached: HashMap<String, Setback>,
    /// The reason why all of the node's attachments wait.
    pub setback: Option<Setback>,
    /// The refusals that were reported to pods, by UID: each Event comes once.
    pub reported: HashMap<String, String>,
    /// How many to attach or to detach in one write.
    pub batch: usize,
    pub orders: Orders,
}

/// The orders to make, read or delete public addresses, which are carried out beside the node's reconciles:
/// those under way, and those whose outcome hasn't been taken in. There is one at a time for each public
/// address.
#[derive(Clone, Debug, Default)]
pub struct Orders(Arc<Mutex<HashMap<ResourceId, Option<Done>>>>);

/// What is to be done with a public address.
#[derive(Debug)]
pub enum Order {
    Make(Make),
    Read(ResourceId),
    Delete(ResourceId),
}

/// The outcome of an order: the public address as Azure has it now; `None`: there is none.
#[derive(Debug)]
pub struct Done {
    pub order: Order,
    pub result: Result<Option<PublicAddress>, azure::Error>,
    /// All are refused the same: one of them asks on behalf of all.
    pub is_shared: bool,
}

/// An order under way. Dropped before its end, it is as if it had never begun: whatever was sent by then, it
/// can be sent again.
#[derive(Debug)]
pub struct Begun {
    orders: Orders,
    id: ResourceId,
}

impl Order {
    pub fn id(&self) -> &ResourceId {
        match self {
            Order::Make(asked) => &asked.id,
            Order::Read(id) | Order::Delete(id) => id,
        }
    }

    /// The kind of the call that carries it out.
    pub fn call(&self) -> azure::Kind {
        match self {
            Order::Make(_) => azure::Kind::Write,
            Order::Read(_) => azure::Kind::Read,
            Order::Delete(_) => azure::Kind::Delete,
        }
    }
}

impl Orders {
    /// Begins an order for this public address. `None`: there is one already.
    pub fn begin(&self, id: &ResourceId) -> Option<Begun> {
        let mut all = lock(&self.0);
        if all.contains_key(id) {
            return None;
        }
        all.insert(id.clone(), None);
        Some(Begun { orders: self.clone(), id: id.clone() })
    }

    /// Whether there is one for this public address.
    pub fn has(&self, id: &ResourceId) -> bool {
        lock(&self.0).contains_key(id)
    }

    /// Takes out those that have ended.
    pub fn take(&self) -> Vec<Done> {
        lock(&self.0).extract_if(|_, done| done.is_some()).filter_map(|(_, done)| done).collect()
    }
}

impl Begun {
    /// An order that was given up is dropped: nothing was sent.
    pub fn ended(self, done: Done) {
        if !done.result.as_ref().is_err_and(azure::Error::is_given_up) {
            lock(&self.orders.0).insert(self.id.clone(), Some(done));
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut all = lock(&self.orders.0);
        if matches!(all.get(&self.id), Some(None)) {
            all.remove(&self.id);
        }
    }
}

impl Default for Attaching {
    fn default() -> Self {
        Attaching {
            public: HashMap::new(),
            refused: HashMap::new(),
            anew: HashSet::new(),
            unread: HashMap::new(),
            wishes: HashMap::new(),
            undeleted: HashMap::new(),
            absences: Absences::default(),
            undetached: HashMap::new(),
            setback: None,
            reported: HashMap::new(),
            batch: usize::MAX,
            orders: Orders::default(),
        }
    }
}

impl Attaching {
    /// How long until something that was refused may be tried again.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        let refused = self.refused.values().map(|(_, setback)| setback);
        let public = self.undeleted.values().chain(self.unread.values());
        let all = refused.chain(public).chain(self.undetached.values()).chain(&self.setback);
        all.filter(|setback| setback.holds(now)).map(|setback| setback.until - now).min()
    }

    pub fn holds(&self, now: Instant) -> bool {
        self.setback.as_ref().is_some_and(|setback| setback.holds(now))
    }

    /// A person has edited the node's pool: what only a person can end is tried at once.
    pub fn edited(&mut self, now: Instant) {
        let refused = self.refused.values_mut().map(|(_, setback)| setback);
        let public = self.undeleted.values_mut().chain(self.unread.values_mut());
        let detached = self.undetached.values_mut().chain(&mut self.setback);
        refused.chain(public).chain(detached).for_each(|one| one.edited(now));
    }

    /// A person confirms that nothing of the node's is left in Azure. What something else has is tried to be
    /// deleted at once, and then given up.
    pub fn confirmed_gone(&mut self, now: Instant) {
        self.undeleted.values_mut().filter(|one| one.is_in_use).for_each(|one| one.edited(now));
    }

    /// This public address is there, or certainly gone.
    pub fn ended(&mut self, id: &ResourceId, public: Option<allocation::PublicAddress>) {
        self.undeleted.remove(id);
        self.unread.remove(id);
        self.absences.found(id.as_str());
        self.public.insert(id.clone(), public);
    }

    /// This public address couldn't be read. It may be there all the same: only its deletion shows that it is
    /// gone.
    pub fn not_read(&mut self, id: &ResourceId, error: &azure::Error, is_shared: bool, now: Instant) {
        self.public.remove(id);
        // Not that of finding the node, whose VM and NIC may just have been made.
        let own = Setback::of_many(self.unread.get(id), Stage::Write, error, is_shared, now);
        self.unread.insert(id.clone(), own);
    }

    /// Azure hasn't found these public addresses, which were to be attached: unknown, they are made before
    /// the next attempt. Returns whether that may come at once: there are some, and none was made anew
    /// before.
    pub fn make_anew(&mut self, missed: &HashSet<ResourceId>) -> bool {
        self.public.retain(|id, _| !missed.contains(id));
        let pods: HashSet<String> = missed.iter().filter_map(pod_of).map(str::to_owned).collect();
        let may_come_at_once = !pods.is_empty() && self.anew.is_disjoint(&pods);
        self.anew.extend(pods);
        may_come_at_once
    }

    /// This public address couldn't be deleted. One that isn't found is gone if it wasn't found `second_read`
    /// ago either.
    pub fn not_deleted(
        &mut self,
        id: &ResourceId,
        (error, is_shared): (&azure::Error, bool),
        second_read: Duration,
        now: Instant,
    ) {
        if self.absences.prove(error, &Recorded::default(), second_read, false, now) {
            return self.ended(id, None);
        }
        let mut setback = Setback::of_many(self.undeleted.get(id), Stage::Write, error, is_shared, now);
        self.absences.note(id.as_str(), error, now);
        if matches!(error, azure::Error::NotFound { .. }) {
            setback.until = now + second_read;
        }
        self.undeleted.insert(id.clone(), setback);
    }

    /// Azure has taken everything off these ipConfigurations, but for those on which it `still_shows`
    /// something.
    pub fn detached(
        &mut self,
        (nic, names): (&ResourceId, &[String]),
        still_shows: impl Fn(&str) -> bool,
        now: Instant,
    ) {
        (self.setback, self.batch) = (None, self.batch.saturating_mul(2));
        for name in names {
            if still_shows(name) {
                let message = format!("it still shows what was to be detached from {name}");
                let error = azure::Error::OutcomeUnknown { resource: nic.to_string(), message };
                self.keeps(name, &error, now);
            } else {
                self.undetached.remove(name);
            }
        }
    }

    /// Azure has refused to take anything off these ipConfigurations. If it may object to one of several,
    /// fewer are tried next time, and one alone waits by itself. What may pass must have come before.
    pub fn not_detached(&mut self, names: &[String], error: &azure::Error, now: Instant) {
        let may_pass = !matches!(error.remedy(), azure::Remedy::WaitForChange { .. });
        let is_again = self.setback.as_ref().is_some_and(|last| last.has_met(error));
        if !error.may_be_about_a_part() || may_pass && !is_again {
            self.setback = Some(Setback::after(self.setback.as_ref(), Stage::Write, error, now));
        } else if let [name] = names {
            self.keeps(name, error, now);
            let alike = self.undetached.values().filter(|one| one.has_met(error)).count();
            if alike >= ALIKE {
                self.setback = Some(Setback::after(self.setback.as_ref(), Stage::Write, error, now));
            }
        } else {
            self.batch = (names.len() / 2).max(1);
        }
    }

    fn keeps(&mut self, name: &str, error: &azure::Error, now: Instant) {
        let own = Setback::after(self.undetached.get(name), Stage::Write, error, now);
        self.undetached.insert(name.to_owned(), own);
    }

    /// The node's pods have these wishes now. A pod whose wish has been edited is tried at once: nothing of
    /// it has been refused.
    pub fn saw(&mut self, wishes: &HashMap<String, Wish>) {
        let before = std::mem::replace(&mut self.wishes, wishes.clone());
        let is_same = |uid: &String| {
            let wish = wishes.get(uid)?;
            Some(before.get(uid).is_none_or(|before| before.asks_the_same_as(wish)))
        };
        self.refused.retain(|uid, _| is_same(uid).unwrap_or_default());
        self.anew.retain(|uid| is_same(uid).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::setback::Stage;
    use crate::resource_id::sample_public_address as id;

    #[test]
    fn an_order_given_up_before_it_was_sent_is_no_refusal_of_azures() {
        let refusals_of = |error: azure::Error| {
            let orders = Orders::default();
            let begun = orders.begin(&id("u")).unwrap();
            assert!(orders.has(&id("u")) && orders.take().is_empty());
            begun.ended(Done { order: Order::Delete(id("u")), result: Err(error), is_shared: false });
            let count = orders.take().len();
            assert!(!orders.has(&id("u")));
            count
        };
        let resource = || id("u").to_string();
        assert_eq!(refusals_of(azure::Error::QuotaExceeded { resource: resource(), message: "m".into() }), 1);
        assert_eq!(refusals_of(azure::Error::Outgrown { resource: resource() }), 0);
        assert_eq!(refusals_of(azure::Error::Unconfirmed { resource: resource() }), 0);
    }

    #[test]
    fn there_is_one_order_at_a_time_for_a_public_address_until_its_outcome_is_taken_in() {
        let orders = Orders::default();
        let begun = orders.begin(&id("a")).unwrap();
        assert!(orders.begin(&id("a")).is_none() && orders.begin(&id("b")).is_some());
        begun.ended(Done { order: Order::Delete(id("a")), result: Ok(None), is_shared: false });
        assert!(orders.begin(&id("a")).is_none());
        assert_eq!(orders.take().len(), 1);
        assert!(orders.begin(&id("a")).is_some());
    }

    #[test]
    fn a_persons_word_ends_the_wait_for_what_something_else_has_and_for_nothing_else() {
        let now = Instant::now();
        let (resource, message) = (id("u").to_string(), "m".to_owned());
        let in_use = azure::Error::InUse { resource: resource.clone(), message: message.clone() };
        let locked = azure::Error::Locked { resource: resource.clone(), scope: resource, message };
        let mut attaching = Attaching::default();
        for (uid, error) in [("u", &in_use), ("v", &locked)] {
            attaching.undeleted.insert(id(uid), Setback::after(None, Stage::Write, error, now));
        }
        attaching.confirmed_gone(now);
        let holds = |uid| attaching.undeleted[&id(uid)].holds(now);
        assert_eq!((holds("u"), holds("v")), (false, true));
    }

    #[test]
    fn an_address_off_which_azure_refuses_to_take_something_waits_by_itself() {
        let (now, names) = (Instant::now(), ["a", "b", "c", "d"].map(str::to_owned));
        let resource = || "nic".to_owned();
        let forbidden = azure::Error::Unattachable { resource: resource(), remedy: "", message: "m".into() };
        let mut attaching = Attaching::default();
        // It doesn't say which of them, so each is tried alone.
        attaching.not_detached(&names, &forbidden, now);
        attaching.not_detached(&names[..2], &forbidden, now);
        assert!(attaching.batch == 1 && attaching.wait(now).is_none(), "{attaching:?}");
        attaching.not_detached(&names[..1], &forbidden, now);
        let waiting = |attaching: &Attaching| attaching.undetached.keys().cloned().collect::<Vec<_>>();
        assert!(!attaching.holds(now) && waiting(&attaching) == ["a"], "{attaching:?}");
        assert!(attaching.wait(now).is_some());
        attaching.detached((&id("nic"), &names[1..3]), |name| name == "c", now);
        assert_eq!((attaching.batch, attaching.undetached.len()), (2, 2), "b is off, a and c aren't");
        attaching.detached((&id("nic"), &names[..3]), |_| false, now);
        assert!(attaching.undetached.is_empty());
        // What is said of three is likely to hold for the others.
        let mut attaching = Attaching::default();
        for (name, holds) in names.iter().zip([false, false, true, true]) {
            attaching.not_detached(std::slice::from_ref(name), &forbidden, now);
            assert_eq!(attaching.holds(now), holds, "{name}");
        }
        // What concerns the whole NIC holds up all, and so does for the first time what may pass.
        let locked = azure::Error::Locked { resource: resource(), scope: "s".into(), message: "m".into() };
        let failed = azure::Error::Failed { resource: resource(), code: "c".into(), message: "m".into() };
        for (error, times) in [(&locked, 2), (&failed, 1)] {
            let mut attaching = Attaching::default();
            for _ in 0..times {
                attaching.not_detached(&names[..1], error, now);
                assert!(attaching.holds(now) && attaching.undetached.is_empty(), "{error}");
            }
        }
        let mut attaching = Attaching::default();
        for _ in 0..2 {
            attaching.not_detached(&names[..1], &failed, now);
        }
        assert_eq!(waiting(&attaching), ["a"]);
    }

    #[test]
    fn a_public_address_is_gone_when_a_second_deletion_a_minute_later_does_not_find_it_either() {
        let (start, minute) = (Instant::now(), Duration::from_secs(60));
        let missed =
            |uid: &str| azure::Error::NotFound { resource: id(uid).to_string(), message: "m".into() };
        let mut attaching = Attaching::default();
        for uid in ["a", "b"] {
            attaching.not_deleted(&id(uid), (&missed(uid), false), minute, start);
        }
        assert_eq!((attaching.public.len(), attaching.wait(start)), (0, Some(minute)));
        // One of them is there, and is missed again later.
        attaching.ended(&id("b"), Some(allocation::PublicAddress::default()));
        for uid in ["a", "b"] {
            attaching.not_deleted(&id(uid), (&missed(uid), false), minute, start + minute);
        }
        let is_gone = |uid| attaching.public[&id(uid)].is_none();
        assert!(is_gone("a") && !is_gone("b"), "{:?}", attaching.public);
        assert_eq!(attaching.undeleted.keys().collect::<Vec<_>>(), [&id("b")]);
    }

    #[test]
    fn a_pod_whose_public_address_is_lost_twice_is_refused_as_one_that_has_no_event_yet() {
        let there = || Some(allocation::PublicAddress::default());
        let missed = HashSet::from([id("a")]);
        let public = HashMap::from([(id("a"), there()), (id("b"), there())]);
        let mut attaching = Attaching { public, ..Attaching::default() };
        assert!(!attaching.make_anew(&HashSet::new()));
        for is_first in [true, false] {
            assert_eq!(attaching.make_anew(&missed), is_first);
            let known: Vec<_> = attaching.public.keys().cloned().collect();
            assert_eq!(known, [id("b")], "neither taken for gone nor for there");
            attaching.public.insert(id("a"), there());
        }
        assert!(attaching.refused.is_empty(), "the refusal that follows would be no news");
        attaching.saw(&HashMap::new());
        assert!(attaching.make_anew(&missed), "another pod's");
    }

    #[test]
    fn a_public_address_that_a_read_does_not_find_is_not_taken_for_gone_and_read_ever_less_often() {
        let start = Instant::now();
        let missed = azure::Error::NotFound { resource: id("u").to_string(), message: "m".into() };
        let mut attaching = Attaching::default();
        let mut waits = vec![];
        for _ in 0..4 {
            attaching.not_read(&id("u"), &missed, false, start);
            assert!(!attaching.public.contains_key(&id("u")), "{:?}", attaching.public);
            waits.extend(attaching.wait(start));
        }
        assert!(waits[0] >= Duration::from_secs(60) && waits.is_sorted() && waits[3] > waits[0], "{waits:?}");
        attaching.edited(start);
        assert_eq!(attaching.wait(start), None);
        attaching.ended(&id("u"), Some(allocation::PublicAddress::default()));
        assert!(attaching.unread.is_empty() && attaching.public[&id("u")].is_some());
    }

    #[test]
    fn what_all_are_refused_is_asked_for_every_minute_or_two_however_often_it_was_in_vain() {
        let start = Instant::now();
        let (action, scope, message) = ("delete".to_owned(), "s".to_owned(), "m".to_owned());
        let denied = azure::Error::Denied { action, scope, message };
        let (mut attaching, mut waits) = (Attaching::default(), vec![]);
        // With events of its node in between.
        for seconds in 0..1200 {
            let now = start + Duration::from_secs(seconds);
            let is_over = attaching.wait(now).is_none();
            attaching.not_deleted(&id("u"), (&denied, true), Duration::from_secs(60), now);
            waits.extend(attaching.wait(now).filter(|_| is_over));
        }
        assert!((10..=20).contains(&waits.len()), "{waits:?}");
        assert!(waits.iter().all(|wait| (60..=120).contains(&wait.as_secs())), "{waits:?}");
        assert!(attaching.undeleted[&id("u")].is_shared);
    }

    #[test]
    fn a_pod_whose_wish_is_edited_is_tried_at_once_and_one_that_only_gets_its_address_is_not() {
        let wishes = |pools: &str, address: Option<[u8; 4]>| {
            let wish = Wish {
                pod: "default/p".into(),
                backend_pools: Some(pools.into()),
                address: address.map(Into::into),
                ..Wish::default()
            };
            HashMap::from([("u".to_owned(), wish)])
        };
        let mut attaching = Attaching::default();
        attaching.saw(&wishes("web", None));
        let error = azure::Error::Unattachable { resource: "r".into(), remedy: "", message: "m".into() };
        let refused = Setback::after(None, Stage::Write, &error, Instant::now());
        attaching.refused.insert("u".into(), ("default/p".into(), refused));
        attaching.saw(&wishes("web", Some([10, 0, 0, 5])));
        assert_eq!(attaching.refused.len(), 1);
        attaching.saw(&wishes("other", Some([10, 0, 0, 5])));
        assert!(attaching.refused.is_empty());
    }

    #[tokio::test]
    async fn an_order_whose_reconcile_ends_while_it_waits_for_its_turn_can_be_given_again() {
        let orders = Orders::default();
        let waits = async {
            let _begun = orders.begin(&id("u"));
            std::future::pending::<()>().await;
        };
        assert!(tokio::time::timeout(Duration::from_millis(10), waits).await.is_err());
        assert!(orders.begin(&id("u")).is_some());
    }
}
