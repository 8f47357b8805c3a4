//! The operator's Azure: VMs, NICs and virtual networks behind five verbs.
//!
//! Hidden below: the SDK crates and their flaws, tokens, clouds, ETags, long-running operations, request
//! limits and ARM's many ways to say no. Errors are facts with a [`Remedy`]; nothing here retries a call on
//! its own but the polls of an operation under way, so that every request is paid from one budget and shows
//! up in one place.

mod budget;
mod cache;
mod credential;
mod error;
mod id;
mod network;
mod nic;
mod operation;
mod permission;
mod public_address;
pub mod role;
mod route_table;
mod routes;
mod token;
mod transport;
mod uniform;
mod urgency;
mod usages;

use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use serde_json::Value;
use tokio::time::Instant;
use tracing::{info, instrument};

pub use budget::{Account, Kind, Priority};
pub use credential::{Application, Cloud, Credential};
pub use error::{Error, Limit, Remedy, Scope};
pub use id::{ResourceId, VmId};
pub use network::{Network, vnet_of};
#[cfg(test)]
pub use nic::tests::sample_nic;
pub use nic::{
    Attached, Change, Error as NicError, IpConfiguration, NAME_PREFIX, Nic, Others, ProvisioningState,
};
pub use permission::{Need, Permissions};
pub use public_address::{NewPublicAddress, PublicAddress};
pub use route_table::{Change as RouteChange, Claim, Route, RouteTable, name as route_name};
pub use urgency::Urgency;
pub use usages::Free;

use cache::{Document, Documents, Read, Slots};
use network::VirtualNetwork;
use operation::{Operation, Tracking};
use routes::Tables;
use transport::{Answer, Call, Transport};
use uniform::{Model, Models};

/// A PUT replaces all that its API version knows of and nothing else can be sent, so this is the newest one
/// seen in recordings of real traffic: an older one would hide, and then reset, what others set with a newer
/// one.
const NETWORK_API: &str = "2025-05-01";
const COMPUTE_API: &str = "2025-04-01";
/// For so long what was read of a virtual network will do: address spaces and peerings change rarely, and many nodes share one.
/// A second less than the minute within which every node follows a change, for what the operator and the agents need then.
pub const NETWORK_KEPT: Duration = Duration::from_secs(59);

/// A write to a NIC that another operation is changing is put off by this; such operations take seconds.
const UNSETTLED: Duration = Duration::from_secs(5);

/// Where Azure is and who asks.
#[derive(Clone, Debug)]
pub struct Config {
    pub cloud: Cloud,
    /// Stands in for the cloud's ARM.
    pub endpoint: Option<Url>,
    /// Stands in for the metadata service, which gives managed identities their tokens.
    pub imds: Option<Url>,
    pub credential: Credential,
    /// How much of Azure's request limits is ours, from 1 to 100; the rest is left to the subscription's other clients.
    pub budget_percent: u8,
    /// Every write fails as [`Error::DryRun`] instead of being sent.
    pub dry_run: bool,
}

/// Whether what was last read will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// What is known, if anything is and it is settled: our own writes keep it current, somebody else's go
    /// unnoticed until a write of ours turns out [`Error::Stale`].
    Cached,
    /// Read from Azure now.
    Fresh,
}

/// One HTTP request to ARM, for metrics.
#[derive(Clone, Debug)]
pub struct RequestRecord {
    pub kind: Kind,
    pub priority: Priority,
    /// `None` if no answer came.
    pub status: Option<u16>,
    /// How long it waited for its turn within Azure's request limits.
    pub waited: Duration,
    /// From sending it to the end of the answer.
    pub took: Duration,
}

/// A client of Azure. One for the whole operator: its budget and its knowledge of NICs are what it is for.
#[derive(Debug)]
pub struct Azure {
    transport: Transport,
    nics: Documents,
    models: Models,
    tracking: Tracking,
    /// When each was last read, and what came of it.
    networks: Slots<Option<(Instant, Result<VirtualNetwork, Error>)>>,
    tables: Tables,
}

impl Azure {
    /// Doesn't ask Azure anything yet.
    pub fn new(config: &Config) -> Result<Azure, Error> {
        Ok(Azure {
            transport: Transport::new(config)?,
            nics: Documents::default(),
            models: Models::default(),
            networks: Slots::default(),
            tracking: Tracking::default(),
            tables: Tables::default(),
        })
    }

    /// Has `observer` called after each request, from the task that made it. Only the first observer counts.
    pub fn on_request(&self, observer: impl Fn(&RequestRecord) + Send + Sync + 'static) {
        self.transport.observe(observer);
    }

    /// Whether no write is ever sent.
    pub fn is_dry_run(&self) -> bool {
        self.transport.is_dry_run()
    }

