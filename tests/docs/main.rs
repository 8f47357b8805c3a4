//! Documents, and pages made from code, hold what they promise: commands, alerts, names, tests. Modules keep
//! their structure, and the summary of a test run counts right.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod clocks;
mod evidence;
mod impls;
mod logs;
mod modules;
#[path = "../mutations/table.rs"]
mod mutations;
mod pages;
mod readable;
mod sbom;
mod tally;
mod tests;
mod timers;
mod words;

use std::path::Path;
use std::process::Command;
use tests::Tests;
use vnetpool_crds::condition::{On, Row, TYPES, Writer};
use vnetpool_crds::reason::Reason;
use vnetpool_tests::monitoring::{self, Exposition};
use vnetpool_tests::overlay::edited;
use vnetpool_tests::project::root;
use vnetpool_tests::reference;
use vnetpool_tests::snippets::{self, Fate, GROUPS};

/// The endings of the names of files with tests, or of files on which tests depend.
const SOURCES: [&str; 2] = [".rs", "_test.go"];

/// They run nightly; that a change of the product has left one without its place is seen at once.
#[test]
fn every_mutation_has_its_place_in_the_product_and_its_tests() {
    let there_are = Tests::of_the_project();
    for mutation in mutations::ALL {
        let sources = edited(&[mutation.edit()]);
        let sources = sources.unwrap_or_else(|error| panic!("{}: {error:#}", mutation.rule));
        assert!(sources[mutation.file].contains(mutation.to), "{}", mutation.rule);
        assert!(mutation.program == "--lib" || mutation.program.starts_with("--test="));
        for test in mutation.tests {
            let name = test.rsplit("::").next().unwrap_or_default();
            let is_there = there_are.tests.keys().any(|known| known.starts_with(name));
            assert!(is_there, "{}: there is no test {test}", mutation.rule);
        }
    }
}

/// The policy keeps a node's agent from these, and from no other.
#[test]
fn the_policy_for_agents_names_every_condition_of_the_operators() {
    let path = root().join("charts/vnetpool/templates/admission/node-agent.yaml");
    let text = std::fs::read_to_string(path).unwrap();
    let list = text.split_once("name: theirs").and_then(|(_, rest)| rest.split_once(']')).unwrap().0;
    let named: Vec<&str> = list.split('"').skip(1).step_by(2).collect();
    let is_on_nodes = |row: &&Row| row.on != On::NodeIPPool && row.writer == Writer::Operator;
    let there_are: Vec<&str> = TYPES.iter().filter(is_on_nodes).map(|row| row.name).collect();
    assert_eq!(named, there_are);
}

/// So many blocks of commands may have a reason why no test runs them. Each is a command that nobody has
/// tried here, so this number only ever goes down, unless a page is about something that needs Azure itself.
const NOT_RUN: usize = 29;

#[test]
fn every_block_of_commands_is_run_by_a_test_or_names_a_reason() {
    let tests = Tests::of_the_project();
    let all = snippets::all().unwrap_or_else(|error| panic!("{error:#}"));
    let mut reasons = vec![];
    for snippet in &all {
        match &snippet.fate {
            Fate::Run(group) => {
                let by = GROUPS.iter().find(|(name, _)| name == group).map(|(_, test)| *test);
                let by = by.unwrap_or_else(|| panic!("{}: no test runs the group {group}", snippet.place));
                assert!(tests.has(by), "{}: there is no test {by}", snippet.place);
            }
            Fate::NotRun(reason) => reasons.push(format!("{}: {reason}", snippet.place)),
        }
    }
    println!("{} of {} blocks are not run:\n{}", reasons.len(), all.len(), reasons.join("\n"));
    assert!(reasons.len() <= NOT_RUN, "{} blocks are not run, and {NOT_RUN} at most may be", reasons.len());
    for (group, _) in GROUPS {
        assert!(snippets::of(group).is_ok(), "no block is of the group {group}");
    }
}

