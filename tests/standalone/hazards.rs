//! Other software on a node, and how the agent reacts to it, as packets show it.

use crate::stage::{Agent, INTERNET, OTHER, Stage, VM1, eventually, inside, seen};
use anyhow::Result;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};
use vnetpool_tests::wait::patience;

/// A container on vm1 with an address, and the agent that watches over it.
struct Wired {
    agent: Agent,
    container: File,
    pid: u32,
    address: Ipv4Addr,
}

impl Wired {
    fn up(stage: &mut Stage) -> Result<Wired> {
        stage.boot("vm1", 4)?;
        let agent = stage.start_agent("vm1", &[])?;
        let (pid, container) = stage.bare("vm1")?;
        let address = stage.attach("vm1", &["--container", "web", "--pid", &pid.to_string()])?;
        let wired = Wired { agent, container, pid, address };
        assert!(wired.holds(stage), "before anything has happened");
        Ok(wired)
    }

    /// Whether packets go both ways, under the addresses they should.
    fn holds(&self, stage: &Stage) -> bool {
        self.is_whole(&self.ends(stage))
    }

    fn eventually_holds(&self, stage: &Stage, what: &str) {
        eventually(what, || self.ends(stage), |ends| self.is_whole(ends));
    }

    /// Whom the container sees, and as whom a VM and the internet see it.
    fn ends(&self, stage: &Stage) -> [Result<IpAddr, String>; 3] {
        [self.reached(stage), seen(&self.container, OTHER), seen(&self.container, INTERNET)]
            .map(|seen| seen.map_err(|error| format!("{error:#}")))
    }

    fn is_whole(&self, ends: &[Result<IpAddr, String>; 3]) -> bool {
        *ends == [OTHER, self.address, VM1].map(|address| Ok(IpAddr::from(address)))
    }

    /// The container's view of a VM's connection.
    fn reached(&self, stage: &Stage) -> Result<IpAddr> {
        seen(&stage.machine("other"), self.address)
    }

    /// The name of the container's link on the node.
    fn link(&self, stage: &Stage) -> String {
        let route = stage.sh("vm1", &format!("ip route get {}", self.address));
        route.split(' ').skip_while(|word| *word != "dev").nth(1).unwrap().to_owned()
    }
}

/// The message of the condition `Undisturbed`.
fn undisturbed(stage: &Stage) -> String {
    let shown = stage.call_agent("vm1", &["status"]).unwrap_or_default();
    shown.lines().find(|line| line.starts_with("Undisturbed: ")).unwrap_or_default().to_owned()
}

#[track_caller]
fn eventually_reports(stage: &Stage, what: &str) {
    eventually(what, || undisturbed(stage), |shown| shown.contains(what));
}

/// Until the agent has made so many repairs of a kind.
#[track_caller]
fn eventually_repaired(stage: &Stage, kind: &str, times: u32) {
    let series = format!("vnetpool_agent_repairs_total{{kind=\"{kind}\"}}");
    let count = || stage.metric("vm1", &series).map_err(|error| format!("{error:#}"));
    eventually(&series, count, |count| *count == Ok(Some(times)));
}

