//! List filters to CRI. Set fields must all match.

use std::collections::HashMap;

use longshore_core::ids::PodUid;
use longshore_core::pod::observed::SandboxState;

use super::labels;
use crate::api::v1;
use crate::containers::{ContainerFilter, ContainerPhase};
use crate::sandboxes::SandboxFilter;

pub(crate) fn sandbox_filter(filter: &SandboxFilter) -> v1::PodSandboxFilter {
    let state = filter.state.map(|state| {
        let state = match state {
            SandboxState::Ready => v1::PodSandboxState::SandboxReady,
            SandboxState::NotReady => v1::PodSandboxState::SandboxNotready,
        };
        v1::PodSandboxStateValue { state: state.into() }
    });
    v1::PodSandboxFilter {
        id: text(filter.id.as_ref().map(|id| id.as_str())),
        state,
        label_selector: of_pod(filter.pod.as_ref()),
    }
}

pub(crate) fn container_filter(filter: &ContainerFilter) -> v1::ContainerFilter {
    let state = filter.state.map(|state| {
        let state = match state {
            ContainerPhase::Created => v1::ContainerState::ContainerCreated,
            ContainerPhase::Running => v1::ContainerState::ContainerRunning,
            ContainerPhase::Exited => v1::ContainerState::ContainerExited,
            ContainerPhase::Unknown => v1::ContainerState::ContainerUnknown,
        };
        v1::ContainerStateValue { state: state.into() }
    });
    v1::ContainerFilter {
        id: text(filter.id.as_ref().map(|id| id.as_str())),
        state,
        pod_sandbox_id: text(filter.sandbox.as_ref().map(|id| id.as_str())),
        label_selector: of_pod(filter.pod.as_ref()),
    }
}

pub(crate) fn stats_filter(filter: &ContainerFilter) -> v1::ContainerStatsFilter {
    v1::ContainerStatsFilter {
        id: text(filter.id.as_ref().map(|id| id.as_str())),
        pod_sandbox_id: text(filter.sandbox.as_ref().map(|id| id.as_str())),
        label_selector: of_pod(filter.pod.as_ref()),
    }
}

fn text(value: Option<&str>) -> String {
    value.unwrap_or_default().to_owned()
}

fn of_pod(uid: Option<&PodUid>) -> HashMap<String, String> {
    uid.map(|uid| (labels::POD_UID.to_owned(), uid.to_string())).into_iter().collect()
}
