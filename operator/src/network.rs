//! The virtual networks around the nodes' subnets: read when first needed, then once a minute each, not once a node.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::sleep;
use tracing::{info, warn};

use crate::azure::{Azure, Error, Network, Priority, ResourceId};

/// A little more than the minute for which [`Azure::network`] gives a network without asking Azure.
const REFRESH: Duration = Duration::from_secs(61);

/// What is known of each subnet in use.
pub struct Networks {
    azure: Arc<Azure>,
    known: Mutex<HashMap<ResourceId, Arc<Network>>>,
}

impl Networks {
    pub fn new(azure: Arc<Azure>) -> Networks {
        Networks { azure, known: Mutex::default() }
    }

    /// The network around `subnet` as last read; asks Azure only for a subnet that is new here.
    pub async fn around(&self, subnet: &ResourceId) -> Result<Arc<Network>, Error> {
        if let Some(known) = self.known(subnet) {
            return Ok(known);
        }
        // All nodes of the subnet need it, so it is as urgent as the most urgent of them.
        let network = Arc::new(self.azure.network(subnet, Priority::WaitingPods).await?);
        self.keep(subnet, network.clone());
        Ok(network)
    }

    /// Reads each network again, once a minute, and calls `changed` for each subnet around which it has changed. Never ends.
    pub async fn refresh(&self, changed: impl Fn(&ResourceId)) {
        loop {
            sleep(REFRESH).await;
            for subnet in self.subnets() {
                match self.azure.network(&subnet, Priority::WarmRefill).await {
                    Ok(network) if self.known(&subnet).is_some_and(|known| *known == network) => {}
                    Ok(network) => {
                        info!(%subnet, "virtual network has changed");
                        self.keep(&subnet, Arc::new(network));
                        changed(&subnet);
                    }
                    // What was read before stays good: a range that was the network's is rarely taken from it.
                    Err(error) => warn!(%subnet, reason = error.reason(), %error, "virtual network not read"),
                }
            }
        }
    }

    fn known(&self, subnet: &ResourceId) -> Option<Arc<Network>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(subnet).cloned()
    }

    fn keep(&self, subnet: &ResourceId, network: Arc<Network>) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(subnet.clone(), network);
    }

    fn subnets(&self) -> Vec<ResourceId> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}
