//! The rules for documents of application gateways: "Application Gateway infrastructure configuration". Only
//! the error code of a missing reference is known.

use super::World;
use crate::document::{has_id, id, list};
use crate::reply::Reply;
use serde_json::Value;

/// The references of each kind of child, and the children they lead to.
const REFERENCES: [(&str, &str, &str); 6] = [
    ("httpListeners", "frontendIPConfiguration", "frontendIPConfigurations"),
    ("httpListeners", "frontendPort", "frontendPorts"),
    ("requestRoutingRules", "httpListener", "httpListeners"),
    ("requestRoutingRules", "backendAddressPool", "backendAddressPools"),
    ("requestRoutingRules", "backendHttpSettings", "backendHttpSettingsCollection"),
    ("backendHttpSettingsCollection", "probe", "probes"),
];

/// Whether a document may be stored as it is.
pub(crate) fn check(world: &World, gateway: &Value) -> Result<(), Reply> {
    let Some(subnet) = subnet(gateway) else {
        let message = format!("Application gateway {} has no gateway IP configuration.", id(gateway));
        return Err(Reply::refusal("ApplicationGatewayMustHaveGatewayIpConfiguration", message));
    };
    if world.subnet_document(subnet).is_none() {
        return Err(Reply::missing(subnet, id(gateway)));
    }
    // "No other resource is allowed" in its subnet.
    if let Some(other) = world.ip_configurations().find(|one| has_id(&one["properties"]["subnet"], subnet)) {
        let message = format!(
            "Subnet {subnet} cannot be used for application gateway {}: {} is in it.",
            id(gateway),
            id(other)
        );
        return Err(Reply::refusal("ApplicationGatewaySubnetCannotHaveOtherResources", message));
    }
    for (children, field, wanted) in REFERENCES {
        for child in list(gateway, children) {
            let reference = child["properties"][field]["id"].as_str();
            if let Some(reference) =
                reference.filter(|one| !list(gateway, wanted).iter().any(|c| has_id(c, one)))
            {
                return Err(Reply::missing(reference, id(child)));
            }
        }
    }
    Ok(())
}

/// The id of the subnet it is in.
pub(crate) fn subnet(gateway: &Value) -> Option<&str> {
    list(gateway, "gatewayIPConfigurations").first()?["properties"]["subnet"]["id"].as_str()
}
