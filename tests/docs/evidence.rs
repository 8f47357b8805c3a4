//! The lists of `docs/evidence` name tests as their proof, and places in the code on which these depend: all
//! of them must exist.

use super::tests::Tests;
use super::{SOURCES, visit};
use vnetpool_tests::project::root;

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
