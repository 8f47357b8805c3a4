//! The node around the real ledger: the agent's reconciles as in `node-agent/src/agent`, the plugin's verbs,
//! and the remains of each when a process dies.

use std::net::Ipv4Addr;
use std::time::Duration;

use vnetpool_plugin::ledger::{
    Assign, Claim, Entry, Ledger, Occupant, Pod, Proof, Sandbox, State, Supplied, Supply,
};

use crate::Broken;
use crate::operator::{name, number};
use crate::world::{self, Adding, Book, Gc, Object, PODS, Report, World};

/// Time stands still: with no cooldown, nothing depends on it.
const NOW: u64 = 0;

impl World {
    /// First half of the agent's reconcile, in which it sees `object`.
    pub fn agent_supplies(&mut self, object: &Object, broken: Broken) {
        if object.version < self.node.latest
            && !matches!(broken, Broken::AcceptsOldVersions | Broken::AcceptsStaleGenerations)
        {
            return;
        }
        self.node.latest = object.version;
        let supply = self.supply(object, broken);
        let Some(book) = &mut self.node.ledger else { return };
        if book.with(|ledger| ledger.supply(&supply)) != Supplied::Applied {
            return self.report(object.uid, &[], broken);
        }
        let (target, relinquished) = (object.spec.target, object.status.relinquished.clone());
        let counts = book.read().counts(NOW);
        let has_surplus = counts.held + counts.withheld > target;
        self.node.supplied = Some(world::Supplied { object: object.uid, target, relinquished });
        if !has_surplus {
            self.agent_relinquishes(broken);
        }
    }

    /// Second half: relinquishes, and has a report ready to be sent.
    pub fn agent_relinquishes(&mut self, broken: Broken) {
        let (Some(seen), Some(book)) = (self.node.supplied.take(), &mut self.node.ledger) else { return };
        if broken == Broken::KeepsAllWithoutRules && !self.node.is_ruled {
            return self.report(seen.object, &[], broken);
        }
        if broken == Broken::ReportsBeforeRelinquishing {
            // Announces first what it would relinquish, and does so when it sees its own announcement
            // published.
            let would = book.read().clone().relinquish(seen.target, NOW);
            if would.iter().any(|name| !seen.relinquished.contains(&number(name))) {
                self.given_up.extend(would.iter().map(|name| number(name)));
                return self.report(seen.object, &would, broken);
            }
        }
        if broken == Broken::GivesUpPartsOfBlocks && book.read().counts(NOW).held > seen.target {
            // Those of which a pod has another part.
            let in_use: Vec<&str> = book.read().assignments().map(|(entry, _)| &*entry.name).collect();
            let free = book.read().records().iter().filter(|one| matches!(one.state(), State::Free { .. }));
            let names = free.map(|one| one.entry().name.clone()).filter(|one| in_use.contains(&&**one));
            let names: Vec<String> = names.collect();
            self.given_up.extend(names.iter().map(|name| number(name)));
            return self.report(seen.object, &names, broken);
        }
        let names = book.with(|ledger| ledger.relinquish(seen.target, NOW));
        self.given_up.extend(names.iter().map(|name| number(name)));
        self.report(seen.object, &[], broken);
    }

    /// Has the ledger's state, and `announced` besides, ready to be sent unless it is published.
    fn report(&mut self, object: u8, announced: &[String], broken: Broken) {
        let Some(book) = &self.node.ledger else { return };
        let ledger = book.read();
        let counts = ledger.counts(NOW);
        let mut names: Vec<u8> =
            ledger.relinquished().chain(announced.iter().map(String::as_str)).map(number).collect();
        names.sort();
        names.dedup();
        let assigned = counts.assigned - counts.vanished;
        let version = Some(self.node.latest).filter(|_| broken != Broken::ReportsOnAnyVersion);
        let report = Report { uid: object, boot: self.node.boot, assigned, relinquished: names, version };
        let is_published = self.api.current().is_some_and(|object| {
            let status = &object.status;
            (object.uid, status.boot, status.assigned) == (report.uid, report.boot, report.assigned)
                && status.relinquished == report.relinquished
        });
        self.node.report = Some(report).filter(|_| !is_published);
    }

