//! Simulated Azure with two VMs that belong to no cluster, another VM and a host of the internet; if asked
//! for, with a VM of a peered VNet and a host on premises. All of it goes when it is dropped.
//!
//! ```text
//!   vm1 (10.240.0.4) ──┐                                           ┌── internet (203.0.113.10)
//!   vm2 (10.240.0.5) ──┤ fabric: ARM, metadata service, network ───┤   peer (10.60.0.4)
//!   other (10.240.0.6) ┘                                           └── premises (192.168.0.10)
//! ```
//! A machine is a network namespace. A VM that runs the agent has processes of its own, too, which all end
//! with their number one, and mounts: `/run`, `/etc/cni`, `/opt/cni` and `/var/lib` are its own.

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;
use vnetpool_tests::project::{programs, tool};
use vnetpool_tests::wait::eventually_right;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// The port at which every machine and container answers with its client's address.
pub const PORT: u16 = 8080;
pub const VM1: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 4);
pub const OTHER: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 6);
pub const INTERNET: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
pub const PEER: Ipv4Addr = Ipv4Addr::new(10, 60, 0, 4);
pub const PREMISES: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 10);
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const WIRE_SERVER: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
const ARM: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
const VMS: [&str; 3] = ["vm1", "vm2", "other"];
const MACHINES: [&str; 7] = ["fabric", "vm1", "vm2", "other", "internet", "peer", "premises"];
const GROUP: &str =
    "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/vnetpool/providers/Microsoft.Network";

/// Process number one of a VM that has its own folders: its disk, and a shell that holds it.
const BOOT: &str = r#"set -e
mount --make-rprivate /
mount -t proc none /proc
mount -t tmpfs -o mode=755 none /run
for folder in /etc/cni /opt/cni /var/lib /etc/containers /etc/docker; do
  [ -d $folder ] || continue
  mount -t tmpfs -o mode=755 none $folder
done
mkdir -p /run/cgroup && mount --rbind /sys/fs/cgroup /run/cgroup
mount -t sysfs none /sys && mount --rbind /run/cgroup /sys/fs/cgroup
mkdir -p /etc/cni/net.d /opt/cni/bin
echo up
exec sleep infinity
"#;

pub struct Stage {
    /// The prefix of its namespaces' names.
    name: String,
    folder: tempfile::TempDir,
    processes: Vec<Child>,
    /// VMs that were booted, and their process number one.
    booted: Vec<(String, u32)>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        if thread::panicking() {
            for (vm, _) in &self.booted {
                eprintln!("the agent on {vm}:\n{}", self.read_log(&format!("agent-{vm}")));
            }
        }
        // The last first: the processes in a machine before the one that holds it.
        for mut process in self.processes.drain(..).rev() {
            drop(process.kill());
            drop(process.wait());
        }
        for machine in MACHINES {
            drop(Command::new("ip").args(["netns", "delete", &self.netns(machine)]).output());
        }
    }
}

/// A program of this project's as `make images` builds it.
fn built(path: PathBuf) -> Result<PathBuf> {
    ensure!(path.exists(), "{} is missing: run `make images`", path.display());
    Ok(path)
}

pub fn agent_program() -> Result<PathBuf> {
    built(programs().join("vnetpool-node-agent"))
}

pub fn plugin_program() -> Result<PathBuf> {
    built(programs().with_file_name("plugin").join("vnetpool"))
}

pub fn probe_program() -> Result<PathBuf> {
    built(tool("probe"))
}

pub fn cnitool_program() -> Result<PathBuf> {
    built(tool("cnitool"))
}

pub fn run(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?}: {} {}", out.trim(), err.trim());
    Ok(output)
}

/// Observes until the state is right.
#[track_caller]
pub fn eventually<S: Debug>(what: &str, observe: impl Fn() -> S, is_right: impl Fn(&S) -> bool) {
    eventually_right(what, PATIENCE, observe, is_right).unwrap_or_else(|error| panic!("{error:#}"));
}

impl Stage {
    /// Everything up, no VM with an address beside its own.
    pub fn set() -> Result<Stage> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("alone-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut stage = Stage { name, folder: tempfile::tempdir()?, processes: vec![], booted: vec![] };
        for machine in MACHINES {
            run(Command::new("ip").args(["netns", "add", &stage.netns(machine)]))?;
        }
        let mut simulator = Command::new("nsenter");
        simulator
            .arg(stage.net("fabric"))
            .arg(built(programs().join("azure-sim"))?)
            .args(["--fabric", "--admin-socket"])
            .arg(stage.folder.path().join("admin"))
            .stderr(File::create(stage.log("azure-sim"))?);
        stage.start(simulator, "azure-sim")?;
        for vm in VMS {
            stage.admin("POST", "/vms", &json!({ "name": vm, "netns": stage.netns(vm) }))?;
        }
        let internet = json!({ "netns": stage.netns("internet"), "address": INTERNET });
        stage.admin("POST", "/internet", &internet)?;
        stage.serve(&["vm1", "other", "internet"])?;
        Ok(stage)
    }

