//! The virtual networks around the nodes' subnets, and how full these are: read once a minute for each VNet,
//! not once for each node. Each VNet has clocks of its own, and none waits for Azure's answer about another.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::azure::{self, Azure, Error, NETWORK_KEPT, Network, Priority, ResourceId, Usages};
use crate::lock::lock;
use crate::rounds::Rounds;
use vnetpool_crds::reason::Reason;

/// Of reading a network: all nodes of a subnet need it before their first address, and all pods go by it from
/// then on.
const URGENCY: Priority = Priority::WaitingPods;

/// The known facts about each subnet in use.
pub struct Networks {
    azure: Arc<Azure>,
    known: Mutex<HashMap<ResourceId, Known>>,
    /// How full each virtual network is.
    counts: Mutex<Counts>,
    /// A subnet is known that wasn't.
    arrived: Notify,
}

struct Known {
    network: Arc<Network>,
    /// When the virtual network was last read, or began to be.
    read_at: Instant,
    free: FreeAddresses,
}

/// How full a subnet or a virtual network is, as Azure reports it: a hint. That there is no room is learned
/// from a refused write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Hint<T> {
    /// Not asked yet.
    #[default]
    Pending,
    /// As of a minute ago at most, if Azure answers.
    Counted(T),
    /// Azure has no figure for it.
    Uncounted,
    /// It couldn't be read.
    Unreadable { reason: Reason, message: String },
}

/// The free addresses of a subnet.
pub type FreeAddresses = Hint<u32>;

/// When each virtual network's usage was last requested, and the answer.
type Counts = HashMap<ResourceId, (Instant, Hint<Arc<Usages>>)>;

/// A subnet as a pool's status shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// How many addresses Azure can give out in it.
    pub size: u32,
    pub free: FreeAddresses,
}

/// A change of a subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    Network,
    Free,
    /// Other subnets of its virtual network have become fuller or emptier.
    Around,
}

impl Networks {
    pub fn new(azure: Arc<Azure>) -> Networks {
        Networks { azure, known: Mutex::default(), counts: Mutex::default(), arrived: Notify::new() }
    }

    /// The network around `subnet` as last read; asks Azure only for a subnet that is new here.
    pub async fn around(&self, subnet: &ResourceId) -> Result<Arc<Network>, Error> {
        if let Some(known) = self.lock().get(subnet) {
            return Ok(known.network.clone());
        }
        let network = Arc::new(self.azure.network(subnet, URGENCY).await?);
        self.keep(subnet, network.clone());
        self.arrived.notify_one();
        Ok(network)
    }

    /// The facts about a subnet, if it is known here.
    pub fn subnet(&self, subnet: &ResourceId) -> Option<Subnet> {
        let known = self.lock();
        let Known { network, free, .. } = known.get(subnet)?;
        Some(Subnet { size: size(network), free: free.clone() })
    }

    /// How full a virtual network is, subnet by subnet.
    pub fn usages(&self, vnet: &ResourceId) -> Hint<Arc<Usages>> {
        lock(&self.counts).get(vnet).map(|(_, usages)| usages.clone()).unwrap_or_default()
    }

    /// Reads each network again when the known state of it is [`NETWORK_KEPT`] old, and how full it is. Runs
    /// `changed` for each subnet with news, and forgets subnets that aren't `in_use`. Never ends.
    pub async fn refresh(
        &self,
        in_use: impl Fn() -> HashSet<ResourceId>,
        changed: impl Fn(&ResourceId, News),
    ) {
        // Side by side: a count has the last place in Azure's limits, and while many nodes arrive it waits
        // for minutes.
        tokio::join!(self.follow(&in_use, &changed), self.count(&in_use, &changed));
    }

