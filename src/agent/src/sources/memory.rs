//! What the folder last said, kept on disk beside the pods' records: ConfigMaps, Secrets, Services and
//! slices of a file that is broken while the daemon restarts stay what they were, as they would have
//! without a restart. Readable by root only, as the manifests' secrets are in it.

use std::path::{Path, PathBuf};

use longshore_core::ids::ObjectKey;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::object::{KeptSlice, Kind, Object, ObjectId};
use crate::kept;

/// One object and where it was written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Remembered {
    kind: Kind,
    key: ObjectKey,
    pub(super) path: PathBuf,
    pub(super) document: usize,
    object: Value,
}

impl Remembered {
    /// `None` for pods: their records remember them.
    pub(super) fn of(id: &ObjectId, object: &Object, path: &Path, document: usize) -> Option<Self> {
        let value = match object {
            Object::ConfigMap(map) => serde_json::to_value(&**map),
            Object::Secret(secret) => serde_json::to_value(&**secret),
            Object::Service(service) => serde_json::to_value(&**service),
            Object::EndpointSlice(slice) => serde_json::to_value(slice.read()),
            Object::Pod { .. } => return None,
        };
        // These types always serialize.
        let object = value.ok()?;
        Some(Self { kind: id.kind, key: id.key.clone(), path: path.to_path_buf(), document, object })
    }

    /// The object again; `None` where an older version wrote what this one does not read.
    pub(super) fn recall(self) -> Option<(ObjectId, Object)> {
        let object = match self.kind {
            Kind::ConfigMap => Object::ConfigMap(serde_json::from_value(self.object).ok()?),
            Kind::Secret => Object::Secret(serde_json::from_value(self.object).ok()?),
            Kind::Service => Object::Service(serde_json::from_value(self.object).ok()?),
            Kind::EndpointSlice => {
                Object::EndpointSlice(KeptSlice::new(&serde_json::from_value(self.object).ok()?))
            }
            Kind::Pod => return None,
        };
        Some((ObjectId { kind: self.kind, key: self.key }, object))
    }
}

/// Reads what was kept; nothing where there is no such file or it cannot be understood.
pub(super) fn load(path: &Path) -> Vec<Remembered> {
    kept::load(path, "what was kept of the manifests")
}
