//! The documents as a site, as `make book` builds it.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// The page that a server shows at any path. Its links begin at the site's root, wherever that is.
const NOT_FOUND: &str = "404.html";

/// The links within a site that lead to no file, or to no heading of their page; with the page that has each.
///
/// # Errors
/// When the folder can't be read.
pub fn dead_links(site: &Path) -> Result<Vec<String>> {
    let mut pages = vec![];
    visit(site, &mut pages)?;
    pages.sort();
    let mut dead = vec![];
    for page in pages.iter().filter(|page| !page.ends_with(NOT_FOUND)) {
        let text = std::fs::read_to_string(page).with_context(|| page.display().to_string())?;
        let (name, folder) =
            (page.strip_prefix(site).unwrap_or(page).display(), page.parent().unwrap_or(site));
        let mut links: Vec<&str> = links(&text).collect();
        links.sort_unstable();
        links.dedup();
        for link in links {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let file = file.split('?').next().unwrap_or_default();
            let to = if file.is_empty() { page.clone() } else { folder.join(file) };
            if !to.is_file() {
                dead.push(format!("{name}: there is no {file}"));
            } else if !anchor.is_empty()
                && !std::fs::read_to_string(&to)?.contains(&format!("id=\"{anchor}\""))
            {
                dead.push(format!("{name}: {link} leads to no heading"));
            }
        }
    }
    Ok(dead)
}

/// The links of a page that stay on the site.
fn links(page: &str) -> impl Iterator<Item = &str> {
    let values = ["href=\"", "src=\""].into_iter().flat_map(|key| page.split(key).skip(1));
    let values = values.filter_map(|rest| rest.split('"').next());
    values.filter(|link| !link.is_empty() && !link.contains(':'))
}

fn visit(folder: &Path, pages: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            visit(&path, pages)?;
        } else if path.extension().is_some_and(|ending| ending == "html") {
            pages.push(path);
        }
    }
    Ok(())
}
