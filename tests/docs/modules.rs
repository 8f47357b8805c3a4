//! How modules depend on each other, in the product and in the tests: as a tree does, so that each can be
//! read with what it imports and nothing else.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, OnceLock};

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use vnetpool_tests::project::root;

use super::visit;

#[test]
fn no_module_imports_itself_by_way_of_others() {
    let found = CRATES.iter().flat_map(|(name, modules)| named(name, &modules.files()));
    let found: Vec<String> = found.collect();
    assert!(found.is_empty(), "modules in circles, each the shortest:\n{}", found.join("\n"));
    let count: usize = CRATES.values().map(|modules| modules.paths.len()).sum();
    assert!(CRATES.len() >= 30 && count > 500, "only {count} modules of {} crates", CRATES.len());
}

/// The rooms of a folder are its files, each with the folder of its name.
#[test]
fn no_room_of_a_folder_imports_itself_by_way_of_others() {
    let (mut count, mut found) = (0, vec![]);
    for (name, modules) in CRATES.iter() {
        for folder in modules.folders() {
            let rooms = modules.rooms(&folder);
            count += usize::from(rooms.len() > 1);
            found.extend(named(name, &rooms));
        }
    }
    assert!(found.is_empty(), "rooms in circles, each the shortest:\n{}", found.join("\n"));
    assert!(count > 30, "only {count} folders with rooms that import each other");
}

/// A decision needs neither Azure's documents nor the cluster.
#[test]
fn the_planner_imports_only_what_addresses_and_resources_are() {
    let rooms = CRATES["operator/src"].rooms(&vec![]);
    let imports = |room: &str| -> Vec<String> {
        let found = rooms.get(&vec![room.to_owned()]);
        found.into_iter().flatten().map(|names| names.join("::")).collect()
    };
    assert_eq!(imports("planner"), ["ip_configuration", "priority", "resource_id"]);
    assert_eq!(
        ["ip_configuration", "priority", "resource_id"].map(imports),
        [vec!["resource_id"], vec![], vec![]]
    );
}

/// A fault of the product would hide itself if it were sought with the product's own lines.
#[test]
fn the_auditor_imports_no_crate_of_the_product_by_whatever_way() {
    let starts = [(LIBRARY, "audit"), (LIBRARY, "timeline"), ("tests/soak", "auditor")];
    let (reached, foreign) = reached(&CRATES, &starts);
    assert!(foreign.is_empty(), "{}", foreign.into_iter().collect::<Vec<_>>().join("\n"));
    for file in ["tests/src: audit::rest", "tests/src: cluster", "tests/src: workload", "tests/soak: world"] {
        assert!(reached.contains(file), "{file} isn't among {reached:?}");
    }
}

/// The folder of the tests' library.
const LIBRARY: &str = "tests/src";
/// The crates of this project that are no part of the product.
const NOT_SHIPPED: [&str; 2] = ["vnetpool_tests", "vnetpool_azure_sim"];

/// The modules that these import, and what of the product any of them names. A method is found with its type:
/// that is why an `impl` block stands beside it.
fn reached(
    crates: &BTreeMap<String, Modules>,
    starts: &[(&str, &str)],
) -> (BTreeSet<String>, BTreeSet<String>) {
    let mut next: Vec<(&str, Names)> =
        starts.iter().map(|(folder, module)| (*folder, vec![(*module).to_owned()])).collect();
    let (mut reached, mut foreign) = (BTreeSet::new(), BTreeSet::new());
    while let Some((folder, module)) = next.pop() {
        let named = format!("{folder}: {}", module.join("::"));
        let modules = &crates[folder];
        assert!(modules.paths.contains_key(&module), "there is no {named}");
        if !reached.insert(named.clone()) {
            continue;
        }
        for path in &modules.paths[&module] {
            let ours = path.iter().filter(|name| name.starts_with("vnetpool_"));
            for name in ours.filter(|name| !NOT_SHIPPED.contains(&name.as_str())) {
                foreign.insert(format!("{named} has {name}"));
            }
            let is_library = path.first().is_some_and(|name| name == NOT_SHIPPED[0]);
            let to = match is_library {
                true => {
                    let path = [&["crate".to_owned()][..], &path[1..]].concat();
                    crates[LIBRARY].module(&vec![], &path).map(|module| (LIBRARY, module))
                }
                false => modules.module(&module, path).map(|module| (folder, module)),
            };
            next.extend(to);
        }
    }
    (reached, foreign)
}

