//! What pods get through the wire: from one node to another, ours beside two machines without pods and beside
//! the reference plugin `bridge`, with and without 2,000 Services on the client's node. `make bench-wire`
//! builds all of it and runs it as root.
//!
//! ```text
//!   pod ── node 10.240.0.4 ── eth0 ── fabric ── eth0 ── node 10.240.0.5 ── pod
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used)] // a benchmark that can't go on has to stop

#[path = "../tests/kernel/world.rs"]
#[allow(dead_code)] // the tests need more of it
mod world;

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};
use vnetpool_node_agent::firewall::apply::Firewall;
use vnetpool_node_agent::firewall::{Egress, Rules};
use vnetpool_node_agent::sysctl;
use vnetpool_plugin::wiring::{self, Identity, Netns, Sizes, Wiring, bridge};
use world::{Namespace, ensure, sandbox};

const REPETITIONS: usize = 3;
/// How long one figure is taken for.
const SPAN: Duration = Duration::from_secs(2);
const SERVICES: usize = 2000;
/// What the drivers of Azure's NICs take (netvsc's default of 62,780 bytes).
const GSO_MAX: u32 = 62_780;
const MTU: u32 = 1500;
const NODES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 240, 0, 4), Ipv4Addr::new(10, 240, 0, 5)];
const PODS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 240, 1, 1), Ipv4Addr::new(10, 240, 2, 2)];
/// The Service that leads to the server, one of many.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 3, 232);
const PORT: u16 = 8080;

/// Two nodes in a fabric that knows the way to each address, as Azure's does.
struct Pair {
    name: &'static str,
    /// The ends: pods, or the nodes themselves.
    ends: [Namespace; 2],
    server: Ipv4Addr,
    /// By figure, of each repetition.
    figures: [Vec<f64>; FIGURES.len()],
    _others: Vec<Namespace>,
}

const FIGURES: [&str; 3] = ["Gbit/s", "requests/s", "connections/s"];

fn main() {
    let output = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
    let load = || fs::read_to_string("/proc/loadavg").unwrap().split(' ').next().unwrap().to_owned();
    let mut rows = Vec::new();
    for has_services in [false, true] {
        let before = load();
        let mut pairs = vec![
            Pair::new("machines", has_services, |_, _| None),
            Pair::new("vnetpool", has_services, |node, index| Some(ours(Wiring::Routed, node, index))),
            Pair::new("vnetpool, Bridge", has_services, |node, index| {
                Some(ours(Wiring::Bridge, node, index))
            }),
            Pair::new("bridge", has_services, |node, index| Some(reference(&output, node, index))),
        ];
        for _ in 0..REPETITIONS {
            pairs.iter_mut().for_each(|pair| pair.measure(has_services));
        }
        let services = if has_services { format!("{SERVICES} Services") } else { "no Service".to_owned() };
        println!("\n{services}; load {before} before and {} after", load());
        println!("| | {} |\n|---|---|---|---|", FIGURES.join(" | "));
        for pair in &pairs {
            let figures = pair.figures.iter().map(|of| {
                let mut sorted = of.clone();
                sorted.sort_by(f64::total_cmp);
                let digits = usize::from(sorted[0] < 1000.0) * 2;
                let all: Vec<String> = sorted.iter().map(|one| format!("{one:.digits$}")).collect();
                all.join(" ")
            });
            println!("| {} | {} |", pair.name, figures.collect::<Vec<_>>().join(" | "));
            rows.push(json!({ "services": has_services, "peer": pair.name, "figures": FIGURES.iter()
                .zip(&pair.figures).map(|(name, of)| ((*name).to_owned(), json!(of))).collect::<serde_json::Map<_, _>>() }));
        }
    }
    let file = output.join("wire.json");
    fs::create_dir_all(&output).unwrap();
    fs::write(&file, serde_json::to_vec_pretty(&rows).unwrap()).unwrap();
    println!("\nwritten to {}", file.display());
}

