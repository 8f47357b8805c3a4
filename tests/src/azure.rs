//! The simulator's own side, over its admin socket: the NICs' content, the requests to ARM, and faults to
//! order.

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;

#[derive(Clone)]
pub struct Azure {
    http: reqwest::Client,
}

/// One exchange the simulator answered.
#[derive(Clone, Debug, Deserialize)]
pub struct Exchange {
    pub seq: u64,
    pub method: String,
    pub path: String,
    pub status: u16,
    #[serde(default)]
    pub request: Value,
}

/// A NIC as simulated Azure holds it.
#[derive(Clone, Debug, Deserialize)]
pub struct Nic {
    pub id: String,
    pub ip_configurations: Vec<IpConfiguration>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct IpConfiguration {
    pub name: String,
    pub address: Option<String>,
    pub primary: bool,
}

impl Nic {
    /// The addresses that are for pods: all but the primary, and sixteen of each block.
    pub fn pod_addresses(&self) -> Vec<Ipv4Addr> {
        let secondary = self.ip_configurations.iter().filter(|configuration| !configuration.primary);
        secondary.filter_map(|configuration| configuration.address.as_deref()).flat_map(expanded).collect()
    }
}

/// The addresses of a range: one for `10.0.0.17` and `10.0.0.17/32`, sixteen for a block such as
/// `10.0.0.32/28`, and none for what is no range.
pub fn expanded(range: &str) -> Vec<Ipv4Addr> {
    let (first, length) = range.split_once('/').unwrap_or((range, "32"));
    let parsed = || -> Option<(u32, u32)> {
        let first: Ipv4Addr = first.parse().ok()?;
        let count = 1_u32.checked_shl(32_u32.checked_sub(length.parse().ok()?)?)?;
        Some((first.into(), count))
    };
    let (first, count) = parsed().unwrap_or_default();
    (0..count).map(|number| Ipv4Addr::from(first.wrapping_add(number))).collect()
}

impl Azure {
    /// # Errors
    /// When the HTTP client can't be made.
    pub fn at(socket: &Path) -> Result<Self> {
        // reqwest wants a default even for a socket without TLS; a second installation only reports that
        // there is one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(Self { http: reqwest::Client::builder().unix_socket(socket).build()? })
    }

    async fn call(&self, method: reqwest::Method, path: &str, body: Option<Value>) -> Result<Value> {
        let mut request = self.http.request(method.clone(), format!("http://azure-sim{path}"));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.with_context(|| format!("{method} {path} on the simulator"))?;
        let status = answer.status();
        let text = answer.text().await?;
        anyhow::ensure!(status.is_success(), "{method} {path} on the simulator: {status}: {text}");
        Ok(if text.is_empty() { Value::Null } else { serde_json::from_str(&text)? })
    }

    /// An operation of the simulator's admin API (its README lists them), and its answer.
    ///
    /// # Errors
    /// When the method is none or the simulator refuses.
    pub async fn admin(&self, method: &str, path: &str, body: Value) -> Result<Value> {
        self.call(method.parse()?, path, Some(body)).await
    }

    /// Every NIC by its id in lower case.
    pub async fn nics(&self) -> Result<BTreeMap<String, Nic>> {
        let state = self.call(reqwest::Method::GET, "/state", None).await?;
        let nics: Vec<Nic> = serde_json::from_value(state["nics"].clone())?;
        Ok(nics.into_iter().map(|nic| (nic.id.to_lowercase(), nic)).collect())
    }

    /// One NIC, whatever the letter case of `id`.
    pub async fn nic(&self, id: &str) -> Result<Nic> {
        self.nics()
            .await?
            .remove(&id.to_lowercase())
            .with_context(|| format!("no NIC {id} in simulated Azure"))
    }

    /// Everything that was asked so far, oldest first.
    pub async fn log(&self) -> Result<Vec<Exchange>> {
        Ok(serde_json::from_value(self.raw_log().await?)?)
    }

    /// The log as the simulator gives it, for the validation against Azure's documents.
    pub async fn raw_log(&self) -> Result<Value> {
        self.call(reqwest::Method::GET, "/log", None).await
    }

