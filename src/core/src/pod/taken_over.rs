//! What is known beside the runtime of a pod that runs and that this agent has no record of: another program, the
//! kubelet as a rule, started it and told the control plane how it is. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, PodStatus};

use crate::pod::containers::containers;
use crate::pod::desired::{DesiredPod, PodSource};
use crate::pod::local::{HookState, LocalState, ProbeResult, ProbeResults};
use crate::pod::observed::{ObservedContainer, ObservedPod};

/// The local state such a pod goes on with: Ready does not flip until a probe says otherwise, and no postStart hook
/// runs a second time. `told` is what the control plane has of it; of a static pod it has nothing.
pub fn local(
    desired: &DesiredPod,
    observed: &ObservedPod,
    told: Option<&PodStatus>,
    now: Timestamp,
) -> LocalState {
    let told = statuses(told);
    let mut local = LocalState::default();
    for container in containers(&desired.pod) {
        // Newest first.
        let newest = observed.containers.iter().find(|instance| instance.name == container.name);
        let Some(instance) = newest.filter(|instance| instance.is_running()) else { continue };
        let status = told.get(container.name.as_str()).filter(|status| is_of(status, instance));
        // The kubelet tells of a container that runs after its hook only.
        let is_hooked = status.is_some() || matches!(desired.source, PodSource::File { .. });
        if is_hooked && has_post_start(&container.spec) {
            local.post_start.insert(instance.id.clone(), HookState::Done);
        }
        if let Some(results) = status.and_then(|status| results(&container.spec, status, now)) {
            local.probes.insert(instance.id.clone(), results);
        }
    }
    local
}

fn statuses(told: Option<&PodStatus>) -> BTreeMap<&str, &ContainerStatus> {
    let all = told.into_iter().flat_map(|told| [&told.init_container_statuses, &told.container_statuses]);
    all.flatten().flatten().map(|status| (status.name.as_str(), status)).collect()
}

/// Whether the status is of this instance: ids are written `containerd://ID` there.
fn is_of(status: &ContainerStatus, instance: &ObservedContainer) -> bool {
    let id = status.container_id.as_deref().and_then(|id| id.split_once("://")).map(|(_, id)| id);
    let runs = status.state.as_ref().is_some_and(|state| state.running.is_some());
    runs && id == Some(instance.id.as_str())
}

fn has_post_start(container: &Container) -> bool {
    container.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.post_start.is_some())
}

/// The verdicts that the status shows. What has failed is found out anew: only Ready and started last.
fn results(container: &Container, status: &ContainerStatus, now: Timestamp) -> Option<ProbeResults> {
    let good = || ProbeResult {
        healthy: true,
        since: now,
        message: "as it was when the node was taken over".into(),
    };
    let startup = (container.startup_probe.is_some() && status.started == Some(true)).then(good);
    let readiness = (container.readiness_probe.is_some() && status.ready).then(good);
    (startup.is_some() || readiness.is_some()).then_some(ProbeResults { startup, liveness: None, readiness })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ContainerId;
    use crate::pod::fixture::{Fixture, at, exited, running};
    use serde_json::{Value, json};

    fn pod(source: PodSource, more: &Value) -> DesiredPod {
        let mut container = json!({"name": "web", "image": "w:1"});
        container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let mut desired = Fixture::new(json!({
            "metadata": {"name": "web", "namespace": "default"}, "spec": {"containers": [container]}
        }))
        .desired;
        desired.source = source;
        desired
    }

    fn observed(instance: ObservedContainer) -> ObservedPod {
        let mut observed =
            Fixture::new(json!({"metadata": {"name": "web"}, "spec": {"containers": []}})).observed;
        observed.containers = vec![instance];
        observed
    }

    fn told(id: &str, ready: bool, started: bool) -> PodStatus {
        serde_json::from_value(json!({"phase": "Running", "containerStatuses": [{
            "name": "web", "image": "w:1", "imageID": "", "restartCount": 0, "containerID": format!("containerd://{id}"),
            "ready": ready, "started": started, "state": {"running": {"startedAt": "2026-11-21T00:00:00Z"}}}]}))
        .unwrap()
    }

    #[test]
    fn verdicts_and_hooks_go_on_as_the_control_plane_shows_them() {
        let probe = json!({"httpGet": {"port": 80}});
        let both = json!({"readinessProbe": probe, "startupProbe": probe,
            "lifecycle": {"postStart": {"exec": {"command": ["true"]}}}});
        let up = || running("1", "web", 0, at(1));
        // (what, probes and hooks, status, instance) -> (startup, readiness, hook done)
        for (what, more, status, instance, expected) in [
            ("ready", &both, Some(told("1", true, true)), up(), (true, true, true)),
            ("not ready", &both, Some(told("1", false, true)), up(), (true, false, true)),
            ("not started", &both, Some(told("1", false, false)), up(), (false, false, true)),
            ("of an earlier instance", &both, Some(told("0", true, true)), up(), (false, false, false)),
            ("nothing told", &both, None, up(), (false, false, false)),
            (
                "ended since",
                &both,
                Some(told("1", true, true)),
                exited("1", "web", 0, at(1), at(2), 0),
                (false, false, false),
            ),
            ("without probes", &json!({}), Some(told("1", true, true)), up(), (false, false, false)),
        ] {
            let local = local(&pod(PodSource::Api, more), &observed(instance), status.as_ref(), at(9));
            let results = local.probes.get(&ContainerId::from("1")).cloned().unwrap_or_default();
            let healthy = |result: &Option<ProbeResult>| result.as_ref().is_some_and(|result| result.healthy);
            let hook = local.post_start.get(&ContainerId::from("1")) == Some(&HookState::Done);
            assert_eq!((healthy(&results.startup), healthy(&results.readiness), hook), expected, "{what}");
        }
    }

    #[test]
    fn a_static_pods_hook_is_done_though_nobody_tells() {
        let hook = json!({"lifecycle": {"postStart": {"exec": {"command": ["true"]}}}});
        let source = PodSource::File { path: "/manifests/web.yaml".into(), document: 1 };
        let local = local(&pod(source, &hook), &observed(running("1", "web", 0, at(1))), None, at(9));
        assert_eq!(local.post_start.get(&ContainerId::from("1")), Some(&HookState::Done));
    }
}
