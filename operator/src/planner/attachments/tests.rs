use proptest::prelude::*;

use super::*;
use crate::ip_configuration::ProvisioningState;
use crate::resource_id::sample_public_address as public_id;

const POOL: &str =
    "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/loadBalancers/lb/backendAddressPools/web";

/// Owns the values that the facts borrow.
#[derive(Clone, Debug)]
struct World {
    held: Vec<IpConfiguration>,
    marks: BTreeMap<String, Mark>,
    recorded: HashSet<ResourceId>,
    wishes: HashMap<String, Wish>,
    has: HashMap<Ipv4Addr, String>,
    confirmed: bool,
    in_doubt: bool,
    offered: Attachments,
    impossible: Option<&'static str>,
    /// What the operator remembers of Azure's public addresses, and those that are there.
    public: HashMap<ResourceId, Option<PublicAddress>>,
    there: HashSet<ResourceId>,
    unread: HashSet<ResourceId>,
    refused: HashSet<String>,
    undetached: HashSet<String>,
    batch: usize,
}

fn address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 240, 0, n)
}

fn entry(n: u8) -> IpConfiguration {
    IpConfiguration {
        name: format!("vnp-{n}"),
        address: Some(address(n).into()),
        state: ProvisioningState::Succeeded,
        attached: Attached::default(),
    }
}

/// Addresses 1 to `n`; pool `web` and public addresses are on offer.
fn world(n: u8) -> World {
    World {
        held: (1..=n).map(entry).collect(),
        marks: BTreeMap::new(),
        recorded: HashSet::new(),
        wishes: HashMap::new(),
        has: HashMap::new(),
        confirmed: true,
        in_doubt: false,
        offered: Attachments {
            backend_pools: vec![vnetpool_crds::pool::BackendPool { name: "web".into(), id: POOL.into() }],
            public_address_namespaces: vec!["default".into()],
        },
        impossible: None,
        public: HashMap::new(),
        there: HashSet::new(),
        unread: HashSet::new(),
        refused: HashSet::new(),
        undetached: HashSet::new(),
        batch: usize::MAX,
    }
}

impl World {
    fn plan(&self) -> Plan {
        let World {
            held,
            marks,
            recorded,
            wishes,
            has,
            confirmed,
            in_doubt,
            offered,
            impossible,
            public,
            there: _,
            unread,
            refused,
            undetached,
            batch,
        } = self;
        let facts = Facts {
            held,
            marks,
            recorded,
            wishes,
            has,
            confirmed: *confirmed,
            in_doubt: *in_doubt,
            offered,
            impossible: *impossible,
            public,
            unread,
            refused,
            undetached,
            batch: *batch,
        };
        plan(&facts, |uid| Some(public_id(uid)))
    }

    fn wants_web(mut self, uid: &str) -> World {
        self.wishes.insert(
            uid.into(),
            Wish { pod: format!("default/{uid}"), backend_pools: Some("web".into()), ..Wish::default() },
        );
        self
    }

    fn wants_public(mut self, uid: &str) -> World {
        let wish =
            Wish { pod: format!("default/{uid}"), public_address: Some("true".into()), ..Wish::default() };
        self.wishes.insert(uid.into(), wish);
        self
    }

    fn with(mut self, uid: &str, n: u8) -> World {
        self.has.insert(address(n), uid.into());
        self
    }

    /// As `spec` after it was published.
    fn publish(&mut self) {
        Plan { marks: self.marks, recorded: self.recorded, .. } = self.plan();
    }

    /// Another client takes an ipConfiguration off the NIC.
    fn wipe(&mut self, n: u8) {
        self.held.retain(|one| one.name != entry(n).name);
    }

    /// Another operator leads, and remembers nothing.
    fn restart(&mut self) {
        self.public.clear();
    }

    /// Carries out the next step as Azure would. Returns whether there was one.
    fn step(&mut self) -> bool {
        let Plan { step, make, read, delete, .. } = self.plan();
        read.iter().for_each(|id| self.make(id, None));
        make.iter().for_each(|one| self.make(&one.id, one.dns_label.as_deref()));
        delete.iter().for_each(|id| self.delete(id));
        match &step {
            None => return !(make.is_empty() && read.is_empty() && delete.is_empty()),
            Some(Step::Detach(names)) => {
                for entry in self.held.iter_mut().filter(|entry| names.contains(&entry.name)) {
                    entry.attached = Attached::default();
                }
            }
            Some(Step::Attach(attach)) => {
                for one in attach {
                    let is_there = |id: &ResourceId| self.there.contains(id);
                    assert!(one.attached.public_address.as_ref().is_none_or(is_there), "{one:?}");
                    let entry = self.held.iter_mut().find(|entry| entry.name == one.name).unwrap();
                    entry.attached = one.attached.clone();
                }
            }
        }
        true
    }

