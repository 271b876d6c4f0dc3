//! Writes pods' statuses: the newest of each pod wins, urgent ones first, many at a time, and no rate of
//! our own beside what the server asks for (invariant 11). Also takes the last step of a deletion. What a
//! patch holds is decided in `longshore_core::pod::report`.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use longshore_core::ids::{PodKey, PodUid};
use longshore_core::pod::report::{self, Urgency};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::client::{ApiClient, PatchKind};
use crate::error::ApiError;
use crate::path::Path;
use crate::version;

/// A status that steers nothing waits so long for the next one, which mostly comes: a pod that starts has three in a
/// few hundred milliseconds, and each costs a call, its answer and its echo in the watch.
const HOLD: Duration = Duration::from_millis(250);
/// Writes under way at once.
const AT_ONCE: usize = 16;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Handle on the writer. Cheap to clone; telling never waits.
#[derive(Clone, Debug)]
pub struct PodStatuses {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    client: ApiClient,
    entries: Mutex<Entries>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Entries {
    by_uid: HashMap<PodUid, Entry>,
    /// All that are dirty are among these, so that the next write is found without a look at every pod.
    touched: HashSet<PodUid>,
}

impl Entries {
    /// The pod's entry, which may become dirty.
    fn touch(&mut self, uid: &PodUid) -> &mut Entry {
        self.touched.insert(uid.clone());
        self.by_uid.entry(uid.clone()).or_default()
    }

    /// The same where there is one.
    fn known(&mut self, uid: &PodUid) -> Option<&mut Entry> {
        let entry = self.by_uid.get_mut(uid)?;
        self.touched.insert(uid.clone());
        Some(entry)
    }

    fn remove(&mut self, uid: &PodUid) {
        self.by_uid.remove(uid);
        self.touched.remove(uid);
    }

    /// Of those that have something to be said, the most urgent that is due, or when the next one will be.
    fn next(&mut self, now: Instant) -> Result<PodUid, Option<Instant>> {
        let by_uid = &self.by_uid;
        self.touched.retain(|uid| by_uid.get(uid).is_some_and(|entry| entry.dirty));
        let dirty = self.touched.iter().filter_map(|uid| Some((uid, by_uid.get(uid)?)));
        let waiting = dirty.filter(|(_, entry)| !entry.busy && entry.server.is_some());
        let due = |entry: &Entry| entry.due_at().is_none_or(|at| at <= now);
        let next = waiting.clone().filter(|(_, entry)| due(entry)).max_by_key(|(_, entry)| entry.urgency);
        match next {
            Some((uid, _)) => Ok(uid.clone()),
            None => Err(waiting.filter_map(|(_, entry)| entry.due_at()).min()),
        }
    }
}

#[derive(Debug)]
struct Entry {
    /// What the server has, as far as we know: from the watch, or its answer to our last write. `None`
    /// while the server has not told of the pod: what is to be said waits.
    server: Option<Arc<Pod>>,
    wanted: Option<Arc<PodStatus>>,
    /// The last patch the server took; the same again would change nothing.
    taken: Option<Value>,
    urgency: Urgency,
    dirty: bool,
    busy: bool,
    /// Nothing of the pod is left on the node: the object may go.
    finished: bool,
    retry: Backoff,
    /// After a failure.
    not_before: Option<Instant>,
    /// What is to be said may be followed by more until then.
    held_until: Option<Instant>,
}

/// One write.
struct Job {
    uid: PodUid,
    key: PodKey,
    patch: Option<Value>,
    finish: bool,
}

/// How it went.
struct Done {
    uid: PodUid,
    sent: Option<Value>,
    result: Result<Option<Pod>, ApiError>,
}

impl PodStatuses {
    pub fn new(client: ApiClient) -> Self {
        let inner = Inner { client, entries: Mutex::default(), wake: Notify::new() };
        Self { inner: Arc::new(inner) }
    }

    /// The server's object, from the watch. A late one does not replace what an answer told since.
    pub fn server(&self, uid: &PodUid, pod: Arc<Pod>) {
        let mut entries = self.lock();
        let entry = entries.touch(uid);
        if entry.server.as_ref().is_none_or(|known| !is_older(&pod, known)) {
            // What others changed may need saying again, and what waited can be said now.
            entry.dirty |= entry.server.as_ref().is_none_or(|known| known.status != pod.status);
            entry.server = Some(pod);
        }
        drop(entries);
        self.inner.wake.notify_one();
    }

    /// The object is gone from the server: nothing is left to be told.
    pub fn gone(&self, uid: &PodUid) {
        self.lock().remove(uid);
    }

    /// What the node says of the pod now.
    pub fn tell(&self, uid: &PodUid, status: Arc<PodStatus>) {
        self.lock().touch(uid).want(status);
        self.inner.wake.notify_one();
    }

    /// Nothing of the pod is left on the node: writes its last, final status; where the object was asked
    /// to go, the server then forgets it.
    pub fn finish(&self, uid: &PodUid, last: PodStatus) {
        let mut entries = self.lock();
        let asked = |pod: &Arc<Pod>| pod.metadata.deletion_timestamp.is_some();
        match entries.known(uid).map(|entry| (entry.server.as_ref().map(asked), entry)) {
            Some((Some(asked), entry)) => {
                entry.want(Arc::new(report::last_status(last)));
                entry.finished = asked;
                entry.dirty = true;
            }
            // The server never told of it: there is nobody to tell.
            Some((None, _)) => entries.remove(uid),
            None => {}
        }
        drop(entries);
        self.inner.wake.notify_one();
    }

    /// Nothing of the pod is left here and its object is on its way out: what the server still tells of
    /// it is the echo of that.
    pub fn is_finished(&self, uid: &PodUid) -> bool {
        self.lock().by_uid.get(uid).is_some_and(|entry| entry.finished)
    }

