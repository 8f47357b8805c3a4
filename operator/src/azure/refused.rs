//! Refusals that many meet alike: a quota of public addresses that a subscription has used up in a region, a
//! right to make, read or delete them that is missing in a resource group, or one that is missing to what
//! NICs are to refer to. One call at a time asks on behalf of all. Pure: `now` is an argument.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::error::is_within;
use super::{Change, Error, Kind, ResourceId};
use crate::causes::Causes;
use crate::lock::lock;

/// What a refusal concerns, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Concern {
    Region {
        subscription: String,
        region: String,
    },
    /// Public addresses of a subscription or a resource group, by its id. A right or a lock concerns one kind
    /// of call: a success of one shows nothing of the others.
    Scope {
        id: String,
        call: Kind,
    },
    /// What NICs refer to, by its id: a backend pool or an application security group.
    Referred(String),
}

impl Concern {
    /// Whether all of it meet this error.
    fn is_concerned(&self, error: &Error) -> bool {
        match (self, error) {
            (Concern::Region { .. }, Error::PublicAddressesUsedUp { .. }) => true,
            (Concern::Scope { id, .. }, error) => is_refused_in(id, error),
            (Concern::Referred(id), error) => error.is_about_id(id),
            _ => false,
        }
    }

    /// How many must have met this error until it is taken for one that all of it meet.
    fn spoken_for_by(&self, error: &Error) -> usize {
        match (self, error) {
            // What can't be attached to one NIC may suit another, and a policy may spare some.
            (_, Error::Unattachable { .. } | Error::PolicyForbidden { .. }) => ALIKE,
            // Nobody grants a right to a public address that isn't there yet: all of its group lack it.
            (Concern::Scope { call: Kind::Write, .. }, _) => 1,
            // To one that is there, the right may be missing by itself.
            (Concern::Scope { id, .. }, Error::Denied { scope, .. }) if !is_within(id, scope) => ALIKE,
            (Concern::Scope { .. }, Error::DenyAssignment { .. }) => ALIKE,
            _ => 1,
        }
    }
}

/// Where something is, or is to be, and what it refers to.
#[derive(Clone, Debug)]
pub(super) struct Concerns(Vec<Concern>);

impl Concerns {
    /// Of a public address about which such a call is made.
    pub(super) fn of_public_address(call: Kind, id: &ResourceId) -> Concerns {
        let group = id.group().to_ascii_lowercase();
        let subscription = subscription_of(&group).to_owned();
        Concerns([subscription, group].map(|id| Concern::Scope { id, call }).into())
    }

    /// Of one that is made, which takes a part of the quota.
    pub(super) fn of_new_public_address(id: &ResourceId, region: &str) -> Concerns {
        let subscription = id.subscription().to_ascii_lowercase();
        let region = Concern::Region { subscription, region: region.to_ascii_lowercase() };
        let Concerns(rest) = Concerns::of_public_address(Kind::Write, id);
        Concerns([region].into_iter().chain(rest).collect())
    }

    /// Of a NIC that is changed so.
    pub(super) fn of_nic(change: &Change) -> Concerns {
        let pools = change.attach.values().flat_map(|attached| &attached.backend_pools);
        Concerns::of_referred(pools.chain(&change.join))
    }

    pub(super) fn of_referred<'a>(ids: impl IntoIterator<Item = &'a ResourceId>) -> Concerns {
        let all: HashSet<String> = ids.into_iter().map(ResourceId::key).collect();
        Concerns(all.into_iter().map(Concern::Referred).collect())
    }
}

/// The id of the subscription of a resource group, or its own.
fn subscription_of(id: &str) -> &str {
    id.match_indices('/').nth(2).map_or(id, |(end, _)| &id[..end])
}

/// Whether all public addresses of a subscription or resource group meet this error. That one isn't there, or
/// its group isn't, is for each to find out: the answer counts as a proof.
fn is_refused_in(id: &str, error: &Error) -> bool {
    let is_subscription = subscription_of(id) == id;
    match error {
        Error::SubscriptionUnusable { .. } => is_subscription,
        Error::Denied { scope, .. } | Error::Locked { scope, .. } if is_subscription => is_within(id, scope),
        Error::Denied { .. } | Error::DenyAssignment { .. } => !is_subscription,
        Error::Locked { scope, .. } => is_within(id, scope),
        // It may spare some.
        Error::PolicyForbidden { assignment, .. } => !is_subscription && assignment.is_some(),
        _ => false,
    }
}

