//! How full the subnets of a virtual network are, as Azure counts. A hint: by the time it is read others may have taken
//! what was free, and an address that is being removed counts for a while.

use std::collections::HashMap;

use reqwest::Url;
use serde::Deserialize;

use super::error::Error;
use super::transport::{Call, Transport};
use super::{NETWORK_API, Priority, ResourceId};
use crate::azure::budget::Kind;

/// Free addresses by the subnet's name in lower case. Subnets of which Azure doesn't tell are left out.
pub type Free = HashMap<String, u32>;

/// A list with no end is none of Azure's.
const MOST_PAGES: usize = 200;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    #[serde(default)]
    value: Vec<Usage>,
    next_link: Option<String>,
}

/// `VirtualNetworkUsage`: doubles, -1 for the gateways' subnet.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Usage {
    id: String,
    current_value: f64,
    limit: f64,
}

/// Reads all pages, each a request of its own.
pub(super) async fn read(
    transport: &Transport,
    vnet: &ResourceId,
    priority: Priority,
) -> Result<Free, Error> {
    let call = Call::about(Kind::Read, priority, vnet.as_str());
    let unexpected = |message: String| Error::Unexpected { resource: vnet.to_string(), message };
    let mut url = transport.endpoint().clone();
    url.set_path(&format!("{vnet}/usages"));
    url.set_query(Some(&format!("api-version={NETWORK_API}")));
    let mut free = Free::new();
    for _ in 0..MOST_PAGES {
        let answer = transport.send(&call, url, None, None).await?;
        let page: Page =
            serde_json::from_slice(&answer.body).map_err(|error| unexpected(error.to_string()))?;
        free.extend(page.value.iter().filter_map(Usage::free));
        match page.next_link.filter(|link| !link.is_empty()) {
            None => return Ok(free),
            Some(link) => url = Url::parse(&link).map_err(|error| unexpected(format!("{link}: {error}")))?,
        }
    }
    Err(unexpected(format!("its usages have more than {MOST_PAGES} pages")))
}

impl Usage {
    fn free(&self) -> Option<(String, u32)> {
        let name = self.id.rsplit('/').next()?.to_ascii_lowercase();
        // A cast of a float saturates.
        (self.limit >= 0.0 && self.current_value >= 0.0)
            .then_some((name, (self.limit - self.current_value).max(0.0) as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(used: f64, size: f64) -> Option<(String, u32)> {
        Usage { id: "/v/subnets/Nodes".into(), current_value: used, limit: size }.free()
    }

    #[test]
    fn free_is_the_size_less_what_is_used() {
        assert_eq!(free(2.0, 11.0), Some(("nodes".into(), 9)));
        assert_eq!(free(11.0, 11.0), Some(("nodes".into(), 0)));
        // Seen of counters that lag: no more than all can be used.
        assert_eq!(free(12.0, 11.0), Some(("nodes".into(), 0)));
    }

    #[test]
    fn of_the_gateways_subnet_nothing_is_known() {
        assert_eq!(free(-1.0, -1.0), None);
    }
}
