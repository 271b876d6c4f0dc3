//! One pod's worker: the only writer of what is known of its pod. It wakes on news, takes a
//! snapshot, asks `core` for the plan, starts and cancels steps, folds in what came of them and
//! publishes. It decides nothing itself, and a panic in it costs one turn.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::PodStatus;
use longshore_core::pod::desired::{DesiredPod, PodSource};
use longshore_core::pod::known::KnownPod;
use longshore_core::pod::lifecycle::Lifecycle;
use longshore_core::pod::local::LocalState;
use longshore_core::pod::observed::ObservedPod;
use longshore_core::pod::snapshot::{
    NodeContext, Plan, PodSnapshot, ProbeKind, ProbeTarget, ReferencedObjects,
};
use longshore_core::pod::step::{Step, StepKey, StepOutcome, StepResult};
use longshore_core::volume::VolumeContents;
use longshore_core::wire::{PodView, TimelineOutcome};
use tokio::sync::watch;
use tokio::time::Instant;

use super::clock::millis_between;
use super::events;
use super::inbox::{Inbox, Mail, Part};
use super::records::PodRecord;
use super::steps::{Ended, StepJob, Steps};
use super::{Deps, fold};

/// Lifecycles a pod can go through in one turn without waiting for anything.
const ROUNDS: usize = 6;
/// First pause after a panic; doubles up to [`PANIC_PAUSE_MAX`].
const PANIC_PAUSE: SignedDuration = SignedDuration::from_secs(1);
const PANIC_PAUSE_MAX: SignedDuration = SignedDuration::from_secs(60);
/// The same step done this often within [`SPIN_WINDOW`] and wanted again is held back: its effect
/// is not to be seen in the runtime, and doing it faster will not change that.
const SPIN_LIMIT: u32 = 4;
const SPIN_WINDOW: SignedDuration = SignedDuration::from_secs(10);
/// While steps of the pod are under way, news is planned for together with what follows within this time: the
/// runtime tells of what a call did a moment before it answers the call, and small steps end together.
const TOGETHER_WITH_ANSWER: Duration = Duration::from_millis(10);
const TOGETHER_WITH_STEPS: Duration = Duration::from_millis(2);

/// What a worker starts from.
#[derive(Debug)]
pub(super) struct Birth {
    pub desired: DesiredPod,
    pub lifecycle: Lifecycle,
    pub known: KnownPod,
    pub local: LocalState,
    pub prior: Option<Arc<PodStatus>>,
    /// Orders this pod's starts among all pods'.
    pub order: u64,
}

#[derive(Debug)]
pub(super) struct Worker {
    deps: Arc<Deps>,
    inbox: Arc<Inbox>,
    desired: Arc<DesiredPod>,
    lifecycle: Lifecycle,
    known: KnownPod,
    local: LocalState,
    prior: Option<Arc<PodStatus>>,
    order: u64,
    objects: ReferencedObjects,
    /// What the volumes are to publish on this node; `None` once the pod or its objects changed.
    contents: Option<(Arc<NodeContext>, VolumeContents)>,
    steps: Steps,
    node: watch::Receiver<Arc<NodeContext>>,
    object_changes: watch::Receiver<u64>,
    probes: Vec<ProbeTarget>,
    wake_at: Option<Timestamp>,
    /// How often each step was done lately, and since when that is counted.
    done_lately: HashMap<StepKey, (u32, Timestamp)>,
    panics_in_a_row: u32,
    /// Something the record on disk carries has changed.
    unsaved: bool,
    /// And nothing else remembers it.
    unsaved_alone: bool,
    /// Something a plan looks at may have changed since the last one: when the next one is due.
    due: Option<Instant>,
    told: events::Told,
}

