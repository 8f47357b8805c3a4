//! The admin's actions on Uniform scale sets.

use super::machine::{group_key, subnet_named, vm_info, vm_key};
use super::{Azure, Error, VmInfo, lock, merge, now};
use crate::resource::{self, Kind};
use crate::scale_set;
use crate::world::{World, new_etag};
use serde::Deserialize;
use serde_json::{Value, json};

const SETS: &str = "Microsoft.Compute/virtualMachineScaleSets";

/// A scale set to make, without instances: `POST /scalesets`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewScaleSet {
    pub name: String,
    /// Without it, the world's own.
    pub resource_group: Option<String>,
    /// A subnet of the first VNet; without it, the VNet's first subnet.
    pub subnet: Option<String>,
}

/// An instance to make: `POST /scalesets/{name}/instances`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewInstance {
    /// Without it, the one after the highest. An id that was used before comes back with a new machine.
    pub instance_id: Option<u64>,
    /// With a fabric: the network namespace that gets `eth0`.
    pub netns: Option<String>,
}

impl Azure {
    /// Makes a Uniform scale set as AKS does for a pool, and gives its id.
    ///
    /// # Errors
    /// When the name is taken or the subnet is unknown.
    pub fn add_scale_set(&self, new: NewScaleSet) -> Result<String, Error> {
        let NewScaleSet { name, resource_group, subnet } = new;
        let mut world = lock(&self.world);
        let group = group_key(&mut world, resource_group);
        let id = world.resource_id(&group, SETS, &name);
        if world.scale_sets.contains_key(&id.to_lowercase()) {
            return Err(Error::Conflict(format!("there is a scale set {name} already: delete it first")));
        }
        let subnet = subnet_named(&world, None, subnet.as_deref())?;
        let location = world.config.location.clone();
        // The resources that AKS puts around its nodes.
        let pools = json!({ "backendAddressPools": [{ "name": "kubernetes" }] });
        for (kind, name, properties) in
            [(Kind::LoadBalancer, "kubernetes", pools), (Kind::SecurityGroup, "aks-nsg", json!({}))]
        {
            let id = world.resource_id(&group, kind.type_name(), name);
            let body = json!({ "location": location, "properties": properties });
            let put = resource::Put { kind, id: &id, name, old: None, body, etag: &new_etag() };
            let mut made = put.document();
            resource::set_state(kind, &mut made, "Succeeded", &new_etag());
            world.resources.entry(id.to_lowercase()).or_insert((kind, made));
        }
        let body = scale_set::request(&location, &world.group_id(&group), &subnet);
        let (document, etag) = scale_set::replace(&id, &name, None, body, "Succeeded");
        world.put_scale_set(&id.to_lowercase(), document, etag);
        Ok(id)
    }

    /// Makes a running instance; its name is `<set>_<instance id>`.
    ///
    /// # Errors
    /// When there is no such set, the id is in use, the subnet is full, or the namespace is missing.
    pub async fn add_instance(&self, set: &str, new: NewInstance) -> Result<VmInfo, Error> {
        let NewInstance { instance_id, netns } = new;
        let (key, info) = {
            let mut world = lock(&self.world);
            world.advance(now());
            let key = set_key(&world, set)?;
            let used = world.instances(&key);
            let next = used.last().map_or(0, |(last, _)| last + 1);
            let instance_id = instance_id.unwrap_or(next);
            if used.iter().any(|(id, _)| *id == instance_id) {
                return Err(Error::Conflict(format!("{set} has an instance {instance_id} already")));
            }
            let key = world.add_instance(&key, instance_id, netns, now())?;
            let nic = format!("{key}/networkinterfaces/");
            let nic = world.nics.keys().find(|id| id.starts_with(&nic)).cloned().unwrap_or_default();
            let info = vm_info(&world, &key, &nic)?;
            (key, info)
        };
        if let Err(error) = self.program().await {
            lock(&self.world).remove_instance(&key);
            return Err(error);
        }
        Ok(info)
    }

    /// Brings an instance to its set's latest model, as an upgrade or a reimage does: ipConfigurations that
    /// only the instance had are gone at once. (This effect is general knowledge, not documented.)
    ///
    /// # Errors
    /// When there is no such instance, or the model can't be had.
    pub async fn upgrade_instance(&self, name: &str) -> Result<(), Error> {
        {
            let mut world = lock(&self.world);
            world.advance(now());
            let key = vm_key(&world, name)?;
            world.upgrade_instance(&key, now())?;
        }
        self.program().await
    }

    /// Another client's write to an instance: a JSON merge patch of its model, carried out at once under
    /// Azure's rules.
    ///
    /// # Errors
    /// When there is no such instance, or the outcome breaks a rule.
    pub async fn patch_instance(&self, name: &str, patch: &Value) -> Result<(), Error> {
        {
            let mut world = lock(&self.world);
            world.advance(now());
            let key = vm_key(&world, name)?;
            let before = world.vms[&key].clone();
            let mut body = before.document.clone();
            merge(&mut body, patch);
            let (model, etag) = scale_set::edit((&before.document, before.etag), &body, "Succeeded");
            if let Some(vm) = world.vms.get_mut(&key) {
                (vm.document, vm.etag) = (model, etag);
            }
            if let Err(refusal) = world.put_instance_nics(&key, None, now()) {
                world.vms.insert(key, before);
                return Err(refusal.into());
            }
        }
        self.program().await
    }

    /// An instance, or any machine, as ARM shows it.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn machine(&self, name: &str) -> Result<Value, Error> {
        let world = lock(&self.world);
        Ok(world.vms[&vm_key(&world, name)?].document.clone())
    }
}

fn set_key(world: &World, name: &str) -> Result<String, Error> {
    let wanted = format!("/{SETS}/{name}").to_lowercase();
    let key = world.scale_sets.keys().find(|key| key.ends_with(&wanted));
    key.cloned().ok_or_else(|| Error::NotFound(format!("scale set {name}")))
}
