//! The agent is killed as it installs the runtime's files, or takes them away with all else of the node's.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use clap::Parser;
use serde_json::{Value, json};
use vnetpool_node_agent::{
    agent::{self, RulesSpec},
    args::Args,
    cleanup,
    config::Config,
};
use vnetpool_plugin::{ledger::file::Store, wiring::Uplink};

use super::super::{HELD, Stage, is_nightly, sweep_up};
use super::{FIRST, LATER, Spec, block_on, kill_before_each, put_tables, route, stand_in};
use crate::node::Pod;

/// The runtime's folders, beside the node's.
fn cni(state: &Path) -> PathBuf {
    state.with_extension("cni")
}

/// Takes these folders away when it is dropped, also when a test fails: the node's own isn't above them.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What is installed in them. A later release has another plugin, and another configuration.
const FILES: [&str; 3] = ["bin/vnetpool", "bin/vnetpool-ipam", "net.d/10-vnetpool.conflist"];

/// The agent's flags, with the plugin of this release.
fn config(state: &Path, release: u8) -> Config {
    let [bin, net, plugin] = ["bin", "net.d", &plugin(release)].map(|name| cni(state).join(name));
    let [state, bin, net, plugin] = [state, &bin, &net, &plugin].map(|path| path.to_str().unwrap());
    let folders = ["--state-dir", state, "--cni-bin-dir", bin, "--cni-conf-dir", net, "--plugin", plugin];
    Args::parse_from(["agent"].into_iter().chain(folders)).config
}

fn plugin(release: u8) -> String {
    format!("plugin-{release}")
}

fn install(state: &Path, Spec { generation, .. }: Spec) {
    let uplink = Uplink { name: "eth0".into(), mtu: 1400 + u32::from(generation), gso_max: None };
    let config = config(state, generation);
    agent::put_in_place(&config, &uplink, Default::default(), &Default::default()).unwrap();
}

/// The entry of another program behind ours.
fn append_mesh(state: &Path) {
    let path = cni(state).join(FILES[2]);
    let mut document: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    document["plugins"].as_array_mut().unwrap().push(json!({ "type": "istio-cni" }));
    fs::write(path, document.to_string()).unwrap();
}

/// All files in the runtime's folders and beside them, with what is in them.
fn files(state: &Path) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for folder in ["", "bin/", "net.d/"] {
        let found = fs::read_dir(cni(state).join(folder)).into_iter().flatten();
        for file in found.map(|file| file.unwrap().path()).filter(|path| !path.is_dir()) {
            let name = format!("{folder}{}", file.file_name().unwrap().to_str().unwrap());
            let link = fs::read_link(&file).map(|to| format!("to {}", to.display()));
            files.insert(name, link.unwrap_or_else(|_| fs::read_to_string(&file).unwrap()));
        }
    }
    files
}

/// A pod that starts meanwhile is wired by one release or the other, and as the mesh wants it.
#[test]
fn an_agent_killed_as_it_installs_the_runtimes_files_leaves_each_as_it_was_or_as_it_is_to_be() {
    let what = "the runtime's files are installed";
    stand_in(what, |store| install(store.dir(), LATER));
    let stage = Stage::new("Routed");
    let state = stage.node.dir.path();
    let _removed = Removed(cni(state));
    for is_upgrade in [true, false].into_iter().take(if is_nightly() { 2 } else { 1 }) {
        let set_up = || {
            let _ = fs::remove_dir_all(cni(state));
            fs::create_dir_all(cni(state)).unwrap();
            for Spec { generation, .. } in [FIRST, LATER] {
                fs::write(cni(state).join(plugin(generation)), format!("release {generation}")).unwrap();
            }
            if is_upgrade {
                install(state, FIRST);
                append_mesh(state);
            }
            files(state)
        };
        let former = set_up();
        install(state, LATER);
        let new = files(state);
        assert!(FILES.iter().all(|file| new.contains_key(*file)), "{new:?}");
        kill_before_each(what, |call| {
            set_up();
            let is_killed = stage.kill_agent_before(call, what);
            let left = files(state);
            for file in FILES {
                let is_new = left.get(file) == new.get(file);
                let is_former = left.get(file) == former.get(file);
                assert!(is_new || (is_former && is_killed), "{file}, killed before call {call}: {left:?}");
            }
            let is_read = |name: &&String| {
                let endings = [".conf", ".conflist", ".json"];
                name.starts_with("net.d/") && endings.iter().any(|ending| name.ends_with(ending))
            };
            assert!(left.keys().filter(is_read).all(|name| name == FILES[2]), "{call}: {left:?}");
            install(state, LATER);
            assert_eq!(files(state), new, "killed before call {call}");
            is_killed
        });
    }
}

