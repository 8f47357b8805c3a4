//! Paths once more with an engine of NetworkPolicy on each node: policies let in and out exactly the traffic
//! on them, and then other traffic.

use crate::World;
use crate::beyond::{self, SOON};
use crate::inside::{self, ON_HOST};
use anyhow::Result;
use vnetpool_tests::engine::{block, lets_through};
use vnetpool_tests::place::{PREMISES, until_dropped};
use vnetpool_tests::workload::PORT;

/// Lets both pods connect to these, and these to them.
async fn only(world: &World, ends: &[&str]) -> Result<()> {
    for app in ["one", "two"] {
        let ends = || ends.iter().map(|end| block(end));
        world.cluster.rule(app, lets_through(ends(), ends())).await?;
    }
    Ok(())
}

/// Waits until neither pod reaches the VM, nor the VM them.
async fn until_cut_off_from_the_vm(world: &World) -> Result<()> {
    let (one, two, vm) = (world.pod(0)?, world.pod(1)?, &world.vm);
    tokio::try_join!(
        until_dropped(vm, &one.address, PORT),
        until_dropped(vm, &two.address, PORT),
        until_dropped(&one, &vm.address, PORT),
        until_dropped(&two, &vm.address, PORT),
    )
    .map(drop)
}

async fn without_policies(world: &World) -> Result<()> {
    for app in ["one", "two"] {
        world.cluster.unrule(app).await?;
    }
    Ok(())
}

pub async fn a_peer_and_premises_reach_the_pods_whose_policies_let_them_in_and_no_other(
    world: &World,
) -> Result<()> {
    world.bring_engine().await?;
    let (far, premises) = (&world.far.place, &world.premises.place);
    only(world, &[&far.address, PREMISES]).await?;
    until_cut_off_from_the_vm(world).await?;
    beyond::a_peer_and_the_pods_reach_each_other(world, far, SOON).await?;
    beyond::premises_behind_the_gateway_see_the_pods_own_address(world).await?;
    only(world, &[&world.vm.address]).await?;
    let (one, two) = (world.pod(0)?, world.pod(1)?);
    tokio::try_join!(
        until_dropped(far, &one.address, PORT),
        until_dropped(&two, &far.address, PORT),
        until_dropped(premises, &two.address, PORT),
        until_dropped(&one, PREMISES, PORT),
    )?;
    one.is_seen_as(&one.address, &world.vm.address, SOON).await?;
    without_policies(world).await
}

pub async fn a_pod_on_the_nodes_own_network_reaches_the_pods_whose_policies_let_it_in_and_no_other(
    world: &World,
) -> Result<()> {
    world.bring_engine().await?;
    let node = world.node(1)?;
    only(world, &[&node.address]).await?;
    until_cut_off_from_the_vm(world).await?;
    inside::a_pod_on_the_nodes_own_network_and_a_pod_reach_each_other(world).await?;
    only(world, &[&world.vm.address]).await?;
    // A pod's own node is always let in: its kubelet has to be.
    let (one, two) = (world.pod(0)?, world.pod(1)?);
    tokio::try_join!(
        until_dropped(&node, &one.address, PORT),
        until_dropped(&one, &node.address, ON_HOST),
        until_dropped(&two, &node.address, ON_HOST),
        node.is_seen_as(&node.address, &two.address, SOON),
    )?;
    without_policies(world).await
}
