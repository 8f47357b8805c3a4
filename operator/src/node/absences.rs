//! Which resources Azure reports as absent, and since when. Pure.
//!
//! One 404 proves nothing: Azure gives it during incidents, and for a moment after changes elsewhere. A
//! NodeIPAllocation is the only record of our reservations on its NIC, so it is deleted only on proof.
//!
//! Of a resource group the proof takes a day. Leaders change meanwhile, so its beginning stands in the
//! object: it is the transition time of the condition `GroupFound`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use vnetpool_crds::condition::{self, GROUP_FOUND};
use vnetpool_crds::reason::Reason;
use vnetpool_crds::verdict::Verdict;
use vnetpool_crds::{NodeIPAllocation, names};

use crate::azure::{Error, Scope};

/// How long Azure must not have known a NIC's resource group before that is believed. The absence of a
/// subscription is never believed: an identity that has lost its access to it, or its tenant, gets the same
/// answer.
const BELIEVED: Duration = Duration::from_secs(24 * 3600);

/// Whether a person has confirmed that no reservation of this object is left in Azure, or that all that is
/// left belongs to another machine.
pub fn is_confirmed_gone(allocation: &NodeIPAllocation) -> bool {
    allocation.annotations().get(names::GONE).is_some_and(|value| value == "true")
}

/// The absences that Azure has reported to this process.
#[derive(Clone, Debug, Default)]
pub struct Absences {
    /// By the absent resource, in lower case: when Azure first reported it so.
    seen: BTreeMap<String, Instant>,
    /// The resource groups that are missing. Azure may have reported them to an operator before this one.
    groups: BTreeSet<String>,
    /// What we have deleted ourselves: that Azure doesn't find it any more needs no second answer.
    deleted: BTreeSet<String>,
}

/// The missing resource groups that the object records.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recorded {
    groups: BTreeSet<String>,
    /// For how long all of them have been missing.
    lasted: Duration,
}

impl Recorded {
    pub fn of(allocation: &NodeIPAllocation, now: Timestamp) -> Recorded {
        let Some(condition) = recorded(allocation) else { return Recorded::default() };
        let lasted = now.duration_since(condition.last_transition_time.0).try_into().unwrap_or_default();
        Recorded { groups: groups(&condition.message), lasted }
    }

    /// Whether that has lasted for long enough to believe it of this error's resource group.
    fn is_believed(&self, error: &Error) -> bool {
        let is_group = matches!(error, Error::ScopeMissing { scope: Scope::Group, .. });
        is_group && self.lasted >= BELIEVED && absent(error).is_some_and(|group| self.groups.contains(&group))
    }

    /// Whether only a second read is lacking to believe this error.
    pub fn lacks_second_read(&self, error: &Error) -> bool {
        matches!(error, Error::NotFound { .. }) || self.is_believed(error)
    }
}

impl Absences {
    /// What an operator before this one has left.
    pub fn of(allocation: &NodeIPAllocation) -> Absences {
        let groups = recorded(allocation).map(|condition| groups(&condition.message)).unwrap_or_default();
        Absences { groups, ..Absences::default() }
    }

    /// Takes note of the error of a request about the resource of this id. Most errors about another matter
    /// than an absence show that it is there.
    pub fn note(&mut self, id: &str, error: &Error, now: Instant) {
        if leaves_open(error) {
            return;
        }
        let Some(what) = absent(error) else { return self.found(id) };
        match error {
            Error::ScopeMissing { scope: Scope::Group, .. } => drop(self.groups.insert(what.clone())),
            // The identity may see none of its groups: what was reported of them counts for nothing.
            Error::ScopeMissing { scope: Scope::Subscription, .. } => drop(self.groups.remove(&what)),
            _ => {}
        }
        self.seen.entry(what).or_insert(now);
    }

    /// This resource has been found, and so has all that it is a part of.
    pub fn found(&mut self, id: &str) {
        let id = id.to_lowercase();
        self.seen.retain(|what, _| !is_in(what, &id));
        self.groups.remove(&group_of(&id));
        self.deleted.remove(&id);
    }

