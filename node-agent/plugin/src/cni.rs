//! CNI's wire: environment and standard input in, one JSON document out. All validation is here, no behaviour.
//!
//! The protocol is that of the CNI specification, versions 0.3.1 to 1.1.0; an answer is in the version asked for.

use std::{collections::HashSet, net::Ipv4Addr, path::PathBuf};

use serde::{Deserialize, Serialize, Serializer};

use crate::ledger::{Pod, Sandbox};

/// Where the ledger is unless the configuration says otherwise.
pub const STATE_DIR: &str = "/run/vnetpool";

/// Runtimes use 64 characters; what is stored on the host link must fit there.
const CONTAINER_ID_SIZE: usize = 128;
/// IFNAMSIZ without the NUL.
const IFNAME_SIZE: usize = 15;
/// From what every IPv4 link can do to what an IPv4 packet can be.
const MTU: std::ops::RangeInclusive<u32> = 68..=65_535;

/// A version of the specification that we speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Version {
    V0_3_1,
    V0_4_0,
    V1_0_0,
    #[default]
    V1_1_0,
}

impl Version {
    pub const ALL: [Version; 4] = [Version::V0_3_1, Version::V0_4_0, Version::V1_0_0, Version::V1_1_0];

    pub fn as_str(self) -> &'static str {
        match self {
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }

