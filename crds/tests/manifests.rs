//! The committed CustomResourceDefinitions are the ones these types generate, here and in the chart.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vnetpool_crds::{NodeIPAllocation, NodeIPPool};

/// What release 0.2.0 wrote, and how it defined the kinds.
const RELEASED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/0.2.0");

#[test]
fn the_committed_manifests_are_current() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    for crd in vnetpool_crds::definitions().unwrap() {
        let generated = vnetpool_crds::manifest(&crd).unwrap();
        for folder in ["crds/manifests", "charts/vnetpool/crds"] {
            let path = format!("{root}/{folder}/{}.yaml", crd.spec.names.plural);
            let committed = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                committed == generated,
                "{folder} is not current: run `make manifests` and commit what it writes"
            );
        }
    }
}

/// The file of a release is made so, and `kubectl apply` takes it: of two definitions in one document it
/// would take the last alone.
#[test]
fn the_manifests_one_after_another_are_both_definitions() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let text: String = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let names: Vec<String> = serde_yaml_ng::Deserializer::from_str(&text)
        .map(|document| Value::deserialize(document).unwrap())
        .map(|object| object["metadata"]["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["nodeipallocations.vnetpool.io", "nodeippools.vnetpool.io"]);
}

fn documents(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(format!("{RELEASED}/{file}")).unwrap();
    serde_yaml_ng::Deserializer::from_str(&text)
        .map(|document| Value::deserialize(document).unwrap())
        .collect()
}

/// The fields and list entries of `before` that aren't the same in `after`.
fn lost(before: &Value, after: &Value, path: &str) -> Vec<String> {
    match (before, after) {
        (Value::Object(fields), Value::Object(_)) => {
            let lost =
                |(name, value): (&String, &Value)| lost(value, &after[name], &format!("{path}.{name}"));
            fields.iter().flat_map(lost).collect()
        }
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            let lost = |(n, (before, after)): (usize, (&Value, &Value))| {
                lost(before, after, &format!("{path}[{n}]"))
            };
            before.iter().zip(after).enumerate().flat_map(lost).collect()
        }
        _ if before == after => vec![],
        _ => vec![format!("{path}: {before} became {after}")],
    }
}

/// The object as this release writes it.
fn written<K: DeserializeOwned + Serialize>(object: &Value) -> Value {
    serde_json::to_value(serde_json::from_value::<K>(object.clone()).unwrap()).unwrap()
}