    /// We have deleted this resource.
    pub fn deleted(&mut self, id: &str) {
        self.found(id);
        self.deleted.insert(id.to_lowercase());
    }

    pub fn has_deleted(&self, id: &str) -> bool {
        self.deleted.contains(&id.to_lowercase())
    }

    /// Only these resources are asked for still: of the others everything has been found, or has been
    /// believed to be gone. What was known of one counts for nothing when it is asked for anew.
    pub fn keep<'a>(&mut self, ids: impl Iterator<Item = &'a str>) {
        let ids: Vec<String> = ids.map(str::to_lowercase).collect();
        let groups: BTreeSet<String> = ids.iter().map(|id| group_of(id)).collect();
        let is_of = |what: &String| groups.contains(what) || ids.iter().any(|id| is_in(id, what));
        self.seen.retain(|what, _| is_of(what));
        self.deleted.retain(is_of);
        self.groups.retain(|group| groups.contains(group));
    }

    /// Whether this error proves that the requested resource is gone. For a NIC it does so `second_read`
    /// after the first answer, and for a resource group if the object has recorded it for long enough, too.
    /// For a subscription or resource group a person may confirm it, too: `is_confirmed`.
    pub fn prove(
        &self,
        error: &Error,
        recorded: &Recorded,
        second_read: Duration,
        is_confirmed: bool,
        now: Instant,
    ) -> bool {
        match error {
            Error::ScopeMissing { .. } if is_confirmed => return true,
            Error::ScopeMissing { .. } if !recorded.is_believed(error) => return false,
            _ => {}
        }
        let Some(what) = absent(error) else { return false };
        let is_second = |since: &Instant| now.saturating_duration_since(*since) >= second_read;
        self.deleted.contains(&what) || self.seen.get(&what).is_some_and(is_second)
    }

    /// The condition that says which groups are missing. One more begins the day anew: there is one time for
    /// all.
    pub fn condition(&self, allocation: &NodeIPAllocation, now: Timestamp) -> Option<Condition> {
        if self.groups.is_empty() {
            return None;
        }
        let since =
            recorded(allocation).filter(|condition| self.groups.is_subset(&groups(&condition.message)));
        let since = since.map_or(now, |condition| condition.last_transition_time.0);
        let named = self.groups.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let message = format!(
            "{named}: Azure doesn't know this resource group. What this object records of it is kept until that has lasted \
             for 24 h, or somebody confirms that it is gone by the annotation {}=true",
            names::GONE
        );
        let verdict = Verdict::no(Reason::ScopeMissing, message);
        Some(verdict.condition(GROUP_FOUND, allocation.metadata.generation, since))
    }
}

fn recorded(allocation: &NodeIPAllocation) -> Option<&Condition> {
    condition::find(allocation.conditions(), GROUP_FOUND).filter(|condition| condition.status == "False")
}

/// The groups that such a message names.
fn groups(message: &str) -> BTreeSet<String> {
    let named = message.split_once(": ").map_or("", |(named, _)| named);
    named.split(", ").filter(|group| !group.is_empty()).map(str::to_owned).collect()
}

/// What Azure doesn't find, by its error: a resource, or the subscription and resource group of one.
fn absent(error: &Error) -> Option<String> {
    match error {
        Error::NotFound { resource, .. } => Some(resource.to_lowercase()),
        Error::ScopeMissing { resource, .. } => Some(group_of(resource)),
        _ => None,
    }
}

