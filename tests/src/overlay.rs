//! The project with edits of its sources that only the commands see which are run in it: an overlay of the
//! whole folder. The sources and builds stay as they are, and only the crates that an edit changes are
//! compiled. Needs root, and a file system that bears an overlay.

use crate::project::root;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Mounts the overlay for itself alone and runs a command in it.
const MOUNT: &str = r#"mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$1" && cd "$1" && shift 2 && exec "$@""#;

/// One edit of one place in a source.
#[derive(Clone, Copy, Debug)]
pub struct Edit {
    pub file: &'static str,
    /// Stands there once.
    pub from: &'static str,
    pub to: &'static str,
}

/// The project's sources with these edits. Each is made in what those before it have left of its file.
///
/// # Errors
/// When the place of an edit isn't there once.
pub fn edited(edits: &[Edit]) -> Result<BTreeMap<&'static str, String>> {
    let mut sources: BTreeMap<&str, String> = BTreeMap::new();
    for &Edit { file, from, to } in edits {
        let source = match sources.remove(file) {
            Some(source) => source,
            None => fs::read_to_string(root().join(file)).context(file)?,
        };
        let found = source.matches(from).count();
        ensure!(found == 1, "{file} has `{from}` {found} times: write the edit anew");
        sources.insert(file, source.replace(from, to));
    }
    Ok(sources)
}

/// The difference from the project in its folder, which is removed when this is dropped: it would make
/// no other overlay compile sooner.
pub struct Overlay {
    dir: PathBuf,
}

impl Overlay {
    /// Nothing differs yet. Its folder in `target` has this name; what an earlier one has left there goes.
    ///
    /// # Errors
    /// When the folder can't be made.
    pub fn new(name: &str) -> Result<Self> {
        let dir = root().join("target").join(name);
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(dir.join("upper"))?;
        fs::create_dir_all(dir.join("work"))?;
        Ok(Self { dir })
    }

    /// Makes these edits of the project's sources; no file that is edited by two calls has both edits.
    ///
    /// # Errors
    /// As [`edited`], or when a source can't be written.
    pub fn edit(&self, edits: &[Edit]) -> Result<()> {
        for (file, source) in edited(edits)? {
            let path = self.path(file);
            fs::create_dir_all(path.parent().unwrap_or(&self.dir))?;
            fs::write(&path, source).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    /// Takes the folder from the disk. The next overlay of this name removes what is left.
    pub fn remove(&self) {
        let _ = fs::remove_dir_all(&self.dir);
    }

    /// Where a file or folder is that was edited, or that a command has made.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.dir.join("upper").join(inside)
    }

    /// Runs a command in the folder, for so many seconds at most: whether it has succeeded, and its output.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn run(&self, within: &str, command: &[&str]) -> Result<(bool, String)> {
        let mut run = Command::new("unshare");
        run.args(["--mount", "sh", "-c", MOUNT, "sh"]).arg(root()).arg(&self.dir);
        run.args(["timeout", "--kill-after=5", within]).args(command);
        // Builds of edited sources have no place outside of the overlay.
        run.env_remove("CARGO_TARGET_DIR");
        let output = run.output()?;
        let printed =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Ok((output.status.success(), printed.concat()))
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        self.remove();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn edits_of_one_file_follow_each_other_and_each_needs_its_one_place() {
        let edit = |from, to| Edit { file: "LICENSE", from, to };
        let first = edit("Version 2.0, January 2004", "Version Two");
        let sources = edited(&[first, edit("Version Two", "Version Three")]).unwrap();
        assert!(sources["LICENSE"].contains("Version Three"));
        assert!(!sources["LICENSE"].contains("Version 2.0, January 2004"));
        for missing in [edit("Version Two", ""), edit("the", "")] {
            let error = edited(&[missing]).unwrap_err().to_string();
            assert!(error.starts_with("LICENSE has `"), "{error}");
        }
    }
}
