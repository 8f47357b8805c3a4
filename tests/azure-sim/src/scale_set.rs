//! Uniform scale sets and their instances as documents of Compute. Pure.
//!
//! Fields, defaults and the letter case of names are those of `arm-recordings/virtualmachinescaleset*.json`.

use crate::document::{default, remove};
use crate::vm::quoted;
use serde_json::{Value, json};

/// The document after a PUT of a scale set, and its etag. A write that changes nothing keeps the etag, as
/// recorded.
pub(crate) fn replace(
    id: &str,
    name: &str,
    old: Option<(&Value, u64)>,
    mut body: Value,
    state: &str,
) -> (Value, u64) {
    let now = jiff::Timestamp::now().to_string();
    let kept = |pointer: &str| old.and_then(|(old, _)| old.pointer(pointer)).cloned().unwrap_or_default();
    body["id"] = json!(id);
    body["name"] = json!(name);
    body["type"] = json!("Microsoft.Compute/virtualMachineScaleSets");
    default(&mut body["sku"], "tier", json!("Standard"));
    let properties = &mut body["properties"];
    for (field, value) in [
        ("singlePlacementGroup", json!(true)),
        ("orchestrationMode", json!("Uniform")),
        ("overprovision", json!(true)),
        ("doNotRunExtensionsOnOverprovisionedVMs", json!(false)),
        ("platformFaultDomainCount", json!(5)),
    ] {
        default(properties, field, value);
    }
    for (field, made) in [("uniqueId", uuid::Uuid::new_v4().to_string()), ("timeCreated", now.clone())] {
        properties[field] = kept(&format!("/properties/{field}"));
        default(properties, field, json!(made));
    }
    if let Some(policy) = properties.pointer_mut("/upgradePolicy/automaticOSUpgradePolicy") {
        default(policy, "useRollingUpgradePolicy", json!(false));
    }
    let profile = &mut properties["virtualMachineProfile"];
    profile["timeCreated"] = kept("/properties/virtualMachineProfile/timeCreated");
    default(profile, "timeCreated", json!(now));
    let windows = profile
        .pointer("/storageProfile/imageReference/publisher")
        .and_then(Value::as_str)
        .is_some_and(|publisher| publisher.contains("Windows"));
    if let Some(os) = profile.get_mut("osProfile").filter(|os| os.is_object()) {
        remove(os, "adminPassword");
        for (field, value) in [
            ("secrets", json!([])),
            ("allowExtensionOperations", json!(true)),
            ("requireGuestProvisionSignal", json!(true)),
        ] {
            default(os, field, value);
        }
        let (field, settings) = if windows {
            ("windowsConfiguration", json!({ "provisionVMAgent": true, "enableAutomaticUpdates": true }))
        } else {
            ("linuxConfiguration", json!({ "disablePasswordAuthentication": true, "provisionVMAgent": true }))
        };
        default(os, field, settings);
    }
    let disk = &mut profile["storageProfile"]["osDisk"];
    for (field, value) in [
        ("osType", json!(if windows { "Windows" } else { "Linux" })),
        ("createOption", json!("FromImage")),
        ("caching", json!("None")),
        ("managedDisk", json!({ "storageAccountType": "Premium_LRS" })),
        ("diskSizeGB", json!(if windows { 127 } else { 30 })),
    ] {
        default(disk, field, value);
    }
    fill_in_nics(&mut profile["networkProfile"]["networkInterfaceConfigurations"]);
    tagged(body, old, state)
}

