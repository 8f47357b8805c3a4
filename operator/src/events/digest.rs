//! Few Events where many nodes have the same to report: they would trail by minutes, load the API server in
//! the very moment when nodes come, and nobody reads thousands.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::Event;
use tokio::time::Instant;

use vnetpool_crds::verdict::name_some;

use super::short;

/// An Event and the objects it is about.
pub(super) type Reported = (Vec<ObjectReference>, Event);

/// In a window, so many Events of one reason are published of the nodes of one pool. At its end one Event of
/// the pool stands for all the others.
const MANY: usize = 50;
/// How long a window is. It begins with the first Event of its reason and pool.
const WINDOW: Duration = Duration::from_secs(60);
/// So many of the nodes are named in the pool's Event.
const NAMED: usize = 5;

/// The windows that are open, by reason and pool.
#[derive(Default)]
pub(super) struct Digest(BTreeMap<(String, String), Window>);

struct Window {
    ends: Instant,
    pool: ObjectReference,
    published: usize,
    /// How many came after these.
    held: usize,
    /// The first of them, and the first nodes' names: thousands of Events would be megabytes.
    first: Option<Reported>,
    names: Vec<String>,
}

/// The name of the node that an Event is about.
pub(super) fn node_of(about: &[ObjectReference]) -> Option<&str> {
    about.iter().find(|one| one.kind.as_deref() == Some("NodeIPAllocation"))?.name.as_deref()
}

impl Digest {
    /// Gives the Event back if it is to be published now. `pool` is that of its node, if it is about one.
    pub fn admit(
        &mut self,
        reported: Reported,
        pool: Option<ObjectReference>,
        now: Instant,
    ) -> Option<Reported> {
        let Some(pool) = pool else { return Some(reported) };
        let key = (reported.1.reason.clone(), pool.name.clone().unwrap_or_default());
        let new = || Window { ends: now + WINDOW, pool, published: 0, held: 0, first: None, names: vec![] };
        let window = self.0.entry(key).or_insert_with(new);
        if window.published < MANY {
            window.published += 1;
            return Some(reported);
        }
        window.held += 1;
        // One more than are named shows that there are more.
        if window.names.len() <= NAMED {
            window.names.extend(node_of(&reported.0).map(str::to_owned));
        }
        window.first.get_or_insert(reported);
        None
    }

    /// When the next window ends.
    pub fn due(&self) -> Option<Instant> {
        self.0.values().map(|window| window.ends).min()
    }

    /// Closes the windows that have ended by now, and gives the Events of their pools.
    pub fn ended(&mut self, now: Instant) -> Vec<Reported> {
        self.0.extract_if(.., |_, window| window.ends <= now).filter_map(|(_, window)| window.sum()).collect()
    }

    /// The same for all windows, since no further Event comes.
    pub fn rest(&mut self) -> Vec<Reported> {
        std::mem::take(&mut self.0).into_values().filter_map(Window::sum).collect()
    }
}

