//! Route tables, public addresses, load balancers and their like in the world: finding them, and what they get with time.

use super::{World, has_id};
use crate::attachment;
use crate::nic;
use crate::reply::Reply;
use crate::resource::{self, Kind};
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
        balancers.find(|balancer| {
            resource::list(balancer, "backendAddressPools").iter().any(|own| has_id(own, pool))
        })
    }

    /// The address a frontend of a load balancer has in its subnet.
    pub(crate) fn frontend_address(&self, id: &str) -> Option<Ipv4Addr> {
        let balancers = self.of_kind(Kind::LoadBalancer);
        let mut frontends =
            balancers.flat_map(|balancer| resource::list(balancer, "frontendIPConfigurations"));
        nic::address(frontends.find(|frontend| has_id(frontend, id))?).map(|block| block.addr())
    }

    /// A route table takes one write at a time (kubernetes#88151); a newer write to anything else supersedes the older.
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

    /// Gives an address to every public address that is due one: a static one when its write has ended, a dynamic one with
    /// its first use.
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
