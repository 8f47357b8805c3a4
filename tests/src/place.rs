//! Places to test from: pods, nodes and machines, each a network namespace; and a client as the far end sees
//! it.

use crate::azure::expanded;
use crate::cluster::{Cluster, Host};
use crate::project::tool;
use crate::wait::{eventually, patience};
use crate::workload::{PORT, ProbePod};
use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// How long a datapath takes to follow a change, at most.
const SOON: Duration = Duration::from_secs(20);
/// A connection of which nothing comes back for so long is dead. One that only stood still has had what was
/// lost sent again long before.
const DEAD: Duration = Duration::from_secs(10);

pub const PREMISES: &str = "192.168.0.10";
pub const STORAGE: &str = "203.0.113.20";

/// A network namespace to run things in.
#[derive(Clone, Debug)]
pub struct Place {
    netns: PathBuf,
    pub address: String,
}

/// How a connection ended. That it couldn't be made at all (no curl, no such namespace, no answer of a probe)
/// is an error, not an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Answered(Seen),
    /// The far end refused: a reset, or an ICMP message that nothing is there.
    Refused,
    /// No answer came back.
    Dropped,
}

/// The far end's view of a connection.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Seen {
    pub source: String,
    /// The destination.
    pub local: String,
}

impl Seen {
    pub fn new(source: impl ToString, local: impl ToString) -> Self {
        Self { source: source.to_string(), local: local.to_string() }
    }
}

impl Place {
    pub fn host(host: &Host) -> Self {
        let netns = PathBuf::from("/run/netns").join(&host.netns);
        Self { netns, address: host.address.clone() }
    }

