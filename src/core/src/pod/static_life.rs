//! Which uid a static pod lives under. Ours follows from what its manifest says, the kubelet's from the inner form of
//! a Go program's types: who takes a node over cannot compute it, and recognises the pod that runs instead. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;

use crate::ids::{PodKey, PodUid};
use crate::pod::containers::containers;
use crate::pod::mirror::{HASH, SOURCE};
use crate::pod::observed::ObservedPod;
use crate::pod::render::{CONTAINER_HASH, container_hash};

/// The static pods that ran when the daemon started, and the manifests whose pods live under another program's uid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StaticLives {
    /// The uid that follows from a manifest, to the one its pod has.
    lives: BTreeMap<PodUid, PodUid>,
    found: BTreeMap<PodUid, Found>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    key: PodKey,
    /// Whether its sandbox says that a manifest file is its source.
    is_static: bool,
    /// Container name to the hash its newest instance carries.
    hashes: BTreeMap<String, String>,
}

impl StaticLives {
    /// `lives` as they were kept, of which only those of pods that are still there count.
    pub fn new<'a>(
        lives: BTreeMap<PodUid, PodUid>,
        running: impl IntoIterator<Item = &'a ObservedPod>,
    ) -> Self {
        let found: BTreeMap<_, _> = running.into_iter().map(|pod| (pod.uid.clone(), look(pod))).collect();
        let lives = lives.into_iter().filter(|(_, uid)| found.contains_key(uid)).collect();
        Self { lives, found }
    }

    /// What has to be kept for the next start.
    pub fn lives(&self) -> &BTreeMap<PodUid, PodUid> {
        &self.lives
    }

    /// The uid of the static pod `key` whose manifest gives it `own`. Answers with whether that was found out now.
    pub fn uid(&mut self, key: &PodKey, own: &PodUid, pod: &Pod) -> (PodUid, bool) {
        if let Some(uid) = self.lives.get(own) {
            return (uid.clone(), false);
        }
        if self.found.contains_key(own) {
            return (own.clone(), false);
        }
        let taken: BTreeSet<&PodUid> = self.lives.values().collect();
        let mut same = self.found.iter().filter(|(uid, found)| !taken.contains(uid) && found.is(key, pod));
        match same.next().map(|(uid, _)| uid.clone()) {
            Some(uid) => {
                self.lives.insert(own.clone(), uid.clone());
                (uid, true)
            }
            None => (own.clone(), false),
        }
    }
}

impl Found {
    /// Whether every container it has had is one of the manifest's, unchanged.
    fn is(&self, key: &PodKey, pod: &Pod) -> bool {
        let wanted: BTreeMap<String, String> = containers(pod)
            .iter()
            .map(|container| (container.name.to_string(), format!("{:x}", container_hash(&container.spec))))
            .collect();
        self.is_static
            && self.key == *key
            && !self.hashes.is_empty()
            && self.hashes.iter().all(|(name, hash)| wanted.get(name) == Some(hash))
    }
}

