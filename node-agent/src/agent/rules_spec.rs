//! The spec from which the node's rules are made, in a file beside the ledger.
//!
//! The tables may be flushed while the API server is away, and whatever flushes them may end the agent, too.
//! Pods run on, and the plugin goes on giving addresses; so the next agent must know the rules without the
//! API server. Rules of a spec that the ledger has left behind would be wrong. So the file is written before
//! the ledger takes a spec in, and one that is older than the ledger is not used: an agent of an earlier
//! release writes none.

use std::fs;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use vnetpool_crds::{NodeIPAllocation, NodeIPAllocationSpec};
use vnetpool_plugin::ledger::{
    Ledger,
    file::{Store, replace},
};

use super::keeper::basis;
use crate::install::if_there;

/// The file's name in the state folder.
const FILE: &str = "rules.json";

/// The source of a node's rules.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RulesSpec {
    /// UID and generation of the object.
    object: String,
    generation: i64,
    /// See [`basis`].
    pub(super) spec: NodeIPAllocationSpec,
}

impl RulesSpec {
    pub fn of(object: &NodeIPAllocation) -> RulesSpec {
        let metadata = &object.metadata;
        RulesSpec {
            object: metadata.uid.clone().unwrap_or_default(),
            generation: metadata.generation.unwrap_or_default(),
            spec: basis(&object.spec),
        }
    }

    /// Has the next agent of this boot know it. Fails if the file can't be replaced.
    pub fn write(&self, store: &Store) -> anyhow::Result<()> {
        let text = serde_json::to_string(self)?;
        let write = || {
            store.make_private()?;
            replace(&store.dir().join(FILE), [text.as_bytes()])
        };
        write().with_context(|| format!("can't write {FILE}, from which the next agent has its rules"))
    }

    /// What an agent before this one has kept, unless it is of another boot, or of an older spec than the
    /// ledger's. Fails if the file can't be read.
    pub fn read(store: &Store, boot_id: &str) -> anyhow::Result<Option<RulesSpec>> {
        let text = if_there(fs::read(store.dir().join(FILE)))?;
        let known: Option<RulesSpec> = text.map(|text| serde_json::from_slice(&text)).transpose()?;
        let ledger = store.peek().ok();
        Ok(known.filter(|known| known.spec.boot_id == boot_id && !known.is_behind(ledger.as_ref())))
    }

    /// Without a ledger that can be read it is all that is known of the node.
    fn is_behind(&self, ledger: Option<&Ledger>) -> bool {
        ledger.is_some_and(|ledger| ledger.object() != self.object || ledger.generation() > self.generation)
    }
}
