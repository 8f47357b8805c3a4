//! The agent's reconciles and inspections, each made by the test.

mod beside;
mod gap;
mod ready;
mod refused;
mod tables;

use super::*;
use crate::alone::{self, this_test};
use crate::host_ports::{self, HostPorts};
use crate::{args::Args, beat, report::local, supply, sysctl};
use clap::Parser;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde_json::json;
use std::{
    collections::BTreeSet, env, net::Ipv4Addr, os::unix::fs::PermissionsExt, path::PathBuf, process::Command,
};
use tokio::time::timeout;
use vnetpool_crds::{condition::Type, reason::Reason, verdict::Verdict};
use vnetpool_plugin::ledger::{Assign, Claim, Counts, Pod, Sandbox, file, file::WakeUp};
use vnetpool_plugin::wiring::Identity;

/// An agent of a VM of no cluster, whose files are below `root`. Its inspections are the test's to make.
fn agent(root: &Path) -> Agent {
    let flags = [
        ("--state-dir", "state"),
        ("--cni-bin-dir", "bin"),
        ("--cni-conf-dir", "net.d"),
        ("--plugin", "plugin"),
    ];
    let flags = flags.map(|(flag, name)| [flag.to_owned(), root.join(name).to_string_lossy().into_owned()]);
    let config = Args::parse_from(["agent".to_owned()].into_iter().chain(flags.concat())).config;
    let (settings, state_dir) = (config.imds.clone(), config.state_dir.clone());
    let source = Source::Metadata { settings, boot_id: config.boot_id().unwrap(), state_dir };
    let metrics = Metrics::new(&config.state_dir);
    Agent::new(config, source, metrics, Beat::begin()).unwrap()
}

/// The node's object in this generation, with addresses 10.240.250.1 and so on.
fn object(agent: &Agent, generation: i64, count: u8, exclusion: &str) -> NodeIPAllocation {
    let one = |n| json!({ "name": format!("vnp-{n}"), "address": format!("10.240.250.{n}/32") });
    let interface = json!({
        "id": "nic", "mac": "00:0d:3a:e5:1c:c0", "primaryAddress": "10.240.0.4",
        "subnet": { "id": "subnet", "prefixes": ["10.240.0.0/16"] },
        "ipConfigurations": (1..=count).map(one).collect::<Vec<_>>(),
    });
    let object = json!({
        "apiVersion": "vnetpool.io/v1alpha1", "kind": "NodeIPAllocation",
        "metadata": { "name": "n", "uid": "u", "generation": generation, "resourceVersion": generation.to_string() },
        "spec": {
            "nodeUID": "node", "bootID": agent.boot_id, "pool": "p", "cooldown": "30s", "target": 8,
            "snatExclusions": [exclusion], "interfaces": [interface],
        },
    });
    let object: NodeIPAllocation = serde_json::from_value(object).unwrap();
    agent.objects.send_replace(Seen::There(Arc::new(object.clone())));
    object
}

/// The agent's readiness by the object that was made last.
fn is_ready(agent: &Agent) -> bool {
    agent.is_ready(&agent.objects.borrow())
}

/// An inspection has made the wanted rules.
fn has_inspected(agent: &mut Agent) {
    let wanted = agent.wanted.clone();
    agent.inspected = Inspected { is_ruled: wanted.rules.is_some(), wanted, ..Inspected::default() };
}

/// An agent and its node's object of one address, whose rules an inspection has made.
fn ruled(root: &Path) -> (Agent, NodeIPAllocation) {
    let mut agent = agent(root);
    let object = object(&agent, 2, 1, "192.168.0.0/16");
    agent.wanted.rules = Some(keeper::basis(&object.spec));
    has_inspected(&mut agent);
    (agent, object)
}

fn is_held(agent: &Agent, number: u8) -> bool {
    let address = Ipv4Addr::new(10, 240, 250, number);
    agent.store.peek().is_ok_and(|ledger| ledger.records().iter().any(|one| one.entry().address == address))
}

