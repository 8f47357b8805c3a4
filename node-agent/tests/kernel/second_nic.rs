//! A node whose pods have a second NIC, in a VNet that takes from each NIC only the addresses it has.
//!
//! ```text
//!   far pod ── vnp… ── node ── eth0 (10.240.0.4) ── port ── vnet ── port2 ── a pod of another node,
//!                           ── eth1 ──────────────  port1 ─┘                 10.240.32.50
//! ```

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use vnetpool_crds::pool::MetadataAccess;
use vnetpool_node_agent::{
    firewall::{Egress, Rules, Steered, apply::Firewall},
    sysctl,
};
use vnetpool_plugin::wiring::steer;

use crate::world::{
    INTERNET, METADATA, NEIGHBOUR, NODE, Namespace, POD, PORT, WIRE_SERVER, World, ask, ensure, wire,
};

/// The second NIC's primary address. Its link is down and has no address, as it should be.
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 240, 32, 4);
/// The first address of the second NIC's subnet, for a machine there, too.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 240, 32, 1);
const FAR_POD: Ipv4Addr = Ipv4Addr::new(10, 240, 32, 20);
/// A pod of another node, in the same subnet.
const REMOTE_POD: Ipv4Addr = Ipv4Addr::new(10, 240, 32, 50);
const DNS: u16 = 53;

/// Ports of the node that lead to a pod: as `hostPort` and `externalTrafficPolicy: Local` have it, and as
/// `Cluster` has it, for a pod of the node and for one elsewhere.
const DIRECT: u16 = 30001;
const NEAR: u16 = 30002;
const REMOTE: u16 = 30003;
/// Addresses of Services whose pod is elsewhere: as pods come to it by default, and as they do where
/// kube-proxy doesn't take them for pods.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const DOUBTED: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 2);

struct TwoNics {
    world: World,
    far_pod: Namespace,
    _remote_pod: Namespace,
}

