//! A fabric with two machines and an internet host, and a test's actions on them. All of it goes when it is
//! dropped.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);
const MACHINES: [&str; 6] = ["fabric", "a", "b", "c", "internet", "premises"];
const GROUP: &str = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/vnetpool";

pub(crate) struct Stage {
    /// The prefix of its namespaces' names.
    name: String,
    simulator: Option<Child>,
    folder: tempfile::TempDir,
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(mut simulator) = self.simulator.take() {
            drop(simulator.kill());
            drop(simulator.wait());
        }
        for machine in MACHINES {
            drop(Command::new("ip").args(["netns", "delete", &self.netns(machine)]).output());
        }
    }
}

/// The packets that a machine receives.
pub(crate) struct Ear {
    process: Child,
    lines: Receiver<String>,
}

impl Ear {
    /// Checks the next datagram.
    pub(crate) fn next_is(&mut self, expected: &str) {
        let next = self.lines.recv_timeout(PATIENCE);
        assert_eq!(next.as_deref(), Ok(expected));
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn run(command: &mut Command) -> anyhow::Result<Output> {
    let output = command.output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{command:?}: {}", complaint.trim());
    Ok(output)
}

impl Stage {
    /// Makes the namespaces, starts the simulator in one, plugs the machines in.
    pub(crate) fn set() -> anyhow::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("simt-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut stage = Self { name, simulator: None, folder: tempfile::tempdir()? };
        for machine in MACHINES {
            run(Command::new("ip").args(["netns", "add", &stage.netns(machine)]))?;
        }
        let mut simulator = stage
            .within("fabric", env!("CARGO_BIN_EXE_azure-sim"))
            .args(["--fabric", "--admin-socket"])
            .arg(stage.folder.path().join("admin"))
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(stage.folder.path().join("log"))?)
            .spawn()?;
        let ready = simulator.stdout.take();
        stage.simulator = Some(simulator);
        let mut line = String::new();
        BufReader::new(ready.ok_or_else(|| anyhow::anyhow!("no output"))?).read_line(&mut line)?;
        let log = std::fs::read_to_string(stage.folder.path().join("log"))?;
        anyhow::ensure!(
            line == "{\"arm\":\"http://198.51.100.10\"}\n",
            "the simulator printed {line:?} and {log}"
        );
        for vm in ["a", "b"] {
            stage.admin("POST", "/vms", &json!({ "name": vm, "netns": stage.netns(vm) }));
        }
        let host = json!({ "name": "internet", "netns": stage.netns("internet"), "address": "203.0.113.10" });
        stage.admin("POST", "/internet", &host);
        Ok(stage)
    }

    /// Another machine; `more` are fields of `POST /vms`.
    pub(crate) fn add_vm(&self, name: &str, more: &Value) {
        self.quicken();
        let mut new = more.clone();
        new["name"] = json!(name);
        new["netns"] = json!(self.netns(name));
        self.admin("POST", "/vms", &new);
    }

    /// From now on writes take no time, and any number of requests is answered.
    pub(crate) fn quicken(&self) {
        self.admin(
            "PATCH",
            "/settings",
            &json!({ "write_seconds": 0, "limits": false, "probe_seconds": 0.1 }),
        );
    }

    /// The id of a resource of `Microsoft.Network`, such as `routeTables/steer`.
    pub(crate) fn id(resource: &str) -> String {
        format!("{GROUP}/providers/Microsoft.Network/{resource}")
    }

    /// PUTs a resource of `Microsoft.Network` through ARM and waits until it has succeeded.
    pub(crate) fn put(&self, resource: &str, body: &Value) -> Value {
        self.quicken();
        let mut body = body.clone();
        body["location"] = json!("westeurope");
        let answer = self.request("b", "PUT", &Self::id(resource), Some(&body));
        assert!(answer["error"].is_null(), "{resource}: {answer}");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.request("b", "GET", &Self::id(resource), None);
            if now["properties"]["provisioningState"] == "Succeeded" {
                return now;
            }
            assert!(Instant::now() < deadline, "the write of {resource} doesn't end: {now}");
        }
    }

    pub(crate) fn get(&self, resource: &str) -> Value {
        self.request("b", "GET", &Self::id(resource), None)
    }

    /// Has ARM delete a resource of `Microsoft.Network`.
    pub(crate) fn delete(&self, resource: &str) {
        self.request("b", "DELETE", &Self::id(resource), None);
    }

    /// Gives a subnet of the VNet `vnet` another set of properties beside its prefix.
    pub(crate) fn put_subnet(&self, name: &str, properties: &Value) {
        let resource = format!("virtualNetworks/vnet/subnets/{name}");
        let known = self.request("b", "GET", &Self::id(&resource), None);
        let mut body = json!({ "properties": properties });
        body["properties"]["addressPrefix"] = known["properties"]["addressPrefix"].clone();
        self.put(&resource, &body);
    }

    /// Sets a kernel variable of a machine, such as `net.ipv4.ip_forward=1`.
    pub(crate) fn sysctl(&self, machine: &str, setting: &str) {
        run(self.within(machine, "sysctl").args(["-q", "-w", setting])).unwrap();
    }

    pub(crate) fn netns(&self, machine: &str) -> String {
        format!("{}-{machine}", self.name)
    }

