//! One word a thing: the words of `docs/glossary.md` are those of the code and of the pages, and words that
//! were given up don't come back. A type that has such a word for its name is listed, so that the word gets
//! no second meaning unnoticed. What prose means by a word only a reader can see.

use std::collections::BTreeSet;
use std::path::PathBuf;

use proc_macro2::{TokenStream, TokenTree};
use vnetpool_tests::project::root;
use vnetpool_tests::snippets;

use super::visit;

/// The folders with the product's code.
const PRODUCT: [&str; 3] = ["crds", "operator", "node-agent"];

/// Parts of names, each with the words that have taken its place.
const GIVEN_UP: [(&str, &str); 10] = [
    ("look", "observe or inspect"),
    ("looks", "observe or inspect"),
    ("looked", "observe or inspect"),
    ("say", "report"),
    ("says", "report"),
    ("said", "report"),
    ("tell", "report or wake"),
    ("tells", "report or wake"),
    ("told", "report or wake"),
    ("porter", "gate"),
];

/// The words of the glossary that are names of types, with the files in which a type of that name means it.
const MEANT: [(&str, &[&str]); 24] = [
    // Of the VNet, of the VM's NIC, of a link.
    (
        "address",
        &[
            "operator/kubectl/src/who.rs",
            "node-agent/src/imds.rs",
            "node-agent/plugin/src/wiring/messages/objects.rs",
        ],
    ),
    ("adopt", &["crds/src/pool.rs"]),
    ("assign", &["node-agent/plugin/src/ledger.rs"]),
    ("attach", &["operator/src/planner/attachments.rs"]),
    ("budget", &["operator/src/azure/budget.rs"]),
    ("call", &["operator/src/azure/transport.rs"]),
    ("demand", &["operator/src/planner/sizing.rs"]),
    ("holder", &["crds/src/allocation.rs"]),
    ("lease", &["node-agent/plugin/src/cni/request.rs"]),
    ("ledger", &["node-agent/plugin/src/ledger.rs"]),
    ("mark", &["operator/src/planner/attachments.rs"]),
    ("outlived", &["operator/src/node/memory/outlived.rs"]),
    ("place", &["operator/src/node/takeup.rs"]),
    // Of addresses, and of what is attached to them.
    ("plan", &["operator/src/planner.rs", "operator/src/planner/attachments.rs"]),
    ("proof", &["node-agent/plugin/src/ledger/tenant.rs"]),
    ("reconcile", &["operator/src/metrics.rs"]),
    ("report", &["node-agent/src/report.rs"]),
    ("reservation", &["crds/src/inspection.rs", "node-agent/plugin/src/ledger.rs"]),
    // A pool's setting, and what becomes of it.
    ("rollout", &["crds/src/pool.rs", "operator/src/rollout.rs"]),
    ("sandbox", &["node-agent/plugin/src/sandbox.rs"]),
    ("setback", &["operator/src/node/setback.rs"]),
    ("shortage", &["operator/src/shortage.rs"]),
    ("supply", &["node-agent/plugin/src/ledger/supply.rs"]),
    ("wire", &["node-agent/plugin/src/cni/request.rs"]),
];

/// Where names may have the word "call": the modules that ask Azure, and the client of the API server, whose
/// crates name it so.
const CALLS: [&str; 6] = [
    "operator/src/azure",
    "operator/src/node/attachments",
    "operator/src/node/memory/attaching",
    "operator/src/refusals",
    "operator/src/shortage",
    "crds/apiserver/src/client",
];

#[test]
fn a_word_of_the_glossary_names_only_types_that_mean_it() {
    let words: BTreeSet<_> = words().iter().map(|word| word.to_lowercase().replace(' ', "")).collect();
    let (mut found, mut wrong) = (0, vec![]);
    let mut see = |path: &str, name: &str| {
        let word = name.to_lowercase();
        if words.contains(&word) {
            found += 1;
            let is_meant = MEANT.iter().any(|(one, files)| *one == word && files.contains(&path));
            wrong.extend((!is_meant).then(|| format!("{path}: {name} means something else in the glossary")));
        }
    };
    shipped(&mut |path, code| types_in(code, &mut |name| see(path, name)));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let listed: usize = MEANT.iter().map(|(_, files)| files.len()).sum();
    assert_eq!(found, listed, "a type is listed that isn't there");
    assert!(MEANT.iter().all(|(word, _)| words.contains(*word)), "the glossary lacks a word that is listed");
}