/// Whether an error shows neither that what was asked for is there nor that it isn't: Azure hasn't come to
/// look for it, or its answer is lost. In a busy subscription such errors come all day long, and a record
/// whose group has gone would never end if each began its day anew.
///
/// A refusal for a lack of rights isn't one of them: what an identity without them is told of absences may be
/// due to that as well, so nothing that it was told before counts.
fn leaves_open(error: &Error) -> bool {
    matches!(
        error,
        Error::Throttled { .. }
            | Error::Unavailable { .. }
            | Error::OutcomeUnknown { .. }
            | Error::MayComeBack { .. }
            | Error::Credential { .. }
            | Error::Unexpected { .. }
            | Error::Arm { .. }
            | Error::Config { .. }
            | Error::DryRun { .. }
            | Error::ProviderId { .. }
            | Error::ResourceId(_)
            | Error::Outgrown { .. }
            | Error::Unconfirmed { .. }
    )
}

/// Whether a resource is this one, or in it: both in lower case.
fn is_in(this: &str, resource: &str) -> bool {
    resource.strip_prefix(this).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The subscription and resource group of a resource, in lower case.
fn group_of(resource: &str) -> String {
    resource.to_lowercase().split('/').take(5).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Waits;

    const MINUTE: Duration = Waits::FULL.second_read;

    fn id(group: &str, nic: &str) -> String {
        format!("/subscriptions/s/resourceGroups/{group}/providers/p/t/{nic}")
    }

    fn scope(group: &str) -> Error {
        Error::ScopeMissing { resource: id(group, "n"), scope: Scope::Group, message: "m".into() }
    }

    fn nic(nic: &str) -> Error {
        Error::NotFound { resource: id("g", nic), message: "m".into() }
    }

    fn noted(errors: &[Error], now: Instant) -> Absences {
        let mut absences = Absences::default();
        errors.iter().for_each(|error| note(&mut absences, error, now));
        absences
    }

    /// The request was about the resource that the error is about.
    fn note(absences: &mut Absences, error: &Error, now: Instant) {
        let (Error::NotFound { resource, .. }
        | Error::ScopeMissing { resource, .. }
        | Error::Stale { resource }) = error
        else {
            panic!("{error}")
        };
        absences.note(resource, error, now);
    }

    #[test]
    fn a_nic_is_gone_when_a_second_read_a_minute_later_does_not_find_it_either() {
        let start = Instant::now();
        let absences = noted(&[nic("A")], start);
        let none = Recorded::default();
        let prove = |error: &Error, after| absences.prove(error, &none, MINUTE, false, start + after);
        assert!(!Absences::default().prove(&nic("a"), &none, MINUTE, false, start), "the first read");
        assert!(!prove(&nic("a"), MINUTE - Duration::from_secs(1)));
        assert!(prove(&nic("a"), MINUTE));
        assert!(!prove(&nic("b"), MINUTE), "another NIC");
    }

    #[test]
    fn two_nics_are_missed_side_by_side_and_one_that_is_there_counts_anew() {
        let start = Instant::now();
        let both = noted(&[nic("a"), nic("b")], start);
        let proves = |absences: &Absences, error: &Error| {
            absences.prove(error, &Recorded::default(), MINUTE, false, start + MINUTE)
        };
        assert!([nic("a"), nic("b")].iter().all(|one| proves(&both, one)));
        let mut found = both.clone();
        found.found(&id("G", "A"));
        assert!(!proves(&found, &nic("a")), "it was seen in between");
        assert!(proves(&found, &nic("b")));
        let answered = Error::Stale { resource: id("g", "a") };
        let anew = noted(&[nic("a"), nic("b"), answered], start);
        assert!(!proves(&anew, &nic("a")));
        assert!(proves(&anew, &nic("b")), "the answer shows nothing of this one");
    }

    #[test]
    fn what_was_deleted_by_us_needs_no_second_answer_unless_it_was_seen_since() {
        let start = Instant::now();
        let mut absences = Absences::default();
        let proves = |absences: &Absences, error: &Error| {
            absences.prove(error, &Recorded::default(), MINUTE, false, start)
        };
        absences.deleted(&id("G", "A"));
        assert!(proves(&absences, &nic("a")) && !proves(&absences, &nic("b")));
        note(&mut absences, &nic("b"), start);
        assert!(proves(&absences, &nic("a")));
        absences.found(&id("g", "a"));
        assert!(!proves(&absences, &nic("a")));
    }

    #[test]
    fn what_was_reported_of_a_resource_that_is_not_asked_for_any_more_counts_for_nothing_later() {
        let (start, without_vm) = (Instant::now(), |name: &str| id("g", &format!("{name}/virtualMachine")));
        let nic = |name: &str| Error::NotFound { resource: without_vm(name), message: "m".into() };
        let mut absences = Absences::default();
        absences.deleted(&without_vm("c"));
        [nic("a"), nic("b"), scope("g"), scope("h")].iter().for_each(|one| note(&mut absences, one, start));
        absences.keep([id("G", "A")].iter().map(String::as_str));
        let proves = |absences: &Absences, name: &str| {
            absences.prove(&nic(name), &Recorded::default(), MINUTE, false, start + MINUTE)
        };
        assert_eq!(["a", "b", "c"].map(|name| proves(&absences, name)), [true, false, false]);
        assert_eq!(absences.groups, BTreeSet::from([group_of(&id("g", "n"))]));
        absences.keep(std::iter::empty());
        assert!(absences.seen.is_empty() && absences.groups.is_empty());
    }

    /// The object as it is once this condition has been applied.
    fn object(condition: Option<Condition>) -> NodeIPAllocation {
        let object = serde_json::json!({"metadata": {"name": "n", "generation": 1},
            "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s"},
            "status": {"conditions": condition.into_iter().collect::<Vec<_>>()}});
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_missing_resource_group_is_believed_after_a_day_and_not_before() {
        let (start, epoch) = (Instant::now(), Timestamp::UNIX_EPOCH);
        let first = noted(&[scope("G")], start);
        let recorded = object(first.condition(&object(None), epoch));
        let prove = |absences: &Absences, error: &Error, after| {
            absences.prove(error, &Recorded::of(&recorded, epoch + after), MINUTE, false, start + after)
        };
        assert!(!prove(&first, &scope("g"), BELIEVED - Duration::from_secs(1)));
        assert!(prove(&first, &scope("g"), BELIEVED));
        assert!(!prove(&first, &scope("other"), BELIEVED));
        // The next leader counts on, and reads twice itself.
        let mut next = Absences::of(&recorded);
        assert!(!prove(&next, &scope("g"), BELIEVED));
        assert!(Recorded::of(&recorded, epoch + BELIEVED).lacks_second_read(&scope("g")));
        note(&mut next, &scope("g"), start + BELIEVED);
        assert!(!prove(&next, &scope("g"), BELIEVED) && prove(&next, &scope("g"), BELIEVED + MINUTE));
    }

    #[test]
    fn the_day_of_a_missing_group_goes_on_until_another_is_missed_too_or_it_is_found() {
        let hour = |hours: u64| Timestamp::UNIX_EPOCH + Duration::from_secs(hours * 3600);
        let mut absences = noted(&[scope("G")], Instant::now());
        let mut known = object(absences.condition(&object(None), hour(0)));
        let mut since = |absences: &Absences, now| {
            known = object(absences.condition(&known, now));
            recorded(&known).map(|condition| condition.last_transition_time.0)
        };
        note(&mut absences, &scope("g"), Instant::now());
        assert_eq!(since(&absences, hour(5)), Some(hour(0)));
        note(&mut absences, &scope("h"), Instant::now());
        assert_eq!(since(&absences, hour(6)), Some(hour(6)), "one time for both");
        absences.found(&id("H", "n"));
        assert_eq!(since(&absences, hour(7)), Some(hour(6)));
        note(&mut absences, &Error::Stale { resource: id("g", "n") }, Instant::now());
        assert_eq!(since(&absences, hour(8)), None);
    }

    /// It may bring a group's day an hour nearer; the second read is a minute later by another clock.
    #[test]
    fn a_clock_an_hour_off_proves_no_absence() {
        let (start, epoch) = (Instant::now(), Timestamp::UNIX_EPOCH);
        let first = noted(&[scope("G"), nic("a")], start);
        let object = object(first.condition(&object(None), epoch));
        let hour = Duration::from_secs(3600);
        for shown in [epoch - hour, epoch + hour] {
            let recorded = Recorded::of(&object, shown);
            let prove = |error: &Error, after| first.prove(error, &recorded, MINUTE, false, start + after);
            assert!(!prove(&scope("g"), MINUTE) && !prove(&nic("a"), Duration::ZERO), "by {shown}");
            assert!(prove(&nic("a"), MINUTE), "by {shown}");
        }
    }

    fn unanswered() -> [Error; 4] {
        let (resource, message) = (|| id("g", "n"), || "m".to_owned());
        let (retry_after, limit) = (MINUTE, crate::azure::Limit::Arm);
        [
            Error::Throttled { resource: resource(), message: message(), retry_after, limit },
            Error::Unavailable { resource: resource(), message: message(), retry_after },
            Error::OutcomeUnknown { resource: resource(), message: message() },
            Error::Credential { message: message() },
        ]
    }

    #[test]
    fn the_day_of_a_missing_group_goes_on_in_a_busy_subscription_and_ends_with_the_right_to_know() {
        let (start, epoch) = (Instant::now(), Timestamp::UNIX_EPOCH);
        let mut absences = noted(&[scope("G")], start);
        let first = object(absences.condition(&object(None), epoch));
        for error in unanswered() {
            absences.note(&id("g", "n"), &error, start);
            let known = absences.condition(&first, epoch + MINUTE).unwrap_or_else(|| panic!("{error}"));
            assert_eq!(known.last_transition_time.0, epoch, "{error}");
            assert!(absences.prove(
                &scope("g"),
                &Recorded::of(&first, epoch + BELIEVED),
                MINUTE,
                false,
                start + BELIEVED
            ));
        }
        let denied = Error::Denied { action: "read".into(), scope: id("g", "n"), message: "m".into() };
        let gone =
            Error::ScopeMissing { resource: id("g", "n"), scope: Scope::Subscription, message: "m".into() };
        for error in [denied, gone] {
            let mut absences = absences.clone();
            absences.note(&id("g", "n"), &error, start);
            assert!(absences.condition(&first, epoch + MINUTE).is_none(), "{error}");
        }
    }

    #[test]
    fn a_nic_is_missed_twice_though_azure_throttles_in_between() {
        let start = Instant::now();
        let mut absences = noted(&[nic("a")], start);
        for error in unanswered() {
            absences.note(&id("g", "a"), &error, start);
        }
        let none = Recorded::default();
        assert!(absences.prove(&nic("a"), &none, MINUTE, false, start + MINUTE));
    }

    #[test]
    fn a_missing_subscription_is_believed_after_no_time() {
        let start = Instant::now();
        let missing =
            Error::ScopeMissing { resource: id("g", "n"), scope: Scope::Subscription, message: "m".into() };
        let absences = noted(std::slice::from_ref(&missing), start);
        assert!(absences.condition(&object(None), Timestamp::UNIX_EPOCH).is_none());
        let none = Recorded::default();
        assert!(!absences.prove(&missing, &none, MINUTE, false, start + 365 * BELIEVED));
        assert!(absences.prove(&missing, &none, MINUTE, true, start), "a person confirms it");
    }

    #[test]
    fn a_person_confirms_only_that_a_missing_resource_group_is_gone() {
        let now = Instant::now();
        let denied = Error::Denied { action: "a".into(), scope: "s".into(), message: "m".into() };
        let none = Recorded::default();
        let prove = |error: &Error| Absences::default().prove(error, &none, MINUTE, true, now);
        assert!(prove(&scope("g")));
        assert!(!prove(&nic("a")) && !prove(&denied));
    }
    #[test]
    fn a_missing_resource_group_is_believed_after_a_day() {
        assert_eq!(BELIEVED.as_secs(), 24 * 60 * 60);
    }
}
