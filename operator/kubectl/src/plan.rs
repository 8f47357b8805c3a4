//! `plan`: the effect of an edit of pools on each node. The planner decides it, for the pools as they are and
//! as they would be.

use std::fmt;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use serde::Serialize;
use serde_json::Value;
use vnetpool_crds::NodeIPPool;
use vnetpool_operator::outlook::{self, Outlook};

use crate::cluster::Objects;
use crate::explain::next;
use crate::show::{indented, table};

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Forecast {
    /// The edited object.
    pub fields: Vec<Field>,
    /// Nodes that the edit changes.
    pub nodes: Vec<Node>,
    /// Nodes that it doesn't change.
    pub unchanged: usize,
}

/// A field of a pool with another value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Field {
    pub pool: String,
    pub field: String,
    pub before: Option<Value>,
    pub after: Option<Value>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    pub name: String,
    pub pool: Change<String>,
    pub wanted: Change<u32>,
    pub held: u32,
    /// The operator's next steps then.
    pub next: String,
    pub hindrances: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change<T> {
    pub before: T,
    pub after: T,
}

impl<T: fmt::Display + PartialEq> fmt::Display for Change<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.before == self.after {
            true => self.after.fmt(f),
            false => write!(f, "{} -> {}", self.before, self.after),
        }
    }
}

/// # Errors
/// When the file has no pool, or one that can't be read.
pub fn plan(objects: &Objects, applied: Vec<Value>) -> Result<Forecast> {
    let edited = applied.into_iter().filter(|object| object["kind"] == "NodeIPPool");
    let edited: Vec<NodeIPPool> = edited
        .map(serde_json::from_value)
        .collect::<Result<_, _>>()
        .context("reading the pool as it would be")?;
    ensure!(!edited.is_empty(), "the file has no NodeIPPool");
    let fields = edited.iter().map(|pool| differences(objects.pool(&pool.name_any()), pool));
    let fields = fields.collect::<Result<Vec<_>>>()?.concat();
    let is_edited = |pool: &NodeIPPool| edited.iter().any(|one| one.name_any() == pool.name_any());
    let others = objects.pools.iter().filter(|pool| !is_edited(pool)).cloned();
    let after: Vec<Arc<NodeIPPool>> = others.chain(edited.iter().cloned().map(Arc::new)).collect();

    let bound = objects.bound();
    let (mut nodes, mut unchanged) = (vec![], 0);
    for node in &objects.nodes {
        let name = node.name_any();
        let count = bound.get(name.as_str()).copied().unwrap_or_default();
        let seen = |pools| objects.outlook(&name, count, pools);
        match seen(&objects.pools).zip(seen(&after)) {
            Some((before, after)) => match changed(&name, &before, &after) {
                Some(change) => nodes.push(change),
                None => unchanged += 1,
            },
            None => match joining(objects, node, &after) {
                Some(change) => nodes.push(change),
                None => unchanged += 1,
            },
        }
    }
    Ok(Forecast { fields, nodes, unchanged })
}

/// A node without an object that gets one.
fn joining(objects: &Objects, node: &outlook::Node, after: &[Arc<NodeIPPool>]) -> Option<Node> {
    let serving = |pools: &[Arc<NodeIPPool>]| {
        let pools = pools.iter().map(AsRef::as_ref);
        NodeIPPool::serving(pools, &node.labels().to_map()).map(ResourceExt::name_any)
    };
    let (before, after) = (serving(&objects.pools), serving(after)?);
    (before.is_none() && !outlook::is_never_served(node)).then(|| Node {
        name: node.name_any(),
        pool: Change { before: NONE.to_owned(), after },
        wanted: Change { before: 0, after: 0 },
        held: 0,
        next: "reads its NIC, and reserves what the pool asks for".to_owned(),
        hindrances: vec![],
    })
}

const NONE: &str = "none";

fn changed(name: &str, before: &Outlook, after: &Outlook) -> Option<Node> {
    let pool = |outlook: &Outlook| outlook.pool.as_ref().map_or(NONE.to_owned(), |pool| pool.name_any());
    let hindrances = |outlook: &Outlook| -> Vec<String> {
        outlook.leaves.iter().chain(&outlook.obstacle).cloned().collect()
    };
    let node = Node {
        name: name.to_owned(),
        pool: Change { before: pool(before), after: pool(after) },
        wanted: Change { before: before.plan.wanted, after: after.plan.wanted },
        held: after.plan.kept,
        next: next(&after.plan, after.grain),
        hindrances: hindrances(after),
    };
    let is_same = node.pool.before == node.pool.after
        && node.wanted.before == node.wanted.after
        && node.next == next(&before.plan, before.grain)
        && node.hindrances == hindrances(before);
    (!is_same).then_some(node)
}

/// The fields of `spec` that the edit changes.
fn differences(before: Option<&NodeIPPool>, after: &NodeIPPool) -> Result<Vec<Field>> {
    let before = before.map(|pool| serde_json::to_value(&pool.spec)).transpose()?;
    let mut fields = vec![];
    let after_spec = serde_json::to_value(&after.spec)?;
    compare(&after.name_any(), "spec", before.as_ref(), Some(&after_spec), &mut fields);
    Ok(fields)
}

