//! Newtypes for the identities that travel through the whole program.
//! Cheap to clone (`Arc<str>`); none of them is ever parsed for meaning outside this file.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

macro_rules! string_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The identity as text, as the API or the runtime spells it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(Arc::from(text))
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(Arc::from(text))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:?})", stringify!($name), &*self.0)
            }
        }
    };
}

string_id!(
    /// `metadata.uid` of a pod: one life of a pod. A recreated pod has another uid.
    PodUid
);
string_id!(
    /// The runtime's id of a pod sandbox.
    SandboxId
);
string_id!(
    /// The runtime's id of a container.
    ContainerId
);
string_id!(
    /// The name of a container in its pod's spec; unique among all its kinds of containers.
    ContainerName
);

/// Namespace and name of a pod: what people type. Two lives of a pod share it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodKey {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl PodKey {
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Namespace and name of a ConfigMap, Secret, Service or another namespaced object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectKey {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ObjectKey {
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// `metadata.uid` of a Service or EndpointSlice, a UUID in 16 bytes: a node holds ten thousand of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectUid([u8; 16]);

/// Where the hyphens of a UUID stand.
const HYPHENS: [usize; 4] = [8, 13, 18, 23];

impl ObjectUid {
    /// From the API's text; `None` where that is no UUID in small letters.
    pub fn parse(text: &str) -> Option<Self> {
        let digits: String = text.split('-').collect();
        let is_hex = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let uid = Self(u128::from_str_radix(&digits, 16).ok().filter(|_| is_hex)?.to_be_bytes());
        (uid.to_string() == text).then_some(uid)
    }
}

impl fmt::Display for ObjectUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("{:032x}", u128::from_be_bytes(self.0));
        HYPHENS.into_iter().for_each(|place| text.insert(place, '-'));
        f.write_str(&text)
    }
}

impl fmt::Debug for ObjectUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectUid({self})")
    }
}

impl Serialize for ObjectUid {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_is_the_text_it_was_read_from_or_none() {
        let text = "0a1b2c3d-0000-4fff-8abc-0123456789ab";
        assert_eq!(ObjectUid::parse(text).map(|uid| uid.to_string()).as_deref(), Some(text));
        for other in [
            "",
            "1",
            "0A1B2C3D-0000-4fff-8abc-0123456789ab",
            "0a1b2c3d00004fff8abc0123456789ab",
            "+a1b2c3d-0000-4fff-8abc-0123456789ab",
        ] {
            assert_eq!(ObjectUid::parse(other), None, "{other}");
        }
    }
}
