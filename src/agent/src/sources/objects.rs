//! The ConfigMaps and Secrets of this node's sources by name, tokens by pod, and a counter that moves
//! with every change. Plain storage; what a missing object means is decided in `longshore_core`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Volume};
use longshore_core::ids::{ObjectKey, PodUid};
use longshore_core::pod::snapshot::{ObjectRef, ReferencedObjects};
use longshore_core::pod::token::TokenSpec;
use tokio::sync::watch;

use crate::pods::Objects;

/// Cheap to clone; all clones are one store.
#[derive(Clone, Debug)]
pub struct ObjectStore {
    objects: Arc<Mutex<Stored>>,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Stored {
    objects: ReferencedObjects,
    /// Of a control plane: what is not in here has not been asked for yet. `None` where everything there
    /// is has been read.
    fetched: Option<BTreeSet<ObjectRef>>,
    tokens: BTreeMap<PodUid, BTreeMap<TokenSpec, Arc<str>>>,
}

impl Default for ObjectStore {
    fn default() -> Self {
        Self { objects: Arc::default(), changes: watch::Sender::new(0) }
    }
}

impl ObjectStore {
    /// From now on objects come from a control plane, each when it is asked for.
    pub fn fetch_from_control_plane(&self) {
        self.lock().fetched.get_or_insert_default();
    }

    /// This object was asked for, and is as it is set or is not there.
    pub fn set_fetched(&self, object: ObjectRef) {
        let news = self.lock().fetched.as_mut().is_some_and(|fetched| fetched.insert(object));
        if news {
            self.changes.send_modify(|count| *count += 1);
        }
    }

    /// Nobody refers to this object any more: it is forgotten.
    pub fn forget(&self, object: &ObjectRef) {
        let mut stored = self.lock();
        if let Some(fetched) = &mut stored.fetched {
            fetched.remove(object);
        }
        match object {
            ObjectRef::ConfigMap(key) => drop(stored.objects.config_maps.remove(key)),
            ObjectRef::Secret(key) => drop(stored.objects.secrets.remove(key)),
        }
    }

    /// Sets a token of a pod.
    pub fn set_token(&self, pod: &PodUid, spec: TokenSpec, token: Arc<str>) {
        self.lock().tokens.entry(pod.clone()).or_default().insert(spec, token);
        self.changes.send_modify(|count| *count += 1);
    }

    /// Forgets all tokens of a pod.
    pub fn forget_tokens(&self, pod: &PodUid) {
        self.lock().tokens.remove(pod);
    }

    /// Sets or, with `None`, removes a ConfigMap.
    pub fn set_config_map(&self, key: ObjectKey, map: Option<Arc<ConfigMap>>) {
        put(&mut self.lock().objects.config_maps, key, map);
        self.changes.send_modify(|count| *count += 1);
    }

    /// Sets or, with `None`, removes a Secret.
    pub fn set_secret(&self, key: ObjectKey, secret: Option<Arc<Secret>>) {
        put(&mut self.lock().objects.secrets, key, secret);
        self.changes.send_modify(|count| *count += 1);
    }

    /// Those objects the pod names and that exist.
    pub fn referenced(&self, pod: &Pod) -> ReferencedObjects {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let names = names_in(pod);
        let stored = self.lock();
        let uid = PodUid::from(pod.metadata.uid.as_deref().unwrap_or_default());
        let unfetched = match &stored.fetched {
            None => BTreeSet::new(),
            Some(fetched) => references(pod).into_iter().filter(|one| !fetched.contains(one)).collect(),
        };
        ReferencedObjects {
            config_maps: pick(&stored.objects.config_maps, namespace, &names.config_maps),
            secrets: pick(&stored.objects.secrets, namespace, &names.secrets),
            tokens: stored.fetched.as_ref().map(|_| stored.tokens.get(&uid).cloned().unwrap_or_default()),
            unfetched,
        }
    }

    /// Counts changes of any object.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Every object, for `get`.
    pub fn all(&self) -> ReferencedObjects {
        self.lock().objects.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Stored> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Objects for ObjectStore {
    fn referenced(&self, pod: &Pod) -> ReferencedObjects {
        Self::referenced(self, pod)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        Self::changes(self)
    }
}

fn put<T>(map: &mut BTreeMap<ObjectKey, Arc<T>>, key: ObjectKey, value: Option<Arc<T>>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}

fn pick<T>(
    map: &BTreeMap<ObjectKey, Arc<T>>,
    namespace: &str,
    names: &BTreeSet<&str>,
) -> BTreeMap<ObjectKey, Arc<T>> {
    let found = names.iter().filter_map(|name| {
        let (key, object) = map.get_key_value(&ObjectKey::new(namespace, *name))?;
        Some((key.clone(), object.clone()))
    });
    found.collect()
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Names<'a> {
    config_maps: BTreeSet<&'a str>,
    secrets: BTreeSet<&'a str>,
}

/// Every ConfigMap and Secret a pod refers to, with its namespace.
pub fn references(pod: &Pod) -> BTreeSet<ObjectRef> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let names = names_in(pod);
    let key = |name: &&str| ObjectKey::new(namespace, *name);
    let maps = names.config_maps.iter().map(|name| ObjectRef::ConfigMap(key(name)));
    maps.chain(names.secrets.iter().map(|name| ObjectRef::Secret(key(name)))).collect()
}

/// Every ConfigMap and Secret a pod refers to, from all places of the API that can.
fn names_in(pod: &Pod) -> Names<'_> {
    let mut names = Names::default();
    let Some(spec) = &pod.spec else { return names };
    names.secrets.extend(spec.image_pull_secrets.iter().flatten().map(|reference| reference.name.as_str()));
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        container_names(container, &mut names);
    }
    for volume in spec.volumes.iter().flatten() {
        volume_names(volume, &mut names);
    }
    names
}