    /// Peers the VNet with another that has a VM, and connects it with a network on premises.
    pub fn surround(&mut self) -> Result<()> {
        self.admin("PATCH", "/settings", &json!({ "write_seconds": 0 }))?;
        let space = "10.60.0.0/16";
        let subnet = json!({ "name": "far", "properties": { "addressPrefix": space } });
        let far = json!({ "addressSpace": { "addressPrefixes": [space] }, "subnets": [subnet] });
        self.make("virtualNetworks/far", &far)?;
        for (from, to) in [("vnet", "far"), ("far", "vnet")] {
            let remote = json!({ "remoteVirtualNetwork": { "id": format!("{GROUP}/virtualNetworks/{to}") } });
            self.make(&format!("virtualNetworks/{from}/virtualNetworkPeerings/{to}"), &remote)?;
        }
        let vm = json!({ "name": "peer", "netns": self.netns("peer"), "vnet": "far", "subnet": "far" });
        self.admin("POST", "/vms", &vm)?;
        let premises = json!({ "netns": self.netns("premises"), "address": PREMISES, "vnet": "vnet",
            "prefixes": ["192.168.0.0/16"] });
        self.admin("POST", "/premises", &premises)?;
        self.serve(&["peer", "premises"])
    }

    /// Has these machines answer at [`PORT`].
    fn serve(&mut self, machines: &[&str]) -> Result<()> {
        for machine in machines {
            let mut probe = Command::new("nsenter");
            probe.arg(self.net(machine)).arg(probe_program()?).args(["serve", "--listen", ":8080"]);
            self.processes.push(probe.spawn()?);
        }
        for machine in machines {
            eventually("a machine answers", || answer_of(&self.machine(machine)), Result::is_ok);
        }
        Ok(())
    }

    /// Starts a program that prints a line when it is up; gives that line.
    fn start(&mut self, mut command: Command, what: &str) -> Result<String> {
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let output = process.stdout.take().context("no output")?;
        self.processes.push(process);
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        ensure!(!line.is_empty(), "{what} ended: {}", self.read_log(what));
        Ok(line.trim().to_owned())
    }

    pub fn netns(&self, machine: &str) -> String {
        format!("{}-{machine}", self.name)
    }

    fn net(&self, machine: &str) -> String {
        format!("--net=/run/netns/{}", self.netns(machine))
    }

    fn log(&self, what: &str) -> PathBuf {
        self.folder.path().join(format!("{what}.log"))
    }

    pub fn read_log(&self, what: &str) -> String {
        fs::read_to_string(self.log(what)).unwrap_or_default()
    }

    /// A folder that is there on every machine.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Gives a VM folders of its own and this many addresses beside its own; they are 10.240.0.7 and on.
    pub fn boot(&mut self, vm: &str, addresses: usize) -> Result<()> {
        self.give(vm, addresses)?;
        let mut holder = Command::new("nsenter");
        holder.arg(self.net(vm));
        holder.args(["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", BOOT]);
        holder.stderr(File::create(self.log(vm))?);
        self.start(holder, vm)?;
        let holder = self.processes.last().context("no process")?.id();
        self.booted.push((vm.to_owned(), child_of(holder)?));
        Ok(())
    }

    fn first_process(&self, vm: &str) -> u32 {
        self.booted.iter().find(|(known, _)| known == vm).map_or(0, |(_, pid)| *pid)
    }

    /// The network namespace of a process on a VM that was booted, by its number there.
    pub fn namespace_of(&self, vm: &str, pid: u32) -> Result<File> {
        let path = format!("/proc/{}/{}/proc/{pid}/ns/net", self.first_process(vm), "root");
        File::open(&path).context(path)
    }

    /// Runs a program on a VM that was booted for as long as the VM lives.
    pub fn start_daemon(&mut self, vm: &str, words: &str) -> Result<()> {
        let mut words = words.split(' ');
        let name = words.next().unwrap_or_default();
        let log = File::create(self.log(name.rsplit('/').next().unwrap_or_default()))?;
        let mut daemon = self.on(vm, name);
        self.processes.push(daemon.args(words).stdout(log.try_clone()?).stderr(log).spawn()?);
        Ok(())
    }

