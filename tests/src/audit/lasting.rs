//! What may be so on a node for a moment, and must not last.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A node without the rules that masquerade, or those that drop forged packets, has them again within this
/// time, whatever else is done to its agent.
pub const LASTS: Duration = Duration::from_secs(120);

/// Something that must not last on a node.
#[derive(Default)]
pub struct Lasting {
    /// For how long it has, on all nodes together.
    pub total: Duration,
    /// For how long now, by node.
    of: BTreeMap<String, Duration>,
}

impl Lasting {
    /// It was so on these nodes, and no longer on others. A node of which nothing was seen stays as it was.
    pub fn observed(&mut self, so: &BTreeSet<String>, no_longer: &BTreeSet<String>, elapsed: Duration) {
        self.of.retain(|node, _| !no_longer.contains(node));
        for node in so {
            self.total += elapsed;
            *self.of.entry(node.clone()).or_default() += elapsed;
        }
    }

    /// Where it has lasted for too long: it is this.
    pub fn violations(&self, what: &str) -> Vec<String> {
        let too_long = self.of.iter().filter(|(_, time)| **time > LASTS);
        let limit = LASTS.as_secs();
        too_long.map(|(node, _)| format!("{node}: {what} for more than {limit} s")).collect()
    }
}
