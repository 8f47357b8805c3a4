//! Nodes and pods that come and go, and operators that end, while nothing can be relied on.

use crate::attachments::{backend_pool, balancer};
use crate::routes;
use crate::stage::Stage;
use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use vnetpool_azure_sim::{Draws, LogEntry, NewInstance, NewScaleSet};
use vnetpool_crds::names::{BACKEND_POOLS, PUBLIC_ADDRESS};

/// The cluster that meets the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scene {
    /// Virtual machines with single addresses. Their pods may have public addresses and join a backend pool.
    Addresses,
    /// Virtual machines with blocks of addresses, and instances of a Uniform scale set, which can have single
    /// addresses only. Neither can have anything attached.
    Blocks,
    /// Virtual machines with ranges, to which the routes of one table lead. Another client has a route there.
    Routes,
}

impl Scene {
    pub const ALL: [Scene; 3] = [Scene::Addresses, Scene::Blocks, Scene::Routes];

    /// The end of the names of its tests.
    pub fn suffix(self) -> &'static str {
        match self {
            Scene::Addresses => "",
            Scene::Blocks => "_with_blocks",
            Scene::Routes => "_with_routes",
        }
    }

    /// Kinds about which Events are certainly published. With blocks there is little to write, and so
    /// little that fails.
    pub fn kinds_with_events(self) -> &'static [&'static str] {
        match self {
            Scene::Addresses => &["Node", "NodeIPAllocation", "NodeIPPool", "Pod"],
            Scene::Blocks => &["NodeIPPool", "Pod"],
            Scene::Routes => &["Pod"],
        }
    }
}

/// The backend pool that pods may join.
const WEB: &str = "web";
const SET: &str = "pool";
/// The label by which a pool takes the scale set's nodes.
const OF_SET: (&str, &str) = ("of", SET);

/// What there is.
pub struct World {
    pub scene: Scene,
    draws: Draws,
    /// By the Nodes' names.
    pub nodes: BTreeMap<String, Machine>,
    /// How many machines were made so far.
    made: usize,
    /// How many addresses a node has at least.
    minimum: usize,
    /// The route table of [`Scene::Routes`].
    pub table: Option<String>,
}

/// A node's machine, and how many pods it has.
pub struct Machine {
    /// Azure's name of it.
    name: String,
    /// The NIC's id in lower case.
    pub nic: String,
    /// Where routes to it lead.
    pub hop: String,
    /// How many addresses one reservation brings.
    pub grain: usize,
    pub pods: usize,
}

/// A pod that asks for something that its pool offers.
pub struct Asking {
    pub node: String,
    name: String,
    pub uid: String,
    is_reported: bool,
    pub public_address: bool,
    /// The backend pool's id.
    pub backend_pool: Option<String>,
}

impl World {
    /// Without nodes, and with pools.
    pub async fn found(stage: &Stage<'_>, scene: Scene, seed: u64) -> Result<World> {
        let mut table = None;
        match scene {
            Scene::Addresses => balancer(stage, WEB, json!([])).await?,
            Scene::Blocks => {
                let set = NewScaleSet { name: SET.into(), ..NewScaleSet::default() };
                stage.sim.add_scale_set(set)?;
            }
            Scene::Routes => table = Some(routes::table(stage, json!([routes::theirs()])).await?),
        }
        let (draws, nodes) = (Draws::of(seed), BTreeMap::new());
        let world = World { scene, draws, nodes, made: 0, minimum: 0, table };
        world.make_pools(stage).await?;
        Ok(world)
    }

    /// A person gives each node one address more at least.
    pub async fn edit_pools(&mut self, stage: &Stage<'_>) -> Result<()> {
        self.minimum = 1;
        self.make_pools(stage).await
    }

    async fn make_pools(&self, stage: &Stage<'_>) -> Result<()> {
        let sizing = json!({ "minimum": self.minimum, "warm": 0, "batch": 1, "releaseAfter": "0s" });
        // The free addresses of the subnet are always reported as few, so that a pool has a condition to
        // report, too.
        let pool = |more: Value| {
            let mut spec = json!({ "sizing": sizing, "subnetExhaustingPercent": 100 });
            if let (Some(spec), Value::Object(mut more)) = (spec.as_object_mut(), more) {
                spec.append(&mut more);
            }
            spec
        };
        let offers = json!({ "publicAddressNamespaces": ["default"],
            "backendPools": [{ "name": WEB, "id": backend_pool(WEB) }] });
        match self.scene {
            Scene::Addresses => stage.pool("default", pool(json!({ "attachments": offers }))).await,
            Scene::Blocks => {
                let (label, value) = OF_SET;
                let of_set = json!({ "weight": 1, "nodeSelector": { "matchLabels": { label: value } } });
                stage.pool("instances", pool(of_set)).await?;
                stage.pool("default", pool(json!({ "mode": "Prefix" }))).await
            }
            Scene::Routes => {
                let table = self.table.as_deref().context("no table")?;
                // A node has one range, however many addresses that is; its pods find the edit in their wait.
                let mut spec = routes::pool(table, "10.244.0.0/16");
                spec["cooldown"] = json!(format!("{}s", self.minimum));
                stage.pool("default", spec).await
            }
        }
    }

    /// How many addresses a node wants. A range is its node's for good.
    pub fn wanted(&self, machine: &Machine) -> usize {
        let least = if self.scene == Scene::Routes { 1 } else { self.minimum };
        machine.pods.max(least)
    }

