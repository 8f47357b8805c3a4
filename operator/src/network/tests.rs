use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use vnetpool_azure_sim as sim;
use vnetpool_azure_sim::Sim;

use super::*;
use crate::azure::{ApiVersions, Cloud, Config, Credential};

const NETWORKS: &str = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/vnetpool/providers/Microsoft.Network/virtualNetworks";

fn subnet(vnet: &str, name: &str) -> ResourceId {
    format!("{NETWORKS}/{vnet}/subnets/{name}").parse().unwrap()
}

fn vnet(name: &str, second: u8, subnets: &[&str]) -> sim::VnetConfig {
    let prefix = |third: usize| format!("10.{second}.{third}.0/28").parse().unwrap();
    sim::VnetConfig {
        name: name.into(),
        address_prefixes: vec![format!("10.{second}.0.0/16").parse().unwrap()],
        subnets: subnets.iter().enumerate().map(|(third, name)| ((*name).into(), prefix(third))).collect(),
    }
}

/// Azure with two VNets, and its client.
async fn azure(config: sim::Config) -> (Sim, Arc<Azure>) {
    let vnets = vec![vnet("one", 1, &["a", "b", "GatewaySubnet"]), vnet("two", 2, &["c"])];
    let sim = Sim::start(sim::Config { vnets, ..config }).await.unwrap();
    let azure = Arc::new(
        Azure::new(&Config {
            cloud: Cloud::Public,
            endpoint: Some(sim.arm_url().parse().unwrap()),
            imds: Some(sim.arm_url().parse().unwrap()),
            credential: Credential::ManagedIdentity { client_id: None },
            versions: ApiVersions::of(Cloud::Public),
            budget_percent: 80,
            dry_run: false,
        })
        .unwrap(),
    );
    (sim, azure)
}

/// Two VNets of Azure's, and the known facts about them.
struct World {
    sim: Sim,
    azure: Arc<Azure>,
    networks: Arc<Networks>,
    in_use: Arc<Mutex<HashSet<ResourceId>>>,
    news: Arc<Mutex<Vec<(ResourceId, News)>>>,
}

impl World {
    async fn start(config: sim::Config) -> World {
        let (sim, azure) = azure(config).await;
        let networks = Arc::new(Networks::new(azure.clone()));
        let all = [subnet("one", "a"), subnet("one", "b"), subnet("two", "c")];
        let world = World {
            sim,
            azure,
            networks,
            in_use: Arc::new(Mutex::new(all.into_iter().collect())),
            news: Arc::default(),
        };
        let (networks, in_use, news) = (world.networks.clone(), world.in_use.clone(), world.news.clone());
        tokio::spawn(async move {
            let in_use = || in_use.lock().unwrap().clone();
            let note = |subnet: &ResourceId, what: News| news.lock().unwrap().push((subnet.clone(), what));
            networks.refresh(in_use, note).await;
        });
        world
    }

    async fn met(self) -> World {
        let subnets: Vec<_> = self.in_use.lock().unwrap().iter().cloned().collect();
        for subnet in subnets {
            self.networks.around(&subnet).await.unwrap();
        }
        self
    }

    /// How often Azure was asked for a path that ends so.
    fn asked(&self, end: &str) -> usize {
        let log = self.sim.log();
        log.iter().filter(|one| one.path.starts_with("/subscriptions/") && one.path.ends_with(end)).count()
    }

