//! What was measured: of each size the last play of each scenario, with the aims beside it.

use crate::aims;
use anyhow::{Context, Result};
use serde_json::Value;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use vnetpool_tests::project::root;

fn path() -> PathBuf {
    root().join("target/bench/scale.json")
}

/// By the number of nodes.
fn all() -> Result<Vec<Value>> {
    match fs::read(path()) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| path().display().to_string()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(vec![]),
        Err(error) => Err(error).with_context(|| path().display().to_string()),
    }
}

/// Keeps a run, in the place of one of the same size but for scenarios that only that one has played, and
/// prints which aims are met. Its costs are compared with those of the smallest run of as many addresses a
/// node.
pub fn keep(mut run: Value) -> Result<()> {
    let size = |run: &Value| {
        ["nodes", "subscriptions", "addressesEach", "podsEach"].map(|of| run[of].as_u64().unwrap_or_default())
    };
    let mut all = all()?;
    if let Some(at) = all.iter().position(|one| size(one) == size(&run)) {
        let before = all.remove(at);
        let played = run["scenarios"].as_object_mut().context("no scenarios")?;
        for (scenario, cost) in before["scenarios"].as_object().into_iter().flatten() {
            played.entry(scenario).or_insert_with(|| cost.clone());
        }
    }
    run["aims"] = aims::met(&run).into();
    let is_smaller = |one: &&Value| {
        ["addressesEach", "podsEach"].iter().all(|of| one[of] == run[of])
            && one["nodes"].as_u64() < run["nodes"].as_u64()
    };
    if let Some(small) = all.iter().filter(is_smaller).min_by_key(|one| one["nodes"].as_u64()) {
        run["exponents"] = aims::exponents(small, &run).into();
        run["comparedWith"] = small["nodes"].clone();
    }
    for rows in ["aims", "exponents"] {
        println!("{}", aims::shown(run[rows].as_array().map_or(&[], Vec::as_slice)));
    }
    all.push(run);
    all.sort_by_key(size);
    fs::create_dir_all(path().parent().context("a folder")?)?;
    fs::write(path(), serde_json::to_vec_pretty(&all)?)?;
    Ok(())
}
