//! How long a pod waits: wall time of whole processes for ADD and DEL, ours beside its peers, interleaved,
//! one at a time and many at once, on an empty node and on a full one. And what ours takes of disk and
//! memory. `make bench-node` builds all of them and runs it as root; the docs have its tables.

#![allow(clippy::unwrap_used, clippy::panic)] // a benchmark that can't go on has to stop

#[path = "../tests/kernel/calls.rs"]
#[allow(dead_code)] // the tests need more of it
mod calls;
#[path = "../tests/kernel/node.rs"]
#[allow(dead_code)]
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
/// How often in a repetition as many come at once.
const BURSTS: usize = 5;
/// Pods that are on the node already.
const NEIGHBOURS: [usize; 2] = [0, 200];
/// How often to check whether the kernel has ended a pod's namespace. Afterwards it has as long to end what
/// shows nowhere.
const ENDS_EVERY: Duration = Duration::from_millis(10);

/// A plugin on a node of its own.
struct Peer {
    name: &'static str,
    program: PathBuf,
    config: Value,
    node: Node,
    neighbours: Vec<Namespace>,
    /// The links of the node with these, which it has again once the kernel has ended a pod's namespace.
    links: usize,
    /// Of each repetition.
    times: Vec<Times>,
}

#[derive(Default)]
struct Times {
    alone: Verbs,
    at_once: Verbs,
    /// From the first start to the last end, of each burst.
    all_at_once: Vec<Duration>,
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
            for burst in 0..BURSTS {
                peers.iter_mut().for_each(|peer| peer.many(&format!("q{repetition}x{burst}")));
            }
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
        measure(&peers);
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
        Peer { name, program, config, node, neighbours: Vec::new(), links: 0, times: Vec::new() }
    }

    /// Gives the node this many pods of its own.
    fn settle(&mut self, pods: usize) {
        let neighbours: Vec<Namespace> = (0..pods).map(|_| Namespace::new()).collect();
        self.node.netns.inside(|| {
            for (number, netns) in neighbours.iter().enumerate() {
                self.invoke("ADD", &format!("n{number}"), netns);
            }
        });
        self.neighbours = neighbours;
        // The first pod brings what stays on the node for all, such as a bridge.
        let first = Namespace::new();
        self.node.netns.inside(|| self.invoke("ADD", "first", &first));
        self.links = self.node_links() - 1;
        self.node.netns.inside(|| self.invoke("DEL", "first", &first));
        self.end([first]);
    }

    /// How many links the node has.
    fn node_links(&self) -> usize {
        const HEADS: usize = 2;
        let listed = self.node.netns.inside(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap());
        listed.lines().count() - HEADS
    }

    /// Ends the namespaces of pods, and waits until the kernel has: it does so later, under the locks that
    /// the next peer needs, and floor and ours leave it the links.
    fn end(&self, pods: impl IntoIterator<Item = Namespace>) {
        pods.into_iter().for_each(Namespace::delete);
        while self.node_links() > self.links {
            thread::sleep(ENDS_EVERY);
        }
        thread::sleep(ENDS_EVERY);
    }

    fn one(&mut self, id: &str) {
        let netns = Namespace::new();
        let invoke = |verb| self.invoke(verb, id, &netns);
        let (start, add, del) = self.node.netns.inside(|| (invoke("VERSION"), invoke("ADD"), invoke("DEL")));
        let times = &mut self.times.last_mut().unwrap().alone;
        times.start.push(start);
        times.add.push(add);
        times.del.push(del);
        self.end([netns]);
    }

    fn many(&mut self, id: &str) {
        let pods: Vec<(String, Namespace)> =
            (0..AT_ONCE).map(|number| (format!("{id}x{number}"), Namespace::new())).collect();
        let all = |verb| {
            thread::scope(|scope| {
                let all: Vec<_> =
                    pods.iter().map(|(id, netns)| scope.spawn(|| self.invoke(verb, id, netns))).collect();
                all.into_iter().map(|one| one.join().unwrap()).collect::<Vec<_>>()
            })
        };
        let (add, all_at_once, del) = self.node.netns.inside(|| {
            let begun = Instant::now();
            (all("ADD"), begun.elapsed(), all("DEL"))
        });
        let times = self.times.last_mut().unwrap();
        times.at_once.add.extend(add);
        times.at_once.del.extend(del);
        times.all_at_once.push(all_at_once);
        self.end(pods.into_iter().map(|(_, netns)| netns));
    }

    /// How long a verb takes. The caller's thread is in the node's namespace, where the child is born.
    fn invoke(&self, verb: &str, id: &str, netns: &Namespace) -> Duration {
        let mut command = self.command(verb, id, netns);
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

    fn command(&self, verb: &str, id: &str, netns: &Namespace) -> Command {
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
        command
    }

    /// The memory that an ADD and a DEL held at most, in MiB.
    fn memory(&self) -> [f64; 2] {
        let netns = Namespace::new();
        let input = self.config.to_string();
        let held = |verb| {
            let command = self.command(verb, "held", &netns);
            calls::memory(command, input.as_bytes(), "VmHWM") as f64 / 1024.0
        };
        let held = self.node.netns.inside(|| ["ADD", "DEL"].map(held));
        self.end([netns]);
        held
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
            ("all ADDs at once", |times| times.all_at_once.clone()),
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

/// Prints what ours takes of what the floor takes. Other work on the machine moves the minima of one at a
/// time least. Of the medians only those of a repetition are compared, since both peers ran in turns then.
fn compare(rows: &[Value], pods: usize) {
    let measured = |peer: &str, verb: &str| {
        let is_it = |row: &&Value| row["pods"] == pods && row["peer"] == peer && row["verb"] == verb;
        &rows.iter().find(is_it).unwrap()["milliseconds"]
    };
    let ratio = |floor: &Value, ours: &Value| ours.as_f64().unwrap() / floor.as_f64().unwrap();
    let ratios = |verb: &str| {
        let [floor, ours] = ["floor", "vnetpool"].map(|peer| measured(peer, verb)["medians"].as_array());
        let both = floor.unwrap().iter().zip(ours.unwrap());
        both.map(|(floor, ours)| ratio(floor, ours)).collect::<Vec<_>>()
    };
    let row = |what: &str, aim: &str, ratios: &[f64]| {
        let each: Vec<String> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
        println!("| {what} | {aim} | {} |", each.join(" "));
    };
    println!("\n| ours by the floor | aim | |\n|---|---|---|");
    for (verb, aim) in [("ADD", "at most 1.15"), ("DEL", "at most 1.5")] {
        let min = ratio(&measured("floor", verb)["min"], &measured("vnetpool", verb)["min"]);
        row(&format!("{verb}, of the minima"), aim, &[min]);
        row(&format!("{verb}, of the medians, each repetition"), aim, &ratios(verb));
    }
    row("ADD at once, of the medians, each repetition", "at most 1.15", &ratios("ADD at once"));
    // The rate is as many by the time of all, so its ratio is that of the times upside down.
    let rates: Vec<f64> = ratios("all ADDs at once").into_iter().map(f64::recip).collect();
    row("ADDs a second at once, each repetition", "at least 0.9", &rates);
}

/// Prints what the floor and ours take of disk and memory.
fn measure(peers: &[Peer]) {
    println!("\n| | program, MB | ADD held at most, MiB | DEL |\n|---|---|---|---|");
    for peer in &peers[..2] {
        let bytes = fs::metadata(&peer.program).unwrap().len() as f64;
        let [add, del] = peer.memory();
        println!("| {} | {:.2} | {add:.2} | {del:.2} |", peer.name, bytes / 1e6);
    }
    println!("| aim of ours, at most | 1.5 | 2 | 2 |");
}

/// Milliseconds.
fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}
