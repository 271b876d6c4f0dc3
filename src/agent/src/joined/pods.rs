//! Pods of the API server for this node: what it tells becomes wishes for the pods' workers. Mirror pods
//! stand for static pods and are not run.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::{Pod, PodCondition, PodSpec};
use longshore_cluster::path::Path;
use longshore_cluster::pod_status::PodStatuses;
use longshore_cluster::{ApiClient, Piece, Unreadable};
use longshore_core::ids::{ObjectKey, PodKey, PodUid};
use longshore_core::pod::desired::{Deletion, DesiredPod, EndCause, PodSource};
use longshore_core::pod::mirror;
use longshore_core::pod::report::OWN_CONDITIONS;
use longshore_core::resources::placement;
use tokio::sync::watch;

use super::mirrors::Mirrors;
use super::references::References;
use super::tokens::Tokens;
use crate::node::Node;
use crate::pods::Clock;
use crate::sources::Change;
use crate::sourcing::Sourcing;

/// The API server's pods of this node.
#[derive(Debug)]
pub(super) struct ApiPods {
    pub client: ApiClient,
    pub node: Node,
    pub clock: Clock,
    pub sourcing: Arc<Sourcing>,
    pub references: References,
    pub tokens: Tokens,
    pub statuses: PodStatuses,
    pub mirrors: Mirrors,
    pub known: Mutex<HashMap<PodUid, Arc<Pod>>>,
    /// Everything was told once.
    pub synced: watch::Sender<bool>,
}

impl ApiPods {
    /// Takes what the watch tells.
    pub(super) fn take(self: &Arc<Self>, piece: Piece<Pod>) {
        match piece {
            // Its pods are told as they are read.
            Piece::Begins => {}
            Piece::Set(_, pod) => self.set(pod),
            Piece::Gone(_, Some(pod)) => self.gone(&pod),
            Piece::Gone(key, None) => self.all_gone(|pod| is_named(pod, &key)),
            Piece::Listed(there) => {
                self.all_gone(|pod| is_unlisted(pod, &there));
                // Static pods were read before the API server was asked.
                self.mirrors.told();
                self.synced.send_replace(true);
            }
            Piece::Unreadable(Unreadable { key, problem, .. }) => {
                tracing::error!(pod = %key, problem, "a pod of the API server cannot be read and is left alone");
            }
        }
    }

    /// Such pods are gone from the server.
    fn all_gone(&self, is_gone: impl Fn(&Pod) -> bool) {
        let mut gone: Vec<_> = self.known().values().filter(|pod| is_gone(pod)).cloned().collect();
        gone.extend(self.mirrors.those(is_gone));
        gone.iter().for_each(|pod| self.gone(pod));
    }

    /// A pod of an earlier run of the daemon, wanted as it was until the API server says otherwise.
    pub(super) fn remember(&self, pod: DesiredPod) {
        self.known().entry(pod.uid.clone()).or_insert_with(|| pod.pod.clone());
        self.references.want(&pod.uid, &pod.pod);
        self.tokens.want(&pod.key, &pod.uid, &pod.pod);
        self.sourcing.take(Change::Pod(Box::new(pod)));
    }

    fn set(self: &Arc<Self>, pod: Pod) {
        let Some((key, uid)) = identity(&pod) else {
            tracing::error!(name = pod.metadata.name, "a pod of the API server has names no pod can have");
            return;
        };
        // A name is one pod's: where the end of the one before was missed, this is the news of it.
        self.all_gone(|before| replaces(&pod, before));
        let pod = Arc::new(pod);
        if mirror::is_mirror(&pod) {
            return self.mirrors.set(key, pod);
        }
        self.statuses.server(&uid, pod.clone());
        let before = self.known().insert(uid.clone(), pod.clone());
        if self.statuses.is_finished(&uid) || before.is_some_and(|before| says_the_same(&before, &pod)) {
            return;
        }
        self.references.want(&uid, &pod);
        self.tokens.want(&key, &uid, &pod);
        let now = self.clock.now();
        let deletion = pod.metadata.deletion_timestamp.as_ref().map(|_| {
            let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(30);
            Deletion { requested_at: now, grace_seconds: grace_seconds(grace), cause: EndCause::Deleted }
        });
        let desired = DesiredPod { key, uid, pod, source: PodSource::Api, seen_at: now, deletion };
        if desired.deletion.is_none() && self.seems_misplaced(&desired.pod) {
            tokio::spawn(self.clone().take_with_fresh_node(desired));
            return;
        }
        self.tell_variables();
        self.sourcing.take(Change::Pod(Box::new(desired)));
    }

