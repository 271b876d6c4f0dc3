//! What the agent itself knows of one pod beside the runtime: outcomes of steps, volumes, images,
//! hooks, probe results. All of it can be lost and is then rebuilt by doing idempotent steps again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::ids::{ContainerId, ContainerName};
use crate::pod::containers::containers;
use crate::pod::desired::DesiredPod;
use crate::pod::observed::{ObservedContainer, ObservedPod};
use crate::pod::step::{ImagePresent, Step, StepError, StepKey, StepKind, StepOutcome, StepResult};
use crate::pod::{restart, retry};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LocalState {
    /// Steps that were started and have not answered, with their start.
    pub in_flight: BTreeMap<StepKey, Timestamp>,
    /// Steps whose last try failed; cleared by success.
    pub failures: BTreeMap<StepKey, StepFailure>,
    /// Steps done that the runtime does not show (folders, cgroup, hostPath checks).
    pub done: BTreeSet<StepKey>,
    /// Volumes that are set up -> hash of their published content (0 for those without content).
    pub volumes: BTreeMap<String, u64>,
    /// Images found or pulled, by container.
    pub images: BTreeMap<ContainerName, ImagePresent>,
    /// Hooks by container instance.
    pub post_start: BTreeMap<ContainerId, HookState>,
    /// Instances whose preStop hook was begun: it runs once, however often the stop is begun anew.
    pub pre_stop: BTreeSet<ContainerId>,
    /// Probe results by container instance.
    pub probes: BTreeMap<ContainerId, ProbeResults>,
    /// Crash back-off by container.
    pub backoff: BTreeMap<ContainerName, CrashBackoff>,
    /// The cgroup an earlier run of the agent may have made for the pod, as its journal has it: another
    /// than today's where the driver or the pod's class changed since.
    pub journalled_cgroup: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepFailure {
    /// Tries in a row that failed.
    pub attempts: u32,
    pub since: Timestamp,
    pub last_at: Timestamp,
    /// Not tried again before.
    pub retry_at: Timestamp,
    pub error: StepError,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HookState {
    Running { since: Timestamp },
    Done,
    Failed { message: String },
}

/// Results as the probe rules see them; `None` while a probe of that kind has no result for this
/// instance. A container without such a probe has no entry and counts as success.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeResults {
    pub startup: Option<ProbeResult>,
    pub liveness: Option<ProbeResult>,
    pub readiness: Option<ProbeResult>,
}

/// A verdict after the thresholds were applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeResult {
    pub healthy: bool,
    pub since: Timestamp,
    /// The last answer in words, bounded: `HTTP 503`, `connection refused`, ...
    pub message: String,
}

/// The kubelet's container back-off: 10 s doubling to the limit, reset after stability
/// (behaviours 21). `key_hash` covers what resets it: image and resources.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrashBackoff {
    pub key_hash: u64,
    /// Seconds to wait after the last exit; 0 lets the first restart happen at once.
    pub delay_seconds: u32,
    pub last_exit: Timestamp,
}

impl LocalState {
    /// A step was started.
    pub fn begin(&mut self, step: &Step, now: Timestamp) {
        self.in_flight.insert(step.key(), now);
        match step {
            Step::PostStart { id, .. } => {
                self.post_start.insert(id.clone(), HookState::Running { since: now });
            }
            Step::StopContainer(stop) if stop.pre_stop.is_some() => {
                self.pre_stop.insert(stop.id.clone());
            }
            _ => {}
        }
    }

    /// Folds in how a step ended.
    pub fn record(&mut self, step: &Step, outcome: &StepOutcome, now: Timestamp) {
        let key = step.key();
        self.in_flight.remove(&key);
        match outcome {
            StepOutcome::Done(result) => {
                self.failures.remove(&key);
                self.record_done(key, step, result);
            }
            StepOutcome::Failed(error) => self.record_failed(key, step, error, now),
            // A hook that was stopped half way belongs to an instance that is gone.
            StepOutcome::Cancelled => {}
        }
    }

