//! The rules of safety, left out of the product one after the other: each time one of the tests that are
//! named for the rule has to fail. A mutation that is caught is a test that passes here; the last line is the
//! share. A build that fails or takes too long catches nothing.
//!
//! The product is compiled in an overlay (`vnetpool_tests::overlay`). The first test is the product as it is:
//! a test that fails anyway catches nothing, nor does a missing one.

mod table;

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Trial};
use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use table::{ALL, Mutation};
use vnetpool_tests::caught::failed;
use vnetpool_tests::overlay::Overlay;

/// Seconds that a build and the tests may take. Where a rule is left out a wait may never end: another of the
/// tests has to notice.
const BUILT_WITHIN: &str = "1800";
const TESTED_WITHIN: &str = "300";
/// The overlay's folder in `target`.
const FOLDER: &str = "mutations";

/// Builds a test program, which must succeed, and runs these tests of it: whether they have all passed, and
/// their output.
fn run(overlay: &Overlay, program: &str, tests: &[&str]) -> Result<(bool, String)> {
    let cargo = |within: &str, arguments: &[&str]| {
        overlay.run(within, &[&["cargo", "test", "--workspace"], arguments].concat())
    };
    let (is_built, printed) = cargo(BUILT_WITHIN, &["--no-run", program])?;
    ensure!(is_built, "it doesn't compile: {printed}");
    cargo(TESTED_WITHIN, &[&["--no-fail-fast", program, "--"], tests].concat())
}

/// The product as it is passes the tests of all mutations, and there are such tests.
fn is_sound() -> Result<()> {
    let overlay = Overlay::new(FOLDER)?;
    let mut programs: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for Mutation { program, tests, .. } in ALL {
        programs.entry(program).or_default().extend(*tests);
    }
    for (program, tests) in programs {
        let tests: Vec<&str> = tests.into_iter().collect();
        let (is_green, printed) = run(&overlay, program, &tests)?;
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
    let overlay = Overlay::new(FOLDER)?;
    overlay.edit(&[mutation.edit()])?;
    let (_, printed) = run(&overlay, program, tests)?;
    let test = failed(&printed, tests);
    let test = test.with_context(|| format!("none of {tests:?} fails where {file} has `{to}`: {printed}"))?;
    println!("{}: noticed by {test}", mutation.rule);
    Ok(())
}

fn main() -> ExitCode {
    // They share the folder of the overlay.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    // Indented: whoever counts results takes no line of the tests in here for one of these.
    let outcome =
        |result: Result<()>| result.map_err(|error| format!("{error:#}").replace('\n', "\n  ").into());
    let sound = Trial::test("the_tests_pass_where_no_rule_is_left_out", move || outcome(is_sound()));
    let caught = ALL.iter().map(|one| Trial::test(one.rule, move || outcome(is_caught(one))));
    let conclusion = libtest_mimic::run(&arguments, std::iter::once(sound).chain(caught).collect());
    println!("{} caught, {} not", conclusion.num_passed, conclusion.num_failed);
    conclusion.exit_code()
}