    /// # Errors
    /// When no process has the pod's address.
    pub fn pod(pod: &ProbePod) -> Result<Self> {
        let address = pod.address.to_string();
        let processes = std::fs::read_dir("/proc")?.flatten().map(|entry| entry.path());
        let is_in_pod = |process: &PathBuf| {
            let program = std::fs::read_link(process.join("exe")).unwrap_or_default();
            let table = std::fs::read_to_string(process.join("net/fib_trie")).unwrap_or_default();
            // The node's own network has a route to the address; only the pod's has it as its own.
            let lines: Vec<&str> = table.lines().map(str::trim).collect();
            let own = format!("|-- {address}");
            program.file_name().is_some_and(|name| name == "probe")
                && is_of_this_run(process)
                && lines.windows(2).any(|pair| pair[0] == own && pair[1] == "/32 host LOCAL")
        };
        let process = { processes }.find(is_in_pod);
        let process = process.with_context(|| format!("no process of {} with {address}", pod.name))?;
        Ok(Self { netns: process.join("ns/net"), address })
    }

    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns.display())).arg(program);
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// A command's standard output.
    pub async fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(program);
        command.args(arguments);
        printed(command).await
    }

    /// The view of the probe at `address` of a connection from here.
    pub async fn seen_by(&self, address: impl std::fmt::Display) -> Result<Seen> {
        self.seen_at(address, PORT).await
    }

    pub async fn seen_at(&self, address: impl std::fmt::Display, port: u16) -> Result<Seen> {
        match self.call(&address, port).await? {
            Call::Answered(seen) => Ok(seen),
            other => bail!("{} calls {address}:{port}: {other:?}", self.address),
        }
    }

    /// Connects to a probe.
    ///
    /// # Errors
    /// When the connection couldn't be made, or something else than a probe answered.
    pub async fn call(&self, address: impl std::fmt::Display, port: u16) -> Result<Call> {
        let url = format!("http://{address}:{port}/whoami");
        let output = self.command("curl").args(["-sS", "--max-time", "3", &url]).output().await?;
        // curl(1), EXIT CODES: it couldn't connect, the time was up, the connection was reset.
        match output.status.code() {
            Some(0) => {
                let answer = String::from_utf8(output.stdout)?;
                let seen = serde_json::from_str(&answer);
                seen.map(Call::Answered).with_context(|| format!("the probe at {url} answered {answer:?}"))
            }
            Some(7 | 56) => Ok(Call::Refused),
            Some(28) => Ok(Call::Dropped),
            _ => bail!("curl {url}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr)),
        }
    }

    /// # Errors
    /// When a connection isn't dropped: it is answered, or refused, or can't be made.
    pub async fn is_dropped(&self, address: impl std::fmt::Display, port: u16) -> Result<()> {
        let call = self.call(&address, port).await?;
        ensure!(call == Call::Dropped, "{} calls {address}:{port}: {call:?}", self.address);
        Ok(())
    }

    /// Waits until the probe at `address` sees a client from here as `source`, at its own address.
    pub async fn is_seen_as(
        &self,
        source: &str,
        address: impl std::fmt::Display,
        within: Duration,
    ) -> Result<()> {
        let wanted = Seen::new(source, &address);
        eventually(&format!("{} seen as {source} by {address}", self.address), within, || async {
            let seen = self.seen_by(&address).await?;
            ensure!(seen == wanted, "it sees {seen:?}");
            Ok(Some(()))
        })
        .await
    }

    /// Runs code in here, on a thread of its own.
    ///
    /// # Errors
    /// When the namespace can't be entered.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let netns = std::fs::File::open(&self.netns)?;
        let enter = || -> Result<T> {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        };
        std::thread::scope(|scope| {
            scope.spawn(enter).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// This program again, as a probe inside: a test that runs this answers the argument `probe`.
    pub fn probe(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.command(std::env::current_exe()?);
        command.arg("probe").args(arguments);
        Ok(command)
    }

    /// The resolver's answer to a name.
    ///
    /// # Errors
    /// When the probe fails: it gets no answer, or this program doesn't answer the argument `probe`.
    pub async fn resolve(&self, name: &str) -> Result<String> {
        Ok(printed(self.probe(&["resolve", name])?).await?.trim().to_owned())
    }

    /// Opens a connection to an echo at `address` and keeps it busy.
    pub async fn flow_to(&self, address: &str) -> Result<Flow> {
        let mut process = self.probe(&["flow", address])?.stdout(Stdio::piped()).spawn()?;
        let output = process.stdout.take().context("no output")?;
        let mut lines = BufReader::new(output).lines();
        let source = tokio::time::timeout(Duration::from_secs(10), lines.next_line()).await;
        let source = source.with_context(|| format!("no connection to {address}"))??;
        Ok(Flow {
            source: source.with_context(|| format!("no connection to {address}"))?,
            lines,
            _process: process,
        })
    }
}

/// Whether a process is of this run and not of one beside it, whose pods have the same addresses: `cluster
/// apart` gives each run cgroups of its own and has it see them as the root.
fn is_of_this_run(process: &Path) -> bool {
    let cgroups = std::fs::read_to_string(process.join("cgroup")).unwrap_or_default();
    let paths = cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    { paths }.all(|path| !path.starts_with("/..") && !path.contains("/vnp-apart-"))
}

/// A command's standard output. The error is that it failed, with its complaint.
async fn printed(mut command: Command) -> Result<String> {
    let output = command.output().await?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{:?}: {}: {complaint}", command.as_std(), output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// A connection that sends a line every 50 ms and gets it back.
pub struct Flow {
    /// Our address as the far end saw it when the connection began.
    pub source: String,
    lines: Lines<BufReader<ChildStdout>>,
    _process: Child,
}

impl Flow {
    /// Reads the lines that have come back so far, and then waits for more of them.
    ///
    /// # Errors
    /// When the connection broke or hangs.
    pub async fn goes_on(&mut self) -> Result<()> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis();
        loop {
            let line = tokio::time::timeout(patience(DEAD), self.lines.next_line()).await;
            let line = line.context("the flow hangs")??.context("the flow broke")?;
            // Each line carries the time at which it was sent.
            if line.trim().parse::<u128>()? > now {
                return Ok(());
            }
        }
    }
}

/// A namespace of the test's own with a probe serving in it. Both go when it is dropped.
pub struct Machine {
    pub place: Place,
    name: String,
    _servers: Vec<Child>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(std::process::Command::new("ip").args(["netns", "delete", &self.name]).output());
    }
}

impl Machine {
    /// A namespace that isn't plugged into a network yet.
    pub fn new(name: &str, address: &str) -> Result<Self> {
        let name = format!("place-{name}");
        // The remains of a run that was killed.
        drop(std::process::Command::new("ip").args(["netns", "delete", &name]).output());
        let made = std::process::Command::new("ip").args(["netns", "add", &name]).output()?;
        ensure!(made.status.success(), "ip netns add {name}: {}", String::from_utf8_lossy(&made.stderr));
        let place = Place { netns: PathBuf::from("/run/netns").join(&name), address: address.to_owned() };
        let listen = format!(":{PORT}");
        let serve = place.command(tool("probe")).args(["serve", "--listen", &listen]).spawn()?;
        let echo = place.probe(&["echo"])?.spawn()?;
        Ok(Self { place, name, _servers: vec![serve, echo] })
    }

    /// A plain VM; `more` are fields of the simulator's `POST /vms`.
    pub async fn vm(cluster: &Cluster, name: &str, more: Value) -> Result<Self> {
        let mut machine = Self::new(name, "")?;
        let mut new = more;
        new["name"] = json!(name);
        new["netns"] = json!(machine.name);
        let made = cluster.azure.admin("POST", "/vms", new).await?;
        machine.place.address = made["address"].as_str().context("a VM without an address")?.to_owned();
        Ok(machine)
    }

    /// A VM in a VNet of its own, both of this name.
    pub async fn far(cluster: &Cluster, name: &str, space: &str) -> Result<Self> {
        let vnet = json!({ "properties": { "addressSpace": { "addressPrefixes": [space] },
            "subnets": [{ "name": name, "properties": { "addressPrefix": space } }] } });
        arm(cluster, "PUT", &format!("virtualNetworks/{name}"), vnet).await?;
        Self::vm(cluster, name, json!({ "vnet": name, "subnet": name })).await
    }

    /// The host [`PREMISES`] of a network on premises, 192.168.0.0/16, which a gateway connects with the
    /// nodes' VNet.
    pub async fn premises(cluster: &Cluster) -> Result<Self> {
        let premises = Self::new("premises", PREMISES)?;
        let network = json!({ "netns": premises.name, "address": PREMISES, "vnet": "vnet",
            "prefixes": ["192.168.0.0/16"] });
        cluster.azure.admin("POST", "/premises", network).await?;
        Ok(premises)
    }

    /// The host [`STORAGE`] of the storage service.
    pub async fn storage(cluster: &Cluster) -> Result<Self> {
        let storage = Self::new("storage", STORAGE)?;
        let host = json!({ "netns": storage.name, "address": STORAGE, "service": "Microsoft.Storage" });
        cluster.azure.admin("POST", "/internet", host).await?;
        Ok(storage)
    }
}

/// Peers the nodes' VNet with another, both ways.
pub async fn peer(cluster: &Cluster, with: &str) -> Result<()> {
    for (from, to) in [("vnet", with), (with, "vnet")] {
        let remote = json!({ "id": id(&format!("virtualNetworks/{to}")) });
        let resource = format!("virtualNetworks/{from}/virtualNetworkPeerings/{to}");
        arm(cluster, "PUT", &resource, json!({ "properties": { "remoteVirtualNetwork": remote } })).await?;
    }
    Ok(())
}

/// The id of a resource of `Microsoft.Network`, such as `routeTables/steer`.
pub fn id(resource: &str) -> String {
    format!(
        "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/vnetpool/providers/Microsoft.Network/{resource}"
    )
}

impl Cluster {
    /// Another client writes a machine's NIC with its primary address alone, as a template does that lists no
    /// other. Returns the addresses that are gone with that.
    ///
    /// # Errors
    /// When the NIC can't be read or written.
    pub async fn wipe(&self, host: &Host) -> Result<Vec<Ipv4Addr>> {
        let name = host.nic_id.rsplit('/').next().context("a NIC without a name")?;
        let nic = arm(self, "GET", &format!("networkInterfaces/{name}"), json!({})).await?;
        let primary = &nic["properties"]["ipConfigurations"][0];
        ensure!(primary.is_object(), "no primary address in {nic}");
        let document = json!({ "properties": { "ipConfigurations": [primary] } });
        let answer = self.azure.admin("PATCH", &format!("/nics/{name}"), document).await?;
        let held = answer["before"]["properties"]["ipConfigurations"].as_array().context("no NIC")?;
        let secondary = held.iter().filter(|one| one["name"] != primary["name"]);
        let addresses = secondary.filter_map(|one| one["properties"]["privateIPAddress"].as_str());
        Ok(addresses.flat_map(expanded).collect())
    }
}

/// A request to ARM as its administrator, and for a PUT the end of the write.
pub async fn arm(cluster: &Cluster, method: &str, resource: &str, mut body: Value) -> Result<Value> {
    let vm = Place::host(cluster.state.vms.first().context("no plain VM")?);
    let url = format!("{}{}?api-version=2024-03-01", cluster.state.arm_endpoint, id(resource));
    let call = async |method: &str, body: &str| -> Result<Value> {
        let token = "authorization: Bearer test";
        let json = "content-type: application/json";
        let arguments = ["-sS", "--max-time", "10", "-X", method, "-H", token, "-H", json, "-d", body, &url];
        let answer = vm.run("curl", &arguments).await?;
        let answer = if answer.is_empty() { Value::Null } else { serde_json::from_str(&answer)? };
        ensure!(answer["error"].is_null(), "{method} {resource}: {answer}");
        Ok(answer)
    };
    if method == "PUT" {
        body["location"] = json!("westeurope");
    }
    let answer = call(method, &body.to_string()).await?;
    if method != "PUT" {
        return Ok(answer);
    }
    eventually(&format!("the write of {resource}"), Duration::from_secs(60), || async {
        let now = call("GET", "").await?;
        Ok((now["properties"]["provisioningState"] == "Succeeded").then_some(now))
    })
    .await
}

/// Gives a subnet another set of properties beside its prefix.
pub async fn put_subnet(cluster: &Cluster, subnet: &str, mut properties: Value) -> Result<()> {
    let resource = format!("virtualNetworks/{subnet}");
    let known = arm(cluster, "GET", &resource, json!({})).await?;
    properties["addressPrefix"] = known["properties"]["addressPrefix"].clone();
    arm(cluster, "PUT", &resource, json!({ "properties": properties })).await.map(drop)
}

/// Waits until the probe at `address` has this view.
pub async fn until_seen(from: &Place, address: &str, port: u16, wanted: &Seen) -> Result<()> {
    eventually(&format!("{wanted:?} when {} calls {address}:{port}", from.address), SOON, || async {
        let seen = from.seen_at(address, port).await?;
        ensure!(seen == *wanted, "it sees {seen:?}");
        Ok(Some(()))
    })
    .await
}

/// Waits until no answer at all comes from `address`, not even a refusal.
pub async fn until_dropped(from: &Place, address: impl std::fmt::Display, port: u16) -> Result<()> {
    eventually(&format!("no answer when {} calls {address}:{port}", from.address), SOON, || async {
        from.is_dropped(&address, port).await.map(Some)
    })
    .await
}
