//! The state of the modelled world: Azure, the API server, two operator processes, one node, and the faults
//! that may still happen. Plain data; the steps stand in the other files.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use vnetpool_operator::Known;
use vnetpool_plugin::ledger::Ledger;

/// How many pods, and so sandboxes, there may be at once.
pub const PODS: usize = 2;
/// How many addresses the subnet has: one more than pods, so that a given-back one soon comes again under a
/// new name.
pub const ADDRESSES: u8 = 3;

/// An ipConfiguration: its name, never used twice, and its address. Of a block it is the number among all
/// blocks of the subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Configuration {
    pub name: u8,
    pub address: u8,
}

/// Everything there is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub azure: Azure,
    pub api: Api,
    /// The old leader and the new one. Nothing keeps them from acting at the same time, however late.
    pub operators: [Option<Process>; 2],
    pub node: Node,
    pub faults: Faults,
    /// Names that a ledger has relinquished, as long as they are on the NIC: only these may be removed from
    /// it.
    pub given_up: BTreeSet<u8>,
    /// An ipConfiguration was removed from the NIC though no node had given it up.
    pub robbed: bool,
    /// A pod has come while the node lacked its rules.
    pub exposed: bool,
    /// A pod was given an address that Azure had yet to finish.
    pub unreached: bool,
    /// A pod that was there has lost its address to a GC.
    pub cut_off: bool,
    /// How many addresses a reservation has.
    pub grain: u8,
}

/// The NIC and the writes on their way to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Azure {
    pub nic: Vec<Configuration>,
    pub etag: u8,
    /// Addresses that another user of the subnet has taken.
    pub strangers: BTreeSet<u8>,
    /// Writes sent but not handled yet, in no order.
    pub puts: Vec<Put>,
    /// A write that was taken and isn't finished: the NIC is Updating. `by` is the process that waits for its
    /// end, if one still does.
    pub operation: Option<Operation>,
    /// The last write was given up half-way.
    pub has_failed: bool,
    /// ipConfigurations that the network doesn't know yet, and may never.
    pub unfinished: BTreeSet<u8>,
    pub last_name: u8,
}

/// A NIC write: the whole NIC as the writer knew it, edited.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Put {
    /// The process that waits for the answer, if one still does.
    pub by: Option<usize>,
    pub document: Document,
    pub reserve: Vec<u8>,
    pub release: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operation {
    pub by: Option<usize>,
}

/// The NIC as read at some time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Document {
    pub etag: u8,
    pub held: Vec<Configuration>,
    pub state: ProvisioningState,
    pub unfinished: BTreeSet<u8>,
}

/// Of a NIC, and of each of its ipConfigurations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProvisioningState {
    Succeeded,
    Updating,
    Failed,
}

/// The API server's object in its last versions, oldest first: a watch may show any of them at any time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Api {
    pub history: Vec<Object>,
    /// Whether the last version in `history` is the present object; otherwise there is no object.
    pub exists: bool,
    pub last_uid: u8,
    /// A write of `Writing` that its sender has given up: the object's UID, and its status.
    pub held_back: Option<(u8, bool)>,
}

/// The NodeIPAllocation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Object {
    pub uid: u8,
    /// resourceVersion.
    pub version: u8,
    pub generation: u8,
    /// It was deleted; the finalizer keeps it.
    pub deleted: bool,
    pub spec: Spec,
    pub status: Status,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Spec {
    /// spec.bootID; 0 = empty.
    pub boot: u8,
    pub target: u32,
    /// Whether `interfaces` names the NIC.
    pub has_interface: bool,
    pub entries: Vec<Configuration>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Status {
    pub boot: u8,
    pub assigned: u32,
    pub relinquished: Vec<u8>,
    /// Counts the ledgers that were about to be built.
    pub ledgers: u8,
    /// The operator's condition.
    pub writing: bool,
}

/// An operator process: the state that `operator/src/node` keeps between and within reconciles.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Process {
    pub memory: Option<Memory>,
    /// The Azure client's cache.
    pub document: Option<Document>,
    pub step: Step,
}

/// `operator/src/node/memory.rs`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Memory {
    pub uid: u8,
    pub latest: Option<Object>,
    /// The product's own. It seldom changes, and many worlds have the same.
    nic: Arc<Known>,
}

impl Memory {
    pub fn new(uid: u8, nic: Known) -> Memory {
        Memory { uid, latest: None, nic: Arc::new(nic) }
    }

    pub fn nic(&mut self) -> &mut Known {
        Arc::make_mut(&mut self.nic)
    }

    pub fn known(&self) -> &Known {
        &self.nic
    }
}

