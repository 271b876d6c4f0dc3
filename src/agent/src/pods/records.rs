//! One small file per pod with what neither the runtime nor the sources remember: probe verdicts,
//! hooks done, crash back-off, the last status, how far the pod's life has got. A restart of the
//! daemon reads them; losing them costs a probe period, never a container.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use longshore_core::ids::{ContainerId, ContainerName, PodKey, PodUid};
use longshore_core::pod::desired::{Deletion, DesiredPod, PodSource};
use longshore_core::pod::lifecycle::Lifecycle;
use longshore_core::pod::local::{CrashBackoff, HookState, LocalState, ProbeResults};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::fold;
use crate::volumes::{Dir, VolumeError};

/// Until what could not be written is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Written as `<uid>.json`. Fields are only ever added.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodRecord {
    pub key: PodKey,
    pub uid: PodUid,
    pub source: PodSource,
    pub pod: Arc<Pod>,
    pub seen_at: Timestamp,
    pub deletion: Option<Deletion>,
    pub lifecycle: Lifecycle,
    pub status: Option<Arc<PodStatus>>,
    #[serde(default)]
    pub probes: BTreeMap<ContainerId, ProbeResults>,
    #[serde(default)]
    pub post_start: BTreeMap<ContainerId, HookState>,
    #[serde(default)]
    pub pre_stop: BTreeSet<ContainerId>,
    #[serde(default)]
    pub backoff: BTreeMap<ContainerName, CrashBackoff>,
}

impl PodRecord {
    pub(super) fn of(
        desired: &DesiredPod,
        lifecycle: &Lifecycle,
        status: Option<Arc<PodStatus>>,
        local: &LocalState,
    ) -> Self {
        Self {
            key: desired.key.clone(),
            uid: desired.uid.clone(),
            source: desired.source.clone(),
            pod: desired.pod.clone(),
            seen_at: desired.seen_at,
            deletion: desired.deletion.clone(),
            lifecycle: lifecycle.clone(),
            status,
            probes: local.probes.clone(),
            post_start: local.post_start.clone(),
            pre_stop: local.pre_stop.clone(),
            backoff: local.backoff.clone(),
        }
    }

    /// The local state an adopted pod starts with. Everything else is found again by doing
    /// idempotent steps.
    pub fn local(&self) -> LocalState {
        LocalState {
            probes: self.probes.clone(),
            post_start: self.post_start.clone(),
            pre_stop: self.pre_stop.clone(),
            backoff: self.backoff.clone(),
            ..LocalState::default()
        }
    }

    /// Whether the pod takes something of the node: it was admitted and has not ended.
    pub(super) fn takes_room(&self) -> bool {
        let ended = matches!(self.lifecycle, Lifecycle::Terminated { .. } | Lifecycle::Released { .. });
        let finished = self.status.as_deref().is_some_and(fold::is_finished);
        !ended && !finished && !fold::makes_room(self.deletion.as_ref())
    }

    /// The pod as it was wanted when the record was written.
    pub fn desired(&self) -> DesiredPod {
        DesiredPod {
            key: self.key.clone(),
            uid: self.uid.clone(),
            pod: self.pod.clone(),
            source: self.source.clone(),
            seen_at: self.seen_at,
            deletion: self.deletion.clone(),
        }
    }
}

/// What follows within this time is written together: a pod's start changes its record every few milliseconds,
/// and what a killed daemon loses of it is found again. What is never found again waits only for as long as it
/// takes to write it for many pods at once.
const GATHER: Duration = Duration::from_millis(500);
const GATHER_URGENT: Duration = Duration::from_millis(10);

#[derive(Debug)]
enum Change {
    Save(Box<PodRecord>),
    Forget,
}

/// Handle on the records. Saving never waits: the newest record of a pod wins, one writer writes.
#[derive(Clone, Debug)]
pub struct Records {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    pending: Mutex<HashMap<PodUid, Change>>,
    wake: Notify,
    hurry: Notify,
}

impl Records {
    /// Records below `folder`, which exists.
    pub fn new(folder: PathBuf) -> Self {
        let inner = Inner { folder, pending: Mutex::default(), wake: Notify::new(), hurry: Notify::new() };
        Self { inner: Arc::new(inner) }
    }

    /// All records that can be read. One that cannot is reported and skipped: what it held is
    /// found again or done again.
    pub fn load(&self) -> Result<HashMap<PodUid, PodRecord>, VolumeError> {
        let dir = Dir::open(&self.inner.folder)?;
        let mut records = HashMap::new();
        for name in dir.names()? {
            if !name.ends_with(".json") {
                continue;
            }
            let data = dir.read(&name)?.unwrap_or_default();
            match serde_json::from_slice::<PodRecord>(&data) {
                Ok(record) => {
                    records.insert(record.uid.clone(), record);
                }
                Err(error) => {
                    tracing::warn!(%error, file = name, "a pod's record is not readable and is skipped")
                }
            }
        }
        Ok(records)
    }

