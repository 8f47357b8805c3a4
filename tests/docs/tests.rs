//! Which tests the project has, by the sources of all programs.

use super::{SOURCES, visit};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use vnetpool_tests::project::root;

/// Every test of the project by its name, with the files that have one of this name: Rust's by attribute or
/// by their place in a list of trials, Go's by their signature.
#[derive(Default)]
pub struct Tests {
    pub tests: HashMap<String, Vec<PathBuf>>,
    functions: HashMap<String, Vec<PathBuf>>,
    listed: HashSet<String>,
}

impl Tests {
    pub fn of_the_project() -> Self {
        let mut tests = Self::default();
        visit(&root(), &SOURCES, &mut |path, text| tests.read(path, text));
        tests.settle();
        tests
    }

    /// Whether there is a test of this name, `a_sentence`, in the place that stands before it:
    /// `module::a_sentence`.
    pub fn has(&self, path: &str) -> bool {
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
