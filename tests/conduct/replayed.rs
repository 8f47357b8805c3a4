//! Traces of the model (`tests/model`), replayed: what happens in one is done to the real operator, Azure,
//! the API server and the node. Each time the programs come to rest, the real world has to show what the
//! modelled one does, so the model knows all that the programs do. At each moment in between no address may
//! be where the model finds that it never is.
//!
//! Azure handles a write to the NIC when the trace has it do so: until then the simulator holds it, whatever
//! becomes of the connection. The agents are those of all of `conduct`: they have a real ledger, and no
//! machine.

use crate::Test;
use crate::machines::held;
use crate::proxy::Proxy;
use crate::stage::{Stage, find};
use anyhow::{Context, Result, bail, ensure};
use kube::{Api, Client};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::time::Duration;
use vnetpool_apiserver::reading::Reading;
use vnetpool_azure_sim::{Config, Effect, NewVm};
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::allocation::IpConfiguration;
use vnetpool_crds::condition::WRITING;
use vnetpool_model::protocol::Action;
use vnetpool_model::trace::{self, Leg, Shown, Trace, View};
use vnetpool_model::world::PODS;
use vnetpool_node_agent::report::publish;
use vnetpool_plugin::ledger::{Ledger, State};
use vnetpool_process::lock::lock;
use vnetpool_tests::control_plane::{ControlPlane, User};
use vnetpool_tests::eventually;

pub const TESTS: &[Test] = crate::tests![
    what_happens_in_a_trace_of_the_model_leads_the_programs_to_what_the_model_shows,
    what_happens_in_another_trace_of_the_model_leads_the_programs_to_what_the_model_shows,
];

async fn what_happens_in_a_trace_of_the_model_leads_the_programs_to_what_the_model_shows(
    plane: &ControlPlane,
) -> Result<()> {
    replay(plane, 1).await
}

async fn what_happens_in_another_trace_of_the_model_leads_the_programs_to_what_the_model_shows(
    plane: &ControlPlane,
) -> Result<()> {
    replay(plane, 2).await
}

const NODE: &str = "n1";
/// The programs come to rest within this, after trouble, too.
const PATIENCE: Duration = Duration::from_secs(30);
/// More writes than any trace has.
const WRITES: usize = 50;

/// Replays the seed's trace.
///
/// # Errors
/// The real world shows something else than the model, or has an address where it may not be. The error has
/// the trace until then.
pub async fn replay(plane: &ControlPlane, seed: u64) -> Result<()> {
    let Trace { begins, legs } = Trace::of(seed);
    let mut world = World::found(plane, &begins).await?;
    for (nth, Leg { action, view }) in legs.iter().enumerate() {
        let done = || {
            let actions: Vec<String> = legs[..=nth].iter().map(|leg| format!("{:?}", leg.action)).collect();
            format!("seed {seed}, after {}", actions.join(", "))
        };
        world.happen(action).await.with_context(done)?;
        world.until(view).await.with_context(done)?;
    }
    Ok(())
}

/// The real one.
struct World<'a> {
    plane: &'a ControlPlane,
    stage: Stage<'a>,
    /// On the way to Azure.
    network: Proxy,
    nic: String,
    /// Where the trace's addresses begin.
    first: Ipv4Addr,
    boot: usize,
    pods: [Option<Pod>; PODS],
    past: Mutex<Past>,
}

struct Pod {
    name: String,
    uid: String,
}

#[derive(Default)]
struct Past {
    /// The names that the node has given up so far.
    given_up: BTreeSet<String>,
    /// Those that were on the NIC.
    held: BTreeSet<String>,
}

/// Whether both show the same. While a write is under way the product may have published the NIC as it has
/// read it, and the `target` that the write is for: the model does so afterwards only.
fn is_alike(real: &View, modelled: &View) -> bool {
    let mut real = real.clone();
    if modelled.writes > 0
        && let (Some(shown), Some(modelled)) = (&mut real.object, &modelled.object)
    {
        shown.target = modelled.target;
        if shown.spec == real.nic && real.nic != modelled.spec {
            let Shown { is_of_boot, spec, relinquished, .. } = modelled.clone();
            *shown = Shown { is_of_boot, spec, relinquished, ..shown.clone() };
        }
    }
    real == *modelled
}