    /// Of what is found again where it is lost.
    pub fn save(&self, record: PodRecord) {
        self.put(record.uid.clone(), Change::Save(Box::new(record)));
    }

    /// Of what nothing else remembers: hooks begun and done, verdicts of probes, ends that the node ordered.
    pub fn save_soon(&self, record: PodRecord) {
        self.save(record);
        self.inner.hurry.notify_one();
    }

    pub fn forget(&self, uid: &PodUid) {
        self.put(uid.clone(), Change::Forget);
    }

    fn put(&self, uid: PodUid, change: Change) {
        self.pending().insert(uid, change);
        self.inner.wake.notify_one();
    }

    /// Writes what comes in, until it is dropped. What could not be written is tried again: a disk that
    /// was full must not cost what a later restart wants to know.
    pub async fn write_all(self) {
        loop {
            self.inner.wake.notified().await;
            tokio::select! {
                () = tokio::time::sleep(GATHER) => {}
                () = self.inner.hurry.notified() => tokio::time::sleep(GATHER_URGENT).await,
            }
            while !self.flush().await {
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// Writes what is pending now; whether all of it was written. Called once more when the daemon ends.
    pub async fn flush(&self) -> bool {
        let changes = std::mem::take(&mut *self.pending());
        if changes.is_empty() {
            return true;
        }
        let folder = self.inner.folder.clone();
        let Ok(failed) = tokio::task::spawn_blocking(move || write(&folder, changes)).await else {
            return true;
        };
        let Some((_, _, error)) = failed.first() else { return true };
        tracing::error!(
            error = crate::text::error_chain(error),
            pods = failed.len(),
            "pod records not written"
        );
        let mut pending = self.pending();
        for (uid, change, _) in failed {
            // What came in meanwhile is newer.
            pending.entry(uid).or_insert(change);
        }
        false
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<PodUid, Change>> {
        self.inner.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives back what could not be written, with the reason.
fn write(folder: &Path, changes: HashMap<PodUid, Change>) -> Vec<(PodUid, Change, VolumeError)> {
    let dir = Dir::open(folder);
    let one = |uid: &PodUid, change: &Change| {
        let name = format!("{uid}.json");
        let dir = dir.as_ref().map_err(|error| VolumeError::Io {
            action: "open",
            path: folder.to_path_buf(),
            source: std::io::Error::other(error.to_string()),
        })?;
        match change {
            Change::Forget => dir.remove_file(&name),
            Change::Save(record) => match serde_json::to_vec(&**record) {
                Ok(data) => dir.replace(&name, &data, 0o600),
                Err(error) => {
                    Err(VolumeError::Io { action: "encode", path: folder.join(&name), source: error.into() })
                }
            },
        }
    };
    let results = changes.into_iter().map(|(uid, change)| (one(&uid, &change), uid, change));
    results.filter_map(|(result, uid, change)| Some((uid, change, result.err()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(uid: &str) -> PodRecord {
        PodRecord {
            key: PodKey::new("default", "web"),
            uid: uid.into(),
            source: PodSource::File { path: "/m/web.yaml".into(), document: 1 },
            pod: Arc::default(),
            seen_at: Timestamp::UNIX_EPOCH,
            deletion: None,
            lifecycle: Lifecycle::Syncing,
            status: None,
            probes: BTreeMap::new(),
            post_start: BTreeMap::new(),
            pre_stop: BTreeSet::new(),
            backoff: BTreeMap::new(),
        }
    }

    #[tokio::test]
    async fn what_could_not_be_written_is_written_later_unless_there_is_news() {
        let disk = tempfile::tempdir().unwrap();
        let records = Records::new(disk.path().to_path_buf());
        // Folders in the temporary files' places refuse two of three writes, as a full disk refuses all.
        let blocked = ["b", "c"].map(|uid| disk.path().join(format!(".{uid}.json.new")));
        blocked.iter().for_each(|folder| std::fs::create_dir(folder).unwrap());
        ["a", "b", "c"].iter().for_each(|uid| records.save(record(uid)));
        assert!(!records.flush().await);
        records.forget(&"c".into());
        blocked.iter().for_each(|folder| std::fs::remove_dir(folder).unwrap());
        assert!(records.flush().await);
        let mut found: Vec<String> = records.load().unwrap().keys().map(|uid| uid.to_string()).collect();
        found.sort();
        assert_eq!(found, ["a", "b"]);
    }
}
