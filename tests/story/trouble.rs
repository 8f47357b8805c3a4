//! Invariants when things go wrong: lost state, reboots, killed operators, and refusals by Azure.

use crate::chapters::MINIMUM;
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Api;
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;
use vnetpool_crds::condition::{self, Type};
use vnetpool_crds::names;
use vnetpool_tests::cluster::Cluster;
use vnetpool_tests::eventually;
use vnetpool_tests::place::{Place, Seen, until_dropped, until_seen};
use vnetpool_tests::project::root;
use vnetpool_tests::workload::PORT;

const SOON: Duration = Duration::from_secs(90);

pub async fn a_wiped_or_broken_state_folder_heals_without_a_doubled_address(cluster: &Cluster) -> Result<()> {
    cluster.deploy("steady", 5, Some("node-1")).await?;
    let steady = cluster.running("steady", 5, SOON).await?;
    let addresses: BTreeSet<_> = steady.iter().map(|pod| pod.address).collect();
    let folder = cluster.host("node-1")?.path("/run/vnetpool");
    for (round, damage) in ["wiped", "garbage", "emptied"].into_iter().enumerate() {
        match damage {
            "wiped" => {
                for file in std::fs::read_dir(&folder)? {
                    std::fs::remove_file(file?.path())?;
                }
            }
            "garbage" => std::fs::write(folder.join("ledger"), b"\x00{]garbage")?,
            _ => std::fs::write(folder.join("ledger"), b"")?,
        }
        let what = format!("a ledger with the five pods after it was {damage}");
        eventually(&what, SOON, || async {
            let ledger = cluster.host("node-1")?.ledger()?;
            let assigned: BTreeSet<_> = ledger.assignments().map(|(entry, _)| entry.address).collect();
            Ok((assigned == addresses).then_some(()))
        })
        .await?;
        let fresh = format!("fresh-{round}");
        cluster.deploy(&fresh, 3, Some("node-1")).await?;
        let mut pods = cluster.running(&fresh, 3, SOON).await?;
        pods.extend(steady.clone());
        cluster.addresses_are_held(&pods).await?;
        let pairs = cluster.all_pairs(&pods).await?;
        ensure!(pairs.failures.is_empty(), "after {damage}: {:?}", pairs.failures);
        cluster.undeploy(&fresh).await?;
    }
    cluster.undeploy("steady").await?;
    cluster.settled_on("node-1", MINIMUM, Duration::from_secs(180)).await
}

pub async fn a_node_that_reboots_in_the_middle_of_a_give_back_comes_back_clean(
    cluster: &Cluster,
) -> Result<()> {
    let nic = cluster.host("node-2")?.nic_id;
    cluster.deploy("lasting", 3, Some("node-2")).await?;
    cluster.deploy("passing", 20, Some("node-2")).await?;
    cluster.running("passing", 20, Duration::from_secs(120)).await?;
    let before = cluster.azure.now().await?;
    cluster.undeploy("passing").await?;
    // The write that gives addresses back takes Azure seconds; the node goes down as soon as it has been
    // accepted.
    eventually("a give-back on its way", Duration::from_secs(120), || async {
        let writes = cluster.azure.nic_writes(&nic, before).await?;
        Ok((!writes.is_empty()).then_some(()))
    })
    .await?;
    cluster.node("reboot", "node-2").await?;
    cluster.nodes_ready().await?;
    // Until the kubelet is back, the API server shows the pods as they were before the boot: with addresses
    // that the node has given up since.
    let lasting =
        eventually("the pods of before with addresses of this boot", Duration::from_secs(180), || async {
            let pods = cluster.running("lasting", 3, SOON).await?;
            let ledger = cluster.host("node-2")?.ledger()?;
            let assigned: BTreeSet<_> = ledger.assignments().map(|(entry, _)| entry.address).collect();
            ensure!(pods.iter().all(|pod| assigned.contains(&pod.address)), "{pods:?}, {assigned:?}");
            Ok(Some(pods))
        })
        .await?;
    cluster.deploy("after", 8, Some("node-2")).await?;
    let mut pods = cluster.running("after", 8, Duration::from_secs(120)).await?;
    pods.extend(lasting);
    cluster.addresses_are_held(&pods).await?;
    let pairs = cluster.all_pairs(&pods).await?;
    ensure!(pairs.failures.is_empty(), "{:?}", pairs.failures);
    cluster.undeploy("after").await?;
    cluster.undeploy("lasting").await?;
    cluster.settled_on("node-2", MINIMUM, Duration::from_secs(180)).await
}

