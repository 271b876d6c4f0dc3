//! The kubelet's and kube-proxy's flags that stand for a field of their configuration file: one row
//! per flag. A given flag becomes that field and wins over every file. Flags without a row that old
//! unit files still carry are accepted and named in a warning.

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Map, Value, json};

/// How a flag's text becomes the field's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Text,
    Bool,
    Int,
    /// `a,b`, also repeated.
    List,
    /// `a=b,c=d`.
    Map,
    /// `A=true,B=false`; merges into the file's gates.
    Gates,
    /// `memory.available<100Mi,...`.
    Thresholds,
    /// `key=value:Effect,...`.
    Taints,
    /// `Name:value`, repeated.
    Headers,
}

/// Whose configuration a flag belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Kubelet(&'static str),
    Proxy(&'static str),
    /// One flag for the same field of two sections.
    ProxyBoth([&'static str; 2]),
    /// Both programs have a flag of this name: the kubelet's field where pods run, else the proxy's.
    Either {
        kubelet: &'static str,
        proxy: &'static str,
    },
    /// Accepted for old unit files, without effect.
    Nothing,
}

#[derive(Clone, Copy, Debug)]
pub struct Flag {
    pub name: &'static str,
    pub form: Form,
    pub target: Target,
}

const fn kubelet(name: &'static str, field: &'static str, form: Form) -> Flag {
    Flag { name, form, target: Target::Kubelet(field) }
}

const fn proxy(name: &'static str, field: &'static str, form: Form) -> Flag {
    Flag { name, form, target: Target::Proxy(field) }
}

const fn either(name: &'static str, kubelet: &'static str, proxy: &'static str, form: Form) -> Flag {
    Flag { name, form, target: Target::Either { kubelet, proxy } }
}

const fn nothing(name: &'static str, form: Form) -> Flag {
    Flag { name, form, target: Target::Nothing }
}

/// kube-proxy's flag is older than its nftables section.
const MASQUERADE_ALL: [&str; 2] = ["iptables.masqueradeAll", "nftables.masqueradeAll"];

/// Every such flag.
pub const FLAGS: &[Flag] = &[
    kubelet("address", "address", Form::Text),
    kubelet("allowed-unsafe-sysctls", "allowedUnsafeSysctls", Form::List),
    kubelet("anonymous-auth", "authentication.anonymous.enabled", Form::Bool),
    kubelet("authentication-token-webhook", "authentication.webhook.enabled", Form::Bool),
    kubelet("authentication-token-webhook-cache-ttl", "authentication.webhook.cacheTTL", Form::Text),
    kubelet("authorization-mode", "authorization.mode", Form::Text),
    kubelet(
        "authorization-webhook-cache-authorized-ttl",
        "authorization.webhook.cacheAuthorizedTTL",
        Form::Text,
    ),
    kubelet(
        "authorization-webhook-cache-unauthorized-ttl",
        "authorization.webhook.cacheUnauthorizedTTL",
        Form::Text,
    ),
    kubelet("cgroup-driver", "cgroupDriver", Form::Text),
    kubelet("cgroup-root", "cgroupRoot", Form::Text),
    kubelet("cgroups-per-qos", "cgroupsPerQOS", Form::Bool),
    kubelet("client-ca-file", "authentication.x509.clientCAFile", Form::Text),
    kubelet("cluster-dns", "clusterDNS", Form::List),
    kubelet("cluster-domain", "clusterDomain", Form::Text),
    kubelet("container-log-max-files", "containerLogMaxFiles", Form::Int),
    kubelet("container-log-max-size", "containerLogMaxSize", Form::Text),
    kubelet("container-runtime-endpoint", "containerRuntimeEndpoint", Form::Text),
    kubelet("contention-profiling", "enableContentionProfiling", Form::Bool),
    kubelet("cpu-cfs-quota", "cpuCFSQuota", Form::Bool),
    kubelet("cpu-cfs-quota-period", "cpuCFSQuotaPeriod", Form::Text),
    kubelet("cpu-manager-policy", "cpuManagerPolicy", Form::Text),
    kubelet("cpu-manager-policy-options", "cpuManagerPolicyOptions", Form::Map),
    kubelet("cpu-manager-reconcile-period", "cpuManagerReconcilePeriod", Form::Text),
    kubelet("enable-controller-attach-detach", "enableControllerAttachDetach", Form::Bool),
    kubelet("enable-debugging-handlers", "enableDebuggingHandlers", Form::Bool),
    kubelet("enable-server", "enableServer", Form::Bool),
    kubelet("enforce-node-allocatable", "enforceNodeAllocatable", Form::List),
    kubelet("event-burst", "eventBurst", Form::Int),
    kubelet("event-qps", "eventRecordQPS", Form::Int),
    kubelet("eviction-hard", "evictionHard", Form::Thresholds),
    kubelet("eviction-max-pod-grace-period", "evictionMaxPodGracePeriod", Form::Int),
    kubelet("eviction-minimum-reclaim", "evictionMinimumReclaim", Form::Map),
    kubelet("eviction-pressure-transition-period", "evictionPressureTransitionPeriod", Form::Text),
    kubelet("eviction-soft", "evictionSoft", Form::Thresholds),
    kubelet("eviction-soft-grace-period", "evictionSoftGracePeriod", Form::Map),
    kubelet("fail-cgroupv1", "failCgroupV1", Form::Bool),
    kubelet("fail-swap-on", "failSwapOn", Form::Bool),
    either("feature-gates", "featureGates", "featureGates", Form::Gates),
    kubelet("file-check-frequency", "fileCheckFrequency", Form::Text),
    kubelet("hairpin-mode", "hairpinMode", Form::Text),
    either("healthz-bind-address", "healthzBindAddress", "healthzBindAddress", Form::Text),
    kubelet("healthz-port", "healthzPort", Form::Int),
    kubelet("http-check-frequency", "httpCheckFrequency", Form::Text),
    kubelet("image-gc-high-threshold", "imageGCHighThresholdPercent", Form::Int),
    kubelet("image-gc-low-threshold", "imageGCLowThresholdPercent", Form::Int),
    kubelet("image-service-endpoint", "imageServiceEndpoint", Form::Text),
    kubelet("iptables-drop-bit", "iptablesDropBit", Form::Int),
    either("iptables-masquerade-bit", "iptablesMasqueradeBit", "iptables.masqueradeBit", Form::Int),
    kubelet("kernel-memcg-notification", "kernelMemcgNotification", Form::Bool),
    either("kube-api-burst", "kubeAPIBurst", "clientConnection.burst", Form::Int),
    either("kube-api-content-type", "contentType", "clientConnection.contentType", Form::Text),
    either("kube-api-qps", "kubeAPIQPS", "clientConnection.qps", Form::Int),
    kubelet("kube-reserved", "kubeReserved", Form::Map),
    kubelet("kube-reserved-cgroup", "kubeReservedCgroup", Form::Text),
    kubelet("kubelet-cgroups", "kubeletCgroups", Form::Text),
    kubelet("local-storage-capacity-isolation", "localStorageCapacityIsolation", Form::Bool),
    either("log-flush-frequency", "logging.flushFrequency", "logging.flushFrequency", Form::Text),
    either("logging-format", "logging.format", "logging.format", Form::Text),
    kubelet("make-iptables-util-chains", "makeIPTablesUtilChains", Form::Bool),
    kubelet("manifest-url", "staticPodURL", Form::Text),
    kubelet("manifest-url-header", "staticPodURLHeader", Form::Headers),
    kubelet("max-open-files", "maxOpenFiles", Form::Int),
    kubelet("max-pods", "maxPods", Form::Int),
    kubelet("memory-manager-policy", "memoryManagerPolicy", Form::Text),
    kubelet("minimum-image-ttl-duration", "imageMinimumGCAge", Form::Text),
    kubelet("node-status-max-images", "nodeStatusMaxImages", Form::Int),
    kubelet("node-status-update-frequency", "nodeStatusUpdateFrequency", Form::Text),
    either("oom-score-adj", "oomScoreAdj", "oomScoreAdj", Form::Int),
    kubelet("pod-cidr", "podCIDR", Form::Text),
    kubelet("pod-manifest-path", "staticPodPath", Form::Text),
    kubelet("pod-max-pids", "podPidsLimit", Form::Int),
    kubelet("pods-per-core", "podsPerCore", Form::Int),
    kubelet("port", "port", Form::Int),
    kubelet("protect-kernel-defaults", "protectKernelDefaults", Form::Bool),
    kubelet("provider-id", "providerID", Form::Text),
    kubelet("qos-reserved", "qosReserved", Form::Map),
    kubelet("read-only-port", "readOnlyPort", Form::Int),
    kubelet("register-node", "registerNode", Form::Bool),
    kubelet("register-with-taints", "registerWithTaints", Form::Taints),
    kubelet("registry-burst", "registryBurst", Form::Int),
    kubelet("registry-qps", "registryPullQPS", Form::Int),
    kubelet("reserved-cpus", "reservedSystemCPUs", Form::Text),
    kubelet("resolv-conf", "resolvConf", Form::Text),
    kubelet("rotate-certificates", "rotateCertificates", Form::Bool),
    kubelet("rotate-server-certificates", "serverTLSBootstrap", Form::Bool),
    kubelet("runonce", "runOnce", Form::Bool),
    kubelet("runtime-request-timeout", "runtimeRequestTimeout", Form::Text),
    kubelet("seccomp-default", "seccompDefault", Form::Bool),
    kubelet("serialize-image-pulls", "serializeImagePulls", Form::Bool),
    either(
        "show-hidden-metrics-for-version",
        "showHiddenMetricsForVersion",
        "showHiddenMetricsForVersion",
        Form::Text,
    ),
    kubelet("streaming-connection-idle-timeout", "streamingConnectionIdleTimeout", Form::Text),
    kubelet("sync-frequency", "syncFrequency", Form::Text),
    kubelet("system-cgroups", "systemCgroups", Form::Text),
    kubelet("system-reserved", "systemReserved", Form::Map),
    kubelet("system-reserved-cgroup", "systemReservedCgroup", Form::Text),
    kubelet("tls-cert-file", "tlsCertFile", Form::Text),
    kubelet("tls-cipher-suites", "tlsCipherSuites", Form::List),
    kubelet("tls-min-version", "tlsMinVersion", Form::Text),
    kubelet("tls-private-key-file", "tlsPrivateKeyFile", Form::Text),
    kubelet("topology-manager-policy", "topologyManagerPolicy", Form::Text),
    kubelet("topology-manager-policy-options", "topologyManagerPolicyOptions", Form::Map),
    kubelet("topology-manager-scope", "topologyManagerScope", Form::Text),
    kubelet("volume-plugin-dir", "volumePluginDir", Form::Text),
    kubelet("volume-stats-agg-period", "volumeStatsAggPeriod", Form::Text),
    Flag { name: "masquerade-all", form: Form::Bool, target: Target::ProxyBoth(MASQUERADE_ALL) },
    proxy("bind-address", "bindAddress", Form::Text),
    proxy("bind-address-hard-fail", "bindAddressHardFail", Form::Bool),
    proxy("cluster-cidr", "clusterCIDR", Form::Text),
    proxy("config-sync-period", "configSyncPeriod", Form::Text),
    proxy("conntrack-max-per-core", "conntrack.maxPerCore", Form::Int),
    proxy("conntrack-min", "conntrack.min", Form::Int),
    proxy("conntrack-tcp-be-liberal", "conntrack.tcpBeLiberal", Form::Bool),
    proxy("conntrack-tcp-timeout-close-wait", "conntrack.tcpCloseWaitTimeout", Form::Text),
    proxy("conntrack-tcp-timeout-established", "conntrack.tcpEstablishedTimeout", Form::Text),
    proxy("conntrack-udp-timeout", "conntrack.udpTimeout", Form::Text),
    proxy("conntrack-udp-timeout-stream", "conntrack.udpStreamTimeout", Form::Text),
    proxy("detect-local-mode", "detectLocalMode", Form::Text),
    proxy("iptables-localhost-nodeports", "iptables.localhostNodePorts", Form::Bool),
    proxy("iptables-min-sync-period", "iptables.minSyncPeriod", Form::Text),
    proxy("iptables-sync-period", "iptables.syncPeriod", Form::Text),
    proxy("ipvs-exclude-cidrs", "ipvs.excludeCIDRs", Form::List),
    proxy("ipvs-min-sync-period", "ipvs.minSyncPeriod", Form::Text),
    proxy("ipvs-scheduler", "ipvs.scheduler", Form::Text),
    proxy("ipvs-strict-arp", "ipvs.strictARP", Form::Bool),
    proxy("ipvs-sync-period", "ipvs.syncPeriod", Form::Text),
    proxy("ipvs-tcp-timeout", "ipvs.tcpTimeout", Form::Text),
    proxy("ipvs-tcpfin-timeout", "ipvs.tcpFinTimeout", Form::Text),
    proxy("ipvs-udp-timeout", "ipvs.udpTimeout", Form::Text),
    proxy("metrics-bind-address", "metricsBindAddress", Form::Text),
    proxy("nodeport-addresses", "nodePortAddresses", Form::List),
    proxy("pod-bridge-interface", "detectLocal.bridgeInterface", Form::Text),
    proxy("pod-interface-name-prefix", "detectLocal.interfaceNamePrefix", Form::Text),
    proxy("profiling", "enableProfiling", Form::Bool),
    proxy("proxy-mode", "mode", Form::Text),
    proxy("proxy-port-range", "portRange", Form::Text),
    nothing("cloud-provider", Form::Text),
    nothing("exit-on-lock-contention", Form::Bool),
    nothing("experimental-allocatable-ignore-eviction", Form::Bool),
    nothing("experimental-mounter-path", Form::Text),
    nothing("housekeeping-interval", Form::Text),
    nothing("lock-file", Form::Text),
    nothing("log-json-info-buffer-size", Form::Text),
    nothing("log-json-split-stream", Form::Bool),
    nothing("log-text-info-buffer-size", Form::Text),
    nothing("log-text-split-stream", Form::Bool),
    nothing("master", Form::Text),
    nothing("maximum-dead-containers", Form::Int),
    nothing("maximum-dead-containers-per-container", Form::Int),
    nothing("minimum-container-ttl-duration", Form::Text),
    nothing("pod-infra-container-image", Form::Text),
    nothing("reserved-memory", Form::Text),
    nothing("runtime-cgroups", Form::Text),
    nothing("vmodule", Form::Text),
];

/// The flags that were given, with their texts in order.
#[derive(Clone, Debug, Default)]
pub struct GivenFlags(pub Vec<(&'static Flag, Vec<String>)>);

impl clap::Args for GivenFlags {
    fn augment_args(command: Command) -> Command {
        FLAGS.iter().fold(command, |command, flag| command.arg(argument(flag)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn argument(flag: &Flag) -> Arg {
    let help = match flag.target {
        Target::Kubelet(field) => format!("KubeletConfiguration {field}"),
        Target::Proxy(field) => format!("KubeProxyConfiguration {field}"),
        Target::ProxyBoth([one, two]) => format!("KubeProxyConfiguration {one} and {two}"),
        Target::Either { kubelet, proxy } => {
            format!("KubeletConfiguration {kubelet}, or KubeProxyConfiguration {proxy} of the proxy alone")
        }
        Target::Nothing => "accepted, without effect".to_owned(),
    };
    // Long help only: the fields are documented, and a hundred lines hide the flags that matter.
    let arg = Arg::new(flag.name).long(flag.name).action(ArgAction::Append).hide_short_help(true).help(help);
    match flag.form {
        Form::Bool => {
            arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("BOOL")
        }
        _ => arg.allow_hyphen_values(true).value_name("VALUE"),
    }
}

impl clap::FromArgMatches for GivenFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = FLAGS.iter().filter_map(|flag| {
            let texts: Vec<String> = matches.get_many::<String>(flag.name)?.cloned().collect();
            Some((flag, texts))
        });
        Ok(Self(given.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The field's value a flag stands for. Of a repeated plain flag the last text counts.
///
/// # Errors
/// What is wrong with the text and the form it must have.
pub fn field_value(form: Form, texts: &[String]) -> Result<Value, String> {
    let last = texts.last().map(String::as_str).unwrap_or_default();
    let parts =
        || texts.iter().flat_map(|text| text.split(',')).map(str::trim).filter(|part| !part.is_empty());
    match form {
        Form::Text => Ok(json!(last)),
        Form::Bool => parse_bool(last).map(Value::Bool),
        Form::Int => {
            last.parse::<i64>().map(Value::from).map_err(|_| format!("{last:?} is not a whole number"))
        }
        Form::List => Ok(parts().collect()),
        Form::Map => pairs(parts(), '=', "name=value"),
        Form::Thresholds => pairs(parts(), '<', "signal<value"),
        Form::Gates => {
            let mut gates = Map::new();
            for part in parts() {
                let (name, on) = part.split_once('=').ok_or_else(|| format!("{part:?} is not Gate=true"))?;
                gates.insert(name.trim().to_owned(), Value::Bool(parse_bool(on.trim())?));
            }
            Ok(Value::Object(gates))
        }
        Form::Taints => parts().map(taint).collect(),
        Form::Headers => {
            let mut headers: Map<String, Value> = Map::new();
            for text in texts {
                let (name, value) =
                    text.split_once(':').ok_or_else(|| format!("{text:?} is not Name:value"))?;
                let values = headers.entry(name.trim()).or_insert_with(|| json!([]));
                if let Value::Array(values) = values {
                    values.push(json!(value.trim()));
                }
            }
            Ok(Value::Object(headers))
        }
    }
}

fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "true" | "True" | "TRUE" | "t" | "T" | "1" => Ok(true),
        "false" | "False" | "FALSE" | "f" | "F" | "0" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

fn pairs<'a>(parts: impl Iterator<Item = &'a str>, separator: char, form: &str) -> Result<Value, String> {
    let mut map = Map::new();
    for part in parts {
        let (name, value) = part.split_once(separator).ok_or_else(|| format!("{part:?} is not {form}"))?;
        map.insert(name.trim().to_owned(), json!(value.trim()));
    }
    Ok(Value::Object(map))
}

fn taint(text: &str) -> Result<Value, String> {
    let (pair, effect) = text.rsplit_once(':').ok_or_else(|| format!("{text:?} is not key=value:Effect"))?;
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    Ok(json!({ "key": key, "value": value, "effect": effect }))
}
