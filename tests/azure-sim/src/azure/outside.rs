//! The surroundings of the virtual networks: the internet, networks on premises, names, and the probes of
//! load balancers.

use super::{Azure, Error, VNETS, lock};
use crate::fabric::{Fabric, probing};
use crate::topology;
use crate::world::Gateway;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

/// A network on premises to reach through a VNet's gateway: `POST /premises`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Premises {
    /// The network namespace of its one host.
    pub netns: String,
    pub address: Ipv4Addr,
    pub vnet: String,
    pub prefixes: Vec<Ipv4Net>,
}

/// The questions to the resolver: `GET /questions`.
#[derive(Clone, Debug, Serialize)]
pub struct Question {
    pub name: String,
    pub from: IpAddr,
}

impl Azure {
    async fn fabric(&self) -> Result<tokio::sync::MutexGuard<'_, Fabric>, Error> {
        match &self.fabric {
            Some(fabric) => Ok(fabric.lock().await),
            None => {
                Err(Error::Conflict("the simulator runs without a network: start it with --fabric".into()))
            }
        }
    }

    /// Joins a namespace as a host of the internet, maybe as one of an Azure service such as
    /// `Microsoft.Storage`.
    ///
    /// # Errors
    /// Without a fabric, or when the namespace is missing.
    pub async fn join_internet(
        &self,
        netns: &str,
        address: Ipv4Addr,
        service: Option<&str>,
    ) -> Result<(), Error> {
        self.fabric().await?.join_internet(netns, address).await.map_err(Error::Network)?;
        if let Some(service) = service {
            lock(&self.world).services.insert(address, service.to_owned());
        }
        self.program().await
    }

    /// Gives a VNet a gateway to a network on premises, which has these prefixes and a namespace for its one
    /// host.
    ///
    /// # Errors
    /// Without a fabric, or when the VNet or the namespace is missing.
    pub async fn join_premises(&self, premises: &Premises) -> Result<(), Error> {
        let Premises { netns, address, vnet, prefixes } = premises;
        let key = {
            let world = lock(&self.world);
            let wanted = format!("/{VNETS}/{vnet}").to_lowercase();
            let key = world.vnets.keys().find(|key| key.ends_with(&wanted)).cloned();
            key.ok_or_else(|| Error::NotFound(format!("VNet {vnet}")))?
        };
        self.fabric().await?.join_premises(netns, *address, &key).await.map_err(Error::Network)?;
        lock(&self.world).gateways.insert(key, Gateway { prefixes: prefixes.clone() });
        self.program().await
    }

    /// Replaces the records of all private zones: addresses by full name.
    pub fn set_names(&self, names: BTreeMap<String, Ipv4Addr>) {
        let lower = names.into_iter().map(|(name, address)| (name.to_lowercase(), address));
        lock(&self.world).names = lower.collect();
    }

    /// Answers a DNS message, and records the client.
    pub(crate) fn resolve(&self, message: &[u8], from: IpAddr) -> Option<Vec<u8>> {
        let (name, reply) = crate::dns::answer(&lock(&self.world), message)?;
        lock(&self.questions).push(Question { name, from });
        Some(reply)
    }

    /// Every question to the resolver so far, oldest first.
    #[must_use]
    pub fn questions(&self) -> Vec<Question> {
        lock(&self.questions).clone()
    }

    /// Probes the members of load balancers. Never returns.
    pub(crate) async fn keep_watch(&self) {
        loop {
            let (asked, pause) = {
                let world = lock(&self.world);
                let pause = Duration::try_from_secs_f64(world.config.probe_seconds).unwrap_or_default();
                (topology::probes(&world), pause.max(Duration::from_millis(50)))
            };
            let exits = Arc::new(match &self.fabric {
                Some(fabric) => fabric.lock().await.exits(),
                None => BTreeMap::new(),
            });
            let mut probings = tokio::task::JoinSet::new();
            for (probe, threshold) in asked {
                let exits = exits.clone();
                probings.spawn(async move {
                    let up = probing::answers(&probe, &exits).await;
                    (probe, threshold, up)
                });
            }
            let answers = probings.join_all().await;
            if lock(&self.world).health.learn(&answers) {
                self.follow().await;
            }
            tokio::time::sleep(pause).await;
        }
    }
}
