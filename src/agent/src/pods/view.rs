//! The published state of all pods, for everyone who only reads: admin socket, dataplane, status,
//! probes. Workers write here; nothing here decides, and no reader can hold a worker up.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use longshore_core::ids::{PodKey, PodUid};
use longshore_core::pod::lifecycle::Lifecycle;
use longshore_core::wire::{PodView, TimelineEntry, TimelineOutcome};
use tokio::sync::{mpsc, watch};

/// Entries kept per pod: about three starts of a pod with several containers.
const TIMELINE_LENGTH: usize = 128;

/// Read handle on all pods of this node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PodsView {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pods: Mutex<Pods>,
    /// Counts changes of any pod's status or lifecycle.
    changes: watch::Sender<u64>,
    /// Told of every pod that left nothing behind, with its last view.
    departures: Mutex<Option<mpsc::UnboundedSender<Arc<PodView>>>>,
}

#[derive(Debug, Default)]
struct Pods {
    by_uid: BTreeMap<PodUid, Entry>,
    /// The pods by their newest publication.
    published: BTreeMap<u64, PodUid>,
    /// Counts publications.
    publications: u64,
}

#[derive(Debug, Default)]
struct Entry {
    view: Option<Arc<PodView>>,
    /// Its number; 0 before the first.
    publication: u64,
    timeline: VecDeque<TimelineEntry>,
}

impl Pods {
    /// Gives the view before this one.
    fn publish(&mut self, view: Arc<PodView>) -> Option<Arc<PodView>> {
        self.publications += 1;
        let entry = self.by_uid.entry(view.uid.clone()).or_default();
        self.published.remove(&std::mem::replace(&mut entry.publication, self.publications));
        self.published.insert(self.publications, view.uid.clone());
        entry.view.replace(view)
    }

    fn remove(&mut self, uid: &PodUid) -> Option<Entry> {
        let entry = self.by_uid.remove(uid)?;
        self.published.remove(&entry.publication);
        Some(entry)
    }
}

impl Default for PodsView {
    fn default() -> Self {
        let inner =
            Inner { pods: Mutex::default(), changes: watch::channel(0).0, departures: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }
}

impl PodsView {
    /// All pods, ordered by uid.
    pub fn list(&self) -> Vec<Arc<PodView>> {
        self.pods().by_uid.values().filter_map(|entry| entry.view.clone()).collect()
    }

    /// Pods published since `seen`, oldest publication first, and the number to ask with next time; 0 asks for all.
    /// Costs what was published, however many pods there are.
    pub fn published_since(&self, seen: u64) -> (Vec<Arc<PodView>>, u64) {
        let pods = self.pods();
        let newer = pods.published.range(seen + 1..);
        let views = newer.filter_map(|(_, uid)| pods.by_uid.get(uid)?.view.clone());
        (views.collect(), pods.publications)
    }

    pub fn by_uid(&self, uid: &PodUid) -> Option<Arc<PodView>> {
        self.pods().by_uid.get(uid)?.view.clone()
    }

    /// The life of a pod that a person means by its name: the one that runs before one that is
    /// queued behind it, and either before one that has ended.
    pub fn get(&self, key: &PodKey) -> Option<Arc<PodView>> {
        let order = |view: &Arc<PodView>| match view.lifecycle {
            Lifecycle::Syncing | Lifecycle::Terminating { .. } => 0,
            Lifecycle::Terminated { .. } => 1,
            Lifecycle::Queued { .. } => 2,
            Lifecycle::Released { .. } => 3,
        };
        self.list().into_iter().filter(|view| view.key == *key).min_by_key(order)
    }

    /// Steps and events of one life of a pod, oldest first.
    pub fn timeline(&self, uid: &PodUid) -> Option<Vec<TimelineEntry>> {
        self.pods().by_uid.get(uid).map(|entry| entry.timeline.iter().cloned().collect())
    }

    /// Resolves when any pod's status or lifecycle changed since this receiver last looked.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// Replaces a pod's view; readers are woken where something they can act on differs.
    pub(crate) fn publish(&self, view: PodView) {
        let view = Arc::new(view);
        let news = {
            let mut pods = self.pods();
            let old = pods.publish(view.clone());
            let same = |old: &PodView| {
                // A worker hands the same status on where nothing of it changed.
                (Arc::ptr_eq(&old.status, &view.status) || old.status == view.status)
                    && old.lifecycle == view.lifecycle
            };
            old.is_none_or(|old| !same(&old))
        };
        if news {
            self.bump();
        }
    }

    /// The last view of every pod that leaves nothing behind from now on. For one receiver: a second one
    /// takes the place of the first.
    pub fn departures(&self) -> mpsc::UnboundedReceiver<Arc<PodView>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        *self.inner.departures.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }

    /// Forgets a pod that left nothing behind.
    pub(super) fn forget(&self, uid: &PodUid) {
        let Some(entry) = self.pods().remove(uid) else { return };
        let departures = self.inner.departures.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(departures), Some(view)) = (&*departures, entry.view) {
            // A receiver that ended needs no more.
            let _ = departures.send(view);
        }
        drop(departures);
        self.bump();
    }

    /// A step began; its entry is completed by [`PodsView::ended`].
    pub(super) fn began(&self, uid: &PodUid, at: Timestamp, what: String) {
        self.note(
            uid,
            TimelineEntry {
                at,
                took_ms: None,
                what,
                outcome: TimelineOutcome::Running,
                detail: String::new(),
            },
        );
    }

    /// The newest running entry of this name ended.
    pub(super) fn ended(
        &self,
        uid: &PodUid,
        what: &str,
        took_ms: u64,
        outcome: TimelineOutcome,
        detail: String,
    ) {
        if let Some(entry) = self.pods().by_uid.get_mut(uid)
            && let Some(line) = entry
                .timeline
                .iter_mut()
                .rev()
                .find(|line| line.outcome == TimelineOutcome::Running && line.what == what)
        {
            line.took_ms = Some(took_ms);
            line.outcome = outcome;
            line.detail = detail;
        }
    }

    /// An instant worth a line.
    pub(super) fn event(&self, uid: &PodUid, at: Timestamp, what: String, detail: String) {
        self.note(uid, TimelineEntry { at, took_ms: None, what, outcome: TimelineOutcome::Event, detail });
    }

    fn note(&self, uid: &PodUid, line: TimelineEntry) {
        let mut pods = self.pods();
        let timeline = &mut pods.by_uid.entry(uid.clone()).or_default().timeline;
        if timeline.len() >= TIMELINE_LENGTH {
            timeline.pop_front();
        }
        timeline.push_back(line);
    }

    fn bump(&self) {
        self.inner.changes.send_modify(|count| *count += 1);
    }

    fn pods(&self) -> MutexGuard<'_, Pods> {
        // A panic cannot leave the map half changed: every writer replaces whole values.
        self.inner.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
