//! The node's rules and the sweep on a real kernel, in network namespaces that end with the test. Needs root, nft and ip.
//!
//! ```text
//!   pod ── vnp… ── node (10.240.0.4) ── eth0 ── vnet: 10.240.0.1, and 203.0.113.10 and 169.254.169.254 behind it
//! ```

// Helpers of a test fail by panicking, too; clippy allows that in the test functions only.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs::File,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    path::Path,
    process::Command,
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, setns, unshare};
use vnetpool_node_agent::{
    firewall::{Egress, Rules, apply, apply::Firewall},
    sweep::{self, GRACE, Suspect, Sweep},
    sysctl,
};
use vnetpool_plugin::{
    ledger::{
        Claim, Entry, Ledger, Millis, Pod, Proof, Sandbox, Supply,
        file::{self, Store},
    },
    wiring::{self, Identity, Netns, Wiring, bridge, netns, range, steer},
};

const NODE: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 4);
const POD: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 10);
const OTHER_POD: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 11);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 1);
const INTERNET: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const PORT: u16 = 8080;

/// A network namespace without a name: it ends with the last process and file that refer to it, however the test ends.
struct Namespace(File);

impl Namespace {
    fn new() -> Namespace {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        let namespace = Namespace(thread::spawn(make).join().unwrap());
        namespace.run("ip link set lo up");
        namespace
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Does something in here, on a thread of its own.
    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let enter = || {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            };
            scope.spawn(enter).join().unwrap()
        })
    }

    /// Runs a command in here, which must succeed; returns what it printed.
    fn run(&self, command: &str) -> String {
        let mut words = command.split(' ');
        let mut process = Command::new(words.next().unwrap());
        let output = self.inside(|| process.args(words).output().unwrap());
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Answers every connection to this address with the source address it sees.
    fn answer(&self, address: Ipv4Addr) {
        let listener = self.inside(|| TcpListener::bind((address, PORT)).unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                thread::spawn(move || -> std::io::Result<()> {
                    let IpAddr::V4(source) = stream.peer_addr()?.ip() else { return Ok(()) };
                    // One answer for each byte asked, so that a connection can be used again later.
                    while stream.read(&mut [0])? == 1 {
                        stream.write_all(&source.octets())?;
                    }
                    Ok(())
                });
            }
        });
    }

    fn connect(&self, to: Ipv4Addr) -> std::io::Result<TcpStream> {
        let stream = self
            .inside(|| TcpStream::connect_timeout(&SocketAddr::from((to, PORT)), Duration::from_secs(2)))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        Ok(stream)
    }

    /// The source address that `to` sees for a connection from here.
    fn source_seen_by(&self, to: Ipv4Addr) -> Ipv4Addr {
        ask(&mut self.connect(to).unwrap())
    }
}

fn ask(stream: &mut TcpStream) -> Ipv4Addr {
    let mut source = [0; 4];
    stream.write_all(&[0]).unwrap();
    stream.read_exact(&mut source).unwrap();
    source.into()
}

/// A node in a VNet with two pods.
struct World {
    node: Namespace,
    vnet: Namespace,
    pod: Namespace,
    other_pod: Namespace,
}

impl World {
    fn new() -> World {
        World::wired(Wiring::Routed)
    }

    fn wired(wiring: Wiring) -> World {
        let [node, vnet, pod, other_pod] = [(); 4].map(|()| Namespace::new());
        node.run(&format!("ip link add eth0 type veth peer name port netns {}", vnet.path()));
        node.run(&format!("ip address add {NODE}/20 dev eth0"));
        node.run("ip link set eth0 up");
        node.run(&format!("ip route add default via {NEIGHBOUR}"));
        vnet.run(&format!("ip address add {NEIGHBOUR}/20 dev port"));
        for address in [INTERNET, METADATA] {
            vnet.run(&format!("ip address add {address}/32 dev lo"));
        }
        vnet.run("ip link set port up");
        for (pod, address) in [(&pod, POD), (&other_pod, OTHER_POD)] {
            vnet.run(&format!("ip route add {address}/32 via {NODE}"));
            if wiring == Wiring::Bridge {
                node.inside(|| bridge::ensure(1500, Path::new("/proc/sys/net")).unwrap());
            }
            wire_by(wiring, &node, pod, address);
        }
        for address in [NEIGHBOUR, INTERNET, METADATA] {
            vnet.answer(address);
        }
        node.inside(|| sysctl::ensure(Path::new("/proc/sys/net"), ["eth0"].into_iter()).unwrap());
        World { node, vnet, pod, other_pod }
    }
}

