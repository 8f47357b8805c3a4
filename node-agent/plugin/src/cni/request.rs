//! A runtime's request: environment and configuration, checked in every field.

use std::{
    collections::HashSet,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use ipnet::Ipv4Net;
use serde::Deserialize;

use super::{Error, IPAM, PrevResult, Version, code};
use crate::{
    ledger::{Pod, Sandbox},
    wiring::{Sizes, Wiring},
};

/// The ledger's folder unless the configuration names another.
pub const STATE_DIR: &str = "/run/vnetpool";

/// Runtimes use 64 characters. The id is stored in the host link's alias and must fit there.
const CONTAINER_ID_SIZE: usize = 128;
/// IFNAMSIZ without the NUL.
const IFNAME_SIZE: usize = 15;
/// From the smallest packet that every IPv4 link must carry to the largest IPv4 packet.
const MTU: std::ops::RangeInclusive<u32> = 68..=65_535;
/// From the smallest cut that is worth it to the largest that every link takes.
pub const GSO_MAX_SIZE: std::ops::RangeInclusive<u32> = 4_096..=65_536;
/// The bridge plugin's own default.
const BRIDGE: &str = "cni0";
/// Azure has no smaller subnets.
const LONGEST_PREFIX: u8 = 29;

/// The name under which this program was invoked, which is its file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `vnetpool`: gives a sandbox an address and wires it.
    Network,
    /// `vnetpool-ipam`: gives another plugin an address for a sandbox that it wires itself.
    Ipam,
}

impl Program {
    /// The program of the file at this path.
    pub fn of(path: &Path) -> Program {
        if path.file_name().is_some_and(|name| name == IPAM) { Program::Ipam } else { Program::Network }
    }
}

/// The runtime's request, valid in every field.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    pub version: Version,
    /// `stateDir`, which the agent writes where it keeps the ledger elsewhere; else [`STATE_DIR`].
    pub state_dir: PathBuf,
    /// The name of the network; empty for VERSION.
    pub network: String,
    pub task: Task,
    pub verb: Verb,
}

/// The duty for the sandboxes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    Wire(Wire),
    Lease(Lease),
}

/// To give a sandbox an address and wire it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wire {
    pub sizes: Sizes,
    pub wiring: Wiring,
}

/// To give a sandbox an address that another plugin wires: delegated IPAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The subnet of the addresses, for plugins that make pods its neighbours.
    pub subnet: Option<Ipv4Net>,
    /// The bridge that the plugin puts the pods behind.
    pub bridge: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Verb {
    /// `before` is the result of the plugins before us in the chain.
    Add {
        sandbox: Sandbox,
        pod: Pod,
        netns: PathBuf,
        before: PrevResult,
    },
    /// `had` are the addresses that the runtime remembers from ADD, as far as it does.
    Del {
        sandbox: Sandbox,
        pod: Pod,
        netns: Option<PathBuf>,
        had: Vec<Ipv4Addr>,
    },
    /// `expected` are the addresses that the runtime remembers from ADD, those of other plugins among them.
    Check {
        sandbox: Sandbox,
        pod: Pod,
        netns: PathBuf,
        expected: Vec<Ipv4Addr>,
    },
    Status,
    Gc {
        /// `None` if the runtime didn't name the valid ones, as cnitool doesn't: then nothing is known to be
        /// garbage.
        valid: Option<HashSet<Sandbox>>,
    },
    Version,
}

impl Verb {
    pub fn name(&self) -> &'static str {
        match self {
            Verb::Add { .. } => "ADD",
            Verb::Del { .. } => "DEL",
            Verb::Check { .. } => "CHECK",
            Verb::Status => "STATUS",
            Verb::Gc { .. } => "GC",
            Verb::Version => "VERSION",
        }
    }
}

/// The configuration on standard input, as far as it concerns us.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    cni_version: Option<String>,
    name: Option<String>,
    #[serde(rename = "type")]
    type_: Option<String>,
    mtu: Option<u32>,
    gso_max_size: Option<u32>,
    /// The agent's word. A DEL may bring that of a later release, which wired the pod.
    wiring: Option<String>,
    state_dir: Option<PathBuf>,
    bridge: Option<String>,
    #[serde(default)]
    is_gateway: bool,
    #[serde(default)]
    is_default_gateway: bool,
    ipam: Option<IpamConfig>,
    prev_result: Option<PrevResult>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<ValidAttachment>>,
    /// The same under the key that the specification once had for it. Some runtimes send only this.
    #[serde(rename = "cni.dev/attachments")]
    attachments: Option<Vec<ValidAttachment>>,
}