    fn parse(text: &str) -> Option<Version> {
        Version::ALL.into_iter().find(|version| version.as_str() == text)
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// What a runtime asks for, valid in every field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub version: Version,
    /// `stateDir`, for tests; else [`STATE_DIR`].
    pub state_dir: PathBuf,
    pub verb: Verb,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verb {
    Add { sandbox: Sandbox, pod: Pod, netns: PathBuf, mtu: Option<u32> },
    Del { sandbox: Sandbox, pod: Pod },
    Check { sandbox: Sandbox, pod: Pod, netns: PathBuf, expected: Ipv4Addr },
    Status,
    Gc { valid: HashSet<Sandbox> },
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

/// An error as the specification has it; runtimes show `msg` and `details` to people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Error {
    #[serde(rename = "cniVersion")]
    pub version: Version,
    pub code: u32,
    pub msg: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub details: String,
}

/// Codes of the specification that we use, and ours from 100 on.
pub mod code {
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    pub const INVALID_ENVIRONMENT: u32 = 4;
    pub const IO: u32 = 5;
    pub const UNDECODABLE: u32 = 6;
    pub const INVALID_CONFIG: u32 = 7;
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// STATUS: not ready for an ADD.
    pub const NOT_READY: u32 = 50;
    /// The kernel refused a step of the wiring.
    pub const WIRING: u32 = 100;
    /// CHECK found something that is not as ADD left it.
    pub const DAMAGED: u32 = 101;
}

/// The configuration on standard input, as far as it concerns us.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    cni_version: Option<String>,
    name: Option<String>,
    mtu: Option<u32>,
    state_dir: Option<PathBuf>,
    prev_result: Option<PrevResult>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<ValidAttachment>>,
}

#[derive(Debug, Deserialize)]
struct PrevResult {
    #[serde(default)]
    ips: Vec<PrevIp>,
}

#[derive(Debug, Deserialize)]
struct PrevIp {
    address: String,
}

#[derive(Debug, Deserialize)]
struct ValidAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

impl Request {
    /// The request in the environment (`env` looks a variable up) and on standard input.
    pub fn parse(env: impl Fn(&str) -> Option<String>, stdin: &[u8]) -> Result<Request, Error> {
        let command = env("CNI_COMMAND").unwrap_or_default();
        if command == "VERSION" && stdin.trim_ascii().is_empty() {
            let (version, state_dir) = (Version::default(), STATE_DIR.into());
            return Ok(Request { version, state_dir, verb: Verb::Version });
        }
        let config: Config = serde_json::from_slice(stdin).map_err(|error| {
            Error::new(
                code::UNDECODABLE,
                format!("the configuration on standard input can't be decoded: {error}"),
            )
        })?;
        let asked = config.cni_version.as_deref().unwrap_or("0.1.0"); // the specification's default
        let version = Version::parse(asked);
        let verb = match (command.as_str(), version) {
            ("VERSION", _) => Ok(Verb::Version),
            (_, None) => Err(unsupported(asked)),
            (command, Some(version)) => {
                parse_verb(command, version, &env, &config).map_err(|error| Error { version, ..error })
            }
        }?;
        let version = version.unwrap_or_default();
        Ok(Request { version, state_dir: config.state_dir.unwrap_or_else(|| STATE_DIR.into()), verb })
    }
}

fn parse_verb(
    command: &str,
    version: Version,
    env: &impl Fn(&str) -> Option<String>,
    config: &Config,
) -> Result<Verb, Error> {
    if config.name.as_deref().unwrap_or_default().is_empty() {
        return Err(invalid_config("the key \"name\" is missing: it is the name of the network"));
    }
    let introduced = match command {
        "CHECK" => Version::V0_4_0,
        "STATUS" | "GC" => Version::V1_1_0,
        _ => Version::V0_3_1,
    };
    if version < introduced {
        let (has, needs) = (version.as_str(), introduced.as_str());
        let text = format!("{command} came with CNI {needs}, but the configuration is of cniVersion {has}");
        return Err(Error::new(code::INCOMPATIBLE_VERSION, text));
    }
    let netns = || -> Result<PathBuf, Error> { Ok(required(env, "CNI_NETNS")?.into()) };
    match command {
        "ADD" => {
            let mtu = config.mtu;
            if let Some(mtu) = mtu.filter(|mtu| !MTU.contains(mtu)) {
                return Err(invalid_config(format!("mtu {mtu} is not within {MTU:?}")));
            }
            Ok(Verb::Add { sandbox: sandbox(env)?, pod: pod(env)?, netns: netns()?, mtu })
        }
        "DEL" => Ok(Verb::Del { sandbox: sandbox(env)?, pod: pod(env)? }),
        "CHECK" => {
            let expected = expected(config)?;
            Ok(Verb::Check { sandbox: sandbox(env)?, pod: pod(env)?, netns: netns()?, expected })
        }
        "STATUS" => Ok(Verb::Status),
        "GC" => {
            // Without the list nothing could be told from garbage, so an absent one must not count as an empty one.
            let valid = config.valid_attachments.as_ref().ok_or_else(|| {
                invalid_config("GC without the key \"cni.dev/valid-attachments\": nothing is freed")
            })?;
            let sandbox = |ValidAttachment { container_id, ifname }: &ValidAttachment| Sandbox {
                container_id: container_id.clone(),
                ifname: ifname.clone(),
            };
            Ok(Verb::Gc { valid: valid.iter().map(sandbox).collect() })
        }
        "" => Err(invalid_env("CNI_COMMAND is not set: this program is run by a container runtime")),
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
            "CNI_CONTAINERID {container_id:?} is not a letter or digit followed by letters, digits, '_', '.' and '-', \
             {CONTAINER_ID_SIZE} at most"
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

/// The address that the runtime remembers from ADD.
fn expected(config: &Config) -> Result<Ipv4Addr, Error> {
    let result =
        config.prev_result.as_ref().ok_or_else(|| invalid_config("CHECK without the key \"prevResult\""))?;
    let address = result.ips.iter().find_map(|ip| ip.address.strip_suffix("/32")?.parse().ok());
    address.ok_or_else(|| {
        invalid_config("prevResult has no IPv4 address with prefix length 32, so it is not of this plugin")
    })
}

fn unsupported(asked: &str) -> Error {
    let speaks = Version::ALL.map(Version::as_str).join(", ");
    Error::new(
        code::INCOMPATIBLE_VERSION,
        format!("cniVersion {asked:?} is not supported; this plugin speaks {speaks}"),
    )
}

fn invalid_env(msg: impl Into<String>) -> Error {
    Error::new(code::INVALID_ENVIRONMENT, msg)
}

fn invalid_config(msg: impl Into<String>) -> Error {
    Error::new(code::INVALID_CONFIG, msg)
}

impl Error {
    pub fn new(code: u32, msg: impl Into<String>) -> Error {
        Error { version: Version::default(), code, msg: msg.into(), details: String::new() }
    }
}

/// A sandbox as ADD leaves it, in the words of the specification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Wired {
    #[serde(rename = "cniVersion")]
    version: Version,
    interfaces: [Interface; 2],
    ips: [Ip; 1],
    routes: [Route; 1],
    dns: Dns,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Interface {
    name: String,
    mac: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Ip {
    /// The address family, which the specification dropped in 1.0.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'static str>,
    address: String,
    gateway: Ipv4Addr,
    /// Index into `interfaces`.
    interface: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Route {
    dst: &'static str,
    gw: Ipv4Addr,
}

/// Required up to 0.4.0, where an empty object says "nothing to configure".
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Dns {}

/// One end of a veth pair: its name and MAC.
pub type End<'a> = (&'a str, [u8; 6]);

impl Wired {
    pub fn new(
        version: Version,
        address: Ipv4Addr,
        gateway: Ipv4Addr,
        host: End,
        pod: End,
        netns: PathBuf,
    ) -> Wired {
        let interface = |(name, mac): End, sandbox| {
            let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
            Interface { name: name.to_owned(), mac, sandbox }
        };
        let family = (version < Version::V1_0_0).then_some("4");
        Wired {
            version,
            interfaces: [interface(host, None), interface(pod, Some(netns))],
            ips: [Ip { version: family, address: format!("{address}/32"), gateway, interface: 1 }],
            routes: [Route { dst: "0.0.0.0/0", gw: gateway }],
            dns: Dns {},
        }
    }
}

/// The answer to VERSION.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Versions {
    cni_version: Version,
    supported_versions: [Version; 4],
}

impl Versions {
    pub fn new(version: Version) -> Versions {
        Versions { cni_version: version, supported_versions: Version::ALL }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The environment of an ADD, with these changes.
    fn parse(changes: &[(&str, &str)], config: &Value) -> Result<Request, Error> {
        let env = |name: &str| {
            let changed = changes.iter().find(|(changed, _)| *changed == name).map(|(_, value)| *value);
            let value = changed.or(match name {
                "CNI_COMMAND" => Some("ADD"),
                "CNI_CONTAINERID" => Some("4f1c_a.b-c"),
                "CNI_NETNS" => Some("/run/netns/pod"),
                "CNI_IFNAME" => Some("eth0"),
                _ => None,
            });
            value.map(str::to_owned)
        };
        Request::parse(env, config.to_string().as_bytes())
    }

    fn config() -> Value {
        json!({ "cniVersion": "1.1.0", "name": "vnetpool", "type": "vnetpool" })
    }

    #[test]
    fn an_add_is_understood() {
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=uid;OTHER=x";
        let mut config = config();
        config["mtu"] = 1500.into();
        let request = parse(&[("CNI_ARGS", args)], &config).unwrap();
        let verb = Verb::Add {
            sandbox: Sandbox { container_id: "4f1c_a.b-c".to_owned(), ifname: "eth0".to_owned() },
            pod: Pod { namespace: "default".to_owned(), name: "web-0".to_owned(), uid: "uid".to_owned() },
            netns: "/run/netns/pod".into(),
            mtu: Some(1500),
        };
        assert_eq!(request, Request { version: Version::V1_1_0, state_dir: STATE_DIR.into(), verb });
    }

    #[test]
    fn what_the_environment_must_not_hold_is_named() {
        let long = "x".repeat(CONTAINER_ID_SIZE + 1);
        for (name, value) in [
            ("CNI_COMMAND", ""),
            ("CNI_COMMAND", "add"),
            ("CNI_CONTAINERID", ""),
            ("CNI_CONTAINERID", "-starts-badly"),
            ("CNI_CONTAINERID", "has/slash"),
            ("CNI_CONTAINERID", long.as_str()),
            ("CNI_IFNAME", ""),
            ("CNI_IFNAME", ".."),
            ("CNI_IFNAME", "has blank"),
            ("CNI_IFNAME", "has/slash"),
            ("CNI_IFNAME", "longer-than-15-b"),
            ("CNI_NETNS", ""),
            ("CNI_ARGS", "K8S_POD_NAME"),
            ("CNI_ARGS", "K8S_POD_NAME=two words"),
        ] {
            let error = parse(&[(name, value)], &config()).unwrap_err();
            assert_eq!(error.code, code::INVALID_ENVIRONMENT, "{name}={value}");
            assert!(error.msg.contains(name), "{}", error.msg);
            assert_eq!(error.version, Version::V1_1_0);
        }
    }

    #[test]
    fn a_version_we_do_not_speak_is_refused_with_those_we_do() {
        for (version, command) in
            [("0.2.0", "ADD"), ("2.0.0", "ADD"), ("0.3.1", "CHECK"), ("1.0.0", "STATUS"), ("1.0.0", "GC")]
        {
            let mut config = config();
            config["cniVersion"] = version.into();
            let error = parse(&[("CNI_COMMAND", command)], &config).unwrap_err();
            assert_eq!(error.code, code::INCOMPATIBLE_VERSION, "{command} {version}");
        }
    }

    #[test]
    fn a_configuration_without_what_a_verb_needs_is_refused() {
        for (command, key, value) in [
            ("ADD", "name", Value::Null),
            ("ADD", "mtu", json!(20)),
            ("CHECK", "prevResult", Value::Null),
            ("CHECK", "prevResult", json!({ "ips": [{ "address": "10.1.2.3/24" }] })),
            ("GC", "cni.dev/valid-attachments", Value::Null),
        ] {
            let mut config = config();
            config[key] = value;
            let error = parse(&[("CNI_COMMAND", command)], &config).unwrap_err();
            assert_eq!(error.code, code::INVALID_CONFIG, "{command} {key}");
            assert!(error.msg.contains(key), "{}", error.msg);
        }
        let undecodable = Request::parse(|_| Some("ADD".to_owned()), b"{").unwrap_err();
        assert_eq!(undecodable.code, code::UNDECODABLE);
    }

    #[test]
    fn version_is_answered_whatever_the_configuration() {
        for input in [&b""[..], b"{\"cniVersion\":\"0.2.0\"}", b"{\"cniVersion\":\"1.0.0\"}"] {
            let request = Request::parse(|_| Some("VERSION".to_owned()), input).unwrap();
            assert_eq!(request.verb, Verb::Version);
        }
        let answer = serde_json::to_value(Versions::new(Version::V1_0_0)).unwrap();
        let versions = json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
        assert_eq!(answer, json!({ "cniVersion": "1.0.0", "supportedVersions": versions }));
    }
}
