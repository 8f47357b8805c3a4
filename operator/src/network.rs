//! The virtual networks around the nodes' subnets, and how full these are: once a minute for each VNet, not once a node.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::azure::{self, Azure, Error, Network, Priority, ResourceId};

/// A little more than the minute for which [`Azure::network`] gives a network without asking Azure.
const REFRESH: Duration = Duration::from_secs(61);

/// What is known of each subnet in use.
pub struct Networks {
    azure: Arc<Azure>,
    known: Mutex<HashMap<ResourceId, Known>>,
    /// A subnet is known that wasn't.
    arrived: Notify,
}

struct Known {
    network: Arc<Network>,
    free: Free,
}

/// What Azure says of the free addresses of a subnet: a hint. That there are none is learned from a refused write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Free {
    /// Not asked yet.
    #[default]
    Pending,
    /// As of a minute ago at most, if Azure answers.
    Told(u32),
    /// Azure has no figure for this subnet.
    Untold,
    /// It couldn't be read.
    Unreadable { reason: &'static str, message: String },
}

/// When each virtual network was last asked how full it is, and what it said.
type Counts = HashMap<ResourceId, (Instant, Result<azure::Free, Error>)>;

/// A subnet as a pool's status shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// How many addresses Azure can give out in it.
    pub size: u32,
    pub free: Free,
}

/// What has changed about a subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    Network,
    Free,
}

impl Networks {
    pub fn new(azure: Arc<Azure>) -> Networks {
        Networks { azure, known: Mutex::default(), arrived: Notify::new() }
    }

    /// The network around `subnet` as last read; asks Azure only for a subnet that is new here.
    pub async fn around(&self, subnet: &ResourceId) -> Result<Arc<Network>, Error> {
        if let Some(known) = self.lock().get(subnet) {
            return Ok(known.network.clone());
        }
        // All nodes of the subnet need it, so it is as urgent as the most urgent of them.
        let network = Arc::new(self.azure.network(subnet, Priority::WaitingPods).await?);
        self.keep(subnet, network.clone());
        self.arrived.notify_one();
        Ok(network)
    }

    /// What a subnet has, if it is known here.
    pub fn subnet(&self, subnet: &ResourceId) -> Option<Subnet> {
        let known = self.lock();
        let Known { network, free } = known.get(subnet)?;
        Some(Subnet { size: size(network), free: free.clone() })
    }

    /// Once a minute reads each network again and how full it is, and calls `changed` for each subnet of which that is news;
    /// forgets subnets that aren't `in_use`. Never ends.
    pub async fn refresh(
        &self,
        in_use: impl Fn() -> HashSet<ResourceId>,
        changed: impl Fn(&ResourceId, News),
    ) {
        let mut counted = Counts::new();
        loop {
            // How full a new subnet is isn't read on its first node's way to its addresses, but right after.
            tokio::select! {
                () = self.arrived.notified() => {}
                () = sleep(REFRESH) => {
                    let in_use = in_use();
                    self.lock().retain(|subnet, _| in_use.contains(subnet));
                }
            }
            self.look(&changed).await;
            self.count(&mut counted, &changed).await;
        }
    }

    async fn look(&self, changed: &impl Fn(&ResourceId, News)) {
        for subnet in self.subnets() {
            match self.azure.network(&subnet, Priority::WarmRefill).await {
                Ok(network) if self.lock().get(&subnet).is_some_and(|known| *known.network == network) => {}
                Ok(network) => {
                    info!(%subnet, "virtual network has changed");
                    self.keep(&subnet, Arc::new(network));
                    changed(&subnet, News::Network);
                }
                // What was read before stays good: a range that was the network's is rarely taken from it.
                Err(error) => warn!(%subnet, reason = error.reason(), %error, "virtual network not read"),
            }
        }
    }

    async fn count(&self, counts: &mut Counts, changed: &impl Fn(&ResourceId, News)) {
        let subnets = self.subnets();
        let vnets: HashSet<ResourceId> =
            subnets.iter().filter_map(|subnet| azure::vnet_of(subnet).ok()).collect();
        counts.retain(|vnet, _| vnets.contains(vnet));
        for vnet in vnets {
            if counts.get(&vnet).is_none_or(|(last, _)| last.elapsed() >= REFRESH) {
                let told = self.azure.free(&vnet, Priority::GiveBack).await;
                counts.insert(vnet, (Instant::now(), told));
            }
        }
        for subnet in subnets {
            let told = azure::vnet_of(&subnet).ok().and_then(|vnet| counts.get(&vnet));
            let Some((_, told)) = told else { continue };
            let free = match told {
                Ok(told) => match told.get(&subnet.name().to_ascii_lowercase()) {
                    Some(free) => Free::Told(*free),
                    None => Free::Untold,
                },
                Err(error) => Free::Unreadable { reason: error.reason(), message: error.to_string() },
            };
            if self.note(&subnet, &free) {
                if let Free::Unreadable { reason, message } = free {
                    warn!(%subnet, reason, message, "free addresses not read");
                }
                changed(&subnet, News::Free);
            }
        }
    }

    /// Whether that is news.
    fn note(&self, subnet: &ResourceId, free: &Free) -> bool {
        let mut known = self.lock();
        let Some(known) = known.get_mut(subnet) else { return false };
        std::mem::replace(&mut known.free, free.clone()) != *free
    }

    /// The networks around those of these subnets that are known here.
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

    fn keep(&self, subnet: &ResourceId, network: Arc<Network>) {
        let mut known = self.lock();
        let free = known.remove(subnet).map(|known| known.free).unwrap_or_default();
        known.insert(subnet.clone(), Known { network, free });
    }

    fn subnets(&self) -> Vec<ResourceId> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ResourceId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Azure keeps the first four addresses of each prefix and the last (learn.microsoft.com, "Azure Virtual Network FAQ").
fn size(network: &Network) -> u32 {
    let prefixes = network.subnet.iter();
    let size: u64 = prefixes.map(|prefix| (1_u64 << (32 - prefix.prefix_len())).saturating_sub(5)).sum();
    u32::try_from(size).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
