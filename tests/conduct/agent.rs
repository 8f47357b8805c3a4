//! The node agents' side of the protocol without nodes: each supplies a real ledger from its
//! NodeIPAllocation, gives pods addresses of it, and gives up addresses on request, under its own identity.

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use vnetpool_apiserver::answer::is_status;
use vnetpool_apiserver::reading::Reading;
use vnetpool_crds::allocation::Interface;
use vnetpool_crds::reason::Reason;
use vnetpool_crds::verdict::Verdict;
use vnetpool_crds::{NodeIPAllocation, NodeIPAllocationStatus, condition, names};
use vnetpool_node_agent::imds::{Network, listing::Listing};
use vnetpool_node_agent::report::pace::{Pace, difference};
use vnetpool_node_agent::report::{Report, compose};
use vnetpool_node_agent::supply::supply;
use vnetpool_plugin::ledger::{Claim, Ledger, Millis, Occupant, Pod, Sandbox, Supplied, Supply};
use vnetpool_process::lock::lock;

/// All agents.
#[derive(Clone, Default)]
pub struct Agents {
    nodes: Arc<Mutex<BTreeMap<String, Agent>>>,
    /// Nodes to reconcile though their object hasn't changed.
    touched: Arc<Mutex<BTreeSet<String>>>,
    news: Arc<Notify>,
    /// How many reports they have sent in all.
    pub reports: Arc<AtomicUsize>,
    /// Reports wait as those of real agents do.
    is_paced: Arc<AtomicBool>,
    /// No agent runs.
    are_down: Arc<AtomicBool>,
}

/// So many events are taken in at once, and so many agents report at a time.
const AT_ONCE: usize = 64;
/// A report that has failed is sent again after this time.
const RETRY: Duration = Duration::from_millis(100);

struct Agent {
    client: Client,
    boot: String,
    /// The pods to serve.
    pods: Vec<Pod>,
    ledger: Option<Ledger>,
    /// The ledger's time. Every freed address has cooled when the agent reads the ledger next, unless reports
    /// are paced: then it is true time.
    now: Millis,
    /// UID of the object, and its last report.
    reported: Option<(String, NodeIPAllocationStatus)>,
    pace: Pace,
    listing: Listing,
}

/// The work of all agents, which ends when this is dropped.
pub struct Work(JoinHandle<()>);

impl Drop for Work {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Agents {
    /// `client` only watches. The agents end with their work: those of a world that is over would go on to
    /// serve nodes of the same names in the next.
    pub fn start(client: Client) -> (Agents, Work) {
        let agents = Agents::default();
        let work = Work(tokio::spawn(agents.clone().work(client)));
        (agents, work)
    }

    /// An agent that has just started on a node, without a ledger.
    pub fn join(&self, node: &str, boot: &str, client: Client) {
        let pods = self.lock().get(node).map(|agent| agent.pods.clone()).unwrap_or_default();
        let agent = Agent {
            client,
            boot: boot.into(),
            pods,
            ledger: None,
            now: 0,
            reported: None,
            pace: Pace::default(),
            listing: Listing::default(),
        };
        self.lock().insert(node.into(), agent);
        self.touch(node);
        self.news.notify_one();
    }

    /// From now on the node has these pods.
    pub fn serve(&self, node: &str, pods: Vec<Pod>) {
        self.change(node, |agent| agent.pods = pods);
    }

    /// The node's agent compares once what the metadata service lists of the NIC in `spec`, and reports what
    /// is missing.
    pub fn compare(&self, node: &str, nic: &Interface, answer: &Network) {
        self.change(node, |agent| agent.listing.take_in(nic, answer));
    }

    /// The reservations that it has missed so far.
    pub fn unlisted(&self, node: &str) -> BTreeSet<String> {
        self.lock().get(node).map(|agent| agent.listing.comparison().unlisted).unwrap_or_default()
    }

    /// From now on reports wait as those of real agents do.
    pub fn pace(&self) {
        self.is_paced.store(true, Ordering::Relaxed);
    }

    /// All agents end; pods go on with their addresses.
    pub fn go_down(&self) {
        self.are_down.store(true, Ordering::Relaxed);
    }

    /// They start again, with the ledgers that they left.
    pub fn come_back(&self) {
        self.are_down.store(false, Ordering::Relaxed);
        self.news.notify_one();
    }

    /// The holder of each address on the node, by UID.
    pub fn addresses(&self, node: &str) -> BTreeMap<String, Ipv4Addr> {
        let nodes = self.lock();
        let ledger = nodes.get(node).and_then(|agent| agent.ledger.as_ref());
        let all = ledger.into_iter().flat_map(Ledger::assignments);
        all.map(|(entry, one)| (one.pod.uid.clone(), entry.address)).collect()
    }

    /// The node's ledger, unless its agent has none yet.
    pub fn ledger(&self, node: &str) -> Option<Ledger> {
        self.lock().get(node)?.ledger.clone()
    }

