//! Any bytes as an object of the API server's.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::*;
use crate::azure::VmId;

/// Each JSON is an object that can be read, or one whose fault is known; both by the same name. Returns the
/// first.
fn reading<K>(content: &Value) -> Option<K>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Debug,
{
    let name = content["metadata"]["name"].as_str().unwrap_or_default();
    let reading: Reading<K> = serde_json::from_str(&content.to_string()).unwrap();
    assert_eq!(reading.name_any(), name);
    reading.0.inspect_err(|unreadable| assert!(!unreadable.error.is_empty())).ok()
}

/// What is kept of an object is the same after it was written and read, and what is kept of that.
fn is_kept<K>(mut object: K, strip: fn(&mut K), digest: fn(&K) -> u64)
where
    K: Clone + Debug + PartialEq + Serialize + DeserializeOwned,
{
    strip(&mut object);
    let mut again: K = serde_json::from_value(serde_json::to_value(&object).unwrap()).unwrap();
    assert_eq!(again, object);
    strip(&mut again);
    assert_eq!((digest(&again), &again), (digest(&object), &object));
}

/// Returns whether it is an object of any of our kinds.
fn is_object(bytes: &[u8]) -> bool {
    let Ok(content) = serde_json::from_slice::<Value>(bytes) else { return false };
    let text = |value: &Value| value.as_str().map(str::to_owned);
    // A pod counts whatever can't be read of it.
    let (uid, node) = (text(&content["metadata"]["uid"]), text(&content["spec"]["nodeName"]));
    let pod = pod::read_one(serde_json::from_str(&content.to_string()).unwrap());
    if uid.is_some() {
        assert_eq!(pod.map(|pod| pod.node), node);
    }
    let node = reading::<Node>(&content).map(|node| {
        let _ = VmId::from_provider_id(node.provider_id());
        let mut shared = node.clone();
        shared.share(&mut Shared::default());
        assert_eq!((kept::node_digest(&shared), &shared), (kept::node_digest(&node), &node));
    });
    let pool = reading::<NodeIPPool>(&content).map(|pool| {
        let Claim { range, selector: _ } = Claim::of(&pool);
        assert!(range.is_none_or(|range| range == range.trunc()), "{range:?}");
        is_kept(pool, kept::strip_pool, kept::pool_digest);
    });
    let allocation = reading::<NodeIPAllocation>(&content)
        .map(|allocation| is_kept(allocation, kept::strip_allocation, kept::allocation_digest));
    content["metadata"]["name"].is_string() && [node, pool, allocation].contains(&Some(()))
}

#[test]
fn any_object_is_known_by_its_name_and_kept_as_it_was_read() {
    vnetpool_fuzz::search("kubernetes", is_object);
}
