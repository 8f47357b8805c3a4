//! The node's ledger and conditions in readable form, as `kubectl describe nodeipallocation` shows them in a
//! cluster. And the ledger and the wiring for `kubectl vnetpool`.

use std::fmt::Write;

use vnetpool_crds::NodeIPAllocationStatus;
use vnetpool_crds::inspection::{self, AddressView, NodeView, Wired};
use vnetpool_plugin::ledger::{Counts, Ledger, Millis, Occupant, Pod, Proof, Sandbox, State, Tenant};

/// The ledger at this moment, and the conditions of the agent's last report if there is one.
pub fn show(ledger: &Ledger, now: Millis, status: Option<&NodeIPAllocationStatus>) -> String {
    let Counts { held, assigned, cooling, free, waiting, relinquished: _, vanished, withdrawn, withheld } =
        ledger.counts(now);
    let mut text = format!(
        "holds {held} addresses: {assigned} assigned, {cooling} cooling, {free} free; {waiting} waiting\n"
    );
    if vanished + withdrawn > 0 {
        let _ = writeln!(text, "no longer the VM's: {vanished} in use, {withdrawn} not");
    }
    if withheld > 0 {
        let _ = writeln!(text, "withheld, since the node lacks its rules (RulesApplied): {withheld}");
    }
    let _ = writeln!(text, "\n{:<16}{:<11}{:<8}CONTAINER", "ADDRESS", "STATE", "SINCE");
    let mut records: Vec<_> = ledger.records().iter().collect();
    records.sort_by_key(|record| record.entry().address);
    for record in records {
        let (state, since, container) = match record.state() {
            State::Assigned(assignment) => {
                let Tenant { sandbox, pod: Pod { namespace, name, .. }, .. } = &**assignment;
                let pod = [namespace.as_str(), name.as_str()].join("/");
                let pod =
                    if name.is_empty() { String::new() } else { format!(" ({})", pod.trim_matches('/')) };
                let container = format!("{}/{}{pod}", sandbox.container_id, sandbox.ifname);
                (if assignment.vanished { "vanished" } else { "assigned" }, Some(assignment.since), container)
            }
            State::Free { since } => {
                (if ledger.is_ruled() { "free" } else { "withheld" }, *since, String::new())
            }
            State::Withdrawn { since } => ("withdrawn", *since, String::new()),
        };
        let since = since.map_or("-".to_owned(), |since| format!("{}s", now.saturating_sub(since) / 1000));
        let address = record.entry().address.to_string();
        let _ = writeln!(text, "{}", format!("{address:<16}{state:<11}{since:<8}{container}").trim_end());
    }
    for condition in status.iter().flat_map(|status| &status.conditions) {
        let _ = write!(
            text,
            "\n{}: {} ({}): {}",
            condition.type_, condition.status, condition.reason, condition.message
        );
    }
    text
}

/// The ledger at this moment, and the wired sandboxes of the node.
pub fn view(ledger: &Ledger, wired: &[Occupant], now: Millis) -> NodeView {
    let addresses = ledger.records().iter().map(|record| {
        let (state, since, assignment) = match record.state() {
            State::Free { since } => (inspection::State::Free, *since, None),
            State::Withdrawn { since } => (inspection::State::Withdrawn, *since, None),
            State::Assigned(one) if one.vanished => (inspection::State::Vanished, Some(one.since), Some(one)),
            State::Assigned(one) => (inspection::State::Assigned, Some(one.since), Some(one)),
        };
        AddressView {
            address: record.entry().address.to_string(),
            name: record.entry().name.clone(),
            state,
            since_seconds: since.map(|since| now.saturating_sub(since) / 1000),
            tenant: assignment.map(|one| tenant(&one.sandbox, &one.pod)),
            is_leased: assignment.is_some_and(|one| matches!(one.proof, Proof::Namespace { .. })),
        }
    });
    NodeView {
        boot_id: ledger.boot_id().to_owned(),
        generation: ledger.generation(),
        lacks_rules: !ledger.is_ruled(),
        addresses: addresses.collect(),
        relinquished: ledger.relinquished().map(str::to_owned).collect(),
        waiting: ledger.waiting().iter().map(|waiter| tenant(&waiter.sandbox, &waiter.pod)).collect(),
        wired: wired
            .iter()
            .map(|one| Wired { address: one.address.to_string(), tenant: tenant(&one.sandbox, &one.pod) })
            .collect(),
    }
}

