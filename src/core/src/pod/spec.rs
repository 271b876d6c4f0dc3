//! What is asked of the runtime for one sandbox or container, free of protobuf.
//! Rendered from the pod by pure functions; `longshore-cri` converts it to CRI messages.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{ContainerId, ContainerName, PodKey, PodUid};

/// CRI `NamespaceMode` for one of the pod's namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceMode {
    /// Shared by the containers of the pod.
    Pod,
    /// Each container its own (pid only).
    Container,
    /// The node's.
    Node,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceModes {
    pub network: NamespaceMode,
    pub pid: NamespaceMode,
    pub ipc: NamespaceMode,
}

/// Seccomp or AppArmor profile choice (CRI `SecurityProfile`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SecurityProfile {
    RuntimeDefault,
    Unconfined,
    /// Seccomp: an absolute path under the kubelet's seccomp folder; AppArmor: the profile's name.
    Localhost(String),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelinuxOptions {
    pub user: String,
    pub role: String,
    pub kind: String,
    pub level: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsConfig {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PortProtocol {
    Tcp,
    Udp,
    Sctp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    pub protocol: PortProtocol,
    pub container_port: u16,
    pub host_port: u16,
    pub host_ip: String,
}

/// CRI `PodSandboxConfig` (kubelet-surface B10).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    pub key: PodKey,
    pub uid: PodUid,
    pub attempt: u32,
    /// Empty for host network.
    pub hostname: String,
    /// `/var/log/pods/<ns>_<name>_<uid>`.
    pub log_directory: String,
    /// `None` lets the runtime copy the node's resolv.conf.
    pub dns: Option<DnsConfig>,
    pub port_mappings: Vec<PortMapping>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// The pod cgroup in full cgroupfs form; empty where cgroups are not managed.
    pub cgroup_parent: String,
    pub sysctls: BTreeMap<String, String>,
    pub security: SandboxSecurity,
    /// The pod's summed resources and its RuntimeClass overhead, for runtimes that size a VM.
    pub resources: Option<LinuxResources>,
    pub overhead: Option<LinuxResources>,
    /// RuntimeClass handler; empty for the default.
    pub runtime_handler: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSecurity {
    pub namespaces: NamespaceModes,
    pub privileged: bool,
    pub readonly_rootfs: bool,
    pub run_as_user: Option<i64>,
    pub run_as_group: Option<i64>,
    pub supplemental_groups: Vec<i64>,
    /// `true` is policy Strict: groups of the image are not merged in.
    pub strict_supplemental_groups: bool,
    pub selinux: Option<SelinuxOptions>,
    pub seccomp: SecurityProfile,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountPropagation {
    Private,
    HostToContainer,
    Bidirectional,
}

/// One bind mount into a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerMount {
    pub container_path: String,
    pub host_path: String,
    pub readonly: bool,
    pub recursive_readonly: bool,
    pub selinux_relabel: bool,
    pub propagation: MountPropagation,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerDevice {
    pub host_path: String,
    pub container_path: String,
    /// Subset of `rwm`.
    pub permissions: String,
}

/// CRI `LinuxContainerResources`. `None` means: leave to the runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinuxResources {
    /// cgroup v1 shares, 2..=262144; the OCI runtime turns them into cpu.weight.
    pub cpu_shares: Option<u64>,
    /// Microseconds per period; at least 1000.
    pub cpu_quota_us: Option<i64>,
    pub cpu_period_us: Option<u64>,
    pub memory_limit_bytes: Option<i64>,
    pub memory_swap_limit_bytes: Option<i64>,
    /// -1000..=1000.
    pub oom_score_adj: Option<i64>,
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
    /// Page size as the kernel spells it (`2MB`) -> bytes.
    pub hugepage_limits: BTreeMap<String, u64>,
    /// Raw cgroup v2 files: `memory.oom.group`, `memory.swap.max`, ...
    pub unified: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSecurity {
    pub namespaces: NamespaceModes,
    /// The container whose process namespace it joins instead of having its own.
    pub process_target: Option<ContainerId>,
    pub privileged: bool,
    pub add_capabilities: Vec<String>,
    pub drop_capabilities: Vec<String>,
    pub run_as_user: Option<i64>,
    /// The image's own user by name, where the spec leaves it open.
    pub run_as_username: String,
    pub run_as_group: Option<i64>,
    pub readonly_rootfs: bool,
    pub supplemental_groups: Vec<i64>,
    pub strict_supplemental_groups: bool,
    pub no_new_privs: bool,
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
    pub selinux: Option<SelinuxOptions>,
    pub seccomp: SecurityProfile,
    pub apparmor: Option<SecurityProfile>,
}

/// CRI `ContainerConfig` (kubelet-surface B10).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    pub name: ContainerName,
    pub attempt: u32,
    /// What the runtime resolved the image to (digest or id).
    pub image_ref: String,
    /// What the pod's author wrote.
    pub user_image: String,
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub working_dir: String,
    pub env: Vec<(String, String)>,
    pub mounts: Vec<ContainerMount>,
    pub devices: Vec<ContainerDevice>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Relative to the sandbox's log directory: `<container>/<restart>.log`.
    pub log_path: String,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    pub resources: LinuxResources,
    pub security: ContainerSecurity,
}
