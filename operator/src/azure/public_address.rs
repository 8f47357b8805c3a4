//! Our public addresses: each is made for one pod, read, and deleted with the pod.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;
use tracing::{info, instrument};

use super::cache::{Slots, parse};
use super::operation::End;
use super::refused::Concerns;
use super::transport::Answer;
use super::{Azure, Error, Kind, ResourceId, Urgency, call};

/// A public address as Azure has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicAddress {
    pub id: ResourceId,
    /// `None` while Azure hasn't chosen yet.
    pub address: Option<String>,
    /// Its whole name in DNS, if it has one.
    pub dns_name: Option<String>,
}

/// The properties of a new public address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPublicAddress {
    /// Azure's region: that of the NIC.
    pub location: String,
    /// The first part of its name in DNS.
    pub dns_label: Option<String>,
    /// The pod it is for, for people who find the resource in Azure.
    pub pod: String,
}

/// The right to make one public address: until it is dropped, no other task deletes or makes the same one.
#[derive(Debug)]
pub struct Reserved {
    id: ResourceId,
    lock: Option<OwnedMutexGuard<()>>,
    all: Arc<Slots<()>>,
}

impl Drop for Reserved {
    /// Each pod has an address of its own: nobody asks for this one again once its pod is gone.
    fn drop(&mut self) {
        self.lock = None;
        self.all.forget_unused(&self.id);
    }
}

impl Azure {
    /// Waits until no other task makes or deletes this public address.
    pub async fn reserve_public_address(&self, id: &ResourceId) -> Reserved {
        let lock = Some(self.public.slot(id).lock_owned().await);
        Reserved { id: id.clone(), lock, all: self.public.clone() }
    }

    /// Makes a public address, or changes the existing one into `new`. Where all are refused, one call asks
    /// on behalf of all.
    #[instrument(skip_all, fields(public_address = %reserved.id))]
    pub async fn make_public_address(
        &self,
        reserved: &Reserved,
        new: &NewPublicAddress,
        urgency: impl Into<Urgency>,
    ) -> Result<PublicAddress, Error> {
        let id = &reserved.id;
        let concerns = Concerns::of_new_public_address(id, &new.location);
        self.put(id, new, &concerns, urgency.into()).await
    }

