//! The permissions of the operator's identity, asked of ARM without changing anything.

use serde::Deserialize;
use serde_json::Value;

use super::role::{Action, On, PARTS};
use super::{Azure, Call, Error, Kind, Priority, ResourceId};
use super::{cache, pages, uniform};

/// The newest version of the permissions API (learn.microsoft.com/rest/api/authorization/permissions).
const AUTHORIZATION_API: &str = "2022-04-01";
/// No resource has this etag, so a write that demands it changes nothing: ARM authorizes it, then its
/// provider refuses it with 412.
const NO_ETAG: &str = "W/\"00000000-0000-0000-0000-000000000000\"";
/// A name that no resource has.
const NOBODY: &str = "vnetpool-preflight";

/// The permissions that the roles assigned to an identity give it at a scope.
#[derive(Clone, Debug, Default)]
pub struct Permissions(Vec<Permission>);

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Permission {
    #[serde(default)]
    actions: Vec<String>,
    #[serde(default)]
    not_actions: Vec<String>,
}

/// An action, and the id of what it must be granted on: a resource or a resource group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Need {
    pub scope: String,
    pub action: &'static str,
}

impl Permissions {
    /// Whether one of the roles grants `action`: an action that one role leaves out another may grant.
    pub fn allow(&self, action: &str) -> bool {
        let covers = |patterns: &[String]| patterns.iter().any(|pattern| covers(pattern, action));
        self.0.iter().any(|one| covers(&one.actions) && !covers(&one.not_actions))
    }
}

/// Whether a role's action, in which `*` stands for anything, covers `action`.
fn covers(pattern: &str, action: &str) -> bool {
    let (pattern, action) = (pattern.to_ascii_lowercase(), action.to_ascii_lowercase());
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == action };
    let Some(mut left) = action.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        match left.find(part) {
            Some(at) => left = &left[at + part.len()..],
            None => return false,
        }
    }
    left.ends_with(last)
}

impl Azure {
    /// The permissions that the roles of the operator's identity give it at `scope`, a resource or a resource
    /// group. Deny assignments and locks aren't included.
    ///
    /// # Errors
    /// [`Error::Denied`] if it may not even ask that.
    pub async fn permissions(&self, scope: &str) -> Result<Permissions, Error> {
        let call = Call::about(Kind::Read, Priority::WaitingPods, scope);
        let mut url = self.transport.endpoint().clone();
        url.set_path(&format!("{scope}/providers/Microsoft.Authorization/permissions"));
        url.set_query(Some(&format!("api-version={AUTHORIZATION_API}")));
        pages::read(&self.transport, &call, url).await.map(Permissions)
    }

