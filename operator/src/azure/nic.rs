//! A NIC as ARM's JSON and as Vnetpool's type, and the change from one document to the next. Pure.
//!
//! A NIC write replaces the whole NIC, so its document is edited as JSON and everything that isn't ours goes
//! back as it came. A typed model would drop what it doesn't know.

mod groups;

use std::collections::{BTreeMap, HashSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde_json::{Value, json};
use vnetpool_crds::names::IP_CONFIGURATION_PREFIX;

use super::{Attached, IpConfiguration, ProvisioningState, ResourceId};

/// A NIC as last read from Azure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    pub id: ResourceId,
    /// Azure's region, such as `westeurope`.
    pub location: String,
    /// As Linux writes it: `00:0d:3a:e5:1c:c0`. `None` until a VM has had the NIC for the first time.
    pub mac: Option<String>,
    /// The VM it is attached to.
    pub vm: Option<ResourceId>,
    /// The address of its primary ipConfiguration, which the node itself uses.
    pub primary: Ipv4Addr,
    /// The subnet of its primary ipConfiguration. Azure demands the same subnet for all others.
    pub subnet: ResourceId,
    pub state: ProvisioningState,
    /// Ours only, in Azure's order.
    pub ip_configurations: Vec<IpConfiguration>,
    /// Whether Azure lets packets through that are from or for addresses other than the NIC's own:
    /// `enableIPForwarding`.
    pub forwards: bool,
    /// The application security groups of all its addresses, as its first ipConfiguration names them: a NIC
    /// has one set of groups.
    pub groups: Vec<ResourceId>,
    /// How many of the NIC's 256 slots others take, the primary ipConfiguration included.
    pub foreign: u32,
    /// The ipConfigurations of others besides the primary one.
    pub others: Others,
}

/// Secondary ipConfigurations of other makers, such as another network plugin, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// A private IPv4 address without attachments.
    pub idle: Vec<String>,
    /// Those of them with an attachment, or of another kind.
    pub attached: Vec<String>,
}

/// The content of one write to a NIC. Names that are already there, or already gone, count as done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Names of ipConfigurations to add; Azure chooses their addresses.
    pub reserve: Vec<String>,
    /// Whether each of them is to be a block of 16 addresses rather than one.
    pub blocks: bool,
    /// ipConfigurations to add by name, each with an address or a block of its own.
    pub restore: BTreeMap<String, Ipv4Net>,
    /// Names of ipConfigurations to remove.
    pub release: Vec<String>,
    /// Names of others' ipConfigurations to remove, of [`Others::idle`] only.
    pub adopt: Vec<String>,
    /// What to attach to ipConfigurations, by name, in place of the backend pools and the public address they
    /// have.
    pub attach: BTreeMap<String, Attached>,
    /// Application security groups to put all ipConfigurations into, others' too: a NIC has one set of
    /// groups.
    pub join: Vec<ResourceId>,
    /// Application security groups to take all ipConfigurations out of.
    pub leave: Vec<ResourceId>,
    /// Write even if there is nothing to add or remove: Azure then finishes the work that a failed operation
    /// has left undone.
    pub repair: bool,
    /// Turns `enableIPForwarding` on, which belongs to the whole NIC. The operator never turns it off, since
    /// other software may need it, too.
    pub forward: bool,
}

/// Why a NIC's document can't be read or changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("its document from Azure lacks {what}")]
    Lacks { what: &'static str },
    #[error(
        "ipConfiguration {name} isn't Vnetpool's to add or remove: its name doesn't begin with \
         {IP_CONFIGURATION_PREFIX}"
    )]
    NotOurs { name: String },
    #[error(
        "Azure has no {what} for instances of a Uniform scale set. Use virtual machines or a scale set in \
         Flexible orchestration mode"
    )]
    NotOnInstance { what: &'static str },
    #[error("ipConfiguration {name} is the primary one, which can't be removed")]
    Primary { name: String },
    #[error("ipConfiguration {name} has {address}, which is the node's own")]
    Own { name: String, address: Ipv4Addr },
}

