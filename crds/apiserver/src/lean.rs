//! An object without its managedFields. They are most of an object's metadata, decoded they take several
//! times their text, and neither program reads them.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Error, IgnoredAny, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, forward_to_deserialize_any};

/// An object of the API server's, read without them. Whatever type it is, none has to leave them out itself.
pub struct Lean<K>(pub K);

impl<'de, K: Deserialize<'de>> Deserialize<'de> for Lean<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        K::deserialize(At { level: Level::Object, inner: deserializer }).map(Lean)
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Level {
    Object,
    Metadata,
}

/// What reads a map at this level of an object.
struct At<T> {
    level: Level,
    inner: T,
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for At<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_any(At { level: self.level, inner: visitor })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_option(At { level: self.level, inner: visitor })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_map(At { level: self.level, inner: visitor })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_struct(name, fields, At { level: self.level, inner: visitor })
    }

    // An object and its metadata are maps: these fail as they should.
    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct enum identifier ignored_any
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for At<V> {
    type Value = V::Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(formatter)
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    fn visit_some<D: Deserializer<'de>>(self, some: D) -> Result<V::Value, D::Error> {
        self.inner.visit_some(At { level: self.level, inner: some })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.inner.visit_map(Fields { level: self.level, is_metadata: false, inner: map })
    }
}

/// The fields of a map at this level.
struct Fields<A> {
    level: Level,
    /// The field whose value comes next is the object's metadata.
    is_metadata: bool,
    inner: A,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Fields<A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        while let Some(Key(key)) = self.inner.next_key()? {
            if self.level == Level::Metadata && key == "managedFields" {
                self.inner.next_value::<IgnoredAny>()?;
                continue;
            }
            self.is_metadata = self.level == Level::Object && key == "metadata";
            return seed.deserialize(key.into_deserializer()).map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        if self.is_metadata {
            self.inner.next_value_seed(At { level: Level::Metadata, inner: seed })
        } else {
            self.inner.next_value_seed(seed)
        }
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for At<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(At { level: self.level, inner: deserializer })
    }
}

/// The name of a field, of the text itself where that has it as it is.
struct Key<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl<'de> Visitor<'de> for Text {
            type Value = Key<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("the name of a field")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(text)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }
        }

        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use serde_json::{Value, json};

    #[test]
    fn of_an_objects_metadata_all_is_read_but_managed_fields() {
        let fields = json!([{"manager": "m", "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {"f:a": {}}}}]);
        let metadata = json!({"name": "n", "uid": "u", "resourceVersion": "7", "generation": 3,
            "creationTimestamp": "2026-01-01T00:00:00Z", "deletionTimestamp": "2026-01-02T00:00:00Z",
            "deletionGracePeriodSeconds": 30, "generateName": "g", "namespace": "d", "finalizers": ["f/g"],
            "labels": {"managedFields": "a \"label\" of that name"}, "annotations": {"a\tb": "c"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "o", "uid": "w", "controller": true}]});
        // Neither the data nor what has the name of a field elsewhere is metadata.
        let object =
            json!({"metadata": metadata, "data": {"managedFields": "x", "metadata": "y"}, "immutable": true});
        let expected: ConfigMap = serde_json::from_value(object.clone()).unwrap();
        let mut sent = object;
        sent["metadata"]["managedFields"] = fields;
        let Lean::<ConfigMap>(read) = serde_json::from_str(&sent.to_string()).unwrap();
        assert_eq!(read, expected);
        // They aren't even understood.
        sent["metadata"]["managedFields"] = json!([5]);
        assert!(serde_json::from_value::<ConfigMap>(sent.clone()).is_err());
        let Lean::<ConfigMap>(read) = serde_json::from_str(&sent.to_string()).unwrap();
        assert_eq!(read, expected);
    }

    #[test]
    fn whatever_a_type_makes_of_metadata_is_made_of_it_and_faults_are_those_of_the_type() {
        #[derive(Deserialize)]
        struct Object {
            metadata: Option<ObjectMeta>,
        }
        let named = |metadata: Value| {
            let text = json!({ "metadata": metadata }).to_string();
            let read = serde_json::from_str(&text).map(|Lean::<Object>(read)| read.metadata);
            read.map_err(|error| error.to_string())
        };
        assert_eq!(named(Value::Null), Ok(None));
        let meta = ObjectMeta { name: Some("n".into()), ..ObjectMeta::default() };
        assert_eq!(named(json!({"name": "n", "managedFields": []})), Ok(Some(meta)));
        for (metadata, fault) in [
            (json!(5), "invalid type: integer `5`, expected ObjectMeta"),
            (json!([5]), "invalid type: sequence, expected ObjectMeta"),
            (json!({"name": 5}), "invalid type: integer `5`, expected a string"),
        ] {
            assert!(named(metadata).is_err_and(|error| error.starts_with(fault)), "{fault}");
        }
    }
}
