//! How kube-proxy distinguishes pods of a node from other sources, which decides whose packets it translates.
//! The decision is pure.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};

use crate::api_server::{FORBIDDEN, NOT_FOUND, is_status};

/// Where kubeadm keeps it; others configure kube-proxy in ways of their own.
const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-proxy";
const KEY: &str = "config.conf";
const REMEDY: &str = "Set detectLocalMode: InterfaceNamePrefix and detectLocal.interfaceNamePrefix: vnp there \
                      (docs/node-neighbours.md), and restart kube-proxy";

/// The findings about the cluster's kube-proxy.
pub async fn check(client: Client) -> anyhow::Result<String> {
    let unseen = |why: &str| format!("not read: {why}. docs/node-neighbours.md has what it should contain");
    match Api::<ConfigMap>::namespaced(client, NAMESPACE).get(NAME).await {
        Ok(found) => Ok(match found.data.as_ref().and_then(|data| data.get(KEY)) {
            Some(configuration) => advice(configuration),
            None => unseen("its ConfigMap has no config.conf"),
        }),
        Err(error) if is_status(&error, NOT_FOUND) => {
            Ok(unseen("there is no ConfigMap kube-system/kube-proxy, as kubeadm makes it"))
        }
        Err(error) if is_status(&error, FORBIDDEN) => {
            Ok(unseen("the ConfigMap kube-system/kube-proxy may not be read"))
        }
        Err(error) => Err(error.into()),
    }
}

/// The value of a key that is there once, in a text of YAML as the API server prints it.
fn value<'a>(configuration: &'a str, key: &str) -> &'a str {
    let of_key = |line: &'a str| line.trim().strip_prefix(key)?.strip_prefix(':');
    configuration.lines().find_map(of_key).unwrap_or_default().trim().trim_matches('"')
}

fn advice(configuration: &str) -> String {
    let (mode, prefix, range) = (
        value(configuration, "detectLocalMode"),
        value(configuration, "interfaceNamePrefix"),
        value(configuration, "clusterCIDR"),
    );
    match (mode, prefix, range) {
        ("InterfaceNamePrefix", "vnp", _) => "as it should be: it knows pods by their links, vnp*".to_owned(),
        ("InterfaceNamePrefix", other, _) => {
            format!("it knows pods by links {other:?}*, and those of Vnetpool are vnp*. {REMEDY}.")
        }
        ("" | "ClusterCIDR", _, "") => {
            format!(
                "it can't distinguish pods from others, since it has no clusterCIDR: pods aren't let past a Service's external \
                 address. {REMEDY}."
            )
        }
        ("" | "ClusterCIDR", _, range) => {
            format!(
                "it takes {range} for pods: to a Service, a pod with another address comes under its node's, and a VM in \
                 that range counts as a pod. {REMEDY}."
            )
        }
        (mode, ..) => format!(
            "detectLocalMode is {mode}, which goes by ranges or bridges that Vnetpool's pods don't have. {REMEDY}."
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ranges_kube_proxy_takes_for_pods_are_named_with_the_setting() {
        let advised = |mode: &str, prefix: &str, range: &str| {
            advice(&format!(
                "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nclusterCIDR: {range}\nconntrack:\n  min: null\n\
                 detectLocal:\n  bridgeInterface: \"\"\n  interfaceNamePrefix: {prefix}\ndetectLocalMode: {mode}\n"
            ))
        };
        assert!(advised("InterfaceNamePrefix", "vnp", "10.0.0.0/8").starts_with("as it should be"));
        assert!(advised("InterfaceNamePrefix", "cali", "\"\"").contains("\"cali\"*"));
        for (text, part) in [
            (advised("\"\"", "\"\"", "\"\""), "no clusterCIDR"),
            (advised("\"\"", "\"\"", "10.244.0.0/16"), "takes 10.244.0.0/16 for pods"),
            (advised("ClusterCIDR", "\"\"", "10.244.0.0/16"), "takes 10.244.0.0/16 for pods"),
            (advised("NodeCIDR", "\"\"", "\"\""), "detectLocalMode is NodeCIDR"),
        ] {
            assert!(text.contains(part) && text.contains("interfaceNamePrefix: vnp"), "{text}");
        }
    }
}