impl Pair {
    /// `pod` gives a node, of this index, its pod; without pods the nodes speak to each other.
    fn new(
        name: &'static str,
        has_services: bool,
        pod: impl Fn(&Namespace, usize) -> Option<Namespace>,
    ) -> Pair {
        let fabric = Namespace::new();
        fabric.inside(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
        let nodes: Vec<Namespace> = NODES
            .iter()
            .enumerate()
            .map(|(index, address)| {
                let node = Namespace::new();
                let port = format!("port{index}");
                node.run(&format!("ip link add eth0 type veth peer name {port} netns {}", fabric.path()));
                node.run(&format!("ip link set eth0 gso_max_size {GSO_MAX} up"));
                node.run(&format!("ip address add {address}/16 dev eth0"));
                fabric.run(&format!("ip link set {port} up"));
                fabric
                    .inside(|| fs::write(format!("/proc/sys/net/ipv4/conf/{port}/proxy_arp"), "1").unwrap());
                fabric.run(&format!("ip route add {address}/32 dev {port}"));
                fabric.run(&format!("ip route add {}/32 via {address} dev {port} onlink", PODS[index]));
                node
            })
            .collect();
        if has_services {
            serve(&nodes[0], if name == "machines" { NODES[1] } else { PODS[1] });
        }
        let pods: Vec<Option<Namespace>> =
            nodes.iter().enumerate().map(|(index, node)| pod(node, index)).collect();
        let mut others = vec![fabric];
        let server = if pods.iter().all(Option::is_some) { PODS[1] } else { NODES[1] };
        let mut ends = Vec::new();
        for (node, pod) in nodes.into_iter().zip(pods) {
            match pod {
                Some(pod) => {
                    ends.push(pod);
                    others.push(node);
                }
                None => ends.push(node),
            }
        }
        let ends = ends.try_into().unwrap_or_else(|_| unreachable!("two nodes"));
        Pair { name, ends, server, figures: Default::default(), _others: others }
    }

    fn measure(&mut self, has_services: bool) {
        let to = SocketAddr::from((if has_services { SERVICE } else { self.server }, PORT));
        let listener = self.ends[1].inside(|| TcpListener::bind((self.server, PORT)).unwrap());
        let is_over = AtomicBool::new(false);
        let client =
            || self.ends[0].inside(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap());
        let figures = thread::scope(|scope| {
            scope.spawn(|| answer(&listener, &is_over));
            // The server answers the next connection once this one has ended.
            let of = |measure: fn(&TcpStream) -> f64| measure(&client());
            let figures = [of(stream), of(requests), connections(&self.ends[0], to)];
            is_over.store(true, Ordering::Relaxed);
            drop(client());
            figures
        });
        for (of, figure) in self.figures.iter_mut().zip(figures) {
            of.push(figure);
        }
    }
}

/// Answers one connection after the other: the first byte says whether each byte is answered, or all are
/// swallowed.
fn answer(listener: &TcpListener, is_over: &AtomicBool) {
    let mut buffer = vec![0; 1 << 18];
    for client in listener.incoming() {
        if is_over.load(Ordering::Relaxed) {
            return;
        }
        let Ok(mut client) = client else { continue }; // reset before it was accepted
        client.set_nodelay(true).unwrap();
        while let Ok(count @ 1..) = client.read(&mut buffer) {
            if buffer[0] == ASKS && client.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
    }
}

const ASKS: u8 = 1;
const FLOODS: u8 = 0;

/// Gbit/s of one connection.
fn stream(client: &TcpStream) -> f64 {
    let (block, began, mut sent) = (vec![FLOODS; 1 << 17], Instant::now(), 0);
    let mut client = client;
    while began.elapsed() < SPAN {
        client.write_all(&block).unwrap();
        sent += block.len();
    }
    sent as f64 * 8.0 / began.elapsed().as_secs_f64() / 1e9
}

/// Bytes asked and answered a second, one at a time on one connection.
fn requests(client: &TcpStream) -> f64 {
    client.set_nodelay(true).unwrap();
    let (began, mut count, mut client) = (Instant::now(), 0_u32, client);
    while began.elapsed() < SPAN {
        client.write_all(&[ASKS]).unwrap();
        client.read_exact(&mut [0]).unwrap();
        count += 1;
    }
    f64::from(count) / began.elapsed().as_secs_f64()
}

/// Connections a second, each with one byte asked and answered, one after the other.
fn connections(from: &Namespace, to: SocketAddr) -> f64 {
    from.inside(|| {
        let (began, mut count) = (Instant::now(), 0_u32);
        while began.elapsed() < SPAN {
            let mut client = TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap();
            client.write_all(&[ASKS]).unwrap();
            client.read_exact(&mut [0]).unwrap();
            // Ended by a reset: ports that wait for late segments would soon be all there are.
            setsockopt(&client, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
            count += 1;
        }
        f64::from(count) / began.elapsed().as_secs_f64()
    })
}

/// A pod of ours, with the rules that the agent keeps.
fn ours(wiring: Wiring, node: &Namespace, index: usize) -> Namespace {
    let (pod, address, net) = (Namespace::new(), PODS[index], Path::new("/proc/sys/net"));
    let identity =
        Identity { address, sandbox: sandbox(address), pod: vnetpool_plugin::ledger::Pod::default() };
    let sizes = Sizes { mtu: Some(MTU), gso_max: Some(GSO_MAX) };
    let path = pod.path();
    node.inside(|| {
        sysctl::ensure(net, ["eth0"].into_iter()).unwrap();
        if wiring == Wiring::Bridge {
            bridge::ensure(MTU, net).unwrap();
            sysctl::route_bridged(net).unwrap();
        }
        wiring::connect(&Netns::open(Path::new(&path)).unwrap(), &identity, sizes, wiring).unwrap();
    });
    let uplinks = vec![Egress { link: "eth0".into(), address: NODES[index] }];
    let direct = vec!["10.240.0.0/16".parse().unwrap()];
    let rules =
        Rules { uplinks, direct, public: Default::default(), metadata: Default::default(), steered: None };
    ensure(node, &mut Firewall::default(), &rules.render());
    pod
}

/// A pod of the reference plugin `bridge`, which has the pods' addresses of its node as its own range.
fn reference(programs: &Path, node: &Namespace, index: usize) -> Namespace {
    let (pod, data) = (Namespace::new(), tempfile::tempdir().unwrap());
    let program: PathBuf = programs.join("bridge");
    assert!(program.exists(), "{} is missing: run this by `make bench-wire`", program.display());
    node.inside(|| sysctl::ensure(Path::new("/proc/sys/net"), ["eth0"].into_iter()).unwrap());
    let [a, b, c, _] = PODS[index].octets();
    let range = json!({ "subnet": format!("{a}.{b}.{c}.0/24"), "rangeStart": PODS[index], "rangeEnd": PODS[index],
        "gateway": format!("{a}.{b}.{c}.254") });
    let ipam = json!({ "type": "host-local", "dataDir": data.path(), "ranges": [[range]], "routes": [{ "dst": "0.0.0.0/0" }] });
    let config: Value = json!({ "cniVersion": "1.0.0", "name": "bench", "type": "bridge", "bridge": "bench0",
        "isGateway": true, "mtu": MTU, "ipam": ipam });
    let mut command = Command::new(&program);
    command
        .env_clear()
        .envs([("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "bench"), ("CNI_IFNAME", "eth0")])
        .env("CNI_NETNS", pod.path())
        .env("CNI_PATH", programs)
        .env("PATH", "/usr/sbin:/usr/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    node.inside(|| {
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "bridge: {}", String::from_utf8_lossy(&output.stdout));
    });
    pod
}

/// Services as kube-proxy has them with nftables: one look-up among all, then a chain of the Service. One of
/// them leads to the server.
fn serve(node: &Namespace, server: Ipv4Addr) {
    let mut rules = String::from("table ip services {\n");
    let mut elements = Vec::new();
    for number in 0..SERVICES {
        let service = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 0)) + number as u32);
        let end = if service == SERVICE {
            server
        } else {
            Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 250, 0, 0)) + number as u32)
        };
        writeln!(rules, "  chain service{number} {{ meta l4proto tcp dnat to {end}:{PORT}; }}").unwrap();
        elements.push(format!("{service} . tcp . {PORT} : goto service{number}"));
    }
    let elements = elements.join(", ");
    writeln!(
        rules,
        "  map services {{ type ipv4_addr . inet_proto . inet_service : verdict; elements = {{ {elements} }}; }}"
    )
    .unwrap();
    for hook in ["prerouting", "output"] {
        writeln!(
            rules,
            "  chain {hook} {{ type nat hook {hook} priority -100; ip daddr . meta l4proto . th dport vmap @services; }}"
        )
        .unwrap();
    }
    rules.push_str("}\n");
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), rules).unwrap();
    node.run(&format!("nft -f {}", file.path().display()));
    // Nodes without pods have no rule of ours that would send the Services' range to the fabric.
    node.run("ip route add default via 10.240.255.254 dev eth0 onlink");
}
