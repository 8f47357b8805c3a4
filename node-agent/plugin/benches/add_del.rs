//! What a pod waits for: wall time of ADD and DEL, process start included, one at a time, side by side with
//! Debian's `bridge` + `host-local`. Run as root: `cargo bench -p vnetpool-plugin --profile plugin`.

#![allow(clippy::unwrap_used)] // a benchmark that can't go on has to stop

#[path = "../tests/kernel/node.rs"]
#[allow(dead_code)] // the tests need more of it
mod node;

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use node::{Namespace, Node};
use serde_json::{Value, json};

const ROUNDS: usize = 200;
/// Pods that are already on the node, since the cost must not depend on them.
const NEIGHBOURS: u8 = 30;

/// A plugin to measure and its times.
struct Candidate {
    name: &'static str,
    program: &'static Path,
    config: Value,
    /// Of VERSION, which is little more than the start of a process.
    start: Vec<Duration>,
    add: Vec<Duration>,
    del: Vec<Duration>,
}

fn main() {
    let node = Node::holding(250);
    let neighbours: Vec<node::Pod> =
        (0..NEIGHBOURS).map(|id| node::Pod::new(&format!("neighbour{id}"))).collect();
    neighbours.iter().for_each(|pod| node.add(pod).succeeds());

    let host_local = json!({
        "type": "host-local", "dataDir": node.dir.path().join("host-local"), "ranges": [[{ "subnet": "10.250.0.0/16" }]],
    });
    let mut candidates =
        vec![Candidate::new("vnetpool", Path::new(env!("CARGO_BIN_EXE_vnetpool")), node.config())];
    let bridge = Path::new("/usr/lib/cni/bridge");
    if bridge.exists() {
        let config = json!({
            "cniVersion": "1.0.0", "name": "bench", "type": "bridge", "bridge": "bench0", "isGateway": true, "ipam": host_local,
        });
        candidates.push(Candidate::new("bridge+host-local", bridge, config));
    } else {
        println!("{} is not installed (Debian package containernetworking-plugins)", bridge.display());
    }

    for round in 0..ROUNDS {
        for candidate in &mut candidates {
            candidate.round(&node, &format!("bench{round}"));
        }
    }
    println!("{ROUNDS} rounds, {NEIGHBOURS} pods on the node, in milliseconds:");
    println!(
        "{:20} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "", "start p50", "ADD p50", "ADD p95", "DEL p50", "DEL p95"
    );
    for Candidate { name, start, add, del, .. } in &mut candidates {
        let start = quantile(start, 50);
        let [a, b, c, d] = [quantile(add, 50), quantile(add, 95), quantile(del, 50), quantile(del, 95)];
        println!("{name:20} {start:9.2} {a:9.2} {b:9.2} {c:9.2} {d:9.2}");
    }
}

impl Candidate {
    fn new(name: &'static str, program: &'static Path, config: Value) -> Candidate {
        Candidate { name, program, config, start: Vec::new(), add: Vec::new(), del: Vec::new() }
    }

    fn round(&mut self, node: &Node, id: &str) {
        let netns = Namespace::new();
        let (program, input, path) = (self.program, self.config.to_string(), netns.path());
        let call = |verb: &str| {
            let mut command = Command::new(program);
            command
                .env_clear()
                .envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", id), ("CNI_IFNAME", "eth0")])
                .env("CNI_NETNS", &path)
                .env("CNI_PATH", "/usr/lib/cni")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped());
            let start = Instant::now();
            let mut child = command.spawn().unwrap();
            let _ = child.stdin.take().unwrap().write_all(input.as_bytes()); // not every VERSION reads it
            let output = child.wait_with_output().unwrap();
            let time = start.elapsed();
            assert!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stdout));
            time
        };
        let (start, add, del) = node.netns.inside(|| (call("VERSION"), call("ADD"), call("DEL")));
        self.start.push(start);
        self.add.push(add);
        self.del.push(del);
    }
}

/// Milliseconds.
fn quantile(times: &mut [Duration], percent: usize) -> f64 {
    times.sort();
    times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1e3
}
