//! ARM templates, as far as `examples/new-vnet` uses them: parameters, variables, `resourceId`, `concat`,
//! `resourceGroup()`, and the order in which resources depend on each other. Pure.
//!
//! "Understand the structure and syntax of ARM templates", "ARM template functions" (Microsoft Learn).

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A template and the values of its deployment.
pub(crate) struct Template<'a> {
    /// The document.
    pub(crate) document: &'a Value,
    /// By name, each as `{"value": …}`.
    pub(crate) parameters: &'a Value,
    /// The resource group's document.
    pub(crate) group: &'a Value,
}

/// A resource with all expressions evaluated.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Resource {
    pub(crate) id: String,
    pub(crate) api_version: String,
    /// The body that is sent to its provider.
    pub(crate) body: Value,
}

impl Template<'_> {
    /// Its resources, each after those it depends on, otherwise in the order of the document.
    pub(crate) fn resources(&self) -> Result<Vec<Resource>, String> {
        let mut waiting = Vec::new();
        for resource in self.document["resources"].as_array().ok_or("the template has no resources")? {
            waiting.push(self.resource(resource)?);
        }
        let ids: Vec<String> = waiting.iter().map(|(resource, _)| resource.id.to_lowercase()).collect();
        let mut done: Vec<Resource> = Vec::new();
        while !waiting.is_empty() {
            let is_done = |id: &String| done.iter().any(|one| one.id.eq_ignore_ascii_case(id));
            let next = waiting.iter().position(|(_, needs)| {
                // A resource waits only for resources of the same template.
                needs.iter().filter(|id| ids.contains(&id.to_lowercase())).all(is_done)
            });
            let next = next.ok_or("circular dependency detected on resources")?;
            done.push(waiting.remove(next).0);
        }
        Ok(done)
    }

    /// Its outputs, as the deployment shows them.
    pub(crate) fn outputs(&self) -> Result<Value, String> {
        let mut outputs = Map::new();
        for (name, output) in self.document["outputs"].as_object().into_iter().flatten() {
            let value = self.evaluate(&output["value"])?;
            outputs.insert(name.clone(), json!({ "type": output["type"], "value": value }));
        }
        Ok(Value::Object(outputs))
    }

    fn resource(&self, resource: &Value) -> Result<(Resource, Vec<String>), String> {
        let mut body = self.evaluate(resource)?;
        let field = |name: &str| {
            body[name].as_str().map(str::to_owned).ok_or_else(|| format!("a resource lacks '{name}'"))
        };
        let (kind, name, api_version) = (field("type")?, field("name")?, field("apiVersion")?);
        let id = self.resource_id(&kind, &name.split('/').collect::<Vec<_>>())?;
        let needs = body["dependsOn"].as_array().into_iter().flatten();
        let needs = needs.filter_map(|need| need.as_str().map(str::to_owned)).collect();
        for name in ["type", "name", "apiVersion", "dependsOn", "comments"] {
            crate::document::remove(&mut body, name);
        }
        Ok((Resource { id, api_version, body }, needs))
    }

    fn resource_id(&self, kind: &str, names: &[&str]) -> Result<String, String> {
        let mut types = kind.split('/');
        let namespace = types.next().unwrap_or_default();
        let types: Vec<&str> = types.collect();
        if types.len() != names.len() {
            return Err(format!("'{kind}' takes {} names, not {}", types.len(), names.len()));
        }
        let path: String = types.iter().zip(names).map(|(kind, name)| format!("/{kind}/{name}")).collect();
        Ok(format!("{}/providers/{namespace}{path}", self.group["id"].as_str().unwrap_or_default()))
    }

    /// A value with the expressions in it evaluated.
    fn evaluate(&self, value: &Value) -> Result<Value, String> {
        match value {
            Value::String(text) => match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                // Two brackets stand for one.
                Some(rest) if rest.starts_with('[') => Ok(json!(&text[1..])),
                Some(expression) => {
                    let mut rest = expression;
                    let value = self.expression(&mut rest)?;
                    if rest.trim().is_empty() {
                        Ok(value)
                    } else {
                        Err(format!("'{rest}' is too much in '{text}'"))
                    }
                }
                None => Ok(value.clone()),
            },
            Value::Array(items) => items.iter().map(|item| self.evaluate(item)).collect(),
            Value::Object(fields) => {
                let fields = fields.iter().map(|(name, value)| Ok((name.clone(), self.evaluate(value)?)));
                fields.collect::<Result<Map<_, _>, String>>().map(Value::Object)
            }
            other => Ok(other.clone()),
        }
    }

    /// A function or a literal at the beginning of `rest`, with the properties that follow. `rest` is the
    /// text after it.
    fn expression(&self, rest: &mut &str) -> Result<Value, String> {
        *rest = rest.trim_start();
        if let Some(text) = rest.strip_prefix('\'') {
            let (literal, after) = text.split_once('\'').ok_or("a quote isn't closed")?;
            *rest = after;
            return Ok(json!(literal));
        }
        let (name, after) = rest.split_once('(').ok_or_else(|| format!("'{rest}' is no call"))?;
        *rest = after;
        let mut arguments = Vec::new();
        loop {
            *rest = rest.trim_start_matches([' ', ',']);
            match rest.strip_prefix(')') {
                Some(after) => *rest = after,
                None => {
                    arguments.push(self.expression(rest)?);
                    continue;
                }
            }
            break;
        }
        let mut value = self.call(name.trim(), &arguments)?;
        while let Some(after) = rest.strip_prefix('.') {
            let end = after.find(|c: char| !c.is_alphanumeric()).unwrap_or(after.len());
            value = value
                .get(&after[..end])
                .cloned()
                .ok_or_else(|| format!("no property '{}'", &after[..end]))?;
            *rest = &after[end..];
        }
        Ok(value)
    }

    fn call(&self, function: &str, arguments: &[Value]) -> Result<Value, String> {
        let texts: Vec<&str> = arguments.iter().filter_map(Value::as_str).collect();
        match (function, texts.as_slice()) {
            ("parameters", [name]) => {
                let declared = &self.document["parameters"][*name];
                if declared.is_null() {
                    return Err(format!("the template parameter '{name}' is not found"));
                }
                match (self.parameters[*name].get("value"), declared.get("defaultValue")) {
                    (Some(given), _) => Ok(given.clone()),
                    (None, Some(default)) => self.evaluate(default),
                    (None, None) => {
                        Err(format!("the value for the template parameter '{name}' is not provided"))
                    }
                }
            }
            ("variables", [name]) => match self.document["variables"].get(*name) {
                Some(value) => self.evaluate(value),
                None => Err(format!("the template variable '{name}' is not found")),
            },
            ("resourceGroup", []) => Ok(self.group.clone()),
            ("resourceId", [kind, names @ ..]) => self.resource_id(kind, names).map(Value::String),
            ("concat", texts) if texts.len() == arguments.len() => Ok(json!(texts.concat())),
            _ => Err(format!("the template function '{function}' is not valid here")),
        }
    }

    /// Parameters that are given but not declared.
    pub(crate) fn unknown_parameters(&self) -> Vec<String> {
        let given: BTreeMap<_, _> = self.parameters.as_object().into_iter().flatten().collect();
        given
            .into_keys()
            .filter(|name| self.document["parameters"][name.as_str()].is_null())
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluate(text: &str) -> Result<Value, String> {
        let document = json!({
            "parameters": { "name": { "defaultValue": "net" }, "needed": {} },
            "variables": { "table": "[concat(parameters('name'), '-', 'table')]" },
        });
        let group = json!({ "id": "/subscriptions/s/resourceGroups/g", "location": "westeurope" });
        let template = Template { document: &document, parameters: &json!({}), group: &group };
        template.evaluate(&json!(text))
    }

    #[test]
    fn expressions_are_evaluated_and_plain_text_is_not() {
        for (text, value) in [
            ("plain", "plain"),
            ("[[not one]", "[not one]"),
            ("[parameters('name')]", "net"),
            ("[resourceGroup().location]", "westeurope"),
            ("[variables('table')]", "net-table"),
            (
                "[resourceId('Microsoft.Network/virtualNetworks/subnets', parameters('name'), 'nodes')]",
                "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/net/subnets/nodes",
            ),
        ] {
            assert_eq!(evaluate(text), Ok(json!(value)), "{text}");
        }
        for text in [
            "[parameters('needed')]",
            "[parameters('other')]",
            "[uniqueString('x')]",
            "[resourceId('Microsoft.Network/virtualNetworks', 'a', 'b')]",
            "[concat('a']",
            "[concat('a')) ]",
        ] {
            assert!(evaluate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn resources_come_after_their_dependencies() {
        let resource = |name: &str, needs: &[&str]| {
            let needs: Vec<String> =
                needs.iter().map(|need| format!("[resourceId('N/t', '{need}')]")).collect();
            json!({ "type": "N/t", "apiVersion": "2025-05-01", "name": name, "dependsOn": needs })
        };
        let order = |resources: Value| {
            let document = json!({ "resources": resources });
            let template =
                Template { document: &document, parameters: &json!({}), group: &json!({ "id": "/g" }) };
            template.resources().map(|all| all.iter().map(|one| one.id.clone()).collect::<Vec<_>>())
        };
        let all = json!([resource("c", &["a", "b"]), resource("b", &["a"]), resource("a", &["elsewhere"])]);
        assert_eq!(order(all).unwrap(), ["/g/providers/N/t/a", "/g/providers/N/t/b", "/g/providers/N/t/c"]);
        assert!(order(json!([resource("a", &["b"]), resource("b", &["a"])])).is_err());
    }
}