    /// How Azure's request limits stand, as far as they are ours, and how many requests of each priority wait.
    pub fn accounts(&self) -> (Vec<Account>, [(Priority, usize); Priority::ALL.len()]) {
        self.transport.accounts()
    }

    /// The NIC that a VM marks as primary, or its first if it marks none: a role without
    /// the right to read the mark hides it.
    pub async fn primary_nic(&self, vm: &VmId, priority: Priority) -> Result<ResourceId, Error> {
        let mut all = self.nics(vm, priority).await?;
        Ok(all.swap_remove(0))
    }

    /// The NICs of a VM, one at least, the primary one first. Of an instance of a Uniform scale set the primary one only.
    #[instrument(skip_all, fields(vm = %vm))]
    pub async fn nics(&self, vm: &VmId, urgency: impl Into<Urgency>) -> Result<Vec<ResourceId>, Error> {
        let call = call(Kind::Read, urgency, vm.resource());
        let answer = self.transport.send(&call, self.url(vm.resource(), COMPUTE_API), None, None).await?;
        let unexpected = |message: String| Error::Unexpected { resource: vm.to_string(), message };
        let document: Value =
            serde_json::from_slice(&answer.body).map_err(|error| unexpected(error.to_string()))?;
        if vm.is_instance() {
            let nic = uniform::primary_nic(&document)
                .ok_or_else(|| unexpected("the instance has no network interface".to_owned()))?;
            self.models.keep(vm.resource(), Model::read(vm.resource(), answer.body)?);
            return Ok(vec![nic.parse()?]);
        }
        let nics = document["properties"]["networkProfile"]["networkInterfaces"].as_array();
        let mut nics: Vec<&Value> = nics.into_iter().flatten().collect();
        nics.sort_by_key(|nic| nic["properties"]["primary"] != true);
        let ids: Vec<ResourceId> =
            nics.iter().filter_map(|nic| nic["id"].as_str()).map(str::parse).collect::<Result<_, _>>()?;
        if ids.is_empty() {
            return Err(unexpected("the VM has no network interface".to_owned()));
        }
        Ok(ids)
    }

    /// A NIC as Azure holds it. Waits for a write of ours to that NIC that is under way.
    #[instrument(skip_all, fields(nic = %id))]
    pub async fn nic(
        &self,
        id: &ResourceId,
        freshness: Freshness,
        urgency: impl Into<Urgency>,
    ) -> Result<Arc<Nic>, Error> {
        let mut known = self.nics.lock(id).await;
        if let (Freshness::Cached, Some(nic)) = (freshness, known.nic().filter(|nic| nic.is_settled())) {
            return Ok(nic);
        }
        // Its region's limits are to be known to the budget, too.
        let region = known.nic().and_then(|nic| region(&nic));
        known.forget();
        let read = self.read_nic(&Call { region, ..call(Kind::Read, urgency, id) }, id).await?;
        Ok(self.nics.learn(&mut known, read))
    }

    /// Carries out `change` on a NIC in one write and gives the NIC as it is then; without a write if nothing
    /// is to be done. Other writers' parts of the NIC stay as they are: had somebody changed it since it was
    /// read, the write fails as [`Error::Stale`]. Writes to one NIC wait for each other.
    ///
    /// After any error from which it doesn't follow that the NIC is as it was, it is read anew before it is
    /// next used; so it is if the future is dropped.
    #[instrument(skip_all, fields(nic = %id, reserve = change.reserve.len(), release = change.release.len()))]
    pub async fn update(
        &self,
        id: &ResourceId,
        change: &Change,
        urgency: impl Into<Urgency>,
    ) -> Result<Arc<Nic>, Error> {
        let mut known = self.nics.lock(id).await;
        let urgency = urgency.into();
        if let Some(instance) = id.instance() {
            return self.update_through(&instance, id, &mut known, change, urgency).await;
        }
        let mut call = call(Kind::Write, urgency, id);
        // While the write is under way nothing is known: whatever ends this early leaves it at that.
        let before = match known.take().filter(|document| document.nic.is_settled()) {
            Some(document) => document,
            None => self.read_document(&Call { kind: Kind::Read, ..call.clone() }, id).await?,
        };
        if !before.nic.is_settled() {
            // Azure would cancel the operation under way, ours or somebody else's, in favour of this one.
            self.nics.keep(&mut known, before);
            return Err(Error::Busy {
                resource: id.to_string(),
                message: "an operation on it is still under way".to_owned(),
                retry_after: UNSETTLED,
            });
        }
        call.region = region(&before.nic);
        let body = match before.edit(change) {
            Ok(Some(body)) => body,
            nothing_to_send => {
                self.nics.keep(&mut known, before.clone());
                return nothing_to_send.map(|_| before.nic);
            }
        };
        match self.transport.send(&call, self.url(id, NETWORK_API), Some(&before.etag), Some(body)).await {
            Ok(accepted) => {
                let document = self.complete(&call, id, accepted).await?;
                let nic = document.nic.clone();
                self.nics.keep(&mut known, document);
                Ok(nic)
            }
            Err(error) => {
                if error.left_all_as_it_was() {
                    self.nics.keep(&mut known, before);
                }
                Err(error)
            }
        }
    }

