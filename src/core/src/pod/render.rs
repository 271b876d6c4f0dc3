//! Rendering of sandboxes and containers for CRI, labels and annotations exactly as the kubelet puts
//! them (kubelet-surface B10), because recovery after a restart reads nothing else.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, ContainerPort, Pod};

use crate::ids::{ContainerId, ContainerName, SandboxId};
use crate::pod::command::command;
use crate::pod::containers::{PodContainer, Role, containers, is_host_network, spec};
use crate::pod::dns::dns_config;
use crate::pod::env::environment;
use crate::pod::hostname::sandbox_hostname;
use crate::pod::hosts_file;
use crate::pod::mounts::{MountInputs, mounts};
use crate::pod::refs::RefError;
use crate::pod::runtime_class;
use crate::pod::security::{check_non_root, container_security, namespaces, sandbox_security};
use crate::pod::snapshot::PodSnapshot;
use crate::pod::spec::{
    ContainerSecurity, ContainerSpec, NamespaceMode, PortMapping, PortProtocol, SandboxSpec,
};
use crate::pod::step::{CreateContainer, HostsFile, ImagePresent, VolumeAction};
use crate::resources::cgroup_names;
use crate::resources::container_resources::{container_resources, overhead_resources, sandbox_resources};
use crate::resources::qos::qos_class;
use crate::volume::pod_dir;

pub const POD_NAME: &str = "io.kubernetes.pod.name";
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub const POD_UID: &str = "io.kubernetes.pod.uid";
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
pub const TERMINATION_MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
pub const TERMINATION_MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
pub const PRE_STOP: &str = "io.kubernetes.container.preStopHandler";
pub const PORTS: &str = "io.kubernetes.container.ports";
pub const DELETION_GRACE: &str = "io.kubernetes.pod.deletionGracePeriod";
pub const TERMINATION_GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";

/// Why a container cannot be created now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    #[error(transparent)]
    Reference(#[from] RefError),
    #[error("{0}")]
    Security(String),
    #[error("container {0}, whose processes it is to see, does not run")]
    ProcessTarget(String),
}

/// The sandbox of the pod; `attempt` counts the sandboxes this pod had.
pub fn sandbox_spec(snapshot: &PodSnapshot<'_>, attempt: u32) -> Result<SandboxSpec, RefError> {
    let desired = snapshot.desired;
    let pod: &Pod = &desired.pod;
    let node = snapshot.node;
    let key = &desired.key;
    let log_directory = node.pod_logs_dir.join(format!("{}_{}_{}", key.namespace, key.name, desired.uid));
    Ok(SandboxSpec {
        key: key.clone(),
        uid: desired.uid.clone(),
        attempt,
        hostname: sandbox_hostname(pod, &node.dns.cluster_domain)?,
        log_directory: log_directory.to_string_lossy().into_owned(),
        dns: dns_config(pod, &node.dns),
        port_mappings: if is_host_network(pod) { Vec::new() } else { port_mappings(pod) },
        labels: sandbox_labels(snapshot),
        annotations: sandbox_annotations(snapshot),
        cgroup_parent: cgroup_names::pod(&node.cgroups, qos_class(pod), &desired.uid),
        sysctls: sysctls(pod),
        security: sandbox_security(pod, node),
        resources: Some(sandbox_resources(pod, node)),
        overhead: overhead_resources(pod, node),
        // Only making a sandbox needs it, and that is not begun without.
        runtime_handler: runtime_class::handler(pod, &node.runtime_classes).unwrap_or_default(),
    })
}

fn identity_labels(snapshot: &PodSnapshot<'_>) -> [(String, String); 3] {
    let key = &snapshot.desired.key;
    [
        (POD_NAME.to_owned(), key.name.to_string()),
        (POD_NAMESPACE.to_owned(), key.namespace.to_string()),
        (POD_UID.to_owned(), snapshot.desired.uid.to_string()),
    ]
}

fn sandbox_labels(snapshot: &PodSnapshot<'_>) -> BTreeMap<String, String> {
    let own = snapshot.desired.pod.metadata.labels.clone().unwrap_or_default();
    own.into_iter().chain(identity_labels(snapshot)).collect()
}

