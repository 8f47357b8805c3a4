//! The clock that can be set is asked only where the documents say what a wrong one does.

use std::collections::BTreeSet;
use std::path::Path;

use vnetpool_tests::project::root;

const PRODUCT: [&str; 5] =
    ["operator/src", "operator/kubectl/src", "node-agent/src", "node-agent/plugin/src", "crds"];
const ASKS: [&str; 4] = ["Timestamp::now()", "SystemTime::now()", "now_utc()", "CLOCK_REALTIME"];

/// The product's files that ask it, but for their tests.
fn asking(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("tests") {
                asking(&path, found);
            }
        } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("tests.rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("\nmod tests {").next().unwrap_or_default();
            if ASKS.iter().any(|ask| code.contains(ask)) {
                found.insert(path.strip_prefix(root()).unwrap().display().to_string());
            }
        }
    }
}

#[test]
fn every_file_that_asks_the_clock_that_can_be_set_has_its_row() {
    let page = std::fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let section = page.split("\n## Clocks\n").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.map(|row| row.split('|').nth(1).unwrap_or_default());
    let named: BTreeSet<String> =
        cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect();
    let mut found = BTreeSet::new();
    PRODUCT.iter().for_each(|folder| asking(&root().join(folder), &mut found));
    assert_eq!(named, found);
}