    /// Whether writes to a NIC could last be followed to their end, as far as any in its resource group was: an error says
    /// which permission is missing. The writes themselves are carried out all the same.
    pub fn tracked(&self, id: &ResourceId) -> Option<Result<(), Arc<Error>>> {
        self.tracking.seen(id.as_str())
    }

    /// Drops what is known of a NIC that the caller won't ask about again.
    pub fn forget(&self, id: &ResourceId) {
        self.nics.forget(id);
    }

    /// A subnet and the virtual network around it, no older than [`NETWORK_KEPT`]. So is an error, for all nodes of all its subnets
    /// would meet it, unless Azure lets us try again sooner.
    #[instrument(skip_all, fields(subnet = %subnet))]
    pub async fn network(&self, subnet: &ResourceId, priority: Priority) -> Result<Network, Error> {
        let id = network::vnet_of(subnet)?;
        let slot = self.networks.slot(&id);
        let mut known = slot.lock().await;
        let kept = |read: &Result<VirtualNetwork, Error>| match read.as_ref().map_err(Error::remedy) {
            Err(Remedy::RetryAfter(wait)) => wait.min(NETWORK_KEPT),
            Err(Remedy::WaitForChange { .. } | Remedy::ReadAgain) | Ok(_) => NETWORK_KEPT,
        };
        let (at, read) = match known.take() {
            Some((at, read)) if at.elapsed() < kept(&read) => (at, read),
            _ => (Instant::now(), network::read(&self.transport, &id, priority).await),
        };
        let network = read.as_ref().map_err(Clone::clone).and_then(|read| read.around(subnet));
        *known = Some((at, read));
        network
    }

    /// How many addresses are free in each subnet of a virtual network, read from Azure now.
    #[instrument(skip_all, fields(vnet = %vnet))]
    pub async fn free(&self, vnet: &ResourceId, priority: Priority) -> Result<Free, Error> {
        usages::read(&self.transport, vnet, priority).await
    }

    async fn read_nic(&self, call: &Call, id: &ResourceId) -> Result<Read, Error> {
        if id.instance().is_none() {
            return self.read_document(call, id).await.map(Read::Document);
        }
        let body = self.read_body(call, id).await?;
        let nic = Nic::read(id, &cache::parse(id, &body)?);
        let nic = nic.map_err(|source| Error::Nic { resource: id.to_string(), source })?;
        Ok(Read::Nic(Arc::new(nic)))
    }

    async fn read_document(&self, call: &Call, id: &ResourceId) -> Result<Document, Error> {
        Document::read(id, self.read_body(call, id).await?)
    }

    async fn read_body(&self, call: &Call, id: &ResourceId) -> Result<Vec<u8>, Error> {
        match self.transport.send(call, self.nic_url(id), None, None).await {
            Ok(answer) => Ok(answer.body),
            Err(error) => {
                if matches!(error, Error::NotFound { .. }) {
                    self.nics.forget(id);
                }
                Err(error)
            }
        }
    }

    /// Follows a write that ARM has accepted to its end, and gives what became of the NIC.
    async fn complete(&self, call: &Call, id: &ResourceId, accepted: Answer) -> Result<Document, Error> {
        let started = Instant::now();
        let document = match Operation::of(&accepted, &self.url(id, NETWORK_API), call)? {
            Some(operation) => {
                operation.finish(&self.transport, call, &self.url(id, NETWORK_API), &self.tracking).await?;
                self.read_document(&call.following(Kind::Read), id).await?
            }
            None => Document::read(id, accepted.body)?,
        };
        info!(took = ?started.elapsed(), held = document.nic.ip_configurations.len(), "NIC written");
        Ok(document)
    }

    fn nic_url(&self, id: &ResourceId) -> Url {
        self.url(id, if id.instance().is_some() { uniform::NIC_API } else { NETWORK_API })
    }

    fn url(&self, id: &ResourceId, api_version: &str) -> Url {
        let mut url = self.transport.endpoint().clone();
        url.set_path(id.as_str());
        url.set_query(Some(&format!("api-version={api_version}")));
        url
    }
}

fn region(nic: &Nic) -> Option<String> {
    Some(nic.location.clone()).filter(|region| !region.is_empty())
}

fn call(kind: Kind, urgency: impl Into<Urgency>, resource: &ResourceId) -> Call {
    Call::about(kind, urgency, resource.as_str())
}
