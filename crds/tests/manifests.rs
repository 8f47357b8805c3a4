//! The committed CustomResourceDefinitions are the ones these types generate, here and in the chart.

use serde::Deserialize;
use serde_json::Value;

#[test]
fn the_committed_manifests_are_current() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    for crd in vnetpool_crds::definitions().unwrap() {
        let generated = vnetpool_crds::manifest(&crd).unwrap();
        for folder in ["crds/manifests", "charts/vnetpool/crds"] {
            let path = format!("{root}/{folder}/{}.yaml", crd.spec.names.plural);
            let committed = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                committed == generated,
                "{folder} is not current: run `make manifests` and commit what it writes"
            );
        }
    }
}

/// The file of a release is made so, and `kubectl apply` takes it: of two definitions in one document it
/// would take the last alone.
#[test]
fn the_manifests_one_after_another_are_both_definitions() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let text: String = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let names: Vec<String> = serde_yaml_ng::Deserializer::from_str(&text)
        .map(|document| Value::deserialize(document).unwrap())
        .map(|object| object["metadata"]["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["nodeipallocations.vnetpool.io", "nodeippools.vnetpool.io"]);
}

#[test]
fn the_committed_reference_of_conditions_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/conditions.md");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == vnetpool_crds::reference::page(),
        "docs/reference is not current: run `make manifests` and commit what it writes"
    );
}
