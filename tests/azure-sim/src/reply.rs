//! An answer of ARM: a status, headers and a JSON body, with constructors that word errors as Azure does.

use serde_json::{Value, json};
use std::borrow::Cow;

/// An answer, before it becomes HTTP.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(Cow<'static, str>, String)>,
    pub body: Option<Value>,
}

impl Reply {
    pub(crate) fn new(status: u16, body: Value) -> Self {
        Self { status, headers: Vec::new(), body: Some(body) }
    }

    pub(crate) fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: None }
    }

    /// An error of a resource provider.
    pub(crate) fn error(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self::new(status, json!({ "error": { "code": code, "message": message.into() } }))
    }

    /// An error of ARM's front door, which marks its own refusals and sends no counters with them.
    pub(crate) fn gateway(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self::error(status, code, message).header("x-ms-failure-cause", "gateway")
    }

    /// An error of the network resource provider (NRP), which always lists details.
    pub(crate) fn nrp(status: u16, code: &str, message: impl Into<String>, details: Value) -> Self {
        Self::new(status, json!({ "error": { "code": code, "message": message.into(), "details": details } }))
    }

    /// NRP's refusal of a request that can't be carried out.
    pub(crate) fn refusal(code: &str, message: String) -> Self {
        Self::nrp(400, code, message, json!([]))
    }

    /// The refusal of a reference to a resource that doesn't exist.
    pub(crate) fn missing(what: &str, by: &str) -> Self {
        let message = format!(
            "Resource {what} referenced by resource {by} was not found. Please make sure that the referenced resource exists, \
             and that both resources are in the same region."
        );
        let details = json!([{ "code": "NotFound", "message": format!("Resource {what} not found.") }]);
        Self::nrp(400, "InvalidResourceReference", message, details)
    }

    /// NRP's form of "later": 429 with the true code in the details.
    pub(crate) fn retryable(code: &str, message: impl Into<String>) -> Self {
        let details = json!([{ "code": code, "message": message.into() }]);
        Self::nrp(429, "RetryableError", "A retryable error occurred.", details)
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(crate) fn is_of_gateway(&self) -> bool {
        self.headers.iter().any(|(name, _)| name == "x-ms-failure-cause")
    }

    /// The `error.code` of the body, if it is an error.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        self.body.as_ref()?.pointer("/error/code")?.as_str()
    }
}
