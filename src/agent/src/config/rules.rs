//! The rules of the kubelet's configuration kind for what this daemon uses, and the step from fields
//! to [`Settings`]; kube-proxy's are in `proxy_rules`. Pure: every broken rule is collected with its
//! place, path, fault and mend. Facts: pkg/kubelet/apis/config/validation of Kubernetes 1.36.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use longshore_cluster::events::EventRate;
use longshore_core::image::gc::GcPolicy;
use longshore_core::node::label_problems;
use longshore_core::pod::logs::LogLimits;
use longshore_core::pod::snapshot::{CgroupDriver, CgroupSettings};
use longshore_core::resources::quantity::Amount;

use super::Loaded;
use super::args::AgentArgs;
use super::kubelet::{KubeletConfiguration, Logging};
use super::proxy::KubeProxyConfiguration;
use super::proxy_rules;
use super::server_rules;
use super::settings::*;
use super::units::GoDuration;
use crate::document::{DocumentError, Node, Place};
use crate::logs::LogSettings;

/// Applies all rules.
///
/// # Errors
/// Every rule that is broken.
pub(crate) fn settings(
    args: &AgentArgs,
    kubelet: &Loaded<KubeletConfiguration>,
    proxy: &Loaded<KubeProxyConfiguration>,
    mut warnings: Vec<String>,
) -> Result<Settings, Vec<DocumentError>> {
    let mut node_rules = Rules::new(&kubelet.tree);
    let config = &kubelet.value;
    refused(config, &mut node_rules);
    let logs = logs(config, &mut node_rules);
    let roles = roles(args, &mut node_rules);
    let sources = sources(args, config, credentials(args, &proxy.value).is_some(), &mut node_rules);
    let join = join(args, config, &proxy.value, &mut node_rules);
    let runtime = runtime(config, &mut node_rules);
    let cgroups = cgroups(config, &mut node_rules);
    let dns = dns(config, &mut node_rules);
    let pods = pods(args, config, &mut node_rules);
    let images = images(config, &mut node_rules);
    let server = server_rules::server(args, config, join.as_ref(), &mut node_rules);
    let mut node = node(args, config, &mut node_rules);
    if node.name.is_none() && !proxy.value.hostname_override.is_empty() {
        node.name = Some(proxy.value.hostname_override.to_lowercase());
    }
    let mut proxy_rules = Rules::new(&proxy.tree);
    if !roles.node {
        node.oom_score_adj = proxy_rules::oom_score(&proxy.value, &mut proxy_rules);
    }
    // One daemon has one log: the kubelet's section counts wherever that half runs.
    let logging = match roles.node {
        true => logging(args, &config.logging, &mut node_rules),
        false => logging(args, &proxy.value.logging, &mut proxy_rules),
    };
    let dataplane = proxy_rules::dataplane(&proxy.value, &config.pod_cidr, &mut proxy_rules);
    let servers = proxy_rules::servers(&proxy.value, &mut proxy_rules);
    proxy_rules::client_connection(&proxy.value, &mut proxy_rules);
    warnings.extend([node_rules.warnings, proxy_rules.warnings].concat());
    let broken = [node_rules.broken, proxy_rules.broken].concat();
    if !broken.is_empty() {
        return Err(broken);
    }
    Ok(Settings {
        roles,
        sources,
        join,
        runtime,
        cgroups,
        dns,
        probes: ProbeSettings { max_network_tries: 512, max_exec_tries: 32 },
        pods,
        images,
        logs,
        node,
        dataplane,
        servers,
        server,
        admin: AdminSettings { socket: args.socket.clone() },
        logging,
        warnings,
    })
}

/// Collects broken rules with the place each field was written at.
pub(super) struct Rules<'a> {
    tree: &'a Node,
    broken: Vec<DocumentError>,
    warnings: Vec<String>,
}

impl<'a> Rules<'a> {
    fn new(tree: &'a Node) -> Self {
        Self { tree, broken: Vec::new(), warnings: Vec::new() }
    }

    pub(super) fn fail(&mut self, path: &str, message: impl Into<String>) {
        let told = self.told(path, message.into());
        self.broken.push(told);
    }

