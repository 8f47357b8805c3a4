//! What an agent that was taken over can read of other nodes is on a page, whole.

use serde_json::Value;
use std::collections::BTreeSet;
use vnetpool_tests::project::root;

/// Texts of a NodeIPAllocation that name nothing: settings, times, and reservations by the names that stand
/// in `spec`.
const NAMING_NOTHING: [&str; 14] = [
    "spec.cooldown",
    "spec.mode",
    "spec.podMetadataAccess",
    "spec.pool",
    "spec.sizing.releaseAfter",
    "spec.takenOffAt",
    "spec.wiring",
    "status.conditions.lastTransitionTime",
    "status.conditions.reason",
    "status.conditions.status",
    "status.conditions.type",
    "status.countedAt",
    "status.relinquished",
    "status.unlisted",
];

#[test]
fn every_field_that_names_a_pod_or_a_resource_is_in_the_page_of_what_agents_read() {
    let crd = std::fs::read_to_string(root().join("charts/vnetpool/crds/nodeipallocations.yaml")).unwrap();
    let crd: Value = serde_yaml_ng::from_str(&crd).unwrap();
    let mut fields = BTreeSet::new();
    texts("", &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], &mut fields);
    let page = std::fs::read_to_string(root().join("docs/hardening.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| `spec.") || line.starts_with("| `status."));
    let listed: BTreeSet<&str> = rows
        .filter_map(|row| row.split('|').nth(1))
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect();
    assert!(fields.len() > 40 && listed.len() > 15, "{fields:?}, {listed:?}");
    let is_in = |field: &str, one: &str| field == one || field.starts_with(&format!("{one}."));
    for field in &fields {
        let named = listed.iter().any(|one| is_in(field, one));
        assert!(named || NAMING_NOTHING.contains(&field.as_str()), "the page lacks {field}");
    }
    for one in listed {
        assert!(fields.iter().any(|field| is_in(field, one)), "there is no {one}");
    }
}

/// The paths of all texts below `spec` and `status`, without the lists on the way.
fn texts(path: &str, schema: &Value, found: &mut BTreeSet<String>) {
    if let Some(fields) = schema["properties"].as_object() {
        for (name, field) in fields {
            let is_ours = !path.is_empty() || name == "spec" || name == "status";
            if is_ours {
                let dot = if path.is_empty() { "" } else { "." };
                texts(&format!("{path}{dot}{name}"), field, found);
            }
        }
    } else if schema["items"].is_object() {
        texts(path, &schema["items"], found);
    } else if schema["type"] == "string" {
        found.insert(path.to_owned());
    }
}
