//! Authorization: role assignments, deny assignments and locks, and ARM's words for each refusal.
//!
//! By default the one simulated identity may do everything. `denied` removes single actions, as `notActions`
//! of its role would. `grants`, once there are any, replace that role by assignments at scopes.

use crate::reply::Reply;
use crate::world::{DenyAssignment, Grant, Lock, LockLevel, World};
use serde_json::{Value, json};

/// The name of every simulated identity in ARM.
pub(crate) const PRINCIPAL: &str = "22222222-2222-2222-2222-222222222222";

/// Whether ARM lets a request on to its provider. Authorization comes before locks.
pub(crate) fn check(world: &World, action: &str, scope: &str) -> Result<(), Reply> {
    let who = format!("The client '{PRINCIPAL}' with object id '{PRINCIPAL}'");
    if !is_permitted(world, action, scope) {
        let message = format!(
            "{who} does not have authorization to perform action '{action}' over scope '{scope}' or the scope is invalid. If \
             access was recently granted, please refresh your credentials."
        );
        return Err(Reply::gateway(403, "AuthorizationFailed", message));
    }
    let access = &world.config.access;
    let denies = |one: &&DenyAssignment| {
        is_within(scope, &one.scope) && !one.not_actions.iter().any(|spared| matches(spared, action))
    };
    if let Some(DenyAssignment { name, scope: at, .. }) = access.deny_assignments.iter().find(denies) {
        // The words are those of public reports. It is an assumption that AKS' own assignment is worded the
        // same.
        let message = format!(
            "{who} has permission to perform action '{action}' on scope '{scope}'; however, the access is denied because of \
             the deny assignment with name '{name}' and Id '{}' at scope '{at}'.",
            uuid::Uuid::nil().simple()
        );
        return Err(Reply::gateway(403, "DenyAssignmentAuthorizationFailed", message));
    }
    let verb = action.rsplit('/').next().unwrap_or_default();
    let holds = |one: &&Lock| {
        is_within(scope, &one.scope)
            && match one.level {
                LockLevel::ReadOnly => verb != "read",
                LockLevel::CanNotDelete => verb == "delete",
            }
    };
    if let Some(lock) = access.locks.iter().find(holds) {
        let message = format!(
            "The scope '{scope}' cannot perform {verb} operation because following scope(s) are locked: '{}'. Please remove \
             the lock and try again.",
            lock.scope
        );
        return Err(Reply::gateway(409, "ScopeLocked", message));
    }
    Ok(())
}

/// The writer of a NIC needs `join` on every resource that the NIC names.
pub(crate) fn check_joins(world: &World, scope: &str, nic: &Value) -> Result<(), Reply> {
    let Some((join, linked)) =
        joins(nic).into_iter().find(|(join, linked)| !is_permitted(world, join, linked))
    else {
        return Ok(());
    };
    let message = format!(
        "The client '{PRINCIPAL}' with object id '{PRINCIPAL}' has permission to perform action \
         'Microsoft.Network/networkInterfaces/write' on scope '{scope}'; however, it does not have permission to perform \
         action(s) '{join}' on the linked scope(s) '{linked}' (respectively) or the linked scope(s) are invalid."
    );
    Err(Reply::gateway(403, "LinkedAuthorizationFailed", message))
}

/// The references of a NIC, each with the action that it needs.
fn joins(nic: &Value) -> Vec<(&'static str, String)> {
    let mut all = vec![];
    let mut add = |action: &'static str, reference: &Value| {
        if let Some(id) = reference["id"].as_str() {
            all.push((action, id.to_owned()));
        }
    };
    add("Microsoft.Network/networkSecurityGroups/join/action", &nic["properties"]["networkSecurityGroup"]);
    for configuration in crate::nic::ip_configurations(nic) {
        let properties = &configuration["properties"];
        add("Microsoft.Network/virtualNetworks/subnets/join/action", &properties["subnet"]);
        add("Microsoft.Network/publicIPAddresses/join/action", &properties["publicIPAddress"]);
        for (list, action) in [
            (
                "applicationSecurityGroups",
                "Microsoft.Network/applicationSecurityGroups/joinIpConfiguration/action",
            ),
            (
                "loadBalancerBackendAddressPools",
                "Microsoft.Network/loadBalancers/backendAddressPools/join/action",
            ),
            ("loadBalancerInboundNatRules", "Microsoft.Network/loadBalancers/inboundNatRules/join/action"),
            (
                "applicationGatewayBackendAddressPools",
                "Microsoft.Network/applicationGateways/backendAddressPools/join/action",
            ),
        ] {
            properties[list].as_array().into_iter().flatten().for_each(|reference| add(action, reference));
        }
    }
    all
}

/// `GET {scope}/providers/Microsoft.Authorization/permissions`: one entry for each assignment that counts at
/// the scope.
pub(crate) fn list(world: &World, scope: &str) -> Vec<Value> {
    let entry = |actions: &[String], not_actions: &[String]| json!({ "actions": actions, "notActions": not_actions, "dataActions": [], "notDataActions": [] });
    let grants = &world.config.access.grants;
    if grants.is_empty() {
        return vec![entry(&["*".to_owned()], &world.config.denied)];
    }
    let here = grants.iter().filter(|grant| is_within(scope, &grant.scope));
    here.map(|grant| entry(&grant.actions, &grant.not_actions)).collect()
}

fn is_permitted(world: &World, action: &str, scope: &str) -> bool {
    let grants = &world.config.access.grants;
    let grants_it = |grant: &Grant| {
        is_within(scope, &grant.scope)
            && grant.actions.iter().any(|granted| matches(granted, action))
            && !grant.not_actions.iter().any(|spared| matches(spared, action))
    };
    !world.config.denied.iter().any(|denied| denied.eq_ignore_ascii_case(action))
        && (grants.is_empty() || grants.iter().any(grants_it))
}

/// Whether `scope` is `outer` or lies below it.
fn is_within(scope: &str, outer: &str) -> bool {
    let (scope, outer) = (scope.to_lowercase(), outer.trim_end_matches('/').to_lowercase());
    scope.strip_prefix(&outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether an action of a role, with its wildcards, covers `action`.
fn matches(pattern: &str, action: &str) -> bool {
    let (pattern, action) = (pattern.to_lowercase(), action.to_lowercase());
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| action.strip_prefix(first)) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_stands_for_any_part_of_an_action() {
        let write = "Microsoft.Network/networkInterfaces/write";
        for (pattern, covers) in [
            ("*", true),
            ("*/read", false),
            ("*/write", true),
            ("microsoft.network/*", true),
            ("Microsoft.Network/networkInterfaces/*", true),
            ("Microsoft.*/networkInterfaces/wr*", true),
            ("Microsoft.Network/networkInterfaces/write", true),
            ("Microsoft.Network/networkInterfaces", false),
            ("Microsoft.Network/*/read", false),
        ] {
            assert_eq!(matches(pattern, write), covers, "{pattern}");
        }
    }

    #[test]
    fn a_scope_covers_those_below_it_in_upper_and_lower_case() {
        assert!(is_within(
            "/subscriptions/S/resourceGroups/G/providers/x",
            "/subscriptions/s/resourcegroups/g/"
        ));
        assert!(!is_within("/subscriptions/S/resourceGroups/G2", "/subscriptions/S/resourceGroups/G"));
        assert!(!is_within("/subscriptions/S", "/subscriptions/S/resourceGroups/G"));
    }
}
