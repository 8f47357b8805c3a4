//! Whether the pod network works, seen from a pod on it: the check that `helm test` runs.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures::StreamExt;
use ipnet::Ipv4Net;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use vnetpool_apiserver::reading::Reading;
use vnetpool_crds::NodeIPAllocation;

/// A packet lost once is sent again after a second, twice after three.
const PATIENCE: Duration = Duration::from_secs(5);
/// So many objects come in one answer, a few megabytes of text: the check has little memory.
const PAGE: u32 = 100;
/// So many nodes are tried at most.
const SAMPLE: usize = 200;
/// So many of them at once.
const AT_ONCE: usize = 64;

/// The pod that runs the check.
#[derive(Clone, Debug)]
pub struct Here {
    pub node: String,
    pub address: Ipv4Addr,
}

/// What the check has found. Empty means that nothing was wrong.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Findings {
    pub good: Vec<String>,
    pub wrong: Vec<String>,
}

/// What is kept of the nodes' objects.
#[derive(Debug, Default)]
struct Nodes {
    /// The nodes' own addresses, by name, in the order of the names.
    addresses: Vec<(String, Ipv4Addr)>,
    /// What is reserved for the pod's node, if it has an object.
    here: Option<Vec<Ipv4Net>>,
}

/// Checks this pod's own address and connects to the kubelets at `port`: every node's or, of many, those of a
/// sample. An answer of the API server shows that its Service is reached.
///
/// # Errors
/// When the API server can't be asked.
pub async fn run(client: Client, here: &Here, port: u16) -> Result<Findings, kube::Error> {
    let nodes = list(client, here).await?;
    let mut report = own(here, nodes.here.as_deref());
    let all = nodes.addresses.len();
    let sample = sample(nodes.addresses, SAMPLE);
    if sample.len() < all {
        report.good.push(format!("of {all} nodes these {} are tried, evenly by their names", sample.len()));
    }
    let attempts = sample.into_iter().map(|(name, address)| async move {
        let to = SocketAddr::new(IpAddr::V4(address), port);
        let outcome = match timeout(PATIENCE, TcpStream::connect(to)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
        };
        (name, to, outcome)
    });
    let mut attempts: Vec<_> = futures::stream::iter(attempts).buffer_unordered(AT_ONCE).collect().await;
    attempts.sort_by(|(one, ..), (other, ..)| one.cmp(other));
    for (name, to, outcome) in attempts {
        match outcome {
            Ok(()) => report.good.push(format!("node {name} answers at {to}")),
            Err(why) => report.wrong.push(format!("node {name} isn't reached at {to}: {why}")),
        }
    }
    Ok(report)
}

/// Reads the nodes' objects page by page. No more than a page is in memory.
async fn list(client: Client, here: &Here) -> Result<Nodes, kube::Error> {
    let api = Api::<Reading<NodeIPAllocation>>::all(client);
    let mut nodes = Nodes::default();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = api.list(&params).await?;
        for object in page.items.into_iter().filter_map(|one| one.0.ok()) {
            if object.name_any() == here.node {
                nodes.here = Some(reserved(&object));
            }
            nodes.addresses.extend(address_of(&object).map(|address| (object.name_any(), address)));
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = ListParams::default().limit(PAGE).continue_token(&token),
            None => return Ok(nodes),
        }
    }
}

/// At most so many of these, evenly spread. Nodes of one kind have names that begin alike, so of each kind
/// there are as many as its share. Pure.
fn sample<T>(all: Vec<T>, most: usize) -> Vec<T> {
    let count = all.len();
    let begins_a_part = |index: &usize| index * most / count != (index + 1) * most / count;
    let chosen = all.into_iter().enumerate().filter(|(index, _)| count <= most || begins_a_part(index));
    chosen.map(|(_, one)| one).collect()
}

/// Whether the pod's address is one of those that are reserved for its node. Pure.
fn own(here: &Here, reserved: Option<&[Ipv4Net]>) -> Findings {
    let Here { node, address } = here;
    let mut report = Findings::default();
    let Some(ranges) = reserved else {
        report.wrong.push(format!("node {node} has no NodeIPAllocation that can be read"));
        return report;
    };
    match ranges.iter().any(|range| range.contains(address)) {
        true => report.good.push(format!("this pod's address {address} is reserved for node {node}")),
        false => report.wrong.push(format!(
            "this pod's address {address} isn't reserved for node {node}: another network plugin gave it. See the condition \
             CNIInstalled of the NodeIPAllocation."
        )),
    }
    report
}