impl Worker {
    pub fn new(deps: Arc<Deps>, inbox: Arc<Inbox>, birth: Birth) -> Self {
        let (node, object_changes) = (deps.node.clone(), deps.objects.changes());
        let objects = deps.objects.referenced(&birth.desired.pod);
        let told = events::Told::of(birth.known.pod());
        let mut worker = Self {
            deps,
            inbox,
            desired: Arc::new(birth.desired),
            lifecycle: birth.lifecycle,
            known: birth.known,
            local: birth.local,
            prior: birth.prior,
            order: birth.order,
            objects,
            contents: None,
            steps: Steps::default(),
            node,
            object_changes,
            probes: Vec::new(),
            wake_at: None,
            done_lately: HashMap::new(),
            panics_in_a_row: 0,
            unsaved: true,
            unsaved_alone: false,
            due: Some(Instant::now()),
            told,
        };
        worker.note_observation();
        worker
    }

    /// Runs until nothing of the pod is left and no source wants it.
    pub async fn run(mut self) {
        loop {
            let mail = self.inbox.take();
            // The worker's own fields are plain values that a panic half way leaves usable: the next
            // turn computes everything from them again.
            let turn = std::panic::catch_unwind(AssertUnwindSafe(|| {
                self.read_mail(mail);
                // Most events of the runtime repeat what its answer to our own call said.
                if self.due.take_if(|due| *due <= Instant::now()).is_some() {
                    self.turn();
                }
            }));
            match turn {
                Ok(()) => self.panics_in_a_row = 0,
                Err(_) => self.pause_after_panic(),
            }
            if self.is_over() {
                break;
            }
            self.wait().await;
        }
        self.deps.probes.want(&self.desired, Vec::new());
        let node = self.node.borrow().clone();
        self.deps.executor.forget(&self.desired, &node).await;
    }

    /// Released, nothing in the runtime, and its source has let go of it too: a pod that finished by
    /// itself stays to be looked at.
    fn is_over(&self) -> bool {
        let let_go = self.desired.deletion.as_ref().is_some_and(|deletion| !deletion.cause.stays_shown());
        let unwanted = let_go || self.desired.source == PodSource::Runtime;
        let observed = self.known.pod();
        matches!(self.lifecycle, Lifecycle::Released { .. })
            && unwanted
            && observed.containers.is_empty()
            && observed.sandboxes.is_empty()
            && self.steps.is_empty()
    }

    fn pause_after_panic(&mut self) {
        self.panics_in_a_row += 1;
        self.deps.metrics.worker_panics.inc();
        let doublings = self.panics_in_a_row.min(7) - 1;
        let pause = (PANIC_PAUSE * (1 << doublings)).min(PANIC_PAUSE_MAX);
        self.wake_at = self.deps.clock.now().checked_add(pause).ok();
        tracing::error!(pod = %self.desired.key, uid = %self.desired.uid, pause_s = pause.as_secs(),
            "worker panicked; it tries again after a pause");
    }

    async fn wait(&mut self) {
        let left = self.wake_at.map(|at| self.deps.clock.until(at).max(Duration::from_millis(1)));
        // What is further off than an instant can tell needs no timer.
        let wake_at = left.and_then(|left| Instant::now().checked_add(left));
        let until = [wake_at, self.due].into_iter().flatten().min();
        let timer = async move {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // What came says itself whether it is news.
            () = self.inbox.arrived() => {}
            ended = self.steps.next() => {
                self.step_ended(ended);
                // Those that ended together need one plan.
                while let Some(ended) = self.steps.next_now() {
                    self.step_ended(ended);
                }
                self.plan_within(TOGETHER_WITH_STEPS);
            }
            Ok(()) = self.node.changed() => self.plan_now(),
            Ok(()) = self.object_changes.changed() => {
                self.look_up_objects();
                self.plan_now();
            }
            () = timer => self.plan_now(),
        }
    }

    /// Something changed that nothing else is expected to come with.
    fn plan_now(&mut self) {
        self.due = Some(Instant::now());
    }

