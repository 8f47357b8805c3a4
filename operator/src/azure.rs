//! The operator's Azure. [`Azure`] has all calls as methods: those about NICs, virtual networks and free
//! addresses are here; `routes` has those about route tables, `public_address` those about public addresses,
//! `permission` those of the preflight, and `uniform` the way to write NICs of a Uniform scale set.
//!
//! Hidden below are the SDK crates and their flaws, tokens, clouds, ETags, long-running operations, request
//! limits and ARM's many ways to refuse. An error is a fact with a [`Remedy`]. No call is retried here except
//! the polls of an operation under way, so every request is paid from one budget and shows up in one place.

mod budget;
mod cache;
mod credential;
mod error;
#[cfg(test)]
mod fuzz;
mod late;
mod network;
mod nic;
mod not_before;
mod operation;
mod pages;
mod permission;
mod public_address;
mod refused;
pub mod role;
mod route_table;
mod routes;
mod token;
mod transport;
mod uniform;
mod urgency;
mod usages;
mod vm_id;

use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use serde_json::Value;
use tokio::time::Instant;
use tracing::{info, instrument};

pub use budget::{Account, Kind, NETWORK_WRITES};
pub use credential::{Application, Cloud, Credential};
pub use error::{Error, Limit, Matter, Remedy, Scope, codes};
pub use late::LATE;
pub use network::{Network, vnet_of};
#[cfg(test)]
pub use nic::tests::sample_nic;
pub use nic::{Change, Nic, Others};
pub use permission::{Need, Permissions};
pub use public_address::{NewPublicAddress, PublicAddress, Reserved};
pub use route_table::{Change as RouteChange, Claim, Route, RouteTable, name as route_name};
pub use urgency::Urgency;
pub use usages::{Usage, Usages};
pub use vm_id::VmId;

// The arguments and results of the verbs, for the modules that use them.
pub use crate::ip_configuration::{Attached, IpConfiguration, ProvisioningState};
pub use crate::priority::Priority;
pub use crate::resource_id::ResourceId;

use crate::deadline::uncounted;
use cache::{Document, Documents, Read, Slots};
use late::Late;
use network::VirtualNetwork;
use operation::{End, Operation, Tracking};
use refused::{Concerns, Refused};
use routes::Tables;
use transport::{Answer, Call, Transport};
use uniform::{Model, Models};

/// The versions of Azure's two providers in which the operator asks. Each resource but the NICs of a Uniform
/// scale set, of which there is one version only, is asked for in these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiVersions {
    pub network: String,
    pub compute: String,
}

impl ApiVersions {
    /// A PUT replaces everything that its API version knows of, and nothing else can be sent. So these are
    /// the newest versions seen in recordings of real traffic: an older one would hide, and then reset, what
    /// others set with a newer one. New versions reach the other clouds late (azure-cli#23985): the versions
    /// for those are the ones that their documents show. They have not been tried there.
    pub fn of(cloud: Cloud) -> ApiVersions {
        let (network, compute) = match cloud {
            Cloud::Public => ("2025-05-01", "2025-04-01"),
            Cloud::UsGovernment | Cloud::China => ("2024-03-01", "2024-07-01"),
        };
        ApiVersions { network: network.into(), compute: compute.into() }
    }
}

/// How long the read state of a virtual network is used: address spaces and peerings change rarely, and many
/// nodes share one. It is one second less than the promised minute, to leave time for operator and agents to
/// follow.
pub const NETWORK_KEPT: Duration = Duration::from_secs(59);

/// Where Azure is, and how the operator signs in.
#[derive(Clone, Debug)]
pub struct Config {
    pub cloud: Cloud,
    /// Replaces the cloud's ARM.
    pub endpoint: Option<Url>,
    pub versions: ApiVersions,
    /// Replaces the metadata service, which gives managed identities their tokens.
    pub imds: Option<Url>,
    pub credential: Credential,
    /// How many percent of Azure's request limits are ours, from 1 to 100. The rest is left to the
    /// subscription's other clients.
    pub budget_percent: u8,
    /// Every write fails as [`Error::DryRun`] instead of being sent.
    pub dry_run: bool,
}

