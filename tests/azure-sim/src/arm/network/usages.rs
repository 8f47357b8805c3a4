//! How full the subnets of a VNet are: `GET …/virtualNetworks/VNET/usages` (VirtualNetworks_ListUsage, a
//! pageable list).

use crate::arm::Call;
use crate::reply::Reply;
use crate::vnet;
use crate::world::World;
use serde_json::{Value, json};

/// One page: all of it, unless the world has a page size.
pub(super) fn of(world: &World, call: &Call, vnet: &Value) -> Reply {
    let all: Vec<Value> = vnet::subnets(vnet).iter().filter_map(|subnet| usage(world, subnet)).collect();
    let from: usize =
        call.request.parameter("$skipToken").and_then(|token| token.parse().ok()).unwrap_or_default();
    let size = world.config.page_size.unwrap_or(usize::MAX).max(1);
    let page: Vec<&Value> = all.iter().skip(from).take(size).collect();
    let next = from + page.len();
    let mut body = json!({ "value": page });
    if next < all.len() {
        let link =
            format!("{}{}?api-version={}&$skipToken={next}", call.base(), call.request.path, call.version);
        body["nextLink"] = json!(link);
    }
    Reply::new(200, body)
}

/// Doubles, as in the schema. Azure gives no numbers for the gateways' subnet (the official example shows
/// both).
fn usage(world: &World, subnet: &Value) -> Option<Value> {
    let id = subnet["id"].as_str()?;
    let gateways = subnet["name"].as_str().is_some_and(|name| name.eq_ignore_ascii_case("GatewaySubnet"));
    let (used, size) = if gateways {
        (-1.0, -1.0)
    } else {
        let subnet = world.subnet(id, "")?;
        let once = world.config.habits.usages_count_blocks_once;
        let used = if once { subnet.taken.len() as u64 } else { subnet.used() };
        (used as f64, subnet.capacity() as f64)
    };
    Some(json!({
        "id": id,
        "currentValue": used,
        "limit": size,
        "name": { "localizedValue": "Subnet size and usage", "value": "SubnetSpace" },
        "unit": "Count",
    }))
}