impl Nic {
    /// Reads a NIC's document. `id` is the id that was asked for: ARM may answer in another case.
    pub(super) fn read(id: &ResourceId, document: &Value) -> Result<Nic, Error> {
        let properties = &document["properties"];
        let all = ip_configurations(document)?;
        // If a NIC marks none as primary, the first one is.
        let primary = all.iter().position(is_primary).unwrap_or_default();
        let ours = all.iter().enumerate().filter(|(index, one)| *index != primary && is_ours(one));
        let ours: Vec<IpConfiguration> = ours.map(|(_, one)| ip_configuration(one)).collect();
        let primary = &all.get(primary).ok_or(Error::Lacks { what: "an ipConfiguration" })?["properties"];
        let own: Ipv4Addr = primary["privateIPAddress"]
            .as_str()
            .and_then(|address| address.parse().ok())
            .ok_or(Error::Lacks { what: "an IPv4 address of the primary ipConfiguration" })?;
        let has_own = |one: &&IpConfiguration| one.address.is_some_and(|range| range.contains(&own));
        if let Some(one) = ours.iter().find(has_own) {
            return Err(Error::Own { name: one.name.clone(), address: own });
        }
        Ok(Nic {
            id: id.clone(),
            location: document["location"].as_str().unwrap_or_default().to_owned(),
            mac: properties["macAddress"].as_str().map(mac),
            vm: vm(properties)?,
            primary: own,
            subnet: subnet(primary)?.parse().map_err(|_| Error::Lacks { what: "a well-formed subnet id" })?,
            state: provisioning_state(properties),
            forwards: properties["enableIPForwarding"] == true,
            groups: groups::read(all),
            foreign: (all.len() - ours.len()) as u32,
            ip_configurations: ours,
            others: Others::read(all),
        })
    }

    /// Whether Azure has ended its work on the NIC, well or badly. A NIC that isn't settled may change
    /// without a new write.
    pub fn is_settled(&self) -> bool {
        let ours = self.ip_configurations.iter().map(|one| &one.state);
        ours.chain([&self.state])
            .all(|state| matches!(state, ProvisioningState::Succeeded | ProvisioningState::Failed))
    }

    /// Whether Azure has given up its work on the NIC, or on one of our ipConfigurations.
    pub fn has_failed(&self) -> bool {
        let mut ours = self.ip_configurations.iter().map(|one| &one.state).chain([&self.state]);
        ours.any(|state| *state == ProvisioningState::Failed)
    }

    /// Whether Azure works on the NIC, or on one of our ipConfigurations. A NIC that is being deleted is
    /// neither this nor settled.
    pub fn is_updating(&self) -> bool {
        let mut ours = self.ip_configurations.iter().map(|one| &one.state).chain([&self.state]);
        ours.any(|state| *state == ProvisioningState::Updating)
    }
}

fn ip_configuration(one: &Value) -> IpConfiguration {
    let properties = &one["properties"];
    IpConfiguration {
        name: name(one).to_owned(),
        address: properties["privateIPAddress"].as_str().and_then(|text| {
            text.parse::<Ipv4Net>().ok().or_else(|| text.parse::<Ipv4Addr>().ok().map(Ipv4Net::from))
        }),
        state: provisioning_state(properties),
        attached: attached(properties),
    }
}

/// The fields of an ipConfiguration for attachments that Vnetpool leaves to others.
const OTHERS: [&str; 4] = [
    "loadBalancerInboundNatRules",
    "applicationGatewayBackendAddressPools",
    "virtualNetworkTaps",
    "gatewayLoadBalancer",
];

fn attached(properties: &Value) -> Attached {
    let id = |one: &Value| one["id"].as_str().and_then(|id| id.parse().ok());
    let pools = properties["loadBalancerBackendAddressPools"].as_array();
    let is_empty = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    Attached {
        backend_pools: pools.into_iter().flatten().filter_map(id).collect(),
        public_address: id(&properties["publicIPAddress"]),
        other: OTHERS.iter().any(|field| !is_empty(&properties[*field])),
    }
}

