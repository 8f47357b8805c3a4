//! `migrate --check`: the obstacles that keep the nodes of a cluster with another pod network from being
//! served by Vnetpool, and the points to consider before the first of them is drained. Pure, but for the
//! reading.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::Result;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use serde::Serialize;
use vnetpool_operator::Architectures;
use vnetpool_operator::azure::VmId;
use vnetpool_operator::outlook::{Cause, cause_of_whole, needs_address};

use crate::kubectl::Kubectl;
use crate::pod::{addresses_of, full_name, node_of};
use crate::show::table;

/// The oldest Kubernetes that the chart takes, and the oldest Linux that its agents do.
const KUBERNETES: (u32, u32) = (1, 32);
const LINUX: (u32, u32) = (5, 5);

/// DaemonSets by which other networks are known, with their fate.
const NETWORKS: [(&str, &str); 9] = [
    ("azure-cns", "Azure CNI. Keep it off the nodes that Vnetpool serves."),
    ("azure-npm", "Azure's policy manager needs Azure CNI. Calico enforces policies beside Vnetpool."),
    ("cilium", "Cilium. It can stay for its data path and policies, with vnetpool-ipam: see docs/ipam.md."),
    (
        "calico-node",
        "Calico. It can stay for policies, as docs/network-policy.md has it; its own network can't.",
    ),
    ("kube-flannel-ds", "Flannel. Keep it off the nodes that Vnetpool serves."),
    ("kube-router", "kube-router. Keep its network off the nodes that Vnetpool serves."),
    ("weave-net", "Weave Net. Keep it off the nodes that Vnetpool serves."),
    ("antrea-agent", "Antrea. Keep it off the nodes that Vnetpool serves."),
    ("ovnkube-node", "OVN-Kubernetes. Keep it off the nodes that Vnetpool serves."),
];

/// The objects that are checked.
#[derive(Clone, Debug, Default)]
pub struct Before {
    pub nodes: Vec<Node>,
    pub pods: Vec<Pod>,
    pub daemon_sets: Vec<DaemonSet>,
    pub policies: Vec<NetworkPolicy>,
    pub budgets: Vec<PodDisruptionBudget>,
}