/// The configuration's part for IPAM.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct IpamConfig {
    state_dir: Option<PathBuf>,
    subnet: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ValidAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

impl Request {
    /// The request to `program` in the environment (`env` looks a variable up) and on standard input.
    pub fn parse(
        program: Program,
        env: impl Fn(&str) -> Option<String>,
        stdin: &[u8],
    ) -> Result<Request, Error> {
        let command = env("CNI_COMMAND").unwrap_or_default();
        if command == "VERSION" && stdin.trim_ascii().is_empty() {
            let task = Task::Wire(Wire::default());
            let (version, state_dir, network) = (Version::default(), STATE_DIR.into(), String::new());
            return Ok(Request { version, state_dir, network, task, verb: Verb::Version });
        }
        let config: Config = serde_json::from_slice(stdin).map_err(|error| {
            let msg = format!("the configuration on standard input can't be decoded: {error}");
            Error::new(code::UNDECODABLE, msg, "correct the file in the runtime's CNI configuration folder")
        })?;
        let asked = config.cni_version.as_deref().unwrap_or("0.1.0"); // the specification's default
        let version = Version::parse(asked);
        let (task, verb) = match (command.as_str(), version) {
            ("VERSION", _) => Ok((Task::Wire(Wire::default()), Verb::Version)),
            (_, None) => Err(unsupported(asked)),
            (command, Some(version)) => fits(program, command, &config)
                .and_then(|()| Ok((task(program, &config), parse_verb(command, version, &env, &config)?)))
                .map_err(|error| Error { version, ..error }),
        }?;
        let ipam_dir = config.ipam.and_then(|ipam| ipam.state_dir);
        let state_dir = match program {
            Program::Network => config.state_dir,
            Program::Ipam => ipam_dir,
        };
        let state_dir = state_dir.unwrap_or_else(|| STATE_DIR.into());
        let (version, network) = (version.unwrap_or_default(), config.name.unwrap_or_default());
        Ok(Request { version, state_dir, network, task, verb })
    }
}

/// The duty that this configuration asks for, as far as it can be read.
fn task(program: Program, config: &Config) -> Task {
    if program == Program::Network {
        let sizes = Sizes { mtu: config.mtu, gso_max: config.gso_max_size };
        // No verb needs the wiring but those that an unknown one fails.
        return Task::Wire(Wire { sizes, wiring: config.wiring().unwrap_or_default() });
    }
    let bridge = config.is_of("bridge").then(|| config.bridge.clone().unwrap_or_else(|| BRIDGE.to_owned()));
    Task::Lease(Lease { subnet: config.ipam_subnet().and_then(subnet), bridge })
}

/// The Azure subnet that a text names.
fn subnet(text: &str) -> Option<Ipv4Net> {
    text.parse::<Ipv4Net>().ok().filter(|subnet| subnet.prefix_len() <= LONGEST_PREFIX)
}