    /// The node's ledger is lost, and its agent builds another: from the addresses that these pods have, by
    /// UID, then from what `announced` lists as given up, and from its `spec` last. That version of the
    /// object was written to announce it.
    pub fn rebuild<'a>(&self, node: &str, pods: impl Iterator<Item = &'a str>, announced: &NodeIPAllocation) {
        self.change(node, |agent| {
            let Some(lost) = agent.ledger.take() else { return };
            let has = |uid: &str| lost.assignments().find(|(_, one)| one.pod.uid == uid);
            let occupants = pods.filter_map(has).map(|(entry, one)| Occupant {
                sandbox: one.sandbox.clone(),
                pod: one.pod.clone(),
                address: entry.address,
                proof: one.proof.clone(),
            });
            let occupants: Vec<Occupant> = occupants.collect();
            agent.ledger = supply(announced).ok().map(|supply| agent.build(&occupants, announced, &supply));
            agent.reported = None;
        });
    }

    fn change(&self, node: &str, change: impl FnOnce(&mut Agent)) {
        if let Some(agent) = self.lock().get_mut(node) {
            change(agent);
        }
        self.touch(node);
        self.news.notify_one();
    }

    async fn work(self, client: Client) {
        let mut objects = BTreeMap::new();
        // Without the backoff, a watch that fails at once because the runtime ends would keep it from ending.
        let watch = || {
            let api = Api::<Reading<NodeIPAllocation>>::all(client.clone());
            watcher(api, watcher::Config::default()).default_backoff().ready_chunks(AT_ONCE).boxed()
        };
        let mut events = watch();
        let (mut publishing, mut reporting) = (FuturesUnordered::new(), BTreeSet::new());
        loop {
            while self.are_down.load(Ordering::Relaxed) {
                objects.clear();
                self.news.notified().await;
                events = watch();
            }
            let mut concerned = BTreeSet::new();
            tokio::select! {
                some = events.next() => for event in some.into_iter().flatten() {
                    match event {
                        Ok(Event::Apply(Reading(Ok(object))) | Event::InitApply(Reading(Ok(object)))) => {
                            concerned.insert(object.name_any());
                            objects.insert(object.name_any(), object);
                        }
                        // Its agent goes on with its ledger, and has no version to report onto.
                        Ok(Event::Apply(object) | Event::InitApply(object) | Event::Delete(object)) => drop(objects.remove(&object.name_any())),
                        Ok(Event::Init | Event::InitDone) | Err(_) => {}
                    }
                },
                Some(ended) = publishing.next() => {
                    let (name, published): (String, kube::Result<()>) = ended;
                    reporting.remove(&name);
                    if let Err(error) = published {
                        self.lock().get_mut(&name).into_iter().for_each(|agent| agent.reported = None);
                        // The watch shows the version that was in the way: until then the answer stays.
                        if !is_status(&error, 409) {
                            self.touch_after(&name, RETRY);
                        }
                    }
                }
                () = self.news.notified() => {}
            }
            concerned.append(&mut lock(&self.touched));
            for name in concerned {
                // An agent sends one report after the other.
                if reporting.contains(&name) || reporting.len() == AT_ONCE {
                    self.touch(&name);
                    continue;
                }
                let object: Option<&NodeIPAllocation> = objects.get(&name);
                let news = object.and_then(|object| Some((object.clone(), self.report(&name, object)?)));
                let Some((object, (client, status))) = news else { continue };
                self.reports.fetch_add(1, Ordering::Relaxed);
                reporting.insert(name.clone());
                publishing.push(async move { (name, publish(client, &object, &status).await) });
            }
        }
    }

    fn touch(&self, node: &str) {
        lock(&self.touched).insert(node.into());
    }

    fn touch_after(&self, node: &str, wait: Duration) {
        let (agents, node) = (self.clone(), node.to_owned());
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            agents.touch(&node);
            agents.news.notify_one();
        });
    }

    /// The agent's report on this version of its object, if it is news.
    fn report(&self, name: &str, object: &NodeIPAllocation) -> Option<(Client, NodeIPAllocationStatus)> {
        let mut nodes = self.lock();
        let agent = nodes.get_mut(name)?;
        let is_paced = self.is_paced.load(Ordering::Relaxed);
        let (uid, news) = (object.uid().unwrap_or_default(), agent.take_up(object, is_paced)?);
        let reported = agent.reported.as_ref().filter(|(to, _)| *to == uid);
        let difference = difference(&news, reported.map(|(_, status)| status), object.spec.warm);
        let wait = agent.pace.due(difference, Instant::now())?;
        if !wait.is_zero() && is_paced {
            self.touch_after(name, wait);
            return None;
        }
        agent.pace.written(difference);
        agent.reported = Some((uid, news.clone()));
        Some((agent.client.clone(), news))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Agent>> {
        lock(&self.nodes)
    }
}

