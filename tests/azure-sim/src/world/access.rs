//! What the one simulated identity may do, as a test sets it: role assignments, deny assignments and locks.

use serde::Deserialize;

/// Further restrictions of the identity besides `denied`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Access {
    /// Role assignments. An empty list means a role with `*` everywhere.
    pub grants: Vec<Grant>,
    pub deny_assignments: Vec<DenyAssignment>,
    pub locks: Vec<Lock>,
}

/// A role assignment. It applies at its scope and below.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    pub scope: String,
    /// `*` stands for any part of a name.
    pub actions: Vec<String>,
    #[serde(default)]
    pub not_actions: Vec<String>,
}

/// A deny assignment: it forbids everything but some actions at a scope and below, whatever the roles grant.
/// The node resource group of an AKS cluster under lockdown has one with `*/read` excepted [AKS: fully
/// managed resource group].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenyAssignment {
    pub name: String,
    pub scope: String,
    #[serde(default)]
    pub not_actions: Vec<String>,
}

/// A management lock. It applies at its scope and below.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    pub scope: String,
    pub level: LockLevel,
}

/// The verbs that a lock forbids.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub enum LockLevel {
    /// Deleting only. A write to a NIC passes, whatever ipConfigurations it removes.
    CanNotDelete,
    ReadOnly,
}
