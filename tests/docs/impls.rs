//! An `impl` block stands beside its type, or in a module below it, so that a type's fields and methods are
//! found in one place.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use super::words::{parsed, shipped, types_in};

#[test]
fn every_impl_block_stands_beside_its_type_or_below_it() {
    let mut types = BTreeMap::<String, BTreeSet<String>>::new();
    let mut blocks = vec![];
    shipped(&mut |path, code| {
        types_in(code.clone(), &mut |name| {
            _ = types.entry(name.to_owned()).or_default().insert(path.to_owned())
        });
        impls_in(code, &mut |name| blocks.push((path.to_owned(), name)));
    });
    let is_at_home = |(path, name): &(String, String)| {
        // A kind is made by a macro from the type of its `spec`.
        let homes = types.get(name).or_else(|| types.get(&format!("{name}Spec")));
        homes.is_some_and(|homes| homes.iter().any(|home| is_below(path, home)))
    };
    let strange: Vec<_> = blocks.iter().filter(|block| !is_at_home(block)).collect();
    assert!(strange.is_empty(), "{strange:?}");
    assert!(blocks.len() > 250, "only {} blocks", blocks.len());
}

#[test]
fn a_block_of_a_trait_is_none_of_its_types_own() {
    let mut found = vec![];
    let code = "impl A { fn a() {} } impl<T: Fn() -> U> B<T> where T: C { fn b() { impl D {} } }
        impl<'a> E for F<'a> {} impl crate::g::G<H> {} fn i(j: impl J) -> impl K {} mod m { unsafe impl L for M {} }";
    impls_in(parsed(code), &mut |name| found.push(name));
    assert_eq!(found, ["A", "B", "D", "G"]);
    assert!(is_below("a/b/c.rs", "a/b.rs") && is_below("a/b.rs", "a/b.rs") && is_below("a/b.rs", "a/lib.rs"));
    assert!(!is_below("a/b.rs", "a/b/c.rs") && !is_below("a/bc.rs", "a/b.rs"));
}

/// Whether the module of one file is that of another one or below it.
fn is_below(path: &str, home: &str) -> bool {
    let module = home.trim_end_matches(".rs");
    let folder = module.strip_suffix("/lib").or(module.strip_suffix("/main")).unwrap_or(module);
    path == home || path.starts_with(&format!("{folder}/"))
}

/// Shows `see` the type of each block of methods of its own. A block begins where an item may: elsewhere
/// `impl` names the traits of an argument or a result.
fn impls_in(code: TokenStream, see: &mut impl FnMut(String)) {
    let (mut header, mut may_begin) = (None::<Vec<TokenTree>>, true);
    for token in code {
        let begins = matches!(&token, TokenTree::Ident(word) if may_begin && word == "impl");
        may_begin = match &token {
            TokenTree::Group(group) => group.delimiter() != Delimiter::Parenthesis,
            TokenTree::Punct(mark) => mark.as_char() == ';',
            TokenTree::Ident(word) => may_begin && word == "unsafe",
            TokenTree::Literal(_) => false,
        };
        match token {
            _ if begins => header = Some(vec![]),
            TokenTree::Group(group) => {
                if group.delimiter() == Delimiter::Brace
                    && let Some(name) = header.take().and_then(|header| subject(&header))
                {
                    see(name);
                }
                impls_in(group.stream(), see);
            }
            token => header.iter_mut().for_each(|header| header.push(token.clone())),
        }
    }
}

/// The type of a block with this header; `None`: the block is of a trait.
fn subject(header: &[TokenTree]) -> Option<String> {
    let (mut depth, mut name, mut last) = (0, None, ' ');
    for token in header {
        match token {
            TokenTree::Punct(mark) => {
                match mark.as_char() {
                    '<' => depth += 1,
                    '>' if last != '-' => depth -= 1,
                    _ => {}
                }
                last = mark.as_char();
            }
            TokenTree::Ident(word) if depth == 0 && word == "where" => break,
            TokenTree::Ident(word) if depth == 0 && word == "for" => return None,
            TokenTree::Ident(word) if depth == 0 => name = Some(word.to_string()),
            _ => last = ' ',
        }
    }
    name
}