/// Where all are refused.
#[derive(Debug, Default)]
pub(super) struct Refused {
    all: Mutex<All>,
    /// One more was refused.
    news: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct All {
    concerns: HashMap<Concern, Refusal>,
    /// How many refusals there were so far.
    count: u64,
    /// One of them has ended.
    has_ended: bool,
}

#[derive(Debug)]
struct Refusal {
    error: Error,
    /// Who has met it, by their ids, as far as that matters.
    met: HashSet<String>,
    /// So many speak for all.
    quorum: usize,
    /// Until when nobody asks.
    until: Instant,
    /// Which of all refusals it was.
    number: u64,
    /// Edits of pools that were taken for a reason to try at once.
    causes: Causes,
}

/// From one attempt to the next. Each pod by itself would ask every few minutes, so that one of many comes
/// soon after that.
const AGAIN: Duration = Duration::from_secs(80);
/// So many that are refused speak for all, where what is refused to one may be granted to another.
const ALIKE: usize = 3;

impl Refusal {
    fn concerns_all(&self) -> bool {
        self.met.len() >= self.quorum
    }

    fn holds(&self, now: Instant) -> bool {
        self.concerns_all() && now < self.until
    }
}

impl All {
    fn known<'a>(&'a self, concerns: &'a Concerns) -> impl Iterator<Item = &'a Refusal> {
        concerns.0.iter().filter_map(|concern| self.concerns.get(concern))
    }

    fn refusal(&self, concerns: &Concerns, now: Instant) -> Option<Error> {
        self.known(concerns).find(|refusal| refusal.holds(now)).map(|refusal| refusal.error.clone())
    }
}

impl Refused {
    /// Why nobody asks for this now.
    pub(super) fn refusal(&self, concerns: &Concerns, now: Instant) -> Option<Error> {
        lock(&self.all).refusal(concerns, now)
    }

    /// Begins to ask. The first that comes when it is time asks on behalf of all. Returns how many refusals
    /// there were before, for [`Refused::until_refused`].
    ///
    /// # Errors
    /// Why nobody asks for this now.
    pub(super) fn begin(&self, concerns: &Concerns, now: Instant) -> Result<u64, Error> {
        let mut all = lock(&self.all);
        if let Some(error) = all.refusal(concerns, now) {
            return Err(error);
        }
        for concern in &concerns.0 {
            if let Some(refusal) = all.concerns.get_mut(concern).filter(|refusal| refusal.concerns_all()) {
                refusal.until = now + AGAIN;
            }
        }
        Ok(all.count)
    }

    /// Ends when others were refused this since one has begun to ask: a thousand calls may wait for their
    /// turn within Azure's limits when the first of them is refused.
    pub(super) async fn until_refused(self: Arc<Self>, concerns: Concerns, since: u64) {
        let mut news = self.news.subscribe();
        while !self.is_refused_since(&concerns, since) {
            if news.changed().await.is_err() {
                std::future::pending().await
            }
        }
    }

    fn is_refused_since(&self, concerns: &Concerns, since: u64) -> bool {
        let all = lock(&self.all);
        all.known(concerns).any(|refusal| refusal.concerns_all() && refusal.number > since)
    }

    /// Takes in how an attempt has ended that was about `id`.
    pub(super) fn learn(
        &self,
        concerns: &Concerns,
        id: &ResourceId,
        result: Result<(), &Error>,
        now: Instant,
    ) {
        let mut all = lock(&self.all);
        match result {
            Err(error) => {
                let before = all.count;
                for concern in concerns.0.iter().filter(|concern| concern.is_concerned(error)) {
                    all.count += 1;
                    let last = all.concerns.remove(concern);
                    let (mut met, causes) = last.map(|last| (last.met, last.causes)).unwrap_or_default();
                    if met.len() < ALIKE {
                        met.insert(id.key());
                    }
                    let (error, until, number) = (error.clone(), now + AGAIN, all.count);
                    let quorum = concern.spoken_for_by(&error);
                    all.concerns
                        .insert(concern.clone(), Refusal { error, met, quorum, until, number, causes });
                }
                if all.count > before {
                    drop(all);
                    self.news.send_replace(());
                }
            }
            Ok(()) => {
                let ended: Vec<_> =
                    concerns.0.iter().filter_map(|concern| all.concerns.remove(concern)).collect();
                all.has_ended |= ended.iter().any(Refusal::concerns_all);
            }
        }
    }

