//! The cost of a verb, in counts: they are the same on a busy machine and on a fast one.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, process::Child};

use tempfile::TempDir;

use crate::{
    calls,
    node::{Node, Pod, finish},
};

/// An invocation of the plugin that runs under strace.
pub struct Traced {
    child: Child,
    dir: TempDir,
}

impl Traced {
    /// Starts a verb of a pod by a program that stands for the plugin.
    pub fn start(node: &Node, verb: &str, pod: &Pod) -> Traced {
        let dir = tempfile::tempdir().unwrap();
        let (wrapper, file) = (dir.path().join("vnetpool"), dir.path().join("trace"));
        let plugin = env!("CARGO_BIN_EXE_vnetpool");
        let script = format!("#!/bin/sh\nexec /usr/bin/strace -f -qq -y -o {} {plugin}\n", file.display());
        fs::write(&wrapper, script).unwrap();
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
        Traced { child: node.start_stand_in(&wrapper, verb, pod), dir }
    }

    pub fn finish(self) -> Trace {
        finish(self.child).succeeds();
        let text = fs::read_to_string(self.dir.path().join("trace")).unwrap();
        let mut calls = BTreeMap::new();
        // Only builds for debugging check a file once more before they close it. And a setting below
        // `/proc/sys/net` never waits while another process changes links: the kernel has the write begin
        // anew until its turn has come. The plugin makes it once, but strace shows each beginning.
        let is_its = |line: &&str| !line.contains("F_GETFD") && !line.contains("ERESTARTNOINTR");
        for line in text.lines().filter(is_its) {
            // `123 openat(AT_FDCWD, …`
            let call = line.trim_start_matches(|byte: char| byte.is_ascii_digit() || byte == ' ');
            let call = call.split('(').next().unwrap_or_default();
            *calls.entry(call.to_owned()).or_default() += 1;
        }
        Trace { calls, text }
    }
}

/// strace's summary of one invocation of the plugin.
pub struct Trace {
    /// How often each system call was made.
    calls: BTreeMap<String, usize>,
    text: String,
}

impl Trace {
    pub fn total(&self) -> usize {
        self.calls.values().sum()
    }

    fn count(&self, call: &str) -> usize {
        self.calls.get(call).copied().unwrap_or_default()
    }

    /// The bytes that calls of this kind (`read`, `write`) moved from or to the file of this name in a
    /// ledger's folder, each call's own: `123 read(5</dev/shm/.tmp/ledger>, …, 4096) = 4096`.
    fn bytes(&self, kind: &str, file: &str) -> Vec<u64> {
        let moved = |line: &str| {
            let (call, rest) =
                line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ').split_once('(')?;
            let (path, (_, result)) = (rest.split_once('>')?.0, rest.rsplit_once(" = ")?);
            let is_it = call.contains(kind) && path.rsplit_once('/').is_some_and(|(_, name)| name == file);
            is_it.then(|| result.parse().unwrap())
        };
        self.text.lines().filter_map(moved).collect()
    }
}

#[test]
fn a_verb_makes_few_system_calls_and_starts_no_process() {
    let node = Node::holding(250);
    let pods = [Pod::new("a"), Pod::new("b")];
    // The first makes lock file and log.
    node.add(&pods[0]).succeeds();
    for (verb, most) in [("ADD", 73), ("DEL", 52)] {
        let trace = Traced::start(&node, verb, &pods[1]).finish();
        let total = trace.total();
        assert!(total <= most, "{verb}: {total} system calls, {most} are enough\n{}", trace.text);
        for call in ["clone", "clone3", "fork", "vfork", "nanosleep", "clock_nanosleep", "inotify_init1"] {
            assert_eq!(trace.count(call), 0, "{verb}: {call}");
        }
        assert_eq!(trace.count("execve"), 1, "{verb}");
    }
}

/// The file is replaced as a whole, so that it is whole whenever a verb is killed. More than that costs
/// nothing: it is read once, and written once.
#[test]
fn a_verb_reads_the_ledger_once_and_writes_it_once() {
    let node = Node::holding(250);
    let size = || fs::metadata(node.dir.path().join("ledger")).unwrap().len();
    let pods = [Pod::new("a"), Pod::new("b")];
    node.add(&pods[0]).succeeds();
    for verb in ["ADD", "DEL"] {
        let before = size();
        let trace = Traced::start(&node, verb, &pods[1]).finish();
        assert_eq!(trace.bytes("read", "ledger"), [before], "{verb}\n{}", trace.text);
        assert_eq!(trace.bytes("write", "ledger.new"), [size()], "{verb}\n{}", trace.text);
        assert!(trace.bytes("write", "ledger").is_empty(), "{verb}: what others read is never written to");
    }
    // The agent reads it with each inspection, and each waiting ADD with each change.
    assert!(size() < 50 * 250, "{} bytes for 250 free addresses", size());
}

/// Memory that it shares with nobody, of which each page costs a fault: pods wait for that.
#[test]
fn a_verb_holds_little_memory_of_its_own() {
    let (node, pod) = (Node::holding(250), Pod::new("a"));
    for verb in ["ADD", "DEL"] {
        let config = node.config().to_string();
        let held =
            node.netns.inside(|| calls::memory(Node::invocation(verb, &pod), config.as_bytes(), "RssAnon"));
        assert!(held <= 512, "{verb}: {held} KiB");
    }
}