/// The pod's own, and where it came from, so that either program knows it again.
fn sandbox_annotations(snapshot: &PodSnapshot<'_>) -> BTreeMap<String, String> {
    let mut all = snapshot.desired.pod.metadata.annotations.clone().unwrap_or_default();
    let source = match &snapshot.desired.source {
        crate::pod::desired::PodSource::File { .. } => "file",
        crate::pod::desired::PodSource::Api | crate::pod::desired::PodSource::Runtime => "api",
    };
    all.entry("kubernetes.io/config.source".to_owned()).or_insert_with(|| source.to_owned());
    if source == "file" {
        let hash = snapshot.desired.uid.to_string();
        all.entry("kubernetes.io/config.hash".to_owned()).or_insert(hash);
    }
    all.entry("kubernetes.io/config.seen".to_owned()).or_insert_with(|| snapshot.desired.seen_at.to_string());
    all
}

fn port_mappings(pod: &Pod) -> Vec<PortMapping> {
    let of = |port: &ContainerPort| -> Option<PortMapping> {
        let host_port = u16::try_from(port.host_port?).ok().filter(|port| *port != 0)?;
        Some(PortMapping {
            protocol: match port.protocol.as_deref() {
                Some("UDP") => PortProtocol::Udp,
                Some("SCTP") => PortProtocol::Sctp,
                _ => PortProtocol::Tcp,
            },
            container_port: u16::try_from(port.container_port).ok()?,
            host_port,
            host_ip: port.host_ip.clone().unwrap_or_default(),
        })
    };
    let all = containers(pod);
    let offering = all.iter().filter(|container| matches!(container.role, Role::Main | Role::Sidecar));
    offering
        .flat_map(|container| container.spec.ports.iter().flatten().filter_map(of).collect::<Vec<_>>())
        .collect()
}

fn sysctls(pod: &Pod) -> BTreeMap<String, String> {
    let security = spec(pod).security_context.clone().unwrap_or_default();
    let given = security.sysctls.into_iter().flatten();
    given.map(|sysctl| (sysctl.name.replace('/', "."), sysctl.value)).collect()
}

/// What a container is made in.
#[derive(Clone, Copy, Debug)]
pub struct ContainerPlace<'a> {
    pub sandbox: &'a SandboxId,
    pub sandbox_attempt: u32,
    pub pod_ips: &'a [IpAddr],
    pub volumes: &'a [VolumeAction],
    pub image: &'a ImagePresent,
    /// Restart count of the new instance.
    pub attempt: u32,
}

/// Everything to create one container.
pub fn create_container(
    snapshot: &PodSnapshot<'_>,
    container: &PodContainer<'_>,
    place: &ContainerPlace<'_>,
) -> Result<CreateContainer, RenderError> {
    let pod: &Pod = &snapshot.desired.pod;
    let given: &Container = &container.spec;
    check_non_root(pod, given, &place.image.user).map_err(RenderError::Security)?;
    let process_target = process_target(snapshot, container)?;
    let env = environment(snapshot, given, place.pod_ips)?;
    let dir = pod_dir(snapshot);
    let inputs = MountInputs {
        pod,
        container: given,
        pod_dir: &dir,
        volumes: place.volumes,
        env: &env,
        attempt: place.attempt,
    };
    let made = mounts(&inputs)?;
    let run = command(given, &env)?;
    let hosts_file = made.hosts_file.then(|| HostsFile {
        copy_node: is_host_network(pod),
        content: hosts_file::content(pod, place.pod_ips, &snapshot.node.dns.cluster_domain),
    });
    let spec = ContainerSpec {
        name: container.name.clone(),
        attempt: place.attempt,
        image_ref: place.image.image_ref.clone(),
        user_image: given.image.clone().unwrap_or_default(),
        command: run.command,
        args: run.args,
        working_dir: run.working_dir,
        env,
        mounts: made.mounts,
        devices: Vec::new(),
        labels: container_labels(snapshot, &container.name),
        annotations: container_annotations(snapshot, given, place.attempt),
        log_path: format!("{}/{}.log", given.name, place.attempt),
        stdin: given.stdin.unwrap_or(false),
        stdin_once: given.stdin_once.unwrap_or(false),
        tty: given.tty.unwrap_or(false),
        resources: container_resources(pod, given, snapshot.node),
        security: ContainerSecurity {
            process_target,
            ..container_security(pod, given, &place.image.user, snapshot.node)
        },
    };
    Ok(CreateContainer {
        sandbox: place.sandbox.clone(),
        spec,
        sandbox_spec: sandbox_spec(snapshot, place.sandbox_attempt)?,
        sub_paths: made.sub_paths,
        termination_log: made.termination_log,
        hosts_file,
    })
}

