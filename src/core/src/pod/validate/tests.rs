use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::*;
use crate::pod::default::default;

fn base() -> Value {
    json!({"metadata": {"name": "web", "namespace": "default"},
        "spec": {"containers": [{"name": "web", "image": "web:1"}]}})
}

/// The problems of the base pod with `value` put at `pointer`.
fn with(pointer: &str, value: Value) -> Vec<FieldProblem> {
    let mut manifest = base();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    manifest.pointer_mut(parent).unwrap().as_object_mut().unwrap().insert(key.to_owned(), value);
    validate(&default(serde_json::from_value::<Pod>(manifest).unwrap()))
}

#[test]
fn accepts_what_is_right() {
    assert_eq!(validate(&default(serde_json::from_value(base()).unwrap())), []);
    let container = "/spec/containers";
    let cases = [
        ("/metadata/labels", json!({"app.kubernetes.io/name": "web", "empty": ""})),
        (
            "/spec/volumes",
            json!([{"name": "a"}, {"name": "b", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]),
        ),
        (
            "/spec/initContainers",
            json!([{"name": "side", "image": "s", "restartPolicy": "Always",
            "startupProbe": {"tcpSocket": {"port": 1}}}]),
        ),
        (
            container,
            json!([{"name": "web", "image": "w", "ports": [{"containerPort": 80, "name": "http"}],
            "livenessProbe": {"httpGet": {"port": "http"}},
            "resources": {"limits": {"cpu": "1", "memory": "1Gi", "hugepages-2Mi": "4Mi"}}}]),
        ),
        (
            container,
            json!([{"name": "web", "image": "w", "restartPolicy": "Never",
            "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]}]),
        ),
    ];
    for (pointer, value) in cases {
        assert_eq!(with(pointer, value.clone()), [], "{pointer} = {value}");
    }
}

#[test]
#[allow(clippy::too_many_lines)] // One table, one line per rule.
fn names_field_and_mend_of_what_is_wrong() {
    let one = |extra: Value| {
        let mut container = json!({"name": "web", "image": "w"});
        container.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!([container])
    };
    let c = "/spec/containers";
    let cases = [
        ("/metadata/name", json!("Web"), "metadata.name"),
        ("/metadata/namespace", json!("a.b"), "metadata.namespace"),
        ("/metadata/labels", json!({"a": "b c"}), "metadata.labels[a]"),
        ("/metadata/labels", json!({"/a": "b"}), "metadata.labels"),
        (c, json!([]), "spec.containers"),
        (c, json!([{"name": "a", "image": "x"}, {"name": "a", "image": "x"}]), "spec.containers[1].name"),
        (c, json!([{"name": "a"}]), "spec.containers[0].image"),
        ("/spec/restartPolicy", json!("Sometimes"), "spec.restartPolicy"),
        ("/spec/dnsPolicy", json!("None"), "spec.dnsConfig.nameservers"),
        ("/spec/hostname", json!("a.b"), "spec.hostname"),
        ("/spec/activeDeadlineSeconds", json!(0), "spec.activeDeadlineSeconds"),
        ("/spec/hostUsers", json!(false), "spec.hostUsers"),
        ("/spec/volumes", json!([{"name": "n", "nfs": {"server": "s", "path": "/"}}]), "spec.volumes[0].nfs"),
        ("/spec/volumes", json!([{"name": "n"}, {"name": "n"}]), "spec.volumes[1].name"),
        (
            "/spec/volumes",
            json!([{"name": "n", "hostPath": {"path": "etc"}}]),
            "spec.volumes[0].hostPath.path",
        ),
        (
            "/spec/volumes",
            json!([{"name": "n", "hostPath": {"path": "/e", "type": "Disk"}}]),
            "spec.volumes[0].hostPath.type",
        ),
        (
            "/spec/volumes",
            json!([{"name": "n", "configMap": {"name": "c", "items": [{"key": "k", "path": "../x"}]}}]),
            "spec.volumes[0].configMap.items[0].path",
        ),
        (
            "/spec/volumes",
            json!([{"name": "n", "emptyDir": {"sizeLimit": "1Q"}}]),
            "spec.volumes[0].emptyDir.sizeLimit",
        ),
        (c, one(json!({"resources": {"limits": {"cpu": "1x"}}})), "spec.containers[0].resources.limits[cpu]"),
        (
            c,
            one(json!({"resources": {"limits": {"memory": "128m"}}})),
            "spec.containers[0].resources.limits[memory]",
        ),
        (
            c,
            one(json!({"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}})),
            "spec.containers[0].resources.requests[cpu]",
        ),
        (
            c,
            one(json!({"resources": {"limits": {"nvidia.com/gpu": "1"}}})),
            "spec.containers[0].resources.limits[nvidia.com/gpu]",
        ),
        (c, one(json!({"ports": [{"containerPort": 0}]})), "spec.containers[0].ports[0].containerPort"),
        (c, one(json!({"ports": [{"containerPort": 1, "name": "UP"}]})), "spec.containers[0].ports[0].name"),
        (
            c,
            one(json!({"ports": [{"containerPort": 1, "hostPort": 9}, {"containerPort": 2, "hostPort": 9}]})),
            "spec.containers[0].ports[1].hostPort",
        ),
        (
            c,
            one(json!({"volumeMounts": [{"name": "x", "mountPath": "/x"}]})),
            "spec.containers[0].volumeMounts[0].name",
        ),
        (
            c,
            one(json!({"livenessProbe": {"httpGet": {"port": "http"}}})),
            "spec.containers[0].livenessProbe.httpGet.port",
        ),
        (
            c,
            one(json!({"livenessProbe": {"tcpSocket": {"port": 1}, "successThreshold": 2}})),
            "spec.containers[0].livenessProbe.successThreshold",
        ),
        (c, one(json!({"readinessProbe": {}})), "spec.containers[0].readinessProbe"),
        (
            c,
            one(json!({"lifecycle": {"preStop": {"exec": {"command": []}}}})),
            "spec.containers[0].lifecycle.preStop.exec.command",
        ),
        (c, one(json!({"env": [{"name": "A=B"}]})), "spec.containers[0].env[0].name"),
        (
            c,
            one(json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}}]})),
            "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath",
        ),
        (
            c,
            one(json!({"securityContext": {"seccompProfile": {"type": "Localhost"}}})),
            "spec.containers[0].securityContext.seccompProfile.localhostProfile",
        ),
        (
            "/spec/initContainers",
            json!([{"name": "i", "image": "x", "livenessProbe": {"tcpSocket": {"port": 1}}}]),
            "spec.initContainers[0]",
        ),
    ];
    for (pointer, value, field) in cases {
        let problems = with(pointer, value.clone());
        assert_eq!(problems.len(), 1, "{pointer} = {value}: {problems:?}");
        assert_eq!(problems[0].field, field, "{pointer} = {value}");
        assert!(!problems[0].mend.is_empty() && !problems[0].problem.is_empty());
    }
}

#[test]
fn two_problems_are_both_told() {
    let problems = with("/spec/containers", json!([{"name": "A"}]));
    let fields: Vec<&str> = problems.iter().map(|problem| problem.field.as_str()).collect();
    assert_eq!(fields, ["spec.containers[0].name", "spec.containers[0].image"]);
}
