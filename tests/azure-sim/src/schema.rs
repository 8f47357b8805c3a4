//! Validation of recorded exchanges against Azure's official OpenAPI documents (feature `schema`).
//!
//! The documents are Swagger 2.0; their schemas are JSON Schema draft 4 with a few differences, which are
//! translated here.

use crate::lock::lock;
use crate::log::LogEntry;
use anyhow::{Context, anyhow};
use jsonschema::Validator;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// The documents that describe what the simulator serves, below `specification/`.
const DOCUMENTS: [&str; 14] = [
    "network/resource-manager/Microsoft.Network/stable/2024-03-01/networkInterface.json",
    "network/resource-manager/Microsoft.Network/stable/2024-03-01/virtualNetwork.json",
    "network/resource-manager/Microsoft.Network/stable/2024-03-01/routeTable.json",
    "network/resource-manager/Microsoft.Network/stable/2024-03-01/networkSecurityGroup.json",
    "network/resource-manager/Microsoft.Network/stable/2024-03-01/applicationSecurityGroup.json",
    "network/resource-manager/Microsoft.Network/stable/2024-03-01/publicIpAddress.json",
    "network/resource-manager/Microsoft.Network/stable/2024-03-01/loadBalancer.json",
    "network/resource-manager/Microsoft.Network/stable/2024-03-01/natGateway.json",
    "network/resource-manager/Microsoft.Network/stable/2024-03-01/applicationGateway.json",
    "network/resource-manager/Microsoft.Network/stable/2024-03-01/vmssNetworkInterface.json",
    "compute/resource-manager/Microsoft.Compute/ComputeRP/stable/2024-07-01/virtualMachine.json",
    "compute/resource-manager/Microsoft.Compute/ComputeRP/stable/2024-07-01/virtualMachineScaleSet.json",
    "imds/data-plane/Microsoft.InstanceMetadataService/stable/2021-02-01/imds.json",
    "imds/data-plane/Microsoft.InstanceMetadataService/stable/2023-07-01/imds.json",
];

/// The result of comparing an exchange with the documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// Every body in it was validated.
    Validated,
    /// No document describes it, for this reason.
    Undocumented(&'static str),
}

/// One method on one path.
struct Operation {
    method: String,
    /// Segments; those in braces match anything.
    path: Vec<String>,
    request: Option<Value>,
    /// By status or `default`; `None` where no body is described.
    responses: BTreeMap<String, Option<Value>>,
}

/// Azure's documents, ready to validate with.
pub struct Documents {
    operations: Vec<Operation>,
    /// All definitions of all files, translated: `{file: {name: schema}}`.
    definitions: Value,
    compiled: Mutex<BTreeMap<String, Arc<Validator>>>,
}

