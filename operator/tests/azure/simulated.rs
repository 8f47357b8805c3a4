//! The client against simulated Azure: what it asks for, what the NIC then holds, and what each refusal
//! becomes.
//!
//! Writes take a second here instead of Azure's ten, or as long as the test asks.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use serde_json::{Value, json};
use vnetpool_azure_sim::{Config, Effect, Fault, LogEntry, NewVm, Peering, Sim};
use vnetpool_crds::inspection::ReservedView;
use vnetpool_operator::azure::{
    Azure, Change, Config as AzureConfig, Error, Freshness, Nic, Priority, ProvisioningState, Remedy,
    ResourceId, Urgency, VmId,
};

use crate::script::{client, config};

/// One VM and its NIC in an Azure of its own.
pub struct World {
    pub sim: Sim,
    pub azure: Azure,
    pub vm: VmId,
    pub nic: ResourceId,
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let log = self.arm_log();
            crate::listed::assert_listed(
                log.iter().map(|entry| (entry.method.as_str(), entry.path.as_str())),
            );
        }
    }
}

impl World {
    pub async fn start(subnet: &str, write_seconds: f64) -> World {
        World::of(Config { write_seconds, ..Config::default() }, subnet).await
    }

    /// With tokens that last so many seconds.
    pub async fn lasting(token_seconds: i64) -> World {
        World::of(Config { token_seconds, ..Config::default() }, "nodes").await
    }

    async fn of(config: Config, subnet: &str) -> World {
        let sim = Sim::start(config).await.unwrap();
        let vm = NewVm { name: "node-1".into(), subnet: Some(subnet.into()), ..NewVm::default() };
        let vm = sim.add_vm(vm).await.unwrap();
        let azure = client(sim.arm_url(), sim.arm_url());
        World {
            azure,
            vm: VmId::from_provider_id(&vm.provider_id).unwrap(),
            nic: vm.nic_id.parse().unwrap(),
            sim,
        }
    }

    pub async fn reserve(&self, names: &[&str]) -> Result<std::sync::Arc<Nic>, Error> {
        self.azure
            .update(&self.nic, &change(names, &[]), Priority::WaitingPods)
            .await
            .map(|written| written.after)
    }

    pub fn refuse(&self, method: &str, status: u16, body: Value, headers: &[(&str, &str)]) {
        let headers: BTreeMap<String, String> =
            headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        self.fault(method, Effect::Status { status, body, headers });
    }

    /// Strikes the next such request to a NIC.
    pub fn fault(&self, method: &str, effect: Effect) -> u64 {
        self.fault_at(method, "networkInterfaces", effect)
    }

    /// Strikes the next such request whose path contains `path`.
    pub fn fault_at(&self, method: &str, path: &str, effect: Effect) -> u64 {
        let (method, path_contains) = (Some(method.into()), Some(path.into()));
        self.sim.order_fault(Fault { method, path_contains, count: Some(1), effect })
    }

    /// The requests to ARM, without tokens and polls.
    pub fn asked(&self) -> Vec<String> {
        let log = self.arm_log();
        log.iter().filter(|one| !one.path.contains("/operations/")).map(|one| one.method.clone()).collect()
    }

    pub fn arm_log(&self) -> Vec<LogEntry> {
        self.sim.log().into_iter().filter(|one| one.path.starts_with("/subscriptions/")).collect()
    }

    /// Names and addresses of ours as Azure itself holds them.
    pub fn held(&self) -> Vec<(String, String)> {
        let state = self.sim.state();
        let all = state["nics"][0]["ip_configurations"].as_array().unwrap().clone();
        all.iter()
            .filter(|one| one["primary"] == false)
            .map(|one| (one["name"].as_str().unwrap().into(), one["address"].as_str().unwrap().into()))
            .collect()
    }
}

fn spent(azure: &Azure) -> u64 {
    let accounts = azure.accounts();
    accounts.iter().filter(|one| one.limit == "arm" && one.writes).map(|one| one.spent).sum()
}

