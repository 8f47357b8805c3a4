//! The agent is killed before each system call of its transactions, one after the other. The next agent makes
//! good what it left, also when a verb comes first.
//!
//! A transaction is the product's own function. The test program runs itself once more for it, on a thread
//! that stops before each of its calls.

mod files;

use std::{
    collections::BTreeSet,
    env, fs,
    io::{Read, stdin},
    path::Path,
    process::{Command, Stdio},
    thread,
};

use vnetpool_node_agent::{agent, disturbance, firewall, firewall::apply::Firewall, sysctl};
use vnetpool_plugin::{
    ledger::{Ledger, Supply, file, file::Store},
    wiring::{bridge, host_links, range, steer},
};

use super::{AS_HELD, HELD, MOST_CALLS, Next, Stage, is_nightly, report, sweep_here};
use crate::{
    calls,
    node::{NODE, Pod, eventually, finish, supply},
};

/// Names the transaction that a test program is to run, which was started for that.
const TRANSACTION: &str = "VNETPOOL_TEST_TRANSACTION";
const SETTINGS: &str = "/proc/sys/net";

/// What the object demands of the node.
#[derive(Clone, Copy)]
struct Spec {
    generation: u8,
    /// vnp-1 and so on to this one, but for those that others took.
    count: u8,
    lost: &'static [&'static str],
    target: u32,
}

const FIRST: Spec = Spec { generation: 1, count: HELD, lost: &[], target: 100 };
/// It brings two addresses, lacks a pod's and a free one, and asks for two back.
const LATER: Spec = Spec { generation: 2, count: 14, lost: &["vnp-1", "vnp-12"], target: 10 };

impl Spec {
    fn supply(self) -> Supply {
        let mut supply = supply(self.generation.into(), self.count);
        supply.entries.retain(|entry| !self.lost.contains(&entry.name.as_str()));
        supply
    }
}

/// A transaction in a situation.
struct Transaction {
    what: &'static str,
    wiring: &'static str,
    spec: Spec,
    /// How many records there may be, and addresses held: before it, halfway and after it.
    may_hold: &'static [(usize, u32)],
    /// The state before it.
    before: fn(&Stage, &Pod),
    run: fn(&Store, Spec),
    /// What holds when it was killed.
    is_safe: fn(&Stage),
    /// What may come after it.
    after: &'static [After],
}

/// The next to come, once the agent was killed.
#[derive(Clone, Copy, Debug)]
enum After {
    /// The next agent, and then this verb or program.
    Agent(Next),
    /// This verb or program, and then the next agent.
    Before(Next),
    /// A DEL, which doesn't need the ledger, and then the next agent.
    Del,
    /// The ADD of another pod, which waits for a ledger, and then the next agent.
    Add,
}
use After::{Agent, Before};
use Next::{Collection, NewSandbox, SameAdd, Sweeping};

const ANY_ORDER: &[After] = &[
    Agent(SameAdd),
    Before(SameAdd),
    Agent(NewSandbox),
    Before(NewSandbox),
    Agent(Collection),
    Before(Collection),
    Agent(Sweeping),
    Before(Sweeping),
];

fn add(stage: &Stage, pod: &Pod) {
    stage.add(pod);
}

/// The others differ from this one.
const SUPPLY: Transaction = Transaction {
    what: "a spec is taken up",
    wiring: "Routed",
    spec: LATER,
    may_hold: &[(12, 12), (14, 12), (12, 10)],
    before: add,
    run: take_up,
    is_safe: Stage::is_safe,
    after: ANY_ORDER,
};
const REBUILD: Transaction = Transaction {
    what: "a ledger is built",
    // The record of a pod whose address is lost counts as long as the pod is there.
    may_hold: &[(13, 12), (11, 10), (12, 12), (10, 10)],
    before: |stage, pod| {
        stage.add(pod);
        fs::remove_file(stage.node.dir.path().join(file::LEDGER)).unwrap();
    },
    is_safe: is_safe_once_built,
    after: &[Agent(SameAdd), After::Del, After::Add, Agent(NewSandbox), Agent(Sweeping)],
    ..SUPPLY
};
const REBUILDS: [Transaction; 2] = [
    REBUILD,
    Transaction {
        what: "a ledger is built from bridged pods in place of half a one",
        wiring: "Bridge",
        before: |stage, pod| {
            stage.add(pod);
            fs::write(stage.node.dir.path().join(file::LEDGER), "ledger 1\nboot").unwrap();
        },
        ..REBUILD
    },
];