/// Also those that no test runs: a slip of the pen needs no Azure to be found.
#[test]
fn every_block_of_commands_is_understood_by_its_shell() {
    for snippet in snippets::all().unwrap() {
        let parsed = Command::new(&snippet.shell).args(["-n", "-c", &snippet.script]).output().unwrap();
        let objection = String::from_utf8_lossy(&parsed.stderr).into_owned();
        assert!(parsed.status.success() && objection.is_empty(), "{}: {objection}", snippet.place);
    }
}

#[test]
fn every_generated_page_is_current() {
    for (path, page) in reference::pages().unwrap() {
        let committed = std::fs::read_to_string(root().join(path)).unwrap_or_default();
        assert!(committed == page, "{path} is not current: run `make manifests` and commit what it writes");
    }
}

#[test]
fn every_alert_and_panel_asks_for_served_metrics() {
    let served = reference::metrics::expositions().unwrap();
    let expressions = monitoring::expressions().unwrap();
    assert!(expressions.len() > 40, "{} expressions", expressions.len());
    let mut wrong = vec![];
    for expression in &expressions {
        wrong.extend(Exposition::lacks(&served, expression));
        for selector in expression.selectors() {
            for (label, values) in &selector.labels {
                let is_known = |value: &str| match (selector.metric.as_str(), label.as_str()) {
                    ("vnetpool_operator_conditions", "type") => TYPES.iter().any(|row| row.name == value),
                    ("vnetpool_operator_conditions", "reason") => Reason::of(value).is_some(),
                    ("vnetpool_operator_conditions", "kind") => {
                        ["NodeIPPool", "NodeIPAllocation"].contains(&value)
                    }
                    _ => true,
                };
                let unknown = values.split('|').filter(|value| !is_known(value));
                wrong.extend(unknown.map(|value| format!("{}: no {label} is {value}", expression.place)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A label with a value for each node or pod would make thousands of series in a large cluster.
#[test]
fn no_label_of_the_operators_metrics_has_more_values_where_there_are_more_nodes() {
    let bounded = [
        "controller",
        "kind",
        "limit",
        "outcome",
        "pool",
        "priority",
        "reason",
        "region",
        "state",
        "status",
        "subnet",
        "subscription",
        "type",
        "version",
    ];
    let [operator, _] = reference::metrics::expositions().unwrap();
    let labels = |family: &monitoring::Family| family.labels.clone().into_iter();
    let wrong: Vec<_> = operator
        .families
        .iter()
        .flat_map(labels)
        .filter(|label| !bounded.contains(&label.as_str()))
        .collect();
    assert!(wrong.is_empty() && operator.families.len() > 20, "{wrong:?}");
}

#[test]
fn every_alert_has_a_runbook_and_tests_that_it_fires_and_that_it_does_not() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let (runbooks, tests) = (read("docs/runbooks.md"), read("tests/monitoring/alerts.yaml"));
    let tests: serde_json::Value = serde_yaml_ng::from_str(&tests).unwrap();
    let cases: Vec<_> = tests["tests"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|group| group["alert_rule_test"].as_array().unwrap())
        .collect();
    let alerts = monitoring::alerts().unwrap();
    assert!(alerts.len() >= 12, "{} alerts", alerts.len());
    for alert in &alerts {
        let name = alert["alert"].as_str().unwrap();
        let fires =
            |case: &&&serde_json::Value| case["exp_alerts"].as_array().is_some_and(|all| !all.is_empty());
        let (yes, no): (Vec<&&serde_json::Value>, Vec<&&serde_json::Value>) =
            cases.iter().filter(|case| case["alertname"] == name).partition(fires);
        assert!(!yes.is_empty() && !no.is_empty(), "{name} isn't shown to fire, or not to fire");
        let section = runbooks.split("\n## ").find(|section| section.starts_with(&format!("{name}\n")));
        let section = section.unwrap_or_else(|| panic!("docs/runbooks.md has no section {name}"));
        for part in ["**Meaning.**", "**Impact.**", "**Diagnosis.**", "**Mitigation.**"] {
            assert!(section.contains(part), "{name}: the runbook has no {part}");
        }
    }
    let sections = runbooks.matches("\n## ").count();
    assert_eq!(sections, alerts.len(), "a runbook is of no alert");
}

/// `make pictures` makes them anew.
#[test]
fn the_pictures_show_every_panel_and_the_transcript_has_every_step_of_the_demo() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap_or_default();
    let mut missing = vec![];
    let mut panels = 0;
    for (name, dashboard) in monitoring::dashboards().unwrap() {
        let picture = read(&format!("docs/evidence/dashboard-{name}.svg"));
        for panel in
            dashboard["rows"].as_array().unwrap().iter().flat_map(|row| row["panels"].as_array().unwrap())
        {
            let title = panel["title"].as_str().unwrap();
            missing.extend((!picture.contains(title)).then(|| format!("the picture of {name}: {title}")));
            panels += 1;
        }
    }
    let (page, demo) = (read("docs/evidence/demo.md"), read("tests/src/bin/demo.rs"));
    let steps: Vec<_> = demo.split("step(\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    // That is only so where a person watches.
    let steps: Vec<_> = steps.into_iter().filter(|step| *step != "The cluster stays up").collect();
    missing.extend(steps.iter().filter(|step| !page.contains(*step)).map(|step| format!("the step {step}")));
    assert!(missing.is_empty() && panels > 20 && steps.len() > 8, "`make pictures` has these: {missing:#?}");
}

/// The names that people type into manifests and commands stand on one page.
#[test]
fn every_name_that_users_spell_is_in_the_reference() {
    let page = std::fs::read_to_string(root().join("docs/reference/names.md")).unwrap();
    let names = std::fs::read_to_string(root().join("crds/src/names.rs")).unwrap();
    let consts = names.lines().filter(|line| line.starts_with("pub const ")).count();
    let values =
        names.lines().filter(|line| line.contains("&str = \"")).filter_map(|line| line.split('"').nth(1));
    let missing: Vec<_> =
        values.filter(|value| value.contains(['/', '-']) && !page.contains(value)).collect();
    assert!(missing.is_empty() && consts > 8, "docs/reference/names.md lacks {missing:?}");
}

#[test]
fn a_block_of_commands_without_a_marker_is_found() {
    let marked =
        "<!-- run: read -->\n\n```sh\nls a\nls b\n```\n\n```text\nNAME  B/C\na  b\n```\n\n```text\nC\n```\n";
    let found = snippets::parse("a.md", marked).unwrap();
    assert_eq!((found[0].place.as_str(), found[0].script.as_str()), ("a.md:3", "ls a\nls b\n"));
    assert_eq!((found[0].fate.clone(), found[0].shell.as_str()), (Fate::Run("read".into()), "sh"));
    assert_eq!((found.len(), found[0].headers()), (1, vec![vec!["NAME", "B/C"]]));
    let not_run = "<!-- not run: needs Azure -->\n```bash\naz login\n```\n";
    assert_eq!(snippets::parse("a.md", not_run).unwrap()[0].fate, Fate::NotRun("needs Azure".into()));
    for (wrong, why) in [
        ("```sh\nls\n```\n", "a.md:1: neither"),
        ("<!-- run: read -->\nSomething else.\n```sh\nls\n```\n", "a.md:3: neither"),
        ("<!-- not run: -->\n```sh\nls\n```\n", "a.md:2: neither"),
        ("<!-- run: read -->\n```sh\nls\n```\n```sh\nls\n```\n", "a.md:5: neither"),
        ("```\nls\n```\n", "a.md:1: the fence names no language"),
        ("```text\nls\n", "a.md:1: the block doesn't end"),
    ] {
        let error = snippets::parse("a.md", wrong).unwrap_err().to_string();
        assert!(error.starts_with(why), "{wrong}: {error}");
    }
}

/// Shows `see` each file below a folder whose name has one of these endings, with its text.
fn visit(folder: &Path, endings: &[&str], see: &mut impl FnMut(&Path, &str)) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            visit(&path, endings, see);
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            see(&path, &std::fs::read_to_string(&path).unwrap());
        }
    }
}
