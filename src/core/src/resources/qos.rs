//! Quality-of-service class of a pod (pkg/apis/core/v1/helper/qos): from the requests and limits
//! for CPU and memory of all its containers, or of the pod where it states its own.

use std::fmt;

use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};

use crate::pod::containers::{Role, containers};
use crate::resources::quantity::{Amount, amount_or_zero};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QosClass {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl QosClass {
    /// As the API spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

impl fmt::Display for QosClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

const COMPUTE: [&str; 2] = ["cpu", "memory"];

pub fn qos_class(pod: &Pod) -> QosClass {
    let pod_level =
        pod.spec.as_ref().and_then(|spec| spec.resources.as_ref()).filter(|own| states_compute(own));
    let all = containers(pod);
    let parts: Vec<Option<&ResourceRequirements>> = match pod_level {
        Some(own) => vec![Some(own)],
        None => {
            let counted = all.iter().filter(|container| container.role != Role::Ephemeral);
            counted.map(|container| container.spec.resources.as_ref()).collect()
        }
    };
    if parts.iter().flatten().all(|part| !states_compute(part)) {
        return QosClass::BestEffort;
    }
    if parts.iter().all(|part| part.is_some_and(is_guaranteed)) {
        QosClass::Guaranteed
    } else {
        QosClass::Burstable
    }
}

fn states_compute(part: &ResourceRequirements) -> bool {
    COMPUTE.iter().any(|name| !request(part, name).is_zero() || !limit(part, name).is_zero())
}

/// Both limits are given, and requests equal them (an absent request is the limit).
fn is_guaranteed(part: &ResourceRequirements) -> bool {
    COMPUTE.iter().all(|name| {
        let (request, limit) = (request(part, name), limit(part, name));
        !limit.is_zero() && (request.is_zero() || request == limit)
    })
}

fn request(part: &ResourceRequirements, name: &str) -> Amount {
    amount_or_zero(part.requests.as_ref().and_then(|all| all.get(name)))
}

fn limit(part: &ResourceRequirements, name: &str) -> Amount {
    amount_or_zero(part.limits.as_ref().and_then(|all| all.get(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::fixture::pod;
    use serde_json::json;

    #[test]
    fn classes_follow_requests_and_limits() {
        let both = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        let cases = [
            (json!([{"name": "a", "image": "i"}]), json!([]), QosClass::BestEffort),
            (
                json!([{"name": "a", "image": "i", "resources": {"limits": {"cpu": "0"}}}]),
                json!([]),
                QosClass::BestEffort,
            ),
            (json!([{"name": "a", "image": "i", "resources": both}]), json!([]), QosClass::Guaranteed),
            (
                json!([{"name": "a", "image": "i", "resources": both}, {"name": "b", "image": "i"}]),
                json!([]),
                QosClass::Burstable,
            ),
            (
                json!([{"name": "a", "image": "i", "resources": both}]),
                json!([{"name": "b", "image": "i"}]),
                QosClass::Burstable,
            ),
            (
                json!([{"name": "a", "image": "i", "resources": {"limits": {"cpu": "1"}}}]),
                json!([]),
                QosClass::Burstable,
            ),
            (
                json!([{"name": "a", "image": "i", "resources": {"limits": {"cpu": "1", "memory": "1"},
                "requests": {"cpu": "500m"}}}]),
                json!([]),
                QosClass::Burstable,
            ),
            (
                json!([{"name": "a", "image": "i", "resources": {"limits": {"ephemeral-storage": "1Gi"}}}]),
                json!([]),
                QosClass::BestEffort,
            ),
        ];
        for (main, init, class) in cases {
            let pod = pod(json!({"spec": {"containers": main, "initContainers": init}}));
            assert_eq!(qos_class(&pod), class, "{main} {init}");
        }
        let own = pod(json!({"spec": {"containers": [{"name": "a", "image": "i"}], "resources": both}}));
        assert_eq!(qos_class(&own), QosClass::Guaranteed, "the pod's own statement counts");
    }
}
