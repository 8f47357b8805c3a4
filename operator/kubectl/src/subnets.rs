//! `subnets`: the addresses in each and in the networks around them, and whether they last.

use std::fmt;

use kube::ResourceExt;
use serde::Serialize;
use vnetpool_crds::condition::{self, NETWORK_EXHAUSTING, SUBNET_EXHAUSTING};

use crate::cluster::Objects;
use crate::show::{age, indented, or_dash, short, table};

#[derive(Clone, Debug, Serialize)]
pub struct Subnets {
    pub subnets: Vec<Subnet>,
    pub networks: Vec<Network>,
    pub forecasts: Vec<Forecast>,
}

/// A subnet, as one pool uses it.
#[derive(Clone, Debug, Serialize)]
pub struct Subnet {
    pub id: String,
    pub pool: String,
    pub nodes: u32,
    pub held: u32,
    /// How many of these are on NICs that nodes have left.
    pub on_left_interfaces: u32,
    pub size: Option<u32>,
    pub free: Option<u32>,
    /// In percent.
    pub free_share: Option<u32>,
}

/// A virtual network, as one pool uses it.
#[derive(Clone, Debug, Serialize)]
pub struct Network {
    pub id: String,
    pub pool: String,
    pub limit: u32,
    pub used: Option<u32>,
}

/// The messages of a pool's conditions `SubnetExhausting` and `NetworkExhausting`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Forecast {
    pub pool: String,
    /// The condition.
    pub about: &'static str,
    pub percent: u32,
    pub exhausting: String,
    pub reason: String,
    pub message: String,
    /// For how long.
    pub age: String,
}

pub fn subnets(objects: &Objects) -> Subnets {
    let (mut subnets, mut networks, mut forecasts) = (vec![], vec![], vec![]);
    for pool in &objects.pools {
        let Some(status) = &pool.status else { continue };
        subnets.extend(status.subnets.iter().map(|one| Subnet {
            id: one.id.clone(),
            pool: pool.name_any(),
            nodes: one.nodes,
            held: one.held,
            on_left_interfaces: one.on_left_interfaces,
            size: one.size,
            free: one.free,
            free_share: one.free.zip(one.size).and_then(|(free, size)| (100 * free).checked_div(size)),
        }));
        networks.extend(status.networks.iter().map(|one| Network {
            id: one.id.clone(),
            pool: pool.name_any(),
            limit: one.limit,
            used: one.used,
        }));
        for about in [SUBNET_EXHAUSTING, NETWORK_EXHAUSTING] {
            let Some(condition) = condition::find(&status.conditions, about) else { continue };
            forecasts.push(Forecast {
                pool: pool.name_any(),
                about: about.name(),
                percent: pool.spec.subnet_exhausting_percent,
                exhausting: condition.status.clone(),
                reason: condition.reason.clone(),
                message: condition.message.clone(),
                age: age(condition.last_transition_time.0, objects.now),
            });
        }
    }
    Subnets { subnets, networks, forecasts }
}

impl fmt::Display for Subnets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.subnets.iter().map(|one| {
            let share = one.free_share.map(|share| format!("{share}%"));
            vec![
                short(&one.id),
                one.pool.clone(),
                one.nodes.to_string(),
                match one.on_left_interfaces {
                    0 => one.held.to_string(),
                    left => format!("{} ({left} on left NICs)", one.held),
                },
                or_dash(one.size),
                or_dash(one.free),
                or_dash(share),
            ]
        });
        let headers = ["SUBNET", "POOL", "NODES", "HELD", "SIZE", "FREE", "FREE%"];
        f.write_str(&table(&headers, &rows.collect::<Vec<_>>()))?;
        if !self.networks.is_empty() {
            let rows = self.networks.iter();
            let rows = rows
                .map(|one| vec![short(&one.id), one.pool.clone(), or_dash(one.used), one.limit.to_string()]);
            write!(f, "\n{}", table(&["NETWORK", "POOL", "TAKEN", "LIMIT"], &rows.collect::<Vec<_>>()))?;
        }
        for one in &self.forecasts {
            let Forecast { pool, about, percent, exhausting, reason, age, .. } = one;
            writeln!(
                f,
                "\nNodeIPPool {pool} warns below {percent}%: {about} is {exhausting} for {age} ({reason})"
            )?;
            f.write_str(&indented(&one.message))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use std::sync::Arc;

    #[test]
    fn each_subnet_and_network_is_a_line_and_each_pool_shows_its_forecast() {
        let expected = "\
SUBNET       POOL      NODES   HELD   SIZE   FREE   FREE%
vnet/nodes   default   2       7      251    3      1%

NETWORK   POOL      TAKEN   LIMIT
vnet      default   253     65536

NodeIPPool default warns below 10%: SubnetExhausting is True for 5m (FewFree)
  vnet/nodes has 3 of 251 addresses free
";
        assert_eq!(subnets(&fixture::objects()).to_string(), expected);
    }
    #[test]
    fn what_left_nics_hold_is_part_of_what_is_held() {
        let mut objects = fixture::objects();
        let mut pool = fixture::pool();
        pool.status.as_mut().unwrap().subnets[0].on_left_interfaces = 2;
        objects.pools = vec![Arc::new(pool)];
        let expected = "\
SUBNET       POOL      NODES   HELD                 SIZE   FREE   FREE%
vnet/nodes   default   2       7 (2 on left NICs)   251    3      1%
";
        let shown = subnets(&objects).to_string();
        assert!(shown.starts_with(expected), "{shown}");
    }
}