/// Whether a cached document may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// The cached document, if there is one and it is settled. Our own writes keep it current. Changes by
    /// others go unnoticed until a write of ours fails as [`Error::Stale`].
    Cached,
    /// The cached document, even one that was read while another client's write had not settled yet.
    LastRead,
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

/// A write that was carried out.
#[derive(Clone, Debug)]
pub struct Written<T> {
    /// The resource after it.
    pub after: Arc<T>,
    /// False: there was nothing to do, so Azure wasn't asked.
    pub was_sent: bool,
}

impl<T> std::ops::Deref for Written<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.after
    }
}

/// A client of Azure. The whole operator shares one, since it holds the budget and the cache of NICs.
#[derive(Debug)]
pub struct Azure {
    transport: Transport,
    versions: ApiVersions,
    nics: Documents,
    /// Held while a public address is made or deleted.
    public: Arc<Slots<()>>,
    late: Late,
    refused: Arc<Refused>,
    models: Models,
    tracking: Tracking,
    /// When each virtual network was last read, and the result.
    networks: Slots<Option<(Instant, Result<VirtualNetwork, Error>)>>,
    tables: Tables,
}

impl Azure {
    /// Doesn't ask Azure anything yet.
    pub fn new(config: &Config) -> Result<Azure, Error> {
        Ok(Azure {
            transport: Transport::new(config)?,
            versions: config.versions.clone(),
            nics: Documents::default(),
            public: Arc::default(),
            late: Late::default(),
            refused: Arc::default(),
            models: Models::default(),
            networks: Slots::default(),
            tracking: Tracking::default(),
            tables: Tables::default(),
        })
    }

    /// Registers `observer`, which runs after each request, in the task that made it. Only the first observer
    /// counts.
    pub fn on_request(&self, observer: impl Fn(&RequestRecord) + Send + Sync + 'static) {
        self.transport.observe(observer);
    }

    /// This process begins to lead. From now on a write is sent only if `may_write` returns true when the
    /// write is about to leave. Otherwise the write waits for ever: the process that wants it is about to
    /// end. What the leader before has sent may still be carried out for as long as `late`.
    pub fn begin_to_lead(&self, may_write: impl Fn() -> bool + Send + Sync + 'static, late: Duration) {
        self.transport.write_only_while(may_write);
        self.late.begin_to_lead(late, Instant::now());
    }

    /// Whether no write is ever sent.
    pub fn is_dry_run(&self) -> bool {
        self.transport.is_dry_run()
    }

    /// How Azure's request limits stand, as far as they are ours.
    pub fn accounts(&self) -> Vec<Account> {
        self.transport.accounts()
    }

    /// How many requests of each priority wait for their turn. Goes through all that wait.
    pub fn waiting(&self) -> [(Priority, usize); Priority::ALL.len()] {
        self.transport.waiting()
    }

    /// The NIC that a VM marks as primary, or its first if it marks none: a role without the right to read
    /// the mark hides it.
    pub async fn primary_nic(&self, vm: &VmId, priority: Priority) -> Result<ResourceId, Error> {
        let mut all = self.nics(vm, priority).await?;
        Ok(all.swap_remove(0))
    }

    /// The NICs of a VM, at least one, the primary one first. For an instance of a Uniform scale set it is
    /// only the primary one.
    #[instrument(skip_all, fields(vm = %vm))]
    pub async fn nics(&self, vm: &VmId, urgency: impl Into<Urgency>) -> Result<Vec<ResourceId>, Error> {
        let call = call(Kind::Read, urgency, vm.resource());
        let answer =
            self.transport.send(&call, self.url(vm.resource(), &self.versions.compute), None, None).await?;
        let document = cache::parse(vm.resource(), &answer.body)?;
        if vm.is_instance() {
            let nic = uniform::primary_nic(&document)
                .ok_or_else(|| Error::unexpected(vm, "the instance has no network interface"))?;
            self.models.keep(vm.resource(), Model::read(vm.resource(), answer.body)?);
            return Ok(vec![nic.parse()?]);
        }
        let nics = document["properties"]["networkProfile"]["networkInterfaces"].as_array();
        let mut nics: Vec<&Value> = nics.into_iter().flatten().collect();
        nics.sort_by_key(|nic| nic["properties"]["primary"] != true);
        let ids: Vec<ResourceId> =
            nics.iter().filter_map(|nic| nic["id"].as_str()).map(str::parse).collect::<Result<_, _>>()?;
        if ids.is_empty() {
            return Err(Error::unexpected(vm, "the VM has no network interface"));
        }
        Ok(ids)
    }

