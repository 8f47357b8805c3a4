//! Documents as ARM shows them: reading and completing JSON, whatever resource it is of.

use serde_json::Value;

/// Sets what is absent (or null) and has a default.
pub(crate) fn default(object: &mut Value, field: &str, value: Value) {
    if object[field].is_null() {
        object[field] = value;
    }
}

pub(crate) fn remove(object: &mut Value, field: &str) {
    if let Some(object) = object.as_object_mut() {
        object.remove(field);
    }
}

/// The items of one of the lists in a document's properties.
pub(crate) fn list<'a>(document: &'a Value, name: &str) -> &'a [Value] {
    document["properties"][name].as_array().map_or(&[], Vec::as_slice)
}

pub(crate) fn text<'a>(document: &'a Value, pointer: &str) -> Option<&'a str> {
    document.pointer(pointer).and_then(Value::as_str)
}

pub(crate) fn id(document: &Value) -> &str {
    document["id"].as_str().unwrap_or_default()
}

/// Whether a document (or a reference to one) has this id, whatever the letter case.
pub(crate) fn has_id(document: &Value, id: &str) -> bool {
    document["id"].as_str().is_some_and(|own| own.eq_ignore_ascii_case(id))
}
