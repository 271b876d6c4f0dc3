//! `/pods` and `/runningpods/`: the pods of this node as the API would show them.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use longshore_core::ids::PodKey;
use longshore_core::kubelet_api::route::PodTarget;
use longshore_core::pod::lifecycle::Lifecycle;
use longshore_core::wire::PodView;
use serde_json::json;

use super::body::{self, Answer};
use crate::pods::PodsView;

/// The pod that is meant, of the life that is meant.
pub(super) fn find(pods: &PodsView, target: &PodTarget) -> Option<Arc<PodView>> {
    let key = PodKey::new(target.namespace.as_str(), target.pod.as_str());
    match &target.uid {
        None => pods.get(&key),
        Some(uid) => pods.by_uid(&uid.as_str().into()).filter(|view| view.key == key),
    }
}

/// All pods this node has to do with, with the statuses of now.
pub(super) fn pods(pods: &PodsView) -> Answer {
    let shown = |view: &&Arc<PodView>| !matches!(view.lifecycle, Lifecycle::Queued { .. });
    list(
        pods.list()
            .iter()
            .filter(shown)
            .map(|view| Pod { status: Some((*view.status).clone()), ..Pod::clone(&view.pod) }),
    )
}

/// What runs, as the runtime tells it.
pub(super) fn running(pods: &PodsView) -> Answer {
    let running = |view: &Arc<PodView>| {
        let containers: Vec<_> = view
            .observed
            .containers
            .iter()
            .filter(|container| container.is_running())
            .map(|container| json!({"name": container.name.as_str(), "image": container.image}))
            .collect();
        (!containers.is_empty()).then(|| {
            json!({
                "metadata": {
                    "name": &*view.key.name,
                    "namespace": &*view.key.namespace,
                    "uid": view.uid.as_str(),
                },
                "spec": {"containers": containers},
                "status": {},
            })
        })
    };
    list(pods.list().iter().filter_map(running))
}

/// A PodList, written pod by pod.
fn list(items: impl Iterator<Item = impl serde::Serialize>) -> Answer {
    let mut bytes = br#"{"kind":"PodList","apiVersion":"v1","metadata":{},"items":["#.to_vec();
    for (number, item) in items.enumerate() {
        if number > 0 {
            bytes.push(b',');
        }
        // Plain data always serializes; a pod that did not would be left out.
        let before = bytes.len();
        if serde_json::to_writer(&mut bytes, &item).is_err() {
            bytes.truncate(before);
            bytes.extend_from_slice(b"{}");
        }
    }
    bytes.extend_from_slice(b"]}\n");
    body::json(bytes)
}
