//! The remains of pods.

use std::{collections::BTreeSet, fs::File, net::Ipv4Addr, path::Path, process::Command, time::Duration};

use vnetpool_node_agent::sweep::{self, GRACE, Suspect, Sweep};
use vnetpool_plugin::{
    ledger::{
        Claim, Entry, Ledger, Millis, Pod, Proof, Supply,
        file::{self, Store},
    },
    wiring::{self, Wiring, bridge, netns},
};

use crate::world::{Namespace, OTHER_POD, POD, sandbox, wire, wire_by};

/// A ledger on disk in which two addresses are held, and both sandboxes have theirs.
fn ledger(dir: &Path) -> Store {
    let entry = |address| Entry { name: format!("vnp-{address}"), address, attached_to: None };
    let boot_id = file::boot_id().unwrap().to_owned();
    let supply = Supply {
        object: "object".into(),
        generation: 1,
        node_uid: "node".into(),
        boot_id: boot_id.clone(),
        cooldown: Duration::ZERO,
        entries: vec![entry(POD), entry(OTHER_POD)],
    };
    let store = Store::at(dir);
    let mut ledger = Ledger::rebuild(&boot_id, &[], &[], &supply, None, file::now(), true);
    for address in [POD, OTHER_POD] {
        ledger.assign(&Claim::wired(&sandbox(address), &Pod::default(), ""), 0);
    }
    store.quiesce().unwrap().create(&ledger).unwrap();
    store
}

/// A suspicion that has held since long ago.
fn leaked(node: &Namespace, store: &Store) -> Vec<Suspect> {
    let (ledger, links) = (store.read().unwrap(), node.inside(|| wiring::host_links().unwrap()));
    let mut sweep = Sweep::default();
    sweep.suspects(&ledger, &links, 0);
    sweep.suspects(&ledger, &links, GRACE.as_millis() as Millis)
}

#[test]
fn a_vanished_pods_traces_on_the_bridge_go_with_its_record() {
    let (dir, node, pod) = (tempfile::tempdir().unwrap(), Namespace::new(), Namespace::new());
    let store = ledger(dir.path());
    node.inside(|| bridge::ensure(1500, Path::new("/proc/sys/net")).unwrap());
    wire_by(Wiring::Bridge, &node, &pod, POD);
    assert!(leaked(&node, &store).iter().all(|suspect| !format!("{suspect:?}").contains("pod-10")));
    node.run(&format!("ip link delete {}", sandbox(POD).spare_link()));
    let occupants = node.inside(|| wiring::occupants().unwrap());
    assert_eq!(
        occupants.iter().map(|occupant| occupant.address).collect::<Vec<_>>(),
        [POD],
        "in doubt it is in use"
    );
    let record = Suspect::Record { sandbox: sandbox(POD), proof: Proof::Link(sandbox(POD).spare_link()) };
    assert!(leaked(&node, &store).contains(&record));
    assert!(node.inside(|| sweep::clear(&store, &record).unwrap()));
    assert_eq!(node.inside(|| wiring::occupants().unwrap()), []);
    assert_eq!(node.run("ip neighbour show dev vnpbridge"), "");
}

/// Routes that an engine of NetworkPolicy or a routing daemon has written beside ours: the uninstall waits
/// until no address is in use.
#[test]
fn another_programs_route_to_the_bridge_is_in_use_only_while_the_bridge_has_pods() {
    let (node, pod) = (Namespace::new(), Namespace::new());
    node.inside(|| bridge::ensure(1500, Path::new("/proc/sys/net")).unwrap());
    wire_by(Wiring::Bridge, &node, &pod, POD);
    node.run(&format!("ip route add {OTHER_POD}/32 dev vnpbridge proto static"));
    let in_use = || -> BTreeSet<Ipv4Addr> {
        let occupants = node.inside(|| wiring::occupants().unwrap());
        occupants.into_iter().map(|occupant| occupant.address).collect()
    };
    assert_eq!(in_use(), BTreeSet::from([POD, OTHER_POD]), "in doubt it is in use");
    node.run(&format!("ip link delete {}", sandbox(POD).spare_link()));
    assert_eq!(in_use(), BTreeSet::from([POD]), "our own route may be a pod's whose end nobody has reported");
    node.inside(|| bridge::disconnect(POD, None).unwrap());
    assert_eq!(in_use(), BTreeSet::new());
    assert!(node.run("ip route show").contains(&OTHER_POD.to_string()), "it isn't ours to remove");
}

