//! Reads Azure, the kernels, the objects, the ledgers and the pods' answers of a cluster, by programs and
//! requests that are none of the product's.

use super::rest::{Rest, Sizing};
use super::{Addresses, Answer, Dial, Namespaces, Observation, Ready, readings};
use crate::cluster::{Cluster, Host};
use crate::workload::{ProbePod, target};
use anyhow::{Context, Result};
use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;
use tokio::time::timeout;

/// An API server that stands still holds an observation up no longer, and nor does a machine.
const REQUEST: Duration = Duration::from_secs(5);

/// Gets each pod at each of its readings.
type Met<'a> = Box<dyn Fn(&Pod) -> Result<()> + 'a>;

/// The view of one cluster, in which the pods with one label count.
pub struct Observer<'a> {
    cluster: &'a Cluster,
    label: &'a str,
    met: Met<'a>,
}

impl<'a> Observer<'a> {
    /// `label` selects the pods, all of the namespace `default` that have addresses.
    pub fn of(cluster: &'a Cluster, label: &'a str) -> Self {
        Self { cluster, label, met: Box::new(|_| Ok(())) }
    }

    /// The same; `met` gets each pod at each of its readings.
    #[must_use]
    pub fn meeting(self, met: impl Fn(&Pod) -> Result<()> + 'a) -> Self {
        Self { met: Box::new(met), ..self }
    }

    /// All that can be read: a machine that reboots can't, nor can an API server that stands still.
    ///
    /// # Errors
    /// When the cluster's own description can't be read.
    pub async fn observe(&self) -> Result<Observation> {
        let state = &self.cluster.state;
        let mut seen = Observation {
            vm: self.vm()?.address.parse()?,
            internet: state.internet.address.parse()?,
            hosts: BTreeMap::new(),
            are_pods_read: false,
            before: Ready::new(),
            answers: BTreeMap::new(),
            dials: vec![],
            sent: BTreeMap::new(),
            wired: Addresses::new(),
            inside: Namespaces::new(),
            nics: Addresses::new(),
            after: Ready::new(),
        };
        for node in &state.nodes {
            // One that was replaced may have another address.
            let now = self.cluster.host(&node.name).unwrap_or_else(|_| node.clone());
            seen.hosts.insert(node.name.clone(), now.address.parse()?);
        }
        let pods = self.reached(&seen).await;
        let kernels = state.nodes.iter().map(|node| async { (&node.name, self.kernel(&node.name).await) });
        for (node, kernel) in join_all(kernels).await {
            match kernel {
                Ok((wired, inside)) => {
                    seen.wired.insert(node.clone(), wired);
                    seen.inside.insert(node.clone(), inside);
                }
                Err(error) => println!("the auditor doesn't see the kernel of {node}: {error:#}"),
            }
        }
        match self.nics().await {
            Ok(nics) => seen.nics = nics,
            Err(error) => println!("the auditor doesn't see the NICs: {error:#}"),
        }
        let pods = async { anyhow::Ok((pods?, self.ready().await?)) };
        match pods.await {
            Ok(((before, dials, answers), after)) => {
                (seen.before, seen.dials, seen.answers, seen.after) = (before, dials, answers, after);
                seen.are_pods_read = true;
            }
            Err(error) => println!("the auditor doesn't see the pods: {error:#}"),
        }
        Ok(seen)
    }

    /// The pods that are ready, what they reach, and what they answer.
    async fn reached(&self, seen: &Observation) -> Result<(Ready, Vec<Dial>, BTreeMap<Ipv4Addr, Answer>)> {
        let ready = self.ready().await?;
        let dials = self.dials(&ready, seen).await?;
        let answers = self.answers(&ready).await?;
        Ok((ready, dials, answers))
    }

    /// The plain VM that asks the pods.
    fn vm(&self) -> Result<&Host> {
        self.cluster.state.vms.first().context("no plain VM")
    }