impl TwoNics {
    /// With Azure's host routes to its services, or without.
    fn new(has_host_routes: bool) -> TwoNics {
        let (world, far_pod, remote_pod) = (World::new(), Namespace::new(), Namespace::new());
        let World { node, vnet, .. } = &world;
        node.run("sysctl -q -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0");
        node.run(&format!(
            "ip link add eth1 address 00:0d:3a:00:00:02 type veth peer name port1 netns {}",
            vnet.path()
        ));
        vnet.run(&format!("ip address add {GATEWAY}/24 dev port1"));
        vnet.run("ip link set port1 up");
        vnet.run(&format!("ip neighbour add {SECOND} lladdr 00:0d:3a:00:00:02 dev port1"));
        vnet.run(&format!("ip route add {FAR_POD}/32 via {SECOND} dev port1"));
        remote_pod.run(&format!("ip link add eth0 type veth peer name port2 netns {}", vnet.path()));
        remote_pod.run(&format!("ip address add {REMOTE_POD}/32 dev eth0"));
        remote_pod.run("ip link set eth0 up");
        remote_pod.run("ip route add default dev eth0");
        vnet.run("ip link set port2 up");
        vnet.run(&format!("ip route add {REMOTE_POD}/32 dev port2"));
        vnet.run("sysctl -q -w net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0");
        // Of every address the VNet is the next hop.
        for port in ["port", "port1", "port2"] {
            vnet.run(&format!("sysctl -q -w net.ipv4.conf.{port}.rp_filter=0"));
            vnet.run(&format!("sysctl -q -w net.ipv4.conf.{port}.proxy_arp=1"));
            vnet.run(&format!("sysctl -q -w net.ipv4.neigh.{port}.proxy_delay=0"));
        }
        vnet.nft(
            "table ip azure {
                chain guard {
                    type filter hook prerouting priority raw;
                    iifname port ip saddr 10.240.32.0/24 drop
                    iifname port1 ip saddr != 10.240.32.0/24 drop
                }
            }",
        );
        vnet.answer(GATEWAY);
        remote_pod.answer(REMOTE_POD);
        for service in [METADATA, WIRE_SERVER].iter().filter(|_| has_host_routes) {
            node.run(&format!("ip route add {service}/32 via {NEIGHBOUR}"));
        }
        wire(node, &far_pod, FAR_POD);
        far_pod.answer(FAR_POD);
        let [first, second] =
            [("eth0", NODE), ("eth1", SECOND)].map(|(link, address)| Egress { link: link.into(), address });
        let rules = Rules {
            uplinks: vec![first, second.clone()],
            direct: vec!["10.240.0.0/16".parse().unwrap()],
            public: Default::default(),
            metadata: MetadataAccess::All,
            steered: Some(Steered { uplink: second, sources: vec!["10.240.32.0/24".parse().unwrap()] }),
        };
        ensure(node, &mut Firewall::default(), &rules.render());
        let two = TwoNics { world, far_pod, _remote_pod: remote_pod };
        two.steer();
        two
    }

    fn steer(&self) {
        let subnet = ["10.240.32.0/24".parse().unwrap()];
        self.world.node.inside(|| steer::steer(&subnet, "eth1", GATEWAY, WIRE_SERVER).unwrap());
    }

    /// Filters reverse paths on every link, strictly, as the agent then leaves it.
    fn filter(&self) {
        let node = &self.world.node;
        node.run("sysctl -q -w net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth1.rp_filter=1");
        node.inside(|| sysctl::loosen(Path::new("/proc/sys/net"), "eth0").unwrap());
    }

    /// The source that a pod sees for a client in the VNet.
    fn seen_by(&self, client: Ipv4Addr, to: (Ipv4Addr, u16)) -> Ipv4Addr {
        let connected = self.world.vnet.connect_from(client, to);
        assert!(connected.is_ok(), "{client} to {to:?}: {connected:?}");
        ask(&mut connected.unwrap())
    }

    /// The paths of [`serve`]'s Services, by which a node that has one NIC leads packets to pods, too.
    fn serves(&self) {
        let TwoNics { world: World { node, vnet, .. }, far_pod, .. } = self;
        // On another machine of the node's subnet, outside the VNet, and in the pods' own subnet.
        for client in [NEIGHBOUR, INTERNET, GATEWAY] {
            assert_eq!(self.seen_by(client, (NODE, DIRECT)), client);
            assert_eq!(self.seen_by(client, (NODE, NEAR)), NODE, "{client}");
            assert_eq!(self.seen_by(client, (NODE, REMOTE)), NODE, "{client}");
            assert_eq!(self.seen_by(client, (FAR_POD, PORT)), client, "past the node's translations");
        }
        // A load balancer's probe of the node.
        assert_eq!(self.seen_by(WIRE_SERVER, (NODE, DIRECT)), WIRE_SERVER);
        // What pods themselves begin leaves by their NIC, but for what gets the node's address.
        assert_eq!(far_pod.source_seen_by(SERVICE), FAR_POD);
        assert_eq!(far_pod.source_seen_by(DOUBTED), NODE);
        assert_eq!(ask(&mut far_pod.connect_at(NODE, REMOTE).unwrap()), NODE);
        assert_eq!(far_pod.source_seen_by(REMOTE_POD), FAR_POD);
        assert_eq!(far_pod.source_seen_by(INTERNET), SECOND);
        assert_eq!(node.source_seen_by(FAR_POD), NODE);
        assert_eq!(vnet.source_seen_by(FAR_POD), GATEWAY);
    }
}

