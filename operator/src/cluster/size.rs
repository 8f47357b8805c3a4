//! How many bytes of the operator's memory a node and a pod take, in what the watches keep of them.

use futures::FutureExt;
use kube::Resource;
use kube::core::WatchEvent;
use kube::runtime::reflector;
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher::Event;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;
use uuid::Uuid;
use vnetpool_apiserver::reading::Reading;
use vnetpool_crds::NodeIPAllocation;

use super::proof::{PAGE, Page};
use super::{Cluster, Waker, Wakeups, intake, wakeups};
use crate::heap;
use crate::node_object::Node;

/// So many objects of each kind, in every name.
const MANY: usize = 500;

fn managed(manager: &str, paths: usize) -> Value {
    let fields: serde_json::Map<String, Value> =
        (0..paths).map(|n| (format!("f:field-of-some-length-{n}"), json!({"f:another": {}}))).collect();
    json!({"manager": manager, "operation": "Update", "apiVersion": "v1", "time": "2026-01-01T00:00:00Z",
        "fieldsType": "FieldsV1", "fieldsV1": {"f:status": fields}})
}

fn uid(kind: u64, number: usize) -> String {
    Uuid::from_u64_pair(kind << 32 | 0x4a17_0000, 0x8f3b_0000_0000_0000 | number as u64).to_string()
}

/// As large as a node of a managed cluster: labels of cloud, machine and zone, images, conditions of the
/// kubelet and of detectors of problems.
fn node(number: usize) -> Value {
    let name = format!("aks-workers-12345678-vmss{number:06}");
    let labels: serde_json::Map<String, Value> = (0..26)
        .map(|n| (format!("kubernetes.azure.com/some-label-{n}"), json!(format!("value-of-label-{n}"))))
        .chain([("kubernetes.io/hostname".to_owned(), json!(name))])
        .collect();
    let images: Vec<Value> = (0..50)
        .map(|n| {
            let image = format!("registry.example/team-{n}/an-image-of-some-name");
            json!({"names": [format!("{image}@sha256:{:064}", n), format!("{image}:v1.2.{n}")], "sizeBytes": 123_456_789})
        })
        .collect();
    let conditions: Vec<Value> = (0..18)
        .map(|n| json!({"type": format!("Condition{n}"), "status": "False", "reason": "NoProblemOfThisKind",
            "message": "the detector of problems has found none of this kind", "lastHeartbeatTime": "2026-01-01T00:00:00Z",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}))
        .collect();
    json!({
        "metadata": {"name": name, "uid": uid(1, number), "resourceVersion": "123456789",
            "creationTimestamp": "2026-01-01T00:00:00Z", "labels": labels,
            "annotations": {"csi.volume.kubernetes.io/nodeid": "{\"disk.csi.azure.com\":\"aks-workers\"}",
                "node.alpha.kubernetes.io/ttl": "0", "volumes.kubernetes.io/controller-managed-attach-detach": "true"},
            "managedFields": [managed("kubelet", 30), managed("cloud-node-manager", 10)]},
        "spec": {"providerID": format!("azure:///subscriptions/{}/resourceGroups/mc_group_cluster_westeurope/providers/\
            Microsoft.Compute/virtualMachines/{name}", uid(0, 0)), "podCIDR": "10.244.3.0/24", "podCIDRs": ["10.244.3.0/24"]},
        "status": {"allocatable": {"pods": "110", "cpu": "3860m", "memory": "12Gi"}, "capacity": {"pods": "110", "cpu": "4"},
            "addresses": [{"type": "InternalIP", "address": "10.240.0.4"}, {"type": "Hostname", "address": name}],
            "conditions": conditions, "images": images,
            "nodeInfo": {"bootID": uid(2, number), "kernelVersion": "6.1.0-azure", "architecture": "amd64",
                "containerRuntimeVersion": "containerd://2.1.0", "kubeProxyVersion": "v1.36.0", "kubeletVersion": "v1.36.0",
                "machineID": "0123456789abcdef0123456789abcdef", "operatingSystem": "linux", "osImage": "Debian 12",
                "systemUUID": uid(3, number)}}
    })
}