const SWEEP: Transaction = Transaction {
    what: "the record of a pod is swept that is gone",
    spec: FIRST,
    may_hold: AS_HELD,
    before: |stage, pod| {
        stage.add(pod);
        stage.end_namespace(pod);
    },
    run: sweep,
    after: &[Agent(NewSandbox), Before(NewSandbox), Before(Collection)],
    ..SUPPLY
};
const SWEEPS: [Transaction; 4] = [
    SWEEP,
    Transaction { what: "the record of a bridged pod is swept that is gone", wiring: "Bridge", ..SWEEP },
    Transaction {
        what: "a link is swept that DEL has silenced",
        before: |stage, pod| {
            stage.add(pod);
            stage.run("DEL", pod).succeeds();
        },
        ..SWEEP
    },
    Transaction {
        what: "a pod without a record gets one",
        before: |stage, pod| {
            stage.add(pod);
            stage.node.store.note(|ledger, now| ledger.free(&pod.sandbox(), now)).unwrap();
        },
        is_safe: |_| {}, // before it nothing is, either
        after: &[Agent(SameAdd), Agent(NewSandbox), Before(NewSandbox), Agent(Sweeping)],
        ..SWEEP
    },
];

const REPAIR: Transaction = Transaction {
    what: "the way to a pod is repaired",
    spec: FIRST,
    may_hold: AS_HELD,
    before: |stage, pod| stage.damage(pod, &pod.host_link()),
    run: repair,
    ..SUPPLY
};
const REPAIRS: [Transaction; 2] = [
    REPAIR,
    Transaction {
        what: "the way to a bridged pod is repaired",
        wiring: "Bridge",
        before: |stage, pod| stage.damage(pod, bridge::BRIDGE),
        ..REPAIR
    },
];

const ROUTING: [Transaction; 1] = [Transaction {
    what: "the node's routes, rules of routing and settings are changed",
    before: |stage, pod| {
        stage.node.netns.inside(|| route(&stage.node.store, FIRST));
        stage.add(pod);
    },
    run: route,
    ..SUPPLY
}];

/// Without a ledger no verb gives an address out.
fn is_safe_once_built(stage: &Stage) {
    match stage.node.store.peek() {
        Err(error) if error.needs_rebuild() => {}
        _ => stage.is_safe(),
    }
}

fn take_up(store: &Store, spec: Spec) {
    let supply = &spec.supply();
    let transact = || agent::transact(store, Some(supply), spec.target, Some(true));
    match transact() {
        Err(error) if error.needs_rebuild() => {
            let boot = file::boot_id().unwrap();
            agent::rebuild(store, boot, &Default::default(), supply, false, true).unwrap();
            transact().unwrap();
        }
        transacted => drop(transacted.unwrap()),
    }
}

fn sweep(store: &Store, _: Spec) {
    sweep_here(store);
}

fn repair(store: &Store, _: Spec) {
    let (ledger, links) = (store.read().unwrap(), host_links().unwrap());
    for (link, _) in disturbance::damaged(&ledger, &links) {
        disturbance::restore(store, link).unwrap();
    }
}

/// All that the agent tells the kernel of the node but for nftables: each spec has its own MTU, subnet,
/// gateway and range.
fn route(_: &Store, Spec { generation, .. }: Spec) {
    let settings = Path::new(SETTINGS);
    sysctl::ensure(settings, ["eth0"].into_iter()).unwrap();
    bridge::ensure(1400 + u32::from(generation), settings).unwrap();
    sysctl::route_bridged(settings).unwrap();
    let subnet = format!("10.241.{generation}.0/24").parse().unwrap();
    steer::steer(&[subnet], "eth0", [10, 240, 0, generation].into(), [168, 63, 129, 16].into()).unwrap();
    range::close(&[format!("10.244.{generation}.0/24").parse().unwrap()]).unwrap();
}

