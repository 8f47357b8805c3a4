//! Machines for the admin: found by name, made with a NIC, described.

use super::{Azure, Error, NICS, lock, now};
use crate::topology::{gateway, mac};
use crate::world::{Vm, World, group_document};
use crate::{nic, vm, vnet};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::net::Ipv4Addr;

const VMS: &str = "Microsoft.Compute/virtualMachines";

/// A VM to make: `POST /vms`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewVm {
    pub name: String,
    /// Without it, the world's own.
    pub resource_group: Option<String>,
    /// A VNet by name. Without it, the VNet that has the subnet.
    pub vnet: Option<String>,
    /// A subnet's name; without it, the VNet's first subnet.
    pub subnet: Option<String>,
    /// With a fabric: the network namespace that gets `eth0`.
    pub netns: Option<String>,
}

/// A VM that was made.
#[derive(Clone, Debug, Serialize)]
pub struct VmInfo {
    pub vm_id: String,
    /// As Kubernetes writes it into a Node.
    pub provider_id: String,
    pub nic_id: String,
    pub address: Ipv4Addr,
    pub prefix_len: u8,
    pub gateway: Ipv4Addr,
    /// `aa:bb:cc:dd:ee:ff`.
    pub mac: String,
}

/// One more NIC for a VM: `POST /vms/{name}/nics`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewNic {
    /// A subnet's name; without it, the first there is.
    pub subnet: Option<String>,
}

impl Azure {
    /// Makes a running VM with a NIC that has one dynamic address.
    ///
    /// # Errors
    /// When the name is taken, the subnet is unknown or full, or the namespace is missing.
    pub async fn add_vm(&self, new: NewVm) -> Result<VmInfo, Error> {
        let info = {
            let mut world = lock(&self.world);
            world.advance(now());
            add_vm(&mut world, &new)?
        };
        if let Err(error) = self.program().await {
            let mut world = lock(&self.world);
            world.remove_vm(&info.vm_id.to_lowercase());
            world.nics.remove(&info.nic_id.to_lowercase());
            return Err(error);
        }
        Ok(info)
    }

    /// Deletes a VM at once, and its NIC unless it is to be kept.
    ///
    /// # Errors
    /// When there is no such VM.
    pub async fn delete_vm(&self, name: &str, keep_nic: bool) -> Result<(), Error> {
        {
            let mut world = lock(&self.world);
            let key = vm_key(&world, name)?;
            if key.contains("/virtualmachinescalesets/") {
                world.remove_instance(&key);
            }
            let nics = world.remove_vm(&key).unwrap_or_default();
            if !keep_nic {
                world.remove_nics(&nics, now());
            }
        }
        self.program().await
    }

    /// Deallocates a VM, or starts it again. Its NICs keep their addresses, and can't be reached meanwhile.
    ///
    /// # Errors
    /// When there is no such VM.
    pub async fn set_running(&self, name: &str, is_running: bool) -> Result<(), Error> {
        {
            let mut world = lock(&self.world);
            let key = vm_key(&world, name)?;
            if is_running {
                world.stopped.remove(&key)
            } else {
                world.stopped.insert(key)
            };
        }
        self.program().await
    }

    /// Gives a VM a new `eth0`, after its namespace was made anew.
    ///
    /// # Errors
    /// When there is no such VM or its namespace is missing.
    pub async fn replug(&self, name: &str) -> Result<(), Error> {
        let nics = {
            let world = lock(&self.world);
            vm::nic_ids(&world.vms[&vm_key(&world, name)?].document)
        };
        if let Some(fabric) = &self.fabric {
            let mut fabric = fabric.lock().await;
            for nic in nics {
                fabric.unplug(&nic.to_lowercase()).await.map_err(Error::Network)?;
            }
        }
        self.program().await
    }

    /// Attaches one more NIC, `<vm>-nic-<place>`, with one dynamic address, as Azure does to a VM that is
    /// deallocated; with a fabric, the machine's namespace has its interface when this returns.
    ///
    /// # Errors
    /// When there is no such VM, or the subnet is unknown or full.
    pub async fn add_nic(&self, vm: &str, new: &NewNic) -> Result<VmInfo, Error> {
        let info = {
            let mut world = lock(&self.world);
            world.advance(now());
            let key = vm_key(&world, vm)?;
            let document = &world.vms[&key].document;
            let (vm_id, mut nics) =
                (document["id"].as_str().unwrap_or_default().to_owned(), vm::nic_ids(document));
            let name = format!("{vm}-nic-{}", nics.len());
            let group = world.config.resource_group.clone();
            let id = world.resource_id(&group, NICS, &name);
            let subnet = subnet_named(&world, None, new.subnet.as_deref())?;
            put_nic(&mut world, &id, &name, &subnet)?;
            nics.push(id.clone());
            if let Some(vm) = world.vms.get_mut(&key) {
                let of =
                    |id: &String| json!({ "id": id, "properties": { "primary": nics.first() == Some(id) } });
                vm.document["properties"]["networkProfile"]["networkInterfaces"] =
                    nics.iter().map(of).collect();
            }
            world.attach(&vm_id, &nics);
            vm_info(&world, &key, &id.to_lowercase())?
        };
        self.program().await?;
        Ok(info)
    }
}

