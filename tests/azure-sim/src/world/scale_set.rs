//! The life of Uniform scale sets and their instances: made, changed, brought to the latest model, removed.

use super::{ScaleSet, Vm, World};
use crate::reply::Reply;
use crate::scale_set;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

impl World {
    /// The instances of a scale set by instance id, with their keys. `set` is the set's key.
    pub(crate) fn instances(&self, set: &str) -> Vec<(u64, String)> {
        let below = format!("{set}/virtualmachines/");
        let keys =
            self.vms.keys().filter_map(|key| Some((key.strip_prefix(&below)?.parse().ok()?, key.clone())));
        let mut all: Vec<(u64, String)> = keys.collect();
        all.sort();
        all
    }

    /// Stores a scale set's document. Its instances stay as they are, but are no longer of the latest model
    /// if that has changed.
    pub(crate) fn put_scale_set(&mut self, key: &str, document: Value, etag: u64) {
        let model = |set: &Value| set["properties"]["virtualMachineProfile"].clone();
        let is_new = self.scale_sets.get(key).is_none_or(|set| model(&set.document) != model(&document));
        if is_new {
            for (_, key) in self.instances(key) {
                if let Some(vm) = self.vms.get_mut(&key) {
                    vm.document["properties"]["latestModelApplied"] = false.into();
                }
            }
        }
        self.scale_sets.insert(key.to_owned(), ScaleSet { document, etag });
    }

    /// Makes or removes instances up to this number. New ones get the next ids; the newest are removed first.
    pub(crate) fn scale(&mut self, set: &str, capacity: usize, now: Instant) -> Result<(), Reply> {
        while self.instances(set).len() < capacity {
            let next = self.instances(set).last().map_or(0, |(last, _)| last + 1);
            self.add_instance(set, next, None, now)?;
        }
        for (_, key) in self.instances(set).split_off(capacity) {
            self.remove_instance(&key);
        }
        Ok(())
    }

    /// Makes an instance with its NICs and gives its key. The caller has checked that the set exists and the
    /// id is free.
    pub(crate) fn add_instance(
        &mut self,
        set: &str,
        instance_id: u64,
        netns: Option<String>,
        now: Instant,
    ) -> Result<String, Reply> {
        let model = scale_set::instance(&self.scale_sets[set].document, instance_id);
        let id = model["id"].as_str().unwrap_or_default().to_owned();
        let key = id.to_lowercase();
        self.vms.insert(key.clone(), Vm { document: model, etag: 1, netns });
        if let Err(refusal) = self.put_instance_nics(&key, None, now) {
            self.remove_instance(&key);
            return Err(refusal);
        }
        Ok(key)
    }

    /// Brings the NICs of an instance to its model; new ipConfigurations get the lowest free addresses.
    pub(crate) fn put_instance_nics(
        &mut self,
        key: &str,
        takes: Option<Duration>,
        now: Instant,
    ) -> Result<(), Reply> {
        let model = self.vms[key].document.clone();
        let id = model["id"].as_str().unwrap_or_default();
        let configurations =
            &model["properties"]["networkProfileConfiguration"]["networkInterfaceConfigurations"];
        let mut nics = Vec::new();
        for configuration in configurations.as_array().into_iter().flatten() {
            let name = configuration["name"].as_str().unwrap_or_default();
            let nic = format!("{id}/networkInterfaces/{name}");
            let body = scale_set::nic_body(configuration, &model["location"]);
            self.put_nic((&nic, name), body, takes, now)?;
            nics.push(nic);
        }
        let kept: BTreeSet<String> = nics.iter().map(|nic| nic.to_lowercase()).collect();
        let own = format!("{key}/networkinterfaces/");
        self.nics.retain(|nic, _| !nic.starts_with(&own) || kept.contains(nic));
        self.attach(id, &nics);
        Ok(())
    }

    /// Brings an instance to its set's latest model. The addresses of ipConfigurations that the model doesn't
    /// have are given up at once.
    pub(crate) fn upgrade_instance(&mut self, key: &str, now: Instant) -> Result<(), Reply> {
        let set = key.split("/virtualmachines/").next().unwrap_or_default();
        let (Some(set), Some(vm)) = (self.scale_sets.get(set), self.vms.get_mut(key)) else { return Ok(()) };
        (vm.document, vm.etag) = scale_set::upgrade((&vm.document, vm.etag), &set.document);
        self.supersede(key, &uuid::Uuid::new_v4().to_string());
        self.put_instance_nics(key, None, now)
    }

    /// Removes an instance and its NICs.
    pub(crate) fn remove_instance(&mut self, key: &str) {
        self.vms.remove(key);
        let own = format!("{key}/networkinterfaces/");
        self.nics.retain(|nic, _| !nic.starts_with(&own));
    }

    pub(crate) fn remove_scale_set(&mut self, key: &str) {
        for (_, instance) in self.instances(key) {
            self.remove_instance(&instance);
        }
        self.scale_sets.remove(key);
    }
}