/// No event happens to the node: no pod comes or goes, and it doesn't boot. Its agent notices.
pub async fn a_quiet_node_whose_nic_is_wiped_has_its_pods_back_in_minutes(cluster: &Cluster) -> Result<()> {
    cluster.deploy("quiet", 3, Some("node-3")).await?;
    let pods = cluster.running("quiet", 3, Duration::from_secs(120)).await?;
    let (host, before) = (cluster.host("node-3")?, cluster.azure.now().await?);
    eventually("a request of the agent to its metadata service", SOON, || async {
        let log = cluster.azure.raw_log().await?;
        let requests = log.as_array().into_iter().flatten().filter(|one| {
            one["path"] == "/metadata/instance/network" && one["caller"].as_str() == Some(&host.address)
        });
        let mut after = requests.filter(|one| one["seq"].as_u64() > Some(before));
        Ok(after.next().map(drop))
    })
    .await?;
    cluster.wipe(&host).await?;
    let held = cluster.azure.nic(&host.nic_id).await?.pod_addresses();
    ensure!(pods.iter().all(|pod| !held.contains(&pod.address)), "the NIC still holds {held:?}");
    eventually("the pods' addresses on the NIC again", Duration::from_secs(150), || async {
        cluster.addresses_are_held(&pods).await?;
        let pairs = cluster.all_pairs(&pods).await?;
        ensure!(pairs.failures.is_empty(), "{:?}", pairs.failures);
        Ok(Some(()))
    })
    .await?;
    // A free address that vanished stays withdrawn in the ledger until the node boots.
    cluster.undeploy("quiet").await
}

pub async fn a_standby_takes_over_from_an_operator_killed_in_the_middle_of_a_write(
    cluster: &Cluster,
) -> Result<()> {
    let nic = cluster.host("node-1")?.nic_id;
    let held = json!({ "method": "PUT", "path_contains": nic, "count": 1, "effect": { "kind": "hold" } });
    let fault = cluster.azure.fault(held).await?;
    cluster.deploy("orphans", 25, Some("node-1")).await?;
    eventually("the simulator holds an answer", SOON, || async {
        Ok((cluster.azure.hits(&fault).await? > 0).then_some(()))
    })
    .await?;
    let (pod, process) = leader(cluster).await?;
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "vnetpool-system");
    let node =
        pods.get(&pod).await?.spec.and_then(|spec| spec.node_name).context("the leader has no node")?;
    for pid in cluster.host(&node)?.processes("vnetpool-operator") {
        let killed = std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).status()?;
        ensure!(killed.success(), "can't end the operator, process {pid}");
    }
    eventually("another leader", SOON, || async { Ok((leader(cluster).await?.1 != process).then_some(())) })
        .await?;
    cluster.azure.mend(&fault).await?;
    let pods = cluster.running("orphans", 25, Duration::from_secs(180)).await?;
    cluster.addresses_are_held(&pods).await?;
    cluster.undeploy("orphans").await?;
    cluster.settled_on("node-1", MINIMUM, Duration::from_secs(180)).await?;
    ensure!(cluster.assigned_records()? == 0, "records are left in the ledgers");
    Ok(())
}

pub async fn a_node_without_an_azure_provider_id_gets_a_warning_that_names_it(
    cluster: &Cluster,
) -> Result<()> {
    make_node(cluster, "stranger", "stranger", None).await?;
    let found = condition_of(cluster, "stranger", condition::INTERFACE_FOUND, "ProviderID").await?;
    ensure!(found.message.contains("providerID"), "{}", found.message);
    is_warned_of(cluster, "stranger", "providerID").await?;
    remove_node(cluster, "stranger").await
}

