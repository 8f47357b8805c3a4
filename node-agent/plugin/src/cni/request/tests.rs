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
    Request::parse(Program::Network, env, config.to_string().as_bytes())
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
        before: PrevResult::default(),
    };
    let sizes = Sizes { mtu: Some(1500), gso_max: None };
    let task = Task::Wire(Wire { sizes, wiring: Wiring::Routed });
    let (version, state_dir, network) = (Version::V1_1_0, STATE_DIR.into(), "vnetpool".to_owned());
    assert_eq!(request, Request { version, state_dir, network, task, verb });
}

#[test]
fn an_invalid_variable_of_the_environment_is_named() {
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
        assert!(error.msg.contains(name) && !error.details.is_empty(), "{error:?}");
        assert_eq!(error.version, Version::V1_1_0);
    }
}

#[test]
fn an_unsupported_version_is_refused_with_the_supported_ones() {
    let all = "0.3.1, 0.4.0, 1.0.0, 1.1.0";
    for (version, command, remedy) in [
        ("0.2.0", "ADD", all),
        ("2.0.0", "ADD", all),
        ("0.3.1", "CHECK", "0.4.0"),
        ("1.0.0", "STATUS", "1.1.0"),
        ("1.0.0", "GC", "1.1.0"),
    ] {
        let mut config = config();
        config["cniVersion"] = version.into();
        let error = parse(&[("CNI_COMMAND", command)], &config).unwrap_err();
        assert_eq!(error.code, code::INCOMPATIBLE_VERSION, "{command} {version}");
        assert!(error.msg.contains(version) && error.details.contains(remedy), "{error:?}");
    }
}

#[test]
fn a_configuration_without_a_field_that_a_verb_needs_is_refused() {
    let ipv6 = json!({ "ips": [{ "address": "fd00::1/64" }] });
    let made = json!({ "interfaces": [{ "name": "eth0", "sandbox": "/run/netns/pod" }] });
    for (command, key, value, what) in [
        ("ADD", "name", Value::Null, "is missing"),
        ("ADD", "mtu", json!(20), "is not within"),
        ("ADD", "gsoMaxSize", json!(20), "is not within"),
        ("CHECK", "prevResult", Value::Null, "without the key"),
        ("CHECK", "prevResult", ipv6, "has no IPv4 address"),
        ("ADD", "prevResult", made, "has made eth0"),
    ] {
        let mut config = config();
        config[key] = value;
        let error = parse(&[("CNI_COMMAND", command)], &config).unwrap_err();
        assert_eq!(error.code, code::INVALID_CONFIG, "{command} {key}");
        assert!(
            error.msg.contains(key) && error.msg.contains(what) && !error.details.is_empty(),
            "{error:?}"
        );
    }
    let undecodable = Request::parse(Program::Network, |_| Some("ADD".to_owned()), b"{").unwrap_err();
    assert_eq!(undecodable.code, code::UNDECODABLE);
}

/// By a later configuration, or a broken one: pods that run must still be able to go.
#[test]
fn a_configuration_that_fails_an_add_fails_no_del_check_or_gc() {
    let edits = [
        (Program::Network, "mtu", json!(9)),
        (Program::Network, "wiring", json!("Teleport")),
        (Program::Ipam, "isGateway", json!(true)),
        (Program::Ipam, "ipam", json!({ "subnet": "10.240.0.0" })),
        (Program::Ipam, "ipam", json!({})),
    ];
    for (program, key, value) in edits {
        let mut config = config();
        config["type"] = "bridge".into();
        config["prevResult"] = json!({ "ips": [{ "address": "10.240.0.9/32" }] });
        config[key] = value;
        for (command, is_refused) in
            [("ADD", true), ("STATUS", true), ("DEL", false), ("CHECK", false), ("GC", false)]
        {
            let env = |name: &str| match name {
                "CNI_COMMAND" => Some(command.to_owned()),
                "CNI_CONTAINERID" => Some("a".to_owned()),
                "CNI_NETNS" => Some("/run/netns/a".to_owned()),
                "CNI_IFNAME" => Some("eth0".to_owned()),
                _ => None,
            };
            let request = Request::parse(program, env, config.to_string().as_bytes());
            assert_eq!(request.is_err(), is_refused, "{command} with {key}: {request:?}");
            if let Ok(Request { task: Task::Lease(Lease { bridge, .. }), .. }) = request {
                assert_eq!(bridge.as_deref(), Some("cni0"), "the route to the pod must go, too");
            }
        }
    }
}