    /// Pods whose newest status the server does not have yet.
    pub fn pending(&self) -> usize {
        let entries = self.lock();
        entries.by_uid.values().filter(|entry| entry.server.is_some() && (entry.dirty || entry.busy)).count()
    }

    /// Writes for ever; ends by being dropped.
    pub async fn run(self) {
        let mut writing = JoinSet::new();
        loop {
            let mut next_try = None;
            while writing.len() < AT_ONCE {
                match self.next_job(Instant::now()) {
                    Ok(job) => {
                        let client = self.inner.client.clone();
                        writing.spawn(async move { write(&client, job).await });
                    }
                    Err(at) => {
                        next_try = at;
                        break;
                    }
                }
            }
            let retry = async move {
                match next_try {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.inner.wake.notified() => {}
                Some(Ok(done)) = writing.join_next() => self.done(done),
                () = retry => {}
            }
        }
    }

    /// The most urgent write that is due, or when the next one will be.
    fn next_job(&self, now: Instant) -> Result<Job, Option<Instant>> {
        let mut entries = self.lock();
        loop {
            let uid = entries.next(now)?;
            if let Some(job) = entries.by_uid.get_mut(&uid).and_then(|entry| entry.job(&uid)) {
                return Ok(job);
            }
        }
    }

    fn done(&self, done: Done) {
        let mut entries = self.lock();
        let Some(entry) = entries.known(&done.uid) else { return };
        entry.busy = false;
        match done.result {
            Ok(pod) => {
                entry.retry.reset();
                entry.not_before = None;
                entry.taken = done.sent.or_else(|| entry.taken.take());
                let newer = |pod: &Pod| entry.server.as_ref().is_none_or(|known| !is_older(pod, known));
                if let Some(pod) = pod.filter(newer) {
                    entry.server = Some(Arc::new(pod));
                }
            }
            // Another pod of the same name, or none: the watch will say so.
            Err(error) if error.is_not_found() || error.is_conflict() => {}
            Err(error) => {
                let pause = error.retry_after().unwrap_or_default().max(entry.retry.pause());
                if entry.retry.tries() == 1 {
                    tracing::warn!(uid = %done.uid, "status: {}", error.one_line());
                }
                // Refused as such: it is tried again when there is something else to say.
                if error.is_retryable() {
                    entry.dirty = true;
                    entry.not_before = Some(Instant::now() + pause);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.inner.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Entry {
    fn default() -> Self {
        Self {
            server: None,
            wanted: None,
            taken: None,
            urgency: Urgency::default(),
            dirty: false,
            busy: false,
            finished: false,
            retry: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            not_before: None,
            held_until: None,
        }
    }
}

impl Entry {
    fn want(&mut self, status: Arc<PodStatus>) {
        // Nothing after the last word.
        if self.finished {
            return;
        }
        self.urgency = self.urgency.max(report::urgency(self.wanted.as_deref(), &status));
        if self.wanted.as_deref() != Some(&*status) {
            self.held_until.get_or_insert_with(|| Instant::now() + HOLD);
            self.taken = None;
            self.dirty = true;
            self.wanted = Some(status);
        }
    }

    /// When it may be written; at once where it is `None`.
    fn due_at(&self) -> Option<Instant> {
        let held_until = self.held_until.filter(|_| self.urgency < Urgency::AtOnce && !self.finished);
        self.not_before.max(held_until)
    }

    /// The write that is due; `None` where there turns out to be nothing to write.
    fn job(&mut self, uid: &PodUid) -> Option<Job> {
        self.dirty = false;
        self.urgency = Urgency::default();
        self.held_until = None;
        let (server, wanted) = (self.server.as_ref()?, self.wanted.as_deref()?);
        // The server may drop a field it does not know: the same patch again would go on for ever.
        let patch = report::status_patch(server, wanted).filter(|patch| self.taken.as_ref() != Some(patch));
        if patch.is_none() && !self.finished {
            return None;
        }
        let key = key_of(server);
        self.busy = true;
        Some(Job { uid: uid.clone(), key, patch, finish: self.finished })
    }
}

fn key_of(pod: &Pod) -> PodKey {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    PodKey::new(text(&pod.metadata.namespace), text(&pod.metadata.name))
}

async fn write(client: &ApiClient, job: Job) -> Done {
    let Job { uid, key, patch, finish } = job;
    let path = Path::pod(&key.namespace, &key.name);
    let mut result = Ok(None);
    if let Some(patch) = &patch {
        let path = path.clone().then("status");
        let answer: Result<Answer, _> = client.patch(&path, PatchKind::Strategic, patch).await;
        result = answer.map(|answer| Some(answer.into()));
    }
    if finish && result.is_ok() {
        // The uid keeps a pod of the same name that came since.
        let options = json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0,
            "preconditions": {"uid": uid.as_str()},
        });
        if let Err(error) = client.delete(&path, &options).await {
            result = Err(error);
        }
    }
    Done { uid, sent: patch, result }
}

/// What patches are made against, and no more: the pods' specs are kept elsewhere.
#[derive(Deserialize)]
struct Answer {
    metadata: ObjectMeta,
    status: Option<PodStatus>,
}

impl From<Answer> for Pod {
    fn from(answer: Answer) -> Self {
        let metadata = ObjectMeta { annotations: None, ..answer.metadata };
        Self { metadata, status: answer.status, spec: None }
    }
}

/// By what the server counts its writes with.
fn is_older(pod: &Pod, than: &Pod) -> bool {
    let (version, than) = (&pod.metadata.resource_version, &than.metadata.resource_version);
    version::is_older(version.as_deref(), than.as_deref())
}

#[cfg(test)]
#[path = "pod_status_tests.rs"]
mod tests;