pub async fn a_nic_that_is_gone_is_named_with_the_remedy(cluster: &Cluster) -> Result<()> {
    make_pool(cluster, "ghosts", 8).await?;
    make_machine(cluster, "ghosts", "ghost", "nodes").await?;
    holds(cluster, "ghost", 8).await?;
    cluster.azure.delete_vm("ghost", false).await?;
    make_pool(cluster, "ghosts", 12).await?;
    let found = condition_of(cluster, "ghost", condition::INTERFACE_FOUND, "NotFound").await?;
    ensure!(found.message.contains("ghost"), "{}", found.message);
    is_warned_of(cluster, "ghost", "ghost").await?;
    remove_node(cluster, "ghost").await?;
    gone(cluster, "ghost").await
}

pub async fn a_full_subnet_is_named_and_hurts_no_other_node(cluster: &Cluster) -> Result<()> {
    // 16 addresses, 5 of them Azure's, one the VM's own: ten can be had, twelve can't.
    make_pool(cluster, "crowded", 8).await?;
    make_machine(cluster, "crowded", "narrow", "small").await?;
    make_machine(cluster, "crowded", "roomy", "nodes").await?;
    holds(cluster, "narrow", 8).await?;
    make_pool(cluster, "crowded", 12).await?;
    let reserved = condition_of(cluster, "narrow", condition::RESERVED, "SubnetFull").await?;
    ensure!(reserved.message.contains("small"), "{}", reserved.message);
    is_warned_of(cluster, "narrow", "small").await?;
    holds(cluster, "roomy", 12).await?;
    for machine in ["narrow", "roomy"] {
        remove_node(cluster, machine).await?;
        cluster.azure.delete_vm(machine, false).await?;
    }
    gone(cluster, "narrow").await
}

pub async fn a_refused_write_names_the_missing_action_and_hurts_no_other_node(
    cluster: &Cluster,
) -> Result<()> {
    make_pool(cluster, "guarded", 8).await?;
    let nic = make_machine(cluster, "guarded", "refused", "nodes").await?;
    make_machine(cluster, "guarded", "allowed", "nodes").await?;
    holds(cluster, "refused", 8).await?;
    let action = "Microsoft.Network/networkInterfaces/write";
    let message = format!(
        "The client 'vnetpool' with object id 'vnetpool' does not have authorization to perform action '{action}' over \
         scope '{nic}' or the scope is invalid. If access was recently granted, please refresh your credentials."
    );
    let body = json!({ "error": { "code": "AuthorizationFailed", "message": message } });
    let effect = json!({ "kind": "status", "status": 403, "body": body });
    let fault = json!({ "method": "PUT", "path_contains": nic, "count": 1000, "effect": effect });
    let fault = cluster.azure.fault(fault).await?;
    make_pool(cluster, "guarded", 12).await?;
    let reserved = condition_of(cluster, "refused", condition::RESERVED, "PermissionDenied").await?;
    ensure!(reserved.message.contains(action), "{}", reserved.message);
    is_warned_of(cluster, "refused", action).await?;
    holds(cluster, "allowed", 12).await?;
    // The action is granted, and the administrator who did that edits the pool to see it work.
    cluster.azure.mend(&fault).await?;
    make_pool(cluster, "guarded", 16).await?;
    holds(cluster, "refused", 16).await?;
    for machine in ["refused", "allowed"] {
        remove_node(cluster, machine).await?;
        cluster.azure.delete_vm(machine, false).await?;
    }
    Ok(())
}

