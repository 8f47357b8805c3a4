//! The operator's role against a built-in one of Azure's.

use libtest_mimic::Failed;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::read_to_string;
use std::path::Path;

/// The role that OpenShift's network operator has on Azure: it keeps addresses of egress gateways on the NICs
/// of nodes. Ours also follows the operations that it begins, and forecasts when a network is full.
pub(crate) fn has_every_action(folder: &Path) -> Result<(), Failed> {
    let recorded = read_to_string(folder.join("arm-recordings/role-aro-network-operator.json"))?;
    let recorded: Value = serde_json::from_str(&recorded)?;
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/role.json");
    let ours: Value = serde_json::from_str(&read_to_string(ours)?)?;
    let recorded = actions(&recorded["properties"]["permissions"][0]["actions"])?;
    let ours = actions(&ours["Actions"])?;
    let lacking: Vec<_> = recorded.difference(&ours).collect();
    if !lacking.is_empty() {
        return Err(format!("ours lacks {lacking:?}").into());
    }
    for more in ["locations/operations/read", "virtualNetworks/usages/read"] {
        let more = format!("Microsoft.Network/{more}");
        if recorded.contains(more.as_str()) || !ours.contains(more.as_str()) {
            return Err(format!("{more} isn't what ours has beyond it").into());
        }
    }
    Ok(())
}

fn actions(list: &Value) -> Result<BTreeSet<&str>, Failed> {
    let all = list.as_array().filter(|all| !all.is_empty()).ok_or("no actions are listed")?;
    Ok(all.iter().filter_map(Value::as_str).collect())
}