fn sandbox(address: Ipv4Addr) -> Sandbox {
    Sandbox { container_id: format!("pod-{}", address.octets()[3]), ifname: "eth0".into() }
}

fn wire(node: &Namespace, pod: &Namespace, address: Ipv4Addr) {
    wire_by(Wiring::Routed, node, pod, address);
}

fn wire_by(wiring: Wiring, node: &Namespace, pod: &Namespace, address: Ipv4Addr) {
    let identity = Identity { address, sandbox: sandbox(address), pod: Pod::default() };
    let path = pod.path();
    node.inside(|| {
        wiring::connect(&Netns::open(Path::new(&path)).unwrap(), &identity, None, wiring).unwrap()
    });
}

fn rules(direct: &[&str]) -> String {
    let direct = direct.iter().map(|range| range.parse().unwrap()).collect();
    Rules { uplinks: vec![Egress { link: "eth0".into(), address: NODE }], direct, public: Default::default() }
        .render()
}

/// Brings the rules into this namespace; says whether the kernel had to be changed.
fn ensure(node: &Namespace, firewall: &mut Firewall, rules: &str) -> bool {
    node.inside(|| block_on(firewall.ensure(rules)).unwrap())
}

/// On this very thread, which is in a namespace.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn the_vnet_sees_a_pod_and_the_rest_of_the_world_sees_the_node() {
    let world = World::new();
    ensure(&world.node, &mut Firewall::default(), &rules(&["10.240.0.0/16"]));
    assert_eq!(world.pod.source_seen_by(NEIGHBOUR), POD);
    assert_eq!(world.pod.source_seen_by(INTERNET), NODE);
    assert_eq!(world.node.source_seen_by(INTERNET), NODE);
}

#[test]
fn what_comes_from_the_vnet_reaches_a_pod_untranslated() {
    let world = World::new();
    ensure(&world.node, &mut Firewall::default(), &rules(&["10.240.0.0/16"]));
    world.pod.answer(POD);
    assert_eq!(world.vnet.source_seen_by(POD), NEIGHBOUR);
}

#[test]
fn the_platform_sees_the_node_even_where_its_range_is_excluded() {
    let world = World::new();
    ensure(&world.node, &mut Firewall::default(), &rules(&["10.240.0.0/16", "169.254.0.0/16"]));
    assert_eq!(world.pod.source_seen_by(METADATA), NODE);
}

#[test]
fn a_pod_gets_nowhere_under_an_address_that_is_not_its_own() {
    nowhere_under_an_alien_address(&World::new());
}

#[test]
fn a_pod_behind_the_bridge_gets_nowhere_under_an_address_or_mac_that_is_not_its_own() {
    let world = World::wired(Wiring::Bridge);
    ensure(&world.node, &mut Firewall::default(), &rules(&["10.240.0.0/16"]));
    assert_eq!(world.pod.source_seen_by(NEIGHBOUR), POD);
    assert_eq!(world.pod.source_seen_by(INTERNET), NODE);
    nowhere_under_an_alien_address(&world);
    // With the other pod's MAC as well, its packets would look right; its port doesn't let them in.
    let mac = |address: Ipv4Addr| wiring::pod_mac(address).map(|byte| format!("{byte:02x}")).join(":");
    let receiver = world.vnet.inside(|| UdpSocket::bind((NEIGHBOUR, PORT + 1)).unwrap());
    receiver.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    for (mac, source) in [(mac(OTHER_POD), OTHER_POD), (mac(POD), POD)] {
        world.pod.run(&format!("ip link set eth0 address {mac}"));
        // The kernel forgets a link's neighbours with its MAC.
        let host = wiring::HOST_MAC.map(|byte| format!("{byte:02x}")).join(":");
        world.pod.run(&format!("ip neighbour replace 169.254.1.1 lladdr {host} dev eth0 nud permanent"));
        let sender = world.pod.inside(|| UdpSocket::bind((source, 0)).unwrap());
        sender.send_to(&[0], (NEIGHBOUR, PORT + 1)).unwrap();
    }
    let (_, seen) = receiver.recv_from(&mut [0]).unwrap();
    assert_eq!(seen.ip(), IpAddr::from(POD));
}