/// The source of the rules of this spec.
fn keep(store: &Store, Spec { generation, .. }: Spec) {
    let object = json!({
        "apiVersion": "vnetpool.io/v1alpha1", "kind": "NodeIPAllocation",
        "metadata": { "name": "n", "uid": "allocation", "generation": generation },
        "spec": { "nodeUID": "node", "bootID": BOOT, "pool": "p", "cooldown": "30s" },
    });
    RulesSpec::of(&serde_json::from_value(object).unwrap()).write(store).unwrap();
}

const BOOT: &str = "boot";

/// The next agent has the rules of one spec or the other, though the API server is away.
#[test]
fn an_agent_killed_as_it_keeps_the_rules_of_a_spec_leaves_those_of_the_former_or_the_new() {
    let what = "the rules of a spec are kept";
    stand_in(what, |store| keep(store, LATER));
    let stage = Stage::new("Routed");
    let store = &stage.node.store;
    let kept = |spec| {
        keep(store, spec);
        RulesSpec::read(store, BOOT).unwrap().unwrap()
    };
    let (former, new) = (kept(FIRST), kept(LATER));
    assert_ne!(former, new);
    kill_before_each(what, |call| {
        keep(store, FIRST);
        let is_killed = stage.kill_agent_before(call, what);
        let left = RulesSpec::read(store, BOOT).unwrap().unwrap();
        assert!(left == new || (left == former && is_killed), "killed before call {call}: {left:?}");
        assert_eq!(kept(LATER), new, "killed before call {call}");
        is_killed
    });
}

fn clean(state: &Path) {
    block_on(cleanup::run(&config(state, FIRST.generation))).unwrap();
}

#[test]
fn an_agent_killed_as_it_cleans_the_node_is_followed_by_one_that_does_or_by_one_that_serves() {
    let what = "the node is cleaned";
    stand_in(what, |store| clean(store.dir()));
    if !is_nightly() {
        return; // nft runs a dozen times for each call
    }
    let stage = Stage::new("Routed");
    let (netns, state) = (&stage.node.netns, stage.node.dir.path());
    let _removed = Removed(cni(state));
    let set_up = || {
        stage.node.hold(HELD);
        netns.inside(|| {
            route(&stage.node.store, FIRST);
            put_tables(FIRST);
        });
        for file in FILES.map(|file| cni(state).join(file)) {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
    };
    let left = || {
        let files: Vec<_> = FILES.into_iter().filter(|file| cni(state).join(file).exists()).collect();
        let kernel = ["rule", "route show table all", "link"].map(|what| netns.ip(what));
        (state.exists(), files, kernel, stage.tables())
    };
    set_up();
    netns.inside(|| clean(state));
    let nothing = left();
    assert_eq!((nothing.0, &nothing.1, nothing.3.as_str()), (false, &vec![], ""));
    kill_before_each(what, |call| {
        set_up();
        let is_killed = stage.kill_agent_before(call, what);
        if call % 2 == 0 {
            set_up();
            let pod = Pod::new(&format!("pod-{call}"));
            let address = stage.add(&pod);
            stage.is_served(&pod, address);
            stage.run("DEL", &pod).succeeds();
            sweep_up(&stage.node);
        }
        netns.inside(|| clean(state));
        assert_eq!(left(), nothing, "killed before call {call}");
        is_killed
    });
}