    /// The pods as the API server has them.
    ///
    /// # Errors
    /// When it doesn't answer soon.
    pub async fn pods(&self) -> Result<Vec<Pod>> {
        let api: Api<Pod> = Api::namespaced(self.cluster.client.clone(), "default");
        let all = ListParams::default().labels(self.label);
        Ok(timeout(REQUEST, api.list(&all)).await??.items)
    }

    /// The pods that are ready.
    async fn ready(&self) -> Result<Ready> {
        let mut ready = Ready::new();
        for pod in &self.pods().await? {
            (self.met)(pod)?;
            if let Some(one) = ProbePod::of(pod) {
                ready.insert(pod.uid().context("a pod without a UID")?, one);
            }
        }
        Ok(ready)
    }

    /// The answer to a plain VM at the address of each of these pods.
    async fn answers(&self, pods: &Ready) -> Result<BTreeMap<Ipv4Addr, Answer>> {
        let urls = pods.values().map(|pod| format!("http://{}/whoami", target(pod.address)));
        Ok(readings::answers(&self.curl(&[], urls.collect()).await?))
    }

    /// Has each of these pods connect to the plain VM, to the internet and to a pod of each node.
    async fn dials(&self, pods: &Ready, seen: &Observation) -> Result<Vec<Dial>> {
        let mut targets = vec![target(seen.vm), target(seen.internet)];
        for node in seen.hosts.keys() {
            let pod = pods.values().find(|pod| pod.node == *node);
            targets.extend(pod.map(|pod| target(pod.address)));
        }
        let request = json!({ "targets": targets, "timeout_ms": 1000 }).to_string();
        let urls = pods.values().map(|pod| format!("http://{}/dial", target(pod.address)));
        Ok(readings::dials(&self.curl(&["--json", &request], urls.collect()).await?))
    }

    /// What a plain VM gets from all of these, one behind the other.
    async fn curl(&self, how: &[&str], urls: Vec<String>) -> Result<String> {
        if urls.is_empty() {
            return Ok(String::new());
        }
        // Pods that end meanwhile don't answer, and nor does one whose packets others drop.
        let curl = "curl --silent --parallel --max-time 2 \"$@\" || true";
        let mut command = vec!["sh", "-c", curl, "sh"];
        command.extend(how);
        command.extend(urls.iter().map(String::as_str));
        self.cluster.run_on(&self.vm()?.name, &command).await
    }

    /// The addresses that a node's kernel sends to pods, and those inside of them.
    async fn kernel(&self, node: &str) -> Result<(BTreeSet<Ipv4Addr>, BTreeMap<String, BTreeSet<Ipv4Addr>>)> {
        let read = async {
            let routes = self.cluster.run_on(node, &readings::SHOW_ROUTES).await?;
            let inside = self.cluster.run_on(node, &["sh", "-c", readings::PRINT_INSIDE]).await?;
            Ok((readings::led_to_pods(&routes)?, readings::inside_pods(&inside)?))
        };
        timeout(REQUEST, read).await?
    }

    /// The secondary addresses of each node's NIC.
    async fn nics(&self) -> Result<Addresses> {
        let nics = self.cluster.azure.nics().await?;
        let of = |node: &Host| {
            let nic = nics.get(&node.nic_id.to_lowercase());
            (node.name.clone(), nic.into_iter().flat_map(|nic| nic.pod_addresses()).collect())
        };
        Ok(self.cluster.state.nodes.iter().map(of).collect())
    }

    /// All that, with what each `spec` shows and each ledger records. The pool asks for `sizing`.
    ///
    /// # Errors
    /// When an object or a ledger can't be read.
    pub async fn rest(&self, sizing: Sizing) -> Result<Rest> {
        let list = self.cluster.kubectl(&["get", "nodeipallocations", "--output", "json"]).await?;
        let mut ledgers = BTreeMap::new();
        for node in &self.cluster.state.nodes {
            let file = self.cluster.host(&node.name)?.path("/run/vnetpool/ledger");
            let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            ledgers.insert(node.name.clone(), readings::recorded(&text));
        }
        let specs = readings::reserved(&serde_json::from_str(&list)?);
        Ok(Rest { seen: self.observe().await?, specs, ledgers, sizing })
    }
}