    /// A NIC as Azure holds it. Waits for our own write to that NIC if one is under way.
    #[instrument(skip_all, fields(nic = %id))]
    pub async fn nic(
        &self,
        id: &ResourceId,
        freshness: Freshness,
        urgency: impl Into<Urgency>,
    ) -> Result<Arc<Nic>, Error> {
        let mut known = self.nics.lock(id).await;
        let cached = known.nic().filter(|nic| match freshness {
            Freshness::Cached => nic.is_settled(),
            Freshness::LastRead => true,
            Freshness::Fresh => false,
        });
        if let Some(nic) = cached {
            return Ok(nic);
        }
        // The region decides which limits of the budget apply.
        let region = known.nic().and_then(|nic| region(&nic));
        known.forget();
        let read = self.read_nic(&Call { region, ..call(Kind::Read, urgency, id) }, id).await?;
        Ok(self.nics.learn(&mut known, read))
    }

    /// Carries out `change` on a NIC in one write and returns the NIC after it. Sends nothing if there is
    /// nothing to do. Other writers' parts of the NIC stay as they are: if another client has changed the NIC
    /// since it was read, the write fails as [`Error::Stale`]. Writes to one NIC wait for each other.
    ///
    /// Where it refers to what all are refused, one call asks on behalf of all.
    ///
    /// If the write's error leaves open whether the NIC has changed, or if the future is dropped, the NIC is
    /// read again before it is next used.
    #[instrument(skip_all, fields(nic = %id, reserve = change.reserve.len(), release = change.release.len()))]
    pub async fn update(
        &self,
        id: &ResourceId,
        change: &Change,
        urgency: impl Into<Urgency>,
    ) -> Result<Written<Nic>, Error> {
        let concerns = Concerns::of_nic(change);
        let urgency = self.begin_to_ask(&concerns, id, urgency.into())?;
        let written = self.write_nic(id, change, urgency).await;
        let written =
            written.map_err(|error| if change.restore.is_empty() { error.of_no_address() } else { error });
        if written.as_ref().map_or(true, |written| written.was_sent) {
            self.refused.learn(&concerns, id, written.as_ref().map(|_| ()), Instant::now());
        }
        written
    }

    /// The same urgency, until others are refused what is asked for.
    ///
    /// # Errors
    /// They are: nothing is to be sent.
    fn begin_to_ask(&self, concerns: &Concerns, id: &ResourceId, urgency: Urgency) -> Result<Urgency, Error> {
        let since = self.refused.begin(concerns, Instant::now()).map_err(|error| error.about(id.as_str()))?;
        Ok(urgency.at_most_until(self.refused.clone().until_refused(concerns.clone(), since)))
    }

