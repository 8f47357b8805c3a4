//! Objects of which one field differs on its way to the client, as an older schema or a newer release may
//! have stored it. The API server has them as they should be.

use axum::body::Bytes;
use serde_json::Value;

/// One field of one object.
#[derive(Clone, Debug)]
pub struct Spoilt {
    /// The kind as paths name it, such as `pods`.
    pub resource: &'static str,
    pub name: String,
    /// The field's place, as a JSON pointer.
    pub place: String,
    pub value: Value,
}

/// Which fields are spoilt, and how often each of these objects has been given out so.
#[derive(Default)]
pub struct Garbage(Vec<(Spoilt, usize)>);

impl Garbage {
    pub fn of(all: Vec<Spoilt>) -> Garbage {
        Garbage(all.into_iter().map(|one| (one, 0)).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names of the objects that haven't been given out yet.
    pub fn unseen(&self) -> Vec<String> {
        self.0.iter().filter(|(_, times)| *times == 0).map(|(one, _)| one.name.clone()).collect()
    }

    /// A client has written the object that this path names, or its status: what it wrote isn't spoilt.
    pub fn written(&mut self, path: &str) {
        let is_status = path.ends_with("/status");
        let is_about = |one: &Spoilt| {
            let is_named = path.split('/').any(|part| part == one.name);
            is_named && path.split('/').any(|part| part == one.resource)
        };
        self.0.retain(|(one, _)| !is_about(one) || one.place.starts_with("/status") != is_status);
    }

    /// An answer's content on a request for this path, with what is spoilt of it: an object, a list, or an
    /// event of a watch.
    pub fn spoil(&mut self, path: &str, content: Bytes) -> Bytes {
        let is_about = |one: &Spoilt| path.split('/').any(|part| part == one.resource);
        if !self.0.iter().any(|(one, _)| is_about(one)) {
            return content;
        }
        let Ok(mut answer) = serde_json::from_slice::<Value>(&content) else { return content };
        // Of a list of versions nothing is read but these.
        if answer["kind"].as_str().is_some_and(|kind| kind.starts_with("PartialObjectMetadata")) {
            return content;
        }
        let parts: Vec<&mut Value> = match &mut answer {
            Value::Object(fields) if fields.contains_key("items") => {
                fields["items"].as_array_mut().into_iter().flatten().collect()
            }
            Value::Object(fields) if fields.contains_key("object") => vec![&mut fields["object"]],
            whole => vec![whole],
        };
        for part in parts {
            for (one, times) in self.0.iter_mut().filter(|(one, _)| is_about(one)) {
                if part["metadata"]["name"] == *one.name {
                    part.pointer_mut(&one.place).into_iter().for_each(|field| *field = one.value.clone());
                    *times += 1;
                }
            }
        }
        match answer.get("object") {
            // The type comes first, as the API server writes it: the client decodes the object by that.
            Some(object) => format!(r#"{{"type":{},"object":{object}}}"#, answer["type"]).into(),
            None => answer.to_string().into(),
        }
    }

    /// The same of one line of a watch.
    pub fn spoil_line(&mut self, path: &str, line: Bytes) -> Bytes {
        let spoilt = self.spoil(path, line);
        if spoilt.ends_with(b"\n") { spoilt } else { [&spoilt[..], b"\n"].concat().into() }
    }
}

/// The complete lines of what a watch has brought so far, each as one event; keeps the rest.
#[derive(Default)]
pub struct Lines(Vec<u8>);

impl Lines {
    pub fn take(&mut self, piece: &[u8]) -> Vec<Bytes> {
        self.0.extend_from_slice(piece);
        let Some(end) = self.0.iter().rposition(|byte| *byte == b'\n') else { return vec![] };
        let rest = self.0.split_off(end + 1);
        let whole = std::mem::replace(&mut self.0, rest);
        whole.split_inclusive(|byte| *byte == b'\n').map(Bytes::copy_from_slice).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
