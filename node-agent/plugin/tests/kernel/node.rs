//! A node in a network namespace of its own, with pods in theirs, and the plugin run in it as a runtime
//! would.

#[path = "../../../../tests/src/wait/states.rs"]
mod states;

use std::{
    fmt::Debug,
    fs,
    io::Write,
    net::Ipv4Addr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use vnetpool_plugin::ledger::{
    self, Entry, Ledger, Sandbox, Supply,
    file::{self, Store},
};

use states::States;

/// The node's own address.
pub const NODE: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 4);

/// A fresh network namespace, deleted when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    pub fn new() -> Namespace {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // The first `ip netns add` of a machine sets /run/netns up, and two at once get in each other's way.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let is_root = fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
        assert!(is_root, "this creates network namespaces: run it as root");
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let namespace = Namespace { name: format!("vnp-test-{}-{count}", std::process::id()) };
        let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        ip(&format!("netns add {}", namespace.name));
        namespace
    }

    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Runs `f` in a thread inside this namespace.
    pub fn inside<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let namespace = fs::File::open(self.path()).unwrap();
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
                f()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `ip` with these arguments on this namespace and returns its output.
    pub fn ip(&self, arguments: &str) -> String {
        ip(&format!("-n {} {arguments}", self.name))
    }

    /// Takes a link out of another namespace.
    pub fn take(&self, from: &Namespace, link: &str) {
        from.ip(&format!("link set {link} netns {}", self.name));
    }

    /// Ends the namespace now.
    pub fn delete(self) {}

    /// Ends the namespace, and keeps its name for messages.
    pub fn end(&self) {
        if self.path().exists() {
            let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.end();
    }
}

