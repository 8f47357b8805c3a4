//! `tests/run-all.sh` and the checks of the Makefile: nothing that fails or is left out counts as a pass.

use std::process::Command;
use vnetpool_tests::project::root;

/// The summary that `tests/run-all.sh` makes of a stage that printed this.
fn tally(printed: &str) -> Vec<String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, printed).unwrap();
    let mut awk = Command::new("awk");
    let output = awk.arg("-f").arg(root().join("tests/tally.awk")).arg(file.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_stage_is_summed_up_by_binary_with_the_names_of_skipped_tests() {
    let printed = "
     Running unittests src/lib.rs (target/x86_64-unknown-linux-gnu/debug/deps/vnetpool_operator-0123456789abcdef)
running 2 tests
test one ... ok
test two ... ignored, there are no documents
test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.50s
     Running unittests lib.rs (target/x86_64-unknown-linux-gnu/debug/deps/vnetpool_model-0123456789abcdee)
running 0 tests
test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
     Running tests/story/main.rs (target/x86_64-unknown-linux-gnu/debug/deps/story-0123456789abcdef)
running 9 tests
test result: ok. 9 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 100.20s
running 6 tests
test result: FAILED. 5 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 20.10s
";
    let expected = [
        "skip two",
        "time 2 unittests src/lib.rs of vnetpool_operator",
        "time 120 tests/story/main.rs of story",
        "count 15 1 1",
    ];
    assert_eq!(tally(printed), expected);
    assert_eq!(tally("--- PASS: TestA (0.0s)\n--- SKIP: TestB (0.0s)\n"), ["skip TestB", "count 1 0 1"]);
}

#[test]
fn a_failed_tests_own_report_is_kept_for_the_end() {
    let printed = format!(
        "failures:\n\n---- one stdout ----\nleft: 1\n---- two ----\n{}\nfailures:\n    one\n    two\n",
        ["waited"; 40].join("\n")
    );
    let summed_up = tally(&printed);
    assert_eq!(summed_up[..3], ["why ---- one stdout ----", "why left: 1", "why ---- two ----"]);
    assert_eq!(summed_up.len(), 2 + 30 + 1, "{summed_up:?}");
}

#[test]
fn each_failed_test_is_named_once_and_what_runs_in_its_report_counts_for_nothing() {
    // A test that has run itself again: what that printed is part of the report of the test around it.
    let again = "running 1 test\ntest agent::one ... FAILED\n\nfailures:\n\nfailures:\n    agent::one\n\n\
                 test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 9 filtered out; finished in 0.10s\n";
    let printed = |begun: usize, passed: usize, again: &str| {
        format!(
            "
     Running unittests src/lib.rs (target/debug/deps/vnetpool_node_agent-0123456789abcdef)

running {begun} tests
test agent::one ... FAILED

failures:

---- agent::one stdout ----
thread 'agent::one' panicked at node-agent/src/alone.rs:36:5:
{again}

failures:
    agent::one

test result: FAILED. {passed} passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s

error: test failed, to rerun pass `-p vnetpool-node-agent --lib`
     Running tests/paths/main.rs (target/debug/deps/paths-0123456789abcdef)

running 2 tests

failures:

---- beyond::two ----
dropped

---- agent::one ----
left: 1


failures:
    beyond::two
    agent::one

test result: FAILED. 0 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s
--- FAIL: TestC (0.0s)
"
        )
    };
    let indented = again.replace('\n', "\n  ");
    for (begun, passed, again) in [(10, 9, again), (10, 9, indented.as_str()), (1, 0, indented.as_str())] {
        let summed_up = tally(&printed(begun, passed, again).replace(" 1 tests", " 1 test"));
        let of = |what: &str| -> Vec<&str> {
            summed_up.iter().filter_map(|line| line.strip_prefix(what)).collect()
        };
        assert_eq!(of("failed "), ["agent::one", "beyond::two", "TestC"], "{summed_up:?}");
        assert_eq!(of("count "), [format!("{passed} 4 0")], "{summed_up:?}");
    }
}

#[test]
fn a_test_program_without_a_test_is_named() {
    let printed = "     Running tests/paths/main.rs (target/debug/deps/paths-0123456789abcdef)
running 0 tests
test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";
    assert_eq!(tally(printed), ["empty tests/paths/main.rs", "count 0 0 0"]);
    assert_eq!(
        tally("     Running tests/paths/main.rs (target/debug/deps/paths-0)\n")[0],
        "empty tests/paths/main.rs"
    );
}

/// A folder with one program of this name, and the PATH on which it comes first.
fn standing_in_for(program: &str, script: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(program);
    std::fs::write(&file, script).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    (folder, path)
}

#[test]
fn stages_that_run_beside_others_count_like_them() {
    let make = "#!/bin/sh
case $1 in
test-*)
  echo '     Running tests/one.rs (target/deps/one-0)'
  echo 'running 3 tests'
  if [ \"$1\" = \"$FAILS\" ]; then
    printf 'failures:\\n    a::b\\n    c\\n'
    echo 'test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s'
    exit 2
  fi
  echo 'test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s';;
check-clippy) echo 'a finding';;
esac
[ \"$1\" != \"$RED\" ]
";
    let (_folder, path) = standing_in_for("make", make);
    let output = |red: &str, fails: &str| {
        let mut run = Command::new(root().join("tests/run-all.sh"));
        run.arg("test").env("PATH", &path).env("RED", red).env("FAILS", fails).output().unwrap()
    };
    let last_line = |red: &str| {
        let output = output(red, "");
        let printed = String::from_utf8(output.stdout).unwrap();
        (output.status.success(), printed.lines().last().unwrap_or_default().to_owned())
    };
    // Ten checks and five stages of three tests.
    assert_eq!(last_line(""), (true, "25 passed, 0 failed, 0 skipped".into()));
    assert_eq!(last_line("check-clippy"), (false, "24 passed, 1 failed, 0 skipped".into()));
    assert_eq!(last_line("test-units"), (false, "25 passed, 1 failed, 0 skipped".into()));
    assert_eq!(last_line("test-clusters"), (false, "25 passed, 2 failed, 0 skipped".into()));
    assert_eq!(last_line("images"), (false, "14 passed, 1 failed, 0 skipped".into()));
    let clippy = "---- Clippy ----\na finding\n\nfailed: Clippy\n24 passed, 1 failed, 0 skipped\n";
    let named =
        "failed: Rust: units, model: a::b\nfailed: Rust: units, model: c\n23 passed, 2 failed, 0 skipped\n";
    for (red, fails, ends) in [("check-clippy", "", clippy), ("", "test-units", named)] {
        let printed = String::from_utf8(output(red, fails).stdout).unwrap();
        assert!(printed.ends_with(ends), "{printed}");
    }
}

#[test]
fn a_check_that_can_not_ask_cargo_fails() {
    let (_folder, path) = standing_in_for("cargo", "#!/bin/sh\necho 'no such package' >&2\nexit 101\n");
    for check in ["check-plugin-alone", "check-one-build"] {
        let output = Command::new("make").arg(check).current_dir(root()).env("PATH", &path).output().unwrap();
        assert!(!output.status.success(), "{check} passes without an answer of cargo's");
    }
}
