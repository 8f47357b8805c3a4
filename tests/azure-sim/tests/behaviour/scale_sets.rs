//! Uniform scale sets on the wire: their NICs are read and never written, their instances are written by
//! parts.

use crate::client::{Answer, Client};
use serde_json::{Value, json};
use vnetpool_azure_sim::{Config, NewInstance, NewScaleSet, Sim, VmInfo};

const LIST: &str =
    "/properties/networkProfileConfiguration/networkInterfaceConfigurations/0/properties/ipConfigurations";

/// A simulator with a scale set `pool` of one instance.
struct Scene {
    sim: Sim,
    client: Client,
    vm: VmInfo,
}

impl Scene {
    async fn with_writes_of(write_seconds: f64) -> Self {
        Self::in_subnet(None, write_seconds).await
    }

    async fn in_subnet(subnet: Option<&str>, write_seconds: f64) -> Self {
        let sim = Sim::start(Config { write_seconds, ..Config::default() }).await.unwrap();
        sim.add_scale_set(NewScaleSet {
            name: "pool".into(),
            subnet: subnet.map(str::to_owned),
            ..NewScaleSet::default()
        })
        .unwrap();
        let vm = sim.add_instance("pool", NewInstance::default()).await.unwrap();
        let client = Client::of(&sim);
        Self { sim, client, vm }
    }

    fn model_path(&self) -> String {
        format!("{}?api-version=2025-04-01", self.vm.vm_id)
    }

    async fn model(&self) -> Answer {
        self.client.get(&self.model_path()).await
    }

