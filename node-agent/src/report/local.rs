//! The report of a VM that belongs to no cluster: the same status as in a cluster, in a file beside the
//! ledger.

use std::{fs, path::Path};

use anyhow::Context;
use vnetpool_crds::NodeIPAllocationStatus;
use vnetpool_plugin::ledger::file::replace;

use super::{compose, is_published, publish::Publisher};
use crate::install::if_there;

/// The file's name in the state folder.
const STATUS: &str = "status.json";

/// Writes each report with news; ends only when the agent does.
pub async fn write(mut publisher: Publisher) -> anyhow::Result<()> {
    let path = publisher.state_dir.join(STATUS);
    loop {
        let report = publisher.reports.borrow_and_update().clone();
        if let Some(report) = report {
            let written = read(&publisher.state_dir)?;
            let status = compose(&report, written.as_ref());
            if !is_published(&status, written.as_ref()) {
                let put = replace(&path, [serde_json::to_vec_pretty(&status)?.as_slice()]);
                publisher.metrics.count_report(put.is_ok());
                put.with_context(|| format!("can't write {}", path.display()))?;
            }
        }
        publisher.reports.changed().await?;
    }
}

/// The last written report; `None` if there is nothing, or nothing of this release's.
pub fn read(state_dir: &Path) -> anyhow::Result<Option<NodeIPAllocationStatus>> {
    let path = state_dir.join(STATUS);
    let text = if_there(fs::read(&path)).with_context(|| format!("can't read {}", path.display()))?;
    Ok(text.and_then(|text| serde_json::from_slice(&text).ok()))
}