    async fn follow(&self, in_use: &impl Fn() -> HashSet<ResourceId>, changed: &impl Fn(&ResourceId, News)) {
        let mut reads = Rounds::new();
        loop {
            let read_at = self.read_at();
            let wait = until_due(read_at.iter().filter(|(vnet, _)| !reads.has(*vnet)).map(|(_, at)| *at));
            tokio::select! {
                () = reads.ended() => continue,
                () = sleep(wait) => {}
            }
            let in_use = in_use();
            self.lock().retain(|subnet, _| in_use.contains(subnet));
            for (vnet, _) in self.read_at().into_iter().filter(|(_, at)| at.elapsed() >= NETWORK_KEPT) {
                reads.begin(vnet, |vnet| async move {
                    self.read(&vnet, changed).await;
                    vnet
                });
            }
        }
    }

    /// When each virtual network was last read. One that a new subnet has shown is due with the others.
    fn read_at(&self) -> HashMap<ResourceId, Instant> {
        let mut all = HashMap::new();
        for known in self.lock().values() {
            let at = all.entry(known.network.id.clone()).or_insert(known.read_at);
            *at = known.read_at.min(*at);
        }
        all
    }

    /// Reads a virtual network, and leaves Azure the pause that it asks for.
    async fn read(&self, vnet: &ResourceId, changed: &impl Fn(&ResourceId, News)) {
        for subnet in self.begin_to_read(vnet) {
            // One request for all of them.
            match self.azure.network(&subnet, URGENCY).await {
                Ok(network) => {
                    if self.is_known(&subnet) && self.keep(&subnet, Arc::new(network)) {
                        info!(%subnet, "virtual network has changed");
                        changed(&subnet, News::Network);
                    }
                }
                Err(error) => {
                    // What was read before stays good: a range is rarely taken from a network.
                    warn!(%subnet, reason = %error.reason(), %error, "virtual network not read");
                    if !error.pause().is_zero() {
                        // All subnets of it would ask for the same.
                        return sleep(error.pause()).await;
                    }
                }
            }
        }
    }

    /// The subnets of a virtual network that is read now. If that fails, it is due again in a minute.
    fn begin_to_read(&self, vnet: &ResourceId) -> Vec<ResourceId> {
        let (mut all, now) = (self.lock(), Instant::now());
        let own = all.iter_mut().filter(|(_, known)| known.network.id == *vnet);
        own.map(|(subnet, known)| {
            known.read_at = now;
            subnet.clone()
        })
        .collect()
    }

    async fn count(&self, in_use: &impl Fn() -> HashSet<ResourceId>, changed: &impl Fn(&ResourceId, News)) {
        let mut counts = Rounds::new();
        loop {
            let vnets = vnets_of(&self.subnets());
            lock(&self.counts).retain(|vnet, _| vnets.contains(vnet));
            // A subnet is known before the first `spec` names it: once it is counted in any case.
            let still = vnets_of(&in_use());
            for vnet in vnets.into_iter().filter(|vnet| self.is_to_count(vnet, &still)) {
                counts.begin(vnet, |vnet| async move {
                    self.count_one(&vnet, changed).await;
                    vnet
                });
            }
            let wait = {
                let known = lock(&self.counts);
                let next = known.iter().filter(|(vnet, _)| still.contains(*vnet) && !counts.has(*vnet));
                until_due(next.map(|(_, (at, _))| *at))
            };
            tokio::select! {
                // How full a new subnet is isn't read on its first node's way to its addresses, but right
                // after; and if its network has been counted, that is known.
                () = self.arrived.notified() => self.report(None, changed),
                () = counts.ended() => {}
                () = sleep(wait) => {}
            }
        }
    }

    fn is_to_count(&self, vnet: &ResourceId, in_use: &HashSet<ResourceId>) -> bool {
        let is_due = |last: &Instant| in_use.contains(vnet) && last.elapsed() >= NETWORK_KEPT;
        lock(&self.counts).get(vnet).is_none_or(|(last, _)| is_due(last))
    }

