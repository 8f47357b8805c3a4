//! Properties that hold after any sequence of events.

use std::collections::{BTreeSet, HashMap};

use proptest::{collection::vec, prelude::*};

use super::*;

/// An event in a ledger's life.
#[derive(Clone, Debug)]
enum Event {
    Assign(u8),
    Free(u8),
    Cancel(u8),
    /// These ADDs are dead.
    Serve(Vec<u8>),
    /// The operator publishes these entries; relinquished ones stay until `Release`.
    Supply(BTreeSet<u8>),
    /// A spec seen earlier is seen again.
    SupplyAgain(usize),
    /// The node's rules are in place, or no longer.
    Rules(bool),
    /// The operator removes the relinquished entries from NIC and spec.
    Release,
    Relinquish(u32),
    /// The file is lost: the agent builds a new ledger from the wired sandboxes.
    Rebuild,
    /// Time passes.
    Wait(Millis),
    /// Written and read.
    Store,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (0..8u8).prop_map(Event::Assign),
        6 => (0..8u8).prop_map(Event::Free),
        1 => (0..8u8).prop_map(Event::Cancel),
        1 => vec(0..8u8, 0..3).prop_map(Event::Serve),
        3 => proptest::collection::btree_set(0..10u8, 0..8).prop_map(Event::Supply),
        1 => (0..20usize).prop_map(Event::SupplyAgain),
        1 => any::<bool>().prop_map(Event::Rules),
        2 => Just(Event::Release),
        2 => (0..6u32).prop_map(Event::Relinquish),
        1 => Just(Event::Rebuild),
        4 => (0..COOLDOWN).prop_map(Event::Wait),
        1 => Just(Event::Store),
    ]
}

/// The numbers from here on are addresses of one block.
const BLOCK: u8 = 7;

/// The ledger, and the state of the world around it.
struct World {
    ledger: Ledger,
    now: Millis,
    generation: i64,
    /// The operator's last published spec; names are never used twice.
    published: Vec<Entry>,
    names: u32,
    seen: Vec<Supply>,
    freed: HashMap<Ipv4Addr, Millis>,
    given_up: BTreeSet<String>,
    is_ruled: bool,
}

impl World {
    fn new() -> World {
        World {
            ledger: holding(&[]),
            now: START,
            generation: 1,
            published: Vec::new(),
            names: 0,
            seen: Vec::new(),
            freed: HashMap::new(),
            given_up: BTreeSet::new(),
            is_ruled: true,
        }
    }