fn container_names<'a>(container: &'a Container, names: &mut Names<'a>) {
    for source in container.env_from.iter().flatten() {
        names.config_maps.extend(source.config_map_ref.as_ref().map(|reference| reference.name.as_str()));
        names.secrets.extend(source.secret_ref.as_ref().map(|reference| reference.name.as_str()));
    }
    for source in container.env.iter().flatten().filter_map(|env| env.value_from.as_ref()) {
        names.config_maps.extend(source.config_map_key_ref.as_ref().map(|selector| selector.name.as_str()));
        names.secrets.extend(source.secret_key_ref.as_ref().map(|selector| selector.name.as_str()));
    }
}

fn volume_names<'a>(volume: &'a Volume, names: &mut Names<'a>) {
    names.config_maps.extend(volume.config_map.as_ref().map(|source| source.name.as_str()));
    names.secrets.extend(volume.secret.as_ref().and_then(|source| source.secret_name.as_deref()));
    for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
        names.config_maps.extend(source.config_map.as_ref().map(|source| source.name.as_str()));
        names.secrets.extend(source.secret.as_ref().map(|source| source.name.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn all_references_of_a_pod_are_found_and_only_its_namespace_counts() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n"},
            "spec": {
                "imagePullSecrets": [{"name": "pull"}],
                "initContainers": [{"name": "i", "envFrom": [{"configMapRef": {"name": "init-cm"}}]}],
                "containers": [{"name": "c",
                    "envFrom": [{"secretRef": {"name": "from-s"}}],
                    "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "env-cm", "key": "k"}}},
                            {"name": "B", "valueFrom": {"secretKeyRef": {"name": "env-s", "key": "k"}}}]}],
                "volumes": [{"name": "1", "configMap": {"name": "vol-cm"}},
                    {"name": "2", "secret": {"secretName": "vol-s"}},
                    {"name": "3", "projected": {"sources": [{"configMap": {"name": "proj-cm"}}, {"secret": {"name": "proj-s"}}]}}]
            }
        }))
        .unwrap();
        let store = ObjectStore::default();
        let mut changes = store.changes();
        for name in ["init-cm", "env-cm", "vol-cm", "proj-cm", "other"] {
            store.set_config_map(ObjectKey::new("n", name), Some(Arc::default()));
            store.set_config_map(ObjectKey::new("elsewhere", name), Some(Arc::default()));
        }
        for name in ["pull", "from-s", "env-s", "vol-s", "proj-s", "other"] {
            store.set_secret(ObjectKey::new("n", name), Some(Arc::default()));
        }
        let found = store.referenced(&pod);
        let names = |keys: Vec<&ObjectKey>| keys.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            names(found.config_maps.keys().collect()),
            ["n/env-cm", "n/init-cm", "n/proj-cm", "n/vol-cm"]
        );
        assert_eq!(
            names(found.secrets.keys().collect()),
            ["n/env-s", "n/from-s", "n/proj-s", "n/pull", "n/vol-s"]
        );
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        store.set_secret(ObjectKey::new("n", "pull"), None);
        assert!(changes.has_changed().unwrap());
        assert_eq!(store.referenced(&pod).secrets.len(), 4);
        assert!(found.unfetched.is_empty() && found.tokens.is_none());
    }

    #[test]
    fn what_was_not_asked_for_yet_is_told_from_what_is_not_there() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [], "volumes": [{"name": "1", "configMap": {"name": "a"}}]}
        }))
        .unwrap();
        let store = ObjectStore::default();
        store.fetch_from_control_plane();
        let wanted = ObjectRef::ConfigMap(ObjectKey::new("n", "a"));
        assert_eq!(store.referenced(&pod).unfetched, BTreeSet::from([wanted.clone()]));
        store.set_fetched(wanted.clone());
        assert!(store.referenced(&pod).unfetched.is_empty());
        store.set_token(&"u".into(), longshore_core::pod::token::spec(None, None), "t".into());
        assert_eq!(store.referenced(&pod).tokens.map(|tokens| tokens.len()), Some(1));
        store.forget(&wanted);
        store.forget_tokens(&"u".into());
        let after = store.referenced(&pod);
        assert_eq!((after.unfetched.len(), after.tokens.map(|tokens| tokens.len())), (1, Some(0)));
    }
}
