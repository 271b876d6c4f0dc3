//! What differs between two readings of the configuration: what may change while the daemon runs, and
//! what takes a restart, by the names people write. Pure.

use super::settings::{KubeletServer, Settings};

/// Fields that differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// In force at once, for what begins from now on.
    pub now: Vec<&'static str>,
    /// In force after a restart.
    pub restart: Vec<&'static str>,
}

type Differs = fn(&Settings, &Settings) -> bool;

const NOW: &[(&str, Differs)] = &[
    (
        "containerLogMaxSize, containerLogMaxFiles, containerLogMaxWorkers, containerLogMonitorInterval",
        |a, b| a.logs != b.logs,
    ),
    (
        "imageMinimumGCAge, imageMaximumGCAge, imageGCHighThresholdPercent, imageGCLowThresholdPercent",
        |a, b| a.images.gc != b.images.gc,
    ),
    ("registryPullQPS, registryBurst", |a, b| a.images.pull_rate != b.images.pull_rate),
    ("maxPods", |a, b| a.pods.max_pods != b.pods.max_pods),
    ("crashLoopBackOff", |a, b| a.pods.max_restart_backoff != b.pods.max_restart_backoff),
    ("seccompDefault", |a, b| a.pods.seccomp_default != b.pods.seccomp_default),
    ("allowedUnsafeSysctls", |a, b| a.pods.allowed_unsafe_sysctls != b.pods.allowed_unsafe_sysctls),
    ("clusterDNS, clusterDomain", |a, b| {
        (&a.dns.cluster_dns, &a.dns.cluster_domain) != (&b.dns.cluster_dns, &b.dns.cluster_domain)
    }),
    ("systemReserved, kubeReserved", |a, b| a.node.reserved_millis != b.node.reserved_millis),
    ("cpuCFSQuota, cpuCFSQuotaPeriod", |a, b| {
        (a.cgroups.cpu_cfs_quota, a.cgroups.cpu_cfs_period_us)
            != (b.cgroups.cpu_cfs_quota, b.cgroups.cpu_cfs_period_us)
    }),
    ("podPidsLimit", |a, b| a.cgroups.pod_pids_limit != b.cgroups.pod_pids_limit),
    ("singleProcessOOMKill", |a, b| a.cgroups.single_process_oom_kill != b.cgroups.single_process_oom_kill),
    ("memorySwap", |a, b| a.cgroups.limited_swap != b.cgroups.limited_swap),
];

const RESTART: &[(&str, Differs)] = &[
    ("staticPodPath, fileCheckFrequency", |a, b| a.sources != b.sources),
    ("containerRuntimeEndpoint, imageServiceEndpoint, runtimeRequestTimeout", |a, b| a.runtime != b.runtime),
    ("cgroupsPerQOS", |a, b| a.cgroups.per_qos != b.cgroups.per_qos),
    ("cgroupDriver", |a, b| a.cgroups.driver != b.cgroups.driver),
    ("cgroupRoot", |a, b| a.cgroups.root != b.cgroups.root),
    ("resolvConf", |a, b| a.dns.resolv_conf != b.dns.resolv_conf),
    ("podLogsDir", |a, b| a.pods.pod_logs_dir != b.pods.pod_logs_dir),
    ("serializeImagePulls, maxParallelImagePulls", |a, b| {
        a.images.max_parallel_pulls != b.images.max_parallel_pulls
    }),
    ("image credential providers", |a, b| a.images.credential_providers != b.images.credential_providers),
    ("failSwapOn", |a, b| a.node.fail_swap_on != b.node.fail_swap_on),
    ("oomScoreAdj, maxOpenFiles", |a, b| {
        (a.node.oom_score_adj, a.node.max_open_files) != (b.node.oom_score_adj, b.node.max_open_files)
    }),
    ("address, port, TLS, authentication and authorization of the kubelet API", |a, b| {
        let plain = |server: &KubeletServer| KubeletServer {
            configz: serde_json::Value::Null,
            flags: String::new(),
            ..server.clone()
        };
        plain(&a.server) != plain(&b.server)
    }),
    ("logging", |a, b| a.logging != b.logging),
    ("the KubeProxyConfiguration", |a, b| a.dataplane != b.dataplane),
];

/// What is not as it was.
pub fn difference(old: &Settings, new: &Settings) -> Difference {
    let differing = |table: &[(&'static str, Differs)]| {
        table.iter().filter(|(_, differs)| differs(old, new)).map(|(name, _)| *name).collect()
    };
    Difference { now: differing(NOW), restart: differing(RESTART) }
}
