//! Operations in flight: how they begin, end, fail and take each other's place.

use super::{World, new_etag};
use crate::document::has_id;
use crate::fault::Ending;
use crate::operation::{Effect, Operation, Status};
use crate::{nic, resource, vnet};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

impl World {
    pub(crate) fn write_time(&self) -> Duration {
        Duration::try_from_secs_f64(self.config.write_seconds).unwrap_or_default()
    }

    /// When the next operation ends.
    pub(crate) fn next_end(&self) -> Option<Instant> {
        self.operations.values().filter(|operation| operation.is_in_progress()).map(|o| o.ends).min()
    }

    /// Ends every operation that is due, in the order of their ends.
    pub(crate) fn advance(&mut self, now: Instant) {
        self.leaving.retain(|(until, _)| *until > now);
        let mut ended = Vec::new();
        for operation in self.operations.values_mut().filter(|o| o.is_in_progress() && o.ends <= now) {
            let is_good = operation.run_out();
            ended.push((operation.ends, is_good, operation.effect, operation.resource.clone()));
        }
        ended.sort_by_key(|(at, ..)| *at);
        for (_, is_good, effect, resource) in ended {
            if is_good { self.carry_out(effect, &resource) } else { self.give_up(effect, &resource) }
        }
    }

    /// A NIC whose write has failed keeps the new list, and no new address works until another write
    /// succeeds. It is an assumption that Azure marks each ipConfiguration, too. An instance keeps its model.
    /// No other writes fail here.
    fn give_up(&mut self, effect: Effect, resource: &str) {
        match effect {
            Effect::FinishNic => {
                if let Some(nic) = self.nics.get_mut(resource) {
                    nic::set_state(&mut nic.document, "Failed", &new_etag());
                }
            }
            Effect::FinishInstance => {
                if let Some(vm) = self.vms.get_mut(resource) {
                    vm.document["properties"]["provisioningState"] = json!("Failed");
                }
            }
            _ => {}
        }
    }

    pub(crate) fn is_under_way(&self, key: &str) -> bool {
        self.operations.values().any(|operation| operation.is_in_progress() && operation.resource == key)
    }

    /// Sets how the operation under way on a resource ends.
    pub(crate) fn doom(&mut self, path: &str, status: Ending, error: &Value) {
        let resource = path.to_lowercase();
        let under_way = |o: &&mut Operation| o.is_in_progress() && o.resource == resource;
        if let Some(operation) = self.operations.values_mut().find(under_way) {
            operation.doom(status, error.clone());
        }
    }

    /// Ends the operation on a resource now.
    pub(crate) fn finish(&mut self, id: &str, now: Instant) {
        let key = id.to_lowercase();
        for operation in
            self.operations.values_mut().filter(|one| one.is_in_progress() && one.resource == key)
        {
            operation.ends = now;
        }
        self.advance(now);
    }

    fn carry_out(&mut self, effect: Effect, resource: &str) {
        match effect {
            Effect::FinishNic => {
                if let Some(nic) = self.nics.get_mut(resource) {
                    nic.settle();
                    nic.live = nic::addresses(&nic.document);
                    nic.attached = nic::attachments(&nic.document);
                }
            }
            Effect::RemoveNic => drop(self.nics.remove(resource)),
            Effect::FinishVnet => {
                if let Some(document) = self.vnets.get_mut(resource) {
                    vnet::set_state(document, "Succeeded", &new_etag());
                }
            }
            Effect::RemoveVnet => drop(self.vnets.remove(resource)),
            Effect::FinishSubnet => {
                if let Some(subnet) = self.subnet_mut(resource) {
                    subnet["etag"] = json!(new_etag());
                    subnet["properties"]["provisioningState"] = json!("Succeeded");
                }
            }
            Effect::RemoveSubnet => {
                let vnet = resource.split("/subnets/").next().unwrap_or_default();
                let subnets = self.vnets.get_mut(vnet).map(|vnet| &mut vnet["properties"]["subnets"]);
                if let Some(subnets) = subnets.and_then(Value::as_array_mut) {
                    subnets.retain(|subnet| !has_id(subnet, resource));
                }
            }
            Effect::FinishVm => {
                if let Some(vm) = self.vms.get_mut(resource) {
                    vm.etag += 1;
                    crate::vm::finish(&mut vm.document, vm.etag);
                }
            }
            Effect::RemoveVm => drop(self.remove_vm(resource)),
            Effect::FinishResource(kind) | Effect::FinishChildRemoval(kind) => {
                if let Some((_, document)) = self.resources.get_mut(resource) {
                    resource::set_state(kind, document, "Succeeded", &new_etag());
                }
                self.give_public_addresses();
            }
            Effect::RemoveResource(_) => {
                self.resources.remove(resource);
                self.give_instance_addresses();
            }
            Effect::FinishScaleSet => {
                if let Some(set) = self.scale_sets.get_mut(resource) {
                    set.document["properties"]["provisioningState"] = json!("Succeeded");
                }
            }
            Effect::RemoveScaleSet => self.remove_scale_set(resource),
            Effect::FinishInstance => {
                if let Some(vm) = self.vms.get_mut(resource) {
                    vm.document["properties"]["provisioningState"] = json!("Succeeded");
                }
            }
            Effect::RemoveInstance => self.remove_instance(resource),
        }
    }

    /// Starts an operation on a resource and cancels the one in flight.
    pub(crate) fn start(
        &mut self,
        effect: Effect,
        resource: &str,
        location: &str,
        ends: Instant,
    ) -> Operation {
        let operation = Operation::start(effect, resource, location, ends);
        self.supersede(&operation.resource, &operation.id);
        self.operations.insert(operation.id.clone(), operation.clone());
        operation
    }

    pub(crate) fn supersede(&mut self, resource: &str, by: &str) {
        for older in self.operations.values_mut().filter(|o| o.is_in_progress() && o.resource == resource) {
            older.end(Status::Superseded { by: by.to_owned() });
        }
    }
}