    /// Ends a process when the stage ends.
    pub fn keep(&mut self, process: Child) {
        self.processes.push(process);
    }

    /// A program on a VM that was booted.
    pub fn on(&self, vm: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        let target = format!("--target={}", self.first_process(vm));
        command.arg(target).args(["--net", "--mount", "--pid", "--"]).arg(program);
        command.stdin(Stdio::null());
        command
    }

    /// Runs words on a VM that was booted; returns their output.
    pub fn sh(&self, vm: &str, words: &str) -> String {
        let mut words = words.split(' ');
        let output = run(self.on(vm, words.next().unwrap_or_default()).args(words)).unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs the agent on a VM that was booted, until the VM has its addresses in the ledger.
    pub fn start_agent(&mut self, vm: &str, flags: &[&str]) -> Result<Agent> {
        let mut agent = self.on(vm, agent_program()?);
        agent.args(["run", "--source", "imds", "--log-format", "text", "--plugin"]).arg(plugin_program()?);
        agent.args(["--snat-exclusions", "10.60.0.0/16,192.168.0.0/16"]);
        let log = format!("agent-{vm}");
        let process = agent.args(flags).stderr(File::create(self.log(&log))?).spawn()?;
        let pid = child_of(process.id())?;
        let agent = Agent { process, pid };
        let is_there = ["-e", "/etc/cni/net.d/10-vnetpool.conflist"];
        let observe = || self.on(vm, "test").args(is_there).status().unwrap();
        eventually("the agent has installed its plugin", observe, ExitStatus::success);
        Ok(agent)
    }

    /// The output of `vnetpool-node-agent` with these arguments.
    pub fn call_agent(&self, vm: &str, words: &[&str]) -> Result<String> {
        let output = run(self.on(vm, agent_program()?).args(words))?;
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The address in the result of `attach`.
    pub fn attach(&self, vm: &str, words: &[&str]) -> Result<Ipv4Addr> {
        address_in(&self.call_agent(vm, &[&["attach"], words].concat())?)
    }

    /// ARM's answer about a resource of the group, asked from a VM.
    fn arm(&self, method: &str, resource: &str, body: &Value) -> Result<Value> {
        let path = format!("{GROUP}/{resource}?api-version=2024-03-01");
        let headers = "authorization: Bearer test\r\ncontent-type: application/json\r\n";
        let answer =
            inside(&self.machine("vm1"), || ask((ARM, 80), method, &path, headers, &body.to_string()))?;
        Ok(serde_json::from_str(&answer)?)
    }

    /// Makes a resource, and waits until it is there.
    fn make(&self, resource: &str, properties: &Value) -> Result<()> {
        self.arm("PUT", resource, &json!({ "location": "westeurope", "properties": properties }))?;
        let state =
            || self.arm("GET", resource, &Value::Null).unwrap()["properties"]["provisioningState"].take();
        eventually(resource, state, |state| *state == "Succeeded");
        Ok(())
    }

    /// The NIC as ARM has it.
    pub fn nic(&self, vm: &str) -> Result<Value> {
        self.arm("GET", &format!("networkInterfaces/{vm}-nic"), &Value::Null)
    }

    /// The VM's NIC holds just so many addresses beside its own; those it has stay, the last go first.
    pub fn give(&self, vm: &str, addresses: usize) -> Result<()> {
        let mut nic = self.nic(vm)?;
        let held = nic["properties"]["ipConfigurations"].as_array_mut().context("a NIC without any")?;
        let known = held.len();
        held.truncate(1 + addresses);
        held.extend(
            (known..=addresses).map(|number| json!({ "name": format!("extra-{number}"), "properties": {} })),
        );
        self.admin("PATCH", &format!("/nics/{vm}-nic"), &nic)?;
        Ok(())
    }

    /// Asks the simulator's admin; gives the body of the answer.
    pub fn admin(&self, method: &str, path: &str, body: &Value) -> Result<String> {
        let body = body.to_string();
        let mut stream = UnixStream::connect(self.folder.path().join("admin"))?;
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: azure\r\ncontent-type: application/json\r\nconnection: close\r\n\
             content-length: {length}\r\n\r\n{body}"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{method} {path}: {answer}");
        Ok(answer.split_once("\r\n\r\n").context("half an answer")?.1.to_owned())
    }

    /// The value of a series in the agent's metrics, if it is there.
    pub fn metric(&self, vm: &str, series: &str) -> Result<Option<u32>> {
        let metrics = inside(&self.machine(vm), || get((Ipv4Addr::LOCALHOST, 9471), "/metrics", ""))?;
        let value = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        Ok(value.map(str::parse).transpose()?)
    }

    /// A machine's network namespace.
    pub fn machine(&self, machine: &str) -> File {
        File::open(Path::new("/run/netns").join(self.netns(machine))).unwrap()
    }

    /// A new namespace that stands for a container without a runtime, with a server in it; and the server's
    /// number on the VM.
    pub fn bare(&mut self, vm: &str) -> Result<(u32, File)> {
        let mut process = self.on(vm, "unshare");
        process
            .args(["--net", "sh", "-c", "ip link set lo up; echo $$; exec \"$0\" serve --listen :8080"])
            .arg(probe_program()?);
        let pid = self.start(process, vm)?.parse()?;
        let netns = self.namespace_of(vm, pid)?;
        eventually("a container answers", || answer_of(&netns), Result::is_ok);
        Ok((pid, netns))
    }
}

/// An agent at work; ends when dropped.
pub struct Agent {
    /// nsenter, which waits for the agent.
    process: Child,
    pid: u32,
}

impl Agent {
    /// As SIGTERM has it.
    pub fn stop(mut self) {
        self.end("-TERM");
    }