/// The container whose process namespace an ephemeral one joins (`targetContainerName`, what `kubectl debug --target`
/// asks for), unless the pod's containers have one together anyway.
fn process_target(
    snapshot: &PodSnapshot<'_>,
    container: &PodContainer<'_>,
) -> Result<Option<ContainerId>, RenderError> {
    let pod: &Pod = &snapshot.desired.pod;
    if container.role != Role::Ephemeral || namespaces(pod).pid != NamespaceMode::Container {
        return Ok(None);
    }
    let spec = spec(pod);
    let given = spec.ephemeral_containers.iter().flatten().nth(container.index);
    let wanted = given.and_then(|given| given.target_container_name.as_deref()).unwrap_or_default();
    if wanted.is_empty() {
        return Ok(None);
    }
    let mut instances = snapshot.observed.containers.iter();
    let running = instances.find(|instance| instance.name.as_str() == wanted && instance.is_running());
    running.map(|it| Some(it.id.clone())).ok_or_else(|| RenderError::ProcessTarget(wanted.to_owned()))
}

fn container_labels(snapshot: &PodSnapshot<'_>, name: &ContainerName) -> BTreeMap<String, String> {
    identity_labels(snapshot).into_iter().chain([(CONTAINER_NAME.to_owned(), name.to_string())]).collect()
}

fn container_annotations(
    snapshot: &PodSnapshot<'_>,
    container: &Container,
    attempt: u32,
) -> BTreeMap<String, String> {
    let mut all = BTreeMap::from([
        (CONTAINER_HASH.to_owned(), format!("{:x}", container_hash(container))),
        (RESTART_COUNT.to_owned(), attempt.to_string()),
        (TERMINATION_MESSAGE_PATH.to_owned(), container.termination_message_path.clone().unwrap_or_default()),
        (
            TERMINATION_MESSAGE_POLICY.to_owned(),
            container.termination_message_policy.clone().unwrap_or_default(),
        ),
    ]);
    let pod = &snapshot.desired.pod;
    if let Some(grace) = pod.metadata.deletion_grace_period_seconds {
        all.insert(DELETION_GRACE.to_owned(), grace.to_string());
    }
    if let Some(grace) = spec(pod).termination_grace_period_seconds {
        all.insert(TERMINATION_GRACE.to_owned(), grace.to_string());
    }
    if let Some(hook) = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref())
        && let Ok(text) = serde_json::to_string(hook)
    {
        all.insert(PRE_STOP.to_owned(), text);
    }
    if let Some(ports) = container.ports.as_ref().filter(|ports| !ports.is_empty())
        && let Ok(text) = serde_json::to_string(ports)
    {
        all.insert(PORTS.to_owned(), text);
    }
    all
}