    /// Why no NIC is made to refer to one of these now.
    pub fn refusal_of<'a>(&self, referred: impl IntoIterator<Item = &'a ResourceId>) -> Option<Error> {
        self.refused.refusal(&Concerns::of_referred(referred), Instant::now())
    }

    /// A person may have ended what all are refused. The same `cause` counts once.
    pub fn try_refused(&self, cause: u64) {
        self.refused.try_now(cause, Instant::now());
    }

    /// Whether something that all were refused has been carried out since this was asked last.
    pub fn has_refusal_ended(&self) -> bool {
        self.refused.has_ended()
    }

    async fn write_nic(
        &self,
        id: &ResourceId,
        change: &Change,
        urgency: Urgency,
    ) -> Result<Written<Nic>, Error> {
        let mut known = self.nics.lock(id).await;
        if let Some(instance) = id.instance() {
            return self.update_through(&instance, id, &mut known, change, urgency).await;
        }
        let mut call = call(Kind::Write, urgency, id);
        // Forget the cached document first, so that any early return leaves the resource unknown.
        let before = match known.take().filter(|document| document.nic.is_settled()) {
            Some(document) => document,
            None => self.read_document(&Call { kind: Kind::Read, ..call.clone() }, id).await?,
        };
        if !before.nic.is_settled() {
            self.nics.keep(&mut known, before);
            return Err(operation::unsettled(id));
        }
        call.region = region(&before.nic);
        let body = match before.edit(change) {
            Ok(Some(body)) => body,
            nothing_to_send => {
                self.nics.keep(&mut known, before.clone());
                return nothing_to_send.map(|_| Written { after: before.nic, was_sent: false });
            }
        };
        let url = self.url(id, &self.versions.network);
        let accepted = match self.transport.send(&call, url.clone(), Some(&before.etag), Some(body)).await {
            Ok(accepted) => accepted,
            Err(error) => {
                if error.left_all_as_it_was() {
                    self.nics.keep(&mut known, before);
                }
                return Err(error);
            }
        };
        let started = Instant::now();
        let written = self.complete(&call, url, accepted).await;
        let document = Document::read(id, self.unless_gone(id, written)?)?;
        let nic = document.nic.clone();
        let took_seconds = started.elapsed().as_secs_f64();
        info!(took_seconds, ip_configurations = nic.ip_configurations.len(), "Azure has written a NIC");
        self.nics.keep(&mut known, document);
        Ok(Written { after: nic, was_sent: true })
    }

    /// Whether the last write in the NIC's resource group could be followed to its end; `None` if none was
    /// tried. The error names the missing permission. The writes themselves are carried out all the same.
    pub fn tracked(&self, id: &ResourceId) -> Option<Result<(), Arc<Error>>> {
        self.tracking.seen(id.as_str())
    }

    /// Drops the cache of a NIC that will not be asked for again.
    pub fn forget(&self, id: &ResourceId) {
        self.nics.forget(id);
    }

    /// A subnet and the virtual network around it, not older than [`NETWORK_KEPT`]. An error is kept, too,
    /// since all nodes of all the network's subnets would meet it.
    #[instrument(skip_all, fields(subnet = %subnet))]
    pub async fn network(&self, subnet: &ResourceId, priority: Priority) -> Result<Network, Error> {
        let id = network::vnet_of(subnet)?;
        let slot = self.networks.slot(&id);
        let mut known = uncounted(slot.lock()).await;
        let (at, read) = match known.take() {
            Some((at, read)) if at.elapsed() < network::kept(read.as_ref().err()) => (at, read),
            _ => {
                (Instant::now(), network::read(&self.transport, &id, &self.versions.network, priority).await)
            }
        };
        let network = read.as_ref().map_err(Clone::clone).and_then(|read| read.around(subnet));
        *known = Some((at, read));
        network
    }

    /// How many addresses are taken in each subnet of a virtual network, read from Azure now.
    #[instrument(skip_all, fields(vnet = %vnet))]
    pub async fn usages(&self, vnet: &ResourceId, priority: Priority) -> Result<Usages, Error> {
        usages::read(&self.transport, vnet, &self.versions.network, priority).await
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
        let answer = self.transport.send(call, self.nic_url(id), None, None).await;
        self.unless_gone(id, answer.map(|answer| answer.body))
    }

    /// Drops the cache of a NIC if a request about it has shown that it doesn't exist.
    fn unless_gone<T>(&self, id: &ResourceId, read: Result<T, Error>) -> Result<T, Error> {
        read.inspect_err(|error| {
            if matches!(error, Error::NotFound { .. }) {
                self.nics.forget(id);
            }
        })
    }

    /// Follows a write that ARM has accepted to its end. Returns the body of the resource at `url` after it.
    async fn complete(&self, call: &Call, url: Url, accepted: Answer) -> Result<Vec<u8>, Error> {
        if self.follow(call, &url, &accepted).await?.is_none() {
            return Ok(accepted.body);
        }
        let answer = self.transport.send(&call.following(Kind::Read), url, None, None).await?;
        Ok(answer.body)
    }

    /// Waits for the end of the operation that an accepted write has begun. Returns what has shown it; `None`
    /// if there was no operation.
    async fn follow(&self, call: &Call, url: &Url, accepted: &Answer) -> Result<Option<End>, Error> {
        let Some(operation) = Operation::of(accepted, url, call)? else { return Ok(None) };
        uncounted(operation.finish(&self.transport, call, url, &self.tracking)).await.map(Some)
    }

    fn nic_url(&self, id: &ResourceId) -> Url {
        self.url(id, if id.instance().is_some() { uniform::NIC_API } else { &self.versions.network })
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
