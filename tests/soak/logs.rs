//! The logs of the cluster, and those of plugins among them: these are in each node's memory, and go with its
//! boot.

use crate::world::World;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Copies the plugins' log of a node, the older part first, to the logs of the cluster.
pub fn keep_plugin_logs(world: &World, node: &str) -> Result<()> {
    let host = world.cluster.host(node)?;
    let parts = ["plugin.log.1", "plugin.log"].map(|name| host.path(&format!("/run/vnetpool/{name}")));
    // The older one is there only after a while, and none before the first verb.
    let text: Vec<u8> = parts.iter().flat_map(|part| fs::read(part).unwrap_or_default()).collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let copy = world.dir.join(format!("logs/{node}.plugin.{now}.log"));
    fs::write(&copy, text).with_context(|| copy.display().to_string())
}

/// All logs below a folder, each with its name.
pub fn read_all(folder: &Path) -> Result<Vec<(String, String)>> {
    let mut logs = vec![];
    for entry in fs::read_dir(folder)?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            logs.extend(read_all(&path)?);
        } else {
            let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
            logs.push((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), text));
        }
    }
    Ok(logs)
}