    fn make(&mut self, id: &ResourceId, label: Option<&str>) {
        let public = PublicAddress {
            id: id.to_string(),
            address: Some("20.0.0.1".into()),
            dns_name: label.map(|label| format!("{label}.westeurope.cloudapp.azure.com")),
        };
        self.public.insert(id.clone(), Some(public));
        self.there.insert(id.clone());
    }

    /// Azure refuses that while it is in use.
    fn delete(&mut self, id: &ResourceId) {
        assert!(self.held.iter().all(|one| one.attached.public_address.as_ref() != Some(id)), "{self:?}");
        self.public.insert(id.clone(), None);
        self.there.remove(id);
    }

    fn settle(&mut self) {
        for _ in 0..20 {
            self.publish();
            let is_same = |plan: Plan| plan.marks == self.marks && plan.recorded == self.recorded;
            let is_published = is_same(self.plan());
            if !self.step() && is_published {
                return;
            }
        }
        panic!("doesn't settle: {self:?}");
    }

    fn pools(&self, n: usize) -> usize {
        self.held[n - 1].attached.backend_pools.len()
    }
}

#[test]
fn a_resource_is_attached_only_to_an_address_with_a_mark_that_the_agent_confirmed() {
    let mut world = world(2).wants_web("a").with("a", 2);
    let first = world.plan();
    assert_eq!((first.step, first.marks["vnp-2"].attached_to.as_str()), (None, "a"));
    world.publish();
    world.confirmed = false;
    assert_eq!(world.plan().step, None);
    world.confirmed = true;
    let Some(Step::Attach(attach)) = world.plan().step else { panic!("nothing attached") };
    assert_eq!((attach[0].name.as_str(), attach[0].attached.backend_pools.len()), ("vnp-2", 1));
}

#[test]
fn a_pod_that_left_between_mark_and_confirmation_has_nothing_attached_to_its_address() {
    let mut world = world(2).wants_web("a").with("a", 2);
    world.publish();
    world.has = HashMap::from([(address(2), "b".to_owned())]);
    assert_eq!(world.plan().step, None);
    assert!(world.plan().marks.is_empty());
}

#[test]
fn the_mark_stays_until_nothing_is_attached_any_more() {
    let mut world = world(1).wants_web("a").with("a", 1);
    world.settle();
    assert_eq!(world.pools(1), 1);
    (world.wishes, world.has) = Default::default();
    assert_eq!(world.plan().step, Some(Step::Detach(vec!["vnp-1".into()])));
    assert_eq!(world.plan().marks["vnp-1"].attached_to, "a");
    world.step();
    // The write that attaches may still come.
    world.in_doubt = true;
    assert_eq!((&world.plan().marks["vnp-1"].attached_to, world.plan().step), (&"a".to_owned(), None));
    world.in_doubt = false;
    assert!(world.plan().marks.is_empty());
}

#[test]
fn a_pod_whose_sandbox_is_made_anew_keeps_its_attachment() {
    let mut world = world(2).wants_web("a").with("a", 1);
    world.settle();
    world.has.clear();
    assert_eq!((world.plan().step, world.plan().marks.len()), (None, 1));
    // But not on an address that it left for another.
    let mut moved = world.with("a", 2);
    moved.settle();
    assert_eq!((moved.pools(1), moved.pools(2)), (0, 1));
}

#[test]
fn a_public_address_is_in_the_mark_before_it_is_made_and_until_it_is_deleted() {
    let mut world = world(1).wants_public("a").with("a", 1);
    let id = public_id("a");
    world.publish();
    assert_eq!(world.marks["vnp-1"].public_address, Some(announced(public_id("a"))));
    world.settle();
    assert_eq!(world.marks["vnp-1"].public_address.as_ref().unwrap().address.as_deref(), Some("20.0.0.1"));
    (world.wishes, world.has) = Default::default();
    world.step();
    assert_eq!(world.plan().delete, [id]);
    assert!(world.plan().marks["vnp-1"].public_address.is_some());
    world.settle();
    assert!(world.marks.is_empty() && world.recorded.is_empty() && world.there.is_empty());
}

