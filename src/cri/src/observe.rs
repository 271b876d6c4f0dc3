//! Reading whole pods from the runtime: lists by label, then the status of each object, at the same time.
//! What to do about what is found is the planner's business.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use longshore_core::ids::{ContainerId, PodKey, PodUid, SandboxId};
use longshore_core::pod::observed::{ObservedContainer, ObservedPod, ObservedSandbox, SandboxState};

use crate::containers::{ContainerFilter, ContainerPhase, Containers, ListedContainer};
use crate::convert::Listing;
use crate::error::{CriError, ErrorKind};
use crate::sandboxes::{ListedSandbox, SandboxFilter, Sandboxes};

/// Status calls in flight at once. containerd answers them from memory; more would only queue there.
const CONCURRENT_CALLS: usize = 16;

/// Reads pods from a runtime.
#[derive(Clone)]
pub struct Observer {
    sandboxes: Arc<dyn Sandboxes>,
    containers: Arc<dyn Containers>,
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Observer")
    }
}

/// All pods of the node.
#[derive(Clone, Debug, Default)]
pub struct NodeObservation {
    pub pods: BTreeMap<PodUid, ObservedPod>,
    /// Objects that could not be read. Where the pod is known, it is missing from `pods` as a whole: half
    /// a pod must not be planned on.
    pub rejected: Vec<Rejected>,
}

/// Something the runtime has that could not be read.
#[derive(Clone, Debug)]
pub struct Rejected {
    pub pod: Option<PodUid>,
    /// One line, naming the object.
    pub problem: String,
}

/// What is cheap to know of a pod: ids and phases. Two digests differ when something happened to the pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodDigest {
    pub sandboxes: BTreeMap<SandboxId, SandboxState>,
    pub containers: BTreeMap<ContainerId, ContainerPhase>,
}

impl Observer {
    pub fn new(sandboxes: Arc<dyn Sandboxes>, containers: Arc<dyn Containers>) -> Self {
        Self { sandboxes, containers }
    }

    /// Everything the runtime has under one pod uid, finished instances included; `None` where it has
    /// nothing. `now` becomes `observed_at`. Two list calls and one status call per object.
    ///
    /// # Errors
    /// Of the first call that fails, also when one object of the pod cannot be read: half a pod must not
    /// be planned on.
    pub async fn observe_pod(&self, uid: &PodUid, now: Timestamp) -> Result<Option<ObservedPod>, CriError> {
        let sandbox_filter = SandboxFilter { pod: Some(uid.clone()), ..Default::default() };
        let container_filter = ContainerFilter { pod: Some(uid.clone()), ..Default::default() };
        let (sandboxes, containers) = tokio::try_join!(
            self.sandboxes.list_sandboxes(&sandbox_filter),
            self.containers.list_containers(&container_filter),
        )?;
        let of_pod =
            |error| CriError::bad_answer(crate::counters::Operation::ListContainers, uid.to_string(), error);
        if let Some(error) = sandboxes.rejected.into_iter().chain(containers.rejected).next() {
            return Err(of_pod(error));
        }
        let listed = ListedPod::new(sandboxes.items, containers.items);
        match listed {
            None => Ok(None),
            Some(listed) => self.read(uid.clone(), listed, now).await,
        }
    }

    /// Every pod of the node, for adoption and audit. Objects without the pod uid label are other
    /// programs' and left out.
    pub async fn list_all(&self, now: Timestamp) -> Result<NodeObservation, CriError> {
        let (by_pod, mut rejected) = self.list().await?;
        let mut found = NodeObservation::default();
        let mut reads = stream::iter(by_pod)
            .map(|(uid, listed)| async move { (uid.clone(), self.read(uid, listed, now).await) })
            // Each pod reads its objects one after the other here, so that the bound holds.
            .buffer_unordered(CONCURRENT_CALLS);
        while let Some((uid, result)) = reads.next().await {
            match result {
                Ok(Some(pod)) => drop(found.pods.insert(uid, pod)),
                Ok(None) => {}
                Err(error) if error.kind == ErrorKind::BadAnswer => {
                    rejected.push(Rejected { pod: Some(uid), problem: error.one_line() });
                }
                Err(error) => return Err(error),
            }
        }
        drop(reads);
        found.rejected = rejected;
        Ok(found)
    }

    /// Ids and phases of every pod, by two list calls: what a relist compares where the runtime has no
    /// events. Objects that cannot be read are left out.
    pub async fn digests(&self) -> Result<BTreeMap<PodUid, PodDigest>, CriError> {
        let (by_pod, _rejected) = self.list().await?;
        let digest = |listed: ListedPod| PodDigest {
            sandboxes: listed.sandboxes.into_iter().map(|item| (item.id, item.state)).collect(),
            containers: listed.containers.into_iter().map(|item| (item.id, item.phase)).collect(),
        };
        Ok(by_pod.into_iter().map(|(uid, listed)| (uid, digest(listed))).collect())
    }

    /// Both lists, sorted by pod.
    async fn list(&self) -> Result<(BTreeMap<PodUid, ListedPod>, Vec<Rejected>), CriError> {
        let sandboxes = self.list_sandboxes().await?;
        let containers = self.list_containers(&sandboxes.items).await?;
        let mut pods: BTreeMap<PodUid, ListedPod> = BTreeMap::new();
        for item in sandboxes.items {
            if let Some(uid) = item.pod.clone() {
                pods.entry(uid).or_default().sandboxes.push(item);
            }
        }
        for item in containers.items {
            if let Some(uid) = item.pod.clone() {
                pods.entry(uid).or_default().containers.push(item);
            }
        }
        let rejected = sandboxes.rejected.into_iter().chain(containers.rejected);
        let rejected = rejected.map(|error| Rejected { pod: None, problem: error.to_string() }).collect();
        Ok((pods, rejected))
    }

