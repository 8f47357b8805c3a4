//! Objects with a history that isn't theirs, as after a restore from a backup. Their record of a NIC was true
//! once; in the meantime its addresses may have become another node's.

use crate::NodeIPAllocation;

impl NodeIPAllocation {
    /// Whether the object was made from a copy, addresses included. The operator makes an object without a
    /// boot and names addresses for a boot in later versions only, after it has read the NIC.
    pub fn is_copy(&self) -> bool {
        let names_addresses = self.spec.ip_configurations().next().is_some();
        self.spec_generation() == Some(1) && !self.spec.boot_id.is_empty() && names_addresses
    }

    /// Whether it is older than the version that its node's agent has taken up: the API server's store was
    /// set back.
    pub fn is_set_back(&self) -> bool {
        let observed = self.status.as_ref().and_then(|status| status.observed_generation);
        observed.zip(self.metadata.generation).is_some_and(|(observed, generation)| observed > generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn object(generation: i64, boot: &str, addresses: &[&str], observed: Value) -> NodeIPAllocation {
        let held = addresses.iter().map(|one| json!({"name": "vnp-1", "address": one}));
        let held: Vec<Value> = held.collect();
        serde_json::from_value(json!({
            "metadata": {"name": "n", "generation": generation},
            "spec": {"nodeUID": "u", "bootID": boot, "pool": "p", "cooldown": "30s", "interfaces": [{
                "id": "nic", "mac": "m", "primaryAddress": "10.0.0.4", "subnet": {"id": "s", "prefixes": []},
                "ipConfigurations": held}]},
            "status": {"observedGeneration": observed}
        }))
        .unwrap()
    }

    #[test]
    fn only_an_object_that_was_made_with_addresses_for_a_boot_is_a_copy() {
        let held = ["10.0.0.5/32"];
        assert!(object(1, "b", &held, Value::Null).is_copy());
        assert!(!object(2, "b", &held, Value::Null).is_copy(), "written by the operator since");
        assert!(!object(1, "", &held, Value::Null).is_copy(), "made again by the operator");
        let deleted = |generation| {
            let mut object = object(generation, "b", &held, Value::Null);
            object.metadata.deletion_timestamp =
                serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
            object
        };
        assert!(deleted(2).is_copy(), "to be deleted is a version, and shows nothing new of the NIC");
        assert!(!deleted(3).is_copy());
        assert!(!object(1, "b", &[], Value::Null).is_copy(), "a new node's");
    }

    #[test]
    fn an_object_of_which_the_agent_has_seen_a_later_version_was_set_back() {
        assert!(object(4, "b", &[], json!(5)).is_set_back());
        assert!(!object(5, "b", &[], json!(5)).is_set_back());
        assert!(!object(5, "b", &[], Value::Null).is_set_back());
    }
}
