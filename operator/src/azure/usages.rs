//! How full the subnets of a virtual network are, by Azure's count. It is a hint: when it arrives, others may
//! have taken the free addresses, and an address that is being removed is counted for a while.

use std::collections::HashMap;

use serde::Deserialize;

use super::budget::Kind;
use super::error::Error;
use super::transport::{Call, Transport};
use super::{Priority, ResourceId, pages};

/// By the subnet's name in lower case. Subnets of which Azure doesn't know the numbers are left out.
pub type Usages = HashMap<String, Usage>;

/// How many addresses of a subnet are taken, and how many there are. Whether a block counts there as one
/// address or as 16 isn't documented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub used: u32,
    pub size: u32,
}

/// `VirtualNetworkUsage`: doubles, -1 for the gateways' subnet.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    id: String,
    current_value: f64,
    limit: f64,
}

/// Reads the usages of a virtual network from Azure.
pub(super) async fn read(
    transport: &Transport,
    vnet: &ResourceId,
    api_version: &str,
    priority: Priority,
) -> Result<Usages, Error> {
    let call = Call::about(Kind::Read, priority, vnet.as_str());
    let mut url = transport.endpoint().clone();
    url.set_path(&format!("{vnet}/usages"));
    url.set_query(Some(&format!("api-version={api_version}")));
    let usages: Vec<Document> = pages::read(transport, &call, url).await?;
    Ok(usages.iter().filter_map(Document::usage).collect())
}

impl Usage {
    /// Counters that lag have shown more than all to be taken.
    pub fn free(self) -> u32 {
        self.size.saturating_sub(self.used)
    }
}

impl Document {
    fn usage(&self) -> Option<(String, Usage)> {
        let name = self.id.rsplit('/').next()?.to_ascii_lowercase();
        // A cast of a float saturates.
        (self.limit >= 0.0 && self.current_value >= 0.0)
            .then_some((name, Usage { used: self.current_value as u32, size: self.limit as u32 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(used: f64, size: f64) -> Option<(String, u32)> {
        let document = Document { id: "/v/subnets/Nodes".into(), current_value: used, limit: size };
        document.usage().map(|(name, usage)| (name, usage.free()))
    }

    #[test]
    fn free_is_the_size_less_the_used() {
        assert_eq!(free(2.0, 11.0), Some(("nodes".into(), 9)));
        assert_eq!(free(11.0, 11.0), Some(("nodes".into(), 0)));
        assert_eq!(free(12.0, 11.0), Some(("nodes".into(), 0)));
    }

    #[test]
    fn of_the_gateways_subnet_nothing_is_known() {
        assert_eq!(free(-1.0, -1.0), None);
    }
}
