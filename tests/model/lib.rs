//! The model of giving an address back: the real planner and the real ledger in a modelled world.
//!
//! ```text
//!    Azure (NIC)             operator                 API server                agent          ledger        plugin
//!        |                      |     spec.target = 1     |                       |               |             |
//!        |                      |------ if at version --->|------ any version --->|--- supply --->|<-- ADD -----|
//!        |                      |                         |                       |-- relinquish->|  n1 is out  |
//!        |                      |<----- any version ------|<-- relinquished: n1 --|               |             |
//!        |                      |--- condition Writing -->|                       |               |             |
//!        |<-- PUT without n1 ---|                         |                       |               |             |
//!        |    if ETag matches   |                         |                       |               |             |
//!        |---- NIC after it --->|                         |                       |               |             |
//!        |                      |------ if at version --->|------ any version --->|--- supply --->|  forgotten  |
//! ```
//!
//! Decided by the product: [`vnetpool_operator::planner::plan`], all of [`vnetpool_plugin::ledger::Ledger`],
//! and [`vnetpool_operator::Known`], by which an operator reads the NIC or believes `spec`, and takes
//! another's write for one. Modelled, after `operator/src/node` and `node-agent/src/agent`: the reads and
//! writes of each process, their order, and the points at which a process may stand still or die. Between two
//! steps of a process, any other may take any step: two leaders, of which either may be paused at any step
//! and then go on; watches that show any of the last versions; NIC writes that arrive late, fail, or whose
//! answer is lost; agents and DELs that die; a ledger that is lost; rules that are; a boot; pods that come
//! and go; an object deleted by hand; another user of the subnet who takes addresses that were given back.
//! Some tests also take ADD and Azure's work on a NIC write apart, lose the API server's answers, have the
//! runtime collect garbage, or reserve blocks of two addresses.
//!
//! The invariants of every state stand in [`protocol`]; that each state leads to the good end once nothing
//! fails any more, in `protocol/settle.rs`, with the node's rules and without. Left out: time (the cooldown
//! is 0, every wait is over; both have tests of their own); the building of a ledger halfway (the sandbox
//! locks keep verbs out); changes of the NIC by others, which `others.rs` has.
//!
//! The order of reads and writes is the one part that no code of the product decides here. [`trace`] ties it
//! to the product: what happens in its traces is done to the real operator, too
//! (`tests/conduct/replayed.rs`).

#![allow(clippy::unwrap_used)] // never shipped

mod azure;
mod node;
pub mod operator;
pub mod protocol;
pub mod trace;
pub mod world;

/// A rule of the protocol that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    None,
    /// The operator may remove only what the agent has given up.
    ReleasesTheMerelyFree,
    /// An address that is reported as given up is out of circulation already.
    ReportsBeforeRelinquishing,
    /// A ledger is built from `status.relinquished` before `spec`.
    ForgetsWhatWasRelinquished,
    /// A report is applied only to the version it was made from.
    ReportsOnAnyVersion,
    /// The object is written before a ledger is built.
    BuildsUnannounced,
    /// A ledger that is built while the node lacks its rules hands out nothing before it has them.
    BuildsAsIfRuled,
    /// A node gives back what it doesn't need whether or not it has its rules.
    KeepsAllWithoutRules,
    /// The ledger refuses a generation older than it has seen (and the agent, as below).
    AcceptsStaleGenerations,
    /// The agent refuses a version of the object older than one it has used.
    AcceptsOldVersions,
    /// The ledger refuses a spec that isn't of this boot; an object made again is of none.
    AcceptsOtherBoot,
    /// No name is used a second time.
    ReusesNames,
    /// `spec` is applied only to the version it was planned from.
    PublishesUnguarded,
    /// A NIC is written only as it was read.
    WritesUnconditionally,
    /// The version comes first, then the read of the NIC.
    TakesTheVersionAfterTheRead,
    /// The addresses that a deleted object lists as given up leave the NIC before the object goes.
    ForgetsReleasesUnderWay,
    /// A spec that another leader has written makes an operator read the NIC, even if it shows in the answer
    /// to a write of conditions.
    OverlooksAnothersSpec,
    /// The agent builds a ledger only while no verb runs.
    BuildsDuringAVerb,
    /// The agent sweeps no sandbox that a verb is at work on.
    SweepsDuringAVerb,
    /// An ADD whose lock was removed under it takes everything back.
    OverlooksALostLock,
    /// An address that Azure has yet to finish is not in `spec`.
    PublishesTheUnfinished,
    /// A NIC write that Azure has given up is made again.
    NeverRepairs,
    /// GC takes only what a sandbox had when it began.
    CollectsWhatCameSince,
    /// A block is given up only as a whole.
    GivesUpPartsOfBlocks,
}