impl Agent {
    /// A ledger from the addresses in use, from what the object lists as given up, and from its `spec`.
    fn build(&self, occupants: &[Occupant], object: &NodeIPAllocation, supply: &Supply) -> Ledger {
        let relinquished: Vec<String> =
            object.status.iter().flat_map(|status| status.relinquished.clone()).collect();
        Ledger::rebuild(&self.boot, occupants, &relinquished, supply, None, self.now, true)
    }

    /// None: the object isn't for this boot yet, or older than the version that the ledger knows.
    fn take_up(&mut self, object: &NodeIPAllocation, is_paced: bool) -> Option<NodeIPAllocationStatus> {
        let supply = supply(object).ok().filter(|supply| supply.boot_id == self.boot)?;
        let ledger = match self.ledger.take() {
            Some(ledger) => ledger,
            None => self.build(&[], object, &supply),
        };
        let ledger = self.ledger.insert(ledger);
        match ledger.supply(&supply) {
            Supplied::Applied => {}
            // It is ahead of the object, and reports so.
            Supplied::Stale => {
                let ahead = Some(ledger.generation());
                let status = object.status.clone().unwrap_or_default();
                return Some(NodeIPAllocationStatus { observed_generation: ahead, ..status });
            }
            _ => return None,
        }
        self.now = later(self.now, supply.cooldown, is_paced);
        let left: Vec<Sandbox> = ledger
            .assignments()
            .filter(|(_, one)| !self.pods.contains(&one.pod))
            .map(|(_, one)| one.sandbox.clone())
            .collect();
        for sandbox in left {
            ledger.free(&sandbox, self.now);
        }
        // The kubelet ends the ADD of a pod that has gone while it waited.
        let given_up = ledger.waiting().iter().filter(|waiter| !self.pods.contains(&waiter.pod));
        let given_up: Vec<Sandbox> = given_up.map(|waiter| waiter.sandbox.clone()).collect();
        for sandbox in given_up {
            ledger.cancel(&sandbox);
        }
        self.now = later(self.now, supply.cooldown, is_paced);
        for pod in &self.pods {
            let sandbox = Sandbox { container_id: pod.uid.clone(), ifname: "eth0".into() };
            ledger.assign(&Claim::wired(&sandbox, pod, ""), self.now);
        }
        ledger.relinquish(object.spec.target, self.now);
        let lost = ledger.assignments().filter(|(_, one)| one.vanished);
        let lost = lost.map(|(entry, one)| format!("{} of {}", entry.address, one.whose())).collect();
        let comparison = self.listing.comparison();
        let report = Report {
            ledger: ledger.clone(),
            at: self.now,
            time: Timestamp::now(),
            generation: object.metadata.generation,
            warm: object.spec.warm,
            names_holders: object.spec.report_holders,
            unlisted: comparison.unlisted,
            metadata_silent: comparison.is_silent,
            conditions: conditions(lost, object.metadata.generation),
        };
        Some(compose(&report, None))
    }
}

/// An agent's conditions on a node that is healthy but for these addresses, which it has `lost` under their
/// pods: as long as its own. They are of no other time, so that only a turn is news.
fn conditions(lost: Vec<String>, generation: Option<i64>) -> Vec<Condition> {
    let backed = if lost.is_empty() {
        Verdict::yes(Reason::Backed, "every pod's address is reserved for this node")
    } else {
        let lost = lost.join(", ");
        Verdict::no(Reason::AddressVanished, format!("no longer reserved for this node: {lost}"))
    };
    let ruled = "forwarding is on and table inet vnetpool is in place";
    let installed = "10-vnetpool.conflist of the folder /etc/cni/net.d chains vnetpool, portmap, bandwidth";
    let alone = "nothing else on the node is in the way of its pods";
    [
        (condition::SUPPLIED, Verdict::yes(Reason::Supplied, "the ledger has all addresses of spec")),
        (condition::RULES_APPLIED, Verdict::yes(Reason::Applied, ruled)),
        (condition::CNI_INSTALLED, Verdict::yes(Reason::Installed, installed)),
        (condition::ASSIGNMENTS_BACKED, backed),
        (condition::UNDISTURBED, Verdict::yes(Reason::Undisturbed, alone)),
    ]
    .map(|(type_, verdict)| verdict.condition(type_, generation, Timestamp::UNIX_EPOCH))
    .into()
}

/// The ledger's time when it is read next.
fn later(now: Millis, cooldown: Duration, is_paced: bool) -> Millis {
    if is_paced {
        return u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default();
    }
    now + u64::try_from(cooldown.as_millis()).unwrap_or_default()
}

async fn publish(
    client: Client,
    object: &NodeIPAllocation,
    status: &NodeIPAllocationStatus,
) -> kube::Result<()> {
    let patch = Patch::Apply(json!({
        "apiVersion": NodeIPAllocation::api_version(&()),
        "kind": NodeIPAllocation::kind(&()),
        "metadata": { "uid": object.uid(), "resourceVersion": object.resource_version() },
        "status": status,
    }));
    let api = Api::<NodeIPAllocation>::all(client);
    api.patch_status(&object.name_any(), &PatchParams::apply(names::AGENT).force(), &patch).await?;
    Ok(())
}
