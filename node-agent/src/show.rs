//! The node's ledger and conditions in readable form: what `kubectl describe nodeipallocation` shows in a
//! cluster.

use std::fmt::Write;

use vnetpool_crds::NodeIPAllocationStatus;
use vnetpool_plugin::ledger::{Counts, Ledger, Millis, Pod, State, Tenant};

/// The ledger at this moment, and the conditions of the agent's last report if there is one.
pub fn show(ledger: &Ledger, now: Millis, status: Option<&NodeIPAllocationStatus>) -> String {
    let Counts { held, assigned, cooling, free, waiting, relinquished: _, vanished, withdrawn } =
        ledger.counts(now);
    let mut text = format!(
        "holds {held} addresses: {assigned} assigned, {cooling} cooling, {free} free; {waiting} waiting\n"
    );
    if vanished + withdrawn > 0 {
        let _ = writeln!(text, "no longer the VM's: {vanished} in use, {withdrawn} not");
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
            State::Free { since } => ("free", *since, String::new()),
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use vnetpool_plugin::ledger::{Claim, Entry, Sandbox, Supply};

    #[test]
    fn each_address_is_a_line_with_who_has_it() {
        let entry = |n: u8| Entry { name: n.to_string(), address: [10, 240, 0, n].into(), attached_to: None };
        let supply = Supply {
            object: "vm".into(),
            generation: 1,
            node_uid: "vm".into(),
            boot_id: "boot".into(),
            cooldown: Duration::from_secs(30),
            entries: vec![entry(6), entry(5)],
        };
        let mut ledger = Ledger::rebuild("boot", &[], &[], &supply, None, 0);
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
    }
}
