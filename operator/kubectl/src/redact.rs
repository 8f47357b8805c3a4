//! Takes ids and secrets out of data that is given to others. Pure.
//!
//! An id is replaced by the same words everywhere, so that a reader can still see which ids belong together.
//! The name of a resource group is known by its context once, and is then replaced everywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::LazyLock;

use regex::{Captures, Regex};
use serde_json::Value;

/// Remembers which words stand for which id or name.
#[derive(Debug, Default)]
pub struct Redaction {
    /// By the id or name in lower case.
    words: BTreeMap<String, String>,
    /// Names of resource groups, in lower case.
    groups: BTreeSet<String>,
    /// Finds these; made of them as they are.
    named: Option<Regex>,
}

const REDACTED: &str = "REDACTED";
/// Parts of the names of secrets, however their words are joined.
const SECRET: [&str; 16] = [
    "secret",
    "password",
    "passwd",
    "passphrase",
    "token",
    "credential",
    "authorization",
    "private.key",
    "client.key",
    "account.key",
    "access.key",
    "api.key",
    "shared.key",
    "signing.key",
    "encryption.key",
    "connection.string",
];
/// The end of a name that only refers to a secret.
const PLACES: [&str; 5] = ["name", "path", "file", "ref", "expirationseconds"];
/// The parts of an object that only refers to a secret.
const REFERENCE: [&str; 12] = [
    "name",
    "namespace",
    "key",
    "optional",
    "secretName",
    "defaultMode",
    "items",
    "mode",
    "path",
    "audience",
    "expirationSeconds",
    "kind",
];
/// Fields that the API server and kubectl add: the writer of each field, and all of the object once more.
const REPEATED: [&str; 2] = ["managedFields", "kubectl.kubernetes.io/last-applied-configuration"];
/// Not secret, even if a resource group is named `vnetpool`.
const API_GROUP: &str = "vnetpool.io";
/// Labels whose value is a resource group's name: of AKS, the one with the nodes in it.
const GROUP_LABEL: &str = "kubernetes.azure.com/cluster";

impl Redaction {
    /// An object, in place. Its own names and texts are learned before any of it is replaced.
    pub fn object(&mut self, value: &mut Value) {
        drop_repeated(value);
        self.learn_of(value);
        self.clean(value);
    }

    /// A text, such as a log.
    pub fn text(&mut self, text: &str) -> String {
        self.learn(text);
        self.without(text)
    }

    /// How much is known. Once that is more, texts that were redacted before are to be redacted again.
    pub fn knows(&self) -> usize {
        self.groups.len()
    }