    async fn until(&self, what: &str, holds: impl Fn(&World) -> bool) {
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while !holds(self) {
            assert!(std::time::Instant::now() < deadline, "{what}: {:?}", self.sim.log().last());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn free(&self, vnet: &str, name: &str) -> Option<FreeAddresses> {
        self.networks.subnet(&subnet(vnet, name)).map(|subnet| subnet.free)
    }
}

/// The clock goes on by so much, and no request is under way meanwhile.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// Azure's answers, as they come.
struct Answers(Arc<AtomicUsize>);

impl Answers {
    fn to(world: &World) -> Answers {
        let answered = Arc::new(AtomicUsize::new(0));
        let count = answered.clone();
        world.azure.on_request(move |one| {
            count.fetch_add(usize::from(one.status.is_some()), Ordering::Relaxed);
        });
        Answers(answered)
    }

    /// Waits until there were so many, and all has been done that follows from them.
    async fn until(&self, world: &World, count: usize) {
        world.until("so many are answered", |_| self.0.load(Ordering::Relaxed) == count).await;
        // A round's pause, of no length, ends by an earlier timer than this.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_vnet_is_not_read_before_the_pause_that_azure_asks_for_and_no_other_waits() {
    let world = World::start(sim::Config::default()).await;
    let answers = Answers::to(&world);
    let world = world.met().await;
    answers.until(&world, 4).await;
    let body = json!({"error": {"code": "ServerBusy", "message": "later"}});
    let busy = json!({"kind": "status", "status": 503, "headers": {"retry-after": "290"}, "body": body});
    let fault = json!({"method": "GET", "path_contains": "virtualNetworks/one", "effect": busy});
    world.sim.order_fault(serde_json::from_value(fault).unwrap());
    let hits = || world.sim.faults()[0].hits;
    for count in [8, 10, 12, 14, 16] {
        pass(NETWORK_KEPT).await;
        answers.until(&world, count).await;
        assert_eq!(hits(), 2, "one for all its subnets, and one for its usage");
    }
    pass(NETWORK_KEPT).await;
    answers.until(&world, 20).await;
    assert_eq!(hits(), 4);
}

#[tokio::test]
async fn a_vnet_from_which_no_answer_comes_keeps_no_other_from_being_read_and_counted() {
    let world = World::start(sim::Config::default()).await;
    let answers = Answers::to(&world);
    world.networks.around(&subnet("one", "a")).await.unwrap();
    answers.until(&world, 2).await;
    pass(NETWORK_KEPT / 2).await;
    world.networks.around(&subnet("two", "c")).await.unwrap();
    answers.until(&world, 4).await;
    let hold = json!({"path_contains": "virtualNetworks/one", "effect": {"kind": "hold_before"}});
    world.sim.order_fault(serde_json::from_value(hold).unwrap());
    let held = || world.sim.faults()[0].hits;
    pass(NETWORK_KEPT / 2).await;
    world.until("its read and its count are held", |_| held() == 2).await;
    // Without an answer they end half a minute later than this.
    pass(NETWORK_KEPT / 2).await;
    answers.until(&world, 6).await;
    assert_eq!((world.asked("/two"), world.asked("/two/usages")), (2, 2));
    assert_eq!(held(), 2, "asked for once more while its answer is awaited");
}

#[tokio::test]
async fn each_vnet_is_read_and_counted_once_a_minute_for_any_number_of_subnets_and_nodes() {
    let world = World::start(sim::Config::default()).await;
    let answers = Answers::to(&world);
    let world = world.met().await;
    for minute in 1..=5_usize {
        // That another is taken each minute shows when the minute's counting is done.
        let free = Some(FreeAddresses::Counted(12 - minute as u32));
        let all = |world: &World| world.free("one", "a") == free && world.free("two", "c") == free;
        world.until("all counted", all).await;
        // A minute that passed while an answer is on its way would put the next read off.
        answers.until(&world, 4 * minute).await;
        for _ in 0..20 {
            for subnet in [subnet("one", "a"), subnet("one", "b"), subnet("two", "c")] {
                world.networks.around(&subnet).await.unwrap();
            }
        }
        let asked = ["/one", "/two", "/one/usages", "/two/usages"].map(|path| world.asked(path));
        assert_eq!(asked, [minute; 4]);
        for name in ["a", "c"] {
            let name = (format!("vm-{name}-{minute}"), name);
            let vm = sim::NewVm { name: name.0, subnet: Some(name.1.into()), ..Default::default() };
            world.sim.add_vm(vm).await.unwrap();
        }
        pass(NETWORK_KEPT).await;
    }
    assert_eq!(world.asked(""), world.asked("/one") + world.asked("/two") + world.asked("/usages"));
}

#[tokio::test]
async fn a_subnets_size_and_free_addresses_are_known_and_a_change_is_news() {
    let world = World::start(sim::Config::default()).await.met().await;
    world.until("counted", |world| world.free("one", "a") == Some(FreeAddresses::Counted(11))).await;
    assert_eq!(world.networks.subnet(&subnet("one", "a")).unwrap().size, 11);
    world.until("all counted", |world| world.free("two", "c") == Some(FreeAddresses::Counted(11))).await;
    world.news.lock().unwrap().clear();
    let vm = sim::NewVm { name: "vm".into(), subnet: Some("a".into()), ..Default::default() };
    world.sim.add_vm(vm).await.unwrap();
    pass(NETWORK_KEPT).await;
    world.until("counted again", |world| world.free("one", "a") == Some(FreeAddresses::Counted(10))).await;
    // The other subnet is as full as before, and the network around it isn't.
    let news = world.news.lock().unwrap().clone();
    assert_eq!(news.len(), 2, "{news:?}");
    assert!(news.contains(&(subnet("one", "a"), News::Free)), "{news:?}");
    assert!(news.contains(&(subnet("one", "b"), News::Around)), "{news:?}");
}

#[tokio::test]
async fn a_subnet_that_no_node_uses_any_more_is_not_read() {
    let world = World::start(sim::Config::default()).await.met().await;
    let counts = |world: &World| world.free("one", "b").zip(world.free("two", "c"));
    let both = Some((FreeAddresses::Counted(11), FreeAddresses::Counted(11)));
    world.until("counted", |world| counts(world) == both).await;
    world.in_use.lock().unwrap().retain(|one| *one == subnet("two", "c"));
    world.sim.clear_log();
    pass(NETWORK_KEPT).await;
    world.until("the other is counted", |world| world.asked("/two/usages") == 1).await;
    assert_eq!((world.asked(""), world.asked("/two")), (2, 1));
    assert_eq!(world.networks.subnet(&subnet("one", "a")), None);
}

#[tokio::test]
async fn without_the_right_to_usages_the_hint_is_absent_and_the_network_is_known_all_the_same() {
    let denied = vec!["Microsoft.Network/virtualNetworks/usages/read".into()];
    let world = World::start(sim::Config { denied, ..sim::Config::default() }).await.met().await;
    let unreadable = |world: &World| match world.free("one", "a") {
        Some(FreeAddresses::Unreadable { reason, message }) => Some((reason, message)),
        _ => None,
    };
    world.until("refused", |world| unreadable(world).is_some()).await;
    let (reason, message) = unreadable(&world).unwrap();
    assert_eq!(reason, "PermissionDenied");
    assert!(message.contains("Microsoft.Network/virtualNetworks/usages/read"), "{message}");
    assert_eq!(world.networks.around(&subnet("one", "a")).await.unwrap().subnet.len(), 1);
    // Not asked again before the minute is over; then granted, it is there.
    world.sim.deny(vec![]);
    pass(NETWORK_KEPT).await;
    world.until("counted", |world| world.free("one", "a") == Some(FreeAddresses::Counted(11))).await;
}

#[tokio::test]
async fn a_vnet_that_may_not_be_read_is_tried_once_a_minute_and_not_for_each_node() {
    let denied = vec!["Microsoft.Network/virtualNetworks/read".into()];
    let world = World::start(sim::Config { denied, ..sim::Config::default() }).await;
    for _ in 0..20 {
        world.networks.around(&subnet("one", "a")).await.unwrap_err();
        world.networks.around(&subnet("one", "b")).await.unwrap_err();
    }
    assert_eq!(world.asked("/one"), 1);
    world.sim.deny(vec![]);
    pass(NETWORK_KEPT).await;
    world.networks.around(&subnet("one", "a")).await.unwrap();
}

#[tokio::test]
async fn every_page_is_read_and_paid_for_and_the_gateways_subnet_has_no_figure() {
    let world = World::start(sim::Config { page_size: Some(1), ..sim::Config::default() }).await;
    world.in_use.lock().unwrap().insert(subnet("one", "GatewaySubnet"));
    let world = world.met().await;
    world.until("counted", |world| world.free("two", "c") == Some(FreeAddresses::Counted(11))).await;
    world.until("counted", |world| world.free("one", "b") == Some(FreeAddresses::Counted(11))).await;
    assert_eq!(world.free("one", "GatewaySubnet"), Some(FreeAddresses::Uncounted));
    assert_eq!((world.asked("/one/usages"), world.asked("/two/usages")), (3, 1));
    let accounts = world.azure.accounts();
    let spent =
        |limit: &str| accounts.iter().filter(|one| one.limit == limit).map(|one| one.spent).sum::<u64>();
    assert_eq!((spent("arm"), spent("network")), (world.asked("") as u64, world.asked("") as u64));
}

#[tokio::test]
async fn a_network_is_read_within_the_minute_though_its_count_gets_no_answer() {
    let world = World::start(sim::Config::default()).await;
    let fault = json!({ "path_contains": "/usages", "effect": { "kind": "hold_before" } });
    world.sim.order_fault(serde_json::from_value(fault).unwrap());
    let world = world.met().await;
    let held = |world: &World| world.sim.faults()[0].hits;
    world.until("both counts are held", |world| held(world) == 2).await;
    pass(NETWORK_KEPT).await;
    world.until("both are read", |world| world.asked("/one") + world.asked("/two") == 4).await;
    assert_eq!(held(&world), 2);
}

#[tokio::test]
async fn a_new_subnet_does_not_delay_the_read_of_its_network() {
    let world = World::start(sim::Config::default()).await;
    world.networks.around(&subnet("one", "a")).await.unwrap();
    world.until("counted", |world| world.free("one", "a") == Some(FreeAddresses::Counted(11))).await;
    let late = Duration::from_secs(9);
    pass(NETWORK_KEPT - late).await;
    world.networks.around(&subnet("one", "b")).await.unwrap();
    world.until("counted", |world| world.free("one", "b") == Some(FreeAddresses::Counted(11))).await;
    assert_eq!(world.asked("/one"), 1);
    pass(late).await;
    world.until("read again", |world| world.asked("/one") == 2).await;
}

#[tokio::test]
async fn networks_are_read_with_waiting_pods_priority_and_counted_with_the_lowest() {
    let world = World::start(sim::Config::default()).await;
    let asked = Arc::new(Mutex::new(vec![]));
    let seen = asked.clone();
    world.azure.on_request(move |request| seen.lock().unwrap().push(request.priority));
    let world = world.met().await;
    world.until("both are counted", |_| asked.lock().unwrap().len() == 4).await;
    asked.lock().unwrap().clear();
    pass(NETWORK_KEPT).await;
    world.until("both are read and counted again", |_| asked.lock().unwrap().len() == 4).await;
    asked.lock().unwrap().sort_unstable();
    let [read, count] = [Priority::WaitingPods, Priority::GiveBack];
    assert_eq!(*asked.lock().unwrap(), [read, read, count, count]);
}
