//! What the agent itself knows of one pod beside the runtime: outcomes of steps, volumes, images,
//! hooks, probe results. All of it can be lost and is then rebuilt by doing idempotent steps again.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::{ContainerId, ContainerName};
use crate::pod::step::{ImagePresent, StepError, StepKey};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LocalState {
    /// Steps that were started and have not answered, with their start.
    pub in_flight: BTreeMap<StepKey, Timestamp>,
    /// Steps whose last try failed; cleared by success.
    pub failures: BTreeMap<StepKey, StepFailure>,
    /// Steps done that the runtime does not show (folders, cgroup, hostPath checks).
    pub done: BTreeSet<StepKey>,
    /// Volumes that are set up -> hash of their published content (0 for those without content).
    pub volumes: BTreeMap<String, u64>,
    /// Images found or pulled, by container.
    pub images: BTreeMap<ContainerName, ImagePresent>,
    /// Hooks by container instance.
    pub post_start: BTreeMap<ContainerId, HookState>,
    /// Probe results by container instance.
    pub probes: BTreeMap<ContainerId, ProbeResults>,
    /// Crash back-off by container.
    pub backoff: BTreeMap<ContainerName, CrashBackoff>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepFailure {
    /// Tries in a row that failed.
    pub attempts: u32,
    pub since: Timestamp,
    pub last_at: Timestamp,
    /// Not tried again before.
    pub retry_at: Timestamp,
    pub error: StepError,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HookState {
    Running { since: Timestamp },
    Done,
    Failed { message: String },
}

/// Results as the probe rules see them; `None` while a probe of that kind has no result for this
/// instance. A container without such a probe has no entry and counts as success.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeResults {
    pub startup: Option<ProbeResult>,
    pub liveness: Option<ProbeResult>,
    pub readiness: Option<ProbeResult>,
}

/// A verdict after the thresholds were applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeResult {
    pub healthy: bool,
    pub since: Timestamp,
    /// The last answer in words, bounded: `HTTP 503`, `connection refused`, ...
    pub message: String,
}

/// The kubelet's container back-off: 10 s doubling to the limit, reset after stability
/// (behaviours 21). `key_hash` covers what resets it: image and resources.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrashBackoff {
    pub key_hash: u64,
    /// Seconds to wait after the last exit; 0 lets the first restart happen at once.
    pub delay_seconds: u32,
    pub last_exit: Timestamp,
}