/// Of a node with 12 addresses.
fn allocation(number: usize) -> Value {
    let name = format!("aks-workers-12345678-vmss{number:06}");
    let group = format!("/subscriptions/{}/resourceGroups/mc_group_cluster_westeurope/providers", uid(0, 0));
    let reservations: Vec<Value> = (0..12)
        .map(|n| json!({"name": format!("vnp-{:016x}", number * 100 + n), "address": format!("10.240.{}.{}/32", number % 250, n + 4)}))
        .collect();
    let conditions: Vec<Value> =
        ["Ready", "InterfaceFound", "Reserved", "AgentReporting", "Selected", "Writing", "OperationsTracked", "Surplus",
            "RulesApplied", "Supplied", "CNIInstalled", "AssignmentsBacked", "Undisturbed"]
        .map(|type_| json!({"type": type_, "status": "True", "reason": "SomeReasonOfIt", "observedGeneration": 4,
            "message": "what holds for the node, in a sentence of some length", "lastTransitionTime": "2026-01-01T00:00:00Z"}))
        .into();
    json!({
        "metadata": {"name": name, "uid": uid(4, number), "resourceVersion": "123456789", "generation": 4,
            "creationTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["vnetpool.io/reservations"],
            "managedFields": [managed("vnetpool-operator", 40), managed("vnetpool-node-agent", 30)]},
        "spec": {"nodeUID": uid(1, number), "bootID": uid(2, number), "pool": "default", "target": 12, "warm": 8, "cooldown": "30s",
            "sizing": {"minimum": 8, "warm": 8, "maximum": 255, "batch": 4, "releaseAfter": "5m"},
            "snatExclusions": ["10.240.0.0/16", "10.1.0.0/16", "192.168.0.0/16"],
            "interfaces": [{"id": format!("{group}/Microsoft.Network/networkInterfaces/{name}-nic"), "mac": "00:0d:3a:e5:1c:c0",
                "primaryAddress": "10.240.0.4", "subnet": {"prefixes": ["10.240.0.0/16"],
                "id": format!("{group}/Microsoft.Network/virtualNetworks/vnet-of-the-cluster/subnets/nodes")},
                "ipConfigurations": reservations}]},
        "status": {"observedGeneration": 4, "bootID": uid(2, number), "held": 12, "assigned": 8, "free": 4, "pods": 8,
            "countedAt": "2026-01-01T00:00:00Z", "conditions": conditions}
    })
}

/// One of 12 on its node.
fn pod(number: usize) -> Value {
    let env: Vec<Value> = (0..20)
        .map(|n| json!({"name": format!("SETTING_{n}"), "value": "some value of a setting"}))
        .collect();
    json!({
        "metadata": {"name": format!("web-7d9c5b8f66-{number:05}"), "namespace": "shop", "uid": uid(5, number),
            "resourceVersion": "123456789", "labels": {"app": "web", "pod-template-hash": "7d9c5b8f66"},
            "managedFields": [managed("kube-controller-manager", 20), managed("kubelet", 20)]},
        "spec": {"nodeName": format!("aks-workers-12345678-vmss{:06}", number / 12),
            "containers": [{"name": "web", "image": "registry.example/shop/web:1.2.3", "env": env}]},
        "status": {"phase": "Running", "podIP": "10.240.0.9"}
    })
}

/// Bytes for each object: what is kept of it, and what a list that is made anew takes beside that at most.
#[derive(Debug)]
struct Cost {
    kept: usize,
    renewed: usize,
}

