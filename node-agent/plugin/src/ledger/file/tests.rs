//! The file and its locks, with several users in one process: locks belong to open files, not to processes.

use std::{net::Ipv4Addr, sync::mpsc, thread};

use super::*;
use crate::ledger::{Assign, Claim, Entry, Occupant, Pod, Proof, Supplied, Supply};

/// Short enough for a test, long enough to distinguish waiting from trying.
const SHORT: Duration = Duration::from_millis(30);

struct Folder {
    dir: tempfile::TempDir,
    store: Store,
}

impl Folder {
    /// A ledger with this many addresses.
    fn holding(count: u8) -> Folder {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path());
        store.quiesce().unwrap().create(&ledger(count)).unwrap();
        Folder { dir, store }
    }
}

fn ledger(count: u8) -> Ledger {
    let entry = |number| Entry {
        name: format!("vnp-{number}"),
        address: [10, 0, 0, number].into(),
        attached_to: None,
    };
    let supply = Supply {
        object: "allocation".to_owned(),
        generation: 1,
        node_uid: "node".to_owned(),
        boot_id: boot_id().unwrap().to_owned(),
        cooldown: Duration::ZERO,
        entries: (1..=count).map(entry).collect(),
    };
    Ledger::rebuild(boot_id().unwrap(), &[], &[], &supply, None, now(), true)
}

fn sandbox(number: usize) -> Sandbox {
    Sandbox { container_id: format!("container{number}"), ifname: "eth0".to_owned() }
}

fn is_busy<T: std::fmt::Debug>(result: Result<T, Error>) -> bool {
    matches!(result, Err(Error::Busy(..)))
}

/// Addresses cool by it: nobody shortens that by setting the machine's clock.
#[test]
fn the_ledgers_time_is_that_since_the_boot_whatever_the_machines_clock_shows() {
    let shown = || -> Millis {
        let text = fs::read_to_string("/proc/uptime").unwrap();
        let seconds: f64 = text.split(' ').next().unwrap().parse().unwrap();
        (seconds * 1000.0) as Millis
    };
    let (before, now, after) = (shown(), now(), shown());
    assert!(now + 10 >= before && now <= after + 10, "{before} ms, {now} ms, {after} ms");
}

#[test]
fn only_root_reads_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(dir.path().join("vnetpool"));
    store.quiesce().unwrap().create(&ledger(1)).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(store.dir()), 0o700);
    for file in [LEDGER, LOCK] {
        assert_eq!(mode(&store.dir().join(file)), 0o600, "{file}");
    }
    // A folder of another maker, such as the kubelet for the agent's container.
    fs::set_permissions(store.dir(), fs::Permissions::from_mode(0o755)).unwrap();
    store.make_private().unwrap();
    assert_eq!(mode(store.dir()), 0o700);
}

/// Between a child's start and its program it has all files of its parent.
#[test]
fn a_lock_ends_with_its_holder_although_a_child_still_has_the_file() {
    let Folder { store, dir: _dir } = Folder::holding(0);
    let held = store.lock_sandbox(&sandbox(1), Duration::ZERO).unwrap();
    let childs = held.0.file.try_clone().unwrap();
    drop(held);
    drop(store.lock_sandbox(&sandbox(1), Duration::ZERO).unwrap());
    drop(childs);
}

#[test]
fn a_sandbox_lock_excludes_that_sandbox_only_and_ends_with_its_holder() {
    let Folder { store, dir: _dir } = Folder::holding(0);
    let held = store.lock_sandbox(&sandbox(1), Duration::ZERO).unwrap();
    assert!(is_busy(store.lock_sandbox(&sandbox(1), SHORT)));
    assert!(store.try_lock_sandbox(&sandbox(1)).unwrap().is_none());
    drop(store.lock_sandbox(&sandbox(2), Duration::ZERO).unwrap());
    assert!(store.try_lock_sandbox(&sandbox(2)).unwrap().is_some());
    drop(held);
    drop(store.lock_sandbox(&sandbox(1), Duration::ZERO).unwrap());
}