#[test]
fn a_public_address_whose_mark_went_with_its_ip_configuration_is_deleted_once_its_pod_is_gone() {
    let mut world = world(1).wants_public("a").with("a", 1);
    world.settle();
    // The pod may still get its address back.
    world.wipe(1);
    world.publish();
    assert_eq!((world.marks.len(), world.plan().delete.len()), (0, 0));
    // Whoever leads by then: `spec` has it.
    world.restart();
    assert_eq!(world.recorded, HashSet::from([public_id("a")]));
    (world.wishes, world.has) = Default::default();
    world.in_doubt = true;
    assert!(world.plan().delete.is_empty());
    world.in_doubt = false;
    assert_eq!(world.plan().delete, [public_id("a")]);
    world.settle();
    assert!(world.there.is_empty() && world.recorded.is_empty());
}

#[test]
fn a_detached_public_address_is_deleted_once_its_pod_asks_for_none_any_more() {
    let mut world = world(1).wants_public("a").with("a", 1);
    world.settle();
    world.wipe(1);
    world.publish();
    let deletes = |world: &mut World, word: Option<&str>| {
        world.wishes.get_mut("a").unwrap().public_address = word.map(str::to_owned);
        world.plan().delete.len()
    };
    let words = [Some("true"), Some("yes"), Some("false"), None];
    assert_eq!(words.map(|word| deletes(&mut world, word)), [0, 0, 1, 1]);
}

#[test]
fn a_pod_that_gets_its_address_back_gets_its_public_address_back() {
    let mut world = world(1).wants_public("a").with("a", 1);
    world.settle();
    world.wipe(1);
    world.publish();
    world.restart();
    world.held.push(IpConfiguration { name: "vnp-2".into(), ..entry(1) });
    world.settle();
    assert_eq!(world.held[0].attached.public_address, Some(public_id("a")));
    assert_eq!(world.there, HashSet::from([public_id("a")]));
}

#[test]
fn a_public_address_that_was_never_attached_is_recorded_until_it_is_known_to_be_gone() {
    let mut world = world(1).wants_public("a").with("a", 1);
    world.publish();
    // It is being made.
    world.wipe(1);
    world.publish();
    (world.wishes, world.has) = Default::default();
    assert_eq!(world.plan().delete, [public_id("a")]);
    assert_eq!(world.plan().recorded.len(), 1);
    world.public.insert(public_id("a"), None);
    assert!(world.plan().recorded.is_empty() && world.plan().delete.is_empty());
}

#[test]
fn a_public_address_asked_for_later_is_announced_before_it_is_made() {
    let mut world = world(1).wants_web("a").with("a", 1);
    world.publish();
    world = world.wants_public("a");
    assert_eq!(world.plan().step, None);
    world.publish();
    assert_eq!(world.plan().make.len(), 1);
}