/// What a watch keeps of so many objects.
fn cost<K>(
    number: usize,
    of: fn(usize) -> Value,
    mut take: impl FnMut(Event<Reading<K>>),
    wakeups: &mut Wakeups,
) -> Cost
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    let texts: Vec<String> = (0..number).map(|number| of(number).to_string()).collect();
    let mut list = || {
        take(Event::Init);
        for text in &texts {
            take(Event::InitApply(serde_json::from_str(text).unwrap()));
            assert!(wakeups.ignore().now_or_never().is_none());
        }
        take(Event::InitDone);
        assert!(wakeups.ignore().now_or_never().is_none());
    };
    let (kept, _) = heap::kept(&mut list);
    let (more, most) = heap::kept(&mut list);
    assert!(more <= kept / 20, "a second list leaves {more} bytes beside {kept}");
    let cost = Cost { kept: kept / number, renewed: most / number };
    println!("{}: {cost:?}, of {} bytes of JSON", K::kind(&()), texts[0].len());
    cost
}

/// Without objects.
struct Stage {
    view: Cluster,
    waker: Waker,
    wakeups: Wakeups,
    nodes: Writer<Node>,
    allocations: Writer<NodeIPAllocation>,
}

fn stage() -> Stage {
    let ((nodes, node_writer), (allocations, allocation_writer)) = (reflector::store(), reflector::store());
    let view = Cluster::new(nodes, allocations, reflector::store().0, watch::channel(true).1);
    let (waker, wakeups) = wakeups::channels();
    Stage { view, waker, wakeups, nodes: node_writer, allocations: allocation_writer }
}

#[test]
fn of_a_node_few_bytes_are_kept() {
    let Stage { view, waker, mut wakeups, nodes, .. } = stage();
    let cost = cost(MANY, node, intake::nodes(view, waker, nodes), &mut wakeups);
    assert!(cost.kept <= 1900 && cost.renewed <= 450, "{cost:?}");
}

#[test]
fn of_an_allocation_with_twelve_addresses_few_bytes_are_kept() {
    let Stage { view, waker, mut wakeups, allocations, .. } = stage();
    let cost = cost(MANY, allocation, intake::allocations(view, waker, allocations), &mut wakeups);
    assert!(cost.kept <= 9700 && cost.renewed <= 900, "{cost:?}");
}

#[test]
fn of_a_pod_few_bytes_are_kept() {
    let Stage { view, waker, mut wakeups, .. } = stage();
    let cost = cost(MANY * 12, pod, intake::pods(view, waker, watch::channel(true).0), &mut wakeups);
    assert!(cost.kept <= 110 && cost.renewed <= 60, "{cost:?}");
}

#[test]
fn of_the_list_that_proves_the_view_few_bytes_are_in_memory_at_once() {
    let items = (0..PAGE as usize).map(|number| json!({"metadata": allocation(number)["metadata"]}));
    let list = json!({"metadata": {"resourceVersion": "9"}, "items": items.collect::<Vec<_>>()}).to_string();
    let (_, most) = heap::kept(|| {
        let page: Page = serde_json::from_str(&list).unwrap();
        assert_eq!(page.items.len(), PAGE as usize);
    });
    let each = most / PAGE as usize;
    println!("{each} bytes of {} of JSON", list.len() / PAGE as usize);
    assert!(each <= 400, "{each}");
}

/// The most bytes that are in memory while this text is decoded, beside the text.
fn decoding<T: DeserializeOwned>(text: &str) -> usize {
    heap::kept(|| drop(serde_json::from_str::<T>(text).unwrap())).1
}

#[test]
fn of_an_allocation_in_a_watch_or_an_answer_few_bytes_are_in_memory_at_once() {
    let object = allocation(7);
    // The API server sends the type first.
    let event = format!(r#"{{"type": "MODIFIED", "object": {object}}}"#);
    let whole = decoding::<NodeIPAllocation>(&object.to_string());
    let watched = decoding::<WatchEvent<Reading<NodeIPAllocation>>>(&event);
    let answer = decoding::<Reading<NodeIPAllocation>>(&object.to_string());
    println!("{watched} bytes in a watch, {answer} in an answer, {whole} with managedFields");
    assert!(watched.max(answer) <= 25_000, "{watched} {answer}");
}
