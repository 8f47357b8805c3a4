//! Reads Azure, the kernels, the objects and the pods' answers again and again. The invariants of what it
//! sees stand in `vnetpool_tests::audit`.

use crate::churn::{self, LABEL};
use crate::logs::{keep_azure_log, keep_plugin_logs, read_all};
use crate::world::World;
use anyhow::{Context, Result};
use futures::future::join_all;
use jiff::{Timestamp, Zoned};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::json;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};
use vnetpool_tests::audit::forgery::{Forgery, Sent};
use vnetpool_tests::audit::rest::Rest;
use vnetpool_tests::audit::{Addresses, Answer, Dial, Namespaces, Observation, Ready, readings};
use vnetpool_tests::cluster::Host;
use vnetpool_tests::place::Place;
use vnetpool_tests::timeline;
use vnetpool_tests::workload::{ProbePod, target};

const BETWEEN: Duration = Duration::from_secs(1);
/// An API server that stands still holds an observation up no longer, and nor does a machine.
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

    /// All that can be read: a machine that reboots can't, nor can an API server that stands still.
    async fn observe(&self) -> Result<Observation> {
        let state = &self.world.cluster.state;
        let mut seen = Observation {
            vm: self.vm()?.address.parse()?,
            internet: state.internet.address.parse()?,
            hosts: BTreeMap::new(),
            are_pods_read: false,
            before: Ready::new(),
            answers: BTreeMap::new(),
            dials: vec![],
            sent: BTreeMap::new(),
            wired: Addresses::new(),
            inside: Namespaces::new(),
            nics: Addresses::new(),
            after: Ready::new(),
        };
        for node in &state.nodes {
            // One that was replaced may have another address.
            let now = self.world.cluster.host(&node.name).unwrap_or_else(|_| node.clone());
            seen.hosts.insert(node.name.clone(), now.address.parse()?);
        }
        // What came too late for the observation before says nothing about this one.
        self.sockets.iter().for_each(|socket| drop(arrived(socket)));
        let sent = self.forge(seen.vm).await;
        let pods = self.reached(&seen).await;
        let kernels = state.nodes.iter().map(|node| async { (&node.name, self.kernel(&node.name).await) });
        for (node, kernel) in join_all(kernels).await {
            match kernel {
                Ok((wired, inside)) => {
                    seen.wired.insert(node.clone(), wired);
                    seen.inside.insert(node.clone(), inside);
                }
                Err(error) => println!("the auditor doesn't see the kernel of {node}: {error:#}"),
            }
        }
        match self.nics().await {
            Ok(nics) => seen.nics = nics,
            Err(error) => println!("the auditor doesn't see the NICs: {error:#}"),
        }
        let pods = async { anyhow::Ok((pods?, self.ready().await?)) };
        match pods.await {
            Ok(((before, dials, answers), after)) => {
                (seen.before, seen.dials, seen.answers, seen.after) = (before, dials, answers, after);
                seen.are_pods_read = true;
            }
            Err(error) => println!("the auditor doesn't see the pods: {error:#}"),
        }
        let [foreign, own] = [0, 1].map(|socket| arrived(&self.sockets[socket]));
        let has_come =
            |one: &Forgery| Sent { foreign: foreign.contains(&one.foreign), own: own.contains(&one.own) };
        seen.sent = sent.iter().map(|(node, one)| (node.clone(), has_come(one))).collect();
        self.forgeries.replace(seen.forgeries());
        Ok(seen)
    }

    /// Has a pod of each node send the VM its two packets, and returns which could.
    async fn forge(&self, vm: Ipv4Addr) -> BTreeMap<String, Forgery> {
        let forgeries = self.forgeries.take();
        let send = |(node, one): (String, Forgery)| async move {
            let netns = format!("--net=/run/netns/{}", one.namespace);
            let [foreign, own] = [one.foreign, one.own].map(|address| address.to_string());
            let [at_foreign, at_own] = PORTS.map(|port| format!("{vm}:{port}"));
            let command = ["sh", "-c", FORGE, "sh", &netns, &foreign, &at_foreign, &own, &at_own];
            // The pod may have ended meanwhile, or its node.
            let sent = timeout(REQUEST, self.world.cluster.run_on(&node, &command)).await;
            sent.is_ok_and(|sent| sent.is_ok()).then_some((node, one))
        };
        join_all(forgeries.into_iter().map(send)).await.into_iter().flatten().collect()
    }

    /// The pods that are ready, what they reach, and what they answer.
    async fn reached(&self, seen: &Observation) -> Result<(Ready, Vec<Dial>, BTreeMap<Ipv4Addr, Answer>)> {
        let ready = self.ready().await?;
        let dials = self.dials(&ready, seen).await?;
        let answers = self.answers(&ready).await?;
        Ok((ready, dials, answers))
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

    /// The plain VM that asks the pods.
    fn vm(&self) -> Result<&Host> {
        self.world.cluster.state.vms.first().context("no plain VM")
    }

    /// The pods that are ready; reports new ones to the sums.
    async fn ready(&self) -> Result<Ready> {
        let all = ListParams::default().labels(LABEL);
        let pods = timeout(REQUEST, churn::pods(self.world).list(&all)).await??;
        let mut ready = Ready::new();
        for pod in &pods {
            let uid = pod.uid().context("a pod without a UID")?;
            let made = made(pod)?;
            if let Some(pod) = ProbePod::of(pod) {
                self.world.sums(|sums| sums.ready(&uid, &pod.node, made));
                ready.insert(uid, pod);
            }
        }
        Ok(ready)
    }

    /// The answer to a plain VM at the address of each of these pods.
    async fn answers(&self, pods: &Ready) -> Result<BTreeMap<Ipv4Addr, Answer>> {
        let urls = pods.values().map(|pod| format!("http://{}/whoami", target(pod.address)));
        Ok(readings::answers(&self.curl(&[], urls.collect()).await?))
    }

    /// Has each of these pods connect to the plain VM, to the internet and to a pod of each node.
    async fn dials(&self, pods: &Ready, seen: &Observation) -> Result<Vec<Dial>> {
        let mut targets = vec![target(seen.vm), target(seen.internet)];
        for node in seen.hosts.keys() {
            let pod = pods.values().find(|pod| pod.node == *node);
            targets.extend(pod.map(|pod| target(pod.address)));
        }
        let request = json!({ "targets": targets, "timeout_ms": 1000 }).to_string();
        let urls = pods.values().map(|pod| format!("http://{}/dial", target(pod.address)));
        Ok(readings::dials(&self.curl(&["--json", &request], urls.collect()).await?))
    }

    /// What a plain VM gets from all of these, one behind the other.
    async fn curl(&self, how: &[&str], urls: Vec<String>) -> Result<String> {
        if urls.is_empty() {
            return Ok(String::new());
        }
        // Pods that end meanwhile don't answer, and nor does one whose packets others drop.
        let curl = "curl --silent --parallel --max-time 2 \"$@\" || true";
        let mut command = vec!["sh", "-c", curl, "sh"];
        command.extend(how);
        command.extend(urls.iter().map(String::as_str));
        self.world.cluster.run_on(&self.vm()?.name, &command).await
    }

    /// The addresses that a node's kernel sends to pods, and those inside of them.
    async fn kernel(&self, node: &str) -> Result<(BTreeSet<Ipv4Addr>, BTreeMap<String, BTreeSet<Ipv4Addr>>)> {
        let read = async {
            let routes = self.world.cluster.run_on(node, &readings::SHOW_ROUTES).await?;
            let inside = self.world.cluster.run_on(node, &["sh", "-c", readings::PRINT_INSIDE]).await?;
            Ok((readings::led_to_pods(&routes)?, readings::inside_pods(&inside)?))
        };
        timeout(REQUEST, read).await?
    }

    /// The secondary addresses of each node's NIC.
    async fn nics(&self) -> Result<Addresses> {
        let nics = self.world.cluster.azure.nics().await?;
        let of = |node: &Host| {
            let nic = nics.get(&node.nic_id.to_lowercase());
            (node.name.clone(), nic.into_iter().flat_map(|nic| nic.pod_addresses()).collect())
        };
        Ok(self.world.cluster.state.nodes.iter().map(of).collect())
    }

    async fn rest(&self) -> Result<Rest> {
        let list = self.world.cluster.kubectl(&["get", "nodeipallocations", "--output", "json"]).await?;
        let mut ledgers = BTreeMap::new();
        for node in &self.world.cluster.state.nodes {
            let file = self.world.cluster.host(&node.name)?.path("/run/vnetpool/ledger");
            let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            ledgers.insert(node.name.clone(), readings::recorded(&text));
        }
        let specs = readings::reserved(&serde_json::from_str(&list)?);
        Ok(Rest { seen: self.observe().await?, specs, ledgers })
    }

    /// Whether all pods run and are reached, and NIC, `spec`, ledger, kernel and pods show the same of each
    /// node.
    pub async fn agreement(&self) -> Result<Option<()>> {
        let all = ListParams::default().labels(LABEL);
        let pods = churn::pods(self.world).list(&all).await?.items.len();
        let rest = self.rest().await?;
        self.world.sums(|sums| rest.agrees(pods, &sums.excuses)).map(Some)
    }

    /// Whether no route, link, neighbour or record of a pod is left anywhere.
    pub async fn emptiness(&self) -> Result<Option<()>> {
        let mut links = BTreeMap::new();
        for node in &self.world.cluster.state.nodes {
            let show = "ip -brief link show && ip -4 neighbour show nud permanent";
            let shown = self.world.cluster.run_on(&node.name, &["sh", "-euc", show]).await?;
            links.insert(node.name.clone(), shown.lines().map(str::to_owned).collect());
        }
        self.rest().await?.is_empty(&links).map(Some)
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
