//! The files in folders of the test, beside programs that change them, too.

use super::*;
use crate::chain::{Chained, Further, others};

fn uplink(mtu: u32) -> Uplink {
    Uplink { name: "eth0".into(), mtu, gso_max: None }
}

fn plain(mtu: u32) -> Value {
    conflist(&uplink(mtu), Wiring::Routed, &Chain::default(), Path::new(STATE_DIR))
}

#[test]
fn the_configuration_names_both_versions_the_mtu_and_each_plugin_found() {
    let chain =
        Chain { found: vec![Chained::Portmap, Chained::Bandwidth], supports_1_1: false, ..Chain::default() };
    let document = conflist(&uplink(1400), Wiring::Bridge, &chain, Path::new(STATE_DIR));
    let types = |document: &serde_json::Value| -> Vec<String> {
        let plugins = document["plugins"].as_array().unwrap().iter();
        plugins.map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(types(&document), ["vnetpool", "portmap", "bandwidth"]);
    assert_eq!(document["plugins"][0]["wiring"], "Bridge");
    // As in the tests that dial the ports and measure the bandwidth, `chain.rs` of the plugin's.
    let portmap = json!({ "type": "portmap", "capabilities": { "portMappings": true }, "snat": true });
    let bandwidth = json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } });
    assert_eq!(document["plugins"].as_array().unwrap()[1..], [portmap, bandwidth]);
    assert_eq!(document["cniVersions"], json!(["1.0.0"]), "the others know no 1.1.0");

    let alone = Chain { supports_1_1: true, ..Chain::default() };
    let document = conflist(&uplink(1400), Wiring::Routed, &alone, Path::new(STATE_DIR));
    assert_eq!(document["cniVersion"], "1.0.0");
    assert_eq!(document["cniVersions"], json!(["1.0.0", "1.1.0"]));
    assert_eq!(document["plugins"], json!([{ "type": "vnetpool", "mtu": 1400, "wiring": "Routed" }]));
}

/// Of the file that release 0.2.0 left on the node only the mesh's entry is another program's.
#[test]
fn the_configuration_of_release_0_2_0_is_ours_but_for_the_entry_of_others() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/0.2.0/10-vnetpool.conflist");
    let root = tempfile::tempdir().unwrap();
    let conf_dir = root.path().join("net.d");
    fs::create_dir_all(&conf_dir).unwrap();
    fs::copy(path, conf_dir.join(CONFLIST)).unwrap();
    let before = found(&conf_dir).unwrap().unwrap();
    assert_eq!(others(&before, &Further::default()), ["istio-cni"]);
    assert!(leads_to_ours(&before));
    assert_eq!(preceding(&conf_dir).unwrap(), None);

    assert!(configuration(&plain(1400), &conf_dir).unwrap());
    let after = found(&conf_dir).unwrap().unwrap();
    let ours = json!({ "type": "vnetpool", "mtu": 1400, "wiring": "Routed" });
    assert_eq!(after["plugins"], json!([ours, { "type": "istio-cni" }]));
}

/// Otherwise the plugin would expect the ledger where the agent doesn't keep it.
#[test]
fn the_plugins_configuration_names_another_folder_of_the_ledger() {
    let [elsewhere, usual] = ["/run/elsewhere", STATE_DIR]
        .map(|dir| conflist(&uplink(1400), Wiring::Routed, &Chain::default(), Path::new(dir)));
    assert_eq!(elsewhere["plugins"][0]["stateDir"], "/run/elsewhere");
    assert_eq!(usual["plugins"][0].get("stateDir"), None);
}

