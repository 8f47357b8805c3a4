//! Prints the CustomResourceDefinitions, one YAML document a kind.
//!
//! With two folders as arguments it writes the definitions into the first, and the reference page of
//! conditions into the second.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut folders = std::env::args_os().skip(1).map(PathBuf::from);
    let (manifests, reference) = (folders.next(), folders.next());
    for crd in vnetpool_crds::definitions()? {
        let yaml = vnetpool_crds::manifest(&crd)?;
        match &manifests {
            Some(folder) => std::fs::write(folder.join(format!("{}.yaml", crd.spec.names.plural)), yaml)?,
            None => print!("{yaml}"),
        }
    }
    if let Some(folder) = reference {
        std::fs::write(folder.join("conditions.md"), vnetpool_crds::reference::page())?;
    }
    Ok(())
}