/// Writes the attachments into an ipConfiguration's properties. Those that stay are written as they came.
fn write_attached(wanted: &Attached, properties: &mut Value) {
    let Some(properties) = properties.as_object_mut() else { return };
    let now = attached(&Value::Object(properties.clone()));
    if now.backend_pools != wanted.backend_pools {
        let mut ids: Vec<&str> = wanted.backend_pools.iter().map(ResourceId::as_str).collect();
        ids.sort_unstable();
        let pools = ids.into_iter().map(|id| json!({ "id": id })).collect();
        properties.insert("loadBalancerBackendAddressPools".into(), Value::Array(pools));
    }
    if now.public_address != wanted.public_address {
        match &wanted.public_address {
            Some(id) => properties.insert("publicIPAddress".into(), json!({ "id": id.as_str() })),
            None => properties.remove("publicIPAddress"),
        };
    }
}

impl Others {
    fn read(all: &[Value]) -> Others {
        // If a NIC marks none as primary, the first one is.
        let primary = all.iter().find(|one| is_primary(one)).or(all.first()).map(name);
        let others = all.iter().filter(|one| !is_ours(one) && Some(name(one)) != primary);
        let (idle, attached) = others.partition::<Vec<_>, _>(|one| is_idle(one));
        let names = |all: Vec<&Value>| all.into_iter().map(|one| name(one).to_owned()).collect();
        Others { idle: names(idle), attached: names(attached) }
    }
}

pub(super) fn provisioning_state(properties: &Value) -> ProvisioningState {
    match properties["provisioningState"].as_str().unwrap_or_default() {
        "Succeeded" => ProvisioningState::Succeeded,
        "Updating" => ProvisioningState::Updating,
        "Deleting" => ProvisioningState::Deleting,
        "Failed" => ProvisioningState::Failed,
        other => ProvisioningState::Other(other.to_owned()),
    }
}

/// The kind of document that lists the ipConfigurations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The NIC's own.
    Nic,
    /// The NIC's configuration in the model of a Uniform scale set's instance. It can express less about an
    /// ipConfiguration: no address, no method of allocation, no prefix length, and public addresses
    /// differently (2024-07-01, `VirtualMachineScaleSetIPConfigurationProperties`).
    Instance,
}

impl Form {
    fn allows(self, change: &Change) -> Result<(), Error> {
        let what = if change.blocks && !change.reserve.is_empty() {
            "blocks of addresses"
        } else if !change.restore.is_empty() {
            "choice of addresses"
        } else if change.attach.values().any(|attached| attached.public_address.is_some()) {
            "public addresses of Vnetpool's"
        } else {
            return Ok(());
        };
        if self == Form::Nic { Ok(()) } else { Err(Error::NotOnInstance { what }) }
    }
}

/// The document to send for `change`. Everything that isn't ours stays, value by value and in its order; new
/// ipConfigurations come last: those with an address of their own, then those of `change.reserve` in its
/// order.
pub(super) fn edit(document: &Value, change: &Change, form: Form) -> Result<Value, Error> {
    form.allows(change)?;
    let all = ip_configurations(document)?;
    let first = &all.first().ok_or(Error::Lacks { what: "an ipConfiguration" })?["properties"];
    let release: HashSet<&str> = change.release.iter().map(String::as_str).collect();
    let named = change.reserve.iter().chain(&change.release).chain(change.attach.keys());
    let named = named.chain(change.restore.keys());
    if let Some(name) = named.into_iter().find(|name| !name.starts_with(IP_CONFIGURATION_PREFIX)) {
        return Err(Error::NotOurs { name: name.clone() });
    }
    let idle = Others::read(all).idle;
    let adopt: HashSet<&str> = change.adopt.iter().map(String::as_str).collect();
    let mut next = Vec::with_capacity(all.len() + change.reserve.len());
    let mut present = HashSet::new();
    for one in all {
        if adopt.contains(name(one)) {
            if !idle.iter().any(|idle| idle == name(one)) {
                return Err(Error::NotOurs { name: name(one).to_owned() });
            }
        } else if !release.contains(name(one)) {
            present.insert(name(one));
            let mut one = one.clone();
            if let Some(attached) = change.attach.get(name(&one)) {
                write_attached(attached, &mut one["properties"]);
            }
            next.push(one);
        } else if is_primary(one) {
            return Err(Error::Primary { name: name(one).to_owned() });
        }
    }
    for (name, address) in &change.restore {
        if !release.contains(name.as_str()) && present.insert(name) {
            let mut one = reserved(name, first, address.prefix_len() < 32, form)?;
            let text =
                if address.prefix_len() < 32 { address.to_string() } else { address.addr().to_string() };
            one["properties"]["privateIPAllocationMethod"] = json!("Static");
            one["properties"]["privateIPAddress"] = json!(text);
            next.push(one);
        }
    }
    for name in &change.reserve {
        if !release.contains(name.as_str()) && present.insert(name) {
            next.push(reserved(name, first, change.blocks, form)?);
        }
    }
    groups::write(&mut next, &change.join, &change.leave);
    let mut edited = document.clone();
    edited["properties"]["ipConfigurations"] = Value::Array(next);
    if change.forward {
        edited["properties"]["enableIPForwarding"] = json!(true);
    }
    Ok(edited)
}

