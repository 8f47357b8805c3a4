//! The plugins behind ours in the node's configuration: which of the wanted ones are there, and which
//! versions of CNI they support.
//!
//! They are upstream's and on the node already, or not: nothing of them is installed. Meshes append an entry
//! of their own to the configuration, and pods that start without it are outside the mesh: entries of others
//! stay. A list of plugins is run in one version, so it can be offered as 1.1.0, for STATUS and GC, only if
//! each of them supports that. Each file is asked once for its versions, since the older plugins that
//! distributions have don't support it; one that only the runtime can see isn't asked.

#[cfg(test)]
mod fuzz;

use std::{
    collections::HashMap,
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, SystemTime},
};

use clap::ValueEnum;
use serde_json::{Value, json};
use tokio::process::Command;
use vnetpool_plugin::cni::{IPAM, PLUGIN};

use crate::child;

/// A plugin only prints a line when asked for its versions.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// As many links as the kernel follows one after the other.
const LINKS: usize = 40;

/// A plugin that can be chained behind ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Chained {
    /// Pods' `hostPort`.
    Portmap,
    /// The annotations `kubernetes.io/ingress-bandwidth` and `kubernetes.io/egress-bandwidth`.
    Bandwidth,
}

impl Chained {
    /// Its file's name.
    pub fn name(self) -> &'static str {
        match self {
            Chained::Portmap => "portmap",
            Chained::Bandwidth => "bandwidth",
        }
    }

    /// Its part of the configuration.
    pub fn configuration(self) -> Value {
        match self {
            // Translates the source of a pod that reaches itself, and of the node's own 127.0.0.1; of no
            // other.
            Chained::Portmap => {
                json!({ "type": self.name(), "capabilities": { "portMappings": true }, "snat": true })
            }
            Chained::Bandwidth => json!({ "type": self.name(), "capabilities": { "bandwidth": true } }),
        }
    }

    fn purpose(self) -> &'static str {
        match self {
            Chained::Portmap => "pods' hostPorts",
            Chained::Bandwidth => "pods' bandwidth limits",
        }
    }
}

/// Entries of further plugins that are to stand behind these. Unlike the optional ones above, no pod starts
/// without them: an administrator who names a plugin relies on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Further(Vec<Value>);

impl FromStr for Further {
    type Err = String;

    /// From a JSON list of entries of a CNI configuration.
    fn from_str(text: &str) -> Result<Further, String> {
        let entries: Vec<Value> =
            serde_json::from_str(text).map_err(|error| format!("not a JSON list: {error}"))?;
        for (n, entry) in entries.iter().enumerate() {
            let plugin = type_of(entry);
            let is_name = !plugin.is_empty() && !plugin.starts_with('.') && !plugin.contains('/');
            if !is_name {
                return Err(format!("{entry} has no \"type\" that is the name of a plugin's file"));
            }
            if plugin == IPAM || is_built_in(plugin) {
                return Err(format!("{plugin} is Vnetpool's own to chain: see nodeAgent.cni.chain"));
            }
            if entries[..n].iter().any(|earlier| type_of(earlier) == plugin) {
                return Err(format!("{plugin} is there twice"));
            }
        }
        Ok(Further(entries))
    }
}

impl Further {
    fn types(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(type_of)
    }
}

/// The plugins of the wanted chain that are on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    pub found: Vec<Chained>,
    pub missing: Vec<Chained>,
    pub further: Further,
    /// Plugins that others have chained behind ours.
    pub others: Vec<String>,
    /// Those of these two that aren't on the node.
    pub needed_missing: Vec<String>,
    /// Whether all found plugins support CNI 1.1.0.
    pub supports_1_1: bool,
}

/// The plugin that an entry of a configuration is of.
fn type_of(entry: &Value) -> &str {
    entry["type"].as_str().unwrap_or_default()
}

impl Chain {
    /// Makes `ours` and the plugins behind it the plugins of a configuration. It records which of them were
    /// requested as further ones: an entry that is requested no more would otherwise be taken for another
    /// program's.
    pub fn put_into(&self, document: &mut Value, ours: Value) {
        let others = self.found.iter().map(|plugin| plugin.configuration());
        let further = self.further.0.iter().cloned();
        document["plugins"] = std::iter::once(ours).chain(others).chain(further).collect();
        if !self.further.0.is_empty() {
            document[FURTHER] = self.further.types().collect();
        }
    }
}