#[test]
fn pods_behind_the_bridge_reach_each_other_only_by_way_of_the_node() {
    let world = World::wired(Wiring::Bridge);
    ensure(&world.node, &mut Firewall::default(), &rules(&["10.240.0.0/16"]));
    world.other_pod.answer(OTHER_POD);
    for _ in 0..3 {
        // More than once: the node tells the pod by ICMP that its neighbour is on the same link, and the pod must not mind.
        assert_eq!(world.pod.source_seen_by(OTHER_POD), POD);
    }
    let redirected = world.pod.run("ip route get 10.240.0.11");
    assert!(redirected.contains("via 169.254.1.1"), "{redirected}");
    let mac = wiring::pod_mac(OTHER_POD).map(|byte| format!("{byte:02x}")).join(":");
    world.pod.run("ip route add 10.240.0.11/32 dev eth0");
    world.pod.run(&format!("ip neighbour replace 10.240.0.11 lladdr {mac} dev eth0 nud permanent"));
    assert!(world.pod.connect(OTHER_POD).is_err(), "from port to port, past the node's rules");
}

fn nowhere_under_an_alien_address(world: &World) {
    ensure(&world.node, &mut Firewall::default(), &rules(&["10.240.0.0/16"]));
    let receiver = world.vnet.inside(|| UdpSocket::bind((NEIGHBOUR, PORT)).unwrap());
    receiver.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let nobodys = Ipv4Addr::new(10, 240, 9, 9);
    for alien in [OTHER_POD, NODE, nobodys] {
        world.pod.run(&format!("ip address add {alien}/32 dev eth0"));
        // One after the other on the same way: what came second would have been overtaken by nothing.
        for source in [alien, POD] {
            let sender = world.pod.inside(|| UdpSocket::bind((source, 0)).unwrap());
            sender.send_to(&[0], (NEIGHBOUR, PORT)).unwrap();
        }
        let (_, seen) = receiver.recv_from(&mut [0]).unwrap();
        assert_eq!(seen.ip(), IpAddr::from(POD));
    }
}

#[test]
fn a_connection_survives_the_exclusion_of_its_destination() {
    let world = World::new();
    let mut firewall = Firewall::default();
    ensure(&world.node, &mut firewall, &rules(&["10.240.0.0/16"]));
    let mut old = world.pod.connect(INTERNET).unwrap();
    assert_eq!(ask(&mut old), NODE);
    assert!(ensure(&world.node, &mut firewall, &rules(&["10.240.0.0/16", "203.0.113.0/24"])));
    assert_eq!(ask(&mut old), NODE);
    assert_eq!(world.pod.source_seen_by(INTERNET), POD, "a new connection goes by the new rules");
}

#[test]
fn the_table_is_put_in_place_only_when_it_is_not_as_it_was_put() {
    let (node, mut firewall) = (Namespace::new(), Firewall::default());
    let wanted = rules(&["10.240.0.0/16"]);
    assert!(ensure(&node, &mut firewall, &wanted));
    assert!(!ensure(&node, &mut firewall, &wanted));
    node.run("nft delete table inet vnetpool");
    assert!(ensure(&node, &mut firewall, &wanted), "somebody removed it");
    node.run("nft add element inet vnetpool direct { 203.0.113.0/24 }");
    assert!(ensure(&node, &mut firewall, &wanted), "somebody changed it");
    assert!(!ensure(&node, &mut firewall, &wanted));
    assert!(ensure(&node, &mut firewall, &rules(&[])), "something else is wanted");
}

#[test]
fn nobody_elses_table_is_touched() {
    let node = Namespace::new();
    node.run("nft add table ip vnetpool");
    node.run("nft add table inet other");
    node.run(
        "nft add chain inet other forward { type filter hook forward priority filter ; policy accept ; }",
    );
    let before = node.run("nft list ruleset");
    ensure(&node, &mut Firewall::default(), &rules(&["10.240.0.0/16"]));
    node.inside(|| block_on(apply::remove()).unwrap());
    assert_eq!(node.run("nft list ruleset"), before);
}

#[test]
fn removing_a_table_that_is_not_there_is_fine() {
    Namespace::new().inside(|| block_on(apply::remove()).unwrap());
}

#[test]
fn a_table_that_nft_refuses_leaves_the_one_in_place() {
    let (node, mut firewall) = (Namespace::new(), Firewall::default());
    ensure(&node, &mut firewall, &rules(&["10.240.0.0/16"]));
    let before = node.run("nft list ruleset");
    let error = node
        .inside(|| block_on(firewall.ensure("table inet vnetpool\ndelete table inet vnetpool\nnonsense\n")));
    assert!(matches!(error, Err(apply::Error::Refused(_))), "{error:?}");
    assert_eq!(node.run("nft list ruleset"), before);
}

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
    let mut ledger = Ledger::rebuild(&boot_id, &[], &[], &supply, None, file::now());
    for address in [POD, OTHER_POD] {
        ledger.assign(&sandbox(address), &Pod::default(), 0);
    }
    store.quiesce().unwrap().create(&ledger).unwrap();
    store
}

