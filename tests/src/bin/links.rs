//! Fails if a link within the site in this folder leads nowhere: the end of `make book`.

use anyhow::{Context, Result, ensure};
use vnetpool_tests::site;

fn main() -> Result<()> {
    let folder = std::env::args_os().nth(1).context("which folder?")?;
    let dead = site::dead_links(folder.as_ref())?;
    ensure!(dead.is_empty(), "{} dead links:\n{}", dead.len(), dead.join("\n"));
    Ok(())
}
