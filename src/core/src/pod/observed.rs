//! What the runtime has of one pod, as `longshore-cri` reports it. No decisions here.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::{ContainerId, ContainerName, PodKey, PodUid, SandboxId};

/// Everything the runtime has under one pod uid, newest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedPod {
    pub uid: PodUid,
    pub key: PodKey,
    /// Newest (highest attempt, then creation time) first.
    pub sandboxes: Vec<ObservedSandbox>,
    /// All instances of all containers, newest first.
    pub containers: Vec<ObservedContainer>,
    /// When this was read from the runtime.
    pub observed_at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxState {
    Ready,
    NotReady,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedSandbox {
    pub id: SandboxId,
    pub attempt: u32,
    pub state: SandboxState,
    pub created_at: Timestamp,
    /// First the primary address; empty for host network or before CNI is done.
    pub ips: Vec<IpAddr>,
    pub host_network: bool,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    Created,
    Running {
        started_at: Timestamp,
    },
    Exited {
        started_at: Option<Timestamp>,
        finished_at: Timestamp,
        exit_code: i32,
        /// As the runtime says it: `Completed`, `Error`, `OOMKilled`, `StartError`, ...
        reason: String,
        /// The termination message or the runtime's own text, bounded to 4 KiB.
        message: String,
    },
    Unknown,
}

/// Reason of an end by the kernel for want of memory, as runtimes and the kubelet spell it.
pub const OOM_KILLED: &str = "OOMKilled";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedContainer {
    pub id: ContainerId,
    pub sandbox: SandboxId,
    pub name: ContainerName,
    /// CRI attempt: 0 for the first instance.
    pub attempt: u32,
    pub state: ContainerState,
    pub created_at: Timestamp,
    /// The image as the spec asked for it, where the runtime tells.
    pub image: String,
    /// The resolved image reference (digest) the runtime reports.
    pub image_ref: String,
    pub labels: BTreeMap<String, String>,
    /// Carries the kubelet's annotations (hash, restartCount, termination message path and policy,
    /// grace periods, preStop handler): recovery reads nothing else (kubelet-surface B10).
    pub annotations: BTreeMap<String, String>,
    /// Absolute path of the CRI log file on the node.
    pub log_path: String,
}

impl ObservedContainer {
    pub fn is_running(&self) -> bool {
        matches!(self.state, ContainerState::Running { .. })
    }

    /// Still holds a process or may come to hold one.
    pub fn may_run(&self) -> bool {
        !matches!(self.state, ContainerState::Exited { .. })
    }
}