/// A plugin that the chart's values chain survives a mesh's rewrite, as the mesh's entry does, and goes
/// when the values name it no more.
#[test]
fn plugins_that_were_asked_for_come_stay_and_go_beside_those_of_others() {
    let root = tempfile::tempdir().unwrap();
    let conf_dir = root.path().join("net.d");
    let further = |list: &str| -> Value {
        let chain = Chain { further: list.parse().unwrap(), ..Chain::default() };
        conflist(&uplink(1500), Wiring::Routed, &chain, Path::new(STATE_DIR))
    };
    let tuning = r#"[{"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}}, {"type": "sbr"}]"#;
    assert!(configuration(&further(tuning), &conf_dir).unwrap());
    let mut document = found(&conf_dir).unwrap().unwrap();
    document["plugins"].as_array_mut().unwrap().push(json!({ "type": "istio-cni" }));
    document["plugins"][1] = json!({ "type": "tuning" });
    fs::write(conf_dir.join(CONFLIST), document.to_string()).unwrap();
    let types = || -> Vec<String> {
        let document = found(&conf_dir).unwrap().unwrap();
        let plugins = document["plugins"].as_array().unwrap().iter();
        plugins.map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
    };
    assert!(configuration(&further(tuning), &conf_dir).unwrap());
    assert_eq!(types(), ["vnetpool", "tuning", "sbr", "istio-cni"]);
    assert_eq!(found(&conf_dir).unwrap().unwrap()["plugins"][1]["sysctl"]["net.core.somaxconn"], "500");
    assert!(!configuration(&further(tuning), &conf_dir).unwrap());
    assert!(configuration(&further(r#"[{"type": "sbr"}]"#), &conf_dir).unwrap());
    assert_eq!(types(), ["vnetpool", "sbr", "istio-cni"]);
    assert!(configuration(&further("[]"), &conf_dir).unwrap());
    assert_eq!(types(), ["vnetpool", "istio-cni"]);
}

#[test]
fn pods_hand_down_no_more_at_once_than_the_uplink_takes_and_the_plugin_accepts() {
    for (uplinks, pods) in [
        (Some(62_780), json!(62_780)),
        (Some(524_280), json!(65_536)),
        (Some(1), json!(4096)),
        (None, Value::Null),
    ] {
        let uplink = Uplink { gso_max: uplinks, ..uplink(1500) };
        let chain = Chain::default();
        let document = conflist(&uplink, Wiring::Routed, &chain, Path::new(STATE_DIR));
        assert_eq!(document["plugins"][0]["gsoMaxSize"], pods);
    }
}

#[test]
fn a_configuration_is_replaced_only_when_it_differs() {
    let root = tempfile::tempdir().unwrap();
    let conf_dir = root.path().join("net.d");
    let [one, two] = [1, 2].map(plain);
    assert!(configuration(&one, &conf_dir).unwrap());
    assert!(!configuration(&one, &conf_dir).unwrap());
    assert!(configuration(&two, &conf_dir).unwrap());
    assert_eq!(found(&conf_dir).unwrap(), Some(two));
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "nothing is left beside it");
    assert_eq!(fs::read_dir(conf_dir).unwrap().count(), 1);
}

/// A folder in its place stands for a file that can't be read: root can read every file.
#[test]
fn a_configuration_that_cannot_be_read_is_not_written_over() {
    let root = tempfile::tempdir().unwrap();
    let conf_dir = root.path().join("net.d");
    fs::create_dir_all(conf_dir.join(CONFLIST)).unwrap();
    let error = configuration(&plain(1500), &conf_dir).unwrap_err().to_string();
    assert!(error.starts_with("can't read the CNI configuration"), "{error}");
    assert!(error.contains(CONFLIST), "{error}");
    assert_eq!(fs::read_dir(&conf_dir).unwrap().count(), 1, "nothing is left beside it");
}

/// The installer comes at the worst moment: between our reading and our rename.
#[test]
fn an_entry_that_others_put_there_while_the_file_is_made_is_not_lost() {
    let root = tempfile::tempdir().unwrap();
    let conf_dir = root.path().join("net.d");
    configuration(&plain(1500), &conf_dir).unwrap();
    let mut times = 0;
    let install_mesh = || {
        times += 1;
        let mut document = found(&conf_dir).unwrap().unwrap();
        let plugins = document["plugins"].as_array_mut().unwrap();
        if plugins.iter().all(|entry| entry["type"] != "istio-cni") {
            plugins.push(json!({ "type": "istio-cni" }));
            fs::write(root.path().join("istio"), document.to_string()).unwrap();
            fs::rename(root.path().join("istio"), conf_dir.join(CONFLIST)).unwrap();
        }
    };
    assert!(configuration_after(&plain(1400), &conf_dir, install_mesh).unwrap());
    assert_eq!(times, 2);
    let document = found(&conf_dir).unwrap().unwrap();
    assert_eq!(document["plugins"][0]["mtu"], 1400);
    assert_eq!(document["plugins"][1]["type"], "istio-cni");
    assert_eq!(fs::read_dir(&conf_dir).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn a_program_that_changes_the_file_all_the_while_is_reported_and_not_written_over() {
    let root = tempfile::tempdir().unwrap();
    let conf_dir = root.path().join("net.d");
    let mut times = 0;
    let change = || {
        times += 1;
        fs::write(conf_dir.join(CONFLIST), plain(times).to_string()).unwrap();
    };
    let error = configuration_after(&plain(1400), &conf_dir, change).unwrap_err().to_string();
    assert!(error.contains("another program"), "{error}");
    assert_eq!(found(&conf_dir).unwrap(), Some(plain(TRIES as u32)));
    assert_eq!(fs::read_dir(&conf_dir).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn containerd_sees_one_event_that_it_heeds_and_by_then_the_file_is_there() {
    let root = tempfile::tempdir().unwrap();
    let conf_dir = root.path().join("net.d");
    fs::create_dir(&conf_dir).unwrap();
    let mut inotify = inotify::Inotify::init().unwrap();
    // The inotify events that fsnotify turns into Write, Rename and Remove; containerd ignores Create and
    // Chmod.
    let heeded = inotify::WatchMask::MODIFY | inotify::WatchMask::MOVED_FROM | inotify::WatchMask::DELETE;
    inotify.watches().add(&conf_dir, heeded).unwrap();
    for mtu in [1, 2] {
        configuration(&plain(mtu), &conf_dir).unwrap();
        let mut buffer = [0; 4096];
        let events = inotify.read_events(&mut buffer).unwrap().map(|event| event.mask).collect::<Vec<_>>();
        assert_eq!(events, [inotify::EventMask::MOVED_FROM], "{mtu}");
    }
}

#[test]
fn the_plugin_is_executable_under_both_its_names() {
    let root = tempfile::tempdir().unwrap();
    let source = root.path().join("source");
    fs::write(&source, "#!").unwrap();
    let bin_dir = root.path().join("bin");
    assert!(plugin(&source, &bin_dir).unwrap());
    assert!(!plugin(&source, &bin_dir).unwrap());
    for other in ["#?".to_owned(), format!("#!{}", "\0".repeat(3 * PIECE as usize))] {
        fs::write(&source, &other).unwrap();
        assert!(plugin(&source, &bin_dir).unwrap());
        assert!(!plugin(&source, &bin_dir).unwrap());
        assert_eq!(fs::read(bin_dir.join(PLUGIN)).unwrap(), other.as_bytes());
    }
    fs::write(&source, "#!").unwrap();
    assert!(plugin(&source, &bin_dir).unwrap());
    assert_eq!(fs::metadata(bin_dir.join(PLUGIN)).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(fs::read(bin_dir.join(IPAM)).unwrap(), b"#!", "the same under its other name");
    fs::remove_file(bin_dir.join(IPAM)).unwrap();
    fs::write(bin_dir.join(IPAM), "something else").unwrap();
    assert!(plugin(&source, &bin_dir).unwrap());
    assert_eq!(fs::read(bin_dir.join(IPAM)).unwrap(), b"#!");
}

/// The kernel refuses to run a file that somebody has open for writing. Between its start and its program a
/// child of another test has every file of this process open, so that this can pass by itself.
fn started(program: &Path, arguments: &[&str]) -> std::process::Child {
    loop {
        match std::process::Command::new(program).args(arguments).spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
            result => return result.unwrap(),
        }
    }
}

#[test]
fn a_plugin_that_runs_is_replaced_and_goes_on_with_its_old_file() {
    let root = tempfile::tempdir().unwrap();
    let (source, bin_dir) = (root.path().join("source"), root.path().join("bin"));
    let target = bin_dir.join(PLUGIN);
    fs::copy("/bin/sleep", &source).unwrap();
    assert!(plugin(&source, &bin_dir).unwrap());
    let mut running = started(&target, &["60"]);
    let busy = fs::OpenOptions::new().write(true).open(&target).unwrap_err();
    assert_eq!(busy.kind(), io::ErrorKind::ExecutableFileBusy, "a program that runs can be written to");
    fs::copy("/bin/true", &source).unwrap();
    assert!(plugin(&source, &bin_dir).unwrap());
    assert!(running.try_wait().unwrap().is_none(), "the old one has ended");
    assert!(started(&target, &[]).wait().unwrap().success(), "the new one doesn't run");
    running.kill().unwrap();
    running.wait().unwrap();
}

/// Otherwise an ADD right after the rename would fail with "text file busy". A child of another test may have
/// the file open for a moment longer, but not each time.
#[test]
fn the_plugin_has_been_closed_when_it_gets_its_name() {
    let root = tempfile::tempdir().unwrap();
    let (source, bin_dir) = (root.path().join("source"), root.path().join("bin"));
    fs::create_dir(&bin_dir).unwrap();
    let mut inotify = inotify::Inotify::init().unwrap();
    let seen = inotify::WatchMask::CLOSE_WRITE | inotify::WatchMask::MOVED_FROM;
    inotify.watches().add(&bin_dir, seen).unwrap();
    let mut orders = (0..5).map(|release| {
        fs::write(&source, format!("release {release}")).unwrap();
        assert!(plugin(&source, &bin_dir).unwrap());
        let mut buffer = [0; 4096];
        let events = inotify.read_events(&mut buffer).unwrap();
        let new = format!(".{PLUGIN}.new");
        let ours = events.filter(|event| event.name.is_some_and(|name| name == new.as_str()));
        ours.map(|event| event.mask).collect::<Vec<_>>()
    });
    let expected = [inotify::EventMask::CLOSE_WRITE, inotify::EventMask::MOVED_FROM];
    assert!(orders.any(|order| order == expected), "it was open at each of five renames");
}

#[test]
fn a_configuration_that_sorts_before_ours_is_named() {
    let conf_dir = tempfile::tempdir().unwrap();
    let touch = |name: &str| fs::write(conf_dir.path().join(name), "{}").unwrap();
    touch("15-azure.conflist");
    touch("05-notes.txt");
    touch(CONFLIST);
    assert_eq!(preceding(conf_dir.path()).unwrap(), None);
    touch("10-azure.conflist");
    touch("05-cilium.conf");
    let first = preceding(conf_dir.path()).unwrap().unwrap();
    assert_eq!(first, Preceding { path: conf_dir.path().join("05-cilium.conf"), leads_to_ours: false });
}

#[test]
fn a_configuration_in_front_either_leads_to_ours_or_is_in_the_way() {
    let conf_dir = tempfile::tempdir().unwrap();
    let ours = plain(1500);
    let mut with_mesh = ours.clone();
    with_mesh["name"] = json!("istio-cni");
    with_mesh["plugins"].as_array_mut().unwrap().push(json!({ "type": "istio-cni" }));
    let multus = |more: Value| {
        let mut multus = json!({ "name": "multus-cni-network", "type": "multus" });
        multus.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        multus
    };
    let cases = [
        (with_mesh, true),
        (multus(json!({ "delegates": [ours] })), true),
        (json!({ "plugins": [multus(json!({ "delegates": [{ "name": "vnetpool" }] }))] }), true),
        (multus(json!({ "clusterNetwork": "/host/etc/cni/net.d/10-vnetpool.conflist" })), true),
        (multus(json!({ "clusterNetwork": "vnetpool" })), true),
        (multus(json!({ "delegates": [{ "name": "cilium", "type": "cilium-cni" }] })), false),
        (json!({ "name": "cilium", "plugins": [{ "type": "cilium-cni" }] }), false),
        // Addresses by ours and the wiring by another plugin are the job of ipam_only.
        (
            json!({ "name": "pods", "plugins": [{ "type": "bridge", "ipam": { "type": "vnetpool-ipam" } }] }),
            false,
        ),
    ];
    for (configuration, expected) in cases {
        fs::write(conf_dir.path().join("00-first.conf"), configuration.to_string()).unwrap();
        let first = preceding(conf_dir.path()).unwrap().unwrap();
        assert_eq!(first.leads_to_ours, expected, "{configuration}");
    }
}

/// As istio-cni's installer and linkerd's do: whenever the file changes and lacks the mesh's entry, it is
/// put at the end.
#[test]
fn a_mesh_that_appends_its_entry_is_neither_fought_nor_left_out() {
    let root = tempfile::tempdir().unwrap();
    let conf_dir = root.path().join("net.d");
    fs::create_dir(&conf_dir).unwrap();
    let mut changes = inotify::Inotify::init().unwrap();
    let changed = inotify::WatchMask::MOVED_TO | inotify::WatchMask::CLOSE_WRITE;
    changes.watches().add(&conf_dir, changed).unwrap();
    let installer = {
        let conf_dir = conf_dir.clone();
        std::thread::spawn(move || {
            let mut without = 0;
            loop {
                let mut buffer = [0; 4096];
                let events = changes.read_events_blocking(&mut buffer).unwrap();
                let names: Vec<_> = events.filter_map(|event| event.name.map(ToOwned::to_owned)).collect();
                if names.iter().any(|name| name == "stop") {
                    return without;
                }
                let Some(mut document) = found(&conf_dir).unwrap() else { continue };
                let plugins = document["plugins"].as_array_mut().unwrap();
                if plugins.iter().all(|entry| entry["type"] != "istio-cni") {
                    without += 1;
                    plugins.push(
                        json!({ "type": "istio-cni", "kubernetes": { "cni_bin_dir": "/opt/cni/bin" } }),
                    );
                    let new = conf_dir.parent().unwrap().join("istio");
                    fs::write(&new, document.to_string()).unwrap();
                    fs::rename(&new, conf_dir.join(CONFLIST)).unwrap();
                }
            }
        })
    };
    let has_mesh = || {
        found(&conf_dir)
            .unwrap()
            .is_some_and(|found| crate::chain::others(&found, &Further::default()) == ["istio-cni"])
    };
    assert!(configuration(&plain(1500), &conf_dir).unwrap());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !has_mesh() {
        assert!(std::time::Instant::now() < deadline, "{:?}", found(&conf_dir).unwrap());
        std::thread::yield_now();
    }
    for _ in 0..10 {
        assert!(
            !configuration(&plain(1500), &conf_dir).unwrap(),
            "an inspection rewrites what the mesh has made"
        );
    }
    assert!(configuration(&plain(1400), &conf_dir).unwrap());
    assert!(has_mesh(), "a pod that starts now is outside the mesh");
    assert_eq!(found(&conf_dir).unwrap().unwrap()["plugins"][0]["mtu"], 1400);
    fs::write(conf_dir.join("stop"), "").unwrap();
    assert_eq!(installer.join().unwrap(), 1, "times that the mesh had to put itself back");
}
