//! What a guest with a kernel of its own printed, which ran a program of Rust's tests.

use anyhow::{Context, Result, ensure};

/// Fails unless this very number of tests passed there, on a kernel of this release, and all was over then.
///
/// # Errors
/// With what failed tests reported, where some did.
pub fn verdict(printed: &[String], release: &str, expected: usize) -> Result<()> {
    ensure!(expected > 0, "there is no test to run");
    let after = |words: &str| printed.iter().find_map(|line| line.strip_prefix(words));
    let booted = after("begins on Linux ").context("the guest never began")?;
    ensure!(booted.starts_with(release), "the guest booted Linux {booted} instead of {release}");
    let code = after("ended with exit code ").context("the guest stopped before the tests had ended")?;
    let reports =
        printed.iter().skip_while(|line| *line != "failures:").cloned().collect::<Vec<_>>().join("\n");
    ensure!(code == "0", "exit code {code} on Linux {booted}\n{reports}");
    let passed = after("test result: ok. ").and_then(|rest| rest.split(' ').next()).context("no result")?;
    ensure!(
        passed == expected.to_string(),
        "{passed} tests passed on Linux {booted}, and there are {expected}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a guest in which two tests passed.
    const GOOD: [&str; 6] = [
        "begins on Linux 6.1.0-57-amd64",
        "running 2 tests",
        "test names::one ... ok",
        "test names::other ... ok",
        "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out; finished in 1.50s",
        "ended with exit code 0",
    ];

    fn judged(printed: impl IntoIterator<Item = &'static str>, expected: usize) -> Result<(), String> {
        let printed = Vec::from_iter(printed.into_iter().map(str::to_owned));
        verdict(&printed, "6.1.", expected).map_err(|error| error.to_string())
    }

    #[test]
    fn tests_have_passed_in_a_guest_when_all_that_there_are_did() {
        assert_eq!(judged(GOOD, 2), Ok(()));
        assert!(judged(GOOD, 3).unwrap_err().contains("2 tests passed"));
        assert!(judged(GOOD, 0).is_err(), "none is none too few");
    }

    #[test]
    fn a_guest_that_does_not_come_to_its_end_has_passed_nothing() {
        for cut in 0..GOOD.len() {
            judged(GOOD.into_iter().take(cut), 2).unwrap_err();
        }
    }

    #[test]
    fn a_failed_test_of_a_guest_is_reported_with_what_it_printed() {
        let failed = [
            "begins on Linux 6.1.0",
            "test names::one ... FAILED",
            "failures:",
            "---- names::one",
            "ended with exit code 101",
        ];
        assert!(judged(failed, 1).unwrap_err().contains("---- names::one"));
    }

    #[test]
    fn another_kernel_than_the_one_asked_for_shows_nothing() {
        let newer = GOOD.map(|line| if line.starts_with("begins") { "begins on Linux 6.12.1" } else { line });
        assert!(judged(newer, 2).unwrap_err().contains("6.12.1"));
    }
}