/// Our reservations on the NIC, by name.
type Held = BTreeMap<String, Ipv4Addr>;

impl<'a> World<'a> {
    /// A node with its pods, as the trace begins.
    async fn found(plane: &'a ControlPlane, begins: &View) -> Result<World<'a>> {
        let mut stage = Stage::empty(plane, Config { synchronous: true, ..Config::default() }).await?;
        let network = Proxy::start(stage.sim.arm_url().trim_start_matches("http://").parse()?)?;
        stage.azure_at(&format!("http://{}", network.address));
        let sizing = json!({ "minimum": 0, "warm": 0, "maximum": PODS, "batch": 1, "releaseAfter": "0s" });
        stage.pool("default", json!({ "sizing": sizing, "cooldown": "0s" })).await?;
        stage.start().await?;
        let vm = stage.node(NODE, None).await?;
        // Azure gives the lowest free address.
        let first = Ipv4Addr::from(u32::from(vm.address) + 1);
        let (pods, past) = (Default::default(), Mutex::default());
        let mut world = World { plane, stage, network, nic: vm.nic_id, first, boot: 1, pods, past };
        for pod in 0..begins.pods.len() {
            world.bind(pod).await?;
        }
        world.until(begins).await?;
        for _ in 0..WRITES {
            world.stage.fault("PUT", "/n1-nic", Some(1), Effect::HoldBefore);
        }
        Ok(world)
    }

    async fn happen(&mut self, action: &Action) -> Result<()> {
        let stage = &self.stage;
        match *action {
            Action::Bind(pod) => self.bind(pod).await,
            Action::Del(pod) => {
                let Pod { name, .. } = self.pods[pod].take().context("no such pod")?;
                stage.remove(NODE, &name).await
            }
            Action::Handle(write) => self.handle(write),
            Action::FailWrite(write) => {
                stage.sim.patch_nic("n1-nic", &json!({ "tags": { "by": "another client" } })).await?;
                self.handle(write)
            }
            Action::LoseAnswer(_) => {
                self.network.cut_open();
                Ok(())
            }
            Action::OperatorDies(_) => stage.kill().await,
            Action::OperatorStarts(_) => stage.start().await,
            Action::DeleteObject => stage.delete_allocation(NODE).await,
            Action::StrangerTakes => {
                stage.sim.add_vm(NewVm { name: "stranger".into(), ..NewVm::default() }).await?;
                Ok(())
            }
            Action::Wipe => {
                // As the agent does before it builds a ledger.
                let agent = Client::try_from(self.plane.config(User::Agent(NODE)).await?)?;
                let objects = Api::<Reading<NodeIPAllocation>>::all(agent);
                // The operator may write at the same moment.
                let announced = eventually("the agent announces a ledger", PATIENCE, || async {
                    Ok(publish::announce(&objects, &stage.allocation(NODE).await?).await.ok())
                });
                let announced = announced.await?;
                let pods = self.pods.iter().flatten().map(|pod| pod.uid.as_str());
                stage.agents.rebuild(NODE, pods, &announced);
                Ok(())
            }
            Action::Reboot => {
                self.boot += 1;
                stage.boot(NODE, &boot_id(self.boot)).await
            }
            _ => bail!("it can't be made to happen"),
        }
    }

    async fn bind(&mut self, pod: usize) -> Result<()> {
        let name = self.stage.pod(NODE, json!({})).await?;
        let uid = self.stage.uid(&name).await?;
        self.pods[pod] = Some(Pod { name, uid });
        Ok(())
    }

    /// The held writes, oldest first.
    fn writes(&self) -> Vec<u64> {
        let faults = self.stage.sim.faults();
        faults.iter().filter(|fault| fault.hits > 0).map(|fault| fault.id).collect()
    }

    fn handle(&self, write: usize) -> Result<()> {
        let held = self.writes();
        Ok(self.stage.sim.lift_fault(*held.get(write).context("no such write")?)?)
    }

    /// Waits until the real world shows this.
    async fn until(&self, modelled: &View) -> Result<()> {
        eventually("the real world shows what the model does", PATIENCE, || async {
            let real = match self.observe().await {
                Ok(real) => real?,
                Err(broken) => return Ok(Some(Err(broken))),
            };
            ensure!(is_alike(&real, modelled), "it shows {real:?}, and the model {modelled:?}");
            Ok(Some(Ok(())))
        })
        .await?
    }

    /// What the real world shows now, if the API server answers.
    ///
    /// # Errors
    /// An address is where it never may be.
    async fn observe(&self) -> Result<Result<View>> {
        // Whatever a ledger hands out was on the NIC before, and leaves it later than the ledger.
        let ledger = self.stage.agents.ledger(NODE);
        let held: Held = held(&self.stage, &self.nic)
            .into_iter()
            .map(|(name, address)| Ok((name, address.parse()?)))
            .collect::<Result<_>>()?;
        if let Some(ledger) = &ledger {
            self.audit(ledger, &held)?;
        }
        let objects = Api::<NodeIPAllocation>::all(self.stage.client.clone());
        let object = match objects.get_opt(NODE).await {
            Ok(object) => object,
            Err(error) => return Ok(Err(error.into())),
        };
        let addresses = self.stage.agents.addresses(NODE);
        let pods = self.pods.iter().flatten().filter_map(|pod| addresses.get(&pod.uid));
        let counted = |address: &Ipv4Addr| trace::counted(*address, self.first);
        let view = View {
            writes: self.writes().len(),
            nic: held.iter().map(|(name, address)| (name.clone(), counted(address))).collect(),
            object: object.map(|object| self.shown(&object)).transpose()?,
            ledger: ledger.map(|ledger| trace::records(&ledger, self.first)).unwrap_or_default(),
            pods: pods.map(counted).collect(),
        };
        Ok(Ok(view.labelled()))
    }

    fn shown(&self, object: &NodeIPAllocation) -> Result<Shown> {
        let (spec, status) = (&object.spec, object.status.clone().unwrap_or_default());
        let reserved = |one: &IpConfiguration| -> Result<(String, u32)> {
            let address = one.address.trim_end_matches("/32").parse()?;
            Ok((one.name.clone(), trace::counted(address, self.first)))
        };
        Ok(Shown {
            is_deleted: object.metadata.deletion_timestamp.is_some(),
            is_of_boot: spec.boot_id == boot_id(self.boot),
            target: spec.target,
            spec: spec.ip_configurations().map(reserved).collect::<Result<_>>()?,
            assigned: status.assigned,
            relinquished: status.relinquished,
            writing: find(object, WRITING).is_some_and(|one| one.status == "True"),
        })
    }

    /// The invariants of `tests/model/protocol.rs`, as far as they are about one moment.
    fn audit(&self, ledger: &Ledger, held: &Held) -> Result<()> {
        let given_up: BTreeSet<String> = ledger.relinquished().map(str::to_owned).collect();
        let mut in_use = BTreeSet::new();
        for record in ledger.records() {
            let entry = record.entry();
            match record.state() {
                State::Free { .. } => {
                    let is_held = held.get(&entry.name) == Some(&entry.address);
                    ensure!(is_held, "the ledger hands out {entry:?}, and the NIC has {held:?}");
                    ensure!(!given_up.contains(&entry.name), "{entry:?} is given up, and free");
                }
                State::Assigned(_) => {
                    let is_held = held.values().any(|address| *address == entry.address);
                    ensure!(is_held, "a pod has {entry:?}, and the NIC has {held:?}");
                    ensure!(!given_up.contains(&entry.name), "{entry:?} is given up, and a pod has it");
                    ensure!(in_use.insert(entry.address), "two pods have {}", entry.address);
                }
                State::Withdrawn { .. } => {}
            }
        }
        let mut past = lock(&self.past);
        past.given_up.extend(given_up);
        let Past { given_up, held: before } = &mut *past;
        let now: BTreeSet<String> = held.keys().cloned().collect();
        let robbed = before.difference(&now).find(|name| !given_up.contains(*name));
        ensure!(robbed.is_none(), "{robbed:?} has left the NIC, and the node hadn't given it up");
        *before = now;
        Ok(())
    }
}

/// As [`Stage`] begins.
fn boot_id(boot: usize) -> String {
    format!("boot-{boot}")
}