pub async fn a_node_at_its_pools_maximum_is_marked_full_until_it_may_hold_more(
    cluster: &Cluster,
) -> Result<()> {
    cluster.patch_pool(json!({ "sizing": { "maximum": 10 } })).await?;
    cluster.deploy("many", 14, Some("node-1")).await?;
    let full = eventually("node-1 full", SOON, || async {
        let status = cluster.allocation("node-1").await?.status.unwrap_or_default();
        let full = condition::find(&status.conditions, condition::FULL).filter(|full| full.status == "True");
        full.map(|full| Some(full.clone())).with_context(|| format!("{:?}", status.conditions))
    })
    .await?;
    ensure!(full.message.contains("maximum"), "{}", full.message);
    eventually("the taint", SOON, || async { Ok(is_tainted(cluster, "node-1").await?.then_some(())) })
        .await?;
    cluster.patch_pool(json!({ "sizing": { "maximum": 255 } })).await?;
    let pods = cluster.running("many", 14, Duration::from_secs(120)).await?;
    cluster.addresses_are_held(&pods).await?;
    eventually("no taint", SOON, || async { Ok((!is_tainted(cluster, "node-1").await?).then_some(())) })
        .await?;
    cluster.undeploy("many").await?;
    cluster.settled_on("node-1", MINIMUM, Duration::from_secs(180)).await
}

/// The way to uninstall: without a pool, a node gives back the addresses that no pod uses, and the rest when
/// its pods are gone.
pub async fn a_deleted_pool_gives_every_address_back(cluster: &Cluster) -> Result<()> {
    let pool: serde_json::Value =
        serde_json::from_str(&cluster.kubectl(&["get", "nodeippool", "default", "-o", "json"]).await?)?;
    cluster.deploy("last", 2, Some("node-3")).await?;
    let last = cluster.running("last", 2, SOON).await?;
    cluster.kubectl(&["delete", "nodeippool", "default"]).await?;
    cluster.kubectl(&["annotate", "nodeipallocations", "--all", "vnetpool.io/release=true"]).await?;
    eventually("node-1 and node-2 without addresses", Duration::from_secs(120), || async {
        let left = cluster.allocations().await?;
        ensure!(!left.iter().any(|name| name == "node-1" || name == "node-2"), "{left:?}");
        Ok(Some(()))
    })
    .await?;
    cluster.addresses_are_held(&last).await?;
    cluster.undeploy("last").await?;
    eventually("no allocation left", Duration::from_secs(120), || async {
        let left = cluster.allocations().await?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(Some(()))
    })
    .await?;
    ensure!(cluster.held().await? == 0, "the NICs still hold {}", cluster.held().await?);
    // For the chapters that follow.
    let again = json!({ "apiVersion": pool["apiVersion"], "kind": "NodeIPPool",
        "metadata": { "name": "default" }, "spec": pool["spec"] });
    cluster.apply(&again.to_string()).await.map(drop)
}

/// As the chart has the agent: in a container whose root can't be written to.
pub async fn a_policy_of_the_older_iptables_is_named_by_the_charts_agent(cluster: &Cluster) -> Result<()> {
    cluster.deploy("walled", 1, Some("node-3")).await?;
    cluster.running("walled", 1, SOON).await?;
    cluster.run_on("node-3", &["iptables-legacy", "-P", "FORWARD", "DROP"]).await?;
    let message = eventually("a disturbance of node-3", SOON, || async {
        let status = cluster.allocation("node-3").await?.status.unwrap_or_default();
        let condition =
            condition::find(&status.conditions, condition::UNDISTURBED).context("no condition")?;
        ensure!(condition.status == "False", "{condition:?}");
        Ok(Some(condition.message.clone()))
    })
    .await;
    // Whatever the outcome: the chapters that follow need the node.
    cluster.run_on("node-3", &["iptables-legacy", "-P", "FORWARD", "ACCEPT"]).await?;
    let message = message?;
    ensure!(message.contains("chain FORWARD of iptables-legacy's table filter drops"), "{message}");
    cluster.undeploy("walled").await
}

