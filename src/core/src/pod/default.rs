//! Defaults of a Pod manifest, as the API server sets them for the fields a node uses
//! (pkg/apis/core/v1/defaults.go), and the uid of a manifest that has none.

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, EmptyDirVolumeSource, EnvVar, HTTPGetAction, Lifecycle, Pod, PodSpec, Probe,
    ResourceRequirements, Volume,
};
use sha2::{Digest, Sha256};

use crate::ids::PodUid;

/// Fills in what the author left open. Idempotent; refuses nothing (validation does).
pub fn default(mut pod: Pod) -> Pod {
    pod.metadata.namespace.get_or_insert_with(|| "default".to_owned());
    let spec = pod.spec.get_or_insert_with(PodSpec::default);
    spec.restart_policy.get_or_insert_with(|| "Always".to_owned());
    spec.dns_policy.get_or_insert_with(|| "ClusterFirst".to_owned());
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.enable_service_links.get_or_insert(true);
    spec.scheduler_name.get_or_insert_with(|| "default-scheduler".to_owned());
    spec.security_context.get_or_insert_default();
    let host_network = spec.host_network.unwrap_or(false);
    for container in spec.init_containers.iter_mut().flatten().chain(spec.containers.iter_mut()) {
        default_container(container, host_network);
    }
    for volume in spec.volumes.iter_mut().flatten() {
        default_volume(volume);
    }
    if let Some(resources) = &mut spec.resources {
        default_requests(resources);
    }
    pod
}

fn default_container(container: &mut Container, host_network: bool) {
    container.termination_message_path.get_or_insert_with(|| "/dev/termination-log".to_owned());
    container.termination_message_policy.get_or_insert_with(|| "File".to_owned());
    if container.image_pull_policy.as_deref().unwrap_or("").is_empty() {
        let policy = default_pull_policy(container.image.as_deref().unwrap_or_default());
        container.image_pull_policy = Some(policy.to_owned());
    }
    for port in container.ports.iter_mut().flatten() {
        default_port(port, host_network);
    }
    for env in container.env.iter_mut().flatten() {
        default_env(env);
    }
    let probes =
        [&mut container.liveness_probe, &mut container.readiness_probe, &mut container.startup_probe];
    for probe in probes.into_iter().flatten() {
        default_probe(probe);
    }
    if let Some(lifecycle) = &mut container.lifecycle {
        default_lifecycle(lifecycle);
    }
    if let Some(resources) = &mut container.resources {
        default_requests(resources);
    }
}

fn default_port(port: &mut ContainerPort, host_network: bool) {
    port.protocol.get_or_insert_with(|| "TCP".to_owned());
    if host_network && port.host_port.unwrap_or(0) == 0 {
        port.host_port = Some(port.container_port);
    }
}

fn default_env(env: &mut EnvVar) {
    if let Some(field) = env.value_from.as_mut().and_then(|source| source.field_ref.as_mut()) {
        field.api_version.get_or_insert_with(|| "v1".to_owned());
    }
}

fn default_probe(probe: &mut Probe) {
    set_if_zero(&mut probe.timeout_seconds, 1);
    set_if_zero(&mut probe.period_seconds, 10);
    set_if_zero(&mut probe.success_threshold, 1);
    set_if_zero(&mut probe.failure_threshold, 3);
    if let Some(http) = &mut probe.http_get {
        default_http(http);
    }
    if let Some(grpc) = &mut probe.grpc {
        grpc.service.get_or_insert_default();
    }
}

fn set_if_zero(field: &mut Option<i32>, value: i32) {
    if field.unwrap_or(0) == 0 {
        *field = Some(value);
    }
}

fn default_lifecycle(lifecycle: &mut Lifecycle) {
    for handler in [&mut lifecycle.post_start, &mut lifecycle.pre_stop].into_iter().flatten() {
        if let Some(http) = &mut handler.http_get {
            default_http(http);
        }
    }
}

fn default_http(http: &mut HTTPGetAction) {
    if http.path.as_deref().unwrap_or("").is_empty() {
        http.path = Some("/".to_owned());
    }
    if http.scheme.as_deref().unwrap_or("").is_empty() {
        http.scheme = Some("HTTP".to_owned());
    }
}

/// A limit without a request is its own request.
fn default_requests(resources: &mut ResourceRequirements) {
    let Some(limits) = &resources.limits else { return };
    if limits.is_empty() {
        return;
    }
    let requests = resources.requests.get_or_insert_default();
    for (name, limit) in limits {
        requests.entry(name.clone()).or_insert_with(|| limit.clone());
    }
}

fn default_volume(volume: &mut Volume) {
    if volume_has_no_source(volume) {
        volume.empty_dir = Some(EmptyDirVolumeSource::default());
    }
    if let Some(source) = &mut volume.config_map {
        source.default_mode.get_or_insert(0o644);
    }
    if let Some(source) = &mut volume.secret {
        source.default_mode.get_or_insert(0o644);
    }
    if let Some(source) = &mut volume.downward_api {
        source.default_mode.get_or_insert(0o644);
    }
    if let Some(source) = &mut volume.projected {
        source.default_mode.get_or_insert(0o644);
        for projection in source.sources.iter_mut().flatten() {
            if let Some(token) = &mut projection.service_account_token {
                token.expiration_seconds.get_or_insert(3600);
            }
        }
    }
    if let Some(source) = &mut volume.host_path {
        source.type_.get_or_insert_default();
    }
}