fn compare(pool: &str, path: &str, before: Option<&Value>, after: Option<&Value>, fields: &mut Vec<Field>) {
    if before == after {
        return;
    }
    if let (Some(Value::Object(old)), Some(Value::Object(new))) = (before, after) {
        let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        for name in names {
            compare(pool, &format!("{path}.{name}"), old.get(name), new.get(name), fields);
        }
        return;
    }
    fields.push(Field {
        pool: pool.to_owned(),
        field: path.to_owned(),
        before: before.cloned(),
        after: after.cloned(),
    });
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = |value: &Option<Value>| value.as_ref().map_or("-".to_owned(), ToString::to_string);
        let fields = self.fields.iter().map(|one| match &one.before {
            // Of a pool that isn't there yet, all is new.
            None if one.field == "spec" => {
                vec![one.pool.clone(), one.field.clone(), "-".to_owned(), "(new)".to_owned()]
            }
            before => vec![one.pool.clone(), one.field.clone(), value(before), value(&one.after)],
        });
        match self.fields.is_empty() {
            true => writeln!(f, "The pools stay as they are.\n")?,
            false => {
                writeln!(f, "{}", table(&["POOL", "FIELD", "BEFORE", "AFTER"], &fields.collect::<Vec<_>>()))?
            }
        }
        let nodes = self.nodes.iter().map(|one| {
            let Node { name, pool, wanted, held, next, .. } = one;
            vec![name.clone(), pool.to_string(), held.to_string(), wanted.to_string(), next.clone()]
        });
        if !self.nodes.is_empty() {
            f.write_str(&table(
                &["NODE", "POOL", "HELD", "WANTED", "THEN THE OPERATOR"],
                &nodes.collect::<Vec<_>>(),
            ))?;
        }
        writeln!(f, "Nodes for which something changes: {}; nothing: {}.", self.nodes.len(), self.unchanged)?;
        for node in self.nodes.iter().filter(|node| !node.hindrances.is_empty()) {
            write!(f, "\nNode {}:\n{}", node.name, indented(&node.hindrances.join(" ")))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use serde_json::json;

    fn edit(spec: Value) -> Vec<Value> {
        vec![
            json!({"apiVersion": "vnetpool.io/v1alpha1", "kind": "NodeIPPool", "metadata": {"name": "default"}, "spec": spec}),
        ]
    }

    fn selects(labels: Value) -> Value {
        json!({"matchLabels": labels})
    }

    #[test]
    fn a_plan_shows_another_sizing_for_each_node() {
        let spec = json!({"nodeSelector": selects(json!({"pods": "yes"})), "sizing": {"minimum": 2, "warm": 1, "batch": 1}});
        let expected = "\
POOL      FIELD                 BEFORE   AFTER
default   spec.sizing.batch     4        1
default   spec.sizing.minimum   8        2
default   spec.sizing.warm      8        1

NODE     POOL      HELD   WANTED    THEN THE OPERATOR
node-1   default   4      12 -> 4   does nothing
node-2   default   3      12 -> 4   reserves 1 address
Nodes for which something changes: 2; nothing: 1.
";
        assert_eq!(plan(&fixture::objects(), edit(spec)).unwrap().to_string(), expected);
    }

    #[test]
    fn a_pool_that_no_longer_selects_a_node_keeps_it_for_a_grace() {
        let forecast =
            plan(&fixture::objects(), edit(json!({"nodeSelector": selects(json!({"pods": "no"}))}))).unwrap();
        assert_eq!(forecast.nodes.len(), 2);
        let node = &forecast.nodes[0];
        assert_eq!((node.pool.after.as_str(), node.wanted.after), ("default", 12));
        assert!(node.hindrances[0].contains("doesn't select node node-1 any more"), "{:?}", node.hindrances);
    }

    #[test]
    fn a_node_without_a_pool_is_taken_up() {
        let forecast = plan(&fixture::objects(), edit(json!({}))).unwrap();
        let joins: Vec<_> =
            forecast.nodes.iter().map(|node| (node.name.as_str(), node.pool.to_string())).collect();
        assert_eq!(joins, [("node-3", "none -> default".to_owned())]);
    }

    #[test]
    fn a_field_that_is_set_for_the_first_time_shows_its_value_and_a_new_pool_is_new() {
        let spec = json!({"nodeSelector": selects(json!({"pods": "yes"})), "subnetID": fixture::SUBNET});
        let fields = |objects: &Objects| plan(objects, edit(spec.clone())).unwrap().to_string();
        let set = fields(&fixture::objects());
        assert!(
            set.contains(&format!("default   spec.subnetID   -        \"{}\"", fixture::SUBNET)),
            "{set}"
        );
        let new = fields(&Objects { pools: vec![], ..fixture::objects() });
        assert!(new.contains("default   spec    -        (new)"), "{new}");
    }

    #[test]
    fn a_file_without_a_pool_is_refused() {
        let error = plan(&fixture::objects(), vec![json!({"kind": "ConfigMap"})]).unwrap_err();
        assert_eq!(error.to_string(), "the file has no NodeIPPool");
    }
}
