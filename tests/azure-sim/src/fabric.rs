//! The network between the simulated machines: this process's network namespace, turned into one hop with
//! Azure's rules.
//!
//! ```text
//!   VM's namespace            this namespace
//!   eth0 (NIC's MAC) ──veth── vm1  12:34:56:78:9a:bc   answers each ARP request, for any address
//!   eth1, and so on: one link for each NIC
//!                              │ netdev ingress: right MAC, source held by the NIC
//!                              │ its subnet's routing table: straight on, to an appliance, or nowhere
//!                              │ main routing table: a /32 route for each address that a NIC holds
//!                              └ table inet azure: security groups, public addresses, load balancers, who reaches the internet
//! ```
//! Sources and routes follow from [`Rules`], of which only the differences from the last time are programmed.
//! `policy` renders what may pass, and that is replaced when it differs.

mod command;
mod gateway;
mod policy;
pub(crate) mod probing;
mod rules;

use crate::topology::{Network, Plug, WIRE_SERVER};
use anyhow::{Context, ensure};
use command::{ip, ip_in, nft};
pub(crate) use gateway::Exit;
use gateway::Proxy;
use rules::{Port, Rules};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;

/// Where ARM listens.
pub(crate) const ARM: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// Where the metadata service listens.
pub(crate) const IMDS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Addresses to which no security group applies.
const PLATFORM_ADDRESSES: [Ipv4Addr; 2] = [IMDS, WIRE_SERVER];
/// The MAC address from which Azure answers every ARP request.
const FABRIC_MAC: &str = "12:34:56:78:9a:bc";
/// The next hop of the hosts of the internet.
const INTERNET_GATEWAY: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const INTERNET: &str = "203.0.113.0/24";
/// The source address of machines without a public address, as seen by hosts that distinguish public
/// addresses.
const DEFAULT_OUTBOUND: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 127);
/// The next hop of a network on premises, and its range, which leads nowhere else.
const PREMISES_GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const PREMISES_LINKS: &str = "192.0.2.0/24";
/// The name of a machine's first NIC.
const FIRST: &str = "eth0";
/// The first number of a place's own routing table.
const FIRST_TABLE: u32 = 1000;

/// The fabric and its programmed state so far.
pub(crate) struct Fabric {
    /// The links to machines, by NIC.
    ports: BTreeMap<String, Port>,
    /// The links to networks on premises, by virtual network.
    gateways: BTreeMap<String, String>,
    /// The application gateways by id.
    proxies: BTreeMap<String, Proxy>,
    /// The number of each place's routing table; never used for another.
    tables: BTreeMap<String, u32>,
    programmed: Rules,
    policy: String,
    /// Counts devices, so that a name is never used twice.
    devices: u32,
}

