//! Statistics of the node, its pods and their containers: what was read as plain values, and from it the
//! summary (stats/v1alpha1) and the metrics of `/metrics/resource` and `/metrics/cadvisor`. What could not be
//! read is left out, never shown as nothing used.

use jiff::Timestamp;
use serde::Serialize;

use super::exposition::{Exposition, Kind, seconds};
use crate::ids::{ContainerId, PodKey, PodUid};
use crate::resources::cgroup_values::{cpu_quota_us, cpu_shares};

/// Of CPU limits, microseconds (the kubelet's `cpuCFSQuotaPeriod` unless it is set).
const CPU_PERIOD_US: u64 = 100_000;

/// CPU and memory at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub at: Timestamp,
    /// CPU time since the beginning, over all cores.
    pub cpu_nanoseconds: Option<u64>,
    /// CPU time per second, of late; thousand millionths of a core.
    pub nano_cores: Option<u64>,
    /// Bytes that cannot be had back at once.
    pub working_set: Option<u64>,
    pub memory: Option<u64>,
    pub rss: Option<u64>,
    pub page_faults: Option<u64>,
    pub major_page_faults: Option<u64>,
    pub swap: Option<u64>,
}

impl Usage {
    /// Of several together; what not all of them tell is not known of the whole.
    pub fn sum<'a>(all: impl IntoIterator<Item = &'a Self>) -> Option<Self> {
        let add = |one: Option<u64>, other: Option<u64>| Some(one?.saturating_add(other?));
        all.into_iter().cloned().reduce(|sum, next| Self {
            at: sum.at.max(next.at),
            cpu_nanoseconds: add(sum.cpu_nanoseconds, next.cpu_nanoseconds),
            nano_cores: add(sum.nano_cores, next.nano_cores),
            working_set: add(sum.working_set, next.working_set),
            memory: add(sum.memory, next.memory),
            rss: add(sum.rss, next.rss),
            page_faults: add(sum.page_faults, next.page_faults),
            major_page_faults: add(sum.major_page_faults, next.major_page_faults),
            swap: add(sum.swap, next.swap),
        })
    }
}

/// A file system, or what one thing uses of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    pub available: Option<u64>,
    pub capacity: Option<u64>,
    pub used: Option<u64>,
    pub inodes_free: Option<u64>,
    pub inodes: Option<u64>,
    pub inodes_used: Option<u64>,
}

/// Bytes and errors of a network interface since it is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_errors: u64,
    pub tx_bytes: u64,
    pub tx_errors: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerReading {
    pub id: ContainerId,
    pub name: String,
    pub image: String,
    pub started_at: Timestamp,
    pub usage: Option<Usage>,
    /// The writable layer.
    pub layer: Disk,
    /// What its log files take.
    pub logs_bytes: Option<u64>,
    pub limits: Limits,
}

/// What a container may have, as its spec says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub cpu_request_millis: u64,
    /// 0: none.
    pub cpu_limit_millis: u64,
    /// 0: none.
    pub memory_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodReading {
    pub key: PodKey,
    pub uid: PodUid,
    pub started_at: Timestamp,
    /// Those that run.
    pub containers: Vec<ContainerReading>,
}

