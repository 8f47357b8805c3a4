//! Rules of a pool's schema beyond the types of its fields.

use kube::core::{Message, Rule};

/// A LabelSelector, with the checks that Kubernetes makes only in its own kinds. A slip would otherwise be
/// taken, and the pool would serve no node.
pub fn node_selector(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let value = schemars::json_schema!({
        "type": "string", "maxLength": 63, "pattern": "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$",
    });
    let key = schemars::json_schema!({
        "type": "string", "maxLength": 317,
        "pattern": "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
    });
    schemars::json_schema!({
        "type": "object",
        "nullable": true,
        "properties": {
            "matchLabels": {
                "description": "Labels with their values; all of them must be on the node.",
                "type": "object",
                "additionalProperties": value,
                "maxProperties": 64,
            },
            "matchExpressions": {
                "description": "Further requirements; the node must meet all of them.",
                "type": "array",
                "maxItems": 64,
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": key,
                        "operator": { "type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"] },
                        "values": {
                            "description": "At least one for In and NotIn, none for Exists and DoesNotExist.",
                            "type": "array", "maxItems": 1024, "items": value,
                        },
                    },
                    "x-kubernetes-validations": [{
                        "rule": "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
                        "message": "nodeSelector.matchExpressions takes values with the operators In and NotIn, at least one, \
                                    and none with Exists and DoesNotExist",
                    }],
                },
            },
        },
    })
}

/// A count of nodes, or a percentage of them.
pub fn number_or_percentage(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "nullable": true,
        "x-kubernetes-int-or-string": true,
        "x-kubernetes-validations": [{
            "rule": "type(self) == int ? self >= 1 && self <= 100000 : string(self).matches('^([1-9][0-9]?|100)%$')",
            "message": "rollout.maxUpdating takes a number of nodes from 1 to 100000, or a percentage from 1% to 100%",
        }],
    })
}

/// A rule that a Go-style duration lies within bounds; without it CEL's own message would be about parsing.
/// It takes all units that programs write: of `0s` Rust makes `0ns`, and of `0.001ms` `1µs`.
pub fn duration_rule(field: &str, least: &str, most: &str) -> Rule {
    Rule::new(format!(
        "self.matches('^([0-9]+(\\\\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$') && duration(self) >= duration('{least}') && duration(self) <= duration('{most}')"
    ))
    .message(Message::Message(format!(
        "{field} takes a duration such as 30s, 5m or 1h30m, from {least} to {most}"
    )))
}
