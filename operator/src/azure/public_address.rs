//! Public addresses that are ours: each made for one pod, looked at, and deleted with it.

use reqwest::Url;
use serde_json::{Value, json};
use tracing::{info, instrument};

use super::operation::Operation;
use super::{Azure, Call, Error, Kind, NETWORK_API, Priority, ResourceId, Urgency, call};

/// A public address as Azure has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicAddress {
    pub id: ResourceId,
    /// `None` while Azure hasn't chosen yet.
    pub address: Option<String>,
    /// Its whole name in DNS, if it has one.
    pub dns_name: Option<String>,
}

/// What a public address is made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPublicAddress {
    /// Azure's region: that of the NIC.
    pub location: String,
    /// The first part of its name in DNS.
    pub dns_label: Option<String>,
    /// The pod it is for, for whoever finds the resource in Azure.
    pub pod: String,
}

impl Azure {
    /// Makes a public address, or makes the one there is as `new` says.
    #[instrument(skip_all, fields(public_address = %id))]
    pub async fn make_public_address(
        &self,
        id: &ResourceId,
        new: &NewPublicAddress,
        priority: Priority,
    ) -> Result<PublicAddress, Error> {
        let mut call = call(Kind::Write, priority, id);
        call.region = Some(new.location.clone());
        let url = self.url(id, NETWORK_API);
        let answer = self.transport.send(&call, url.clone(), None, Some(new.body())).await?;
        let document = match Operation::of(&answer, &url, &call)? {
            Some(operation) => {
                operation.finish(&self.transport, &call, &url, &self.tracking).await?;
                self.read_public_address(&call.following(Kind::Read), url).await?
            }
            None => answer.body,
        };
        info!("public address made");
        read(id, &document)
    }

    /// A public address as Azure has it; `None` if there is none.
    pub async fn public_address(
        &self,
        id: &ResourceId,
        urgency: impl Into<Urgency>,
    ) -> Result<Option<PublicAddress>, Error> {
        match self.read_public_address(&call(Kind::Read, urgency, id), self.url(id, NETWORK_API)).await {
            Ok(document) => read(id, &document).map(Some),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes a public address, if there is one. Azure refuses while something uses it.
    #[instrument(skip_all, fields(public_address = %id))]
    pub async fn delete_public_address(
        &self,
        id: &ResourceId,
        urgency: impl Into<Urgency>,
    ) -> Result<(), Error> {
        let call = call(Kind::Delete, urgency, id);
        let url = self.url(id, NETWORK_API);
        let answer = match self.transport.send(&call, url.clone(), None, None).await {
            Err(Error::NotFound { .. }) => return Ok(()),
            answer => answer?,
        };
        if let Some(operation) = Operation::of(&answer, &url, &call)? {
            match operation.finish(&self.transport, &call, &url, &self.tracking).await {
                // Whoever may not follow the operation looks at what it is about.
                Ok(()) | Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        info!("public address deleted");
        Ok(())
    }

    async fn read_public_address(&self, call: &Call, url: Url) -> Result<Vec<u8>, Error> {
        self.transport.send(call, url, None, None).await.map(|answer| answer.body)
    }
}

impl NewPublicAddress {
    /// Standard, because Basic ones can't be had any more (retired 2025-09-30); so it is static, and closed to what no network
    /// security group allows.
    fn body(&self) -> Vec<u8> {
        let NewPublicAddress { location, dns_label, pod } = self;
        let mut body = json!({
            "location": location,
            "sku": { "name": "Standard" },
            "tags": { "vnetpool-pod": pod },
            "properties": { "publicIPAllocationMethod": "Static", "publicIPAddressVersion": "IPv4" },
        });
        if let Some(label) = dns_label {
            body["properties"]["dnsSettings"] = json!({ "domainNameLabel": label });
        }
        body.to_string().into_bytes()
    }
}

fn read(id: &ResourceId, document: &[u8]) -> Result<PublicAddress, Error> {
    let document: Value = serde_json::from_slice(document)
        .map_err(|error| Error::Unexpected { resource: id.to_string(), message: error.to_string() })?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Ok(PublicAddress {
        id: id.clone(),
        address: text(&document["properties"]["ipAddress"]),
        dns_name: text(&document["properties"]["dnsSettings"]["fqdn"]),
    })
}