/// The tables of nftables. Each spec has its own range that sees pods under their own addresses.
fn put_tables(Spec { generation, .. }: Spec) {
    let rules = firewall::Rules {
        uplinks: vec![firewall::Egress { link: "eth0".to_owned(), address: NODE }],
        direct: vec![format!("10.{generation}.0.0/16").parse().unwrap()],
        public: BTreeSet::new(),
        metadata: Default::default(),
        steered: None,
    };
    block_on(async {
        Firewall::of(firewall::Family::Inet).ensure(&rules.render()).await.unwrap();
        Firewall::of(firewall::Family::Arp).ensure(&firewall::arp::table(false)).await.unwrap();
    });
}

/// On this very thread, which is in a namespace.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

impl Stage {
    /// A pod whose way in has lost all that others can take from it. `leads_to` is the link of its route.
    fn damage(&self, pod: &Pod, leads_to: &str) {
        let (address, link) = (self.add(pod), pod.host_link());
        self.node.netns.ip(&format!("neighbour delete {address} dev {leads_to}"));
        self.node.netns.ip(&format!("link set {link} address 02:00:00:00:00:99"));
        self.node.netns.ip(&format!("route delete {address}/32"));
        self.node.netns.ip(&format!("link set {link} down"));
    }

    fn tables(&self) -> String {
        let of_family = |family: &str| {
            let mut nft = Command::new("nft");
            nft.args(["--stateless", "list", "ruleset", family]);
            let listed = self.node.netns.inside(|| nft.output().unwrap());
            assert!(listed.status.success(), "{listed:?}");
            String::from_utf8(listed.stdout).unwrap()
        };
        firewall::Family::ALL.map(|family| of_family(&family.to_string())).concat()
    }

    /// Runs this test's transaction once more, and kills it before this system call. Returns whether it came
    /// so far.
    fn kill_agent_before(&self, call: usize, what: &str) -> bool {
        let mut again = Command::new(env::current_exe().unwrap());
        again.args([thread::current().name().unwrap(), "--exact", "--nocapture"]).env(TRANSACTION, what);
        again.stdin(Stdio::piped()).stdout(Stdio::piped());
        let dir = self.node.dir.path().to_str().unwrap().as_bytes();
        let ended = self.node.netns.inside(|| calls::kill_before(call, &mut again, dir));
        ended.inspect(|ended| assert!(ended.status.success(), "{what}: {ended:?}")).is_none()
    }

    /// As the next agent has it that starts.
    fn start_agent(&self, Transaction { run, spec, .. }: &Transaction) {
        let store = &self.node.store;
        self.node.netns.inside(|| {
            take_up(store, *spec);
            run(store, *spec);
            sweep(store, *spec);
            repair(store, *spec);
        });
    }

    /// Has these come to what a killed agent has left of a pod.
    fn come_after(&self, after: After, pod: &Pod, transaction: &Transaction) {
        match after {
            Agent(next) => {
                self.start_agent(transaction);
                self.come(next, pod);
            }
            Before(next) => {
                self.come(next, pod);
                self.start_agent(transaction);
            }
            After::Del => {
                self.run("DEL", pod).succeeds();
                self.start_agent(transaction);
            }
            After::Add => {
                let other = Pod::new(&format!("{}-other", pod.id));
                let address = thread::scope(|scope| {
                    let add = scope.spawn(|| self.add(&other));
                    self.start_agent(transaction);
                    add.join().unwrap()
                });
                self.is_served(&other, address);
                [&other, pod].into_iter().for_each(|pod| self.run("DEL", pod).succeeds());
            }
        }
        self.is_freed(pod);
    }
}

/// If this process was started for this transaction, runs it, stopped before each call, and ends.
fn stand_in(what: &str, run: impl FnOnce(&Store)) {
    if env::var_os(TRANSACTION).is_some_and(|named| named == what) {
        let mut dir = String::new();
        stdin().read_to_string(&mut dir).unwrap();
        calls::from_here();
        run(&Store::at(dir));
        std::process::exit(0);
    }
}

/// Plays with an agent that is killed before its first system call, its second and so on, until it ends by
/// itself. `play` returns whether it was killed.
fn kill_before_each(what: &str, mut play: impl FnMut(usize) -> bool) {
    let Some(last) = (1..=MOST_CALLS).find(|&call| !play(call)) else {
        panic!("{what}: more than {MOST_CALLS} system calls")
    };
    report(last - 1, &format!("Agent, {what}"));
}