#[test]
fn waiting_for_the_ledger_is_bounded() {
    let Folder { store, dir: _dir } = Folder::holding(0);
    let _lock = store.lock(Bytes::LEDGER, Duration::ZERO).unwrap();
    assert!(is_busy(store.lock(Bytes::LEDGER, SHORT)));
    drop(store.lock_sandbox(&sandbox(1), Duration::ZERO).unwrap());
}

#[test]
fn a_quiet_node_runs_no_verb() {
    let Folder { store, dir: _dir } = Folder::holding(0);
    let verb = store.lock_sandbox(&sandbox(1), Duration::ZERO).unwrap();
    assert!(is_busy(store.lock(Bytes::ALL_SANDBOXES, SHORT)), "a verb is running");
    drop(verb);
    let quiet = store.quiesce().unwrap();
    assert!(is_busy(store.lock_sandbox(&sandbox(2), SHORT)));
    quiet.create(&ledger(1)).unwrap();
    store.lock_sandbox(&sandbox(2), Duration::ZERO).unwrap();
}

#[test]
fn transactions_of_many_at_once_do_not_lose_each_others_changes() {
    let Folder { store, dir: _dir } = Folder::holding(40);
    thread::scope(|scope| {
        for part in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for number in part * 10..part * 10 + 10 {
                    let assign = store.with(|ledger, now| {
                        ledger.assign(&Claim::wired(&sandbox(number), &Pod::default(), ""), now)
                    });
                    assert!(matches!(assign, Ok(Assign::Assigned(_))), "{assign:?}");
                }
            });
        }
    });
    assert_eq!(store.read().unwrap().counts(now()).assigned, 40);
}

#[test]
fn a_transaction_that_changes_nothing_writes_nothing() {
    let Folder { store, dir } = Folder::holding(1);
    let inode = || fs::metadata(dir.path().join(LEDGER)).unwrap().ino();
    let before = inode();
    store.with(|_, _| ()).unwrap();
    assert_eq!(inode(), before);
    store.with(|ledger, now| ledger.assign(&Claim::wired(&sandbox(1), &Pod::default(), ""), now)).unwrap();
    assert_ne!(inode(), before, "a change replaces the file");
}

#[test]
fn a_freed_address_goes_to_a_waiter_that_is_alive() {
    let Folder { store, dir: _dir } = Folder::holding(1);
    // Both wait, since the only address is given to a third; the first is dead: its lock is free.
    let (dead, alive, third) = (sandbox(1), sandbox(2), sandbox(3));
    let _lock = store.lock_sandbox(&alive, Duration::ZERO).unwrap();
    store.with(|ledger, now| ledger.assign(&Claim::wired(&third, &Pod::default(), ""), now)).unwrap();
    store
        .with(|ledger, now| {
            [&dead, &alive].map(|sandbox| ledger.assign(&Claim::wired(sandbox, &Pod::default(), ""), now))
        })
        .unwrap();
    assert_eq!(store.read().unwrap().waiting().len(), 1, "the dead one doesn't count");
    store.with(|ledger, now| ledger.free(&third, now)).unwrap();
    assert!(store.read().unwrap().address_of(&alive).is_some());
}