    /// What does no harm and is most likely not what was meant.
    pub(super) fn warn(&mut self, path: &str, message: impl Into<String>) {
        let told = self.told(path, message.into());
        self.warnings.push(told.to_string());
    }

    fn told(&self, path: &str, message: String) -> DocumentError {
        let place = self.tree.at(path).map_or(&self.tree.place, |node| &node.place).clone();
        DocumentError { place, path: path.to_owned(), message }
    }

    /// Whether the command line has it.
    pub(super) fn is_flag(&self, path: &str) -> bool {
        self.tree.at(path).is_some_and(|node| node.place.is_flag())
    }

    pub(super) fn flag(&mut self, flag: &str, message: impl Into<String>) {
        let place = Place::whole(&format!("flag --{flag}"));
        self.broken.push(DocumentError { place, path: String::new(), message: message.into() });
    }

    pub(super) fn check(&mut self, ok: bool, path: &str, message: impl Into<String>) {
        if !ok {
            self.fail(path, message);
        }
    }

    pub(super) fn range(&mut self, path: &str, value: i64, allowed: std::ops::RangeInclusive<i64>) {
        let (low, high) = (allowed.start(), allowed.end());
        self.check(
            allowed.contains(&value),
            path,
            format!("is {value}; it must be between {low} and {high}"),
        );
    }

    pub(super) fn one_of(&mut self, path: &str, value: &str, allowed: &[&str]) {
        self.check(
            allowed.contains(&value),
            path,
            format!("is {value:?}; it must be one of {}", allowed.join(", ")),
        );
    }

    pub(super) fn positive(&mut self, path: &str, value: GoDuration) -> Duration {
        self.check(
            !value.is_negative() && !value.is_zero(),
            path,
            format!("is {value}; it must be longer than 0s"),
        );
        value.get()
    }

    pub(super) fn not_negative(&mut self, path: &str, value: GoDuration) -> Duration {
        self.check(!value.is_negative(), path, format!("is {value}; it must not be negative"));
        value.get()
    }

    /// The value, or the fault recorded and the fall-back taken.
    pub(super) fn parsed<T>(&mut self, path: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|message| self.fail(path, message)).ok()
    }

    fn absolute(&mut self, path: &str, value: &str) -> PathBuf {
        self.check(value.starts_with('/'), path, format!("is {value:?}; it must be an absolute path"));
        PathBuf::from(value)
    }
}

/// What upstream refuses, and what this daemon has to refuse to keep its word.
fn refused(config: &KubeletConfiguration, rules: &mut Rules<'_>) {
    rules.check(
        !config.run_once,
        "runOnce",
        "is true; run-once mode does not exist any more: remove the field",
    );
    if let Some(ids) = config.user_namespaces.as_ref().and_then(|namespaces| namespaces.ids_per_pod) {
        let ok = ids > 0 && ids % 65536 == 0;
        rules.check(ok, "userNamespaces.idsPerPod", format!("is {ids}; it must be a multiple of 65536"));
    }
    let policy = config.config_map_and_secret_change_detection_strategy.as_str();
    rules.one_of("configMapAndSecretChangeDetectionStrategy", policy, &["Watch", "Cache", "Get"]);
    rules.one_of(
        "memorySwap.swapBehavior",
        &config.memory_swap.swap_behavior,
        &["", "NoSwap", "LimitedSwap"],
    );
    rules.range("port", i64::from(config.port), 1..=65535);
    rules.range("readOnlyPort", i64::from(config.read_only_port), 0..=65535);
    rules.range("healthzPort", i64::from(config.healthz_port.unwrap_or(0)), 0..=65535);
    for name in config.feature_gates.keys() {
        let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric());
        rules.check(plain, "featureGates", format!("{name:?} is no gate's name"));
    }
}