#[tokio::test]
async fn addresses_are_supplied_while_an_inspection_is_under_way_but_for_those_whose_rules_it_brings() {
    let root = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut agent = agent(root.path());
    let inspections = agent.keeper.take();
    let first = object(&agent, 2, 1, "192.168.0.0/16");
    agent.reconcile(Some(&first)).await.unwrap();
    assert!(!is_held(&agent, 1), "a pod would come before its rules");
    has_inspected(&mut agent);
    agent.reconcile(Some(&first)).await.unwrap();
    assert!(is_held(&agent, 1));

    let more = object(&agent, 3, 2, "192.168.0.0/16");
    agent.reconcile(Some(&more)).await.unwrap();
    assert!(is_held(&agent, 2), "no rule is made from a free address");

    let other_rules = object(&agent, 4, 3, "172.16.0.0/12");
    agent.reconcile(Some(&other_rules)).await.unwrap();
    assert!(!is_held(&agent, 3));
    assert_ne!(agent.wanted, agent.inspected.wanted, "and so an inspection begins");
    drop(inspections);
}

/// They name pods, and decide which pod has which address. The plugin's log has a test of its own.
#[tokio::test]
async fn every_file_of_the_state_folder_belongs_to_its_owner_alone() {
    let root = tempfile::tempdir_in("/dev/shm").unwrap();
    let (mut agent, object) = ruled(root.path());
    let dir = agent.config.state_dir.clone();
    agent.reconcile(Some(&object)).await.unwrap();
    host_ports::write(&HostPorts::of("CNI-DN-1\n"), &dir).unwrap();
    let sandbox = Sandbox { container_id: "c1".into(), ifname: "eth0".into() };
    let _waiting = WakeUp::of(&agent.store, &sandbox).unwrap();
    // It writes the report that there is, and waits for the next.
    let _ = timeout(Duration::ZERO, local::write(agent.publisher())).await;
    let mut names = BTreeSet::new();
    for file in fs::read_dir(&dir).unwrap().map(Result::unwrap) {
        let name = file.file_name().into_string().unwrap();
        let mode = file.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{name} has mode {mode:o}");
        names.insert(name.trim_end_matches(|digit: char| digit.is_ascii_hexdigit()).to_owned());
    }
    assert_eq!(Vec::from_iter(names), ["host-ports", "ledger", "lock", "status.json", "wake-"]);
}

#[tokio::test]
async fn rules_that_return_while_others_are_applied_are_applied_again_before_their_addresses() {
    let root = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut agent = agent(root.path());
    let first = object(&agent, 2, 1, "192.168.0.0/16");
    agent.reconcile(Some(&first)).await.unwrap();
    has_inspected(&mut agent);
    agent.reconcile(Some(&first)).await.unwrap();
    assert!(is_held(&agent, 1));

    let others = object(&agent, 3, 2, "172.16.0.0/12");
    agent.reconcile(Some(&others)).await.unwrap();
    let mut inspections = JoinSet::new();
    agent.inspect_if_due(&mut inspections);
    assert!(agent.keeper.is_none(), "an inspection has begun");
    inspections.abort_all(); // and comes to nothing on the machine of this test
    let as_before = object(&agent, 4, 3, "192.168.0.0/16");
    agent.reconcile(Some(&as_before)).await.unwrap();
    assert!(!is_held(&agent, 3), "the kernel may have the others");
    assert_eq!(counts(&agent), Counts { held: 1, free: 1, ..Counts::default() });
    has_inspected(&mut agent);
    agent.reconcile(Some(&as_before)).await.unwrap();
    assert!(is_held(&agent, 3));
}

#[tokio::test]
async fn a_spec_older_than_the_ledgers_takes_nothing_back() {
    let root = tempfile::tempdir_in("/dev/shm").unwrap();
    let (mut agent, first) = ruled(root.path());
    agent.reconcile(Some(&first)).await.unwrap();
    assert!(agent.wanted.installs);
    agent.latest = 3;
    agent.reconcile(Some(&first)).await.unwrap();
    assert!(agent.wanted.installs);
}

#[tokio::test]
async fn findings_of_an_inspection_are_in_every_report_so_that_a_new_spec_is_one_write() {
    let root = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut agent = agent(root.path());
    let installed = Finding { type_: condition::CNI_INSTALLED, verdict: Verdict::yes(Reason::Installed, "") };
    let first = object(&agent, 2, 1, "192.168.0.0/16");
    agent.wanted.rules = Some(keeper::basis(&first.spec));
    has_inspected(&mut agent);
    agent.inspected.findings.push(installed);
    for (generation, count) in [(2, 1), (3, 2)] {
        let object = object(&agent, generation, count, "192.168.0.0/16");
        agent.reconcile(Some(&object)).await.unwrap();
        let report = agent.reports.borrow().clone().unwrap();
        assert_eq!(report.generation, Some(generation));
        assert_eq!(report.conditions.len(), 4);
        assert!(report.conditions.iter().all(|one| one.observed_generation == Some(generation)));
    }
}

