//! The cache of NICs: each one's document as last read, and its content. Its memory is bounded.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::Value;
use tokio::sync::OwnedMutexGuard;

use super::nic::{self, Form};
use super::{Change, Error, Nic, ResourceId};
use crate::deadline::uncounted;
use crate::lock::lock;

/// A NIC's document, ready to be edited and sent back.
#[derive(Clone, Debug)]
pub(super) struct Document {
    pub nic: Arc<Nic>,
    pub etag: String,
    /// As it came, compressed: its ids repeat in each ipConfiguration. Parsed JSON would take several times
    /// the memory of the text.
    packed: Arc<[u8]>,
}

/// A NIC as it was read.
pub(super) enum Read {
    /// A NIC that is written at its own resource, not through a scale set.
    Document(Document),
    /// A NIC that is written through its instance.
    Nic(Arc<Nic>),
}

impl Document {
    pub(super) fn read(id: &ResourceId, body: Vec<u8>) -> Result<Document, Error> {
        let value = parse(id, &body)?;
        let nic = Nic::read(id, &value).map_err(|source| Error::Nic { resource: id.to_string(), source })?;
        let packed = lz4_flex::compress_prepend_size(&body).into();
        Ok(Document { nic: Arc::new(nic), etag: etag(id, &value)?, packed })
    }

    /// The body of the write that carries out `change`; `None` if there is nothing to do and nothing to
    /// repair.
    pub(super) fn edit(&self, change: &Change) -> Result<Option<Vec<u8>>, Error> {
        let unusable = |error| Error::unexpected(&self.nic.id, error);
        let body = lz4_flex::decompress_size_prepended(&self.packed).map_err(unusable)?;
        let before = parse(&self.nic.id, &body)?;
        let after = nic::edit(&before, change, Form::Nic)
            .map_err(|source| Error::Nic { resource: self.nic.id.to_string(), source })?;
        Ok((after != before || change.repair).then(|| after.to_string().into_bytes()))
    }
}

/// The document of the resource of this id.
///
/// # Errors
/// It is none, or it is that of another resource: behind a proxy, an answer may be to another question.
pub(super) fn parse(id: &ResourceId, body: &[u8]) -> Result<Value, Error> {
    let document: Value = serde_json::from_slice(body).map_err(|error| Error::unexpected(id, error))?;
    match document["id"].as_str().filter(|own| !own.eq_ignore_ascii_case(id.as_str())) {
        Some(other) => Err(Error::unexpected(id, format!("it is about {other}"))),
        None => Ok(document),
    }
}

/// The etag of a resource's document, which the next write sends along.
pub(super) fn etag(id: &ResourceId, document: &Value) -> Result<String, Error> {
    let etag = document["etag"].as_str().map(str::to_owned);
    etag.ok_or_else(|| Error::unexpected(id, "it has no etag, without which it can't be written safely"))
}

/// The size of all NICs' documents together, compressed. Those beyond it are read again before a write.
const MEMORY: usize = 64 * 1024 * 1024;

/// The cache of all NICs. Only the holder of a NIC's lock asks Azure about it.
#[derive(Debug)]
pub(super) struct Documents {
    nics: Slots<Known>,
    room: Arc<AtomicUsize>,
}

impl Default for Documents {
    fn default() -> Self {
        Documents { nics: Slots::default(), room: Arc::new(AtomicUsize::new(MEMORY)) }
    }
}

impl Documents {
    pub(super) async fn lock(&self, id: &ResourceId) -> OwnedMutexGuard<Known> {
        uncounted(self.nics.slot(id).lock_owned()).await
    }

    pub(super) fn keep(&self, known: &mut Known, document: Document) {
        known.forget();
        known.nic = Some(document.nic.clone());
        known.document = Share::of(&self.room, document.packed.len()).map(|share| (document, share));
    }

    /// Caches the read state of a NIC, and returns its content.
    pub(super) fn learn(&self, known: &mut Known, read: Read) -> Arc<Nic> {
        match read {
            Read::Document(document) => {
                let nic = document.nic.clone();
                self.keep(known, document);
                nic
            }
            Read::Nic(nic) => {
                known.learn(nic.clone());
                nic
            }
        }
    }