#[test]
fn only_azure_is_called_the_plugin_is_invoked_and_objects_are_woken() {
    let mut found = BTreeSet::new();
    shipped(&mut |path, code| {
        if !CALLS.iter().any(|place| path.starts_with(place)) {
            names_in(code, &mut |name| {
                let is_call =
                    parts(&name).any(|part| ["call", "calls", "called", "caller"].contains(&&*part));
                found.extend(is_call.then(|| format!("{path}: {name}")));
            });
        }
    });
    let found: Vec<_> = found.into_iter().collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_type_is_what_a_keyword_of_one_stands_before() {
    let mut types = vec![];
    let code = "pub struct A<T>(B<T>); mod m { enum C { D } type E = F; trait G { fn h(); } }
        fn i() { struct J; } impl K { type Target = L; } n! { type o }";
    types_in(parsed(code), &mut |name| types.push(name.to_owned()));
    assert_eq!(types, ["A", "C", "E", "G", "J"]);
}

#[test]
fn every_word_of_the_glossary_stands_in_the_code_and_on_another_page() {
    let words = words();
    let distinct: BTreeSet<_> = words.iter().collect();
    assert!(words.len() > 50 && distinct.len() == words.len(), "{words:?}");
    let mut names = BTreeSet::new();
    for folder in PRODUCT {
        let mut add = |name: String| names.extend([name.to_lowercase().replace('_', "")]);
        visit(&root().join(folder), &[".rs"], &mut |_, text| names_in(parsed(text), &mut add));
    }
    let pages = snippets::documents().unwrap().into_iter().filter(|page| *page != glossary());
    let pages: Vec<_> = pages.map(|page| std::fs::read_to_string(page).unwrap().to_lowercase()).collect();
    let pages = pages.join(" ").split_whitespace().collect::<Vec<_>>().join(" ");
    for word in words.iter().map(|word| word.to_lowercase()) {
        let name = word.replace(' ', "");
        assert!(names.iter().any(|one| one.contains(&name)), "nothing in the code has {word:?} in its name");
        assert!(pages.contains(&word), "no other page has {word:?}");
    }
}

#[test]
fn no_name_has_a_word_that_was_given_up() {
    let mut found = BTreeSet::new();
    visit(&root(), &[".rs"], &mut |path, text| {
        names_in(parsed(text), &mut |name| {
            let given_up = GIVEN_UP.iter().find(|(word, _)| parts(&name).any(|part| part == *word));
            found.extend(given_up.map(|(_, now)| format!("{}: {name}: say {now}", path.display())));
        });
    });
    let found: Vec<_> = found.into_iter().collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_name_has_the_words_of_both_ways_to_write_one() {
    let parts = |name| parts(name).collect::<Vec<_>>();
    assert_eq!(parts("is_told"), ["is", "told"]);
    assert_eq!(parts("TellNobody"), ["tell", "nobody"]);
    assert_eq!(parts("LAST_SAID"), ["last", "said"]);
    assert_eq!(parts("outlook"), ["outlook"]);
    let mut names = vec![];
    let code = "/// It says so.\nfn ask() -> Told { call(\"look\", [one.said]) } // told";
    names_in(parsed(code), &mut |name| names.push(name));
    assert_eq!(names, ["fn", "ask", "Told", "call", "one", "said"]);
}

fn glossary() -> PathBuf {
    root().join("docs/glossary.md")
}

/// The glossary's words.
fn words() -> Vec<String> {
    let text = std::fs::read_to_string(glossary()).unwrap();
    let words = text.lines().filter_map(|line| line.strip_prefix("| **")?.split("**").next());
    words.map(str::to_owned).collect()
}

/// Shows `see` the code of each file that is compiled into a program of the product, or tests it from within,
/// with its path from the project's root.
pub fn shipped(see: &mut impl FnMut(&str, TokenStream)) {
    for folder in PRODUCT {
        visit(&root().join(folder), &[".rs"], &mut |path, text| {
            let path = path.strip_prefix(root()).unwrap_or(path).display().to_string();
            if path.contains("/src/") {
                see(&path, parsed(text));
            }
        });
    }
}

pub fn parsed(text: &str) -> TokenStream {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

/// Shows `see` each name in the code. Comments and strings have none.
fn names_in(code: TokenStream, see: &mut impl FnMut(String)) {
    for token in code {
        match token {
            TokenTree::Ident(name) if name != "doc" => see(name.to_string()),
            TokenTree::Group(group) => names_in(group.stream(), see),
            _ => {}
        }
    }
}

/// Shows `see` the name of each type that the code declares, but for the one that is to be found behind a
/// pointer: that name is the standard library's.
pub fn types_in(code: TokenStream, see: &mut impl FnMut(&str)) {
    let mut names = vec![];
    names_in(code, &mut |name| names.push(name));
    for two in names.windows(2) {
        match [two[0].as_str(), two[1].as_str()] {
            ["type", "Target"] => {}
            ["struct" | "enum" | "union" | "trait" | "type", name]
                if name.starts_with(char::is_uppercase) =>
            {
                see(name);
            }
            _ => {}
        }
    }
}

/// The words of a name, in lower case.
fn parts(name: &str) -> impl Iterator<Item = String> {
    let is_constant = name.chars().all(|c| !c.is_lowercase());
    let mut words = vec![String::new()];
    for c in name.chars() {
        let begins = c == '_' || c.is_uppercase() && !is_constant;
        if begins {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut().filter(|_| c != '_') {
            word.extend(c.to_lowercase());
        }
    }
    words.into_iter().filter(|word| !word.is_empty())
}
