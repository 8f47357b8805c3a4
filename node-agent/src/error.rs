//! Why the agent couldn't serve a sandbox.

use vnetpool_plugin::{ledger::file, wiring};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Ledger(#[from] file::Error),
    #[error(transparent)]
    Wiring(#[from] wiring::Error),
}
