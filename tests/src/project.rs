//! Where the project's files, its built programs and those of Kubernetes are.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// The project's root folder.
pub fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

/// The folders in which programs are found: our kubectl, helm and programs first.
pub fn search_path() -> String {
    let inherited = std::env::var("PATH").unwrap_or_default();
    format!("{}:{}:{inherited}", root().join("target/cluster/bin").display(), programs().display())
}

/// Where cargo has put our programs: the folder of the one that runs, or the one above that of tests.
pub fn programs() -> PathBuf {
    let running = std::env::current_exe().unwrap_or_default();
    let folder = running.ancestors().skip(1).find(|folder| !folder.ends_with("deps"));
    folder.unwrap_or(&running).to_owned()
}

/// Where the built Kubernetes commands and the cluster tool are.
pub fn tool(name: &str) -> PathBuf {
    root().join("target/cluster/bin").join(name)
}

/// The version, such as 1.36.3, that a Go module of `tests/cluster` (empty: its own) has of another.
///
/// # Errors
/// When it has none.
pub fn pinned(module: &str, dependency: &str) -> Result<String> {
    let file = root().join("tests/cluster").join(module).join("go.mod");
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let version = text.lines().find_map(|line| {
        let rest = line.trim_start().strip_prefix("require ").unwrap_or(line.trim_start());
        rest.strip_prefix(dependency)?.strip_prefix(" v")?.split_whitespace().next()
    });
    Ok(version.with_context(|| format!("{} doesn't name {dependency}", file.display()))?.to_owned())
}
