//! Nodes that a decision concerns besides the one it was asked for.

/// The names of nodes that are to be reconciled again.
pub type Woken = Vec<String>;