#[test]
fn what_the_auditor_imports_is_found_by_every_way() {
    let found = |files: &[(&str, &str, &str)]| {
        let mut crates = BTreeMap::<String, Modules>::new();
        let all = [(LIBRARY, "lib.rs", "pub mod audit;\npub mod other;\n"), (LIBRARY, "other.rs", "")];
        for (folder, file, text) in all.iter().chain(files) {
            crates.entry((*folder).to_owned()).or_default().add(Path::new(file), text);
        }
        let start =
            if crates.contains_key("tests/soak") { ("tests/soak", "auditor") } else { (LIBRARY, "audit") };
        reached(&crates, &[start]).1.into_iter().collect::<Vec<_>>()
    };
    let audit = |text: &str| found(&[(LIBRARY, "audit.rs", text)]);
    for text in [
        "use std::fmt;\nuse vnetpool_tests::other;\nuse vnetpool_azure_sim::Draws;\n// vnetpool_crds\n",
        "#[cfg(test)]\nmod tests {\n    use vnetpool_plugin::ledger;\n}\n",
        "const A: &str = \"vnetpool_plugin\";\n",
    ] {
        assert_eq!(audit(text), [""; 0], "{text}");
    }
    for text in [
        "use vnetpool_plugin::ledger;\n",
        "fn a() {\n    use vnetpool_plugin::ledger;\n}\n",
        "fn a() -> ::vnetpool_plugin::ledger::Ledger {}\n",
        "use {std::fmt, vnetpool_plugin as plugin};\n",
        "fn a() {\n    ensure!(vnetpool_plugin::a());\n}\n",
        "pub(crate) use vnetpool_plugin::ledger;\n",
        "extern crate vnetpool_plugin;\n",
    ] {
        assert_eq!(audit(text), ["tests/src: audit has vnetpool_plugin"], "{text}");
    }
    let other = (LIBRARY, "other.rs", "pub use vnetpool_plugin::ledger;\n");
    for text in
        ["use crate::other::ledger;\n", "use super::other;\n", "fn a() {\n    crate::other::a();\n}\n"]
    {
        let found = found(&[(LIBRARY, "audit.rs", text), other]);
        assert_eq!(found, ["tests/src: other has vnetpool_plugin"], "{text}");
    }
    // A child, and what another crate or the root of one has.
    let child = (LIBRARY, "audit/rest.rs", "use vnetpool_crds::A;\n");
    let found_in_child = found(&[(LIBRARY, "audit.rs", "mod rest;\n"), child]);
    assert_eq!(found_in_child, ["tests/src: audit::rest has vnetpool_crds"]);
    let soak = |text| {
        let main = ("tests/soak", "main.rs", "mod auditor;\nuse vnetpool_crds::pool::Mode;\nstruct World;\n");
        found(&[(LIBRARY, "audit.rs", ""), other, main, ("tests/soak", "auditor.rs", text)])
    };
    assert_eq!(soak("use vnetpool_tests::audit::A;\n"), [""; 0]);
    assert_eq!(soak("use vnetpool_tests::other::A;\n"), ["tests/src: other has vnetpool_plugin"]);
    assert_eq!(soak("use crate::World;\n"), ["tests/soak:  has vnetpool_crds"]);
}

/// The modules of each crate, by the folder of its `lib.rs` or `main.rs`. A crate of one file has none.
static CRATES: LazyLock<BTreeMap<String, Modules>> = LazyLock::new(crates);

fn crates() -> BTreeMap<String, Modules> {
    let mut files: Vec<(PathBuf, String)> = vec![];
    visit(&root(), &[".rs"], &mut |path, text| {
        let is_program = path.parent().is_some_and(|folder| folder.ends_with("src/bin"));
        let path = path.strip_prefix(root()).unwrap_or(path).to_owned();
        files.extend((!is_program).then(|| (path, text.to_owned())));
    });
    let is_root = |path: &&PathBuf| path.ends_with("lib.rs") || path.ends_with("main.rs");
    let folders: BTreeSet<&Path> =
        files.iter().map(|(path, _)| path).filter(is_root).filter_map(|path| path.parent()).collect();
    let mut crates = BTreeMap::<String, Modules>::new();
    for (path, text) in &files {
        let Some(folder) = path.ancestors().find(|folder| folders.contains(folder)) else { continue };
        let file = path.strip_prefix(folder).unwrap_or(path);
        crates.entry(folder.display().to_string()).or_default().add(file, text);
    }
    crates
}

/// The circles of a crate, for a person.
fn named(crate_name: &str, imports: &Imports) -> Vec<String> {
    circles(imports).iter().map(|circle| format!("{crate_name}: {}", circle.join(" → "))).collect()
}

