//! The vocabulary of effects on a pod: each small, named, idempotent and with a deadline.
//! The planner returns them as values; the agent executes them without deciding anything.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{ContainerId, ContainerName, SandboxId};
use crate::image::pull_secrets::PullSecrets;
use crate::pod::observed::{ObservedContainer, ObservedSandbox};
use crate::pod::spec::{ContainerSpec, SandboxSpec};

/// Identity of a step within its pod: the same key is never in flight twice.
/// Shown to people as it prints: `create container web`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StepKey {
    pub kind: StepKind,
    /// Container name, volume name or runtime id; empty where the pod itself is the subject.
    pub subject: String,
}

impl fmt::Display for StepKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.verb())?;
        if !self.subject.is_empty() {
            write!(f, " {}", self.subject)?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum StepKind {
    PreparePodDirs,
    EnsureCgroup,
    PrepareVolume,
    UpdateVolume,
    PullImage,
    CreateSandbox,
    CreateContainer,
    StartContainer,
    PostStart,
    StopContainer,
    StopSandbox,
    RemoveContainer,
    RemoveSandbox,
    ReleaseVolume,
    RemoveCgroup,
    RemovePodDirs,
}

impl StepKind {
    /// The step in words, without its subject.
    pub fn verb(self) -> &'static str {
        match self {
            Self::PreparePodDirs => "prepare pod folders",
            Self::EnsureCgroup => "set up pod cgroup",
            Self::PrepareVolume => "prepare volume",
            Self::UpdateVolume => "update volume",
            Self::PullImage => "pull image for",
            Self::CreateSandbox => "create sandbox",
            Self::CreateContainer => "create container",
            Self::StartContainer => "start container",
            Self::PostStart => "run postStart of",
            Self::StopContainer => "stop container",
            Self::StopSandbox => "stop sandbox",
            Self::RemoveContainer => "remove container",
            Self::RemoveSandbox => "remove sandbox",
            Self::ReleaseVolume => "release volume",
            Self::RemoveCgroup => "remove pod cgroup",
            Self::RemovePodDirs => "remove pod folders",
        }
    }
}

/// One effect with all it needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Pod folder, volumes folder, per-container folders, hosts file: everything under the pod's root.
    PreparePodDirs {
        containers: Vec<ContainerName>,
    },
    EnsureCgroup(PodCgroup),
    PrepareVolume(VolumeAction),
    /// The content of a configMap, secret, projected or downwardAPI volume changed.
    UpdateVolume(VolumeAction),
    PullImage {
        container: ContainerName,
        image: String,
        policy: PullPolicy,
        /// What the pod brings for the registry; never written anywhere.
        #[serde(skip)]
        secrets: PullSecrets,
    },
    CreateSandbox(Box<SandboxSpec>),
    CreateContainer(Box<CreateContainer>),
    StartContainer {
        container: ContainerName,
        id: ContainerId,
    },
    PostStart {
        container: ContainerName,
        id: ContainerId,
        hook: Hook,
        pod_ip: Option<std::net::IpAddr>,
    },
    StopContainer(StopContainer),
    StopSandbox {
        id: SandboxId,
    },
    RemoveContainer {
        container: ContainerName,
        id: ContainerId,
    },
    RemoveSandbox {
        id: SandboxId,
    },
    ReleaseVolume {
        volume: String,
    },
    /// Also kills what is left in it (leftover processes of exec, say). Several places where nobody
    /// knows in which one it is.
    RemoveCgroup {
        paths: Vec<String>,
    },
    RemovePodDirs,
}

impl Step {
    pub fn key(&self) -> StepKey {
        let (kind, subject) = match self {
            Self::PreparePodDirs { .. } => (StepKind::PreparePodDirs, String::new()),
            Self::EnsureCgroup(_) => (StepKind::EnsureCgroup, String::new()),
            Self::PrepareVolume(action) => (StepKind::PrepareVolume, action.volume.clone()),
            Self::UpdateVolume(action) => (StepKind::UpdateVolume, action.volume.clone()),
            Self::PullImage { container, .. } => (StepKind::PullImage, container.to_string()),
            Self::CreateSandbox(_) => (StepKind::CreateSandbox, String::new()),
            Self::CreateContainer(create) => (StepKind::CreateContainer, create.spec.name.to_string()),
            Self::StartContainer { container, .. } => (StepKind::StartContainer, container.to_string()),
            Self::PostStart { container, .. } => (StepKind::PostStart, container.to_string()),
            Self::StopContainer(stop) => (StepKind::StopContainer, stop.container.to_string()),
            Self::StopSandbox { id } => (StepKind::StopSandbox, id.to_string()),
            Self::RemoveContainer { id, .. } => (StepKind::RemoveContainer, id.to_string()),
            Self::RemoveSandbox { id } => (StepKind::RemoveSandbox, id.to_string()),
            Self::ReleaseVolume { volume } => (StepKind::ReleaseVolume, volume.clone()),
            Self::RemoveCgroup { .. } => (StepKind::RemoveCgroup, String::new()),
            Self::RemovePodDirs => (StepKind::RemovePodDirs, String::new()),
        };
        StepKey { kind, subject }
    }
}