/// Whether sandboxes can be served by this configuration. It doesn't matter to verbs that undo, or compare,
/// the work of an ADD, perhaps by an earlier configuration.
fn fits(program: Program, command: &str, config: &Config) -> Result<(), Error> {
    if matches!(command, "DEL" | "CHECK" | "GC") {
        return Ok(());
    }
    if program == Program::Network {
        let remedy = "leave \"mtu\" out for the kernel's default, or give the node's own";
        if let Some(mtu) = config.mtu.filter(|mtu| !MTU.contains(mtu)) {
            return Err(invalid_config(format!("mtu {mtu} is not within {MTU:?}"), remedy));
        }
        if let Some(word) = config.wiring.as_ref().filter(|_| config.wiring().is_none()) {
            return Err(invalid_config(
                format!(
                    "wiring {word:?} is neither Routed nor Bridge, which are all that this release knows"
                ),
                "have this release's agent write the configuration anew, or install the later release again",
            ));
        }
        let remedy = "leave \"gsoMaxSize\" out for the kernel's default, or give that of the node's NIC";
        return match config.gso_max_size.filter(|size| !GSO_MAX_SIZE.contains(size)) {
            Some(size) => {
                let msg = format!("gsoMaxSize {size} is not within {GSO_MAX_SIZE:?}");
                Err(invalid_config(msg, remedy))
            }
            None => Ok(()),
        };
    }
    if let Some(text) = config.ipam_subnet().filter(|text| subnet(text).is_none()) {
        let msg = format!("ipam.subnet {text:?} is not an IPv4 range of /{LONGEST_PREFIX} or larger");
        return Err(invalid_config(
            msg,
            "give the range of the node's Azure subnet, such as \"10.240.0.0/20\"",
        ));
    }
    if config.is_of("bridge") && (config.is_gateway || config.is_default_gateway) {
        return Err(invalid_config(
            "isGateway would give the bridge an address of the Azure subnet, and with it the node's route \
             to the subnet",
            "take isGateway and isDefaultGateway out: the node answers its pods by proxy ARP",
        ));
    }
    let makes_neighbours = config.is_of("bridge") || config.is_of("ptp");
    if makes_neighbours && config.ipam_subnet().is_none() {
        return Err(invalid_config(
            "ipam.subnet is missing: the plugins bridge and ptp need a gateway, and so the subnet it is of",
            "give the range of the node's Azure subnet, such as \"10.240.0.0/20\"",
        ));
    }
    Ok(())
}

impl Config {
    fn is_of(&self, plugin: &str) -> bool {
        self.type_.as_deref() == Some(plugin)
    }

    /// `None`: this release doesn't know the word.
    fn wiring(&self) -> Option<Wiring> {
        match self.wiring.as_deref() {
            None | Some("Routed") => Some(Wiring::Routed),
            Some("Bridge") => Some(Wiring::Bridge),
            Some(_) => None,
        }
    }

    fn ipam_subnet(&self) -> Option<&str> {
        self.ipam.as_ref()?.subnet.as_deref()
    }
}

fn parse_verb(
    command: &str,
    version: Version,
    env: &impl Fn(&str) -> Option<String>,
    config: &Config,
) -> Result<Verb, Error> {
    if config.name.as_deref().unwrap_or_default().is_empty() {
        return Err(invalid_config(
            "the key \"name\" is missing",
            "give the network a name in the CNI configuration",
        ));
    }
    let introduced = match command {
        "CHECK" => Version::V0_4_0,
        "STATUS" | "GC" => Version::V1_1_0,
        _ => Version::V0_3_1,
    };
    if version < introduced {
        let (has, needs) = (version.as_str(), introduced.as_str());
        let text = format!("{command} came with CNI {needs}, but the configuration is of cniVersion {has}");
        let remedy = format!("give the configuration cniVersion {needs}, or name it in cniVersions");
        return Err(Error::new(code::INCOMPATIBLE_VERSION, text, remedy));
    }
    let netns = || -> Result<PathBuf, Error> { Ok(required(env, "CNI_NETNS")?.into()) };
    match command {
        "ADD" => {
            let (sandbox, before) = (sandbox(env)?, config.prev_result.clone().unwrap_or_default());
            if before.has_interface(&sandbox.ifname) {
                let msg =
                    format!("prevResult: an earlier plugin of the chain has made {} already", sandbox.ifname);
                let remedy = "make vnetpool the plugin of the chain that makes the interface, or give that plugin \"ipam\": {\"type\": \"vnetpool-ipam\"}";
                return Err(invalid_config(msg, remedy));
            }
            Ok(Verb::Add { sandbox, pod: pod(env)?, netns: netns()?, before })
        }
        "DEL" => {
            let netns = env("CNI_NETNS").filter(|path| !path.is_empty()).map(PathBuf::from);
            let had = config.prev_result.as_ref().map(PrevResult::addresses).unwrap_or_default();
            let had = had.iter().map(Ipv4Net::addr).collect();
            Ok(Verb::Del { sandbox: sandbox(env)?, pod: pod(env)?, netns, had })
        }
        "CHECK" => {
            let expected = expected(config)?;
            Ok(Verb::Check { sandbox: sandbox(env)?, pod: pod(env)?, netns: netns()?, expected })
        }
        "STATUS" => Ok(Verb::Status),
        "GC" => {
            let valid = config.valid_attachments.as_ref().or(config.attachments.as_ref());
            let sandbox = |ValidAttachment { container_id, ifname }: &ValidAttachment| Sandbox {
                container_id: container_id.clone(),
                ifname: ifname.clone(),
            };
            Ok(Verb::Gc { valid: valid.map(|valid| valid.iter().map(sandbox).collect()) })
        }
        "" => Err(invalid_env("CNI_COMMAND is not set")),
        other => {
            Err(invalid_env(format!("CNI_COMMAND {other:?} is none of ADD, DEL, CHECK, STATUS, GC, VERSION")))
        }
    }
}

