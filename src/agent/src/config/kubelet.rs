//! KubeletConfiguration v1beta1 as Kubernetes 1.36 has it: every field, its type and its default.
//! Facts: staging/src/k8s.io/kubelet/config/v1beta1/types.go and pkg/kubelet/apis/config/v1beta1/defaults.go.
//! No rules and no use of the values here.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::{Deserialize, Serialize};

use super::fields::config_fields;
use super::units::GoDuration;

pub const KIND: &str = "KubeletConfiguration";
pub const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";

const fn secs(seconds: u32) -> GoDuration {
    GoDuration::from_secs(seconds)
}

fn text(value: &str) -> String {
    value.to_owned()
}

type Map = BTreeMap<String, String>;

config_fields! {
    /// The kubelet's configuration file.
    KubeletConfiguration, KUBELET_FIELDS {
        "enableServer" enable_server: Option<bool> = Some(true), keep, Now, "serve the HTTPS API";
        "staticPodPath" static_pod_path: String = String::new(), keep, Now, "folder of Pod manifests; `--manifests` wins";
        "podLogsDir" pod_logs_dir: String = text("/var/log/pods"), fill, Now, "folder of the pods' log folders, absolute";
        "syncFrequency" sync_frequency: GoDuration = secs(60), fill, Never, "pods are looked at when something happens, not by the clock";
        "fileCheckFrequency" file_check_frequency: GoDuration = secs(20), fill, Now, "audit of the manifest folder beside inotify";
        "httpCheckFrequency" http_check_frequency: GoDuration = secs(20), fill, Later, "re-read of staticPodURL";
        "staticPodURL" static_pod_url: String = String::new(), keep, Later, "Pod manifests over HTTP";
        "staticPodURLHeader" static_pod_url_header: BTreeMap<String, Vec<String>> = BTreeMap::new(), keep, Later, "headers for staticPodURL";
        "address" address: String = text("0.0.0.0"), fill, Now, "address of the HTTPS API";
        "port" port: i32 = 10250, fill, Now, "port of the HTTPS API, 1-65535";
        "readOnlyPort" read_only_port: i32 = 0, keep, Now, "port of the HTTP API without authentication; 0 is off";
        "tlsCertFile" tls_cert_file: String = String::new(), keep, Now, "serving certificate; without effect beside serverTLSBootstrap";
        "tlsPrivateKeyFile" tls_private_key_file: String = String::new(), keep, Now, "its key";
        "tlsCipherSuites" tls_cipher_suites: Vec<String> = Vec::new(), keep, Now, "names as in Go's crypto/tls; a word that is none is a fault, a suite that this server does not speak a warning";
        "tlsMinVersion" tls_min_version: String = String::new(), keep, Now, "VersionTLS12 or VersionTLS13";
        "tlsCurvePreferences" tls_curve_preferences: Vec<serde_json::Value> = Vec::new(), keep, Later, "curves of the key exchange";
        "rotateCertificates" rotate_certificates: bool = false, keep, Now, "client certificate through CSRs";
        "serverTLSBootstrap" server_tls_bootstrap: bool = false, keep, Now, "serving certificate through CSRs; until one is approved the server shows one of its own";
        "authentication" authentication: Authentication = Authentication::default(), keep, Now, "who may call the HTTPS API: x509, webhook, anonymous";
        "authorization" authorization: Authorization = Authorization::default(), keep, Now, "what callers may do: AlwaysAllow or Webhook";
        "registryPullQPS" registry_pull_qps: Option<i32> = Some(5), keep, Now, "image pulls per second; 0 is no limit";
        "registryBurst" registry_burst: i32 = 10, fill, Now, "pulls at once above registryPullQPS";
        "imagePullCredentialsVerificationPolicy" image_pull_credentials_verification_policy: String = text("NeverVerifyPreloadedImages"), fill, Later, "whether a pod must prove that it may use a present image";
        "preloadedImagesVerificationAllowlist" preloaded_images_verification_allowlist: Vec<String> = Vec::new(), keep, Later, "image patterns for the policy above";
        "eventRecordQPS" event_record_qps: Option<i32> = Some(50), keep, Now, "events per second to the API";
        "eventBurst" event_burst: i32 = 100, fill, Now, "events at once above eventRecordQPS";
        "enableDebuggingHandlers" enable_debugging_handlers: Option<bool> = Some(true), keep, Now, "exec, attach, logs and port-forward on the HTTPS API";
        "enableContentionProfiling" enable_contention_profiling: bool = false, keep, Never, "profiler of the Go runtime";
        "healthzPort" healthz_port: Option<i32> = Some(10248), keep, Now, "port of /healthz; 0 is off";
        "healthzBindAddress" healthz_bind_address: String = text("127.0.0.1"), fill, Now, "address of /healthz";
        "oomScoreAdj" oom_score_adj: Option<i32> = Some(-999), keep, Now, "the daemon's own OOM score, -1000 to 1000";
        "clusterDomain" cluster_domain: String = String::new(), keep, Now, "DNS domain of the cluster";
        "clusterDNS" cluster_dns: Vec<String> = Vec::new(), keep, Now, "DNS servers of pods with dnsPolicy ClusterFirst";
        "streamingConnectionIdleTimeout" streaming_connection_idle_timeout: GoDuration = secs(4 * 3600), fill, Never, "nothing reads it since the runtimes stream";
        "nodeStatusUpdateFrequency" node_status_update_frequency: GoDuration = secs(10), fill, Now, "how often the node's status is computed";
        "nodeStatusReportFrequency" node_status_report_frequency: GoDuration = secs(300), fill, Now, "how often an unchanged status is written";
        "nodeLeaseDurationSeconds" node_lease_duration_seconds: i32 = 40, fill, Now, "length of the node's lease";
        "imageMinimumGCAge" image_minimum_gc_age: GoDuration = secs(120), fill, Now, "younger unused images stay";
        "imageMaximumGCAge" image_maximum_gc_age: GoDuration = secs(0), keep, Now, "older unused images go; 0 is off";
        "imageGCHighThresholdPercent" image_gc_high_threshold_percent: Option<i32> = Some(85), keep, Now, "disk use that starts image collection; 100 is never";
        "imageGCLowThresholdPercent" image_gc_low_threshold_percent: Option<i32> = Some(80), keep, Now, "disk use that ends it";
        "volumeStatsAggPeriod" volume_stats_agg_period: GoDuration = secs(60), fill, Later, "how often volumes are measured; negative is off";
        "kubeletCgroups" kubelet_cgroups: String = String::new(), keep, Later, "cgroup of the daemon, for its statistics";
        "systemCgroups" system_cgroups: String = String::new(), keep, Later, "cgroup for stray processes";
        "cgroupRoot" cgroup_root: String = String::new(), keep, Now, "parent of the kubepods cgroup";
        "cgroupsPerQOS" cgroups_per_qos: Option<bool> = Some(true), keep, Now, "cgroups for QoS classes and pods";
        "cgroupDriver" cgroup_driver: String = text("cgroupfs"), fill, Now, "systemd or cgroupfs, where the runtime does not tell its own";
        "singleProcessOOMKill" single_process_oom_kill: Option<bool> = None, keep, Now, "kill one process of a container instead of all";
        "cpuManagerPolicy" cpu_manager_policy: String = text("none"), fill, Later, "none or static";
        "cpuManagerPolicyOptions" cpu_manager_policy_options: Map = Map::new(), keep, Later, "options of the static policy";
        "cpuManagerReconcilePeriod" cpu_manager_reconcile_period: GoDuration = secs(10), fill, Later, "how often CPU sets are checked";
        "memoryManagerPolicy" memory_manager_policy: String = text("None"), fill, Later, "None or Static";
        "topologyManagerPolicy" topology_manager_policy: String = text("none"), fill, Later, "none, best-effort, restricted or single-numa-node";
        "topologyManagerScope" topology_manager_scope: String = text("container"), fill, Later, "container or pod";
        "topologyManagerPolicyOptions" topology_manager_policy_options: Map = Map::new(), keep, Later, "options of the topology policy";
        "qosReserved" qos_reserved: Map = Map::new(), keep, Never, "alpha upstream, off";
        "runtimeRequestTimeout" runtime_request_timeout: GoDuration = secs(120), fill, Now, "deadline of a runtime call, but of pulls, exec and logs";
        "hairpinMode" hairpin_mode: String = text("promiscuous-bridge"), fill, Never, "nothing reads it since CNI";
        "maxPods" max_pods: i32 = 110, fill, Now, "pods this node takes";
        "podCIDR" pod_cidr: String = String::new(), keep, Later, "pod addresses without a control plane; the CNI's own configuration decides today";
        "podPidsLimit" pod_pids_limit: Option<i64> = Some(-1), keep, Now, "processes per pod; -1 is no limit";
        "resolvConf" resolv_conf: Option<String> = Some(text("/etc/resolv.conf")), keep, Now, "the node's resolver file, base of pods' DNS; empty is none";
        "runOnce" run_once: bool = false, keep, Never, "refused when true, as upstream";
        "cpuCFSQuota" cpu_cfs_quota: Option<bool> = Some(true), keep, Now, "enforce CPU limits";
        "cpuCFSQuotaPeriod" cpu_cfs_quota_period: Option<GoDuration> = Some(GoDuration::from_millis(100)), keep, Now, "period of CPU limits, 1ms to 1s";
        "nodeStatusMaxImages" node_status_max_images: Option<i32> = Some(50), keep, Now, "images in the node's status; -1 is all";
        "maxOpenFiles" max_open_files: i64 = 1_000_000, fill, Now, "the daemon's own limit of open files";
        "contentType" content_type: String = text("application/vnd.kubernetes.protobuf"), fill, Later, "encoding towards the API server";
        "kubeAPIQPS" kube_api_qps: Option<i32> = Some(50), keep, Never, "no fixed client rate: the server's own flow control is obeyed";
        "kubeAPIBurst" kube_api_burst: i32 = 100, fill, Never, "as kubeAPIQPS";
        "serializeImagePulls" serialize_image_pulls: Option<bool> = None, keep, Now, "one pull at a time; true unless maxParallelImagePulls is 2 or more";
        "maxParallelImagePulls" max_parallel_image_pulls: Option<i32> = None, keep, Now, "pulls at a time, 1 or more; needs serializeImagePulls false";
        "evictionHard" eviction_hard: Map = Map::new(), keep, Later, "thresholds that evict at once";
        "evictionSoft" eviction_soft: Map = Map::new(), keep, Later, "thresholds that evict after their grace";
        "evictionSoftGracePeriod" eviction_soft_grace_period: Map = Map::new(), keep, Later, "grace per soft threshold";
        "evictionPressureTransitionPeriod" eviction_pressure_transition_period: GoDuration = secs(300), fill, Later, "how long a pressure condition stays";
        "evictionMaxPodGracePeriod" eviction_max_pod_grace_period: i32 = 0, keep, Later, "longest grace of an evicted pod, seconds";
        "evictionMinimumReclaim" eviction_minimum_reclaim: Map = Map::new(), keep, Later, "extra to reclaim per signal";
        "mergeDefaultEvictionSettings" merge_default_eviction_settings: Option<bool> = None, keep, Later, "keep the default thresholds of signals not given";
        "podsPerCore" pods_per_core: i32 = 0, keep, Later, "pods per CPU, below maxPods; 0 is off";
        "enableControllerAttachDetach" enable_controller_attach_detach: Option<bool> = Some(true), keep, Later, "the control plane attaches volumes";
        "protectKernelDefaults" protect_kernel_defaults: bool = false, keep, Later, "fail instead of setting sysctls";
        "makeIPTablesUtilChains" make_iptables_util_chains: Option<bool> = Some(true), keep, Later, "the kubelet's own iptables chains";
        "iptablesMasqueradeBit" iptables_masquerade_bit: Option<i32> = Some(14), keep, Never, "without effect upstream too";
        "iptablesDropBit" iptables_drop_bit: Option<i32> = Some(15), keep, Never, "without effect upstream too";
        "featureGates" feature_gates: BTreeMap<String, bool> = BTreeMap::new(), keep, Now, "gates by name; behaviour is that of the 1.36 defaults, and a gate that says otherwise is named in a warning";
        "failSwapOn" fail_swap_on: Option<bool> = Some(true), keep, Now, "refuse to start while swap is on";
        "memorySwap" memory_swap: MemorySwap = MemorySwap::default(), keep, Now, "swapBehavior: NoSwap or LimitedSwap";
        "containerLogMaxSize" container_log_max_size: String = text("10Mi"), fill, Now, "size that rotates a container's log";
        "containerLogMaxFiles" container_log_max_files: Option<i32> = Some(5), keep, Now, "log files kept per container, 2 or more";
        "containerLogMaxWorkers" container_log_max_workers: Option<i32> = Some(1), keep, Now, "rotations at a time, 1 or more";
        "containerLogMonitorInterval" container_log_monitor_interval: Option<GoDuration> = Some(secs(10)), keep, Now, "how often logs are measured, 3s or more";
        "configMapAndSecretChangeDetectionStrategy" config_map_and_secret_change_detection_strategy: String = text("Watch"), fill, Later, "Watch, Cache or Get";
        "systemReserved" system_reserved: Map = Map::new(), keep, Now, "resources kept for the system; lowers what pods see as allocatable";
        "kubeReserved" kube_reserved: Map = Map::new(), keep, Now, "the same for Kubernetes\' own daemons";
        "reservedSystemCPUs" reserved_system_cpus: String = String::new(), keep, Later, "CPUs kept for the system (`0-1`)";
        "showHiddenMetricsForVersion" show_hidden_metrics_for_version: String = String::new(), keep, Never, "no metric is hidden";
        "systemReservedCgroup" system_reserved_cgroup: String = String::new(), keep, Later, "cgroup to enforce systemReserved on";
        "kubeReservedCgroup" kube_reserved_cgroup: String = String::new(), keep, Later, "cgroup to enforce kubeReserved on";
        "enforceNodeAllocatable" enforce_node_allocatable: Option<Vec<String>> = Some(vec![text("pods")]), keep, Later, "pods, system-reserved, kube-reserved (also -compressible), none";
        "allowedUnsafeSysctls" allowed_unsafe_sysctls: Vec<String> = Vec::new(), keep, Now, "sysctls pods may set beyond the safe ones";
        "volumePluginDir" volume_plugin_dir: String = text("/usr/libexec/kubernetes/kubelet-plugins/volume/exec/"), fill, Later, "FlexVolume programs";
        "providerID" provider_id: String = String::new(), keep, Now, "the machine's name at its cloud";
        "kernelMemcgNotification" kernel_memcg_notification: bool = false, keep, Never, "cgroup v1 only";
        "logging" logging: Logging = Logging::default(), keep, Now, "format (text, json), verbosity; flushFrequency, vmodule and options are without effect";
        "enableSystemLogHandler" enable_system_log_handler: Option<bool> = Some(true), keep, Now, "/logs/ on the HTTPS API";
        "enableSystemLogQuery" enable_system_log_query: Option<bool> = Some(false), keep, Now, "/logs/?query=SERVICE: what the node's journal has of a service, or its file";
        "shutdownGracePeriod" shutdown_grace_period: GoDuration = secs(0), keep, Later, "time for pods when the node shuts down";
        "shutdownGracePeriodCriticalPods" shutdown_grace_period_critical_pods: GoDuration = secs(0), keep, Later, "the part of it for critical pods";
        "shutdownGracePeriodByPodPriority" shutdown_grace_period_by_pod_priority: Vec<ShutdownGrace> = Vec::new(), keep, Later, "the same per priority; excludes the two above";
        "crashLoopBackOff" crash_loop_back_off: CrashLoopBackOff = CrashLoopBackOff::default(), keep, Now, "maxContainerRestartPeriod: longest wait between restarts, 1s to 300s";
        "reservedMemory" reserved_memory: Vec<MemoryReservation> = Vec::new(), keep, Later, "memory kept per NUMA node";
        "enableProfilingHandler" enable_profiling_handler: Option<bool> = Some(true), keep, Now, "/debug/pprof/ on the HTTPS API; this daemon makes no profiles there and says how one is made";
        "enableDebugFlagsHandler" enable_debug_flags_handler: Option<bool> = Some(true), keep, Never, "/debug/flags/v";
        "seccompDefault" seccomp_default: Option<bool> = Some(false), keep, Now, "RuntimeDefault where a pod names no seccomp profile";
        "memoryThrottlingFactor" memory_throttling_factor: Option<f64> = Some(0.9), keep, Never, "alpha upstream (MemoryQoS), off";
        "memoryReservationPolicy" memory_reservation_policy: String = text("None"), fill, Never, "alpha upstream (MemoryQoS), off";
        "registerWithTaints" register_with_taints: Vec<Taint> = Vec::new(), keep, Now, "taints of a newly created Node";
        "registerNode" register_node: Option<bool> = Some(true), keep, Now, "create the Node object";
        "tracing" tracing: Option<Tracing> = None, keep, Later, "OTLP endpoint and sampling rate";
        "localStorageCapacityIsolation" local_storage_capacity_isolation: Option<bool> = Some(true), keep, Later, "count ephemeral storage";
        "containerRuntimeEndpoint" container_runtime_endpoint: String = text("unix:///run/containerd/containerd.sock"), fill, Now, "the runtime's CRI socket";
        "imageServiceEndpoint" image_service_endpoint: String = String::new(), keep, Now, "CRI socket for images, where it is another";
        "failCgroupV1" fail_cgroup_v1: Option<bool> = Some(true), keep, Never, "only cgroup v2 is supported";
        "userNamespaces" user_namespaces: Option<UserNamespaces> = None, keep, Later, "idsPerPod: a multiple of 65536";
    }
}

