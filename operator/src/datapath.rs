//! Whether the pod network works, seen from a pod on it: the check that `helm test` runs.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures::future::join_all;
use ipnet::Ipv4Net;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use vnetpool_apiserver::reading::Reading;
use vnetpool_crds::NodeIPAllocation;

/// A packet lost once is sent again after a second, twice after three.
const PATIENCE: Duration = Duration::from_secs(5);

/// The pod that runs the check.
#[derive(Clone, Debug)]
pub struct Here {
    pub node: String,
    pub address: Ipv4Addr,
}

/// What the check has found. Empty means that nothing was wrong.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub good: Vec<String>,
    pub wrong: Vec<String>,
}

/// Checks this pod's own address and connects to every node's kubelet at `port`. An answer of the API server
/// shows that its Service is reached.
///
/// # Errors
/// When the API server can't be asked.
pub async fn run(client: Client, here: &Here, port: u16) -> Result<Report, kube::Error> {
    let all = Api::<Reading<NodeIPAllocation>>::all(client).list(&ListParams::default()).await?;
    let nodes: Vec<NodeIPAllocation> = all.items.into_iter().filter_map(|one| one.0.ok()).collect();
    let calls = nodes.iter().filter_map(|node| Some((node.name_any(), address_of(node)?)));
    let calls = join_all(calls.map(|(name, address)| async move {
        let to = SocketAddr::new(IpAddr::V4(address), port);
        let outcome = match timeout(PATIENCE, TcpStream::connect(to)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
        };
        (name, to, outcome)
    }))
    .await;
    let mut report = own(here, &nodes);
    for (name, to, outcome) in calls {
        match outcome {
            Ok(()) => report.good.push(format!("node {name} answers at {to}")),
            Err(why) => report.wrong.push(format!("node {name} isn't reached at {to}: {why}")),
        }
    }
    Ok(report)
}

/// Whether the pod's address is one that is reserved for its node. Pure.
fn own(here: &Here, nodes: &[NodeIPAllocation]) -> Report {
    let Here { node, address } = here;
    let mut report = Report::default();
    let Some(object) = nodes.iter().find(|one| one.name_any() == *node) else {
        report.wrong.push(format!("node {node} has no NodeIPAllocation that can be read"));
        return report;
    };
    let ranges = object.spec.ip_configurations().filter_map(|one| one.address.parse::<Ipv4Net>().ok());
    match ranges.into_iter().any(|range| range.contains(address)) {
        true => report.good.push(format!("this pod's address {address} is reserved for node {node}")),
        false => report.wrong.push(format!(
            "this pod's address {address} isn't reserved for node {node}: another network plugin gave it. See the condition \
             CNIInstalled of the NodeIPAllocation."
        )),
    }
    report
}

/// The address of the node itself.
fn address_of(node: &NodeIPAllocation) -> Option<Ipv4Addr> {
    let primary = node.spec.interfaces.iter().find(|one| !one.secondary)?;
    primary.primary_address.parse().ok()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.good.iter().try_for_each(|line| writeln!(f, "good   {line}"))?;
        self.wrong.iter().try_for_each(|line| writeln!(f, "WRONG  {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, address: &str) -> NodeIPAllocation {
        serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s", "interfaces": [
                {"id": "nic", "mac": "", "primaryAddress": "10.0.0.4", "subnet": {"id": "s"},
                 "ipConfigurations": [{"name": "vnp-1", "address": address}]}
            ]}
        }))
        .unwrap()
    }

    fn here(address: [u8; 4]) -> Here {
        Here { node: "a".into(), address: address.into() }
    }

    #[test]
    fn a_pods_address_is_right_if_it_is_reserved_for_its_own_node() {
        let nodes = [node("a", "10.0.0.16/28"), node("b", "10.0.0.5/32")];
        assert!(own(&here([10, 0, 0, 20]), &nodes).wrong.is_empty());
        let others = own(&here([10, 0, 0, 5]), &nodes);
        assert!(others.good.is_empty() && others.wrong[0].contains("another network plugin"), "{others}");
        assert!(own(&here([10, 0, 0, 5]), &nodes[1..]).wrong[0].contains("no NodeIPAllocation"));
        assert_eq!(address_of(&nodes[0]), Some(Ipv4Addr::new(10, 0, 0, 4)));
    }
}