    /// Changes a public address into `new`, if it is there: this takes nothing of the quota. `None`: it isn't
    /// found.
    pub async fn change_public_address(
        &self,
        reserved: &Reserved,
        new: &NewPublicAddress,
        urgency: impl Into<Urgency>,
    ) -> Result<Option<PublicAddress>, Error> {
        let urgency = urgency.into();
        match self.public_address(&reserved.id, &urgency).await {
            Ok(_) => {
                let concerns = Concerns::of_public_address(Kind::Write, &reserved.id);
                self.put(&reserved.id, new, &concerns, urgency).await.map(Some)
            }
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A request without an answer may be carried out later.
    async fn put(
        &self,
        id: &ResourceId,
        new: &NewPublicAddress,
        concerns: &Concerns,
        urgency: Urgency,
    ) -> Result<PublicAddress, Error> {
        let urgency = self.begin_to_ask(concerns, id, urgency)?;
        let put = self.try_to_put(id, new, urgency).await;
        self.refused.learn(concerns, id, put.as_ref().map(|_| ()), Instant::now());
        if put.as_ref().is_err_and(|error| !error.left_all_as_it_was()) {
            self.late.lost_answer(id, Instant::now());
        }
        put
    }

    async fn try_to_put(
        &self,
        id: &ResourceId,
        new: &NewPublicAddress,
        urgency: Urgency,
    ) -> Result<PublicAddress, Error> {
        let mut call = call(Kind::Write, urgency, id);
        call.region = Some(new.location.clone());
        let url = self.url(id, &self.versions.network);
        let accepted = self.transport.send(&call, url.clone(), None, Some(new.body())).await?;
        let document = self.complete(&call, url, accepted).await?;
        info!("public address made");
        read(id, &document)
    }

    /// A public address as Azure has it. Where all are refused, one call asks on behalf of all.
    ///
    /// # Errors
    /// [`Error::NotFound`] if Azure reports that there is none, which proves nothing by itself.
    pub async fn public_address(
        &self,
        id: &ResourceId,
        urgency: impl Into<Urgency>,
    ) -> Result<PublicAddress, Error> {
        let concerns = Concerns::of_public_address(Kind::Read, id);
        let call = call(Kind::Read, self.begin_to_ask(&concerns, id, urgency.into())?, id);
        let answer = self.transport.send(&call, self.url(id, &self.versions.network), None, None).await;
        self.refused.learn(&concerns, id, allowed(&answer), Instant::now());
        read(id, &answer?.body)
    }

    /// Why nobody makes, reads or deletes (`call`) a public address in this one's resource group now.
    pub fn refusal_of_public_address(&self, call: Kind, id: &ResourceId) -> Option<Error> {
        self.refused.refusal(&Concerns::of_public_address(call, id), Instant::now())
    }

    /// Deletes a public address. Azure refuses while it is in use. Where all are refused, one call asks on
    /// behalf of all.
    ///
    /// # Errors
    /// Also if it is gone, and a request that makes it may still be carried out. [`Error::NotFound`] if Azure
    /// reports that there is none, which proves nothing by itself.
    #[instrument(skip_all, fields(public_address = %id))]
    pub async fn delete_public_address(
        &self,
        id: &ResourceId,
        urgency: impl Into<Urgency>,
    ) -> Result<(), Error> {
        // The making of an address is finished first: deleted before, the address would be there afterwards,
        // and in no record.
        let _reserved = self.reserve_public_address(id).await;
        let concerns = Concerns::of_public_address(Kind::Delete, id);
        let urgency = self.begin_to_ask(&concerns, id, urgency.into())?;
        let deleted = self.try_to_delete(id, urgency).await;
        self.refused.learn(&concerns, id, allowed(&deleted), Instant::now());
        deleted
    }

    async fn try_to_delete(&self, id: &ResourceId, urgency: Urgency) -> Result<(), Error> {
        let call = call(Kind::Delete, urgency, id);
        let url = self.url(id, &self.versions.network);
        let answer = self.transport.send(&call, url.clone(), None, None).await;
        let ended = match answer.and_then(|answer| found(answer, id)) {
            Ok(accepted) => self.follow(&call, &url, &accepted).await,
            Err(error) => Err(error),
        };
        match ended {
            Ok(Some(End::Operation)) => {
                info!("public address deleted");
                self.stays_gone(id)
            }
            // Whatever was answered, Azure hasn't begun, or has given up.
            Ok(Some(End::Resource) | None) => Err(Error::WithoutEffect { resource: id.to_string() }),
            // Also where the operation couldn't be followed, so that the address was read in its stead.
            Err(error @ Error::NotFound { .. }) => self.stays_gone(id).and(Err(error)),
            Err(error) => Err(error),
        }
    }

    fn stays_gone(&self, id: &ResourceId) -> Result<(), Error> {
        let left = self.late.left(id, Instant::now());
        left.map_or(Ok(()), |left| Err(Error::MayComeBack { resource: id.to_string(), retry_after: left }))
    }
}

impl NewPublicAddress {
    /// The SKU is Standard, because Basic ones aren't available any more (retired 2025-09-30). So the address
    /// is static, and closed to everything that no network security group allows.
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

/// Azure has let the call through that was answered so, also where it was in vain.
fn allowed<T>(answer: &Result<T, Error>) -> Result<(), &Error> {
    match answer {
        Ok(_) | Err(Error::NotFound { .. } | Error::InUse { .. } | Error::MayComeBack { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// What Azure answers to the deletion of a resource that it doesn't find, also when only its look-up has
/// failed.
const NO_CONTENT: u16 = 204;

/// The answer to a deletion, if Azure has found what was to be deleted.
fn found(answer: Answer, id: &ResourceId) -> Result<Answer, Error> {
    if answer.status == NO_CONTENT {
        let message = format!("HTTP {NO_CONTENT}: there was nothing to delete");
        return Err(Error::NotFound { resource: id.to_string(), message });
    }
    Ok(answer)
}

fn read(id: &ResourceId, document: &[u8]) -> Result<PublicAddress, Error> {
    let document = parse(id, document)?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Ok(PublicAddress {
        id: id.clone(),
        address: text(&document["properties"]["ipAddress"]),
        dns_name: text(&document["properties"]["dnsSettings"]["fqdn"]),
    })
}
