//! Virtual machines as documents of Compute: small integers as etags, defaults by operating system, secrets
//! never shown.

use crate::document::{default, remove};
use serde_json::{Value, json};

/// The document a PUT of a virtual machine leaves.
pub(crate) fn replace(
    id: &str,
    name: &str,
    old: Option<&Value>,
    mut body: Value,
    etag: u64,
    state: &str,
) -> Value {
    body["id"] = json!(id);
    body["name"] = json!(name);
    body["type"] = json!("Microsoft.Compute/virtualMachines");
    body["etag"] = json!(quoted(etag));
    if body.pointer("/identity/type").is_none_or(|kind| kind == "None") {
        remove(&mut body, "identity");
    }
    let kept = |field: &str| old.map_or(Value::Null, |old| old["properties"][field].clone());
    let properties = &mut body["properties"];
    properties["provisioningState"] = json!(state);
    properties["vmId"] = kept("vmId");
    default(properties, "vmId", json!(uuid::Uuid::new_v4().to_string()));
    properties["timeCreated"] = kept("timeCreated");
    default(properties, "timeCreated", json!(jiff::Timestamp::now().to_string()));

    let publisher = properties.pointer("/storageProfile/imageReference/publisher").and_then(Value::as_str);
    let windows = publisher.is_some_and(|publisher| publisher.contains("Windows"));
    if let Some(storage) = properties.get_mut("storageProfile").filter(|storage| storage.is_object()) {
        if storage["imageReference"].is_object() {
            storage["imageReference"]["exactVersion"] = json!("1.0.0");
        }
        default(storage, "dataDisks", json!([]));
        let disk = &mut storage["osDisk"];
        for (field, value) in [
            ("osType", json!(if windows { "Windows" } else { "Linux" })),
            ("name", json!(format!("{name}_OsDisk_1"))),
            ("createOption", json!("FromImage")),
            ("caching", json!("ReadWrite")),
            ("deleteOption", json!("Detach")),
            ("diskSizeGB", json!(if windows { 127 } else { 30 })),
            ("managedDisk", json!({ "storageAccountType": "Standard_LRS" })),
        ] {
            default(disk, field, value);
        }
        if let Some(made) =
            old.and_then(|old| old.pointer("/properties/storageProfile/osDisk/managedDisk/id"))
        {
            disk["managedDisk"]["id"] = made.clone();
        }
    }
    if let Some(os) = properties.get_mut("osProfile").filter(|os| os.is_object()) {
        remove(os, "adminPassword");
        default(os, "secrets", json!([]));
        default(os, "allowExtensionOperations", json!(true));
        default(os, "requireGuestProvisionSignal", json!(true));
        if windows {
            let settings = json!({ "provisionVMAgent": true, "enableAutomaticUpdates": true,
                "patchSettings": { "patchMode": "AutomaticByOS", "assessmentMode": "ImageDefault" },
                "enableVMAgentPlatformUpdates": true });
            default(os, "windowsConfiguration", settings);
        } else {
            let settings = json!({ "disablePasswordAuthentication": true, "provisionVMAgent": true,
                "patchSettings": { "patchMode": "ImageDefault", "assessmentMode": "ImageDefault" } });
            default(os, "linuxConfiguration", settings);
        }
    }
    body
}

/// Compute's kind of etag.
pub(crate) fn quoted(etag: u64) -> String {
    format!("\"{etag}\"")
}

/// Ends a write: the disk exists from now on.
pub(crate) fn finish(vm: &mut Value, etag: u64) {
    vm["etag"] = json!(quoted(etag));
    vm["properties"]["provisioningState"] = json!("Succeeded");
    let group =
        vm["id"].as_str().and_then(|id| id.split("/providers/").next()).unwrap_or_default().to_owned();
    if let Some(disk) = vm.pointer_mut("/properties/storageProfile/osDisk") {
        let name = disk["name"].as_str().unwrap_or_default();
        disk["managedDisk"]["id"] = json!(format!("{group}/providers/Microsoft.Compute/disks/{name}"));
    }
}

/// The document that a client would send for a small Linux machine with one NIC.
pub(crate) fn request(name: &str, location: &str, nic_id: &str) -> Value {
    json!({
        "location": location,
        "identity": { "type": "SystemAssigned" },
        "properties": {
            "hardwareProfile": { "vmSize": "Standard_D4s_v5" },
            "storageProfile": {
                "imageReference": {
                    "publisher": "Debian", "offer": "debian-12", "sku": "12-gen2", "version": "latest" },
                "osDisk": { "createOption": "FromImage", "managedDisk": { "storageAccountType": "Premium_LRS" } },
            },
            "osProfile": { "computerName": name, "adminUsername": "azureuser" },
            "networkProfile": { "networkInterfaces": [{ "id": nic_id, "properties": { "primary": true } }] },
        },
    })
}

pub(crate) fn nic_ids(vm: &Value) -> Vec<String> {
    let nics = vm.pointer("/properties/networkProfile/networkInterfaces").and_then(Value::as_array);
    nics.into_iter().flatten().filter_map(|nic| nic["id"].as_str().map(str::to_owned)).collect()
}

/// The instance view of a machine.
pub(crate) fn instance_view(is_running: bool) -> Value {
    let status =
        |code: &str, display: &str| json!({ "code": code, "level": "Info", "displayStatus": display });
    json!({ "statuses": [
        status("ProvisioningState/succeeded", "Provisioning succeeded"),
        if is_running {
            status("PowerState/running", "VM running")
        } else {
            status("PowerState/deallocated", "VM deallocated")
        },
    ] })
}