#[test]
fn a_circle_of_modules_is_found_by_use_and_by_path_but_not_by_a_parent_or_a_test() {
    let circles_of = |files: &[(&str, &str)]| -> [Vec<String>; 2] {
        let mut modules = Modules::default();
        files.iter().for_each(|(file, text)| modules.add(Path::new(file), text));
        let rooms = modules.folders().into_iter().flat_map(|folder| circles(&modules.rooms(&folder)));
        let found = [circles(&modules.files()), rooms.collect()];
        found.map(|all| all.iter().map(|one| one.join(" ")).collect())
    };
    let none: [Vec<String>; 2] = [vec![], vec![]];
    let lib = ("lib.rs", "mod a;\nmod b;\npub use b::c::C;\n");
    let b = ("b.rs", "pub mod c;\nuse c::C;\n");
    // A parent and its child, in both directions, aren't a circle, nor is what a test imports.
    let test = "#[cfg(test)]\nmod tests {\n    use crate::a::A;\n}\n";
    let c = format!("use super::B;\n// crate::a::A\n{test}");
    let c = ("b/c.rs", c.as_str());
    assert_eq!(circles_of(&[lib, ("a.rs", "use crate::b::{self, c::{C, D}};\n"), b, c]), none);
    // A circle of two files of different folders is one of these folders, too.
    let c = ("b/c.rs", "use super::super::a::{A, AA};\n");
    let found = circles_of(&[lib, ("a.rs", "use crate::{\n    b::{self, c::{C, D}},\n};\n"), b, c]);
    assert_eq!(found, [["a b::c a"], ["a b a"]]);
    // This one is of the folders only.
    let d = ("b/d.rs", "fn d() -> u32 {\n    crate::a::a()\n}\n");
    let found = circles_of(&[lib, ("a.rs", "use crate::b;\n"), ("b.rs", "mod d;\n"), d]);
    assert_eq!(found, [vec![], vec!["a b a".to_owned()]]);
    // Modules below the same parent.
    let found = circles_of(&[
        ("lib.rs", "mod b;\n"),
        ("b.rs", "mod c;\nmod d;\nmod e;\n#[cfg(test)]\nmod f;\n"),
        ("b/c.rs", "use super::d::D;\n"),
        ("b/d.rs", "use crate::b::e::E;\nuse super::f;\n"),
        ("b/e.rs", "use super::c;\n"),
        ("b/f.rs", "use super::d;\n"),
    ]);
    assert_eq!(found, [["b::c b::d b::e b::c"], ["b::c b::d b::e b::c"]]);
    // A room below another folder: none of its files is in a circle, and all of them together are.
    let found = circles_of(&[
        ("lib.rs", "mod b;\n"),
        ("b.rs", "mod c;\nmod d;\n"),
        ("b/c.rs", "mod e;\nmod f;\n"),
        ("b/c/e.rs", "use crate::b::d::D;\n"),
        ("b/c/f.rs", ""),
        ("b/d.rs", "use super::c::f;\n"),
    ]);
    assert_eq!(found, [vec![], vec!["b::c b::d b::c".to_owned()]]);
}

/// The names of a module below its crate's root, or of a path in its code.
type Names = Vec<String>;

/// The modules or rooms that each imports.
type Imports = BTreeMap<Names, BTreeSet<Names>>;

/// A crate's modules with the paths that each names outside of its tests.
#[derive(Default)]
struct Modules {
    paths: BTreeMap<Names, Vec<Names>>,
    /// The modules that only tests have.
    tests: BTreeSet<Names>,
    edges: OnceLock<BTreeSet<(Names, Names)>>,
}

impl Modules {
    /// Takes in a file of the crate.
    fn add(&mut self, file: &Path, text: &str) {
        let file = file.with_extension("");
        let mut module: Names = file.iter().map(|name| name.to_string_lossy().into_owned()).collect();
        module.pop_if(|name| ["lib", "main", "mod"].contains(&name.as_str()));
        let code: TokenStream = text.parse().unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let (mut paths, mut tests) = (vec![], vec![]);
        read(code, &[], &mut paths, &mut tests);
        self.tests.extend(tests.into_iter().map(|name| [module.as_slice(), &[name]].concat()));
        self.paths.entry(module).or_default().extend(paths);
    }

    /// The imports of each file.
    fn files(&self) -> Imports {
        self.imports(|module| Some(module.clone()))
    }

    /// Everything that has modules right below it; the crate's root is the empty name.
    fn folders(&self) -> BTreeSet<Names> {
        self.paths.keys().filter_map(|module| Some(module.split_last()?.1.to_vec())).collect()
    }

    /// The imports between the rooms right below a folder.
    fn rooms(&self, folder: &Names) -> Imports {
        self.imports(|module| {
            module.get(..=folder.len()).filter(|room| room.starts_with(folder)).map(Into::into)
        })
    }

