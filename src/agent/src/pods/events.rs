//! What is worth a line in a pod's timeline: differences between two readings or two statuses, in
//! words. Pure; nothing here knows where the lines go.

use std::collections::BTreeMap;
use std::mem::{Discriminant, discriminant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;
use longshore_core::ids::ContainerId;
use longshore_core::pod::lifecycle::Lifecycle;
use longshore_core::pod::observed::{ContainerState, ObservedContainer, ObservedPod, SandboxState};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodEvent {
    pub at: Timestamp,
    pub what: String,
    pub detail: String,
}

/// States of container instances that have their line in the timeline.
#[derive(Debug, Default)]
pub(super) struct Told(BTreeMap<ContainerId, Discriminant<ContainerState>>);

/// Instances that are remembered after the runtime has forgotten them.
const REMEMBERED: usize = 32;

impl Told {
    /// What is there already is no news.
    pub fn of(pod: &ObservedPod) -> Self {
        Self(pod.containers.iter().map(|c| (c.id.clone(), discriminant(&c.state))).collect())
    }

    /// Whether this state of this instance is news; from now on it is none. The reply to a call, the
    /// runtime's event and a reading all tell the same, in any order and with better or worse times.
    fn is_news(&mut self, container: &ObservedContainer) -> bool {
        let state = discriminant(&container.state);
        self.0.insert(container.id.clone(), state) != Some(state)
    }

    fn forget_all_but(&mut self, pod: &ObservedPod) {
        if self.0.len() > REMEMBERED {
            self.0.retain(|id, _| pod.containers.iter().any(|container| container.id == *id));
        }
    }
}

/// Containers that started to run or exited, and sandboxes that were lost.
pub(super) fn of_containers(told: &mut Told, before: &ObservedPod, after: &ObservedPod) -> Vec<PodEvent> {
    let mut events = Vec::new();
    told.forget_all_but(after);
    for container in &after.containers {
        if !told.is_news(container) {
            continue;
        }
        match &container.state {
            ContainerState::Running { started_at } => events.push(PodEvent {
                at: *started_at,
                what: format!("container {} runs", container.name),
                detail: format!("instance {}", container.attempt),
            }),
            ContainerState::Exited { finished_at, exit_code, reason, .. } => events.push(PodEvent {
                at: *finished_at,
                what: format!("container {} exited", container.name),
                detail: format!("code {exit_code}, {reason}"),
            }),
            ContainerState::Created | ContainerState::Unknown => {}
        }
    }
    for sandbox in &after.sandboxes {
        let was_ready = before.sandboxes.iter().any(|s| s.id == sandbox.id && s.state == SandboxState::Ready);
        if was_ready && sandbox.state == SandboxState::NotReady {
            events.push(PodEvent {
                at: after.observed_at,
                what: "sandbox stopped".into(),
                detail: format!("attempt {}", sandbox.attempt),
            });
        }
    }
    events
}

/// A phase, Ready or the addresses changed.
pub(super) fn of_status(before: Option<&PodStatus>, after: &PodStatus, now: Timestamp) -> Vec<PodEvent> {
    let event = |what: String, detail: &str| PodEvent { at: now, what, detail: detail.to_owned() };
    let mut events = Vec::new();
    let phase = |status: &PodStatus| status.phase.clone().unwrap_or_default();
    if before.map(phase).unwrap_or_default() != phase(after) {
        events.push(event(format!("phase {}", phase(after)), after.reason.as_deref().unwrap_or_default()));
    }
    let (was_ready, ready) = (before.is_some_and(is_ready), is_ready(after));
    if ready && !was_ready {
        events.push(event("Ready".into(), after.pod_ip.as_deref().unwrap_or_default()));
    }
    if was_ready && !ready {
        let condition = condition(after, "Ready");
        events.push(event(
            "not Ready".into(),
            condition.and_then(|c| c.message.as_deref()).unwrap_or_default(),
        ));
    }
    events
}

/// The lifecycle as a line.
pub(super) fn lifecycle_words(lifecycle: &Lifecycle) -> String {
    match lifecycle {
        Lifecycle::Queued { behind } => format!("waits for the earlier life {behind} to end"),
        Lifecycle::Syncing => "admitted".into(),
        Lifecycle::Terminating { cause, .. } => format!("ending: {cause:?}"),
        Lifecycle::Terminated { .. } => "nothing runs any more".into(),
        Lifecycle::Released { .. } => "released: nothing is left".into(),
    }
}

/// Whether the status says that the pod is Ready.
pub fn is_ready(status: &PodStatus) -> bool {
    condition(status, "Ready").is_some_and(|c| c.status == "True")
}

fn condition<'a>(status: &'a PodStatus, kind: &str) -> Option<&'a k8s_openapi::api::core::v1::PodCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == kind)
}
