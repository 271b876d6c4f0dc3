//! References of a pod to ConfigMaps and Secrets, and what is said when one cannot be followed.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};

use crate::ids::ObjectKey;
use crate::pod::env::MAX_BYTES;
use crate::pod::snapshot::{ObjectRef, ReferencedObjects};

/// Why a value or file could not be made from what it refers to. The text is one sentence that
/// names the object and the mend; it never contains data of a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefError {
    #[error("{kind} {object} is not there, needed by {user}: create it, or mark the reference optional")]
    ObjectMissing { kind: &'static str, object: ObjectKey, user: String },
    #[error(
        "{kind} {object} has no key {key:?}, needed by {user}: add the key, or mark the reference optional"
    )]
    KeyMissing { kind: &'static str, object: ObjectKey, key: String, user: String },
    #[error("{kind} {object}, needed by {user}, has not been read from the control plane yet")]
    NotRead { kind: &'static str, object: ObjectKey, user: String },
    #[error("the token of service account {account} is not issued yet, needed by {user}")]
    TokenMissing { account: String, user: String },
    #[error("{user} cannot be made: {problem}")]
    Invalid { user: String, problem: String },
}

impl RefError {
    /// Of what would have more bytes than a process can be started with.
    pub(super) fn too_long(user: String) -> Self {
        let problem = format!("it has more than {MAX_BYTES} bytes, with which the kernel starts no process");
        Self::Invalid { user, problem }
    }

    /// Whether it mends itself once the object is made or changed.
    pub fn waits_for_object(&self) -> bool {
        !matches!(self, Self::Invalid { .. })
    }
}

/// Data of a ConfigMap or Secret as bytes by key.
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    ConfigMap(&'a ConfigMap),
    Secret(&'a Secret),
}

impl<'a> Data<'a> {
    pub fn get(self, key: &str) -> Option<&'a [u8]> {
        match self {
            Self::ConfigMap(map) => {
                map.data.as_ref().and_then(|data| data.get(key)).map(String::as_bytes).or_else(|| {
                    map.binary_data.as_ref().and_then(|data| data.get(key)).map(|data| data.0.as_slice())
                })
            }
            Self::Secret(secret) => {
                secret.data.as_ref().and_then(|data| data.get(key)).map(|data| data.0.as_slice()).or_else(
                    || secret.string_data.as_ref().and_then(|data| data.get(key)).map(String::as_bytes),
                )
            }
        }
    }

    /// All keys with their data, in the order of the keys.
    pub fn entries(self) -> Vec<(&'a str, &'a [u8])> {
        let mut keys: Vec<&'a str> = match self {
            Self::ConfigMap(map) => {
                let text = map.data.iter().flatten().map(|(key, _)| key.as_str());
                text.chain(map.binary_data.iter().flatten().map(|(key, _)| key.as_str())).collect()
            }
            Self::Secret(secret) => {
                let data = secret.data.iter().flatten().map(|(key, _)| key.as_str());
                data.chain(secret.string_data.iter().flatten().map(|(key, _)| key.as_str())).collect()
            }
        };
        keys.sort_unstable();
        keys.dedup();
        keys.into_iter().filter_map(|key| self.get(key).map(|data| (key, data))).collect()
    }
}

/// One reference and who makes it, for the message.
#[derive(Clone, Copy, Debug)]
pub struct Lookup<'a> {
    pub objects: &'a ReferencedObjects,
    pub namespace: &'a str,
    pub optional: bool,
    /// `volume config`, `variable A of container web`.
    pub user: &'a str,
}

impl<'a> Lookup<'a> {
    /// `None` where it is missing and optional.
    pub fn config_map(self, name: &str) -> Result<Option<Data<'a>>, RefError> {
        let object = ObjectKey::new(self.namespace, name);
        let found = self.objects.config_maps.get(&object).map(|map| Data::ConfigMap(map));
        let read = !self.objects.unfetched.contains(&ObjectRef::ConfigMap(object.clone()));
        self.or_missing("ConfigMap", object, found, read)
    }

    /// `None` where it is missing and optional.
    pub fn secret(self, name: &str) -> Result<Option<Data<'a>>, RefError> {
        let object = ObjectKey::new(self.namespace, name);
        let found = self.objects.secrets.get(&object).map(|secret| Data::Secret(secret));
        let read = !self.objects.unfetched.contains(&ObjectRef::Secret(object.clone()));
        self.or_missing("Secret", object, found, read)
    }

    fn or_missing(
        self,
        kind: &'static str,
        object: ObjectKey,
        found: Option<Data<'a>>,
        read: bool,
    ) -> Result<Option<Data<'a>>, RefError> {
        if found.is_none() && !read {
            return Err(RefError::NotRead { kind, object, user: self.user.to_owned() });
        }
        if found.is_none() && !self.optional {
            return Err(RefError::ObjectMissing { kind, object, user: self.user.to_owned() });
        }
        Ok(found)
    }

    /// The bytes under `key`; `None` where missing and optional.
    pub fn key(self, kind: &'static str, name: &str, key: &str) -> Result<Option<&'a [u8]>, RefError> {
        let data = if kind == "Secret" { self.secret(name)? } else { self.config_map(name)? };
        let Some(data) = data else { return Ok(None) };
        match data.get(key) {
            None if !self.optional => Err(RefError::KeyMissing {
                kind,
                object: ObjectKey::new(self.namespace, name),
                key: key.to_owned(),
                user: self.user.to_owned(),
            }),
            found => Ok(found),
        }
    }
}