fn tenant(sandbox: &Sandbox, pod: &Pod) -> inspection::Tenant {
    inspection::Tenant {
        pod: if pod.name.is_empty() { String::new() } else { format!("{}/{}", pod.namespace, pod.name) },
        pod_uid: pod.uid.clone(),
        sandbox: format!("{}/{}", sandbox.container_id, sandbox.ifname),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use std::time::Duration;
    use vnetpool_plugin::ledger::{Claim, Entry, Sandbox, Supply};

    #[test]
    fn each_address_is_a_line_with_its_holder() {
        let entry = |n: u8| Entry { name: n.to_string(), address: [10, 240, 0, n].into(), attached_to: None };
        let supply = Supply {
            object: "vm".into(),
            generation: 1,
            node_uid: "vm".into(),
            boot_id: "boot".into(),
            cooldown: Duration::from_secs(30),
            entries: vec![entry(6), entry(5)],
        };
        let mut ledger = Ledger::rebuild("boot", &[], &[], &supply, None, 0, true);
        let sandbox = Sandbox { container_id: "web".into(), ifname: "eth0".into() };
        let pod = Pod { name: "shop".into(), ..Pod::default() };
        ledger.assign(&Claim::wired(&sandbox, &pod, ""), 5_000);
        let text = show(&ledger, 7_000, None);
        assert!(text.starts_with("holds 2 addresses: 1 assigned, 0 cooling, 1 free; 0 waiting\n"), "{text}");
        let lines: Vec<&str> = text.lines().skip(3).collect();
        assert_eq!(
            lines,
            ["10.240.0.5      free       -", "10.240.0.6      assigned   2s      web/eth0 (shop)"]
        );
        ledger.rule(false);
        let text = show(&ledger, 7_000, None);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "withheld, since the node lacks its rules (RulesApplied): 1");
        assert_eq!(lines[4], "10.240.0.5      withheld   -");
        assert!(!text.contains("no longer the VM's"), "{text}");
    }

    #[test]
    fn programs_get_the_ledger_and_the_wiring_though_they_disagree() {
        let entry = Entry { name: "vnp-5".into(), address: [10, 240, 0, 5].into(), attached_to: None };
        let supply = Supply { generation: 7, boot_id: "boot".into(), ..sample::supply(vec![entry]) };
        let mut ledger = Ledger::rebuild("boot", &[], &[], &supply, None, 0, true);
        let sandbox = Sandbox { container_id: "web".into(), ifname: "eth0".into() };
        let pod = Pod { namespace: "shop".into(), name: "cart".into(), uid: "u".into() };
        ledger.assign(&Claim::wired(&sandbox, &pod, ""), 5_000);
        let proof = Proof::Link("vnp1".into());
        let stranger = Occupant { sandbox, pod, address: [10, 240, 0, 6].into(), proof };
        let view = view(&ledger, &[stranger], 7_000);
        let record = &view.addresses[0];
        assert_eq!((record.state, record.since_seconds), (inspection::State::Assigned, Some(2)));
        assert_eq!(record.tenant.as_ref().unwrap().pod, "shop/cart");
        assert_eq!((view.generation, view.wired[0].address.as_str()), (7, "10.240.0.6"));
        assert_eq!(view.wired[0].tenant.sandbox, "web/eth0");
        let read: NodeView = serde_json::from_str(&serde_json::to_string(&view).unwrap()).unwrap();
        assert_eq!(read, view);
    }
}
