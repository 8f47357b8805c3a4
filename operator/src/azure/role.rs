//! The permissions that the operator's identity needs: the one list behind the role definition and the
//! preflight.
//!
//! Each call to ARM has its action here; a test compares the list with the calls that are made.

use serde::Serialize;

/// Actions that go together. They needn't be granted where the part's feature isn't used.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    pub name: &'static str,
    /// The part of Vnetpool that needs it.
    pub purpose: &'static str,
    pub actions: &'static [Action],
}

/// An action of Azure, and the scope on which it must be granted.
#[derive(Debug, PartialEq, Eq)]
pub struct Action {
    pub name: &'static str,
    pub on: On,
}

/// The resource on which an action is authorized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// The node's virtual machine.
    Machine,
    /// The node's NIC.
    Nic,
    /// The instance of a Uniform scale set.
    Instance,
    /// The NIC of such an instance, which isn't written itself.
    InstanceNic,
    /// The NIC's resource group. With a grant on the NIC alone, operations can be started but not followed
    /// (Microsoft: "Track asynchronous Azure operations").
    Group,
    /// The virtual network.
    Network,
    /// The route table of a pool of mode Route.
    RouteTable,
    /// A pod's public address, in the NIC's resource group, if a pool lets pods have one. A node alone
    /// doesn't need it.
    PodAddress,
    /// A resource that the NIC refers to: ARM demands `join` on each from the writer of a NIC, even if the
    /// reference doesn't change. This property of the NIC, or of its ipConfigurations, names the resources.
    Referenced(&'static str),
}

const fn action(name: &'static str, on: On) -> Action {
    Action { name, on }
}

/// The actions that every installation needs.
pub const NODES: Part = Part {
    name: "nodes",
    purpose: "every installation: find nodes' NICs, reserve and give back addresses on them",
    actions: &[
        action("Microsoft.Compute/virtualMachines/read", On::Machine),
        action("Microsoft.Network/networkInterfaces/read", On::Nic),
        action("Microsoft.Network/networkInterfaces/write", On::Nic),
        action("Microsoft.Network/virtualNetworks/read", On::Network),
        // For the forecast of full subnets. Everything else works without it.
        action("Microsoft.Network/virtualNetworks/usages/read", On::Network),
        action("Microsoft.Network/virtualNetworks/subnets/join/action", On::Referenced("subnet")),
        action("Microsoft.Network/locations/operations/read", On::Group),
    ],
};

/// All parts, first the one that every installation needs.
pub const PARTS: &[Part] = &[
    NODES,
    Part {
        name: "scale-sets",
        purpose: "nodes in scale sets in Uniform orchestration mode, as AKS makes them by default",
        actions: &[
            action("Microsoft.Compute/virtualMachineScaleSets/virtualMachines/read", On::Instance),
            action("Microsoft.Compute/virtualMachineScaleSets/virtualMachines/write", On::Instance),
            action(
                "Microsoft.Compute/virtualMachineScaleSets/virtualMachines/networkInterfaces/read",
                On::InstanceNic,
            ),
            action("Microsoft.Compute/locations/operations/read", On::Group),
        ],
    },
    Part {
        name: "security-groups",
        purpose: "nodes' NICs with a network security group of their own, or in application security \
                  groups, and pools with applicationSecurityGroups",
        actions: &[
            action(
                "Microsoft.Network/networkSecurityGroups/join/action",
                On::Referenced("networkSecurityGroup"),
            ),
            action(
                "Microsoft.Network/applicationSecurityGroups/joinIpConfiguration/action",
                On::Referenced("applicationSecurityGroups"),
            ),
        ],
    },
    Part {
        name: "load-balancers",
        purpose: "nodes behind a load balancer, as those of AKS are, and pools with attachments.backendPools",
        actions: &[
            action(
                "Microsoft.Network/loadBalancers/backendAddressPools/join/action",
                On::Referenced("loadBalancerBackendAddressPools"),
            ),
            action(
                "Microsoft.Network/loadBalancers/inboundNatRules/join/action",
                On::Referenced("loadBalancerInboundNatRules"),
            ),
        ],
    },
    Part {
        name: "application-gateways",
        purpose: "nodes in a pool of an application gateway",
        actions: &[action(
            "Microsoft.Network/applicationGateways/backendAddressPools/join/action",
            On::Referenced("applicationGatewayBackendAddressPools"),
        )],
    },
    Part {
        name: "route-tables",
        purpose: "pools of mode Route: keep the nodes' routes",
        actions: &[
            action("Microsoft.Network/routeTables/read", On::RouteTable),
            action("Microsoft.Network/routeTables/write", On::RouteTable),
        ],
    },
    Part {
        name: "public-addresses",
        purpose: "nodes and pods with a public address",
        actions: &[action(
            "Microsoft.Network/publicIPAddresses/join/action",
            On::Referenced("publicIPAddress"),
        )],
    },
    Part {
        name: "pods-public-addresses",
        purpose: "pools that let pods have public addresses (attachments.publicAddressNamespaces)",
        actions: &[
            action("Microsoft.Network/publicIPAddresses/read", On::PodAddress),
            action("Microsoft.Network/publicIPAddresses/write", On::PodAddress),
            action("Microsoft.Network/publicIPAddresses/delete", On::PodAddress),
        ],
    },
];

