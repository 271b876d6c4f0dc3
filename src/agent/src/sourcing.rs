//! From sources to workers: each change of an object goes where it is used, and what no source wants
//! is ended once every source was heard. Reading the sources is in `sources`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use longshore_cluster::ApiClient;
use longshore_cluster::client::Reachable;
use longshore_core::ids::ObjectKey;
use longshore_core::pod::desired::{Deletion, DesiredPod, EndCause, PodSource};
use longshore_core::pod::observed::ObservedPod;
use longshore_core::service::env;
use longshore_core::service::types::Service;
use longshore_core::wire::{ObjectKind, SourceProblem};
use serde::Serialize;
use tokio::sync::mpsc::UnboundedSender;

use crate::pods::{PodRecord, Pods};
use crate::reads::SourceReads;
use crate::services::News;
use crate::sources::{Change, KeptSlice, Manifests, ObjectStore};

/// Every object heard so far, and where changes go.
pub struct Sourcing {
    pods: Pods,
    objects: ObjectStore,
    services: Mutex<BTreeMap<ObjectKey, Service>>,
    /// A Service changed since the variables of containers were made.
    variables_are_old: AtomicBool,
    slices: Mutex<BTreeMap<ObjectKey, KeptSlice>>,
    to_services: Option<UnboundedSender<News>>,
    manifests: OnceLock<Manifests>,
    control_plane: OnceLock<ApiClient>,
}

impl fmt::Debug for Sourcing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sourcing").field("objects", &self.objects).finish_non_exhaustive()
    }
}

impl Sourcing {
    pub fn new(pods: Pods, objects: ObjectStore, to_services: Option<UnboundedSender<News>>) -> Self {
        Self {
            pods,
            objects,
            services: Mutex::default(),
            variables_are_old: AtomicBool::new(false),
            slices: Mutex::default(),
            to_services,
            manifests: OnceLock::new(),
            control_plane: OnceLock::new(),
        }
    }

    /// The API server, for its line in `why node`.
    pub fn show_control_plane(&self, client: ApiClient) {
        // One per daemon, as with the folder.
        let _ = self.control_plane.set(client);
    }

    /// The watched folder, for its problems and its line in `why node`.
    pub fn show(&self, manifests: Manifests) {
        // There is one folder per daemon; a second one would be a mistake in the wiring.
        let _ = self.manifests.set(manifests);
    }

    /// Takes one change further.
    pub fn take(&self, change: Change) {
        match &change {
            Change::Pod(desired) => return self.pods.desire((**desired).clone()),
            Change::ConfigMap(key, map) => return self.objects.set_config_map(key.clone(), map.clone()),
            Change::Secret(key, secret) => return self.objects.set_secret(key.clone(), secret.clone()),
            Change::Service(key, service) => put(&self.services, key, service.as_deref()),
            Change::EndpointSlice(key, slice) => put(&self.slices, key, slice.as_ref()),
        }
        self.tell_services(News::Source(change));
    }

    /// Keeps a Service of the control plane for `get` and for the variables of containers.
    pub fn note_service(&self, key: &ObjectKey, service: Option<&Service>) {
        put(&self.services, key, service);
        self.variables_are_old.store(true, Ordering::Release);
    }

    /// The variables containers get of all Services heard of, by namespace; `None` where they are what was given
    /// last.
    pub fn new_service_variables(&self) -> Option<BTreeMap<String, Vec<(String, String)>>> {
        let old = self.variables_are_old.swap(false, Ordering::AcqRel);
        old.then(|| env::variables(lock(&self.services).values()))
    }

    /// Every source was heard once.
    pub fn synced(&self) {
        self.tell_services(News::SourcesSynced { pods: self.pods.workers() });
    }

    fn tell_services(&self, news: News) {
        if let Some(services) = &self.to_services {
            // The task only ends with the daemon.
            let _ = services.send(news);
        }
    }

