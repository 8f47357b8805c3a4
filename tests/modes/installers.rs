//! Stand-ins for the programs by which meshes keep their entry in a node's CNI configuration. Each watches
//! the folder as the mesh's own program does, by the same events, and writes to it in the same way.

use anyhow::{Context, Result};
use futures::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::task::JoinHandle;

const OURS: &str = "10-vnetpool.conflist";
/// The file of Istio's own, from its release 1.27 on.
const IN_FRONT: &str = "02-istio-conf.conflist";

/// What keeps the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mesh {
    /// Up to Istio 1.26: it appends its entry to the first configuration by name. After any event in the
    /// folder it does so again, unless its entry is there. It replaces the file as a whole.
    Istio,
    /// From Istio 1.27 on: it keeps a file in front with the entries of ours and its own behind them.
    IstioInFront,
    /// Linkerd: each configuration that came or was changed, and that it hasn't written itself, gets its
    /// entry anew. It moves the new file there from another file system, so that there is none for a moment.
    Linkerd,
}

impl Mesh {
    pub const ALL: [Mesh; 3] = [Mesh::Istio, Mesh::IstioInFront, Mesh::Linkerd];

    /// The name of its plugin.
    pub fn plugin(self) -> &'static str {
        match self {
            Mesh::Istio | Mesh::IstioInFront => "istio-cni",
            Mesh::Linkerd => "linkerd-cni",
        }
    }

    fn file(self) -> &'static str {
        match self {
            Mesh::Istio | Mesh::Linkerd => OURS,
            Mesh::IstioInFront => IN_FRONT,
        }
    }

    /// The configuration with its entry behind all others.
    fn appended(self, mut configuration: Value) -> Result<Value> {
        self.take_out(&mut configuration)?.push(json!({ "type": self.plugin(), "log_level": "info" }));
        Ok(configuration)
    }

    /// The other entries.
    fn take_out(self, configuration: &mut Value) -> Result<&mut Vec<Value>> {
        let plugins = configuration["plugins"].as_array_mut().context("no list of plugins")?;
        plugins.retain(|entry| entry["type"] != self.plugin());
        Ok(plugins)
    }
}

/// One of them at work on a node, until this is dropped.
pub struct Installer {
    mesh: Mesh,
    folder: PathBuf,
    put_back: Arc<AtomicU32>,
    task: JoinHandle<Result<()>>,
}

impl Installer {
    /// # Errors
    /// When the folder can't be watched.
    pub fn start(mesh: Mesh, folder: PathBuf) -> Result<Self> {
        let put_back = Arc::new(AtomicU32::new(0));
        let keeper = Keeper { mesh, folder: folder.clone(), put_back: Arc::clone(&put_back) };
        let task = match mesh {
            Mesh::Istio | Mesh::IstioInFront => tokio::spawn(keeper.keep_like_istio()),
            Mesh::Linkerd => tokio::spawn(keeper.keep_like_linkerd()),
        };
        Ok(Self { mesh, folder, put_back, task })
    }

    /// The configuration that the runtime uses, as it is now.
    ///
    /// # Errors
    /// Also for a moment while it is replaced.
    pub fn configuration(&self) -> Result<Value> {
        read(&self.folder.join(self.mesh.file()))
    }

    /// The types of its entries.
    ///
    /// # Errors
    /// As [`Installer::configuration`].
    pub fn plugins(&self) -> Result<Vec<String>> {
        let configuration = self.configuration()?;
        let plugins = configuration["plugins"].as_array().context("no list of plugins")?;
        Ok(plugins.iter().filter_map(|entry| Some(entry["type"].as_str()?.to_owned())).collect())
    }

    /// How often the entry wasn't there, so that it had to be put there.
    pub fn put_back(&self) -> u32 {
        self.put_back.load(Ordering::Relaxed)
    }

    /// Ends it as the deletion of its pod does: it takes its entry out first.
    ///
    /// # Errors
    /// When it had ended by itself, or can't write.
    pub async fn end(mut self) -> Result<()> {
        self.task.abort();
        match (&mut self.task).await {
            Err(error) if error.is_cancelled() => {}
            ended => ended?.context("the installer has ended by itself")?,
        }
        let (folder, file) = (&self.folder, self.folder.join(self.mesh.file()));
        if self.mesh == Mesh::IstioInFront {
            return Ok(fs::remove_file(file)?);
        }
        let mut without = read(&file)?;
        self.mesh.take_out(&mut without)?;
        match self.mesh {
            Mesh::Linkerd => Ok(fs::write(file, pretty(&without)?)?),
            _ => replace(folder, self.mesh.file(), &without),
        }
    }
}