    pub(super) fn forget(&self, id: &ResourceId) {
        self.nics.remove(id);
    }
}

/// The cached part of one NIC: nothing, its content, or its document as well.
#[derive(Debug, Default)]
pub(super) struct Known {
    nic: Option<Arc<Nic>>,
    document: Option<(Document, Share)>,
}

impl Known {
    pub(super) fn nic(&self) -> Option<Arc<Nic>> {
        self.nic.clone()
    }

    /// Caches a NIC's content without its document.
    pub(super) fn learn(&mut self, nic: Arc<Nic>) {
        self.forget();
        self.nic = Some(nic);
    }

    /// Returns the document, if there is one, and empties the cache of this NIC.
    pub(super) fn take(&mut self) -> Option<Document> {
        self.nic = None;
        self.document.take().map(|(document, _)| document)
    }

    pub(super) fn forget(&mut self) {
        self.take();
    }
}

/// Bytes of the common memory, given back when dropped.
#[derive(Debug)]
struct Share {
    room: Arc<AtomicUsize>,
    bytes: usize,
}

impl Share {
    fn of(room: &Arc<AtomicUsize>, bytes: usize) -> Option<Share> {
        let enough = room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |room| room.checked_sub(bytes));
        enough.is_ok().then(|| Share { room: room.clone(), bytes })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.room.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

/// One lockable `T` per resource, whatever the case of its id.
#[derive(Debug)]
pub(super) struct Slots<T>(Mutex<HashMap<String, Arc<tokio::sync::Mutex<T>>>>);

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Slots(Mutex::default())
    }
}

impl<T: Default> Slots<T> {
    pub(super) fn slot(&self, id: &ResourceId) -> Arc<tokio::sync::Mutex<T>> {
        self.all().entry(id.key()).or_default().clone()
    }

    fn remove(&self, id: &ResourceId) {
        self.all().remove(&id.key());
    }

