//! PUT of a network interface: replaces the whole document, checks the rules for its ipConfigurations,
//! allocates addresses and fills in what Azure fills in. Pure: the subnets are an argument.

use crate::document::{default, list, remove};
use crate::reply::Reply;
use crate::subnet::Subnet;
use ipnet::Ipv4Net;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// Azure's limit of private addresses per NIC; a block counts as one.
const MAX_IP_CONFIGURATIONS: usize = 256;

/// A write to one NIC.
pub(crate) struct Put<'a> {
    pub(crate) id: &'a str,
    pub(crate) name: &'a str,
    pub(crate) old: Option<&'a Value>,
    pub(crate) body: Value,
    pub(crate) etag: String,
    /// `Succeeded` or, while the write goes on, `Updating`.
    pub(crate) state: &'a str,
    /// Whether another of its ipConfigurations may become the primary one.
    pub(crate) moves_primary: bool,
}

impl Put<'_> {
    /// The new document. `subnets` gives a subnet by id, with the addresses that *other* NICs hold.
    pub(crate) fn apply(mut self, subnets: impl Fn(&str) -> Option<Subnet>) -> Result<Value, Reply> {
        self.check_form()?;
        let primary = self.primary()?;
        let mut subnet = self.subnet(primary, subnets)?;
        self.allocate(&mut subnet)?;
        self.fill_in(primary, &subnet);
        Ok(self.body)
    }

    fn configurations(&self) -> &[Value] {
        ip_configurations(&self.body)
    }

    /// Checks everything that later code relies on: objects, names, no duplicates, at least one and not too
    /// many.
    fn check_form(&self) -> Result<(), Reply> {
        let malformed = |what: &str| {
            let message = format!("The request content was invalid and could not be deserialized: {what}");
            Reply::error(400, "InvalidRequestContent", message)
        };
        if !self.body["properties"].is_object() {
            return Err(malformed("'properties' has to be an object."));
        }
        let Some(location) = self.body["location"].as_str() else {
            let message = "The location property is required for this definition.";
            return Err(Reply::gateway(400, "LocationRequired", message));
        };
        if let Some(old) = self.old.and_then(|old| old["location"].as_str()).filter(|old| *old != location) {
            let message = format!(
                "The resource '{}' already exists in location '{old}' in resource group. A resource with the same name \
                 cannot be created in location '{location}'.",
                self.name
            );
            return Err(Reply::gateway(409, "InvalidResourceLocation", message));
        }
        let configurations = self.configurations();
        if configurations.is_empty() {
            let message = format!("Network interface {} must have one or more IP configurations.", self.id);
            return Err(Reply::refusal("NetworkInterfaceMustHaveIpConfigurations", message));
        }
        if configurations.len() > MAX_IP_CONFIGURATIONS {
            // The limit (Azure's documentation, "Networking limits") and the status 400 are known; the code
            // is not published.
            let message = format!(
                "Network interface {} has {} IP configurations, the limit is {MAX_IP_CONFIGURATIONS}.",
                self.id,
                configurations.len()
            );
            return Err(Reply::refusal("PrivateIPAddressesPerNicLimitReached", message));
        }
        let mut names = BTreeSet::new();
        for configuration in configurations {
            let Some(name) = configuration["name"].as_str() else {
                return Err(malformed("an IP configuration needs a name."));
            };
            if !configuration["properties"].is_object() {
                return Err(malformed("the 'properties' of an IP configuration have to be an object."));
            }
            if !names.insert(name.to_lowercase()) {
                let message =
                    format!("Resource {} has two child resources with the same name ({name}).", self.id);
                return Err(Reply::refusal("DuplicateResourceName", message));
            }
        }
        Ok(())
    }

    /// The index of the primary ipConfiguration. The one so far can be neither removed nor renamed.
    fn primary(&self) -> Result<usize, Reply> {
        let configurations = self.configurations();
        let is_marked_primary = |c: &Value| c["properties"]["primary"].as_bool() == Some(true);
        let primaries: Vec<usize> =
            (0..configurations.len()).filter(|index| is_marked_primary(&configurations[*index])).collect();
        let primary = match primaries.as_slice() {
            [one] => *one,
            [] if configurations.len() == 1 => 0,
            _ => {
                let message =
                    format!("Network interface {} must have exactly one primary IP configuration.", self.id);
                return Err(Reply::refusal(
                    "NetworkInterfaceMustHaveExactlyOnePrimaryIpConfiguration",
                    message,
                ));
            }
        };
        for (index, configuration) in configurations.iter().enumerate() {
            let length = &configuration["properties"]["privateIPAddressPrefixLength"];
            // Blocks are /28 and secondary ("Assign private IP address prefixes to VMs", Azure's
            // documentation). The code of the refusal is not known.
            let is_single = length.is_null() || length == 32;
            if !is_single && (length != 28 || index == primary) {
                let message = format!(
                    "IP configuration {} cannot have the private IP address prefix length {length}: only secondary IP \
                     configurations can have one, and it has to be 28.",
                    self.child(configuration)
                );
                return Err(Reply::refusal("PrivateIPAddressPrefixLengthInvalid", message));
            }
        }
        let old = self.old.map(ip_configurations).unwrap_or_default();
        let may_be_it = if self.moves_primary { configurations } else { &configurations[primary..=primary] };
        if let Some(old) = old.iter().find(|c| is_marked_primary(c)).and_then(|c| c["name"].as_str())
            && !may_be_it.iter().filter_map(|c| c["name"].as_str()).any(|new| new.eq_ignore_ascii_case(old))
        {
            let message = format!(
                "IP Configuration {old} cannot be deleted. Deletion and renaming of primary IP Configuration is not \
                 supported"
            );
            return Err(Reply::refusal("IpConfigDeleteNotSupported", message));
        }
        Ok(primary)
    }

    /// The one subnet of all ipConfigurations; a secondary may leave it out.
    fn subnet(&self, primary: usize, subnets: impl Fn(&str) -> Option<Subnet>) -> Result<Subnet, Reply> {
        let configurations = self.configurations();
        let asked = |c: &Value| c.pointer("/properties/subnet/id").and_then(Value::as_str).map(str::to_owned);
        let Some(id) = asked(&configurations[primary]) else {
            let child = self.child(&configurations[primary]);
            let message = format!("Subnet reference is required for ipconfiguration {child}.");
            return Err(Reply::refusal("SubnetIsRequired", message));
        };
        for configuration in configurations {
            if asked(configuration).is_some_and(|other| !other.eq_ignore_ascii_case(&id)) {
                let message = format!(
                    "IP configurations on the same network interface {} cannot use different subnets.",
                    self.id
                );
                return Err(Reply::refusal("IpConfigurationsOnSameNicCannotUseDifferentSubnets", message));
            }
            // Code and words: Azure/azure-cli#21551.
            let groups = |c: &Value| list(c, "applicationSecurityGroups").to_vec();
            if groups(configuration) != groups(&configurations[0]) {
                let names = |c: &Value| {
                    let ids = groups(c);
                    let ids: Vec<&str> = ids.iter().filter_map(|group| group["id"].as_str()).collect();
                    format!("IPConfiguration {} references ASG(s) {}", self.child(c), ids.join(", "))
                };
                let message = format!(
                    "All IPConfigurations on a Network Interface should reference the same set of Application Security Groups. \
                     {}, whereas {}.",
                    names(&configurations[0]),
                    names(configuration)
                );
                let code = "AllIpConfigurationsOnANicMustBelongToTheSameApplicationSecurityGroups";
                return Err(Reply::refusal(code, message));
            }
        }
        let Some(subnet) = subnets(&id) else {
            let message = format!(
                "Resource {id} referenced by resource {} was not found. Please make sure that the referenced resource \
                 exists, and that both resources are in the same region.",
                self.id
            );
            let details = json!([{ "code": "NotFound", "message": format!("Resource {id} not found.") }]);
            return Err(Reply::nrp(400, "InvalidResourceReference", message, details));
        };
        if subnet.state != "Succeeded" {
            let message = format!(
                "Cannot proceed with operation because resource {id} used by resource {} is not in Succeeded state. \
                 Resource is in {} state and the last operation that updated/is updating the resource is \
                 PutSubnetOperation.",
                self.id, subnet.state
            );
            return Err(Reply::retryable("ReferencedResourceNotProvisioned", message));
        }
        Ok(subnet)
    }

    /// Gives every ipConfiguration its address: first the ones asked for or held already, then the lowest
    /// free ones.
    fn allocate(&mut self, subnet: &mut Subnet) -> Result<(), Reply> {
        let kept = self.kept_addresses(subnet);
        let mut chosen: Vec<Option<Ipv4Net>> = Vec::new();
        for configuration in self.configurations() {
            let properties = &configuration["properties"];
            let block = if method(properties) == "Static" {
                Some(self.static_address(configuration, subnet)?)
            } else {
                let name = configuration["name"].as_str().unwrap_or_default().to_lowercase();
                kept.get(&name).copied().filter(|old| old.prefix_len() == prefix_len(properties))
            };
            if let Some(block) = block {
                if let Some(holder) = subnet.holder(block) {
                    let message = format!(
                        "IP configuration {} is using the private IP address {} which is already allocated to resource \
                         {holder}.",
                        self.child(configuration),
                        text_of(block)
                    );
                    return Err(Reply::refusal("PrivateIPAddressIsAllocated", message));
                }
                subnet.taken.insert(block, self.child(configuration));
            }
            chosen.push(block);
        }
        let wanted = chosen.iter().filter(|block| block.is_none()).count();
        for (index, choice) in chosen.iter_mut().enumerate().filter(|(_, choice)| choice.is_none()) {
            let configuration = &self.configurations()[index];
            let Some(block) = subnet.lowest_free(prefix_len(&configuration["properties"])) else {
                let message = format!(
                    "Subnet {} with address prefix {} does not have enough capacity for {wanted} IP addresses.",
                    subnet.name(),
                    subnet.prefix()
                );
                return Err(Reply::refusal("SubnetIsFull", message));
            };
            subnet.taken.insert(block, self.child(configuration));
            *choice = Some(block);
        }
        for (index, block) in chosen.into_iter().enumerate() {
            self.body["properties"]["ipConfigurations"][index]["properties"]["privateIPAddress"] =
                json!(block.map(text_of));
        }
        Ok(())
    }

    /// The addresses of the old document's ipConfigurations in this subnet, by name: a dynamic one keeps its
    /// address.
    fn kept_addresses(&self, subnet: &Subnet) -> BTreeMap<String, Ipv4Net> {
        let old = self.old.map(ip_configurations).unwrap_or_default();
        let in_subnet = |c: &&Value| {
            let id = c.pointer("/properties/subnet/id").and_then(Value::as_str);
            id.is_some_and(|id| id.eq_ignore_ascii_case(&subnet.id))
        };
        let held = |c: &Value| Some((c["name"].as_str()?.to_lowercase(), address(c)?));
        old.iter().filter(in_subnet).filter_map(held).collect()
    }

    fn static_address(&self, configuration: &Value, subnet: &Subnet) -> Result<Ipv4Net, Reply> {
        let child = self.child(configuration);
        let Some(text) = configuration["properties"]["privateIPAddress"].as_str() else {
            let message = format!(
                "Private IP address is required when privateIPAllocationMethod is Static in IP configuration {child}."
            );
            return Err(Reply::refusal("PrivateIPAddressMissing", message));
        };
        let Some(block) = parse_address(text) else {
            let message = format!("Private static IP address {text} in IP configuration {child} is invalid.");
            return Err(Reply::refusal("InvalidIPAddressFormat", message));
        };
        let prefix = subnet.prefix();
        if !subnet.contains(block) {
            let message = format!(
                "Private static IP address {text} does not belong to the range of subnet prefix {prefix}."
            );
            return Err(Reply::refusal("PrivateIPAddressNotInSubnet", message));
        }
        if subnet.reserves(block) {
            let message = format!(
                "Private static IP address {text} falls within reserved IP range of subnet prefix {prefix}."
            );
            return Err(Reply::refusal("PrivateIPAddressInReservedRange", message));
        }
        Ok(block)
    }

    fn child(&self, configuration: &Value) -> String {
        format!("{}/ipConfigurations/{}", self.id, configuration["name"].as_str().unwrap_or_default())
    }

    /// Identity, defaults and read-only fields. Every other field stays as the client sent it.
    fn fill_in(&mut self, primary: usize, subnet: &Subnet) {
        let (id, etag, state) = (self.id.to_owned(), self.etag.clone(), self.state);
        let children: Vec<String> = self.configurations().iter().map(|c| self.child(c)).collect();
        let body = &mut self.body;
        body["id"] = json!(id);
        body["name"] = json!(self.name);
        body["type"] = json!("Microsoft.Network/networkInterfaces");
        body["etag"] = json!(etag);
        default(body, "kind", json!("Regular"));
        let properties = &mut body["properties"];
        properties["provisioningState"] = json!(state);
        // Read-only: the client's values are ignored.
        for field in ["resourceGuid", "virtualMachine", "macAddress", "primary"] {
            match self.old.and_then(|old| old["properties"].get(field)) {
                Some(value) => properties[field] = value.clone(),
                None => remove(properties, field),
            }
        }
        default(properties, "resourceGuid", json!(uuid::Uuid::new_v4().to_string()));
        let dns = json!({ "dnsServers": [], "appliedDnsServers": [],
            "internalDomainNameSuffix": "simulated0azure0internal0.ax.internal.cloudapp.net" });
        default(properties, "dnsSettings", dns);
        for (field, value) in [
            ("enableAcceleratedNetworking", json!(false)),
            ("vnetEncryptionSupported", json!(false)),
            ("enableIPForwarding", json!(false)),
            ("disableTcpStateTracking", json!(false)),
            ("hostedWorkloads", json!([])),
            ("tapConfigurations", json!([])),
            ("nicType", json!("Standard")),
            ("allowPort25Out", json!(true)),
            ("defaultOutboundConnectivityEnabled", json!(false)),
            ("auxiliaryMode", json!("None")),
            ("auxiliarySku", json!("None")),
        ] {
            default(properties, field, value);
        }
        let configurations = properties["ipConfigurations"].as_array_mut();
        for (index, configuration) in configurations.into_iter().flatten().enumerate() {
            configuration["id"] = json!(children[index]);
            configuration["etag"] = json!(etag);
            configuration["type"] = json!("Microsoft.Network/networkInterfaces/ipConfigurations");
            let properties = &mut configuration["properties"];
            properties["provisioningState"] = json!(state);
            properties["privateIPAllocationMethod"] = json!(method(properties));
            default(properties, "privateIPAddressVersion", json!("IPv4"));
            properties["subnet"] = json!({ "id": subnet.id });
            properties["primary"] = json!(index == primary);
        }
    }
}