/// `authentication`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Authentication {
    pub x509: X509Authentication,
    pub webhook: WebhookAuthentication,
    pub anonymous: AnonymousAuthentication,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct X509Authentication {
    #[serde(rename = "clientCAFile")]
    pub client_ca_file: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WebhookAuthentication {
    pub enabled: bool,
    #[serde(rename = "cacheTTL")]
    pub cache_ttl: GoDuration,
}

impl Default for WebhookAuthentication {
    fn default() -> Self {
        Self { enabled: true, cache_ttl: secs(120) }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AnonymousAuthentication {
    pub enabled: bool,
}

/// `authorization`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Authorization {
    pub mode: String,
    pub webhook: WebhookAuthorization,
}

impl Default for Authorization {
    fn default() -> Self {
        Self { mode: text("Webhook"), webhook: WebhookAuthorization::default() }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WebhookAuthorization {
    #[serde(rename = "cacheAuthorizedTTL")]
    pub cache_authorized_ttl: GoDuration,
    #[serde(rename = "cacheUnauthorizedTTL")]
    pub cache_unauthorized_ttl: GoDuration,
}

impl Default for WebhookAuthorization {
    fn default() -> Self {
        Self { cache_authorized_ttl: secs(300), cache_unauthorized_ttl: secs(30) }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MemorySwap {
    pub swap_behavior: String,
}

/// `logging`, shared by both kinds (LoggingConfiguration of component-base).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Logging {
    /// `text` or `json`.
    pub format: String,
    /// A duration, or nanoseconds as older files have it.
    pub flush_frequency: serde_json::Value,
    pub verbosity: u32,
    pub vmodule: Vec<VerbosityRule>,
    pub options: serde_json::Map<String, serde_json::Value>,
}

impl Default for Logging {
    fn default() -> Self {
        Self {
            format: text("text"),
            flush_frequency: serde_json::Value::from("5s"),
            verbosity: 0,
            vmodule: Vec::new(),
            options: serde_json::Map::new(),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct VerbosityRule {
    pub file_pattern: String,
    pub verbosity: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ShutdownGrace {
    pub priority: i32,
    pub shutdown_grace_period_seconds: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CrashLoopBackOff {
    /// 300 s where absent.
    pub max_container_restart_period: Option<GoDuration>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MemoryReservation {
    pub numa_node: i32,
    pub limits: BTreeMap<String, Quantity>,
}

/// A node taint as the file has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Taint {
    pub key: String,
    pub value: String,
    pub effect: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_added: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Tracing {
    pub endpoint: Option<String>,
    pub sampling_rate_per_million: Option<i32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct UserNamespaces {
    pub ids_per_pod: Option<i64>,
}

impl Default for UserNamespaces {
    fn default() -> Self {
        Self { ids_per_pod: Some(65536) }
    }
}