#[test]
fn an_object_of_release_0_2_0_is_read_and_written_with_all_its_fields() {
    let objects = documents("objects.yaml");
    let kinds: Vec<_> = objects.iter().map(|object| object["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["NodeIPPool", "NodeIPPool", "NodeIPAllocation"]);
    for object in &objects {
        let written = match object["kind"].as_str() {
            Some("NodeIPPool") => written::<NodeIPPool>(object),
            _ => written::<NodeIPAllocation>(object),
        };
        assert_eq!(lost(object, &written, ""), [""; 0]);
    }
}

/// A later release may have added to each of them.
#[test]
fn an_object_with_fields_and_conditions_of_a_later_release_is_read_as_far_as_this_one_knows_it() {
    for before in documents("objects.yaml") {
        let mut later = before.clone();
        for path in ["", "/spec", "/status", "/spec/sizing", "/spec/interfaces/0/subnet", "/status/lost/0"] {
            if let Some(Value::Object(fields)) = later.pointer_mut(path) {
                fields.insert("ofALaterRelease".into(), json!({ "deep": [1, null] }));
            }
        }
        if let Some(Value::Array(conditions)) = later.pointer_mut("/status/conditions") {
            conditions.push(json!({
                "type": "OfALaterRelease", "status": "Unknown", "reason": "NobodyKnows", "message": "",
                "lastTransitionTime": "2026-12-01T00:00:00Z",
            }));
        }
        let conditions = |object: &Value| object["status"]["conditions"].as_array().map_or(0, Vec::len);
        let read = match before["kind"].as_str() {
            Some("NodeIPPool") => written::<NodeIPPool>(&later),
            _ => written::<NodeIPAllocation>(&later),
        };
        assert_eq!(conditions(&read), conditions(&later), "its condition is shown");
        assert_eq!(lost(&before["spec"], &read["spec"], "spec"), [""; 0]);
    }
}

/// How an object that `before` admits could be refused or read otherwise by `now`.
fn breaks(before: &Value, now: &Value, path: &str) -> Vec<String> {
    let mut breaks_here = vec![];
    for key in
        ["type", "default", "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "nullable", "format"]
    {
        if before[key] != now[key] {
            breaks_here.push(format!("{path}: {key} was {}, and is {}", before[key], now[key]));
        }
    }
    let words = |schema: &Value, key: &str| schema[key].as_array().cloned().unwrap_or_default();
    let is_any = |schema: &Value| schema["enum"].is_null();
    let has_gone = |word: &Value| !words(now, "enum").contains(word);
    if !is_any(now) && (is_any(before) || words(before, "enum").iter().any(has_gone)) {
        breaks_here.push(format!("{path}: a value has gone"));
    }
    if words(now, "required").iter().any(|field| !words(before, "required").contains(field)) {
        breaks_here.push(format!("{path}: a field is required that was not"));
    }
    for (bound, is_upper) in [
        ("maximum", true),
        ("maxLength", true),
        ("maxItems", true),
        ("minimum", false),
        ("minLength", false),
        ("minItems", false),
    ] {
        let (was, is) = (before[bound].as_f64(), now[bound].as_f64());
        let is_wider = |was: f64, is: f64| if is_upper { is >= was } else { is <= was };
        if is.is_some_and(|is| !was.is_some_and(|was| is_wider(was, is))) {
            breaks_here.push(format!("{path}: {bound} was {was:?}, and is {is:?}"));
        }
    }
    let fields = before["properties"].as_object().into_iter().flatten();
    let below = fields.map(|(name, schema)| (schema, &now["properties"][name], format!("{path}.{name}")));
    let parts = ["items", "additionalProperties"].into_iter();
    let parts = parts.map(|part| (&before[part], &now[part], format!("{path}[{part}]")));
    for (before, now, path) in below.chain(parts.filter(|(before, ..)| before.is_object())) {
        match now.is_object() {
            true => breaks_here.extend(breaks(before, now, &path)),
            false => breaks_here.push(format!("{path} has gone")),
        }
    }
    breaks_here
}

/// Within a version of the API fields are only added: objects and programs of a release apart meet.
#[test]
fn the_kinds_admit_and_keep_every_object_of_release_0_2_0() {
    for now in vnetpool_crds::definitions().unwrap() {
        let before = documents(&format!("{}.yaml", now.spec.names.plural)).remove(0);
        let now = serde_json::to_value(now).unwrap();
        for part in ["/spec/group", "/spec/scope", "/spec/names/kind", "/spec/names/plural"] {
            assert_eq!(before.pointer(part), now.pointer(part));
        }
        let [before, now] = [&before, &now].map(|definition| &definition["spec"]["versions"][0]);
        for part in ["name", "served", "storage"] {
            assert_eq!(before[part], now[part]);
        }
        let [before, now] = [before, now].map(|version| &version["schema"]["openAPIV3Schema"]);
        assert_eq!(breaks(before, now, ""), [""; 0]);
    }
}

#[test]
fn a_kind_that_lacks_a_field_or_a_value_or_narrows_a_bound_is_noticed() {
    let before =
        || documents("nodeippools.yaml").remove(0)["spec"]["versions"][0]["schema"]["openAPIV3Schema"].take();
    assert_eq!(breaks(&before(), &before(), ""), [""; 0]);
    for (path, edit) in [
        ("/properties/spec/properties/wiring", None),
        ("/properties/spec/properties/wiring/enum", Some(json!(["Routed"]))),
        ("/properties/spec/properties/weight/type", Some(json!("string"))),
        ("/properties/spec/properties/subnetID/maxLength", Some(json!(1023))),
        ("/properties/spec/properties/sizing/properties/batch/default", Some(json!(5))),
        ("/properties/spec/required", Some(json!(["weight"]))),
    ] {
        let mut now = before();
        let (place, key) = path.rsplit_once('/').unwrap();
        let place = now.pointer_mut(place).and_then(Value::as_object_mut).unwrap();
        match edit {
            Some(edit) => drop(place.insert(key.into(), edit)),
            None => drop(place.remove(key)),
        }
        assert_eq!(breaks(&before(), &now, "").len(), 1, "{path}");
    }
}

#[test]
fn the_committed_reference_of_conditions_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/conditions.md");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == vnetpool_crds::reference::page(),
        "docs/reference is not current: run `make manifests` and commit what it writes"
    );
}
