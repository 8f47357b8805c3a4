//! Pools that make sense are taken and completed; others are refused in words that name the correction.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use vnetpool_crds::NodeIPPool;
use vnetpool_tests::control_plane::{ControlPlane, User, path};

/// A pool's spec, and the API server's answer to it.
pub struct Case {
    pub what: &'static str,
    spec: &'static str,
    answer: &'static str,
}

const fn case(what: &'static str, spec: &'static str, answer: &'static str) -> Case {
    Case { what, spec, answer }
}

pub const REFUSED: &[Case] = &[
    case(
        "a minimum above the maximum",
        "sizing: { minimum: 50, maximum: 20 }",
        "sizing.minimum is above sizing.maximum",
    ),
    case(
        "a minimum above the default maximum",
        "sizing: { minimum: 256 }",
        "should be less than or equal to 255",
    ),
    case(
        "a maximum below the default minimum",
        "sizing: { maximum: 4 }",
        "sizing.minimum is above sizing.maximum",
    ),
    case(
        "a maximum beyond what a NIC takes",
        "sizing: { maximum: 256 }",
        "sizing.maximum is above 255, and in mode Address a NIC takes no more",
    ),
    case(
        "a maximum beyond any kubelet",
        "{ mode: Prefix, sizing: { maximum: 513 } }",
        "should be less than or equal to 512",
    ),
    case(
        "a maximum below one block",
        "{ mode: Prefix, sizing: { maximum: 15 } }",
        "sizing.maximum is below 16, which in mode Prefix is one block",
    ),
    case(
        "an edit that no node may take up",
        "rollout: { maxUpdating: 0 }",
        "rollout.maxUpdating takes a number of nodes from 1 to 100000, or a percentage from 1% to 100%",
    ),
    case(
        "an edit that more than all nodes may take up",
        "rollout: { maxUpdating: 101% }",
        "rollout.maxUpdating takes a number of nodes",
    ),
    case("a batch of nothing", "sizing: { batch: 0 }", "should be greater than or equal to 1"),
    case("a negative warm", "sizing: { warm: -1 }", "should be greater than or equal to 0"),
    case("an adoption of everything", "adopt: All", "supported values: \"Nothing\", \"Secondaries\""),
    case("a mode that is none", "mode: Overlay", "supported values: \"Address\", \"Prefix\", \"Route\""),
    case("a wiring that is none", "wiring: Macvlan", "supported values: \"Routed\", \"Bridge\""),
    case("routes without a range", "mode: Route", "mode Route needs route (podCIDR, routeTableID)"),
    case(
        "a range in a mode without routes",
        "{ mode: Address, route: { podCIDR: 10.244.0.0/16, routeTableID: /subscriptions/s/resourceGroups/g/providers/Microsoft.Network/routeTables/t } }",
        "and no other mode takes it",
    ),
    case(
        "a pod CIDR with host bits",
        "{ mode: Route, route: { podCIDR: 10.244.1.0/16, routeTableID: /subscriptions/s/resourceGroups/g/providers/Microsoft.Network/routeTables/t } }",
        "route.podCIDR takes an IPv4 range such as 10.244.0.0/16",
    ),
    case(
        "a node's range larger than the pod CIDR",
        "{ mode: Route, route: { podCIDR: 10.244.0.0/25, routeTableID: /subscriptions/s/resourceGroups/g/providers/Microsoft.Network/routeTables/t } }",
        "not even one node's range fits in it",
    ),
    case(
        "a node's range beyond any kubelet",
        "{ mode: Route, route: { podCIDR: 10.244.0.0/16, nodePrefixLength: 22, routeTableID: /subscriptions/s/resourceGroups/g/providers/Microsoft.Network/routeTables/t } }",
        "should be greater than or equal to 23",
    ),
    case(
        "a route table by its mere name",
        "{ mode: Route, route: { podCIDR: 10.244.0.0/16, routeTableID: pods } }",
        "route.routeTableID must be the whole resource id of a route table",
    ),
    case(
        "a subnet by its mere name",
        "subnetID: nodes",
        "subnetID must be the whole resource id of a subnet",
    ),
    case(
        "the id of a virtual network",
        "subnetID: /subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v",
        "subnetID must be the whole resource id of a subnet",
    ),
    case("a cooldown that is no duration", "cooldown: soon", "cooldown takes a duration such as 30s"),
    case("a cooldown without a unit", "cooldown: '30'", "cooldown takes a duration such as 30s"),
    case("a negative cooldown", "cooldown: -5s", "cooldown takes a duration such as 30s"),
    case("a cooldown of hours", "cooldown: 2h", "from 0s to 1h"),
    case("a releaseAfter of days", "sizing: { releaseAfter: 48h }", "from 0s to 24h"),
    case(
        "a range that is none",
        "snat: { nonMasqueradeCIDRs: [on-premises] }",
        "takes IPv4 ranges such as 192.168.0.0/16",
    ),
    case(
        "a range with host bits",
        "snat: { nonMasqueradeCIDRs: [192.168.1.0/16] }",
        "no bits set after the prefix",
    ),
    case(
        "an IPv6 range",
        "snat: { nonMasqueradeCIDRs: ['fd00::/8'] }",
        "takes IPv4 ranges such as 192.168.0.0/16",
    ),
    case("more than all of a subnet", "subnetExhaustingPercent: 101", "should be less than or equal to 100"),
    case(
        "an operator that doesn't exist",
        "nodeSelector: { matchExpressions: [{ key: a, operator: Like, values: [b] }] }",
        "supported values: \"In\", \"NotIn\", \"Exists\", \"DoesNotExist\"",
    ),
    case(
        "an operator without its values",
        "nodeSelector: { matchExpressions: [{ key: a, operator: In }] }",
        "takes values with the operators In and NotIn, at least one",
    ),
    case(
        "values that an operator doesn't take",
        "nodeSelector: { matchExpressions: [{ key: a, operator: Exists, values: [b] }] }",
        "and none with Exists and DoesNotExist",
    ),
    case(
        "a label that no node can have",
        "nodeSelector: { matchLabels: { a: 'b c' } }",
        "nodeSelector.matchLabels.a",
    ),
    case("a weight in words", "weight: heavy", "spec.weight"),
    case(
        "a load balancer instead of its backend pool",
        "attachments: { backendPools: [{ name: web, id: /subscriptions/s/resourceGroups/g/providers/Microsoft.Network/loadBalancers/lb }] }",
        "attachments.backendPools.id must be the whole resource id of a backend pool",
    ),
    case(
        "a backend pool whose name can't be listed",
        "attachments: { backendPools: [{ name: 'a,b', id: /subscriptions/s/resourceGroups/g/providers/Microsoft.Network/loadBalancers/lb/backendAddressPools/p }] }",
        "attachments.backendPools.name takes lower-case letters, digits and dashes",
    ),
    case(
        "a security group by its mere name",
        "applicationSecurityGroups: { ids: [web] }",
        "applicationSecurityGroups.ids takes whole resource ids of application security groups",
    ),
    case(
        "a network security group instead of an application's",
        "applicationSecurityGroups: { ids: [/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/networkSecurityGroups/web] }",
        "applicationSecurityGroups.ids takes whole resource ids of application security groups",
    ),
    case(
        "a security group twice, in another letter case",
        "applicationSecurityGroups: { ids: [/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/applicationSecurityGroups/web, /subscriptions/s/resourceGroups/G/providers/Microsoft.Network/applicationSecurityGroups/Web] }",
        "applicationSecurityGroups.ids names a group twice",
    ),
    case(
        "no security group at all",
        "applicationSecurityGroups: { ids: [] }",
        "should have at least 1 items",
    ),
    case(
        "security groups without ids",
        "applicationSecurityGroups: { onSharedNIC: true }",
        "ids: Required value",
    ),
    case(
        "security groups for pods of a route",
        "{ mode: Route, route: { podCIDR: 10.244.0.0/16, routeTableID: /subscriptions/s/resourceGroups/g/providers/Microsoft.Network/routeTables/t }, applicationSecurityGroups: { ids: [/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/applicationSecurityGroups/web] } }",
        "mode Route takes no applicationSecurityGroups",
    ),
    case(
        "two backend pools of one name",
        "attachments: { backendPools: [{ name: a, id: x }, { name: a, id: y }] }",
        "Duplicate value",
    ),
];

