//! Azure's words as people are shown them. It repeats a refusal with another operation's id and another wait
//! each time. Each of these would make a condition another one, and so cost a write without news.

use uuid::Uuid;

/// What an id is called that stands for one request or operation, in letters alone. An id that names a
/// lasting thing, such as a subscription or an identity, stays.
const OF_ONE_ANSWER: [&str; 8] = [
    "trackingid",
    "correlationid",
    "requestid",
    "activityid",
    "operationid",
    "traceid",
    "operation",
    "operations",
];

/// What takes the place of an id or a time.
const LEFT_OUT: &str = "…";

/// The same words without ids and times that are of one answer only.
pub fn steady(words: &str) -> String {
    without_moments(&without_waits(&without_ids(words)))
}

fn without_ids(words: &str) -> String {
    let mut steady = String::with_capacity(words.len());
    let is_of_token = |c: char| c.is_ascii_alphanumeric() || c == '-';
    for piece in words.split_inclusive(|c: char| !is_of_token(c)) {
        let token = piece.trim_end_matches(|c: char| !is_of_token(c));
        let is_left_out = Uuid::try_parse(token).is_ok() && is_of_one_answer(&steady);
        steady += if is_left_out { LEFT_OUT } else { token };
        steady += &piece[token.len()..];
    }
    steady
}

/// Whether an id after these words is. An operation's stands in parentheses after its name.
fn is_of_one_answer(before: &str) -> bool {
    let letters: String = before.chars().filter(char::is_ascii_alphabetic).collect();
    let letters = letters.to_ascii_lowercase();
    before.ends_with('(') || OF_ONE_ANSWER.iter().any(|name| letters.ends_with(name))
}

/// "The call can be retried in 14 seconds.", "try again after '5' seconds".
fn without_waits(words: &str) -> String {
    const UNIT: &str = " second";
    let mut parts = words.split(UNIT).peekable();
    let mut steady = String::with_capacity(words.len());
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            steady += part;
            break;
        }
        let unquoted = part.trim_end_matches('\'');
        let before = unquoted.trim_end_matches(|c: char| c.is_ascii_digit());
        steady += before;
        if before != unquoted {
            steady += LEFT_OUT;
        }
        steady += &part[unquoted.len()..];
        steady += UNIT;
    }
    steady
}

/// "Timestamp: 2026-05-01 10:00:00Z", "at 2026-05-01T10:00:00.123Z".
fn without_moments(words: &str) -> String {
    let mut steady = String::with_capacity(words.len());
    for word in words.split_inclusive(' ') {
        let core = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        if is_of_a_moment(core) {
            let before = steady.trim_end_matches(|c: char| c.is_ascii_digit() || "- ".contains(c)).len();
            steady.truncate(before);
            steady += if before > 0 { " " } else { "" };
            steady += &word.replacen(core, LEFT_OUT, 1);
        } else {
            steady += word;
        }
    }
    steady
}

/// Whether a word ends with a time of day, with or without a date before it.
fn is_of_a_moment(word: &str) -> bool {
    let is_number = |text: &str| text.len() == 2 && text.bytes().all(|one| one.is_ascii_digit());
    let parts: Vec<&str> = word.split(':').collect();
    let [hours, minutes, seconds] = parts[..] else { return false };
    let hours = hours.get(hours.len().saturating_sub(2)..).unwrap_or_default();
    is_number(hours) && is_number(minutes) && is_number(seconds.get(..2).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

    #[test]
    fn the_ids_and_times_of_one_answer_are_left_out_and_those_of_lasting_things_stay() {
        for (words, shown) in [
            (
                format!("Operation PutNicOperation ({ID}) is updating it."),
                "Operation PutNicOperation (…) is updating it.",
            ),
            (format!("Tracking id '{ID}'."), "Tracking id '…'."),
            (format!("CorrelationId:{ID}, request-id={ID}"), "CorrelationId:…, request-id=…"),
            (format!("see /subscriptions/s/operations/{ID}"), "see /subscriptions/s/operations/…"),
            ("The call can be retried in 14 seconds.".into(), "The call can be retried in … seconds."),
            (
                "Please try again after '5' seconds, in 1 second".into(),
                "Please try again after '…' seconds, in … second",
            ),
            (
                format!("AADSTS7: no. Trace ID: {ID} Correlation ID: {ID} Timestamp: 2026-05-01 10:00:00Z"),
                "AADSTS7: no. Trace ID: … Correlation ID: … Timestamp: …",
            ),
            ("failed at 2026-05-01T10:00:00.123Z.".into(), "failed at …."),
        ] {
            assert_eq!(steady(&words), shown);
        }
        for words in [
            format!("resource /subscriptions/{ID}/resourceGroups/g/publicIPAddresses/vnp-{ID} was not found"),
            format!("The client '{ID}' with object id '{ID}' does not have authorization"),
            format!("The subscription '{ID}' could not be found."),
            "within 5 minutes; the second of 10.240.0.9/28 at 00-0D-3A-00-00-01".into(),
            "API version '2025-05-01'; supported are '2024-03-01, 2023-11-01'".into(),
        ] {
            assert_eq!(steady(&words), words);
        }
    }

    proptest! {
        #[test]
        fn whatever_the_words_they_are_steady_after_once(words in "([a-z0-9:' ().…-]|second|operation ){0,80}") {
            let once = steady(&words);
            prop_assert_eq!(steady(&once), once);
        }
    }
}
