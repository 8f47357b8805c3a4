//! Takes ids and secrets out of what is given to others. Pure.
//!
//! An id is replaced by the same words everywhere, so that one can still see what belongs together.

use std::collections::BTreeMap;

use serde_json::Value;

/// Remembers which words stand for which id.
#[derive(Debug, Default)]
pub struct Redaction {
    words: BTreeMap<String, String>,
}

const REDACTED: &str = "REDACTED";
/// Fields, and variables, whose values are secrets, if their names have one of these in them.
const SECRET: [&str; 6] = ["secret", "password", "token", "credential", "authorization", "privatekey"];
/// After these in a resource id comes a name that tells whose it is.
const NAMED: [(&str, &str); 1] = [("/resourcegroups/", "group")];

impl Redaction {
    /// An object, in place.
    pub fn object(&mut self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.text(text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.object(item)),
            Value::Object(fields) => {
                // An environment variable is a name and a value.
                let is_secret = fields.get("name").and_then(Value::as_str).is_some_and(is_secret);
                for (name, value) in fields.iter_mut() {
                    match value {
                        Value::String(text) if is_secret_field(name) || (is_secret && name == "value") => {
                            REDACTED.clone_into(text);
                        }
                        other => self.object(other),
                    }
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// A text, such as a line of a log.
    pub fn text(&mut self, text: &str) -> String {
        let text = without_user(text);
        let text = without_tokens(&text);
        let text = self.without_names(&text);
        self.without_guids(&text)
    }

    fn word(&mut self, kind: &str, id: &str) -> String {
        let number = self.words.len() + 1;
        self.words.entry(id.to_lowercase()).or_insert_with(|| format!("{kind}-{number}")).clone()
    }

    fn without_guids(&mut self, text: &str) -> String {
        let mut rest = text;
        let mut clean = String::with_capacity(text.len());
        while let Some(place) = (0..rest.len()).find(|&place| is_guid(&rest.as_bytes()[place..])) {
            let (before, after) = rest.split_at(place);
            let (guid, after) = after.split_at(GUID);
            clean += before;
            clean += &self.word("id", guid);
            rest = after;
        }
        clean + rest
    }

    fn without_names(&mut self, text: &str) -> String {
        let mut clean = text.to_owned();
        for (marker, kind) in NAMED {
            let mut from = 0;
            while let Some(found) = clean[from..].to_ascii_lowercase().find(marker) {
                let start = from + found + marker.len();
                let length = clean[start..].find(|c: char| !is_of_name(c)).unwrap_or(clean.len() - start);
                let word = self.word(kind, &clean[start..start + length]);
                clean.replace_range(start..start + length, &word);
                from = start + word.len();
            }
        }
        clean
    }
}

const GUID: usize = 36;

/// Whether the bytes begin with 8-4-4-4-12 hexadecimal digits.
fn is_guid(bytes: &[u8]) -> bool {
    bytes.get(..GUID).is_some_and(|guid| {
        guid.iter().enumerate().all(|(place, byte)| match place {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
    })
}

fn is_of_name(c: char) -> bool {
    c.is_alphanumeric() || "-_.()".contains(c)
}

fn is_secret(name: &str) -> bool {
    let name = name.to_lowercase();
    SECRET.iter().any(|word| name.contains(word))
}

/// Names of files and objects that hold secrets are none themselves.
fn is_secret_field(name: &str) -> bool {
    is_secret(name) && !["name", "path", "file", "key"].iter().any(|end| name.to_lowercase().ends_with(end))
}

/// Signed tokens: three parts in base64, of which the first begins like JSON.
fn without_tokens(text: &str) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "-_.=".contains(c);
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(place) = rest.find("eyJ") {
        let (before, after) = rest.split_at(place);
        let length = after.find(|c| !is_part(c)).unwrap_or(after.len());
        let (word, after) = after.split_at(length);
        clean += before;
        clean += if word.matches('.').count() >= 2 { REDACTED } else { word };
        rest = after;
    }
    clean + rest
}

/// The user and password of a URL.
fn without_user(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(place) = rest.find("://") {
        let (before, after) = rest.split_at(place + 3);
        clean += before;
        let host = after.find(|c: char| c == '/' || c == '"' || c.is_whitespace()).unwrap_or(after.len());
        rest = match after[..host].rfind('@') {
            Some(at) => {
                clean += REDACTED;
                &after[at..]
            }
            None => after,
        };
    }
    clean + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ONE: &str = "0f1e2d3c-0000-4000-8000-00000000000a";

    #[test]
    fn an_id_is_replaced_by_the_same_words_everywhere() {
        let mut redaction = Redaction::default();
        let id = format!("/subscriptions/{ONE}/resourceGroups/acme-prod/providers/x");
        let first = redaction.text(&format!("reads {id} now"));
        assert_eq!(first, "reads /subscriptions/id-2/resourceGroups/group-1/providers/x now");
        let upper = redaction.text(&id.to_uppercase());
        assert_eq!(upper, "/SUBSCRIPTIONS/id-2/RESOURCEGROUPS/group-1/PROVIDERS/X");
        assert_eq!(redaction.text("10.240.0.5 and vnp-1f"), "10.240.0.5 and vnp-1f");
    }

    #[test]
    fn tokens_and_passwords_are_gone() {
        let mut redaction = Redaction::default();
        assert_eq!(redaction.text("Bearer eyJhbGci.eyJzdWIi.c2ln-_ end"), "Bearer REDACTED end");
        assert_eq!(
            redaction.text("via http://joe:pw@proxy:3128/ then"),
            "via http://REDACTED@proxy:3128/ then"
        );
        assert_eq!(redaction.text("eyJ is no token"), "eyJ is no token");
    }

    #[test]
    fn fields_and_variables_with_secrets_lose_their_values() {
        let mut object = json!({
            "clientSecret": "s3cret", "secretName": "azure", "token": ["eyJh.eyJh.x"],
            "env": [{"name": "AZURE_CLIENT_SECRET", "value": "s3cret"}, {"name": "AZURE_CLIENT_ID", "value": ONE}],
        });
        Redaction::default().object(&mut object);
        let expected = json!({
            "clientSecret": "REDACTED", "secretName": "azure", "token": ["REDACTED"],
            "env": [{"name": "AZURE_CLIENT_SECRET", "value": "REDACTED"}, {"name": "AZURE_CLIENT_ID", "value": "id-1"}],
        });
        assert_eq!(object, expected);
    }
}