impl Fabric {
    /// Turns this namespace into the network. Removes the remains of an earlier fabric in it.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        for (key, value) in [
            // Forwarding comes first: the kernel changes other settings with it.
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/disable_ipv6", "1"),
            ("ipv6/conf/default/disable_ipv6", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
            ("ipv4/conf/default/accept_redirects", "0"),
            ("ipv4/conf/default/proxy_arp", "1"),
        ] {
            // In a kernel without IPv6 there is nothing to turn off.
            if key.starts_with("ipv4") || Path::new("/proc/sys/net/ipv6").exists() {
                sysctl(key, value)?;
            }
        }
        let mut batch = String::from("link set lo up\n");
        for address in [ARM, IMDS, WIRE_SERVER] {
            batch += &format!("address replace {address}/32 dev lo\n");
        }
        batch += &format!("route replace {INTERNET} dev lo\nroute replace {PREMISES_LINKS} dev lo\n");
        // The remains of an earlier fabric in this namespace.
        batch += "rule flush\nrule add lookup main priority 32766\n";
        ip(&batch).await?;
        nft(rules::BASE).await?;
        Ok(Self {
            ports: BTreeMap::new(),
            gateways: BTreeMap::new(),
            proxies: BTreeMap::new(),
            tables: BTreeMap::new(),
            programmed: Rules::default(),
            policy: String::new(),
            devices: 0,
        })
    }

    /// Plugs, unplugs, routes and filters until the network is as the world has it.
    pub(crate) async fn program(&mut self, mut network: Network) -> anyhow::Result<()> {
        self.house(&mut network)?;
        let (network, plugs) = (&network, &network.plugs);
        let is_wired = |nic: &String, port: &Port| plugs.get(nic).is_some_and(|plug| port.fits(plug));
        let stale: Vec<String> = self
            .ports
            .iter()
            .filter(|(nic, port)| !is_wired(nic, port))
            .map(|(nic, _)| nic.clone())
            .collect();
        for nic in stale {
            self.unplug(&nic).await?;
        }
        for (nic, plug) in plugs {
            if !self.ports.contains_key(nic) {
                let port = self.plug(plug).await?;
                self.ports.insert(nic.clone(), port);
            }
        }
        for place in network.routes.keys() {
            let next = FIRST_TABLE + u32::try_from(self.tables.len())?;
            self.tables.entry(place.clone()).or_insert(next);
        }
        let policy = policy::render(network, &self.ports);
        if policy != self.policy {
            nft(&policy).await?;
            self.policy = policy;
        }
        let rules = Rules::of(network, &self.ports, &self.gateways, &self.tables);
        let change = self.programmed.change_to(&rules);
        nft(&change.nft).await?;
        // A machine's namespace may have gone with its link just now. Then its routes are gone, too.
        if let Err(error) = ip(&change.ip).await {
            tracing::warn!("{error:#}");
        }
        self.programmed = rules;
        for (id, gateway) in &network.gateways {
            if let Some(proxy) = self.proxies.get_mut(id) {
                proxy.follow(gateway).await?;
            }
        }
        Ok(())
    }

    /// Gives each application gateway a namespace of its own. Those of gateways that are gone go.
    fn house(&mut self, network: &mut Network) -> anyhow::Result<()> {
        self.proxies.retain(|id, _| network.gateways.contains_key(id));
        for (id, gateway) in &network.gateways {
            if !self.proxies.contains_key(id) {
                self.proxies.insert(id.clone(), Proxy::new(gateway.instance)?);
            }
            if let (Some(plug), Some(proxy)) = (network.plugs.get_mut(id), self.proxies.get(id)) {
                plug.netns = proxy.netns();
            }
        }
        Ok(())
    }

    /// The ways from application gateways to their backends, by the gateways' ids.
    pub(crate) fn exits(&self) -> BTreeMap<String, Exit> {
        self.proxies.iter().map(|(id, proxy)| (id.clone(), proxy.exit())).collect()
    }

    /// Makes a NIC's interface in the machine's namespace and the link to it. Only the first NIC gets routes:
    /// "Azure does not assign a default gateway to additional network interfaces" ("Create and manage
    /// multiple NICs"), and the platform's own routes come with the first NIC's lease (DHCP option 121).
    async fn plug(&mut self, plug: &Plug) -> anyhow::Result<Port> {
        let Plug { netns, interface, mac, address, gateway, .. } = plug;
        let device = self.link(netns, interface, "vm", &format!("address {mac}")).await?;
        nft(&rules::guard(&device, "of_vm")).await?;
        let mut batch =
            format!("link set lo up\naddress add {address} dev {interface}\nlink set {interface} up\n");
        if interface == FIRST {
            for target in ["default".to_owned(), IMDS.to_string(), WIRE_SERVER.to_string()] {
                batch += &format!("route add {target} via {gateway} dev {interface}\n");
            }
        }
        ip_in(netns, &batch).await?;
        let primary = address.addr();
        // The neighbour is permanent: Azure delivers frames to the NIC and sends no ARP request into the
        // machine.
        ip(&format!(
            "link set {device} up\nneighbour replace {primary} lladdr {mac} dev {device} nud permanent\n"
        ))
        .await?;
        let (netns, interface, mac) = (netns.clone(), interface.clone(), mac.clone());
        Ok(Port { device, netns, interface, mac, primary })
    }

    /// A pair of devices between this namespace and an interface of another. Gives the name of the end here.
    async fn link(&mut self, netns: &str, interface: &str, kind: &str, peer: &str) -> anyhow::Result<String> {
        let known = command::place(netns);
        ensure!(
            known.exists(),
            "there is no network namespace {netns}: make it with `ip netns add {netns}` first"
        );
        self.devices += 1;
        let device = format!("{kind}{}", self.devices);
        ip(&format!(
            "link add {device} address {FABRIC_MAC} mtu 1500 type veth peer name {interface} netns {netns} mtu 1500 {peer}\n"
        ))
        .await?;
        // Answers ARP requests at once. The default holds first packets back by up to 0.8 s.
        sysctl(&format!("ipv4/neigh/{device}/proxy_delay"), "0")?;
        Ok(device)
    }

    /// Removes the link to a NIC, if there is one. The next [`Self::program`] makes it anew.
    pub(crate) async fn unplug(&mut self, nic: &str) -> anyhow::Result<()> {
        let Some(port) = self.ports.remove(nic) else { return Ok(()) };
        self.programmed.forget_routes_of(&port.device);
        // Both may be gone already, together with the machine's namespace.
        for outcome in
            [nft(&rules::unguard(&port.device)).await, ip(&format!("link delete {}\n", port.device)).await]
        {
            if let Err(error) = outcome {
                tracing::debug!("{error:#}");
            }
        }
        Ok(())
    }

    /// Makes `eth0` of a host that knows no address but its own and sends everything to `gateway`. Gives the
    /// end here.
    async fn host(
        &mut self,
        netns: &str,
        kind: &str,
        address: Ipv4Addr,
        gateway: Ipv4Addr,
    ) -> anyhow::Result<String> {
        let device = self.link(netns, FIRST, kind, "").await?;
        nft(&rules::guard(&device, "of_host")).await?;
        ip_in(
            netns,
            &format!(
                "link set lo up\naddress add {address}/32 dev eth0\nlink set eth0 up\n\
                 route add {gateway} dev eth0\nroute add default via {gateway} dev eth0\n"
            ),
        )
        .await?;
        ip(&format!("link set {device} up\nroute replace {address}/32 dev {device}\n")).await?;
        Ok(device)
    }

    /// Joins a namespace as a host of the internet. It knows no address of a VNet except those that connect
    /// to it.
    pub(crate) async fn join_internet(&mut self, netns: &str, address: Ipv4Addr) -> anyhow::Result<()> {
        self.host(netns, "net", address, INTERNET_GATEWAY).await.map(drop)
    }

    /// Joins a namespace as a host behind a virtual network's gateway. It knows no address but its own and
    /// sends everything to the gateway.
    pub(crate) async fn join_premises(
        &mut self,
        netns: &str,
        address: Ipv4Addr,
        vnet: &str,
    ) -> anyhow::Result<()> {
        let device = self.host(netns, "gw", address, PREMISES_GATEWAY).await?;
        self.gateways.insert(vnet.to_owned(), device);
        Ok(())
    }
}

/// Sets a variable below `net`, which is this namespace's own.
fn sysctl(key: &str, value: &str) -> anyhow::Result<()> {
    let path = Path::new("/proc/sys/net").join(key);
    std::fs::write(&path, value).with_context(|| format!("setting {} to {value}", path.display()))
}
