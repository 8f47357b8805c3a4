//! Refusals that all public addresses of a place share: a quota that a subscription has used up in a region,
//! or a right that is missing in a resource group. One call at a time asks on behalf of all. Pure: `now` is
//! an argument.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use super::{Error, ResourceId};
use crate::lock::lock;

/// What a refusal concerns, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Place {
    Region {
        subscription: String,
        region: String,
    },
    /// A resource group, by its id.
    Group(String),
}

/// Where a public address is, or is to be.
#[derive(Clone, Debug)]
pub(super) struct Places {
    region: Place,
    group: Place,
}

impl Places {
    pub(super) fn of(id: &ResourceId, region: &str) -> Places {
        let subscription = id.subscription().to_ascii_lowercase();
        Places {
            region: Place::Region { subscription, region: region.to_ascii_lowercase() },
            group: Place::Group(id.group().to_ascii_lowercase()),
        }
    }

    /// All of what this error concerns; `None`: more than the one public address isn't known to be.
    fn concerned(&self, error: &Error) -> Option<&Place> {
        match (error, &self.group) {
            (Error::PublicAddressesUsedUp { .. }, _) => Some(&self.region),
            // Nobody grants a right to a public address that isn't there yet: all of the group lack it.
            (
                Error::Denied { .. } | Error::DenyAssignment { .. } | Error::SubscriptionUnusable { .. },
                group,
            ) => Some(group),
            (Error::Locked { scope, .. }, group @ Place::Group(id)) => {
                let within = format!("{}/", scope.to_ascii_lowercase());
                format!("{id}/").starts_with(&within).then_some(group)
            }
            _ => None,
        }
    }
}

/// Where they are refused: until when nobody asks, and Azure's answer.
#[derive(Debug, Default)]
pub(super) struct Refused(Mutex<HashMap<Place, (Instant, Error)>>);

/// From one attempt to the next. Each pod by itself would ask every few minutes, so that one of many comes
/// soon after that.
const AGAIN: Duration = Duration::from_secs(80);

impl Refused {
    /// Why none is to be asked for now. The first that comes when it is time tries on behalf of all.
    pub(super) fn refusal(&self, places: &Places, now: Instant) -> Option<Error> {
        let mut all = lock(&self.0);
        let both = [&places.region, &places.group];
        let holds = both.iter().filter_map(|place| all.get(*place)).find(|(until, _)| now < *until);
        if let Some((_, error)) = holds {
            return Some(error.clone());
        }
        for place in both {
            if let Some((until, _)) = all.get_mut(place) {
                *until = now + AGAIN;
            }
        }
        None
    }

    /// Takes in how an attempt has ended.
    pub(super) fn learn(&self, places: &Places, result: Result<(), &Error>, now: Instant) {
        let mut all = lock(&self.0);
        match result {
            Err(error) => {
                if let Some(place) = places.concerned(error) {
                    all.insert(place.clone(), (now + AGAIN, error.clone()));
                }
            }
            Ok(()) => [&places.region, &places.group].into_iter().for_each(|place| drop(all.remove(place))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(group: &str, region: &str) -> Places {
        let id = format!(
            "/subscriptions/S/resourceGroups/{group}/providers/Microsoft.Network/publicIPAddresses/vnp-u"
        );
        Places::of(&id.parse().unwrap(), region)
    }

    #[test]
    fn five_thousand_pods_try_a_used_up_quota_as_often_as_one_does() {
        let (refused, start) = (Refused::default(), Instant::now());
        let place = places("g", "WestEurope");
        let error = Error::PublicAddressesUsedUp { resource: "p".into(), message: "m".into() };
        let mut asked = 0;
        // Each of them comes every ten minutes, for two hours.
        let times = (0..5000 * 12).map(|turn| start + Duration::from_secs(7200) * turn / (5000 * 12));
        for now in times {
            if refused.refusal(&place, now).is_none() {
                asked += 1;
                refused.learn(&places("G", "westeurope"), Err(&error), now);
            }
        }
        assert!((80..=91).contains(&asked), "{asked}");
        let end = start + Duration::from_secs(7200);
        assert!(refused.refusal(&places("g", "northeurope"), end).is_none(), "another region's");
        assert!(refused.refusal(&places("h", "westeurope"), end).is_some(), "another group's");
        // The quota is raised, which the next that may try finds out.
        let later = end + AGAIN;
        assert!(refused.refusal(&place, later).is_none() && refused.refusal(&place, later).is_some());
        refused.learn(&place, Ok(()), later);
        assert!(refused.refusal(&place, later).is_none() && refused.refusal(&place, later).is_none());
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
            (locked("/subscriptions/s"), true),
            (locked(one), false),
            (locked("/subscriptions/s/resourceGroups/gg"), false),
            (label, false),
        ] {
            let (refused, now) = (Refused::default(), Instant::now());
            refused.learn(&places("g", "r"), Err(&error), now);
            assert_eq!(refused.refusal(&places("G", "r"), now).is_some(), is_shared, "{error}");
            assert!(refused.refusal(&places("h", "r"), now).is_none(), "{error}");
            assert!(refused.refusal(&places("g", "r"), now + AGAIN).is_none(), "{error}");
        }
    }
}
