//! One test's world: simulated Azure, machines with their Nodes and pods, the operator, and views of all of
//! it.

// By their paths, since a bench has this file, too.
#[path = "stage/azure.rs"]
mod azure;
#[path = "stage/waits.rs"]
mod waits;

use crate::agent::{Agents, Work};
use crate::operator::{self, End, Operator};
use anyhow::{Context, Result, ensure};
use axum::http::Uri;
use futures::StreamExt;
use futures::future::try_join_all;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Node, Pod, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use vnetpool_apiserver::reading::Reading;
use vnetpool_azure_sim::{Config, NewVm, Sim, VmInfo};
use vnetpool_crds::condition::{self, Type};
use vnetpool_crds::{NodeIPAllocation, NodeIPPool};
use vnetpool_plugin::ledger;
use vnetpool_process::lock::lock;
use vnetpool_tests::control_plane::{ControlPlane, NAMESPACE, User};
use vnetpool_tests::eventually;

/// The limit of every wait on a machine without other work: a write here takes a second or two.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait for a pool: the free addresses of a subnet are counted once a minute.
const POOLS_PATIENCE: Duration = Duration::from_secs(80);
/// Where pods are made.
const PODS: &str = "default";

/// Dropped, all of it has ended.
pub struct Stage<'a> {
    plane: &'a ControlPlane,
    pub sim: Sim,
    /// As an administrator.
    pub client: Client,
    pub agents: Agents,
    _work: Work,
    /// Where the operator serves its metrics.
    pub admin: SocketAddr,
    /// Where the operator finds ARM.
    arm: String,
    /// Where the operator finds the API server, if not where it is.
    api_server: Option<Uri>,
    operator: Mutex<Option<Operator>>,
    pods: AtomicUsize,
}

/// An Azure whose NIC writes take no time worth mentioning; the operator polls them after a second.
pub fn quick() -> Config {
    Config { write_seconds: 0.2, ..Config::default() }
}

/// The id of a subnet of the first moment.
pub fn subnet(name: &str) -> String {
    format!(
        "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/vnetpool/providers/Microsoft.Network/virtualNetworks/vnet/subnets/{name}"
    )
}

impl<'a> Stage<'a> {
    /// An empty cluster in an Azure of its own, a pool `default` of this spec for all nodes, and the operator
    /// at work.
    pub async fn set(plane: &'a ControlPlane, azure: Config, pool: Value) -> Result<Self> {
        let stage = Self::empty(plane, azure).await?;
        stage.pool("default", pool).await?;
        stage.start().await?;
        Ok(stage)
    }

    /// Without a pool, and with an operator that hasn't started.
    pub async fn empty(plane: &'a ControlPlane, azure: Config) -> Result<Self> {
        let client = Client::try_from(plane.config(User::Administrator).await?)?;
        sweep(&client).await?;
        let admin = operator::free_address()?;
        let (agents, work) = Agents::start(client.clone());
        let sim = Sim::start(azure).await?;
        let arm = sim.arm_url().to_owned();
        Ok(Self {
            plane,
            sim,
            client,
            agents,
            _work: work,
            admin,
            arm,
            api_server: None,
            operator: Mutex::default(),
            pods: AtomicUsize::default(),
        })
    }

    /// From the next start on the operator finds ARM there.
    pub fn azure_at(&mut self, url: &str) {
        url.clone_into(&mut self.arm);
    }

    /// From the next start on the operator finds the API server there.
    pub fn api_server_at(&mut self, url: Uri) {
        self.api_server = Some(url);
    }

    /// Starts the operator, with the rights the chart gives it.
    pub async fn start(&self) -> Result<()> {
        self.start_with(|_| {}).await
    }

    /// Starts it with another configuration than the usual.
    pub async fn start_with(&self, change: impl FnOnce(&mut vnetpool_operator::Config)) -> Result<()> {
        let operator = self.operator_at(self.admin, change).await?;
        *lock(&self.operator) = Some(operator);
        Ok(())
    }

    /// Starts another one beside it, which serves its metrics at another address.
    pub async fn stand_by(&self) -> Result<(Operator, SocketAddr)> {
        let admin = operator::free_address()?;
        Ok((self.operator_at(admin, |_| {}).await?, admin))
    }

    async fn operator_at(
        &self,
        admin: SocketAddr,
        change: impl FnOnce(&mut vnetpool_operator::Config),
    ) -> Result<Operator> {
        let mut config =
            operator::config(self.arm.parse()?, self.sim.arm_url().parse()?, admin, self.new_identity());
        change(&mut config);
        let mut kube = self.plane.config(User::Operator).await?;
        if let Some(url) = &self.api_server {
            kube.cluster_url = url.clone();
        }
        Operator::start(config, kube)
    }

