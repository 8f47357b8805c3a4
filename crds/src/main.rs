//! Prints the CustomResourceDefinitions, one YAML document a kind; with a folder as argument writes them there instead.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args_os().nth(1).map(std::path::PathBuf::from);
    for crd in vnetpool_crds::definitions()? {
        let yaml = serde_yaml_ng::to_string(&crd)?;
        match &folder {
            Some(folder) => std::fs::write(folder.join(format!("{}.yaml", crd.spec.names.plural)), yaml)?,
            None => print!("---\n{yaml}"),
        }
    }
    Ok(())
}
