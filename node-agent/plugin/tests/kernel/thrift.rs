//! The cost of a verb, in counts: they are the same on a busy machine and on a fast one.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, process::Child};

use tempfile::TempDir;

use crate::node::{Node, Pod, finish};

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
        let script = format!("#!/bin/sh\nexec /usr/bin/strace -f -qq -o {} {plugin}\n", file.display());
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
}

#[test]
fn a_verb_makes_few_system_calls_and_starts_no_process() {
    let node = Node::holding(250);
    let pods = [Pod::new("a"), Pod::new("b")];
    // The first makes lock file and log.
    node.add(&pods[0]).succeeds();
    for (verb, most) in [("ADD", 71), ("DEL", 51)] {
        let trace = Traced::start(&node, verb, &pods[1]).finish();
        let total = trace.total();
        assert!(total <= most, "{verb}: {total} system calls, {most} are enough\n{}", trace.text);
        for call in ["clone", "clone3", "fork", "vfork", "nanosleep", "clock_nanosleep", "inotify_init1"] {
            assert_eq!(trace.count(call), 0, "{verb}: {call}");
        }
        assert_eq!(trace.count("execve"), 1, "{verb}");
    }
}