/// The part of that name.
pub fn part(name: &str) -> Option<&'static Part> {
    PARTS.iter().find(|part| part.name == name)
}

/// The role's usual name. Entra has each name once a tenant.
pub const NAME: &str = "Vnetpool Operator";

/// A role definition as `az role definition create` takes it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Definition {
    name: String,
    description: &'static str,
    is_custom: bool,
    actions: Vec<&'static str>,
    not_actions: [&'static str; 0],
    data_actions: [&'static str; 0],
    not_data_actions: [&'static str; 0],
    assignable_scopes: Vec<String>,
}

impl Action {
    /// Whether it is only for NICs of instances of Uniform scale sets (true), or never for them (false);
    /// `None` if it is for every NIC.
    pub fn is_for_instances(&self) -> Option<bool> {
        match self.on {
            On::Instance | On::InstanceNic => Some(true),
            On::Machine | On::Nic => Some(false),
            On::Group => Some(self.name.starts_with("Microsoft.Compute/")),
            On::Network | On::RouteTable | On::PodAddress | On::Referenced(_) => None,
        }
    }
}

impl Definition {
    /// With the actions of [`NODES`] and of `parts`; to be assigned at `scopes` or below.
    pub fn of(name: String, parts: &[&'static Part], scopes: Vec<String>) -> Definition {
        let chosen = PARTS.iter().filter(|part| part.name == NODES.name || parts.contains(part));
        Definition {
            name,
            description: "What Vnetpool's operator does in Azure: find nodes' virtual machines, reserve and \
                          give back addresses on their network interfaces. Assign it on the resource groups \
                          of the nodes and of the virtual network.",
            is_custom: true,
            actions: chosen.flat_map(|part| part.actions).map(|action| action.name).collect(),
            not_actions: [],
            data_actions: [],
            not_data_actions: [],
            assignable_scopes: scopes,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn names(parts: &[Part]) -> BTreeSet<&'static str> {
        parts.iter().flat_map(|part| part.actions).map(|action| action.name).collect()
    }

    #[test]
    fn the_example_is_the_role_of_all_parts() {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/role.json");
        let scope = "/subscriptions/00000000-0000-0000-0000-000000000001".to_owned();
        let definition = Definition::of(NAME.into(), &PARTS.iter().collect::<Vec<_>>(), vec![scope]);
        let expected = serde_json::to_string_pretty(&definition).unwrap() + "\n";
        assert_eq!(
            std::fs::read_to_string(example).unwrap(),
            expected,
            "print it anew: vnetpool-operator role --scope \
             /subscriptions/00000000-0000-0000-0000-000000000001 > examples/role.json"
        );
    }

    #[test]
    fn a_part_adds_its_actions_to_those_of_every_installation() {
        let parts = [part("load-balancers").unwrap()];
        let balanced = Definition::of("Ours".into(), &parts, vec!["/subscriptions/s".into()]);
        assert_eq!(balanced.name, "Ours");
        assert_eq!(balanced.actions.len(), NODES.actions.len() + 2);
        assert!(balanced.actions.contains(&"Microsoft.Network/loadBalancers/inboundNatRules/join/action"));
        assert!(!balanced.actions.contains(&"Microsoft.Network/publicIPAddresses/join/action"));
    }

    #[test]
    fn no_action_is_listed_twice_and_none_has_a_wildcard() {
        let all: Vec<_> = PARTS.iter().flat_map(|part| part.actions).map(|action| action.name).collect();
        assert_eq!(all.len(), names(PARTS).len());
        assert!(all.iter().all(|name| !name.contains('*')), "{all:?}");
    }
}