    /// The NIC writes that were accepted since exchange `after` on the NIC `id`.
    pub async fn nic_writes(&self, id: &str, after: u64) -> Result<Vec<Exchange>> {
        let mut log = self.log().await?;
        log.retain(|exchange| {
            exchange.seq > after
                && exchange.method == "PUT"
                && exchange.path.eq_ignore_ascii_case(id)
                && exchange.status < 300
        });
        Ok(log)
    }

    /// The number of the last exchange.
    pub async fn now(&self) -> Result<u64> {
        Ok(self.log().await?.last().map_or(0, |exchange| exchange.seq))
    }

    /// Orders a fault (see the simulator's README) and gives its id.
    pub async fn fault(&self, fault: Value) -> Result<Value> {
        Ok(self.call(reqwest::Method::POST, "/faults", Some(fault)).await?["id"].clone())
    }

    /// How often the fault has struck.
    pub async fn hits(&self, id: &Value) -> Result<u64> {
        let faults = self.call(reqwest::Method::GET, "/faults", None).await?;
        let fault = faults.as_array().and_then(|all| all.iter().find(|fault| &fault["id"] == id));
        fault
            .and_then(|fault| fault["hits"].as_u64())
            .context("the simulator doesn't know the fault any more")
    }

    /// Ends a fault; answers it held go out.
    pub async fn mend(&self, id: &Value) -> Result<()> {
        let id = id.as_str().map_or_else(|| id.to_string(), str::to_owned);
        self.call(reqwest::Method::DELETE, &format!("/faults/{id}"), None).await.map(drop)
    }

    /// Ends all faults.
    pub async fn mend_all(&self) -> Result<()> {
        let faults = self.call(reqwest::Method::GET, "/faults", None).await?;
        for fault in faults.as_array().into_iter().flatten() {
            self.mend(&fault["id"]).await?;
        }
        Ok(())
    }

    /// From now on the fate of each request is drawn by this seed from all that Azure, its networks and
    /// proxies are known to answer, and of refusals from these codes, too; until [`Azure::heal`].
    pub async fn be_hostile(&self, seed: u64, codes: Vec<(Option<u16>, String)>) -> Result<()> {
        let order = json!({ "seed": seed, "codes": codes });
        self.call(reqwest::Method::PUT, "/hostility", Some(order)).await.map(drop)
    }

    /// No more of that; requests that were held go on.
    pub async fn heal(&self) -> Result<()> {
        self.call(reqwest::Method::DELETE, "/hostility", None).await.map(drop)
    }

    /// Refuses these actions with 403 from now on; an empty list allows all again.
    pub async fn deny(&self, actions: &[&str]) -> Result<()> {
        self.call(reqwest::Method::PUT, "/permissions", Some(json!({ "denied": actions }))).await.map(drop)
    }

    /// Makes a VM without a namespace: `{vm_id, provider_id, nic_id, …}`.
    pub async fn make_vm(&self, name: &str, subnet: &str) -> Result<Value> {
        self.call(reqwest::Method::POST, "/vms", Some(json!({ "name": name, "subnet": subnet }))).await
    }

    /// Deletes a VM, and its NIC unless it is to be kept.
    pub async fn delete_vm(&self, name: &str, keep_nic: bool) -> Result<()> {
        self.call(reqwest::Method::DELETE, &format!("/vms/{name}?keep_nic={keep_nic}"), None).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_sixteen_addresses_and_a_text_of_no_range_is_none() {
        assert_eq!(expanded("10.0.0.7"), [Ipv4Addr::new(10, 0, 0, 7)]);
        assert_eq!(expanded("10.0.0.7/32"), [Ipv4Addr::new(10, 0, 0, 7)]);
        let block: Vec<_> = (32..48).map(|last| Ipv4Addr::new(10, 0, 0, last)).collect();
        assert_eq!(expanded("10.0.0.32/28"), block);
        for text in ["", "none", "10.0.0.7/33", "10.0.0.7/", "0.0.0.0/0", "fd00::1/128"] {
            assert!(expanded(text).is_empty(), "{text}");
        }
    }
}
