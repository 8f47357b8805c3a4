//! What has become of a node's attachments so far.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use vnetpool_crds::allocation;

use crate::azure::ResourceId;
use crate::node::setback::Setback;

/// What this process remembers of a node's attachments. All of it can be lost.
#[derive(Clone, Debug)]
pub struct Attaching {
    /// What Azure has told of public addresses; `None`: there is none.
    pub public: HashMap<ResourceId, Option<allocation::PublicAddress>>,
    /// Pods that Azure has refused something, by UID, with their names.
    pub refused: HashMap<String, (String, Setback)>,
    /// What keeps all of the node's attachments waiting.
    pub setback: Option<Setback>,
    /// How many to attach in one write.
    pub batch: usize,
}

impl Default for Attaching {
    fn default() -> Self {
        Attaching { public: HashMap::new(), refused: HashMap::new(), setback: None, batch: usize::MAX }
    }
}

impl Attaching {
    /// How long until something that was refused may be tried again.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        let all = self.refused.values().map(|(_, setback)| setback).chain(&self.setback);
        all.filter(|setback| setback.holds(now)).map(|setback| setback.until - now).min()
    }

    pub fn holds(&self, now: Instant) -> bool {
        self.setback.as_ref().is_some_and(|setback| setback.holds(now))
    }
}