/// kube-proxy's rules for the Services, in the two of its modes that Linux nodes use.
fn serve(node: &Namespace, mode: &str) {
    let leads = [
        (format!("{NODE} tcp dport {DIRECT}"), FAR_POD, false),
        (format!("{NODE} tcp dport {NEAR}"), FAR_POD, true),
        (format!("{NODE} tcp dport {REMOTE}"), REMOTE_POD, true),
        (format!("{SERVICE} tcp dport {PORT}"), REMOTE_POD, false),
        (format!("{DOUBTED} tcp dport {PORT}"), REMOTE_POD, true),
    ];
    if mode == "nftables" {
        let rule = |(to, pod, is_masqueraded): &(String, Ipv4Addr, bool)| {
            let mark = if *is_masqueraded { "meta mark set meta mark or 0x4000" } else { "" };
            format!("ip daddr {to} {mark} dnat to {pod}:{PORT}\n")
        };
        node.nft(&format!(
            "table ip kube-proxy {{
                chain nat-prerouting {{
                    type nat hook prerouting priority dstnat;
                    {}
                }}
                chain nat-postrouting {{
                    type nat hook postrouting priority srcnat;
                    meta mark and 0x4000 == 0 return
                    meta mark set meta mark xor 0x4000
                    masquerade fully-random
                }}
            }}",
            leads.iter().map(rule).collect::<String>()
        ));
        return;
    }
    let nat = |rule: &str| node.run(&format!("iptables-nft -t nat {rule}"));
    for (to, pod, is_masqueraded) in leads {
        let to = to.replace(" tcp dport ", " -p tcp --dport ");
        if is_masqueraded {
            nat(&format!("-A PREROUTING -d {to} -j MARK --or-mark 0x4000"));
        }
        nat(&format!("-A PREROUTING -d {to} -j DNAT --to-destination {pod}:{PORT}"));
    }
    nat("-A POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN");
    nat("-A POSTROUTING -j MARK --xor-mark 0x4000");
    nat("-A POSTROUTING -j MASQUERADE --random-fully");
}

/// The VNet takes nothing of that subnet from the first NIC.
#[test]
fn packets_of_a_second_nics_pods_leave_by_it_and_answers_come_back() {
    let two = TwoNics::new(true);
    let TwoNics { world, far_pod, .. } = &two;
    let World { node, vnet, .. } = world;
    two.filter();
    // An engine of NetworkPolicy, too, checks the way back of pods' packets, with its mark on the packet:
    // Calico's Felix in these words.
    node.run("iptables-nft -t raw -A PREROUTING -i vnp+ -j MARK --set-xmark 0x40000/0x40000");
    let strays = "-m mark --mark 0x40000/0x40000 -m rpfilter --validmark --invert";
    node.run(&format!("iptables-nft -t raw -A PREROUTING {strays} -j DROP"));
    assert_eq!(far_pod.source_seen_by(GATEWAY), FAR_POD);
    assert_eq!(far_pod.source_seen_by(NEIGHBOUR), FAR_POD);
    assert_eq!(far_pod.source_seen_by(INTERNET), SECOND);
    assert_eq!(far_pod.source_seen_by(METADATA), NODE);
    // On the node itself, both ways; and the first NIC's pods go on as before.
    world.pod.answer(POD);
    assert_eq!(far_pod.source_seen_by(POD), FAR_POD);
    assert_eq!(world.pod.source_seen_by(FAR_POD), POD);
    assert_eq!(vnet.source_seen_by(FAR_POD), GATEWAY);
    assert_eq!(world.pod.source_seen_by(INTERNET), NODE);
    // Once more changes nothing, and nothing of it stays.
    let before = node.run("ip rule list");
    two.steer();
    assert_eq!(node.run("ip rule list"), before);
    node.inside(|| steer::unsteer().unwrap());
    node.inside(|| steer::unsteer().unwrap());
    assert!(!node.run("ip rule list").contains("10.240.32.0"));
    assert_eq!(node.run("ip route list table all").matches("table 176").count(), 0);
}

/// Routing sees the pod's address as the source of a reply, and the reply leaves under the node's.
#[test]
fn what_the_first_nic_takes_for_a_pod_of_the_second_is_answered_by_the_first() {
    for mode in ["nftables", "iptables"] {
        let two = TwoNics::new(true);
        serve(&two.world.node, mode);
        two.serves();
        two.filter();
        two.serves();
        // As WireGuard has it, and engines of NetworkPolicy that encrypt.
        two.world.node.run("sysctl -q -w net.ipv4.conf.all.src_valid_mark=1");
        two.serves();
    }
}

#[test]
fn a_strict_filter_of_the_first_nic_would_drop_what_it_takes_for_a_pod_of_the_second() {
    let two = TwoNics::new(true);
    serve(&two.world.node, "nftables");
    two.world.node.run("sysctl -q -w net.ipv4.conf.all.rp_filter=1");
    assert!(two.world.vnet.connect_from(NEIGHBOUR, (NODE, DIRECT)).is_err());
    two.filter();
    assert_eq!(two.seen_by(NEIGHBOUR, (NODE, DIRECT)), NEIGHBOUR);
}

