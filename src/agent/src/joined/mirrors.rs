//! Mirror pods: every static pod of this node has one in the API that shows it, and no other has one. What
//! a mirror holds is decided in core; deleting one never stops the pod.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use longshore_cluster::pod_status::PodStatuses;
use longshore_cluster::{ApiClient, ApiError, path::Path};
use longshore_core::ids::{PodKey, PodUid};
use longshore_core::pod::desired::DesiredPod;
use longshore_core::pod::mirror;
use serde_json::json;
use tokio::sync::{Notify, watch};

/// What could not be done is tried again after this.
const AGAIN: Duration = Duration::from_secs(5);

/// Keeps mirror pods. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Mirrors {
    client: ApiClient,
    statuses: PodStatuses,
    node: Arc<str>,
    state: Arc<Mutex<State>>,
    wake: Arc<Notify>,
    /// Counts mirrors that came.
    came: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    /// Static pods that are wanted.
    pods: HashMap<PodKey, Arc<Pod>>,
    /// What the API server has.
    mirrors: HashMap<PodKey, Arc<Pod>>,
    /// Both have been told whole: a mirror without its pod may go.
    told: bool,
}

/// One thing to do.
enum Step {
    Create(PodKey, Arc<Pod>),
    Delete(PodKey, Arc<Pod>),
}

impl Mirrors {
    pub fn new(client: ApiClient, statuses: PodStatuses, node: &str) -> Self {
        Self {
            client,
            statuses,
            node: node.into(),
            state: Arc::default(),
            wake: Arc::default(),
            came: watch::Sender::new(0),
        }
    }

    /// A static pod is wanted, or no longer.
    pub fn want(&self, desired: &DesiredPod) {
        let mut state = self.lock();
        let before = state.pods.get(&desired.key).and_then(|pod| pod.metadata.uid.clone());
        match &desired.deletion {
            None => drop(state.pods.insert(desired.key.clone(), desired.pod.clone())),
            // An edited pod's next life may have come before the end of the one before.
            Some(_) if before.as_deref() == Some(desired.uid.as_str()) => {
                drop(state.pods.remove(&desired.key))
            }
            Some(_) => {}
        }
        drop(state);
        self.wake.notify_one();
    }

    /// What the API server has under a key.
    pub fn set(&self, key: PodKey, pod: Arc<Pod>) {
        if let Some(uid) = uid(&pod) {
            self.statuses.server(&uid, pod.clone());
        }
        let new = self.lock().mirrors.insert(key, pod).is_none();
        if new {
            self.came.send_modify(|count| *count += 1);
        }
        self.wake.notify_one();
    }

    pub fn gone(&self, key: &PodKey, pod: &Pod) {
        if let Some(uid) = uid(pod) {
            self.statuses.gone(&uid);
        }
        let mut state = self.lock();
        if state.mirrors.get(key).is_some_and(|known| known.metadata.uid == pod.metadata.uid) {
            state.mirrors.remove(key);
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Such ones of those the API server has.
    pub fn those(&self, is_such: impl Fn(&Pod) -> bool) -> Vec<Arc<Pod>> {
        self.lock().mirrors.values().filter(|pod| is_such(pod)).cloned().collect()
    }

    /// The mirror a static pod's status goes to.
    pub fn uid_of(&self, key: &PodKey) -> Option<PodUid> {
        uid(self.lock().mirrors.get(key)?)
    }

    /// Moves when a mirror comes that there was not.
    pub fn came(&self) -> watch::Receiver<u64> {
        self.came.subscribe()
    }

    /// Everything was told once on both sides.
    pub fn told(&self) {
        self.lock().told = true;
        self.wake.notify_one();
    }

    /// Keeps them for ever; ends by being dropped.
    pub async fn run(self, mut told: watch::Receiver<Option<Node>>) {
        let mut failed = false;
        loop {
            let node_uid = told.borrow_and_update().as_ref().and_then(|node| node.metadata.uid.clone());
            if let Some(node_uid) = node_uid {
                failed = !self.once(&node_uid).await;
            }
            tokio::select! {
                () = self.wake.notified() => {}
                changed = told.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(AGAIN), if failed => {}
            }
        }
    }

    /// Answers whether all that was due was done.
    async fn once(&self, node_uid: &str) -> bool {
        let mut fine = true;
        for step in self.due() {
            let (key, result) = match step {
                Step::Create(key, pod) => {
                    let made = mirror::mirror(&pod, &self.node, node_uid);
                    let path = Path::core_in(&key.namespace, "pods");
                    let result: Result<Pod, ApiError> = self.client.create(&path, &made).await;
                    (key, result.map(drop))
                }
                Step::Delete(key, pod) => {
                    let options = json!({
                        "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0,
                        "preconditions": {"uid": pod.metadata.uid},
                    });
                    let result = self.client.delete(&Path::pod(&key.namespace, &key.name), &options).await;
                    (key, result)
                }
            };
            match result {
                // The watch tells what there is instead.
                Err(error) if error.is_not_found() || error.is_conflict() || error.is_already_exists() => {}
                Err(error) => {
                    fine = false;
                    tracing::warn!(pod = %key, "mirror pod: {}", error.one_line());
                }
                Ok(()) => {}
            }
        }
        fine
    }

    fn due(&self) -> Vec<Step> {
        let state = self.lock();
        let mut due = Vec::new();
        for (key, pod) in &state.pods {
            match state.mirrors.get(key) {
                None => due.push(Step::Create(key.clone(), pod.clone())),
                Some(there) if !mirror::shows(there, pod) => {
                    due.push(Step::Delete(key.clone(), there.clone()))
                }
                Some(_) => {}
            }
        }
        let orphaned = state.mirrors.iter().filter(|(key, _)| state.told && !state.pods.contains_key(key));
        due.extend(orphaned.map(|(key, there)| Step::Delete(key.clone(), there.clone())));
        due
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn uid(pod: &Pod) -> Option<PodUid> {
    pod.metadata.uid.as_deref().map(PodUid::from)
}
