//! A UID in 16 bytes.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use uuid::Uuid;

/// The identity of a pod: its UUID, or a digest of a UID that isn't one. The kubelet takes the digest of a
/// static pod's manifest for its UID. Two equal values are of the same UID.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid([u8; 16]);

impl Uid {
    pub fn of(uid: &str) -> Uid {
        let uuid = Uuid::try_parse(uid).ok().filter(|uuid| {
            let mut text = Uuid::encode_buffer();
            *uuid.hyphenated().encode_lower(&mut text) == *uid
        });
        Uid(uuid.map_or_else(|| digest(uid), Uuid::into_bytes))
    }
}

fn digest(uid: &str) -> [u8; 16] {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, uid).hash(&mut hasher);
        hasher.finish()
    };
    Uuid::from_u64_pair(half(0), half(1)).into_bytes()
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Uuid::from_bytes(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_that_differ_in_any_way_stay_distinct() {
        let uids = [
            "0b2f6d4e-3a52-4b1c-9f43-0123456789ab",
            "0B2F6D4E-3A52-4B1C-9F43-0123456789AB",
            "0b2f6d4e3a524b1c9f430123456789ab",
            "0b2f6d4e3a524b1c9f430123456789ac",
            "{0b2f6d4e-3a52-4b1c-9f43-0123456789ab}",
            "a",
            "b",
            "",
        ];
        for (at, one) in uids.iter().enumerate() {
            assert_eq!(Uid::of(one), Uid::of(one));
            assert!(uids[at + 1..].iter().all(|other| Uid::of(other) != Uid::of(one)), "{one}");
        }
    }
}