/// Usually each call has one successor, in turn; nightly each has all.
fn survives(transaction: &Transaction) {
    let Transaction { what, wiring, may_hold, before, is_safe, after, .. } = *transaction;
    let stage = Stage { may_hold, ..Stage::new(wiring) };
    let play = |call: usize, after: After, name: &str| {
        stage.node.hold(HELD);
        let pod = Pod::new(name);
        before(&stage, &pod);
        let is_killed = stage.kill_agent_before(call, what);
        is_safe(&stage);
        stage.come_after(after, &pod, transaction);
        super::sweep_up(&stage.node);
        (is_killed, stage.traces())
    };
    let (_, nothing) = play(MOST_CALLS, after[0], "first");
    kill_before_each(what, |call| {
        let every = if is_nightly() { 1 } else { after.len() };
        let successors = after.iter().enumerate().filter(|(index, _)| index % every == call % every);
        let plays: Vec<bool> = successors
            .map(|(index, &after)| {
                let (is_killed, traces) = play(call, after, &format!("pod-{call}-{index}"));
                assert_eq!(traces, nothing, "{what}, killed before call {call}, {after:?}");
                is_killed
            })
            .collect();
        plays.contains(&true)
    });
}

/// Usually the first of these; all of them nightly.
fn all_survive(transactions: &[Transaction]) {
    transactions.iter().for_each(|one| stand_in(one.what, |store| (one.run)(store, one.spec)));
    let count = if is_nightly() { transactions.len() } else { 1 };
    transactions.iter().take(count).for_each(survives);
}

#[test]
fn an_agent_killed_as_it_takes_up_a_spec_loses_no_address_and_doubles_none() {
    all_survive(&[SUPPLY]);
}

#[test]
fn an_agent_killed_as_it_builds_a_ledger_loses_no_address_and_doubles_none() {
    all_survive(&REBUILDS);
}

#[test]
fn an_agent_killed_as_it_sweeps_is_followed_by_one_that_does() {
    all_survive(&SWEEPS);
}

#[test]
fn an_agent_killed_as_it_repairs_the_way_to_a_pod_is_followed_by_one_that_does() {
    all_survive(&REPAIRS);
}

#[test]
fn an_agent_killed_as_it_changes_the_nodes_routing_is_followed_by_one_that_does() {
    all_survive(&ROUTING);
}

/// The kernel changes a table as a whole or not at all.
#[test]
fn an_agent_killed_as_it_changes_the_tables_leaves_the_former_or_the_new() {
    let what = "the tables of nftables are changed";
    stand_in(what, |_| put_tables(LATER));
    if !is_nightly() {
        return; // nft runs a dozen times for each call
    }
    let stage = Stage::new("Routed");
    let put = |spec| {
        stage.node.netns.inside(|| put_tables(spec));
        stage.tables()
    };
    let (former, new) = (put(FIRST), put(LATER));
    assert_ne!(former, new);
    kill_before_each(what, |call| {
        put(FIRST);
        let is_killed = stage.kill_agent_before(call, what);
        let left = stage.tables();
        assert!(left == new || (left == former && is_killed), "killed before call {call}: {left}");
        assert_eq!(put(LATER), new, "killed before call {call}");
        is_killed
    });
}

/// Others wake it when it was served, and nobody if they were killed in between.
#[test]
fn an_add_that_waits_is_served_though_the_agent_was_killed_before_it_woke_it() {
    let what = "a spec is taken up for an ADD that waits";
    stand_in(what, |store| take_up(store, LATER));
    if !is_nightly() {
        return; // an ADD that isn't woken sees for itself after seconds
    }
    let stage = Stage { may_hold: &[(0, 0), (12, 12), (10, 10)], ..Stage::new("Routed") };
    kill_before_each(what, |call| {
        stage.node.hold(0);
        let pod = Pod::new(&format!("pod-{call}"));
        let add = stage.node.start_add(&pod);
        let waits = |ledger: &Ledger| ledger.is_waiting(&pod.sandbox());
        eventually("the ADD waits", || stage.node.ledger(), waits);
        let is_killed = stage.kill_agent_before(call, what);
        stage.is_safe();
        stage.node.netns.inside(|| take_up(&stage.node.store, LATER));
        stage.is_served(&pod, finish(add).address());
        stage.run("DEL", &pod).succeeds();
        is_killed
    });
}
