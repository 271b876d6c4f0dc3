//! What a source wants of one pod. Sources (manifest folder, API) make these values; nothing else does.

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};

use crate::ids::{PodKey, PodUid};

/// One pod as its source wants it: validated and defaulted, so that planners need not repeat either.
#[derive(Clone, Debug)]
pub struct DesiredPod {
    pub key: PodKey,
    /// For manifests without `metadata.uid`: derived from namespace, name and spec, so that an
    /// edited manifest is another pod and an unchanged one is adopted after a restart.
    pub uid: PodUid,
    /// Shared with the status writer and the planners; never changed in place.
    pub pod: Arc<Pod>,
    pub source: PodSource,
    /// When this life of the pod was first seen.
    pub seen_at: Timestamp,
    /// Set once the pod is to end; it never goes back to `None` (behaviours 1).
    pub deletion: Option<Deletion>,
}

/// Where a pod came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodSource {
    /// A manifest file; `document` counts from 1 within a multi-document file.
    File { path: PathBuf, document: usize },
    /// The API server.
    Api,
    /// Only known from the runtime: found running at start without any source that wants it.
    Runtime,
}

/// A request to end a pod. The grace may only shrink, never below one second unless forced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    pub requested_at: Timestamp,
    /// Seconds the pod gets to end by itself; 0 means at once.
    pub grace_seconds: u32,
    pub cause: EndCause,
}

/// Why a pod ends; shown to people, and decides the phase of what was cut off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndCause {
    /// The manifest was removed, or the API object deleted.
    Deleted,
    /// The manifest was edited: this life makes room for the next.
    Replaced,
    /// All containers finished under the restart policy.
    Finished,
    /// `activeDeadlineSeconds` ran out.
    DeadlineExceeded,
    /// Not admitted to this node: reason in the API's spelling (`OutOfcpu`) and a message.
    Rejected { reason: String, message: String },
    /// Ended by the node under pressure.
    Evicted { message: String },
    /// Ended by the node to make room for a critical pod.
    Preempted { message: String },
    /// The runtime has it but no source wants it.
    Orphaned,
}

impl EndCause {
    /// The node ended the pod by itself: it stays to be looked at, as failed, until its source lets go
    /// of it.
    pub fn stays_shown(&self) -> bool {
        matches!(self, Self::Rejected { .. } | Self::Evicted { .. } | Self::Preempted { .. })
    }
}