/// The change that cloud-init's configuration makes (`apply_network_config_for_secondary_ips`), and
/// cloud-netconfig's and nm-cloud-setup's: `ADDRESS/PREFIX` of the subnet on eth0.
pub fn an_address_that_another_program_puts_on_eth0_is_taken_off_and_reported(
    stage: &mut Stage,
) -> Result<()> {
    let wired = Wired::up(stage)?;
    let address = wired.address;
    // First without an agent that repairs it: the node answers in the container's place.
    wired.agent.stop();
    for held in ["10.240.0.7", "10.240.0.8", "10.240.0.9", "10.240.0.10"] {
        stage.sh("vm1", &format!("ip address add {held}/20 dev eth0"));
    }
    let path = stage.sh("vm1", &format!("ip route get {address}"));
    assert!(path.starts_with("local"), "{path}");
    let agent = stage.start_agent("vm1", &[])?;
    let wired = Wired { agent, ..wired };
    wired.eventually_holds(stage, "the container is reached again");
    let left = stage.sh("vm1", "ip -brief -4 address show dev eth0");
    let left: Vec<&str> = left.split_whitespace().skip(2).collect();
    assert_eq!(left, ["10.240.0.4/20"], "only the VM's own address is left");
    eventually_reports(stage, "True (Repaired): took a pods' address off a link of the node, for instance ");
    let report = undisturbed(stage);
    assert!(report.contains("/20 on eth0: "), "{report}");
    assert!(report.contains("apply_network_config_for_secondary_ips: false"), "{report}");
    eventually_repaired(stage, "address", 4);
    // cloud-netconfig comes again every minute: each time is an event, which the agent handles before its
    // next inspection, and no news.
    stage.sh("vm1", &format!("ip address add {address}/20 dev eth0"));
    eventually_repaired(stage, "address", 5);
    assert!(wired.holds(stage));
    assert_eq!(undisturbed(stage), report);
    Ok(())
}

/// The files that cloud-init writes for systemd-networkd when a NIC has several addresses, and a file that
/// takes every link for networkd's.
const NETWORKD: [(&str, &str); 2] = [
    (
        "10-netplan-eth0.network",
        "[Match]\nName=eth0\n[Network]\nLinkLocalAddressing=no\nAddress=10.240.0.4/20\nAddress=10.240.0.7/20\n\
         Address=10.240.0.8/20\nAddress=10.240.0.9/20\nAddress=10.240.0.10/20\nGateway=10.240.0.1\n",
    ),
    ("20-all.network", "[Match]\nName=*\n[Network]\nLinkLocalAddressing=no\n"),
];

/// The real systemd-networkd, which puts the addresses on eth0 and manages the containers' links, too.
pub fn systemd_networkd_with_cloud_inits_configuration_does_not_cut_pods_off(
    stage: &mut Stage,
) -> Result<()> {
    let wired = Wired::up(stage)?;
    stage.sh("vm1", "mkdir -p /run/systemd/network");
    for (name, text) in NETWORKD {
        let file = stage.folder().join(name);
        fs::write(&file, text)?;
        stage.sh("vm1", &format!("cp {} /run/systemd/network/", file.display()));
    }
    // Without udev: networkd goes without it where /sys can't be written to.
    stage.sh("vm1", "mount -o remount,bind,ro /sys");
    stage.start_daemon("vm1", "/lib/systemd/systemd-networkd")?;
    eventually_reports(stage, "took a pods' address off a link of the node, for instance ");
    eventually_repaired(stage, "address", 4);
    wired.eventually_holds(stage, "the container is reached");
    let (pid, container) = stage.bare("vm1")?;
    let address = stage.attach("vm1", &["--container", "new", "--pid", &pid.to_string()])?;
    let wired = Wired { container, pid, address, ..wired };
    wired.eventually_holds(stage, "a container that came while networkd runs is reached");
    Ok(())
}

/// The change that systemd-networkd makes to links it manages (`ManageForeignRoutes`), and NetworkManager
/// when it activates one.
pub fn a_removed_route_is_restored_and_reported(stage: &mut Stage) -> Result<()> {
    let wired = Wired::up(stage)?;
    let address = wired.address;
    for count in 1..=2 {
        stage.sh("vm1", &format!("ip route delete {address}/32"));
        wired.eventually_holds(stage, "the container is reached again");
        eventually_reports(stage, &format!("restored the route to a pod, for instance {address}: "));
        eventually_repaired(stage, "route", count);
    }
    let link = wired.link(stage);
    stage.sh("vm1", &format!("ip link set {link} down"));
    wired.eventually_holds(stage, "the link is up again");
    eventually_reports(stage, &format!("set a pod's link up, for instance {address}: "));
    Ok(())
}