fn look(pod: &ObservedPod) -> Found {
    let says = |name: &str, value: &str| {
        let newest = pod.sandboxes.first();
        newest.and_then(|sandbox| sandbox.annotations.get(name)).is_some_and(|said| said == value)
    };
    let mut hashes = BTreeMap::new();
    // Newest first: an older instance may be of an older manifest.
    for container in &pod.containers {
        let hash = container.annotations.get(CONTAINER_HASH).cloned().unwrap_or_default();
        hashes.entry(container.name.to_string()).or_insert(hash);
    }
    Found { key: pod.key.clone(), is_static: says(SOURCE, "file") && says(HASH, pod.uid.as_str()), hashes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::fixture::{Fixture, at, running, sandbox};
    use serde_json::json;

    const OWN: &str = "11111111-1111-8111-8111-111111111111";
    const THEIRS: &str = "4657b51ecf4a99e443f640d3a5dbcd81";

    fn manifest(image: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "keeper-node", "namespace": "default"},
            "spec": {"containers": [{"name": "web", "image": image}]}
        }))
        .unwrap()
    }

    fn key() -> PodKey {
        PodKey::new("default", "keeper-node")
    }

    /// As the kubelet leaves it: `annotations` of its sandbox, `image` of its container.
    fn left(uid: &str, image: &str, annotations: &[(&str, &str)]) -> ObservedPod {
        let mut pod = Fixture::new(json!({"metadata": {"name": "x"}, "spec": {"containers": []}})).observed;
        (pod.key, pod.uid) = (key(), uid.into());
        let mut place = sandbox();
        place.annotations = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let mut container = running("c1", "web", 0, at(1));
        let hash = container_hash(&containers(&manifest(image))[0].spec);
        container.annotations.insert(CONTAINER_HASH.to_owned(), format!("{hash:x}"));
        (pod.sandboxes, pod.containers) = (vec![place], vec![container]);
        pod
    }

    #[test]
    fn a_static_pod_that_runs_keeps_its_uid_while_its_manifest_stays() {
        let of_file: &[(&str, &str)] = &[(SOURCE, "file"), (HASH, THEIRS)];
        for (what, observed, image, expected) in [
            ("the kubelet's", left(THEIRS, "w:1", of_file), "w:1", THEIRS),
            ("another image", left(THEIRS, "w:1", of_file), "w:2", OWN),
            ("a pod of the API", left(THEIRS, "w:1", &[(SOURCE, "api")]), "w:1", OWN),
            ("a uid given by hand", left(THEIRS, "w:1", &[(SOURCE, "file"), (HASH, "x")]), "w:1", OWN),
            ("our own", left(OWN, "w:1", &[(SOURCE, "file"), (HASH, OWN)]), "w:1", OWN),
        ] {
            let mut lives = StaticLives::new(BTreeMap::new(), [&observed]);
            let (uid, new) = lives.uid(&key(), &OWN.into(), &manifest(image));
            assert_eq!((uid.as_str(), new), (expected, expected == THEIRS), "{what}");
            assert_eq!(lives.uid(&key(), &OWN.into(), &manifest(image)), (uid, false), "{what}, again");
        }
    }

    #[test]
    fn an_edited_manifest_is_another_pod_also_after_a_restart() {
        let observed = left(THEIRS, "w:1", &[(SOURCE, "file"), (HASH, THEIRS)]);
        let mut lives = StaticLives::new(BTreeMap::new(), [&observed]);
        assert_eq!(lives.uid(&key(), &OWN.into(), &manifest("w:1")).0, THEIRS.into());
        let edited = PodUid::from("22222222-2222-8222-8222-222222222222");
        for mut lives in [lives.clone(), StaticLives::new(lives.lives().clone(), [&observed])] {
            // The same images, another environment: only the manifest's own uid tells.
            assert_eq!(lives.uid(&key(), &edited, &manifest("w:1")), (edited.clone(), false));
            assert_eq!(lives.uid(&key(), &OWN.into(), &manifest("w:1")), (THEIRS.into(), false));
        }
        assert!(StaticLives::new(lives.lives().clone(), []).lives().is_empty(), "what is gone is forgotten");
    }

    #[test]
    fn a_pod_of_another_name_or_without_containers_is_not_taken() {
        let of_file: &[(&str, &str)] = &[(SOURCE, "file"), (HASH, THEIRS)];
        let mut other = left(THEIRS, "w:1", of_file);
        other.key = PodKey::new("default", "other-node");
        let mut empty = left(THEIRS, "w:1", of_file);
        empty.containers.clear();
        for observed in [other, empty] {
            let mut lives = StaticLives::new(BTreeMap::new(), [&observed]);
            assert_eq!(lives.uid(&key(), &OWN.into(), &manifest("w:1")), (OWN.into(), false));
        }
    }
}
