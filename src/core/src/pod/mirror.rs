//! Static pods of a node that has joined a control plane, and the mirror pods that show them there
//! (behaviours 39; pkg/kubelet/config/common.go, pkg/kubelet/pod/mirror_client.go).

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::ids::PodUid;

/// Where a pod comes from; only set on static pods.
pub const SOURCE: &str = "kubernetes.io/config.source";
/// What tells one content of a static pod from another: its uid.
pub const HASH: &str = "kubernetes.io/config.hash";
const SEEN: &str = "kubernetes.io/config.seen";
/// On a mirror pod: the hash of the static pod it stands for.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

/// The static pod as this node runs it: named after the node, bound to it, marked. Doing it again changes
/// nothing.
pub fn static_pod(written: &Pod, node: &str, uid: &PodUid, seen: Timestamp) -> Pod {
    let mut pod = written.clone();
    if annotation(&pod, SOURCE).is_some() {
        return pod;
    }
    let name = pod.metadata.name.take().unwrap_or_default();
    pod.metadata.name = Some(format!("{name}-{node}"));
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(SOURCE.to_owned(), "file".to_owned());
    annotations.insert(HASH.to_owned(), uid.to_string());
    annotations.insert(SEEN.to_owned(), seen.to_string());
    if let Some(spec) = &mut pod.spec {
        spec.node_name = Some(node.to_owned());
        // It came from the node itself: no taint of it ends the pod.
        let tolerations = spec.tolerations.get_or_insert_default();
        tolerations.push(Toleration {
            operator: Some("Exists".to_owned()),
            effect: Some("NoExecute".to_owned()),
            ..Toleration::default()
        });
    }
    pod
}

/// The object that shows the static pod in the API. It belongs to the Node, whose uid is `node_uid`.
pub fn mirror(pod: &Pod, node: &str, node_uid: &str) -> Pod {
    let mut annotations: BTreeMap<String, String> = pod.metadata.annotations.clone().unwrap_or_default();
    let hash = annotations.get(HASH).cloned().unwrap_or_default();
    annotations.insert(MIRROR.to_owned(), hash);
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.to_owned(),
        uid: node_uid.to_owned(),
        controller: Some(true),
        block_owner_deletion: None,
    };
    Pod {
        metadata: ObjectMeta {
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            labels: pod.metadata.labels.clone(),
            annotations: Some(annotations),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: pod.spec.clone(),
        status: None,
    }
}

/// Whether this is a mirror pod.
pub fn is_mirror(pod: &Pod) -> bool {
    annotation(pod, MIRROR).is_some()
}

/// Whether the mirror shows this static pod as it is now and nobody asked it to go.
pub fn shows(mirror: &Pod, pod: &Pod) -> bool {
    mirror.metadata.deletion_timestamp.is_none() && annotation(mirror, MIRROR) == annotation(pod, HASH)
}

fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn written() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "etcd", "namespace": "kube-system", "labels": {"tier": "control-plane"}},
            "spec": {"containers": [{"name": "etcd", "image": "etcd:1"}]}
        }))
        .unwrap()
    }

    #[test]
    fn a_static_pod_is_named_and_marked_once() {
        let seen = Timestamp::UNIX_EPOCH;
        let pod = static_pod(&written(), "n1", &"u1".into(), seen);
        assert_eq!(pod.metadata.name.as_deref(), Some("etcd-n1"));
        assert_eq!((annotation(&pod, SOURCE), annotation(&pod, HASH)), (Some("file"), Some("u1")));
        assert_eq!(pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()), Some("n1"));
        assert_eq!(static_pod(&pod, "n1", &"u1".into(), seen), pod);
    }

    #[test]
    fn a_mirror_shows_one_content_of_its_pod() {
        let pod = static_pod(&written(), "n1", &"u1".into(), Timestamp::UNIX_EPOCH);
        let mut mirror = mirror(&pod, "n1", "node-uid");
        assert!(is_mirror(&mirror) && !is_mirror(&pod) && shows(&mirror, &pod));
        let owner = &mirror.metadata.owner_references.as_ref().unwrap()[0];
        assert_eq!((owner.uid.as_str(), owner.controller), ("node-uid", Some(true)));
        let edited = static_pod(&written(), "n1", &"u2".into(), Timestamp::UNIX_EPOCH);
        assert!(!shows(&mirror, &edited));
        mirror.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH));
        assert!(!shows(&mirror, &pod));
    }
}
