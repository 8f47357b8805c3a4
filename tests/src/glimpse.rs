//! A first view of Vnetpool while Kubernetes is still being built: simulated Azure answers, the planner
//! decides how many addresses a node should hold, and the operator's client reserves them on the node's NIC.

use anyhow::{Context, Result, ensure};
use std::time::Instant;
use vnetpool_azure_sim::{Config as Simulated, NewVm, Sim};
use vnetpool_crds::pool::Sizing;
use vnetpool_operator::azure::{
    ApiVersions, Azure, Change, Cloud, Config, Credential, Freshness, Nic, Priority, ResourceId,
};
use vnetpool_operator::planner::sizing::{Demand, wanted};

/// How many pods the node is to have.
const PODS: u32 = 10;

/// # Errors
/// When simulated Azure doesn't give the planned addresses.
pub async fn show() -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let sim = Sim::start(Simulated { write_seconds: 2.0, ..Simulated::default() }).await?;
    let vm = sim.add_vm(NewVm { name: "node-1".into(), ..NewVm::default() }).await?;
    let arm = sim.arm_url().parse()?;
    let azure = Azure::new(&Config {
        cloud: Cloud::Public,
        endpoint: Some(arm),
        imds: Some(sim.arm_url().parse()?),
        credential: Credential::ManagedIdentity { client_id: None },
        versions: ApiVersions::of(Cloud::Public),
        budget_percent: 80,
        dry_run: false,
    })?;
    println!("Simulated Azure answers at {}; its VM node-1 has the NIC {}", sim.arm_url(), vm.nic_id);

    let id: ResourceId = vm.nic_id.parse().context("the id of the NIC")?;
    let nic = azure.nic(&id, Freshness::Fresh, Priority::NewNode).await?;
    println!("The NIC holds {}", addresses(&nic));
    let (sizing, demand) = (Sizing::default(), Demand { bound: PODS, ..Demand::default() });
    let planned = wanted(&sizing, &demand, 1, 255);
    println!("For {PODS} pods the planner wants {planned} addresses on it");

    let begun = Instant::now();
    let reserve: Vec<String> = (0..planned).map(|number| format!("vnp-{number:016x}")).collect();
    let change = Change { reserve, ..Change::default() };
    let nic = azure.update(&id, &change, Priority::WaitingPods).await?;
    let writes = sim.log().iter().filter(|exchange| exchange.method == "PUT").count();
    println!(
        "{:.1} s and {writes} write later the NIC holds {}",
        begun.elapsed().as_secs_f64(),
        addresses(&nic)
    );
    ensure!(nic.ip_configurations.len() >= planned as usize, "Azure gave fewer than were planned");
    Ok(())
}

fn addresses(nic: &Nic) -> String {
    let all: Vec<_> = nic.ip_configurations.iter().filter_map(|one| one.address).collect();
    match all.as_slice() {
        [] => "no address for pods".to_owned(),
        [first, .., last] => format!("{} addresses, from {first} to {last}", all.len()),
        [only] => only.to_string(),
    }
}
