//! Tests that run themselves once more: alone, in namespaces of their own.

use std::env;
use std::process::Command;

/// The name of the test around this, as the harness has it.
macro_rules! this_test {
    () => {{
        fn here() {}
        crate::alone::test_of(std::any::type_name_of_val(&here))
    }};
}
pub(crate) use this_test;

/// The part of `crate::module::test::{{closure}}::here` that names the test.
pub fn test_of(here: &str) -> String {
    let path = here.split("::").skip(1).take_while(|part| !part.starts_with('{') && *part != "here");
    path.collect::<Vec<_>>().join("::")
}

/// A command that runs the test once more, in a user namespace and in these others. A shell runs `before`
/// there first.
pub fn again(test: &str, namespaces: &[&str], before: &str) -> Command {
    let mut again = Command::new("unshare");
    again.args(["--user", "--map-root-user"]).args(namespaces).args(["sh", "-c"]);
    again.arg(format!("{before} && exec \"$0\" \"$@\"")).arg(env::current_exe().unwrap());
    again.args([test, "--exact", "--nocapture"]);
    again
}

/// Runs the test once more. Its output is shown if it fails, and what it measures in any case.
pub fn run(mut again: Command) {
    let ended = again.output().unwrap();
    let [stdout, stderr] = [&ended.stdout, &ended.stderr].map(|output| String::from_utf8_lossy(output));
    // Indented: whoever counts results takes none of these lines for one of the test around this.
    let indented = || format!("{stderr}\n{stdout}").replace('\n', "\n  ");
    assert!(ended.status.success() && stdout.contains("1 passed"), "\n  {}", indented());
    eprint!("{stderr}");
}

#[tokio::test]
async fn a_test_knows_its_own_name() {
    assert_eq!(this_test!(), "alone::a_test_knows_its_own_name");
}