impl Documents {
    /// The documents beside the project (`../shared/azure-spec` from its root), or `None` where that folder
    /// is absent.
    ///
    /// # Errors
    /// When the folder is there and can't be understood.
    pub fn beside_project() -> anyhow::Result<Option<Self>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/azure-spec/specification");
        if folder.is_dir() { Self::load(&folder).map(Some) } else { Ok(None) }
    }

    /// Reads the documents below a folder `specification`.
    ///
    /// # Errors
    /// When a document is missing or isn't one.
    pub fn load(folder: &Path) -> anyhow::Result<Self> {
        let mut files = Files::default();
        let mut operations = Vec::new();
        for name in DOCUMENTS {
            let path = folder.join(name);
            let document = files.document(&path)?;
            let base = document["basePath"].as_str().unwrap_or_default();
            let paths = document["paths"].as_object().with_context(|| format!("{name} has no paths"))?;
            for (template, methods) in paths {
                for (method, operation) in methods.as_object().into_iter().flatten() {
                    if operation["responses"].is_object() {
                        operations.push(Operation::read(
                            &files,
                            &path,
                            &format!("{base}{template}"),
                            method,
                            operation,
                        ));
                    }
                }
            }
        }
        let definitions = files.definitions()?;
        Ok(Self { operations, definitions, compiled: Mutex::default() })
    }

    /// Validates the bodies of one exchange.
    ///
    /// # Errors
    /// The faults, each with the side, the place in the body and the rule.
    pub fn validate(&self, entry: &LogEntry) -> Result<Coverage, Vec<String>> {
        let path = entry.path.to_lowercase();
        let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
        if let Some(schema) = self.poll_schema(&segments) {
            return match schema {
                Ok(schema) => self.check(&[("response", &schema, entry.response.as_ref())]),
                Err(reason) => Ok(Coverage::Undocumented(reason)),
            };
        }
        let described = described_path(&segments);
        let Some(operation) = self.operations.iter().find(|o| o.serves(&entry.method, &described)) else {
            return undocumented(&segments, entry.status)
                .map(Coverage::Undocumented)
                .ok_or_else(|| vec![format!("no document describes {} {}", entry.method, entry.path)]);
        };
        let mut wrong = Vec::new();
        let status = entry.status.to_string();
        let described_status = operation.responses.get_key_value(&status);
        let Some((_, response)) = described_status.or_else(|| operation.responses.get_key_value("default"))
        else {
            return Err(vec![format!(
                "status {status} is not described for {} {}",
                entry.method, entry.path
            )]);
        };
        if entry.status < 300 && described_status.is_none() {
            wrong.push(format!("status {status} is not described for {} {}", entry.method, entry.path));
        }
        let narrowed = response.as_ref().map(|schema| self.narrow(&segments, entry.status, schema));
        let mut checks = Vec::new();
        match &narrowed {
            Some(schema) => checks.push(("response", schema, entry.response.as_ref())),
            None if entry.response.is_some() => {
                wrong.push(format!("response: {status} has no body, this one has"))
            }
            None => {}
        }
        // A request that was refused as malformed needn't be well-formed.
        if let (Some(schema), true) = (&operation.request, entry.status != 400) {
            checks.push(("request", schema, entry.request.as_ref()));
        }
        match self.check(&checks) {
            Ok(_) if wrong.is_empty() => Ok(Coverage::Validated),
            Ok(_) => Err(wrong),
            Err(more) => Err(wrong.into_iter().chain(more).collect()),
        }
    }

    /// The schema of one of the definitions of a file whose path ends so.
    fn definition(&self, file: &str, name: &str) -> Option<Value> {
        let files = self.definitions.as_object()?;
        let (key, _) = files.iter().find(|(key, _)| key.ends_with(file))?;
        Some(json!({ "$ref": reference(key, name) }))
    }

    /// No document has a path for polls, but the network provider's describes their answers.
    fn poll_schema(&self, segments: &[&str]) -> Option<Result<Value, &'static str>> {
        match segments {
            ["subscriptions", _, "providers", provider, "locations", _, "operations", _] => match *provider {
                "microsoft.network" => self.definition("network.json", "AzureAsyncOperationResult").map(Ok),
                _ => Some(Err("polls of Compute are in no document")),
            },
            _ => None,
        }
    }

    /// IMDS answers any part of the instance by its path; the document knows the whole.
    fn narrow(&self, segments: &[&str], status: u16, schema: &Value) -> Value {
        let part = match segments {
            ["metadata", "instance", "network"] => self.definition("imds.json", "Network"),
            ["metadata", "instance", "compute"] => self.definition("imds.json", "Compute"),
            ["metadata", "instance", _, ..] => Some(json!({})),
            _ => None,
        };
        part.filter(|_| status == 200).unwrap_or_else(|| schema.clone())
    }

    fn check(&self, checks: &[(&str, &Value, Option<&Value>)]) -> Result<Coverage, Vec<String>> {
        let mut wrong = Vec::new();
        for (side, schema, body) in checks {
            let Some(body) = body else {
                wrong.push(format!("{side}: a body is described, there is none"));
                continue;
            };
            match self.validator(schema) {
                Ok(validator) => wrong.extend(
                    validator
                        .iter_errors(body)
                        .map(|error| format!("{side}{}: {error}", error.instance_path())),
                ),
                Err(error) => wrong.push(format!("{side}: the schema is broken: {error}")),
            }
        }
        if wrong.is_empty() { Ok(Coverage::Validated) } else { Err(wrong) }
    }

    fn validator(&self, schema: &Value) -> anyhow::Result<Arc<Validator>> {
        let mut compiled = lock(&self.compiled);
        match compiled.entry(schema.to_string()) {
            Entry::Occupied(known) => Ok(known.get().clone()),
            Entry::Vacant(place) => {
                let root = json!({
                    "$schema": "http://json-schema.org/draft-04/schema#",
                    "allOf": [schema],
                    "definitions": self.definitions,
                });
                let validator = jsonschema::options().should_validate_formats(true).build(&root);
                let validator = validator.map_err(|error| anyhow!("{error}"))?;
                Ok(place.insert(Arc::new(validator)).clone())
            }
        }
    }
}

/// `/metadata/instance/network` and the like are described as `/metadata/instance`.
fn described_path<'a>(segments: &[&'a str]) -> Vec<&'a str> {
    match segments {
        ["metadata", "instance", ..] => segments[..2].to_vec(),
        _ => segments.to_vec(),
    }
}

fn undocumented(segments: &[&str], status: u16) -> Option<&'static str> {
    match segments {
        ["subscriptions", _, "resourcegroups", _] | ["subscriptions", _, "operationresults", _] => {
            Some("resource groups belong to documents that are not at hand")
        }
        ["subscriptions", _, "providers", _, "locations", _, "operationresults", _] => {
            Some("results of operations are in no document")
        }
        // The preflight's requests: they are Microsoft.Authorization's.
        [.., "providers", "microsoft.authorization", "permissions"] => {
            Some("permissions belong to documents that are not at hand")
        }
        // The front door's own refusal of a path that is no resource.
        _ if status >= 400 && segments.first() != Some(&"subscriptions") => Some("an error at no known path"),
        _ => None,
    }
}