fn logs(config: &KubeletConfiguration, rules: &mut Rules<'_>) -> LogSettings {
    let size = Amount::parse(&config.container_log_max_size).map_err(|error| error.to_string());
    let mut max_bytes = u64::MAX;
    if let Some(size) = rules.parsed("containerLogMaxSize", size) {
        let ok = !size.is_zero() && !size.is_negative();
        rules.check(ok, "containerLogMaxSize", format!("is {size}; it must be more than 0"));
        max_bytes = size.unsigned_value();
    }
    let files = i64::from(config.container_log_max_files.unwrap_or(5));
    rules.range("containerLogMaxFiles", files, 2..=i64::from(i32::MAX));
    let workers = i64::from(config.container_log_max_workers.unwrap_or(1));
    rules.range("containerLogMaxWorkers", workers, 1..=1000);
    let interval = config.container_log_monitor_interval.unwrap_or(GoDuration::from_secs(10));
    let ok = interval >= GoDuration::from_secs(3);
    rules.check(ok, "containerLogMonitorInterval", format!("is {interval}; it must be 3s or longer"));
    LogSettings {
        limits: LogLimits { max_bytes, max_files: usize::try_from(files).unwrap_or(5) },
        workers: usize::try_from(workers).unwrap_or(1),
        interval: interval.get(),
    }
}

fn image_gc(config: &KubeletConfiguration, rules: &mut Rules<'_>) -> GcPolicy {
    let high = config.image_gc_high_threshold_percent.unwrap_or(85);
    let low = config.image_gc_low_threshold_percent.unwrap_or(80);
    rules.range("imageGCHighThresholdPercent", i64::from(high), 0..=100);
    rules.range("imageGCLowThresholdPercent", i64::from(low), 0..=100);
    rules.check(
        low < high,
        "imageGCLowThresholdPercent",
        format!("is {low}; it must be below imageGCHighThresholdPercent ({high})"),
    );
    let min_age = rules.not_negative("imageMinimumGCAge", config.image_minimum_gc_age);
    let max_age = rules.not_negative("imageMaximumGCAge", config.image_maximum_gc_age);
    let ok = max_age.is_zero() || max_age > min_age;
    rules.check(
        ok,
        "imageMaximumGCAge",
        format!("is {max_age:?}; it must be 0s or longer than imageMinimumGCAge ({min_age:?})"),
    );
    GcPolicy {
        high_percent: u8::try_from(high).unwrap_or(100),
        low_percent: u8::try_from(low).unwrap_or(100),
        min_age,
        max_age: (!max_age.is_zero()).then_some(max_age),
    }
}

fn roles(args: &AgentArgs, rules: &mut Rules<'_>) -> Roles {
    let mut roles = Roles { node: false, proxy: false };
    for role in args.roles.iter().map(|role| role.trim()).filter(|role| !role.is_empty()) {
        match role {
            "node" => roles.node = true,
            "proxy" => roles.proxy = true,
            _ => rules.flag("roles", format!("{role:?} is no role; give node, proxy or both")),
        }
    }
    if !roles.node && !roles.proxy {
        rules.flag("roles", "names no half of the node; give node, proxy or both");
    }
    roles
}

fn sources(
    args: &AgentArgs,
    config: &KubeletConfiguration,
    joins: bool,
    rules: &mut Rules<'_>,
) -> SourceSettings {
    let static_path = Some(&config.static_pod_path).filter(|path| !path.is_empty()).map(PathBuf::from);
    let manifests = args.manifests.clone().or(static_path);
    if args.kubeconfig.is_some() && args.standalone {
        rules.flag("standalone", "contradicts --kubeconfig, which joins a control plane; leave out one");
    } else if args.serves() && !joins && !args.standalone {
        rules.flag(
            "kubeconfig",
            "is missing; give --kubeconfig FILE to join a control plane, or --standalone --manifests DIR",
        );
    }
    if args.serves() && args.standalone && manifests.is_none() {
        rules.flag(
            "manifests",
            "is missing; without a control plane the objects come from a folder: give --manifests DIR",
        );
    }
    SourceSettings {
        standalone: args.standalone,
        manifests,
        audit_period: rules.positive("fileCheckFrequency", config.file_check_frequency),
    }
}

/// The kubeconfig of the control plane; kube-proxy's file names its own, as kubeadm writes it.
fn credentials(args: &AgentArgs, proxy: &KubeProxyConfiguration) -> Option<PathBuf> {
    let in_file = || {
        let alone = !args.roles.iter().any(|role| role.trim() == "node") && !args.standalone;
        let path = &proxy.client_connection.kubeconfig;
        (alone && !path.is_empty()).then(|| PathBuf::from(path))
    };
    args.kubeconfig.clone().or_else(in_file)
}

