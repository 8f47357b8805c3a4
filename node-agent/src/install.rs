//! The CNI files on the node: the plugin, and the configuration that makes the runtime use it.
//!
//! The runtime watches the configuration folder, and each event it heeds there takes a lock that blocks all
//! pods' starts and stops: so the configuration is written outside, renamed in, and only when its content
//! differs from the wanted one.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use vnetpool_crds::pool::Wiring;
use vnetpool_plugin::{
    cni::{GSO_MAX_SIZE, IPAM, PLUGIN, STATE_DIR},
    wiring::Uplink,
};

use crate::chain::{Chain, merged};

/// The network's name in the configuration.
const NETWORK: &str = "vnetpool";
/// Runtimes use the first configuration by name.
pub const CONFLIST: &str = "10-vnetpool.conflist";
/// Bytes of the plugin that are compared at once.
const PIECE: u64 = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("can't read the CNI plugin {0}: {1}")]
    Source(PathBuf, #[source] io::Error),
    #[error("can't read the CNI configuration {0}, which may hold entries of other plugins: {1}")]
    Configuration(PathBuf, #[source] io::Error),
    #[error("can't install {0}: {1}")]
    Install(PathBuf, #[source] io::Error),
    #[error("can't list the CNI configurations in {0}: {1}")]
    List(PathBuf, #[source] io::Error),
}

/// Our CNI configuration. containerd 1.x refuses a result of version 1.1.0, so the older one leads, and
/// `cniVersions` names both for runtimes that know it, unless a plugin behind ours is too old for that.
///
/// The segments that a pod's TCP hands down at once have to fit the uplink: the kernel itself would cut
/// larger ones, which are nearly all that pods send in bulk.
pub fn conflist(uplink: &Uplink, wiring: Wiring, chain: &Chain, state_dir: &Path) -> Value {
    let mut ours = json!({ "type": PLUGIN, "mtu": uplink.mtu, "wiring": wiring });
    if let Some(size) = uplink.gso_max {
        ours["gsoMaxSize"] = json!(size.clamp(*GSO_MAX_SIZE.start(), *GSO_MAX_SIZE.end()));
    }
    if state_dir != Path::new(STATE_DIR) {
        ours["stateDir"] = json!(state_dir);
    }
    let versions: &[&str] = if chain.speaks_1_1 { &["1.0.0", "1.1.0"] } else { &["1.0.0"] };
    let mut document = json!({ "cniVersion": "1.0.0", "cniVersions": versions, "name": NETWORK });
    chain.put_into(&mut document, ours);
    document
}

/// Copies the plugin into the runtime's folder and puts a link to it beside it, so that both names are always
/// of the same release. A plugin that runs keeps its old file. Returns whether it had to.
///
/// It is read in pieces: at each inspection it would otherwise be the largest part of the agent's memory.
pub fn plugin(source: &Path, bin_dir: &Path) -> Result<bool, Error> {
    let open = || fs::File::open(source).map_err(|error| Error::Source(source.to_owned(), error));
    let (mut shipped, mut again) = (open()?, open()?);
    let target = bin_dir.join(PLUGIN);
    let mut put = || {
        fs::create_dir_all(bin_dir)?;
        if is_copy(&mut shipped, &target, 0o755)? {
            return Ok(false);
        }
        replace(&target, &mut again, 0o755, bin_dir).map(|()| true)
    };
    let installed = put().map_err(|error| Error::Install(target.clone(), error))?;
    let ipam = bin_dir.join(IPAM);
    let link = || {
        if fs::read_link(&ipam).is_ok_and(|target| target == Path::new(PLUGIN)) {
            return Ok(false);
        }
        let new = bin_dir.join(format!(".{IPAM}.new"));
        gone(fs::remove_file(&new))?; // of one that was interrupted
        symlink(PLUGIN, &new)?;
        fs::rename(&new, &ipam).map(|()| true)
    };
    let linked = link().map_err(|error| Error::Install(ipam.clone(), error))?;
    Ok(installed || linked)
}

/// Fine if there was nothing.
pub fn gone(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Our configuration as it stands; `None` if there is none, or if it is no JSON, as after half a write.
///
/// # Errors
/// When the file can't be read. It may hold entries of others, so nobody should write over it.
pub fn found(conf_dir: &Path) -> Result<Option<Value>, Error> {
    let target = conf_dir.join(CONFLIST);
    match fs::read(&target) {
        Ok(text) => Ok(serde_json::from_slice(&text).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::Configuration(target, error)),
    }
}

/// Puts the configuration in place, with the entries of others in the present one. Returns whether it had to.
///
/// By way of a second name in the folder: containerd ignores a file that appears there, whether made or
/// renamed in, and reads its configuration anew when a name goes away. So it does that once, and then the
/// file is complete.
pub fn configuration(wanted: &Value, conf_dir: &Path) -> Result<bool, Error> {
    let target = conf_dir.join(CONFLIST);
    let waypoint = conf_dir.join(format!(".{CONFLIST}.new"));
    let outside = conf_dir.parent().unwrap_or(conf_dir);
    let found = found(conf_dir)?;
    let put = || {
        fs::create_dir_all(conf_dir)?;
        let wanted = found.as_ref().map_or_else(|| wanted.clone(), |found| merged(wanted, found));
        // Others may have written it with other blanks, or for fewer to read.
        if found.as_ref() == Some(&wanted) {
            return Ok(false);
        }
        replace(&waypoint, &mut format!("{wanted:#}\n").as_bytes(), 0o644, outside)?;
        fs::rename(&waypoint, &target)?;
        Ok(true)
    };
    put().map_err(|error| Error::Install(target.clone(), error))
}

/// Takes our configuration away, where another plugin wires the pods. Returns whether it had to.
pub fn no_configuration(conf_dir: &Path) -> Result<bool, Error> {
    let target = conf_dir.join(CONFLIST);
    match fs::remove_file(&target) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::Install(target, error)),
    }
}

/// The configuration that the runtime uses instead of ours because it sorts before it; None if ours is first.
pub fn preceding(conf_dir: &Path) -> Result<Option<Preceding>, Error> {
    let names = || -> io::Result<Vec<String>> {
        fs::read_dir(conf_dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    };
    let names = names().map_err(|error| Error::List(conf_dir.to_owned(), error))?;
    let is_configuration =
        |name: &String| [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end));
    let first = names.into_iter().filter(|name| is_configuration(name) && name.as_str() < CONFLIST).min();
    Ok(first.map(|name| {
        let path = conf_dir.join(name);
        let configuration = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let leads_to_ours = configuration.is_some_and(|configuration| leads_to_ours(&configuration));
        Preceding { path, leads_to_ours }
    }))
}

/// A configuration that comes before ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preceding {
    pub path: PathBuf,
    /// Whether pods are wired by our plugin all the same.
    pub leads_to_ours: bool,
}

/// Whether a configuration, another plugin's by its content, has pods wired by ours: by an entry of its own
/// or by a network that it delegates to, as Multus does.
pub fn leads_to_ours(configuration: &Value) -> bool {
    let within = |key: &str| configuration[key].as_array().into_iter().flatten();
    let names_ours = |key: &str| {
        let named = configuration[key].as_str().unwrap_or_default();
        named == NETWORK || named.rsplit('/').next() == Some(CONFLIST)
    };
    configuration["type"] == PLUGIN
        || names_ours("clusterNetwork")
        || within("plugins").any(leads_to_ours)
        || within("delegates").any(|network| network["name"] == NETWORK || leads_to_ours(network))
}

/// Whether `target` has exactly the content of `source`, with this mode. An unreadable one hasn't.
fn is_copy(source: &mut fs::File, target: &Path, mode: u32) -> io::Result<bool> {
    let Ok(mut found) = fs::File::open(target) else { return Ok(false) };
    let (wanted, metadata) = (source.metadata()?, found.metadata()?);
    let mut is_same = wanted.len() == metadata.len() && metadata.permissions().mode() & 0o777 == mode;
    let mut pieces = [Vec::new(), Vec::new()];
    while is_same {
        for (piece, file) in pieces.iter_mut().zip([&mut *source, &mut found]) {
            piece.clear();
            file.take(PIECE).read_to_end(piece)?;
        }
        if pieces[0].is_empty() {
            break;
        }
        is_same = pieces[0] == pieces[1];
    }
    Ok(is_same)
}

/// Gives `target` the read content, atomically, by way of a new file in `staging`, which must be on the same
/// mount.
fn replace(target: &Path, content: &mut impl Read, mode: u32, staging: &Path) -> io::Result<()> {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let new = staging.join(format!(".{name}.new"));
    let mut put = || -> io::Result<()> {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new)?;
        io::copy(content, &mut file)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        // A node that loses power must not come back with an empty file under the final name.
        file.sync_all()?;
        // Closed before the name leads to it: the kernel refuses to run a file that is open for writing.
        drop(file);
        fs::rename(&new, target)
    };
    put().inspect_err(|_| {
        let _ = fs::remove_file(&new);
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::{Chained, Further};

    fn uplink(mtu: u32) -> Uplink {
        Uplink { name: "eth0".into(), mtu, gso_max: None }
    }

    fn plain(mtu: u32) -> Value {
        conflist(&uplink(mtu), Wiring::Routed, &Chain::default(), Path::new(STATE_DIR))
    }

    #[test]
    fn the_configuration_names_both_versions_and_the_mtu_and_chains_what_there_is() {
        let chain = Chain {
            found: vec![Chained::Portmap, Chained::Bandwidth],
            speaks_1_1: false,
            ..Chain::default()
        };
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

        let alone = Chain { speaks_1_1: true, ..Chain::default() };
        let document = conflist(&uplink(1400), Wiring::Routed, &alone, Path::new(STATE_DIR));
        assert_eq!(document["cniVersion"], "1.0.0");
        assert_eq!(document["cniVersions"], json!(["1.0.0", "1.1.0"]));
        assert_eq!(document["plugins"], json!([{ "type": "vnetpool", "mtu": 1400, "wiring": "Routed" }]));
    }

    /// Otherwise the plugin would expect the ledger where the agent doesn't keep it.
    #[test]
    fn another_folder_of_the_ledger_is_told_to_the_plugin() {
        let [told, untold] = ["/run/elsewhere", STATE_DIR]
            .map(|dir| conflist(&uplink(1400), Wiring::Routed, &Chain::default(), Path::new(dir)));
        assert_eq!(told["plugins"][0]["stateDir"], "/run/elsewhere");
        assert_eq!(untold["plugins"][0].get("stateDir"), None);
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
            let events =
                inotify.read_events(&mut buffer).unwrap().map(|event| event.mask).collect::<Vec<_>>();
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
    fn a_configuration_in_front_that_leads_to_ours_is_told_from_one_in_the_way() {
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
                    let names: Vec<_> =
                        events.filter_map(|event| event.name.map(ToOwned::to_owned)).collect();
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
}
