//! Simulated Azure as a whole: the world behind a lock, faults, the log, the network, and the admin's
//! actions.

mod machine;
mod outside;
mod scale_set;
mod settings;

use crate::fabric::Fabric;
use crate::fault::{Ending, Fault, Faults, Hostile, Standing};
use crate::lock::lock;
use crate::log::LogEntry;
use crate::reply::Reply;
use crate::request::Request;
use crate::topology::{Network, mac};
use crate::world::{Access, Config, World, new_etag};
use crate::{arm, entra, imds, nic, vnet};
use ipnet::Ipv4Net;
pub use outside::{Premises, Question};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::sync::Notify;

pub use machine::{NewNic, NewVm, VmInfo};
pub use scale_set::{NewInstance, NewScaleSet};
pub use settings::Settings;

const NICS: &str = "Microsoft.Network/networkInterfaces";
const VNETS: &str = "Microsoft.Network/virtualNetworks";

/// Why the admin's request failed.
#[derive(Debug)]
pub enum Error {
    NotFound(String),
    Conflict(String),
    /// Azure's rules forbid it, in Azure's words.
    Refused(String),
    /// The kernel did not do what the fabric asked for.
    Network(anyhow::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound(what) => write!(f, "there is no {what}"),
            Self::Conflict(what) => write!(f, "{what}"),
            Self::Refused(answer) => write!(f, "Azure refuses: {answer}"),
            Self::Network(cause) => write!(f, "the simulated network failed: {cause:#}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<Reply> for Error {
    fn from(reply: Reply) -> Self {
        Self::Refused(reply.body.unwrap_or_default().to_string())
    }
}

/// A peering to set on a VNet.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peering {
    pub name: String,
    pub prefixes: Vec<Ipv4Net>,
}

#[derive(Default)]
struct Log {
    last: u64,
    entries: Vec<LogEntry>,
}

/// Everything there is.
pub struct Azure {
    world: Mutex<World>,
    log: Mutex<Log>,
    questions: Mutex<Vec<Question>>,
    pub(crate) faults: Faults,
    fabric: Option<tokio::sync::Mutex<Fabric>>,
    /// An operation may have started.
    started: Notify,
    /// Other subscriptions by id in lower case. They share nothing: a NIC and its VNet are in one
    /// subscription, and limits are a subscription's own.
    neighbours: Mutex<BTreeMap<String, Arc<Azure>>>,
}

/// Tokio's clock, so that a test can pause it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Azure {
    pub(crate) fn new(config: Config, fabric: Option<Fabric>) -> Self {
        Self {
            world: Mutex::new(World::new(config)),
            log: Mutex::default(),
            questions: Mutex::default(),
            faults: Faults::default(),
            fabric: fabric.map(tokio::sync::Mutex::new),
            started: Notify::new(),
            neighbours: Mutex::default(),
        }
    }

    pub(crate) fn join(&self, neighbour: Arc<Azure>) {
        let subscription = lock(&neighbour.world).config.subscription.to_lowercase();
        lock(&self.neighbours).insert(subscription, neighbour);
    }

    /// The other subscription that the request is about, if it isn't ours.
    pub(crate) fn responsible(&self, request: &Request) -> Option<Arc<Azure>> {
        let path = request.path.to_lowercase();
        let subscription = path.strip_prefix("/subscriptions/")?.split('/').next()?;
        lock(&self.neighbours).get(subscription).cloned()
    }

    /// Applies and records one request. The network has followed when the answer is returned.
    pub(crate) async fn answer(&self, request: &Request) -> Reply {
        let reply = {
            let mut world = lock(&self.world);
            world.advance(now());
            let metadata = request.path.to_lowercase().starts_with("/metadata");
            let reply = if metadata {
                imds::answer(&mut world, request, now())
            } else if entra::is_asked(request) {
                entra::answer(&mut world, request)
            } else {
                arm::answer(&mut world, request, now())
            };
            // Recorded under the same lock, so that the log has the order in which things happened.
            self.record(request, reply)
        };
        self.follow().await;
        reply
    }

    /// Sets how the operation under way on the resource at `path` ends.
    pub(crate) fn doom(&self, path: &str, status: Ending, error: &Value) {
        lock(&self.world).doom(path, status, error);
    }

