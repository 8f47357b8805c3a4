//! The uninstall as it is documented: the commands are read from the document. Afterwards the cluster and its
//! nodes are as they were before.

use crate::{MOVES, World};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use vnetpool_tests::cluster::Cluster;
use vnetpool_tests::{eventually, snippets};

/// The nodes that are there from the beginning to the end. Where all chapters have run, one has had a pool of
/// mode `Route` and as many pods as it can, the other a bridge, host ports and pods on its second NIC.
const NODES: [&str; 2] = ["node-1", "node-3"];

/// How to see one side of a node.
const ASPECTS: [(&str, &str); 8] = [
    ("links", "ip -br link | awk '{ print $1, $2, $3 }'"),
    ("addresses", "ip -o -4 address | awk '{ print $2, $4 }'"),
    ("routes", "ip route list table all"),
    ("rules", "ip rule list"),
    // kube-proxy's own come and go with Services, in iptables' tables, which are there from their first use
    // on; portmap's common chains stay, as the document says.
    ("nftables", "nft list tables | grep -Ev ' ip6? (nat|filter|mangle|raw)$' || true"),
    (
        "iptables",
        "for save in iptables-nft-save iptables-legacy-save; do $save | grep '^[:-]' | grep -Ev 'KUBE-|CNI-HOSTPORT-|^:[A-Z]+ ACCEPT' | sed 's/ \\[.*//'; done || true",
    ),
    (
        "settings",
        "sysctl -a --pattern '^net[.](ipv[46][.](ip_forward|conf[.](all|default|lo|eth0|eth1)[.])|bridge[.])'",
    ),
    (
        "files",
        "find /etc/cni /opt/cni /run /var/lib/cni -maxdepth 3 -not -path '/run/containerd*' -not -path '/run/netns*' -not -path /run/xtables.lock -not -path '/var/lib/cni/results'",
    ),
];
/// Which of the cluster's objects to compare, and those that others make meanwhile.
const KINDS: &str = "crds,clusterroles,clusterrolebindings,roles,rolebindings,validatingadmissionpolicies,\
    validatingadmissionpolicybindings,priorityclasses,namespaces,serviceaccounts,configmaps,secrets,daemonsets,deployments,jobs,\
    services,poddisruptionbudgets,leases";

/// Makes one of each kind of remains on a node whose agent can't clean it.
const LEFT: &str = "mkdir -p /run/vnetpool /etc/cni/net.d
    touch /run/vnetpool/ledger /etc/cni/net.d/10-vnetpool.conflist /opt/cni/bin/vnetpool /opt/cni/bin/vnetpool-ipam
    nft add table inet vnetpool
    nft add table arp vnetpool
    ip link add vnpbridge type bridge
    ip route add 10.9.9.9/32 dev lo proto 176
    ip rule add from 10.9.9.9 lookup 100 protocol 176
    nft add table ip filter
    nft 'add chain ip filter FORWARD { type filter hook forward priority 0; }'
    for link in iifname oifname; do
        nft insert rule ip filter FORWARD $link '\"vnp*\"' counter accept comment '\"vnetpool\"'
    done
    for link in -i -o; do
        iptables-legacy -I FORWARD $link vnp+ -m comment --comment vnetpool -j ACCEPT
    done";

/// A cluster and its nodes, line by line.
#[derive(Debug)]
pub struct Listing(BTreeMap<String, BTreeSet<String>>);

impl Listing {
    pub async fn at(cluster: &Cluster) -> Result<Self> {
        let mut sides = BTreeMap::new();
        let mut add =
            |side: String, text: String| sides.insert(side, text.lines().map(str::to_owned).collect());
        for node in NODES {
            // kube-proxy changes the node, too, once.
            eventually(&format!("kube-proxy on {node}"), Duration::from_secs(60), || async {
                let rules = cluster.run_on(node, &["iptables-save"]).await?;
                Ok(rules.contains("KUBE-SERVICES").then_some(()))
            })
            .await?;
            for (aspect, script) in ASPECTS {
                add(format!("{aspect} of {node}"), cluster.run_on(node, &["bash", "-c", script]).await?);
            }
            let marks = "jsonpath={.metadata.labels}{\"\\n\"}{.spec.taints[?(@.key!=\"node.kubernetes.io/not-ready\")]}";
            add(format!("marks of {node}"), cluster.kubectl(&["get", "node", node, "-o", marks]).await?);
        }
        let objects = cluster.kubectl(&["get", KINDS, "-A", "-o", "name"]).await?;
        // The kubelets' go with their nodes.
        let objects: Vec<_> =
            objects.lines().filter(|name| !name.contains("lease.coordination.k8s.io/node-")).collect();
        add("objects".into(), objects.join("\n"));
        Ok(Self(sides))
    }

    /// The entries of one listing that the other lacks.
    fn difference(&self, other: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        for (side, then) in &self.0 {
            let now = other.0.get(side).cloned().unwrap_or_default();
            lines.extend(then.difference(&now).map(|line| format!("gone from the {side}: {line}")));
            lines.extend(now.difference(then).map(|line| format!("new among the {side}: {line}")));
        }
        lines
    }
}

