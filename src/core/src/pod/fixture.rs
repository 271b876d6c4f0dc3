//! Values for the tests of the pod engine: one node, one pod, objects it refers to.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, PodStatus, Secret};

use crate::ids::{ObjectKey, PodKey};
use crate::pod::default::default;
use crate::pod::desired::{DesiredPod, PodSource};
use crate::pod::lifecycle::Lifecycle;
use crate::pod::local::LocalState;
use crate::pod::observed::ObservedPod;
use crate::pod::snapshot::{
    CgroupDriver, CgroupSettings, DnsSettings, NodeContext, PodSnapshot, ReferencedObjects,
};

/// 2026-01-01T00:00:00Z, when the agent of the tests started.
pub(crate) fn epoch() -> Timestamp {
    Timestamp::from_second(1_767_225_600).unwrap()
}

/// `seconds` after [`epoch`].
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_767_225_600 + seconds).unwrap()
}

pub(crate) fn pod(value: serde_json::Value) -> Pod {
    default(serde_json::from_value(value).unwrap())
}

pub(crate) fn node() -> NodeContext {
    NodeContext {
        name: "node".to_owned(),
        runtime_name: "cri-o".to_owned(),
        max_pods: 110,
        allowed_unsafe_sysctls: Vec::new(),
        swap_bytes: 4 << 30,
        ips: vec!["192.0.2.10".parse().unwrap()],
        root_dir: PathBuf::from("/var/lib/kubelet"),
        pod_logs_dir: PathBuf::from("/var/log/pods"),
        cgroups: CgroupSettings {
            per_qos: true,
            driver: CgroupDriver::Systemd,
            root: String::new(),
            cpu_cfs_quota: true,
            cpu_cfs_period_us: 100_000,
            pod_pids_limit: None,
            single_process_oom_kill: false,
            limited_swap: false,
        },
        dns: DnsSettings {
            cluster_dns: vec!["10.96.0.10".parse().unwrap()],
            cluster_domain: "cluster.local".to_owned(),
            host_servers: vec!["192.0.2.53".to_owned()],
            host_searches: vec!["example.org".to_owned()],
            host_options: vec!["timeout:2".to_owned()],
        },
        network: Ok(()),
        services_synced: true,
        service_env: Arc::new(BTreeMap::new()),
        allocatable_cpu_millis: 4000,
        allocatable_memory_bytes: 4 << 30,
        capacity_memory_bytes: 8 << 30,
        max_restart_backoff: Duration::from_secs(300),
        seccomp_default: false,
        agent_started_at: epoch(),
        hugepage_sizes: vec!["2MB".to_owned(), "1GB".to_owned()],
        runtime_classes: None,
        placement: None,
    }
}

/// All parts of a snapshot, owned.
#[derive(Debug)]
pub(crate) struct Fixture {
    pub now: Timestamp,
    pub desired: DesiredPod,
    pub lifecycle: Lifecycle,
    pub observed: ObservedPod,
    pub local: LocalState,
    pub node: NodeContext,
    pub objects: ReferencedObjects,
    pub prior: Option<PodStatus>,
}

impl Fixture {
    /// A pod freshly seen, with nothing in the runtime.
    pub fn new(manifest: serde_json::Value) -> Self {
        let pod = pod(manifest);
        let key = PodKey::new(
            pod.metadata.namespace.clone().unwrap_or_default(),
            pod.metadata.name.clone().unwrap_or_default(),
        );
        let uid = "11111111-2222-8333-8444-555555555555".into();
        Self {
            now: epoch(),
            observed: ObservedPod {
                uid: crate::ids::PodUid::clone(&uid),
                key: key.clone(),
                sandboxes: Vec::new(),
                containers: Vec::new(),
                observed_at: epoch(),
            },
            desired: DesiredPod {
                key,
                uid,
                pod: Arc::new(pod),
                source: PodSource::File { path: PathBuf::from("web.yaml"), document: 1 },
                seen_at: epoch(),
                deletion: None,
            },
            lifecycle: Lifecycle::Syncing,
            local: LocalState::default(),
            node: node(),
            objects: ReferencedObjects::default(),
            prior: None,
        }
    }

    pub fn snapshot(&self) -> PodSnapshot<'_> {
        PodSnapshot {
            now: self.now,
            desired: &self.desired,
            lifecycle: &self.lifecycle,
            observed: &self.observed,
            local: &self.local,
            node: &self.node,
            objects: &self.objects,
            contents: None,
            prior: self.prior.as_ref(),
        }
    }

    pub fn edit(&mut self, change: impl FnOnce(&mut Pod)) {
        change(Arc::make_mut(&mut self.desired.pod));
    }

    pub fn config_map(&mut self, name: &str, data: &[(&str, &str)]) {
        let data = data.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let map = ConfigMap { data: Some(data), ..ConfigMap::default() };
        self.objects.config_maps.insert(ObjectKey::new("default", name), Arc::new(map));
    }

    pub fn secret(&mut self, name: &str, data: &[(&str, &str)]) {
        let data = data
            .iter()
            .map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec())))
            .collect();
        let secret = Secret { data: Some(data), ..Secret::default() };
        self.objects.secrets.insert(ObjectKey::new("default", name), Arc::new(secret));
    }
}

use crate::ids::ContainerName;
use crate::pod::observed::{ContainerState, ObservedContainer, ObservedSandbox, SandboxState};

/// A container instance in sandbox `s0`.
pub(crate) fn instance(id: &str, name: &str, attempt: u32, state: ContainerState) -> ObservedContainer {
    ObservedContainer {
        id: id.into(),
        sandbox: "s0".into(),
        name: ContainerName::from(name),
        attempt,
        state,
        created_at: at(i64::from(attempt)),
        image: "w:1".to_owned(),
        image_ref: "sha256:1".to_owned(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        log_path: String::new(),
    }
}

pub(crate) fn running(id: &str, name: &str, attempt: u32, started_at: Timestamp) -> ObservedContainer {
    instance(id, name, attempt, ContainerState::Running { started_at })
}

pub(crate) fn exited(
    id: &str,
    name: &str,
    attempt: u32,
    started_at: Timestamp,
    finished_at: Timestamp,
    exit_code: i32,
) -> ObservedContainer {
    let reason = if exit_code == 0 { "Completed" } else { "Error" }.to_owned();
    let started_at = Some(started_at);
    let state = ContainerState::Exited { started_at, finished_at, exit_code, reason, message: String::new() };
    instance(id, name, attempt, state)
}

/// A ready sandbox `s0` with an address.
pub(crate) fn sandbox() -> ObservedSandbox {
    ObservedSandbox {
        id: "s0".into(),
        attempt: 0,
        state: SandboxState::Ready,
        created_at: epoch(),
        ips: vec!["10.0.0.5".parse().unwrap()],
        host_network: false,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    }
}
