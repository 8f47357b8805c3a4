//! The folder is full at any write, or the ledger is unreadable: no pod loses an address, and none gets
//! another's.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use vnetpool_node_agent::agent::rebuild;
use vnetpool_plugin::ledger::{Ledger, file};

use crate::node::{Node, Pod, eventually, finish, supply};

/// A ledger of so many addresses takes two pages of memory, so that there may be room for its first half.
const HELD: u8 = 250;
const PAGE: u64 = 4096;

/// A file system of its own for a node's folder.
struct Small<'a>(&'a Path);

/// The scarce part of it.
#[derive(Clone, Copy, Debug)]
enum Lack {
    Pages,
    Files,
}

impl Small<'_> {
    fn mount(dir: &Path) -> Small<'_> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=128k,nr_inodes=64,mode=0700", "none"]).arg(dir);
        assert!(mount.status().unwrap().success());
        Small(dir)
    }

    fn filler(&self, number: usize) -> PathBuf {
        self.0.join(format!("filler{number}"))
    }

    /// Fills it up, but for so much.
    fn leave(&self, lack: Lack, left: u64) {
        match lack {
            Lack::Pages => {
                let mut filler = File::create(self.filler(0)).unwrap();
                while filler.write_all(&[0; PAGE as usize]).is_ok() {}
                let size = filler.metadata().unwrap().len() / PAGE;
                filler.set_len((size - left) * PAGE).unwrap();
            }
            Lack::Files => {
                let made = (0..).take_while(|&number| File::create(self.filler(number)).is_ok()).count();
                (0..left as usize).for_each(|one| fs::remove_file(self.filler(made - 1 - one)).unwrap());
            }
        }
    }

    fn make_room(&self) {
        for entry in fs::read_dir(self.0).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("filler") {
                fs::remove_file(entry.path()).unwrap();
            }
        }
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

/// The first ledger of a node in this folder.
fn hold(node: &Node, count: u8) {
    let ledger =
        Ledger::rebuild(file::boot_id().unwrap(), &[], &[], &supply(1, count), None, file::now(), true);
    node.store.quiesce().unwrap().create(&ledger).unwrap();
}

fn is_routed(node: &Node, address: std::net::Ipv4Addr) -> bool {
    !node.netns.ip(&format!("route show {address}")).is_empty()
}

#[test]
fn a_folder_that_is_full_at_any_write_costs_a_try_and_no_address() {
    let node = Node::new();
    let small = Small::mount(node.dir.path());
    hold(&node, HELD);
    let mut refused = 0;
    for (lack, left) in
        [Lack::Pages, Lack::Files].into_iter().flat_map(|lack| (0..=5).map(move |left| (lack, left)))
    {
        let what = format!("{left} {lack:?} left");
        let (ends, comes) = (Pod::new("ends"), Pod::new("comes"));
        let old = node.add(&ends).address();
        small.leave(lack, left);
        let added = node.add(&comes);
        if !added.is_success {
            refused += 1;
            assert_eq!(added.code(), 11, "{what}: {}", added.document);
            assert_eq!(node.ledger().address_of(&comes.sandbox()), None, "{what}");
            assert!(!comes.netns.ip("link show").contains("eth0"), "{what}");
        }
        assert!(added.is_success == (left >= 4) || (1..4).contains(&left), "{what}: {}", added.document);
        let deleted = node.del(&ends);
        assert!(deleted.is_success || deleted.code() == 11, "{what}: {}", deleted.document);
        assert!(!is_routed(&node, old), "{what}: silenced first");
        assert_eq!(node.ledger().counts(file::now()).held, u32::from(HELD), "{what}");
        small.make_room();
        let address = node.add(&comes).address();
        node.check(&comes, address).succeeds();
        node.del(&ends).succeeds();
        node.del(&comes).succeeds();
        assert_eq!(node.ledger().counts(file::now()).free, u32::from(HELD), "{what}");
    }
    assert!(refused >= 3, "{refused} ADDs met a full folder");
}

/// It takes a spec up, and builds a ledger that was lost.
#[test]
fn an_agent_that_finds_the_folder_full_at_any_write_leaves_no_part_of_a_ledger_there() {
    let (node, pod) = (Node::new(), Pod::new("a"));
    let small = Small::mount(node.dir.path());
    hold(&node, HELD);
    let address = node.add(&pod).address();
    let (ledger, boot) = (node.dir.path().join("ledger"), file::boot_id().unwrap());
    let lacks = [Lack::Pages, Lack::Files].into_iter();
    let (mut not_supplied, mut not_built) = (0, 0);
    for (n, (lack, left)) in lacks.flat_map(|lack| (0..=5).map(move |left| (lack, left))).enumerate() {
        let what = format!("{left} {lack:?} left");
        let next = || supply(2 + n as i64, HELD - (n % 2) as u8);
        let before = fs::read(&ledger).unwrap();
        small.leave(lack, left);
        if node.store.with(|ledger, _| ledger.supply(&next())).is_err() {
            not_supplied += 1;
            assert!(fs::read(&ledger).unwrap() == before, "{what}");
        }
        small.make_room();
        node.check(&pod, address).succeeds();

        fs::remove_file(&ledger).unwrap();
        small.leave(lack, left);
        let build = || rebuild(&node.store, boot, &Default::default(), &next(), false, true);
        if node.netns.inside(build).is_err() {
            not_built += 1;
            assert!(!ledger.exists(), "{what}");
        }
        small.make_room();
        node.netns.inside(build).unwrap();
        node.check(&pod, address).succeeds();
        assert_eq!(node.ledger().counts(file::now()).assigned, 1, "{what}");
    }
    assert!(not_supplied >= 3 && not_built >= 3, "{not_supplied} and {not_built} met a full folder");
}

