//! The record of every exchange, with bodies: tests count it, and it is validated against Azure's documents.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One request to ARM or the metadata service and its answer.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct LogEntry {
    /// Counts up from 1; `DELETE /log` doesn't reset it.
    pub seq: u64,
    /// When the request was applied: RFC 3339 with milliseconds.
    pub time: String,
    pub method: String,
    pub path: String,
    /// As sent.
    pub query: String,
    pub status: u16,
    /// The source address.
    pub caller: String,
    /// The header of that name.
    pub host: String,
    /// The header of that name.
    pub if_match: Option<String>,
    pub request: Option<Value>,
    pub response: Option<Value>,
}
