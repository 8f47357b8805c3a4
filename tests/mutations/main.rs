//! The rules of safety, left out of the product one after the other: each time one of the tests that are
//! named for the rule has to fail. A mutation that is caught is a test that passes here; the last line is the
//! share. A build that fails or takes too long catches nothing.
//!
//! The product is compiled in an overlay of the whole folder, which only the compiler and its tests see: the
//! sources and builds stay as they are, and only the files that a mutation changes are compiled. The first
//! test is the product as it is: a test that fails anyway catches nothing, nor does a missing one. Needs
//! root, and a file system that bears an overlay.

mod table;

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Trial};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use table::{ALL, Mutation};
use vnetpool_tests::caught::failed;
use vnetpool_tests::project::root;

/// Seconds that a build and the tests may take. Where a rule is left out a wait may never end: another of the
/// tests has to notice.
const BUILT_WITHIN: &str = "1800";
const TESTED_WITHIN: &str = "300";
/// Mounts the overlay for itself alone and runs cargo in it.
const MOUNT: &str = r#"mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$1" && cd "$1" && shift 2 && exec "$@""#;

/// The difference from the product in its folder.
struct Overlay {
    dir: PathBuf,
}

impl Overlay {
    /// No test catches it yet.
    fn new() -> Result<Overlay> {
        let dir = root().join("target/mutations");
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(dir.join("upper"))?;
        fs::create_dir_all(dir.join("work"))?;
        Ok(Overlay { dir })
    }

    /// Puts a source there.
    fn put(&self, file: &str, source: &str) -> Result<()> {
        let path = self.dir.join("upper").join(file);
        fs::create_dir_all(path.parent().unwrap_or(&self.dir))?;
        fs::write(&path, source).with_context(|| path.display().to_string())
    }

    /// Builds a test program, which must succeed, and runs these tests of it: whether they have all passed,
    /// and their output.
    fn run(&self, program: &str, tests: &[&str]) -> Result<(bool, String)> {
        let (is_built, printed) = self.cargo(BUILT_WITHIN, &["--no-run", program])?;
        ensure!(is_built, "it doesn't compile: {printed}");
        self.cargo(TESTED_WITHIN, &[&["--no-fail-fast", program, "--"], tests].concat())
    }

    fn cargo(&self, within: &str, arguments: &[&str]) -> Result<(bool, String)> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", MOUNT, "sh"]).arg(root()).arg(&self.dir);
        command.args(["timeout", "--kill-after=5", within, "cargo", "test", "--workspace"]).args(arguments);
        let output = command.output()?;
        let printed =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Ok((output.status.success(), printed.concat()))
    }
}

/// The product as it is passes the tests of all mutations, and there are such tests.
fn is_sound() -> Result<()> {
    let overlay = Overlay::new()?;
    let mut programs: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for Mutation { program, tests, .. } in ALL {
        programs.entry(program).or_default().extend(*tests);
    }
    for (program, tests) in programs {
        let tests: Vec<&str> = tests.into_iter().collect();
        let (is_green, printed) = overlay.run(program, &tests)?;
        ensure!(is_green, "they fail without a mutation, too: {printed}");
        for test in tests {
            let has_run = |line: &str| line.starts_with("test ") && line.contains(test);
            ensure!(printed.lines().any(has_run), "{program} has no test {test}");
        }
    }
    Ok(())
}

/// A test notices that the rule is left out.
fn is_caught(mutation: &Mutation) -> Result<()> {
    let Mutation { file, to, program, tests, .. } = mutation;
    let overlay = Overlay::new()?;
    overlay.put(file, &mutation.source()?)?;
    let (_, printed) = overlay.run(program, tests)?;
    let test = failed(&printed, tests);
    let test = test.with_context(|| format!("none of {tests:?} fails where {file} has `{to}`: {printed}"))?;
    println!("{}: noticed by {test}", mutation.rule);
    Ok(())
}

fn main() -> ExitCode {
    // They share the folder of the overlay.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let outcome = |result: Result<()>| result.map_err(|error| format!("{error:#}").into());
    let sound = Trial::test("the_tests_pass_where_no_rule_is_left_out", move || outcome(is_sound()));
    let caught = ALL.iter().map(|one| Trial::test(one.rule, move || outcome(is_caught(one))));
    let conclusion = libtest_mimic::run(&arguments, std::iter::once(sound).chain(caught).collect());
    println!("{} caught, {} not", conclusion.num_passed, conclusion.num_failed);
    conclusion.exit_code()
}