    fn record_done(&mut self, key: StepKey, step: &Step, result: &StepResult) {
        match (step, result) {
            (Step::PullImage { container, .. }, StepResult::Image(image)) => {
                self.images.insert(container.clone(), image.clone());
            }
            // The next instance asks for its image again: it may have been removed, or the policy
            // wants it pulled for each start.
            (Step::CreateContainer(create), _) => {
                self.images.remove(&create.spec.name);
                self.failures.remove(&StepKey { kind: StepKind::StartContainer, subject: key.subject });
            }
            (Step::PostStart { id, .. }, _) => {
                self.post_start.insert(id.clone(), HookState::Done);
            }
            (
                Step::PrepareVolume(action) | Step::UpdateVolume(action),
                StepResult::Volume { content_hash },
            ) => {
                self.volumes.insert(action.volume.clone(), *content_hash);
            }
            (Step::PrepareVolume(action), _) => {
                self.volumes.insert(action.volume.clone(), 0);
            }
            (Step::ReleaseVolume { volume }, _) => {
                self.volumes.remove(volume);
                self.done.insert(key);
            }
            (
                Step::PreparePodDirs { .. }
                | Step::EnsureCgroup(_)
                | Step::RemoveCgroup { .. }
                | Step::RemovePodDirs,
                _,
            ) => {
                self.done.insert(key);
            }
            _ => {}
        }
    }

    fn record_failed(&mut self, key: StepKey, step: &Step, error: &StepError, now: Timestamp) {
        // A hook runs once per instance; its failure ends the instance instead of being tried again.
        if let Step::PostStart { id, .. } = step {
            self.post_start.insert(id.clone(), HookState::Failed { message: error.message.clone() });
            return;
        }
        let before = self.failures.get(&key);
        let attempts = before.map_or(0, |before| before.attempts).saturating_add(1);
        let since = before.map_or(now, |before| before.since);
        let pause =
            SignedDuration::try_from(retry::pause(key.kind, error, attempts)).unwrap_or(SignedDuration::MAX);
        let retry_at = now.saturating_add(pause).unwrap_or(Timestamp::MAX);
        let failure = StepFailure { attempts, since, last_at: now, retry_at, error: error.clone() };
        self.failures.insert(key, failure);
    }

    /// Folds in what was seen in the runtime: exits lengthen the crash back-off, and what belongs to
    /// instances that are gone is forgotten. Called whenever the observation changed.
    pub fn observe(&mut self, desired: &DesiredPod, observed: &ObservedPod, max_backoff: Duration) {
        for container in containers(&desired.pod) {
            let latest = observed.containers.iter().find(|instance| instance.name == container.name);
            let Some(latest) = latest else { continue };
            let before = self.backoff.get(&container.name);
            let after =
                restart::backoff_after(before, restart::backoff_key(&container.spec), latest, max_backoff);
            if let Some(after) = after {
                self.backoff.insert(container.name.clone(), after);
            }
        }
        let alive = |id: &ContainerId| observed.containers.iter().any(|instance| instance.id == *id);
        self.post_start.retain(|id, _| alive(id));
        self.pre_stop.retain(alive);
        self.probes.retain(|id, _| alive(id));
        // A start or stop that failed is history once its instance is past it.
        self.failures.retain(|key, _| {
            let latest = observed.containers.iter().find(|instance| instance.name.as_str() == key.subject);
            match key.kind {
                StepKind::StartContainer | StepKind::StopContainer => {
                    latest.is_some_and(ObservedContainer::may_run)
                }
                _ => true,
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::fixture::{at, epoch};

    fn failed(retryable: bool) -> StepOutcome {
        StepOutcome::Failed(StepError { reason: "E".into(), message: "m".into(), retryable })
    }

    #[test]
    fn failures_add_up_and_success_clears_them() {
        let mut local = LocalState::default();
        let step = Step::StopSandbox { id: "s".into() };
        for (second, attempts, pause) in [(0, 1, 1), (10, 2, 2), (20, 3, 4)] {
            local.begin(&step, at(second));
            assert!(local.in_flight.contains_key(&step.key()));
            local.record(&step, &failed(true), at(second));
            let failure = &local.failures[&step.key()];
            assert_eq!(
                (failure.attempts, failure.retry_at, failure.since),
                (attempts, at(second + pause), epoch())
            );
        }
        local.record(&step, &StepOutcome::Done(StepResult::Done), at(30));
        assert_eq!(local, LocalState::default());
    }

    #[test]
    fn a_hook_is_not_tried_again() {
        let mut local = LocalState::default();
        let hook = crate::pod::step::Hook::Exec { command: vec!["x".into()] };
        let step = Step::PostStart { container: "c".into(), id: "1".into(), hook, pod_ip: None };
        local.begin(&step, epoch());
        assert_eq!(local.post_start.get(&"1".into()), Some(&HookState::Running { since: epoch() }));
        local.record(&step, &failed(true), epoch());
        assert_eq!(local.post_start.get(&"1".into()), Some(&HookState::Failed { message: "m".into() }));
        assert!(local.failures.is_empty());
    }
}