    /// A program in a machine's namespace. (`ip netns exec` would mount another /sys, too.)
    fn within(&self, machine: &str, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/var/run/netns/{}", self.netns(machine))).arg(program);
        command
    }

    fn probe(&self, machine: &str, arguments: &[&str]) -> Command {
        let own = std::env::current_exe().unwrap();
        let mut command = self.within(machine, own.to_str().unwrap());
        command.arg("probe").args(arguments).stdin(Stdio::null());
        command
    }

    pub(crate) fn ip(&self, machine: &str, command: &str) {
        run(Command::new("ip").args(["-netns", &self.netns(machine)]).args(command.split(' '))).unwrap();
    }

    /// Deletes a namespace and makes it anew, as a reboot does.
    pub(crate) fn remake(&self, machine: &str) {
        run(Command::new("ip").args(["netns", "delete", &self.netns(machine)])).unwrap();
        run(Command::new("ip").args(["netns", "add", &self.netns(machine)])).unwrap();
    }

    pub(crate) fn has_link(&self, machine: &str) -> bool {
        let show = ["-netns", &self.netns(machine), "link", "show", "eth0"];
        Command::new("ip").args(show).output().unwrap().status.success()
    }

    /// The MAC address a machine knows for an address, as soon as it knows one.
    pub(crate) fn neighbour(&self, machine: &str, address: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let show = ["-netns", &self.netns(machine), "neighbour", "show", address];
            let output = run(Command::new("ip").args(show)).unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            if let Some((_, rest)) = text.split_once("lladdr ") {
                return rest.split(' ').next().unwrap().to_owned();
            }
            assert!(Instant::now() < deadline, "nobody answers for {address}: {text}");
        }
    }

    pub(crate) fn listen(&self, machine: &str) -> Ear {
        self.start(machine, &["listen"])
    }

    fn start(&self, machine: &str, arguments: &[&str]) -> Ear {
        let mut process = self.probe(machine, arguments).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                drop(sender.send(line));
            }
        });
        let mut ear = Ear { process, lines };
        ear.next_is("listening");
        ear
    }

    /// A server that answers each client with its address and the address it reached.
    pub(crate) fn serve(&self, machine: &str, port: u16) -> Ear {
        self.start(machine, &["serve", &port.to_string()])
    }

    /// Such a server's answer to a client, or nothing when it isn't reached.
    pub(crate) fn fetch(&self, machine: &str, from: &str, to: &str, port: u16) -> String {
        let output = self.probe(machine, &["fetch", from, to, &port.to_string()]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// Asks until the answer is the expected one.
    pub(crate) fn fetch_until(&self, machine: &str, from: &str, to: &str, port: u16, expected: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.fetch(machine, from, to, port);
            if answer == expected {
                return;
            }
            assert!(Instant::now() < deadline, "{answer:?} instead of {expected:?}");
        }
    }

    pub(crate) fn send(&self, machine: &str, from: &str, to: &str, text: &str) {
        run(&mut self.probe(machine, &["send", from, to, text])).unwrap();
    }

    pub(crate) fn reaches(&self, machine: &str, from: &str, to: &str) -> bool {
        self.probe(machine, &["reach", from, to]).status().unwrap().success()
    }

    pub(crate) fn get_nic(&self, machine: &str) -> Value {
        self.arm(machine, "GET", None)
    }

    pub(crate) fn put_nic(&self, machine: &str, nic: &Value) {
        let answer = self.arm(machine, "PUT", Some(nic));
        assert_eq!(answer["properties"]["provisioningState"], "Updating", "{answer}");
    }

    /// A write to a machine's NIC that is over when this returns.
    pub(crate) fn put_nic_now(&self, machine: &str, nic: &Value) {
        self.quicken();
        let answer = self.arm(machine, "PUT", Some(nic));
        assert!(answer["error"].is_null(), "{answer}");
        self.wait_for_write(machine);
    }

    /// The resolver's answer to a name, over UDP and over TCP, which must be the same.
    pub(crate) fn resolve(&self, machine: &str, from: &str, name: &str) -> String {
        let output = self.probe(machine, &["resolve", from, name]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn wait_for_write(&self, machine: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.get_nic(machine)["properties"]["provisioningState"] != "Succeeded" {
            assert!(Instant::now() < deadline, "the write doesn't end");
        }
    }

    fn arm(&self, machine: &str, method: &str, body: Option<&Value>) -> Value {
        self.request(machine, method, &Self::id(&format!("networkInterfaces/{machine}-nic")), body)
    }

    fn request(&self, machine: &str, method: &str, id: &str, body: Option<&Value>) -> Value {
        let sign = if id.contains('?') { '&' } else { '?' };
        let path = format!("{id}{sign}api-version=2024-03-01");
        let mut probe = self.probe(machine, &["http", method, &path]);
        let mut process = probe.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let body = body.map(Value::to_string).unwrap_or_default();
        process.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
        let output = process.wait_with_output().unwrap();
        if output.stdout.is_empty() { Value::Null } else { serde_json::from_slice(&output.stdout).unwrap() }
    }

    /// A request to the admin API, which has to succeed.
    pub(crate) fn admin(&self, method: &str, path: &str, body: &Value) {
        let mut stream = UnixStream::connect(self.folder.path().join("admin")).unwrap();
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: azure-sim\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{method} {path}: {answer}");
    }
}