impl PodReading {
    /// Of the whole pod; `None` where something of it is not known.
    fn usage(&self) -> Option<Usage> {
        let all: Option<Vec<&Usage>> = self.containers.iter().map(|one| one.usage.as_ref()).collect();
        Usage::sum(all?)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeReading {
    pub name: String,
    pub booted_at: Timestamp,
    pub usage: Usage,
    pub memory_available: Option<u64>,
    pub swap_available: Option<u64>,
    pub cpus: u64,
    pub memory_total: u64,
    pub swap_total: u64,
    /// All but the loopback.
    pub interfaces: Vec<Interface>,
    /// Where pods' data is.
    pub disk: Disk,
    /// Where images are, with what they take.
    pub images: Disk,
    /// Where writable layers are, with what they take.
    pub layers: Disk,
    /// Most processes there can be, and how many there are.
    pub processes: Option<(u64, u64)>,
    /// Where the default route goes.
    pub main_interface: Option<String>,
}

/// Everything that was read at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readings {
    pub at: Timestamp,
    pub node: NodeReading,
    pub pods: Vec<PodReading>,
    /// Not everything could be read.
    pub incomplete: bool,
}

/// The body of `/stats/summary`; `only_cpu_and_memory` leaves out all else.
pub fn summary(readings: &Readings, only_cpu_and_memory: bool) -> serde_json::Value {
    let full = !only_cpu_and_memory;
    let node = &readings.node;
    let available = node.memory_available;
    let node_stats = NodeStats {
        node_name: node.name.clone(),
        start_time: node.booted_at,
        cpu: Some(CpuStats::from(&node.usage)),
        memory: Some(MemoryStats { available_bytes: available, ..MemoryStats::from(&node.usage) }),
        swap: full.then_some(SwapStats {
            time: node.usage.at,
            swap_available_bytes: node.swap_available,
            swap_usage_bytes: node.usage.swap,
        }),
        network: full.then(|| NetworkStats {
            time: readings.at,
            main: node
                .main_interface
                .as_ref()
                .and_then(|main| node.interfaces.iter().find(|interface| interface.name == *main).cloned()),
            interfaces: node.interfaces.clone(),
        }),
        fs: full.then(|| FsStats::new(readings.at, &node.disk)),
        runtime: full.then(|| RuntimeStats {
            image_fs: FsStats::new(readings.at, &node.images),
            container_fs: FsStats::new(readings.at, &node.layers),
        }),
        rlimit: node.processes.filter(|_| full).map(|(maxpid, curproc)| RlimitStats {
            time: readings.at,
            maxpid,
            curproc,
        }),
    };
    let pods = readings.pods.iter().map(|pod| pod_stats(pod, readings, full)).collect();
    serde_json::to_value(Summary { node: node_stats, pods }).unwrap_or_default()
}

fn pod_stats(pod: &PodReading, readings: &Readings, full: bool) -> PodStats {
    let usage = pod.usage();
    PodStats {
        pod_ref: PodRef {
            name: pod.key.name.to_string(),
            namespace: pod.key.namespace.to_string(),
            uid: pod.uid.to_string(),
        },
        start_time: pod.started_at,
        containers: pod.containers.iter().map(|one| container_stats(one, readings, full)).collect(),
        cpu: usage.as_ref().map(CpuStats::from),
        memory: usage.as_ref().map(MemoryStats::from),
        ephemeral_storage: full.then(|| {
            // What one of them does not tell is not known of the whole.
            let part = |one: &ContainerReading| Some(one.layer.used?.saturating_add(one.logs_bytes?));
            let used = pod.containers.iter().map(part).sum();
            FsStats::new(readings.at, &Disk { used, inodes_used: None, ..readings.node.disk.clone() })
        }),
    }
}

fn container_stats(one: &ContainerReading, readings: &Readings, full: bool) -> ContainerStats {
    let on = |host: &Disk, used: Option<u64>, inodes_used: Option<u64>| {
        FsStats::new(readings.at, &Disk { used, inodes_used, ..host.clone() })
    };
    ContainerStats {
        name: one.name.clone(),
        start_time: one.started_at,
        cpu: one.usage.as_ref().map(CpuStats::from),
        memory: one.usage.as_ref().map(MemoryStats::from),
        rootfs: full.then(|| on(&readings.node.layers, one.layer.used, one.layer.inodes_used)),
        logs: full.then(|| on(&readings.node.disk, one.logs_bytes, None)),
        swap: one.usage.as_ref().filter(|_| full).map(|usage| SwapStats {
            time: usage.at,
            swap_available_bytes: None,
            swap_usage_bytes: usage.swap,
        }),
    }
}

#[derive(Serialize)]
struct Summary {
    node: NodeStats,
    pods: Vec<PodStats>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeStats {
    node_name: String,
    start_time: Timestamp,
    cpu: Option<CpuStats>,
    memory: Option<MemoryStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<NetworkStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fs: Option<FsStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime: Option<RuntimeStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rlimit: Option<RlimitStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    swap: Option<SwapStats>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PodStats {
    pod_ref: PodRef,
    start_time: Timestamp,
    containers: Vec<ContainerStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<CpuStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<MemoryStats>,
    #[serde(rename = "ephemeral-storage", skip_serializing_if = "Option::is_none")]
    ephemeral_storage: Option<FsStats>,
}

#[derive(Serialize)]
struct PodRef {
    name: String,
    namespace: String,
    uid: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStats {
    name: String,
    start_time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<CpuStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<MemoryStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rootfs: Option<FsStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logs: Option<FsStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    swap: Option<SwapStats>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CpuStats {
    time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage_nano_cores: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage_core_nano_seconds: Option<u64>,
}

impl From<&Usage> for CpuStats {
    fn from(usage: &Usage) -> Self {
        Self {
            time: usage.at,
            usage_nano_cores: usage.nano_cores,
            usage_core_nano_seconds: usage.cpu_nanoseconds,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MemoryStats {
    time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    available_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    working_set_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rss_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    page_faults: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    major_page_faults: Option<u64>,
}

impl From<&Usage> for MemoryStats {
    fn from(usage: &Usage) -> Self {
        Self {
            time: usage.at,
            available_bytes: None,
            usage_bytes: usage.memory,
            working_set_bytes: usage.working_set,
            rss_bytes: usage.rss,
            page_faults: usage.page_faults,
            major_page_faults: usage.major_page_faults,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SwapStats {
    time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    swap_available_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    swap_usage_bytes: Option<u64>,
}

#[derive(Serialize)]
struct NetworkStats {
    time: Timestamp,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    main: Option<Interface>,
    interfaces: Vec<Interface>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RuntimeStats {
    image_fs: FsStats,
    container_fs: FsStats,
}

#[derive(Serialize)]
struct RlimitStats {
    time: Timestamp,
    maxpid: u64,
    curproc: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FsStats {
    time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    available_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    capacity_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    used_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inodes_free: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inodes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inodes_used: Option<u64>,
}

impl FsStats {
    fn new(time: Timestamp, disk: &Disk) -> Self {
        Self {
            time,
            available_bytes: disk.available,
            capacity_bytes: disk.capacity,
            used_bytes: disk.used,
            inodes_free: disk.inodes_free,
            inodes: disk.inodes,
            inodes_used: disk.inodes_used,
        }
    }
}

/// The body of `/metrics/resource`, which metrics-server reads.
pub fn resource_metrics(readings: &Readings) -> String {
    let mut text = Exposition::default();
    let containers =
        || readings.pods.iter().flat_map(|pod| pod.containers.iter().map(move |container| (pod, container)));
    let each = |text: &mut Exposition, value: fn(&Usage) -> Option<String>| {
        for (pod, container) in containers() {
            let Some(usage) = &container.usage else { continue };
            let Some(value) = value(usage) else { continue };
            let labels = [
                ("container", container.name.as_str()),
                ("namespace", &*pod.key.namespace),
                ("pod", &*pod.key.name),
            ];
            text.sample(&labels, value, Some(usage.at));
        }
    };
    let cpu: fn(&Usage) -> Option<String> = |usage| usage.cpu_nanoseconds.map(seconds);
    let memory: fn(&Usage) -> Option<String> = |usage| usage.working_set.map(|bytes| bytes.to_string());
    let swap: fn(&Usage) -> Option<String> = |usage| usage.swap.map(|bytes| bytes.to_string());
    let families = [
        ("cpu_usage_seconds_total", Kind::Counter, cpu),
        ("memory_working_set_bytes", Kind::Gauge, memory),
        ("swap_usage_bytes", Kind::Gauge, swap),
    ];
    for (what, kind, value) in families {
        let (container, pod, node) = resource_names(what);
        text.family(container, kind, "Of a container, as the runtime tells it");
        each(&mut text, value);
        text.family(pod, kind, "Of a pod, the sum of its containers");
        for pod in &readings.pods {
            let Some((usage, value)) = pod.usage().and_then(|usage| Some((usage.at, value(&usage)?))) else {
                continue;
            };
            text.sample(&[("namespace", &*pod.key.namespace), ("pod", &*pod.key.name)], value, Some(usage));
        }
        text.family(node, kind, "Of the node");
        if let Some(value) = value(&readings.node.usage) {
            text.sample(&[], value, Some(readings.node.usage.at));
        }
    }
    text.family("container_start_time_seconds", Kind::Gauge, "When the container started, Unix time");
    for (pod, container) in containers() {
        let labels = [
            ("container", container.name.as_str()),
            ("namespace", &*pod.key.namespace),
            ("pod", &*pod.key.name),
        ];
        text.sample(&labels, unix_seconds(container.started_at), Some(readings.at));
    }
    text.family("resource_scrape_error", Kind::Gauge, "1 where something could not be read");
    text.sample(&[], u8::from(readings.incomplete), None);
    text.finish()
}

fn resource_names(what: &str) -> (&'static str, &'static str, &'static str) {
    match what {
        "cpu_usage_seconds_total" => (
            "container_cpu_usage_seconds_total",
            "pod_cpu_usage_seconds_total",
            "node_cpu_usage_seconds_total",
        ),
        "memory_working_set_bytes" => (
            "container_memory_working_set_bytes",
            "pod_memory_working_set_bytes",
            "node_memory_working_set_bytes",
        ),
        _ => ("container_swap_usage_bytes", "pod_swap_usage_bytes", "node_swap_usage_bytes"),
    }
}

fn unix_seconds(at: Timestamp) -> String {
    u64::try_from(at.as_nanosecond()).map(seconds).unwrap_or_default()
}

/// The body of `/metrics/cadvisor`: the families that can be had without cAdvisor, under its names.
pub fn cadvisor_metrics(readings: &Readings) -> String {
    type Value = fn(&ContainerReading, &Usage) -> Option<String>;
    const FAMILIES: &[(&str, Kind, Value)] = &[
        ("container_memory_working_set_bytes", Kind::Gauge, |_, usage| number(usage.working_set)),
        ("container_memory_usage_bytes", Kind::Gauge, |_, usage| number(usage.memory)),
        ("container_memory_rss", Kind::Gauge, |_, usage| number(usage.rss)),
        ("container_memory_swap", Kind::Gauge, |_, usage| number(usage.swap)),
        ("container_fs_usage_bytes", Kind::Gauge, |one, _| number(one.layer.used)),
        ("container_last_seen", Kind::Gauge, |_, usage| Some(usage.at.as_second().to_string())),
        ("container_start_time_seconds", Kind::Gauge, |one, _| Some(unix_seconds(one.started_at))),
        ("container_spec_cpu_period", Kind::Gauge, |_, _| number(Some(CPU_PERIOD_US))),
        ("container_spec_cpu_shares", Kind::Gauge, |one, _| {
            number(Some(cpu_shares(one.limits.cpu_request_millis)))
        }),
        ("container_spec_cpu_quota", Kind::Gauge, |one, _| {
            number(cpu_quota_us(one.limits.cpu_limit_millis, CPU_PERIOD_US))
        }),
        ("container_spec_memory_limit_bytes", Kind::Gauge, |one, _| number(Some(one.limits.memory_bytes))),
    ];
    let mut text = Exposition::default();
    text.family("cadvisor_version_info", Kind::Gauge, "What these metrics are made by");
    text.sample(&[("cadvisorVersion", ""), ("osVersion", "")], 1, None);
    text.family("container_cpu_usage_seconds_total", Kind::Counter, "CPU time, as the runtime tells it");
    each_container(readings, |labels, _, usage| {
        let Some(cpu) = usage.cpu_nanoseconds else { return };
        let all = [labels, &[("cpu", "total")]].concat();
        text.sample(&all, seconds(cpu), Some(usage.at));
    });
    text.family("container_memory_failures_total", Kind::Counter, "Page faults");
    each_container(readings, |labels, _, usage| {
        for (kind, count) in [("pgfault", usage.page_faults), ("pgmajfault", usage.major_page_faults)] {
            let Some(count) = count else { continue };
            let all = [labels, &[("failure_type", kind), ("scope", "container")]].concat();
            text.sample(&all, count, Some(usage.at));
        }
    });
    for (name, kind, value) in FAMILIES {
        text.family(name, *kind, "Of a container");
        each_container(readings, |labels, one, usage| {
            if let Some(value) = value(one, usage) {
                text.sample(labels, value, Some(usage.at));
            }
        });
    }
    for (name, value) in [
        ("machine_cpu_cores", readings.node.cpus),
        ("machine_memory_bytes", readings.node.memory_total),
        ("machine_swap_bytes", readings.node.swap_total),
    ] {
        text.family(name, Kind::Gauge, "Of the machine");
        text.sample(&[], value, None);
    }
    text.family("container_scrape_error", Kind::Gauge, "1 where something could not be read");
    text.sample(&[], u8::from(readings.incomplete), None);
    text.finish()
}

fn number(value: Option<u64>) -> Option<String> {
    value.map(|value| value.to_string())
}

fn each_container<'a>(
    readings: &'a Readings,
    mut show: impl FnMut(&[(&'a str, &'a str)], &'a ContainerReading, &'a Usage),
) {
    for pod in &readings.pods {
        for one in &pod.containers {
            let Some(usage) = &one.usage else { continue };
            let labels = [
                ("container", one.name.as_str()),
                ("id", one.id.as_str()),
                ("image", one.image.as_str()),
                ("name", one.id.as_str()),
                ("namespace", &*pod.key.namespace),
                ("pod", &*pod.key.name),
            ];
            show(&labels, one, usage);
        }
    }
}

/// CPU time per second between two readings; `None` where the later one is not later.
pub fn nano_cores(before: (Timestamp, u64), after: (Timestamp, u64)) -> Option<u64> {
    let span = u128::try_from(after.0.duration_since(before.0).as_nanos()).ok().filter(|span| *span > 0)?;
    let used = u128::from(after.1.checked_sub(before.1)?);
    u64::try_from(used * 1_000_000_000 / span).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn readings() -> Readings {
        let at = Timestamp::from_second(1_767_225_600).unwrap();
        let usage = |cpu: u64| Usage {
            at,
            cpu_nanoseconds: Some(cpu),
            nano_cores: Some(7),
            working_set: Some(1 << 20),
            memory: Some(2 << 20),
            ..Usage::default()
        };
        let container = |name: &str, usage| ContainerReading {
            id: format!("id-{name}").into(),
            name: name.into(),
            image: "web:1".into(),
            started_at: at,
            usage,
            layer: Disk { used: Some(10), ..Disk::default() },
            logs_bytes: Some(5),
            limits: Limits { cpu_limit_millis: 500, ..Limits::default() },
        };
        let pod = |name: &str, containers| PodReading {
            key: PodKey::new("default", name),
            uid: name.into(),
            started_at: at,
            containers,
        };
        let node = NodeReading {
            name: "node".into(),
            booted_at: at,
            usage: usage(9_000_000_000),
            memory_available: Some(77),
            swap_available: None,
            cpus: 2,
            memory_total: 1 << 30,
            swap_total: 0,
            interfaces: vec![Interface { name: "eth0".into(), rx_bytes: 5, ..Interface::default() }],
            disk: Disk { capacity: Some(1000), available: Some(600), used: Some(400), ..Disk::default() },
            images: Disk::default(),
            layers: Disk::default(),
            processes: Some((32768, 100)),
            main_interface: Some("eth0".into()),
        };
        let pods = vec![
            pod(
                "web",
                vec![container("a", Some(usage(1_500_000_000))), container("b", Some(usage(500_000_000)))],
            ),
            pod("dark", vec![container("c", None)]),
        ];
        Readings { at, node, pods, incomplete: true }
    }

    #[test]
    fn the_summary_has_what_is_known() {
        let all = summary(&readings(), false);
        let at = "2026-01-01T00:00:00Z";
        assert_eq!(all["node"]["network"]["rxBytes"], 5);
        assert_eq!(all["node"]["network"]["interfaces"][0]["name"], "eth0");
        assert_eq!(all["node"]["memory"]["availableBytes"], 77);
        assert_eq!(all["node"]["rlimit"], json!({"time": at, "maxpid": 32768, "curproc": 100}));
        let web = &all["pods"][0];
        assert_eq!(web["podRef"], json!({"name": "web", "namespace": "default", "uid": "web"}));
        assert_eq!(
            web["cpu"],
            json!({"time": at, "usageCoreNanoSeconds": 2_000_000_000u64, "usageNanoCores": 14})
        );
        assert_eq!(web["memory"]["workingSetBytes"], 2 << 20);
        assert_eq!(web["ephemeral-storage"]["usedBytes"], 30);
        assert_eq!(web["containers"][0]["logs"]["usedBytes"], 5);
        // One whose log cannot be read makes the whole unknown, not smaller.
        let mut partly = readings();
        partly.pods[0].containers[1].logs_bytes = None;
        let partly = summary(&partly, false);
        let storage = &partly["pods"][0]["ephemeral-storage"];
        assert!(storage.get("usedBytes").is_none() && storage["capacityBytes"] == 1000, "{storage}");
        let dark = &all["pods"][1];
        assert!(dark.get("cpu").is_none() && dark["containers"][0].get("memory").is_none(), "{dark}");
        let short = summary(&readings(), true);
        assert!(short["node"].get("fs").is_none() && short["node"].get("network").is_none());
        assert!(short["pods"][0]["containers"][0].get("rootfs").is_none());
        assert_eq!(short["pods"][0]["cpu"], web["cpu"]);
    }

    #[test]
    fn metrics_server_finds_its_families() {
        let text = resource_metrics(&readings());
        for line in [
            "container_cpu_usage_seconds_total{container=\"a\",namespace=\"default\",pod=\"web\"} 1.5 1767225600000",
            "pod_cpu_usage_seconds_total{namespace=\"default\",pod=\"web\"} 2 1767225600000",
            "pod_memory_working_set_bytes{namespace=\"default\",pod=\"web\"} 2097152 1767225600000",
            "node_cpu_usage_seconds_total 9 1767225600000",
            "node_memory_working_set_bytes 1048576 1767225600000",
            "container_start_time_seconds{container=\"a\",namespace=\"default\",pod=\"web\"} 1767225600 1767225600000",
            "resource_scrape_error 1",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} in\n{text}");
        }
        assert!(!text.contains("pod_cpu_usage_seconds_total{namespace=\"default\",pod=\"dark\"}"));
        // A family is there once.
        let mut types: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        let all = types.len();
        types.sort_unstable();
        types.dedup();
        assert_eq!(types.len(), all);
    }

    #[test]
    fn cadvisors_families_have_its_labels() {
        let text = cadvisor_metrics(&readings());
        let labels =
            "container=\"a\",id=\"id-a\",image=\"web:1\",name=\"id-a\",namespace=\"default\",pod=\"web\"";
        for line in [
            format!("container_cpu_usage_seconds_total{{{labels},cpu=\"total\"}} 1.5 1767225600000"),
            format!("container_spec_cpu_shares{{{labels}}} 2 1767225600000"),
            format!("container_spec_cpu_quota{{{labels}}} 50000 1767225600000"),
            format!("container_fs_usage_bytes{{{labels}}} 10 1767225600000"),
            "machine_cpu_cores 2".to_owned(),
        ] {
            assert!(text.lines().any(|known| known == line), "{line} in\n{text}");
        }
        assert!(!text.contains("container_memory_rss{"), "what is not known is not there");
    }

    #[test]
    fn rates_need_two_readings_in_order() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        assert_eq!(nano_cores((at(0), 0), (at(2), 1_000_000_000)), Some(500_000_000));
        assert_eq!(nano_cores((at(2), 0), (at(2), 5)), None);
        assert_eq!(nano_cores((at(0), 9), (at(2), 5)), None, "another life of the counter");
    }
}
