//! A node with all the addresses that a VM can have.

use crate::World;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use vnetpool_plugin::ledger::{Ledger, Millis, State, file};
use vnetpool_tests::eventually;
use vnetpool_tests::workload::ProbePod;

/// The capacity of a VM, its primary address included ("Azure subscription and service limits": private IP
/// addresses per NIC).
const MOST: usize = 256;
const PATIENCE: Duration = Duration::from_secs(240);
const COOLDOWN: Duration = Duration::from_secs(20);

/// Observations of a ledger in many reads.
#[derive(Default)]
struct Seen {
    freed: BTreeMap<Ipv4Addr, Millis>,
    cooling: u32,
    waiting: u32,
}

impl Seen {
    /// # Errors
    /// When an address went to a pod before it had cooled.
    fn observe(&mut self, ledger: &Ledger) -> Result<()> {
        let counts = ledger.counts(file::now());
        self.cooling = self.cooling.max(counts.cooling);
        self.waiting = self.waiting.max(counts.waiting);
        for record in ledger.records() {
            let address = record.entry().address;
            match record.state() {
                State::Free { since: Some(since) } => drop(self.freed.insert(address, *since)),
                State::Assigned(assignment) => {
                    let rested =
                        self.freed.get(&address).map(|freed| assignment.since.saturating_sub(*freed));
                    ensure!(
                        rested.is_none_or(|rested| u128::from(rested) >= COOLDOWN.as_millis()),
                        "{address} went to {} after {rested:?} ms",
                        assignment.pod.name
                    );
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// 255 addresses for 250 pods, half of which are then replaced by others at once: five of those find an
/// address that is free, the rest get the addresses that the old ones leave. How fast they come depends on
/// the scheduler and the kubelet, which count pods that end.
pub async fn a_node_runs_250_pods_and_replaces_half_of_them_while_their_addresses_cool(
    world: &World,
) -> Result<()> {
    let cluster = &world.cluster;
    let sizing = json!({ "minimum": MOST - 1, "maximum": MOST - 1, "warm": 0, "releaseAfter": "0s" });
    let cooldown = format!("{}s", COOLDOWN.as_secs());
    world.pool("full", &["node-1"], json!({ "cooldown": cooldown, "sizing": sizing })).await?;
    cluster.no_pods("ranged-node-1").await?;
    cluster.settled_on("node-1", MOST - 1, Duration::from_secs(120)).await?;
    let (begun, before) = (Instant::now(), available_megabytes()?);
    for name in ["stay", "leave"] {
        cluster.deploy(name, 125, Some("node-1")).await?;
    }
    let stay = cluster.running("stay", 125, PATIENCE).await?;
    let leave = cluster.running("leave", 125, PATIENCE).await?;
    are_all_different(&stay, &leave)?;
    let (seconds, megabytes) = (begun.elapsed().as_secs_f64(), before.saturating_sub(available_megabytes()?));
    println!("250 pods run on one node after {seconds:.1} s, in {megabytes} MB");

    let begun = Instant::now();
    cluster.kubectl(&["delete", "deployment", "leave", "--wait=false"]).await?;
    cluster.deploy("come", 125, Some("node-1")).await?;
    let node = cluster.host("node-1")?;
    let seen = RefCell::new(Seen::default());
    let come = eventually("125 other pods", PATIENCE, || async {
        seen.borrow_mut().observe(&node.ledger()?)?;
        cluster.running("come", 125, Duration::ZERO).await.map(Some)
    });
    let come = come.await?;
    let Seen { cooling, waiting, freed } = seen.into_inner();
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "half of them replaced after {seconds:.1} s; at most {cooling} addresses cooled and {waiting} pods waited"
    );
    // 125 new pods have five free addresses: all the others get one of a pod that has ended, which is seen to
    // be free for as long as it cools, however fast the old ones end.
    let left: BTreeSet<Ipv4Addr> = leave.iter().map(|pod| pod.address).collect();
    let inherited: BTreeSet<_> =
        come.iter().map(|pod| pod.address).filter(|one| left.contains(one)).collect();
    let unseen: Vec<_> = inherited.iter().filter(|address| !freed.contains_key(*address)).collect();
    ensure!(inherited.len() >= 120, "only {} new pods have an address of an old one", inherited.len());
    ensure!(unseen.is_empty(), "{unseen:?} were never seen to cool");
    cluster.addresses_are_held(&[stay.clone(), come.clone()].concat()).await?;
    are_all_different(&stay, &come)?;

    let written = cluster.azure.nic_writes(&node.nic_id, 0).await?;
    let sizes = written.iter().filter_map(|write| write.request["properties"]["ipConfigurations"].as_array());
    let most = sizes.map(Vec::len).max().context("no write of the NIC")?;
    ensure!(most == MOST, "the NIC was to hold {most} addresses");
    // Their end takes its time: the next chapter on this node waits for it.
    for name in ["stay", "come"] {
        cluster.kubectl(&["delete", "deployment", name, "--wait=false"]).await?;
    }
    Ok(())
}

fn are_all_different(one: &[ProbePod], other: &[ProbePod]) -> Result<()> {
    let addresses: BTreeSet<_> = one.iter().chain(other).map(|pod| pod.address).collect();
    ensure!(addresses.len() == 250, "250 pods have {} addresses", addresses.len());
    Ok(())
}

fn available_megabytes() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("no MemAvailable")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes / 1024)
}
