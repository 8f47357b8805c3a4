//! A node with two pods in a VNet.
//!
//! ```text
//!   pod ── vnp… ── node (10.240.0.4) ── eth0 ── vnet: 10.240.0.1, and behind it 203.0.113.10,
//!                                                      169.254.169.254 and 168.63.129.16
//! ```

use std::{
    fs::File,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    path::Path,
    process::Command,
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, setns, unshare};
use tokio::{net::TcpSocket, time::timeout};
use vnetpool_crds::pool::MetadataAccess;
use vnetpool_node_agent::{
    firewall::{
        Egress, Rules,
        apply::{Ensured, Firewall},
        events::Events,
        known::Heard,
        netlink::generation,
    },
    sysctl,
};
use vnetpool_plugin::{
    ledger::{Pod, Sandbox},
    wiring::{self, Identity, Netns, Sizes, Wiring, bridge},
};

pub const NODE: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 4);
pub const POD: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 10);
pub const OTHER_POD: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 11);
pub const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 1);
pub const INTERNET: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
pub const WIRE_SERVER: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
pub const PORT: u16 = 8080;

/// A network namespace without a name: it ends with the last process and file that refer to it, however the
/// test ends.
pub struct Namespace(File);

impl Namespace {
    pub fn new() -> Namespace {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        let namespace = Namespace(thread::spawn(make).join().unwrap());
        namespace.run("ip link set lo up");
        namespace
    }

    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs code in here, on a thread of its own.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let enter = || {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            };
            scope.spawn(enter).join().unwrap()
        })
    }

    /// Runs a command in here, which must succeed; returns its output.
    pub fn run(&self, command: &str) -> String {
        let mut words = command.split(' ');
        let mut process = Command::new(words.next().unwrap());
        let output = self.inside(|| process.args(words).output().unwrap());
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Has nft run this text in here.
    pub fn nft(&self, text: &str) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, text).unwrap();
        self.run(&format!("nft -f {}", file.path().display()));
    }

    /// Answers every connection to this address with the source address it sees.
    pub fn answer(&self, address: Ipv4Addr) {
        self.answer_at(address, PORT);
    }

    pub fn answer_at(&self, address: Ipv4Addr, port: u16) {
        let listener = self.inside(|| TcpListener::bind((address, port)).unwrap());
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

    pub fn connect(&self, to: Ipv4Addr) -> std::io::Result<TcpStream> {
        self.connect_at(to, PORT)
    }

    pub fn connect_at(&self, to: Ipv4Addr, port: u16) -> std::io::Result<TcpStream> {
        let stream = self
            .inside(|| TcpStream::connect_timeout(&SocketAddr::from((to, port)), Duration::from_secs(2)))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        Ok(stream)
    }

    /// A connection under this address of here.
    pub fn connect_from(&self, from: Ipv4Addr, to: (Ipv4Addr, u16)) -> std::io::Result<TcpStream> {
        let connect = async move {
            let socket = TcpSocket::new_v4()?;
            socket.bind((from, 0).into())?;
            timeout(Duration::from_secs(2), socket.connect(to.into())).await??.into_std()
        };
        let stream = self.inside(|| block_on(connect))?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        Ok(stream)
    }

    /// The source address that `to` sees for a connection from here.
    pub fn source_seen_by(&self, to: Ipv4Addr) -> Ipv4Addr {
        ask(&mut self.connect(to).unwrap())
    }
}

pub fn ask(stream: &mut TcpStream) -> Ipv4Addr {
    let mut source = [0; 4];
    stream.write_all(&[0]).unwrap();
    stream.read_exact(&mut source).unwrap();
    source.into()
}

/// A node in a VNet with two pods.
pub struct World {
    pub node: Namespace,
    pub vnet: Namespace,
    pub pod: Namespace,
    pub other_pod: Namespace,
}

impl World {
    pub fn new() -> World {
        World::wired(Wiring::Routed)
    }

    pub fn wired(wiring: Wiring) -> World {
        let [node, vnet, pod, other_pod] = [(); 4].map(|()| Namespace::new());
        node.run(&format!("ip link add eth0 type veth peer name port netns {}", vnet.path()));
        node.run(&format!("ip address add {NODE}/20 dev eth0"));
        node.run("ip link set eth0 up");
        node.run(&format!("ip route add default via {NEIGHBOUR}"));
        vnet.run(&format!("ip address add {NEIGHBOUR}/20 dev port"));
        for address in [INTERNET, METADATA, WIRE_SERVER] {
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
        for address in [NEIGHBOUR, INTERNET, METADATA, WIRE_SERVER] {
            vnet.answer(address);
        }
        node.inside(|| sysctl::ensure(Path::new("/proc/sys/net"), ["eth0"].into_iter()).unwrap());
        World { node, vnet, pod, other_pod }
    }
}

pub fn sandbox(address: Ipv4Addr) -> Sandbox {
    Sandbox { container_id: format!("pod-{}", address.octets()[3]), ifname: "eth0".into() }
}

pub fn wire(node: &Namespace, pod: &Namespace, address: Ipv4Addr) {
    wire_by(Wiring::Routed, node, pod, address);
}

pub fn wire_by(wiring: Wiring, node: &Namespace, pod: &Namespace, address: Ipv4Addr) {
    let identity = Identity { address, sandbox: sandbox(address), pod: Pod::default() };
    let path = pod.path();
    node.inside(|| {
        wiring::connect(&Netns::open(Path::new(&path)).unwrap(), &identity, Sizes::default(), wiring).unwrap()
    });
}

pub fn rules(direct: &[&str]) -> String {
    rules_with(MetadataAccess::None, direct)
}

pub fn rules_with(metadata: MetadataAccess, direct: &[&str]) -> String {
    let direct = direct.iter().map(|range| range.parse().unwrap()).collect();
    let uplinks = vec![Egress { link: "eth0".into(), address: NODE }];
    Rules { uplinks, direct, public: Default::default(), metadata, steered: None }.render()
}

/// Brings the rules into this namespace; returns whether the kernel had to be changed.
pub fn ensure(node: &Namespace, firewall: &mut Firewall, rules: &str) -> bool {
    node.inside(|| block_on(firewall.ensure(rules)).unwrap()) != Ensured::Standing
}

/// Reads events until those of the present generation have come.
pub fn read(node: &Namespace, events: &mut Events) -> Heard {
    let now = node.inside(|| generation().unwrap());
    while !events.heard().has_read(now) {
        events.read().unwrap();
    }
    events.heard()
}

/// On this very thread, which is in a namespace.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
