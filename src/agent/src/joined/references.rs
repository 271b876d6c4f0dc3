//! ConfigMaps and Secrets that pods of this node refer to: each is watched once, for as long as a pod
//! refers to it (behaviours 48). A node may only ask for these, one by one (Node authorizer).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use longshore_cluster::{ApiClient, News, Selector, Watch, path::Path};
use longshore_core::ids::{ObjectKey, PodUid};
use longshore_core::pod::snapshot::ObjectRef;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::sources::{ObjectStore, references};

/// Watches what is referred to. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct References {
    client: ApiClient,
    store: ObjectStore,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    by_pod: HashMap<PodUid, BTreeSet<ObjectRef>>,
    watched: HashMap<ObjectRef, Watched>,
}

#[derive(Debug)]
struct Watched {
    pods: HashSet<PodUid>,
    task: JoinHandle<()>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl References {
    pub fn new(client: ApiClient, store: ObjectStore) -> Self {
        Self { client, store, state: Arc::default() }
    }

    /// The pod refers to these from now on.
    pub fn want(&self, uid: &PodUid, pod: &Pod) {
        let wanted = references(pod);
        let mut state = self.lock();
        let before = state.by_pod.insert(uid.clone(), wanted.clone()).unwrap_or_default();
        for object in wanted.difference(&before) {
            let watched = state.watched.entry(object.clone()).or_insert_with(|| Watched {
                pods: HashSet::new(),
                task: tokio::spawn(follow(self.client.clone(), self.store.clone(), object.clone())),
            });
            watched.pods.insert(uid.clone());
        }
        for object in before.difference(&wanted) {
            self.drop_one(&mut state, uid, object);
        }
    }

    /// The pod is gone.
    pub fn release(&self, uid: &PodUid) {
        let mut state = self.lock();
        for object in state.by_pod.remove(uid).unwrap_or_default() {
            self.drop_one(&mut state, uid, &object);
        }
    }

    fn drop_one(&self, state: &mut State, uid: &PodUid, object: &ObjectRef) {
        let Some(watched) = state.watched.get_mut(object) else { return };
        watched.pods.remove(uid);
        if watched.pods.is_empty() {
            state.watched.remove(object);
            self.store.forget(object);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn follow(client: ApiClient, store: ObjectStore, object: ObjectRef) {
    let selector = |key: &ObjectKey, resource: &str| {
        Selector::all(Path::core_in(&key.namespace, resource)).fields(format!("metadata.name={}", key.name))
    };
    // An immutable object never changes: one that was read needs no watch any more (KEP-1412).
    let settled = Arc::new(Notify::new());
    let settle = settled.clone();
    let fetched = object.clone();
    let told = store.clone();
    match object {
        ObjectRef::ConfigMap(key) => {
            let watch = Watch::<ConfigMap>::new(client, selector(&key, "configmaps"));
            let run = watch.run(move |news| {
                let Some(map) = newest(news, &key).map(|map| map.map(Arc::new)) else { return };
                let immutable = map.as_ref().is_some_and(|map| map.immutable == Some(true));
                store.set_config_map(key.clone(), map);
                told.set_fetched(fetched.clone());
                if immutable {
                    settle.notify_one();
                }
            });
            tokio::select! { () = run => {}, () = settled.notified() => {} }
        }
        ObjectRef::Secret(key) => {
            let watch = Watch::<Secret>::new(client, selector(&key, "secrets"));
            let run = watch.run(move |news| {
                let Some(secret) = newest(news, &key).map(|secret| secret.map(Arc::new)) else { return };
                let immutable = secret.as_ref().is_some_and(|secret| secret.immutable == Some(true));
                store.set_secret(key.clone(), secret);
                told.set_fetched(fetched.clone());
                if immutable {
                    settle.notify_one();
                }
            });
            tokio::select! { () = run => {}, () = settled.notified() => {} }
        }
    }
}

/// What the news say of the one object: `Some(None)` is gone, `None` is nothing new.
fn newest<T>(news: News<T>, key: &ObjectKey) -> Option<Option<T>> {
    match news {
        News::All(all) => Some(all.into_iter().find(|(found, _)| found == key).map(|(_, object)| object)),
        News::Set(found, object) => (found == *key).then_some(Some(object)),
        News::Gone(found, _) => (found == *key).then_some(None),
        News::Unreadable(found, problem) => {
            tracing::error!(object = %found, problem, "an object a pod refers to cannot be read");
            None
        }
    }
}