/// Where in a reconcile the process stands: it may stay there for ever, and go on when all has changed around
/// it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Step {
    #[default]
    Idle,
    /// Has read everything and planned: the write is next, or publishing.
    Observed { allocation: Object, observation: Observation, may_write: bool },
    /// Waits for the answer to its NIC write.
    Writing { allocation: Object },
    /// Has the answer, or knows that none will come.
    Answered { allocation: Object },
    /// Waits for the answer to the write that takes off the NIC what a deleted object lists as given up.
    Releasing { allocation: Object },
    /// Has let a deleted object go and is about to make it again.
    Recreating { spec: Spec },
}

/// The result of a read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Observation {
    pub spec: Spec,
    pub reserve: u32,
    pub release: Vec<u8>,
    /// The last write is to be made again.
    pub repair: bool,
}

/// The node: kernel, ledger, agent, and the pods that the scheduler has put there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    pub boot: u8,
    /// Whether the node's rules are in place, by the agent's last inspection.
    pub is_ruled: bool,
    /// Pods bound to the node.
    pub pods: [bool; PODS],
    /// The address behind each sandbox's host link: the kernel's knowledge, whatever the ledger has.
    pub wired: [Option<u8>; PODS],
    /// ADDs that have an address and are yet to wire it.
    pub adding: [Option<Adding>; PODS],
    /// A GC that is under way.
    pub gc: Option<Gc>,
    pub ledger: Option<Book>,
    /// The object that the agent has supplied the ledger from and will now relinquish for.
    pub supplied: Option<Supplied>,
    /// The status that the agent is about to write.
    pub report: Option<Report>,
    /// The object as the agent has read it to build a ledger.
    pub read: Option<Object>,
    /// The latest version this agent process has used: an older one is not news.
    pub latest: u8,
    /// A report of an agent that gave up waiting, or died: still on its way.
    pub late: Option<Report>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Adding {
    pub address: u8,
    /// Whether others meet its sandbox's lock: they don't once the folder was removed.
    pub is_locked: bool,
}

/// What a GC goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gc {
    /// The sandboxes that the runtime has named.
    pub valid: [bool; PODS],
    /// Those that had an address when it began.
    pub had: [bool; PODS],
}

/// Halfway through the agent's reconcile: pods get new addresses before any of them is given up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Supplied {
    pub object: u8,
    pub target: u32,
    /// status.relinquished as the agent saw it.
    pub relinquished: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Report {
    /// The object it is about.
    pub uid: u8,
    pub boot: u8,
    pub assigned: u32,
    pub relinquished: Vec<u8>,
    /// The only version it may land on.
    pub version: Option<u8>,
}

/// A ledger that can be hashed: by all that it shows of itself, computed once a change.
#[derive(Clone, Debug)]
pub struct Book {
    ledger: Arc<Ledger>,
    digest: u64,
}

impl Book {
    pub fn new(ledger: Ledger) -> Book {
        let digest = BuildHasherDefault::<DefaultHasher>::default().hash_one(format!("{ledger:?}"));
        Book { ledger: Arc::new(ledger), digest }
    }

    pub fn read(&self) -> &Ledger {
        &self.ledger
    }

    /// One transaction.
    pub fn with<T>(&mut self, f: impl FnOnce(&mut Ledger) -> T) -> T {
        let mut ledger = (*self.ledger).clone();
        let value = f(&mut ledger);
        if ledger != *self.ledger {
            *self = Book::new(ledger);
        }
        value
    }
}

impl PartialEq for Book {
    fn eq(&self, other: &Book) -> bool {
        self.digest == other.digest && self.ledger == other.ledger
    }
}

impl Eq for Book {}

impl Hash for Book {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
    }
}

/// How often each fault may still happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Faults {
    /// A NIC write fails at Azure.
    pub failed_writes: u8,
    /// An answer of Azure is lost; the write may be handled before or after.
    pub lost_answers: u8,
    /// An operator process dies.
    pub operator_deaths: u8,
    /// A second leader starts while the first goes on.
    pub second_leaders: u8,
    pub agent_crashes: u8,
    /// The folder of the ledger is wiped.
    pub wipes: u8,
    pub reboots: u8,
    /// A DEL dies between silencing the sandbox and freeing its address.
    pub broken_dels: u8,
    /// The node's rules can't be put in place, until they can.
    pub lost_rules: u8,
    /// A person deletes the NodeIPAllocation.
    pub deletions: u8,
    /// Another client takes an address of the subnet.
    pub strangers: u8,
    /// A report lands after its sender has given it up.
    pub late_reports: u8,
    /// An ADD dies between assigning an address and wiring it.
    pub broken_adds: u8,
    /// Azure gives a NIC write up that it has taken.
    pub late_failures: u8,
    /// The API server's answer to an operator's write is lost, or the write lands after its sender has given
    /// it up.
    pub lost_publications: u8,
    /// Not a fault: how often the runtime has garbage collected.
    pub collections: u8,
    /// Not a fault: how often a pod may be bound to the node or taken from it.
    pub pod_changes: u8,
}