impl Window {
    /// One Event for all that were held; `None` if none was.
    fn sum(self) -> Option<Reported> {
        let (about, first) = self.first?;
        if self.held == 1 {
            return Some((about, first));
        }
        let names = name_some(self.names.into_iter(), NAMED);
        let note = first.note.as_deref().unwrap_or_default();
        let note = format!("{} more times, of the nodes {names}; for one: {note}", self.held);
        Some((vec![self.pool], Event { note: Some(short(note)), secondary: None, ..first }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{full, reserved};
    use super::*;
    use crate::heap;

    fn object(kind: &str, name: &str) -> ObjectReference {
        ObjectReference { kind: Some(kind.into()), name: Some(name.into()), ..ObjectReference::default() }
    }

    fn reported(node: usize, event: Event) -> Reported {
        let name = format!("n{node}");
        (vec![object("Node", &name), object("NodeIPAllocation", &name)], event)
    }

    /// Hands these in, all at that time; gives those that are to be published at once.
    fn admit(digest: &mut Digest, all: Vec<Reported>, now: Instant) -> Vec<Reported> {
        let pool_of = |node: &str| object("NodeIPPool", if node == "n0" { "other" } else { "default" });
        let admitted = all.into_iter().map(|reported| {
            let pool = node_of(&reported.0).map(pool_of);
            digest.admit(reported, pool, now)
        });
        admitted.flatten().collect()
    }

    /// The objects of an Event, and its note.
    fn shown((about, event): &Reported) -> (String, &str) {
        let name = |one: &ObjectReference| {
            format!("{} {}", one.kind.as_deref().unwrap(), one.name.as_deref().unwrap())
        };
        let about: Vec<String> = about.iter().map(name).collect();
        (about.join(", "), event.note.as_deref().unwrap())
    }

    #[test]
    fn beyond_the_first_few_the_events_of_many_nodes_are_one_of_their_pool() {
        let (mut digest, now) = (Digest::default(), Instant::now());
        let many = |nodes: std::ops::Range<usize>| nodes.map(|node| reported(node, reserved(4, 8, "nic")));
        let at_once = admit(&mut digest, many(0..MANY + 1).collect(), now);
        assert_eq!(at_once.len(), MANY + 1, "n0 is in a pool of its own");
        // They come one by one, as Azure admits the writes.
        let later = now + WINDOW / 2;
        assert!(admit(&mut digest, many(100..140).collect(), later).is_empty());
        assert_eq!(admit(&mut digest, vec![reported(7, full("no address is left"))], later).len(), 1);
        assert_eq!(digest.due(), Some(now + WINDOW));
        assert!(digest.ended(later).is_empty());
        let sums = digest.ended(now + WINDOW);
        let [sum] = &sums[..] else { panic!("{} Events", sums.len()) };
        let (about, note) = shown(sum);
        assert_eq!(about, "NodeIPPool default");
        for part in ["40 more times", "n100, n101, n102, n103, n104 and more", "reserved 4 addresses"] {
            assert!(note.contains(part), "{note}");
        }
        assert_eq!(admit(&mut digest, many(200..203).collect(), now + WINDOW).len(), 3, "a new window");
    }

    #[test]
    fn of_thousands_of_events_few_bytes_are_kept() {
        let (mut digest, now) = (Digest::default(), Instant::now());
        let mut hold = |nodes: std::ops::Range<usize>| {
            let long = |node| reported(node, full(&"what Azure has answered. ".repeat(30)));
            let kept = heap::kept(|| drop(admit(&mut digest, nodes.map(long).collect(), now))).0;
            println!("{kept} bytes");
            kept
        };
        hold(1..MANY + 10);
        assert!(hold(1000..4000) < 100);
    }

    #[test]
    fn events_of_few_nodes_and_those_of_pods_are_published_as_they_come() {
        let (mut digest, now) = (Digest::default(), Instant::now());
        let few: Vec<Reported> = (1..MANY).map(|node| reported(node, reserved(4, 8, "nic"))).collect();
        assert_eq!(admit(&mut digest, few, now).len(), MANY - 1);
        let pods: Vec<Reported> = (0..2 * MANY).map(|_| (vec![object("Pod", "p")], full("none"))).collect();
        assert_eq!(admit(&mut digest, pods, now).len(), 2 * MANY);
        assert!(digest.rest().is_empty());
    }

    #[test]
    fn no_event_is_lost_when_the_operator_ends() {
        let (mut digest, now) = (Digest::default(), Instant::now());
        let all = (1..MANY + 2).map(|node| reported(node, reserved(4, 8, "nic"))).collect();
        assert_eq!(admit(&mut digest, all, now).len(), MANY);
        let rest = digest.rest();
        let [one] = &rest[..] else { panic!("{} Events", rest.len()) };
        assert_eq!(shown(one).0, format!("Node n{0}, NodeIPAllocation n{0}", MANY + 1), "it needs no sum");
    }
}
