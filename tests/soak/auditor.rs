//! Reads Azure, the kernels, the objects and the pods' answers again and again. How, and the invariants of
//! what it sees, stand in `vnetpool_tests::audit`.

use crate::churn::LABEL;
use crate::logs::{keep_azure_log, keep_plugin_logs, read_all};
use crate::world::World;
use anyhow::{Context, Result};
use futures::future::join_all;
use jiff::{Timestamp, Zoned};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};
use vnetpool_tests::audit::Observation;
use vnetpool_tests::audit::forgery::{Forgery, Sent};
use vnetpool_tests::audit::observer::Observer;
use vnetpool_tests::place::Place;
use vnetpool_tests::timeline;
use vnetpool_tests::workload::ProbePod;

const BETWEEN: Duration = Duration::from_secs(1);
/// A machine that stands still holds an observation up no longer.
const REQUEST: Duration = Duration::from_secs(5);
/// So many lines of the logs are printed about an address.
const LINES: usize = 60;
/// And about so many addresses: what is wrong for hours is found again and again.
const HISTORIES: usize = 20;
/// The VM's ports for packets under foreign addresses, and for those under a pod's own.
const PORTS: [u16; 2] = [9053, 9054];
/// Both packets, as the probe sends them in a pod's network namespace.
const FORGE: &str = r#"nsenter "$1" probe forge --source "$2" --to "$3" &&
    nsenter "$1" probe forge --source "$4" --to "$5""#;

pub struct Auditor<'a> {
    world: &'a World,
    last: Instant,
    /// Where both kinds of packets arrive.
    sockets: [UdpSocket; 2],
    /// What pods are to send, by what the observation before has shown.
    forgeries: RefCell<BTreeMap<String, Forgery>>,
    histories: Cell<usize>,
}

impl<'a> Auditor<'a> {
    /// # Errors
    /// When there is no VM, or it has no socket for us.
    pub fn new(world: &'a World) -> Result<Self> {
        let vm = Place::host(world.cluster.state.vms.first().context("no plain VM")?);
        let [foreign, own] = PORTS.map(|port| listen(&vm, port));
        Ok(Self {
            world,
            last: Instant::now(),
            sockets: [foreign?, own?],
            forgeries: RefCell::default(),
            histories: Cell::new(0),
        })
    }

    /// Observes again and again until then.
    pub async fn run(&mut self, until: Instant) -> Result<()> {
        self.last = Instant::now();
        while Instant::now() < until {
            self.judge().await?;
            sleep(BETWEEN).await;
        }
        Ok(())
    }

    async fn judge(&mut self) -> Result<()> {
        let began = Instant::now();
        let observation = self.observe().await?;
        let elapsed = self.last.elapsed();
        self.last = Instant::now();
        let news = self.world.sums(|sums| {
            sums.excuses.end(began, &observation);
            let found = observation.found(&sums.excuses);
            sums.observed(began, &observation, &found, elapsed)
        });
        for one in news {
            println!("VIOLATION: {one}");
            if let Err(error) = self.print_history(&one).await {
                println!("  no timeline: {error:#}");
            }
        }
        Ok(())
    }