/// Of the node's half; the proxy alone has no certificate of its own.
fn certificates(args: &AgentArgs, config: &KubeletConfiguration) -> CertificateSettings {
    let node = args.roles.iter().any(|role| role.trim() == "node");
    CertificateSettings {
        bootstrap: args.bootstrap_kubeconfig.clone().filter(|_| node),
        folder: args.cert_dir.clone(),
        rotate: node && config.rotate_certificates,
        serving: node && config.server_tls_bootstrap,
    }
}

fn join(
    args: &AgentArgs,
    config: &KubeletConfiguration,
    proxy: &KubeProxyConfiguration,
    rules: &mut Rules<'_>,
) -> Option<JoinSettings> {
    let kubeconfig = credentials(args, proxy)?;
    let update_every = rules.positive("nodeStatusUpdateFrequency", config.node_status_update_frequency);
    let written = |field: &str| rules.tree.get(field).is_some();
    // A status that is computed often on purpose is also written often, as upstream does.
    let given_update = written("nodeStatusUpdateFrequency") && !written("nodeStatusReportFrequency");
    let report_every = rules.positive("nodeStatusReportFrequency", config.node_status_report_frequency);
    let lease = config.node_lease_duration_seconds;
    rules.range("nodeLeaseDurationSeconds", i64::from(lease), 1..=3600);
    for problem in args
        .node_labels
        .iter()
        .filter_map(|label| label.split_once('='))
        .flat_map(|(key, _)| label_problems(&BTreeMap::from([(key.to_owned(), String::new())])))
    {
        rules.flag("node-labels", problem);
    }
    let services = Some(proxy.client_connection.kubeconfig.as_str()).filter(|path| !path.is_empty());
    Some(JoinSettings {
        kubeconfig,
        certificates: certificates(args, config),
        services_kubeconfig: services.map(PathBuf::from),
        register: config.register_node.unwrap_or(true),
        taints: config.register_with_taints.iter().map(taint).collect(),
        provider_id: Some(config.provider_id.clone()).filter(|id| !id.is_empty()),
        lease_seconds: u32::try_from(lease).unwrap_or(40),
        update_every,
        report_every: if given_update { update_every } else { report_every },
        max_images: match config.node_status_max_images.unwrap_or(50) {
            -1 => None,
            max => Some(usize::try_from(max).unwrap_or(0)),
        },
        event_rate: EventRate {
            per_second: u32::try_from(config.event_record_qps.unwrap_or(50)).unwrap_or(0),
            burst: u32::try_from(config.event_burst).unwrap_or(100),
        },
    })
}

fn taint(written: &super::kubelet::Taint) -> k8s_openapi::api::core::v1::Taint {
    k8s_openapi::api::core::v1::Taint {
        key: written.key.clone(),
        value: Some(written.value.clone()).filter(|value| !value.is_empty()),
        effect: written.effect.clone(),
        time_added: None,
    }
}

fn runtime(config: &KubeletConfiguration, rules: &mut Rules<'_>) -> RuntimeSettings {
    let endpoint = socket_path("containerRuntimeEndpoint", &config.container_runtime_endpoint, rules);
    let image_endpoint = match config.image_service_endpoint.as_str() {
        "" => endpoint.clone(),
        text => socket_path("imageServiceEndpoint", text, rules),
    };
    let request_timeout = rules.positive("runtimeRequestTimeout", config.runtime_request_timeout);
    RuntimeSettings { endpoint, image_endpoint, request_timeout }
}

fn socket_path(path: &str, text: &str, rules: &mut Rules<'_>) -> PathBuf {
    let socket = text.strip_prefix("unix://").unwrap_or(text);
    let ok = Path::new(socket).is_absolute();
    rules.check(
        ok,
        path,
        format!("is {text:?}; it must be a unix socket, like unix:///run/containerd/containerd.sock"),
    );
    PathBuf::from(socket)
}

