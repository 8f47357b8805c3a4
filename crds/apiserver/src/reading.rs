//! An object as the API server sends it, whether it can be read or not. In a list or a watch, an object that
//! fails as a whole would take all others with it.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use super::lean::Lean;

/// An object that was read, without its managedFields, or one that is there and can't be. kube's
/// `DeserializeGuard` does the same, but keeps nothing of the content and decodes each good object twice, and
/// the managedFields with it.
#[derive(Clone, Debug)]
pub struct Reading<K>(pub Result<K, Box<Unreadable>>);

/// An object that is there and can't be read.
#[derive(Clone, Debug)]
pub struct Unreadable {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    /// The field and its fault.
    pub error: String,
    /// All of it, for code that needs only parts of it.
    pub content: Value,
}

impl Unreadable {
    pub fn name(&self) -> String {
        self.metadata.name.clone().unwrap_or_default()
    }

    /// For Events about it.
    pub fn object_ref(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some(self.api_version.clone()),
            kind: Some(self.kind.clone()),
            name: self.metadata.name.clone(),
            uid: self.metadata.uid.clone(),
            ..ObjectReference::default()
        }
    }
}

impl<'de, K> Deserialize<'de> for Reading<K>
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        // Once more on failure only, for the path of the field: to follow it takes time.
        let read = serde_json::from_str::<Lean<K>>(text.get()).or_else(|_| {
            let mut json = serde_json::Deserializer::from_str(text.get());
            serde_path_to_error::deserialize::<_, Lean<K>>(&mut json)
                .map_err(|error| unreadable::<K>(text.get(), error.to_string()))
        });
        Ok(Reading(read.map(|Lean(object)| object)))
    }
}

impl<K> Reading<K> {
    /// Of an answer to a request of ours.
    ///
    /// # Errors
    /// That which kube gives where it reads the object itself.
    pub fn readable(self) -> kube::Result<K> {
        self.0.map_err(|unreadable| kube::Error::SerdeError(serde::de::Error::custom(unreadable.error)))
    }
}

fn unreadable<K: Resource<DynamicType = ()>>(text: &str, error: String) -> Box<Unreadable> {
    let content: Value = serde_json::from_str(text).unwrap_or_default();
    Box::new(Unreadable {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        metadata: metadata(&content["metadata"]),
        error,
        content,
    })
}

/// The metadata by which the object is known again, if the metadata can't be read either.
fn metadata(content: &Value) -> ObjectMeta {
    let text = |field: &str| content[field].as_str().map(str::to_owned);
    ObjectMeta::deserialize(content).unwrap_or_else(|_| ObjectMeta {
        name: text("name"),
        namespace: text("namespace"),
        uid: text("uid"),
        resource_version: text("resourceVersion"),
        ..ObjectMeta::default()
    })
}

impl<K: Resource<DynamicType = ()>> Resource for Reading<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind(of: &()) -> Cow<'_, str> {
        K::kind(of)
    }

    fn group(of: &()) -> Cow<'_, str> {
        K::group(of)
    }

    fn version(of: &()) -> Cow<'_, str> {
        K::version(of)
    }

    fn plural(of: &()) -> Cow<'_, str> {
        K::plural(of)
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.as_ref().map_or_else(|unreadable| &unreadable.metadata, K::meta)
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.as_mut().map_or_else(|unreadable| &mut unreadable.metadata, K::meta_mut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use kube::ResourceExt;
    use kube::core::{ObjectList, WatchEvent};
    use proptest::prelude::*;

    const TEXT: &str = r#"{"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "7"}, "items": [
        {"metadata": {"name": "good"}, "spec": {"containers": []}},
        {"metadata": {"name": "bad", "uid": "u"}, "spec": {"containers": [], "hostNetwork": 5}}]}"#;

    #[test]
    fn one_object_of_a_list_that_can_not_be_read_is_named_and_the_others_are_read() {
        let list: ObjectList<Reading<Pod>> = serde_json::from_str(TEXT).unwrap();
        let [Reading(Ok(good)), Reading(Err(bad))] = &list.items[..] else { panic!("{list:?}") };
        assert_eq!(good.name_any(), "good");
        assert_eq!(bad.object_ref().uid.as_deref(), Some("u"));
        assert!(bad.error.starts_with("spec.hostNetwork: invalid type: integer `5`"), "{}", bad.error);
        assert_eq!(bad.content["spec"]["hostNetwork"], 5);
    }

    #[test]
    fn an_event_of_a_watch_about_such_an_object_is_one_about_it() {
        let text = r#"{"type": "MODIFIED", "object": {"metadata": {"name": "bad", "resourceVersion": "9"}, "spec": 1}}"#;
        let event: WatchEvent<Reading<Pod>> = serde_json::from_str(text).unwrap();
        let WatchEvent::Modified(object) = event else { panic!("{event:?}") };
        assert_eq!((object.name_any().as_str(), object.resource_version().as_deref()), ("bad", Some("9")));
        assert!(object.0.is_err());
    }

    #[test]
    fn an_object_is_known_again_though_its_metadata_can_not_be_read() {
        let text = r#"{"metadata": {"name": "bad", "uid": "u", "labels": 3}}"#;
        let Reading(Err(bad)) = serde_json::from_str::<Reading<Pod>>(text).unwrap() else { panic!() };
        assert_eq!((bad.name().as_str(), bad.metadata.uid.as_deref()), ("bad", Some("u")));
    }

    proptest! {
        #[test]
        fn the_reading_of_any_json_ends_with_an_object(text in r#"(\{"metadata":)?[\[{]("a":)?-?[0-9]{0,25}(,"x")?[\]}]\}?"#) {
            if let Ok(content) = serde_json::from_str::<Value>(&text) {
                prop_assert!(serde_json::from_value::<Reading<Pod>>(content).is_ok());
            }
        }
    }
}