    /// Counts a virtual network, and leaves Azure the pause that it asks for.
    async fn count_one(&self, vnet: &ResourceId, changed: &impl Fn(&ResourceId, News)) {
        let (usages, pause) = match self.azure.usages(vnet, Priority::GiveBack).await {
            Ok(usages) => (Hint::Counted(Arc::new(usages)), Duration::ZERO),
            Err(error) => {
                let (reason, message) = (error.reason(), error.to_string());
                (Hint::Unreadable { reason, message }, error.pause())
            }
        };
        let before = lock(&self.counts).insert(vnet.clone(), (Instant::now(), usages.clone()));
        let is_news = before.is_none_or(|(_, before)| before != usages);
        self.report(is_news.then_some(vnet), changed);
        sleep(pause).await;
    }

    /// Reports what is known by now of how full each subnet is, and that the count of a virtual network has
    /// changed.
    fn report(&self, counted: Option<&ResourceId>, changed: &impl Fn(&ResourceId, News)) {
        for subnet in self.subnets() {
            let Ok(vnet) = azure::vnet_of(&subnet) else { continue };
            let free = match self.usages(&vnet) {
                Hint::Pending => continue,
                Hint::Counted(usages) => match usages.get(&subnet.name().to_ascii_lowercase()) {
                    Some(usage) => FreeAddresses::Counted(usage.free()),
                    None => FreeAddresses::Uncounted,
                },
                Hint::Uncounted => FreeAddresses::Uncounted,
                Hint::Unreadable { reason, message } => FreeAddresses::Unreadable { reason, message },
            };
            if self.note(&subnet, &free) {
                if let FreeAddresses::Unreadable { reason, message } = free {
                    warn!(%subnet, %reason, error = message, "free addresses not read");
                }
                changed(&subnet, News::Free);
            } else if counted == Some(&vnet) {
                changed(&subnet, News::Around);
            }
        }
    }

    /// Whether that is news.
    fn note(&self, subnet: &ResourceId, free: &FreeAddresses) -> bool {
        let mut known = self.lock();
        let Some(known) = known.get_mut(subnet) else { return false };
        std::mem::replace(&mut known.free, free.clone()) != *free
    }

    /// The networks around these subnets, as far as they are known here.
    pub fn known_among<'a>(&self, subnets: impl Iterator<Item = &'a str>) -> Vec<Network> {
        let known = self.lock();
        let mut networks: Vec<Network> = subnets
            .filter_map(|id| known.get(&id.parse().ok()?))
            .map(|known| (*known.network).clone())
            .collect();
        networks.sort_by(|a, b| a.id.as_str().cmp(b.id.as_str()));
        networks.dedup();
        networks
    }

    /// Keeps the network that was read just now, and returns whether it differs from the one before.
    fn keep(&self, subnet: &ResourceId, network: Arc<Network>) -> bool {
        let mut all = self.lock();
        let before = all.remove(subnet);
        let is_news = before.as_ref().is_none_or(|known| known.network != network);
        let free = before.map(|known| known.free).unwrap_or_default();
        all.insert(subnet.clone(), Known { network, read_at: Instant::now(), free });
        is_news
    }

    /// It may have gone out of use while its network was read.
    fn is_known(&self, subnet: &ResourceId) -> bool {
        self.lock().contains_key(subnet)
    }

    fn subnets(&self) -> Vec<ResourceId> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ResourceId, Known>> {
        lock(&self.known)
    }
}

/// The virtual networks that these subnets are of.
fn vnets_of<'a>(subnets: impl IntoIterator<Item = &'a ResourceId>) -> HashSet<ResourceId> {
    subnets.into_iter().filter_map(|subnet| azure::vnet_of(subnet).ok()).collect()
}

/// How long until the earliest of these reads is due again.
fn until_due(times: impl Iterator<Item = Instant>) -> Duration {
    let now = Instant::now();
    (times.min().unwrap_or(now) + NETWORK_KEPT).saturating_duration_since(now)
}

/// Azure keeps the first four addresses of each prefix and the last (learn.microsoft.com, "Azure Virtual
/// Network FAQ").
fn size(network: &Network) -> u32 {
    let prefixes = network.subnet.iter();
    let size: u64 = prefixes.map(|prefix| (1_u64 << (32 - prefix.prefix_len())).saturating_sub(5)).sum();
    u32::try_from(size).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