/// Runs `bridge fdb` with these arguments in this namespace.
pub fn bridge_fdb(netns: &Namespace, arguments: &str) {
    let mut command = Command::new("bridge");
    command.arg("fdb").args(arguments.split(' '));
    assert!(netns.inside(|| command.status().unwrap().success()), "bridge fdb {arguments}");
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A pod's sandbox: its id and its namespace.
#[derive(Debug)]
pub struct Pod {
    pub id: String,
    /// The pod's own, which all its sandboxes share.
    pub name: String,
    pub netns: Namespace,
}

impl Pod {
    pub fn new(id: &str) -> Pod {
        Pod::named(id, id)
    }

    pub fn named(id: &str, name: &str) -> Pod {
        Pod { id: id.to_owned(), name: name.to_owned(), netns: Namespace::new() }
    }

    pub fn sandbox(&self) -> Sandbox {
        Sandbox { container_id: self.id.clone(), ifname: "eth0".to_owned() }
    }

    /// The runtime's facts about it.
    pub fn facts(&self) -> ledger::Pod {
        ledger::Pod {
            namespace: "default".to_owned(),
            name: self.name.clone(),
            uid: format!("uid-{}", self.id),
        }
    }

    pub fn host_link(&self) -> String {
        self.sandbox().host_link(&self.facts())
    }
}

/// The plugin's output and its exit.
#[derive(Debug)]
pub struct Answer {
    pub document: Value,
    pub is_success: bool,
}

impl Answer {
    /// Of a runtime, which writes errors as text on standard error.
    pub fn of_runtime(output: Output) -> Answer {
        let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let document = match output.status.success() {
            true => serde_json::from_slice(&output.stdout).unwrap_or(Value::Null),
            false => json!({ "msg": error }),
        };
        Answer { document, is_success: output.status.success() }
    }

    pub fn of(output: Output) -> Answer {
        let document = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        Answer { document, is_success: output.status.success() }
    }

    /// The address in the result of an ADD that must have succeeded.
    pub fn address(&self) -> Ipv4Addr {
        assert!(self.is_success, "{}", self.document);
        let address = self.document["ips"][0]["address"].as_str().unwrap();
        address.split('/').next().unwrap().parse().unwrap()
    }

    /// The code of the error that there must have been.
    pub fn code(&self) -> u64 {
        assert!(!self.is_success, "{}", self.document);
        self.document["code"].as_u64().unwrap()
    }

    pub fn message(&self) -> &str {
        self.document["msg"].as_str().unwrap_or_default()
    }

    #[track_caller]
    pub fn succeeds(&self) {
        assert!(self.is_success, "{}", self.document);
    }
}

/// A node: its namespace and its folder.
#[derive(Debug)]
pub struct Node {
    pub netns: Namespace,
    pub dir: tempfile::TempDir,
    pub store: Store,
}

impl Node {
    /// A node without a ledger.
    pub fn new() -> Node {
        let netns = Namespace::new();
        netns.ip("link set lo up");
        netns.ip("link add eth0 type veth peer name wire");
        netns.ip(&format!("address add {NODE}/20 dev eth0"));
        netns.ip("link set eth0 up");
        netns.inside(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
        let dir = tempfile::tempdir_in("/dev/shm").unwrap(); // a tmpfs, like /run
        let store = Store::at(dir.path());
        Node { netns, dir, store }
    }

    /// A node that holds this many addresses, none of which was ever used.
    pub fn holding(count: u8) -> Node {
        let node = Node::new();
        node.hold(count);
        node
    }

    /// Begins the ledger anew, with this many addresses.
    pub fn hold(&self, count: u8) {
        let boot = file::boot_id().unwrap();
        let ledger = Ledger::rebuild(boot, &[], &[], &supply(1, count), None, file::now(), true);
        self.store.quiesce().unwrap().create(&ledger).unwrap();
    }

    pub fn ledger(&self) -> Ledger {
        self.store.read().unwrap()
    }

    pub fn config(&self) -> Value {
        json!({ "cniVersion": "1.0.0", "name": "vnetpool", "type": "vnetpool", "stateDir": self.dir.path() })
    }

    /// Starts the plugin inside the node, for the first sandbox of a pod.
    pub fn start(&self, verb: &str, id: &str, netns: &Path, config: &Value) -> Child {
        self.start_of(verb, id, id, netns, config)
    }

    /// Starts the plugin inside the node for the sandbox `id` of the pod `name`.
    fn start_of(&self, verb: &str, id: &str, name: &str, netns: &Path, config: &Value) -> Child {
        self.start_as("eth0", verb, id, name, netns, config)
    }

    fn start_as(
        &self,
        ifname: &str,
        verb: &str,
        id: &str,
        name: &str,
        netns: &Path,
        config: &Value,
    ) -> Child {
        let plugin = Path::new(env!("CARGO_BIN_EXE_vnetpool"));
        self.start_program(plugin, (ifname, verb), (id, name), netns, config)
    }

    /// Starts a program that stands for the plugin.
    pub fn start_stand_in(&self, program: &Path, verb: &str, pod: &Pod) -> Child {
        self.start_program(program, ("eth0", verb), (&pod.id, &pod.name), &pod.netns.path(), &self.config())
    }

    fn start_program(
        &self,
        program: &Path,
        (ifname, verb): (&str, &str),
        (id, name): (&str, &str),
        netns: &Path,
        config: &Value,
    ) -> Child {
        let mut command = Node::command(program, (ifname, verb), (id, name), netns);
        // A child is born in the namespace of the thread that starts it.
        let mut child = self.netns.inside(|| command.spawn().unwrap());
        child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        child
    }

    /// The plugin as a runtime starts it for a verb of a pod.
    pub fn invocation(verb: &str, pod: &Pod) -> Command {
        let plugin = Path::new(env!("CARGO_BIN_EXE_vnetpool"));
        Node::command(plugin, ("eth0", verb), (&pod.id, &pod.name), &pod.netns.path())
    }

    fn command(
        program: &Path,
        (ifname, verb): (&str, &str),
        (id, name): (&str, &str),
        netns: &Path,
    ) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", id)
            .env("CNI_IFNAME", ifname)
            .env("CNI_NETNS", netns)
            .env("CNI_PATH", "/opt/cni/bin")
            .env(
                "CNI_ARGS",
                format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_UID=uid-{id}"),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        command
    }

    /// A verb of a pod, by this configuration.
    pub fn run_by(&self, config: &Value, verb: &str, pod: &Pod) -> Answer {
        finish(self.start_of(verb, &pod.id, &pod.name, &pod.netns.path(), config))
    }

    pub fn run(&self, verb: &str, id: &str, netns: &Path, config: &Value) -> Answer {
        Answer::of(self.start(verb, id, netns, config).wait_with_output().unwrap())
    }

    pub fn start_add(&self, pod: &Pod) -> Child {
        self.start_of("ADD", &pod.id, &pod.name, &pod.netns.path(), &self.config())
    }

    pub fn add(&self, pod: &Pod) -> Answer {
        finish(self.start_add(pod))
    }

    /// A verb for a further interface of a pod.
    pub fn run_for(&self, ifname: &str, verb: &str, pod: &Pod) -> Answer {
        finish(self.start_as(ifname, verb, &pod.id, &pod.name, &pod.netns.path(), &self.config()))
    }

    pub fn del(&self, pod: &Pod) -> Answer {
        finish(self.start_of("DEL", &pod.id, &pod.name, &pod.netns.path(), &self.config()))
    }

    /// CHECK with the address that ADD returned.
    pub fn check(&self, pod: &Pod, address: Ipv4Addr) -> Answer {
        let mut config = self.config();
        config["prevResult"] =
            json!({ "cniVersion": "1.0.0", "ips": [{ "address": format!("{address}/32") }] });
        finish(self.start_of("CHECK", &pod.id, &pod.name, &pod.netns.path(), &config))
    }
}

pub fn finish(child: Child) -> Answer {
    Answer::of(child.wait_with_output().unwrap())
}

/// A spec of this generation with this many addresses: vnp-1 is 10.240.1.1 and so on, without a cooldown.
pub fn supply(generation: i64, count: u8) -> Supply {
    let entry = |number: u8| Entry {
        name: format!("vnp-{number}"),
        address: Ipv4Addr::new(10, 240, 1, number),
        attached_to: None,
    };
    Supply {
        object: "allocation".to_owned(),
        generation,
        node_uid: "node".to_owned(),
        boot_id: file::boot_id().unwrap().to_owned(),
        cooldown: Duration::ZERO,
        entries: (1..=count).map(entry).collect(),
    }
}

/// Observes until the state is right, and returns it. The states before that are printed, as
/// `vnetpool_tests::wait` does.
#[track_caller]
pub fn eventually<S: Debug>(what: &str, mut observe: impl FnMut() -> S, is_right: impl Fn(&S) -> bool) -> S {
    let (begun, within, mut before) = (Instant::now(), Duration::from_secs(10), States::default());
    loop {
        let (state, after) = (observe(), begun.elapsed());
        if is_right(&state) {
            before.before_success(what, after).into_iter().for_each(|report| println!("{report}"));
            return state;
        }
        let state = format!("{state:?}");
        assert!(after < within, "{}", before.in_vain(what, within, after, &state));
        before.saw(after, state);
        thread::sleep(Duration::from_millis(5));
    }
}