/// An ADD waits, and the only address has just cooled.
#[test]
fn a_transactions_changes_count_before_a_waiter_is_served() {
    let (alive, other) = (sandbox(1), sandbox(2));
    let pod = Pod::default();
    let served_after = |serves: &dyn Fn(&Store)| {
        let Folder { store, dir: _dir } = Folder::holding(0);
        let _lock = store.lock_sandbox(&alive, Duration::ZERO).unwrap();
        let mut due = ledger(1);
        due.assign(&Claim::wired(&other, &pod, ""), 0);
        due.assign(&Claim::wired(&alive, &pod, ""), 0);
        due.free(&other, 0);
        store.replace(&due, &[]).unwrap();
        serves(&store);
        store.peek().unwrap().address_of(&alive)
    };
    let address = Some(Ipv4Addr::new(10, 0, 0, 1));
    assert_eq!(served_after(&|store| store.with(|_, _| ()).unwrap()), address);
    assert_eq!(served_after(&|store| store.note(|_, _| ()).unwrap()), address);
    let lacks_rules = |store: &Store| store.note(|ledger, _| ledger.rule(false)).unwrap();
    assert_eq!(served_after(&lacks_rules), None, "the node lacks its rules");
    let lost = Supply {
        object: "allocation".to_owned(),
        generation: 2,
        node_uid: "node".to_owned(),
        boot_id: boot_id().unwrap().to_owned(),
        cooldown: Duration::ZERO,
        entries: Vec::new(),
    };
    let loses = |store: &Store| {
        assert_eq!(store.note(|ledger, _| ledger.supply(&lost)).unwrap(), Supplied::Applied);
    };
    assert_eq!(served_after(&loses), None, "the address is no longer on the NIC");
    let found = Occupant {
        sandbox: other.clone(),
        pod: pod.clone(),
        address: [10, 0, 0, 1].into(),
        proof: Proof::Link(String::new()),
    };
    let finds = |store: &Store| assert!(store.note(|ledger, now| ledger.adopt(&found, now)).unwrap());
    assert_eq!(served_after(&finds), None, "the address is in use");
    let cancels = |store: &Store| assert!(store.note(|ledger, _| ledger.cancel(&alive)).unwrap());
    assert_eq!(served_after(&cancels), None, "the pod goes");
}

#[test]
fn a_lock_file_that_was_removed_is_noticed_by_its_holder() {
    let Folder { store, dir } = Folder::holding(0);
    let lock = store.lock_sandbox(&sandbox(1), Duration::ZERO).unwrap();
    assert!(lock.is_current());
    fs::remove_file(dir.path().join(LOCK)).unwrap();
    assert!(!lock.is_current());
    let _other = store.lock_sandbox(&sandbox(1), Duration::ZERO).unwrap();
    assert!(!lock.is_current());
}

#[test]
fn a_thread_that_waits_for_a_lock_gets_it_on_release() {
    let Folder { store, dir: _dir } = Folder::holding(0);
    let held = store.lock_sandbox(&sandbox(1), Duration::ZERO).unwrap();
    let (done, is_done) = mpsc::channel();
    let waiter =
        thread::spawn(move || done.send(store.lock_sandbox(&sandbox(1), LOCK_WAIT).is_ok()).unwrap());
    drop(held);
    assert!(is_done.recv().unwrap());
    waiter.join().unwrap();
}

#[test]
fn a_missing_ledger_is_built_anew_and_a_busy_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(dir.path());
    let missing = store.read().unwrap_err();
    assert!(matches!(missing, Error::Missing(_)) && missing.needs_rebuild());
    let busy = Error::Busy(dir.path().to_owned(), SHORT);
    assert!(!busy.needs_rebuild());
}

#[test]
fn a_ledger_of_a_newer_format_is_never_replaced() {
    let Folder { store, dir } = Folder::holding(1);
    let path = dir.path().join(LEDGER);
    let newer = fs::read_to_string(&path).unwrap().replacen("ledger 1", "ledger 4", 1);
    fs::write(&path, &newer).unwrap();
    let refused = store.with(|ledger, now| ledger.free(&sandbox(1), now)).unwrap_err();
    assert!(matches!(refused, Error::OtherVersion(_, 4)), "{refused}");
    assert!(!refused.needs_rebuild());
    let refused = store.quiesce().unwrap().create(&ledger(1)).unwrap_err();
    assert!(matches!(refused, Error::OtherVersion(_, 4)), "{refused}");
    assert_eq!(fs::read_to_string(&path).unwrap(), newer);
}