    /// The readings; new pods that are ready are reported to the sums.
    fn observer(&self) -> Observer<'a> {
        let world = self.world;
        let met = move |pod: &Pod| {
            let (uid, made) = (pod.uid().context("a pod without a UID")?, made(pod)?);
            if let Some(pod) = ProbePod::of(pod) {
                world.sums(|sums| sums.ready(&uid, &pod.node, made));
            }
            Ok(())
        };
        Observer::of(&world.cluster, LABEL).meeting(met)
    }

    /// The readings, while a pod of each node forges an address.
    async fn observe(&self) -> Result<Observation> {
        // What came too late for the observation before says nothing about this one.
        self.sockets.iter().for_each(|socket| drop(arrived(socket)));
        let sent = self.forge().await?;
        let mut seen = self.observer().observe().await?;
        let [foreign, own] = [0, 1].map(|socket| arrived(&self.sockets[socket]));
        let has_come =
            |one: &Forgery| Sent { foreign: foreign.contains(&one.foreign), own: own.contains(&one.own) };
        seen.sent = sent.iter().map(|(node, one)| (node.clone(), has_come(one))).collect();
        self.forgeries.replace(seen.forgeries());
        Ok(seen)
    }

    /// Has a pod of each node send the VM its two packets, and returns which could.
    async fn forge(&self) -> Result<BTreeMap<String, Forgery>> {
        let cluster = &self.world.cluster;
        let vm = &cluster.state.vms.first().context("no plain VM")?.address;
        let forgeries = self.forgeries.take();
        let send = |(node, one): (String, Forgery)| async move {
            let netns = format!("--net=/run/netns/{}", one.namespace);
            let [foreign, own] = [one.foreign, one.own].map(|address| address.to_string());
            let [at_foreign, at_own] = PORTS.map(|port| format!("{vm}:{port}"));
            let command = ["sh", "-c", FORGE, "sh", &netns, &foreign, &at_foreign, &own, &at_own];
            // The pod may have ended meanwhile, or its node.
            let sent = timeout(REQUEST, cluster.run_on(&node, &command)).await;
            sent.is_ok_and(|sent| sent.is_ok()).then_some((node, one))
        };
        Ok(join_all(forgeries.into_iter().map(send)).await.into_iter().flatten().collect())
    }

    /// The lines about the address of a violation in all logs of the cluster and of Azure, oldest first.
    async fn print_history(&self, violation: &str) -> Result<()> {
        let Some(address) = violation.split([' ', ',']).find_map(|word| word.parse::<Ipv4Addr>().ok()) else {
            return Ok(());
        };
        if self.histories.replace(self.histories.get() + 1) >= HISTORIES {
            return Ok(());
        }
        for node in &self.world.cluster.state.nodes {
            // A node that is down has none.
            if let Err(error) = keep_plugin_logs(self.world, &node.name) {
                println!("  no log of the plugins of {}: {error:#}", node.name);
            }
        }
        keep_azure_log(self.world).await?;
        let logs = read_all(&self.world.dir.join("logs"));
        let lines = timeline::about(address, &logs, Zoned::now().year());
        for line in &lines[lines.len().saturating_sub(LINES)..] {
            println!("  {line}");
        }
        Ok(())
    }

    /// Whether all pods run and are reached, and NIC, `spec`, ledger, kernel and pods show the same of each
    /// node, which holds no more than it should.
    pub async fn agreement(&self) -> Result<Option<()>> {
        let observer = self.observer();
        let pods = observer.pods().await?.len();
        let rest = observer.rest(self.world.sizing).await?;
        self.world.sums(|sums| rest.agrees(pods, &sums.excuses)).map(Some)
    }

    /// Whether no route, link, neighbour, record or address for a pod is left anywhere.
    pub async fn emptiness(&self) -> Result<Option<()>> {
        let mut links = BTreeMap::new();
        for node in &self.world.cluster.state.nodes {
            let show = "ip -brief link show && ip -4 neighbour show nud permanent";
            let shown = self.world.cluster.run_on(&node.name, &["sh", "-euc", show]).await?;
            links.insert(node.name.clone(), shown.lines().map(str::to_owned).collect());
        }
        self.observer().rest(self.world.sizing).await?.is_empty(&links).map(Some)
    }
}

/// A socket that takes what arrives at this port of a machine.
fn listen(place: &Place, port: u16) -> Result<UdpSocket> {
    let address: Ipv4Addr = place.address.parse()?;
    let socket = place.inside(|| UdpSocket::bind((address, port)))??;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The senders of all packets that have arrived.
fn arrived(socket: &UdpSocket) -> BTreeSet<Ipv4Addr> {
    let mut senders = BTreeSet::new();
    while let Ok((_, sender)) = socket.recv_from(&mut [0]) {
        if let IpAddr::V4(sender) = sender.ip() {
            senders.insert(sender);
        }
    }
    senders
}

/// When a pod was made, or less than a second before.
fn made(pod: &Pod) -> Result<Instant> {
    let made = pod.creation_timestamp().context("a pod without a time")?;
    let age = Timestamp::now().duration_since(made.0);
    Instant::now().checked_sub(age.try_into().unwrap_or_default()).context("a pod older than this machine")
}
