//! Network resources that consist of a document only: PUT of a route table, a security group, a public
//! address, a load balancer, a NAT gateway or an application gateway. Pure. The fabric reads from the
//! documents what they do to packets.

use crate::document::{default, remove};
use serde_json::{Value, json};

/// The resources that share one way of being written, read, listed and deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    RouteTable,
    SecurityGroup,
    ApplicationSecurityGroup,
    PublicAddress,
    LoadBalancer,
    NatGateway,
    ApplicationGateway,
}

impl Kind {
    const ALL: [Self; 7] = [
        Self::RouteTable,
        Self::SecurityGroup,
        Self::ApplicationSecurityGroup,
        Self::PublicAddress,
        Self::LoadBalancer,
        Self::NatGateway,
        Self::ApplicationGateway,
    ];

    /// The kind a lower-case path segment names.
    pub(crate) fn of(segment: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.collection().eq_ignore_ascii_case(segment))
    }

    fn collection(self) -> &'static str {
        self.type_name().rsplit('/').next().unwrap_or_default()
    }

    /// Azure's name of the type.
    pub(crate) fn type_name(self) -> &'static str {
        match self {
            Self::RouteTable => "Microsoft.Network/routeTables",
            Self::SecurityGroup => "Microsoft.Network/networkSecurityGroups",
            Self::ApplicationSecurityGroup => "Microsoft.Network/applicationSecurityGroups",
            Self::PublicAddress => "Microsoft.Network/publicIPAddresses",
            Self::LoadBalancer => "Microsoft.Network/loadBalancers",
            Self::NatGateway => "Microsoft.Network/natGateways",
            Self::ApplicationGateway => "Microsoft.Network/applicationGateways",
        }
    }

    /// Its name for operations in messages.
    pub(crate) fn operation_names(self) -> (&'static str, &'static str) {
        match self {
            Self::RouteTable => ("PutRouteTableOperation", "DeleteRouteTableOperation"),
            Self::SecurityGroup => {
                ("PutNetworkSecurityGroupOperation", "DeleteNetworkSecurityGroupOperation")
            }
            Self::ApplicationSecurityGroup => {
                ("PutApplicationSecurityGroupOperation", "DeleteApplicationSecurityGroupOperation")
            }
            Self::PublicAddress => ("PutPublicIpAddressOperation", "DeletePublicIpAddressOperation"),
            Self::LoadBalancer => ("PutLoadBalancerOperation", "DeleteLoadBalancerOperation"),
            Self::NatGateway => ("PutNatGatewayOperation", "DeleteNatGatewayOperation"),
            Self::ApplicationGateway => {
                ("PutApplicationGatewayOperation", "DeleteApplicationGatewayOperation")
            }
        }
    }

    /// The lists in its properties whose items are resources themselves, each with an id.
    pub(crate) fn children(self) -> &'static [&'static str] {
        match self {
            Self::RouteTable => &["routes"],
            Self::SecurityGroup => &["securityRules", "defaultSecurityRules"],
            Self::LoadBalancer => &[
                "frontendIPConfigurations",
                "backendAddressPools",
                "loadBalancingRules",
                "probes",
                "inboundNatRules",
                "outboundRules",
                "inboundNatPools",
            ],
            Self::ApplicationGateway => &[
                "gatewayIPConfigurations",
                "frontendIPConfigurations",
                "frontendPorts",
                "probes",
                "backendAddressPools",
                "backendHttpSettingsCollection",
                "httpListeners",
                "requestRoutingRules",
            ],
            Self::ApplicationSecurityGroup | Self::PublicAddress | Self::NatGateway => &[],
        }
    }

    /// The list of children that a lower-case path segment names.
    pub(crate) fn child(self, segment: &str) -> Option<&'static str> {
        self.children().iter().copied().find(|list| list.eq_ignore_ascii_case(segment))
    }

    /// Whether items of a list can be written one by one (the OpenAPI documents list a PUT for these only).
    pub(crate) fn writes_children_singly(list: &str) -> bool {
        ["routes", "securityRules", "backendAddressPools", "inboundNatRules"].contains(&list)
    }

    /// The state in the answer to a first PUT. Recorded: a load balancer exists at once.
    fn first_state(self) -> &'static str {
        if self == Self::LoadBalancer { "Succeeded" } else { "Updating" }
    }
}

