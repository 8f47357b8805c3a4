//! The state of simulated Azure: documents as ARM shows them, operations in flight, counters. Time is always
//! an argument.

mod access;
pub(crate) mod application_gateway;
mod attached;
pub(crate) mod attachment;
mod config;
mod operations;
mod scale_set;
mod token;

use crate::document::{has_id, list, remove};
use crate::health::Health;
use crate::nic;
use crate::operation::{Effect, Operation};
use crate::reply::Reply;
use crate::resource::Kind;
use crate::subnet::Subnet;
use crate::throttle::Limits;
use crate::vnet;
pub use access::{Access, DenyAssignment, Grant, Lock, LockLevel};
pub use config::{Application, Config, Habits, VnetConfig};
use ipnet::Ipv4Net;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
pub(crate) use token::Token;

/// A network interface.
#[derive(Clone, Debug)]
pub(crate) struct Nic {
    pub(crate) document: Value,
    /// The addresses that the network delivers. A new one joins when its write has succeeded; one that goes
    /// leaves when the write is accepted.
    pub(crate) live: BTreeSet<Ipv4Addr>,
    /// The effective attachments of addresses: an address with the lower-case id of a public address, a
    /// backend pool or an application security group. They follow writes as `live` does.
    pub(crate) attached: BTreeSet<(Ipv4Addr, String)>,
    /// A NIC that never had a VM is deleted at once by Azure.
    pub(crate) was_attached: bool,
    /// Its own state, whatever that of its ipConfigurations is and however writes end.
    pub(crate) stuck: Option<String>,
}

impl Nic {
    /// All of it is as a write that has succeeded leaves it.
    fn settle(&mut self) {
        nic::set_state(&mut self.document, "Succeeded", &new_etag());
        if let Some(state) = &self.stuck {
            self.document["properties"]["provisioningState"] = json!(state);
        }
    }

    /// Its own state stays this one from now on, until that is taken back.
    pub(crate) fn stick(&mut self, state: Option<&str>) {
        self.stuck = state.map(str::to_owned);
        self.settle();
    }
}

/// A virtual machine.
#[derive(Clone, Debug)]
pub(crate) struct Vm {
    pub(crate) document: Value,
    pub(crate) etag: u64,
    /// The network namespace that stands for the machine, if there is one.
    pub(crate) netns: Option<String>,
}

/// A gateway to a network on premises. ARM's documents of gateways aren't at hand, so the admin makes it.
#[derive(Clone, Debug)]
pub(crate) struct Gateway {
    pub(crate) prefixes: Vec<Ipv4Net>,
}

/// A scale set in Uniform orchestration mode. Its instances are among the machines, their NICs among the
/// NICs.
#[derive(Clone, Debug)]
pub(crate) struct ScaleSet {
    pub(crate) document: Value,
    pub(crate) etag: u64,
}

/// All of simulated Azure. Keys are resource ids in lower case.
pub(crate) struct World {
    pub(crate) config: Config,
    pub(crate) groups: BTreeMap<String, Value>,
    pub(crate) vnets: BTreeMap<String, Value>,
    pub(crate) nics: BTreeMap<String, Nic>,
    pub(crate) vms: BTreeMap<String, Vm>,
    /// Those of the machines that are deallocated.
    pub(crate) stopped: BTreeSet<String>,
    pub(crate) resources: BTreeMap<String, (Kind, Value)>,
    /// By VNet.
    pub(crate) gateways: BTreeMap<String, Gateway>,
    pub(crate) scale_sets: BTreeMap<String, ScaleSet>,
    /// Hosts of the internet that belong to an Azure service, such as `Microsoft.Storage`.
    pub(crate) services: BTreeMap<Ipv4Addr, String>,
    /// The addresses from which application gateways connect, by the gateways' ids.
    pub(crate) instances: BTreeMap<String, Ipv4Addr>,
    /// Records of private zones, by full name in lower case.
    pub(crate) names: BTreeMap<String, Ipv4Addr>,
    pub(crate) health: Health,
    pub(crate) deployments: BTreeMap<String, Value>,
    /// Those that users assign to machines.
    pub(crate) identities: BTreeMap<String, Value>,
    /// Definitions and assignments of roles.
    pub(crate) authorization: BTreeMap<String, Value>,
    /// By operation id.
    pub(crate) operations: BTreeMap<String, Operation>,
    pub(crate) limits: Limits,
    /// Tokens that were given out.
    pub(crate) tokens: BTreeMap<String, Token>,
    /// The addresses that the metadata service shows while it lags behind, by NIC.
    pub(crate) stale: Option<BTreeMap<String, Vec<Ipv4Addr>>>,
    macs: u32,
    /// Addresses of NICs that are gone, and when they come free.
    leaving: Vec<(Instant, Ipv4Net)>,
}