fn volume_has_no_source(volume: &Volume) -> bool {
    *volume == Volume { name: volume.name.clone(), ..Volume::default() }
}

/// Always for `:latest` and for no tag at all, else IfNotPresent; a digest is never pulled again.
fn default_pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    // A colon before the last slash is the registry's port.
    let name = image.rsplit('/').next().unwrap_or(image);
    match name.split_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

/// The uid of a manifest without `metadata.uid`: the same for the same namespace, name, labels,
/// annotations and spec, so that an unchanged file is adopted and an edited one is another pod.
/// Give it the manifest as the author wrote it (before [`default`]), so that a new default in a
/// new version of this program does not restart every pod.
pub fn manifest_uid(namespace: &str, name: &str, pod: &Pod) -> PodUid {
    let mut hasher = Sha256::new();
    hasher.update(b"longshore manifest uid 1\0");
    for part in [namespace, name] {
        hasher.update(part.as_bytes());
        hasher.update(b"\0");
    }
    let content = (&pod.metadata.labels, &pod.metadata.annotations, &pod.spec);
    // Struct fields and BTreeMaps serialize in a fixed order; these types cannot fail to.
    hasher.update(serde_json::to_vec(&content).unwrap_or_default());
    let digest = hasher.finalize();
    let mut bytes = [0u8; 16];
    bytes.copy_from_slice(&digest[..16]);
    // Version 8 (free form) and the RFC 9562 variant.
    bytes[6] = (bytes[6] & 0x0f) | 0x80;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn fills_what_the_author_left_open() {
        let given = pod(json!({
            "metadata": {"name": "web"},
            "spec": {"hostNetwork": true,
                "containers": [{
                    "name": "web", "image": "web:1",
                    "ports": [{"containerPort": 80}],
                    "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m"}},
                    "readinessProbe": {"httpGet": {"port": 80}, "periodSeconds": 5},
                    "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]
                }],
                "volumes": [{"name": "scratch"}, {"name": "config", "configMap": {"name": "c"}}]
            }
        }));
        let done = default(given);
        let text = serde_json::to_value(&done).unwrap();
        let at = |path: &str| text.pointer(path).cloned().unwrap_or_default();
        let cases = [
            ("/metadata/namespace", json!("default")),
            ("/spec/restartPolicy", json!("Always")),
            ("/spec/dnsPolicy", json!("ClusterFirst")),
            ("/spec/terminationGracePeriodSeconds", json!(30)),
            ("/spec/enableServiceLinks", json!(true)),
            ("/spec/containers/0/terminationMessagePath", json!("/dev/termination-log")),
            ("/spec/containers/0/terminationMessagePolicy", json!("File")),
            ("/spec/containers/0/imagePullPolicy", json!("IfNotPresent")),
            ("/spec/containers/0/ports/0/protocol", json!("TCP")),
            ("/spec/containers/0/ports/0/hostPort", json!(80)),
            ("/spec/containers/0/resources/requests", json!({"cpu": "100m", "memory": "1Gi"})),
            ("/spec/containers/0/readinessProbe/periodSeconds", json!(5)),
            ("/spec/containers/0/readinessProbe/timeoutSeconds", json!(1)),
            ("/spec/containers/0/readinessProbe/failureThreshold", json!(3)),
            ("/spec/containers/0/readinessProbe/httpGet/path", json!("/")),
            ("/spec/containers/0/readinessProbe/httpGet/scheme", json!("HTTP")),
            ("/spec/containers/0/env/0/valueFrom/fieldRef/apiVersion", json!("v1")),
            ("/spec/volumes/0/emptyDir", json!({})),
            ("/spec/volumes/1/configMap/defaultMode", json!(0o644)),
        ];
        for (path, expected) in cases {
            assert_eq!(at(path), expected, "{path}");
        }
        assert_eq!(default(done.clone()), done, "defaulting twice changes nothing");
    }

    #[test]
    fn pull_policy_follows_the_tag() {
        let cases = [
            ("web", "Always"),
            ("web:latest", "Always"),
            ("web:1.2", "IfNotPresent"),
            ("localhost:5000/web", "Always"),
            ("localhost:5000/web:1", "IfNotPresent"),
            ("web@sha256:00", "IfNotPresent"),
        ];
        for (image, policy) in cases {
            assert_eq!(default_pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn uid_is_stable_and_follows_the_content() {
        let a = pod(json!({"metadata": {"name": "a", "labels": {"x": "1"}}, "spec": {"containers": []}}));
        let same = pod(json!({"metadata": {"name": "a", "labels": {"x": "1"}, "resourceVersion": "9"},
            "spec": {"containers": []}, "status": {"phase": "Running"}}));
        let edited =
            pod(json!({"metadata": {"name": "a", "labels": {"x": "2"}}, "spec": {"containers": []}}));
        let uid = manifest_uid("default", "a", &a);
        assert_eq!(uid, manifest_uid("default", "a", &same));
        assert_ne!(uid, manifest_uid("default", "a", &edited));
        assert_ne!(uid, manifest_uid("other", "a", &a));
        assert_eq!(uid.as_str().len(), 36);
        assert_eq!(uid.as_str().as_bytes()[14], b'8');
    }
}
