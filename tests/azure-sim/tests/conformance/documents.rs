//! Bodies against the official OpenAPI documents.

use crate::client::{Client, path_of};
use crate::gateways;
use libtest_mimic::Failed;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use vnetpool_azure_sim::schema::{Coverage, Documents};
use vnetpool_azure_sim::{Config, LogEntry, NewInstance, NewScaleSet, NewVm, Peering, Settings, Sim};

const NETWORK: &str = "network/resource-manager/Microsoft.Network/stable/2024-03-01";

fn entry(method: &str, path: &str, status: u16, request: Option<Value>, response: Option<Value>) -> LogEntry {
    LogEntry {
        seq: 1,
        time: String::new(),
        method: method.into(),
        path: path.into(),
        query: String::new(),
        status,
        caller: String::new(),
        host: String::new(),
        if_match: None,
        request,
        response,
    }
}

/// A validator that knew the documents wrongly would refuse what they themselves give as examples.
pub(crate) fn azures_own_examples_validate(folder: &Path) -> Result<(), Failed> {
    let folder = folder.join("specification");
    let documents = Documents::load(&folder)?;
    let read =
        |path: &Path| -> Result<Value, Failed> { Ok(serde_json::from_str(&std::fs::read_to_string(path)?)?) };
    let (mut bodies, mut wrong) = (0, Vec::new());
    for file in [
        "networkInterface.json",
        "virtualNetwork.json",
        "routeTable.json",
        "networkSecurityGroup.json",
        "applicationSecurityGroup.json",
        "publicIpAddress.json",
        "loadBalancer.json",
        "natGateway.json",
    ] {
        let file = folder.join(NETWORK).join(file);
        for (path, methods) in read(&file)?["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                let body =
                    operation["parameters"].as_array().into_iter().flatten().find(|p| p["in"] == "body");
                for example in operation["x-ms-examples"].as_object().into_iter().flatten().map(|(_, e)| e) {
                    let name = example["$ref"].as_str().unwrap();
                    let example = read(&file.with_file_name(name))?;
                    let request =
                        body.map(|body| example["parameters"][body["name"].as_str().unwrap()].clone());
                    for (status, response) in example["responses"].as_object().unwrap() {
                        let response = response.get("body").cloned();
                        let entry =
                            entry(&method.to_uppercase(), path, status.parse()?, request.clone(), response);
                        bodies += 1;
                        if let Err(errors) = documents.validate(&entry) {
                            wrong.push(format!("{name} ({status}): {}", errors.join("; ")));
                        }
                    }
                }
            }
        }
    }
    println!("{bodies} example exchanges compared, {} deviate", wrong.len());
    if wrong.is_empty() && bodies > 40 { Ok(()) } else { Err(wrong.join("\n").into()) }
}

