//! Folding outcomes and wishes into a worker's values. Pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use longshore_core::pod::desired::Deletion;
use longshore_core::pod::local::{HookState, LocalState, StepFailure};
use longshore_core::pod::step::{Step, StepOutcome, StepResult};
use longshore_core::wire::TimelineOutcome;

/// The deletion in force when `new` arrives: once asked for it stays, the first cause stays, and
/// the grace only shrinks, never below a second unless it was forced to zero (behaviours 1).
pub(super) fn deletion(old: Option<&Deletion>, new: Option<Deletion>) -> Option<Deletion> {
    match (old, new) {
        (None, new) => new,
        (Some(old), None) => Some(old.clone()),
        (Some(old), Some(new)) => {
            Some(Deletion { grace_seconds: new.grace_seconds.min(old.grace_seconds), ..old.clone() })
        }
    }
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

/// First pause after a failed step; doubles with each failure in a row.
const FIRST_RETRY: SignedDuration = SignedDuration::from_secs(1);
const LAST_RETRY: SignedDuration = SignedDuration::from_secs(300);

/// Folds a step's end into the local state.
pub(super) fn record(local: &mut LocalState, step: &Step, outcome: StepOutcome, now: Timestamp) {
    let key = step.key();
    local.in_flight.remove(&key);
    match outcome {
        StepOutcome::Done(result) => {
            local.failures.remove(&key);
            local.done.insert(key.clone());
            match (result, step) {
                (StepResult::Image(image), Step::PullImage { container, .. }) => {
                    local.images.insert(container.clone(), image);
                }
                (StepResult::Volume { content_hash }, _) => {
                    local.volumes.insert(key.subject, content_hash);
                }
                (_, Step::PostStart { id, .. }) => {
                    local.post_start.insert(id.clone(), HookState::Done);
                }
                _ => {}
            }
        }
        StepOutcome::Failed(error) => {
            let old = local.failures.get(&key);
            let attempts = old.map_or(0, |old| old.attempts) + 1;
            let pause = (FIRST_RETRY * (1 << attempts.min(10))).min(LAST_RETRY);
            let failure = StepFailure {
                attempts,
                since: old.map_or(now, |old| old.since),
                last_at: now,
                retry_at: now.checked_add(pause).unwrap_or(Timestamp::MAX),
                error,
            };
            local.failures.insert(key, failure);
        }
        StepOutcome::Cancelled => {}
    }
}