    /// Forgets this one, unless somebody has it or waits for it.
    pub(super) fn forget_unused(&self, id: &ResourceId) {
        let (key, mut all) = (id.key(), self.all());
        if all.get(&key).is_some_and(|slot| Arc::strong_count(slot) == 1) {
            all.remove(&key);
        }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, Arc<tokio::sync::Mutex<T>>>> {
        lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ID: &str = "/subscriptions/S/resourceGroups/G/providers/Microsoft.Network/networkInterfaces/nic";

    fn body() -> Value {
        let subnet =
            "/subscriptions/S/resourceGroups/G/providers/Microsoft.Network/virtualNetworks/v/subnets/s";
        json!({
            "etag": "W/\"1\"",
            "properties": { "ipConfigurations": [{
                "name": "ipconfig1",
                "properties": { "primary": true, "privateIPAddress": "10.0.0.4", "subnet": { "id": subnet } },
            }]},
        })
    }

    fn read(body: &Value) -> Result<Document, Error> {
        Document::read(&ID.parse().unwrap(), body.to_string().into_bytes())
    }

    fn document() -> Document {
        read(&body()).unwrap()
    }

    #[tokio::test]
    async fn a_nic_is_known_by_its_id_in_any_case() {
        let all = Documents::default();
        all.keep(&mut *all.lock(&ID.parse().unwrap()).await, document());
        assert!(all.lock(&ID.to_uppercase().parse().unwrap()).await.nic().is_some());
    }

    #[test]
    fn a_slot_is_forgotten_once_nobody_has_it() {
        let (all, id) = (Slots::<()>::default(), ID.parse().unwrap());
        let held = all.slot(&id);
        all.forget_unused(&id);
        assert!(Arc::ptr_eq(&held, &all.slot(&id)), "another would lock a second one");
        drop(held);
        all.forget_unused(&id);
        assert!(all.all().is_empty());
    }

    #[tokio::test]
    async fn without_room_only_the_parsed_nic_is_kept() {
        let bytes = document().packed.len();
        let all = Documents { room: Arc::new(AtomicUsize::new(bytes)), ..Documents::default() };
        let (mut first, mut second) = (Known::default(), Known::default());
        all.keep(&mut first, document());
        all.keep(&mut second, document());
        assert!(second.nic().is_some() && second.take().is_none());
        // Keeping it again, or dropping it, takes and gives back its own room.
        all.keep(&mut first, document());
        assert!(first.take().is_some());
        assert_eq!(all.room.load(Ordering::Relaxed), bytes);
    }

    #[test]
    fn a_document_without_an_etag_is_not_used() {
        let mut body = body();
        body["etag"] = Value::Null;
        let error = read(&body).unwrap_err();
        assert!(error.to_string().contains("no etag"), "{error}");
    }

    #[test]
    fn a_change_already_made_needs_no_write() {
        let change = Change { release: vec!["vnp-0000000000000001".into()], ..Change::default() };
        assert!(document().edit(&change).unwrap().is_none());
    }

    /// As ARM answers.
    fn full(number: usize, addresses: usize) -> Value {
        const GROUP: &str = "/subscriptions/0b2f6d4e-3a52-4b1c-9f43-0123456789ab/resourceGroups/mc_group_cluster_westeurope/providers";
        let name = format!("aks-workers-12345678-vmss{number:06}");
        let id = format!("{GROUP}/Microsoft.Network/networkInterfaces/{name}-nic");
        let etag = format!("W/\"{}\"", uuid::Uuid::from_u64_pair(number as u64, 7));
        let subnet = format!("{GROUP}/Microsoft.Network/virtualNetworks/vnet-of-the-cluster/subnets/nodes");
        let one = |n: usize| {
            let name = if n == 0 {
                "ipconfig1".to_owned()
            } else {
                format!("vnp-{:016x}", (number * 977 + n) * 0x9e37_79b9)
            };
            json!({
                "name": name, "id": format!("{id}/ipConfigurations/{name}"), "etag": etag,
                "type": "Microsoft.Network/networkInterfaces/ipConfigurations",
                "properties": {"provisioningState": "Succeeded", "privateIPAddress": format!("10.240.{}.{}", n / 250, n % 250 + 4),
                    "privateIPAllocationMethod": "Dynamic", "subnet": {"id": subnet}, "primary": n == 0,
                    "privateIPAddressVersion": "IPv4"},
            })
        };
        json!({
            "name": format!("{name}-nic"), "id": id, "etag": etag, "type": "Microsoft.Network/networkInterfaces", "location": "westeurope",
            "properties": {"provisioningState": "Succeeded", "resourceGuid": "0b2f6d4e-3a52-4b1c-9f43-0123456789ab",
                "macAddress": "00-0D-3A-E5-1C-C0", "enableIPForwarding": false, "enableAcceleratedNetworking": true,
                "virtualMachine": {"id": format!("{GROUP}/Microsoft.Compute/virtualMachines/{name}")},
                "ipConfigurations": (0..=addresses).map(one).collect::<Vec<_>>()},
        })
    }

    #[tokio::test]
    async fn a_nic_is_kept_in_a_few_kilobytes_and_edited_as_it_came() {
        for (addresses, at_most) in [(12, 5000), (255, 60_000)] {
            let all = Documents::default();
            let ids: Vec<(ResourceId, String)> = (0..50)
                .map(|number| full(number, addresses))
                .map(|body| (body["id"].as_str().unwrap().parse().unwrap(), body.to_string()))
                .collect();
            let mut slots = vec![];
            for (id, _) in &ids {
                slots.push(all.lock(id).await);
            }
            let (kept, _) = crate::heap::kept(|| {
                for (slot, (id, body)) in slots.iter_mut().zip(&ids) {
                    all.keep(slot, Document::read(id, body.clone().into_bytes()).unwrap());
                }
            });
            let (each, json) = (kept / ids.len(), ids[0].1.len());
            println!("a NIC of {addresses}: {each} bytes, of {json} bytes of JSON");
            let release =
                Change { release: vec!["vnp-0000000000000001".into()], repair: true, ..Change::default() };
            let written = slots[0].take().unwrap().edit(&release).unwrap().unwrap();
            assert_eq!(
                serde_json::from_slice::<Value>(&written).unwrap(),
                nic::edit(&full(0, addresses), &release, Form::Nic).unwrap()
            );
            assert!(each <= at_most, "{each} bytes");
        }
    }
}
