//! How long a pod waits: wall time of whole processes for ADD and DEL, ours beside its peers, interleaved,
//! one at a time and many at once, on an empty node and on a full one. `make bench-node` builds all of them
//! and runs it as root; the docs have its tables.

#![allow(clippy::unwrap_used)] // a benchmark that can't go on has to stop

#[path = "../tests/kernel/node.rs"]
#[allow(dead_code)] // the tests need more of it
mod node;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use node::{Namespace, Node};
use serde_json::{Value, json};

const REPETITIONS: usize = 3;
/// Pods in a repetition, one at a time.
const ROUNDS: usize = 40;
const AT_ONCE: usize = 32;
/// Pods that are on the node already.
const NEIGHBOURS: [usize; 2] = [0, 200];

/// A plugin on a node of its own.
struct Peer {
    name: &'static str,
    program: PathBuf,
    config: Value,
    node: Node,
    neighbours: Vec<Namespace>,
    /// Of each repetition.
    times: Vec<Times>,
}

#[derive(Default)]
struct Times {
    alone: Verbs,
    at_once: Verbs,
    /// From the first start to the last end.
    all_at_once: Duration,
}

#[derive(Default)]
struct Verbs {
    /// VERSION, which is little more than the start of a process.
    start: Vec<Duration>,
    add: Vec<Duration>,
    del: Vec<Duration>,
}

fn main() {
    let target = Path::new(env!("CARGO_BIN_EXE_vnetpool")).parent().and_then(Path::parent).unwrap();
    let output = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/bench");
    let load = || fs::read_to_string("/proc/loadavg").unwrap().split(' ').next().unwrap().to_owned();
    let mut rows = Vec::new();
    for pods in NEIGHBOURS {
        let before = load();
        let mut peers = Peer::all(target, &output);
        peers.iter_mut().for_each(|peer| peer.settle(pods));
        for repetition in 0..REPETITIONS {
            peers.iter_mut().for_each(|peer| peer.times.push(Times::default()));
            for round in 0..ROUNDS {
                peers.iter_mut().for_each(|peer| peer.one(&format!("p{repetition}x{round}")));
            }
            peers.iter_mut().for_each(|peer| peer.many(&format!("q{repetition}")));
        }
        let after = load();
        println!(
            "\n{pods} pods on the node, {AT_ONCE} at once; load {before} before and {after} after; milliseconds"
        );
        println!("| | verb | min | median | medians of the repetitions |\n|---|---|---|---|---|");
        for peer in &peers {
            rows.extend(peer.rows(pods, [&before, &after]));
        }
        compare(&rows, pods);
    }
    let file = output.join("node.json");
    fs::write(&file, serde_json::to_vec_pretty(&rows).unwrap()).unwrap();
    println!("\nwritten to {}", file.display());
}