    /// One more machine with its Node and agent.
    pub async fn join(&mut self, stage: &Stage<'_>, node: &str) -> Result<()> {
        let is_instance = self.scene == Scene::Blocks && self.made.is_multiple_of(3);
        let (name, vm) = if is_instance {
            let new = NewInstance { instance_id: Some(self.made as u64), ..NewInstance::default() };
            let vm = stage.sim.add_instance(SET, new).await?;
            stage.join_labelled(node, &vm.provider_id, &[OF_SET]).await?;
            (format!("{SET}_{}", self.made), vm)
        } else {
            let subnet = (self.scene == Scene::Routes).then_some("nodes");
            (node.to_owned(), stage.node(node, subnet).await?)
        };
        self.made += 1;
        let grain = match self.scene {
            Scene::Blocks if !is_instance => 16,
            Scene::Addresses | Scene::Blocks => 1,
            Scene::Routes => 256,
        };
        let (nic, hop) = (vm.nic_id.to_lowercase(), vm.address.to_string());
        let machine = Machine { name, nic, hop, grain, pods: 0 };
        self.nodes.insert(node.to_owned(), machine);
        Ok(())
    }

    /// The first pod of the node that was made as the `index`-th. Some have something attached before the
    /// trouble begins, and go while it lasts.
    pub async fn bind_first(&mut self, stage: &Stage<'_>, node: &str, index: usize) -> Result<()> {
        let asks = match index % 3 {
            0 => json!({ PUBLIC_ADDRESS: "true" }),
            1 => json!({ BACKEND_POOLS: WEB }),
            _ => json!({}),
        };
        self.bind_annotated(stage, node, 1, asks).await
    }

    async fn bind_annotated(
        &mut self,
        stage: &Stage<'_>,
        node: &str,
        more: usize,
        annotations: Value,
    ) -> Result<()> {
        stage.bind_annotated(node, more, annotations).await?;
        self.nodes.get_mut(node).context("no such node")?.pods += more;
        Ok(())
    }

    async fn unbind(&mut self, stage: &Stage<'_>, node: &str, less: usize) -> Result<()> {
        stage.unbind(node, less).await?;
        self.nodes.get_mut(node).context("no such node")?.pods -= less;
        Ok(())
    }

    /// One event: pods come or go, a machine makes room for another, the operator loses its Lease or is
    /// killed.
    pub async fn happen(&mut self, stage: &Stage<'_>, step: usize) -> Result<()> {
        let index = self.draws.below(self.nodes.len(), "node");
        let (node, machine) = self.nodes.iter().nth(index).context("no node")?;
        let (node, pods, vm) = (node.clone(), machine.pods, machine.name.clone());
        match self.draws.below(21, "event") {
            0..10 => {
                let more = 1 + self.draws.below(4, "pods");
                let asks = match self.draws.below(6, "asks") {
                    0 => json!({ PUBLIC_ADDRESS: "true" }),
                    1 => json!({ BACKEND_POOLS: WEB }),
                    // They run without it, and get an Event.
                    2 => json!({ BACKEND_POOLS: "not-offered" }),
                    _ => json!({}),
                };
                self.bind_annotated(stage, &node, more, asks).await
            }
            10..17 => {
                let less = pods.min(1 + self.draws.below(4, "pods"));
                self.unbind(stage, &node, less).await
            }
            17..19 => {
                self.unbind(stage, &node, pods).await?;
                // Its NIC stays half of the time.
                stage.sim.delete_vm(&vm, self.draws.below(2, "NIC") == 0).await?;
                stage.delete_node(&node).await?;
                self.nodes.remove(&node);
                self.join(stage, &format!("m{step:02}")).await
            }
            19 => stage.unseat().await,
            _ => {
                stage.kill().await?;
                stage.start().await
            }
        }
    }

    /// The kubelets report the addresses of those pods that ask for something: before that, nothing is
    /// attached to them.
    pub async fn report_addresses(&self, stage: &Stage<'_>) -> Result<()> {
        for pod in self.asking(stage).await?.into_iter().filter(|pod| !pod.is_reported) {
            if stage.agents.addresses(&pod.node).contains_key(&pod.uid) {
                stage.report_address(&pod.node, &pod.name).await?;
            }
        }
        Ok(())
    }

    /// The pods that are to have something attached.
    pub async fn asking(&self, stage: &Stage<'_>) -> Result<Vec<Asking>> {
        if self.scene != Scene::Addresses {
            return Ok(vec![]);
        }
        let pods =
            Api::<Pod>::namespaced(stage.client.clone(), "default").list(&ListParams::default()).await?;
        let asking = pods.into_iter().map(|pod| {
            let asks = |annotation: &str, value: &str| {
                pod.annotations().get(annotation).is_some_and(|one| one == value)
            };
            Asking {
                public_address: asks(PUBLIC_ADDRESS, "true"),
                backend_pool: asks(BACKEND_POOLS, WEB).then(|| backend_pool(WEB)),
                node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
                name: pod.name_any(),
                uid: pod.uid().unwrap_or_default(),
                is_reported: pod.status.as_ref().is_some_and(|status| status.pod_ip.is_some()),
            }
        });
        Ok(asking.filter(|pod| pod.public_address || pod.backend_pool.is_some()).collect())
    }

    /// Whether Azure was asked to make or delete a public address, if any pod could have one.
    pub fn has_met_attachments(&self, stage: &Stage<'_>) -> bool {
        let orders = |one: &LogEntry| one.method != "GET" && one.path.contains("/publicIPAddresses/");
        self.scene != Scene::Addresses || stage.asked().iter().any(orders)
    }
}