/// What has looked leaked since long ago.
fn leaked(node: &Namespace, store: &Store) -> Vec<Suspect> {
    let (ledger, links) = (store.read().unwrap(), node.inside(|| wiring::host_links().unwrap()));
    let mut sweep = Sweep::default();
    sweep.look(&ledger, &links, 0);
    sweep.look(&ledger, &links, GRACE.as_millis() as Millis)
}

#[test]
fn what_a_vanished_pod_leaves_on_the_bridge_goes_with_its_record() {
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
fn a_pod_that_another_plugin_wired_lives_as_long_as_its_namespace_or_as_nobody_can_tell() {
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
                ledger.assign_to(Claim { sandbox: &sandbox, pod: &pod, network: "leased", proof }, now)
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
    drop(ended);
    let suspects = leaked(&node, &store);
    assert_eq!(suspects, [Suspect::Record { sandbox: sandbox(OTHER_POD), proof }]);
    assert!(node.inside(|| sweep::clear(&store, &suspects[0]).unwrap()));
    assert_eq!(store.read().unwrap().address_of(&sandbox(OTHER_POD)), None);
    assert_eq!(store.read().unwrap().address_of(&sandbox(POD)), Some(POD));
}

#[test]
fn a_namespace_that_can_not_be_looked_at_is_not_gone() {
    let dir = tempfile::tempdir().unwrap();
    let is_gone = |dir: &Path| netns::is_gone(dir, "/run/netns/pod", Some(1));
    assert!(is_gone(dir.path()));
    // A file that stands for one which is mounted on it where somebody else looks, as in another mount namespace.
    File::create(dir.path().join("pod")).unwrap();
    assert!(!is_gone(dir.path()));
    assert!(!is_gone(&dir.path().join("not-there")), "the folder isn't there, so nothing can be told");
}

/// A second NIC, 10.240.32.4, whose link is down and has no address, as Azure's images leave it, and a pod of its subnet. The VNet
/// takes nothing of that subnet from the first NIC.
#[test]
fn what_pods_of_a_second_nic_send_leaves_by_it_and_answers_come_back() {
    const SECOND: Ipv4Addr = Ipv4Addr::new(10, 240, 32, 4);
    const FAR_POD: Ipv4Addr = Ipv4Addr::new(10, 240, 32, 20);
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 240, 32, 1);
    let (world, far_pod) = (World::new(), Namespace::new());
    let World { node, vnet, .. } = &world;
    node.run(&format!(
        "ip link add eth1 address 00:0d:3a:00:00:02 type veth peer name port1 netns {}",
        vnet.path()
    ));
    vnet.run(&format!("ip address add {GATEWAY}/24 dev port1"));
    vnet.run("ip link set port1 up");
    vnet.run(&format!("ip neighbour add {SECOND} lladdr 00:0d:3a:00:00:02 dev port1"));
    vnet.run(&format!("ip route add {FAR_POD}/32 via {SECOND} dev port1"));
    vnet.answer(GATEWAY);
    vnet.run("nft add table ip azure");
    vnet.run("nft add chain ip azure guard { type filter hook prerouting priority raw ; }");
    vnet.run("nft add rule ip azure guard iifname port ip saddr 10.240.32.0/24 drop");
    node.run(&format!("ip route add {METADATA}/32 via {NEIGHBOUR}"));
    node.run("sysctl -q -w net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth1.rp_filter=1");
    // An engine of NetworkPolicy, too, checks the way back of what pods send, with its mark on the packet: Calico's Felix in these words.
    node.run("iptables-nft -t raw -A PREROUTING -i vnp+ -j MARK --set-xmark 0x40000/0x40000");
    let strays = "-m mark --mark 0x40000/0x40000 -m rpfilter --validmark --invert";
    node.run(&format!("iptables-nft -t raw -A PREROUTING {strays} -j DROP"));
    wire(node, &far_pod, FAR_POD);
    let uplinks =
        [("eth0", NODE), ("eth1", SECOND)].map(|(link, address)| Egress { link: link.into(), address });
    let direct = vec!["10.240.0.0/16".parse().unwrap()];
    let rules = Rules { uplinks: uplinks.into(), direct, public: Default::default() }.render();
    ensure(node, &mut Firewall::default(), &rules);
    let steer = || steer::steer(&["10.240.32.0/24".parse().unwrap()], "eth1", GATEWAY).unwrap();
    node.inside(steer);
    assert_eq!(far_pod.source_seen_by(GATEWAY), FAR_POD);
    assert_eq!(far_pod.source_seen_by(NEIGHBOUR), FAR_POD);
    assert_eq!(far_pod.source_seen_by(INTERNET), SECOND);
    assert_eq!(far_pod.source_seen_by(METADATA), NODE);
    // On the node itself, both ways; and the first NIC's pods go on as before.
    world.pod.answer(POD);
    far_pod.answer(FAR_POD);
    assert_eq!(far_pod.source_seen_by(POD), FAR_POD);
    assert_eq!(world.pod.source_seen_by(FAR_POD), POD);
    assert_eq!(vnet.source_seen_by(FAR_POD), GATEWAY);
    assert_eq!(world.pod.source_seen_by(INTERNET), NODE);
    // Once more changes nothing, and nothing of it stays.
    let before = node.run("ip rule list");
    node.inside(steer);
    assert_eq!(node.run("ip rule list"), before);
    node.inside(|| steer::unsteer().unwrap());
    node.inside(|| steer::unsteer().unwrap());
    assert!(!node.run("ip rule list").contains("10.240.32.0"));
    assert_eq!(node.run("ip route list table all").matches("table 176").count(), 0);
}

