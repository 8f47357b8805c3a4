//! What is supported, how it was tested, and for how long it stays so.

use super::facts::{DEBIANS_CONTAINERD, Facts};
use super::{head, wrapped};
use anyhow::Result;
use std::fmt::Write;

pub(super) fn page() -> Result<String> {
    let from = "`tests/src/reference/support.rs`, with the versions of the code, the chart and the tests";
    let mut page = head("Support", from);
    page += "\n| | supported | how it was tested |\n|---|---|---|\n";
    for [part, supported, tested] in matrix(&Facts::gather()?) {
        let _ = writeln!(page, "| {part} | {supported} | {tested} |");
    }
    page += "\n## Releases\n\n";
    let text = "The newest minor release gets fixes, and the one before it for three months. Operator and agents may be \
                one minor release apart, either way round; [upgrading](../upgrade.md) says in which order they are \
                replaced.";
    page += &wrapped("", "", text);
    page +=
        "\n## The API's way to 1.0\n\n| version of the API | what holds | what it takes |\n|---|---|---|\n";
    for [version, holds, takes] in GRADUATION {
        let _ = writeln!(page, "| {version} | {holds} | {takes} |");
    }
    let text =
        "Metrics and reasons of conditions are part of the API from `v1beta1` on. Log lines never are.";
    Ok(page + &format!("\n{}", wrapped("", "", text)))
}

fn matrix(facts: &Facts) -> [[String; 3]; 7] {
    let Facts { oldest_kubernetes, kubernetes, older_kubernetes, containerd, .. } = facts;
    let Facts { linux, bridge_linux, architectures, .. } = facts;
    let row = |part: &str, supported: String, tested: String| [part.to_owned(), supported, tested];
    [
        row(
            "Kubernetes",
            format!("{oldest_kubernetes} and newer"),
            format!(
                "{kubernetes}, with its own specs of sig-network (`make conformance`); API server and controllers of \
                 {older_kubernetes}, without nodes (`make older-kubernetes`)"
            ),
        ),
        row(
            "Linux on nodes",
            format!("{linux} and newer; {bridge_linux} with `wiring: Bridge`"),
            "6.18 in all tests; 6.1 of Debian 12 in those of rules, routes and links (`make older-linux`)".into(),
        ),
        row(
            "architecture",
            format!("{architectures}; arm64 with images of your own; nodes of others are left alone"),
            "amd64; for arm64 the build, and most unit tests of agent and plugin in an emulator (`make arm64`)"
                .into(),
        ),
        row(
            "container runtime",
            format!("containerd {DEBIANS_CONTAINERD} and newer; not CRI-O, with which it never ran"),
            format!("containerd {DEBIANS_CONTAINERD} and {containerd}"),
        ),
        row("kube-proxy", "iptables, nftables".into(), "both".into()),
        row("cgroups", "v1, v2".into(), "v1".into()),
        row(
            "Azure",
            "single VMs, scale sets in flexible and uniform mode, AKS without a network plugin".into(),
            "a simulated Azure".into(),
        ),
    ]
}

const GRADUATION: [[&str; 3]; 3] = [
    ["`v1alpha1`, now", "fields may change in any minor release; the changelog says how to move", ""],
    [
        "`v1beta1`",
        "no field is removed or changes its meaning within two minor releases; a conversion webhook isn't needed, \
         since both versions have one shape",
        "three months on clusters of others, an upgrade and a rollback tested from each release",
    ],
    ["`v1`", "no field is removed", "a year of `v1beta1` without a change of shape"],
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_target_that_the_matrix_names_is_one_of_the_makefile() {
        let makefile = std::fs::read_to_string(crate::project::root().join("Makefile")).unwrap();
        let page = page().unwrap();
        let targets: Vec<_> =
            page.split("`make ").skip(1).filter_map(|rest| rest.split('`').next()).collect();
        assert!(targets.len() >= 4, "{targets:?}");
        for target in targets {
            assert!(makefile.contains(&format!("\n{target}:")), "there is no target {target}");
        }
    }
}
