//! The quota of public addresses, which all pods of a subscription share in a region: once it is used up, one
//! call at a time asks on behalf of all. Pure: `now` is an argument.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use super::Error;
use crate::lock::lock;

/// A subscription and a region, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    subscription: String,
    region: String,
}

impl Place {
    pub(super) fn of(subscription: &str, region: &str) -> Place {
        Place { subscription: subscription.to_ascii_lowercase(), region: region.to_ascii_lowercase() }
    }
}

/// Where the quota is used up: until when nobody asks, and Azure's answer.
#[derive(Debug, Default)]
pub(super) struct UsedUp(Mutex<HashMap<Place, (Instant, Error)>>);

/// From one attempt to the next. Each pod by itself would ask every few minutes, so that one of many comes
/// soon after that.
const AGAIN: Duration = Duration::from_secs(80);

impl UsedUp {
    /// Why none is to be asked for now. The first that comes when it is time tries on behalf of all.
    pub(super) fn refusal(&self, place: &Place, now: Instant) -> Option<Error> {
        let mut all = lock(&self.0);
        let (until, error) = all.get_mut(place)?;
        if now < *until {
            return Some(error.clone());
        }
        *until = now + AGAIN;
        None
    }

    /// Takes in how an attempt has ended.
    pub(super) fn learn(&self, place: Place, result: Result<(), &Error>, now: Instant) {
        match result {
            Err(error @ Error::PublicAddressesUsedUp { .. }) => {
                lock(&self.0).insert(place, (now + AGAIN, error.clone()));
            }
            // It shows nothing of the quota.
            Err(_) => {}
            Ok(()) => drop(lock(&self.0).remove(&place)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_thousand_pods_ask_for_what_is_used_up_as_often_as_one_does() {
        let (used_up, start) = (UsedUp::default(), Instant::now());
        let place = Place::of("S", "WestEurope");
        let error = Error::PublicAddressesUsedUp { resource: "p".into(), message: "m".into() };
        let mut asked = 0;
        // Each of them comes every ten minutes, for two hours.
        let times = (0..5000 * 12).map(|turn| start + Duration::from_secs(7200) * turn / (5000 * 12));
        for now in times {
            if used_up.refusal(&place, now).is_none() {
                asked += 1;
                used_up.learn(Place::of("s", "westeurope"), Err(&error), now);
            }
        }
        assert!((80..=91).contains(&asked), "{asked}");
        let end = start + Duration::from_secs(7200);
        assert!(used_up.refusal(&Place::of("s", "northeurope"), end).is_none(), "another region's");
        assert!(used_up.refusal(&place, end).is_some());
        // The quota is raised, which the next that may try finds out.
        let later = end + AGAIN;
        assert!(used_up.refusal(&place, later).is_none() && used_up.refusal(&place, later).is_some());
        used_up.learn(place.clone(), Ok(()), later);
        assert!(used_up.refusal(&place, later).is_none() && used_up.refusal(&place, later).is_none());
    }
}
