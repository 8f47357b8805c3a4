//! The cluster, and what was done to it and seen of it so far.

use anyhow::Result;
use serde_json::json;
use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use vnetpool_tests::audit::excuses::Excuses;
use vnetpool_tests::audit::rest::Sizing;
use vnetpool_tests::audit::sums::Sums;
use vnetpool_tests::cluster::Cluster;

/// The pool's minimum. After each second edit it is one more.
pub const MINIMUM: usize = 2;
/// The pool's batch.
pub const BATCH: usize = 2;

/// The state that all parts share.
pub struct World {
    pub cluster: Cluster,
    pub dir: PathBuf,
    /// The pool's, with the larger of its minimums.
    pub sizing: Sizing,
    sums: RefCell<Sums>,
    edits: Cell<usize>,
}

impl World {
    pub fn new(cluster: Cluster, dir: PathBuf, sizing: Sizing, excuses: Excuses) -> Self {
        World { cluster, dir, sizing, sums: RefCell::new(Sums::new(excuses)), edits: Cell::new(0) }
    }

    pub fn sums<T>(&self, change: impl FnOnce(&mut Sums) -> T) -> T {
        change(&mut self.sums.borrow_mut())
    }

    /// Edits the pool, as a person does to have it tried again what Azure has refused for good.
    pub async fn edit_pool(&self) -> Result<()> {
        self.edits.set(self.edits.get() + 1);
        let minimum = MINIMUM + self.edits.get() % 2;
        self.cluster.patch_pool(json!({ "sizing": { "minimum": minimum } })).await
    }
}
