//! Whether tests have noticed that a rule was left out of the product.

/// The first of these tests that has failed, by the output of a test program. A build or a mount that fails,
/// a machine that is too slow and another test's failure have noticed nothing.
pub fn failed<'a>(printed: &str, tests: &[&'a str]) -> Option<&'a str> {
    let mut failures =
        printed.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
    failures.find_map(|failure| tests.iter().find(|test| failure.contains(**test)).copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_named_test_that_failed_has_noticed_something() {
        let tests = ["planner::tests::a_cooling_address", "an_address_is_kept"];
        for (printed, expected) in [
            ("test planner::tests::a_cooling_address_is_not_free ... FAILED\n", Some(tests[0])),
            (
                "test a ... ok\ntest pool::an_address_is_kept ... FAILED\ntest result: FAILED\n",
                Some(tests[1]),
            ),
            ("test planner::tests::a_cooling_address_is_not_free ... ok\n", None),
            ("test pool::another ... FAILED\nfailures:\n    an_address_is_kept\n", None),
            ("test pool::an_address_is_kept has been running for over 60 seconds\n", None),
            ("mount: an_address_is_kept: permission denied\n", None),
            ("", None),
        ] {
            assert_eq!(failed(printed, &tests), expected, "{printed}");
        }
    }
}