/// A write to one resource.
pub(crate) struct Put<'a> {
    pub(crate) kind: Kind,
    pub(crate) id: &'a str,
    pub(crate) name: &'a str,
    pub(crate) old: Option<&'a Value>,
    pub(crate) body: Value,
    pub(crate) etag: &'a str,
}

impl Put<'_> {
    /// The new document: identity, defaults, read-only fields; the rest as the client sent it.
    pub(crate) fn document(self) -> Value {
        let Self { kind, id, name, old, mut body, etag } = self;
        let state = if old.is_some() { "Succeeded" } else { kind.first_state() };
        body["id"] = json!(id);
        body["name"] = json!(name);
        body["type"] = json!(kind.type_name());
        // A reference may be sent with all the fields of the resource. Only its id is kept.
        trim_references(&mut body["properties"]);
        let properties = &mut body["properties"];
        let known = |field: &str| old.map_or(Value::Null, |old| old["properties"][field].clone());
        properties["resourceGuid"] = known("resourceGuid");
        default(properties, "resourceGuid", json!(uuid::Uuid::new_v4().to_string()));
        match kind {
            Kind::RouteTable => default(properties, "disableBgpRoutePropagation", json!(false)),
            Kind::SecurityGroup => properties["defaultSecurityRules"] = default_rules(),
            Kind::PublicAddress => {
                match known("ipAddress") {
                    Value::Null => remove(properties, "ipAddress"),
                    address => properties["ipAddress"] = address,
                }
                default(properties, "publicIPAddressVersion", json!("IPv4"));
                default(properties, "publicIPAllocationMethod", json!("Dynamic"));
                default(properties, "idleTimeoutInMinutes", json!(4));
                default(properties, "ipTags", json!([]));
                if body["sku"]["name"] == json!("Standard") {
                    let inherited = json!({ "protectionMode": "VirtualNetworkInherited" });
                    default(&mut body["properties"], "ddosSettings", inherited);
                }
                name_in_dns(&mut body);
            }
            Kind::NatGateway => {
                default(properties, "idleTimeoutInMinutes", json!(4));
                default(properties, "type", json!("Public"));
            }
            Kind::ApplicationGateway => properties["operationalState"] = json!("Running"),
            Kind::LoadBalancer | Kind::ApplicationSecurityGroup => {}
        }
        if matches!(kind, Kind::PublicAddress | Kind::LoadBalancer | Kind::NatGateway) {
            default(&mut body, "sku", json!({}));
            default(&mut body["sku"], "name", json!("Basic"));
            default(&mut body["sku"], "tier", json!("Regional"));
        }
        for list in kind.children() {
            default(&mut body["properties"], list, json!([]));
            for child in body["properties"][*list].as_array_mut().into_iter().flatten() {
                let name = child["name"].as_str().unwrap_or_default().to_owned();
                *child = self::child(kind, id, list, &name, child.take());
            }
        }
        set_state(kind, &mut body, state, etag);
        body
    }
}