#[tokio::test]
async fn a_write_that_is_not_confirmed_when_its_turn_has_come_is_not_sent_and_costs_nothing() {
    let world = World::start("nodes", 0.1).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let confirmed = move |answer: bool| {
        let count = count.clone();
        Urgency::from(Priority::WaitingPods).confirmed(move || {
            count.fetch_add(1, Ordering::Relaxed);
            async move { answer }
        })
    };
    let change = change(&["vnp-1"], &[]);
    let write = |urgency| world.azure.update(&world.nic, &change, urgency);
    let error = write(confirmed(false)).await.unwrap_err();
    assert!(matches!(error, Error::Unconfirmed { .. }), "{error}");
    assert_eq!(world.asked(), ["GET"]);
    // The NIC's known state stays known, and what was given back pays for this one: a counter never goes
    // down.
    write(confirmed(true)).await.unwrap();
    assert_eq!((world.asked(), spent(&world.azure)), (["GET", "PUT", "GET"].map(str::to_owned).into(), 1));
    // Asked once for each turn, and not for what follows it.
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

pub fn change(reserve: &[&str], release: &[&str]) -> Change {
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    Change { reserve: names(reserve), release: names(release), ..Change::default() }
}

pub fn names(nic: &Nic) -> Vec<&str> {
    nic.ip_configurations.iter().map(|one| one.name.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn reservations_are_listed_as_azure_has_them_and_nothing_is_written() {
    let world = World::start("nodes", 0.2).await;
    world.reserve(&["vnp-1", "vnp-2"]).await.unwrap();
    let before = world.asked().len();
    let view = reserved(&world, world.nic.as_str()).await;
    let listed: Vec<_> =
        view.reservations.iter().map(|one| (one.name.clone(), one.address.clone())).collect();
    let held: Vec<_> =
        world.held().into_iter().map(|(name, address)| (name, Some(format!("{address}/32")))).collect();
    assert_eq!((listed, view.others, view.error), (held, 1, None));
    assert_eq!(world.asked()[before..], ["GET"]);

    for wrong in [world.nic.as_str().replace("node-1-nic", "gone-nic"), "gone-nic".to_owned()] {
        let view = reserved(&world, &wrong).await;
        assert!(view.error.unwrap().contains("gone-nic") && view.reservations.is_empty());
        assert_eq!(view.id, wrong);
    }
}

async fn reserved(world: &World, id: &str) -> ReservedView {
    let mut views = std::pin::pin!(vnetpool_operator::reserved::views(&world.azure, [id].into_iter()));
    views.next().await.unwrap()
}

const FIVE: [&str; 5] = ["vnp-1", "vnp-2", "vnp-3", "vnp-4", "vnp-5"];

#[tokio::test]
async fn a_vm_leads_to_its_nic() {
    let world = World::start("nodes", 1.0).await;
    let found = world.azure.primary_nic(&world.vm, Priority::NewNode).await.unwrap();
    assert_eq!(found, world.nic);
    let nic = world.azure.nic(&found, Freshness::Cached, Priority::NewNode).await.unwrap();
    assert_eq!(nic.vm.as_ref(), Some(world.vm.resource()));
    assert_eq!(nic.location, "westeurope");
    assert!(nic.mac.as_deref().unwrap().starts_with("00:0d:3a:"));
    assert_eq!((nic.foreign, names(&nic).len()), (1, 0));
}

#[tokio::test]
async fn five_are_reserved_in_one_write_and_two_released_in_another() {
    let world = World::start("nodes", 1.0).await;
    let nic = world.reserve(&FIVE).await.unwrap();
    assert_eq!(names(&nic), FIVE);
    assert!(nic.ip_configurations.iter().all(|one| one.state == ProvisioningState::Succeeded));
    let addresses: HashSet<_> = nic.ip_configurations.iter().map(|one| one.address.unwrap()).collect();
    assert_eq!(addresses.len(), 5);
    assert_eq!(world.asked(), ["GET", "PUT", "GET"]);

    let give_back = change(&[], &["vnp-2", "vnp-4"]);
    let nic = world.azure.update(&world.nic, &give_back, Priority::GiveBack).await.unwrap();
    assert_eq!(names(&nic), ["vnp-1", "vnp-3", "vnp-5"]);
    // The result of the first write is known: no read before the second.
    assert_eq!(world.asked(), ["GET", "PUT", "GET", "PUT", "GET"]);
    let ours: Vec<(String, String)> = nic
        .ip_configurations
        .iter()
        .map(|one| (one.name.clone(), one.address.unwrap().addr().to_string()))
        .collect();
    assert_eq!(world.held(), ours);
}

#[tokio::test]
async fn a_block_of_sixteen_is_one_ip_configuration_and_survives_later_writes() {
    let world = World::start("nodes", 1.0).await;
    let blocks = Change { blocks: true, ..change(&["vnp-1", "vnp-2"], &[]) };
    let nic = world.azure.update(&world.nic, &blocks, Priority::WaitingPods).await.unwrap();
    let ranges =
        |nic: &Nic| nic.ip_configurations.iter().map(|one| one.address.unwrap().to_string()).collect();
    let first: Vec<String> = ranges(&nic);
    assert_eq!(first, ["10.240.0.16/28", "10.240.0.32/28"]);
    let both = Change { blocks: true, ..change(&["vnp-3"], &["vnp-1"]) };
    let nic = world.azure.update(&world.nic, &both, Priority::WaitingPods).await.unwrap();
    let second: Vec<String> = ranges(&nic);
    assert_eq!(second, ["10.240.0.32/28", "10.240.0.16/28"]);
}

#[tokio::test]
async fn an_operation_is_polled_no_more_often_than_azure_asks() {
    let world = World::start("nodes", 3.0).await;
    world.reserve(&["vnp-1"]).await.unwrap();
    let polls = world.arm_log().iter().filter(|one| one.path.contains("/operations/")).count();
    assert_eq!(polls, 1, "Retry-After is 3 s, as long as the write takes");
}

#[tokio::test]
async fn a_race_with_another_writer_is_lost_once_and_then_won_without_undoing_theirs() {
    let world = World::start("nodes", 1.0).await;
    world.azure.nic(&world.nic, Freshness::Cached, Priority::NewNode).await.unwrap();
    world
        .sim
        .patch_nic(
            "node-1-nic",
            &json!({ "tags": { "owner": "somebody" }, "properties": { "aNewField": [1, null] } }),
        )
        .await
        .unwrap();
    let error = world.reserve(&["vnp-1"]).await.unwrap_err();
    assert!(matches!(error, Error::Stale { .. }), "{error}");
    assert_eq!(error.remedy(), Remedy::ReadAgain);
    world.reserve(&["vnp-1"]).await.unwrap();
    let log = world.arm_log();
    let written = log.iter().rfind(|one| one.method == "PUT").unwrap().request.clone().unwrap();
    assert_eq!(written["tags"]["owner"], "somebody");
    assert_eq!(written["properties"]["aNewField"], json!([1, null]));
    let read = log.last().unwrap().response.clone().unwrap();
    assert_eq!(read["properties"]["aNewField"], json!([1, null]));
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_found_on_the_nic() {
    let world = World::start("nodes", 1.0).await;
    world.fault("PUT", Effect::CutAfterApply);
    let error = world.reserve(&["vnp-1"]).await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
    assert_eq!(error.remedy(), Remedy::ReadAgain);
    let nic = world.azure.nic(&world.nic, Freshness::Cached, Priority::WaitingPods).await.unwrap();
    assert_eq!(names(&nic), ["vnp-1"]);
    // The write goes on in Azure, undisturbed by ours.
    let error = world.reserve(&["vnp-2"]).await.unwrap_err();
    let Remedy::RetryAfter(wait) = error.remedy() else { panic!("{error}") };
    tokio::time::sleep(wait).await;
    let nic = world.reserve(&["vnp-1", "vnp-2"]).await.unwrap();
    assert_eq!(names(&nic), ["vnp-1", "vnp-2"]);
    assert_eq!(world.asked().iter().filter(|method| *method == "PUT").count(), 2);
}

#[tokio::test]
async fn after_throttling_nothing_is_asked_of_that_sort_before_retry_after() {
    let world = World::start("nodes", 1.0).await;
    let body = json!({ "error": { "code": "SubscriptionRequestsThrottled", "message": "slow down" } });
    world.refuse("PUT", 429, body, &[("retry-after", "2")]);
    let error = world.reserve(&["vnp-1"]).await.unwrap_err();
    assert_eq!(error.remedy(), Remedy::RetryAfter(Duration::from_secs(2)), "{error}");
    // Asked at once nevertheless, it waits on its own.
    let started = std::time::Instant::now();
    let patient = world.reserve(&["vnp-1"]);
    patient.await.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(2));
    assert_eq!(world.asked(), ["GET", "PUT", "PUT", "GET"]);
}

#[tokio::test]
async fn a_missing_permission_is_named() {
    let world = World::start("nodes", 1.0).await;
    world.sim.deny(vec!["Microsoft.Network/networkInterfaces/write".into()]);
    let error = world.reserve(&["vnp-1"]).await.unwrap_err();
    let Error::Denied { action, scope, .. } = &error else { panic!("{error}") };
    assert_eq!(action, "Microsoft.Network/networkInterfaces/write");
    assert_eq!(scope.parse::<ResourceId>().unwrap(), world.nic);
    world.sim.deny(vec![]);
    world.reserve(&["vnp-1"]).await.unwrap();
}

#[tokio::test]
async fn a_missing_permission_to_join_the_subnet_names_that_and_the_subnet() {
    let world = World::start("nodes", 1.0).await;
    world.sim.deny(vec!["Microsoft.Network/virtualNetworks/subnets/join/action".into()]);
    let error = world.reserve(&["vnp-1"]).await.unwrap_err();
    let Error::Denied { action, scope, .. } = &error else { panic!("{error}") };
    assert_eq!(action, "Microsoft.Network/virtualNetworks/subnets/join/action");
    assert!(scope.ends_with("/subnets/nodes"), "{scope}");
}

#[tokio::test]
async fn a_full_subnet_is_named_and_nothing_is_taken_of_it() {
    let world = World::start("small", 1.0).await;
    // A /28 has 11 addresses to give, and the node has one of them.
    let eleven: Vec<String> = (0..11).map(|index| format!("vnp-{index}")).collect();
    let eleven: Vec<&str> = eleven.iter().map(String::as_str).collect();
    let error = world.reserve(&eleven).await.unwrap_err();
    assert!(error.to_string().starts_with("subnet small (10.240.16.0/28) has no free address"), "{error}");
    assert!(matches!(
        error.remedy(),
        Remedy::WaitForChange { reason: vnetpool_crds::reason::Reason::SubnetFull, .. }
    ));
    assert_eq!(world.held(), []);
    world.reserve(&eleven[..10]).await.unwrap();
    assert_eq!(world.held().len(), 10);
}

#[tokio::test]
async fn a_write_that_another_supersedes_means_reading_again() {
    let world = World::start("nodes", 2.0).await;
    let meanwhile = async {
        // The other writer comes when ours has been accepted.
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while world.held().is_empty() {
            assert!(std::time::Instant::now() < deadline, "the write was never accepted");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        world.sim.patch_nic("node-1-nic", &json!({ "tags": { "owner": "somebody" } })).await.unwrap();
    };
    let reserve = ["vnp-1"];
    let (outcome, ()) = tokio::join!(world.reserve(&reserve), meanwhile);
    let error = outcome.unwrap_err();
    assert!(matches!(error, Error::Superseded { .. }), "{error}");
    assert_eq!(error.remedy(), Remedy::ReadAgain);
    let nic = world.azure.nic(&world.nic, Freshness::Cached, Priority::WaitingPods).await.unwrap();
    assert_eq!(names(&nic), reserve);
}

#[tokio::test]
async fn nothing_is_retried_below_the_budget() {
    let world = World::start("nodes", 1.0).await;
    for (method, status) in [("GET", 503), ("PUT", 500), ("PUT", 409)] {
        world.sim.clear_log();
        world.refuse(method, status, json!({ "error": { "code": "Any", "message": "words" } }), &[]);
        world.reserve(&["vnp-1"]).await.unwrap_err();
        assert_eq!(world.asked().iter().filter(|asked| *asked == method).count(), 1, "{method} {status}");
    }
}

#[tokio::test]
async fn a_vm_or_a_nic_that_is_gone_is_not_found() {
    let world = World::start("nodes", 1.0).await;
    world.sim.delete_vm("node-1", false).await.unwrap();
    let vm = world.azure.primary_nic(&world.vm, Priority::NewNode).await.unwrap_err();
    assert!(matches!(&vm, Error::NotFound { resource, .. } if *resource == world.vm.to_string()), "{vm}");
    let nic = world.azure.nic(&world.nic, Freshness::Cached, Priority::NewNode).await.unwrap_err();
    assert!(matches!(&nic, Error::NotFound { resource, .. } if *resource == world.nic.to_string()), "{nic}");
}

#[tokio::test]
async fn a_nic_without_a_vm_reads_so_and_is_written_at_once() {
    let world = World::start("nodes", 1.0).await;
    world.reserve(&["vnp-1"]).await.unwrap();
    world.sim.delete_vm("node-1", true).await.unwrap();
    let nic = world.azure.nic(&world.nic, Freshness::Fresh, Priority::GiveBack).await.unwrap();
    assert_eq!(nic.vm, None);
    world.sim.clear_log();
    let nic = world.azure.update(&world.nic, &change(&[], &["vnp-1"]), Priority::GiveBack).await.unwrap();
    assert_eq!((names(&nic).len(), world.arm_log().len()), (0, 1));
}

#[tokio::test]
async fn each_request_is_paid_from_the_budget_once_polls_included() {
    let world = World::start("nodes", 3.0).await;
    let nic = world.azure.primary_nic(&world.vm, Priority::NewNode).await.unwrap();
    let subnet = world.azure.nic(&nic, Freshness::Fresh, Priority::NewNode).await.unwrap().subnet.clone();
    world.azure.network(&subnet, Priority::NewNode).await.unwrap();
    world.reserve(&FIVE).await.unwrap();
    world.refuse("GET", 429, json!({ "error": { "code": "TooManyRequests", "message": "m" } }), &[]);
    world.azure.nic(&nic, Freshness::Fresh, Priority::GiveBack).await.unwrap_err();
    let log = world.arm_log();
    assert!(log.iter().any(|one| one.path.contains("/operations/")), "no poll");
    let accounts = world.azure.accounts();
    let spent = |limit: &str| {
        let of_limit = accounts.iter().filter(|one| one.limit == limit);
        of_limit.map(|one| (one.writes, one.region.clone(), one.spent)).collect::<Vec<_>>()
    };
    let writes = log.iter().filter(|one| one.method == "PUT").count() as u64;
    assert_eq!(
        spent("arm"),
        [(false, String::new(), log.len() as u64 - writes), (true, String::new(), writes)]
    );
    // The VM is Compute's; the region of what is read for the first time isn't known yet.
    assert_eq!(spent("compute"), [(false, String::new(), 1)]);
    let network: u64 = spent("network").iter().map(|(_, _, spent)| spent).sum();
    assert_eq!(network, log.len() as u64 - 1);
    assert!(spent("network").contains(&(true, "westeurope".to_owned(), 1)), "{accounts:?}");
}

#[tokio::test]
async fn in_a_dry_run_no_write_is_sent_to_azure() {
    let world = World::start("nodes", 1.0).await;
    let azure =
        Azure::new(&AzureConfig { dry_run: true, ..config(world.sim.arm_url(), world.sim.arm_url()) })
            .unwrap();
    let error = azure.update(&world.nic, &change(&["vnp-1"], &[]), Priority::WaitingPods).await.unwrap_err();
    assert_eq!(error.reason(), "DryRun");
    assert!(error.to_string().contains(world.nic.as_str()), "{error}");
    assert_eq!(world.asked(), ["GET"]);
    // The earlier read is still good.
    azure.nic(&world.nic, Freshness::Cached, Priority::WaitingPods).await.unwrap();
    assert_eq!(world.asked(), ["GET"]);
}

#[tokio::test]
async fn a_network_is_read_once_for_many_nodes() {
    let world = World::start("nodes", 1.0).await;
    let peering = Peering { name: "hub".into(), prefixes: vec!["10.250.0.0/16".parse().unwrap()] };
    world.sim.set_peerings("vnet", &[peering]).unwrap();
    let nic = world.azure.nic(&world.nic, Freshness::Cached, Priority::NewNode).await.unwrap();
    world.sim.clear_log();
    let reads = (0..20).map(|_| world.azure.network(&nic.subnet, Priority::NewNode));
    for network in futures::future::join_all(reads).await {
        let network = network.unwrap();
        let texts = |nets: &[ipnet::Ipv4Net]| nets.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(texts(&network.address_space), ["10.240.0.0/16"]);
        assert_eq!(texts(&network.peered), ["10.250.0.0/16"]);
        assert_eq!(texts(&network.subnet), ["10.240.0.0/20"]);
    }
    assert_eq!(world.arm_log().len(), 1);
}
