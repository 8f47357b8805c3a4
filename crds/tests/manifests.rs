//! The committed CustomResourceDefinitions are the ones these types generate, here and in the chart.

#[test]
fn the_committed_manifests_are_current() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    for crd in vnetpool_crds::definitions().unwrap() {
        let generated = serde_yaml_ng::to_string(&crd).unwrap();
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

#[test]
fn the_committed_reference_of_conditions_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/conditions.md");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == vnetpool_crds::reference::page(),
        "docs/reference is not current: run `make manifests` and commit what it writes"
    );
}
