//! The pages as such: their width, their sentences, and where their links lead, in the source and on the
//! site.

use std::path::{Component, Path, PathBuf};
use vnetpool_tests::project::root;
use vnetpool_tests::{site, snippets};

use super::visit;

#[test]
fn the_readme_is_one_page() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    assert!(readme.lines().count() <= 80, "{} lines", readme.lines().count());
    let long: Vec<_> = readme.lines().filter(|line| line.chars().count() > 110).collect();
    assert!(long.is_empty(), "{long:?}");
}

#[test]
fn every_link_leads_to_a_file_of_the_project_and_a_heading_in_it() {
    let (mut found, mut wrong) = (0, vec![]);
    for document in snippets::documents().unwrap() {
        let text = std::fs::read_to_string(&document).unwrap();
        let folder = document.parent().unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() { document.clone() } else { folder.join(file) };
            let has = |text: String| text.lines().filter_map(slug).any(|slug| slug == anchor);
            if !path.exists() {
                wrong.push(format!("{}: there is no {file}", document.display()));
            } else if !anchor.is_empty() && !std::fs::read_to_string(&path).is_ok_and(has) {
                wrong.push(format!("{}: {target} leads to no heading", document.display()));
            }
            found += 1;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(found > 60, "only {found} links");
}

/// rustfmt holds the code to this width. Comments and documents it leaves alone.
const WIDTH: usize = 110;
/// A table whose cells are wider can't be read in a terminal.
const CELL: usize = 200;

/// By the endings of files' names, how a line of prose begins. On a page every line is prose.
const PROSE: [(&[&str], &[&str]); 3] = [
    (&[".md"], &[""]),
    (&[".rs", ".go", ".mod", ".c"], &["//"]),
    (&[".yaml", ".yml", ".toml", ".sh", ".awk", ".tpl", "Makefile", "Dockerfile"], &["#"]),
];

/// How a comment begins that goes on to its `*/`.
const BLOCKS: [&str; 3] = ["/*", "{{/*", "{{- /*"];

#[test]
fn no_comment_and_no_paragraph_is_wider_than_110_columns_and_no_cell_than_200_characters() {
    let mut wrong = vec![];
    for (endings, marks) in PROSE {
        let mut files = 0;
        visit(&root(), endings, &mut |path, text| {
            let name = path.strip_prefix(root()).unwrap_or(path).display().to_string();
            wrong.extend(too_wide(text, marks).iter().map(|line| format!("{name}:{line}")));
            files += 1;
        });
        assert!(files > 50, "only {files} files end with one of {endings:?}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn drawings_code_and_names_that_can_not_be_broken_may_be_wide() {
    let words = "word ".repeat(30);
    let name = "n".repeat(120);
    let wide = |text: &str, mark| too_wide(text, &[mark]).len();
    assert_eq!(wide(&format!("/// {words}\nlet code = \"{words}\";\n"), "//"), 1);
    assert_eq!(wide(&words, ""), 1);
    assert_eq!(wide(&format!("```text\n{words}\n```\n{words}\n"), ""), 1);
    assert_eq!(wide(&format!("//! left ─►    right {words}"), "//"), 0);
    assert_eq!(wide(&format!("- `{name}`"), ""), 0);
    assert_eq!(wide(&format!("| {} | {} |", "c".repeat(CELL), "c".repeat(CELL)), ""), 0);
    assert_eq!(wide(&format!("| {} | c |", "c".repeat(CELL + 1)), ""), 1);
    assert_eq!(wide(&format!("key: {words} # short\n  # {words}\n# https://{name}\n"), "#"), 1);
    assert_eq!(wide(&format!("{{{{/* short\n{words}\n{words}\nend */}}}}\n{words}\n"), "#"), 2);
}

/// The numbers of a file's lines that are wider than a reader's window. A drawing may be wider, since its
/// columns can't be wrapped. So may a string in the code: rustfmt doesn't break one, and a message in one
/// line can be found by a search.
fn too_wide(text: &str, marks: &[&str]) -> Vec<usize> {
    let is_page = marks.contains(&"");
    let (mut found, mut is_code, mut is_block) = (vec![], false, false);
    for (number, line) in (1..).zip(text.lines()) {
        let prose = line.trim_start().trim_start_matches("- ");
        is_code ^= is_page && prose.starts_with("```");
        is_block |= !is_page && BLOCKS.iter().any(|mark| prose.starts_with(mark));
        let is_wide = if is_page && prose.starts_with('|') {
            prose.split('|').any(|cell| cell.trim().chars().count() > CELL)
        } else {
            let is_prose = !is_code && marks.iter().any(|mark| prose.starts_with(mark)) || is_block;
            let words = prose.trim_start_matches(['/', '!', '#']).trim();
            let can_be_broken = words.contains(' ') && !prose.contains("   ");
            is_prose && can_be_broken && line.chars().count() > WIDTH
        };
        is_block &= !prose.contains("*/");
        found.extend(is_wide.then_some(number));
    }
    found
}

/// The anchor of a heading in a link.
fn slug(line: &str) -> Option<String> {
    let (marks, title) = line.split_once(' ').filter(|(marks, _)| marks.starts_with('#'))?;
    let is_heading = marks.chars().all(|mark| mark == '#');
    let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    is_heading.then(|| kept.collect::<String>().to_lowercase().replace(' ', "-"))
}

/// What the summary lists, as paths below the project's root.
fn listed() -> Vec<String> {
    let summary = std::fs::read_to_string(root().join("docs/SUMMARY.md")).unwrap();
    let targets = summary.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.map(|target| normal(&Path::new("docs").join(target))).collect()
}

/// A path below the root, without `..`.
fn normal(path: &Path) -> String {
    let mut parts = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => assert!(parts.pop(), "{} leads out of the project", path.display()),
            part => parts.push(part),
        }
    }
    parts.display().to_string()
}

#[test]
fn the_summary_of_the_book_has_every_page_once() {
    let listed = listed();
    let mut wrong = vec![];
    let pages = snippets::documents().unwrap();
    let pages = pages.iter().filter_map(|page| page.strip_prefix(root()).ok()?.to_str());
    for page in pages.chain(["CHANGELOG.md"]).filter(|page| *page != "docs/SUMMARY.md") {
        let times = listed.iter().filter(|one| *one == page).count();
        wrong.extend((times != 1).then(|| format!("{page} is listed {times} times")));
    }
    assert!(wrong.is_empty() && listed.len() > 30, "{}", wrong.join("\n"));
}

/// mdBook renders what the summary lists, and copies other files of the folders and files in the Makefile's
/// list. Anything else that a page links to is a dead link on the site.
#[test]
fn no_page_of_the_book_links_to_a_file_that_the_site_lacks() {
    let makefile = std::fs::read_to_string(root().join("Makefile")).unwrap();
    let parts = makefile.lines().find_map(|line| line.strip_prefix("SITE := ")).unwrap();
    let parts: Vec<&str> = parts.split_whitespace().collect();
    let pages = listed();
    let has = |path: &str| match path.ends_with(".md") {
        true => pages.iter().any(|page| page == path),
        false => root().join(path).is_file() && parts.iter().any(|part| Path::new(path).starts_with(part)),
    };
    let (mut found, mut wrong) = (0, vec![]);
    for page in &pages {
        let text = std::fs::read_to_string(root().join(page)).unwrap();
        let folder = Path::new(page).parent().unwrap();
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        for target in targets.filter(|target| !target.is_empty() && !target.contains("://")) {
            let path = normal(&folder.join(target));
            wrong.extend((!has(&path)).then(|| format!("{page}: the site has no {path}")));
            found += 1;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(found > 60, "only {found} links");
    assert!(has("examples/role.json") && !has("examples") && !has("examples/no.json") && !has("Makefile"));
}

#[test]
fn a_dead_link_of_a_site_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write(
        "a.html",
        r##"<h1 id="top">A</h1><a href="docs/b.html#there">b</a><a href="#top">up</a><a href="https://a.example/x">x</a>"##,
    );
    write(
        "docs/b.html",
        r##"<h2 id="there">B</h2><a href="../a.html">a</a><script src="../c.js?v=1"></script>"##,
    );
    write("c.js", "");
    // Its links are absolute, since the server shows it at any path.
    write("404.html", r#"<a href="/nowhere.html">x</a>"#);
    assert_eq!(site::dead_links(folder.path()).unwrap(), Vec::<String>::new());
    write("docs/b.html", r##"<a href="../CHANGELOG.html">c</a><a href="../docs">d</a><a href="#no">n</a>"##);
    let dead = site::dead_links(folder.path()).unwrap();
    let expected = [
        "a.html: docs/b.html#there leads to no heading",
        "docs/b.html: #no leads to no heading",
        "docs/b.html: there is no ../CHANGELOG.html",
        "docs/b.html: there is no ../docs",
    ];
    assert_eq!(dead, expected);
}

/// Values of the chart, commands of ours, and metrics, wherever a page names one.
#[test]
fn every_value_command_and_metric_that_a_page_names_exists() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let [values, metrics, commands] = ["values", "metrics", "commands"].map(|page| {
        let text = read(&format!("docs/reference/{page}.md"));
        assert!(text.len() > 1000, "{page}");
        text
    });
    let is_value = |name: &str| {
        let parts = ["azure.", "defaultPool.", "image.", "monitoring.", "nodeAgent.", "operator."];
        let is_path = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '.');
        is_path && parts.iter().any(|part| name.starts_with(part)) && !name.ends_with(".json")
    };
    let (mut found, mut wrong) = (0, vec![]);
    for page in snippets::documents().unwrap() {
        let text = std::fs::read_to_string(&page).unwrap();
        for name in text.split('`').skip(1).step_by(2) {
            let name = name.split('=').next().unwrap_or_default();
            let known = if is_value(name) {
                values.contains(&format!("`{name}`")) || values.contains(&format!("`{name}."))
            } else if name.starts_with("vnetpool_") {
                let name = name.split('{').next().unwrap_or_default();
                metrics.contains(name)
                    || name.rsplit_once('_').is_some_and(|(name, _)| metrics.contains(name))
            } else if let Some(command) = name.strip_prefix("kubectl vnetpool ") {
                let command = command.split(' ').next().unwrap_or_default();
                commands.contains(&format!("## kubectl vnetpool {command}\n"))
            } else {
                continue;
            };
            wrong.extend((!known).then(|| format!("{}: there is no {name}", page.display())));
            found += 1;
        }
    }
    assert!(wrong.is_empty() && found > 100, "{found} names: {}", wrong.join("\n"));
}

/// Longer sentences are hard to follow, most of all for people who read English as a second language.
const WORDS: usize = 20;

#[test]
fn the_sentences_of_each_page_have_20_words_at_most_on_average() {
    let (mut pages, mut wrong) = (0, vec![]);
    for document in snippets::documents().unwrap() {
        let text = std::fs::read_to_string(&document).unwrap();
        let sentences = sentences(&text);
        let words: usize = sentences.iter().sum();
        if words > WORDS * sentences.len() {
            wrong.push(format!("{}: {words} words in {} sentences", document.display(), sentences.len()));
        }
        pages += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(pages > 40, "only {pages} pages");
}

#[test]
fn a_sentence_ends_at_its_point_or_with_its_paragraph() {
    let page = "# A title is none\n\nOne two. Three\nfour five: `six` e.g. seven\n\n- **Eight.** Nine\n  ten.\n- eleven\n\n| no | cell |\n\n```sh\nno code\n```\n";
    assert_eq!(sentences(page), [2, 3, 3, 1, 2, 1]);
}

/// How many words each sentence of a page has. Titles, tables and code have none.
fn sentences(page: &str) -> Vec<usize> {
    let (mut counts, mut words, mut is_code) = (vec![], vec![], false);
    for line in page.lines().map(str::trim).chain([""]) {
        let is_fence = line.starts_with("```");
        is_code ^= is_fence;
        let item = line.strip_prefix("- ").or_else(|| {
            let (number, rest) = line.split_once(". ")?;
            number.parse::<u8>().is_ok().then_some(rest)
        });
        let is_prose = !is_code && !is_fence && !line.starts_with(['|', '#']) && !line.starts_with("<!--");
        if !is_prose || line.is_empty() || item.is_some() {
            counts.extend(counted(&std::mem::take(&mut words)));
        }
        if is_prose {
            words.extend(item.unwrap_or(line).split_whitespace());
        }
    }
    counts
}

/// The words of a paragraph, by its sentences.
fn counted(words: &[&str]) -> Vec<usize> {
    let (mut counts, mut count) = (vec![], 0);
    for (index, word) in words.iter().enumerate() {
        count += 1;
        let ends = word.trim_end_matches(['*', '_', ')', '"']).ends_with(['.', '!', '?', ':']);
        let begins = |next: &&str| next.starts_with(|c: char| c.is_uppercase() || "`*[(_".contains(c));
        if words.get(index + 1).is_none_or(|next| ends && begins(next)) {
            counts.push(std::mem::take(&mut count));
        }
    }
    counts
}