fn cgroups(config: &KubeletConfiguration, rules: &mut Rules<'_>) -> CgroupSettings {
    rules.one_of("cgroupDriver", &config.cgroup_driver, &["systemd", "cgroupfs"]);
    let root = config.cgroup_root.as_str();
    let ok = root.is_empty() || root.starts_with('/');
    rules.check(ok, "cgroupRoot", format!("is {root:?}; it must be an absolute cgroup path like /"));
    let per_qos = config.cgroups_per_qos.unwrap_or(true);
    let enforced = config.enforce_node_allocatable.as_deref().unwrap_or_default();
    // The default of enforceNodeAllocatable gives way; a written one must fit.
    let written =
        rules.tree.get("enforceNodeAllocatable").is_some() && enforced.iter().any(|what| what != "none");
    let message = "must be empty or [none] while cgroupsPerQOS is false";
    rules.check(per_qos || !written, "enforceNodeAllocatable", message);
    let period = config.cpu_cfs_quota_period.unwrap_or(GoDuration::from_millis(100));
    let ok = period >= GoDuration::from_millis(1) && period <= GoDuration::from_secs(1);
    rules.check(ok, "cpuCFSQuotaPeriod", format!("is {period}; it must be between 1ms and 1s"));
    CgroupSettings {
        per_qos,
        driver: if config.cgroup_driver == "systemd" {
            CgroupDriver::Systemd
        } else {
            CgroupDriver::Cgroupfs
        },
        root: root.to_owned(),
        cpu_cfs_quota: config.cpu_cfs_quota.unwrap_or(true),
        cpu_cfs_period_us: u64::try_from(period.get().as_micros()).unwrap_or(100_000),
        pod_pids_limit: config
            .pod_pids_limit
            .and_then(|limit| u64::try_from(limit).ok())
            .filter(|limit| *limit > 0),
        single_process_oom_kill: config.single_process_oom_kill.unwrap_or(false),
        limited_swap: config.memory_swap.swap_behavior == "LimitedSwap",
    }
}

fn dns(config: &KubeletConfiguration, rules: &mut Rules<'_>) -> DnsFiles {
    let mut cluster_dns = Vec::new();
    for server in &config.cluster_dns {
        match server.parse() {
            Ok(address) => cluster_dns.push(address),
            Err(_) => rules.fail("clusterDNS", format!("{server:?} is not an IP address")),
        }
    }
    let resolv_conf = match config.resolv_conf.as_deref() {
        None => Some(PathBuf::from("/etc/resolv.conf")),
        Some("") => None,
        Some(path) => Some(rules.absolute("resolvConf", path)),
    };
    DnsFiles {
        cluster_dns,
        cluster_domain: config.cluster_domain.trim_end_matches('.').to_owned(),
        resolv_conf,
    }
}

fn pods(args: &AgentArgs, config: &KubeletConfiguration, rules: &mut Rules<'_>) -> PodSettings {
    rules.range("maxPods", i64::from(config.max_pods), 1..=i64::from(i32::MAX));
    let restart =
        config.crash_loop_back_off.max_container_restart_period.unwrap_or(GoDuration::from_secs(300));
    let ok = (GoDuration::from_secs(1)..=GoDuration::from_secs(300)).contains(&restart);
    let path = "crashLoopBackOff.maxContainerRestartPeriod";
    rules.check(ok, path, format!("is {restart}; it must be between 1s and 300s"));
    if !args.root_dir.is_absolute() {
        rules.flag("root-dir", format!("is {}; it must be an absolute path", args.root_dir.display()));
    }
    PodSettings {
        root_dir: args.root_dir.clone(),
        pod_logs_dir: rules.absolute("podLogsDir", &config.pod_logs_dir),
        sync_frequency: rules.positive("syncFrequency", config.sync_frequency),
        max_pods: u32::try_from(config.max_pods).unwrap_or(110),
        max_restart_backoff: restart.get(),
        seccomp_default: config.seccomp_default.unwrap_or(false),
        allowed_unsafe_sysctls: config.allowed_unsafe_sysctls.clone(),
    }
}