    /// Each module with one that it imports. Once it is asked for, no file is added.
    fn edges(&self) -> &BTreeSet<(Names, Names)> {
        self.edges.get_or_init(|| {
            let shipped = self.paths.iter().filter(|(module, _)| self.is_shipped(module));
            let pairs = shipped.flat_map(|(from, paths)| {
                paths.iter().filter_map(|path| Some((from.clone(), self.module(from, path)?)))
            });
            pairs.collect()
        })
    }

    /// The imports between rooms, where `room` is the room of a module. Neither what is above a room nor what
    /// is below it counts: a parent is made of its children, which are made for it.
    fn imports(&self, room: impl Fn(&Names) -> Option<Names>) -> Imports {
        let mut imports = Imports::new();
        for (from, to) in self.edges() {
            if let (Some(from), Some(to)) = (room(from), room(to))
                && !from.starts_with(&to)
                && !to.starts_with(&from)
            {
                imports.entry(from).or_default().insert(to);
            }
        }
        imports
    }

    /// The module to which a path in `from` leads.
    fn module(&self, from: &Names, path: &Names) -> Option<Names> {
        let above = path.iter().take_while(|name| *name == "super").count();
        let mut names = match path.first()?.as_str() {
            "crate" => path[1..].to_vec(),
            "self" => [&from[..], &path[1..]].concat(),
            _ => [&from[..from.len().checked_sub(above)?], &path[above..]].concat(),
        };
        while !self.paths.contains_key(&names) || !self.is_shipped(&names) {
            names.pop()?;
        }
        Some(names)
    }

    fn is_shipped(&self, module: &Names) -> bool {
        !self.tests.iter().any(|test| module.starts_with(test))
    }
}

/// Reads the paths in code that stands behind `prefix::`, and the names of modules that are for tests.
fn read(code: TokenStream, prefix: &[String], paths: &mut Vec<Names>, tests: &mut Vec<String>) {
    let (mut path, mut goes_on) = (prefix.to_vec(), false);
    let mut tokens = code.into_iter().peekable();
    while let Some(token) = tokens.next() {
        if is(&token, '#') && tokens.peek().is_some_and(is_for_tests) {
            tests.extend(skip_item(&mut tokens));
            continue;
        }
        match token {
            TokenTree::Punct(_) if is(&token, ':') && tokens.peek().is_some_and(|next| is(next, ':')) => {
                tokens.next();
                goes_on = true;
                continue;
            }
            TokenTree::Ident(name) if goes_on || path.len() == prefix.len() => path.push(name.to_string()),
            TokenTree::Group(group) if goes_on => read(group.stream(), &path, paths, tests),
            other => {
                paths.push(std::mem::replace(&mut path, prefix.to_vec()));
                match other {
                    TokenTree::Ident(name) => path.push(name.to_string()),
                    TokenTree::Group(group) => read(group.stream(), &[], paths, tests),
                    _ => {}
                }
            }
        }
        goes_on = false;
    }
    paths.push(path);
}

fn is(token: &TokenTree, mark: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == mark)
}

fn is_for_tests(attribute: &TokenTree) -> bool {
    attribute.to_string().replace(' ', "") == "[cfg(test)]"
}

/// Passes over an item, to its semicolon or block. The name of the module, if it is one.
fn skip_item(tokens: &mut impl Iterator<Item = TokenTree>) -> Option<String> {
    let ends = |token: &TokenTree| {
        is(token, ';') || matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace)
    };
    let item: Vec<String> = tokens.take_while(|token| !ends(token)).map(|token| token.to_string()).collect();
    item.windows(2).find(|words| words[0] == "mod").map(|words| words[1].clone())
}

/// For every module that imports itself by way of others the shortest such way; each module in one at most.
fn circles(imports: &Imports) -> Vec<Vec<String>> {
    let mut circles: Vec<Vec<&Names>> = vec![];
    for module in imports.keys() {
        if !circles.iter().flatten().any(|known| *known == module) {
            circles.extend(way_back(module, imports));
        }
    }
    circles.into_iter().map(|circle| circle.into_iter().map(|names| names.join("::")).collect()).collect()
}

/// The shortest way on which a module comes back to itself.
fn way_back<'a>(start: &'a Names, imports: &'a Imports) -> Option<Vec<&'a Names>> {
    let mut ways = VecDeque::from([vec![start]]);
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop_front() {
        for next in way.last().and_then(|last| imports.get(*last)).into_iter().flatten() {
            let longer = [way.as_slice(), &[next]].concat();
            if next == start {
                return Some(longer);
            }
            if seen.insert(next) {
                ways.push_back(longer);
            }
        }
    }
    None
}