    /// Something changed, and the steps under way may end within this time too.
    fn plan_within(&mut self, settle: Duration) {
        let settle = if self.steps.is_empty() { Duration::ZERO } else { settle };
        let at = Instant::now() + settle;
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    fn read_mail(&mut self, mail: Mail) {
        if let Some(desired) = mail.desired {
            self.desire(desired);
        }
        if let Some(reading) = mail.reading {
            let news = self.absorb(reading.pod);
            if news && reading.audit {
                self.deps.metrics.audit_findings.inc();
                tracing::info!(pod = %self.desired.key, uid = %self.desired.uid, "the audit found a change no event told of");
            }
        }
        for part in mail.parts {
            self.absorb_part(part);
        }
        if !mail.verdicts.is_empty() || mail.unblocked {
            self.plan_now();
        }
        if let Some(deletion) = mail.end {
            self.desire(DesiredPod { deletion: Some(deletion), ..(*self.desired).clone() });
            // It was decided here, and no source asks for it again.
            self.unsaved_alone = true;
        }
        for ((id, kind), result) in mail.verdicts {
            let results = self.local.probes.entry(id).or_default();
            let slot = match kind {
                ProbeKind::Startup => &mut results.startup,
                ProbeKind::Liveness => &mut results.liveness,
                ProbeKind::Readiness => &mut results.readiness,
            };
            *slot = Some(result);
            self.unsaved_alone = true;
        }
        if mail.unblocked && matches!(self.lifecycle, Lifecycle::Queued { .. }) {
            self.lifecycle = Lifecycle::Syncing;
        }
    }

    /// Takes a newer wish. A deletion never goes away again, and its grace only shrinks.
    fn desire(&mut self, mut desired: DesiredPod) {
        desired.seen_at = self.desired.seen_at;
        desired.deletion = fold::deletion(self.desired.deletion.as_ref(), desired.deletion);
        if let Some(deletion) = &mut desired.deletion {
            // A clock that was set back since must not lengthen the grace.
            deletion.requested_at = deletion.requested_at.min(self.deps.clock.now());
        }
        if let Some(deletion) = &desired.deletion
            && self.desired.deletion.is_none()
        {
            let why = format!("{:?}, {} s of grace", deletion.cause, deletion.grace_seconds);
            self.deps.view.event(&desired.uid, self.deps.clock.now(), "asked to end".into(), why);
        }
        self.desired = Arc::new(desired);
        self.look_up_objects();
        self.unsaved = true;
        self.plan_now();
    }

    /// What the pod names may be another object now, and the pod another pod.
    fn look_up_objects(&mut self) {
        self.objects = self.deps.objects.referenced(&self.desired.pod);
        self.contents = None;
    }

    fn absorb(&mut self, reading: ObservedPod) -> bool {
        let before = self.known.shared();
        let news = self.known.absorb(reading);
        if news {
            self.observed(&before);
        }
        news
    }

    /// What is known of the runtime is another than before.
    fn observed(&mut self, before: &ObservedPod) {
        self.tell_changes(before);
        self.note_observation();
        self.plan_within(TOGETHER_WITH_ANSWER);
    }

    /// What follows from the observation for the local state: crash back-off, instances forgotten.
    fn note_observation(&mut self) {
        let max_backoff = self.node.borrow().max_restart_backoff;
        self.local.observe(&self.desired, self.known.pod(), max_backoff);
    }

    fn absorb_part(&mut self, part: Part) {
        let before = self.known.shared();
        let mut news = self.known.absorb_part(part.sandbox, part.containers, part.at);
        if let Some(id) = part.removed {
            self.known.apply(&StepResult::Removed(id), part.at);
            let now = self.known.pod();
            news |= now.sandboxes.len() != before.sandboxes.len();
            news |= now.containers.len() != before.containers.len();
        }
        if news {
            self.observed(&before);
        }
    }

    fn tell_changes(&mut self, before: &ObservedPod) {
        for event in events::of_containers(&mut self.told, before, self.known.pod()) {
            tracing::info!(pod = %self.desired.key, uid = %self.desired.uid, detail = %event.detail, "{}", event.what);
            self.deps.view.event(&self.desired.uid, event.at, event.what, event.detail);
        }
    }

    fn step_ended(&mut self, ended: Ended) {
        let now = self.deps.clock.now();
        let key = ended.step.key();
        let began = self.local.in_flight.get(&key).copied().unwrap_or(now);
        let took_ms = millis_between(began, now);
        let outcome = ended.report.outcome;
        let (result, detail) = fold::describe(&outcome, ended.report.waited);
        let took = Duration::from_millis(took_ms).saturating_sub(ended.report.waited);
        self.deps.metrics.step_ended(&self.desired, &ended.step, took, &outcome);
        if ended.panicked {
            self.deps.metrics.step_panics.inc();
        }
        match result {
            TimelineOutcome::Failed => {
                tracing::warn!(pod = %self.desired.key, uid = %self.desired.uid, step = %key, took_ms, detail, "step failed")
            }
            _ => {
                tracing::debug!(pod = %self.desired.key, uid = %self.desired.uid, step = %key, took_ms, detail, "step done")
            }
        }
        self.deps.recorder.ended(&self.desired, &ended.step, &outcome, Duration::from_millis(took_ms));
        self.deps.view.ended(&self.desired.uid, &key.to_string(), took_ms, result, detail);
        if let StepOutcome::Done(done) = &outcome {
            let before = self.known.shared();
            self.known.apply(done, now);
            self.tell_changes(&before);
            let (count, since) = self.done_lately.entry(key).or_insert((0, now));
            if now.duration_since(*since) > SPIN_WINDOW {
                (*count, *since) = (0, now);
            }
            *count += 1;
        }
        self.unsaved_alone |= remembered_here(&ended.step);
        self.local.record(&ended.step, &outcome, now);
        self.note_observation();
        if let Some(reading) = ended.report.reading {
            self.absorb(reading);
        }
    }

    fn turn(&mut self) {
        let begin = std::time::Instant::now();
        let node = self.node.borrow_and_update().clone();
        for _ in 0..ROUNDS {
            let now = self.deps.clock.now();
            self.read_contents(&node, now);
            let snapshot = self.snapshot(&node, now);
            let plan = (self.deps.planner.plan)(&snapshot);
            let status = (self.deps.planner.status)(&snapshot, &plan);
            let moved = self.move_on(&plan, now);
            self.carry_out(&plan, &node, now);
            self.publish(plan, status, now);
            if !moved {
                break;
            }
        }
        if self.unsaved || self.unsaved_alone {
            self.save();
        }
        self.deps.metrics.turn_ended(&self.lifecycle, begin.elapsed());
    }

    fn snapshot<'a>(&'a self, node: &'a NodeContext, now: Timestamp) -> PodSnapshot<'a> {
        PodSnapshot {
            now,
            desired: &self.desired,
            lifecycle: &self.lifecycle,
            observed: self.known.pod(),
            local: &self.local,
            node,
            objects: &self.objects,
            contents: self.contents.as_ref().map(|(_, contents)| contents),
            prior: self.prior.as_deref(),
        }
    }

    /// Objects can be large and plans are many: what volumes publish is read once per change of what it is made of.
    fn read_contents(&mut self, node: &Arc<NodeContext>, now: Timestamp) {
        if self.contents.as_ref().is_some_and(|(of, _)| Arc::ptr_eq(of, node)) {
            return;
        }
        let contents = VolumeContents::of(&self.snapshot(node, now));
        self.contents = Some((node.clone(), contents));
    }

    /// Takes the plan's lifecycle; answers whether it is another one.
    fn move_on(&mut self, plan: &Plan, now: Timestamp) -> bool {
        if plan.lifecycle == self.lifecycle {
            return false;
        }
        let what = events::lifecycle_words(&plan.lifecycle);
        tracing::info!(pod = %self.desired.key, uid = %self.desired.uid, "{what}");
        self.deps.view.event(&self.desired.uid, now, what, String::new());
        self.lifecycle = plan.lifecycle.clone();
        self.unsaved = true;
        true
    }

    fn carry_out(&mut self, plan: &Plan, node: &Arc<NodeContext>, now: Timestamp) {
        self.wake_at = plan.wake_at;
        for key in &plan.cancel {
            self.steps.cancel(key);
        }
        let wanted: Vec<_> = plan
            .steps
            .iter()
            .filter(|step| !self.local.in_flight.contains_key(&step.key()))
            .cloned()
            .collect();
        if wanted.is_empty() {
            return;
        }
        let observed = self.known.shared();
        for step in wanted {
            let key = step.key();
            if let Some(held_until) = self.held_until(&key, now) {
                self.wake_at = Some(self.wake_at.map_or(held_until, |at| at.min(held_until)));
                continue;
            }
            self.local.begin(&step, now);
            self.unsaved_alone |= remembered_here(&step);
            self.deps.recorder.began(&self.desired, &step);
            self.deps.view.began(&self.desired.uid, now, key.to_string());
            let job = StepJob {
                step,
                desired: self.desired.clone(),
                node: node.clone(),
                observed: observed.clone(),
                order: self.order,
            };
            self.steps.start(self.deps.executor.clone(), job);
        }
    }

    /// Until when a step that keeps being done without effect has to wait.
    fn held_until(&self, key: &StepKey, now: Timestamp) -> Option<Timestamp> {
        let (count, since) = self.done_lately.get(key)?;
        let end = since.checked_add(SPIN_WINDOW).ok()?;
        if *count < SPIN_LIMIT || end <= now {
            return None;
        }
        self.deps.metrics.held_steps.inc();
        Some(end)
    }

    fn publish(&mut self, plan: Plan, status: PodStatus, now: Timestamp) {
        let status = self.note_status(status, now);
        if self.probes != plan.probes {
            self.deps.probes.want(&self.desired, plan.probes.clone());
            self.probes = plan.probes;
        }
        self.deps.view.publish(PodView {
            key: self.desired.key.clone(),
            uid: self.desired.uid.clone(),
            source: self.desired.source.clone(),
            pod: self.desired.pod.clone(),
            status,
            lifecycle: self.lifecycle.clone(),
            observed: self.known.shared(),
            waiting: plan.waiting,
            in_flight: self.local.in_flight.iter().map(|(key, since)| (key.clone(), *since)).collect(),
            probes: fold::probe_views(&self.local, self.known.pod()),
            failed_hooks: fold::failed_hooks(&self.local, self.known.pod()),
            failures: self
                .local
                .failures
                .iter()
                .map(|(key, failure)| (key.clone(), failure.clone()))
                .collect(),
        });
    }

    /// Takes the status where it is another one, and tells what differs; gives the one that holds.
    fn note_status(&mut self, status: PodStatus, now: Timestamp) -> Arc<PodStatus> {
        let prior = self.prior.as_deref();
        if let Some(same) = self.prior.as_ref().filter(|prior| ***prior == status) {
            return same.clone();
        }
        for event in events::of_status(prior, &status, now) {
            self.deps.view.event(&self.desired.uid, event.at, event.what, event.detail);
        }
        let runs = |status: &PodStatus| status.phase.as_deref() == Some("Running");
        if runs(&status) && !prior.is_some_and(runs) {
            self.deps.metrics.started(self.desired.seen_at, now);
        }
        self.unsaved = true;
        let status = Arc::new(status);
        self.prior = Some(status.clone());
        status
    }

    fn save(&mut self) {
        let record = PodRecord::of(&self.desired, &self.lifecycle, self.prior.clone(), &self.local);
        self.unsaved = false;
        match std::mem::take(&mut self.unsaved_alone) {
            true => self.deps.records.save_soon(record),
            false => self.deps.records.save(record),
        }
    }
}

/// Hooks run once; the runtime does not know of them.
fn remembered_here(step: &Step) -> bool {
    match step {
        Step::PostStart { .. } => true,
        Step::StopContainer(stop) => stop.pre_stop.is_some(),
        _ => false,
    }
}
