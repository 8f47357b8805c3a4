//! The modelled outside: Azure's side of a NIC write, and the API server's side of a write to the object.

use crate::world::{ADDRESSES, Api, Azure, Configuration, Document, Object, Put, Spec};

impl Azure {
    pub fn read(&self) -> Document {
        Document { etag: self.etag, held: self.nic.clone() }
    }

    /// An address that is given back is the next that is given out: the worst case for a stale view.
    pub fn lowest_free(&self) -> Option<u8> {
        (0..ADDRESSES).find(|address| {
            !self.strangers.contains(address) && self.nic.iter().all(|one| one.address != *address)
        })
    }

    /// Handles a write: replaces the whole NIC, if it is still the one that the writer has read. Gives the
    /// NIC after it, or `None` if it was refused as stale or for want of addresses.
    pub fn put(&mut self, put: &Put, checks_etag: bool) -> Option<Document> {
        if checks_etag && put.document.etag != self.etag {
            return None;
        }
        let before = self.nic.clone();
        self.nic = put.document.held.iter().filter(|one| !put.release.contains(&one.name)).copied().collect();
        for &name in put.reserve.iter().filter(|name| !put.release.contains(name)) {
            let Some(address) = self.lowest_free() else {
                self.nic = before;
                return None;
            };
            if self.nic.iter().all(|one| one.name != name) {
                self.nic.push(Configuration { name, address });
            }
        }
        self.nic.sort();
        self.etag += 1;
        Some(self.read())
    }
}

impl Api {
    /// The result of a consistent read.
    pub fn current(&self) -> Option<&Object> {
        self.history.last().filter(|_| self.exists)
    }

    /// A write that the API server has accepted. `change` gets the object as it is.
    pub fn write(&mut self, change: impl FnOnce(&mut Object)) -> Option<Object> {
        let before = self.current()?.clone();
        let mut after = before.clone();
        change(&mut after);
        if after != before {
            after.generation += u8::from(after.spec != before.spec || after.deleted != before.deleted);
            after.version = self.next_version();
            self.history.push(after.clone());
        }
        Some(after)
    }

    pub fn create(&mut self, spec: Spec) -> Object {
        self.last_uid += 1;
        let (uid, version) = (self.last_uid, self.next_version());
        let object = Object { uid, version, generation: 1, deleted: false, spec, status: Default::default() };
        self.history.push(object.clone());
        self.exists = true;
        object
    }

    fn next_version(&self) -> u8 {
        // Operators remember versions that `history` no longer has, but none beyond its last.
        self.history.last().map_or(1, |last| last.version + 1)
    }
}