    /// Ends what runs, or left something behind, and no source wants. To be called once every source
    /// was heard, and after each audit since.
    pub fn end_unclaimed(&self, now: Timestamp) {
        for (observed, record) in self.pods.take_unclaimed() {
            self.pods.desire(unclaimed(observed, record, now));
        }
    }
}

fn put<T: Clone>(map: &Mutex<BTreeMap<ObjectKey, T>>, key: &ObjectKey, value: Option<&T>) {
    let mut map = lock(map);
    match value {
        Some(value) => drop(map.insert(key.clone(), value.clone())),
        None => drop(map.remove(key)),
    }
}

fn lock<T>(map: &Mutex<T>) -> MutexGuard<'_, T> {
    map.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The wish to end a pod that no source mentions. One whose record is there was removed while the
/// daemon was away and gets the grace its spec promises; of any other only the runtime's labels tell.
fn unclaimed(observed: ObservedPod, record: Option<PodRecord>, now: Timestamp) -> DesiredPod {
    if let Some(record) = record {
        let spec = record.pod.spec.as_ref();
        let grace = spec.and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
        let deletion = Deletion {
            requested_at: now,
            grace_seconds: u32::try_from(grace.max(0)).unwrap_or(u32::MAX),
            cause: EndCause::Deleted,
        };
        let mut desired = record.desired();
        desired.deletion.get_or_insert(deletion);
        return desired;
    }
    let labels = observed.sandboxes.first().map(|sandbox| sandbox.labels.clone()).unwrap_or_default();
    let metadata = ObjectMeta {
        name: Some(observed.key.name.to_string()),
        namespace: Some(observed.key.namespace.to_string()),
        uid: Some(observed.uid.to_string()),
        labels: Some(labels),
        ..ObjectMeta::default()
    };
    DesiredPod {
        key: observed.key,
        uid: observed.uid,
        pod: Arc::new(Pod { metadata, ..Pod::default() }),
        source: PodSource::Runtime,
        seen_at: now,
        deletion: None,
    }
}

impl SourceReads for Sourcing {
    fn sources(&self) -> Vec<String> {
        let server = self.control_plane.get().map(|client| {
            let how = match &*client.reachable().borrow() {
                Reachable::Unknown => "not asked yet",
                Reachable::Yes => "answers",
                Reachable::No { .. } => "does not answer",
            };
            format!("API server {}: {how}", client.server())
        });
        server.into_iter().chain(self.manifests.get().map(Manifests::summary)).collect()
    }

    fn problems(&self) -> Vec<SourceProblem> {
        let mut problems = self.manifests.get().map(Manifests::problems).unwrap_or_default();
        if let Some(client) = self.control_plane.get()
            && let Reachable::No { why, since } = &*client.reachable().borrow()
        {
            let message = format!("is not reached, and the node goes on with what it knows: {why}");
            problems.push(SourceProblem {
                place: format!("API server {}", client.server()),
                object: None,
                message,
                since: *since,
            });
        }
        problems
    }

    fn objects(&self, kind: ObjectKind) -> Vec<ObjectKey> {
        match kind {
            ObjectKind::Service => lock(&self.services).keys().cloned().collect(),
            ObjectKind::EndpointSlice => lock(&self.slices).keys().cloned().collect(),
            ObjectKind::ConfigMap => self.objects.all().config_maps.into_keys().collect(),
            ObjectKind::Secret => self.objects.all().secrets.into_keys().collect(),
        }
    }

    fn object(&self, kind: ObjectKind, key: &ObjectKey) -> Option<serde_json::Value> {
        fn json<T: Serialize>(object: Option<&T>) -> Option<serde_json::Value> {
            serde_json::to_value(object?).ok()
        }
        match kind {
            ObjectKind::Service => json(lock(&self.services).get(key)),
            ObjectKind::EndpointSlice => json(lock(&self.slices).get(key).map(KeptSlice::read).as_ref()),
            ObjectKind::ConfigMap => json(self.objects.all().config_maps.get(key).map(|map| &**map)),
            ObjectKind::Secret => json(self.objects.all().secrets.get(key).map(|secret| &**secret)),
        }
    }
}
