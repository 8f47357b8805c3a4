//! NICs of a node's VM that don't serve it and hold a reservation of ours all the same: a leader that was
//! paused while a pool got another subnet has written there. The reservation goes back once the agent reports
//! that no pod has it.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use tracing::{info, warn};
use vnetpool_apiserver::doubled;
use vnetpool_crds::NodeIPAllocation;

use super::lag::{Lag, lag};
use super::pause;
use crate::azure::{self, Change, Freshness, Nic, Priority, ResourceId};
use crate::context::Context;

const FIRST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3600);

/// Lost, they are found again when the VM's NICs are read: when the node boots, or within hours.
#[derive(Clone, Debug, Default)]
pub struct Strays {
    nics: Vec<ResourceId>,
    /// How often in a row Azure has refused, and when it is tried again.
    refused: Option<(u32, Instant)>,
}

impl Strays {
    /// The VM's NICs were read, and these are such.
    pub fn found(&mut self, nics: &[ResourceId]) {
        self.nics = nics.to_vec();
    }

    /// Those that are known.
    pub fn nics(&self) -> &[ResourceId] {
        &self.nics
    }

    /// How long Azure's refusal still holds.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        let (_, until) = self.refused.filter(|(_, until)| now < *until)?;
        Some(until - now)
    }
}

/// Releases the addresses that no pod has. Returns whether there were any: then the VM's NICs are to be read
/// again. An error ends nothing but this.
pub async fn settle(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    boot_id: &str,
    strays: &mut Strays,
) -> bool {
    let waits = strays.nics.is_empty() || strays.wait(Instant::now()).is_some();
    if waits || ctx.azure.is_dry_run() || lag(allocation, boot_id) != Lag::None {
        return false;
    }
    let mut is_released = false;
    for id in &strays.nics {
        match release(ctx, allocation, id).await {
            Ok(released) => {
                is_released |= released;
                strays.refused = None;
            }
            // It may be gone: which NICs the VM has is read again.
            Err(azure::Error::NotFound { .. }) => is_released = true,
            // A person has paused the node: the write is repeated when it goes on.
            Err(error) if error.is_given_up() => return is_released,
            Err(error) => {
                warn!(nic = %id, reason = %error.reason(), %error, "what it holds of ours stays there for now");
                let times = strays.refused.map_or(0, |(times, _)| times + 1);
                strays.refused = Some((times, Instant::now() + doubled(FIRST, times, LONGEST)));
            }
        }
    }
    is_released
}

async fn release(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    id: &ResourceId,
) -> Result<bool, azure::Error> {
    let known = ctx.azure.nic(id, Freshness::Cached, Priority::GiveBack).await?;
    if idle(allocation, &known).is_empty() {
        return Ok(false);
    }
    let nic = ctx.azure.nic(id, Freshness::Fresh, Priority::GiveBack).await?;
    let change = Change { release: idle(allocation, &nic), ..Change::default() };
    let urgency = pause::while_not(&ctx.cluster, &ctx.waker, allocation, Priority::GiveBack);
    ctx.azure.update(id, &change, urgency).await?;
    info!(nic = %id, count = change.release.len(), "released what a NIC that doesn't serve its node held");
    Ok(true)
}

/// Names of ours on such a NIC that no pod has: `spec` doesn't show them, and the agent, which has taken that
/// up, names none of their addresses as lost.
fn idle(allocation: &NodeIPAllocation, nic: &Nic) -> Vec<String> {
    let shown = allocation.spec.names();
    let lost: Vec<Ipv4Addr> = allocation
        .status
        .iter()
        .flat_map(|status| &status.lost)
        .filter_map(|one| one.address.parse().ok())
        .collect();
    let is_used = |range: ipnet::Ipv4Net| lost.iter().any(|address| range.contains(address));
    let all = nic.ip_configurations.iter();
    let idle = all.filter(|one| !shown.contains(&one.name) && !one.address.is_some_and(is_used));
    idle.map(|one| one.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::sample_nic;
    use serde_json::json;

    #[test]
    fn of_a_nic_that_does_not_serve_only_what_no_pod_has_is_idle() {
        let nic =
            sample_nic(&[("vnp-1", "10.0.0.5/32"), ("vnp-2", "10.0.0.16/28"), ("vnp-3", "10.0.0.7/32")]);
        let shown = json!({"name": "vnp-3", "address": "10.0.0.7/32"});
        let interface = json!({"id": "i", "mac": "m", "primaryAddress": "10.0.0.4", "subnet": {"id": "s"},
            "ipConfigurations": [shown]});
        let allocation = |lost: &[&str]| -> NodeIPAllocation {
            let lost: Vec<_> =
                lost.iter().map(|address| json!({"address": address, "sandbox": "s"})).collect();
            serde_json::from_value(json!({
                "metadata": {"name": "n"},
                "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s", "interfaces": [interface]},
                "status": {"bootID": "b", "lost": lost},
            }))
            .unwrap()
        };
        assert_eq!(idle(&allocation(&[]), &nic), ["vnp-1", "vnp-2"]);
        assert_eq!(idle(&allocation(&["10.0.0.20"]), &nic), ["vnp-1"]);
    }
}
