//! Folding outcomes and wishes into a worker's values. Pure.

use std::time::Duration;

use k8s_openapi::api::core::v1::PodStatus;
use longshore_core::pod::desired::{Deletion, EndCause};
use longshore_core::pod::local::{HookState, LocalState};
use longshore_core::pod::observed::ObservedPod;
use longshore_core::pod::snapshot::ProbeKind;
use longshore_core::pod::step::StepOutcome;
use longshore_core::wire::{FailedHook, ProbeView, TimelineOutcome};

/// The deletion in force when `new` arrives: once asked for it stays, the first cause stays, and
/// the grace only shrinks, never below a second unless it was forced to zero (behaviours 1). A pod that
/// the node ended by itself is still there to be looked at until its source lets go of it too.
pub(super) fn deletion(old: Option<&Deletion>, new: Option<Deletion>) -> Option<Deletion> {
    match (old, new) {
        (None, new) => new,
        (Some(old), None) => Some(old.clone()),
        (Some(old), Some(new)) if old.cause.stays_shown() => Some(new),
        (Some(old), Some(new)) => {
            Some(Deletion { grace_seconds: new.grace_seconds.min(old.grace_seconds), ..old.clone() })
        }
    }
}

/// The node did not admit it, or ended it for another's sake.
pub(super) fn makes_room(deletion: Option<&Deletion>) -> bool {
    deletion.is_some_and(|deletion| {
        matches!(deletion.cause, EndCause::Rejected { .. } | EndCause::Preempted { .. })
    })
}

/// A phase that is final: it takes nothing of the node any more.
pub(super) fn is_finished(status: &PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

/// The verdicts of the newest instance of each container.
pub(super) fn probe_views(local: &LocalState, observed: &ObservedPod) -> Vec<ProbeView> {
    let mut views: Vec<ProbeView> = Vec::new();
    for container in &observed.containers {
        let Some(results) = local.probes.get(&container.id).filter(|_| container.is_running()) else {
            continue;
        };
        let all = [
            (ProbeKind::Startup, &results.startup),
            (ProbeKind::Liveness, &results.liveness),
            (ProbeKind::Readiness, &results.readiness),
        ];
        views.extend(all.into_iter().filter_map(|(kind, result)| {
            Some(ProbeView { container: container.name.clone(), kind, result: result.clone()? })
        }));
    }
    views
}

/// Hooks that failed, by the instances that are still there.
pub(super) fn failed_hooks(local: &LocalState, observed: &ObservedPod) -> Vec<FailedHook> {
    let failed =
        observed.containers.iter().filter_map(|container| match local.post_start.get(&container.id) {
            Some(HookState::Failed { message }) => {
                Some(FailedHook { container: container.name.clone(), message: message.clone() })
            }
            _ => None,
        });
    failed.collect()
}

/// A step's outcome as the timeline shows it.
pub(super) fn describe(outcome: &StepOutcome, waited: Duration) -> (TimelineOutcome, String) {
    let waited = match waited.as_millis() {
        0..5 => String::new(),
        millis => format!("waited {millis} ms for its turn"),
    };
    match outcome {
        StepOutcome::Done(_) => (TimelineOutcome::Done, waited),
        StepOutcome::Failed(error) => {
            (TimelineOutcome::Failed, format!("{}: {}", error.reason, error.message))
        }
        StepOutcome::Cancelled => (TimelineOutcome::Event, "no longer wanted".into()),
    }
}