#[test]
fn an_add_that_has_no_room_to_wait_in_is_to_be_tried_again() {
    let (node, pod) = (Node::new(), Pod::new("a"));
    let small = Small::mount(node.dir.path());
    hold(&node, 0);
    let mut refused = Vec::new();
    for (generation, left) in (0..4).enumerate() {
        small.leave(Lack::Files, left);
        let mut add = node.start_add(&pod);
        let ended = |add: &mut std::process::Child| add.try_wait().unwrap().is_some();
        let observe = || (ended(&mut add), node.ledger().is_waiting(&pod.sandbox()));
        let (is_refused, _) =
            eventually("it is refused or waits", observe, |(ended, waits)| *ended || *waits);
        small.make_room();
        node.store.with(|ledger, _| ledger.supply(&supply(2 + 2 * generation as i64, 1))).unwrap();
        let added = finish(add);
        assert!(added.is_success || added.code() == 11, "{left} files left: {}", added.document);
        assert_eq!(added.is_success, !is_refused, "{left} files left: {}", added.document);
        refused.extend(is_refused.then_some(left));
        node.add(&pod).succeeds();
        node.del(&pod).succeeds();
        assert_eq!((node.ledger().counts(file::now()).free, node.ledger().waiting()), (1, &[][..]));
        node.store.with(|ledger, _| ledger.supply(&supply(3 + 2 * generation as i64, 0))).unwrap();
    }
    // It needs one for the ledger that records its wait, and then one for its socket.
    assert_eq!(refused, [0], "files left when it was refused");
}

#[test]
fn a_ledger_rebuilt_from_a_broken_one_has_no_address_lost_or_doubled() {
    type Damage = fn(&str) -> Vec<u8>;
    let damages: [(&str, Damage); 7] = [
        ("empty", |_| Vec::new()),
        ("torn", |text| text.as_bytes()[..text.len() / 2].to_vec()),
        ("torn between two lines", |text| text[..text[..text.len() / 2].rfind('\n').unwrap() + 1].into()),
        ("without its end", |text| text.trim_end().trim_end_matches("end").into()),
        ("no text", |_| vec![0xff; 100]),
        ("another program's", |_| b"{\"version\": 1}\n".to_vec()),
        ("of the boot before", |text| text.replace(file::boot_id().unwrap(), "another-boot").into()),
    ];
    for (what, damage) in damages {
        let node = Node::holding(3);
        let [stays, ends, comes] = ["stays", "ends", "comes"].map(Pod::new);
        let (of_stays, of_ends) = (node.add(&stays).address(), node.add(&ends).address());
        let ledger = node.dir.path().join("ledger");
        let bytes = damage(&fs::read_to_string(&ledger).unwrap());
        fs::write(&ledger, &bytes).unwrap();

        let add = node.start_add(&comes);
        node.del(&ends).succeeds();
        assert!(!is_routed(&node, of_ends), "{what}");
        let mut collection = node.config();
        collection["cniVersion"] = "1.1.0".into();
        collection["cni.dev/valid-attachments"] = serde_json::json!([]);
        node.run_by(&collection, "GC", &ends).succeeds();
        assert_eq!(fs::read(&ledger).unwrap(), bytes, "{what}: only the agent makes a ledger");
        assert!(is_routed(&node, of_stays), "{what}");

        let boot = file::boot_id().unwrap();
        let build = || rebuild(&node.store, boot, &Default::default(), &supply(2, 3), false, true).unwrap();
        node.netns.inside(build);
        let of_comes = finish(add).address();
        assert_ne!(of_comes, of_stays, "{what}");
        node.check(&comes, of_comes).succeeds();
        node.check(&stays, of_stays).succeeds();
        let counts = node.ledger().counts(file::now());
        assert_eq!((counts.held, counts.assigned, counts.free), (3, 2, 1), "{what}");
        node.del(&stays).succeeds();
        node.del(&comes).succeeds();
        assert_eq!(node.ledger().counts(file::now()).free, 3, "{what}");
    }
}

#[test]
fn a_newer_releases_ledger_stays_as_it_is_and_pods_end_all_the_same() {
    let (node, pod) = (Node::holding(2), Pod::new("a"));
    let address = node.add(&pod).address();
    let ledger = node.dir.path().join("ledger");
    let text = fs::read_to_string(&ledger).unwrap();
    let newer = text.replacen("ledger 1", "ledger 4", 1);
    fs::write(&ledger, &newer).unwrap();
    node.del(&pod).succeeds();
    assert!(!is_routed(&node, address));
    let boot = file::boot_id().unwrap();
    let built =
        node.netns.inside(|| rebuild(&node.store, boot, &Default::default(), &supply(2, 2), false, true));
    assert!(built.unwrap_err().to_string().contains("newer release"));
    assert_eq!(fs::read_to_string(&ledger).unwrap(), newer);
    // Its release is back: an end that it missed meanwhile is found.
    fs::write(&ledger, &text).unwrap();
    crate::crashes::sweep_up(&node);
    assert_eq!(node.ledger().counts(file::now()).free, 2);
}