    /// Variables of Services are made now and then, as they are made of all; a pod has those of every Service that
    /// was told before it, as with the kubelet.
    fn tell_variables(&self) {
        // Before that no container is made, and each piece of the first list would make them anew.
        if self.node.now().services_synced
            && let Some(variables) = self.sourcing.new_service_variables()
        {
            self.node.set_service_env(variables);
        }
    }

    fn seems_misplaced(&self, pod: &Pod) -> bool {
        let node = self.node.now();
        node.placement.as_deref().is_some_and(|known| placement::selected(pod, known).is_err())
    }

    /// Labels may have changed a moment ago, and the scheduler have seen it first: a refusal is final, so the object
    /// is read anew before.
    async fn take_with_fresh_node(self: Arc<Self>, desired: DesiredPod) {
        let path = Path::node(&self.node.now().name);
        match self.client.get(&path).await {
            Ok(node) => self.node.set_placement(super::node::placement(&node)),
            Err(error) => tracing::warn!(pod = %desired.key, "Node object: {}", error.one_line()),
        }
        // What was told of the pod meanwhile counts, and was or will be taken by itself.
        let newest = self.known().get(&desired.uid).is_some_and(|known| Arc::ptr_eq(known, &desired.pod));
        if newest {
            self.sourcing.take(Change::Pod(Box::new(desired)));
        }
    }

    /// The object is gone while the pod may still run: it ends with the grace it was promised.
    fn gone(&self, pod: &Pod) {
        let Some((key, uid)) = identity(pod) else { return };
        if mirror::is_mirror(pod) {
            return self.mirrors.gone(&key, pod);
        }
        self.statuses.gone(&uid);
        let Some(known) = self.known().remove(&uid) else { return };
        self.references.release(&uid);
        self.tokens.release(&uid);
        let spec = known.spec.as_ref();
        let promised = spec.and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
        let grace = known.metadata.deletion_grace_period_seconds.unwrap_or(promised);
        let now = self.clock.now();
        let deletion =
            Deletion { requested_at: now, grace_seconds: grace_seconds(grace), cause: EndCause::Deleted };
        let desired = DesiredPod {
            key,
            uid,
            pod: known,
            source: PodSource::Api,
            seen_at: now,
            deletion: Some(deletion),
        };
        self.sourcing.take(Change::Pod(Box::new(desired)));
    }

    fn known(&self) -> MutexGuard<'_, HashMap<PodUid, Arc<Pod>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_named(pod: &Pod, key: &ObjectKey) -> bool {
    let metadata = &pod.metadata;
    metadata.name.as_deref() == Some(&*key.name) && metadata.namespace.as_deref() == Some(&*key.namespace)
}

/// What the list does not name. A pod that cannot be read is in it by its name.
fn is_unlisted(pod: &Pod, there: &HashSet<ObjectKey>) -> bool {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    !there.contains(&ObjectKey::new(text(&pod.metadata.namespace), text(&pod.metadata.name)))
}

/// Another life under the same name.
fn replaces(pod: &Pod, before: &Pod) -> bool {
    let (now, then) = (&pod.metadata, &before.metadata);
    now.uid != then.uid && now.name == then.name && now.namespace == then.namespace
}

fn grace_seconds(seconds: i64) -> u32 {
    u32::try_from(seconds.max(0)).unwrap_or(u32::MAX)
}

/// Names end up in paths: one with a slash or a leading dot is not for us, whoever let it through.
fn identity(pod: &Pod) -> Option<(PodKey, PodUid)> {
    let plain = |text: &Option<String>| text.clone().filter(|text| is_plain(text));
    let metadata = &pod.metadata;
    let key = PodKey::new(plain(&metadata.namespace)?, plain(&metadata.name)?);
    let uid = PodUid::from(plain(&metadata.uid)?);
    pod.spec.as_ref().is_none_or(has_plain_names).then_some((key, uid))
}