    /// The API server's own metrics, as text.
    pub fn served(&self) -> Result<String> {
        self.plane.kubectl(&["get", "--raw", "/metrics"])
    }

    /// Distinguishes one start of an operator from the others.
    pub fn new_identity(&self) -> String {
        format!("operator-{}", self.pods.fetch_add(1, Ordering::Relaxed))
    }

    /// The operator ends as by SIGTERM.
    pub async fn stop(&self) -> Result<()> {
        lock(&self.operator).take().context("no operator runs")?.end(End::Term)
    }

    /// The operator ends as by SIGKILL. Its Lease has no holder then, so that the next one needn't wait for
    /// its end.
    pub async fn kill(&self) -> Result<()> {
        lock(&self.operator).take().context("no operator runs")?.end(End::Kill)?;
        self.unseat().await
    }

    /// Clears the Lease: the next operator that asks may lead.
    pub async fn unseat(&self) -> Result<()> {
        let leases = Api::<Lease>::namespaced(self.client.clone(), NAMESPACE);
        let patch = Patch::Merge(json!({ "spec": { "holderIdentity": "" } }));
        for lease in leases.list(&ListParams::default()).await? {
            leases.patch(&lease.name_any(), &PatchParams::default(), &patch).await?;
        }
        Ok(())
    }

    /// Why the operator has ended without a signal, if it has.
    pub fn ended(&self) -> Option<String> {
        lock(&self.operator).as_mut().and_then(Operator::ended)
    }

    /// The identity of the leader, and how often that has changed.
    pub async fn leader(&self) -> Result<(Option<String>, Option<i32>)> {
        let leases = Api::<Lease>::namespaced(self.client.clone(), NAMESPACE);
        let lease = leases.get("vnetpool-operator").await?.spec.context("an empty Lease")?;
        Ok((lease.holder_identity, lease.lease_transitions))
    }

    /// Makes a pool, or changes one.
    pub async fn pool(&self, name: &str, spec: Value) -> Result<()> {
        let pool = json!({ "apiVersion": "vnetpool.io/v1alpha1", "kind": "NodeIPPool", "metadata": { "name": name }, "spec": spec });
        let api = Api::<NodeIPPool>::all(self.client.clone());
        api.patch(name, &PatchParams::apply("administrator").force(), &Patch::Apply(pool)).await?;
        Ok(())
    }

    /// A VM in a subnet of the first VNet (without one, in its first subnet) and its Node with an agent.
    pub async fn node(&self, name: &str, subnet: Option<&str>) -> Result<VmInfo> {
        let vm = NewVm { name: name.into(), subnet: subnet.map(str::to_owned), ..NewVm::default() };
        let vm = self.sim.add_vm(vm).await?;
        self.join(name, &vm.provider_id).await?;
        Ok(vm)
    }

    /// A Node of a VM, wherever that came from, with an agent.
    pub async fn join(&self, name: &str, provider_id: &str) -> Result<()> {
        self.join_labelled(name, provider_id, &[]).await
    }

    /// The same with labels.
    pub async fn join_labelled(&self, name: &str, provider_id: &str, labels: &[(&str, &str)]) -> Result<()> {
        self.register(name, provider_id, labels, FIRST_BOOT).await?;
        self.start_agent(name, FIRST_BOOT).await
    }

    /// The Node alone, as the kubelet of that boot makes it.
    pub async fn register(
        &self,
        name: &str,
        provider_id: &str,
        labels: &[(&str, &str)],
        boot: &str,
    ) -> Result<()> {
        let labels: std::collections::BTreeMap<_, _> = labels.iter().copied().collect();
        // With its status: a Node without a boot would be read again when it has one.
        let node = json!({ "metadata": { "name": name, "labels": labels }, "spec": { "providerID": provider_id },
            "status": node_status(boot) });
        let api = Api::<Node>::all(self.client.clone());
        api.create(&PostParams::default(), &serde_json::from_value(node)?).await?;
        Ok(())
    }

    /// The cloud's controller gives a Node its providerID.
    pub async fn provide(&self, node: &str, provider_id: &str) -> Result<()> {
        let spec = json!({ "spec": { "providerID": provider_id } });
        let api = Api::<Node>::all(self.client.clone());
        api.patch(node, &PatchParams::default(), &Patch::Merge(spec)).await?;
        Ok(())
    }