/// The value opens it, in the container as the chart has it.
pub async fn a_policy_of_the_older_iptables_is_opened_by_the_charts_agent_where_the_value_asks_for_it(
    cluster: &Cluster,
) -> Result<()> {
    cluster.deploy("let-through", 1, Some("node-3")).await?;
    let pod = cluster.running("let-through", 1, SOON).await?.pop().context("no pod")?;
    let vm = Place::host(cluster.state.vms.first().context("no plain VM")?);
    cluster.run_on("node-3", &["iptables-legacy", "-P", "FORWARD", "DROP"]).await?;
    let opened = async {
        until_dropped(&vm, pod.address, PORT).await?;
        open_forward(cluster, true).await?;
        until_seen(&vm, &pod.address.to_string(), PORT, &Seen::new(&vm.address, pod.address)).await?;
        eventually("node-3 is undisturbed since the chain was opened", SOON, || async {
            let status = cluster.allocation("node-3").await?.status.unwrap_or_default();
            let found =
                condition::find(&status.conditions, condition::UNDISTURBED).context("no condition")?;
            let words =
                ["put rules before somebody's firewall", "chain FORWARD of iptables-legacy's table filter"];
            let is_it = found.status == "True" && words.iter().all(|word| found.message.contains(word));
            ensure!(is_it, "{}: {}", found.status, found.message);
            Ok(Some(()))
        })
        .await
    }
    .await;
    // Whatever the outcome: the chapters that follow need the node. The agent first, or it puts its rules
    // back.
    open_forward(cluster, false).await?;
    for command in [["-P", "FORWARD", "ACCEPT"].as_slice(), &["-F", "FORWARD"]] {
        cluster.run_on("node-3", &[&["iptables-legacy"], command].concat()).await?;
    }
    opened?;
    cluster.undeploy("let-through").await
}

/// Has all agents begin anew, at once, with this value.
async fn open_forward(cluster: &Cluster, open: bool) -> Result<()> {
    let chart = root().join("charts/vnetpool");
    let chart = chart.to_string_lossy();
    let value =
        format!("nodeAgent.openForward={open},nodeAgent.updateStrategy.rollingUpdate.maxUnavailable=100%");
    let upgrade =
        ["upgrade", "vnetpool", &chart, "--reuse-values", "--set", &value, "--wait", "--timeout", "4m"];
    cluster.helm(&upgrade).await.map(drop)
}

/// kubespray gives /opt/cni/bin to a user of its own.
pub async fn the_plugin_is_put_into_a_folder_that_is_not_roots(cluster: &Cluster) -> Result<()> {
    let folders = ["/opt/cni/bin", "/etc/cni", "/etc/cni/net.d"];
    for folder in folders {
        cluster.run_on("node-3", &["chown", "1000:0", folder]).await?;
        cluster.run_on("node-3", &["chmod", "0755", folder]).await?;
    }
    cluster.run_on("node-3", &["rm", "/opt/cni/bin/vnetpool", "/etc/cni/net.d/10-vnetpool.conflist"]).await?;
    let back = eventually("the plugin and the configuration on node-3", SOON, || async {
        cluster.run_on("node-3", &["test", "-x", "/opt/cni/bin/vnetpool"]).await?;
        cluster.run_on("node-3", &["test", "-e", "/etc/cni/net.d/10-vnetpool.conflist"]).await?;
        Ok(Some(()))
    })
    .await;
    for folder in folders {
        cluster.run_on("node-3", &["chown", "0:0", folder]).await?;
    }
    back?;
    cluster.nodes_ready().await
}

async fn is_tainted(cluster: &Cluster, node: &str) -> Result<bool> {
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let taints = nodes.get(node).await?.spec.and_then(|spec| spec.taints).unwrap_or_default();
    Ok(taints.iter().any(|taint| taint.key == names::FULL_TAINT))
}

/// A pool of a chapter's own, for the Nodes that are made for it: made, or given another minimum.
async fn make_pool(cluster: &Cluster, name: &str, minimum: u32) -> Result<()> {
    let sizing = json!({ "minimum": minimum, "warm": 0, "batch": 4 });
    let spec =
        json!({ "weight": 10, "nodeSelector": { "matchLabels": { "story": name } }, "sizing": sizing });
    let pool = json!({ "apiVersion": "vnetpool.io/v1alpha1", "kind": "NodeIPPool", "metadata": { "name": name }, "spec": spec });
    cluster.apply(&pool.to_string()).await.map(drop)
}