#[test]
fn public_addresses_are_made_beside_each_other_and_attached_in_one_write() {
    let mut world = world(3).wants_public("a").with("a", 1).wants_public("b").with("b", 2);
    world = world.wants_web("c").with("c", 3);
    world.publish();
    let plan = world.plan();
    assert_eq!(plan.make.iter().map(|one| one.uid.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    // A pod that needs none doesn't wait for them.
    let names = |plan: &Plan| match &plan.step {
        Some(Step::Attach(attach)) => attach.iter().map(|one| one.uid.clone()).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(names(&plan), ["c"]);
    world.make(&public_id("a"), None);
    assert_eq!(names(&world.plan()), ["c"]);
    world.make(&public_id("b"), None);
    assert_eq!(names(&world.plan()), ["a", "b", "c"]);
}

#[test]
fn a_new_operator_reads_an_attached_public_address_and_no_other_attachment_waits_for_the_answer() {
    let mut world = world(2).wants_public("a").with("a", 1);
    world.settle();
    world.public.clear();
    assert_eq!((world.plan().read, world.plan().step), (vec![public_id("a")], None));
    let mut world = world.wants_web("b").with("b", 2);
    world.publish();
    let plan = world.plan();
    assert!(matches!(&plan.step, Some(Step::Attach(all)) if all.len() == 1), "{plan:?}");
    assert_eq!(plan.read, [public_id("a")]);
}

#[test]
fn an_attached_public_address_that_azure_does_not_find_holds_up_no_other_pod_and_is_deleted_with_its_own() {
    let mut world = world(2).wants_public("a").with("a", 1);
    world.settle();
    world.public.clear();
    world.unread.insert(public_id("a"));
    let plan = world.plan();
    assert_eq!((plan.read, plan.pending), (vec![], 1), "it would be read in a loop");
    let mut world = world.wants_web("b").with("b", 2);
    world.settle();
    assert_eq!(world.plan().attached, 1);
    // It may be there all the same.
    world.wishes.remove("a");
    world.has.remove(&address(1));
    while !world.plan().delete.contains(&public_id("a")) {
        assert!(world.step(), "it is forgotten");
    }
}

#[test]
fn a_changed_dns_label_is_carried_over() {
    let mut world = world(1).wants_public("a").with("a", 1);
    world.settle();
    world.wishes.get_mut("a").unwrap().dns_label = Some("shop".into());
    world.settle();
    let shown = world.marks["vnp-1"].public_address.clone().unwrap();
    assert_eq!(shown.dns_name.as_deref(), Some("shop.westeurope.cloudapp.azure.com"));
}

#[test]
fn a_pods_attachments_change_though_azure_has_come_to_write_the_nics_id_in_another_case() {
    let mut world = world(1).wants_public("a").with("a", 1);
    world.settle();
    let public = world.marks.get_mut("vnp-1").unwrap().public_address.as_mut().unwrap();
    public.id = public.id.to_uppercase();
    world.public.values_mut().flatten().for_each(|one| one.id = one.id.to_uppercase());
    world.wishes.get_mut("a").unwrap().backend_pools = Some("web".into());
    assert!(matches!(world.plan().step, Some(Step::Attach(_))), "{:?}", world.plan());
}

#[test]
fn an_attachment_of_others_bars_the_address_and_is_left_alone() {
    let mut world = world(1);
    world.held[0].attached.backend_pools.insert(POOL.replace("web", "theirs").parse().unwrap());
    let plan = world.plan();
    assert_eq!((plan.marks["vnp-1"].attached_to.as_str(), plan.step), (names::OTHERS, None));
    assert_eq!(plan.foreign, [address(1)]);
    world.publish();
    world.held[0].attached = Attached::default();
    assert!(world.plan().marks.is_empty());
}

#[test]
fn an_attachment_of_vnetpool_is_recognised_without_its_mark() {
    let mut kept = world(1).wants_public("a").with("a", 1);
    kept.settle();
    kept.marks.clear();
    kept.settle();
    assert_eq!((kept.plan().attached, kept.marks["vnp-1"].attached_to.as_str()), (1, "a"));
    let mut left = world(1);
    left.held[0].attached.backend_pools.insert(POOL.parse().unwrap());
    left.settle();
    assert!(left.held[0].attached.is_empty() && left.marks.is_empty());
}

#[test]
fn a_nat_rule_of_others_neither_loops_nor_is_forgotten() {
    let mut world = world(1).wants_web("a").with("a", 1);
    world.settle();
    world.held[0].attached.other = true;
    assert_eq!((world.plan().step, world.plan().attached), (None, 1));
    (world.wishes, world.has) = Default::default();
    world.plan();
    assert!(matches!(world.plan().step, Some(Step::Detach(_))));
    world.held[0].attached.backend_pools.clear();
    assert_eq!((world.plan().step, world.plan().marks.len()), (None, 1));
}

#[test]
fn a_refused_pod_holds_no_other_pod_up() {
    let mut world = world(2).wants_web("a").with("a", 1).wants_web("b").with("b", 2);
    world.publish();
    world.refused.insert("a".into());
    let Some(Step::Attach(attach)) = world.plan().step else { panic!("nothing attached") };
    assert_eq!(attach.iter().map(|one| one.uid.as_str()).collect::<Vec<_>>(), ["b"]);
}

#[test]
fn an_address_off_which_azure_refuses_to_take_something_keeps_its_mark_and_delays_no_other() {
    let all = ["a", "b"].into_iter().zip([1, 2]);
    let mut world = all.fold(world(3), |world, (uid, n)| world.wants_web(uid).with(uid, n));
    world.settle();
    (world.wishes, world.has) = Default::default();
    world = world.wants_web("c").with("c", 3);
    world.batch = 1;
    assert_eq!(world.plan().step, Some(Step::Detach(vec!["vnp-1".into()])), "so many at most");
    world.undetached.insert("vnp-1".into());
    world.settle();
    assert_eq!([1, 2, 3].map(|n| world.pools(n)), [1, 0, 1]);
    assert_eq!(world.marks["vnp-1"].attached_to, "a");
    world.undetached.clear();
    world.settle();
    assert_eq!((world.pools(1), world.marks.len()), (0, 1));
}

#[test]
fn a_live_pod_that_asks_keeps_its_attachment_though_its_pool_withdraws_the_offer() {
    let keeps = |change: fn(&mut World)| {
        let mut world = world(2).wants_web("a").with("a", 1).wants_public("b").with("b", 2);
        world.settle();
        let before = world.clone();
        change(&mut world);
        world.settle();
        let same = |one: &World| {
            (one.held.iter().map(|entry| entry.attached.clone()).collect::<Vec<_>>(), one.public.clone())
        };
        assert_eq!(same(&world), same(&before));
        assert!(world.plan().invalid.iter().all(|one| one.message.ends_with("it keeps what it has.")));
        world
    };
    keeps(|world| world.offered = Attachments::default());
    keeps(|world| world.impossible = Some("not here."));
    keeps(|world| world.wishes.get_mut("b").unwrap().public_address = Some("yes".into()));
    let mut ended = keeps(|world| world.offered = Attachments::default());
    ended.wishes.get_mut("a").unwrap().backend_pools = None;
    ended.wishes.remove("b");
    ended.has.remove(&address(2));
    ended.settle();
    assert!(ended.held.iter().all(|entry| entry.attached.is_empty()) && ended.there.is_empty());
}

#[test]
fn only_a_pod_of_a_namespace_that_the_pool_names_orders_a_public_address() {
    let mut world = world(2).wants_public("a").with("a", 1).wants_public("b").with("b", 2);
    world.wishes.get_mut("b").unwrap().pod = "default-not/b".into();
    world.publish();
    let made = world.plan().make;
    assert_eq!(made.iter().map(|one| one.uid.as_str()).collect::<Vec<_>>(), ["a"]);
    let [refused] = world.plan().invalid.try_into().unwrap();
    assert_eq!((refused.uid.as_str(), refused.pod.as_str()), ("b", "default-not/b"));
    assert!(refused.message.contains("\"default-not\""), "{}", refused.message);
}

#[test]
fn wishes_that_cannot_be_granted_name_the_annotation_and_the_remedy() {
    let refusal = |change: fn(&mut World)| {
        let mut world = world(1).wants_public("a").with("a", 1);
        change(&mut world);
        let plan = world.plan();
        assert!(plan.step.is_none() && plan.marks.is_empty());
        plan.invalid[0].message.clone()
    };
    let none = refusal(|world| world.offered.public_address_namespaces.clear());
    assert!(none.contains("attachments.publicAddressNamespaces") && none.contains("\"default\""), "{none}");
    assert!(refusal(|world| world.impossible = Some("not here")).contains("not here"));
    assert!(
        refusal(|world| world.wishes.get_mut("a").unwrap().public_address = Some("yes".into()))
            .contains("write true or false")
    );
    assert!(
        refusal(|world| world.wishes.get_mut("a").unwrap().dns_label = Some("Shop".into()))
            .contains("lower-case letters")
    );
    assert!(
        refusal(|world| world.wishes.get_mut("a").unwrap().backend_pools = Some("web, db".into()))
            .contains("\"db\"")
    );
    assert!(
        refusal(|world| {
            let wish = world.wishes.get_mut("a").unwrap();
            (wish.public_address, wish.dns_label) = (None, Some("shop".into()));
        })
        .contains("Add vnetpool.io/public-address")
    );
}

#[derive(Clone, Debug)]
enum Event {
    Start(u8, u8),
    Stop(u8),
    Reported(u8),
    Asks(u8, bool, bool),
    Confirmed(bool),
    Wiped(u8),
    Reserved(u8),
    /// Azure refuses to detach something, or doesn't any more.
    Keeps(u8, bool),
    Restarted,
    Publish,
    Step,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0..3_u8, 1..4_u8).prop_map(|(pod, n)| Event::Start(pod, n)),
        (0..3_u8).prop_map(Event::Stop),
        (0..3_u8).prop_map(Event::Reported),
        (0..3_u8, any::<bool>(), any::<bool>()).prop_map(|(pod, web, public)| Event::Asks(pod, web, public)),
        any::<bool>().prop_map(Event::Confirmed),
        (1..4_u8).prop_map(Event::Wiped),
        (1..4_u8).prop_map(Event::Reserved),
        (1..4_u8, any::<bool>()).prop_map(|(n, keeps)| Event::Keeps(n, keeps)),
        Just(Event::Restarted),
        Just(Event::Publish),
        Just(Event::Step),
    ]
}

proptest! {
    /// The node gives a marked address to its pod only, and knows a mark no later than when it is confirmed.
    /// And `spec` names each public address that there is.
    #[test]
    fn no_pod_ever_has_an_address_with_an_attachment_of_another(events in prop::collection::vec(event(), 1..60)) {
        let mut world = world(3);
        let mut taken_up: BTreeMap<String, Mark> = BTreeMap::new();
        // The agent's report, and the kubelets'.
        let mut confirmed: HashMap<Ipv4Addr, String> = HashMap::new();
        let mut on_node: HashMap<Ipv4Addr, String> = HashMap::new();
        for event in events {
            match event {
                Event::Start(pod, n) => {
                    let uid = pod.to_string();
                    let marked = taken_up.get(&entry(n).name);
                    let is_held = world.held.iter().any(|one| one.name == entry(n).name);
                    if is_held && marked.is_none_or(|mark| mark.attached_to == uid) && !on_node.contains_key(&address(n)) {
                        on_node.insert(address(n), uid);
                    }
                }
                Event::Stop(pod) => {
                    on_node.retain(|_, uid| *uid != pod.to_string());
                    world.wishes.remove(&pod.to_string());
                }
                Event::Asks(pod, web, public) => {
                    let wish = Wish {
                        pod: format!("default/{pod}"),
                        backend_pools: web.then(|| "web".into()),
                        public_address: public.then(|| "true".into()),
                        dns_label: None,
                        address: world.wishes.get(&pod.to_string()).and_then(|wish| wish.address),
                    };
                    world.wishes.insert(pod.to_string(), wish);
                }
                Event::Confirmed(true) => {
                    taken_up = world.marks.clone();
                    let is_marked = |n: &u8| taken_up.contains_key(&format!("vnp-{n}"));
                    let marked: Vec<Ipv4Addr> = (1..=3).filter(is_marked).map(address).collect();
                    confirmed = on_node.clone();
                    confirmed.retain(|address, _| marked.contains(address));
                    world.confirmed = true;
                }
                Event::Reported(pod) => {
                    let has = on_node.iter().find(|(_, uid)| **uid == pod.to_string());
                    let wish = world.wishes.get_mut(&pod.to_string());
                    if let (Some(wish), Some((address, _))) = (wish, has) {
                        wish.address = Some(*address);
                    }
                }
                Event::Confirmed(false) => world.confirmed = false,
                Event::Wiped(n) => world.wipe(n),
                Event::Reserved(n) => {
                    world.wipe(n);
                    world.held.push(entry(n));
                }
                Event::Keeps(n, true) => drop(world.undetached.insert(entry(n).name)),
                Event::Keeps(n, false) => drop(world.undetached.remove(&entry(n).name)),
                Event::Restarted => world.restart(),
                Event::Publish => {
                    let before = world.marks.clone();
                    world.publish();
                    world.confirmed &= before == world.marks;
                }
                Event::Step => drop(world.step()),
            }
            let reported = confirmed.iter().map(|(address, uid)| (*address, uid.clone()));
            world.has = holders(&world.held, &world.marks, reported, &world.wishes);
            for entry in &world.held {
                let uid = entry.address.and_then(|address| on_node.get(&address.addr()));
                if let (false, Some(uid)) = (entry.attached.is_empty(), uid) {
                    prop_assert_eq!(&world.marks[&entry.name].attached_to, uid);
                }
            }
            prop_assert!(world.there.is_subset(&world.recorded), "{world:?}");
        }
        for n in 1..=3 {
            if world.held.iter().all(|one| one.name != entry(n).name) {
                world.held.push(entry(n));
            }
        }
        // At the end exactly the requested things are attached, and nothing is left over.
        for (uid, wish) in &mut world.wishes {
            wish.address = on_node.iter().find(|(_, has)| *has == uid).map(|(address, _)| *address);
        }
        world.has = on_node;
        world.wishes.retain(|uid, _| world.has.values().any(|has| has == uid));
        world.confirmed = true;
        world.undetached.clear();
        world.settle();
        for (uid, wish) in &world.wishes {
            let entries = world.held.iter().filter(|entry| world.marks.get(&entry.name).is_some_and(|mark| mark.attached_to == *uid));
            let attached: Vec<&Attached> = entries.map(|entry| &entry.attached).collect();
            let wants = wish.backend_pools.is_some() || wish.public_address.is_some();
            prop_assert_eq!(attached.len(), usize::from(wants));
        }
        let wanted = world.wishes.values().filter(|wish| wish.public_address.is_some()).count();
        prop_assert_eq!(world.there.len(), wanted);
    }
}
