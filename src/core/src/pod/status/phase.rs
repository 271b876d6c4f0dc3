//! The phase of a pod (behaviours 7, 12; pkg/kubelet/kubelet_pods.go getPhase).

use k8s_openapi::api::core::v1::ContainerStatus;

use crate::pod::containers::Role;
use crate::pod::desired::EndCause;
use crate::pod::facts::{Facts, is_terminal};
use crate::pod::observed::ObservedContainer;

use super::containers::Statuses;

pub(super) const PENDING: &str = "Pending";
pub(super) const RUNNING: &str = "Running";
pub(super) const SUCCEEDED: &str = "Succeeded";
pub(super) const FAILED: &str = "Failed";

/// Never back from a final phase, and no final phase while something may run.
pub(super) fn phase(facts: &Facts<'_>, cause: Option<&EndCause>, all: &Statuses) -> &'static str {
    if let Some(prior) = facts.snapshot.prior.filter(|prior| is_terminal(prior)) {
        return if prior.phase.as_deref() == Some(SUCCEEDED) { SUCCEEDED } else { FAILED };
    }
    let runs = facts.snapshot.observed.containers.iter().any(ObservedContainer::may_run);
    match wanted(facts, cause, all) {
        SUCCEEDED | FAILED if runs => RUNNING,
        wanted => wanted,
    }
}

fn wanted(facts: &Facts<'_>, cause: Option<&EndCause>, all: &Statuses) -> &'static str {
    match cause {
        None => by_containers(facts, all, facts.is_finished()),
        Some(
            EndCause::DeadlineExceeded
            | EndCause::Rejected { .. }
            | EndCause::Evicted { .. }
            | EndCause::Preempted { .. },
        ) => FAILED,
        // Ended from outside: what was cut off has failed, what had not begun stays pending.
        Some(EndCause::Finished | EndCause::Deleted | EndCause::Replaced | EndCause::Orphaned) => {
            by_containers(facts, all, true)
        }
    }
}

/// `over` says that no container runs again.
fn by_containers(facts: &Facts<'_>, all: &Statuses, over: bool) -> &'static str {
    if over && facts.failed_init().is_some() {
        return FAILED;
    }
    if is_initializing(facts, all) {
        return PENDING;
    }
    let main = &all.main;
    let waiting = main.iter().any(|status| is_waiting(status) && !has_ended_before(status));
    let running = main.iter().any(is_running);
    let ended = main.iter().filter(|status| has_ended(status) || has_ended_before(status)).count();
    if main.is_empty() || (waiting && !over) {
        return PENDING;
    }
    if running {
        return RUNNING;
    }
    match (over, ended) {
        (_, 0) => PENDING,
        (false, _) => RUNNING,
        (true, _) if main.iter().all(has_succeeded) => SUCCEEDED,
        (true, _) => FAILED,
    }
}

/// An init container is not done, or a sidecar has not started, and no main container has begun.
fn is_initializing(facts: &Facts<'_>, all: &Statuses) -> bool {
    let begun = all.main.iter().any(|status| !is_waiting(status) || has_ended_before(status));
    let inits =
        facts.containers.iter().filter(|container| matches!(container.role, Role::Init | Role::Sidecar));
    !begun
        && inits.into_iter().any(|container| {
            let Some(status) = all.of(container.role, container.index) else { return true };
            match container.role {
                Role::Sidecar => status.started != Some(true),
                _ => !has_succeeded(status),
            }
        })
}

fn is_waiting(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_none_or(|state| state.waiting.is_some())
}

fn is_running(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|state| state.running.is_some())
}

fn has_ended(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|state| state.terminated.is_some())
}

fn has_ended_before(status: &ContainerStatus) -> bool {
    status.last_state.as_ref().is_some_and(|state| state.terminated.is_some())
}

pub(super) fn has_succeeded(status: &ContainerStatus) -> bool {
    status.state.as_ref().and_then(|state| state.terminated.as_ref()).is_some_and(|end| end.exit_code == 0)
}

/// Whether a main container has ever begun.
pub(super) fn has_begun(status: &ContainerStatus) -> bool {
    !is_waiting(status) || has_ended_before(status)
}
