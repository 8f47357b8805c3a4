//! The application security groups of a NIC's document: every ipConfiguration names them, and Azure demands
//! the same for all.

use serde_json::{Value, json};

use super::ResourceId;

const FIELD: &str = "applicationSecurityGroups";

pub(super) fn read(ip_configurations: &[Value]) -> Vec<ResourceId> {
    of_first(ip_configurations).iter().filter_map(id).collect()
}

/// Puts all ipConfigurations into the groups `join` and takes them out of the groups `leave`. Groups that
/// others have chosen stay as they came, and so does everything if there is nothing to do.
pub(super) fn write(ip_configurations: &mut [Value], join: &[ResourceId], leave: &[ResourceId]) {
    let before = of_first(ip_configurations);
    let mut groups = before.clone();
    groups.retain(|group| id(group).is_none_or(|id| !leave.contains(&id)));
    let known = read(ip_configurations);
    let new = join.iter().filter(|id| !known.contains(id));
    groups.extend(new.map(|id| json!({ "id": id.as_str() })));
    if groups != before {
        for one in ip_configurations {
            one["properties"][FIELD] = json!(groups);
        }
    }
}

fn of_first(ip_configurations: &[Value]) -> Vec<Value> {
    let first = ip_configurations.first();
    first.and_then(|one| one["properties"][FIELD].as_array()).cloned().unwrap_or_default()
}

fn id(group: &Value) -> Option<ResourceId> {
    group["id"].as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str) -> String {
        format!(
            "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/applicationSecurityGroups/{name}"
        )
    }

    fn ids(names: &[&str]) -> Vec<ResourceId> {
        names.iter().map(|name| group(name).parse().unwrap()).collect()
    }

    fn nic(groups: &Value) -> Vec<Value> {
        let one = |name: &str| json!({ "name": name, "properties": { "applicationSecurityGroups": groups } });
        vec![one("ipconfig1"), one("vnp-1"), one("of-somebody-else")]
    }

    #[test]
    fn all_addresses_of_a_nic_join_and_leave_and_the_groups_of_others_stay() {
        let theirs = json!({ "id": group("theirs"), "aFieldOfTheFuture": 1 });
        let mut all = nic(&json!([theirs]));
        write(&mut all, &ids(&["web", "api"]), &[]);
        assert_eq!(all, nic(&json!([theirs, { "id": group("web") }, { "id": group("api") }])));
        assert_eq!(read(&all), ids(&["theirs", "web", "api"]));
        // The ids may be in another case in Azure.
        write(&mut all, &[], &ids(&["WEB", "api"]));
        assert_eq!(all, nic(&json!([theirs])));
    }

    #[test]
    fn an_edit_of_groups_already_made_changes_nothing() {
        let before = nic(&json!([{ "id": group("Web") }]));
        let mut all = before.clone();
        write(&mut all, &ids(&["web"]), &ids(&["api"]));
        assert_eq!(all, before);
        let mut all = vec![json!({ "name": "ipconfig1", "properties": {} })];
        write(&mut all, &[], &ids(&["api"]));
        assert_eq!(all, [json!({ "name": "ipconfig1", "properties": {} })]);
    }
}
