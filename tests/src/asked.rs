//! What a run is asked for by its environment.

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde_json::json;

/// A variable of the environment, unless it isn't there or empty.
///
/// # Errors
/// When it is no text.
pub fn variable(name: &str) -> Result<Option<String>> {
    let given = std::env::var_os(name).filter(|given| !given.is_empty());
    given.map(|given| given.into_string().ok().with_context(|| format!("{name} is no text"))).transpose()
}

/// A variable that is one word of a choice; without it, the usual one.
///
/// # Errors
/// When the choice has no such word.
pub fn choice<T: DeserializeOwned + Default>(name: &str) -> Result<T> {
    let Some(given) = variable(name)? else { return Ok(T::default()) };
    serde_json::from_value(json!(given)).with_context(|| format!("{name}={given}"))
}

/// A variable that is a number; without it, the usual one.
///
/// # Errors
/// When it is no number.
pub fn number(name: &str, usual: u64) -> Result<u64> {
    let Some(given) = variable(name)? else { return Ok(usual) };
    given.parse().with_context(|| format!("{name}={given}"))
}