    /// A person may have ended them: each is tried at once. The same `cause` counts once.
    pub(super) fn try_now(&self, cause: u64, now: Instant) {
        for refusal in lock(&self.all).concerns.values_mut() {
            if refusal.causes.add(cause) {
                refusal.until = refusal.until.min(now);
            }
        }
    }

    /// Whether one of them has ended since this was asked last.
    pub(super) fn has_ended(&self) -> bool {
        std::mem::take(&mut lock(&self.all).has_ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public(group: &str) -> ResourceId {
        let id = format!(
            "/subscriptions/S/resourceGroups/{group}/providers/Microsoft.Network/publicIPAddresses/vnp-u"
        );
        id.parse().unwrap()
    }

    fn concerns(group: &str, region: &str) -> Concerns {
        Concerns::of_new_public_address(&public(group), region)
    }

    /// Whether one that comes now asks Azure.
    fn asks(refused: &Refused, concerns: &Concerns, now: Instant) -> bool {
        refused.begin(concerns, now).is_ok()
    }

    #[test]
    fn five_thousand_pods_try_a_used_up_quota_as_often_as_one_does() {
        let (refused, start) = (Refused::default(), Instant::now());
        let concern = concerns("g", "WestEurope");
        let error = Error::PublicAddressesUsedUp { resource: "p".into(), message: "m".into() };
        let mut asked = 0;
        // Each of them comes every ten minutes, for two hours.
        let times = (0..5000 * 12).map(|turn| start + Duration::from_secs(7200) * turn / (5000 * 12));
        for now in times {
            if asks(&refused, &concern, now) {
                asked += 1;
                refused.learn(&concerns("G", "westeurope"), &public("g"), Err(&error), now);
            }
        }
        assert!((80..=91).contains(&asked), "{asked}");
        let end = start + Duration::from_secs(7200);
        assert!(asks(&refused, &concerns("g", "northeurope"), end), "another region's");
        assert!(!asks(&refused, &concerns("h", "westeurope"), end), "another group's");
        // The quota is raised, which the next that may try finds out.
        let later = end + AGAIN;
        assert!(asks(&refused, &concern, later) && !asks(&refused, &concern, later));
        assert!(!refused.has_ended());
        refused.learn(&concern, &public("g"), Ok(()), later);
        assert!(asks(&refused, &concern, later) && asks(&refused, &concern, later));
        assert!(refused.has_ended() && !refused.has_ended());
    }

    #[test]
    fn a_right_or_a_lock_that_concerns_a_group_is_met_by_one_pod_there_and_what_concerns_one_is_not() {
        let (resource, message) = ("p".to_owned(), "m".to_owned());
        let locked = |scope: &str| Error::Locked {
            resource: resource.clone(),
            scope: scope.to_owned(),
            message: message.clone(),
        };
        let denied = Error::Denied { action: "write".into(), scope: "p".into(), message: message.clone() };
        let label = Error::Unattachable { resource: resource.clone(), remedy: "", message: message.clone() };
        let one = "/subscriptions/S/resourceGroups/g/providers/Microsoft.Network/publicIPAddresses/vnp-u";
        for (error, is_shared) in [
            (denied, true),
            (locked("/subscriptions/s/resourceGroups/G"), true),
            (locked(one), false),
            (locked("/subscriptions/s/resourceGroups/gg"), false),
            (label, false),
        ] {
            let (refused, now) = (Refused::default(), Instant::now());
            refused.learn(&concerns("g", "r"), &public("g"), Err(&error), now);
            assert_eq!(!asks(&refused, &concerns("G", "r"), now), is_shared, "{error}");
            assert!(asks(&refused, &concerns("h", "r"), now), "{error}");
            assert!(asks(&refused, &concerns("g", "r"), now + AGAIN), "{error}");
        }
    }

    #[test]
    fn a_refusal_is_known_by_the_subscription_or_group_that_it_names_and_by_the_kind_of_call() {
        let message = || "m".to_owned();
        let of = |call, group: &str| Concerns::of_public_address(call, &public(group));
        let locked =
            |scope: &str| Error::Locked { resource: "p".into(), scope: scope.into(), message: message() };
        let denied =
            |scope: &str| Error::Denied { action: "delete".into(), scope: scope.into(), message: message() };
        let disabled = Error::SubscriptionUnusable { resource: "p".into(), remedy: "", message: message() };
        let group = "/subscriptions/s/resourceGroups/g";
        let missing = Error::NotFound { resource: "p".into(), message: message() };
        for (error, in_group, in_subscription) in [
            (locked("/subscriptions/S"), true, true),
            (locked(group), true, false),
            (denied(group), true, false),
            (denied("/subscriptions/s"), true, true),
            (disabled, true, true),
            (missing, false, false),
        ] {
            let (refused, now) = (Refused::default(), Instant::now());
            refused.learn(&of(Kind::Delete, "g"), &public("g"), Err(&error), now);
            assert_eq!(!asks(&refused, &of(Kind::Delete, "G"), now), in_group, "{error}");
            assert_eq!(!asks(&refused, &of(Kind::Delete, "h"), now), in_subscription, "{error}");
            for other in [Kind::Write, Kind::Read] {
                assert!(asks(&refused, &of(other, "g"), now), "{error}");
                refused.learn(&of(other, "g"), &public("g"), Ok(()), now);
            }
            assert_eq!(!asks(&refused, &of(Kind::Delete, "g"), now), in_group, "what was made shows nothing");
            refused.learn(&of(Kind::Delete, "g"), &public("g"), Ok(()), now + AGAIN);
            assert_eq!(refused.has_ended(), in_group, "{error}");
            assert!(asks(&refused, &of(Kind::Delete, "h"), now), "{error}");
        }
    }

    #[test]
    fn a_right_that_is_missing_to_one_public_address_holds_no_other_up_until_three_lack_it() {
        let public =
            |uid: &str| -> ResourceId { public("g").as_str().replace("vnp-u", uid).parse().unwrap() };
        let denied = |uid: &str| Error::Denied {
            action: "a".into(),
            scope: public(uid).to_string(),
            message: "m".into(),
        };
        let by_assignment = |uid: &str| Error::DenyAssignment {
            action: "a".into(),
            resource: public(uid).to_string(),
            name: "n".into(),
            message: "m".into(),
        };
        let errors: [&dyn Fn(&str) -> Error; 2] = [&denied, &by_assignment];
        for (error, call) in errors.into_iter().flat_map(|error| [(error, Kind::Read), (error, Kind::Delete)])
        {
            let (refused, now) = (Refused::default(), Instant::now());
            let concerns = Concerns::of_public_address(call, &public("a"));
            for uid in ["a", "a", "a", "b", "c"] {
                assert!(asks(&refused, &concerns, now), "{uid}");
                refused.learn(&concerns, &public(uid), Err(&error(uid)), now);
            }
            assert!(!asks(&refused, &concerns, now) && asks(&refused, &concerns, now + AGAIN));
        }
        // One that is made isn't there yet.
        let (refused, now) = (Refused::default(), Instant::now());
        refused.learn(&concerns("g", "r"), &public("a"), Err(&denied("a")), now);
        assert!(!asks(&refused, &concerns("g", "r"), now));
    }

    #[test]
    fn a_policy_is_met_by_one_on_behalf_of_all_once_three_public_addresses_have_met_it() {
        let (refused, now) = (Refused::default(), Instant::now());
        let public =
            |uid: &str| -> ResourceId { public("g").as_str().replace("vnp-u", uid).parse().unwrap() };
        let forbidden = Error::PolicyForbidden {
            resource: "p".into(),
            assignment: Some("a".into()),
            message: "m".into(),
        };
        let concerns = concerns("g", "r");
        for uid in ["a", "a", "a", "b", "c"] {
            assert!(asks(&refused, &concerns, now), "{uid}");
            refused.learn(&concerns, &public(uid), Err(&forbidden), now);
        }
        assert!(!asks(&refused, &concerns, now));
    }

    fn nic(number: usize) -> ResourceId {
        let network = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network";
        format!("{network}/networkInterfaces/n{number}-nic").parse().unwrap()
    }

    fn pool(name: &str) -> ResourceId {
        let network = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network";
        format!("{network}/loadBalancers/{name}/backendAddressPools/pods").parse().unwrap()
    }

    fn unjoined(scope: &str) -> Error {
        let action = "Microsoft.Network/loadBalancers/backendAddressPools/join/action".to_owned();
        Error::Denied { action, scope: scope.to_owned(), message: "m".into() }
    }

    #[test]
    fn a_backend_pool_that_may_not_be_joined_is_asked_for_by_one_on_behalf_of_all_nics() {
        let (refused, start) = (Refused::default(), Instant::now());
        let (web, other) = (pool("web"), pool("web2"));
        let both = Concerns::of_referred([&web, &other]);
        let mut asked = 0;
        // A thousand NICs come every two minutes, for an hour.
        for turn in 0..30 * 1000 {
            let now = start + Duration::from_secs(120) * turn / 1000;
            if asks(&refused, &both, now) {
                asked += 1;
                refused.learn(&both, &nic(turn as usize), Err(&unjoined(web.as_str())), now);
            }
        }
        assert!((40..=46).contains(&asked), "{asked}");
        let now = start + Duration::from_secs(3600);
        assert!(asks(&refused, &Concerns::of_referred([&other]), now), "another pool may be joined");
        // A person who has granted the right edits the pool, which all nodes report.
        refused.try_now(7, now);
        assert!(asks(&refused, &both, now));
        refused.try_now(7, now);
        assert!(!asks(&refused, &both, now));
        // And another pool, which nodes report in turn with it.
        refused.try_now(8, now);
        assert!(asks(&refused, &both, now));
        refused.try_now(7, now);
        assert!(!asks(&refused, &both, now));
        refused.learn(&both, &nic(0), Ok(()), now);
        assert!(refused.has_ended() && asks(&refused, &both, now));
    }

    #[test]
    fn a_refusal_of_what_a_nic_refers_to_is_known_by_the_scope_that_it_names() {
        let (web, nic) = (pool("web"), nic(0));
        let lock = |scope: &str| Error::Locked {
            resource: nic.to_string(),
            scope: scope.to_owned(),
            message: "m".into(),
        };
        let balancer = web.as_str().split("/backend").next().unwrap();
        for (error, is_about) in [
            (unjoined(&web.as_str().to_uppercase()), true),
            (unjoined(balancer), true),
            (unjoined(nic.as_str()), false),
            (lock(balancer), true),
            (lock(&web.group()), false),
            (lock(nic.as_str()), false),
        ] {
            assert_eq!(error.is_about(&web), is_about, "{error}");
        }
    }

    #[test]
    fn what_is_not_there_is_asked_for_by_one_once_three_nics_have_met_it() {
        let (refused, now) = (Refused::default(), Instant::now());
        let missing = |id: &str| {
            let message = format!("Resource {id} referenced by resource /subscriptions/s/n was not found.");
            Error::Unattachable { resource: "n".into(), remedy: "make it", message }
        };
        let (web, concerns) = (pool("web"), Concerns::of_referred([&pool("web")]));
        for number in [0, 0, 0, 1, 2] {
            assert!(asks(&refused, &concerns, now), "{number}");
            refused.learn(&concerns, &nic(number), Err(&missing(web.as_str())), now);
        }
        assert!(!asks(&refused, &concerns, now));
        let longer = missing(&format!("{}-2", web.as_str()));
        assert!(!longer.is_about(&web) && missing(&web.as_str().to_uppercase()).is_about(&web));
    }

    #[tokio::test]
    async fn a_call_that_waits_for_its_turn_is_given_up_when_others_are_refused_the_same_meanwhile() {
        let (refused, now) = (Arc::new(Refused::default()), Instant::now());
        let [web, other] = ["web", "other"].map(|name| Concerns::of_referred([&pool(name)]));
        let queued = |concerns: &Concerns| {
            let since = refused.begin(concerns, now).unwrap();
            Box::pin(refused.clone().until_refused(concerns.clone(), since))
        };
        let moment = Duration::from_millis(50);
        let (mut one, mut two) = (queued(&web), queued(&other));
        assert!(tokio::time::timeout(moment, &mut one).await.is_err());
        refused.learn(&web, &nic(0), Err(&unjoined(pool("web").as_str())), now);
        assert!(tokio::time::timeout(moment, &mut one).await.is_ok());
        assert!(tokio::time::timeout(moment, &mut two).await.is_err());
        // The next that tries on behalf of all isn't stopped by what is known already.
        let since = refused.begin(&web, now + AGAIN).unwrap();
        let mut next = Box::pin(refused.clone().until_refused(web.clone(), since));
        assert!(tokio::time::timeout(moment, &mut next).await.is_err());
    }
}
