//! What this process knows of a node's NIC, and when that is to be believed no more.

use std::time::Instant;

use vnetpool_crds::{NodeIPAllocation, condition};

use super::hint::Hints;
use crate::azure::{Nic, ResourceId};

/// All of it can be lost: the NIC is then read.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// When this process last read or wrote the NIC.
    pub at: Option<Instant>,
    /// The NIC may not be as we know it.
    pub must_read: bool,
    /// A write is under way, or its outcome isn't known.
    pub writing: bool,
    /// The condition `Writing` as we last wrote it. While we haven't cleared it, a `Writing` that we see is
    /// our own.
    said_writing: bool,
    /// The subnet for which the VM had no NIC when it was last asked.
    pub lacking: Option<ResourceId>,
    pub hints: Hints,
    /// The generation of `spec` as we last saw or wrote it; a later one is somebody else's work.
    generation: Option<i64>,
}

/// What was read from Azure, and when.
pub enum Read {
    Nothing,
    Nic {
        at: Instant,
    },
    /// The VM and each of its NICs. `lacking` is the subnet in which the pool wants a NIC that the VM doesn't
    /// have.
    All {
        at: Instant,
        lacking: Option<ResourceId>,
    },
}

impl Known {
    pub fn of(allocation: &NodeIPAllocation) -> Known {
        // Left behind by an operator that ended during a write.
        let writing = is_writing(allocation);
        Known {
            must_read: writing,
            writing,
            said_writing: writing,
            generation: allocation.metadata.generation,
            ..Known::default()
        }
    }

    /// A version of the object was seen. The `spec` of an old leader or of a person, and the write of another
    /// leader, may have changed the NIC as well.
    pub fn saw(&mut self, allocation: &NodeIPAllocation) {
        if allocation.metadata.generation > self.generation {
            self.generation = allocation.metadata.generation;
            self.must_read = true;
        }
        if is_writing(allocation) && !self.said_writing {
            self.said_writing = true;
            self.writing = true;
            self.must_read = true;
        }
    }

    /// The API server has answered to conditions of ours. They are applied whatever the version, so what the
    /// answer shows of `spec` may be somebody else's.
    pub fn status_written(&mut self, answer: &NodeIPAllocation) {
        self.said_writing = is_writing(answer);
        self.saw(answer);
    }

    /// The API server has answered to a `spec` of ours.
    pub fn spec_written(&mut self, answer: &NodeIPAllocation) {
        self.generation = answer.metadata.generation;
    }

    /// The NIC was looked for; `nic` is what it shows, if it is known.
    pub fn learn(&mut self, read: &Read, nic: Option<&Nic>, allocation: &NodeIPAllocation) {
        match read {
            Read::All { at, lacking } => {
                self.at = Some(*at);
                self.must_read = false;
                self.lacking.clone_from(lacking);
            }
            Read::Nic { at } => {
                self.at = Some(*at);
                self.must_read = false;
                self.hints.answered(allocation, *at);
            }
            Read::Nothing => {}
        }
        match nic {
            Some(nic) if nic.is_updating() => self.must_read = true,
            Some(_) => self.writing = false,
            None => {}
        }
    }
}

fn is_writing(allocation: &NodeIPAllocation) -> bool {
    condition::is_true(allocation.conditions(), condition::WRITING)
}