impl Drop for Installer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The part that watches and writes.
struct Keeper {
    mesh: Mesh,
    folder: PathBuf,
    put_back: Arc<AtomicU32>,
}

impl Keeper {
    async fn keep_like_istio(self) -> Result<()> {
        loop {
            // A watch for each wait, so that it isn't woken by what it has written itself. It is there before
            // the check, so that nothing in between is missed.
            let any = WatchMask::MOVE | WatchMask::CREATE | WatchMask::MODIFY | WatchMask::DELETE;
            let mut events = watch(&self.folder, any | WatchMask::ATTRIB)?;
            if let Some(wanted) = self.amiss() {
                self.put_back.fetch_add(1, Ordering::Relaxed);
                replace(&self.folder, self.mesh.file(), &wanted)?;
                continue;
            }
            events.next().await.context("no events")??;
        }
    }

    /// What its file is to be, if it isn't so. A configuration that isn't whole is waited for.
    fn amiss(&self) -> Option<Value> {
        let ours = read(&self.folder.join(OURS)).ok()?;
        let wanted = self.mesh.appended(ours.clone()).ok()?;
        let is_right = match self.mesh {
            Mesh::IstioInFront => read(&self.folder.join(IN_FRONT)).is_ok_and(|found| found == wanted),
            _ => has_entry(&ours, self.mesh),
        };
        (!is_right).then_some(wanted)
    }

    async fn keep_like_linkerd(self) -> Result<()> {
        let mut events = watch(&self.folder, WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::MODIFY)?;
        let path = self.folder.join(OURS);
        // At its start it moves each file to where it is, for the events of it.
        move_from_elsewhere(&path, &fs::read(&path)?)?;
        let mut written = HashMap::new();
        while let Some(event) = events.next().await {
            let Some(name) = event?.name.and_then(|name| name.into_string().ok()) else { continue };
            if !name.ends_with(".conf") && !name.ends_with(".conflist") {
                continue;
            }
            let path = self.folder.join(&name);
            let Ok(text) = fs::read(&path) else { continue };
            if written.get(&name) == Some(&text) {
                continue;
            }
            // Its jq prints nothing of half a file.
            let Ok(found) = serde_json::from_slice::<Value>(&text) else { continue };
            let has_entry = has_entry(&found, self.mesh);
            let new = pretty(&self.mesh.appended(found)?)?;
            written.insert(name, new.clone());
            move_from_elsewhere(&path, &new)?;
            self.put_back.fetch_add(u32::from(!has_entry), Ordering::Relaxed);
        }
        Ok(())
    }
}

fn watch(folder: &Path, events: WatchMask) -> Result<EventStream<[u8; 4096]>> {
    let inotify = Inotify::init()?;
    inotify.watches().add(folder, events)?;
    Ok(inotify.into_event_stream([0; 4096])?)
}

fn has_entry(configuration: &Value, mesh: Mesh) -> bool {
    let plugins = configuration["plugins"].as_array();
    plugins.is_some_and(|plugins| plugins.iter().any(|entry| entry["type"] == mesh.plugin()))
}

fn read(file: &Path) -> Result<Value> {
    let text = fs::read(file).with_context(|| file.display().to_string())?;
    Ok(serde_json::from_slice(&text)?)
}

fn pretty(configuration: &Value) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec_pretty(configuration)?)
}

/// By a second name in the same folder.
fn replace(folder: &Path, name: &str, configuration: &Value) -> Result<()> {
    let new = folder.join(format!("{name}.tmp.1"));
    fs::write(&new, pretty(configuration)?)?;
    Ok(fs::rename(new, folder.join(name))?)
}

/// As mv does it between file systems: the old file goes before the new one comes.
fn move_from_elsewhere(path: &Path, content: &[u8]) -> Result<()> {
    fs::remove_file(path)?;
    Ok(fs::write(path, content)?)
}