/// Runtimes keep the configuration by which a pod was wired, and bring it again when the pod ends.
#[test]
fn every_verb_by_the_configuration_of_release_0_2_0_is_understood() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/0.2.0/10-vnetpool.conflist");
    let list: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    for version in list["cniVersions"].as_array().unwrap() {
        let mut config = list["plugins"][0].clone();
        (config["name"], config["cniVersion"]) = (list["name"].clone(), version.clone());
        config["prevResult"] = json!({ "ips": [{ "address": "10.240.0.9/32" }] });
        for command in ["ADD", "DEL", "CHECK", "STATUS", "GC"] {
            if version == "1.0.0" && ["STATUS", "GC"].contains(&command) {
                continue;
            }
            let request = parse(&[("CNI_COMMAND", command)], &config).unwrap();
            assert_eq!((request.verb.name(), request.network.as_str()), (command, "vnetpool"));
            assert_eq!(request.state_dir, Path::new("/run/elsewhere"));
            let sizes = Sizes { mtu: Some(1400), gso_max: Some(62_780) };
            assert_eq!(request.task, Task::Wire(Wire { sizes, wiring: Wiring::Bridge }));
        }
    }
}

/// A later agent writes more than this plugin knows.
#[test]
fn keys_that_a_later_release_adds_to_the_configuration_are_no_matter() {
    let mut config = config();
    config["wiring"] = "Bridge".into();
    let before = parse(&[], &config).unwrap();
    config["ofALaterRelease"] = json!({ "deep": [1, null] });
    config["runtimeConfig"] = json!({ "ofALaterRuntime": true });
    assert_eq!(parse(&[], &config).unwrap(), before);
}

#[test]
fn version_is_answered_with_any_configuration() {
    for input in [&b""[..], b"{\"cniVersion\":\"0.2.0\"}", b"{\"cniVersion\":\"1.0.0\"}"] {
        let request = Request::parse(Program::Network, |_| Some("VERSION".to_owned()), input).unwrap();
        assert_eq!(request.verb, Verb::Version);
    }
    let answer = serde_json::to_value(crate::cni::Versions::new(Version::V1_0_0)).unwrap();
    let versions = json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    assert_eq!(answer, json!({ "cniVersion": "1.0.0", "supportedVersions": versions }));
}

fn parse_ipam(config: &Value) -> Result<Request, Error> {
    let env = |name: &str| (name == "CNI_COMMAND").then(|| "STATUS".to_owned());
    Request::parse(Program::Ipam, env, config.to_string().as_bytes())
}

#[test]
fn invoked_as_ipam_it_reads_the_delegating_plugins_configuration() {
    assert_eq!(Program::of(Path::new("/opt/cni/bin/vnetpool-ipam")), Program::Ipam);
    assert_eq!(Program::of(Path::new("/opt/cni/bin/vnetpool")), Program::Network);
    let mut config = config();
    config["type"] = "bridge".into();
    config["mtu"] = 1.into(); // the other plugin's matter
    config["ipam"] = json!({ "type": "vnetpool-ipam", "subnet": "10.240.0.0/20", "stateDir": "/elsewhere" });
    let request = parse_ipam(&config).unwrap();
    let subnet = Some("10.240.0.0/20".parse().unwrap());
    assert_eq!(request.task, Task::Lease(Lease { subnet, bridge: Some("cni0".to_owned()) }));
    assert_eq!(request.state_dir, Path::new("/elsewhere"));

    config["type"] = "cilium-cni".into();
    config["ipam"] = json!({ "type": "vnetpool-ipam" });
    assert_eq!(parse_ipam(&config).unwrap().task, Task::Lease(Lease { subnet: None, bridge: None }));
}

#[test]
fn a_delegating_plugin_that_would_break_the_nodes_own_routes_is_refused() {
    for key in ["isGateway", "isDefaultGateway"] {
        let mut config = config();
        config["type"] = "bridge".into();
        config[key] = true.into();
        let error = parse_ipam(&config).unwrap_err();
        assert!(error.code == code::INVALID_CONFIG && error.msg.contains("isGateway"), "{error:?}");
    }
    for subnet in ["10.240.0.0", "10.240.0.0/30", "fd00::/64"] {
        let mut config = config();
        config["ipam"] = json!({ "subnet": subnet });
        config["type"] = "ptp".into();
        let error = parse_ipam(&config).unwrap_err();
        assert!(error.code == code::INVALID_CONFIG && error.msg.contains(subnet), "{error:?}");
        config["ipam"] = json!({});
        assert!(parse_ipam(&config).unwrap_err().msg.contains("ipam.subnet is missing"));
    }
}
