//! Which instance of a container a log is asked of, by the pod's status. The texts are upstream's in meaning:
//! kubectl shows them as they are.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};

/// Why there is no log to show.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoLog {
    /// The pod has no such container.
    #[error("container \"{container}\" not found in pod \"{pod}\"")]
    NoContainer { container: String, pod: String },
    /// It has, and there is nothing of it yet or any more.
    #[error("{0}")]
    NotThere(String),
}

/// The id of the instance that is meant, as the runtime has it.
///
/// # Errors
/// Where there is none.
pub fn log_source(pod: &Pod, status: &PodStatus, container: &str, previous: bool) -> Result<String, NoLog> {
    let name = pod.metadata.name.clone().unwrap_or_default();
    if !has_container(pod, container) {
        return Err(NoLog::NoContainer { container: container.to_owned(), pod: name });
    }
    let nothing = |why: String| NoLog::NotThere(why);
    let lists =
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    let mut all = lists.into_iter().flatten().flatten();
    let Some(status) = all.find(|status| status.name == container) else {
        return Err(nothing(format!("container \"{container}\" in pod \"{name}\" is not available")));
    };
    if previous {
        let missing =
            || nothing(format!("previous terminated container \"{container}\" in pod \"{name}\" not found"));
        return last_instance(status).ok_or_else(missing);
    }
    let state = status.state.as_ref();
    if state.is_some_and(|state| state.running.is_some()) {
        let id = status.container_id.as_deref().map(bare_id).filter(|id| !id.is_empty());
        return id
            .ok_or_else(|| nothing(format!("container \"{container}\" in pod \"{name}\" is not available")));
    }
    let ended = state.and_then(|state| state.terminated.as_ref()?.container_id.as_deref()).map(bare_id);
    // While it waits to be started again, the log of its last instance is the one people want.
    if let Some(id) = ended.filter(|id| !id.is_empty()).or_else(|| last_instance(status)) {
        return Ok(id);
    }
    if state.is_some_and(|state| state.terminated.is_some()) {
        return Err(nothing(format!("container \"{container}\" in pod \"{name}\" is terminated")));
    }
    let reason = state.and_then(|state| state.waiting.as_ref()?.reason.as_deref()).unwrap_or_default();
    Err(nothing(match reason {
        "" => format!("container \"{container}\" in pod \"{name}\" is waiting to start - no logs yet"),
        "ErrImagePull" => {
            format!("container \"{container}\" in pod \"{name}\" is waiting to start: image can't be pulled")
        }
        "ImagePullBackOff" => format!(
            "container \"{container}\" in pod \"{name}\" is waiting to start: trying and failing to pull image"
        ),
        reason => format!("container \"{container}\" in pod \"{name}\" is waiting to start: {reason}"),
    }))
}

fn has_container(pod: &Pod, container: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let names = spec.containers.iter().map(|known| &known.name);
    let init = spec.init_containers.iter().flatten().map(|known| &known.name);
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|known| &known.name);
    names.chain(init).chain(ephemeral).any(|known| known == container)
}

fn last_instance(status: &ContainerStatus) -> Option<String> {
    let id = status.last_state.as_ref()?.terminated.as_ref()?.container_id.as_deref()?;
    Some(bare_id(id)).filter(|id| !id.is_empty())
}

/// `containerd://abc` is `abc` to the runtime.
pub fn bare_id(id: &str) -> String {
    id.rsplit_once("://").map_or(id, |(_, id)| id).to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asked(status: serde_json::Value, previous: bool) -> Result<String, String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web"},
            "spec": {"containers": [{"name": "c"}], "initContainers": [{"name": "i"}]},
        }))
        .unwrap();
        let status: PodStatus = serde_json::from_value(json!({"containerStatuses": status})).unwrap();
        log_source(&pod, &status, "c", previous).map_err(|error| error.to_string())
    }

    fn one(state: serde_json::Value, last: serde_json::Value) -> serde_json::Value {
        json!([{
            "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "containerID": "containerd://now", "state": state, "lastState": last,
        }])
    }

    #[test]
    fn the_instance_that_is_meant() {
        let ended =
            |id: &str| json!({"terminated": {"exitCode": 1, "containerID": format!("containerd://{id}")}});
        let running = json!({"running": {}});
        let waiting = |reason: &str| json!({"waiting": {"reason": reason}});
        let cases = [
            (one(running.clone(), json!({})), false, Ok("now")),
            (one(running.clone(), ended("old")), false, Ok("now")),
            (one(running.clone(), ended("old")), true, Ok("old")),
            (
                one(running, json!({})),
                true,
                Err("previous terminated container \"c\" in pod \"web\" not found"),
            ),
            (one(ended("over"), json!({})), false, Ok("over")),
            (one(waiting("CrashLoopBackOff"), ended("old")), false, Ok("old")),
            (
                one(waiting("ContainerCreating"), json!({})),
                false,
                Err("is waiting to start: ContainerCreating"),
            ),
            (one(waiting("ImagePullBackOff"), json!({})), false, Err("trying and failing to pull image")),
            (one(json!({}), json!({})), false, Err("no logs yet")),
            (json!([]), false, Err("container \"c\" in pod \"web\" is not available")),
        ];
        for (status, previous, expected) in cases {
            match (asked(status.clone(), previous), expected) {
                (Ok(id), Ok(expected)) => assert_eq!(id, expected, "{status}"),
                (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
                (got, expected) => panic!("{status}: {got:?}, not {expected:?}"),
            }
        }
        let no_container = log_source(&Pod::default(), &PodStatus::default(), "x", false).unwrap_err();
        assert!(matches!(no_container, NoLog::NoContainer { .. }), "{no_container}");
    }
}
