//! Static pods of a node that has joined, under the uids they live with; those of pods that another program started
//! are kept in a file, as only the start can tell them. Who lives under which uid is decided in core.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use longshore_core::ids::{PodKey, PodUid};
use longshore_core::pod::desired::DesiredPod;
use longshore_core::pod::mirror;
use longshore_core::pod::observed::ObservedPod;
use longshore_core::pod::static_life::StaticLives;

use crate::kept;
use crate::text::error_chain;

/// The uids of static pods, and where they are kept.
#[derive(Debug, Default)]
pub(super) struct StaticPods {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    lives: StaticLives,
    file: Option<PathBuf>,
}

impl StaticPods {
    /// What runs at the start, with what `file` has of an earlier one.
    pub(super) fn found<'a>(&self, file: PathBuf, running: impl IntoIterator<Item = &'a ObservedPod>) {
        let lives = StaticLives::new(load(&file), running);
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State { lives, file: Some(file) };
    }

    /// A pod of the folder as `node` runs it.
    pub(super) fn on_node(&self, mut desired: DesiredPod, node: &str) -> DesiredPod {
        let named = mirror::static_pod(&desired.pod, node, &desired.uid, desired.seen_at);
        desired.key = PodKey::new(desired.key.namespace, named.metadata.name.clone().unwrap_or_default());
        let uid = self.uid(&desired);
        if uid == desired.uid {
            desired.pod = Arc::new(named);
            return desired;
        }
        let mut pod = (*desired.pod).clone();
        pod.metadata.uid = Some(uid.to_string());
        desired.pod = Arc::new(mirror::static_pod(&pod, node, &uid, desired.seen_at));
        desired.uid = uid;
        desired
    }

    fn uid(&self, desired: &DesiredPod) -> PodUid {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (uid, is_new) = state.lives.uid(&desired.key, &desired.uid, &desired.pod);
        if is_new {
            tracing::info!(pod = %desired.key, %uid, "a static pod goes on that another program started");
            if let Some(file) = &state.file
                && let Err(error) = kept::save(file, state.lives.lives())
            {
                tracing::error!(
                    error = error_chain(&error),
                    "the uids of static pods are not kept: the next start replaces these pods"
                );
            }
        }
        uid
    }
}

fn load(file: &Path) -> BTreeMap<PodUid, PodUid> {
    kept::load(file, "the list of static pods' uids")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_read_again_and_what_is_broken_is_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("static-pods.json");
        assert!(load(&file).is_empty());
        let lives = BTreeMap::from([(PodUid::from("a"), PodUid::from("b"))]);
        kept::save(&file, &lives).unwrap();
        assert_eq!(load(&file), lives);
        std::fs::write(&file, "{").unwrap();
        assert!(load(&file).is_empty());
    }
}
