//! The basis of the demo and the end-to-end tests: a real cluster in simulated Azure, and views of all of it;
//! or a real API server alone.
//!
//! ```text
//!   control_plane  an API server on loopback with our kinds, rights and policies; no node
//!   cluster   the machines: bring up, install, run things in them, take down
//!   audit     what must hold of a cluster whatever happens to it, by eyes of its own
//!   timeline  what all logs have about one address, in the order of their times
//!   lots      what comes next, by a seed
//!   clock     the clock of one running program, set wrong from outside
//!   azure     the simulator's own side: what the NICs hold, what was asked of ARM, faults
//!   workload  deployments of probe pods, and what each pod sees of the others
//!   node      a node's inside: processes, ledger
//!   place     namespaces to test from, and clients as the far end sees them; ARM as the network's owner writes it
//!   engine    an engine of NetworkPolicy on the nodes, and policies for it
//!   probe     what a test program does when it is started again inside a place
//!   snippets  the commands that README and the documents tell people to type
//!   monitoring what the chart's alerts and dashboards ask for, and what the programs serve
//!   prometheus a real one, which scrapes a cluster's programs
//!   panels    what the dashboards have shown, and pictures of it
//!   project   where the project's files and built programs are
//!   reference the pages of docs/reference that are made from the programs
//!   caught    whether tests have noticed that a rule was left out of the product
//!   overlay   the project with edits of its sources, without a trace in its folder
//!   later     the later release: the product a step ahead in each format
//!   asked     what a run is asked for by its environment
//!   site      the documents as a site, and which of its links lead nowhere
//!   guest     what a guest with a kernel of its own reports
//!   specs     what Kubernetes' own suite of specs reports
//!   secrets   what an attacker in a pod would ask Azure's services on the host for
//!   chapters  tests that come one after the other, each on a world
//!   wait      the one way to wait for something, and to see that something holds all the while
//!   glimpse   a node's addresses in simulated Azure, before there is a cluster
//!   story     the main job, step by step; each step gives what it observed
//! ```

pub mod asked;
pub mod audit;
pub mod azure;
pub mod caught;
pub mod chapters;
pub mod clock;
pub mod cluster;
pub mod control_plane;
pub mod engine;
pub mod glimpse;
pub mod guest;
pub mod later;
pub mod lots;
pub mod monitoring;
pub mod node;
pub mod overlay;
pub mod panels;
pub mod place;
pub mod probe;
pub mod project;
pub mod prometheus;
pub mod reference;
pub mod scale;
pub mod secrets;
pub mod site;
pub mod snippets;
pub mod specs;
pub mod story;
pub mod timeline;
pub mod wait;
pub mod workload;

pub use wait::{eventually, throughout};