pub const ACCEPTED: &[Case] = &[
    case("a pool that takes over", "adopt: Secondaries", ""),
    case("no forecast", "subnetExhaustingPercent: 0", ""),
    case("a pool that holds nothing in reserve", "sizing: { minimum: 0, warm: 0, batch: 1 }", ""),
    case("a minimum equal to the maximum", "sizing: { minimum: 20, maximum: 20 }", ""),
    case("more addresses than ipConfigurations in blocks", "{ mode: Prefix, sizing: { maximum: 512 } }", ""),
    case("no cooldown at all", "cooldown: 0s", ""),
    case("a cooldown that Rust writes in other units", "cooldown: 0.001ms", ""),
    case("a duration of several units", "cooldown: 1m30s", ""),
    case("a fraction of a second", "cooldown: 1.5s", ""),
    case("the longest times", "{ cooldown: 1h, sizing: { releaseAfter: 24h } }", ""),
    case(
        "a subnet in whatever letter case Azure uses",
        "subnetID: /subscriptions/s/resourcegroups/G/providers/microsoft.network/VirtualNetworks/v/Subnets/n",
        "",
    ),
    case(
        "several ranges",
        "snat: { nonMasqueradeCIDRs: [192.168.0.0/16, 172.16.0.0/12, 203.0.113.7/32] }",
        "",
    ),
    case(
        "a backend pool and public addresses",
        "attachments: { publicAddressNamespaces: [shop], backendPools: [{ name: web, id: /subscriptions/s/resourceGroups/g/providers/Microsoft.Network/loadBalancers/lb/backendAddressPools/p }] }",
        "",
    ),
    case(
        "security groups in whatever letter case Azure uses",
        "applicationSecurityGroups: { onSharedNIC: true, ids: [/subscriptions/s/resourcegroups/g/providers/microsoft.network/applicationSecurityGroups/web, /subscriptions/s/resourceGroups/g/providers/Microsoft.Network/applicationSecurityGroups/api] }",
        "",
    ),
    case(
        "a selector",
        "nodeSelector: { matchLabels: { a: b }, matchExpressions: [{ key: c, operator: Exists }] }",
        "",
    ),
];