    /// Tries whether a `read` is granted, by reading the resource. At a resource group it reads a resource
    /// that the group doesn't have, since ARM authorizes first.
    ///
    /// # Errors
    /// The obstacle to it: a missing right, a deny assignment or a lock.
    pub async fn try_read(&self, need: &Need) -> Result<(), Error> {
        let mut url = self.transport.endpoint().clone();
        let kind = need.action.trim_end_matches("/read");
        let path = match need.scope.parse::<ResourceId>() {
            // A part of the resource may be read: a virtual network's usages.
            Ok(resource) => {
                let own = format!("{}/{}/", resource.namespace(), resource.kind()).to_lowercase();
                let part = kind.to_lowercase().strip_prefix(&own).map(|part| format!("/{part}"));
                format!("{resource}{}", part.unwrap_or_default())
            }
            Err(_) => format!("{}/providers/{kind}/{NOBODY}", need.scope),
        };
        url.set_path(&path);
        let version = match kind.split_once('/') {
            Some(("Microsoft.Compute", "virtualMachineScaleSets/virtualMachines/networkInterfaces")) => {
                uniform::NIC_API
            }
            Some(("Microsoft.Compute", _)) => &self.versions.compute,
            _ => &self.versions.network,
        };
        url.set_query(Some(&format!("api-version={version}")));
        match self
            .transport
            .send(&Call::about(Kind::Read, Priority::WaitingPods, &path), url, None, None)
            .await
        {
            Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The permissions to write a NIC, with everything it refers to.
    pub async fn needs(&self, nic: &ResourceId) -> Result<Vec<Need>, Error> {
        Ok(needs(nic, &self.nic_document(nic).await?))
    }

    /// Tries whether ARM would accept a write to this NIC: sends the NIC as it is, on a condition that no NIC
    /// fulfils. Unlike [`Azure::permissions`], this meets deny assignments, locks and policies.
    ///
    /// # Errors
    /// The obstacle to the write.
    pub async fn try_write(&self, nic: &ResourceId) -> Result<(), Error> {
        // An instance's NIC is written through the instance, and read with an API version of its own.
        let (target, version) = match nic.instance() {
            Some(instance) => (instance, &self.versions.compute),
            None => (nic.clone(), &self.versions.network),
        };
        let url = self.url(&target, version);
        let call = Call::about(Kind::Read, Priority::WaitingPods, target.as_str());
        let answer = self.transport.send(&call, url.clone(), None, None).await?;
        let body = match nic.instance() {
            Some(instance) => {
                uniform::unchanged(&cache::parse(&instance, &answer.body)?).to_string().into_bytes()
            }
            None => answer.body,
        };
        let call = Call { kind: Kind::Write, ..call };
        match self.transport.send(&call, url, Some(NO_ETAG), Some(body)).await {
            Ok(_) | Err(Error::Stale { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn nic_document(&self, nic: &ResourceId) -> Result<Value, Error> {
        let call = Call::about(Kind::Read, Priority::WaitingPods, nic.as_str());
        let answer = self.transport.send(&call, self.nic_url(nic), None, None).await?;
        cache::parse(nic, &answer.body)
    }
}

/// The permissions to write a NIC with this document.
fn needs(nic: &ResourceId, document: &Value) -> Vec<Need> {
    let mut all = vec![];
    let instance = nic.instance();
    let concerns = |action: &&Action| action.is_for_instances().is_none_or(|only| only == instance.is_some());
    for action in PARTS.iter().flat_map(|part| part.actions).filter(concerns) {
        let mut need = |scope: String| all.push(Need { scope, action: action.name });
        match action.on {
            On::Nic | On::InstanceNic => need(nic.to_string()),
            On::Instance => instance.iter().for_each(|instance| need(instance.to_string())),
            On::Group => need(nic.group()),
            On::Machine | On::RouteTable | On::PodAddress => {}
            On::Network => references(document, "subnet")
                .iter()
                .filter_map(|subnet| Some(subnet.parse::<ResourceId>().ok()?.parent()?.to_string()))
                .for_each(need),
            On::Referenced(property) => references(document, property).into_iter().for_each(need),
        }
    }
    all.sort();
    all.dedup();
    all
}

/// The ids under a property of the NIC or of its ipConfigurations: one reference, or a list of them.
fn references(document: &Value, property: &str) -> Vec<String> {
    let own = document["properties"]["ipConfigurations"].as_array().into_iter().flatten();
    let holders = own.map(|one| &one["properties"]).chain([&document["properties"]]);
    let values = holders.map(|holder| &holder[property]);
    let single = |value: &Value| value["id"].as_str().map(str::to_owned);
    values
        .flat_map(|value| match value {
            Value::Array(list) => list.iter().filter_map(single).collect(),
            one => Vec::from_iter(single(one)),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn permissions(all: Value) -> Permissions {
        Permissions(serde_json::from_value(all).unwrap())
    }

    #[test]
    fn an_action_that_one_role_leaves_out_another_may_grant() {
        let write = "Microsoft.Network/networkInterfaces/write";
        let table = [
            (json!([]), false),
            (json!([{ "actions": ["*"] }]), true),
            (json!([{ "actions": ["*/read"] }]), false),
            (json!([{ "actions": ["microsoft.network/NETWORKINTERFACES/write"] }]), true),
            (json!([{ "actions": ["Microsoft.Network/*"], "notActions": ["Microsoft.*/write"] }]), false),
            (
                json!([{ "actions": ["*"], "notActions": [write] }, { "actions": ["Microsoft.*/*/write"] }]),
                true,
            ),
            (json!([{ "actions": ["Microsoft.Network/networkInterfaces"] }]), false),
        ];
        for (roles, allowed) in table {
            assert_eq!(permissions(roles.clone()).allow(write), allowed, "{roles}");
        }
    }

    #[test]
    fn a_nic_needs_a_join_on_each_thing_it_refers_to_once() {
        let group = "/subscriptions/s/resourceGroups/g";
        let network = format!("{group}/providers/Microsoft.Network");
        let subnet = json!({ "id": format!("{network}/virtualNetworks/v/subnets/a") });
        let document = json!({ "properties": {
            "networkSecurityGroup": { "id": format!("{network}/networkSecurityGroups/n") },
            "ipConfigurations": [
                { "properties": { "subnet": subnet, "publicIPAddress": { "id": format!("{network}/publicIPAddresses/p") } } },
                { "properties": { "subnet": subnet, "loadBalancerBackendAddressPools":
                    [{ "id": format!("{network}/loadBalancers/l/backendAddressPools/b") }] } },
            ],
        } });
        let nic = format!("{network}/networkInterfaces/nic");
        let needs: Vec<(String, &str)> = needs(&nic.parse().unwrap(), &document)
            .into_iter()
            .map(|need| {
                (need.scope.replace(&network, "N"), need.action.trim_start_matches("Microsoft.Network/"))
            })
            .collect();
        let expected = [
            (group, "locations/operations/read"),
            ("N/loadBalancers/l/backendAddressPools/b", "loadBalancers/backendAddressPools/join/action"),
            ("N/networkInterfaces/nic", "networkInterfaces/read"),
            ("N/networkInterfaces/nic", "networkInterfaces/write"),
            ("N/networkSecurityGroups/n", "networkSecurityGroups/join/action"),
            ("N/publicIPAddresses/p", "publicIPAddresses/join/action"),
            ("N/virtualNetworks/v", "virtualNetworks/read"),
            ("N/virtualNetworks/v", "virtualNetworks/usages/read"),
            ("N/virtualNetworks/v/subnets/a", "virtualNetworks/subnets/join/action"),
        ];
        assert_eq!(needs, expected.map(|(scope, action)| (scope.to_owned(), action)));
    }
}