/// The change of udev's that a random MAC would invite (`MACAddressPolicy=persistent`).
pub fn a_rewritten_mac_is_restored_and_reported(stage: &mut Stage) -> Result<()> {
    let wired = Wired::up(stage)?;
    let link = wired.link(stage);
    stage.sh("vm1", &format!("ip link set {link} address 02:00:00:00:00:01"));
    wired.eventually_holds(stage, "the container is reached again");
    eventually_reports(stage, &format!("restored the MAC of a pod's link, for instance {}: ", wired.address));
    Ok(())
}

/// Sets a variable below /proc/sys/net of vm1.
fn sysctl(stage: &Stage, key: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys/net").join(key);
    Ok(inside(&stage.machine("vm1"), || fs::write(path, value))?)
}

pub fn forwarding_turned_off_is_turned_on_and_reported(stage: &mut Stage) -> Result<()> {
    let wired = Wired::up(stage)?;
    sysctl(stage, "ipv4/ip_forward", "0")?;
    wired.eventually_holds(stage, "packets are forwarded again");
    eventually_reports(stage, "turned IP forwarding on, for instance ipv4/ip_forward: ");
    sysctl(stage, "ipv4/conf/eth0/forwarding", "0")?;
    wired.eventually_holds(stage, "packets of one link are forwarded again");
    eventually_repaired(stage, "forwarding", 2);
    sysctl(stage, &format!("ipv4/conf/{}/forwarding", wired.link(stage)), "0")?;
    wired.eventually_holds(stage, "packets of the pod are forwarded again");
    Ok(())
}

/// Every packet of a pod's leaves by the link by which its answer comes, so the strict check finds nothing to
/// drop.
pub fn a_strict_reverse_path_filter_drops_nothing_of_a_pods(stage: &mut Stage) -> Result<()> {
    let wired = Wired::up(stage)?;
    for link in ["all", "default", "eth0", &wired.link(stage)] {
        sysctl(stage, &format!("ipv4/conf/{link}/rp_filter"), "1")?;
    }
    assert!(wired.holds(stage));
    let (pid, container) = stage.bare("vm1")?;
    let address = stage.attach("vm1", &["--container", "new", "--pid", &pid.to_string()])?;
    let wired = Wired { container, pid, address, ..wired };
    assert!(wired.holds(stage), "a container that came after the filter");
    Ok(())
}

pub fn a_new_mtu_of_the_nodes_is_the_next_containers(stage: &mut Stage) -> Result<()> {
    let wired = Wired::up(stage)?;
    let mtu = |stage: &Stage, pid: u32| {
        stage.sh("vm1", &format!("nsenter --net=/proc/{pid}/ns/net ip link show eth0"))
    };
    assert!(mtu(stage, wired.pid).contains("mtu 1500"));
    // Several times, which the inspections that come every half a minute anyhow would take longer for.
    let start = Instant::now();
    for new in [1450, 1350, 1440, 1360, 1430, 1400] {
        stage.sh("vm1", &format!("ip link set eth0 mtu {new}"));
        let configuration = || stage.sh("vm1", "cat /etc/cni/net.d/10-vnetpool.conflist");
        let has_it = |text: &String| text.contains(&format!("\"mtu\": {new}"));
        eventually("the configuration has the new MTU", configuration, has_it);
    }
    assert!(start.elapsed() < patience(Duration::from_secs(30)), "it took {:?}", start.elapsed());
    let (pid, container) = stage.bare("vm1")?;
    let address = stage.attach("vm1", &["--container", "new", "--pid", &pid.to_string()])?;
    assert!(mtu(stage, pid).contains("mtu 1400"));
    let wired = Wired { container, pid, address, ..wired };
    assert!(wired.holds(stage));
    Ok(())
}

