//! What leaves the node under a wrong source between a flush of all tables and their return.

use super::tables::{at_rest, guarded, nft, until};
use super::*;
use crate::firewall::Family::Inet;
use nix::sched::{CloneFlags, setns};
use std::{
    fs::File,
    net::UdpSocket,
    process::{Child, Stdio},
    sync::atomic::AtomicBool,
    thread,
};

const POD: Ipv4Addr = Ipv4Addr::new(10, 240, 250, 1);
const FORGED: Ipv4Addr = Ipv4Addr::new(10, 240, 250, 9);
const INTERNET: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// The pod sends as many pairs of packets in a second: one of its own, one forged.
const RATE: u32 = 2000;
const FLUSHES: u32 = 10;

/// A network namespace, for as long as a process of it runs.
pub(super) struct Beside(Child);

impl Beside {
    pub(super) fn make() -> Beside {
        let child = Command::new("unshare").args(["--net", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
        let made = Beside(child);
        while fs::read_link(made.path()).unwrap() == fs::read_link("/proc/self/ns/net").unwrap() {
            thread::sleep(Duration::from_millis(1));
        }
        made
    }

    pub(super) fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.0.id()).into()
    }

    fn sh(&self, script: &str) -> String {
        let target = self.0.id().to_string();
        sh(Command::new("nsenter").args(["--net", "--target", &target, "sh", "-ec", script]))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

fn sh(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A pod and the network beyond the node's NIC.
fn pod_and_network() -> (Beside, Beside) {
    let (pod, network) = (Beside::make(), Beside::make());
    let (pod_is, network_is) = (pod.0.id(), network.0.id());
    let node = format!(
        "ip link set lo up
         ip link set wire netns {network_is}
         ip address add 10.240.0.4/16 dev eth0
         ip route add default via 10.240.0.1
         ip link add vnp0 address 02:00:00:00:00:01 type veth peer name eth0 netns {pod_is}
         ip link set vnp0 up
         ip route add {POD}/32 dev vnp0"
    );
    sh(Command::new("sh").args(["-ec", &node]));
    pod.sh(&format!(
        "ip address add {POD}/32 dev eth0
         ip address add {FORGED}/32 dev eth0
         ip link set eth0 up
         ip route add 169.254.1.1 dev eth0
         ip neighbour add 169.254.1.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent
         ip route add default via 169.254.1.1"
    ));
    network.sh("ip address add 10.240.0.1/16 dev wire
         ip link set wire up
         nft add table ip seen
         nft add chain ip seen here '{ type filter hook prerouting priority raw; }'
         nft add rule ip seen here ip saddr 10.240.0.4 udp dport 9 counter
         nft add rule ip seen here ip saddr 10.240.250.1 udp dport 9 counter
         nft add rule ip seen here ip saddr 10.240.250.9 udp dport 9 counter");
    (pod, network)
}

/// How many packets the network has seen under the node's address, the pod's own, and the forged one.
fn seen(network: &Beside) -> [u32; 3] {
    let listed = network.sh("nft list chain ip seen here");
    let mut counts = listed.split("packets ").skip(1).map(|rest| rest.split(' ').next().unwrap().parse());
    [(); 3].map(|()| counts.next().unwrap().unwrap())
}

/// Azure drops a packet with a pod's own address to the internet; a forged one it may well deliver.
#[tokio::test]
async fn of_a_flush_pods_make_use_for_a_moment_only() {
    let Some(dir) = on_a_node(&this_test!()) else { return };
    let (pod, network) = pod_and_network();
    let (agent, _) = settled(&dir).await;
    let (tables, notes) = (agent.tables.clone(), agent.notes.clone());
    let ends = Arc::new(AtomicBool::new(false));
    let (namespace, ended) = (File::open(pod.path()).unwrap(), ends.clone());
    let sender = thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let mut sent = 0;
        while !ended.load(Ordering::Relaxed) {
            for source in [POD, FORGED] {
                // Each of a connection of its own.
                UdpSocket::bind((source, 0)).unwrap().send_to(&[0], (INTERNET, 9)).unwrap();
            }
            sent += 1;
            thread::sleep(Duration::from_secs(1) / RATE);
        }
        sent
    });
    let mut gaps = Vec::new();
    let flushing = async {
        at_rest(&tables).await;
        sleep(Duration::from_millis(200)).await;
        let [node, own, forged] = seen(&network);
        assert!(node > 0 && own == 0 && forged == 0, "{node} {own} {forged}");
        for _ in 0..FLUSHES {
            let begun = Instant::now();
            assert!(nft("flush ruleset"));
            until(&tables, |known| known.is_in_doubt(Inet)).await;
            at_rest(&tables).await;
            gaps.push(begun.elapsed());
            sleep(Duration::from_millis(1500)).await;
        }
    };
    guarded(tables.clone(), notes, &Notify::new(), flushing).await;
    ends.store(true, Ordering::Relaxed);
    let sent = sender.join().unwrap();
    let [_, own, forged] = seen(&network);
    eprintln!(
        "{FLUSHES} flushes, {sent} packets of each sort: {own} left under the pod's own address, {forged} forged; from the \
         flush until the tables were seen to stand: {gaps:?}"
    );
    // A second of each flush would be a fault.
    assert!(own + forged < 2 * RATE * FLUSHES / 4, "{own} and {forged}");
}
