//! One word a thing: the words of `docs/glossary.md` are those of the code and of the pages, and words that
//! were given up don't come back. That a word has one meaning only a reader can see.

use std::collections::BTreeSet;

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

#[test]
fn every_word_of_the_glossary_stands_in_the_code_and_on_another_page() {
    let glossary = root().join("docs/glossary.md");
    let text = std::fs::read_to_string(&glossary).unwrap();
    let words: Vec<_> =
        text.lines().filter_map(|line| line.strip_prefix("| **")?.split("**").next()).collect();
    let distinct: BTreeSet<_> = words.iter().collect();
    assert!(words.len() > 50 && distinct.len() == words.len(), "{words:?}");
    let mut names = BTreeSet::new();
    for folder in PRODUCT {
        let mut add = |name: String| names.extend([name.to_lowercase().replace('_', "")]);
        visit(&root().join(folder), &[".rs"], &mut |_, text| names_in(text, &mut add));
    }
    let pages = snippets::documents().unwrap().into_iter().filter(|page| *page != glossary);
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
        names_in(text, &mut |name| {
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
    names_in(code, &mut |name| names.push(name));
    assert_eq!(names, ["fn", "ask", "Told", "call", "one", "said"]);
}

/// Shows `see` each name in the code. Comments and strings have none.
fn names_in(text: &str, see: &mut impl FnMut(String)) {
    fn read(code: TokenStream, see: &mut impl FnMut(String)) {
        for token in code {
            match token {
                TokenTree::Ident(name) if name != "doc" => see(name.to_string()),
                TokenTree::Group(group) => read(group.stream(), see),
                _ => {}
            }
        }
    }
    read(text.parse().unwrap_or_else(|error| panic!("{error}")), see);
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
