//! Which handler of the runtime a pod's sandbox is made by (RuntimeClass, KEP-585). The class's overhead is copied
//! into the pod by the API server and is counted from there.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

/// Handlers by the name of their class; `None` until the control plane has told them, and without one.
pub type RuntimeClasses = Option<Arc<BTreeMap<String, String>>>;

/// Why no sandbox can be made now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeClassError {
    #[error("RuntimeClass {0} is not there: create it, or leave out runtimeClassName")]
    Missing(String),
    #[error("RuntimeClass {0} was not read from the control plane yet; a node without one knows no classes")]
    NotRead(String),
}

/// The handler for the pod's sandbox; empty is the runtime's default.
///
/// # Errors
/// Where the pod names a class that is not known.
pub fn handler(pod: &Pod, classes: &RuntimeClasses) -> Result<String, RuntimeClassError> {
    let named = pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_ref());
    // A class of no name is the default, as with the kubelet.
    let Some(name) = named.filter(|name| !name.is_empty()) else { return Ok(String::new()) };
    let Some(classes) = classes else { return Err(RuntimeClassError::NotRead(name.clone())) };
    classes.get(name).cloned().ok_or_else(|| RuntimeClassError::Missing(name.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_class_leads_to_its_handler() {
        let known: RuntimeClasses =
            Some(Arc::new(BTreeMap::from([("gvisor".to_owned(), "runsc".to_owned())])));
        let not_there = "RuntimeClass kata is not there: create it, or leave out runtimeClassName";
        for (named, classes, wanted) in [
            (json!(null), &None, Ok("")),
            (json!(""), &None, Ok("")),
            (json!("gvisor"), &known, Ok("runsc")),
            (json!("kata"), &known, Err(not_there)),
            (
                json!("kata"),
                &None,
                Err(
                    "RuntimeClass kata was not read from the control plane yet; a node without one knows no classes",
                ),
            ),
        ] {
            let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {
                "containers": [], "runtimeClassName": named}}))
            .unwrap();
            let found = handler(&pod, classes).map_err(|error| error.to_string());
            assert_eq!(found.as_deref().map_err(String::as_str), wanted, "{named}");
        }
    }
}
