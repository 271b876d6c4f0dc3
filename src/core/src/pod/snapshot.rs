//! Everything a decision about one pod may look at, gathered at one instant, and what it returns.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, PodStatus, Secret};
use serde::{Deserialize, Serialize};

use crate::ids::{ContainerId, ContainerName, ObjectKey};
use crate::pod::desired::DesiredPod;
use crate::pod::lifecycle::Lifecycle;
use crate::pod::local::LocalState;
use crate::pod::observed::ObservedPod;
use crate::pod::runtime_class::RuntimeClasses;
use crate::pod::step::{Hook, Step, StepKey};
use crate::pod::token::TokenSpec;
use crate::resources::placement::Placement;
use crate::volume::VolumeContents;

#[derive(Clone, Copy, Debug)]
pub struct PodSnapshot<'a> {
    pub now: Timestamp,
    pub desired: &'a DesiredPod,
    pub lifecycle: &'a Lifecycle,
    pub observed: &'a ObservedPod,
    pub local: &'a LocalState,
    pub node: &'a NodeContext,
    pub objects: &'a ReferencedObjects,
    /// What the volumes are to publish, where it was worked out since the pod, its objects or the node last changed.
    /// Without it a plan works it out itself: the plan is the same, at the price of reading all data.
    pub contents: Option<&'a VolumeContents>,
    /// The status last published, for transition times and what must never go back.
    pub prior: Option<&'a PodStatus>,
}

/// Facts of the node a pod's plan depends on.
#[derive(Clone, Debug)]
pub struct NodeContext {
    pub name: String,
    /// The runtime's own name, as its Version answer has it: `containerd`, `cri-o`. The scheme of the
    /// container ids in a pod's status.
    pub runtime_name: String,
    /// Primary address first.
    pub ips: Vec<IpAddr>,
    /// `/var/lib/kubelet` or what --root-dir says.
    pub root_dir: PathBuf,
    /// `/var/log/pods`.
    pub pod_logs_dir: PathBuf,
    pub cgroups: CgroupSettings,
    pub dns: DnsSettings,
    /// CRI says that the network is ready; with a message where it is not.
    pub network: Result<(), String>,
    /// The first full sync of Services is in the kernel; ordinary pods wait for it.
    pub services_synced: bool,
    /// `<NAME>_SERVICE_HOST` and friends by namespace, ready made.
    pub service_env: Arc<BTreeMap<String, Vec<(String, String)>>>,
    /// Node allocatable: the default for resourceFieldRef limits, and cgroup values.
    pub allocatable_cpu_millis: u64,
    pub allocatable_memory_bytes: u64,
    pub capacity_memory_bytes: u64,
    /// Swap space of the node, all devices together.
    pub swap_bytes: u64,
    /// Pods the node takes (`maxPods`).
    pub max_pods: usize,
    /// Sysctls pods may set beside the safe ones: names, or prefixes ending in `*`.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// crashLoopBackOff.maxContainerRestartPeriod, default 300 s.
    pub max_restart_backoff: Duration,
    pub seccomp_default: bool,
    /// When the agent started: results of containers older than this are adopted (behaviours 24).
    pub agent_started_at: Timestamp,
    /// Sizes the kernel supports, as it spells them (`2MB`).
    pub hugepage_sizes: Vec<String>,
    pub runtime_classes: RuntimeClasses,
    /// As the Node object has it; `None` until it was read, and without a control plane.
    pub placement: Option<Arc<Placement>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CgroupDriver {
    Systemd,
    Cgroupfs,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupSettings {
    /// `false`: no QoS tree, no pod cgroups (cgroupsPerQOS: false).
    pub per_qos: bool,
    pub driver: CgroupDriver,
    /// cgroupRoot, "" or "/" for the top.
    pub root: String,
    pub cpu_cfs_quota: bool,
    pub cpu_cfs_period_us: u64,
    /// podPidsLimit; None where unlimited.
    pub pod_pids_limit: Option<u64>,
    /// memory.oom.group=1 on containers unless this is set.
    pub single_process_oom_kill: bool,
    /// memorySwap.swapBehavior is LimitedSwap: Burstable pods may swap in proportion to their requests.
    pub limited_swap: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsSettings {
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// The node's own resolv.conf, parsed: the base of dnsPolicy Default and ClusterFirst.
    pub host_servers: Vec<String>,
    pub host_searches: Vec<String>,
    pub host_options: Vec<String>,
}

/// The ConfigMaps and Secrets this pod names, those that exist, and its ServiceAccount tokens.
#[derive(Clone, Default)]
pub struct ReferencedObjects {
    pub config_maps: BTreeMap<ObjectKey, Arc<ConfigMap>>,
    pub secrets: BTreeMap<ObjectKey, Arc<Secret>>,
    /// Those issued so far. `None` where there is no control plane to issue any.
    pub tokens: Option<BTreeMap<TokenSpec, Arc<str>>>,
    /// Named by the pod and not asked for yet: not even an optional one may be taken for missing.
    pub unfetched: BTreeSet<ObjectRef>,
}

/// A ConfigMap or Secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectRef {
    ConfigMap(ObjectKey),
    Secret(ObjectKey),
}

impl std::fmt::Debug for ReferencedObjects {
    /// Names only: the values are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReferencedObjects")
            .field("config_maps", &self.config_maps.keys())
            .field("secrets", &self.secrets.keys())
            .field("tokens", &self.tokens.as_ref().map(BTreeMap::len))
            .field("unfetched", &self.unfetched)
            .finish()
    }
}

/// What to do for a pod now.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The lifecycle from here on; equal to the snapshot's where nothing changed.
    pub lifecycle: Lifecycle,
    /// Steps that should be running now; those already in flight are not started again.
    pub steps: Vec<Step>,
    /// In flight but no longer wanted.
    pub cancel: Vec<StepKey>,
    /// What the pod waits for, most important first; empty when it runs as wanted.
    pub waiting: Vec<Waiting>,
    /// Time alone changes the plan then.
    pub wake_at: Option<Timestamp>,
    /// The probes that should be running now.
    pub probes: Vec<ProbeTarget>,
}

/// One thing a pod waits for, in words a person can act on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// In the API's spelling where it has one: `CrashLoopBackOff`, `ImagePullBackOff`, ...
    pub reason: String,
    pub container: Option<ContainerName>,
    /// One sentence naming the object and the mend.
    pub message: String,
    pub until: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

/// One probe to keep running against one container instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeTarget {
    pub container: ContainerName,
    pub id: ContainerId,
    pub kind: ProbeKind,
    pub action: ProbeAction,
    pub container_started_at: Timestamp,
    pub initial_delay: Duration,
    pub timeout: Duration,
    pub period: Duration,
    pub success_threshold: u32,
    pub failure_threshold: u32,
}

/// What one try does; ports resolved to numbers, host filled with the pod's address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeAction {
    /// Exec, httpGet and tcpSocket share their shape with the hooks.
    Hook(Hook),
    Grpc {
        host: String,
        port: u16,
        service: String,
    },
}