/// Plays a firewall: each command in turn on vm1, before the agent starts.
fn firewall(stage: &mut Stage, commands: &[&str], chain: &str) -> Result<()> {
    let wired = Wired::up(stage)?;
    wired.agent.stop();
    for command in commands {
        stage.sh("vm1", command);
    }
    let agent = stage.start_agent("vm1", &[])?;
    let wired = Wired { agent, ..wired };
    eventually_reports(stage, &format!("False (InTheWay): {chain} drops what pods send or receive"));
    assert!(!wired.holds(stage), "nobody asked for it to be opened");
    wired.agent.stop();
    let agent = stage.start_agent("vm1", &["--open-forward"])?;
    let wired = Wired { agent, ..wired };
    wired.eventually_holds(stage, "pods are let through");
    eventually_reports(stage, "True (Repaired): put rules before somebody's firewall");
    assert!(undisturbed(stage).contains(chain), "{}", undisturbed(stage));
    // The rules that were put in go again with the rest of ours, and nothing else.
    wired.agent.stop();
    stage.call_agent("vm1", &["detach", "--container", "web"])?;
    stage.call_agent("vm1", &["cleanup"])?;
    let left = stage.sh("vm1", "nft list ruleset") + &stage.sh("vm1", "iptables-legacy-save");
    assert!(!left.contains("vnp") && !left.contains("vnetpool"), "{left}");
    Ok(())
}

/// As ufw has it, and dockerd.
pub fn an_iptables_policy_that_drops_is_named_and_opened_only_if_asked_for(stage: &mut Stage) -> Result<()> {
    let established = "iptables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
    let icmp = "iptables -A FORWARD -p icmp -j ACCEPT";
    firewall(stage, &["iptables -P FORWARD DROP", established, icmp], "chain FORWARD of table ip filter")
}

pub fn a_policy_of_the_older_iptables_that_drops_is_named_and_opened_only_if_asked_for(
    stage: &mut Stage,
) -> Result<()> {
    firewall(stage, &["iptables-legacy -P FORWARD DROP"], "chain FORWARD of iptables-legacy's table filter")
}

/// As firewalld has it: a policy to accept, and a last rule that rejects every packet that no rule before it
/// knows.
pub fn a_firewall_of_nftables_that_rejects_is_named_and_opened_only_if_asked_for(
    stage: &mut Stage,
) -> Result<()> {
    let commands = [
        "nft add table inet firewalld",
        "nft add chain inet firewalld filter_FORWARD { type filter hook forward priority 10 ; policy accept ; }",
        "nft add chain inet firewalld filter_FORWARD_POLICIES",
        "nft add rule inet firewalld filter_FORWARD ct state { established, related } accept",
        "nft add rule inet firewalld filter_FORWARD iifname lo accept",
        "nft add rule inet firewalld filter_FORWARD jump filter_FORWARD_POLICIES",
        "nft add rule inet firewalld filter_FORWARD_POLICIES reject with icmpx admin-prohibited",
    ];
    firewall(stage, &commands, "chain filter_FORWARD of table inet firewalld")
}

