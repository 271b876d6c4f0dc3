//! Pins the shape of the wire protocols: what a slip of the pen in `/proto` would break first.
//! The whole files were compared with the descriptors of the original packages (`/proto/README.md`).
#![allow(clippy::unwrap_used)]

use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};

fn compiled() -> FileDescriptorSet {
    protox::compile(["runtime/v1/api.proto", "health/v1/health.proto"], ["../../proto"]).unwrap()
}

fn file(package: &str) -> FileDescriptorProto {
    compiled().file.into_iter().find(|file| file.package() == package).unwrap()
}

fn message(file: &FileDescriptorProto, name: &str) -> DescriptorProto {
    file.message_type
        .iter()
        .find(|message| message.name() == name)
        .unwrap_or_else(|| panic!("{name}"))
        .clone()
}

fn enumeration(file: &FileDescriptorProto, name: &str) -> EnumDescriptorProto {
    file.enum_type.iter().find(|item| item.name() == name).unwrap_or_else(|| panic!("{name}")).clone()
}

/// Name, number and type as a person would write them in the file.
fn fields(message: &DescriptorProto) -> Vec<(String, i32, Type)> {
    message.field.iter().map(|f| (f.name().to_owned(), f.number(), f.r#type())).collect()
}

#[test]
fn cri_has_all_its_services_messages_and_no_imports() {
    let cri = file("runtime.v1");
    let calls: Vec<(&str, usize)> = cri.service.iter().map(|s| (s.name(), s.method.len())).collect();
    assert_eq!(calls, [("RuntimeService", 35), ("ImageService", 6)]);
    assert_eq!(cri.syntax(), "proto3");
    assert!(cri.dependency.is_empty(), "the CRI of 1.36 imports nothing");
    assert_eq!(cri.message_type.len(), MESSAGES);
    assert_eq!(cri.message_type.iter().map(|m| m.field.len()).sum::<usize>(), FIELDS);
    assert_eq!(cri.enum_type.len(), 10);
}

/// Counted over the descriptor of k8s.io/cri-api v0.36.3, without map entries.
const MESSAGES: usize = 170;
const FIELDS: usize = 463;

#[test]
fn only_these_calls_stream_and_only_from_the_server() {
    let cri = file("runtime.v1");
    let streaming: Vec<&str> = cri
        .service
        .iter()
        .flat_map(|service| &service.method)
        .filter(|method| {
            assert!(!method.client_streaming());
            method.server_streaming()
        })
        .map(|method| method.name())
        .collect();
    assert_eq!(
        streaming,
        [
            "StreamPodSandboxes",
            "StreamContainers",
            "StreamContainerStats",
            "StreamPodSandboxStats",
            "GetContainerEvents",
            "StreamPodSandboxMetrics",
            "StreamImages"
        ]
    );
}

#[test]
fn field_numbers_are_the_protocols() {
    let cri = file("runtime.v1");
    // The ones that are out of line, easy to confuse, or that everything else hangs on.
    let pins: &[(&str, &str, i32, Type)] = &[
        ("PodSandboxMetadata", "name", 1, Type::String),
        ("PodSandboxMetadata", "uid", 2, Type::String),
        ("PodSandboxMetadata", "namespace", 3, Type::String),
        ("PodSandboxMetadata", "attempt", 4, Type::Uint32),
        ("PodSandboxConfig", "log_directory", 3, Type::String),
        ("PodSandboxConfig", "linux", 8, Type::Message),
        ("LinuxPodSandboxConfig", "sysctls", 3, Type::Message),
        ("LinuxPodSandboxConfig", "overhead", 4, Type::Message),
        ("LinuxSandboxSecurityContext", "privileged", 6, Type::Bool),
        ("LinuxSandboxSecurityContext", "run_as_group", 8, Type::Message),
        ("LinuxSandboxSecurityContext", "seccomp", 9, Type::Message),
        ("LinuxSandboxSecurityContext", "supplemental_groups_policy", 11, Type::Enum),
        ("NamespaceOption", "userns_options", 5, Type::Message),
        ("Mount", "uidMappings", 6, Type::Message),
        ("Mount", "recursive_read_only", 8, Type::Bool),
        ("Mount", "image_sub_path", 10, Type::String),
        ("PodSandboxStatusResponse", "containers_statuses", 3, Type::Message),
        ("PodSandboxStatusResponse", "timestamp", 4, Type::Int64),
        ("Namespace", "options", 2, Type::Message),
        ("ImageSpec", "user_specified_image", 18, Type::String),
        ("ImageSpec", "runtime_handler", 19, Type::String),
        ("ImageSpec", "image_ref", 20, Type::String),
        ("KeyValue", "value", 2, Type::Bytes),
        ("LinuxContainerResources", "cpu_shares", 3, Type::Int64),
        ("LinuxContainerResources", "unified", 9, Type::Message),
        ("LinuxContainerResources", "memory_swap_limit_in_bytes", 10, Type::Int64),
        ("LinuxContainerSecurityContext", "no_new_privs", 11, Type::Bool),
        ("LinuxContainerSecurityContext", "run_as_group", 12, Type::Message),
        ("LinuxContainerSecurityContext", "seccomp", 15, Type::Message),
        ("LinuxContainerSecurityContext", "apparmor", 16, Type::Message),
        ("LinuxContainerSecurityContext", "supplemental_groups_policy", 17, Type::Enum),
        ("ContainerConfig", "log_path", 11, Type::String),
        ("ContainerConfig", "linux", 15, Type::Message),
        ("ContainerConfig", "CDI_devices", 17, Type::Message),
        ("ContainerConfig", "stop_signal", 18, Type::Enum),
        ("ContainerStatus", "exit_code", 7, Type::Int32),
        ("ContainerStatus", "log_path", 15, Type::String),
        ("ContainerStatus", "image_id", 17, Type::String),
        ("Container", "image_id", 10, Type::String),
        ("StopContainerRequest", "timeout", 2, Type::Int64),
        ("ExecSyncResponse", "exit_code", 3, Type::Int32),
        ("ExecRequest", "stderr", 6, Type::Bool),
        ("AttachRequest", "stderr", 5, Type::Bool),
        ("Image", "pinned", 8, Type::Bool),
        ("AuthConfig", "registry_token", 6, Type::String),
        ("ContainerEventResponse", "pod_sandbox_status", 4, Type::Message),
        ("ContainerEventResponse", "containers_statuses", 5, Type::Message),
        ("MemoryUsage", "psi", 8, Type::Message),
        ("ContainerStats", "swap", 5, Type::Message),
        ("PsiData", "Avg10", 2, Type::Double),
    ];
    for (of, name, number, kind) in pins {
        assert!(
            fields(&message(&cri, of)).contains(&((*name).to_owned(), *number, *kind)),
            "{of}.{name} is not field {number} of type {kind:?}: {:?}",
            fields(&message(&cri, of))
        );
    }
}

#[test]
fn enum_values_are_the_protocols() {
    let cri = file("runtime.v1");
    let pins: &[(&str, &[(&str, i32)])] = &[
        ("NamespaceMode", &[("POD", 0), ("CONTAINER", 1), ("NODE", 2), ("TARGET", 3)]),
        ("PodSandboxState", &[("SANDBOX_READY", 0), ("SANDBOX_NOTREADY", 1)]),
        (
            "ContainerState",
            &[
                ("CONTAINER_CREATED", 0),
                ("CONTAINER_RUNNING", 1),
                ("CONTAINER_EXITED", 2),
                ("CONTAINER_UNKNOWN", 3),
            ],
        ),
        ("CgroupDriver", &[("SYSTEMD", 0), ("CGROUPFS", 1)]),
        ("SupplementalGroupsPolicy", &[("Merge", 0), ("Strict", 1)]),
    ];
    for (name, values) in pins {
        let found = enumeration(&cri, name);
        let found: Vec<(&str, i32)> = found.value.iter().map(|v| (v.name(), v.number())).collect();
        assert_eq!(found, *values, "{name}");
    }
    // The list of signals counts on its own: SIGKILL is 13 here, and there is a gap-free run to SIGRTMAX.
    let signals = enumeration(&cri, "Signal");
    assert_eq!(signals.value.len(), 66);
    assert!(signals.value.iter().enumerate().all(|(i, v)| v.number() == i as i32));
    assert_eq!((signals.value[13].name(), signals.value[23].name()), ("SIGKILL", "SIGTERM"));
}

#[test]
fn health_is_the_protocol_of_grpc_probes() {
    let health = file("grpc.health.v1");
    let methods: Vec<&str> = health.service[0].method.iter().map(|m| m.name()).collect();
    assert_eq!(methods, ["Check", "List", "Watch"]);
    assert_eq!(fields(&message(&health, "HealthCheckRequest")), [("service".to_owned(), 1, Type::String)]);
    let status = &message(&health, "HealthCheckResponse").enum_type[0];
    let values: Vec<(&str, i32)> = status.value.iter().map(|v| (v.name(), v.number())).collect();
    assert_eq!(values, [("UNKNOWN", 0), ("SERVING", 1), ("NOT_SERVING", 2), ("SERVICE_UNKNOWN", 3)]);
}
