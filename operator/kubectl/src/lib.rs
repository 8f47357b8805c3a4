//! `kubectl vnetpool`: which pod has which address, why a node has no more, what an edit would do, and
//! whether NIC, `spec`, ledger, kernel and pods agree.
//!
//! ```text
//!  kubectl    the one way to the cluster: objects, and what the programs print when they are started in their pods
//!  cluster    the objects, read
//!  status, who, explain, subnets, plan, check, migrate    each a pure function from what was read to what is shown
//!  bundle, redact    everything for whoever is to help, without ids and secrets
//! ```
//!
//! Nothing here writes to the cluster or to Azure, but for the annotation by which `check --repair` has the
//! operator read NICs.

pub mod args;
pub mod bundle;
pub mod check;
pub mod cluster;
pub mod complete;
pub mod explain;
pub mod kubectl;
pub mod migrate;
pub mod plan;
pub mod pod;
mod redact;
mod show;
pub mod status;
pub mod subnets;
pub mod who;

#[cfg(test)]
mod fixture;

#[cfg(test)]
mod tests {
    use serde_json::Value;

    /// krew's demands on a manifest: docs/PLUGIN_LIFECYCLE and the naming guide of krew-index.
    #[test]
    fn the_krew_manifest_is_one_when_a_release_has_filled_it_in() {
        let filled = include_str!("../krew.yaml")
            .replace("$VERSION", env!("CARGO_PKG_VERSION"))
            .replace("$URI", "https://example.test")
            .replace("$SHA256_amd64", &"0".repeat(64))
            .replace("$SHA256_arm64", &"1".repeat(64));
        assert!(!filled.lines().any(|line| !line.starts_with('#') && line.contains('$')), "{filled}");
        let manifest: Value = serde_yaml_ng::from_str(&filled).unwrap();
        assert_eq!(manifest["apiVersion"], "krew.googlecontainertools.github.com/v1alpha2");
        assert_eq!(
            (manifest["kind"].as_str(), manifest["metadata"]["name"].as_str()),
            (Some("Plugin"), Some("vnetpool"))
        );
        let spec = &manifest["spec"];
        assert!(spec["version"].as_str().unwrap().starts_with('v'));
        assert!(spec["shortDescription"].as_str().unwrap().len() <= 50);
        for platform in spec["platforms"].as_array().unwrap() {
            assert!(platform["selector"]["matchLabels"]["os"].is_string());
            assert!(platform["uri"].as_str().unwrap().ends_with(".tar.gz"));
            assert_eq!(platform["sha256"].as_str().unwrap().len(), 64);
            assert_eq!(platform["bin"], "kubectl-vnetpool");
        }
    }
}