/// The key of a configuration for the types of further plugins in it. Runtimes ignore keys they don't know.
const FURTHER: &str = "vnetpool.io/furtherPlugins";

/// Whether entries of this plugin are ours to make, whatever is requested.
fn is_built_in(plugin: &str) -> bool {
    plugin == PLUGIN || Chained::value_variants().iter().any(|chained| chained.name() == plugin)
}

/// Whether entries of this plugin in a configuration are ours, by its own content.
fn is_ours(plugin: &str, configuration: &Value) -> bool {
    let further = configuration[FURTHER].as_array();
    is_built_in(plugin) || further.is_some_and(|further| further.iter().any(|one| one == plugin))
}

fn entries(configuration: &Value) -> &[Value] {
    configuration["plugins"].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The plugins in a configuration of ours that others have put there.
pub fn others(found: &Value, further: &Further) -> Vec<String> {
    let is_others = |plugin: &&str| !is_ours(plugin, found) && !further.types().any(|one| one == *plugin);
    entries(found).iter().map(type_of).filter(is_others).map(str::to_owned).collect()
}

/// The `wanted` configuration, with the entries of others in the `found` one, each in its place. Ours keep
/// the wanted order whatever is found: the first of them makes the interface that the next ones change.
pub fn merged(wanted: &Value, found: &Value) -> Value {
    let mut ours = entries(wanted).iter();
    let mut plugins: Vec<Value> = Vec::new();
    // Where an entry of ours that wasn't there before belongs: behind the last of ours.
    let mut end = 0;
    for entry in entries(found) {
        if !is_ours(type_of(entry), found) && !is_ours(type_of(entry), wanted) {
            plugins.push(entry.clone());
        } else if entries(wanted).iter().any(|one| type_of(one) == type_of(entry)) {
            plugins.extend(ours.next().cloned());
            end = plugins.len();
        }
    }
    plugins.splice(end..end, ours.cloned());
    let mut merged = wanted.clone();
    merged["plugins"] = plugins.into();
    merged
}

/// The missing part, why it matters, and the remedy.
#[derive(Debug)]
pub struct Missing<'a>(pub &'a [Chained], pub &'a Path);

impl fmt::Display for Missing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Missing(missing, bin_dir) = self;
        let list = |word: fn(Chained) -> &'static str| {
            missing.iter().map(|&one| word(one)).collect::<Vec<_>>().join(" and ")
        };
        write!(
            f,
            "{} not found in {}, so that {} have no effect on this node: install the CNI project's plugins there, or take it out of nodeAgent.cni.chain",
            list(Chained::name),
            bin_dir.display(),
            list(Chained::purpose)
        )
    }
}

/// Finds plugins; remembers each file's answer.
#[derive(Debug, Default)]
pub struct Finder {
    answers: HashMap<PathBuf, (Option<SystemTime>, u64, bool)>,
}

impl Finder {
    /// Searches this folder for the wanted plugins, for further ones and for those of others.
    pub async fn find(
        &mut self,
        wanted: &[Chained],
        further: &Further,
        others: Vec<String>,
        bin_dir: &Path,
    ) -> Chain {
        let mut chain = Chain { supports_1_1: true, further: further.clone(), ..Chain::default() };
        for &plugin in wanted {
            match self.ask(&bin_dir.join(plugin.name())).await {
                None => chain.missing.push(plugin),
                Some(supports_1_1) => {
                    chain.found.push(plugin);
                    chain.supports_1_1 &= supports_1_1;
                }
            }
        }
        let needed: Vec<&str> = further.types().chain(others.iter().map(String::as_str)).collect();
        for plugin in needed {
            match self.ask(&bin_dir.join(plugin)).await {
                None => chain.needed_missing.push(plugin.to_owned()),
                Some(supports_1_1) => chain.supports_1_1 &= supports_1_1,
            }
        }
        Chain { others, ..chain }
    }

    /// Whether the plugin supports CNI 1.1.0; `None` if it isn't there.
    async fn ask(&mut self, path: &Path) -> Option<bool> {
        let Some(metadata) = fs::metadata(path).ok().filter(fs::Metadata::is_file) else {
            return leads_out_of_sight(path).then_some(false);
        };
        let file = (metadata.modified().ok(), metadata.len());
        let answer = match self.answers.get(path) {
            Some(&(modified, size, answer)) if (modified, size) == file => Some(answer),
            _ => supports_1_1(path).await,
        };
        // A plugin that couldn't be asked, while it is being installed for instance, is asked again at the
        // next inspection.
        self.answers.extend(answer.map(|answer| (path.to_owned(), (file.0, file.1, answer))));
        Some(answer == Some(true))
    }
}

