//! The pages of `docs/reference` that are made from the programs themselves. `make manifests` writes them,
//! and a test of `docs` fails while one isn't current.

mod commands;
mod kinds;
pub mod metrics;
mod permissions;
mod sizing;
mod values;

use anyhow::Result;

/// Each page by its path below the project's root.
///
/// # Errors
/// When a program doesn't tell what a page is made of.
pub fn pages() -> Result<Vec<(&'static str, String)>> {
    Ok(vec![
        ("docs/reference/metrics.md", metrics::page()?),
        ("docs/reference/kinds.md", kinds::page()?),
        ("docs/reference/values.md", values::page()?),
        ("charts/vnetpool/README.md", values::readme()?),
        ("docs/reference/commands.md", commands::page()?),
        ("docs/reference/permissions.md", permissions::page()),
        ("docs/reference/sizing.md", sizing::page()),
    ])
}

/// What every such page says of itself.
fn head(title: &str, from: &str) -> String {
    format!("# {title}\n\n{}", wrapped("", "", &format!("`make manifests` makes this page from {from}.")))
}

/// The text in lines of at most 110 columns, the first behind `first` and the others behind `next`.
fn wrapped(first: &str, next: &str, text: &str) -> String {
    let (mut lines, mut line) = (String::new(), first.to_owned());
    let mut is_empty = true;
    for word in text.split_whitespace() {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > 110 {
            lines += line.trim_end();
            lines.push('\n');
            next.clone_into(&mut line);
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line += word;
        is_empty = false;
    }
    lines + line.trim_end() + "\n"
}