/// A VM in simulated Azure and its Node, but no kubelet and no agent. Gives the id of its NIC.
async fn make_machine(cluster: &Cluster, pool: &str, name: &str, subnet: &str) -> Result<String> {
    let vm = cluster.azure.make_vm(name, subnet).await?;
    make_node(cluster, pool, name, vm["provider_id"].as_str()).await?;
    vm["nic_id"].as_str().map(str::to_owned).context("the simulator names no NIC")
}

async fn make_node(cluster: &Cluster, pool: &str, name: &str, provider_id: Option<&str>) -> Result<()> {
    let labels = json!({ "kubernetes.io/os": "linux", "vnetpool.io/agent": "away", "story": pool });
    // No pod may land on it: there is no kubelet.
    let taints = json!([{ "key": "test", "effect": "NoSchedule" }, { "key": "test", "effect": "NoExecute" }]);
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "labels": labels },
        "spec": { "providerID": provider_id, "taints": taints },
    });
    cluster.apply(&node.to_string()).await.map(drop)
}

async fn remove_node(cluster: &Cluster, name: &str) -> Result<()> {
    cluster.kubectl(&["delete", "node", name]).await.map(drop)
}

/// Waits until the allocation of a Node that is gone is gone, too.
async fn gone(cluster: &Cluster, name: &str) -> Result<()> {
    // A NIC's 404 is believed when it has come twice, a minute apart, and each puts the next read off.
    eventually(&format!("the allocation of {name} gone"), Duration::from_secs(180), || async {
        Ok((!cluster.allocations().await?.iter().any(|left| left == name)).then_some(()))
    })
    .await
}

/// Waits until `count` addresses are published for a node.
async fn holds(cluster: &Cluster, node: &str, count: usize) -> Result<()> {
    eventually(&format!("{count} addresses for {node}"), SOON, || async {
        let published = cluster.allocation(node).await?.spec.ip_configurations().count();
        ensure!(published == count, "{published}");
        Ok(Some(()))
    })
    .await
}

/// Waits until a condition of a node's allocation is False with a reason that contains `reason`.
async fn condition_of(cluster: &Cluster, node: &str, type_: Type, reason: &str) -> Result<Condition> {
    eventually(&format!("{node}: {type_} False for {reason}"), SOON, || async {
        let status = cluster.allocation(node).await?.status.unwrap_or_default();
        let found = condition::find(&status.conditions, type_);
        let named = found.filter(|found| found.status == "False" && found.reason.contains(reason));
        named.map(|found| Some(found.clone())).with_context(|| format!("{:?}", status.conditions))
    })
    .await
}

/// Waits for a warning Event on a Node that mentions `what`.
async fn is_warned_of(cluster: &Cluster, name: &str, what: &str) -> Result<()> {
    let events: Api<Event> = Api::all(cluster.client.clone());
    eventually(&format!("a warning on Node {name} that mentions {what}"), SOON, || async {
        let all = events.list(&Default::default()).await?.items;
        let on = |event: &&Event| {
            event.involved_object.kind.as_deref() == Some("Node")
                && event.involved_object.name.as_deref() == Some(name)
        };
        let ours: Vec<_> = all.iter().filter(on).collect();
        let mentions = |event: &&&Event| event.message.as_deref().unwrap_or_default().contains(what);
        let warning = ours.iter().filter(mentions).any(|event| event.type_.as_deref() == Some("Warning"));
        ensure!(warning, "{:?}", ours.iter().map(|event| &event.message).collect::<Vec<_>>());
        Ok(Some(()))
    })
    .await
}

/// The leader: the pod's name and an id of its process.
async fn leader(cluster: &Cluster) -> Result<(String, String)> {
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), "vnetpool-system");
    let holder = leases.get("vnetpool-operator").await?.spec.and_then(|spec| spec.holder_identity);
    let holder = holder.filter(|holder| !holder.is_empty()).context("nobody leads")?;
    let (pod, process) = holder.rsplit_once('_').context("the Lease's holder is POD_PROCESS")?;
    Ok((pod.into(), process.into()))
}