impl World {
    pub(crate) fn new(config: Config) -> Self {
        let mut world = Self {
            config: config.clone(),
            groups: BTreeMap::new(),
            vnets: BTreeMap::new(),
            nics: BTreeMap::new(),
            vms: BTreeMap::new(),
            stopped: BTreeSet::new(),
            resources: BTreeMap::new(),
            gateways: BTreeMap::new(),
            scale_sets: BTreeMap::new(),
            services: BTreeMap::new(),
            instances: BTreeMap::new(),
            names: BTreeMap::new(),
            health: Health::default(),
            deployments: BTreeMap::new(),
            identities: BTreeMap::new(),
            authorization: BTreeMap::new(),
            operations: BTreeMap::new(),
            limits: Limits::new(config.compute_reads),
            tokens: BTreeMap::new(),
            stale: None,
            macs: 0,
            leaving: Vec::new(),
        };
        let Config { resource_group, location, vnets, .. } = config;
        let id = world.group_id(&resource_group);
        world.groups.insert(id.to_lowercase(), group_document(&id, &resource_group, &location));
        for VnetConfig { name, address_prefixes, subnets } in vnets {
            let id = world.resource_id(&resource_group, "Microsoft.Network/virtualNetworks", &name);
            let subnet = |(name, prefix): &(String, Ipv4Net)| json!({ "name": name, "properties": { "addressPrefix": prefix } });
            let body = json!({ "location": location, "properties": {
                "addressSpace": { "addressPrefixes": address_prefixes },
                "subnets": subnets.iter().map(subnet).collect::<Vec<_>>(),
            } });
            let document = vnet::replace(&id, &name, None, body, &new_etag(), "Succeeded");
            world.vnets.insert(id.to_lowercase(), document);
        }
        world
    }

    pub(crate) fn group_id(&self, group: &str) -> String {
        format!("/subscriptions/{}/resourceGroups/{group}", self.config.subscription)
    }

    /// The id of a top-level resource, in the letter case its group was made with.
    pub(crate) fn resource_id(&self, group: &str, kind: &str, name: &str) -> String {
        let asked = self.group_id(group);
        let made = self.groups.get(&asked.to_lowercase()).and_then(|group| group["id"].as_str());
        format!("{}/providers/{kind}/{name}", made.unwrap_or(&asked))
    }

    /// The machine of a NIC, by its key, if it runs.
    pub(crate) fn running(&self, nic: &Value) -> Option<&Vm> {
        let key = nic::vm_id(nic)?.to_lowercase();
        self.vms.get(&key).filter(|_| !self.stopped.contains(&key))
    }

    /// Whether the machine of a NIC is being deleted.
    fn is_leaving(&self, nic: &Value) -> bool {
        let vm = nic::vm_id(nic).and_then(|id| self.vms.get(&id.to_lowercase()));
        vm.is_some_and(|vm| vm.document["properties"]["provisioningState"] == "Deleting")
    }

