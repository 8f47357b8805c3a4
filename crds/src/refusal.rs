//! The message of the condition `MetadataRefused`: the agent writes it, and the operator reads out of it
//! which pods no Event has named yet.

use std::collections::BTreeSet;

/// Pods that are named, at most.
const NAMED: usize = 20;
/// Between the pods, and behind the last of them.
const BETWEEN: &str = ", ";
const BEHIND: &str = ": ";

/// The message about these pods, each as `namespace/name`, that a pool keeps from the metadata service.
pub fn message<'a>(pods: impl Iterator<Item = &'a str>, pool: &str) -> String {
    let pods: Vec<&str> = pods.take(NAMED).collect();
    format!(
        "{}{BEHIND}packets to 169.254.169.254, Azure's instance metadata service, are dropped, as podMetadataAccess of \
         NodeIPPool {pool} is None. Give the pod a workload identity or the host network, or give its nodes a pool with \
         podMetadataAccess: All, where every pod gets tokens of the VM (docs/metadata.md)",
        pods.join(BETWEEN)
    )
}

/// The pods that a message names.
pub fn pods(message: &str) -> BTreeSet<&str> {
    let named = message.split_once(BEHIND).map(|(pods, _)| pods).unwrap_or_default();
    named.split(BETWEEN).filter(|pod| !pod.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_a_message_names_can_be_read_out_of_it() {
        let named = ["default/a", "kube-system/b"];
        assert_eq!(pods(&message(named.into_iter(), "default")), BTreeSet::from(named));
        let many: Vec<String> = (0..100).map(|n| format!("{}/{n}", "n".repeat(63))).collect();
        let long = message(many.iter().map(String::as_str), "default");
        assert_eq!(pods(&long).len(), NAMED);
        assert!(pods("").is_empty());
    }
}