    /// The node (re)boots: its agent's knowledge is lost, its pods are not.
    pub async fn boot(&self, node: &str, boot: &str) -> Result<()> {
        let status = json!({ "status": node_status(boot) });
        let api = Api::<Node>::all(self.client.clone());
        api.patch_status(node, &PatchParams::default(), &Patch::Merge(status)).await?;
        self.start_agent(node, boot).await
    }

    async fn start_agent(&self, node: &str, boot: &str) -> Result<()> {
        let agent = self.plane.config(User::Agent(node)).await?;
        self.agents.join(node, boot, Client::try_from(agent)?);
        Ok(())
    }

    /// Puts so many more pods on a node.
    pub async fn bind(&self, node: &str, count: usize) -> Result<()> {
        self.bind_annotated(node, count, json!({})).await
    }

    /// The same with these annotations.
    pub async fn bind_annotated(&self, node: &str, count: usize, annotations: Value) -> Result<()> {
        try_join_all((0..count).map(|_| self.make_pod(node, annotations.clone()))).await?;
        self.agents.serve(node, self.pods_on(node).await?);
        Ok(())
    }

    /// Puts one pod with these annotations on a node, and gives its name.
    pub async fn pod(&self, node: &str, annotations: Value) -> Result<String> {
        let asks = annotations.as_object().is_some_and(|all| !all.is_empty());
        let name = self.make_pod(node, annotations).await?;
        self.agents.serve(node, self.pods_on(node).await?);
        if asks {
            self.report_address(node, &name).await?;
        }
        Ok(name)
    }

    /// Writes the pod's address into its status, as its kubelet does once the pod has one.
    pub async fn report_address(&self, node: &str, pod: &str) -> Result<()> {
        let api = Api::<Pod>::namespaced(self.client.clone(), PODS);
        let uid = api.get(pod).await?.uid().unwrap_or_default();
        let has = async || Ok(self.agents.addresses(node).get(&uid).copied());
        let address = eventually(&format!("{pod} has an address"), PATIENCE, has).await?;
        let status = json!({ "status": { "podIP": address, "podIPs": [{ "ip": address }] } });
        api.patch_status(pod, &PatchParams::default(), &Patch::Merge(status)).await?;
        Ok(())
    }

    pub async fn uid(&self, pod: &str) -> Result<String> {
        let api = Api::<Pod>::namespaced(self.client.clone(), PODS);
        api.get(pod).await?.uid().context("a pod without a UID")
    }

    /// Takes that pod from its node.
    pub async fn remove(&self, node: &str, pod: &str) -> Result<()> {
        let api = Api::<Pod>::namespaced(self.client.clone(), PODS);
        api.delete(pod, &DeleteParams::default().grace_period(0)).await?;
        self.agents.serve(node, self.pods_on(node).await?);
        Ok(())
    }

    /// Takes that pod out of the cluster while its node goes on with it. Gives its UID.
    pub async fn orphan(&self, pod: &str) -> Result<String> {
        let api = Api::<Pod>::namespaced(self.client.clone(), PODS);
        let uid = api.get(pod).await?.uid().unwrap_or_default();
        api.delete(pod, &DeleteParams::default().grace_period(0)).await?;
        Ok(uid)
    }

    /// The node ends the sandboxes of the pods that are no more.
    pub async fn tidy(&self, node: &str) -> Result<()> {
        self.agents.serve(node, self.pods_on(node).await?);
        Ok(())
    }

    async fn make_pod(&self, node: &str, annotations: Value) -> Result<String> {
        let api = Api::<Pod>::namespaced(self.client.clone(), PODS);
        let name = format!("pod-{}", self.pods.fetch_add(1, Ordering::Relaxed));
        let pod = json!({ "metadata": { "name": name, "annotations": annotations },
            "spec": { "nodeName": node, "containers": [{ "name": "c", "image": "i" }] } });
        api.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
        Ok(name)
    }

    /// Takes so many pods from a node.
    pub async fn unbind(&self, node: &str, count: usize) -> Result<()> {
        let api = Api::<Pod>::namespaced(self.client.clone(), PODS);
        let pods = self.pods_on(node).await?;
        ensure!(pods.len() >= count, "{node} has {} pods", pods.len());
        for pod in &pods[..count] {
            api.delete(&pod.name, &DeleteParams::default().grace_period(0)).await?;
        }
        self.agents.serve(node, pods[count..].to_vec());
        Ok(())
    }

    /// How many pods there are on a node.
    pub async fn pods_bound(&self, node: &str) -> Result<usize> {
        Ok(self.pods_on(node).await?.len())
    }

    async fn pods_on(&self, node: &str) -> Result<Vec<ledger::Pod>> {
        let api = Api::<Pod>::namespaced(self.client.clone(), PODS);
        let on_node = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let pod = |pod: &Pod| ledger::Pod {
            namespace: PODS.into(),
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
        };
        Ok(api.list(&on_node).await?.iter().map(pod).collect())
    }

