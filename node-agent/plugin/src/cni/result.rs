//! The results of verbs, in the shape of the version asked for, and the results of the plugins before us.

use std::{net::Ipv4Addr, path::Path};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Version;

/// The result of the plugins before this one in a chain, or of the whole ADD for a CHECK. It is of the
/// configuration's version. Its unknown fields are handed on as they came.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct PrevResult(Map<String, Value>);

impl PrevResult {
    /// Whether an earlier plugin has made the interface that we would make.
    pub fn has_interface(&self, ifname: &str) -> bool {
        self.list("interfaces").iter().any(|interface| {
            interface["name"] == ifname && interface["sandbox"].as_str().is_some_and(|path| !path.is_empty())
        })
    }

    /// All IPv4 addresses in it, with their prefix lengths.
    pub fn addresses(&self) -> Vec<Ipv4Net> {
        self.list("ips").iter().filter_map(|ip| ip["address"].as_str()?.parse().ok()).collect()
    }

    fn list(&self, key: &str) -> &[Value] {
        self.0.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    fn append(&mut self, key: &str, values: impl IntoIterator<Item = Value>) {
        let mut list = self.list(key).to_vec();
        list.extend(values);
        self.0.insert(key.to_owned(), list.into());
    }
}

/// A sandbox as ADD leaves it, in the words of the specification.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Wired(Map<String, Value>);

impl Wired {
    /// Our part of the result, behind the parts of the plugins before us. `ends` are the names and MACs of
    /// the host's end and of the pod's.
    pub fn new(
        version: Version,
        before: PrevResult,
        ends: [(&str, [u8; 6]); 2],
        address: Ipv4Addr,
        gateway: Ipv4Addr,
        netns: &Path,
    ) -> Wired {
        let text = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
        let [(host_link, host_mac), (ifname, pod_mac)] = ends;
        let mut result = before;
        let index = result.list("interfaces").len() + 1; // the second of ours
        let host = json!({ "name": host_link, "mac": text(host_mac) });
        let pod = json!({ "name": ifname, "mac": text(pod_mac), "sandbox": netns });
        result.append("interfaces", [host, pod]);
        let mut ip = ip(version, Ipv4Net::from(address), Some(gateway));
        ip["interface"] = index.into();
        result.append("ips", [ip]);
        result.append("routes", [default_route(gateway)]);
        Wired(finished(version, result))
    }
}

/// An address without an interface, for the plugin that asked: the result of delegated IPAM.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Leased(Map<String, Value>);

impl Leased {
    pub fn new(version: Version, address: Ipv4Net, gateway: Option<Ipv4Addr>) -> Leased {
        let mut result = PrevResult::default();
        result.append("ips", [ip(version, address, gateway)]);
        result.append("routes", gateway.map(default_route));
        Leased(finished(version, result))
    }
}

fn ip(version: Version, address: Ipv4Net, gateway: Option<Ipv4Addr>) -> Value {
    let mut ip = json!({ "address": address.to_string() });
    if let Some(gateway) = gateway {
        ip["gateway"] = json!(gateway);
    }
    if version < Version::V1_0_0 {
        ip["version"] = "4".into(); // the address family, which the specification dropped in 1.0.0
    }
    ip
}

fn default_route(gateway: Ipv4Addr) -> Value {
    json!({ "dst": "0.0.0.0/0", "gw": gateway })
}

fn finished(version: Version, PrevResult(mut result): PrevResult) -> Map<String, Value> {
    result.insert("cniVersion".to_owned(), version.as_str().into());
    // Required up to 0.4.0, where an empty object means "nothing to configure".
    result.entry("dns").or_insert_with(|| json!({}));
    result
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
    use super::*;

    #[test]
    fn the_result_of_earlier_plugins_comes_first_and_unchanged() {
        let before: PrevResult = serde_json::from_value(json!({
            "cniVersion": "1.0.0",
            "interfaces": [{ "name": "dummy0", "sandbox": "/run/netns/pod", "new": "word" }],
            "ips": [{ "address": "192.0.2.7/24", "interface": 0 }],
            "routes": [{ "dst": "192.0.2.0/24" }],
            "dns": { "nameservers": ["192.0.2.53"] },
            "future": true,
        }))
        .unwrap();
        assert!(before.has_interface("dummy0") && !before.has_interface("eth0"));
        let (address, gateway) = (Ipv4Addr::new(10, 1, 2, 3), Ipv4Addr::new(169, 254, 1, 1));
        let ends = [("vnp0123456789a", [2, 0, 0, 0, 0, 1]), ("eth0", [2, 0, 0, 0, 0, 2])];
        let wired = Wired::new(Version::V1_0_0, before, ends, address, gateway, Path::new("/run/netns/pod"));
        let expected = json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                { "name": "dummy0", "sandbox": "/run/netns/pod", "new": "word" },
                { "name": "vnp0123456789a", "mac": "02:00:00:00:00:01" },
                { "name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/pod" },
            ],
            "ips": [
                { "address": "192.0.2.7/24", "interface": 0 },
                { "address": "10.1.2.3/32", "gateway": "169.254.1.1", "interface": 2 },
            ],
            "routes": [{ "dst": "192.0.2.0/24" }, { "dst": "0.0.0.0/0", "gw": "169.254.1.1" }],
            "dns": { "nameservers": ["192.0.2.53"] },
            "future": true,
        });
        assert_eq!(serde_json::to_value(wired).unwrap(), expected);
    }
}