    fn publish(&mut self) {
        self.generation += 1;
        let supply = Supply { entries: self.published.clone(), ..supply(self.generation, &[]) };
        assert_eq!(self.ledger.supply(&supply), Supplied::Applied);
        self.seen.push(supply);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Assign(number) => {
                let before = self.ledger.address_of(&sandbox(number));
                let after = assign(&mut self.ledger, number, self.now);
                let (is_again, waits) = (before.is_some(), !self.is_ruled);
                assert!(!is_again || after == before.filter(|_| !waits), "ADD twice gives the same address");
                assert!(!is_again || before == self.ledger.address_of(&sandbox(number)), "and keeps it");
            }
            Event::Free(number) => {
                if let Some(address) = self.ledger.free(&sandbox(number), self.now) {
                    self.freed.insert(address, self.now);
                }
            }
            Event::Cancel(number) => drop(self.ledger.cancel(&sandbox(number))),
            Event::Serve(dead) => {
                self.ledger.serve(self.now, |alive| dead.iter().all(|&number| *alive != sandbox(number)));
            }
            Event::Supply(mut numbers) => {
                if numbers.range(BLOCK..).next().is_some() {
                    numbers.extend(BLOCK..10);
                }
                let given_up = &self.given_up;
                self.published.retain(|entry| {
                    given_up.contains(&entry.name)
                        || numbers.iter().any(|&number| entry.address == address(number))
                });
                for number in numbers {
                    if self.published.iter().all(|entry| entry.address != address(number)) {
                        self.names += u32::from(number <= BLOCK);
                        self.published.push(Entry { name: format!("vnp-{}", self.names), ..entry(number) });
                    }
                }
                self.publish();
            }
            Event::SupplyAgain(index) => {
                if let Some(supply) = self.seen.get(index) {
                    let is_current = supply.generation == self.generation;
                    let outcome = self.ledger.supply(supply);
                    assert_eq!(outcome, if is_current { Supplied::Applied } else { Supplied::Stale });
                }
            }
            Event::Rules(is_ruled) => {
                let records = self.ledger.records().to_vec();
                self.ledger.rule(is_ruled);
                assert_eq!(self.ledger.records(), records, "no record is rewritten for it");
                self.is_ruled = is_ruled;
            }
            Event::Release => {
                let relinquished: BTreeSet<String> = self.ledger.relinquished().map(str::to_owned).collect();
                self.published.retain(|entry| !relinquished.contains(&entry.name));
                self.publish();
            }
            Event::Relinquish(target) => {
                let kept = |ledger: &Ledger| {
                    let Counts { held, withheld, .. } = ledger.counts(self.now);
                    held + withheld
                };
                let before = kept(&self.ledger);
                let mut ruled = self.ledger.clone();
                ruled.rule(true);
                let names = self.ledger.relinquish(target, self.now);
                assert_eq!(names, ruled.relinquish(target, self.now), "with rules or without");
                assert!(kept(&self.ledger) >= target.min(before), "no more than the surplus");
                for name in names {
                    assert!(self.given_up.insert(name), "given up once");
                }
            }
            Event::Rebuild => {
                let wired = self.ledger.assignments().map(|(entry, assignment)| Occupant {
                    sandbox: assignment.sandbox.clone(),
                    pod: assignment.pod.clone(),
                    address: entry.address,
                    proof: assignment.proof.clone(),
                });
                let wired: Vec<Occupant> = wired.collect();
                let relinquished: Vec<String> = self.ledger.relinquished().map(str::to_owned).collect();
                let supply = Supply { entries: self.published.clone(), ..supply(self.generation, &[]) };
                self.ledger = Ledger::rebuild(
                    BOOT,
                    &wired,
                    &relinquished,
                    &supply,
                    Some(self.now),
                    self.now,
                    self.is_ruled,
                );
            }
            Event::Wait(time) => self.now += time,
            Event::Store => {
                let read = read(&written(&self.ledger));
                assert_eq!(read, self.ledger);
                // From here on its records are written as the lines that they were read from.
                self.ledger = read;
            }
        }
    }

    /// `before` are the assignments before the last event.
    fn check(&self, before: &HashMap<Sandbox, Ipv4Addr>) {
        let mut addresses = BTreeSet::new();
        let mut sandboxes = BTreeSet::new();
        for (entry, assignment) in self.ledger.assignments() {
            assert!(addresses.insert(entry.address), "{} is on two sandboxes", entry.address);
            assert!(sandboxes.insert(&assignment.sandbox), "{:?} has two addresses", assignment.sandbox);
            let waits = self.ledger.is_waiting(&assignment.sandbox);
            assert!(!waits || !self.is_ruled, "served and still waiting");
            if !before.contains_key(&assignment.sandbox) {
                assert!(self.is_ruled, "{entry:?} was assigned while the node lacks its rules");
                assert!(!self.given_up.contains(&entry.name), "{} was relinquished and assigned", entry.name);
                let is_published = self.published.iter().any(|published| published == entry);
                assert!(is_published, "{entry:?} was assigned, but is not on the NIC");
                if let Some(freed) = self.freed.get(&entry.address) {
                    assert!(freed + COOLDOWN <= self.now, "{entry:?} was assigned before it had cooled");
                }
            }
        }
        let counts = self.ledger.counts(self.now);
        let Counts { held, assigned, cooling, free, waiting, relinquished, vanished, withdrawn, withheld } =
            counts;
        assert!(if self.is_ruled { withheld == 0 } else { cooling + free == 0 }, "{counts:?}");
        assert_eq!(held + vanished, assigned + cooling + free, "{counts:?}");
        assert_eq!(
            (assigned + cooling + free + withdrawn + withheld) as usize,
            self.ledger.records().len(),
            "{counts:?}"
        );
        let has_none = |waiter: &&Waiter| self.ledger.address_of(&waiter.sandbox).is_none();
        assert_eq!(waiting as usize, self.ledger.waiting().iter().filter(has_none).count());
        for (_, assignment) in self.ledger.assignments() {
            assert!(
                self.is_ruled || self.ledger.granted_to(&assignment.sandbox).is_none(),
                "wired without rules"
            );
        }
        assert_eq!(relinquished as usize, self.ledger.relinquished().count());
        // No address is lost for good: each is in the ledger under its name, or is given up.
        for Entry { name, .. } in &self.published {
            let is_recorded = self.ledger.records().iter().any(|record| record.entry().name == *name);
            let is_relinquished = self.ledger.relinquished().any(|relinquished| relinquished == name);
            assert!(
                is_recorded != is_relinquished,
                "{name} must be recorded or relinquished, not both or neither"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn no_address_is_doubled_or_lost_under_any_sequence_of_events(events in vec(event(), 1..60)) {
        let mut world = World::new();
        for event in events {
            let assignments = world.ledger.assignments();
            let before = assignments.map(|(entry, assignment)| (assignment.sandbox.clone(), entry.address)).collect();
            world.happen(event);
            world.check(&before);
        }
    }

    #[test]
    fn any_text_survives_being_written_and_read(
        names in vec("\\PC*", 3), number in any::<u64>(), attached in proptest::option::of("\\PC+"),
    ) {
        let [name, uid, container_id] = &names[..] else { unreachable!() };
        let mut ledger = holding(&[]);
        let entry = Entry { name: name.clone(), address: address(1), attached_to: attached };
        ledger.supply(&Supply { entries: vec![entry], ..supply(2, &[]) });
        let sandbox = Sandbox { container_id: container_id.clone(), ifname: String::new() };
        let pod = Pod { namespace: String::new(), name: name.clone(), uid: uid.clone() };
        ledger.assign(&Claim::wired(&sandbox, &pod, ""), number);
        ledger.supply(&supply(3, &[2]));
        ledger.relinquished.push(name.clone());
        let as_read = read(&written(&ledger));
        prop_assert_eq!(&as_read, &ledger);
        prop_assert_eq!(written(&as_read), written(&ledger));
        prop_assert_eq!(as_read.address_of(&sandbox), ledger.address_of(&sandbox));
    }
}