    pub async fn allocation(&self, node: &str) -> Result<NodeIPAllocation> {
        Ok(Api::all(self.client.clone()).get(node).await?)
    }

    /// Deletes a node's NodeIPAllocation, as a person might; it goes when the operator lets it.
    pub async fn delete_allocation(&self, node: &str) -> Result<()> {
        Api::<NodeIPAllocation>::all(self.client.clone()).delete(node, &DeleteParams::default()).await?;
        Ok(())
    }

    /// A person writes this annotation of an object, or removes it.
    pub async fn annotate<K>(&self, name: &str, annotation: &str, word: Option<&str>) -> Result<()>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::ClusterResourceScope>,
        K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
    {
        let patch = json!({ "metadata": { "annotations": { annotation: word } } });
        let api = Api::<K>::all(self.client.clone());
        api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    /// The node's agent compares so many times with what the metadata service lists.
    pub async fn compare(&self, node: &str, times: usize) -> Result<()> {
        for _ in 0..times {
            let url = format!("{}/metadata/instance/network?api-version=2021-02-01", self.sim.arm_url());
            let answer = reqwest::Client::new().get(url).header("Metadata", "true").send().await?;
            let spec = self.allocation(node).await?.spec;
            self.agents.compare(node, spec.serving().context("no NIC")?, &answer.json().await?);
        }
        Ok(())
    }

    /// Hands over each version of each object that a watch shows from now on, until the test ends.
    pub fn follow<K>(&self, mut see: impl FnMut(K) + Send + 'static)
    where
        K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + 'static,
        K: serde::de::DeserializeOwned,
    {
        let api = Api::<K>::all(self.client.clone());
        tokio::spawn(async move {
            let objects = watcher(api, watcher::Config::default()).default_backoff().applied_objects();
            let mut objects = objects.boxed();
            while let Some(object) = objects.next().await {
                object.into_iter().for_each(&mut see);
            }
        });
    }

    pub async fn node_pool(&self, name: &str) -> Result<NodeIPPool> {
        Ok(Api::all(self.client.clone()).get(name).await?)
    }

    /// A person deletes the pool.
    pub async fn delete_pool(&self, name: &str) -> Result<()> {
        let api = Api::<NodeIPPool>::all(self.client.clone());
        api.delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// The Node goes, whatever its VM does.
    pub async fn delete_node(&self, name: &str) -> Result<()> {
        let api = Api::<Node>::all(self.client.clone());
        api.delete(name, &DeleteParams::default().grace_period(0)).await?;
        Ok(())
    }
}

const FIRST_BOOT: &str = "boot-1";

/// A Node's status as the kubelet of that boot reports it.
fn node_status(boot: &str) -> Value {
    let info = json!({ "bootID": boot, "architecture": "", "containerRuntimeVersion": "", "kernelVersion": "",
        "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "", "osImage": "", "systemUUID": "" });
    json!({ "nodeInfo": info, "allocatable": { "pods": "250" } })
}

/// A condition of an object, if it has it.
pub fn find(seen: &NodeIPAllocation, type_: Type) -> Option<Condition> {
    condition::find(&seen.status.as_ref()?.conditions, type_).cloned()
}

/// Removes everything of the test before.
async fn sweep(client: &Client) -> Result<()> {
    let account = json!({ "metadata": { "name": "default" } });
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), PODS);
    match accounts.create(&PostParams::default(), &serde_json::from_value(account)?).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        other => drop(other?),
    }
    delete_all::<Pod>(Api::namespaced(client.clone(), PODS)).await?;
    delete_all::<Node>(Api::all(client.clone())).await?;
    delete_all::<Reading<NodeIPPool>>(Api::all(client.clone())).await?;
    let allocations = Api::<NodeIPAllocation>::all(client.clone());
    // By their metadata: one that can't be read goes, too.
    for allocation in allocations.list_metadata(&ListParams::default()).await? {
        let free = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
        allocations.patch_metadata(&allocation.name_any(), &PatchParams::default(), &free).await?;
    }
    delete_all::<Reading<NodeIPAllocation>>(Api::all(client.clone())).await?;
    delete_all::<Lease>(Api::namespaced(client.clone(), NAMESPACE)).await?;
    delete_all::<Event>(Api::namespaced(client.clone(), PODS)).await
}

async fn delete_all<K>(api: Api<K>) -> Result<()>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    api.delete_collection(&DeleteParams::default().grace_period(0), &ListParams::default()).await?;
    Ok(())
}
