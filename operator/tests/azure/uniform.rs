//! The client and instances of Uniform scale sets, in simulated Azure.

use std::time::Duration;

use serde_json::{Value, json};
use vnetpool_azure_sim::{Config, Effect, Fault, LogEntry, NewInstance, NewScaleSet, Sim};
use vnetpool_operator::azure::{
    Azure, Change, Error, Freshness, Priority, ProvisioningState, Remedy, ResourceId, VmId,
};

use crate::script::client;

/// An instance of a scale set in an Azure of its own.
struct Pool {
    sim: Sim,
    azure: Azure,
    vm: VmId,
    nic: ResourceId,
}

impl Pool {
    async fn start() -> Pool {
        let sim = Sim::start(Config { write_seconds: 1.0, ..Config::default() }).await.unwrap();
        sim.add_scale_set(NewScaleSet { name: "pool".into(), ..NewScaleSet::default() }).unwrap();
        let vm = sim.add_instance("pool", NewInstance::default()).await.unwrap();
        Pool {
            azure: client(sim.arm_url(), sim.arm_url()),
            vm: VmId::from_provider_id(&vm.provider_id).unwrap(),
            nic: vm.nic_id.parse().unwrap(),
            sim,
        }
    }

    async fn update(&self, reserve: &[&str], release: &[&str]) -> Result<Vec<String>, Error> {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let change = Change { reserve: names(reserve), release: names(release), ..Change::default() };
        let nic = self.azure.update(&self.nic, &change, Priority::WaitingPods).await?;
        assert!(nic.ip_configurations.iter().all(|one| one.state == ProvisioningState::Succeeded));
        let shown = nic.ip_configurations.iter();
        Ok(shown.map(|one| format!("{} {}", one.name, one.address.unwrap().addr())).collect())
    }

    fn log(&self) -> Vec<LogEntry> {
        let log: Vec<LogEntry> =
            self.sim.log().into_iter().filter(|one| one.path.starts_with("/subscriptions/")).collect();
        log
    }

    /// The requests without polls: the verb, and the last of the path.
    fn asked(&self) -> Vec<String> {
        let log = self.log();
        let log = log.iter().filter(|one| !one.path.contains("/operations/"));
        log.map(|one| format!("{} {}", one.method, one.path.rsplit('/').next().unwrap())).collect()
    }

    fn written(&self) -> Value {
        self.log().iter().rfind(|one| one.method == "PUT").unwrap().request.clone().unwrap()
    }
}

/// Every test ends with this: each call is in the list of actions.
impl Drop for Pool {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let log = self.log();
            crate::listed::assert_listed(
                log.iter().map(|entry| (entry.method.as_str(), entry.path.as_str())),
            );
        }
    }
}

/// The content of a write about the instance's NICs.
fn nics(document: &Value) -> &Value {
    &document["properties"]["networkProfileConfiguration"]["networkInterfaceConfigurations"]
}

/// The same without what is ours.
fn of_others(document: &Value) -> Value {
    let mut nics = nics(document).clone();
    for nic in nics.as_array_mut().unwrap() {
        let list = nic["properties"]["ipConfigurations"].as_array_mut().unwrap();
        list.retain(|one| !one["name"].as_str().unwrap().starts_with("vnp-"));
    }
    nics
}

#[tokio::test]
async fn an_instance_is_written_through_its_model_and_read_through_its_nic() {
    let pool = Pool::start().await;
    let nic = pool.azure.primary_nic(&pool.vm, Priority::NewNode).await.unwrap();
    assert_eq!(nic, pool.nic);
    let before = pool.azure.nic(&nic, Freshness::Fresh, Priority::NewNode).await.unwrap();
    assert_eq!((before.vm.as_ref(), before.foreign), (Some(pool.vm.resource()), 1));
    let held = pool.update(&["vnp-1", "vnp-2"], &[]).await.unwrap();
    assert_eq!(held, ["vnp-1 10.240.0.5", "vnp-2 10.240.0.6"]);
    // A new node costs a read of its machine, one of its NIC, the write, and one to read back.
    assert_eq!(pool.asked(), ["GET 0", "GET primary", "PUT 0", "GET primary"]);
    let put = pool.log().into_iter().find(|one| one.method == "PUT").unwrap();
    assert_eq!(put.if_match.as_deref(), Some("\"1\""));
    let reads = pool.log().into_iter().filter(|one| one.path.ends_with("/primary"));
    assert!(reads.into_iter().all(|one| one.query == "api-version=2018-10-01"));
    // Known from the write: no read is needed.
    let cached = pool.azure.nic(&nic, Freshness::Cached, Priority::NewNode).await.unwrap();
    assert_eq!(cached.ip_configurations.len(), 2);
    assert_eq!(pool.update(&[], &["vnp-1"]).await.unwrap(), ["vnp-2 10.240.0.6"]);
    assert_eq!(pool.asked()[4..], ["GET 0", "PUT 0", "GET primary"]);
}

