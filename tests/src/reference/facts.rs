//! What Vnetpool needs and takes: facts of the code, of the chart's defaults, and of the versions that the
//! tests pin. The pages of limits and of support are made from them.

use crate::project::{pinned, root};
use anyhow::{Context, Result};
use serde_json::Value;
use vnetpool_plugin::cni::Version;
use vnetpool_plugin::wiring::kernel;

pub(super) struct Facts {
    /// The oldest Kubernetes that the chart takes.
    pub oldest_kubernetes: String,
    /// The Kubernetes of the test cluster, and that of an API server which only some tests have.
    pub kubernetes: String,
    pub older_kubernetes: String,
    /// The newer one of the tests. The older one is Debian's.
    pub containerd: String,
    /// The oldest Linux, and the oldest with `wiring: Bridge`.
    pub linux: String,
    pub bridge_linux: String,
    /// The architectures that the chart's images are for unless its values name others.
    pub architectures: String,
    /// The oldest and the newest version of CNI.
    pub cni: [&'static str; 2],
    /// The part of Azure's request limits that a cluster uses unless the values give another.
    pub budget_percent: u64,
}

pub(super) const DEBIANS_CONTAINERD: &str = "1.6";

impl Facts {
    pub fn gather() -> Result<Facts> {
        let range = of_the_chart("Chart.yaml")?;
        let range = range["kubeVersion"].as_str().context("the chart names no Kubernetes")?;
        let values = of_the_chart("values.yaml")?;
        let architectures = values["image"]["architectures"].as_array().context("no architectures")?;
        let architectures: Vec<_> = architectures.iter().filter_map(Value::as_str).collect();
        let [first, .., last] = Version::ALL;
        Ok(Facts {
            oldest_kubernetes: minor(range.trim_start_matches(">=")),
            kubernetes: pinned("", "k8s.io/kubernetes")?,
            older_kubernetes: pinned("older", "k8s.io/kubernetes")?,
            containerd: minor(&pinned("containerd", "github.com/containerd/containerd/v2")?),
            linux: kernel::TRANSLATION.linux(),
            bridge_linux: kernel::LOCKED_PORTS.linux(),
            architectures: architectures.join(", "),
            cni: [first.as_str(), last.as_str()],
            budget_percent: values["azure"]["budgetPercent"].as_u64().context("no budgetPercent")?,
        })
    }
}

/// Where the programs answer and the plugin lies, unless the values give another place.
pub(super) struct Ports {
    pub operator: u64,
    pub agent: u64,
    pub bin: String,
    pub conf: String,
}

impl Ports {
    pub fn of_the_chart() -> Result<Ports> {
        let values = of_the_chart("values.yaml")?;
        let port =
            |part: &str| values[part]["adminPort"].as_u64().with_context(|| format!("no port of {part}"));
        let folder =
            |name: &str| values["nodeAgent"]["cni"][name].as_str().map(str::to_owned).context("no folder");
        Ok(Ports {
            operator: port("operator")?,
            agent: port("nodeAgent")?,
            bin: folder("binDir")?,
            conf: folder("confDir")?,
        })
    }
}

fn of_the_chart(file: &str) -> Result<Value> {
    let text = std::fs::read_to_string(root().join("charts/vnetpool").join(file))?;
    Ok(serde_yaml_ng::from_str(&text)?)
}

/// The first two numbers of a version.
pub(super) fn minor(version: &str) -> String {
    version.split('.').take(2).collect::<Vec<_>>().join(".")
}

/// A number as people write it.
pub(super) fn thousands(number: u32) -> String {
    match number {
        0..1000 => number.to_string(),
        _ => format!("{},{:03}", thousands(number / 1000), number % 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_kubernetes_of_the_tests_is_the_oldest_that_the_chart_takes() {
        let facts = Facts::gather().unwrap();
        assert_eq!(minor(&facts.older_kubernetes), facts.oldest_kubernetes);
        assert_ne!(facts.older_kubernetes, facts.kubernetes);
    }

    /// These pages are no reference, and written by hand.
    #[test]
    fn the_pages_about_installing_and_upgrading_ask_for_what_the_code_and_the_chart_take() {
        let facts = Facts::gather().unwrap();
        let kubernetes = format!("Kubernetes {} or newer", facts.oldest_kubernetes);
        for (page, need) in [
            ("docs/install.md", format!("Linux {} or newer on {}", facts.linux, facts.architectures)),
            ("docs/install.md", format!("containerd {DEBIANS_CONTAINERD} or newer")),
            ("docs/install.md", kubernetes.clone()),
            ("docs/upgrade.md", kubernetes),
            ("docs/upgrade.md", format!("nodes of {}", minor(&facts.kubernetes))),
        ] {
            let text = std::fs::read_to_string(root().join(page)).unwrap();
            assert!(text.contains(&need), "{page} doesn't name: {need}");
        }
    }

    /// They are to be installed before anything else, so people read of them on these pages.
    #[test]
    fn the_pages_for_a_first_run_name_the_rust_and_the_go_that_the_project_takes() {
        let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
        let after = |text: &str, mark: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(mark)).unwrap().to_owned();
            minor(line.trim_end_matches('"'))
        };
        let rust = after(&read("Cargo.toml"), "rust-version = \"");
        let needs = format!("Rust {rust} and Go {}", after(&read("tests/cluster/go.mod"), "go "));
        for page in ["README.md", "docs/tutorial-laptop.md"] {
            assert!(read(page).contains(&needs), "{page} doesn't name {needs}");
        }
    }

    #[test]
    fn a_number_has_its_thousands_apart() {
        let numbers = [0, 999, 1000, 65_536, 1_000_001];
        assert_eq!(numbers.map(thousands), ["0", "999", "1,000", "65,536", "1,000,001"]);
    }
}