impl Operation {
    fn read(files: &Files, file: &Path, template: &str, method: &str, operation: &Value) -> Self {
        let schema = |of: &Value| of.get("schema").map(|schema| files.translate(file, schema));
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        let responses = operation["responses"].as_object().into_iter().flatten();
        Self {
            method: method.to_uppercase(),
            path: template.trim_matches('/').split('/').map(str::to_lowercase).collect(),
            request: parameters.filter(|p| p["in"] == "body").find_map(schema),
            responses: responses.map(|(status, response)| (status.clone(), schema(response))).collect(),
        }
    }

    fn serves(&self, method: &str, segments: &[&str]) -> bool {
        self.method == method
            && self.path.len() == segments.len()
            && self.path.iter().zip(segments).all(|(own, asked)| own.starts_with('{') || own == asked)
    }
}

/// Documents by path, as they are met.
#[derive(Default)]
struct Files(BTreeMap<PathBuf, Value>);

impl Files {
    fn document(&mut self, path: &Path) -> anyhow::Result<Value> {
        let path = normal(path);
        if !self.0.contains_key(&path) {
            let text =
                std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            let document =
                serde_json::from_str(&text).with_context(|| format!("parsing {}", path.display()))?;
            self.0.insert(path.clone(), document);
        }
        Ok(self.0[&path].clone())
    }

    /// The translated definitions of all files, those that are referred to included.
    fn definitions(mut self) -> anyhow::Result<Value> {
        let mut translated = Map::new();
        let mut pending: Vec<PathBuf> = self.0.keys().cloned().collect();
        while let Some(path) = pending.pop() {
            if translated.contains_key(&key(&path)) {
                continue;
            }
            let document = self.document(&path)?;
            let definitions = document["definitions"].as_object().into_iter().flatten();
            let definitions: Map<String, Value> =
                definitions.map(|(name, schema)| (name.clone(), self.translate(&path, schema))).collect();
            translated.insert(key(&path), Value::Object(definitions));
            pending.extend(references(&document["definitions"]).filter_map(|reference| {
                let file = reference.split('#').next().filter(|file| !file.is_empty())?;
                Some(normal(&path.with_file_name(file)))
            }));
        }
        Ok(Value::Object(translated))
    }

    /// A schema of Swagger 2.0 as JSON Schema draft 4. `file` is where its relative references start.
    fn translate(&self, file: &Path, schema: &Value) -> Value {
        let Some(schema) = schema.as_object() else { return schema.clone() };
        if let Some(target) = schema.get("$ref").and_then(Value::as_str) {
            let (target_file, pointer) = target.split_once('#').unwrap_or((target, ""));
            let target_file =
                if target_file.is_empty() { normal(file) } else { normal(&file.with_file_name(target_file)) };
            return json!({ "$ref": reference(&key(&target_file), pointer.trim_start_matches("/definitions/")) });
        }
        let mut translated = Map::new();
        for (keyword, value) in schema {
            let new = match keyword.as_str() {
                "properties" => value
                    .as_object()
                    .into_iter()
                    .flatten()
                    .map(|(name, schema)| (name.clone(), self.translate(file, schema)))
                    .collect::<Map<_, _>>()
                    .into(),
                "items" | "additionalProperties" => self.translate(file, value),
                "allOf" => value.as_array().into_iter().flatten().map(|s| self.translate(file, s)).collect(),
                // An open list: Azure may send values that the document doesn't name.
                "enum" if is_open(schema) => continue,
                "type" if schema.get("x-nullable") == Some(&json!(true)) => json!([value, "null"]),
                "type" | "format" | "enum" | "required" | "pattern" | "minimum" | "maximum" | "minLength"
                | "maxLength" | "minItems" | "maxItems" | "uniqueItems" => value.clone(),
                // Prose, examples and hints for generators.
                _ => continue,
            };
            translated.insert(keyword.clone(), new);
        }
        // A Swagger schema with properties means an object. JSON Schema would accept any other type.
        if translated.contains_key("properties") && !translated.contains_key("type") {
            translated.insert("type".into(), json!("object"));
        }
        Value::Object(translated)
    }
}

/// Whether a list of values is only a list of known ones.
fn is_open(schema: &Map<String, Value>) -> bool {
    schema.get("x-ms-enum").is_some_and(|hint| hint["modelAsString"] == json!(true))
}

/// Every `$ref` in a document's part.
fn references(value: &Value) -> Box<dyn Iterator<Item = String> + '_> {
    match value {
        Value::Object(object) => {
            let own = object.get("$ref").and_then(Value::as_str).map(str::to_owned);
            Box::new(own.into_iter().chain(object.values().flat_map(references)))
        }
        Value::Array(items) => Box::new(items.iter().flat_map(references)),
        _ => Box::new(std::iter::empty()),
    }
}

/// Without `.` and `..`, so that a file has one name.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir if normal.file_name().is_some() => drop(normal.pop()),
            part => normal.push(part),
        }
    }
    normal
}

/// A file's name among the definitions: free of what a JSON pointer would have to escape.
fn key(path: &Path) -> String {
    path.to_string_lossy().replace(['/', '~', '%', '#'], ".")
}

fn reference(file: &str, name: &str) -> String {
    format!("#/definitions/{file}/{name}")
}