#[test]
fn a_record_whose_pod_is_gone_is_freed_but_not_while_a_verb_is_at_work_on_it() {
    let (dir, node, pod) = (tempfile::tempdir().unwrap(), Namespace::new(), Namespace::new());
    let store = ledger(dir.path());
    wire(&node, &pod, POD);
    let suspects = leaked(&node, &store);
    assert_eq!(
        suspects,
        [Suspect::Record {
            sandbox: sandbox(OTHER_POD),
            proof: Proof::Link(sandbox(OTHER_POD).spare_link())
        }]
    );
    let clear = || node.inside(|| sweep::clear(&store, &suspects[0]).unwrap());

    let lock = store.lock_sandbox(&sandbox(OTHER_POD), Duration::ZERO).unwrap();
    assert!(!clear());
    drop(lock);
    assert!(clear());
    assert_eq!(store.read().unwrap().address_of(&sandbox(OTHER_POD)), None);
    assert_eq!(store.read().unwrap().address_of(&sandbox(POD)), Some(POD));
}

#[test]
fn a_suspicion_that_no_longer_holds_is_dropped() {
    let (dir, node, pod) = (tempfile::tempdir().unwrap(), Namespace::new(), Namespace::new());
    let store = ledger(dir.path());
    let suspect = Suspect::Record { sandbox: sandbox(POD), proof: Proof::Link(sandbox(POD).spare_link()) };
    assert!(leaked(&node, &store).contains(&suspect));
    wire(&node, &pod, POD);
    assert!(!node.inside(|| sweep::clear(&store, &suspect).unwrap()));
    assert_eq!(store.read().unwrap().address_of(&sandbox(POD)), Some(POD));
}

#[test]
fn a_link_that_outlives_its_pod_is_deleted_after_its_record_was_freed() {
    let (dir, node, pod, other_pod) =
        (tempfile::tempdir().unwrap(), Namespace::new(), Namespace::new(), Namespace::new());
    let store = ledger(dir.path());
    wire(&node, &pod, POD);
    wire(&node, &other_pod, OTHER_POD);
    node.inside(|| wiring::disconnect(&sandbox(POD), &Pod::default()).unwrap());
    for suspect in leaked(&node, &store) {
        assert!(node.inside(|| sweep::clear(&store, &suspect).unwrap()), "{suspect:?}");
    }
    let left: Vec<String> =
        node.inside(|| wiring::host_links().unwrap()).into_iter().map(|link| link.name).collect();
    assert_eq!(left, [sandbox(OTHER_POD).spare_link()]);
    assert_eq!(store.read().unwrap().address_of(&sandbox(POD)), None);
}

#[test]
fn a_link_made_anew_under_an_old_name_is_not_deleted() {
    let (dir, node, [pod, pod_again]) =
        (tempfile::tempdir().unwrap(), Namespace::new(), [(); 2].map(|()| Namespace::new()));
    let store = ledger(dir.path());
    wire(&node, &pod, POD);
    node.inside(|| wiring::disconnect(&sandbox(POD), &Pod::default()).unwrap());
    let is_link = |suspect: &Suspect| matches!(suspect, Suspect::Link { .. });
    let silenced = leaked(&node, &store).into_iter().find(is_link).unwrap();
    wire(&node, &pod_again, POD);
    node.inside(|| sweep::clear(&store, &silenced).unwrap());
    assert_eq!(node.inside(|| wiring::host_links().unwrap()).len(), 1);
}