    pub(crate) fn record(&self, request: &Request, reply: Reply) -> Reply {
        let mut log = lock(&self.log);
        log.last += 1;
        let entry = LogEntry {
            seq: log.last,
            time: format!("{:.3}", jiff::Timestamp::now()),
            method: request.method.clone(),
            path: request.path.clone(),
            query: request.query.clone(),
            status: reply.status,
            caller: request.from.to_string(),
            host: request.header("host").unwrap_or_default().to_owned(),
            if_match: request.header("if-match").map(str::to_owned),
            request: request.body.as_ref().ok().cloned().flatten(),
            response: reply.body.clone(),
        };
        tracing::info!(
            seq = entry.seq,
            caller = entry.caller,
            status = entry.status,
            "{} {}",
            entry.method,
            entry.path
        );
        log.entries.push(entry);
        reply
    }

    /// Ends operations when they are due, even if no client polls. Never returns.
    pub(crate) async fn keep_time(&self) {
        loop {
            let next = lock(&self.world).next_end();
            tokio::select! {
                () = self.started.notified() => {}
                () = async {
                    match next {
                        Some(end) => tokio::time::sleep_until(end.into()).await,
                        None => std::future::pending().await,
                    }
                } => {
                    lock(&self.world).advance(now());
                    self.follow().await;
                }
            }
        }
    }

    async fn follow(&self) {
        self.started.notify_one();
        if let Err(error) = self.program().await {
            tracing::error!("{error}");
        }
    }

    /// Makes the network follow the world.
    async fn program(&self) -> Result<(), Error> {
        let Some(fabric) = &self.fabric else { return Ok(()) };
        let mut fabric = fabric.lock().await;
        let network = Network::of(&lock(&self.world));
        fabric.program(network).await.map_err(Error::Network)
    }

    /// Every exchange so far, oldest first.
    #[must_use]
    pub fn log(&self) -> Vec<LogEntry> {
        lock(&self.log).entries.clone()
    }

    pub fn clear_log(&self) {
        lock(&self.log).entries.clear();
    }

    /// NICs, VMs and VNets at a glance: `GET /state`.
    #[must_use]
    pub fn state(&self) -> Value {
        let mut world = lock(&self.world);
        world.advance(now());
        let nics = world.nics.values().map(|nic| {
            let configurations = nic::ip_configurations(&nic.document).iter().map(|c| {
                let properties = &c["properties"];
                json!({ "name": c["name"], "address": properties["privateIPAddress"],
                    "primary": properties["primary"], "state": properties["provisioningState"] })
            });
            json!({
                "id": nic.document["id"],
                "mac": mac(&nic.document),
                "etag": nic.document["etag"],
                "vm_id": nic::vm_id(&nic.document),
                "state": nic.document["properties"]["provisioningState"],
                "ip_configurations": configurations.collect::<Vec<_>>(),
            })
        });
        let vms = world
            .vms
            .values()
            .map(|vm| json!({ "id": vm.document["id"], "name": vm.document["name"], "netns": vm.netns }));
        json!({
            "nics": nics.collect::<Vec<_>>(),
            "vms": vms.collect::<Vec<_>>(),
            "vnets": world.vnets.values().collect::<Vec<_>>(),
        })
    }

    /// A NIC's document as a GET would show it now, by the NIC's name.
    #[must_use]
    pub fn nic(&self, name: &str) -> Option<Value> {
        let mut world = lock(&self.world);
        world.advance(now());
        let wanted = format!("/{NICS}/{name}").to_lowercase();
        world.nics.iter().find(|(key, _)| key.ends_with(&wanted)).map(|(_, nic)| nic.document.clone())
    }

    /// Sets up a fault and returns its id.
    pub fn order_fault(&self, fault: Fault) -> u64 {
        self.faults.order(fault)
    }

    /// From now on the fate of a client's request is drawn at random, by this seed. Of refusals, these codes
    /// are drawn beside those known here, each with its status if it has one.
    pub fn be_hostile(&self, seed: u64, codes: impl IntoIterator<Item = (Option<u16>, String)>) {
        self.faults.draw(Some(Hostile::of(seed, codes.into_iter().collect())));
    }

    /// No more of that.
    pub fn heal(&self) {
        self.faults.draw(None);
    }

    #[must_use]
    pub fn faults(&self) -> Vec<Standing> {
        self.faults.standing()
    }

    /// Ends a fault. The requests that it holds go on.
    ///
    /// # Errors
    /// When there is no such fault.
    pub fn lift_fault(&self, id: u64) -> Result<(), Error> {
        if self.faults.lift(id) { Ok(()) } else { Err(Error::NotFound(format!("fault {id}"))) }
    }