#[tokio::test]
async fn by_an_object_that_is_gone_nothing_is_taken_off_the_nodes_links_nor_installed() {
    let root = tempfile::tempdir_in("/dev/shm").unwrap();
    let (mut agent, first) = ruled(root.path());
    agent.reconcile(Some(&first)).await.unwrap();
    assert_ne!(agent.reserved, Reserved::default());
    assert!(agent.wanted.installs);

    agent.objects.send_replace(Seen::Absent);
    agent.reconcile(None).await.unwrap();
    assert_eq!(agent.reserved, Reserved::default());
    assert!(!agent.wanted.installs);
    assert!(agent.wanted.rules.is_some(), "pods that still run keep their rules");
}

#[tokio::test]
async fn after_a_long_inspection_the_next_waits_as_long_and_one_that_keeps_failing_comes_less_often() {
    let root = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut agent = agent(root.path());
    let mut rests = Vec::new();
    for (took, has_failed) in
        [(4, false), (90, false), (0, true), (0, true), (0, true), (0, true), (0, false), (0, true)]
    {
        let keeper = agent.keeper.take().unwrap();
        let now = Instant::now();
        agent.begun = Some(now - Duration::from_secs(took));
        // As after a change on the node while an inspection is under way.
        agent.next_inspection = if took > 0 { now } else { now + LONGEST_REST };
        agent.take_back((keeper, Inspected { has_failed, ..Inspected::default() }));
        rests.push(agent.next_inspection.duration_since(now).as_secs());
    }
    assert_eq!(rests, [4, 30, 5, 10, 20, 30, 30, 5]);
}

#[tokio::test]
async fn a_ledger_that_is_built_from_a_later_spec_offers_nothing_before_that_ones_rules() {
    let root = tempfile::tempdir_in("/dev/shm").unwrap();
    let (mut agent, first) = ruled(root.path());
    object(&agent, 3, 2, "172.16.0.0/12");
    agent.reconcile(Some(&first)).await.unwrap();
    assert_eq!(counts(&agent), Counts { withheld: 2, ..Counts::default() });
}

#[tokio::test(start_paused = true)]
async fn reconciles_go_on_during_an_inspection() {
    let root = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut agent = agent(root.path());
    let _inspections = agent.keeper.take();
    let mut reports = agent.reports.subscribe();
    let (changed, disturbed) = (Notify::new(), Notify::new());
    let three = async {
        for _ in 0..3 {
            reports.changed().await.unwrap();
        }
    };
    tokio::select! {
        ended = agent.work(&changed, &disturbed) => panic!("{ended:?}"),
        () = three => {}
        () = sleep(3 * beat::EVERY) => panic!("not three reconciles in so long"),
    }
}

const NODE: &str = "VNETPOOL_TEST_NODE";

/// The real nft, but for calls that begin as a file beside it says: those fail, or hang. Each is noted.
const NFT: &str = r#"#!/bin/sh
PATH="${PATH#*:}"
cd "$VNETPOOL_TEST_NODE"
echo "$*" >> runs
[ -e broken ] && case "$*" in "$(cat broken)"*) echo out of order >&2; exit 1;; esac
[ -e hangs ] && case "$*" in "$(cat hangs)"*) : > hung; exec sleep 3600;; esac
exec nft "$@"
"#;

