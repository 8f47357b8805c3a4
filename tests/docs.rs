//! The lists of `docs/evidence` name tests as their proof, and places in the code on which these depend: all
//! of them must exist.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "docs/modules.rs"]
mod modules;
#[path = "mutations/table.rs"]
mod mutations;
#[path = "docs/pages.rs"]
mod pages;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use vnetpool_crds::condition::TYPES;
use vnetpool_crds::reason::Reason;
use vnetpool_tests::cluster::root;
use vnetpool_tests::monitoring::{self, Exposition};
use vnetpool_tests::reference;
use vnetpool_tests::snippets::{self, Fate, GROUPS};

/// The endings of the names of files with tests, or of files on which tests depend.
const SOURCES: [&str; 2] = [".rs", "_test.go"];
/// The documents whose entries name tests.
const EVIDENCE: [&str; 2] = ["docs/evidence/azure.md", "docs/evidence/paths.md"];
/// The labels of an entry's points below its situation.
const LABELS: [&str; 5] = ["Conduct", "Seen", "Tests", "Switch", "Azure requires"];

#[test]
fn every_entry_of_the_evidence_names_tests_that_exist() {
    let tests = Tests::of_the_project();
    for document in EVIDENCE {
        let Ok(text) = std::fs::read_to_string(root().join(document)) else {
            panic!("{document} is missing");
        };
        let entries = entries(&text);
        assert!(entries.len() > 100, "{document} has {} entries", entries.len());
        for Entry { number, situation, points } in &entries {
            let unknown = points.iter().find(|(label, _)| !LABELS.contains(&label.as_str()));
            assert_eq!(unknown, None, "{document}:{number}");
            let named: Vec<&str> = points
                .iter()
                .flat_map(|(label, text)| match label.as_str() {
                    "Tests" => backticked(text).into_iter().filter(|name| !name.contains(' ')).collect(),
                    _ => vec![],
                })
                .collect();
            assert!(!named.is_empty(), "{document}:{number}: {situation:?} names no test");
            for name in named {
                assert!(tests.has(name), "{document}:{number}: there is no test {name}");
            }
        }
    }
}

/// They run nightly; that a change of the product has left one without its place is seen at once.
#[test]
fn every_mutation_has_its_place_in_the_product_and_its_tests() {
    let there_are = Tests::of_the_project();
    for mutation in mutations::ALL {
        let source = mutation.source().unwrap_or_else(|error| panic!("{}: {error:#}", mutation.rule));
        assert!(source.contains(mutation.to), "{}", mutation.rule);
        assert!(["--lib", "--bins"].contains(&mutation.program) || mutation.program.starts_with("--test="));
        for test in mutation.tests {
            let name = test.rsplit("::").next().unwrap_or_default();
            let is_there = there_are.tests.keys().any(|known| known.starts_with(name));
            assert!(is_there, "{}: there is no test {test}", mutation.rule);
        }
    }
}

#[test]
fn an_entry_without_an_existing_test_is_found() {
    let text = "- a\n  goes on.\n  - Seen: nothing\n    at all.\n  - Tests: `every_entry_of_the_evidence_names_tests_that_exist`\n- b\n  - Tests: `no_such`\n";
    let entries = entries(text);
    let situations: Vec<_> = entries.iter().map(|one| (one.number, one.situation.as_str())).collect();
    assert_eq!(situations, [(1, "a goes on."), (6, "b")]);
    assert_eq!(entries[0].points[0], ("Seen".to_owned(), "nothing at all.".to_owned()));
    let named: Vec<_> = entries.iter().flat_map(|one| backticked(&one.points.last().unwrap().1)).collect();
    assert_eq!(named, ["every_entry_of_the_evidence_names_tests_that_exist", "no_such"]);
    let tests = Tests::of_the_project();
    assert!(tests.has(named[0]) && !tests.has(named[1]));
    // A function that is no test doesn't count, nor does a test by the name of another place.
    assert!(!tests.has("backticked"));
    assert!(tests.has("docs::an_entry_without_an_existing_test_is_found"));
    assert!(!tests.has("story::an_entry_without_an_existing_test_is_found"));
}