pub fn refused(plane: &ControlPlane, case: &Case) -> Result<()> {
    let message = plane.refusal(User::Administrator, &["apply", "-f", "-"], &pool("refused", case.spec)?)?;
    ensure!(message.contains(case.answer), "{message}");
    Ok(())
}

pub fn accepted(plane: &ControlPlane, case: &Case) -> Result<()> {
    let manifest = pool("accepted", case.spec)?;
    // Also as a program writes back that has read it.
    let read: NodeIPPool = serde_json::from_str(&manifest)?;
    for manifest in [manifest, serde_json::to_string(&read)?] {
        let applied =
            plane.try_kubectl(User::Administrator, &["apply", "--dry-run=server", "-f", "-"], &manifest)?;
        ensure!(applied.is_ok(), "{applied:?}: {manifest}");
    }
    Ok(())
}

pub fn an_empty_spec_gets_the_documented_defaults(plane: &ControlPlane) -> Result<()> {
    plane.apply(&pool("empty", "{}")?)?;
    let spec: Value =
        serde_json::from_str(&plane.kubectl(&["get", "nodeippool", "empty", "-o", "jsonpath={.spec}"])?)?;
    let sizing = json!({ "minimum": 8, "warm": 8, "maximum": 255, "batch": 4, "releaseAfter": "300s" });
    let expected = json!({ "weight": 0, "mode": "Address", "adopt": "Nothing", "sizing": sizing, "cooldown": "30s", "snat": {}, "subnetExhaustingPercent": 10,
        "wiring": "Routed", "podMetadataAccess": "None" });
    ensure!(spec == expected, "{spec}");
    // By kstatus' rules it is in progress, since no operator has seen it.
    let seen =
        plane.kubectl(&["get", "nodeippool", "empty", "-o", "jsonpath={.status.observedGeneration}"])?;
    ensure!(seen == "0", "{seen:?}");

    plane.apply(&pool("partial", "sizing: { warm: 3 }")?)?;
    let sizing = plane.kubectl(&["get", "nodeippool", "partial", "-o", "jsonpath={.spec.sizing}"])?;
    let sizing: Value = serde_json::from_str(&sizing)?;
    ensure!(sizing["warm"] == 3 && sizing["minimum"] == 8 && sizing["batch"] == 4, "{sizing}");
    Ok(())
}

pub fn a_mode_can_not_be_changed(plane: &ControlPlane) -> Result<()> {
    plane.apply(&pool("settled", "mode: Address")?)?;
    let message =
        plane.refusal(User::Administrator, &["apply", "-f", "-"], &pool("settled", "mode: Prefix")?)?;
    ensure!(message.contains("mode can't be changed; make another pool with a higher weight"), "{message}");
    Ok(())
}

pub fn a_pod_cidr_in_use_can_not_be_changed(plane: &ControlPlane) -> Result<()> {
    let routed = |cidr: &str| {
        let table = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/routeTables/t";
        pool(
            "routed-in-use",
            &format!("{{ mode: Route, route: {{ podCIDR: {cidr}, routeTableID: {table} }} }}"),
        )
    };
    plane.apply(&routed("10.244.0.0/16")?)?;
    let message = plane.refusal(User::Administrator, &["apply", "-f", "-"], &routed("10.245.0.0/16")?)?;
    ensure!(message.contains("route can't be changed, since pods use its addresses"), "{message}");
    Ok(())
}

pub fn an_unknown_field_is_refused_by_its_name(plane: &ControlPlane) -> Result<()> {
    let manifest = pool("unknown", "sizing: { minimun: 4 }")?;
    let message = plane.refusal(User::Administrator, &["apply", "-f", "-"], &manifest)?;
    ensure!(message.contains("unknown field \"spec.sizing.minimun\""), "{message}");
    Ok(())
}

pub fn every_example_applies(plane: &ControlPlane) -> Result<()> {
    let mut applied = 0;
    for file in std::fs::read_dir(path("examples"))? {
        let file = file?.path();
        if file.extension().is_some_and(|extension| extension == "yaml") {
            plane.apply(&std::fs::read_to_string(&file)?).with_context(|| file.display().to_string())?;
            applied += 1;
        }
    }
    ensure!(applied >= 2, "only {applied} examples");
    Ok(())
}

/// A NodeIPPool with this spec in YAML.
fn pool(name: &str, spec: &str) -> Result<String> {
    let spec: Value = serde_yaml_ng::from_str(spec)?;
    let pool = json!({ "apiVersion": "vnetpool.io/v1alpha1", "kind": "NodeIPPool", "metadata": { "name": name }, "spec": spec });
    Ok(pool.to_string())
}