/// A new ipConfiguration. Azure demands the same subnet and application security groups for all of a NIC, so
/// both are taken from the first. A block is an ipConfiguration with prefix length 28, the only one Azure has
/// (`privateIPAddressPrefixLength`, API 2023-11-01 and later; official example NetworkInterfaceCreate).
fn reserved(name: &str, first: &Value, block: bool, form: Form) -> Result<Value, Error> {
    let mut properties = json!({
        "subnet": { "id": subnet(first)? },
        "privateIPAddressVersion": "IPv4",
        "primary": false,
    });
    if form == Form::Nic {
        properties["privateIPAllocationMethod"] = json!("Dynamic");
    }
    if block {
        properties["privateIPAddressPrefixLength"] = json!(28);
    }
    if let Some(groups) = first["applicationSecurityGroups"].as_array().filter(|groups| !groups.is_empty()) {
        properties["applicationSecurityGroups"] = json!(groups);
    }
    Ok(json!({ "name": name, "properties": properties }))
}

/// All of them; each has properties, which can be edited.
fn ip_configurations(document: &Value) -> Result<&Vec<Value>, Error> {
    let all = document["properties"]["ipConfigurations"].as_array();
    let all = all.ok_or(Error::Lacks { what: "properties.ipConfigurations" })?;
    if all.iter().any(|one| !one["properties"].is_object()) {
        return Err(Error::Lacks { what: "the properties of an ipConfiguration" });
    }
    Ok(all)
}

/// A NIC without a VM is given up with all that it holds, so that one whose VM can't be read is in doubt.
fn vm(properties: &Value) -> Result<Option<ResourceId>, Error> {
    let vm = &properties["virtualMachine"];
    let id = || vm["id"].as_str()?.parse().ok();
    if vm.is_null() {
        Ok(None)
    } else {
        id().map(Some).ok_or(Error::Lacks { what: "a well-formed id of its VM" })
    }
}

fn subnet(properties: &Value) -> Result<&str, Error> {
    properties["subnet"]["id"].as_str().ok_or(Error::Lacks { what: "the subnet of an ipConfiguration" })
}

fn name(one: &Value) -> &str {
    one["name"].as_str().unwrap_or_default()
}

fn is_ours(one: &Value) -> bool {
    name(one).starts_with(IP_CONFIGURATION_PREFIX) && !is_primary(one)
}

/// Whether it is a private IPv4 address without attachments.
fn is_idle(one: &Value) -> bool {
    let properties = &one["properties"];
    !name(one).is_empty()
        && !is_primary(one)
        && properties["privateIPAddressVersion"] != "IPv6"
        && OTHERS.iter().chain(&["loadBalancerBackendAddressPools", "publicIPAddress"]).all(|field| {
            let attached = &properties[*field];
            attached.is_null() || attached.as_array().is_some_and(Vec::is_empty)
        })
}

fn is_primary(one: &Value) -> bool {
    one["properties"]["primary"] == true
}

/// ARM writes `00-0D-3A-E5-1C-C0`, IMDS `000D3AE51CC0`, Linux `00:0d:3a:e5:1c:c0`.
fn mac(text: &str) -> String {
    let digits: Vec<char> =
        text.chars().filter(char::is_ascii_hexdigit).map(|c| c.to_ascii_lowercase()).collect();
    digits.chunks(2).map(String::from_iter).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
pub mod tests;