    /// Its number outside its VM.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    fn end(&mut self, signal: &str) {
        if matches!(self.process.try_wait(), Ok(None)) {
            drop(Command::new("kill").args([signal, &self.pid.to_string()]).status());
            drop(self.process.wait());
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.end("-KILL");
    }
}

/// The process that this one has started, as soon as it has.
fn child_of(pid: u32) -> Result<u32> {
    let children = || fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let is_there = |children: &io::Result<String>| children.as_ref().is_ok_and(|all| !all.is_empty());
    eventually("a process has started another", children, is_there);
    Ok(children()?.split_whitespace().next().context("no child")?.parse()?)
}

/// The one address in a result of CNI.
pub fn address_in(result: &str) -> Result<Ipv4Addr> {
    let result: Value = serde_json::from_str(result).with_context(|| result.to_owned())?;
    let address = result["ips"][0]["address"].as_str().and_then(|text| text.strip_suffix("/32"));
    Ok(address.with_context(|| result.to_string())?.parse()?)
}

/// Runs code in a network namespace, on a thread of its own.
pub fn inside<T: Send>(netns: &File, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let entered = scope.spawn(|| {
            setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Whether the server in a network namespace is up.
fn answer_of(netns: &File) -> io::Result<TcpStream> {
    inside(netns, || TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)))
}

/// The body of a good answer.
fn ask(
    (address, port): (Ipv4Addr, u16),
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((address, port)), Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 20"), "{address}{path}: {answer}");
    Ok(answer.split_once("\r\n\r\n").context("half an answer")?.1.to_owned())
}

fn get(server: (Ipv4Addr, u16), path: &str, headers: &str) -> Result<String> {
    ask(server, "GET", path, headers, "")
}

/// The source that `to` sees of a connection from a namespace.
pub fn seen(from: &File, to: Ipv4Addr) -> Result<IpAddr> {
    let body = inside(from, || get((to, PORT), "/whoami", ""))?;
    let start = body.find('{').context("no answer")?;
    let end = body.rfind('}').context("no answer")?;
    let answer: Value = serde_json::from_str(&body[start..=end])?;
    Ok(answer["source"].as_str().context("no source")?.parse()?)
}

/// How a connection to `to` from a namespace ends without an answer: [`ErrorKind::TimedOut`] if it is
/// dropped.
pub fn failing(from: &File, to: Ipv4Addr) -> Result<ErrorKind> {
    failing_at(from, to, PORT)
}

/// The same of another port.
pub fn failing_at(from: &File, to: Ipv4Addr, port: u16) -> Result<ErrorKind> {
    match inside(from, || TcpStream::connect_timeout(&SocketAddr::from((to, port)), Duration::from_secs(2))) {
        Ok(_) => bail!("{to} answers"),
        Err(error) => Ok(error.kind()),
    }
}

/// The VM for which the metadata service takes a client in this namespace.
pub fn metadata_name(from: &File) -> Result<String> {
    let path = "/metadata/instance/compute/name?api-version=2021-02-01&format=text";
    inside(from, || get((METADATA, 80), path, "Metadata: true\r\n"))
}

/// A question for the address of the root, which has none.
const QUESTION: &[u8] = b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x01";

/// Whether Azure's resolver answers here.
pub fn is_answered_by_the_resolver(from: &File) -> bool {
    inside(from, || {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
        socket.connect((WIRE_SERVER, 53)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        socket.send(QUESTION).unwrap();
        socket.recv(&mut [0; 512]).is_ok()
    })
}