    fn learn_of(&mut self, value: &Value) {
        match value {
            Value::String(text) => self.learn(text),
            Value::Array(items) => items.iter().for_each(|item| self.learn_of(item)),
            Value::Object(fields) => {
                for (name, value) in fields {
                    self.learn(name);
                    match value.as_str() {
                        Some(group) if name == GROUP_LABEL || plain(name).ends_with("resourcegroup") => {
                            self.group(group)
                        }
                        _ => self.learn_of(value),
                    }
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// Takes note of the resource groups that a text names.
    fn learn(&mut self, text: &str) {
        for found in GROUP.captures_iter(text) {
            let mut name = found.get(1).map_or("", |name| name.as_str());
            // A name has no dot at its end, and a bracket may be the sentence's.
            loop {
                name = name.trim_end_matches('.');
                let is_open = name.matches(')').count() > name.matches('(').count();
                match name.strip_suffix(')').filter(|_| is_open) {
                    Some(shorter) => name = shorter,
                    None => break,
                }
            }
            self.group(name);
        }
    }

    fn group(&mut self, name: &str) {
        let name = name.to_lowercase();
        if !name.is_empty() && !self.words.values().any(|word| *word == name) && self.groups.insert(name) {
            let longest_first: BTreeSet<_> =
                self.groups.iter().map(|name| (usize::MAX - name.len(), regex::escape(name))).collect();
            let any = longest_first.into_iter().map(|(_, name)| name).collect::<Vec<_>>().join("|");
            self.named = Regex::new(&format!("(?i){any}")).ok();
        }
    }

    fn clean(&mut self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.without(text),
            Value::Array(items) => {
                let mut is_secret = false;
                for item in items {
                    let is_flag = item.as_str().is_some_and(|text| {
                        text.starts_with("--") && !text.contains('=') && is_secret_name(text)
                    });
                    if is_secret && item.is_string() {
                        *item = REDACTED.into()
                    } else {
                        self.clean(item)
                    }
                    is_secret = is_flag;
                }
            }
            Value::Object(fields) => {
                // An environment variable is a name and a value.
                let is_secret = fields.get("name").and_then(Value::as_str).is_some_and(is_secret_name);
                let all = std::mem::take(fields).into_iter().map(|(name, mut value)| {
                    match is_secret_name(&name) || (is_secret && name == "value") {
                        true if !is_harmless(&value) => value = REDACTED.into(),
                        _ => self.clean(&mut value),
                    }
                    (self.without(&name), value)
                });
                *fields = all.collect();
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn without(&mut self, text: &str) -> String {
        // JSON in a text is redacted as JSON.
        if text.starts_with(['{', '['])
            && let Ok(mut inner) = serde_json::from_str::<Value>(text)
        {
            drop_repeated(&mut inner);
            self.clean(&mut inner);
            return inner.to_string();
        }
        let redacted = |_: &Captures| Some(REDACTED.to_owned());
        let text = replaced(text, &USER, redacted);
        let text = replaced(&text, &TOKEN, redacted);
        let text = replaced(&text, &BEARER, redacted);
        let text = replaced(&text, &PAIR, |found| {
            let [name, quote, sign] =
                ["name", "quote", "sign"].map(|part| found.name(part).map_or("", |one| one.as_str()));
            // `reading the token: not found` is a sentence.
            let is_sentence = sign == ":" && quote.is_empty() && WORD.is_match(name);
            let value = found.name("it").map_or("", |value| value.as_str());
            // In quotes as before, so that JSON stays JSON.
            let quote = value.find(['"', '\'']).map_or("", |at| &value[..=at]);
            let quote = if value.starts_with(['\\', '"', '\'']) { quote } else { "" };
            (is_secret_name(name) && !is_sentence).then(|| format!("{quote}{REDACTED}{quote}"))
        });
        let text = replaced(&text, &GUID, |found| Some(word(&mut self.words, "id", &found[0])));
        self.again(&text)
    }

    /// The text as it was redacted before, without the names that have been learned since.
    pub fn again(&mut self, text: &str) -> String {
        let Some(named) = &self.named else { return text.to_owned() };
        let is_of_name = |c: char| c.is_alphanumeric() || "-_".contains(c);
        let mut clean = String::with_capacity(text.len());
        let (mut done, mut from) = (0, 0);
        while let Some(found) = named.find_at(text, from) {
            let is_whole =
                !text[..found.start()].ends_with(is_of_name) && !text[found.end()..].starts_with(is_of_name);
            from = found.end();
            if is_whole && !text[found.start()..].starts_with(API_GROUP) {
                clean += &text[done..found.start()];
                clean += &word(&mut self.words, "group", found.as_str());
                done = found.end();
            } else {
                // A shorter name, or the same, may begin within.
                from = found.start() + text[found.start()..].chars().next().map_or(1, char::len_utf8);
            }
        }
        clean + &text[done..]
    }
}

/// The replacement of an id or a name.
fn word(words: &mut BTreeMap<String, String>, kind: &str, id: &str) -> String {
    let number = words.len() + 1;
    words.entry(id.to_lowercase()).or_insert_with(|| format!("{kind}-{number}")).clone()
}

/// The text with the part `it` of each match replaced; `by` gives the replacement. Elsewhere the next match
/// may begin after the part `name` of this one.
fn replaced(text: &str, pattern: &Regex, mut by: impl FnMut(&Captures) -> Option<String>) -> String {
    let mut clean = String::with_capacity(text.len());
    let (mut done, mut from) = (0, 0);
    while let Some(found) = pattern.captures_at(text, from) {
        let part = |name| found.name(name).or(found.get(0)).map_or(from..text.len(), |one| one.range());
        let it: Range<usize> = part("it");
        match by(&found) {
            Some(word) => {
                clean += &text[done..it.start];
                clean += &word;
                (done, from) = (it.end, it.end);
            }
            None => from = part("name").end,
        }
    }
    clean + &text[done..]
}

/// A pattern of this module's.
#[expect(clippy::expect_used, reason = "the tests use each of them")]
fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a pattern that can be read")
}

static GROUP: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?i)/resourcegroups/([\w.()-]+)"));
static GUID: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"(?i)[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"));
/// The user and password of a URL.
static USER: LazyLock<Regex> = LazyLock::new(|| pattern(r#"://(?<it>[^/"\s]*)@"#));
/// Signed tokens: three parts in base64, of which the first begins like JSON.
static TOKEN: LazyLock<Regex> = LazyLock::new(|| pattern(r"eyJ[\w=-]*\.[\w=-]*\.[\w.=-]*"));
static BEARER: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?i)\bbearer\s+(?<it>[\w.~+/=-]{16,})"));
/// A name and its value, with quotes or none, as text, in JSON, or in JSON within a text.
static PAIR: LazyLock<Regex> = LazyLock::new(|| {
    let secret = SECRET.map(|word| word.replace('.', "[_.-]?")).join("|");
    let quoted = r#"\\+"[^"]*"|"(?:[^"\\]|\\.)*"|'[^']*'"#;
    let bare = r#"(?:bearer|basic)\s+[^\s"'\\]+|[^\s"'\\,;&)}\]]+"#;
    pattern(&format!(
        r#"(?i)(?<name>[\w.-]*(?:{secret})[\w.-]*|\bsig)(?<quote>\\*["']?)\s*(?<sign>[=:])\s*(?<it>{quoted}|{bare})"#
    ))
});
/// A name that is an English word.
static WORD: LazyLock<Regex> = LazyLock::new(|| pattern("^(secret|token|credential)s?$"));

/// A name without the characters that join its words.
fn plain(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).collect::<String>().to_lowercase()
}

fn is_secret_name(name: &str) -> bool {
    let name = plain(name);
    let is_secret = name == "sig" || SECRET.iter().any(|word| name.contains(&word.replace('.', "")));
    is_secret && !PLACES.iter().any(|end| name.ends_with(end))
}

/// Whether a field with a secret's name only refers to the secret, or records that there is one.
fn is_harmless(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(_) => true,
        Value::String(_) | Value::Number(_) => false,
        Value::Array(items) => items.iter().all(|item| item.is_object() && is_harmless(item)),
        Value::Object(fields) => fields.keys().all(|name| REFERENCE.contains(&name.as_str())),
    }
}

fn drop_repeated(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(drop_repeated),
        Value::Object(fields) => {
            fields.retain(|name, _| !REPEATED.contains(&name.as_str()));
            fields.values_mut().for_each(drop_repeated);
        }
        _ => {}
    }
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
        assert_eq!(first, "reads /subscriptions/id-1/resourceGroups/group-2/providers/x now");
        let upper = redaction.text(&id.to_uppercase());
        assert_eq!(upper, "/SUBSCRIPTIONS/id-1/RESOURCEGROUPS/group-2/PROVIDERS/X");
        assert_eq!(redaction.text("10.240.0.5 and vnp-1f"), "10.240.0.5 and vnp-1f");
        assert_eq!(redaction.text(&first), first, "what is clean changes again");
    }

    #[test]
    fn a_group_is_known_wherever_its_name_stands_once_it_has_been_named() {
        let mut redaction = Redaction::default();
        let mut node = json!({
            "labels": {"kubernetes.azure.com/cluster": "MC_acme_k8s_westeurope", "x/network-resourcegroup": "hub"},
            "annotations": {"acme/x": "acme, acme-vnet"},
            "providerID": "azure:///subscriptions/s/resourceGroups/mc_acme_k8s_westeurope/x",
            "message": "denied (/subscriptions/s/resourceGroups/acme). (Group(1)) /resourceGroups/Group(1)/y",
        });
        redaction.object(&mut node);
        let expected = json!({
            "labels": {"kubernetes.azure.com/cluster": "group-1", "x/network-resourcegroup": "group-2"},
            "annotations": {"group-3/x": "group-3, acme-vnet"},
            "providerID": "azure:///subscriptions/s/resourceGroups/group-1/x",
            "message": "denied (/subscriptions/s/resourceGroups/group-3). (group-4) /resourceGroups/group-4/y",
        });
        assert_eq!(
            redaction.text("/resourceGroups/vnetpool of vnetpool.io/v1alpha1"),
            "/resourceGroups/group-5 of vnetpool.io/v1alpha1"
        );
        let sorted = |value: &Value| {
            let numbers = pattern("group-[0-9]");
            numbers.replace_all(&value.to_string(), "group").into_owned()
        };
        assert_eq!(sorted(&node), sorted(&expected));
        assert_eq!(redaction.words.len(), 5, "{node}");
    }

    #[test]
    fn ids_in_names_of_fields_are_replaced_and_copies_of_the_object_are_gone() {
        let mut object = json!({
            "metadata": {"managedFields": [{"f:spec": {(format!("k:{{\"id\":\"/subscriptions/{ONE}\"}}")): {}}}],
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{\"data\":\"s3cret\"}"}},
            (format!("/subscriptions/{ONE}/resourceGroups/acme")): 1,
        });
        Redaction::default().object(&mut object);
        assert_eq!(
            object,
            json!({"metadata": {"annotations": {}}, "/subscriptions/id-1/resourceGroups/group-2": 1})
        );
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
    fn ids_in_the_names_of_fields_are_replaced_like_others() {
        let name = |id: &str| format!("k:{{\"id\":\"/subscriptions/{id}/x\"}}");
        let mut object = json!({ "f:subnets": { name(ONE): {} }, "id": ONE });
        Redaction::default().object(&mut object);
        assert_eq!(object, json!({ "f:subnets": { name("id-1"): {} }, "id": "id-1" }));
    }

    #[test]
    fn secrets_inside_texts_are_gone_and_sentences_stay() {
        for (text, clean) in [
            ("--password=s3cret --x=1", "--password=REDACTED --x=1"),
            (r#"{"clientSecret":"s3cret","x":1"#, r#"{"clientSecret":"REDACTED","x":1"#),
            (
                r#"{"message":"sent {\"clientSecret\":\"s3cret\"}"}"#,
                r#"{"message":"sent {\"clientSecret\":\"REDACTED\"}"}"#,
            ),
            (r#"message="password=s3cret""#, r#"message="password=REDACTED""#),
            ("https://x/y?sv=1&sig=s3cret%3D&se=2", "https://x/y?sv=1&sig=REDACTED&se=2"),
            ("authorization: Basic s3cret end", "authorization: REDACTED end"),
            ("AccountName=a;AccountKey=s3cret==;x", "AccountName=a;AccountKey=REDACTED;x"),
            ("bearer s3crets3crets3cret", "bearer REDACTED"),
            ("no token: AADSTS700016: not found", "no token: AADSTS700016: not found"),
            ("AZURE_FEDERATED_TOKEN_FILE=/var/run/x", "AZURE_FEDERATED_TOKEN_FILE=/var/run/x"),
        ] {
            assert_eq!(Redaction::default().text(text), clean);
        }
    }

    #[test]
    fn names_of_secrets_are_known_however_they_are_written() {
        for secret in [
            "clientSecret",
            "privateKey",
            "PRIVATE_KEY",
            "client-key",
            "ACCOUNT_KEY",
            "CONNECTION_STRING",
            "sig",
            "X_PASSWORD",
            "apiKey",
            "secretKey",
        ] {
            assert!(is_secret_name(secret), "{secret}");
        }
        for other in
            ["secretName", "secretKeyRef", "tokenFile", "AZURE_FEDERATED_TOKEN_FILE", "key", "design", "name"]
        {
            assert!(!is_secret_name(other), "{other}");
        }
    }

    #[test]
    fn fields_and_variables_with_secrets_lose_their_values() {
        let mut object = json!({
            "clientSecret": "s3cret", "secretName": "azure", "token": ["eyJh.eyJh.x"], "password": {"a": {"b": "s3cret"}},
            "pin": 1, "passwordPin": 1234, "args": ["--password", "s3cret", "x"], "automountServiceAccountToken": true,
            "env": [{"name": "AZURE_CLIENT_SECRET", "value": "s3cret"}, {"name": "AZURE_CLIENT_ID", "value": ONE},
                {"name": "A_TOKEN", "valueFrom": {"secretKeyRef": {"name": "azure", "key": "k"}}}],
            "volumes": [{"secret": {"secretName": "azure", "items": [{"key": "k", "path": "p"}]}}],
            "imagePullSecrets": [{"name": "pull"}],
            "note": "{\"name\":\"X_PASSWORD\",\"value\":\"s3cret\"}",
        });
        Redaction::default().object(&mut object);
        let expected = json!({
            "clientSecret": "REDACTED", "secretName": "azure", "token": "REDACTED", "password": "REDACTED",
            "pin": 1, "passwordPin": "REDACTED", "args": ["--password", "REDACTED", "x"], "automountServiceAccountToken": true,
            "env": [{"name": "AZURE_CLIENT_SECRET", "value": "REDACTED"}, {"name": "AZURE_CLIENT_ID", "value": "id-1"},
                {"name": "A_TOKEN", "valueFrom": {"secretKeyRef": {"name": "azure", "key": "k"}}}],
            "volumes": [{"secret": {"secretName": "azure", "items": [{"key": "k", "path": "p"}]}}],
            "imagePullSecrets": [{"name": "pull"}],
            "note": "{\"name\":\"X_PASSWORD\",\"value\":\"REDACTED\"}",
        });
        assert_eq!(object, expected);
    }

    #[test]
    fn a_long_text_takes_as_much_longer_as_it_is() {
        let line = format!("{{\"nic\":\"/subscriptions/{ONE}/resourceGroups/acme/x\",\"level\":\"INFO\"}}\n");
        let clean = Redaction::default().text(&line.repeat(2_000));
        assert!(!clean.contains(ONE) && !clean.contains("acme"));
        assert!(
            clean
                .ends_with("{\"nic\":\"/subscriptions/id-1/resourceGroups/group-2/x\",\"level\":\"INFO\"}\n")
        );
    }
}