#[test]
fn a_trial_is_a_name_in_a_list_of_trials_and_no_argument_elsewhere() {
    let text = "fn listed() {}\nasync fn second(world: &World) {}\nfn argument() {}\nfn single() {}
        const TESTS: &[Test] = crate::tests![listed, part::second];
        call(
            argument,
        );
        let all = chapters![
            World::make;
            part::single,
        ];
        trial(\"alone\", |folder| run(folder)),
";
    let mut tests = Tests::default();
    tests.read(Path::new("tests/some/part.rs"), text);
    tests.settle();
    for name in ["listed", "second", "part::second", "single", "some::part::single", "alone"] {
        assert!(tests.has(name), "{name}");
    }
    for name in ["argument", "other::second", "make"] {
        assert!(!tests.has(name), "{name}");
    }
}

#[test]
fn every_place_in_the_code_that_the_evidence_names_is_there() {
    let mut sources = vec![];
    // Comments don't count: they may go on naming a place that has gone.
    let code = |text: &str| {
        let lines = text.lines().map(|line| line.split("//").next().unwrap_or(line));
        lines.collect::<Vec<_>>().join("\n")
    };
    visit(&root(), &SOURCES, &mut |path, text| sources.push((path.to_owned(), code(text))));
    let has = |place: &Place| {
        let mut texts = sources.iter().filter(|(path, _)| path.ends_with(place.file)).map(|(_, text)| text);
        texts.any(|text| place.words().all(|word| words(text).any(|one| one == word)))
    };
    let (mut found, mut missing) = (0, vec![]);
    for document in EVIDENCE {
        let text = std::fs::read_to_string(root().join(document)).unwrap();
        for Entry { number, points, .. } in entries(&text) {
            let switches = points.iter().filter(|(label, _)| label == "Switch");
            for place in switches.flat_map(|(_, text)| places(text)) {
                if !has(&place) {
                    missing.push(format!("{document}:{number}: there is no {place:?}"));
                }
                found += 1;
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    assert!(found > 100, "{found} places in the code are named");
    for nowhere in
        ["`words` in `docs.go.rs`", "`no such` in `crds/src/names.rs`", "`crds/src/names.rs::cats`"]
    {
        assert!(places(nowhere).iter().any(|place| !has(place)), "{nowhere}");
    }
}

#[test]
fn a_place_in_the_code_is_a_file_and_the_names_in_it() {
    let cell = "`no`; each `a.b` and `c` in `one/two.rs::d`, or `e`, `f` in `g.rs`; in `h.rs`";
    let found: Vec<_> = places(cell).into_iter().map(|place| (place.file, place.names)).collect();
    assert_eq!(found, [("one/two.rs", vec!["a.b", "c", "d"]), ("g.rs", vec!["e", "f"]), ("h.rs", vec![])]);
}

/// So many blocks of commands may have a reason why no test runs them. Each is a command that nobody has
/// tried here, so this number only ever goes down, unless a page is about something that needs Azure itself.
const NOT_RUN: usize = 34;

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
        "<!-- run: look -->\n\n```sh\nls a\nls b\n```\n\n```text\nNAME  B/C\na  b\n```\n\n```text\nC\n```\n";
    let found = snippets::parse("a.md", marked).unwrap();
    assert_eq!((found[0].place.as_str(), found[0].script.as_str()), ("a.md:3", "ls a\nls b\n"));
    assert_eq!((found[0].fate.clone(), found[0].shell.as_str()), (Fate::Run("look".into()), "sh"));
    assert_eq!((found.len(), found[0].headers()), (1, vec![vec!["NAME", "B/C"]]));
    let not_run = "<!-- not run: needs Azure -->\n```bash\naz login\n```\n";
    assert_eq!(snippets::parse("a.md", not_run).unwrap()[0].fate, Fate::NotRun("needs Azure".into()));
    for (wrong, why) in [
        ("```sh\nls\n```\n", "a.md:1: neither"),
        ("<!-- run: look -->\nSomething else.\n```sh\nls\n```\n", "a.md:3: neither"),
        ("<!-- not run: -->\n```sh\nls\n```\n", "a.md:2: neither"),
        ("<!-- run: look -->\n```sh\nls\n```\n```sh\nls\n```\n", "a.md:5: neither"),
        ("```\nls\n```\n", "a.md:1: the fence names no language"),
        ("```text\nls\n", "a.md:1: the block doesn't end"),
    ] {
        let error = snippets::parse("a.md", wrong).unwrap_err().to_string();
        assert!(error.starts_with(why), "{wrong}: {error}");
    }
}

/// A file of ours, by the end of its path, and the names in it.
#[derive(Debug)]
struct Place<'a> {
    file: &'a str,
    names: Vec<&'a str>,
}

impl Place<'_> {
    fn words(&self) -> impl Iterator<Item = &str> {
        self.names.iter().flat_map(|name| words(name))
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// The places that a cell names: `file.rs`, `file.rs::name`, and `name` in either, or several names.
fn places(cell: &str) -> Vec<Place<'_>> {
    let (mut found, mut names) = (vec![], vec![]);
    let mut parts = cell.split('`');
    while let (Some(before), Some(named)) = (parts.next(), parts.next()) {
        let (file, inside) = named.split_once("::").unwrap_or((named, ""));
        let is_file = file.ends_with(".rs");
        if !(before == " in " && is_file || !is_file && [" and ", ", "].contains(&before)) {
            names.clear();
        }
        if is_file {
            names.extend(Some(inside).filter(|inside| !inside.is_empty()));
            found.push(Place { file, names: std::mem::take(&mut names) });
        } else {
            names.push(named);
        }
    }
    found
}

/// A situation or path, with its points.
struct Entry {
    /// The line it begins in.
    number: usize,
    situation: String,
    /// Label and text, in order.
    points: Vec<(String, String)>,
}

/// The entries of a list: `- situation`, below it `  - Label: text`, and either going on in further lines.
fn entries(text: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = vec![];
    let mut is_open = false;
    for (index, line) in text.lines().enumerate() {
        if let Some(situation) = line.strip_prefix("- ") {
            entries.push(Entry { number: index + 1, situation: situation.to_owned(), points: vec![] });
            is_open = true;
        } else if let Some((label, text)) = line.strip_prefix("  - ").and_then(|rest| rest.split_once(':')) {
            if let Some(entry) = entries.last_mut().filter(|_| is_open) {
                entry.points.push((label.to_owned(), text.trim().to_owned()));
            }
        } else if let Some(more) = line.strip_prefix("  ").filter(|_| is_open) {
            let Some(entry) = entries.last_mut() else { continue };
            let open = entry.points.last_mut().map_or(&mut entry.situation, |(_, text)| text);
            *open = format!("{open} {}", more.trim()).trim().to_owned();
        } else {
            is_open = false;
        }
    }
    // A list of the text around has no points below its own.
    entries.retain(|entry| !entry.points.is_empty());
    entries
}

/// The texts in backticks.
fn backticked(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Every test of the project by its name, with the files that have one of this name: Rust's by attribute or
/// by their place in a list of trials, Go's by their signature.
#[derive(Default)]
struct Tests {
    tests: HashMap<String, Vec<PathBuf>>,
    functions: HashMap<String, Vec<PathBuf>>,
    listed: HashSet<String>,
}

impl Tests {
    fn of_the_project() -> Self {
        let mut tests = Self::default();
        visit(&root(), &SOURCES, &mut |path, text| tests.read(path, text));
        tests.settle();
        tests
    }

    /// Whether there is a test of this name, `a_sentence`, in the place that stands before it:
    /// `module::a_sentence`.
    fn has(&self, path: &str) -> bool {
        let mut modules: Vec<&str> = path.split("::").collect();
        let name = modules.pop().unwrap_or_default();
        let is_in = |file: &PathBuf| {
            let file = file.with_extension("");
            let parts: Vec<_> = file.iter().collect();
            modules.iter().all(|module| parts.iter().any(|part| part.to_str() == Some(module)))
        };
        self.tests.get(name).is_some_and(|files| files.iter().any(is_in))
    }

    fn read(&mut self, path: &Path, text: &str) {
        let (mut is_test, mut list) = (false, None);
        for line in text.lines().map(str::trim) {
            if path.extension().is_some_and(|ending| ending == "go") {
                let test = line.strip_prefix("func ").and_then(|rest| rest.split_once("(t *testing.T)"));
                if let Some((name, _)) = test {
                    self.tests.entry(name.to_owned()).or_default().push(path.to_owned());
                }
            } else if let Some(name) = function(line) {
                let known = if is_test { &mut self.tests } else { &mut self.functions };
                known.entry(name.to_owned()).or_default().push(path.to_owned());
                is_test = false;
            } else if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                is_test = true;
            } else if let Some(name) = line.strip_prefix("trial(\"").and_then(|rest| rest.split('"').next()) {
                self.tests.entry(name.to_owned()).or_default().push(path.to_owned());
            } else {
                self.listed.extend(trials(line, &mut list).map(str::to_owned));
            }
        }
    }

    /// Functions that some list names are tests.
    fn settle(&mut self) {
        for (name, files) in std::mem::take(&mut self.functions) {
            if self.listed.contains(&name) {
                self.tests.entry(name).or_default().extend(files);
            }
        }
    }
}

/// The macros that make trials of the functions they list.
const LISTS: [&str; 6] = ["tests![", "chapters![", "part![", "trials![", "on_the_server![", "alone!["];

/// The names in a line of a list of trials, which may have begun on a line before (`list`).
fn trials<'a>(line: &'a str, list: &mut Option<()>) -> impl Iterator<Item = &'a str> {
    let begins = LISTS.iter().find_map(|list| line.split_once(list));
    let rest = begins.map(|(_, rest)| rest).or(list.map(|()| line));
    let inside = rest.map(|rest| rest.split(']').next().unwrap_or(rest));
    *list = rest.filter(|rest| !rest.contains(']')).map(drop);
    let names = inside.unwrap_or_default();
    let is_path = |text: &&str| {
        !text.is_empty()
            && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:".contains(c))
    };
    names.split(',').map(str::trim).filter(is_path).filter_map(|path| path.rsplit("::").next())
}

