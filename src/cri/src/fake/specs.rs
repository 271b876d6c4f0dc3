//! The plainest sandbox and container, for tests to change what they are about.

use std::collections::BTreeMap;

use longshore_core::ids::{ContainerName, PodKey, PodUid};
use longshore_core::pod::spec::{
    ContainerSecurity, ContainerSpec, LinuxResources, NamespaceMode, NamespaceModes, SandboxSecurity,
    SandboxSpec, SecurityProfile,
};

use crate::convert::labels;

const NAMESPACES: NamespaceModes =
    NamespaceModes { network: NamespaceMode::Pod, pid: NamespaceMode::Container, ipc: NamespaceMode::Pod };

fn pod_labels(pod: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        (labels::POD_NAME.to_owned(), pod.to_owned()),
        (labels::POD_NAMESPACE.to_owned(), "default".to_owned()),
        (labels::POD_UID.to_owned(), format!("uid-{pod}")),
    ])
}

/// Sandbox of pod `default/<pod>` with uid `uid-<pod>`.
pub fn sandbox_spec(pod: &str, attempt: u32) -> SandboxSpec {
    SandboxSpec {
        key: PodKey::new("default", pod),
        uid: PodUid::from(format!("uid-{pod}")),
        attempt,
        hostname: pod.to_owned(),
        log_directory: String::new(),
        dns: None,
        port_mappings: Vec::new(),
        labels: pod_labels(pod),
        annotations: BTreeMap::new(),
        cgroup_parent: String::new(),
        sysctls: BTreeMap::new(),
        security: SandboxSecurity {
            namespaces: NAMESPACES,
            privileged: false,
            readonly_rootfs: false,
            run_as_user: None,
            run_as_group: None,
            supplemental_groups: Vec::new(),
            strict_supplemental_groups: false,
            selinux: None,
            seccomp: SecurityProfile::RuntimeDefault,
        },
        resources: None,
        overhead: None,
        runtime_handler: String::new(),
    }
}

/// Container `name` of that pod, from image `web:1`, without limits.
pub fn container_spec(pod: &str, name: &str, attempt: u32) -> ContainerSpec {
    let mut own_labels = pod_labels(pod);
    own_labels.insert(labels::CONTAINER_NAME.to_owned(), name.to_owned());
    ContainerSpec {
        name: ContainerName::from(name),
        attempt,
        image_ref: "web:1".to_owned(),
        user_image: "web:1".to_owned(),
        command: Vec::new(),
        args: Vec::new(),
        working_dir: String::new(),
        env: Vec::new(),
        mounts: Vec::new(),
        devices: Vec::new(),
        labels: own_labels,
        annotations: BTreeMap::new(),
        log_path: format!("{name}/{attempt}.log"),
        stdin: false,
        stdin_once: false,
        tty: false,
        resources: LinuxResources::default(),
        security: ContainerSecurity {
            namespaces: NAMESPACES,
            process_target: None,
            privileged: false,
            add_capabilities: Vec::new(),
            drop_capabilities: Vec::new(),
            run_as_user: None,
            run_as_username: String::new(),
            run_as_group: None,
            readonly_rootfs: false,
            supplemental_groups: Vec::new(),
            strict_supplemental_groups: false,
            no_new_privs: false,
            masked_paths: Vec::new(),
            readonly_paths: Vec::new(),
            selinux: None,
            seccomp: SecurityProfile::Unconfined,
            apparmor: None,
        },
    }
}
