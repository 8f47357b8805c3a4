//! What Vnetpool doesn't do, and how far Azure lets it go.

use super::facts::{Facts, thousands};
use super::{head, wrapped};
use anyhow::Result;
use vnetpool_crds::pool::{BLOCK, NETWORK_ADDRESSES, NIC_SLOTS};
use vnetpool_node_agent::beat;
use vnetpool_operator::Waits;
use vnetpool_operator::azure::NETWORK_WRITES;

pub(super) fn page() -> Result<String> {
    let facts = Facts::gather()?;
    let mut page = head(
        "Limits",
        "`tests/src/reference/limits.rs`, with the numbers of the code, the chart and the tests",
    );
    let sections = [
        ("Azure", azure(&facts)),
        ("Nodes", nodes(&facts)),
        ("Pods", pods(&facts)),
        ("What was tested", tested(&facts)),
    ];
    for (title, limits) in sections {
        page += &format!("\n## {title}\n\n");
        page.extend(limits.iter().map(|limit| wrapped("- ", "  ", limit)));
    }
    Ok(page)
}

fn azure(facts: &Facts) -> Vec<String> {
    let minutes = Waits::FULL.unlisted.as_secs() / 60;
    let (slots, network, writes) = (NIC_SLOTS, thousands(NETWORK_ADDRESSES), thousands(NETWORK_WRITES));
    let (all, each) = (facts.budget_percent, facts.budget_percent / 2);
    vec![
        format!(
            "**Scale sets in uniform mode**, AKS' default: Azure chooses addresses, and they are reserved one by one. \
             Pods there get no blocks, no backend pools of load balancers and no public addresses. An upgrade or \
             reimage takes an instance's addresses away. The node notices about a minute after its metadata service \
             has (within {minutes} minutes where that is closed to the agent), and new addresses are reserved. A pod \
             whose address doesn't come back has to be deleted. Flexible scale sets and single virtual machines have \
             none of these limits."
        ),
        "**AKS**: a node resource group under lockdown refuses Vnetpool's writes, and AKS Automatic always has it. \
         Microsoft doesn't support changes that others make to the NICs of AKS nodes."
            .to_owned(),
        format!(
            "**Sizes**: a VM takes {slots} ipConfigurations over all its NICs; each is a single address, or a block \
             of {BLOCK} in mode `Prefix`. A VNet takes {network} of them. Azure counts those on NICs whether pods use \
             them or not. That a block counts once Microsoft says of AKS; the pool's condition `NetworkExhausting` \
             reckons with it."
        ),
        format!(
            "**Blocks and ranges**, modes `Prefix` and `Route`: the metadata service doesn't list them. The loss of \
             one by another client's write is noticed within {minutes} minutes."
        ),
        format!(
            "**Speed**: Azure Resource Manager writes NICs. A write takes about 10 s; a NIC takes one at a time; a \
             subscription takes {writes} in five minutes in a region. A burst beyond `warm` waits for one write. \
             Where writes get scarce, nodes take coarser steps ([sizing](sizing.md))."
        ),
        format!(
            "**Several clusters in one subscription** share Azure's request limits. Each cluster uses up to \
             `azure.budgetPercent` of them, {all} by default: give two clusters {each} each. Where \
             these are more than all together, clusters are throttled at first, and then share what there is."
        ),
    ]
}

fn nodes(facts: &Facts) -> Vec<String> {
    let Facts { linux, bridge_linux, architectures, .. } = facts;
    let seconds = beat::EVERY.as_secs();
    vec![
        "IPv4 only. One of a node's NICs serves its pods.".to_owned(),
        format!(
            "{architectures}, unless you build images for arm64, too (`docker build --platform`) and name both in the \
             chart's value `image.architectures`. Those for arm64 were built, and most unit tests ran in an \
             emulator; no node had them. Nodes of another architecture are left alone, and the pool's condition \
             `NodesSupported` names them."
        ),
        "containerd only. Vnetpool never ran with CRI-O, and so never on OpenShift.".to_owned(),
        format!(
            "Linux {linux} or newer. The condition `RulesApplied` names an older one, and no pod starts there. The \
             mode `Bridge` of `wiring` needs Linux {bridge_linux}, and no engine of NetworkPolicy works with it."
        ),
        format!(
            "Where there is the bridge of `wiring: Bridge`, the agent keeps `net.bridge.bridge-nf-call-iptables` at \
             0. The kernel has one for all bridges of the node: what another bridge passes on no longer meets \
             iptables. With 1 no pod would reach a Service's pod on its own node. A setup that writes 1 cuts such \
             pods off until the agent's next inspection, at most about {seconds} s later; `Undisturbed` then reports \
             it."
        ),
        "`/metrics` has neither TLS nor authentication. It is served on 127.0.0.1, and with `monitoring.expose` on \
         the node's address, where the whole VNet can read it ([hardening](hardening.md))."
            .to_owned(),
    ]
}

fn pods(facts: &Facts) -> Vec<String> {
    let [oldest, newest] = facts.cni;
    vec![
        "One interface of Vnetpool a pod. A second one, which Multus may ask for, is refused before it costs an \
         address. What a network's `ips` or the argument `IP` ask for is ignored: pods can't choose their address."
            .to_owned(),
        format!("The configuration supports CNI {oldest} to {newest}; older versions are refused."),
        "`hostPort` and the bandwidth annotations work where the node has upstream's `portmap` and `bandwidth` in \
         its folder of plugins (chart value `nodeAgent.cni.chain`); the condition `CNIInstalled` names a missing \
         one. Kubernetes asks `bandwidth` for a burst of 512 MB and more, so a limit holds only after that."
            .to_owned(),
        "Vnetpool has no NetworkPolicy of its own. Calico enforces policies beside it ([network \
         policy](network-policy.md))."
            .to_owned(),
    ]
}

fn tested(facts: &Facts) -> Vec<String> {
    let Facts { kubernetes, older_kubernetes, .. } = facts;
    vec![
        "Everything ran against a simulated Azure that is checked against Azure's published schemas and recorded \
         traffic. No real subscription has seen this version."
            .to_owned(),
        format!(
            "The test cluster is Kubernetes {kubernetes} with cgroup v1; its code for cgroup v2 was never run. Of \
             Kubernetes {older_kubernetes} only the API server and its controllers were tested. [Support](reference/support.md) \
             has the rest."
        ),
    ]
}
