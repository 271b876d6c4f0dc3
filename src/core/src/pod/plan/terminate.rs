//! A pod that ends: main containers first and together, then sidecars from the last to the first,
//! all within one grace period; then the sandbox (behaviours 4, 17-19).

use std::time::Duration;

use jiff::Timestamp;

use crate::pod::containers::Role;
use crate::pod::desired::EndCause;
use crate::pod::lifecycle::Lifecycle;
use crate::pod::observed::{ContainerState, ObservedContainer, SandboxState};
use crate::pod::step::{Step, StepKind, StopContainer};

use super::containers::remove;
use super::draft::Draft;

/// What a container gets at least, when not forced (behaviours 17).
const LEAST_GRACE: Duration = Duration::from_secs(2);

pub(super) fn terminate(draft: &mut Draft<'_, '_>, cause: &EndCause, deadline: Timestamp) {
    draft.cancel(&[StepKind::PullImage, StepKind::PostStart], |_| false);
    draft.wake(deadline);
    stop_containers(draft, cause, deadline);
    if is_grace_shorter(draft, deadline) {
        draft.cancel(&[StepKind::StopContainer], |_| false);
    }
    let observed = draft.facts.snapshot.observed;
    if !draft.facts.sandbox_in_use() {
        for sandbox in observed.sandboxes.iter().filter(|sandbox| sandbox.state == SandboxState::Ready) {
            draft.want(Step::StopSandbox { id: sandbox.id.clone() });
        }
    }
}

/// Stops under way were begun with more time than there is now; they are begun again with less.
fn is_grace_shorter(draft: &Draft<'_, '_>, deadline: Timestamp) -> bool {
    let snapshot = draft.facts.snapshot;
    match snapshot.lifecycle {
        Lifecycle::Terminating { deadline: before, .. } => deadline < *before,
        _ => remaining(draft, deadline) + Duration::from_secs(1) < draft.facts.grace(None),
    }
}

fn remaining(draft: &Draft<'_, '_>, deadline: Timestamp) -> Duration {
    Duration::try_from(deadline.duration_since(draft.now())).unwrap_or(Duration::ZERO)
}

fn stop_containers(draft: &mut Draft<'_, '_>, cause: &EndCause, deadline: Timestamp) {
    let instances: Vec<&ObservedContainer> =
        draft.facts.snapshot.observed.containers.iter().filter(|instance| instance.may_run()).collect();
    let last_sidecar = instances.iter().filter_map(|instance| sidecar_index(draft, instance)).max();
    let others_left = instances.iter().any(|instance| sidecar_index(draft, instance).is_none());
    let out_of_time = remaining(draft, deadline).is_zero();
    for instance in instances {
        let turn = match sidecar_index(draft, instance) {
            None => true,
            Some(index) => out_of_time || (!others_left && Some(index) == last_sidecar),
        };
        if turn {
            stop(draft, instance, cause, deadline);
        }
    }
}

/// Position of a sidecar's instance among the init containers; `None` for all others.
fn sidecar_index(draft: &Draft<'_, '_>, instance: &ObservedContainer) -> Option<usize> {
    draft
        .facts
        .of_role(Role::Sidecar)
        .find(|container| container.name == instance.name)
        .map(|found| found.index)
}

fn stop(draft: &mut Draft<'_, '_>, instance: &ObservedContainer, cause: &EndCause, deadline: Timestamp) {
    if instance.state == ContainerState::Created {
        // It never ran, and the runtime's stop leaves it as it is.
        remove(draft, instance);
        return;
    }
    if draft.facts.in_flight(StepKind::StartContainer, instance.name.as_str())
        || draft.facts.in_flight(StepKind::CreateContainer, instance.name.as_str())
    {
        return;
    }
    let forced =
        draft.facts.snapshot.desired.deletion.as_ref().is_some_and(|deletion| deletion.grace_seconds == 0);
    let left = remaining(draft, deadline);
    let pre_stop = draft.facts.pre_stop(instance).filter(|_| !left.is_zero());
    let grace = if forced { Duration::ZERO } else { left.max(LEAST_GRACE) };
    let pod_ip = draft.facts.pod_ips().first().copied();
    let (container, id) = (instance.name.clone(), instance.id.clone());
    let reason = words(cause);
    draft.want(Step::StopContainer(StopContainer { container, id, pre_stop, pod_ip, grace, reason }));
}

fn words(cause: &EndCause) -> String {
    match cause {
        EndCause::Deleted => "the pod was deleted".to_owned(),
        EndCause::Replaced => "the pod's definition changed".to_owned(),
        EndCause::Finished => "the pod's main containers have finished".to_owned(),
        EndCause::DeadlineExceeded => "the pod ran longer than activeDeadlineSeconds".to_owned(),
        EndCause::Rejected { message, .. } => format!("the pod was rejected: {message}"),
        EndCause::Evicted { message } => format!("the pod was evicted: {message}"),
        EndCause::Preempted { message } => format!("the pod was preempted: {message}"),
        EndCause::Orphaned => "no source wants the pod any more".to_owned(),
    }
}
