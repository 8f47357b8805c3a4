//! Azure beside the operator: changed as its owner changes it, and read.

use super::{Stage, subnet};
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use vnetpool_azure_sim::{Config, Effect, Fault, LogEntry};

impl Stage<'_> {
    /// Changes Azure beside the operator, as its owner: PUTs a resource of the group, such as
    /// `Microsoft.Network/routeTables/pods`, and returns its id.
    pub async fn put(&self, resource: &str, body: Value) -> Result<String> {
        let Config { subscription, resource_group, .. } = Config::default();
        let id =
            format!("/subscriptions/{subscription}/resourceGroups/{resource_group}/providers/{resource}");
        let mut body = body;
        body["location"] = json!("westeurope");
        let url = format!("{}{id}?api-version=2025-05-01", self.sim.arm_url());
        let answer = reqwest::Client::new().put(url).bearer_auth("owner").json(&body).send().await?;
        ensure!(answer.status().is_success(), "{resource}: {}", answer.text().await?);
        Ok(id)
    }

    /// Another client's NIC has this address, so that it can't come back by chance.
    pub async fn take(&self, address: &str) -> Result<String> {
        let properties = json!({ "primary": true, "subnet": { "id": subnet("nodes") },
            "privateIPAddress": address, "privateIPAllocationMethod": "Static" });
        let body =
            json!({ "properties": { "ipConfigurations": [{ "name": "theirs", "properties": properties }] } });
        let nic = format!("Microsoft.Network/networkInterfaces/taken-{}", address.replace('.', "-"));
        self.put(&nic, body).await
    }

    /// As [`Stage::put`], but takes a resource away.
    pub async fn delete(&self, id: &str) -> Result<()> {
        let url = format!("{}{id}?api-version=2025-05-01", self.sim.arm_url());
        reqwest::Client::new().delete(url).bearer_auth("owner").send().await?.error_for_status()?;
        Ok(())
    }

    /// Azure's document under an id.
    pub async fn get(&self, id: &str) -> Result<Value> {
        let url = format!("{}{id}?api-version=2025-05-01", self.sim.arm_url());
        Ok(reqwest::Client::new().get(url).bearer_auth("owner").send().await?.json().await?)
    }

    /// The NIC of an instance of a Uniform scale set, which the network provider shows in a version of its
    /// own.
    pub async fn get_instance_nic(&self, id: &str) -> Result<Value> {
        let url = format!("{}{id}?api-version=2018-10-01", self.sim.arm_url());
        Ok(reqwest::Client::new().get(url).bearer_auth("owner").send().await?.json().await?)
    }

    pub async fn get_vm(&self, id: &str) -> Result<Value> {
        let url = format!("{}{id}?api-version=2024-07-01", self.sim.arm_url());
        Ok(reqwest::Client::new().get(url).bearer_auth("owner").send().await?.json().await?)
    }

    /// Changes a VM, as its owner.
    pub async fn put_vm(&self, id: &str, body: Value) -> Result<()> {
        let url = format!("{}{id}?api-version=2024-07-01", self.sim.arm_url());
        let answer = reqwest::Client::new().put(url).bearer_auth("owner").json(&body).send().await?;
        ensure!(answer.status().is_success(), "{id}: {}", answer.text().await?);
        Ok(())
    }

    /// Whether a resource is there.
    pub async fn exists(&self, id: &str) -> Result<bool> {
        Ok(self.get(id).await?["id"].is_string())
    }

    /// Names of ours on the NIC of a node's VM, as Azure holds them.
    pub fn held(&self, node: &str) -> BTreeSet<String> {
        self.nic(node)["properties"]["ipConfigurations"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|one| one["name"].as_str().filter(|name| name.starts_with("vnp-")).map(str::to_owned))
            .collect()
    }

    /// The whole document of the NIC of a node's VM.
    pub fn nic(&self, node: &str) -> Value {
        self.sim.nic(&format!("{node}-nic")).unwrap_or_default()
    }

    /// The requests to ARM since the log was cleared, oldest first.
    pub fn asked(&self) -> Vec<LogEntry> {
        self.sim.log().into_iter().filter(|one| one.path.starts_with("/subscriptions/")).collect()
    }

    /// No list was asked for since then.
    ///
    /// # Errors
    /// Names the first that was.
    pub fn nothing_was_listed(&self) -> Result<()> {
        for entry in self.asked() {
            ensure!(is_of_one_thing(&entry.path), "a list: {} {}", entry.method, entry.path);
        }
        Ok(())
    }

    /// Azure was asked for no change since then.
    pub fn nothing_was_written(&self) -> Result<()> {
        let writes: Vec<_> = self.asked().into_iter().filter(|one| one.method != "GET").collect();
        ensure!(writes.is_empty(), "{writes:?}");
        Ok(())
    }

    /// Of the requests to ARM, the writes of the NIC of a node's VM.
    pub fn writes(&self, node: &str) -> Vec<LogEntry> {
        let nic = format!("/{node}-nic").to_lowercase();
        let is_write = |one: &LogEntry| one.method == "PUT" && one.path.to_lowercase().ends_with(&nic);
        self.asked().into_iter().filter(is_write).collect()
    }

    /// Orders a fault for the next `count` requests of a method whose path contains `path`; gives its id.
    pub fn fault(&self, method: &str, path: &str, count: Option<u64>, effect: Effect) -> u64 {
        let (method, path_contains) = (Some(method.to_owned()), Some(path.to_owned()));
        self.sim.order_fault(Fault { method, path_contains, count, effect })
    }
}

/// A resource, a part of one, or an operation; not all resources of a kind in a subscription or a group. How
/// full the subnets of one VNet are is part of that VNet.
fn is_of_one_thing(path: &str) -> bool {
    let path = path.to_lowercase();
    let Some((scope, resource)) = path.split_once("/providers/") else { return false };
    let names = resource.split('/').skip(1).count();
    let in_group = scope.contains("/resourcegroups/");
    path.contains("/operations/") || in_group && (names % 2 == 0 || resource.ends_with("/usages"))
}