/// As images have it that configure each NIC by DHCP. Then the node has a route to the pods' subnet by it,
/// and answers nobody there under the first NIC's address, whatever is done for pods.
#[test]
fn a_node_with_an_address_on_its_second_nic_answers_under_each_by_its_nic() {
    let two = TwoNics::new(true);
    let node = &two.world.node;
    node.run(&format!("ip address add {SECOND}/24 dev eth1"));
    serve(node, "nftables");
    node.nft(&format!(
        "add rule ip kube-proxy nat-prerouting ip daddr {SECOND} tcp dport {DIRECT} dnat to {FAR_POD}:{PORT}"
    ));
    two.filter();
    for client in [NEIGHBOUR, INTERNET, WIRE_SERVER] {
        for address in [NODE, SECOND] {
            assert_eq!(two.seen_by(client, (address, DIRECT)), client, "{address}");
        }
        two.seen_by(client, (NODE, NEAR));
        two.seen_by(client, (NODE, REMOTE));
    }
    assert_eq!(two.far_pod.source_seen_by(SERVICE), FAR_POD);
    two.far_pod.source_seen_by(DOUBTED);
}

/// It comes by the second NIC, which has the pod's entry in a backend pool. The node has a host route to the
/// prober by the first, for DNS.
#[test]
fn a_load_balancers_probe_of_a_second_nics_pod_is_answered_by_that_nic() {
    for has_host_routes in [true, false] {
        let two = TwoNics::new(has_host_routes);
        assert_eq!(two.seen_by(WIRE_SERVER, (FAR_POD, PORT)), WIRE_SERVER);
        two.filter();
        assert_eq!(two.seen_by(WIRE_SERVER, (FAR_POD, PORT)), WIRE_SERVER);
    }
}

#[test]
fn azures_services_see_a_second_nics_pods_as_the_first_nic() {
    for has_host_routes in [true, false] {
        let two = TwoNics::new(has_host_routes);
        let TwoNics { world: World { vnet, .. }, far_pod, .. } = &two;
        two.filter();
        assert_eq!(far_pod.source_seen_by(METADATA), NODE);
        vnet.answer_at(WIRE_SERVER, DNS);
        assert_eq!(ask(&mut far_pod.connect_at(WIRE_SERVER, DNS).unwrap()), NODE);
        let within = Some(Duration::from_secs(2));
        let resolver = vnet.inside(|| UdpSocket::bind((WIRE_SERVER, DNS)).unwrap());
        resolver.set_read_timeout(within).unwrap();
        let client = far_pod.inside(|| UdpSocket::bind((FAR_POD, 0)).unwrap());
        client.set_read_timeout(within).unwrap();
        for _ in 0..2 {
            client.send_to(&[1], (WIRE_SERVER, DNS)).unwrap();
            let (_, seen) = resolver.recv_from(&mut [0]).unwrap();
            assert_eq!(seen.ip(), NODE);
            resolver.send_to(&[2], seen).unwrap();
            assert_eq!(client.recv_from(&mut [0]).unwrap().1, SocketAddr::from((WIRE_SERVER, DNS)));
        }
    }
}

/// They may ask for a whole mark, as for one with no bit set.
#[test]
fn rules_of_others_meet_marks_of_others_only() {
    let two = TwoNics::new(true);
    let node = &two.world.node;
    serve(node, "nftables");
    node.nft(
        "table ip others {
            chain set-marks {
                type filter hook prerouting priority raw;
                iifname \"vnp*\" meta mark set 0xffff0000
            }
            chain forward {
                type filter hook forward priority filter;
                iifname \"vnp*\" meta mark != 0xffff0000 drop
            }
        }",
    );
    assert_eq!(two.seen_by(NEIGHBOUR, (NODE, DIRECT)), NEIGHBOUR);
    assert_eq!(two.far_pod.source_seen_by(METADATA), NODE);
}