    /// Replaces a NIC's document. The write ends at once if the NIC has no machine that runs, otherwise after
    /// `takes`.
    pub(crate) fn put_nic(
        &mut self,
        (id, name): (&str, &str),
        body: Value,
        takes: Option<Duration>,
        now: Instant,
    ) -> Result<Option<Operation>, Reply> {
        let key = id.to_lowercase();
        let old = self.nics.get(&key).map(|nic| &nic.document);
        let is_stopped = old.is_some_and(|nic| nic::vm_id(nic).is_some() && self.running(nic).is_none());
        if is_stopped && self.config.habits.refuses_writes_to_stopped {
            let message =
                format!("Cannot modify network interface {id}: its virtual machine is deallocated.");
            return Err(Reply::nrp(409, "OperationNotAllowed", message, json!([])));
        }
        if self.config.habits.refuses_writes_to_leaving && old.is_some_and(|nic| self.is_leaving(nic)) {
            let message =
                format!("Cannot modify network interface {id}: its virtual machine is being deleted.");
            return Err(Reply::nrp(409, "OperationNotAllowed", message, json!([])));
        }
        let takes = takes.filter(|_| old.is_some_and(|nic| self.running(nic).is_some()));
        let state = if takes.is_some() { "Updating" } else { "Succeeded" };
        let Habits { moves_primary, lists_primary_last, .. } = self.config.habits;
        let put = nic::Put { id, name, old, body, etag: new_etag(), state, moves_primary };
        let mut document = put.apply(|subnet| self.subnet(subnet, &key))?;
        if (moves_primary || lists_primary_last)
            && let Some(all) = document["properties"]["ipConfigurations"].as_array_mut()
        {
            all.sort_by_key(|one| (one["properties"]["primary"] == true) == lists_primary_last);
        }
        attachment::check_nic(self, &document)?;
        self.check_network_limit(&key, &document)?;
        let location = document["location"].as_str().unwrap_or_default().to_owned();
        let (held, attached) = (nic::addresses(&document), nic::attachments(&document));
        let new = || Nic {
            document: Value::Null,
            live: BTreeSet::new(),
            attached: BTreeSet::new(),
            was_attached: false,
            stuck: None,
        };
        let nic = self.nics.entry(key.clone()).or_insert_with(new);
        nic.document = document;
        if let Some(takes) = takes {
            nic.live.retain(|address| held.contains(address));
            nic.attached.retain(|attachment| attached.contains(attachment));
            self.give_public_addresses();
            Ok(Some(self.start(Effect::FinishNic, &key, &location, now + takes)))
        } else {
            nic.live = held;
            nic.attached = attached;
            self.give_public_addresses();
            self.supersede(&key, &uuid::Uuid::new_v4().to_string());
            Ok(None)
        }
    }

    /// "Networking limits": private addresses of a virtual network, where a block counts once. The code of
    /// the refusal isn't published.
    fn check_network_limit(&self, key: &str, document: &Value) -> Result<(), Reply> {
        let count = |nic: &Value| nic::ip_configurations(nic).len();
        let before = self.nics.get(key).map_or(0, |nic| count(&nic.document));
        if count(document) <= before {
            return Ok(());
        }
        let network = |nic: &Value| {
            let subnet = nic::primary(nic)?["properties"]["subnet"]["id"].as_str()?.to_lowercase();
            subnet.split_once("/subnets/").map(|(network, _)| network.to_owned())
        };
        let own = network(document);
        let others = self.nics.iter().filter(|(other, nic)| *other != key && network(&nic.document) == own);
        let held: usize = others.map(|(_, nic)| count(&nic.document)).sum();
        let limit = self.config.network_addresses;
        if held + count(document) <= limit {
            return Ok(());
        }
        let own = own.unwrap_or_default();
        let message =
            format!("Cannot create more than {limit} private IP addresses for virtual network {own}.");
        Err(Reply::nrp(400, "PrivateIPAddressLimitReached", message, json!([])))
    }

    /// A subnet by id, with all addresses taken but those of the NIC or load balancer `except` (in lower
    /// case).
    pub(crate) fn subnet(&self, id: &str, except: &str) -> Option<Subnet> {
        let document = self.subnet_document(id)?;
        let mut taken = BTreeMap::new();
        for (_, nic) in self.nics.iter().filter(|(key, _)| *key != except) {
            for configuration in nic::ip_configurations(&nic.document) {
                if has_id(&configuration["properties"]["subnet"], id)
                    && let Some(block) = nic::address(configuration)
                {
                    taken.insert(block, configuration["id"].as_str().unwrap_or_default().to_owned());
                }
            }
        }
        for (_, (_, balancer)) in self.resources.iter().filter(|(key, _)| *key != except) {
            for frontend in list(balancer, "frontendIPConfigurations") {
                if has_id(&frontend["properties"]["subnet"], id)
                    && let Some(block) = nic::address(frontend)
                {
                    taken.insert(block, frontend["id"].as_str().unwrap_or_default().to_owned());
                }
            }
        }
        taken
            .extend(self.leaving.iter().map(|(_, block)| (*block, "a NIC that is being deleted".to_owned())));
        let prefixes = vnet::prefixes(document);
        let instances =
            self.instances.iter().filter(|(_, own)| prefixes.iter().any(|prefix| prefix.contains(*own)));
        taken.extend(instances.map(|(gateway, address)| ((*address).into(), gateway.clone())));
        Some(Subnet {
            id: document["id"].as_str()?.to_owned(),
            prefixes,
            state: document["properties"]["provisioningState"].as_str()?.to_owned(),
            taken,
        })
    }