impl Faults {
    pub const NONE: Faults = Faults {
        failed_writes: 0,
        lost_answers: 0,
        operator_deaths: 0,
        second_leaders: 0,
        agent_crashes: 0,
        wipes: 0,
        reboots: 0,
        broken_dels: 0,
        lost_rules: 0,
        deletions: 0,
        strangers: 0,
        late_reports: 0,
        broken_adds: 0,
        late_failures: 0,
        lost_publications: 0,
        collections: 0,
        pod_changes: 0,
    };

    /// How many may still strike, of all kinds together.
    pub fn count(&self) -> u32 {
        let Faults {
            failed_writes,
            lost_answers,
            operator_deaths,
            second_leaders,
            agent_crashes,
            wipes,
            reboots,
            broken_dels,
            lost_rules,
            deletions,
            strangers,
            late_reports,
            broken_adds,
            late_failures,
            lost_publications,
            collections: _,
            pod_changes: _,
        } = *self;
        let all = [
            failed_writes,
            lost_answers,
            operator_deaths,
            second_leaders,
            agent_crashes,
            wipes,
            reboots,
            broken_dels,
            lost_rules,
            deletions,
            strangers,
            late_reports,
            broken_adds,
            late_failures,
            lost_publications,
        ];
        all.into_iter().map(u32::from).sum()
    }

    /// What isn't a fault.
    pub fn none_left(self) -> Faults {
        Faults { collections: self.collections, pod_changes: self.pod_changes, ..Faults::NONE }
    }
}

impl World {
    /// The write of `Writing` that was held back comes to the object it is about.
    pub fn land_held_back(&mut self) {
        let Some((uid, writing)) = self.api.held_back.take() else { return };
        self.api.write(|object| {
            if object.uid == uid {
                object.status.writing = writing;
            }
        });
    }

    /// Whether no ADD is between its halves.
    pub fn is_at_rest(&self) -> bool {
        self.node.adding.iter().all(Option::is_none)
    }

    /// A node that has just appeared, with the first `pods` of its pods bound, and nothing anywhere else.
    pub fn new(pods: usize, grain: u8) -> World {
        World {
            azure: Azure::default(),
            api: Api::default(),
            operators: [None, None],
            node: Node {
                boot: 1,
                is_ruled: true,
                pods: std::array::from_fn(|pod| pod < pods),
                wired: [None; PODS],
                adding: [None; PODS],
                gc: None,
                ledger: None,
                supplied: None,
                report: None,
                read: None,
                late: None,
                latest: 0,
            },
            faults: Faults::NONE,
            given_up: BTreeSet::new(),
            robbed: false,
            exposed: false,
            unreached: false,
            cut_off: false,
            grain,
        }
    }

    /// Only the order of resourceVersions and the equality of ETags mean anything: worlds that differ only in
    /// their values are made one, by numbering them anew. And values that no step will ever read are dropped.
    pub fn canonical(mut self, seen_versions: usize) -> World {
        let excess = self.api.history.len().saturating_sub(seen_versions);
        self.api.history.drain(..excess);
        let on_nic: BTreeSet<u8> = self.azure.nic.iter().map(|one| one.name).collect();
        self.given_up.retain(|name| on_nic.contains(name));
        self.azure.unfinished.retain(|name| on_nic.contains(name));
        self.azure
            .puts
            .sort_by_key(|put| (put.by, put.document.etag, put.reserve.clone(), put.release.clone()));

        let (mut versions, mut etags) = (BTreeSet::new(), BTreeSet::new());
        self.numbers(&mut |version| _ = versions.insert(*version), &mut |etag| _ = etags.insert(*etag));
        let rank = |of: &BTreeSet<u8>, number: &mut u8| *number = 1 + of.range(..*number).count() as u8;
        self.numbers(&mut |version| rank(&versions, version), &mut |etag| rank(&etags, etag));
        self
    }

    /// Visits every resourceVersion and every ETag there is.
    fn numbers(&mut self, version: &mut impl FnMut(&mut u8), etag: &mut impl FnMut(&mut u8)) {
        etag(&mut self.azure.etag);
        self.azure.puts.iter_mut().for_each(|put| etag(&mut put.document.etag));
        self.api.history.iter_mut().for_each(|object| version(&mut object.version));
        self.node.read.iter_mut().for_each(|object| version(&mut object.version));
        version(&mut self.node.latest);
        let reports = self.node.report.iter_mut().chain(&mut self.node.late);
        reports.flat_map(|report| &mut report.version).for_each(&mut *version);
        for process in self.operators.iter_mut().flatten() {
            process.document.iter_mut().for_each(|document| etag(&mut document.etag));
            process
                .memory
                .iter_mut()
                .flat_map(|memory| &mut memory.latest)
                .for_each(|object| version(&mut object.version));
            match &mut process.step {
                Step::Observed { allocation, .. }
                | Step::Writing { allocation }
                | Step::Releasing { allocation }
                | Step::Answered { allocation } => {
                    version(&mut allocation.version);
                }
                Step::Idle | Step::Recreating { .. } => {}
            }
        }
    }
}