    /// The agent's status write lands; in an object that has been made anew or written since, it doesn't.
    pub fn land(&mut self, report: &Report) {
        let current = self.api.current().map(|object| object.version);
        if report.version.is_some() && report.version != current {
            return;
        }
        self.api.write(|object| {
            if object.uid == report.uid {
                object.status.boot = report.boot;
                object.status.assigned = report.assigned;
                object.status.relinquished.clone_from(&report.relinquished);
            }
        });
    }

    /// First half of building a ledger: the object, read uncached and written, so that no earlier report
    /// lands on it. From here on none is sent.
    pub fn agent_reads(&mut self, broken: Broken) {
        self.node.report = None;
        self.node.supplied = None;
        if broken != Broken::BuildsUnannounced {
            self.api.write(|object| object.status.ledgers += 1);
        }
        self.node.read = self.api.current().cloned();
    }

    /// Second half, while no verb runs: occupants, then relinquished names, then spec.
    pub fn agent_rebuilds(&mut self, broken: Broken) {
        let Some(object) = self.node.read.take() else { return };
        self.node.latest = self.node.latest.max(object.version);
        let occupants: Vec<Occupant> = (0..PODS).filter_map(|pod| self.occupant(pod)).collect();
        let relinquished: Vec<String> = match broken {
            Broken::ForgetsWhatWasRelinquished => vec![],
            _ => object.status.relinquished.iter().map(|&number| name(number)).collect(),
        };
        let supply = self.supply(&object, broken);
        let boot = boot_id(self.node.boot);
        let is_ruled = self.node.is_ruled || broken == Broken::BuildsAsIfRuled;
        self.node.ledger =
            Some(Book::new(Ledger::rebuild(&boot, &occupants, &relinquished, &supply, None, NOW, is_ruled)));
    }

    /// The reconcile after an inspection of the rules, with or without an object.
    pub fn agent_rules(&mut self, is_ruled: bool) {
        self.node.is_ruled = is_ruled;
        let book = self.node.ledger.iter_mut();
        book.for_each(|book| book.with(|ledger| ledger.rule(is_ruled)));
    }

    /// Whether no verb runs, as far as its lock shows: only then the agent builds a ledger.
    pub fn is_quiet(&self) -> bool {
        self.node.adding.iter().flatten().all(|adding| !adding.is_locked)
    }

    /// Whether the kernel and the ledger disagree about the addresses in use.
    pub fn has_leaks(&self) -> bool {
        let Some(book) = &self.node.ledger else { return false };
        (0..PODS).any(|pod| {
            let known = book.read().address_of(&sandbox(pod)).map(|address| address.octets()[3]);
            known != self.node.wired[pod]
        })
    }

    /// The agent's sweep: frees records whose sandbox is gone, takes in sandboxes without a record.
    /// It leaves a sandbox alone that a verb is at work on.
    pub fn sweep(&mut self, broken: Broken) {
        let (wired, adding) = (self.node.wired, self.node.adding);
        let is_left_alone = |pod: usize| {
            adding[pod].is_some_and(|adding| adding.is_locked) && broken != Broken::SweepsDuringAVerb
        };
        let strangers: Vec<Occupant> = (0..PODS).filter_map(|pod| self.occupant(pod)).collect();
        let Some(book) = &mut self.node.ledger else { return };
        book.with(|ledger| {
            for pod in (0..PODS).filter(|pod| wired[*pod].is_none() && !is_left_alone(*pod)) {
                ledger.free(&sandbox(pod), NOW);
            }
            for stranger in &strangers {
                ledger.adopt(stranger, NOW);
            }
        });
    }

    /// ADD, all of it.
    pub fn add(&mut self, pod: usize) {
        self.add_assigns(pod);
        self.add_wires(pod, Broken::None);
    }

    /// First half of ADD. One that finds no address gives up; the kubelet tries again.
    pub fn add_assigns(&mut self, pod: usize) {
        let Some(book) = &mut self.node.ledger else { return };
        let assigned = book.with(|ledger| {
            let assigned = ledger.assign(&Claim::wired(&sandbox(pod), &Pod::default(), ""), NOW);
            ledger.cancel(&sandbox(pod));
            assigned
        });
        if let Assign::Assigned(address) = assigned {
            let address = address.octets()[3];
            let is_its = |one: &&world::Configuration| one.address == address / self.grain;
            let name = self.azure.nic.iter().find(is_its).map(|one| one.name);
            self.exposed |= !self.node.is_ruled && self.node.wired[pod].is_none();
            self.unreached |= name.is_some_and(|name| self.azure.unfinished.contains(&name));
            self.node.adding[pod] = Some(Adding { address, is_locked: true });
        }
    }