/// Runs a test alone on a node of its own: a network namespace with a NIC, mounts, and [`NFT`]. Returns the
/// folder of all that in there, and `None` out here once the test has passed.
fn on_a_node(test: &str) -> Option<PathBuf> {
    if let Some(dir) = env::var_os(NODE) {
        return Some(dir.into());
    }
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let nft = dir.path().join("nft");
    fs::write(&nft, NFT).unwrap();
    fs::set_permissions(&nft, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(dir.path().join("plugin"), "plugin").unwrap();
    let before = "ip link add eth0 address 00:0d:3a:e5:1c:c0 type veth peer name wire && ip link set eth0 up";
    let mut again = alone::again(test, &["--net", "--mount"], before);
    let path = format!("{}:{}", dir.path().display(), env::var("PATH").unwrap());
    again.env(NODE, dir.path()).env("PATH", path);
    alone::run(again);
    None
}

async fn inspect(agent: &mut Agent) {
    let keeper = agent.keeper.take().unwrap();
    let inspected = keeper.inspect(agent.wanted.clone(), agent.reserved.clone()).await;
    agent.take_back(inspected);
}

/// An inspection that hangs, as it does once `hangs` is over, until all its time has passed.
async fn inspect_in_vain(agent: &mut Agent, hangs: impl Future<Output = ()>) {
    let pass = async {
        hangs.await;
        tokio::time::pause();
        tokio::time::advance(keeper::INSPECT_WITHIN).await;
        tokio::time::resume();
    };
    tokio::join!(inspect(agent), pass);
}

/// A reconcile, the inspection that it asks for, and the reconcile after that.
async fn settle(agent: &mut Agent, object: &NodeIPAllocation) {
    agent.reconcile(Some(object)).await.unwrap();
    inspect(agent).await;
    agent.reconcile(Some(object)).await.unwrap();
}

/// An agent and its node's object of two addresses, which the node has with all that they need.
async fn settled(dir: &Path) -> (Agent, NodeIPAllocation) {
    let mut agent = agent(dir);
    let object = object(&agent, 2, 2, "192.168.0.0/16");
    settle(&mut agent, &object).await;
    (agent, object)
}

/// The same with one address, which rests for no time.
async fn settled_with_one(dir: &Path) -> (Agent, NodeIPAllocation) {
    let mut agent = agent(dir);
    let mut object = object(&agent, 2, 1, "192.168.0.0/16");
    object.spec.cooldown = Duration::ZERO.into();
    settle(&mut agent, &object).await;
    (agent, object)
}

/// Waits until a program hangs that is to, see `hangs`.
async fn hung(dir: &Path) {
    while !dir.join("hung").exists() {
        sleep(Duration::from_millis(10)).await;
    }
}

fn sandboxes() -> [Sandbox; 2] {
    ["a", "b"].map(|id| Sandbox { container_id: id.to_owned(), ifname: "eth0".to_owned() })
}

fn counts(agent: &Agent) -> Counts {
    agent.store.peek().unwrap().counts(file::now())
}

fn assign(agent: &Agent, sandbox: &Sandbox) -> Assign {
    let pod = Pod::default();
    agent.store.with(|ledger, now| ledger.assign(&Claim::wired(sandbox, &pod, ""), now)).unwrap()
}

/// Status and reason of a condition as reported.
fn reported(agent: &Agent, type_: Type) -> (String, String) {
    let found = condition(agent, type_);
    (found.status, found.reason)
}

fn condition(agent: &Agent, type_: Type) -> Condition {
    let report = agent.reports.borrow().clone().unwrap();
    condition::find(&report.conditions, type_).unwrap().clone()
}

#[tokio::test]
async fn a_node_whose_rules_fail_reports_it_assigns_nothing_and_keeps_its_pods_addresses() {
    let Some(dir) = on_a_node(&this_test!()) else { return };
    let is = |status: &str, reason: &str| (status.to_owned(), reason.to_owned());
    let broken = dir.join("broken");
    let mut agent = agent(&dir);
    let object = object(&agent, 2, 2, "192.168.0.0/16");

    fs::write(&broken, "").unwrap();
    settle(&mut agent, &object).await;
    assert_eq!(counts(&agent), Counts { withheld: 2, ..Counts::default() });
    assert!(!agent.store.peek().unwrap().had_first_address(), "the runtime sends no pods");
    assert_eq!(reported(&agent, condition::RULES_APPLIED), is("False", "TableRefused"));
    assert_eq!(reported(&agent, condition::SUPPLIED), is("False", "RulesMissing"));
    assert_eq!(agent.reports.borrow().as_ref().unwrap().generation, Some(2), "nothing else is held back");

    fs::remove_file(&broken).unwrap();
    settle(&mut agent, &object).await;
    settle(&mut agent, &object).await;
    assert_eq!(counts(&agent), Counts { held: 2, free: 2, ..Counts::default() });
    for type_ in [condition::RULES_APPLIED, condition::SUPPLIED, condition::CNI_INSTALLED] {
        assert_eq!(reported(&agent, type_).0, "True", "{type_:?}");
    }
    assert!(is_ready(&agent));
    let [a, b] = sandboxes();
    assert!(matches!(assign(&agent, &a), Assign::Assigned(_)));

    fs::write(&broken, "").unwrap();
    settle(&mut agent, &object).await;
    let without = Counts { held: 1, assigned: 1, withheld: 1, ..Counts::default() };
    assert_eq!(counts(&agent), without);
    assert_eq!(reported(&agent, condition::ASSIGNMENTS_BACKED), is("True", "Backed"));
    assert_eq!(reported(&agent, condition::CNI_INSTALLED), is("Unknown", "NotInspected"));
    assert!(!is_ready(&agent));
    assert_eq!(assign(&agent, &b), Assign::Waiting);
    agent.store.with(|ledger, _| ledger.cancel(&b)).unwrap();

    fs::remove_file(&broken).unwrap();
    settle(&mut agent, &object).await;
    assert_eq!(counts(&agent), Counts { held: 2, assigned: 1, free: 1, ..Counts::default() });

    fs::write(&broken, "").unwrap();
    let mut leaving = object.clone();
    (leaving.metadata.generation, leaving.spec.target) = (Some(3), 0);
    settle(&mut agent, &leaving).await;
    let left = Counts { held: 1, assigned: 1, relinquished: 1, ..Counts::default() };
    assert_eq!(counts(&agent), left, "its pool is gone, and its rules don't come back");
}

#[tokio::test]
async fn a_node_whose_kernel_is_too_old_reports_it_and_assigns_nothing() {
    let Some(dir) = on_a_node(&this_test!()) else { return };
    let release = dir.join("release");
    fs::write(&release, "5.4.0-1109-azure\n").unwrap();
    let mut mount = Command::new("mount");
    mount.arg("--bind").arg(&release).arg("/proc/sys/kernel/osrelease");
    assert!(mount.status().unwrap().success());
    let (agent, _) = settled(&dir).await;
    assert_eq!(reported(&agent, condition::RULES_APPLIED), ("False".to_owned(), "KernelTooOld".to_owned()));
    let message = condition(&agent, condition::RULES_APPLIED).message;
    assert!(message.contains("5.4.0-1109-azure") && message.contains("Linux 5.5"), "{message}");
    assert_eq!(counts(&agent), Counts { withheld: 2, ..Counts::default() });
    assert!(!agent.store.peek().unwrap().had_first_address(), "the runtime sends no pods");
}

#[tokio::test]
async fn rules_that_stand_again_have_pods_served_though_the_object_is_gone() {
    let Some(dir) = on_a_node(&this_test!()) else { return };
    let broken = dir.join("broken");
    let (mut agent, object) = settled(&dir).await;
    fs::write(&broken, "").unwrap();
    inspect(&mut agent).await;
    agent.reconcile(Some(&object)).await.unwrap();
    let [a, b] = sandboxes();
    assert_eq!(assign(&agent, &a), Assign::Waiting);
    let alive = agent.store.lock_sandbox(&a, Duration::ZERO).unwrap();

    fs::remove_file(&broken).unwrap();
    agent.reconcile(None).await.unwrap();
    assert_eq!(assign(&agent, &b), Assign::Waiting, "the rules are yet to come");
    inspect(&mut agent).await;
    agent.reconcile(None).await.unwrap();
    assert!(agent.store.peek().unwrap().address_of(&a).is_some(), "{:?}", counts(&agent));
    assert!(matches!(assign(&agent, &b), Assign::Assigned(_)), "{:?}", counts(&agent));
    drop(alive);
}

#[tokio::test]
async fn an_address_freed_while_the_node_lacks_its_rules_goes_to_no_pod() {
    let Some(dir) = on_a_node(&this_test!()) else { return };
    let (mut agent, object) = settled_with_one(&dir).await;
    let [a, b] = sandboxes();
    assert!(matches!(assign(&agent, &a), Assign::Assigned(_)));
    fs::write(dir.join("broken"), "").unwrap();
    inspect(&mut agent).await;
    agent.reconcile(Some(&object)).await.unwrap();
    agent.store.with(|ledger, now| ledger.free(&a, now)).unwrap();
    assert_eq!(assign(&agent, &b), Assign::Waiting);
}

#[tokio::test]
async fn a_setting_that_shows_bridged_packets_to_the_rules_is_undone_and_reported() {
    let Some(dir) = on_a_node(&this_test!()) else { return };
    let mut agent = agent(&dir);
    let object = object(&agent, 2, 2, "192.168.0.0/16");
    let net = dir.join("net");
    agent.keeper.as_mut().unwrap().config.sysctl_net_dir.clone_from(&net);
    let forwarding = ["ipv4/ip_forward", "ipv4/conf/default/forwarding", "ipv4/conf/eth0/forwarding"];
    for setting in forwarding.into_iter().chain([sysctl::BRIDGES]) {
        fs::create_dir_all(net.join(setting).parent().unwrap()).unwrap();
        fs::write(net.join(setting), "1").unwrap();
    }
    let bridged = || fs::read_to_string(net.join(sysctl::BRIDGES)).unwrap();
    settle(&mut agent, &object).await;
    assert_eq!(bridged(), "1", "without bridged pods it is nobody's business");
    assert!(
        Command::new("ip").args(["link", "add", "vnpbridge", "type", "bridge"]).status().unwrap().success()
    );
    settle(&mut agent, &object).await;
    assert_eq!((bridged().as_str(), agent.notes.undisturbed().verdict.reason), ("0", Reason::Undisturbed));
    fs::write(net.join(sysctl::BRIDGES), "1").unwrap();
    settle(&mut agent, &object).await;
    let Verdict { reason, message, .. } = agent.notes.undisturbed().verdict;
    assert_eq!((bridged().as_str(), reason), ("0", Reason::Repaired), "{message}");
    assert!(message.contains("bridge-nf-call-iptables"), "{message}");
}

#[tokio::test]
async fn an_inspection_waits_for_the_installation_of_one_that_was_broken_off() {
    let Some(dir) = on_a_node(&this_test!()) else { return };
    let (mut agent, _) = settled(&dir).await;
    let installing = agent.keeper.as_ref().unwrap().installing.clone();
    let plugin = dir.join("bin/vnetpool");
    let broken_off = installing.lock().await;
    // As long as that it could have installed without the lock.
    inspect_in_vain(&mut agent, sleep(Duration::from_secs(2))).await;
    assert!(!agent.inspected.is_installed && !plugin.exists());
    drop(broken_off);
    inspect(&mut agent).await;
    assert!(agent.inspected.is_installed && plugin.exists());
}

#[tokio::test]
async fn a_kernel_that_does_not_answer_holds_a_reconcile_up_for_seconds_only() {
    let Some(dir) = on_a_node(&this_test!()) else { return };
    let mut agent = agent(&dir);
    let object = object(&agent, 2, 2, "192.168.0.0/16");
    agent.wanted.rules = Some(keeper::basis(&object.spec));
    has_inspected(&mut agent);
    // The writer of this waits for a reader.
    agent.config.sysctl_net_dir = dir.join("net");
    let mut keeper = agent.keeper.take().unwrap();
    keeper.config.sysctl_net_dir = dir.join("net");
    let reserved = Reserved::of(&object.spec, &supply::supply(&object).unwrap().entries);
    let hangs = dir.join("net/ipv4/conf/eth0/promote_secondaries");
    fs::create_dir_all(hangs.parent().unwrap()).unwrap();
    let run = |line: &str| assert!(Command::new("sh").args(["-c", line]).status().unwrap().success());
    run(&format!("mkfifo {}; ip address add 10.240.250.1/24 dev eth0", hangs.display()));
    let begun = Instant::now();
    let inspection = keeper.inspect(Purpose::default(), reserved);
    let reconcile = async {
        agent.reconcile(Some(&object)).await.unwrap();
        begun.elapsed()
    };
    let (inspected, took) = tokio::join!(inspection, reconcile);
    fs::read(&hangs).unwrap(); // before anything can fail: the test ends when no thread hangs any more
    assert!(inspected.1.has_failed);
    let Verdict { reason, message, .. } = agent.notes.undisturbed().verdict;
    assert_eq!(reason, Reason::InTheWay, "{message}");
    assert!(message.contains("it is unknown whether a pods' address is on a link of the node"), "{message}");
    assert!((notes::TAKE_OFF_WITHIN..2 * notes::TAKE_OFF_WITHIN).contains(&took), "{took:?}");
    assert!(is_held(&agent, 1));
}

#[tokio::test]
async fn an_inspection_that_hangs_is_broken_off_and_its_obstacles_are_reported_until_one_has_seen_all() {
    let Some(dir) = on_a_node(&this_test!()) else { return };
    let mut agent = agent(&dir);
    let object = object(&agent, 2, 1, "192.168.0.0/16");
    settle(&mut agent, &object).await;
    settle(&mut agent, &object).await;
    assert_eq!(agent.metrics.inspecting_for(), Duration::ZERO);
    let reason = |agent: &Agent| agent.notes.undisturbed().verdict.reason;
    assert_eq!(reason(&agent), Reason::Undisturbed, "{:?}", agent.notes.undisturbed());

    fs::write(dir.join("hangs"), "").unwrap();
    inspect_in_vain(&mut agent, hung(&dir)).await;
    fs::remove_file(dir.join("hangs")).unwrap();
    assert!(agent.inspected.has_failed);
    assert!(agent.metrics.inspecting_for() > Duration::ZERO);
    agent.reconcile(Some(&object)).await.unwrap();
    for type_ in [condition::RULES_APPLIED, condition::CNI_INSTALLED] {
        assert_eq!(reported(&agent, type_), ("Unknown".to_owned(), "NotInspected".to_owned()));
    }
    let Verdict { reason: found, message, .. } = agent.notes.undisturbed().verdict;
    assert_eq!(found, Reason::InTheWay);
    assert!(message.contains("broken off after 240 s"), "{message}");

    let ledger = agent.config.state_dir.join(file::LEDGER);
    let text = fs::read(&ledger).unwrap();
    fs::write(&ledger, "nonsense").unwrap();
    inspect(&mut agent).await;
    assert_eq!(agent.metrics.inspecting_for(), Duration::ZERO, "it has ended");
    assert_eq!((agent.inspected.has_failed, reason(&agent)), (true, Reason::InTheWay));
    fs::write(&ledger, text).unwrap();
    inspect(&mut agent).await;
    let seen = (agent.inspected.has_failed, reason(&agent));
    assert_eq!(seen, (false, Reason::Undisturbed), "{:?}", agent.notes.undisturbed());
}

/// As an earlier release has wired it: the node finds the pod by ARP.
#[tokio::test]
async fn a_pod_without_a_neighbour_entry_when_the_agent_starts_gets_one_and_nobody_is_blamed() {
    let Some(dir) = on_a_node(&this_test!()) else { return };
    let mut agent = agent(&dir);
    let object = object(&agent, 2, 1, "192.168.0.0/16");
    settle(&mut agent, &object).await;
    let sandbox = Sandbox { container_id: "a".to_owned(), ifname: "eth0".to_owned() };
    assert!(matches!(assign(&agent, &sandbox), Assign::Assigned(_)));
    let [pod, link] = [Ipv4Addr::new(10, 240, 250, 1).to_string(), sandbox.spare_link()];
    let identity = Identity { address: pod.parse().unwrap(), sandbox, pod: Pod::default() }.to_string();
    let ip = |command: &str, last: &str| {
        let words = command.split_whitespace().chain([last]);
        assert!(Command::new("ip").args(words).status().unwrap().success(), "{command}");
    };
    ip(&format!("link add {link} address 02:76:6e:70:00:01 type veth peer name"), "pod");
    ip(&format!("link set {link} up alias"), &identity);
    ip("link set pod", "up");
    ip(&format!("route add {pod}/32 dev"), &link);
    let known =
        || Command::new("ip").args(["neighbour", "show", "nud", "permanent"]).output().unwrap().stdout;
    let undisturbed = |agent: &Agent| agent.notes.undisturbed().verdict;

    let mut agent = self::agent(&dir);
    settle(&mut agent, &object).await;
    assert!(String::from_utf8_lossy(&known()).contains(&pod));
    assert_eq!(undisturbed(&agent).reason, Reason::Undisturbed, "{:?}", undisturbed(&agent));
    ip(&format!("neighbour delete {pod} dev"), &link);
    settle(&mut agent, &object).await;
    assert!(String::from_utf8_lossy(&known()).contains(&pod));
    assert_eq!(undisturbed(&agent).reason, Reason::Repaired);
}
