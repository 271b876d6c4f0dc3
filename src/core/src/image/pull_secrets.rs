//! The credentials a pod's `imagePullSecrets` give for one of its images, and what is said of those that cannot
//! be used: a pod never fails for them, a pull may.

use k8s_openapi::api::core::v1::{Pod, Secret};

use super::docker_config::{self, Format};
use super::keyring::{Credential, joined};
use super::provider::PodAccount;
use super::reference::repository;
use crate::ids::ObjectKey;
use crate::pod::refs::Data;
use crate::pod::snapshot::{ObjectRef, ReferencedObjects};
use crate::pod::step::StepError;

/// What a pod brings for one pull.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullSecrets {
    /// In the order they are tried.
    pub credentials: Vec<Credential>,
    /// One part of a sentence for each secret that cannot be used; names only.
    pub problems: Vec<String>,
    /// Who speaks for the pull where a plugin of the node asks for it.
    pub account: Option<PodAccount>,
}

impl PullSecrets {
    /// The error of a failed pull, with the secrets that may have been missing for it.
    pub fn explain(&self, mut error: StepError) -> StepError {
        if !self.problems.is_empty() {
            error.message = format!("{}; {}", error.message, self.problems.join("; "));
        }
        error
    }
}

/// Secrets the pod names that were not read from the control plane yet.
pub fn unread(pod: &Pod, objects: &ReferencedObjects) -> Vec<ObjectKey> {
    let named = keys(pod).into_iter();
    named.filter(|key| objects.unfetched.contains(&ObjectRef::Secret(key.clone()))).collect()
}

/// What the pod's secrets give for `image`; later secrets come after earlier ones.
pub fn for_image(pod: &Pod, objects: &ReferencedObjects, image: &str) -> PullSecrets {
    let repository = repository(image);
    let mut found = PullSecrets::default();
    let mut lists = Vec::new();
    for key in keys(pod) {
        let Some(secret) = objects.secrets.get(&key) else {
            let read = !objects.unfetched.contains(&ObjectRef::Secret(key.clone()));
            let why = if read { "is not there" } else { "could not be read from the control plane" };
            found.problems.push(format!("pull secret {key} {why}"));
            continue;
        };
        match keyring(secret) {
            Ok(keyring) => lists.push(keyring.fitting(&repository)),
            Err(problem) => found.problems.push(format!("pull secret {key} {problem}")),
        }
    }
    found.credentials = joined(lists);
    found
}

fn keys(pod: &Pod) -> Vec<ObjectKey> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let named = pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
    named
        .filter(|reference| !reference.name.is_empty())
        .map(|reference| ObjectKey::new(namespace, reference.name.as_str()))
        .collect()
}

fn keyring(secret: &Secret) -> Result<super::keyring::Keyring, String> {
    let kind = secret.type_.as_deref().unwrap_or("Opaque");
    let (field, format) = match kind {
        "kubernetes.io/dockerconfigjson" => (".dockerconfigjson", Format::ConfigJson),
        "kubernetes.io/dockercfg" => (".dockercfg", Format::Dockercfg),
        _ => {
            return Err(format!(
                "is of type {kind}; it must be kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg"
            ));
        }
    };
    let bytes = Data::Secret(secret).get(field).ok_or_else(|| format!("has no key {field:?}"))?;
    docker_config::read(format, bytes).map_err(|fault| format!("key {field:?} {fault}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use serde_json::{Value, json};

    fn objects(secrets: Value) -> ReferencedObjects {
        let mut objects = ReferencedObjects::default();
        for (name, secret) in secrets.as_object().unwrap() {
            let secret = serde_json::from_value(secret.clone()).unwrap();
            objects.secrets.insert(ObjectKey::new("shop", name.as_str()), Arc::new(secret));
        }
        objects
    }

    #[test]
    fn secrets_are_used_in_their_order_and_bad_ones_are_named() {
        let secret = |kind: &str, field: &str, text: &str| json!({"type": kind, "stringData": {field: text}});
        let mut objects = objects(json!({
            "one": secret("kubernetes.io/dockerconfigjson", ".dockerconfigjson", r#"{"auths": {"r.io": {"username": "a", "password": "hush"}}}"#),
            "two": secret("kubernetes.io/dockercfg", ".dockercfg", r#"{"r.io/web": {"username": "b", "password": "hush"}}"#),
            "plain": secret("Opaque", "x", "hush"),
            "empty": secret("kubernetes.io/dockercfg", "x", "hush"),
            "torn": secret("kubernetes.io/dockercfg", ".dockercfg", "hush"),
        }));
        let late = ObjectRef::Secret(ObjectKey::new("shop", "late"));
        objects.unfetched.insert(late);
        let names = ["one", "two", "none", "plain", "empty", "torn", "late"];
        let named: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "shop"},
            "spec": {"containers": [], "imagePullSecrets": named}
        }))
        .unwrap();
        let found = for_image(&pod, &objects, "r.io/web:1");
        let users: Vec<_> = found.credentials.iter().map(|credential| credential.username.as_str()).collect();
        assert_eq!(users, ["a", "b"]);
        assert_eq!(
            found.problems,
            [
                "pull secret shop/none is not there",
                "pull secret shop/plain is of type Opaque; it must be kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg",
                "pull secret shop/empty has no key \".dockercfg\"",
                "pull secret shop/torn key \".dockercfg\" is not JSON of the right form, line 1 column 1; write it with docker login",
                "pull secret shop/late could not be read from the control plane",
            ]
        );
        assert_eq!(unread(&pod, &objects), [ObjectKey::new("shop", "late")]);
        let error = StepError { reason: "ErrImagePull".into(), message: "refused".into(), retryable: true };
        let said = found.explain(error).message;
        assert!(said.starts_with("refused; pull secret shop/none is not there; "), "{said}");
        assert!(!format!("{found:?}").contains("hush") && !said.contains("hush"));
    }
}
