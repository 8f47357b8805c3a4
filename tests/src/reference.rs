//! The pages of `docs` that are made from the programs themselves, most of them in `docs/reference`, and the
//! chart's schema.
//! `make manifests` writes them, and a test of `docs` fails while one isn't current.

mod alerts;
mod commands;
mod facts;
mod kinds;
mod limits;
mod logs;
pub mod metrics;
mod names;
mod permissions;
mod schema;
mod sizing;
mod support;
mod values;

use anyhow::Result;
use vnetpool_crds::reference::wrapped;

/// Each page by its path below the project's root.
///
/// # Errors
/// When a program doesn't give the facts of a page.
pub fn pages() -> Result<Vec<(&'static str, String)>> {
    Ok(vec![
        ("docs/reference/alerts.md", alerts::page()?),
        ("docs/reference/metrics.md", metrics::page()?),
        ("docs/reference/kinds.md", kinds::page()?),
        ("docs/reference/values.md", values::page()?),
        ("charts/vnetpool/README.md", values::readme()?),
        ("charts/vnetpool/values.schema.json", schema::file()?),
        ("docs/reference/logs.md", logs::page()),
        ("docs/reference/commands.md", commands::page()?),
        ("docs/reference/permissions.md", permissions::page()),
        ("docs/reference/names.md", names::page()?),
        ("docs/reference/sizing.md", sizing::page()),
        ("docs/reference/support.md", support::page()?),
        ("docs/limits.md", limits::page()?),
    ])
}

/// The note at the head of every such page.
fn head(title: &str, from: &str) -> String {
    format!("# {title}\n\n{}", wrapped("", "", &format!("`make manifests` makes this page from {from}.")))
}