    pub(crate) fn subnet_document(&self, id: &str) -> Option<&Value> {
        let lower = id.to_lowercase();
        let vnet = self.vnets.get(lower.split_once("/subnets/")?.0)?;
        vnet::subnets(vnet).iter().find(|subnet| has_id(subnet, &lower))
    }

    fn subnet_mut(&mut self, id: &str) -> Option<&mut Value> {
        let lower = id.to_lowercase();
        let vnet = self.vnets.get_mut(lower.split_once("/subnets/")?.0)?;
        vnet["properties"]["subnets"].as_array_mut()?.iter_mut().find(|subnet| has_id(subnet, &lower))
    }

    /// Plugs NICs into a VM: they get a MAC address and a reference.
    pub(crate) fn attach(&mut self, vm_id: &str, nic_ids: &[String]) {
        for id in nic_ids {
            let Some(nic) = self.nics.get_mut(&id.to_lowercase()) else { continue };
            nic.was_attached = true;
            let properties = &mut nic.document["properties"];
            properties["virtualMachine"] = json!({ "id": vm_id });
            if properties["macAddress"].is_null() {
                // 00-0D-3A is a prefix Azure uses itself.
                self.macs += 1;
                let [_, a, b, c] = self.macs.to_be_bytes();
                properties["macAddress"] = json!(format!("00-0D-3A-{a:02X}-{b:02X}-{c:02X}"));
            }
            properties["primary"] = json!(nic_ids.first() == Some(id));
            nic::set_etag(&mut nic.document, &new_etag());
        }
    }

    /// Removes a VM. Its NICs stay, without a machine. Returns their keys.
    pub(crate) fn remove_vm(&mut self, key: &str) -> Option<Vec<String>> {
        let vm = self.vms.remove(key)?;
        self.stopped.remove(key);
        let id = vm.document["id"].as_str().unwrap_or_default();
        let mut freed = Vec::new();
        for (key, nic) in &mut self.nics {
            if has_id(&nic.document["properties"]["virtualMachine"], id) {
                for field in ["virtualMachine", "macAddress", "primary"] {
                    remove(&mut nic.document["properties"], field);
                }
                nic::set_etag(&mut nic.document, &new_etag());
                freed.push(key.clone());
            }
        }
        Some(freed)
    }

    /// Removes these NICs, whose VM has gone.
    pub(crate) fn remove_nics(&mut self, keys: &[String], now: Instant) {
        let keep = Duration::try_from_secs_f64(self.config.habits.frees_after_seconds).unwrap_or_default();
        for nic in keys.iter().filter_map(|key| self.nics.remove(key)) {
            let blocks = nic::ip_configurations(&nic.document).iter().filter_map(nic::address);
            self.leaving.extend(blocks.map(|block| (now + keep, block)));
        }
        self.advance(now);
    }

    /// The VM with this primary address: the metadata service answers to no other address.
    pub(crate) fn vm_at(&self, address: Ipv4Addr) -> Option<(&Vm, &Nic)> {
        let is_primary = |nic: &&Nic| {
            let block = nic::primary(&nic.document).and_then(nic::address);
            block.is_some_and(|block| block.addr() == address)
        };
        let nic = self.nics.values().find(is_primary)?;
        Some((self.running(&nic.document)?, nic))
    }
}

pub(crate) fn group_document(id: &str, name: &str, location: &str) -> Value {
    json!({ "id": id, "name": name, "type": "Microsoft.Resources/resourceGroups", "location": location,
        "properties": { "provisioningState": "Succeeded" } })
}

/// The network provider's kind of etag.
pub(crate) fn new_etag() -> String {
    format!("W/\"{}\"", uuid::Uuid::new_v4())
}
