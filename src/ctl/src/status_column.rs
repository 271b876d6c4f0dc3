//! The columns READY, STATUS and RESTARTS of a pod, computed as kubectl computes them
//! (kubernetes pkg/printers/internalversion, printPod). Pure; the table test pins each rule.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodStatus};
use longshore_core::pod::lifecycle::Lifecycle;

/// What the columns say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodColumns {
    pub ready: usize,
    pub containers: usize,
    pub status: String,
    pub restarts: i32,
    /// When the last instance that ended, ended.
    pub last_restart: Option<Timestamp>,
}

/// Computes the columns from a pod's spec, its status, and whether it is ending.
pub fn columns(pod: &Pod, status: &PodStatus, lifecycle: &Lifecycle) -> PodColumns {
    let empty = Vec::new();
    let spec = pod.spec.as_ref();
    let init_specs = spec.and_then(|spec| spec.init_containers.as_ref()).unwrap_or(&empty);
    let sidecars = init_specs.iter().filter(|container| is_sidecar(container)).count();
    let phase = status.phase.clone().unwrap_or_else(|| "Pending".into());
    let mut columns = PodColumns {
        ready: 0,
        containers: spec.map_or(0, |spec| spec.containers.len()) + sidecars,
        status: status.reason.clone().filter(|reason| !reason.is_empty()).unwrap_or_else(|| phase.clone()),
        restarts: 0,
        last_restart: None,
    };
    if condition_reason(status, "PodScheduled").as_deref() == Some("SchedulingGated") {
        columns.status = "SchedulingGated".into();
    }
    let initializing = init_containers(&mut columns, init_specs, status);
    if !initializing || condition_is_true(status, "Initialized") {
        main_containers(&mut columns, init_specs, status);
    }
    let ending =
        pod.metadata.deletion_timestamp.is_some() || matches!(lifecycle, Lifecycle::Terminating { .. });
    if ending && status.reason.as_deref() == Some("NodeLost") {
        columns.status = "Unknown".into();
    } else if ending && phase != "Succeeded" && phase != "Failed" {
        columns.status = "Terminating".into();
    }
    columns
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Counts init containers; true while one of them holds the pod up, which is then the status.
fn init_containers(columns: &mut PodColumns, specs: &[Container], status: &PodStatus) -> bool {
    for (index, container) in status.init_container_statuses.iter().flatten().enumerate() {
        columns.restarts += container.restart_count;
        note_last_end(columns, container);
        let sidecar = specs.iter().any(|spec| spec.name == container.name && is_sidecar(spec));
        let state = container.state.as_ref();
        let terminated = state.and_then(|state| state.terminated.as_ref());
        let waiting = state.and_then(|state| state.waiting.as_ref());
        if terminated.is_some_and(|end| end.exit_code == 0) {
            continue;
        }
        if sidecar && container.started == Some(true) {
            columns.ready += usize::from(container.ready);
            continue;
        }
        columns.status = match (terminated, waiting.and_then(|waiting| waiting.reason.as_deref())) {
            (Some(end), _) => {
                format!("Init:{}", end_reason(end.reason.as_deref(), end.signal, end.exit_code))
            }
            (None, Some(reason)) if !reason.is_empty() && reason != "PodInitializing" => {
                format!("Init:{reason}")
            }
            _ => format!("Init:{index}/{}", specs.len()),
        };
        return true;
    }
    false
}

fn main_containers(columns: &mut PodColumns, specs: &[Container], status: &PodStatus) {
    // Restarts of finished init containers say nothing any more; those of sidecars do.
    columns.restarts = status
        .init_container_statuses
        .iter()
        .flatten()
        .filter(|container| specs.iter().any(|spec| spec.name == container.name && is_sidecar(spec)))
        .map(|container| container.restart_count)
        .sum();
    let mut running = false;
    for container in status.container_statuses.iter().flatten().rev() {
        columns.restarts += container.restart_count;
        note_last_end(columns, container);
        let Some(state) = &container.state else { continue };
        let waiting = state.waiting.as_ref().and_then(|waiting| waiting.reason.as_deref());
        if let Some(reason) = waiting.filter(|reason| !reason.is_empty()) {
            columns.status = reason.into();
        } else if let Some(end) = &state.terminated {
            columns.status = end_reason(end.reason.as_deref(), end.signal, end.exit_code);
        } else if container.ready && state.running.is_some() {
            running = true;
            columns.ready += 1;
        }
    }
    if columns.status == "Completed" && running {
        let ready = condition_is_true(status, "Ready");
        columns.status = if ready { "Running" } else { "NotReady" }.into();
    }
}

fn end_reason(reason: Option<&str>, signal: Option<i32>, exit_code: i32) -> String {
    match (reason, signal) {
        (Some(reason), _) if !reason.is_empty() => reason.into(),
        (_, Some(signal)) if signal != 0 => format!("Signal:{signal}"),
        _ => format!("ExitCode:{exit_code}"),
    }
}

fn note_last_end(columns: &mut PodColumns, container: &ContainerStatus) {
    let ended = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    if let Some(at) = ended.and_then(|end| end.finished_at.as_ref()) {
        columns.last_restart = columns.last_restart.max(Some(at.0));
    }
}

fn condition_is_true(status: &PodStatus, kind: &str) -> bool {
    status.conditions.iter().flatten().any(|condition| condition.type_ == kind && condition.status == "True")
}

fn condition_reason(status: &PodStatus, kind: &str) -> Option<String> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == kind)?.reason.clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(spec: serde_json::Value, status: serde_json::Value, lifecycle: &Lifecycle) -> PodColumns {
        let pod: Pod = serde_json::from_value(
            json!({"apiVersion": "v1", "kind": "Pod", "spec": spec, "status": status}),
        )
        .unwrap();
        let status = pod.status.clone().unwrap();
        columns(&pod, &status, lifecycle)
    }

    fn main_status(name: &str, ready: bool, restarts: i32, state: serde_json::Value) -> serde_json::Value {
        json!({"name": name, "ready": ready, "restartCount": restarts, "image": "", "imageID": "", "state": state})
    }

    #[test]
    fn the_status_is_the_one_kubectl_shows() {
        let one = json!({"containers": [{"name": "a"}]});
        let two = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        let init = json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}, {"name": "j"}]});
        let sidecar = json!({"containers": [{"name": "a"}],
            "initContainers": [{"name": "s", "restartPolicy": "Always"}]});
        let running = json!({"running": {}});
        let waiting = |reason: &str| json!({"waiting": {"reason": reason}});
        let ended = |reason: &str, code: i32| json!({"terminated": {"reason": reason, "exitCode": code}});
        let cases = [
            (&one, json!({"phase": "Pending"}), "Pending", "0/1", 0),
            (
                &one,
                json!({"phase": "Running", "containerStatuses": [main_status("a", true, 0, running.clone())]}),
                "Running",
                "1/1",
                0,
            ),
            (
                &one,
                json!({"phase": "Running", "containerStatuses": [main_status("a", false, 3, waiting("CrashLoopBackOff"))]}),
                "CrashLoopBackOff",
                "0/1",
                3,
            ),
            (
                &two,
                json!({"phase": "Running", "containerStatuses":
                [main_status("a", true, 0, running.clone()), main_status("b", false, 0, ended("Completed", 0))]}),
                "NotReady",
                "1/2",
                0,
            ),
            (
                &two,
                json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses":
                [main_status("a", true, 0, running.clone()), main_status("b", false, 0, ended("Completed", 0))]}),
                "Running",
                "1/2",
                0,
            ),
            (
                &one,
                json!({"phase": "Failed", "containerStatuses": [main_status("a", false, 0, ended("", 3))]}),
                "ExitCode:3",
                "0/1",
                0,
            ),
            (
                &one,
                json!({"phase": "Failed", "containerStatuses":
                [main_status("a", false, 0, json!({"terminated": {"signal": 9, "exitCode": 137}}))]}),
                "Signal:9",
                "0/1",
                0,
            ),
            (&one, json!({"phase": "Failed", "reason": "Evicted"}), "Evicted", "0/1", 0),
            (
                &init,
                json!({"phase": "Pending", "initContainerStatuses":
                [main_status("i", true, 0, ended("Completed", 0)), main_status("j", false, 0, running.clone())]}),
                "Init:1/2",
                "0/1",
                0,
            ),
            (
                &init,
                json!({"phase": "Pending", "initContainerStatuses":
                [main_status("i", false, 2, ended("Error", 1)), main_status("j", false, 0, waiting("PodInitializing"))]}),
                "Init:Error",
                "0/1",
                2,
            ),
            (
                &init,
                json!({"phase": "Pending", "initContainerStatuses": [main_status("i", false, 5, waiting("CrashLoopBackOff"))]}),
                "Init:CrashLoopBackOff",
                "0/1",
                5,
            ),
            (
                &sidecar,
                json!({"phase": "Running", "initContainerStatuses":
                [{"name": "s", "ready": true, "started": true, "restartCount": 2, "image": "", "imageID": "", "state": running}],
                "containerStatuses": [main_status("a", true, 1, running.clone())]}),
                "Running",
                "2/2",
                3,
            ),
        ];
        for (spec, status, expected, ready, restarts) in cases {
            let got = of(spec.clone(), status.clone(), &Lifecycle::Syncing);
            let got_ready = format!("{}/{}", got.ready, got.containers);
            assert_eq!(
                (got.status.as_str(), got_ready.as_str(), got.restarts),
                (expected, ready, restarts),
                "{status}"
            );
        }
    }

    #[test]
    fn a_pod_that_ends_is_terminating_until_its_phase_is_final() {
        let ending = Lifecycle::Terminating {
            cause: longshore_core::pod::desired::EndCause::Deleted,
            since: Timestamp::UNIX_EPOCH,
            deadline: Timestamp::UNIX_EPOCH,
        };
        let spec = json!({"containers": [{"name": "a"}]});
        assert_eq!(of(spec.clone(), json!({"phase": "Running"}), &ending).status, "Terminating");
        assert_eq!(of(spec, json!({"phase": "Succeeded"}), &ending).status, "Succeeded");
    }

    #[test]
    fn the_last_restart_is_the_newest_end() {
        let mut status = main_status("a", true, 2, json!({"running": {}}));
        status["lastState"] = json!({"terminated": {"exitCode": 1, "finishedAt": "2026-01-02T03:04:05Z"}});
        let got = of(
            json!({"containers": [{"name": "a"}]}),
            json!({"phase": "Running", "containerStatuses": [status]}),
            &Lifecycle::Syncing,
        );
        assert_eq!(got.last_restart, Some("2026-01-02T03:04:05Z".parse().unwrap()));
    }
}