/// Of its volumes and containers, whose folders are named after them.
fn has_plain_names(spec: &PodSpec) -> bool {
    let volumes = spec.volumes.iter().flatten().map(|volume| &volume.name);
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|container| &container.name);
    let mut names = volumes.chain(containers.map(|container| &container.name)).chain(ephemeral);
    names.all(|name| is_plain(name))
}

/// All of these become parts of paths: nothing else may come of them, whoever has let them through.
fn is_plain(name: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    !name.is_empty() && !name.starts_with('.') && name.chars().all(fine)
}

/// Whether an update holds nothing but what we wrote ourselves.
fn says_the_same(before: &Pod, now: &Pod) -> bool {
    let of_others = |pod: &Pod| -> Vec<PodCondition> {
        let all = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        all.filter(|one| !OWN_CONDITIONS.contains(&one.type_.as_str())).cloned().collect()
    };
    let (a, b) = (&before.metadata, &now.metadata);
    before.spec == now.spec
        && a.labels == b.labels
        && a.annotations == b.annotations
        && a.generation == b.generation
        && a.deletion_timestamp == b.deletion_timestamp
        && a.deletion_grace_period_seconds == b.deletion_grace_period_seconds
        && of_others(before) == of_others(now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(change: impl FnOnce(&mut Value)) -> Pod {
        let mut pod = json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "u-1", "resourceVersion": "1"},
            "spec": {"containers": [{"name": "c", "image": "i"}]},
            "status": {"phase": "Pending"}
        });
        change(&mut pod);
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn our_own_echo_is_no_news() {
        let base = pod(|_| {});
        let cases: [(fn(&mut Value), bool); 7] = [
            (|pod| pod["metadata"]["resourceVersion"] = json!("2"), true),
            (|pod| pod["status"]["phase"] = json!("Running"), true),
            (|pod| pod["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]), true),
            (|pod| pod["status"]["conditions"] = json!([{"type": "a/gate", "status": "True"}]), false),
            (|pod| pod["metadata"]["labels"] = json!({"a": "b"}), false),
            (|pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"), false),
            (|pod| pod["spec"]["containers"][0]["image"] = json!("j"), false),
        ];
        for (change, same) in cases {
            let changed = pod(change);
            assert_eq!(says_the_same(&base, &changed), same, "{changed:?}");
        }
    }

    #[test]
    fn a_pod_is_gone_when_no_list_names_it_and_not_when_it_cannot_be_read() {
        let named = |name: &str| pod(|pod| pod["metadata"]["name"] = json!(name));
        // What cannot be read is in the list by its name.
        let there = HashSet::from(["web", "unreadable"].map(|name| ObjectKey::new("default", name)));
        let gone = ["web", "unreadable", "removed"].map(|name| is_unlisted(&named(name), &there));
        assert_eq!(gone, [false, false, true]);
        let here = ["default", "elsewhere"]
            .map(|namespace| is_named(&named("web"), &ObjectKey::new(namespace, "web")));
        assert_eq!(here, [true, false], "the same name in another namespace");
    }

    #[test]
    fn a_pod_of_the_same_name_is_the_end_of_the_one_before() {
        let before = pod(|_| {});
        let cases: [(fn(&mut Value), bool); 4] = [
            (|_| {}, false),
            (|pod| pod["metadata"]["uid"] = json!("u-2"), true),
            (|pod| pod["metadata"] = json!({"name": "web", "namespace": "other", "uid": "u-2"}), false),
            (|pod| pod["metadata"] = json!({"name": "db", "namespace": "default", "uid": "u-2"}), false),
        ];
        for (change, ends) in cases {
            let now = pod(change);
            assert_eq!(replaces(&now, &before), ends, "{now:?}");
        }
    }

    #[test]
    fn names_that_leave_their_folder_are_refused() {
        assert!(identity(&pod(|_| {})).is_some());
        for field in ["name", "namespace", "uid"] {
            for bad in ["../x", "a/b", "", ".", "a\n"] {
                let evil = pod(|pod| pod["metadata"][field] = json!(bad));
                assert!(identity(&evil).is_none(), "{field} {bad:?}");
            }
        }
        for bad in ["../x", "a/b", "..", "", "a/../../../etc"] {
            let named = json!([{"name": bad}]);
            for list in ["volumes", "containers", "initContainers", "ephemeralContainers"] {
                let evil = pod(|pod| pod["spec"][list] = named.clone());
                assert!(identity(&evil).is_none(), "{list} {bad:?}");
            }
        }
    }
}