    /// Replaces the peerings of a VNet.
    ///
    /// # Errors
    /// When there is no such VNet.
    pub fn set_peerings(&self, name: &str, peerings: &[Peering]) -> Result<(), Error> {
        let mut world = lock(&self.world);
        let wanted = format!("/{VNETS}/{name}").to_lowercase();
        let Some((_, vnet)) = world.vnets.iter_mut().find(|(key, _)| key.ends_with(&wanted)) else {
            return Err(Error::NotFound(format!("VNet {name}")));
        };
        let etag = new_etag();
        let documents =
            peerings.iter().map(|peering| vnet::peering(vnet, &peering.name, &peering.prefixes, &etag));
        let documents: Vec<Value> = documents.collect();
        vnet["properties"]["virtualNetworkPeerings"] = json!(documents);
        vnet["etag"] = json!(etag);
        Ok(())
    }

    /// Another client's write to a NIC: a JSON merge patch, carried out at once under Azure's rules. Returns
    /// the NIC as it was.
    ///
    /// # Errors
    /// When there is no such NIC, or the outcome breaks a rule.
    pub async fn patch_nic(&self, name: &str, patch: &Value) -> Result<Value, Error> {
        let before = {
            let mut world = lock(&self.world);
            world.advance(now());
            let wanted = format!("/{NICS}/{name}").to_lowercase();
            let known = world.nics.iter().find(|(key, _)| key.ends_with(&wanted));
            let Some((_, nic)) = known else { return Err(Error::NotFound(format!("NIC {name}"))) };
            let before = nic.document.clone();
            let mut body = before.clone();
            merge(&mut body, patch);
            let id = before["id"].as_str().unwrap_or_default().to_owned();
            world.put_nic((&id, name), body, None, now())?;
            before
        };
        self.program().await?;
        Ok(before)
    }

    /// Has the state of a NIC itself stay this one, whatever is written and however that ends; its
    /// ipConfigurations go on as always. `None` ends that.
    ///
    /// # Errors
    /// When there is no such NIC.
    pub fn stick_nic(&self, name: &str, state: Option<&str>) -> Result<(), Error> {
        let mut world = lock(&self.world);
        world.advance(now());
        let wanted = format!("/{NICS}/{name}").to_lowercase();
        let nic = world.nics.iter_mut().find(|(key, _)| key.ends_with(&wanted));
        nic.ok_or_else(|| Error::NotFound(format!("NIC {name}")))?.1.stick(state);
        Ok(())
    }

    /// Deploys a template into the world's resource group, as `az deployment group create` would; gives the
    /// deployment.
    ///
    /// # Errors
    /// When it is no template, or one of its resources is refused.
    pub async fn deploy(&self, template: &Value) -> Result<Value, Error> {
        let group = {
            let world = lock(&self.world);
            world.group_id(&world.config.resource_group)
        };
        let ask = |method: &str, body: Option<Value>| Request {
            method: method.into(),
            path: format!("{group}/providers/Microsoft.Resources/deployments/template"),
            query: "api-version=2021-04-01".into(),
            headers: [("authorization".to_owned(), "Bearer an administrator's".to_owned())].into(),
            body: Ok(body),
            from: Ipv4Addr::LOCALHOST.into(),
        };
        let body = json!({ "properties": { "mode": "Incremental", "template": template } });
        let accepted = self.answer(&ask("PUT", Some(body))).await;
        if accepted.status != 201 {
            return Err(accepted.into());
        }
        let deployment = self.answer(&ask("GET", None)).await.body.unwrap_or_default();
        if deployment["properties"]["provisioningState"] != "Succeeded" {
            return Err(Error::Refused(deployment["properties"]["error"].to_string()));
        }
        Ok(deployment)
    }

    /// From now on these actions, and no others, are refused with 403.
    pub fn deny(&self, actions: Vec<String>) {
        lock(&self.world).config.denied = actions;
    }

    /// From now on these role assignments, deny assignments and locks, and no others, count.
    pub fn control(&self, access: Access) {
        lock(&self.world).config.access = access;
    }
}

/// RFC 7396.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (field, value) in patch {
        if value.is_null() {
            crate::document::remove(target, field)
        } else {
            merge(&mut target[field.as_str()], value)
        }
    }
}