/// What is reserved for a node.
fn reserved(node: &NodeIPAllocation) -> Vec<Ipv4Net> {
    node.spec.ip_configurations().filter_map(|one| one.address.parse().ok()).collect()
}

/// The address of the node itself.
fn address_of(node: &NodeIPAllocation) -> Option<Ipv4Addr> {
    let primary = node.spec.interfaces.iter().find(|one| !one.secondary)?;
    primary.primary_address.parse().ok()
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.good.iter().try_for_each(|line| writeln!(f, "good   {line}"))?;
        self.wrong.iter().try_for_each(|line| writeln!(f, "WRONG  {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::extract::Query;
    use axum::routing::get;
    use axum::{Json, Router};
    use serde_json::{Value, json};
    use std::collections::HashMap;
    use tokio::net::TcpListener;

    fn object(name: &str, node: &str, reserved: &str) -> Value {
        json!({
            "metadata": {"name": name},
            "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s", "interfaces": [
                {"id": "nic", "mac": "", "primaryAddress": node, "subnet": {"id": "s"},
                 "ipConfigurations": [{"name": "vnp-1", "address": reserved}]}
            ]}
        })
    }

    fn here(address: [u8; 4]) -> Here {
        Here { node: "a".into(), address: address.into() }
    }

    #[test]
    fn a_pods_address_is_right_if_it_is_reserved_for_its_own_node() {
        let node: NodeIPAllocation = serde_json::from_value(object("a", "10.0.0.4", "10.0.0.16/28")).unwrap();
        assert_eq!(address_of(&node), Some(Ipv4Addr::new(10, 0, 0, 4)));
        let ranges = reserved(&node);
        assert!(own(&here([10, 0, 0, 20]), Some(&ranges)).wrong.is_empty());
        let others = own(&here([10, 0, 0, 5]), Some(&ranges));
        assert!(others.good.is_empty() && others.wrong[0].contains("another network plugin"), "{others}");
        assert!(own(&here([10, 0, 0, 5]), None).wrong[0].contains("no NodeIPAllocation"));
    }

    #[test]
    fn of_many_nodes_as_many_of_each_kind_are_tried_as_are_its_share() {
        assert_eq!(sample(vec!['a', 'b'], 2), ['a', 'b']);
        assert!(sample(Vec::<char>::new(), 2).is_empty());
        for (count, most) in [(3, 2), (201, 200), (399, 200), (5000, 200), (100_000, 200)] {
            assert_eq!(sample((0..count).collect(), most).len(), most, "{most} of {count}");
        }
        let large_and_small = (0..5000).map(|index| if index < 4000 { "large" } else { "small" });
        let tried = sample(large_and_small.collect(), 200);
        assert_eq!(tried.iter().filter(|kind| **kind == "small").count(), 40);
    }

    /// Nodes whose addresses are this machine's, on one port.
    #[tokio::test]
    async fn thousands_of_nodes_are_read_in_pages_and_a_sample_of_them_is_tried() {
        let objects: Vec<Value> = (0..1250)
            .map(|index| match index {
                0 => object("a", "127.0.0.1", "10.0.0.20/32"),
                _ => object(&format!("node-{index:04}"), "127.0.0.1", "10.0.0.21/32"),
            })
            .collect();
        let answer = move |Query(asked): Query<HashMap<String, String>>| {
            let limit: usize = asked.get("limit").map_or(usize::MAX, |limit| limit.parse().unwrap());
            let from: usize = asked.get("continue").map_or(0, |token| token.parse().unwrap());
            assert!(limit <= 100, "a list of {limit}");
            let to = objects.len().min(from + limit);
            let token = if to < objects.len() { to.to_string() } else { String::new() };
            std::future::ready(Json(json!({
                "apiVersion": "vnetpool.io/v1alpha1", "kind": "NodeIPAllocationList",
                "metadata": {"resourceVersion": "9", "continue": token}, "items": objects[from..to]
            })))
        };
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (listener, kubelet) = (
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        );
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(get(answer))).await });
        let client = vnetpool_apiserver::client::client(kube::Config::new(url)).unwrap();
        let port = kubelet.local_addr().unwrap().port();
        tokio::spawn(async move { while kubelet.accept().await.is_ok() {} });
        let report = run(client, &here([10, 0, 0, 20]), port).await.unwrap();
        assert!(report.wrong.is_empty(), "{report}");
        assert_eq!(report.good[0], "this pod's address 10.0.0.20 is reserved for node a");
        assert_eq!(report.good[1], "of 1250 nodes these 200 are tried, evenly by their names");
        assert_eq!(report.good.len(), 202, "{report}");
    }
}
