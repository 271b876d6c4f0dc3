//! Objects as the server writes them, read without `metadata.managedFields`: who wrote which field is of no use on a
//! node, is often half of the object, and costs more to read than the rest.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

#[derive(Deserialize)]
struct Object<'a> {
    #[serde(borrow)]
    metadata: Option<Metadata<'a>>,
}

#[derive(Deserialize)]
struct Metadata<'a> {
    #[serde(borrow, rename = "managedFields")]
    managed_fields: Option<&'a RawValue>,
}

/// Reads one object, or whatever else the text is.
///
/// # Errors
/// Where it is not JSON or no `T`.
pub(crate) fn read<T: DeserializeOwned>(text: &str) -> Result<T, serde_json::Error> {
    serde_json::from_str(&without_managed_fields(text))
}

fn without_managed_fields(text: &str) -> Cow<'_, str> {
    let object: Option<Object<'_>> = serde_json::from_str(text).ok();
    let Some(managed) = object.and_then(|object| object.metadata?.managed_fields) else { return text.into() };
    let managed = managed.get();
    // It is a part of the text.
    let at = managed.as_ptr() as usize - text.as_ptr() as usize;
    match (text.get(..at), text.get(at + managed.len()..)) {
        // A list can stand for a struct, and then it has no name.
        (Some(before), Some(after)) if before.trim_end().ends_with(':') => {
            format!("{before}null{after}").into()
        }
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn all_is_read_but_who_wrote_it() {
        let pod = json!({
            "metadata": {"name": "a", "managedFields": [{"manager": "m", "fieldsV1": {"f:a": {"é": "\"}"}}}], "uid": "u"},
            "spec": {"containers": [{"name": "c", "env": [{"name": "managedFields", "value": "[]"}]}]},
        });
        let got: Pod = read(&pod.to_string()).unwrap();
        let whole: Pod = serde_json::from_value(pod).unwrap();
        assert!(whole.metadata.managed_fields.is_some() && got.metadata.managed_fields.is_none());
        assert_eq!((&got.spec, &got.metadata.uid), (&whole.spec, &whole.metadata.uid));
    }

    #[test]
    fn what_has_none_or_is_no_object_is_read_as_it_is() {
        for text in [
            r#"{"metadata": {"name": "a"}}"#,
            r#"{"metadata": {"managedFields": null}}"#,
            r#"{"metadata": null, "managedFields": [1]}"#,
            r#"{"metadata": [1]}"#,
            "[1, 2]",
            "null",
        ] {
            let (got, whole): (Value, Value) = (read(text).unwrap(), serde_json::from_str(text).unwrap());
            assert_eq!(got, whole, "{text}");
        }
        for text in ["", "{", r#"{"metadata": {"managedFields": [}}"#] {
            assert!(read::<Value>(text).is_err(), "{text}");
        }
    }
}
