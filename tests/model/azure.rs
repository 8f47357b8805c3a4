//! The modelled outside: Azure's side of a NIC write, and the API server's side of a write to the object.

use crate::world::{
    ADDRESSES, Api, Azure, Configuration, Document, Object, Operation, ProvisioningState, Put, Spec,
};

impl Azure {
    pub fn read(&self) -> Document {
        let state = match (self.operation, self.has_failed) {
            (Some(_), _) => ProvisioningState::Updating,
            (None, true) => ProvisioningState::Failed,
            (None, false) => ProvisioningState::Succeeded,
        };
        Document { etag: self.etag, held: self.nic.clone(), state, unfinished: self.unfinished.clone() }
    }

    /// An address that is given back is the next that is given out: the worst case for a stale view.
    pub fn lowest_free(&self) -> Option<u8> {
        (0..ADDRESSES).find(|address| {
            !self.strangers.contains(address) && self.nic.iter().all(|one| one.address != *address)
        })
    }

    /// Takes a write: replaces the whole NIC, if it is still the one that the writer has read. Returns
    /// whether it did: not if the write is stale, for want of addresses, or while another isn't finished.
    pub fn take(&mut self, put: &Put, checks_etag: bool) -> bool {
        if self.operation.is_some() || (checks_etag && put.document.etag != self.etag) {
            return false;
        }
        let before = self.nic.clone();
        self.nic = put.document.held.iter().filter(|one| !put.release.contains(&one.name)).copied().collect();
        for &name in put.reserve.iter().filter(|name| !put.release.contains(name)) {
            let Some(address) = self.lowest_free() else {
                self.nic = before;
                return false;
            };
            if self.nic.iter().all(|one| one.name != name) {
                self.nic.push(Configuration { name, address });
                self.unfinished.insert(name);
            }
        }
        self.nic.sort();
        self.etag += 1;
        self.operation = Some(Operation { by: put.by });
        true
    }

    /// Ends the write that was taken. Returns the process that waits for that.
    pub fn finish(&mut self, succeeds: bool) -> Option<usize> {
        let operation = self.operation.take()?;
        self.has_failed = !succeeds;
        self.etag += 1;
        if succeeds {
            self.unfinished.clear();
        }
        operation.by
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