#[test]
fn a_wired_pod_without_a_record_gets_one() {
    let (dir, node, pod) = (tempfile::tempdir().unwrap(), Namespace::new(), Namespace::new());
    let store = ledger(dir.path());
    store.with(|ledger, now| ledger.free(&sandbox(POD), now)).unwrap();
    wire(&node, &pod, POD);
    let stranger = Suspect::Stranger(sandbox(POD));
    assert!(leaked(&node, &store).contains(&stranger));
    assert!(node.inside(|| sweep::clear(&store, &stranger).unwrap()));
    assert_eq!(store.read().unwrap().address_of(&sandbox(POD)), Some(POD));
}

/// A network namespace as runtimes keep them: mounted on a file in /run/netns.
struct Named(String);

impl Named {
    fn new(suffix: &str) -> Named {
        let name = format!("vnp-agent-test-{}-{suffix}", std::process::id());
        assert!(Command::new("ip").args(["netns", "add", &name]).status().unwrap().success());
        Named(name)
    }

    fn path(&self) -> String {
        format!("/var/run/netns/{}", self.0)
    }

    fn proof(&self) -> Proof {
        use std::os::unix::fs::MetadataExt;
        Proof::Namespace { path: self.path(), inode: Some(std::fs::metadata(self.path()).unwrap().ino()) }
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

#[test]
fn a_pod_that_another_plugin_wired_lives_while_its_namespace_exists_or_is_unknown() {
    let (dir, node) = (tempfile::tempdir().unwrap(), Namespace::new());
    let store = ledger(dir.path());
    let (kept, ended) = (Named::new("kept"), Named::new("ended"));
    let out_of_sight = Proof::Namespace { path: "/proc/1/ns/net".into(), inode: Some(1) };
    let elsewhere = Proof::Namespace { path: "/var/run/docker/netns/none".into(), inode: Some(1) };
    let assign = |address, proof: &Proof| {
        store
            .with(|ledger, now| {
                let (sandbox, pod) = (sandbox(address), Pod::default());
                ledger.free(&sandbox, now);
                let claim = Claim { sandbox: &sandbox, pod: &pod, network: "leased", proof: proof.clone() };
                ledger.assign(&claim, now)
            })
            .unwrap()
    };
    assign(POD, &kept.proof());
    for unknown in [out_of_sight, elsewhere] {
        assign(OTHER_POD, &unknown);
        assert_eq!(leaked(&node, &store), [], "{unknown:?}");
    }
    let proof = ended.proof();
    assign(OTHER_POD, &proof);
    assert_eq!(leaked(&node, &store), []);
    // Another namespace behind the same path is not the one that has the address.
    let Proof::Namespace { path, .. } = &proof else { unreachable!() };
    let other = Proof::Namespace { path: path.clone(), inode: Some(1) };
    assign(OTHER_POD, &other);
    assert_eq!(leaked(&node, &store).len(), 1);

    assign(OTHER_POD, &proof);
    node.run("ip link add vnpcni0 type bridge");
    node.run("ip link set vnpcni0 up");
    node.inside(|| [POD, OTHER_POD].map(|pod| wiring::route_to_bridge(pod, "vnpcni0").unwrap()));
    drop(ended);
    let suspects = leaked(&node, &store);
    assert_eq!(suspects, [Suspect::Record { sandbox: sandbox(OTHER_POD), proof }]);
    assert!(node.inside(|| sweep::clear(&store, &suspects[0]).unwrap()));
    assert_eq!(store.read().unwrap().address_of(&sandbox(OTHER_POD)), None);
    assert_eq!(store.read().unwrap().address_of(&sandbox(POD)), Some(POD));
    let routes = node.run("ip route show");
    assert!(!routes.contains(&OTHER_POD.to_string()), "its address may soon be another node's: {routes}");
    assert!(routes.contains(&POD.to_string()), "{routes}");
}

#[test]
fn a_namespace_that_can_not_be_checked_is_not_gone() {
    let dir = tempfile::tempdir().unwrap();
    let is_gone = |dir: &Path| netns::is_gone(dir, "/run/netns/pod", Some(1));
    assert!(is_gone(dir.path()));
    // A file that stands for a namespace which is mounted on it in another mount namespace.
    File::create(dir.path().join("pod")).unwrap();
    assert!(!is_gone(dir.path()));
    assert!(!is_gone(&dir.path().join("not-there")), "the folder isn't there, so nothing is known");
}