fn images(config: &KubeletConfiguration, rules: &mut Rules<'_>) -> ImageSettings {
    let parallel = config.max_parallel_image_pulls;
    let serialize = config.serialize_image_pulls.unwrap_or(parallel.is_none_or(|pulls| pulls < 2));
    if let Some(pulls) = parallel {
        rules.check(pulls > 0, "maxParallelImagePulls", format!("is {pulls}; it must be 1 or more"));
        let message = format!("is {pulls}, which needs serializeImagePulls: false");
        rules.check(!serialize || pulls <= 1, "maxParallelImagePulls", message);
    }
    let max_parallel_pulls =
        if serialize { Some(1) } else { parallel.and_then(|pulls| usize::try_from(pulls).ok()) };
    let qps = i64::from(config.registry_pull_qps.unwrap_or(5));
    rules.range("registryPullQPS", qps, 0..=i64::from(i32::MAX));
    rules.range("registryBurst", i64::from(config.registry_burst), 0..=i64::from(i32::MAX));
    let burst = u32::try_from(config.registry_burst).unwrap_or(0);
    let pull_rate = u32::try_from(qps).ok().filter(|qps| *qps > 0).map(|qps| (qps, burst));
    let gc = image_gc(config, rules);
    ImageSettings { max_parallel_pulls, pull_rate, gc, credential_providers: Vec::new() }
}

fn node(args: &AgentArgs, config: &KubeletConfiguration, rules: &mut Rules<'_>) -> NodeSettings {
    let mut ips = Vec::new();
    for text in
        args.node_ip.iter().flat_map(|list| list.split(',')).map(str::trim).filter(|text| !text.is_empty())
    {
        match text.parse::<IpAddr>() {
            Ok(ip) => ips.push(ip),
            Err(_) => rules.flag("node-ip", format!("{text:?} is not an IP address")),
        }
    }
    if ips.len() > 2 || (ips.len() == 2 && ips[0].is_ipv4() == ips[1].is_ipv4()) {
        rules.flag("node-ip", "give one address, or one per family");
    }
    let mut labels = BTreeMap::new();
    for label in args.node_labels.iter().filter(|label| !label.is_empty()) {
        match label.split_once('=') {
            Some((key, value)) => drop(labels.insert(key.to_owned(), value.to_owned())),
            None => rules.flag("node-labels", format!("{label:?} is not key=value")),
        }
    }
    let oom_score_adj = config.oom_score_adj.unwrap_or(-999);
    rules.range("oomScoreAdj", i64::from(oom_score_adj), -1000..=1000);
    rules.range("maxOpenFiles", config.max_open_files, 0..=i64::MAX);
    NodeSettings {
        name: args
            .hostname_override
            .as_ref()
            .map(|name| name.trim().to_lowercase())
            .filter(|name| !name.is_empty()),
        ips,
        labels,
        oom_score_adj,
        max_open_files: u64::try_from(config.max_open_files).unwrap_or(0),
        fail_swap_on: config.fail_swap_on.unwrap_or(true),
        reserved_millis: reserved(config, rules),
    }
}

fn reserved(config: &KubeletConfiguration, rules: &mut Rules<'_>) -> BTreeMap<String, i128> {
    let mut sum = BTreeMap::new();
    for (field, map) in [("systemReserved", &config.system_reserved), ("kubeReserved", &config.kube_reserved)]
    {
        for (resource, text) in map {
            rules.one_of(field, resource, &["cpu", "memory", "ephemeral-storage", "pid"]);
            match Amount::parse(text) {
                Ok(amount) if !amount.is_negative() => {
                    *sum.entry(resource.clone()).or_insert(0) += i128::from(amount.milli_value());
                }
                Ok(_) => rules.fail(field, format!("{resource} is {text}; it must not be negative")),
                Err(error) => rules.fail(field, format!("{resource}: {error}")),
            }
        }
    }
    sum
}

fn logging(args: &AgentArgs, section: &Logging, rules: &mut Rules<'_>) -> LoggingSettings {
    rules.one_of("logging.format", &section.format, &["text", "json"]);
    if !section.vmodule.is_empty() {
        rules.warn("logging.vmodule", "has no effect: verbosity holds for all parts");
    }
    let format = if section.format == "json" { LogFormat::Json } else { LogFormat::Text };
    LoggingSettings { format, verbosity: args.verbosity.unwrap_or(section.verbosity) }
}