/// A NIC with one dynamic address in the subnet.
fn put_nic(world: &mut World, id: &str, name: &str, subnet: &str) -> Result<(), Error> {
    let body = json!({ "location": world.config.location, "properties": { "ipConfigurations": [{
        "name": "ipconfig1",
        "properties": { "primary": true, "privateIPAllocationMethod": "Dynamic", "subnet": { "id": subnet } },
    }] } });
    world.put_nic((id, name), body, None, now())?;
    Ok(())
}

pub(super) fn vm_key(world: &World, name: &str) -> Result<String, Error> {
    let named = |vm: &Vm| vm.document["name"].as_str().is_some_and(|own| own.eq_ignore_ascii_case(name));
    let key = world.vms.iter().find(|(_, vm)| named(vm)).map(|(key, _)| key);
    key.cloned().ok_or_else(|| Error::NotFound(format!("VM {name}")))
}

pub(super) fn add_vm(world: &mut World, new: &NewVm) -> Result<VmInfo, Error> {
    let NewVm { name, resource_group, vnet, subnet, netns } = new;
    let group = group_key(world, resource_group.clone());
    let vm_id = world.resource_id(&group, VMS, name);
    if world.vms.contains_key(&vm_id.to_lowercase()) {
        return Err(Error::Conflict(format!("there is a VM {name} already: delete it first")));
    }
    let subnet_id = subnet_named(world, vnet.as_deref(), subnet.as_deref())?;
    let location = world.config.location.clone();
    let (nic_name, nic_id) = (format!("{name}-nic"), world.resource_id(&group, NICS, &format!("{name}-nic")));
    // A NIC that was kept when its VM went is taken again.
    if !world.nics.contains_key(&nic_id.to_lowercase()) {
        put_nic(world, &nic_id, &nic_name, &subnet_id)?;
    }
    let request = vm::request(name, &location, &nic_id);
    let mut document = vm::replace(&vm_id, name, None, request, 1, "Succeeded");
    vm::finish(&mut document, 1);
    world.vms.insert(vm_id.to_lowercase(), Vm { document, etag: 1, netns: netns.clone() });
    world.attach(&vm_id, std::slice::from_ref(&nic_id));

    vm_info(world, &vm_id.to_lowercase(), &nic_id.to_lowercase())
}

/// The name of a resource group that exists from now on.
pub(super) fn group_key(world: &mut World, name: Option<String>) -> String {
    let group = name.unwrap_or_else(|| world.config.resource_group.clone());
    let id = world.group_id(&group);
    if !world.groups.contains_key(&id.to_lowercase()) {
        let document = group_document(&id, &group, &world.config.location);
        world.groups.insert(id.to_lowercase(), document);
    }
    group
}

/// The id of a subnet by its VNet's name and its own, or of the first there is.
pub(super) fn subnet_named(world: &World, vnet: Option<&str>, name: Option<&str>) -> Result<String, Error> {
    let is = |document: &Value, name: Option<&str>| name.is_none_or(|name| document["name"] == json!(name));
    let vnets = world.vnets.values().filter(|document| is(document, vnet));
    let found = vnets.flat_map(vnet::subnets).find(|subnet| is(subnet, name));
    let id = found.and_then(|subnet| subnet["id"].as_str()).map(str::to_owned);
    id.ok_or_else(|| Error::NotFound(format!("subnet {}", name.unwrap_or("at all"))))
}

/// The facts about a machine and its NIC, by their keys.
pub(super) fn vm_info(world: &World, vm: &str, nic: &str) -> Result<VmInfo, Error> {
    let id = |document: &Value| document["id"].as_str().unwrap_or_default().to_owned();
    let (vm_id, nic) = (id(&world.vms[vm].document), &world.nics[nic].document);
    let primary = nic::primary(nic);
    let address = primary.and_then(nic::address).map(|block| block.addr());
    let address = address.ok_or_else(|| Error::Conflict(format!("{} has no primary address", id(nic))))?;
    let subnet = primary.and_then(|one| world.subnet_document(one["properties"]["subnet"]["id"].as_str()?));
    let prefix = subnet.and_then(|subnet| vnet::prefixes(subnet).into_iter().find(|p| p.contains(&address)));
    let prefix = prefix.ok_or_else(|| Error::Conflict(format!("{address} is in no subnet")))?;
    Ok(VmInfo {
        provider_id: format!("azure://{vm_id}"),
        address,
        prefix_len: prefix.prefix_len(),
        gateway: gateway(prefix),
        mac: mac(nic).unwrap_or_default(),
        vm_id,
        nic_id: id(nic),
    })
}