impl Before {
    /// # Errors
    /// When the API server refuses.
    pub fn read(kubectl: &Kubectl) -> Result<Before> {
        Ok(Before {
            nodes: kubectl.list("/api/v1/nodes")?,
            pods: kubectl.list("/api/v1/pods")?,
            daemon_sets: kubectl.list("/apis/apps/v1/daemonsets")?,
            policies: kubectl.list("/apis/networking.k8s.io/v1/networkpolicies")?,
            budgets: kubectl.list("/apis/policy/v1/poddisruptionbudgets")?,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Weight {
    /// It can't be moved as it is.
    Blocks,
    /// A person has to see to it.
    Mind,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    pub weight: Weight,
    pub about: String,
    pub message: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct Survey {
    pub nodes: usize,
    /// How many pods need an address of the VNet once all have moved.
    pub pods: usize,
    pub findings: Vec<Finding>,
}

impl Survey {
    pub fn is_free(&self) -> bool {
        self.findings.iter().all(|one| one.weight != Weight::Blocks)
    }
}

/// With images for nodes of these architectures.
pub fn report(before: &Before, architectures: &Architectures) -> Survey {
    let of_node = |node| of_node(node, architectures);
    let mut findings: Vec<Finding> = before.nodes.iter().flat_map(of_node).collect();
    findings.extend(before.daemon_sets.iter().filter_map(of_network));
    findings.extend(of_policies(before));
    findings.extend(before.budgets.iter().filter_map(of_budget));
    findings.extend(before.pods.iter().filter_map(of_pod));
    findings.sort();
    let pods = before.pods.iter().filter(|pod| needs_address(pod)).count();
    Survey { nodes: before.nodes.len(), pods, findings }
}

fn blocks(about: String, message: impl Into<String>) -> Finding {
    Finding { weight: Weight::Blocks, about, message: message.into() }
}

fn mind(about: String, message: impl Into<String>) -> Finding {
    Finding { weight: Weight::Mind, about, message: message.into() }
}

fn of_node(node: &Node, architectures: &Architectures) -> Vec<Finding> {
    let about = || format!("Node {}", node.name_any());
    let mut found = vec![];
    match cause_of_whole(node, architectures) {
        Some(cause @ Cause::Architecture) => {
            let sentence = cause.sentence(architectures, &node.name_any());
            found.push(blocks(
                about(),
                format!("{sentence} With an image for it, name it by --architectures."),
            ));
        }
        Some(Cause::Windows | Cause::Virtual) => {
            return vec![mind(about(), "Windows and virtual nodes are left alone: it keeps its network.")];
        }
        None => {}
    }
    let spec = node.spec.clone().unwrap_or_default();
    if let Err(error) = VmId::from_provider_id(spec.provider_id.as_deref().unwrap_or_default()) {
        found.push(blocks(about(), error.to_string()));
    }
    if spec.pod_cidrs.iter().flatten().any(|range| range.contains(':')) {
        found.push(blocks(about(), "It gives pods IPv6 addresses, and Vnetpool has none."));
    }
    let Some(info) = node.status.as_ref().and_then(|status| status.node_info.as_ref()) else { return found };
    let is_older = |version: &str, least| numbers(version).is_some_and(|version| version < least);
    if is_older(&info.kernel_version, LINUX) {
        let message = format!("It runs Linux {}; 5.5 is the oldest that does.", info.kernel_version);
        found.push(blocks(about(), message));
    }
    if is_older(info.kubelet_version.trim_start_matches('v'), KUBERNETES) {
        let message = format!("It runs Kubernetes {}; 1.32 is the oldest that does.", info.kubelet_version);
        found.push(blocks(about(), message));
    }
    found
}

/// The first two numbers of a version.
fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

fn of_network(daemon_set: &DaemonSet) -> Option<Finding> {
    let name = daemon_set.name_any();
    let (_, message) = NETWORKS.iter().find(|(known, _)| *known == name)?;
    Some(mind(format!("DaemonSet {}/{name}", daemon_set.namespace().unwrap_or_default()), *message))
}

fn of_policies(before: &Before) -> Option<Finding> {
    let has_engine = |name: &str| before.daemon_sets.iter().any(|one| one.name_any() == name);
    if before.policies.is_empty() || has_engine("calico-node") || has_engine("cilium") {
        return None;
    }
    let namespaces: BTreeSet<String> = before.policies.iter().filter_map(ResourceExt::namespace).collect();
    let namespaces: Vec<&str> = namespaces.iter().map(String::as_str).collect();
    let message = format!(
        "Nothing would enforce them, in {}: Vnetpool has no policies of its own. See docs/network-policy.md.",
        namespaces.join(", ")
    );
    Some(mind(format!("NetworkPolicies: {}", before.policies.len()), message))
}

fn of_budget(budget: &PodDisruptionBudget) -> Option<Finding> {
    let status = budget.status.as_ref()?;
    (status.disruptions_allowed == Some(0) && status.expected_pods > Some(0)).then(|| {
        let name = format!("{}/{}", budget.namespace().unwrap_or_default(), budget.name_any());
        mind(format!("PodDisruptionBudget {name}"), "It allows no pod to be evicted now: a drain would wait.")
    })
}

fn of_pod(pod: &Pod) -> Option<Finding> {
    let about = || format!("Pod {}", full_name(pod));
    if !needs_address(pod) || node_of(pod).is_none() {
        return None;
    }
    if addresses_of(pod).iter().any(|address| address.contains(':')) {
        return Some(blocks(about(), "It has an IPv6 address, and Vnetpool gives none."));
    }
    let is_kept = pod.owner_references().iter().any(|owner| owner.controller == Some(true));
    (!is_kept).then(|| mind(about(), "Nothing makes it again: it is gone once its node is drained."))
}

impl fmt::Display for Survey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.findings.is_empty() {
            let row = |one: &Finding| {
                let weight = if one.weight == Weight::Blocks { "blocks" } else { "mind" };
                vec![weight.to_owned(), one.about.clone(), one.message.clone()]
            };
            let rows: Vec<_> = self.findings.iter().map(row).collect();
            writeln!(f, "{}", table(&["", "WHAT", "WHY"], &rows))?;
        }
        let blocking = self.findings.iter().filter(|one| one.weight == Weight::Blocks).count();
        writeln!(
            f,
            "Nodes: {}; pods that need an address: {}; findings that block: {blocking}, others: {}.",
            self.nodes,
            self.pods,
            self.findings.len() - blocking
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Args, Command};
    use clap::Parser;
    use serde_json::{Value, from_value, json};

    const VM: &str = "azure:///subscriptions/0f1e2d3c-0000-4000-8000-00000000000a/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/a";

    fn node(name: &str, provider_id: &str, [os, architecture, kernel, kubelet]: [&str; 4]) -> Node {
        let labels = json!({"kubernetes.io/os": os, "kubernetes.io/arch": architecture});
        from_value(json!({"metadata": {"name": name, "labels": labels}, "spec": {"providerID": provider_id},
            "status": {"nodeInfo": {"bootID": "", "architecture": architecture, "containerRuntimeVersion": "",
                "kernelVersion": kernel, "kubeProxyVersion": "", "kubeletVersion": kubelet, "machineID": "",
                "operatingSystem": "", "osImage": "", "systemUUID": ""}}}))
        .unwrap()
    }

    fn pod(name: &str, owner: Value, address: &str) -> Pod {
        from_value(json!({"metadata": {"namespace": "shop", "name": name, "ownerReferences": owner},
            "spec": {"nodeName": "a", "containers": []},
            "status": {"phase": "Running", "podIPs": [{"ip": address}]}}))
        .unwrap()
    }

    fn owned() -> Value {
        json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u", "controller": true}])
    }

    fn images_for(names: &[&str]) -> Architectures {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_cluster_that_can_move_has_no_finding() {
        let before = Before {
            nodes: vec![node("a", VM, ["linux", "amd64", "5.15.0-1064-azure", "v1.32.1"])],
            pods: vec![pod("web", owned(), "10.0.0.4")],
            ..Before::default()
        };
        let report = report(&before, &images_for(&["amd64"]));
        assert!(report.is_free());
        assert_eq!(
            report.to_string(),
            "Nodes: 1; pods that need an address: 1; findings that block: 0, others: 0.\n"
        );
    }

    #[test]
    fn a_node_of_an_architecture_blocks_only_as_long_as_no_image_is_for_it() {
        let nodes = vec![
            node("arm", VM, ["linux", "arm64", "6.1.0", "v1.33.0"]),
            node("win", "", ["windows", "arm64", "", ""]),
        ];
        let before = Before { nodes, ..Before::default() };
        let blocks = |names: &[&str]| {
            let mut findings = report(&before, &images_for(names)).findings;
            findings.retain(|one| one.weight == Weight::Blocks);
            findings.into_iter().map(|one| one.message).collect::<Vec<_>>()
        };
        let expected = "There are images for amd64 (value image.architectures of the chart), and nodes of other \
                        architectures are left alone: arm. With an image for it, name it by --architectures.";
        assert_eq!(blocks(&["amd64"]), [expected]);
        assert!(blocks(&["amd64", "arm64"]).is_empty());
    }

    /// Before anything is installed they are all there is to go by.
    #[test]
    fn what_is_taken_for_granted_is_what_the_chart_has() {
        let values: Value =
            serde_yaml_ng::from_str(include_str!("../../../charts/vnetpool/values.yaml")).unwrap();
        let Args { command: Command::Migrate { architectures, .. }, .. } =
            Args::parse_from(["kubectl vnetpool", "migrate", "--check"])
        else {
            panic!("another command")
        };
        assert_eq!(json!(architectures), values["image"]["architectures"]);
        let chart: Value =
            serde_yaml_ng::from_str(include_str!("../../../charts/vnetpool/Chart.yaml")).unwrap();
        assert_eq!(chart["kubeVersion"], format!(">={}.{}.0-0", KUBERNETES.0, KUBERNETES.1));
    }

    #[test]
    fn blocking_findings_come_first_and_each_finding_names_its_cause() {
        let named =
            |kind: &str, name: &str| json!({"metadata": {"namespace": kind, "name": name}, "spec": {}});
        let daemon_set = json!({"metadata": {"namespace": "kube-system", "name": "azure-cns"}});
        let mut budget = named("shop", "web");
        budget["status"] =
            json!({"currentHealthy": 1, "desiredHealthy": 1, "disruptionsAllowed": 0, "expectedPods": 1});
        let before = Before {
            nodes: vec![
                node("arm", VM, ["linux", "arm64", "6.1.0", "v1.33.0"]),
                node("old", VM, ["linux", "amd64", "5.4.0-azure", "v1.31.2"]),
                node("win", "", ["windows", "amd64", "", ""]),
                node("bare", "", ["linux", "amd64", "6.1.0", "v1.33.0"]),
            ],
            pods: vec![pod("alone", json!([]), "10.0.0.4"), pod("six", owned(), "fd00::4")],
            daemon_sets: vec![from_value(daemon_set).unwrap()],
            policies: vec![from_value(named("shop", "deny")).unwrap()],
            budgets: vec![from_value(budget).unwrap()],
        };
        let report = report(&before, &images_for(&["amd64"]));
        assert!(!report.is_free());
        let found: Vec<_> = report.findings.iter().map(|one| (one.weight, one.about.as_str())).collect();
        let (b, m) = (Weight::Blocks, Weight::Mind);
        let expected = [
            (b, "Node arm"),
            (b, "Node bare"),
            (b, "Node old"),
            (b, "Node old"),
            (b, "Pod shop/six"),
            (m, "DaemonSet kube-system/azure-cns"),
            (m, "NetworkPolicies: 1"),
            (m, "Node win"),
            (m, "Pod shop/alone"),
            (m, "PodDisruptionBudget shop/web"),
        ];
        assert_eq!(found, expected);
        let text = report.to_string();
        for part in [
            "images for amd64",
            "no spec.providerID",
            "Linux 5.4.0-azure",
            "Kubernetes v1.31.2",
            "block: 5, others: 5.",
        ] {
            assert!(text.contains(part), "no {part} in\n{text}");
        }
    }

    #[test]
    fn policies_that_an_engine_enforces_which_can_stay_are_no_matter() {
        let policy = || from_value(json!({"metadata": {"namespace": "shop", "name": "deny"}})).unwrap();
        let engine = json!({"metadata": {"namespace": "calico-system", "name": "calico-node"}});
        let before = Before {
            policies: vec![policy()],
            daemon_sets: vec![from_value(engine).unwrap()],
            ..Before::default()
        };
        let abouts: Vec<_> =
            report(&before, &Architectures::default()).findings.into_iter().map(|one| one.about).collect();
        assert_eq!(abouts, ["DaemonSet calico-system/calico-node"]);
    }
}