#[tokio::test]
async fn a_write_to_an_instance_holds_only_needed_fields_and_never_its_image() {
    let pool = Pool::start().await;
    let before = pool.sim.machine("pool_0").unwrap();
    assert!(
        before["properties"]["storageProfile"]["imageReference"]["id"]
            .as_str()
            .unwrap()
            .contains("/galleries/")
    );
    pool.update(&["vnp-1"], &[]).await.unwrap();
    let written = pool.written();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&written), ["location", "properties"]);
    assert_eq!(keys(&written["properties"]), ["hardwareProfile", "networkProfileConfiguration"]);
    // And no address is asked for.
    assert!(!written.to_string().contains("privateIPAddress\""));
    assert!(!written.to_string().contains("privateIPAllocationMethod"));
}

#[tokio::test]
async fn settings_of_others_on_an_instance_survive_our_writes_in_value_and_order() {
    let pool = Pool::start().await;
    let subnet = nics(&pool.sim.machine("pool_0").unwrap())[0]["properties"]["ipConfigurations"][0]["properties"]
        ["subnet"]
        .clone();
    let mut theirs = nics(&pool.sim.machine("pool_0").unwrap()).clone();
    let properties = &mut theirs[0]["properties"];
    properties["dnsSettings"] = json!({ "dnsServers": ["10.0.0.9", "10.0.0.8"] });
    properties["aFieldOfTheFuture"] = json!({ "a": [1, null] });
    let list = properties["ipConfigurations"].as_array_mut().unwrap();
    list.push(json!({ "name": "egress", "properties": { "primary": false, "subnet": subnet, "privateIPAddressVersion": "IPv4" } }));
    let patch = json!({ "properties": { "networkProfileConfiguration": { "networkInterfaceConfigurations": theirs } } });
    pool.sim.patch_instance("pool_0", &patch).await.unwrap();
    let before = pool.sim.machine("pool_0").unwrap();
    for (reserve, release) in
        [(&["vnp-1", "vnp-2"][..], &[][..]), (&["vnp-3"], &["vnp-1"]), (&[], &["vnp-2", "vnp-3"])]
    {
        pool.update(reserve, release).await.unwrap();
        let after = pool.sim.machine("pool_0").unwrap();
        assert_eq!(of_others(&after), of_others(&before));
        for part in ["storageProfile", "osProfile", "hardwareProfile", "vmId"] {
            assert_eq!(after["properties"][part], before["properties"][part], "{part}");
        }
    }
}

#[tokio::test]
async fn a_race_for_an_instance_is_lost_once_and_then_won_without_undoing_theirs() {
    let pool = Pool::start().await;
    // Its model is known from here on, and soon an old one.
    pool.azure.primary_nic(&pool.vm, Priority::NewNode).await.unwrap();
    let patch = json!({ "properties": { "protectionPolicy": { "protectFromScaleIn": true } } });
    pool.sim.patch_instance("pool_0", &patch).await.unwrap();
    let error = pool.update(&["vnp-1"], &[]).await.unwrap_err();
    assert!(matches!(error, Error::Stale { .. }), "{error}");
    assert_eq!(error.remedy(), Remedy::ReadAgain);
    assert_eq!(pool.update(&["vnp-1"], &[]).await.unwrap().len(), 1);
    let after = pool.sim.machine("pool_0").unwrap();
    assert_eq!(after["properties"]["protectionPolicy"]["protectFromScaleIn"], true);
}

