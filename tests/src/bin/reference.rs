//! Writes the pages of the documents that are made from the programs: `make manifests`.

use anyhow::Result;
use vnetpool_tests::project::root;
use vnetpool_tests::reference;

fn main() -> Result<()> {
    for (path, page) in reference::pages()? {
        std::fs::write(root().join(path), page)?;
    }
    Ok(())
}
