//! Azure's rules for the application security groups that a NIC names.

use crate::document::{has_id, id, list};
use crate::nic;
use crate::reply::Reply;
use crate::resource::Kind;
use crate::world::World;
use serde_json::Value;

const FIELD: &str = "applicationSecurityGroups";

/// Groups must exist in the NIC's region, and all members of one must be in one virtual network, that of the
/// first member ("Application security groups", Azure's documentation). The refusal for the second rule is
/// not known.
pub(super) fn check(world: &World, nic: &Value) -> Result<(), Reply> {
    let first = nic::ip_configurations(nic).first();
    for group in first.into_iter().flat_map(|first| list(first, FIELD)).map(id) {
        let region = |document: &Value| document["location"].as_str().unwrap_or_default().to_lowercase();
        let known = world.resource(Kind::ApplicationSecurityGroup, group);
        if known.is_none_or(|known| region(known) != region(nic)) {
            return Err(Reply::missing(group, id(nic)));
        }
        let is_in = |one: &&Value| list(one, FIELD).iter().any(|own| has_id(own, group));
        let members = world.nics.values().map(|nic| &nic.document).filter(|other| !has_id(other, id(nic)));
        let mut members = members.filter(|other| nic::ip_configurations(other).iter().any(|one| is_in(&one)));
        let network = |nic: &Value| {
            let subnet = nic::ip_configurations(nic).first()?["properties"]["subnet"]["id"].as_str()?;
            Some(subnet.to_lowercase().split_once("/subnets/")?.0.to_owned())
        };
        if let Some(member) = members.find(|member| network(member) != network(nic)) {
            let message = format!(
                "All network interfaces in application security group {group} must be in the same virtual network: {} and {} \
                 are not.",
                id(nic),
                id(member)
            );
            return Err(Reply::refusal(
                "NetworkInterfacesOfApplicationSecurityGroupMustBeInSameVnet",
                message,
            ));
        }
    }
    Ok(())
}