fn required(env: &impl Fn(&str) -> Option<String>, name: &str) -> Result<String, Error> {
    let value = env(name).filter(|value| !value.is_empty());
    value.ok_or_else(|| invalid_env(format!("{name} is not set")))
}

fn sandbox(env: &impl Fn(&str) -> Option<String>) -> Result<Sandbox, Error> {
    let container_id = required(env, "CNI_CONTAINERID")?;
    let is_good = container_id.starts_with(|first: char| first.is_ascii_alphanumeric())
        && container_id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        && container_id.len() <= CONTAINER_ID_SIZE;
    if !is_good {
        return Err(invalid_env(format!(
            "CNI_CONTAINERID {container_id:?} is not a letter or digit followed by letters, digits, '_', \
             '.' and '-', {CONTAINER_ID_SIZE} at most"
        )));
    }
    let ifname = required(env, "CNI_IFNAME")?;
    let is_good = ifname.len() <= IFNAME_SIZE
        && ifname != "."
        && ifname != ".."
        && ifname.bytes().all(|byte| byte.is_ascii_graphic() && !b"/:".contains(&byte));
    if !is_good {
        return Err(invalid_env(format!("CNI_IFNAME {ifname:?} can't be the name of an interface")));
    }
    Ok(Sandbox { container_id, ifname })
}

/// The pod as the kubelet's runtimes name it in CNI_ARGS; other runtimes don't.
fn pod(env: &impl Fn(&str) -> Option<String>) -> Result<Pod, Error> {
    let mut pod = Pod::default();
    let args = env("CNI_ARGS").unwrap_or_default();
    for pair in args.split(';').filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(invalid_env(format!("CNI_ARGS: {pair:?} is not KEY=VALUE")));
        };
        let field = match key {
            "K8S_POD_NAMESPACE" => &mut pod.namespace,
            "K8S_POD_NAME" => &mut pod.name,
            "K8S_POD_UID" => &mut pod.uid,
            _ => continue,
        };
        if !value.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(invalid_env(format!("CNI_ARGS: {value:?} is no {key}")));
        }
        value.clone_into(field);
    }
    Ok(pod)
}

/// The addresses that the runtime remembers from ADD. Ours is one of them, since plugins after us may have
/// added some.
fn expected(config: &Config) -> Result<Vec<Ipv4Addr>, Error> {
    let remedy = "the runtime has to hand over what ADD returned";
    let result = config.prev_result.as_ref();
    let result = result.ok_or_else(|| invalid_config("CHECK without the key \"prevResult\"", remedy))?;
    let addresses: Vec<Ipv4Addr> = result.addresses().iter().map(Ipv4Net::addr).collect();
    match addresses.is_empty() {
        true => Err(invalid_config("prevResult has no IPv4 address", remedy)),
        false => Ok(addresses),
    }
}

fn unsupported(asked: &str) -> Error {
    let speaks = Version::ALL.map(Version::as_str).join(", ");
    let msg = format!("cniVersion {asked:?} is not supported");
    Error::new(code::INCOMPATIBLE_VERSION, msg, format!("give the configuration one of {speaks}"))
}

fn invalid_env(msg: impl Into<String>) -> Error {
    let remedy = "this program is run by a container runtime or cnitool, which sets its environment";
    Error::new(code::INVALID_ENVIRONMENT, msg, remedy)
}

fn invalid_config(msg: impl Into<String>, remedy: &str) -> Error {
    Error::new(code::INVALID_CONFIG, msg, remedy)
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