/// The model of an instance as its scale set makes it.
pub(crate) fn instance(set: &Value, instance_id: u64) -> Value {
    let text = |field: &str| set[field].as_str().unwrap_or_default();
    let profile = &set["properties"]["virtualMachineProfile"];
    let (set_id, name) = (text("id"), text("name"));
    let id = format!("{set_id}/virtualMachines/{instance_id}");
    let disk_name = format!("{name}_{name}_{instance_id}_OS__1_{}", uuid::Uuid::new_v4().simple());
    let group = set_id.split("/providers/").next().unwrap_or_default();
    let mut storage = profile["storageProfile"].clone();
    if storage["imageReference"]["id"].is_null() {
        storage["imageReference"]["exactVersion"] = json!("1.0.0");
    }
    storage["osDisk"]["name"] = json!(disk_name);
    storage["osDisk"]["managedDisk"]["id"] =
        json!(format!("{group}/providers/Microsoft.Compute/disks/{disk_name}"));
    default(&mut storage, "dataDisks", json!([]));
    let mut os = profile["osProfile"].clone();
    let prefix = os["computerNamePrefix"].as_str().unwrap_or_default();
    os["computerName"] = json!(format!("{prefix}{}", base36(instance_id)));
    remove(&mut os, "computerNamePrefix");
    let configurations = &profile["networkProfile"]["networkInterfaceConfigurations"];
    let nics: Vec<Value> =
        names(configurations).map(|name| json!({ "id": format!("{id}/networkInterfaces/{name}") })).collect();
    json!({
        "id": id,
        "name": format!("{name}_{instance_id}"),
        "type": "Microsoft.Compute/virtualMachineScaleSets/virtualMachines",
        "location": set["location"],
        "instanceId": instance_id.to_string(),
        "sku": { "name": set["sku"]["name"], "tier": set["sku"]["tier"] },
        "etag": quoted(1),
        "properties": {
            "latestModelApplied": true,
            "modelDefinitionApplied": "VirtualMachineScaleSet",
            "networkProfileConfiguration": { "networkInterfaceConfigurations": configurations },
            "provisioningState": "Succeeded",
            "hardwareProfile": { "vmSize": set["sku"]["name"] },
            "resilientVMDeletionStatus": "Disabled",
            "vmId": uuid::Uuid::new_v4().to_string(),
            "storageProfile": storage,
            "osProfile": os,
            "networkProfile": { "networkInterfaces": nics },
            "timeCreated": jiff::Timestamp::now().to_string(),
        },
    })
}

/// The model after a PUT of an instance, and its etag. What the body leaves out stays; lists are replaced.
/// Tags are not kept. All as recorded.
pub(crate) fn edit(old: (&Value, u64), body: &Value, state: &str) -> (Value, u64) {
    let mut model = old.0.clone();
    for part in ["networkProfileConfiguration", "hardwareProfile", "protectionPolicy"] {
        if body["properties"][part].is_object() {
            model["properties"][part] = body["properties"][part].clone();
        }
    }
    fill_in_nics(&mut model["properties"]["networkProfileConfiguration"]["networkInterfaceConfigurations"]);
    if model != *old.0 {
        model["properties"]["modelDefinitionApplied"] = json!("VirtualMachine");
    }
    tagged(model, Some(old), state)
}

/// The model of an instance after an upgrade to its scale set's latest. What was changed on the instance
/// alone is lost.
pub(crate) fn upgrade(old: (&Value, u64), set: &Value) -> (Value, u64) {
    let mut model = old.0.clone();
    let properties = &mut model["properties"];
    properties["networkProfileConfiguration"]["networkInterfaceConfigurations"] =
        set["properties"]["virtualMachineProfile"]["networkProfile"]["networkInterfaceConfigurations"]
            .clone();
    properties["modelDefinitionApplied"] = json!("VirtualMachineScaleSet");
    properties["latestModelApplied"] = json!(true);
    tagged(model, Some(old), "Succeeded")
}

/// Sets the state, and an etag one above the old one's if anything but the state has changed.
fn tagged(mut document: Value, old: Option<(&Value, u64)>, state: &str) -> (Value, u64) {
    let etag = match old {
        None => 1,
        Some((old, etag)) => {
            document["etag"] = old["etag"].clone();
            document["properties"]["provisioningState"] = old["properties"]["provisioningState"].clone();
            if document == *old { etag } else { etag + 1 }
        }
    };
    document["etag"] = json!(quoted(etag));
    document["properties"]["provisioningState"] = json!(state);
    (document, etag)
}

fn fill_in_nics(configurations: &mut Value) {
    for configuration in configurations.as_array_mut().into_iter().flatten() {
        let properties = &mut configuration["properties"];
        for (field, value) in [
            ("enableAcceleratedNetworking", json!(false)),
            ("disableTcpStateTracking", json!(false)),
            ("dnsSettings", json!({ "dnsServers": [] })),
            ("enableIPForwarding", json!(false)),
        ] {
            default(properties, field, value);
        }
        for one in properties["ipConfigurations"].as_array_mut().into_iter().flatten() {
            default(&mut one["properties"], "privateIPAddressVersion", json!("IPv4"));
        }
    }
}

/// The PUT that would make a NIC of an instance if it were an ordinary one.
pub(crate) fn nic_body(configuration: &Value, location: &Value) -> Value {
    let mut properties = configuration["properties"].clone();
    for field in ["deleteOption", "primary"] {
        remove(&mut properties, field);
    }
    for one in properties["ipConfigurations"].as_array_mut().into_iter().flatten() {
        remove(&mut one["properties"], "publicIPAddressConfiguration");
    }
    json!({ "location": location, "properties": properties })
}