/// How often a first packet to an address that no pod has comes to the node, and what its sender is told.
fn visits(node: &Namespace, from: &Namespace, free: Ipv4Addr) -> (u32, std::io::ErrorKind) {
    node.run("nft add table ip count");
    node.run("nft add chain ip count seen { type filter hook prerouting priority raw ; }");
    node.run(&format!("nft add rule ip count seen ip daddr {free} tcp flags syn counter"));
    let told = from.connect(free).unwrap_err().kind();
    let seen = node.run("nft list chain ip count seen");
    node.run("nft delete table ip count");
    let packets = seen.split("packets ").nth(1).and_then(|rest| rest.split(' ').next());
    (packets.and_then(|packets| packets.parse().ok()).unwrap(), told)
}

/// As in mode Route: the VNet sends a whole range to the node, whatever its destination is, and the node's default route leads back.
#[test]
fn a_packet_to_an_address_of_the_nodes_range_that_no_pod_has_ends_on_the_node() {
    const RANGED: Ipv4Addr = Ipv4Addr::new(10, 244, 3, 7);
    const FREE: Ipv4Addr = Ipv4Addr::new(10, 244, 3, 99);
    let (world, ranged) = (World::new(), Namespace::new());
    let World { node, vnet, .. } = &world;
    vnet.run("sysctl -q -w net.ipv4.ip_forward=1");
    vnet.run(&format!("ip route add 10.244.3.0/24 via {NODE}"));
    wire(node, &ranged, RANGED);
    ranged.answer(RANGED);
    // Not from the VNet itself, for a router drops what has a source of its own; nor from who asks again below: what the node
    // says to one sender by ICMP is limited.
    let (packets, _) = visits(node, &world.other_pod, FREE);
    assert!(packets > 20, "it should go to and fro until its TTL ends, and came {packets} times");

    let range = ["10.244.3.0/24".parse().unwrap()];
    let close = |ranges: &[ipnet::Ipv4Net]| node.inside(|| range::close(ranges).unwrap());
    close(&range);
    // Once more changes nothing.
    close(&range);
    for (who, from) in [("a VM", vnet), ("another pod", &world.pod), ("one of the range", &ranged)] {
        assert_eq!(visits(node, from, FREE), (1, std::io::ErrorKind::HostUnreachable), "{who}");
    }
    assert_eq!(vnet.source_seen_by(RANGED), NEIGHBOUR);
    assert_eq!(ranged.source_seen_by(NEIGHBOUR), RANGED);
    // Where all that the range's pods send goes by the table of a secondary NIC, too.
    node.inside(|| steer::steer(&range, "eth0", NEIGHBOUR).unwrap());
    assert_eq!(visits(node, &ranged, FREE), (1, std::io::ErrorKind::HostUnreachable), "steered");
    node.inside(|| steer::unsteer().unwrap());

    // Somebody else's route stays when the range is the node's no longer.
    node.run("ip route add unreachable 10.250.0.0/24");
    close(&[]);
    let routes = node.run("ip route list table all");
    assert!(!routes.contains("10.244.3.0/24") && routes.contains("unreachable 10.250.0.0/24"), "{routes}");
}
