//! The labels of a Node. Most of them are those of its neighbours, too, so each label is kept once for all
//! Nodes that have it, and a Node has a word for it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde::Deserialize;

/// A name and its value.
type Label = (Box<str>, Box<str>);

/// Sorted by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(from = "BTreeMap<Box<str>, Box<str>>")]
pub struct Labels(Box<[Arc<Label>]>);

impl From<BTreeMap<Box<str>, Box<str>>> for Labels {
    fn from(labels: BTreeMap<Box<str>, Box<str>>) -> Self {
        Labels(labels.into_iter().map(Arc::new).collect())
    }
}

impl Labels {
    /// The value of a label.
    pub fn get(&self, name: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|label| (*label.0).cmp(name)).ok()?;
        self.0.get(at).map(|label| &*label.1)
    }

    /// A copy, in the form that selectors match.
    pub fn to_map(&self) -> BTreeMap<String, String> {
        self.0.iter().map(|label| (label.0.to_string(), label.1.to_string())).collect()
    }
}

/// Every label that a Node has, once.
#[derive(Debug, Default)]
pub struct Shared {
    all: HashSet<Arc<Label>>,
    /// So many were in use when they were last counted.
    used: usize,
}

impl Shared {
    /// Replaces each of these by its equal, if there is one. Of labels that no Node has any more there are
    /// never more than of those in use at the last count.
    pub fn share(&mut self, labels: &mut Labels) {
        for label in &mut labels.0 {
            match self.all.get(label) {
                Some(known) => *label = known.clone(),
                None => {
                    self.make_room();
                    self.all.insert(label.clone());
                }
            }
        }
    }

    /// Drops what is out of use, once there are twice as many as were in use: each label is looked at a few
    /// times in all.
    fn make_room(&mut self) {
        if self.all.len() >= 2 * self.used {
            self.all.retain(|label| Arc::strong_count(label) > 1);
            self.used = self.all.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
    use kube::core::{Selector, SelectorExt};
    use proptest::prelude::*;

    fn labels(of: &[(&str, &str)]) -> Labels {
        let own: BTreeMap<Box<str>, Box<str>> =
            of.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        own.into()
    }

    #[test]
    fn a_label_that_several_nodes_have_is_kept_once() {
        let mut shared = Shared::default();
        let mut all = ["n1", "n2"].map(|name| labels(&[("zone", "1"), ("host", name)]));
        all.iter_mut().for_each(|labels| shared.share(labels));
        let [one, other] = &all;
        assert!(Arc::ptr_eq(&one.0[1], &other.0[1]) && !Arc::ptr_eq(&one.0[0], &other.0[0]));
        assert_eq!(shared.all.len(), 3);
        assert_eq!((one.get("host"), other.get("host"), other.get("hos")), (Some("n1"), Some("n2"), None));
    }

    #[test]
    fn labels_of_nodes_that_have_gone_are_dropped_however_many_come_and_go() {
        let (mut shared, mut most) = (Shared::default(), 0);
        let mut nodes = std::collections::VecDeque::new();
        for name in 0..10_000 {
            let name = name.to_string();
            let mut own = labels(&[("zone", "1"), ("host", name.as_str())]);
            shared.share(&mut own);
            nodes.push_back(own);
            if nodes.len() > 100 {
                nodes.pop_front();
            }
            most = most.max(shared.all.len());
        }
        assert!((101..=204).contains(&most), "{most} labels for 100 nodes");
    }

    /// Few names and few values, so that many meet.
    const NAMES: &str = "[a-d]{1,2}(/[a-b])?";
    const VALUES: &str = "[x-z]{0,2}";

    fn sets(size: std::ops::Range<usize>) -> impl Strategy<Value = BTreeMap<String, String>> {
        prop::collection::btree_map(NAMES, VALUES, size)
    }

    fn requirement() -> impl Strategy<Value = LabelSelectorRequirement> {
        let operators = prop::sample::select(vec!["In", "NotIn", "Exists", "DoesNotExist"]);
        (operators, prop::collection::vec((NAMES, VALUES), 1..4)).prop_map(|(operator, labels)| {
            let (names, values): (Vec<_>, Vec<_>) = labels.into_iter().unzip();
            LabelSelectorRequirement {
                key: names.into_iter().next().unwrap_or_default(),
                operator: operator.into(),
                values: operator.ends_with("In").then_some(values),
            }
        })
    }

    proptest! {
        #[test]
        fn a_selector_matches_shared_labels_as_it_matches_those_that_were_sent(
            nodes in prop::collection::vec(sets(0..8), 1..6),
            match_labels in sets(0..2),
            match_expressions in prop::collection::vec(requirement(), 0..3),
        ) {
            let mut shared = Shared::default();
            let selector: Selector = LabelSelector {
                match_labels: Some(match_labels),
                match_expressions: Some(match_expressions),
            }
            .try_into()
            .unwrap();
            let mut kept = vec![];
            for sent in &nodes {
                let mut labels: Labels = serde_json::from_value(serde_json::json!(sent)).unwrap();
                shared.share(&mut labels);
                kept.push(labels);
            }
            for (sent, kept) in nodes.iter().zip(&kept) {
                prop_assert_eq!(selector.matches(sent), selector.matches(&kept.to_map()));
                prop_assert!(sent.iter().all(|(name, value)| kept.get(name) == Some(value.as_str())));
            }
        }
    }
}
