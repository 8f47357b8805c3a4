//! When a node's metadata service no longer lists the reservations of its NIC: the NIC is read, and Azure's
//! answer counts. Pure.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use vnetpool_crds::NodeIPAllocation;

/// Between two reads of a NIC because of hints.
const APART: Duration = Duration::from_secs(180);

/// The state of a node's hints so far. Lost, it costs a read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Hints {
    /// Hints that a read of the NIC has answered and that the agent still reports. The metadata service is
    /// wrong there, or late.
    answered: BTreeSet<String>,
    /// When the NIC was last read with a hint there.
    read: Option<Instant>,
}

impl Hints {
    /// How long until the NIC is to be read; `None` if there is no hint that a read hasn't answered.
    pub fn due(&self, allocation: &NodeIPAllocation, now: Instant) -> Option<Duration> {
        let is_news = hinted(allocation).any(|name| !self.answered.contains(name));
        is_news
            .then(|| self.read.map_or(Duration::ZERO, |read| (read + APART).saturating_duration_since(now)))
    }

    /// Takes note of the hints that have ended: the next time they are news.
    pub fn note(&mut self, allocation: &NodeIPAllocation) {
        let now: BTreeSet<&String> = hinted(allocation).collect();
        self.answered.retain(|name| now.contains(name));
    }

    /// The NIC has been read, for whatever reason.
    pub fn answered(&mut self, allocation: &NodeIPAllocation, now: Instant) {
        self.answered = hinted(allocation).cloned().collect();
        if !self.answered.is_empty() {
            self.read = Some(now);
        }
    }
}

/// The names that the node's report of this boot gives as no longer listed, of those that `spec` still has:
/// the names that have left it were dealt with.
fn hinted(allocation: &NodeIPAllocation) -> impl Iterator<Item = &String> {
    let status = allocation.status.as_ref().filter(|status| status.boot_id == allocation.spec.boot_id);
    let is_held = |name: &&String| allocation.spec.ip_configurations().any(|one| one.name == **name);
    status.into_iter().flat_map(|status| &status.unlisted).filter(is_held)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn allocation(held: &[&str], unlisted: &[&str], boot: &str) -> NodeIPAllocation {
        let held: Vec<_> = held.iter().map(|name| json!({"name": name, "address": "10.0.0.5/32"})).collect();
        let interface = json!({"id": "i", "mac": "m", "primaryAddress": "10.0.0.4", "subnet": {"id": "s"}, "ipConfigurations": held});
        serde_json::from_value(json!({
            "metadata": {"name": "n"},
            "spec": {"nodeUID": "u", "bootID": "b1", "pool": "p", "cooldown": "30s", "interfaces": [interface]},
            "status": {"bootID": boot, "unlisted": unlisted},
        }))
        .unwrap()
    }

    #[test]
    fn a_hint_has_the_nic_read_once() {
        let (mut hints, now) = (Hints::default(), Instant::now());
        let with_hint = allocation(&["vnp-1", "vnp-2"], &["vnp-1"], "b1");
        assert_eq!(hints.due(&with_hint, now), Some(Duration::ZERO));
        hints.answered(&with_hint, now);
        hints.note(&with_hint);
        assert_eq!(hints.due(&with_hint, now + 100 * APART), None, "Azure has reported that it is there");
        // Listed and missed once more, it is news.
        hints.note(&allocation(&["vnp-1", "vnp-2"], &[], "b1"));
        assert_eq!(hints.due(&with_hint, now + APART), Some(Duration::ZERO));
    }

    #[test]
    fn hints_that_keep_coming_have_it_read_every_few_minutes() {
        let (mut hints, now) = (Hints::default(), Instant::now());
        hints.answered(&allocation(&["vnp-1", "vnp-2"], &["vnp-1"], "b1"), now);
        let more = allocation(&["vnp-1", "vnp-2"], &["vnp-1", "vnp-2"], "b1");
        assert_eq!(hints.due(&more, now), Some(APART));
        assert_eq!(hints.due(&more, now + APART), Some(Duration::ZERO));
        // A read that answers no hint doesn't count.
        hints.answered(&allocation(&["vnp-1"], &[], "b1"), now + 2 * APART);
        assert_eq!(hints.due(&more, now + 2 * APART), Some(Duration::ZERO));
    }

    #[test]
    fn a_name_not_in_spec_or_from_another_boot_is_no_hint() {
        let (hints, now) = (Hints::default(), Instant::now());
        assert_eq!(hints.due(&allocation(&["vnp-2"], &["vnp-1"], "b1"), now), None);
        assert_eq!(hints.due(&allocation(&["vnp-1"], &["vnp-1"], "b2"), now), None);
        assert_eq!(hints.due(&allocation(&["vnp-1"], &[], "b1"), now), None);
    }
}
