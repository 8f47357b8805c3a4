//! The tables of `docs/` name tests as their proof, and places in the code as what these depend on: all of them must exist.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::HashSet;
use std::path::Path;
use vnetpool_tests::cluster::root;
use vnetpool_tests::snippets::{self, Fate, GROUPS};

/// The documents whose tables have a column "shown by".
const TABLES: [&str; 2] = ["docs/azure.md", "docs/paths.md"];

#[test]
fn every_row_of_the_tables_names_tests_that_exist() {
    let tests = tests();
    let mut rows = 0;
    for document in TABLES {
        let Ok(text) = std::fs::read_to_string(root().join(document)) else {
            panic!("{document} is missing");
        };
        for (number, cell) in column(&text, "shown by") {
            let named = backticked(cell);
            assert!(!named.is_empty(), "{document}:{number}: the row names no test");
            for name in named {
                assert!(tests.contains(name), "{document}:{number}: there is no test {name}");
            }
            rows += 1;
        }
    }
    assert!(rows > 0, "the documents have no table with a column \"shown by\"");
}

#[test]
fn a_row_without_an_existing_test_is_found() {
    let text = "| situation | shown by |\n|---|---|\n| a | `every_row_of_the_tables_names_tests_that_exist` |\n| b | `no_such` |\n";
    let rows: Vec<_> = column(text, "shown by").into_iter().flat_map(|(_, cell)| backticked(cell)).collect();
    assert_eq!(rows, ["every_row_of_the_tables_names_tests_that_exist", "no_such"]);
    let tests = tests();
    assert!(tests.contains(rows[0]) && !tests.contains(rows[1]));
    // A function that is no test doesn't count.
    assert!(!tests.contains("backticked"));
}

#[test]
fn every_place_in_the_code_that_the_tables_name_is_there() {
    let mut sources = vec![];
    visit(&root(), &mut |path, text| sources.push((path.to_owned(), text.to_owned())));
    let has = |place: &Place| {
        let mut texts = sources.iter().filter(|(path, _)| path.ends_with(place.file)).map(|(_, text)| text);
        texts.any(|text| place.words().all(|word| words(text).any(|one| one == word)))
    };
    let mut found = 0;
    for document in TABLES {
        let text = std::fs::read_to_string(root().join(document)).unwrap();
        for (number, cell) in column(&text, "switch") {
            for place in places(cell) {
                assert!(has(&place), "{document}:{number}: there is no {place:?}");
                found += 1;
            }
        }
    }
    assert!(found > 0, "no table names a place in the code");
    for nowhere in
        ["`words` in `docs.go.rs`", "`no such` in `crds/src/names.rs`", "`crds/src/names.rs::cats`"]
    {
        assert!(places(nowhere).iter().any(|place| !has(place)), "{nowhere}");
    }
}

#[test]
fn a_place_in_the_code_is_a_file_and_what_is_named_as_being_in_it() {
    let cell = "`no`; each `a.b` and `c` in `one/two.rs::d`, or `e`, `f` in `g.rs`; in `h.rs`";
    let found: Vec<_> = places(cell).into_iter().map(|place| (place.file, place.names)).collect();
    assert_eq!(found, [("one/two.rs", vec!["a.b", "c", "d"]), ("g.rs", vec!["e", "f"]), ("h.rs", vec![])]);
}

#[test]
fn every_block_of_commands_is_run_by_a_test_or_says_why_not() {
    let tests = tests();
    let all = snippets::all().unwrap_or_else(|error| panic!("{error:#}"));
    let mut reasons = vec![];
    for snippet in &all {
        match &snippet.fate {
            Fate::Run(group) => {
                let by = GROUPS.iter().find(|(name, _)| name == group).map(|(_, test)| *test);
                let by = by.unwrap_or_else(|| panic!("{}: no test runs the group {group}", snippet.place));
                assert!(tests.contains(by), "{}: there is no test {by}", snippet.place);
            }
            Fate::NotRun(reason) => reasons.push(format!("{}: {reason}", snippet.place)),
        }
    }
    println!("{} of {} blocks are not run:\n{}", reasons.len(), all.len(), reasons.join("\n"));
    for (group, _) in GROUPS {
        assert!(snippets::of(group).is_ok(), "no block is of the group {group}");
    }
}

#[test]
fn the_readme_is_one_page() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    assert!(readme.lines().count() <= 80, "{} lines", readme.lines().count());
    let long: Vec<_> = readme.lines().filter(|line| line.chars().count() > 110).collect();
    assert!(long.is_empty(), "{long:?}");
}

#[test]
fn every_link_to_a_file_of_the_project_leads_to_one() {
    let mut found = 0;
    for document in snippets::documents().unwrap() {
        let text = std::fs::read_to_string(&document).unwrap();
        let folder = document.parent().unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            if !target.contains("://") && !file.is_empty() {
                assert!(folder.join(file).exists(), "{}: there is no {file}", document.display());
                found += 1;
            }
        }
    }
    assert!(found > 20, "only {found} links");
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

/// A file of ours, by the end of its path, and what is in it.
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

/// Line number and cell of each row below a header that has a column of this name.
fn column<'a>(text: &'a str, name: &str) -> Vec<(usize, &'a str)> {
    let (mut column, mut found) = (None, vec![]);
    for (index, line) in text.lines().enumerate() {
        if !line.starts_with('|') {
            column = None;
            continue;
        }
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        match column {
            None => column = cells.iter().position(|cell| cell.to_lowercase().starts_with(name)),
            Some(_) if cells.iter().all(|cell| cell.starts_with("--")) => {}
            Some(column) => found.push((index + 1, cells.get(column).copied().unwrap_or_default())),
        }
    }
    found
}

/// The last part of each path in backticks.
fn backticked(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).map(|path| path.rsplit("::").next().unwrap_or(path)).collect()
}

/// The name of every test of the project: Rust's by attribute or by their place in a list of trials, Go's by their signature.
fn tests() -> HashSet<String> {
    let (mut tests, mut functions, mut listed) = <(HashSet<_>, HashSet<_>, HashSet<_>)>::default();
    visit(&root(), &mut |path, text| {
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            if path.extension().is_some_and(|ending| ending == "go") {
                let test = line.strip_prefix("func ").and_then(|rest| rest.split_once("(t *testing.T)"));
                tests.extend(test.map(|(name, _)| name.to_owned()));
            } else if let Some(name) = function(line) {
                if is_test { &mut tests } else { &mut functions }.insert(name.to_owned());
                is_test = false;
            } else if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                is_test = true;
            } else {
                listed.extend(trials(line).map(str::to_owned));
            }
        }
    });
    tests.extend(functions.intersection(&listed).cloned());
    tests
}

/// What a line of a list of trials names: nothing but paths with a comma after each, on a line or in one `tests![…]`.
fn trials(line: &str) -> impl Iterator<Item = &str> {
    let list = line.split_once("tests![").and_then(|(_, rest)| rest.split(']').next());
    let names = list.or(line.strip_suffix(',')).unwrap_or_default();
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

fn visit(folder: &Path, see: &mut impl FnMut(&Path, &str)) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            visit(&path, see);
        } else if name.ends_with(".rs") || name.ends_with("_test.go") {
            see(&path, &std::fs::read_to_string(&path).unwrap());
        }
    }
}