    /// Name and address of every ipConfiguration on the NIC.
    async fn held(&self) -> Vec<(String, String)> {
        let nic = self.client.get(&format!("{}?api-version=2018-10-01", self.vm.nic_id)).await.body;
        let all = nic["properties"]["ipConfigurations"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        all.iter().map(|c| (text(&c["name"]), text(&c["properties"]["privateIPAddress"]))).collect()
    }

    /// The smallest body that adds these.
    async fn body_with(&self, names: &[&str]) -> Value {
        let model = self.model().await.body;
        let mut body = json!({ "location": model["location"], "properties": {
            "networkProfileConfiguration": model["properties"]["networkProfileConfiguration"] } });
        let list = body.pointer_mut(LIST).unwrap().as_array_mut().unwrap();
        let subnet = list[0]["properties"]["subnet"].clone();
        list.extend(names.iter().map(|name| json!({ "name": name, "properties": { "subnet": subnet } })));
        body
    }

    async fn put(&self, body: &Value) -> Answer {
        self.client.put(&self.model_path(), body).await
    }
}

#[tokio::test]
async fn a_nic_of_an_instance_is_not_written_and_not_listed_among_the_others() {
    let scene = Scene::with_writes_of(0.0).await;
    let nic = format!("{}?api-version=2018-10-01", scene.vm.nic_id);
    let body = scene.client.get(&nic).await.body;
    let refused = scene.client.put(&nic, &body).await;
    assert!((400..500).contains(&refused.status));
    let words = "The operation 'write' on resource type 'virtualMachineScaleSets/virtualMachines/networkInterfaces' is disallowed.";
    assert_eq!(refused.body["error"]["message"], words);
    let group = scene.vm.vm_id.split("/Microsoft.Compute").next().unwrap();
    for kind in ["Microsoft.Network/networkInterfaces", "Microsoft.Compute/virtualMachines"] {
        let listed = scene.client.get(&format!("{group}/{kind}?api-version=2024-03-01")).await.body;
        assert_eq!(listed["value"], json!([]), "{kind}");
    }
}

#[tokio::test]
async fn a_write_by_parts_replaces_the_list_and_keeps_the_rest() {
    let scene = Scene::with_writes_of(0.3).await;
    let before = scene.model().await.body;
    let write = scene.put(&scene.body_with(&["vnp-1", "vnp-2"]).await).await;
    assert_eq!((write.status, &write.body["properties"]["provisioningState"]), (200, &json!("Updating")));
    assert_eq!(write.headers["etag"], "\"2\"");
    assert_eq!(scene.client.outcome(&write).await["status"], "Succeeded");
    let held = scene.held().await;
    let expected = [("ipconfig1", "10.240.0.4"), ("vnp-1", "10.240.0.5"), ("vnp-2", "10.240.0.6")];
    assert_eq!(held, expected.map(|(name, address)| (name.to_owned(), address.to_owned())));
    let mut after = scene.model().await.body;
    assert_eq!(after["properties"]["modelDefinitionApplied"], "VirtualMachine");
    for part in ["storageProfile", "osProfile", "hardwareProfile", "vmId"] {
        assert_eq!(after["properties"][part], before["properties"][part], "{part}");
    }
    // The model doesn't show addresses.
    assert!(!after.pointer_mut(LIST).unwrap().to_string().contains("10.240"));
    // An ipConfiguration that is left out of the list goes.
    let write = scene.put(&before).await;
    assert_eq!(write.status, 403, "the gallery's image was sent back");
    let body = json!({ "location": before["location"], "properties": {
        "networkProfileConfiguration": before["properties"]["networkProfileConfiguration"] } });
    let write = scene.put(&body).await;
    scene.client.outcome(&write).await;
    assert_eq!(scene.held().await.len(), 1);
}

#[tokio::test]
async fn a_write_that_can_not_be_met_is_answered_well_ends_failed_and_is_tried_again_by_the_next() {
    // A /28 has eleven addresses, and the instance has one of them.
    let scene = Scene::in_subnet(Some("small"), 0.1).await;
    let names: Vec<String> = (0..11).map(|index| format!("vnp-{index}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let write = scene.put(&scene.body_with(&names).await).await;
    assert_eq!(write.status, 200);
    let outcome = scene.client.outcome(&write).await;
    assert_eq!((&outcome["status"], &outcome["error"]["code"]), (&json!("Failed"), &json!("SubnetIsFull")));
    let model = scene.model().await.body;
    assert_eq!(model["properties"]["provisioningState"], "Failed");
    assert_eq!(
        model.pointer(LIST).unwrap().as_array().unwrap().len(),
        12,
        "the model keeps what was asked for"
    );
    assert_eq!(scene.held().await.len(), 1);
    // One address more fails with the eleven requested before, and so does a write that changes nothing.
    for more in [&["vnp-x"][..], &[]] {
        let write = scene.put(&scene.body_with(more).await).await;
        assert_eq!(scene.client.outcome(&write).await["status"], "Failed");
    }
    let mut body = scene.body_with(&[]).await;
    body.pointer_mut(LIST).unwrap().as_array_mut().unwrap().truncate(4);
    let write = scene.put(&body).await;
    assert_eq!(scene.client.outcome(&write).await["status"], "Succeeded");
    assert_eq!(scene.held().await.len(), 4);
}

#[tokio::test]
async fn an_instance_takes_no_static_address() {
    let scene = Scene::with_writes_of(0.0).await;
    let mut body = scene.body_with(&["vnp-1"]).await;
    body.pointer_mut(LIST).unwrap()[1]["properties"]["privateIPAddress"] = json!("10.240.0.77");
    let refused = scene.put(&body).await;
    assert_eq!(refused.status, 400);
    assert!(refused.body["error"]["message"].as_str().unwrap().contains("'privateIPAddress'"));
    assert_eq!(scene.held().await.len(), 1);
}

#[tokio::test]
async fn an_old_etag_is_refused_in_computes_words() {
    let scene = Scene::with_writes_of(0.0).await;
    let body = scene.body_with(&["vnp-1"]).await;
    let put = |etag: &'static str| {
        let (scene, body) = (&scene, &body);
        async move {
            let headers = [("if-match", etag)];
            scene.client.send("PUT", &scene.model_path(), &headers, Some(body)).await.unwrap()
        }
    };
    assert_eq!(put("\"1\"").await.status, 200);
    let refused = put("\"1\"").await;
    assert_eq!(refused.status, 412);
    let words = "Etag provided in if-match header \"1\" does not match etag \"2\" of resource.";
    assert_eq!(refused.body["error"]["message"], words);
}

#[tokio::test]
async fn one_instance_takes_twelve_writes_at_once() {
    let scene = Scene::with_writes_of(0.0).await;
    let body = scene.body_with(&[]).await;
    for _ in 0..12 {
        assert_eq!(scene.put(&body).await.status, 200);
    }
    let refused = scene.put(&body).await;
    assert_eq!((refused.status, refused.code()), (429, "OperationNotAllowed"));
    assert_eq!(refused.body["error"]["details"][0]["code"], "TooManyRequests");
    assert!(refused.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn a_newer_write_preempts_the_one_under_way() {
    let scene = Scene::with_writes_of(3.0).await;
    let older = scene.put(&scene.body_with(&["vnp-1"]).await).await;
    let newer = scene.put(&scene.body_with(&["vnp-2"]).await).await;
    let ended = scene.client.outcome(&older).await;
    assert_eq!((&ended["status"], &ended["error"]["code"]), (&json!("Failed"), &json!("OperationPreempted")));
    assert_eq!(scene.client.outcome(&newer).await["status"], "Succeeded");
}

#[tokio::test]
async fn an_upgrade_to_the_latest_model_wipes_the_instances_own_settings() {
    let scene = Scene::with_writes_of(0.0).await;
    scene.put(&scene.body_with(&["vnp-1"]).await).await;
    let primary = scene.held().await[0].clone();
    scene.sim.upgrade_instance("pool_0").await.unwrap();
    assert_eq!(scene.held().await, [primary]);
    let model = scene.model().await;
    assert_eq!(model.body["properties"]["modelDefinitionApplied"], "VirtualMachineScaleSet");
    assert_eq!(model.headers["etag"], "\"3\"");
}

#[tokio::test]
async fn an_instance_marked_for_deletion_takes_no_write_and_its_id_comes_back_as_another_machine() {
    let scene = Scene::with_writes_of(3.0).await;
    let before = scene.model().await.body;
    let body = scene.body_with(&["vnp-1"]).await;
    let deletion = scene.client.send("DELETE", &scene.model_path(), &[], None).await.unwrap();
    let refused = scene.put(&body).await;
    assert_eq!(refused.status, 409);
    assert!(refused.body["error"]["message"].as_str().unwrap().contains("marked for deletion"));
    scene.client.outcome(&deletion).await;
    assert_eq!(scene.model().await.status, 404);
    let again = NewInstance { instance_id: Some(0), ..NewInstance::default() };
    let vm = scene.sim.add_instance("pool", again).await.unwrap();
    assert_eq!((&vm.vm_id, &vm.nic_id), (&scene.vm.vm_id, &scene.vm.nic_id));
    assert_ne!(vm.mac, scene.vm.mac);
    assert_ne!(scene.model().await.body["properties"]["vmId"], before["properties"]["vmId"]);
}

#[tokio::test]
async fn scaling_in_through_the_set_takes_the_newest_instances() {
    let scene = Scene::with_writes_of(0.0).await;
    let set = scene.vm.vm_id.split("/virtualMachines").next().unwrap();
    let path = format!("{set}?api-version=2025-04-01");
    let mut body = scene.client.get(&path).await.body;
    for capacity in [3, 1] {
        body["sku"]["capacity"] = json!(capacity);
        assert_eq!(scene.client.put(&path, &body).await.status, 200);
        let all = scene.client.get(&format!("{set}/virtualMachines?api-version=2025-04-01")).await.body;
        let ids: Vec<&str> =
            all["value"].as_array().unwrap().iter().map(|vm| vm["instanceId"].as_str().unwrap()).collect();
        assert_eq!(ids, ["0", "1", "2"][..capacity]);
    }
}