fn method(properties: &Value) -> &'static str {
    let asked = properties["privateIPAllocationMethod"].as_str().unwrap_or_default();
    if asked.eq_ignore_ascii_case("Static") { "Static" } else { "Dynamic" }
}

fn prefix_len(properties: &Value) -> u8 {
    if properties["privateIPAddressPrefixLength"].as_u64() == Some(28) { 28 } else { 32 }
}

fn parse_address(text: &str) -> Option<Ipv4Net> {
    text.parse().ok().or_else(|| text.parse::<Ipv4Addr>().ok().map(Ipv4Net::from))
}

/// In ARM's form: a single address bare, a block as CIDR.
fn text_of(block: Ipv4Net) -> String {
    if block.prefix_len() == 32 { block.addr().to_string() } else { block.to_string() }
}

/// The ipConfigurations of a NIC's document.
pub(crate) fn ip_configurations(nic: &Value) -> &[Value] {
    nic.pointer("/properties/ipConfigurations").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The address or block an ipConfiguration holds.
pub(crate) fn address(configuration: &Value) -> Option<Ipv4Net> {
    parse_address(configuration.pointer("/properties/privateIPAddress")?.as_str()?)
}

/// All single addresses that a NIC holds; those of a block one by one.
pub(crate) fn addresses(nic: &Value) -> BTreeSet<Ipv4Addr> {
    let blocks = ip_configurations(nic).iter().filter_map(address);
    blocks
        .flat_map(|block| u32::from(block.network())..=u32::from(block.broadcast()))
        .map(Ipv4Addr::from)
        .collect()
}

/// The attachments of the addresses that a NIC holds: each address with the lower-case id of the attached
/// resource.
pub(crate) fn attachments(nic: &Value) -> BTreeSet<(Ipv4Addr, String)> {
    let of = |configuration: &Value| {
        let properties = &configuration["properties"];
        let lists = ["loadBalancerBackendAddressPools", "applicationSecurityGroups"];
        let listed = lists.into_iter().flat_map(|list| properties[list].as_array().into_iter().flatten());
        let all = listed.chain(std::iter::once(&properties["publicIPAddress"]));
        let ids: Vec<String> =
            all.filter_map(|reference| Some(reference["id"].as_str()?.to_lowercase())).collect();
        address(configuration)
            .into_iter()
            .flat_map(move |block| ids.clone().into_iter().map(move |id| (block.addr(), id)))
            .collect::<Vec<_>>()
    };
    ip_configurations(nic).iter().flat_map(of).collect()
}

/// The primary ipConfiguration.
pub(crate) fn primary(nic: &Value) -> Option<&Value> {
    ip_configurations(nic).iter().find(|c| c["properties"]["primary"] == json!(true))
}

/// The id of the machine the NIC is plugged into.
pub(crate) fn vm_id(nic: &Value) -> Option<&str> {
    nic.pointer("/properties/virtualMachine/id")?.as_str()
}

/// Gives the NIC and all its ipConfigurations a new etag.
pub(crate) fn set_etag(nic: &mut Value, etag: &str) {
    nic["etag"] = json!(etag);
    for configuration in nic["properties"]["ipConfigurations"].as_array_mut().into_iter().flatten() {
        configuration["etag"] = json!(etag);
    }
}

/// Sets the state of the NIC and of all its ipConfigurations, with a new etag.
pub(crate) fn set_state(nic: &mut Value, state: &str, etag: &str) {
    set_etag(nic, etag);
    nic["properties"]["provisioningState"] = json!(state);
    for configuration in nic["properties"]["ipConfigurations"].as_array_mut().into_iter().flatten() {
        configuration["properties"]["provisioningState"] = json!(state);
    }
}

#[cfg(test)]
mod tests;
