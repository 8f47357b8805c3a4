//! Mode `Prefix`: pods with addresses of blocks of sixteen.

use crate::{MOVES, World};
use anyhow::{Context, Result, bail, ensure};
use ipnet::Ipv4Net;
use serde_json::json;
use vnetpool_tests::eventually;
use vnetpool_tests::place::{Place, Seen, id};

/// The blocks of a node's NIC as Azure has them, once there are so many and no other reservation of ours.
async fn until_blocks(world: &World, node: &str, count: usize) -> Result<Vec<Ipv4Net>> {
    let id = world.cluster.host(node)?.nic_id;
    eventually(&format!("{count} blocks on the NIC of {node}"), MOVES, || async {
        let nic = world.cluster.azure.nic(&id).await?;
        let secondary = nic.ip_configurations.iter().filter(|one| !one.primary);
        let addresses: Vec<String> = secondary.filter_map(|one| one.address.clone()).collect();
        let blocks: Vec<Ipv4Net> = addresses.iter().filter_map(|one| one.parse().ok()).collect();
        let held = blocks.len() == count && addresses.len() == count;
        if held && blocks.iter().all(|block| block.prefix_len() == 28) {
            return Ok(Some(blocks));
        }
        let seen = world.cluster.allocation(node).await?;
        let conditions = seen.status.into_iter().flat_map(|status| status.conditions);
        let wrong: Vec<_> = conditions.filter(|one| one.status != "True").collect();
        bail!("it holds {addresses:?}, pool {} wants {}: {wrong:?}", seen.spec.pool, seen.spec.target)
    })
    .await
}

/// The nodes of the pool of blocks.
pub const NODES: [&str; 2] = ["node-2", "node-3"];

/// Has both nodes serve their pods with blocks, one of them each as long as they have few.
pub async fn serve(world: &World) -> Result<()> {
    let sizing = json!({ "minimum": 1, "warm": 0, "batch": 1, "maximum": 64, "releaseAfter": "0s" });
    // Named, for node-3 may come from a pool that uses its second NIC.
    let subnet = id("virtualNetworks/vnet/subnets/nodes");
    let spec = json!({ "mode": "Prefix", "subnetID": subnet, "cooldown": "1s", "sizing": sizing });
    world.pool("blocks", &NODES, spec).await?;
    for node in NODES {
        until_blocks(world, node, 1).await?;
    }
    Ok(())
}

pub async fn pods_of_a_block_have_its_addresses_and_keep_every_path(world: &World) -> Result<()> {
    serve(world).await?;
    let mut all = Vec::new();
    for (name, node, count) in [("two", "node-2", 2), ("three", "node-3", 1)] {
        let block = until_blocks(world, node, 1).await?[0];
        let pods = world.start(name, node, count).await?;
        for pod in &pods {
            ensure!(block.contains(&pod.address), "{} isn't of {block}, which {node} holds", pod.address);
            let (place, node) = (Place::pod(pod)?, world.node(node)?);
            let seen = world.vm.seen_by(&place.address).await?;
            ensure!(seen == Seen::new(&world.vm.address, &place.address), "the pod sees the VM as {seen:?}");
            let seen = place.seen_by(&world.internet.address).await?;
            ensure!(seen == Seen::new(&node.address, &world.internet.address), "the internet sees {seen:?}");
            for end in [&world.vm, &world.far.place] {
                let seen = place.seen_by(&end.address).await?;
                ensure!(seen == Seen::new(&place.address, &end.address), "{} sees {seen:?}", end.address);
            }
        }
        all.extend(pods);
    }
    let pairs = world.cluster.all_pairs(&all).await?;
    ensure!(pairs.total == 6 && pairs.failures.is_empty(), "{}", pairs.failures.join("\n"));
    world.end(&["two", "three"]).await
}

/// Two pods are there first, fourteen fill their block, and two more have the next one.
pub async fn a_block_goes_back_to_azure_when_no_pod_has_an_address_of_it(world: &World) -> Result<()> {
    serve(world).await?;
    let first = until_blocks(world, "node-2", 1).await?[0];
    world.start("two", "node-2", 2).await?;
    let fill = world.start("fill", "node-2", 14).await?;
    ensure!(fill.iter().all(|pod| first.contains(&pod.address)), "a pod has no address of {first}");
    let more = world.start("more", "node-2", 2).await?;
    let both = until_blocks(world, "node-2", 2).await?;
    let second = both.into_iter().find(|block| *block != first).context("the first block is gone")?;
    ensure!(more.iter().all(|pod| second.contains(&pod.address)), "a pod has no address of {second}");
    let reached = world.vm.seen_by(more[0].address).await?;
    ensure!(reached == Seen::new(&world.vm.address, more[0].address), "the pod sees {reached:?}");
    world.cluster.undeploy("more").await?;
    ensure!(until_blocks(world, "node-2", 1).await? == [first], "{first} has gone instead of {second}");
    world.end(&["fill", "two"]).await
}