/// Whether this is a link to a folder that isn't there for us: k3s links its plugins to a program in a folder
/// of the release, of which the agent's container shows nothing. The runtime sees it, and names a plugin that
/// is gone at each pod.
fn leads_out_of_sight(path: &Path) -> bool {
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        let Ok(target) = fs::read_link(&path) else {
            return path.parent().is_some_and(|folder| !folder.exists());
        };
        path = path.parent().map(|folder| folder.join(&target)).unwrap_or(target);
    }
    false
}

/// Asks the plugin for its versions. A plugin that can't be asked (`None`) counts as old: then the chain
/// works, only without STATUS and GC.
async fn supports_1_1(plugin: &Path) -> Option<bool> {
    let mut command = Command::new(plugin);
    command.env_clear().env("CNI_COMMAND", "VERSION");
    let output = child::run(&mut command, br#"{"cniVersion":"1.0.0"}"#, ANSWER_WITHIN).await.ok()?;
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let versions = answer["supportedVersions"].as_array();
    Some(versions.is_some_and(|versions| versions.iter().any(|version| version == "1.1.0")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    const BOTH: [Chained; 2] = [Chained::Portmap, Chained::Bandwidth];

    /// A plugin that reports these versions.
    fn install(dir: &Path, plugin: Chained, versions: &str) {
        let script =
            format!("#!/bin/sh\necho '{{\"cniVersion\":\"1.0.0\",\"supportedVersions\":{versions}}}'\n");
        let (path, new) = (dir.join(plugin.name()), dir.join("new"));
        fs::write(&new, script).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, path).unwrap();
    }

    #[tokio::test]
    async fn installed_plugins_are_chained_and_missing_ones_are_named() {
        let dir = tempfile::tempdir().unwrap();
        install(dir.path(), Chained::Bandwidth, r#"["1.0.0","1.1.0"]"#);
        let chain = Finder::default().find(&BOTH, &Further::default(), vec![], dir.path()).await;
        assert_eq!(chain.found, [Chained::Bandwidth]);
        let message = Missing(&chain.missing, dir.path()).to_string();
        assert!(message.contains("portmap not found in") && message.contains("hostPorts"), "{message}");
        assert!(!message.contains("bandwidth"), "{message}");
    }

    #[tokio::test]
    async fn a_plugin_is_there_that_links_lead_to_out_of_the_containers_sight() {
        let dir = tempfile::tempdir().unwrap();
        let link = |target: &Path, name: &str| symlink(target, dir.path().join(name)).unwrap();
        // As in k3s' folder of plugins: all of them are one program of the release.
        link(&dir.path().join("release/bin/cni"), "cni");
        link(Path::new("cni"), "portmap");
        link(Path::new("gone"), "bandwidth");
        link(Path::new("circle"), "circle");
        let others = || ["cni", "circle"].map(str::to_owned).to_vec();
        let chain = Finder::default().find(&BOTH, &Further::default(), others(), dir.path()).await;
        assert_eq!((chain.found, chain.missing), (vec![Chained::Portmap], vec![Chained::Bandwidth]));
        assert_eq!(chain.needed_missing, ["circle"]);
        assert!(!chain.supports_1_1, "one that can't be asked counts as old");
        fs::create_dir_all(dir.path().join("release/bin")).unwrap();
        let chain = Finder::default().find(&BOTH, &Further::default(), vec![], dir.path()).await;
        assert_eq!(chain.missing, BOTH, "the release isn't there any more");
    }

    #[tokio::test]
    async fn plugins_that_others_have_chained_are_found_and_asked_too() {
        let dir = tempfile::tempdir().unwrap();
        let mesh = || vec!["istio-cni".to_owned()];
        let chain = Finder::default().find(&[], &Further::default(), mesh(), dir.path()).await;
        assert_eq!((chain.others, chain.needed_missing), (mesh(), mesh()));
        fs::write(dir.path().join("istio-cni"), "no program").unwrap();
        let chain = Finder::default().find(&[], &Further::default(), mesh(), dir.path()).await;
        assert_eq!((chain.others, chain.needed_missing), (mesh(), vec![]));
        assert!(!chain.supports_1_1, "one that can't be asked counts as old");
    }

    #[test]
    fn further_plugins_are_entries_of_a_configuration_each_once_and_none_of_ours() {
        let refused = |text: &str| text.parse::<Further>().unwrap_err();
        assert!(refused("tuning").contains("JSON list"));
        assert!(refused(r#"[{"name": "tuning"}]"#).contains("type"));
        assert!(refused(r#"[{"type": "../sh"}]"#).contains("type"));
        assert!(refused(r#"[{"type": "portmap"}]"#).contains("nodeAgent.cni.chain"));
        assert!(refused(r#"[{"type": "tuning"}, {"type": "tuning"}]"#).contains("twice"));
        assert_eq!("[]".parse(), Ok(Further::default()));
    }

    #[tokio::test]
    async fn a_further_plugin_that_is_not_there_is_missed() {
        let dir = tempfile::tempdir().unwrap();
        let further = r#"[{"type": "tuning"}]"#.parse().unwrap();
        let chain = Finder::default().find(&[], &further, vec![], dir.path()).await;
        assert_eq!(chain.needed_missing, ["tuning"]);
    }

    #[test]
    fn entries_of_others_in_the_configuration_stay_in_place() {
        let entry = |plugin: &str, mtu: u32| json!({ "type": plugin, "mtu": mtu });
        let document = |plugins: &[Value]| json!({ "name": "vnetpool", "plugins": plugins });
        let types = |document: &Value| -> Vec<String> {
            entries(document).iter().map(|entry| format!("{} {}", type_of(entry), entry["mtu"])).collect()
        };
        let (ours, portmap) = (|mtu| entry("vnetpool", mtu), |mtu| entry("portmap", mtu));
        let (mesh, tuning) = (entry("linkerd-cni", 1), entry("tuning", 1));
        let found = document(&[ours(1), tuning.clone(), portmap(1), mesh.clone()]);
        let new = merged(&document(&[ours(2), portmap(2)]), &found);
        assert_eq!(types(&new), ["vnetpool 2", "tuning 1", "portmap 2", "linkerd-cni 1"]);
        let less = merged(&document(&[ours(2)]), &found);
        assert_eq!(types(&less), ["vnetpool 2", "tuning 1", "linkerd-cni 1"]);
        let more = merged(&document(&[ours(2), portmap(2)]), &document(&[ours(1), mesh]));
        assert_eq!(types(&more), ["vnetpool 2", "portmap 2", "linkerd-cni 1"]);
        let none = merged(&document(&[ours(2)]), &json!("nonsense"));
        assert_eq!(types(&none), ["vnetpool 2"]);
        // A person has moved it, or taken it out.
        for found in [vec![portmap(1), tuning.clone(), ours(1)], vec![portmap(1), tuning]] {
            let ordered = merged(&document(&[ours(2), portmap(2)]), &document(&found));
            let ours: Vec<String> = types(&ordered).into_iter().filter(|one| one.ends_with('2')).collect();
            assert_eq!(ours, ["vnetpool 2", "portmap 2"], "{found:?}");
        }
    }

    #[tokio::test]
    async fn the_newest_version_is_offered_only_if_every_chained_plugin_speaks_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut finder = Finder::default();
        assert!(finder.find(&BOTH, &Further::default(), vec![], dir.path()).await.supports_1_1, "ours alone");
        install(dir.path(), Chained::Portmap, r#"["0.4.0","1.0.0","1.1.0"]"#);
        install(dir.path(), Chained::Bandwidth, r#"["0.4.0","1.0.0"]"#);
        assert!(!finder.find(&BOTH, &Further::default(), vec![], dir.path()).await.supports_1_1);
        install(dir.path(), Chained::Bandwidth, r#"["0.4.0","1.0.0","1.1.0"]"#);
        // Another test's new process may hold the file open for a moment: then it can't be asked.
        let mut speaks = false;
        for _ in 0..1000 {
            speaks = speaks || finder.find(&BOTH, &Further::default(), vec![], dir.path()).await.supports_1_1;
        }
        assert!(speaks, "another file is asked anew");
        fs::write(dir.path().join("portmap"), "no program").unwrap();
        assert!(
            !finder.find(&BOTH, &Further::default(), vec![], dir.path()).await.supports_1_1,
            "can't be asked"
        );
    }
}