/// Refuses what an ipConfiguration of a scale set can't have: Compute has no such field, so no address can be
/// asked for. The words are Compute's for any member that it doesn't know. Their code is not certain.
pub(crate) fn unknown_member(configurations: &Value) -> Option<&'static str> {
    let all = configurations.as_array().into_iter().flatten();
    let mut all = all.flat_map(|one| one["properties"]["ipConfigurations"].as_array().into_iter().flatten());
    all.find_map(|one| {
        ["privateIPAddress", "privateIPAllocationMethod", "privateIPAddressPrefixLength"]
            .into_iter()
            .find(|field| one["properties"].get(field).is_some())
    })
}

/// A NIC of an instance as the network provider shows it, in version 2018-10-01: fewer fields than an
/// ordinary one's has, and neither etag nor location.
pub(crate) fn shown_nic(nic: &Value) -> Value {
    let mut shown = nic.clone();
    for field in ["etag", "location", "type", "kind"] {
        remove(&mut shown, field);
    }
    for field in [
        "vnetEncryptionSupported",
        "disableTcpStateTracking",
        "nicType",
        "allowPort25Out",
        "defaultOutboundConnectivityEnabled",
        "auxiliaryMode",
        "auxiliarySku",
    ] {
        remove(&mut shown["properties"], field);
    }
    for one in shown["properties"]["ipConfigurations"].as_array_mut().into_iter().flatten() {
        remove(one, "etag");
        remove(one, "type");
    }
    shown
}

/// The instance view of a running instance.
pub(crate) fn instance_view(model: &Value) -> Value {
    let time = jiff::Timestamp::now().to_string();
    let status = |code: &str, display: &str| json!({ "code": code, "level": "Info", "displayStatus": display, "time": time });
    let agent = json!({ "code": "ProvisioningState/succeeded", "level": "Info", "displayStatus": "Ready",
        "message": "GuestAgent is running and processing the extensions.", "time": time });
    let properties = &model["properties"];
    json!({
        "placementGroupId": "33333333-3333-3333-3333-333333333333",
        "platformUpdateDomain": 0,
        "platformFaultDomain": 0,
        "computerName": properties["osProfile"]["computerName"],
        "osName": "debian",
        "osVersion": "12",
        "vmAgent": { "vmAgentVersion": "2.7.0.0", "statuses": [agent] },
        "disks": [{ "name": properties["storageProfile"]["osDisk"]["name"],
            "statuses": [status("ProvisioningState/succeeded", "Provisioning succeeded")] }],
        "hyperVGeneration": "V1",
        "statuses": [
            status("ProvisioningState/succeeded", "Provisioning succeeded"),
            json!({ "code": "PowerState/running", "level": "Info", "displayStatus": "VM running" }),
        ],
    })
}

/// The names of network interface configurations, which are those of the NICs.
pub(crate) fn names(configurations: &Value) -> impl Iterator<Item = &str> {
    configurations.as_array().into_iter().flatten().filter_map(|one| one["name"].as_str())
}

/// Six digits of an instance id, as computer names end.
fn base36(mut number: u64) -> String {
    let mut digits = Vec::new();
    while digits.len() < 6 {
        digits.push(char::from_digit((number % 36) as u32, 36).unwrap_or('0').to_ascii_uppercase());
        number /= 36;
    }
    digits.iter().rev().collect()
}

/// The document that AKS would send for a pool: an image of a gallery in a subscription of its own, one NIC
/// with one primary address behind the cluster's load balancer.
pub(crate) fn request(location: &str, group_id: &str, subnet_id: &str) -> Value {
    let network = format!("{group_id}/providers/Microsoft.Network");
    let image = "/subscriptions/44444444-4444-4444-4444-444444444444/resourceGroups/AKS-Ubuntu/providers/\
                 Microsoft.Compute/galleries/AKSUbuntu/images/2204gen2containerd/versions/202611.01.0";
    let nic = json!({ "name": "primary", "properties": {
        "primary": true,
        "enableAcceleratedNetworking": true,
        "networkSecurityGroup": { "id": format!("{network}/networkSecurityGroups/aks-nsg") },
        "ipConfigurations": [{ "name": "ipconfig1", "properties": {
            "primary": true,
            "subnet": { "id": subnet_id },
            "loadBalancerBackendAddressPools": [
                { "id": format!("{network}/loadBalancers/kubernetes/backendAddressPools/kubernetes") } ],
        } }],
    } });
    json!({
        "location": location,
        "sku": { "name": "Standard_D4s_v5", "capacity": 0 },
        "properties": {
            "upgradePolicy": { "mode": "Manual" },
            "virtualMachineProfile": {
                "osProfile": { "computerNamePrefix": "pool", "adminUsername": "azureuser" },
                "storageProfile": { "imageReference": { "id": image } },
                "networkProfile": { "networkInterfaceConfigurations": [nic] },
            },
        },
    })
}
