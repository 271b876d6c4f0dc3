//! All pods of this node: one worker per pod uid, what wakes it, and who comes after whom where two
//! lives of a pod share a name. Here is only the routing; a worker's loop is in `worker.rs`.

mod clock;
mod events;
pub mod execute;
mod fold;
pub mod follow;
mod gate;
mod inbox;
mod limit;
pub mod messages;
pub mod oom;
mod records;
mod steps;
mod view;
mod worker;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use longshore_core::ids::{ContainerId, PodKey, PodUid};
use longshore_core::pod::desired::{Deletion, DesiredPod, EndCause, PodSource};
use longshore_core::pod::known::KnownPod;
use longshore_core::pod::leftover::Leftover;
use longshore_core::pod::lifecycle::Lifecycle;
use longshore_core::pod::local::{LocalState, ProbeResult};
use longshore_core::pod::observed::{ObservedContainer, ObservedPod};
use longshore_core::pod::snapshot::{
    NodeContext, Plan, PodSnapshot, ProbeKind, ProbeTarget, ReferencedObjects,
};
use longshore_core::pod::step::{Step, StepOutcome};
use longshore_core::pod::{adopted, taken_over};
use longshore_core::resources::admission::{self, NodeRoom};
use longshore_core::resources::placement;
use longshore_core::resources::preemption::{self, Other, Verdict};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::journal::Journal;
use crate::metrics::PodMetrics;
pub use clock::Clock;
pub use events::is_ready;
pub use gate::Gate;
pub use inbox::Part;
use inbox::{Inbox, Reading};
pub use limit::{KernelStalls, Stalls};
pub use records::{PodRecord, Records};
pub use steps::{Execute, StepJob, StepReport};
pub use view::PodsView;
use worker::{Birth, Worker};