/// `imagePullPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateContainer {
    pub sandbox: SandboxId,
    pub spec: ContainerSpec,
    /// CRI wants the sandbox's config again with each container.
    pub sandbox_spec: SandboxSpec,
    /// subPath mounts to prepare before the call: volume, path below it, where it is bound.
    pub sub_paths: Vec<SubPathMount>,
    /// Termination log file to create, absolute; mounted at `terminationMessagePath`.
    pub termination_log: Option<PathBuf>,
    /// Hosts file to write anew before the call (behaviours 41); absent where the container brings its own.
    pub hosts_file: Option<HostsFile>,
}

/// The pod's `/etc/hosts`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostsFile {
    /// Host-network pods: the node's own hosts file comes first, `content` after it.
    pub copy_node: bool,
    pub content: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubPathMount {
    pub volume_path: PathBuf,
    pub sub_path: String,
    pub target: PathBuf,
    pub readonly: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopContainer {
    pub container: ContainerName,
    pub id: ContainerId,
    /// Runs first and eats from `grace`; absent when no grace is left (behaviours 18).
    pub pre_stop: Option<Hook>,
    pub pod_ip: Option<std::net::IpAddr>,
    pub grace: Duration,
    /// Why, for the event and the log: `liveness probe failed`, `pod deleted`, ...
    pub reason: String,
}

/// postStart/preStop action; ports are resolved to numbers by the planner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hook {
    Exec { command: Vec<String> },
    HttpGet { scheme: String, host: String, port: u16, path: String, headers: Vec<(String, String)> },
    TcpSocket { host: String, port: u16 },
    Sleep { duration: Duration },
}

/// The pod level cgroup and its limits; values in the units of the cgroup v2 files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodCgroup {
    /// In cgroupfs form below the root, also for the systemd driver
    /// (`/kubepods.slice/kubepods-burstable.slice/...`).
    pub path: String,
    pub limits: CgroupLimits,
}

/// Limits of a cgroup above the containers. `None` leaves the kernel's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupLimits {
    /// cpu.weight, 1..=10000.
    pub cpu_weight: Option<u64>,
    /// cpu.max: quota and period in microseconds.
    pub cpu_max: Option<(u64, u64)>,
    /// memory.max in bytes.
    pub memory_max: Option<u64>,
    /// pids.max.
    pub pids_max: Option<u64>,
    /// hugetlb.<size>.max in bytes; size as the kernel spells it (`2MB`).
    pub hugetlb: std::collections::BTreeMap<String, u64>,
}

/// What to do for one volume; a pure function of the pod and the objects it refers to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeAction {
    /// `spec.volumes[].name`.
    pub volume: String,
    /// Absolute; below `<root>/pods/<uid>/volumes/` except for hostPath.
    pub path: PathBuf,
    pub source: VolumeSource,
    /// Applied to the volume's root where the source supports it.
    pub fs_group: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeSource {
    EmptyDir,
    /// tmpfs; size in bytes.
    EmptyDirMemory {
        size: Option<u64>,
    },
    /// `kind` is hostPath.type as the API spells it; empty means no check.
    HostPath {
        kind: String,
    },
    /// configMap, secret, downwardAPI, projected: files published by the atomic ..data switch.
    Files {
        files: Vec<VolumeFile>,
        /// Secrets live on a tmpfs.
        in_memory: bool,
    },
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeFile {
    /// Relative, no `..`, validated.
    pub path: String,
    pub mode: u32,
    pub data: Vec<u8>,
}

impl fmt::Debug for VolumeFile {
    /// Never prints the data: it may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VolumeFile({} {:o}, {} bytes)", self.path, self.mode, self.data.len())
    }
}

/// What came back from executing a step.
// One at a time passes through a channel: its size costs nothing, a box would be in every match.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq)]
pub enum StepOutcome {
    Done(StepResult),
    Failed(StepError),
    /// No longer wanted and stopped half way; not a failure.
    Cancelled,
}

#[derive(Clone, Debug, PartialEq)]
pub enum StepResult {
    /// Nothing to remember but that it is done.
    Done,
    /// Reply of the runtime to our own call: an observation (invariant 4).
    Sandbox(ObservedSandbox),
    Container(ObservedContainer),
    /// The runtime confirmed the removal of this container or sandbox id.
    Removed(String),
    /// The image is there; what the runtime resolved it to.
    Image(ImagePresent),
    /// The volume's files were published; hash of their content.
    Volume {
        content_hash: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagePresent {
    /// Digest reference or id to create containers from.
    pub image_ref: String,
    pub size_bytes: u64,
    /// The image's own user, for runAsNonRoot.
    pub user: ImageUser,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageUser {
    #[default]
    Unset,
    Uid(i64),
    Name(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepError {
    /// In the API's spelling where it has one: `ErrImagePull`, `CreateContainerError`, ...
    pub reason: String,
    /// One line, names the object, no secrets.
    pub message: String,
    /// `false`: trying again cannot help until something else changes.
    pub retryable: bool,
}