    /// All sandboxes; by state where all at once do not fit into one message. A sandbox only goes from
    /// ready to not ready, so in this order none is missed; one seen twice counts as not ready.
    async fn list_sandboxes(&self) -> Result<Listing<ListedSandbox>, CriError> {
        let all = self.sandboxes.list_sandboxes(&SandboxFilter::default()).await;
        if !all.as_ref().is_err_and(|error| error.kind == ErrorKind::TooLarge) {
            return all;
        }
        let mut found: BTreeMap<SandboxId, ListedSandbox> = BTreeMap::new();
        let mut rejected = Vec::new();
        for state in [SandboxState::Ready, SandboxState::NotReady] {
            let filter = SandboxFilter { state: Some(state), ..Default::default() };
            let part = self.sandboxes.list_sandboxes(&filter).await?;
            found.extend(part.items.into_iter().map(|item| (item.id.clone(), item)));
            rejected.extend(part.rejected);
        }
        Ok(Listing { items: found.into_values().collect(), rejected })
    }

    /// All containers; sandbox by sandbox where all at once do not fit into one message.
    async fn list_containers(
        &self,
        sandboxes: &[ListedSandbox],
    ) -> Result<Listing<ListedContainer>, CriError> {
        let all = self.containers.list_containers(&ContainerFilter::default()).await;
        if !all.as_ref().is_err_and(|error| error.kind == ErrorKind::TooLarge) {
            return all;
        }
        let filters: Vec<ContainerFilter> = sandboxes
            .iter()
            .map(|sandbox| ContainerFilter { sandbox: Some(sandbox.id.clone()), ..Default::default() })
            .collect();
        let mut whole = Listing { items: Vec::new(), rejected: Vec::new() };
        let calls: Vec<_> = filters.iter().map(|filter| self.containers.list_containers(filter)).collect();
        let mut parts = stream::iter(calls).buffer_unordered(CONCURRENT_CALLS);
        while let Some(part) = parts.next().await {
            let part = part?;
            whole.items.extend(part.items);
            whole.rejected.extend(part.rejected);
        }
        Ok(whole)
    }

    /// The statuses of what was listed. What is gone by now is left out; `None` where all is gone.
    async fn read(
        &self,
        uid: PodUid,
        listed: ListedPod,
        now: Timestamp,
    ) -> Result<Option<ObservedPod>, CriError> {
        let key = listed.key();
        let sandboxes = async {
            let calls: Vec<_> =
                listed.sandboxes.iter().map(|item| self.sandboxes.sandbox_status(&item.id)).collect();
            let mut reads = stream::iter(calls).buffer_unordered(CONCURRENT_CALLS);
            let mut found: Vec<ObservedSandbox> = Vec::new();
            while let Some(result) = reads.next().await {
                found.extend(unless_gone(result)?);
            }
            Ok::<_, CriError>(found)
        };
        let containers = async {
            let calls: Vec<_> = listed
                .containers
                .iter()
                .map(|item| self.containers.container_status(&item.id, &item.sandbox))
                .collect();
            let mut reads = stream::iter(calls).buffer_unordered(CONCURRENT_CALLS);
            let mut found: Vec<ObservedContainer> = Vec::new();
            while let Some(result) = reads.next().await {
                found.extend(unless_gone(result)?);
            }
            Ok::<_, CriError>(found)
        };
        let (mut sandboxes, mut containers) = tokio::try_join!(sandboxes, containers)?;
        if sandboxes.is_empty() && containers.is_empty() {
            return Ok(None);
        }
        sandboxes.sort_by(|a, b| (b.attempt, b.created_at, &b.id).cmp(&(a.attempt, a.created_at, &a.id)));
        containers.sort_by(|a, b| (b.created_at, b.attempt, &b.id).cmp(&(a.created_at, a.attempt, &a.id)));
        let key = key.unwrap_or_else(|| key_from_labels(&containers));
        Ok(Some(ObservedPod { uid, key, sandboxes, containers, observed_at: now }))
    }
}

fn unless_gone<T>(result: Result<T, CriError>) -> Result<Option<T>, CriError> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// For containers whose sandbox is gone already.
fn key_from_labels(containers: &[ObservedContainer]) -> PodKey {
    use crate::convert::labels;
    let label =
        |name| containers.iter().find_map(|container| container.labels.get(name)).map_or("", String::as_str);
    PodKey::new(label(labels::POD_NAMESPACE), label(labels::POD_NAME))
}

#[derive(Debug, Default)]
struct ListedPod {
    sandboxes: Vec<ListedSandbox>,
    containers: Vec<ListedContainer>,
}

impl ListedPod {
    /// `None` where there is nothing.
    fn new(sandboxes: Vec<ListedSandbox>, containers: Vec<ListedContainer>) -> Option<Self> {
        (!sandboxes.is_empty() || !containers.is_empty()).then_some(Self { sandboxes, containers })
    }

    fn key(&self) -> Option<PodKey> {
        self.sandboxes.first().map(|sandbox| sandbox.key.clone())
    }
}