/// Every answer of the simulator, once, and all of it validated.
pub(crate) fn every_kind_of_answer_validates(folder: &Path) -> Result<(), Failed> {
    let documents = Documents::load(&folder.join("specification"))?;
    let log = crate::block_on(story());
    let (mut coverage, mut codes, mut wrong) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    for entry in &log {
        match documents.validate(entry) {
            Ok(Coverage::Validated) => *coverage.entry("validated").or_insert(0) += 1,
            Ok(Coverage::Undocumented(reason)) => *coverage.entry(reason).or_insert(0) += 1,
            Err(errors) => {
                wrong.push(format!(
                    "{} {} ({}): {}",
                    entry.method,
                    entry.path,
                    entry.status,
                    errors.join("; ")
                ));
            }
        }
        let error = entry.response.as_ref().and_then(|body| body.pointer("/error/code")?.as_str());
        if let Some(code) = error {
            *codes.entry(code.to_owned()).or_insert(0) += 1;
        }
    }
    println!("{} exchanges: {coverage:?}; errors among them: {codes:?}", log.len());
    for code in [
        "ApplicationGatewaySubnetCannotHaveOtherResources",
        "AuthenticationFailed",
        "AuthorizationFailed",
        "DnsRecordInUse",
        "InUseNetworkSecurityGroupCannotBeDeleted",
        "InUseRouteTableCannotBeDeleted",
        "InUseSubnetCannotBeDeleted",
        "InvalidResourceReference",
        "IpConfigDeleteNotSupported",
        "LinkedAuthorizationFailed",
        "MissingApiVersionParameter",
        "NicInUse",
        "InvalidParameter",
        "NotFound",
        "OperationNotAllowed",
        "PreconditionFailed",
        "PrivateIPAddressInReservedRange",
        "PrivateIPAddressIsAllocated",
        "PrivateIPAddressMissing",
        "PrivateIPAddressNotInSubnet",
        "PublicIPAddressCannotBeDeleted",
        "PublicIPAddressInUse",
        "ResourceGroupNotFound",
        "ResourceNotFound",
        "RetryableError",
        "RouteConflict",
        "SubnetIsFull",
        "SubscriptionRequestsThrottled",
        "VnetAddressSpacesOverlap",
    ] {
        if !codes.contains_key(code) {
            wrong.push(format!("the story meets no {code}"));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

async fn story() -> Vec<LogEntry> {
    // Shortened: the bodies are compared here, not the times.
    let sim = Sim::start(Config { write_seconds: 0.2, ..Config::default() }).await.unwrap();
    let client = Client::of(&sim);
    let vm = sim.add_vm(NewVm { name: "a".into(), ..NewVm::default() }).await.unwrap();
    let small = sim
        .add_vm(NewVm { name: "b".into(), subnet: Some("small".into()), ..NewVm::default() })
        .await
        .unwrap();
    sim.set_peerings(
        "vnet",
        &[Peering { name: "hub".into(), prefixes: vec!["10.9.0.0/16".parse().unwrap()] }],
    )
    .unwrap();
    let group = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/vnetpool";
    let network = format!("{group}/providers/Microsoft.Network");
    let version = "api-version=2024-03-01";
    let nic = format!("{}?{version}", vm.nic_id);

    for path in [
        format!("{network}/networkInterfaces?{version}"),
        format!("{}/ipConfigurations?{version}", vm.nic_id),
        format!("{}/ipConfigurations/ipconfig1?{version}", vm.nic_id),
        format!("{}/ipConfigurations/none?{version}", vm.nic_id),
        format!("{network}/virtualNetworks?{version}"),
        format!("{network}/virtualNetworks/vnet?{version}"),
        format!("{network}/virtualNetworks/none?{version}"),
        format!("{network}/virtualNetworks/vnet/usages?{version}"),
        format!("{network}/virtualNetworks/vnet/virtualNetworkPeerings?{version}"),
        format!("{network}/virtualNetworks/vnet/CheckIPAddressAvailability?ipAddress=10.240.0.4&{version}"),
        format!("{network}/virtualNetworks/vnet/CheckIPAddressAvailability?ipAddress=10.240.0.99&{version}"),
        format!("{network}/virtualNetworks/vnet/subnets?{version}"),
        format!("{network}/virtualNetworks/vnet/subnets/nodes?{version}"),
        format!("{network}/virtualNetworks/vnet/subnets/none?{version}"),
        format!("{}?api-version=2024-07-01", vm.vm_id),
        format!("{}?api-version=2024-07-01&$expand=instanceView", vm.vm_id),
        format!("{}/instanceView?api-version=2024-07-01", vm.vm_id),
        format!("{group}/providers/Microsoft.Compute/virtualMachines?api-version=2024-07-01"),
        format!("{}x?api-version=2024-07-01", vm.vm_id),
        format!("{group}x/providers/Microsoft.Network/networkInterfaces/a-nic?{version}"),
        vm.nic_id.clone(),
    ] {
        client.get(&path).await;
    }
    client.send("GET", &nic, &[("authorization", "")], None).await.unwrap();

    // A write that takes its time, one that supersedes it, and their polls.
    let held = client.get(&nic).await.body;
    let with = |name: &str, properties: Value| {
        let mut body = held.clone();
        let added = json!({ "name": name, "properties": properties });
        body["properties"]["ipConfigurations"].as_array_mut().unwrap().push(added);
        body
    };
    let mut polls = Vec::new();
    for name in ["vnp-1", "vnp-2"] {
        let answer = client.put(&nic, &with(name, json!({}))).await;
        polls.push(path_of(&answer.headers["azure-asyncoperation"]).to_owned());
    }
    for poll in &polls {
        client.get(poll).await;
    }
    client.get(&nic).await;

    // Azure's refusals.
    let fixed = |address: &str| json!({ "privateIPAllocationMethod": "Static", "privateIPAddress": address });
    for refused in [
        with("vnp-3", fixed("10.240.0.3")),
        with("vnp-3", fixed("10.250.0.3")),
        with("vnp-3", json!({ "privateIPAllocationMethod": "Static" })),
        with("vnp-3", fixed(&vm.address.to_string())),
        json!({ "location": "westeurope", "properties": { "ipConfigurations": [] } }),
    ] {
        client.put(&nic, &refused).await;
    }
    let mut renamed = held.clone();
    renamed["properties"]["ipConfigurations"][0]["name"] = json!("other");
    client.put(&nic, &renamed).await;
    client.send("PUT", &nic, &[("if-match", "W/\"old\"")], Some(&held)).await.unwrap();
    client.send("DELETE", &nic, &[], None).await.unwrap();
    client.send("PATCH", &nic, &[], Some(&json!({ "tags": { "a": "b" } }))).await.unwrap();
    let small_nic = format!("{}?{version}", small.nic_id);
    let mut greedy = client.get(&small_nic).await.body;
    for index in 0..12 {
        let added = json!({ "name": format!("vnp-{index}"), "properties": {} });
        greedy["properties"]["ipConfigurations"].as_array_mut().unwrap().push(added);
    }
    client.put(&small_nic, &greedy).await;
    for denied in ["networkInterfaces/write", "virtualNetworks/subnets/join/action"] {
        sim.deny(vec![format!("Microsoft.Network/{denied}")]);
        client.put(&nic, &held).await;
    }
    sim.deny(Vec::new());

    // The metadata service.
    for path in [
        "/metadata/versions",
        "/metadata/instance?api-version=2023-07-01",
        "/metadata/instance/network?api-version=2021-02-01",
        "/metadata/instance?api-version=1999-01-01",
        "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fmanagement.azure.com%2F",
        "/metadata/identity/oauth2/token?api-version=2018-02-01",
    ] {
        client.send("GET", path, &[("metadata", "true")], None).await.unwrap();
    }
    client.get("/metadata/instance?api-version=2021-02-01").await;

    scale_set_story(&sim, &client).await;

    // Subnets and virtual networks of one's own.
    let vnet = format!("{network}/virtualNetworks/other?{version}");
    let subnet = format!("{network}/virtualNetworks/other/subnets/s?{version}");
    let space = json!({ "addressPrefixes": ["10.1.0.0/16"] });
    client.put(&vnet, &json!({ "location": "westeurope", "properties": { "addressSpace": space } })).await;
    client.put(&subnet, &json!({ "properties": { "addressPrefix": "10.1.0.0/24" } })).await;
    client.get(&subnet).await;
    client.put(&subnet, &json!({ "properties": { "addressPrefix": "10.2.0.0/24" } })).await;
    client.send("DELETE", &subnet, &[], None).await.unwrap();
    client.send("DELETE", &vnet, &[], None).await.unwrap();
    let unplugged = format!("{network}/networkInterfaces/free?{version}");
    client.put(&unplugged, &free_nic()).await;
    client.put(&unplugged, &free_nic()).await;
    client.send("DELETE", &unplugged, &[], None).await.unwrap();

    beside_nics(&client, &network, &nic, &held).await;
    gateways::story(&client, &network).await;

    // And one request too many.
    sim.set(&Settings { limits: Some(true), ..Settings::default() }).unwrap();
    let mut codes = 0..MOST_REQUESTS;
    while client.get(&nic).await.code() != "SubscriptionRequestsThrottled" {
        assert!(codes.next().is_some(), "{MOST_REQUESTS} requests at once, and none is throttled");
    }
    sim.log()
}

/// Many more than ARM's bucket for reads holds, which is 250.
const MOST_REQUESTS: usize = 2000;

/// A scale set, an instance of it, a write to it, and what is refused there.
async fn scale_set_story(sim: &Sim, client: &Client) {
    let set = sim.add_scale_set(NewScaleSet { name: "pool".into(), ..NewScaleSet::default() }).unwrap();
    let vm = sim.add_instance("pool", NewInstance::default()).await.unwrap();
    let (compute, network) = ("api-version=2025-04-01", "api-version=2018-10-01");
    for path in [
        format!("{set}?{compute}"),
        format!("{set}/virtualMachines?{compute}"),
        format!("{}?{compute}", vm.vm_id),
        format!("{}/instanceView?{compute}", vm.vm_id),
        format!("{set}/virtualMachines/7?{compute}"),
        format!("{set}/virtualMachines/x?{compute}"),
        format!("{set}/networkInterfaces?{network}"),
        format!("{}/networkInterfaces?{network}", vm.vm_id),
        format!("{}?{network}", vm.nic_id),
        format!("{}x?{network}", vm.nic_id),
    ] {
        client.get(&path).await;
    }
    let path = format!("{}?{compute}", vm.vm_id);
    let model = client.get(&path).await.body;
    let mut body = json!({ "location": model["location"], "properties": {
        "hardwareProfile": model["properties"]["hardwareProfile"],
        "networkProfileConfiguration": model["properties"]["networkProfileConfiguration"],
    } });
    let list = "/properties/networkProfileConfiguration/networkInterfaceConfigurations/0/properties/ipConfigurations";
    let subnet = body.pointer(list).unwrap()[0]["properties"]["subnet"].clone();
    let added = json!({ "name": "vnp-1", "properties": { "subnet": subnet } });
    body.pointer_mut(list).unwrap().as_array_mut().unwrap().push(added);
    let written = client.put(&path, &body).await;
    client.get(path_of(&written.headers["azure-asyncoperation"])).await;
    client.get(&format!("{}?{network}", vm.nic_id)).await;
    client.send("PUT", &path, &[("if-match", "\"9\"")], Some(&body)).await.unwrap();
    let whole = client.get(&path).await.body;
    client.put(&path, &whole).await;
    client.send("DELETE", &path, &[], None).await.unwrap();
    client.put(&path, &body).await;
    client.send("DELETE", &format!("{set}?{compute}"), &[], None).await.unwrap();
}

/// Route tables, security groups, public addresses, load balancers, peerings: each written, used, read,
/// refused, deleted.
async fn beside_nics(client: &Client, network: &str, nic: &str, held: &Value) {
    let at = |resource: &str| format!("{network}/{resource}?api-version=2024-03-01");
    let id = |resource: &str| json!({ "id": format!("{network}/{resource}") });
    let with = |properties: Value| json!({ "location": "westeurope", "properties": properties });
    let standard = |properties: Value| json!({ "location": "westeurope", "sku": { "name": "Standard" }, "properties": properties });
    let route = |name: &str, prefix: &str| {
        json!({ "name": name, "properties": { "addressPrefix": prefix, "nextHopType": "VirtualAppliance",
            "nextHopIpAddress": "10.240.0.9" } })
    };
    let table = at("routeTables/t");
    let made = client.put(&table, &with(json!({ "routes": [route("a", "10.1.0.0/24")] }))).await;
    // While the table's own write is under way, and after.
    client.put(&at("routeTables/t/routes/b"), &route("b", "10.1.1.0/24")).await;
    client.outcome(&made).await;
    let added = client.put(&at("routeTables/t/routes/b"), &route("b", "10.1.1.0/24")).await;
    client.outcome(&added).await;
    client.put(&at("routeTables/t/routes/c"), &route("c", "10.1.0.0/24")).await;
    client.get(&at("routeTables/t/routes/b")).await;
    client.get(&at("routeTables/t/routes")).await;
    client.send("DELETE", &at("routeTables/t/routes/b"), &[], None).await.unwrap();
    client.put(&at("networkSecurityGroups/g"), &with(json!({}))).await;
    client.put(&at("applicationSecurityGroups/web"), &with(json!({}))).await;
    let subnet = with(json!({ "addressPrefix": "10.240.32.0/28", "routeTable": id("routeTables/t"),
        "networkSecurityGroup": id("networkSecurityGroups/g") }));
    client.put(&at("virtualNetworks/vnet/subnets/steered"), &subnet).await;
    let lost = with(json!({ "addressPrefix": "10.240.33.0/28", "routeTable": id("routeTables/lost") }));
    client.put(&at("virtualNetworks/vnet/subnets/lost"), &lost).await;
    client.get(&table).await;
    client.send("DELETE", &table, &[], None).await.unwrap();
    client.send("DELETE", &at("networkSecurityGroups/g"), &[], None).await.unwrap();
    let labelled =
        json!({ "publicIPAllocationMethod": "Static", "dnsSettings": { "domainNameLabel": "shop" } });
    for name in ["front", "one"] {
        client.put(&at(&format!("publicIPAddresses/{name}")), &standard(labelled.clone())).await;
    }
    client
        .put(&at("publicIPAddresses/one"), &standard(json!({ "publicIPAllocationMethod": "Static" })))
        .await;
    let balancer = json!({
        "frontendIPConfigurations": [
            { "name": "out", "properties": { "publicIPAddress": id("publicIPAddresses/front") } },
            { "name": "in", "properties": { "subnet": id("virtualNetworks/vnet/subnets/nodes") } },
        ],
        "backendAddressPools": [{ "name": "pool" }, { "name": "outbound" }],
        "probes": [{ "name": "probe", "properties": { "protocol": "Tcp", "port": 80 } }],
        "loadBalancingRules": [{ "name": "web", "properties": { "protocol": "Tcp", "frontendPort": 80, "backendPort": 80,
            "frontendIPConfiguration": id("loadBalancers/lb/frontendIPConfigurations/in"),
            "backendAddressPool": id("loadBalancers/lb/backendAddressPools/pool"),
            "probe": id("loadBalancers/lb/probes/probe") } }],
        "outboundRules": [{ "name": "all", "properties": { "protocol": "All",
            "frontendIPConfigurations": [id("loadBalancers/lb/frontendIPConfigurations/out")],
            "backendAddressPool": id("loadBalancers/lb/backendAddressPools/outbound") } }],
    });
    client.put(&at("loadBalancers/lb"), &standard(balancer)).await;
    let mut attached = held.clone();
    let configurations = attached["properties"]["ipConfigurations"].as_array_mut().unwrap();
    configurations.push(json!({ "name": "vnp-attached", "properties": {} }));
    let last = configurations.len() - 1;
    let mut attach = async |field: &str, value: Value| {
        attached["properties"]["ipConfigurations"][last]["properties"][field] = value;
        client.put(nic, &attached).await;
    };
    attach("publicIPAddress", id("publicIPAddresses/lost")).await;
    attach("publicIPAddress", id("publicIPAddresses/front")).await;
    attach("publicIPAddress", id("publicIPAddresses/one")).await;
    attach("loadBalancerBackendAddressPools", json!([id("loadBalancers/lb/backendAddressPools/outbound")]))
        .await;
    attach("loadBalancerBackendAddressPools", json!([id("loadBalancers/lb/backendAddressPools/pool")])).await;
    for resource in ["loadBalancers/lb", "loadBalancers/lb/backendAddressPools/pool", "publicIPAddresses/one"]
    {
        client.get(&at(resource)).await;
        client.send("DELETE", &at(resource), &[], None).await.unwrap();
    }
    client.put(nic, held).await;
    client.send("DELETE", &at("publicIPAddresses/one"), &[], None).await.unwrap();
    let far = with(json!({ "addressSpace": { "addressPrefixes": ["10.60.0.0/16"] } }));
    client.put(&at("virtualNetworks/far"), &far).await;
    for (from, to) in [("vnet", "far"), ("far", "vnet"), ("vnet", "vnet"), ("vnet", "lost")] {
        let peering =
            json!({ "properties": { "remoteVirtualNetwork": id(&format!("virtualNetworks/{to}")) } });
        client.put(&at(&format!("virtualNetworks/{from}/virtualNetworkPeerings/{to}")), &peering).await;
    }
    client.get(&at("virtualNetworks/vnet/virtualNetworkPeerings/far")).await;
    client.send("DELETE", &at("virtualNetworks/far/virtualNetworkPeerings/vnet"), &[], None).await.unwrap();
    client.get(&at("virtualNetworks/vnet")).await;
}

fn free_nic() -> Value {
    let subnet = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/vnetpool/providers/\
                  Microsoft.Network/virtualNetworks/vnet/subnets/nodes";
    let configuration = json!({ "name": "ipconfig1", "properties": { "subnet": { "id": subnet } } });
    json!({ "location": "westeurope", "properties": { "ipConfigurations": [configuration] } })
}

/// A validation that can't fail would be worth nothing.
pub(crate) fn a_wrong_body_does_not_validate(folder: &Path) -> Result<(), Failed> {
    let documents = Documents::load(&folder.join("specification"))?;
    let nic = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/networkInterfaces/n";
    let good = free_nic();
    let with = |pointer: &str, value: Value| {
        let mut body = good.clone();
        *body.pointer_mut(pointer).unwrap() = value;
        body
    };
    let wrong = [
        ("a text for a list", with("/properties/ipConfigurations", json!("none"))),
        ("a number for a name", with("/properties/ipConfigurations/0/name", json!(1))),
        ("an id that is no text", with("/properties/ipConfigurations/0/properties/subnet/id", json!(false))),
        ("a text for an object", with("/properties", json!("all"))),
    ];
    documents
        .validate(&entry("PUT", nic, 200, Some(good.clone()), Some(good.clone())))
        .map_err(|errors| format!("a right body was refused: {}", errors.join("; ")))?;
    for (what, body) in wrong {
        for (side, entry) in [
            ("request", entry("PUT", nic, 200, Some(body.clone()), Some(good.clone()))),
            ("response", entry("PUT", nic, 200, Some(good.clone()), Some(body))),
        ] {
            match documents.validate(&entry) {
                Err(errors) if errors.iter().all(|error| error.starts_with(side)) => {}
                outcome => return Err(format!("{what} in the {side}: {outcome:?}").into()),
            }
        }
    }
    for (what, entry) in [
        ("no body", entry("GET", nic, 200, None, None)),
        ("an undescribed status", entry("GET", nic, 202, None, Some(good.clone()))),
        (
            "an undescribed path",
            entry("GET", "/subscriptions/s/providers/Microsoft.Nothing/n", 200, None, None),
        ),
        ("an error that is none", entry("GET", nic, 404, None, Some(json!({ "error": "gone" })))),
    ] {
        if let Ok(coverage) = documents.validate(&entry) {
            return Err(format!("{what} passes: {coverage:?}").into());
        }
    }
    Ok(())
}
