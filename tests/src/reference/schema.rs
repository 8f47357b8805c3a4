//! The schema of the chart's values, from `values.yaml`: the type of a value is its default's, what describes
//! it is the comment above it, and lines `@schema` of that comment have further rules.

use crate::project::root;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// What stands above a value.
#[derive(Debug, Default)]
struct Comment {
    /// Its text, each item of a list in a line of its own.
    text: String,
    /// The body of a map of YAML.
    rules: String,
}

/// The schema of the chart's values, with their defaults.
pub(super) fn schema() -> Result<Value> {
    let values = std::fs::read_to_string(root().join("charts/vnetpool/values.yaml"))?;
    let mut schema = made_from(&values)?;
    schema["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    // An empty one in a file of values takes the defaults below it away, and the chart needs some of them.
    schema["required"] = json!(["azure", "defaultPool", "image", "nodeAgent", "operator"]);
    // Helm gives it to this chart if it is the condition of a parent chart, and only if it holds.
    schema["properties"]["enabled"] = json!({
        "description": "A parent chart's condition for this chart. It can't switch off a chart that has no parent.",
        "type": "boolean",
        "const": true,
    });
    // Helm gives them to every chart, with whatever other charts use of them.
    let object =
        json!({ "type": "object", "required": ["name"], "properties": { "name": { "type": "string" } } });
    schema["properties"]["global"] = json!({
        "description": "Values of a parent chart.",
        "type": "object",
        "properties": {
            "imagePullSecrets": {
                "description": "Secrets for the registry, by name or as in a Pod.",
                "type": "array",
                "items": { "anyOf": [{ "type": "string" }, object] },
            },
        },
    });
    Ok(schema)
}

pub(super) fn file() -> Result<String> {
    Ok(serde_json::to_string_pretty(&schema()?)? + "\n")
}

fn made_from(values: &str) -> Result<Value> {
    let defaults: Map<String, Value> = serde_yaml_ng::from_str(values)?;
    let mut schema = json!({ "type": "object" });
    takes_only(&mut schema, "", &defaults, &comments(values))?;
    Ok(schema)
}

fn takes_only(
    schema: &mut Value,
    path: &str,
    defaults: &Map<String, Value>,
    comments: &BTreeMap<String, Comment>,
) -> Result<()> {
    schema["additionalProperties"] = json!(false);
    for (name, default) in defaults {
        let path = format!("{path}.{name}");
        schema["properties"][name] = one(&path, default, comments).with_context(|| path.clone())?;
    }
    Ok(())
}

fn one(path: &str, default: &Value, comments: &BTreeMap<String, Comment>) -> Result<Value> {
    let comment = comments.get(path).context("stands in no line of its own")?;
    ensure!(!comment.text.is_empty(), "no comment describes it");
    let kind = match default {
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_i64() => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
        other => bail!("{other} as a default shows no type"),
    };
    let mut schema = json!({ "description": comment.text, "type": kind });
    let rules: Map<String, Value> = serde_yaml_ng::from_str(&format!("{{{}}}", comment.rules))?;
    let is_open = rules.contains_key("additionalProperties");
    for (name, rule) in rules {
        schema[name] = rule;
    }
    match default {
        Value::Object(fields) if !is_open && !fields.is_empty() => {
            takes_only(&mut schema, path, fields, comments)?;
        }
        leaf => schema["default"] = leaf.clone(),
    }
    Ok(schema)
}

/// The comment of each value that has a line of its own, by its path, such as `.image.tag`. An empty line
/// ends a comment that is none of the next value's.
fn comments(yaml: &str) -> BTreeMap<String, Comment> {
    let mut found = BTreeMap::new();
    let (mut comment, mut parents) = (Comment::default(), Vec::<(usize, &str)>::new());
    for line in yaml.lines() {
        let text = line.trim_start();
        let depth = line.len() - text.len();
        if let Some(text) = text.strip_prefix('#') {
            comment.add(text.trim());
            continue;
        }
        let comment = std::mem::take(&mut comment);
        let name = text.split_once(':').map(|(name, _)| name).filter(|name| !name.starts_with('-'));
        if let Some(name) = name {
            parents.retain(|(above, _)| *above < depth);
            parents.push((depth, name));
            let path: String = parents.iter().map(|(_, name)| format!(".{name}")).collect();
            found.insert(path, comment);
        }
    }
    found
}

impl Comment {
    fn add(&mut self, line: &str) {
        let (onto, line) = match line.strip_prefix("@schema") {
            Some(rules) => (&mut self.rules, rules.trim()),
            None => (&mut self.text, line),
        };
        if !onto.is_empty() {
            onto.push(if line.starts_with("- ") { '\n' } else { ' ' });
        }
        onto.push_str(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_has_the_type_of_its_default_the_text_of_its_comment_and_the_rules_in_it() {
        let values = "
# A header.

# A part.
part:
  # How many,
  # at most.
  # @schema minimum: 1,
  # @schema maximum: 3
  count: 2
  # One of:
  # - `a`: the first,
  #   of two
  # - `b`
  # @schema enum: [a, b]
  kind: a
  # As in a Pod.
  # @schema additionalProperties: { type: string }
  labels: { one.example/a: b }
# A list.
list:
  - name: x
";
        let expected = json!({
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "part": {
                    "description": "A part.",
                    "type": "object",
                    "additionalProperties": false,
                    "properties": {
                        "count": {
                            "description": "How many, at most.", "type": "integer", "minimum": 1, "maximum": 3,
                            "default": 2,
                        },
                        "kind": {
                            "description": "One of:\n- `a`: the first, of two\n- `b`", "type": "string",
                            "enum": ["a", "b"], "default": "a",
                        },
                        "labels": {
                            "description": "As in a Pod.", "type": "object",
                            "additionalProperties": { "type": "string" }, "default": { "one.example/a": "b" },
                        },
                    },
                },
                "list": { "description": "A list.", "type": "array", "default": [{ "name": "x" }] },
            },
        });
        assert_eq!(made_from(values).unwrap(), expected);
    }

    #[test]
    fn a_value_without_a_comment_a_type_or_understandable_rules_is_named() {
        for (values, named) in [
            ("# A part.\na:\n  b: 1\n", "no comment describes it"),
            ("# Far above.\n\na: 1\n", "no comment describes it"),
            ("# A part.\na: { b: 1 }\n", "no line of its own"),
            ("# Nothing.\na: null\n", "no type"),
            ("# A number.\n# @schema minimum: [\na: 1\n", "a: "),
        ] {
            let error = format!("{:#}", made_from(values).unwrap_err());
            assert!(error.contains(named) && error.contains(".a"), "{values}: {error}");
        }
    }
}