/// The name of the function that this line declares.
fn function(line: &str) -> Option<&str> {
    let line = line.strip_prefix("pub ").unwrap_or(line);
    let line = line.strip_prefix("async ").unwrap_or(line);
    let name = line.strip_prefix("fn ")?;
    name.split(['(', '<']).next()
}

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

/// The summary that `tests/run-all.sh` makes of a stage that printed this.
fn tally(printed: &str) -> Vec<String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, printed).unwrap();
    let mut awk = Command::new("awk");
    let output = awk.arg("-f").arg(root().join("tests/tally.awk")).arg(file.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_stage_is_summed_up_by_binary_with_the_names_of_skipped_tests() {
    let printed = "
     Running unittests src/lib.rs (target/x86_64-unknown-linux-gnu/debug/deps/vnetpool_operator-0123456789abcdef)
test one ... ok
test two ... ignored, there are no documents
test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.50s
     Running unittests src/main.rs (target/x86_64-unknown-linux-gnu/debug/deps/vnetpool_operator-0123456789abcdee)
test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
     Running tests/story/main.rs (target/x86_64-unknown-linux-gnu/debug/deps/story-0123456789abcdef)
test result: ok. 9 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 100.20s
test result: FAILED. 5 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 20.10s
";
    let expected = [
        "skip two",
        "time 2 unittests src/lib.rs of vnetpool_operator",
        "time 120 tests/story/main.rs of story",
        "count 15 1 1",
    ];
    assert_eq!(tally(printed), expected);
    assert_eq!(tally("--- PASS: TestA (0.0s)\n--- SKIP: TestB (0.0s)\n"), ["skip TestB", "count 1 0 1"]);
}

#[test]
fn a_failed_tests_own_report_is_kept_for_the_end() {
    let printed = format!(
        "failures:\n\n---- one stdout ----\nleft: 1\n---- two ----\n{}\nfailures:\n    one\n    two\n",
        ["waited"; 40].join("\n")
    );
    let summed_up = tally(&printed);
    assert_eq!(summed_up[..3], ["why ---- one stdout ----", "why left: 1", "why ---- two ----"]);
    assert_eq!(summed_up.len(), 2 + 30 + 1, "{summed_up:?}");
}

#[test]
fn a_test_program_without_a_test_is_named() {
    let printed = "     Running tests/paths/main.rs (target/debug/deps/paths-0123456789abcdef)
test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";
    assert_eq!(tally(printed), ["empty tests/paths/main.rs", "count 0 0 0"]);
    assert_eq!(
        tally("     Running tests/paths/main.rs (target/debug/deps/paths-0)\n")[0],
        "empty tests/paths/main.rs"
    );
}

/// A folder with one program of this name, and the PATH on which it comes first.
fn standing_in_for(program: &str, script: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(program);
    std::fs::write(&file, script).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    (folder, path)
}

#[test]
fn stages_that_run_beside_others_count_like_them() {
    let make = "#!/bin/sh
case $1 in
test-*)
  echo '     Running tests/one.rs (target/deps/one-0)'
  echo 'test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s';;
check-clippy) echo 'a finding';;
esac
[ \"$1\" != \"$RED\" ]
";
    let (_folder, path) = standing_in_for("make", make);
    let output = |red: &str| {
        let mut run = Command::new(root().join("tests/run-all.sh"));
        run.arg("test").env("PATH", &path).env("RED", red).output().unwrap()
    };
    let last_line = |red: &str| {
        let output = output(red);
        let printed = String::from_utf8(output.stdout).unwrap();
        (output.status.success(), printed.lines().last().unwrap_or_default().to_owned())
    };
    // Ten checks and five stages of three tests.
    assert_eq!(last_line(""), (true, "25 passed, 0 failed, 0 skipped".into()));
    assert_eq!(last_line("check-clippy"), (false, "24 passed, 1 failed, 0 skipped".into()));
    assert_eq!(last_line("test-units"), (false, "25 passed, 1 failed, 0 skipped".into()));
    assert_eq!(last_line("test-clusters"), (false, "25 passed, 2 failed, 0 skipped".into()));
    assert_eq!(last_line("images"), (false, "14 passed, 1 failed, 0 skipped".into()));
    let printed = String::from_utf8(output("check-clippy").stdout).unwrap();
    let ends = "---- Clippy ----\na finding\n\nfailed: Clippy\n24 passed, 1 failed, 0 skipped\n";
    assert!(printed.ends_with(ends), "{printed}");
}

#[test]
fn a_check_that_can_not_ask_cargo_fails() {
    let (_folder, path) = standing_in_for("cargo", "#!/bin/sh\necho 'no such package' >&2\nexit 101\n");
    for check in ["check-plugin-alone", "check-one-build"] {
        let output = Command::new("make").arg(check).current_dir(root()).env("PATH", &path).output().unwrap();
        assert!(!output.status.success(), "{check} passes without an answer of cargo's");
    }
}