impl Peer {
    fn all(target: &Path, output: &Path) -> Vec<Peer> {
        let reference = |name: &'static str, more: Value| {
            let node = Node::new();
            let (data, ranges) =
                (node.dir.path().join("host-local"), json!([[{ "subnet": "10.250.0.0/16" }]]));
            let ipam = json!({ "type": "host-local", "dataDir": data, "ranges": ranges });
            let mut config = json!({ "cniVersion": "1.0.0", "name": "bench", "type": name, "ipam": ipam });
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            Peer::new(name, output.join(name), config, node)
        };
        let ours = Node::holding(250);
        vec![
            Peer::new("floor", output.join("floor"), json!({}), Node::new()),
            Peer::new("vnetpool", target.join("plugin/vnetpool"), ours.config(), ours),
            reference("ptp", json!({})),
            reference("bridge", json!({ "bridge": "bench0", "isGateway": true })),
        ]
    }

    fn new(name: &'static str, program: PathBuf, config: Value, node: Node) -> Peer {
        assert!(program.exists(), "{} is missing: run this by `make bench-node`", program.display());
        Peer { name, program, config, node, neighbours: Vec::new(), times: Vec::new() }
    }

    /// Gives the node this many pods of its own.
    fn settle(&mut self, pods: usize) {
        let neighbours: Vec<Namespace> = (0..pods).map(|_| Namespace::new()).collect();
        self.node.netns.inside(|| {
            for (number, netns) in neighbours.iter().enumerate() {
                self.call("ADD", &format!("n{number}"), netns);
            }
        });
        self.neighbours = neighbours;
    }

    fn one(&mut self, id: &str) {
        let netns = Namespace::new();
        let call = |verb| self.call(verb, id, &netns);
        let (start, add, del) = self.node.netns.inside(|| (call("VERSION"), call("ADD"), call("DEL")));
        let times = &mut self.times.last_mut().unwrap().alone;
        times.start.push(start);
        times.add.push(add);
        times.del.push(del);
    }

    fn many(&mut self, id: &str) {
        let pods: Vec<(String, Namespace)> =
            (0..AT_ONCE).map(|number| (format!("{id}x{number}"), Namespace::new())).collect();
        let all = |verb| {
            thread::scope(|scope| {
                let calls: Vec<_> =
                    pods.iter().map(|(id, netns)| scope.spawn(|| self.call(verb, id, netns))).collect();
                calls.into_iter().map(|call| call.join().unwrap()).collect::<Vec<_>>()
            })
        };
        let (add, all_at_once, del) = self.node.netns.inside(|| {
            let begun = Instant::now();
            (all("ADD"), begun.elapsed(), all("DEL"))
        });
        let times = self.times.last_mut().unwrap();
        (times.at_once, times.all_at_once) = (Verbs { start: Vec::new(), add, del }, all_at_once);
    }

    /// How long a verb takes. The caller's thread is in the node's namespace, where the child is born.
    fn call(&self, verb: &str, id: &str, netns: &Namespace) -> Duration {
        let mut command = Command::new(&self.program);
        command
            .env_clear()
            .envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", id), ("CNI_IFNAME", "eth0")])
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={id}"))
            .env("CNI_NETNS", netns.path())
            .env("CNI_PATH", self.program.parent().unwrap())
            .env("PATH", "/usr/sbin:/usr/bin")
            .env("FLOOR_DIR", self.node.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let input = self.config.to_string();
        let begun = Instant::now();
        let mut child = command.spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes()); // not every VERSION reads it
        let output = child.wait_with_output().unwrap();
        let time = begun.elapsed();
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{} {verb} {id}: {} {printed}", self.name, output.status);
        time
    }

    /// Prints the rows of this peer, and gives them.
    fn rows(&self, pods: usize, load: [&str; 2]) -> Vec<Value> {
        type Of = fn(&Times) -> Vec<Duration>;
        let all: [(&str, Of); 6] = [
            ("start", |times| times.alone.start.clone()),
            ("ADD", |times| times.alone.add.clone()),
            ("DEL", |times| times.alone.del.clone()),
            ("ADD at once", |times| times.at_once.add.clone()),
            ("DEL at once", |times| times.at_once.del.clone()),
            ("all ADDs at once", |times| vec![times.all_at_once]),
        ];
        let row = |(verb, of): (&str, Of)| {
            let medians: Vec<f64> = self.times.iter().map(|times| median(of(times))).collect();
            let every: Vec<Duration> = self.times.iter().flat_map(of).collect();
            let (min, mid) = (every.iter().min().unwrap().as_secs_f64() * 1e3, median(every.clone()));
            let spread = medians.iter().map(|median| format!("{median:.2}")).collect::<Vec<_>>().join(" ");
            println!("| {} | {verb} | {min:.2} | {mid:.2} | {spread} |", self.name);
            let measured = json!({ "min": min, "median": mid, "medians": medians });
            json!({ "pods": pods, "peer": self.name, "verb": verb, "load": load, "milliseconds": measured })
        };
        all.into_iter().map(row).collect()
    }
}

/// Prints what ours takes of what the floor takes. One at a time the minima are compared, which other work on
/// the machine moves least. At once only a repetition's own figures are: its peers ran right before and
/// after.
fn compare(rows: &[Value], pods: usize) {
    let measured = |peer: &str, verb: &str| {
        let is_it = |row: &&Value| row["pods"] == pods && row["peer"] == peer && row["verb"] == verb;
        &rows.iter().find(is_it).unwrap()["milliseconds"]
    };
    println!("\n| ours by the floor | aim | |\n|---|---|---|");
    for (verb, aim) in [("ADD", 1.15), ("DEL", 1.5)] {
        let [floor, ours] = ["floor", "vnetpool"].map(|peer| measured(peer, verb)["min"].as_f64().unwrap());
        println!("| {verb}, of the minima | at most {aim} | {:.2} |", ours / floor);
    }
    // The rate is as many by the time of all, so its ratio is that of the times upside down.
    for (what, verb, aim, is_rate) in [
        ("ADD at once, of the medians", "ADD at once", "at most 1.15", false),
        ("ADDs a second at once", "all ADDs at once", "at least 0.9", true),
    ] {
        let [floor, ours] =
            ["floor", "vnetpool"].map(|peer| measured(peer, verb)["medians"].as_array().unwrap());
        let ratio = |(floor, ours): (&Value, &Value)| {
            let ratio = ours.as_f64().unwrap() / floor.as_f64().unwrap();
            format!("{:.2}", if is_rate { ratio.recip() } else { ratio })
        };
        let each: Vec<String> = floor.iter().zip(ours).map(ratio).collect();
        println!("| {what}, each repetition | {aim} | {} |", each.join(" "));
    }
}

/// Milliseconds.
fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}
