//! Which objects of a watch have changed in a way that matters. Pure.

use std::collections::{HashMap, HashSet};

use kube::ResourceExt;
use kube::runtime::watcher::Event;

/// Remembers a digest of each object, by name, so that real changes can be distinguished from events without
/// a change.
pub struct Changes<K> {
    digest: fn(&K) -> u64,
    known: HashMap<String, u64>,
    /// What a list that is under way has shown so far: an object that isn't in it went while the watch was
    /// down.
    listed: Option<HashSet<String>>,
}

impl<K: ResourceExt> Changes<K> {
    /// `digest` covers whatever a decision may depend on, and nothing else.
    pub fn new(digest: fn(&K) -> u64) -> Self {
        Changes { digest, known: HashMap::new(), listed: None }
    }

    /// Takes in one event and gives the names of the objects that came, changed or went.
    pub fn apply(&mut self, event: &Event<K>) -> Vec<String> {
        match event {
            Event::Init => {
                self.listed = Some(HashSet::new());
                vec![]
            }
            Event::InitApply(object) => {
                if let Some(listed) = &mut self.listed {
                    listed.insert(object.name_any());
                }
                self.see(object)
            }
            Event::Apply(object) => self.see(object),
            Event::Delete(object) => {
                self.known.remove(&object.name_any());
                vec![object.name_any()]
            }
            // The store shows a first list only when it is complete, so an object that was woken during it
            // may have read too early. After a later one, the answers to our own writes count no more.
            Event::InitDone => {
                let listed = self.listed.take().unwrap_or_default();
                let gone: Vec<String> =
                    self.known.keys().filter(|name| !listed.contains(*name)).cloned().collect();
                gone.iter().for_each(|name| {
                    self.known.remove(name);
                });
                gone.into_iter().chain(listed).collect()
            }
        }
    }

    fn see(&mut self, object: &K) -> Vec<String> {
        let (name, digest) = (object.name_any(), (self.digest)(object));
        if self.known.insert(name.clone(), digest) == Some(digest) { vec![] } else { vec![name] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node_object::Node;
    use serde_json::json;

    fn node(name: &str, label: &str) -> Node {
        serde_json::from_value(json!({"metadata": {"name": name, "labels": {"l": label}}})).unwrap()
    }

    fn changes() -> Changes<Node> {
        Changes::new(|node| node.labels().get("l").map_or(0, str::len) as u64)
    }

    #[test]
    fn an_event_that_changes_nothing_wakes_no_node() {
        let mut changes = changes();
        assert_eq!(changes.apply(&Event::Apply(node("a", "x"))), ["a"]);
        assert!(changes.apply(&Event::Apply(node("a", "y"))).is_empty());
        assert_eq!(changes.apply(&Event::Apply(node("a", "xx"))), ["a"]);
    }

    #[test]
    fn a_deleted_object_is_news_though_its_content_is_the_same() {
        let mut changes = changes();
        changes.apply(&Event::Apply(node("a", "x")));
        assert_eq!(changes.apply(&Event::Delete(node("a", "x"))), ["a"]);
        assert_eq!(changes.apply(&Event::Apply(node("a", "x"))), ["a"]);
    }

    #[test]
    fn an_object_that_went_while_the_watch_was_down_is_news_after_the_next_list() {
        let mut changes = changes();
        changes.apply(&Event::Apply(node("a", "x")));
        changes.apply(&Event::Apply(node("b", "x")));
        changes.apply(&Event::Init);
        changes.apply(&Event::InitApply(node("b", "x")));
        assert_eq!(changes.apply(&Event::InitDone), ["a", "b"]);
    }
}