/// The names of our addresses by the NIC that has them, without NICs that have none.
async fn held(cluster: &Cluster) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut held: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for (id, nic) in cluster.azure.nics().await? {
        let name = id.rsplit('/').next().unwrap_or_default().to_owned();
        for ours in nic.ip_configurations.into_iter().filter(|one| !one.primary) {
            held.entry(name.clone()).or_default().insert(ours.name);
        }
    }
    Ok(held)
}

pub async fn the_last_node_can_be_drained_and_the_namespace_deleted_and_each_hang_is_documented(
    world: &World,
) -> Result<()> {
    let cluster = &world.cluster;
    let sizing = json!({ "minimum": 2, "warm": 0, "batch": 1, "releaseAfter": "0s" });
    world.pool("drained", &NODES, json!({ "cooldown": "1s", "sizing": sizing })).await?;
    // Until then a node may rightly give back what it has of an earlier chapter.
    let before = eventually("nodes that hold what their pool asks for", MOVES, || async {
        for node in NODES {
            let path = "jsonpath={.spec.pool}";
            let pool = cluster.kubectl(&["get", "nodeipallocation", node, "-o", path]).await?;
            ensure!(pool == "drained", "{node} is in pool {pool}");
        }
        let held = held(cluster).await?;
        let of_node = |node| held.get(&format!("{node}-nic")).map_or(0, BTreeSet::len);
        ensure!(NODES.iter().all(|node| of_node(node) == 2), "the NICs hold {held:?}");
        Ok(Some(held))
    })
    .await?;
    let nodes = cluster.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"]).await?;
    let nodes: Vec<&str> = nodes.split_whitespace().collect();
    let begun = Instant::now();
    let drain = ["--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=90s"];
    cluster.kubectl(&[&["drain"], &nodes[..], &drain].concat()).await?;
    println!("all of {nodes:?} were drained after {:.1} s", begun.elapsed().as_secs_f64());
    // The operator has no node any more, and nothing of its namespace waits for it.
    cluster.kubectl(&["delete", "namespace", "vnetpool-system", "--timeout=90s"]).await?;
    println!("the namespace was gone after {:.1} s", begun.elapsed().as_secs_f64());
    let objects =
        cluster.kubectl(&["get", "nodeipallocations", "-o", "jsonpath={.items[*].metadata.finalizers}"]);
    let objects = objects.await?;
    ensure!(objects.matches("vnetpool.io/nic").count() >= NODES.len(), "no record is left: {objects}");
    let listing = snippets::of("read")?.into_iter().find(|one| one.place.contains("uninstall"));
    let listed = cluster.type_in(&listing.context("no such command")?, &[], "").await?;
    for node in NODES {
        ensure!(listed.contains(&format!("{node}-nic")), "{node}'s NIC isn't listed: {listed}");
    }
    // The first of the two ways that the document has: from here its steps can be followed.
    cluster.kubectl(&[&["uncordon"], &nodes[..]].concat()).await?;
    crate::install(cluster).await?;
    let after = held(cluster).await?;
    let still = |nic: &String| after.get(nic).is_some_and(|now| now.is_superset(&before[nic]));
    let nics = NODES.map(|node| format!("{node}-nic"));
    ensure!(nics.iter().all(still), "{before:?} became {after:?}");
    world.start("again", NODES[0], 1).await?;
    world.end(&["again"]).await
}

pub async fn nothing_stays_after_the_uninstall_that_is_documented(world: &World) -> Result<()> {
    let cluster = &world.cluster;
    let begun = Instant::now();
    for of_cluster in snippets::of("uninstall")? {
        cluster.type_in(&of_cluster, &[], "").await?;
    }
    println!("uninstalled after {:.1} s", begun.elapsed().as_secs_f64());
    // The agents have left no more on their nodes than an empty folder, and the settings that others may
    // need.
    let stays = |line: &String| line.ends_with(": /run/vnetpool") || line.contains("settings of");
    eventually("nodes that their agents have cleaned", Duration::from_secs(30), || async {
        let mut left = world.before.difference(&Listing::at(cluster).await?);
        left.retain(|line| !stays(line));
        ensure!(left.is_empty(), "\n{}", left.join("\n"));
        Ok(Some(()))
    })
    .await?;
    for node in NODES {
        cluster.run_on(node, &["sh", "-euxc", LEFT]).await?;
    }
    for of_node in snippets::of("uninstall-node")? {
        for node in NODES {
            let ran = cluster.run_on(node, &[&of_node.shell, "-euc", &of_node.script]).await;
            ran.with_context(|| of_node.place.clone())?;
        }
    }
    let held = held(cluster).await?;
    ensure!(held.is_empty(), "the NICs still hold {held:?}");
    world.is_gone.store(true, Ordering::Relaxed);
    let left = eventually("the cluster as it was", Duration::from_secs(30), || async {
        let left = world.before.difference(&Listing::at(cluster).await?);
        ensure!(left.is_empty(), "\n{}", left.join("\n"));
        Ok(Some(()))
    });
    left.await
}
