//! A plan in the making: collects steps, holds back what failed lately and says so.

use jiff::{SignedDuration, Timestamp};

use crate::ids::ContainerName;
use crate::pod::facts::Facts;
use crate::pod::lifecycle::Lifecycle;
use crate::pod::local::StepFailure;
use crate::pod::snapshot::{Plan, ProbeTarget, Waiting};
use crate::pod::step::{Step, StepKey, StepKind};

/// Reasons of images that nothing was asked of a registry for; the kubelet tells them as they are, however often.
const WITHOUT_PULL: [&str; 3] = ["InvalidImageName", "ImageInspectError", "ErrImageNeverPull"];

/// How long a failed pull shows as `ErrImagePull` before it shows as `ImagePullBackOff`.
const FRESH: SignedDuration = SignedDuration::from_secs(1);

/// What became of a wish for a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// It is in the plan.
    Now,
    /// Its last try failed; it rests until its time.
    Resting,
}

pub(super) struct Draft<'f, 'a> {
    pub facts: &'f Facts<'a>,
    steps: Vec<Step>,
    cancel: Vec<StepKey>,
    waiting: Vec<Waiting>,
    wake_at: Option<Timestamp>,
    probes: Vec<ProbeTarget>,
}

impl<'f, 'a> Draft<'f, 'a> {
    pub fn new(facts: &'f Facts<'a>) -> Self {
        Self {
            facts,
            steps: Vec::new(),
            cancel: Vec::new(),
            waiting: Vec::new(),
            wake_at: None,
            probes: Vec::new(),
        }
    }

    pub fn now(&self) -> Timestamp {
        self.facts.snapshot.now
    }

    /// Puts a step into the plan, unless its last try failed a moment ago.
    pub fn want(&mut self, step: Step) -> Wish {
        let key = step.key();
        if self.steps.iter().any(|known| known.key() == key) {
            return Wish::Now;
        }
        if let Some(failure) = self.facts.snapshot.local.failures.get(&key) {
            self.tell_failure(&key, failure);
            if failure.retry_at > self.now() && !self.facts.in_flight(key.kind, &key.subject) {
                self.wake(failure.retry_at);
                return Wish::Resting;
            }
        }
        self.steps.push(step);
        Wish::Now
    }

    /// Whether the step was done and needs no repetition.
    pub fn is_done(&self, kind: StepKind, subject: &str) -> bool {
        let key = StepKey { kind, subject: subject.to_owned() };
        self.facts.snapshot.local.done.contains(&key)
    }

    pub fn wait(
        &mut self,
        reason: impl Into<String>,
        container: Option<&ContainerName>,
        message: impl Into<String>,
        until: Option<Timestamp>,
    ) {
        let waiting =
            Waiting { reason: reason.into(), container: container.cloned(), message: message.into(), until };
        if let Some(until) = until {
            self.wake(until);
        }
        if !self.waiting.contains(&waiting) {
            self.waiting.push(waiting);
        }
    }

    /// Plan again at `at`; the earliest counts. What is past needs no waking.
    pub fn wake(&mut self, at: Timestamp) {
        if at > self.now() {
            self.wake_at = Some(self.wake_at.map_or(at, |known| known.min(at)));
        }
    }

    /// Stops a step that is in flight; nothing where it is not.
    pub fn cancel(&mut self, kinds: &[StepKind], unless: impl Fn(&StepKey) -> bool) {
        let keys = self.facts.snapshot.local.in_flight.keys();
        let stop: Vec<StepKey> =
            keys.filter(|key| kinds.contains(&key.kind) && !unless(key)).cloned().collect();
        self.steps.retain(|step| !stop.contains(&step.key()));
        self.cancel.extend(stop);
    }

    pub fn probes(&mut self, probes: Vec<ProbeTarget>) {
        self.probes = probes;
    }

    pub fn finish(self, lifecycle: Lifecycle) -> Plan {
        Plan {
            lifecycle,
            steps: self.steps,
            cancel: self.cancel,
            waiting: self.waiting,
            wake_at: self.wake_at,
            probes: self.probes,
        }
    }

    fn tell_failure(&mut self, key: &StepKey, failure: &StepFailure) {
        let container = container_of(key);
        let resting = failure.retry_at > self.now();
        let error = &failure.error;
        let pulled = key.kind == StepKind::PullImage && !WITHOUT_PULL.contains(&error.reason.as_str());
        let (reason, message) = if pulled && resting && self.is_stale(failure) {
            (
                "ImagePullBackOff".to_owned(),
                format!("rests before pulling again: {}: {}", error.reason, error.message),
            )
        } else {
            (error.reason.clone(), error.message.clone())
        };
        let tries = match failure.attempts {
            1 => String::new(),
            attempts => format!(" ({key} failed {attempts} times)"),
        };
        let until = resting.then_some(failure.retry_at);
        self.wait(reason, container.as_ref(), format!("{message}{tries}"), until);
    }

    /// Whether the failure is no news any more; wakes when it stops being.
    fn is_stale(&mut self, failure: &StepFailure) -> bool {
        let stale_at = failure.last_at.saturating_add(FRESH).unwrap_or(failure.last_at);
        self.wake(stale_at);
        stale_at <= self.now()
    }
}

fn container_of(key: &StepKey) -> Option<ContainerName> {
    const OF_CONTAINER: [StepKind; 5] = [
        StepKind::PullImage,
        StepKind::CreateContainer,
        StepKind::StartContainer,
        StepKind::PostStart,
        StepKind::StopContainer,
    ];
    OF_CONTAINER.contains(&key.kind).then(|| key.subject.as_str().into())
}
