//! What can be told of a pod that only the runtime knows: enough to keep its place on the node until a
//! source has said whether it is wanted. Pure.

use k8s_openapi::api::core::v1::{Container, ContainerPort, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::pod::observed::{ObservedContainer, ObservedPod};
use crate::pod::render::PORTS;

/// The pod as its labels and annotations in the runtime tell it: names, host network and ports. Requests
/// of CPU and memory are not among them and count as none.
pub fn pod_of(observed: &ObservedPod) -> Pod {
    let containers = observed.containers.iter().filter(|instance| instance.may_run()).map(container_of);
    let newest = observed.sandboxes.first();
    Pod {
        metadata: ObjectMeta {
            name: Some(observed.key.name.to_string()),
            namespace: Some(observed.key.namespace.to_string()),
            uid: Some(observed.uid.to_string()),
            labels: newest.map(|sandbox| sandbox.labels.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            containers: containers.collect(),
            host_network: newest.map(|sandbox| sandbox.host_network),
            ..PodSpec::default()
        }),
        status: None,
    }
}

fn container_of(instance: &ObservedContainer) -> Container {
    let noted = instance.annotations.get(PORTS);
    Container {
        name: instance.name.to_string(),
        ports: noted.and_then(|text| serde_json::from_str::<Vec<ContainerPort>>(text).ok()),
        ..Container::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::fixture::{Fixture, at, exited, running, sandbox};
    use serde_json::json;

    #[test]
    fn ports_of_what_runs_are_known() {
        let mut observed =
            Fixture::new(json!({"metadata": {"name": "web"}, "spec": {"containers": []}})).observed;
        let mut up = running("1", "a", 0, at(1));
        up.annotations.insert(PORTS.to_owned(), r#"[{"containerPort":80,"hostPort":8080}]"#.to_owned());
        let mut broken = running("2", "b", 0, at(1));
        broken.annotations.insert(PORTS.to_owned(), "what?".to_owned());
        observed.containers = vec![up, broken, exited("3", "c", 0, at(1), at(2), 0)];
        observed.sandboxes = vec![sandbox()];
        let spec = pod_of(&observed).spec.unwrap();
        let ports: Vec<_> = spec
            .containers
            .iter()
            .map(|c| {
                (
                    c.name.as_str(),
                    c.ports.iter().flatten().filter_map(|port| port.host_port).collect::<Vec<_>>(),
                )
            })
            .collect();
        assert_eq!(ports, [("a", vec![8080]), ("b", vec![])]);
        assert_eq!(spec.host_network, Some(false));
    }
}
