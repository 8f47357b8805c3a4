//! ARM's error object, in every form it comes in.

use serde_json::Value;

/// An error with the errors in its details. The code that matters is in the details more often than in the
/// outermost.
#[derive(Clone, Debug, Default)]
pub(in crate::azure) struct ArmError {
    pub(super) code: String,
    pub(super) message: String,
    /// The part of the request that the error is about.
    pub(super) target: String,
    /// The id of the policy assignment that refuses the request, if `additionalInfo` has it.
    pub(super) assignment: Option<String>,
    details: Vec<ArmError>,
}

impl ArmError {
    /// An error of which only the code is known.
    pub(in crate::azure) fn bare(code: &str) -> ArmError {
        ArmError { code: code.to_owned(), ..ArmError::default() }
    }

    /// Of a body such as `{"error": {…}}`, or one that is the error object itself, or no JSON at all.
    pub(in crate::azure) fn of_body(body: &[u8]) -> ArmError {
        let Ok(body) = serde_json::from_slice::<Value>(body) else {
            let text: String = String::from_utf8_lossy(body).chars().take(200).collect();
            return ArmError { message: text, ..ArmError::default() };
        };
        ArmError::of(body.get("error").unwrap_or(&body))
    }

    /// Providers differ in the form of `details`: a list, one object, texts, or null. Whatever can be read is
    /// kept.
    pub(in crate::azure) fn of(error: &Value) -> ArmError {
        let Value::Object(fields) = error else {
            return ArmError { message: text(error), ..ArmError::default() };
        };
        let field = |name: &str| fields.get(name).map(text).unwrap_or_default();
        let details = match fields.get("details") {
            Some(Value::Array(all)) => all.iter().map(ArmError::of).collect(),
            None | Some(Value::Null) => vec![],
            Some(one) => vec![ArmError::of(one)],
        };
        let (code, message, target) = (field("code"), field("message"), field("target"));
        let mut more = fields.get("additionalInfo").and_then(Value::as_array).into_iter().flatten();
        let assignment = more.find_map(|one| one["info"]["policyAssignmentId"].as_str()).map(str::to_owned);
        if code.is_empty() && message.is_empty() && details.is_empty() && !fields.is_empty() {
            return ArmError { message: error.to_string(), ..ArmError::default() };
        }
        ArmError { code, message, target, assignment, details }
    }

    /// The error and its details, outermost first.
    fn all(&self) -> Vec<&ArmError> {
        let mut all = vec![self];
        all.extend(self.details.iter().flat_map(|detail| detail.all()));
        all
    }

    /// The first part with one of these codes. A code that begins with `*` is the end of a code.
    pub(super) fn find(&self, codes: &[&str]) -> Option<&ArmError> {
        let is = |have: &str, code: &&str| match code.strip_prefix('*') {
            Some(end) => have.to_ascii_lowercase().ends_with(&end.to_ascii_lowercase()),
            None => have.eq_ignore_ascii_case(code),
        };
        self.all().into_iter().find(|error| codes.iter().any(|code| is(&error.code, code)))
    }

    /// The innermost code. An outer "Conflict" or "BadRequest" names nothing that a person could change.
    pub(super) fn specific_code(&self) -> &str {
        let inner = self.details.iter().map(ArmError::specific_code).find(|code| !code.is_empty());
        inner.unwrap_or(&self.code)
    }

    /// Every message there is, in words only: NRP puts the specific one into the details.
    pub(super) fn words(&self) -> String {
        let mut words: Vec<&str> = self
            .all()
            .iter()
            .map(|error| error.message.trim())
            .filter(|message| !message.is_empty())
            .collect();
        words.dedup();
        if words.is_empty() { "no message".to_owned() } else { words.join(" ") }
    }
}

/// A text as it is, any other value as JSON; empty for null.
fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_code_is_known_with_any_form_of_details() {
        let forms = [
            json!(null),
            json!([]),
            json!("words"),
            json!(["words", { "code": "Inner", "message": "m" }, 7, null]),
            json!({ "code": "Inner", "message": "m" }),
            json!([{ "code": null, "message": null, "details": "deeper" }]),
        ];
        for details in forms {
            let body = json!({ "error": { "code": "Outer", "message": "why", "details": details } });
            let error = ArmError::of_body(body.to_string().as_bytes());
            assert!(error.find(&["Outer"]).is_some() && error.words().starts_with("why"), "{body}");
            assert_eq!(error.find(&["inner"]).is_some(), body.to_string().contains("Inner"), "{body}");
        }
    }
}
