//! The product's timers that tests shorten, in the table of `tests/README.md`: each has a test with its full
//! value.

use std::time::Duration;

use clap::Parser;
use serde_json::json;
use vnetpool_crds::pool::NodeIPPoolSpec;
use vnetpool_node_agent::args::Args;
use vnetpool_operator::Waits;
use vnetpool_tests::project::root;

use super::tests::Tests;

#[test]
fn every_timer_that_tests_shorten_has_a_test_with_its_full_value() {
    let tests = Tests::of_the_project();
    let readme = std::fs::read_to_string(root().join("tests/README.md")).unwrap();
    // So that none can be left out.
    let Waits { second_read, deadline, late, grace, unlisted, scarce } = Waits::FULL;
    let waits = [
        ("waits.second_read", second_read),
        ("waits.deadline", deadline),
        ("waits.late", late),
        ("waits.grace", grace),
        ("waits.unlisted", unlisted),
        ("waits.scarce", scarce),
    ];
    let pool: NodeIPPoolSpec = serde_json::from_value(json!({})).unwrap();
    let settings: [(&str, Duration); 3] = [
        ("cooldown", pool.cooldown.into()),
        ("sizing.releaseAfter", pool.sizing.release_after.into()),
        ("--cooldown", Args::parse_from(["agent"]).config.imds.cooldown.into()),
    ];
    for (timer, full) in waits.into_iter().chain(settings) {
        let row = readme.lines().find(|line| line.starts_with(&format!("| `{timer}` |")));
        let row = row.unwrap_or_else(|| panic!("tests/README.md has no row of {timer}"));
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        assert_eq!(cells[2], format!("{} s", full.as_secs()), "{timer}");
        let test = cells[4].trim_matches('`');
        assert!(tests.has(test), "{timer}: there is no test {test}");
        if let Some(field) = timer.strip_prefix("waits.") {
            let named = format!("Waits::FULL.{field}");
            let mut files = tests.tests[test].iter().filter_map(|file| std::fs::read_to_string(file).ok());
            assert!(files.any(|text| text.contains(&named)), "{timer}: {test} is in no file with {named}");
        }
    }
}