/// As `systemctl reload nftables` does with Debian's configuration, and firewalld's reload by default. A
/// fight goes on for as long as the other fights, at one repair a second.
pub fn a_flushed_ruleset_is_back_within_a_second_and_reported(stage: &mut Stage) -> Result<()> {
    let wired = Wired::up(stage)?;
    let tables = || stage.sh("vm1", "nft list tables");
    // A hostPort of the container, as the reference plugin makes it when a pod starts.
    let script = tempfile::NamedTempFile::new()?;
    let result = json!({ "cniVersion": "1.0.0", "ips": [{ "address": format!("{}/32", wired.address) }] });
    let portmap = json!({ "cniVersion": "1.0.0", "name": "vnetpool-attached", "type": "portmap", "prevResult": result,
        "runtimeConfig": { "portMappings": [{ "hostPort": 8081, "containerPort": 80, "protocol": "tcp" }] } });
    let call =
        "CNI_COMMAND=ADD CNI_CONTAINERID=web CNI_NETNS=/proc/1/ns/net CNI_IFNAME=eth0 CNI_PATH=/usr/lib/cni";
    fs::write(script.path(), format!("echo '{portmap}' | {call} /usr/lib/cni/portmap"))?;
    stage.sh("vm1", &format!("sh {}", script.path().display()));
    // A change that has the agent inspect before the flush.
    stage.sh("vm1", "nft flush chain inet vnetpool egress");
    wired.eventually_holds(stage, "the rule is back");
    for count in 1..=3 {
        stage.sh("vm1", "nft flush ruleset");
        let flushed = Instant::now();
        eventually("the table is back", tables, |tables| tables.contains("inet vnetpool"));
        assert!(flushed.elapsed() < Duration::from_secs(2), "it took {:?}", flushed.elapsed());
        eventually_repaired(stage, "table", 2 * count + 1);
        assert!(wired.holds(stage));
    }
    eventually_reports(stage, "the hostPort of pods web leads nowhere");
    // By a program that leaves the table and takes a rule out.
    stage.sh("vm1", "nft flush chain inet vnetpool egress");
    wired.eventually_holds(stage, "the rule is back");
    eventually_reports(stage, "put Vnetpool's nftables table back, for instance table inet vnetpool: ");
    eventually_repaired(stage, "table", 8);
    Ok(())
}

/// Between two beats, half a minute apart, the agent does nothing without an occasion. Nightly it is watched
/// for ten minutes, and its memory is measured.
pub fn an_idle_agent_sleeps(stage: &mut Stage) -> Result<()> {
    // More than a beat, so two at most are in it.
    let (watched, most) = match std::env::var_os("NIGHTLY") {
        None => (Duration::from_secs(35), 2),
        Some(_) => (Duration::from_secs(600), 20),
    };
    let wired = Wired::up(stage)?;
    let wakes = || -> Result<u64> {
        let mut sum = 0;
        for task in fs::read_dir(format!("/proc/{}/task", wired.agent.pid()))? {
            let status = fs::read_to_string(task?.path().join("status"))?;
            let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches"));
            sum +=
                line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or_default();
        }
        Ok(sum)
    };
    // All later effects of the start are over once it sleeps for five seconds.
    let (deadline, mut before) = (Instant::now() + Duration::from_secs(60), wakes()?);
    loop {
        thread::sleep(Duration::from_secs(5));
        let now = wakes()?;
        if now == before {
            break;
        }
        assert!(Instant::now() < deadline, "the agent never sleeps for five seconds: {before} then {now}");
        before = now;
    }
    // All that comes without an occasion, the inspection and the question to the metadata service, comes at
    // the beats. However long an inspection takes, it is one wakeup: only a pause ends it.
    let (mut wakes_seen, mut was_awake, begun) = (0, false, Instant::now());
    while begun.elapsed() < watched {
        thread::sleep(Duration::from_millis(250));
        let now = wakes()?;
        let is_awake = now != before;
        wakes_seen += u32::from(is_awake && !was_awake);
        (before, was_awake) = (now, is_awake);
    }
    let memory = memory(wired.agent.pid())?;
    println!("{wakes_seen} wakeups in {} s; KiB: {memory:?}", watched.as_secs());
    assert!(wakes_seen <= most, "the agent woke {wakes_seen} times in {} s", watched.as_secs());
    // Without the program's own pages, of which a build for debugging has more than one that ships.
    assert!(memory["RssAnon"] <= 15 * 1024, "{memory:?}");
    Ok(())
}

/// The memory that a process has now, and had at most, in KiB: all of it, and what isn't a file's.
fn memory(pid: u32) -> Result<BTreeMap<String, u64>> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let lines = status.lines().filter_map(|line| line.split_once(':'));
    let of = |(name, value): (&str, &str)| {
        let is_meant = ["VmHWM", "VmRSS", "RssAnon", "RssFile"].contains(&name);
        let number = value.trim().trim_end_matches(" kB").parse().ok();
        is_meant.then_some(number).flatten().map(|number| (name.to_owned(), number))
    };
    Ok(lines.filter_map(of).collect())
}