/// One item of a list of children: its identity and defaults.
pub(crate) fn child(kind: Kind, parent: &str, list: &str, name: &str, mut body: Value) -> Value {
    body["id"] = json!(format!("{parent}/{list}/{name}"));
    body["name"] = json!(name);
    body["type"] = json!(format!("{}/{list}", kind.type_name()));
    default(&mut body, "properties", json!({}));
    trim_references(&mut body["properties"]);
    let properties = &mut body["properties"];
    match list {
        "routes" => default(properties, "hasBgpOverride", json!(false)),
        "securityRules" | "defaultSecurityRules" => {
            for plural in [
                "sourcePortRanges",
                "destinationPortRanges",
                "sourceAddressPrefixes",
                "destinationAddressPrefixes",
            ] {
                default(properties, plural, json!([]));
            }
        }
        "frontendIPConfigurations" => default(properties, "privateIPAllocationMethod", json!("Dynamic")),
        "backendAddressPools" if kind == Kind::ApplicationGateway => {
            default(properties, "backendAddresses", json!([]))
        }
        "backendAddressPools" => default(properties, "loadBalancerBackendAddresses", json!([])),
        _ => {}
    }
    body
}

/// Sets the state of a resource and of its children, with a new etag.
pub(crate) fn set_state(kind: Kind, document: &mut Value, state: &str, etag: &str) {
    document["etag"] = json!(etag);
    document["properties"]["provisioningState"] = json!(state);
    for list in kind.children() {
        for child in document["properties"][*list].as_array_mut().into_iter().flatten() {
            child["etag"] = json!(etag);
            child["properties"]["provisioningState"] = json!(state);
        }
    }
}

/// A label becomes a name in the region's domain.
fn name_in_dns(public_address: &mut Value) {
    let location = public_address["location"].as_str().unwrap_or_default().to_owned();
    let settings = &mut public_address["properties"]["dnsSettings"];
    match settings["domainNameLabel"].as_str().map(str::to_owned) {
        Some(label) => settings["fqdn"] = json!(format!("{label}.{location}.cloudapp.azure.com")),
        None => remove(&mut public_address["properties"], "dnsSettings"),
    }
}

/// Fields that refer to another resource. Of a client's value only the id is kept.
const REFERENCES: [&str; 12] = [
    "publicIPAddress",
    "subnet",
    "networkSecurityGroup",
    "routeTable",
    "natGateway",
    "frontendIPConfiguration",
    "backendAddressPool",
    "probe",
    "httpListener",
    "backendHttpSettings",
    "frontendPort",
    "virtualNetwork",
];

fn trim_references(properties: &mut Value) {
    for field in REFERENCES {
        if properties[field]["id"].is_string() {
            properties[field] = json!({ "id": properties[field]["id"] });
        } else if properties[field].is_null() {
            remove(properties, field);
        }
    }
}

/// The rules every security group has (recorded in `securitygroup.json`).
fn default_rules() -> Value {
    let rule = |name: &str, description: &str, from: &str, to: &str, access: &str, priority: u32| {
        let direction = if name.ends_with("InBound") { "Inbound" } else { "Outbound" };
        json!({ "name": name, "properties": {
            "description": description, "protocol": "*", "sourcePortRange": "*", "destinationPortRange": "*",
            "sourceAddressPrefix": from, "destinationAddressPrefix": to, "access": access, "priority": priority,
            "direction": direction,
        } })
    };
    json!([
        rule(
            "AllowVnetInBound",
            "Allow inbound traffic from all VMs in VNET",
            "VirtualNetwork",
            "VirtualNetwork",
            "Allow",
            65000
        ),
        rule(
            "AllowAzureLoadBalancerInBound",
            "Allow inbound traffic from azure load balancer",
            "AzureLoadBalancer",
            "*",
            "Allow",
            65001
        ),
        rule("DenyAllInBound", "Deny all inbound traffic", "*", "*", "Deny", 65500),
        rule(
            "AllowVnetOutBound",
            "Allow outbound traffic from all VMs to all VMs in VNET",
            "VirtualNetwork",
            "VirtualNetwork",
            "Allow",
            65000
        ),
        rule(
            "AllowInternetOutBound",
            "Allow outbound traffic from all VMs to Internet",
            "*",
            "Internet",
            "Allow",
            65001
        ),
        rule("DenyAllOutBound", "Deny all outbound traffic", "*", "*", "Deny", 65500),
    ])
}