/// Identity of what a container runs: FNV-1a 32 over Go's `%#v` text of the bytes of
/// `{"image":...,"name":...}` (pkg/kubelet/container/helpers.go). Resources are left out, so that
/// they can change in place.
pub fn container_hash(container: &Container) -> u32 {
    let image = serde_json::Value::from(container.image.clone().unwrap_or_default());
    let name = serde_json::Value::from(container.name.clone());
    let picked = format!("{{\"image\":{image},\"name\":{name}}}");
    let bytes: Vec<String> = picked.bytes().map(|byte| byte.to_string()).collect();
    let text = format!("([]uint8)[{}]", bytes.join(" "));
    text.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::fixture::{Fixture, epoch, running};
    use crate::pod::step::ImageUser;
    use serde_json::json;

    #[test]
    fn hash_is_the_kubelets() {
        let container = Container {
            name: "test_container".to_owned(),
            image: Some("foo/image:v1".to_owned()),
            ..Container::default()
        };
        assert_eq!(container_hash(&container), 0x8e45_cbd0);
    }

    #[test]
    fn sandbox_carries_identity_and_ports() {
        let mut fixture = Fixture::new(json!({
            "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web"}, "annotations": {"n": "1"}},
            "spec": {"containers": [{"name": "web", "image": "w:1", "ports": [
                {"containerPort": 80, "hostPort": 8080}, {"containerPort": 81}]}],
                "securityContext": {"sysctls": [{"name": "net/core/somaxconn", "value": "1"}]}}
        }));
        let made = sandbox_spec(&fixture.snapshot(), 2).unwrap();
        let uid = "11111111-2222-8333-8444-555555555555";
        assert_eq!(made.labels.get(POD_UID).map(String::as_str), Some(uid));
        assert_eq!(made.labels.get("app").map(String::as_str), Some("web"));
        assert_eq!(made.annotations.get("kubernetes.io/config.source").map(String::as_str), Some("file"));
        assert_eq!(made.log_directory, format!("/var/log/pods/default_web_{uid}"));
        assert_eq!(made.port_mappings.len(), 1);
        assert_eq!((made.port_mappings[0].host_port, made.port_mappings[0].container_port), (8080, 80));
        assert_eq!(made.sysctls, BTreeMap::from([("net.core.somaxconn".to_owned(), "1".to_owned())]));
        assert_eq!((made.attempt, made.hostname.as_str()), (2, "web"));
        assert!(
            made.cgroup_parent.ends_with("kubepods-besteffort-pod11111111_2222_8333_8444_555555555555.slice")
        );
        fixture.edit(|pod| pod.spec.as_mut().unwrap().host_network = Some(true));
        let host = sandbox_spec(&fixture.snapshot(), 0).unwrap();
        assert!(host.port_mappings.is_empty() && host.hostname.is_empty());
    }

    #[test]
    fn container_carries_what_recovery_reads() {
        let fixture = Fixture::new(json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"terminationGracePeriodSeconds": 7, "containers": [{"name": "web", "image": "w:1", "tty": true,
                "ports": [{"containerPort": 80}], "lifecycle": {"preStop": {"sleep": {"seconds": 2}}},
                "command": ["run", "$(A)"], "env": [{"name": "A", "value": "b"}]}]}
        }));
        let image = ImagePresent { image_ref: "sha256:1".to_owned(), size_bytes: 1, user: ImageUser::Uid(3) };
        let sandbox = SandboxId::from("s");
        let place = ContainerPlace {
            sandbox: &sandbox,
            sandbox_attempt: 0,
            pod_ips: &[],
            volumes: &[],
            image: &image,
            attempt: 4,
        };
        let snapshot = fixture.snapshot();
        let all = containers(&fixture.desired.pod);
        let made = create_container(&snapshot, &all[0], &place).unwrap();
        let annotation = |key: &str| made.spec.annotations.get(key).map(String::as_str);
        assert_eq!(annotation(RESTART_COUNT), Some("4"));
        assert_eq!(annotation(TERMINATION_GRACE), Some("7"));
        assert_eq!(annotation(PRE_STOP), Some("{\"sleep\":{\"seconds\":2}}"));
        assert_eq!(annotation(PORTS), Some("[{\"containerPort\":80,\"protocol\":\"TCP\"}]"));
        assert_eq!(annotation(TERMINATION_MESSAGE_PATH), Some("/dev/termination-log"));
        assert_eq!(made.spec.log_path, "web/4.log");
        assert_eq!(made.spec.command, ["run", "b"]);
        assert!(made.spec.tty && made.spec.security.run_as_user == Some(3));
        assert!(made.hosts_file.is_some_and(|hosts| !hosts.copy_node));
    }

    #[test]
    fn an_ephemeral_container_sees_the_processes_of_its_target() {
        let mut fixture = Fixture::new(json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"containers": [{"name": "web", "image": "w:1"}], "ephemeralContainers": [
                {"name": "alone", "image": "d:1"}, {"name": "beside", "image": "d:1", "targetContainerName": "web"}]}
        }));
        let target = |fixture: &Fixture, index: usize| {
            let snapshot = fixture.snapshot();
            process_target(&snapshot, &containers(&fixture.desired.pod)[index])
        };
        let waits = Err(RenderError::ProcessTarget("web".to_owned()));
        assert_eq!((target(&fixture, 1), target(&fixture, 2)), (Ok(None), waits));
        fixture.observed.containers = vec![running("c1", "web", 1, epoch())];
        assert_eq!(target(&fixture, 2), Ok(Some("c1".into())));
        assert_eq!((target(&fixture, 0), target(&fixture, 1)), (Ok(None), Ok(None)));
        fixture.edit(|pod| pod.spec.as_mut().unwrap().share_process_namespace = Some(true));
        assert_eq!(target(&fixture, 2), Ok(None), "they see each other anyway");
    }
}
