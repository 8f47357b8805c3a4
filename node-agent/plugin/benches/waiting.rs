//! The cost of ADDs that find no free address: processor time in all, beside as many that find one, and how
//! long it takes from a supply of one address to the end of the ADD that gets it. `make bench-node` runs it.

#![allow(clippy::unwrap_used)] // a benchmark that can't go on has to stop

#[path = "../tests/kernel/node.rs"]
#[allow(dead_code)] // the tests need more of it
mod node;

use std::{
    fs,
    path::Path,
    process::Child,
    thread,
    time::{Duration, Instant},
};

use node::{Node, Pod, finish, supply};

const MANY: u8 = 250;
/// Time to reserve addresses in Azure, which they wait out.
const WAIT: Duration = Duration::from_secs(8);
/// Addresses that are supplied one by one in the end.
const SUPPLIES: u8 = 20;

fn main() {
    let target = Path::new(env!("CARGO_BIN_EXE_vnetpool")).parent().and_then(Path::parent).unwrap();
    let plugin = target.join("plugin/vnetpool");
    assert!(plugin.exists(), "{} is missing: run this by `make bench-node`", plugin.display());
    let pods = || (0..MANY).map(|number| Pod::new(&format!("sandbox{number}"))).collect();
    let start = |node: &Node, pod: &Pod| node.start_stand_in(&plugin, "ADD", pod);

    let before = processor_time();
    let node = Node::holding(MANY);
    let sandboxes: Vec<Pod> = pods();
    let making = processor_time() - before;

    let before = processor_time();
    let adds: Vec<Child> = sandboxes.iter().map(|pod| start(&node, pod)).collect();
    adds.into_iter().for_each(|add| finish(add).succeeds());
    let at_once = processor_time() - before;
    drop(sandboxes);

    let node = Node::holding(0);
    let sandboxes: Vec<Pod> = pods();
    let before = processor_time();
    let mut adds: Vec<Child> = sandboxes.iter().map(|pod| start(&node, pod)).collect();
    thread::sleep(WAIT);
    let (mut transactions, mut until_end) = (Vec::new(), Vec::new());
    for count in 1..=SUPPLIES {
        let first = node.ledger().waiting()[0].sandbox.container_id.clone();
        let index = adds.iter().position(|add| is_of(add, &first)).unwrap();
        let start = Instant::now();
        node.store.with(|ledger, _| ledger.supply(&supply(i64::from(count) + 1, count))).unwrap();
        transactions.push(start.elapsed());
        finish(adds.remove(index)).succeeds();
        until_end.push(start.elapsed());
    }
    node.store.with(|ledger, _| ledger.supply(&supply(100, MANY))).unwrap();
    adds.into_iter().for_each(|add| finish(add).succeeds());
    let waited = processor_time() - before;

    let [making, at_once, waited] = [making, at_once, waited].map(|time| time.as_secs_f64());
    println!("processor time of {MANY} ADDs in seconds; setting up took {making:.2}");
    println!("  that find an address: {at_once:.2}");
    println!(
        "  that wait {WAIT:?} for one: {waited:.2}, which is {:.2} more (aim: at most 0.5)",
        waited - at_once
    );
    println!("one address supplied while up to {MANY} wait, in milliseconds:");
    let measured = [("record assigned", " (aim: at most 5)", transactions), ("ADD ended", "", until_end)];
    for (what, aim, mut times) in measured {
        times.sort();
        let [median, most] =
            [times[times.len() / 2], times[times.len() - 1]].map(|time| time.as_secs_f64() * 1e3);
        println!("  {what}: median {median:.2}, most {most:.2}{aim}");
    }
}

fn is_of(add: &Child, container_id: &str) -> bool {
    let environment = fs::read(format!("/proc/{}/environ", add.id())).unwrap();
    environment
        .split(|byte| *byte == 0)
        .any(|one| one == format!("CNI_CONTAINERID={container_id}").as_bytes())
}

/// Of all children that have ended and were waited for, as `/proc/self/stat` has it.
fn processor_time() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[13..15].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10) // USER_HZ is 100 on all machines of today
}