    /// Second half. An ADD whose lock was removed meanwhile takes everything back.
    pub fn add_wires(&mut self, pod: usize, broken: Broken) {
        let Some(Adding { address, is_locked }) = self.node.adding[pod].take() else { return };
        if is_locked || broken == Broken::OverlooksALostLock {
            self.node.wired[pod] = Some(address);
        } else if let Some(book) = &mut self.node.ledger {
            book.with(|ledger| ledger.free(&sandbox(pod), NOW));
        }
    }

    /// GC begins: the runtime has named its sandboxes, those of the pods that are there.
    pub fn gc_begins(&mut self) {
        let Some(book) = &self.node.ledger else { return };
        let has = |pod| book.read().address_of(&sandbox(pod)).is_some();
        self.node.gc = Some(Gc { valid: self.node.pods, had: std::array::from_fn(has) });
    }

    /// Whether GC would take this sandbox's address.
    pub fn is_garbage(&self, pod: usize, broken: Broken) -> bool {
        let (Some(gc), Some(book)) = (&self.node.gc, &self.node.ledger) else { return false };
        let is_old = gc.had[pod] || broken == Broken::CollectsWhatCameSince;
        !gc.valid[pod]
            && is_old
            && self.node.adding[pod].is_none()
            && book.read().address_of(&sandbox(pod)).is_some()
    }

    /// GC takes it.
    pub fn gc_collects(&mut self, pod: usize) {
        self.cut_off |= self.node.pods[pod] && self.node.wired[pod].is_some();
        self.del(pod, false);
    }

    /// DEL: silences the sandbox, then frees its address, unless it dies in between.
    pub fn del(&mut self, pod: usize, dies_half_way: bool) {
        self.node.wired[pod] = None;
        if let (Some(book), false) = (&mut self.node.ledger, dies_half_way) {
            book.with(|ledger| ledger.free(&sandbox(pod), NOW));
        }
    }

    /// `/run` is a tmpfs, and sandboxes end with the boot.
    pub fn reboot(&mut self) {
        self.node.boot += 1;
        self.node.wired = [None; PODS];
        self.node.adding = [None; PODS];
        self.node.gc = None;
        self.node.ledger = None;
        self.agent_dies();
    }

    /// The next process begins with a list, which is never older than the store at the time of the request.
    pub fn agent_dies(&mut self) {
        self.node.latest = self.api.history.last().map_or(0, |object| object.version);
        self.node.report = None;
        self.node.read = None;
        self.node.supplied = None;
    }

    fn supply(&self, object: &Object, broken: Broken) -> Supply {
        let of_boot = if broken == Broken::AcceptsOtherBoot { self.node.boot } else { object.spec.boot };
        let grain = self.grain;
        let entries = object.spec.entries.iter().flat_map(|one| {
            (0..grain).map(move |part| Entry {
                name: name(one.name),
                address: Ipv4Addr::new(10, 0, 0, one.address * grain + part),
                attached_to: None,
            })
        });
        Supply {
            object: object.uid.to_string(),
            generation: if broken == Broken::AcceptsStaleGenerations {
                i64::MAX
            } else {
                object.generation.into()
            },
            node_uid: "node".into(),
            boot_id: boot_id(of_boot),
            cooldown: Duration::ZERO,
            entries: entries.collect(),
        }
    }

    fn occupant(&self, pod: usize) -> Option<Occupant> {
        let address = Ipv4Addr::new(10, 0, 0, self.node.wired[pod]?);
        let sandbox = sandbox(pod);
        let proof = Proof::Link(sandbox.spare_link());
        Some(Occupant { sandbox, pod: Pod::default(), address, proof })
    }
}

fn sandbox(pod: usize) -> Sandbox {
    Sandbox { container_id: pod.to_string(), ifname: "eth0".into() }
}

/// As in `spec.bootID`, empty where the operator has read no NIC.
fn boot_id(boot: u8) -> String {
    if boot == 0 { String::new() } else { format!("boot-{boot}") }
}