/// The ConfigMaps and Secrets of this node's sources.
pub trait Objects: Send + Sync + std::fmt::Debug {
    /// Those the pod names and that exist.
    fn referenced(&self, pod: &Pod) -> ReferencedObjects;
    /// Counts changes of any object.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// Runs probes. Verdicts come back through [`Pods::verdict`].
pub trait Probing: Send + Sync + std::fmt::Debug {
    /// These probes, and no others, run for the pod from now on.
    fn want(&self, pod: &DesiredPod, probes: Vec<ProbeTarget>);
}

/// Hears what steps begin and how they end, for those who are told of it outside this node.
pub trait Recorder: Send + Sync + std::fmt::Debug {
    fn began(&self, pod: &DesiredPod, step: &Step);
    /// The step has begun and its image is to be pulled.
    fn pulls(&self, pod: &DesiredPod, step: &Step);
    fn ended(&self, pod: &DesiredPod, step: &Step, outcome: &StepOutcome, took: Duration);
}

/// Nobody is told.
#[derive(Clone, Copy, Debug)]
pub struct NoRecorder;

impl Recorder for NoRecorder {
    fn began(&self, _pod: &DesiredPod, _step: &Step) {}
    fn pulls(&self, _pod: &DesiredPod, _step: &Step) {}
    fn ended(&self, _pod: &DesiredPod, _step: &Step, _outcome: &StepOutcome, _took: Duration) {}
}

/// The pure decisions; functions of `longshore_core` in production.
#[derive(Clone, Copy, Debug)]
pub struct Planner {
    pub plan: fn(&PodSnapshot<'_>) -> Plan,
    pub status: fn(&PodSnapshot<'_>, &Plan) -> PodStatus,
}

/// What every worker needs.
#[derive(Debug)]
pub struct Deps {
    pub clock: Clock,
    pub planner: Planner,
    pub executor: Arc<dyn Execute>,
    pub objects: Arc<dyn Objects>,
    pub probes: Arc<dyn Probing>,
    pub recorder: Arc<dyn Recorder>,
    pub node: watch::Receiver<Arc<NodeContext>>,
    pub view: PodsView,
    pub records: Records,
    pub journal: Arc<Journal>,
    pub metrics: PodMetrics,
    /// Ends all workers where they are, with what they have under way; pods are left as they are.
    pub stop: CancellationToken,
}

/// Handle on all workers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pods {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    deps: Arc<Deps>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    workers: HashMap<PodUid, Entry>,
    /// Lives of one name in the order they came; only the first may do anything.
    lives: BTreeMap<PodKey, Vec<PodUid>>,
    /// Known from the runtime or a record, and no source has said anything about it yet.
    unclaimed: HashMap<PodUid, ObservedPod>,
    records: HashMap<PodUid, PodRecord>,
    /// Pods seen so far; orders starts.
    born: u64,
}

impl State {
    /// Pods that take their place on the node although no source has mentioned them yet: what runs, as its
    /// record or, without one, as the runtime tells it.
    fn not_yet_claimed(&self) -> Vec<Neighbour> {
        let neighbour = |(key, pod): (PodKey, Arc<Pod>)| Neighbour { key, uid: None, pod, is_static: false };
        let recorded = self.records.values().filter(|record| record.takes_room());
        let recorded = recorded.map(|record| (record.key.clone(), record.pod.clone()));
        let only_running = self.unclaimed.values().filter(|pod| {
            !self.records.contains_key(&pod.uid) && pod.containers.iter().any(ObservedContainer::may_run)
        });
        let only_running = only_running.map(|pod| (pod.key.clone(), Arc::new(adopted::pod_of(pod))));
        recorded.chain(only_running).map(neighbour).collect()
    }
}

/// A pod that takes its place beside one that comes.
#[derive(Debug)]
struct Neighbour {
    key: PodKey,
    /// Where it can be ended for the other's sake.
    uid: Option<PodUid>,
    pod: Arc<Pod>,
    is_static: bool,
}

#[derive(Debug)]
struct Entry {
    inbox: Arc<Inbox>,
    key: PodKey,
    pod: Arc<Pod>,
    /// Not admitted, or ended to make room: it takes nothing of the node.
    makes_room: bool,
    is_static: bool,
    /// Its end was asked for; a uid never goes back (behaviours 1).
    ending: bool,
    /// The same uid wanted again meanwhile: begins a life of its own once this one has ended.
    again: Option<DesiredPod>,
}

impl Pods {
    pub fn new(deps: Deps) -> Self {
        let inner = Inner { deps: Arc::new(deps), state: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// What was found at start: the runtime's pods and the records of an earlier run. To be called
    /// once, before the first [`Pods::desire`].
    pub fn found(&self, running: Vec<ObservedPod>, records: HashMap<PodUid, PodRecord>) {
        let mut state = self.lock();
        for pod in running {
            // Its name is taken until it is known whether a source still wants it.
            state.lives.entry(pod.key.clone()).or_default().push(pod.uid.clone());
            state.unclaimed.insert(pod.uid.clone(), pod);
        }
        state.records = records;
    }

    /// A source wants this of a pod; the newest wish wins.
    pub fn desire(&self, desired: DesiredPod) {
        let mut state = self.lock();
        match state.workers.get_mut(&desired.uid) {
            None => self.start(&mut state, desired),
            Some(entry) if entry.ending && desired.deletion.is_none() => entry.again = Some(desired),
            Some(entry) => {
                entry.ending |= desired.deletion.is_some();
                entry.again = None;
                entry.inbox.desire(desired);
            }
        }
    }

    /// News from the runtime about one pod, all of it.
    pub fn observe(&self, pod: ObservedPod) {
        self.read(Reading { pod, audit: false });
    }

    /// What an audit read of one pod; news in it is counted, as an event should have brought it.
    pub fn audited(&self, pod: ObservedPod) {
        self.read(Reading { pod, audit: true });
    }

    /// A probe's verdict changed.
    pub fn verdict(&self, uid: &PodUid, id: ContainerId, kind: ProbeKind, result: ProbeResult) {
        if let Some(entry) = self.lock().workers.get(uid) {
            entry.inbox.verdict(id, kind, result);
        }
    }

    /// The node ends a pod by itself: it stays to be looked at, as failed, until its source lets go of it.
    pub fn evict(&self, uid: &PodUid, message: String, grace_seconds: u32) {
        let requested_at = self.inner.deps.clock.now();
        let deletion = Deletion { requested_at, grace_seconds, cause: EndCause::Evicted { message } };
        if let Some(entry) = self.lock().workers.get(uid).filter(|entry| !entry.ending) {
            self.inner.deps.metrics.evicted();
            entry.inbox.end(deletion);
        }
    }

    /// An event of the runtime about one pod.
    pub fn event(&self, uid: &PodUid, part: Part) {
        if let Some(entry) = self.lock().workers.get(uid) {
            entry.inbox.part(part);
        }
    }

    /// What the runtime or a record knows and no source wants, now that every source has been heard
    /// once. Each is left to the caller to be ended by [`Pods::desire`].
    pub fn take_unclaimed(&self) -> Vec<(ObservedPod, Option<PodRecord>)> {
        let mut state = self.lock();
        let state = &mut *state;
        let mut unclaimed: Vec<_> = std::mem::take(&mut state.unclaimed)
            .into_values()
            .map(|pod| {
                let record = state.records.remove(&pod.uid);
                (pod, record)
            })
            .collect();
        for (_, record) in state.records.drain() {
            let pod = KnownPod::new(record.key.clone(), record.uid.clone(), record.seen_at).pod().clone();
            unclaimed.push((pod, Some(record)));
        }
        // They stay unclaimed until the wish to end them comes in, which finds what is known here.
        for (pod, record) in &unclaimed {
            state.unclaimed.insert(pod.uid.clone(), pod.clone());
            if let Some(record) = record {
                state.records.insert(record.uid.clone(), record.clone());
            }
        }
        unclaimed
    }

    /// The read handle on all pods.
    pub fn view(&self) -> PodsView {
        self.inner.deps.view.clone()
    }

    /// Until every pod has shown how it is, but no longer than `within`: one that cannot is no reason for
    /// the others to wait.
    pub async fn all_shown(&self, within: Duration) {
        let mut changes = self.view().changes();
        let all = async {
            while !self.are_all_shown() {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        // Passing the time is an answer too.
        let _ = tokio::time::timeout(within, all).await;
    }

    fn are_all_shown(&self) -> bool {
        let view = &self.inner.deps.view;
        self.lock().workers.keys().all(|uid| view.by_uid(uid).is_some())
    }

    /// Lives of pods that have a worker.
    pub fn workers(&self) -> usize {
        self.lock().workers.len()
    }

    /// Pods that a source wants, or that the runtime or a record tells of.
    pub fn known(&self) -> BTreeSet<PodUid> {
        let state = self.lock();
        state.workers.keys().chain(state.unclaimed.keys()).chain(state.records.keys()).cloned().collect()
    }

    /// Takes on what is left of a pod that nothing else tells of, to be removed step by step. `volumes`
    /// are those it has on disk. To be called once every source was heard (invariant 6).
    pub fn clean_up(&self, left: &Leftover, volumes: BTreeSet<String>) {
        let mut state = self.lock();
        let known = [state.workers.contains_key(&left.uid), state.unclaimed.contains_key(&left.uid)];
        if known.contains(&true) || state.records.contains_key(&left.uid) {
            return;
        }
        let now = self.inner.deps.clock.now();
        let known = KnownPod::new(left.key.clone(), left.uid.clone(), now);
        let desired = DesiredPod {
            key: left.key.clone(),
            uid: left.uid.clone(),
            pod: Arc::new(adopted::pod_of(known.pod())),
            source: PodSource::Runtime,
            seen_at: now,
            deletion: None,
        };
        let local = LocalState {
            volumes: volumes.into_iter().map(|volume| (volume, 0)).collect(),
            journalled_cgroup: left.cgroup.clone(),
            ..LocalState::default()
        };
        tracing::warn!(pod = %left.key, uid = %left.uid, cgroup = left.cgroup, "left over by an agent that was killed; cleaning up");
        let what = "left over by an agent that was killed".to_owned();
        self.inner.deps.view.event(&left.uid, now, what, String::new());
        // It has no part in who comes after whom under its name: nothing of it ever ran.
        let lifecycle = Lifecycle::Terminated { cause: EndCause::Orphaned, at: now };
        state.born += 1;
        let order = state.born;
        self.employ(&mut state, Birth { desired, lifecycle, known, local, prior: None, order });
    }

    fn read(&self, reading: Reading) {
        let mut state = self.lock();
        match state.workers.get(&reading.pod.uid) {
            Some(entry) => entry.inbox.read(reading),
            None if reading.pod.sandboxes.is_empty() && reading.pod.containers.is_empty() => {}
            None => {
                state.unclaimed.insert(reading.pod.uid.clone(), reading.pod);
            }
        }
    }

    fn start(&self, state: &mut State, mut desired: DesiredPod) {
        let deps = &self.inner.deps;
        let uid = desired.uid.clone();
        deps.metrics.taken_on(&desired);
        let observed = state.unclaimed.remove(&uid);
        let record = state.records.remove(&uid);
        let mut known = KnownPod::new(desired.key.clone(), uid.clone(), deps.clock.now());
        let adopted = observed.is_some();
        if let Some(observed) = observed {
            known.absorb(observed);
        }
        if let Some(record) = &record {
            desired.seen_at = record.seen_at;
            desired.deletion = fold::deletion(record.deletion.as_ref(), desired.deletion);
        }
        let lives = state.lives.entry(desired.key.clone()).or_default();
        if !lives.contains(&uid) {
            lives.push(uid.clone());
        }
        let wanted = desired.deletion.is_none() && desired.source != PodSource::Runtime;
        let told = told_status(&desired);
        let over = told.as_ref().is_some_and(fold::is_finished);
        let fresh = !adopted && record.is_none() && wanted && !over;
        let first = lives.first() == Some(&uid);
        if fresh && first {
            desired.deletion = self.refusal(state, &desired);
        }
        let lives = state.lives.entry(desired.key.clone()).or_default();
        let lifecycle = match (lives.first(), &record) {
            (Some(first), _) if *first != uid => Lifecycle::Queued { behind: first.clone() },
            (_, None) if over => {
                let now = deps.clock.now();
                Lifecycle::Terminating { cause: EndCause::Finished, since: now, deadline: now }
            }
            (_, Some(record)) if !matches!(record.lifecycle, Lifecycle::Queued { .. }) => {
                record.lifecycle.clone()
            }
            _ => Lifecycle::Syncing,
        };
        state.born += 1;
        let (mut local, prior) = match record {
            Some(record) => (record.local(), record.status),
            None => {
                let local = taken_over::local(&desired, known.pod(), told.as_ref(), deps.clock.now());
                (local, told.map(Arc::new))
            }
        };
        local.journalled_cgroup = deps.journal.noted(&uid).and_then(|noted| noted.cgroup);
        tracing::info!(pod = %desired.key, %uid, adopted, source = ?desired.source, "pod taken on");
        let what = if adopted { "adopted" } else { "seen" };
        deps.view.event(&uid, deps.clock.now(), what.into(), String::new());
        let order = state.born;
        self.employ(state, Birth { desired, lifecycle, known, local, prior, order });
    }

    /// Gives a pod its worker.
    fn employ(&self, state: &mut State, birth: Birth) {
        let deps = &self.inner.deps;
        let (uid, key) = (birth.desired.uid.clone(), birth.desired.key.clone());
        let asked = birth.desired.deletion.as_ref().is_some_and(|deletion| !deletion.cause.stays_shown());
        let inbox = Arc::new(Inbox::default());
        let entry = Entry {
            inbox: inbox.clone(),
            key: key.clone(),
            pod: birth.desired.pod.clone(),
            makes_room: fold::makes_room(birth.desired.deletion.as_ref()),
            is_static: matches!(birth.desired.source, PodSource::File { .. }),
            // What only the runtime or the disk tells of is here to be ended.
            ending: asked || birth.desired.source == PodSource::Runtime,
            again: None,
        };
        state.workers.insert(uid.clone(), entry);
        let worker = Worker::new(deps.clone(), inbox, birth);
        let pods = self.clone();
        let stop = deps.stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = worker.run() => pods.ended(&key, &uid),
            }
        });
    }

    /// The end of a pod the node has no room for; only asked for pods that never ran. Another life of
    /// the same name makes room for it and is not counted. For a critical pod others may be ended.
    fn refusal(&self, state: &mut State, desired: &DesiredPod) -> Option<Deletion> {
        let deps = &self.inner.deps;
        let node = deps.node.borrow().clone();
        let refusal = match self.verdict_on(state, desired, &node) {
            Verdict::Fits => return None,
            Verdict::MakesRoom(victims) => {
                self.preempt(state, &victims, &desired.key);
                return None;
            }
            Verdict::Refused(refusal) => refusal,
        };
        deps.metrics.refused(refusal.reason());
        tracing::warn!(pod = %desired.key, uid = %desired.uid, reason = refusal.reason(), "pod refused: {refusal}");
        Some(Deletion { requested_at: deps.clock.now(), grace_seconds: 0, cause: refusal.cause() })
    }

    fn verdict_on(&self, state: &State, desired: &DesiredPod, node: &NodeContext) -> Verdict {
        let is_static = matches!(desired.source, PodSource::File { .. });
        let placed = node
            .placement
            .as_deref()
            .map_or(Ok(()), |placement| placement::check(&desired.pod, is_static, placement));
        if let Err(refusal) = admission::sysctls(&desired.pod, &node.allowed_unsafe_sysctls).and(placed) {
            return Verdict::Refused(refusal);
        }
        let places = state.workers.len() + state.records.len() + state.unclaimed.len();
        // Most pods ask for nothing but a place, and there is one: nobody has to be counted.
        if places < node.max_pods && admission::asks_for_nothing(&desired.pod) {
            return Verdict::Fits;
        }
        let room = NodeRoom {
            cpu_millis: node.allocatable_cpu_millis,
            memory_bytes: node.allocatable_memory_bytes,
            pods: node.max_pods,
        };
        let neighbours = self.neighbours(state, desired);
        let others: Vec<Other<'_>> = neighbours
            .iter()
            .map(|one| Other {
                key: &one.key,
                uid: one.uid.as_ref(),
                pod: &one.pod,
                is_static: one.is_static,
            })
            .collect();
        preemption::decide(&desired.pod, is_static, &others, &room)
    }

    /// Ends pods for the sake of a critical one, each with its own grace.
    fn preempt(&self, state: &mut State, victims: &[PodUid], comer: &PodKey) {
        let deps = &self.inner.deps;
        for uid in victims {
            let Some(entry) = state.workers.get_mut(uid) else { continue };
            let grace = entry.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
            let grace_seconds = grace.and_then(|grace| u32::try_from(grace).ok()).unwrap_or(30);
            let message = format!("ended to make room for the critical pod {comer}");
            tracing::warn!(pod = %entry.key, %uid, "preempted: {message}");
            let cause = EndCause::Preempted { message };
            entry.makes_room = true;
            entry.inbox.end(Deletion { requested_at: deps.clock.now(), grace_seconds, cause });
        }
    }

    /// Pods that take their place beside this one.
    fn neighbours(&self, state: &State, desired: &DesiredPod) -> Vec<Neighbour> {
        let deps = &self.inner.deps;
        let over = |uid: &PodUid| deps.view.by_uid(uid).is_some_and(|view| fold::is_finished(&view.status));
        let workers = state.workers.iter().filter(|(uid, entry)| !entry.makes_room && !over(uid));
        let mut neighbours: Vec<Neighbour> = workers
            .map(|(uid, entry)| Neighbour {
                key: entry.key.clone(),
                uid: Some(uid.clone()).filter(|_| !entry.ending),
                pod: entry.pod.clone(),
                is_static: entry.is_static,
            })
            .collect();
        neighbours.extend(state.not_yet_claimed());
        neighbours.retain(|one| one.key != desired.key);
        neighbours
    }

    /// Nothing of this life is left: forget it and let the next one of its name begin.
    fn ended(&self, key: &PodKey, uid: &PodUid) {
        let deps = &self.inner.deps;
        if let Err(error) = deps.journal.left_nothing(uid) {
            tracing::error!(error = crate::text::error_chain(&error), pod = %key, %uid, "journal");
        }
        deps.records.forget(uid);
        deps.view.forget(uid);
        let mut state = self.lock();
        let again = state.workers.remove(uid).and_then(|entry| entry.again);
        let lives = state.lives.entry(key.clone()).or_default();
        lives.retain(|life| life != uid);
        match lives.first().cloned() {
            None => {
                state.lives.remove(key);
            }
            Some(next) => {
                if let Some(entry) = state.workers.get(&next) {
                    entry.inbox.unblock();
                }
            }
        }
        if let Some(desired) = again {
            self.start(&mut state, desired);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the control plane has of a pod this node has no record of: a final phase stays, and counts and
/// times go on from there.
fn told_status(desired: &DesiredPod) -> Option<PodStatus> {
    desired.pod.status.clone().filter(|status| desired.source == PodSource::Api && status.phase.is_some())
}

#[cfg(test)]
pub(crate) mod tests;