#[tokio::test]
async fn an_instance_under_another_operation_is_left_alone() {
    let pool = Pool::start().await;
    let fault = Fault {
        method: Some("PUT".into()),
        path_contains: Some("virtualMachineScaleSets".into()),
        count: Some(1),
        effect: Effect::CutAfterApply,
    };
    pool.sim.order_fault(fault);
    let error = pool.update(&["vnp-1"], &[]).await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
    // The write goes on in Azure, undisturbed by ours.
    let error = pool.update(&["vnp-1", "vnp-2"], &[]).await.unwrap_err();
    let Error::Busy { .. } = &error else { panic!("{error}") };
    assert_eq!(pool.asked().iter().filter(|asked| *asked == "PUT 0").count(), 1);
    let Remedy::RetryAfter(wait) = error.remedy() else { panic!("{error}") };
    tokio::time::sleep(wait).await;
    let held = pool.update(&["vnp-1", "vnp-2"], &[]).await.unwrap();
    assert_eq!(held, ["vnp-1 10.240.0.5", "vnp-2 10.240.0.6"]);
}

#[tokio::test]
async fn a_write_that_is_dropped_on_its_way_may_have_left_something_in_the_model() {
    let pool = Pool::start().await;
    pool.update(&["vnp-1"], &[]).await.unwrap();
    assert!(!pool.azure.take_remains(&pool.nic));
    let fault = pool.sim.order_fault(Fault {
        method: Some("PUT".into()),
        path_contains: Some("virtualMachineScaleSets".into()),
        count: Some(1),
        effect: Effect::Hold,
    });
    let is_sent = async {
        while pool.sim.faults().iter().all(|one| one.id != fault || one.hits == 0) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let names = ["vnp-2"];
    tokio::select! {
        outcome = pool.update(&names, &[]) => panic!("{outcome:?}"),
        () = is_sent => {}
    }
    assert!(pool.azure.take_remains(&pool.nic) && !pool.azure.take_remains(&pool.nic));
}

#[tokio::test]
async fn a_nic_that_lags_behind_its_model_gets_no_reservation_twice() {
    let pool = Pool::start().await;
    let path = format!("{}{}?api-version=2018-10-01", pool.sim.arm_url(), pool.nic);
    let old = reqwest::Client::new().get(path).bearer_auth("test").send().await.unwrap();
    let lags = pool.sim.order_fault(Fault {
        method: Some("GET".into()),
        path_contains: Some("/networkInterfaces/".into()),
        count: None,
        effect: Effect::Status { status: 200, body: old.json().await.unwrap(), headers: Default::default() },
    });
    // Each time the node asks for what the NIC lacks, under new names.
    for names in [&["vnp-1", "vnp-2"], &["vnp-3", "vnp-4"], &["vnp-5", "vnp-6"]] {
        assert_eq!(pool.update(names, &[]).await.unwrap(), [""; 0]);
    }
    pool.sim.lift_fault(lags).unwrap();
    let error = pool.update(&["vnp-7"], &[]).await.unwrap_err();
    assert!(matches!(error, Error::Stale { .. }), "{error}");
    let held = pool.azure.nic(&pool.nic, Freshness::Cached, Priority::NewNode).await.unwrap();
    let names: Vec<_> = held.ip_configurations.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["vnp-1", "vnp-2"]);
    assert_eq!(nics(&pool.written())[0]["properties"]["ipConfigurations"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn an_instance_marked_for_deletion_is_not_written() {
    let pool = Pool::start().await;
    pool.azure.primary_nic(&pool.vm, Priority::NewNode).await.unwrap();
    let delete = reqwest::Client::new()
        .delete(format!("{}{}?api-version=2025-04-01", pool.sim.arm_url(), pool.vm))
        .bearer_auth("test");
    delete.send().await.unwrap();
    pool.sim.clear_log();
    for _ in 0..2 {
        // Reported by Azure at first, and by the model after that.
        let error = pool.update(&["vnp-1"], &[]).await.unwrap_err();
        assert!(matches!(error, Error::Busy { .. }), "{error}");
    }
    assert_eq!(pool.asked().iter().filter(|asked| *asked == "PUT 0").count(), 1);
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        let nic = pool.azure.nic(&pool.nic, Freshness::Fresh, Priority::GiveBack).await;
        if let Err(error) = nic {
            assert!(matches!(error, Error::NotFound { .. }), "{error}");
            break;
        }
        assert!(std::time::Instant::now() < deadline, "the instance stays");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn an_id_that_comes_back_is_a_machine_that_holds_nothing_of_ours() {
    let pool = Pool::start().await;
    pool.update(&["vnp-1"], &[]).await.unwrap();
    let before = pool.azure.nic(&pool.nic, Freshness::Cached, Priority::NewNode).await.unwrap();
    pool.sim.delete_vm("pool_0", false).await.unwrap();
    let again = NewInstance { instance_id: Some(0), ..NewInstance::default() };
    assert_eq!(pool.sim.add_instance("pool", again).await.unwrap().vm_id, pool.vm.to_string());
    let after = pool.azure.nic(&pool.nic, Freshness::Fresh, Priority::NewNode).await.unwrap();
    assert_eq!(after.ip_configurations, []);
    assert_ne!(after.mac, before.mac);
    assert_eq!(pool.update(&["vnp-2"], &[]).await.unwrap(), ["vnp-2 10.240.0.5"]);
}

#[tokio::test]
async fn an_upgrade_of_the_model_is_seen_by_the_next_read() {
    let pool = Pool::start().await;
    pool.update(&["vnp-1", "vnp-2"], &[]).await.unwrap();
    pool.sim.upgrade_instance("pool_0").await.unwrap();
    let nic = pool.azure.nic(&pool.nic, Freshness::Fresh, Priority::GiveBack).await.unwrap();
    assert_eq!(nic.ip_configurations, []);
    assert_eq!(pool.update(&["vnp-3"], &[]).await.unwrap(), ["vnp-3 10.240.0.5"]);
}

#[tokio::test]
async fn the_id_of_an_instance_works_in_any_letter_case() {
    let pool = Pool::start().await;
    let vm = format!("azure://{}", pool.vm.to_string().to_lowercase());
    let vm = VmId::from_provider_id(&vm).unwrap();
    let nic = pool.azure.primary_nic(&vm, Priority::NewNode).await.unwrap();
    let shouted: ResourceId = nic.to_string().to_uppercase().parse().unwrap();
    let change = Change { reserve: vec!["vnp-1".into()], ..Change::default() };
    let held = pool.azure.update(&shouted, &change, Priority::WaitingPods).await.unwrap();
    assert_eq!(held.ip_configurations.len(), 1);
    // Whatever its case, it is the same NIC, known by now.
    let asked = pool.asked();
    let known = pool.azure.nic(&nic, Freshness::Cached, Priority::WaitingPods).await.unwrap();
    assert_eq!((&known.id, known.ip_configurations.len()), (&nic, 1));
    assert_eq!(pool.asked(), asked);
}

#[tokio::test]
async fn throttling_of_one_instance_holds_up_no_other() {
    let pool = Pool::start().await;
    let other = pool.sim.add_instance("pool", NewInstance::default()).await.unwrap();
    let words =
        "The server rejected the request because too many requests have been received for this resource.";
    let body = json!({ "error": { "code": "OperationNotAllowed", "message": words,
        "details": [{ "code": "TooManyRequests", "target": "PutVM", "message": "Retry after 60 seconds." }] } });
    let headers = [("retry-after".to_owned(), "60".to_owned())].into();
    pool.sim.order_fault(Fault {
        method: Some("PUT".into()),
        path_contains: Some("virtualMachines/0".into()),
        count: Some(1),
        effect: Effect::Status { status: 429, body, headers },
    });
    let error = pool.update(&["vnp-1"], &[]).await.unwrap_err();
    assert_eq!(error.remedy(), Remedy::RetryAfter(Duration::from_secs(60)), "{error}");
    let change = Change { reserve: vec!["vnp-1".into()], ..Change::default() };
    let other = other.nic_id.parse().unwrap();
    let update = pool.azure.update(&other, &change, Priority::WaitingPods);
    let update = tokio::time::timeout(Duration::from_secs(20), update).await.expect("the other waits, too");
    assert_eq!(update.unwrap().ip_configurations.len(), 1);
}
