//! The logs of the cluster, and two more among them. Those of plugins are in each node's memory, and go with
//! its boot. Azure's is in the simulator's memory, which the exchanges of hours would fill.

use crate::world::World;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
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

/// Moves what was written to Azure since the last time to the logs of the cluster. An exchange that ends just
/// now may be left out.
pub async fn keep_azure_log(world: &World) -> Result<()> {
    let log = world.cluster.azure.raw_log().await?;
    world.cluster.azure.admin("DELETE", "/log", json!({})).await?;
    let kept = world.dir.join("logs/azure.writes.log");
    let mut file = fs::File::options().create(true).append(true).open(&kept)?;
    file.write_all(written(&log).as_bytes()).with_context(|| kept.display().to_string())
}

/// All that was written to Azure, a line for each request.
fn written(log: &Value) -> String {
    let writes = log.as_array().into_iter().flatten().filter(|one| one["method"] != "GET");
    let line = |one: &Value| {
        let [time, method, path, status, response] =
            ["time", "method", "path", "status", "response"].map(|field| &one[field]);
        let addresses = addresses(response);
        format!("{} {method} {path}: {status}, holds {addresses:?}\n", time.as_str().unwrap_or_default())
    };
    writes.map(line).collect()
}

/// The addresses of a NIC's document.
fn addresses(nic: &Value) -> Vec<&str> {
    let all = nic["properties"]["ipConfigurations"].as_array().into_iter().flatten();
    all.filter_map(|one| one["properties"]["privateIPAddress"].as_str()).collect()
}

/// All logs below a folder, each with its name. Those of a pod may go with it meanwhile.
pub fn read_all(folder: &Path) -> Vec<(String, String)> {
    let mut logs = vec![];
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        // A node has links, too, which lead to nothing outside of it.
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => logs.extend(read_all(&path)),
            Ok(kind) if kind.is_file() => {
                let text = String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned();
                logs.push((entry.file_name().to_string_lossy().into_owned(), text));
            }
            _ => {}
        }
    }
    logs
}
