//! Route tables, public addresses, load balancers and their like in the world: finding them, and what they
//! get with time.

use super::{World, application_gateway, attachment};
use crate::document::{has_id, list};
use crate::nic;
use crate::reply::Reply;
use crate::resource::Kind;
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::time::Instant;

impl World {
    /// A resource by kind and id, whatever the letter case.
    pub(crate) fn resource(&self, kind: Kind, id: &str) -> Option<&Value> {
        self.resources.get(&id.to_lowercase()).filter(|(own, _)| *own == kind).map(|(_, document)| document)
    }

    pub(crate) fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Value> {
        self.resources.values().filter(move |(own, _)| *own == kind).map(|(_, document)| document)
    }

    /// The ipConfigurations of all NICs.
    pub(crate) fn ip_configurations(&self) -> impl Iterator<Item = &Value> {
        self.nics.values().flat_map(|nic| nic::ip_configurations(&nic.document))
    }

    /// The load balancer that has a backend pool.
    pub(crate) fn balancer_of(&self, pool: &str) -> Option<&Value> {
        let mut balancers = self.of_kind(Kind::LoadBalancer);
        balancers.find(|balancer| list(balancer, "backendAddressPools").iter().any(|own| has_id(own, pool)))
    }

    /// The frontends of all load balancers and application gateways.
    pub(crate) fn frontends(&self) -> impl Iterator<Item = &Value> {
        let owners = self.of_kind(Kind::LoadBalancer).chain(self.of_kind(Kind::ApplicationGateway));
        owners.flat_map(|owner| list(owner, "frontendIPConfigurations"))
    }

    /// The address a frontend has in its subnet.
    pub(crate) fn frontend_address(&self, id: &str) -> Option<Ipv4Addr> {
        let frontend = self.frontends().find(|frontend| has_id(frontend, id))?;
        nic::address(frontend).map(|block| block.addr())
    }

    /// Gives the instance of each new application gateway the lowest free address of its subnet, and takes
    /// back those of gateways that are gone. No document shows them.
    pub(crate) fn give_instance_addresses(&mut self) {
        let mut instances = std::mem::take(&mut self.instances);
        instances.retain(|key, _| self.resources.contains_key(key));
        self.instances = instances;
        let gateways: Vec<(String, String)> = self
            .of_kind(Kind::ApplicationGateway)
            .filter_map(|gateway| Some((gateway["id"].as_str()?, application_gateway::subnet(gateway)?)))
            .map(|(id, subnet)| (id.to_lowercase(), subnet.to_owned()))
            .collect();
        for (key, subnet) in gateways {
            if !self.instances.contains_key(&key)
                && let Some(free) = self.subnet(&subnet, "").and_then(|subnet| subnet.lowest_free(32))
            {
                self.instances.insert(key, free.addr());
            }
        }
    }

    /// A route table takes one write at a time (kubernetes#88151); a newer write to anything else supersedes
    /// the older.
    pub(crate) fn check_idle(&self, kind: Kind, id: &str, now: Instant) -> Result<(), Reply> {
        let mut running = self.operations.values().filter(|operation| operation.is_in_progress());
        match running.find(|operation| operation.resource.eq_ignore_ascii_case(id)) {
            Some(operation) if kind == Kind::RouteTable => {
                let message = format!(
                    "Operation {} ({}) is updating resource {id}. The call can be retried in {} seconds.",
                    operation.effect.name(),
                    operation.id,
                    (operation.ends - now).as_secs() + 1
                );
                Err(Reply::retryable("RetryableErrorDueToAnotherOperation", message))
            }
            _ => Ok(()),
        }
    }

    /// Gives an address to every public address that is due: a static one when its write has ended, a dynamic
    /// one with its first use.
    pub(crate) fn give_public_addresses(&mut self) {
        let is_due = |document: &Value| {
            let properties = &document["properties"];
            let is_static = properties["publicIPAllocationMethod"] == json!("Static");
            let id = document["id"].as_str().unwrap_or_default();
            properties["provisioningState"] == json!("Succeeded")
                && !properties["ipAddress"].is_string()
                && (is_static || attachment::user(self, Kind::PublicAddress, id).is_some())
        };
        let due: Vec<String> = self
            .of_kind(Kind::PublicAddress)
            .filter(|document| is_due(document))
            .filter_map(|document| document["id"].as_str().map(str::to_lowercase))
            .collect();
        for key in due {
            let Some((_, mut document)) = self.resources.get(&key).cloned() else { continue };
            attachment::give_public_address(self, &mut document);
            self.resources.insert(key, (Kind::PublicAddress, document));
        }
    }
}
