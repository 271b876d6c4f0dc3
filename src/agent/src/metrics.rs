//! What the pod workers count, under the kubelet's names where dashboards expect them
//! (`pkg/kubelet/metrics/metrics.go`, `pkg/kubelet/prober/prober_manager.go`), and the texts Prometheus scrapes.
//! Hot paths only add; what is a state and not a count is read from the pods' views at a scrape.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use jiff::Timestamp;
use longshore_core::pod::containers::{self, Role};
use longshore_core::pod::desired::{DesiredPod, PodSource};
use longshore_core::pod::lifecycle::Lifecycle;
use longshore_core::pod::observed::{ContainerState, SandboxState};
use longshore_core::pod::snapshot::ProbeKind;
use longshore_core::pod::step::{Step, StepKind, StepOutcome};
use longshore_core::wire::PodView;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::pods::PodsView;
use crate::probes::ProbeStats;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabels {
    step: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfOperation {
    operation_type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfContainer {
    container_type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfFailure {
    container_type: &'static str,
    code: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfReason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfSignal {
    eviction_signal: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfState {
    container_state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct OfLife {
    lifecycle: &'static str,
    config: &'static str,
    r#static: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct OfStatic {
    r#static: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfNode {
    node: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfProbe {
    probe_type: &'static str,
    result: &'static str,
    container: String,
    pod: String,
    namespace: String,
    pod_uid: String,
}

type Durations<L> = Family<L, Histogram, fn() -> Histogram>;

/// What the pod workers count. Cheap to clone; all clones count together.
#[derive(Clone, Debug)]
pub struct PodMetrics {
    pub worker_panics: Counter,
    pub step_panics: Counter,
    /// Changes the audit found that no event had told of.
    pub audit_findings: Counter,
    /// Steps held back because they were done again and again without effect.
    pub held_steps: Counter,
    steps: Family<StepLabels, Counter>,
    step_seconds: Durations<StepLabels>,
    operations: Family<OfOperation, Counter>,
    operation_errors: Family<OfOperation, Counter>,
    operation_seconds: Durations<OfOperation>,
    started_pods: Counter,
    started_pods_errors: Counter,
    started_containers: Family<OfContainer, Counter>,
    started_containers_errors: Family<OfFailure, Counter>,
    pod_start_seconds: Histogram,
    turn_seconds: Durations<OfOperation>,
    containers_per_pod: Histogram,
    rejections: Family<OfReason, Counter>,
    /// Only ever grows; a gauge since upstream's name lacks the ending every counter gets.
    evictions: Family<OfSignal, Gauge>,
    orphans: Counter,
}

/// From a file's write to a slow pull.
const STEP_BUCKETS: [f64; 12] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0];
/// The kubelet's for calls of the runtime: 5 ms, 2.5 times more each.
const OPERATION_BUCKETS: [f64; 14] = [
    0.005,
    0.0125,
    0.03125,
    0.078_125,
    0.195_312_5,
    0.488_281_25,
    1.220_703,
    3.051_757,
    7.629_394,
    19.073_486,
    47.683_715,
    119.209_289,
    298.023_223,
    745.058_059,
];
/// The kubelet's for starts of pods.
const START_BUCKETS: [f64; 21] = [
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0,
    480.0, 600.0, 900.0,
];
/// A turn of a worker plans and publishes, and takes well below a millisecond.
const TURN_BUCKETS: [f64; 8] = [0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.005, 0.05, 0.5];
const CONTAINER_COUNTS: [f64; 5] = [1.0, 2.0, 4.0, 8.0, 16.0];

impl Default for PodMetrics {
    fn default() -> Self {
        Self {
            worker_panics: Counter::default(),
            step_panics: Counter::default(),
            audit_findings: Counter::default(),
            held_steps: Counter::default(),
            steps: Family::default(),
            step_seconds: Family::new_with_constructor(|| Histogram::new(STEP_BUCKETS)),
            operations: Family::default(),
            operation_errors: Family::default(),
            operation_seconds: Family::new_with_constructor(|| Histogram::new(OPERATION_BUCKETS)),
            started_pods: Counter::default(),
            started_pods_errors: Counter::default(),
            started_containers: Family::default(),
            started_containers_errors: Family::default(),
            pod_start_seconds: Histogram::new(START_BUCKETS),
            turn_seconds: Family::new_with_constructor(|| Histogram::new(TURN_BUCKETS)),
            containers_per_pod: Histogram::new(CONTAINER_COUNTS),
            rejections: Family::default(),
            evictions: Family::default(),
            orphans: Counter::default(),
        }
    }
}

impl PodMetrics {
    /// A step ended. `took` is without the time it waited for its turn.
    pub fn step_ended(&self, pod: &DesiredPod, step: &Step, took: Duration, outcome: &StepOutcome) {
        let words = match outcome {
            StepOutcome::Done(_) => "done",
            StepOutcome::Failed(_) => "failed",
            StepOutcome::Cancelled => "cancelled",
        };
        let kind = step.key().kind;
        let labels = StepLabels { step: format!("{kind:?}"), outcome: words };
        self.steps.get_or_create(&labels).inc();
        self.step_seconds.get_or_create(&labels).observe(took.as_secs_f64());
        if let Some(operation_type) = operation(kind) {
            let operation = OfOperation { operation_type };
            self.operations.get_or_create(&operation).inc();
            self.operation_seconds.get_or_create(&operation).observe(took.as_secs_f64());
            if words == "failed" {
                self.operation_errors.get_or_create(&operation).inc();
            }
        }
        self.count_start(pod, step, outcome);
    }

    /// A start is counted where it succeeds or fails, once for a container that takes two calls.
    fn count_start(&self, pod: &DesiredPod, step: &Step, outcome: &StepOutcome) {
        let failed = match outcome {
            StepOutcome::Done(_) => None,
            StepOutcome::Failed(error) => Some(error),
            StepOutcome::Cancelled => return,
        };
        let name = match step {
            Step::CreateSandbox(_) => {
                self.started_pods.inc();
                self.started_pods_errors.inc_by(u64::from(failed.is_some()));
                return;
            }
            Step::CreateContainer(create) if failed.is_some() => &create.spec.name,
            Step::StartContainer { container, .. } => container,
            _ => return,
        };
        let of_spec = containers::containers(&pod.pod).into_iter().find(|container| container.name == *name);
        let container_type = match of_spec.map(|container| container.role) {
            Some(Role::Init | Role::Sidecar) => "init_container",
            Some(Role::Ephemeral) => "ephemeral_container",
            Some(Role::Main) | None => "container",
        };
        self.started_containers.get_or_create(&OfContainer { container_type }).inc();
        if let Some(error) = failed {
            let labels = OfFailure { container_type, code: error.reason.clone() };
            self.started_containers_errors.get_or_create(&labels).inc();
        }
    }

    /// A pod's worker took a turn.
    pub fn turn_ended(&self, lifecycle: &Lifecycle, took: Duration) {
        let operation_type = match lifecycle {
            Lifecycle::Queued { .. } | Lifecycle::Syncing => "sync",
            Lifecycle::Terminating { .. } => "terminating",
            Lifecycle::Terminated { .. } | Lifecycle::Released { .. } => "terminated",
        };
        self.turn_seconds.get_or_create(&OfOperation { operation_type }).observe(took.as_secs_f64());
    }

    /// A pod that no one had seen before was taken on.
    pub fn taken_on(&self, pod: &DesiredPod) {
        self.containers_per_pod.observe(containers::containers(&pod.pod).len() as f64);
        self.orphans.inc_by(u64::from(pod.source == PodSource::Runtime));
    }

    /// A pod that was seen this long ago runs for the first time.
    pub fn started(&self, seen_at: Timestamp, now: Timestamp) {
        self.pod_start_seconds.observe(now.duration_since(seen_at).as_secs_f64().max(0.0));
    }

    /// The node had no room for a pod, or must not run it; `reason` in the API's spelling.
    pub fn refused(&self, reason: &'static str) {
        self.rejections.get_or_create(&OfReason { reason }).inc();
    }

    /// The node ended a pod whose folders had grown above their limit, the one cause there is.
    pub fn evicted(&self) {
        self.evictions.get_or_create(&OfSignal { eviction_signal: "emptydirfs.limit" }).inc();
    }

    /// `/metrics` of the pods, in Prometheus' text form 0.0.4. `started_at` is when the daemon did.
    pub fn render(&self, pods: &PodsView, node: &str, started_at: Timestamp) -> String {
        let mut registry = Registry::default();
        self.register(&mut registry);
        register_states(&mut registry, &pods.list());
        let name: Family<OfNode, Gauge> = Family::default();
        name.get_or_create(&OfNode { node: node.to_owned() }).set(1);
        registry.register("kubelet_node_name", "The node's name, as a label", name);
        let start: Gauge<f64, AtomicU64> = Gauge::default();
        start.set(started_at.as_microsecond() as f64 / 1e6);
        registry.register("process_start_time_seconds", "When the process started, since the epoch", start);
        encode(&registry)
    }

    fn register(&self, registry: &mut Registry) {
        macro_rules! metrics {
            ($($name:literal $field:ident $help:literal;)*) => {
                $(registry.register($name, $help, self.$field.clone());)*
            };
        }
        metrics! {
            "kubelet_runtime_operations" operations "Steps that called the runtime";
            "kubelet_runtime_operations_errors" operation_errors "Steps whose call of the runtime failed";
            "kubelet_runtime_operations_duration_seconds" operation_seconds "Time a step's calls of the runtime took";
            "kubelet_started_pods" started_pods "Sandboxes started, or tried to";
            "kubelet_started_pods_errors" started_pods_errors "Sandboxes that could not be started";
            "kubelet_started_containers" started_containers "Containers started, or tried to";
            "kubelet_started_containers_errors" started_containers_errors "Containers that could not be started";
            "kubelet_pod_start_duration_seconds" pod_start_seconds "Time from a pod's first sight to its running";
            "kubelet_pod_worker_duration_seconds" turn_seconds "Time a turn of a pod's worker took";
            "kubelet_containers_per_pod_count" containers_per_pod "Containers of a pod that was taken on";
            "kubelet_admission_rejections" rejections "Pods the node did not admit";
            "kubelet_evictions" evictions "Pods the node ended by itself";
            "kubelet_orphaned_runtime_pods" orphans "Pods found in the runtime that no source wants";
            "longshore_pod_worker_panics" worker_panics "Panics caught in pod workers";
            "longshore_pod_step_panics" step_panics "Panics caught in steps";
            "longshore_pod_audit_findings" audit_findings "Changes found by listing that no event told";
            "longshore_pod_held_steps" held_steps "Steps held back for having no effect";
            "longshore_pod_steps" steps "Steps that ended";
            "longshore_pod_step_seconds" step_seconds "Time steps took, without waiting for their turn";
        }
    }
}

/// The kubelet's word for the call a step makes; none where it makes none.
fn operation(kind: StepKind) -> Option<&'static str> {
    Some(match kind {
        StepKind::PullImage => "pull_image",
        StepKind::CreateSandbox => "run_podsandbox",
        StepKind::CreateContainer => "create_container",
        StepKind::StartContainer => "start_container",
        StepKind::StopContainer => "stop_container",
        StepKind::StopSandbox => "stop_podsandbox",
        StepKind::RemoveContainer => "remove_container",
        StepKind::RemoveSandbox => "remove_podsandbox",
        StepKind::PreparePodDirs
        | StepKind::EnsureCgroup
        | StepKind::PrepareVolume
        | StepKind::UpdateVolume
        | StepKind::PostStart
        | StepKind::ReleaseVolume
        | StepKind::RemoveCgroup
        | StepKind::RemovePodDirs => return None,
    })
}

/// How the pods are now.
fn register_states(registry: &mut Registry, pods: &[std::sync::Arc<PodView>]) {
    let sandbox_up = |pod: &PodView| pod.observed.sandboxes.iter().any(|s| s.state == SandboxState::Ready);
    let running: Gauge = Gauge::default();
    running.set(count(pods.iter().filter(|pod| sandbox_up(pod))));
    registry.register("kubelet_running_pods", "Pods that have a sandbox that is up", running);
    let instances: Family<OfState, Gauge> = Family::default();
    for container in pods.iter().flat_map(|pod| &pod.observed.containers) {
        let container_state = match container.state {
            ContainerState::Created => "created",
            ContainerState::Running { .. } => "running",
            ContainerState::Exited { .. } => "exited",
            ContainerState::Unknown => "unknown",
        };
        instances.get_or_create(&OfState { container_state }).inc();
    }
    registry.register("kubelet_running_containers", "Containers in the runtime, by state", instances);
    let (mut desired, mut active) = (BTreeMap::new(), BTreeMap::new());
    let lives: Family<OfLife, Gauge> = Family::default();
    for pod in pods {
        let is_static = if matches!(pod.source, PodSource::File { .. }) { "true" } else { "" };
        let wanted = !matches!(pod.source, PodSource::Runtime);
        let lifecycle = match pod.lifecycle {
            Lifecycle::Queued { .. } | Lifecycle::Syncing => "sync",
            Lifecycle::Terminating { .. } => "terminating",
            Lifecycle::Terminated { .. } | Lifecycle::Released { .. } => "terminated",
        };
        *desired.entry(is_static).or_insert(0) += i64::from(wanted);
        *active.entry(is_static).or_insert(0) += i64::from(wanted && lifecycle != "terminated");
        let config = if wanted { "desired" } else { "runtime_only" };
        lives.get_or_create(&OfLife { lifecycle, config, r#static: is_static }).inc();
    }
    registry.register("kubelet_working_pods", "Pods that have a worker, by how far they are", lives);
    for (name, help, counts) in [
        ("kubelet_desired_pods", "Pods a source wants", desired),
        ("kubelet_active_pods", "Pods a source wants that have not ended", active),
    ] {
        let family: Family<OfStatic, Gauge> = Family::default();
        for (is_static, number) in counts {
            family.get_or_create(&OfStatic { r#static: is_static }).set(number);
        }
        registry.register(name, help, family);
    }
}

/// `/metrics/probes`, in Prometheus' text form 0.0.4.
pub fn render_probes(probes: &[ProbeStats]) -> String {
    let tries: Family<OfProbe, Counter> = Family::default();
    for probe in probes {
        let probe_type = match probe.kind {
            ProbeKind::Startup => "Startup",
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Readiness => "Readiness",
        };
        let successes = probe.tries.saturating_sub(probe.failures);
        for (result, number) in [("successful", successes), ("failed", probe.failures)] {
            let labels = OfProbe {
                probe_type,
                result,
                container: probe.container.to_string(),
                pod: probe.key.name.to_string(),
                namespace: probe.key.namespace.to_string(),
                pod_uid: probe.pod.to_string(),
            };
            tries.get_or_create(&labels).inc_by(number);
        }
    }
    let mut registry = Registry::default();
    registry.register("prober_probe", "Tries of probes, by what came of them", tries);
    encode(&registry)
}

fn count<T>(items: impl Iterator<Item = T>) -> i64 {
    i64::try_from(items.count()).unwrap_or(i64::MAX)
}

fn encode(registry: &Registry) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = text::encode(&mut out, registry);
    classic(&out)
}

/// OpenMetrics to the classic text form: there a counter's name ends in `_total` in its head lines too,
/// and there is no end mark. Scrapers of a kubelet and of kube-proxy ask for the classic one.
pub(crate) fn classic(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len());
    let mut help: Option<&str> = None;
    for line in open_metrics.lines().filter(|line| *line != "# EOF") {
        if line.starts_with("# HELP ") {
            help = Some(line);
            continue;
        }
        let kind = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '));
        let Some((name, kind)) = kind else {
            out.push_str(line);
            out.push('\n');
            continue;
        };
        let end = if kind == "counter" { "_total" } else { "" };
        if let Some(text) = help.take().and_then(|help| help.strip_prefix("# HELP ")?.strip_prefix(name)) {
            out.push_str(&format!("# HELP {name}{end}{}\n", text.trim_end_matches('.')));
        }
        out.push_str(&format!("# TYPE {name}{end} {kind}\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use longshore_core::ids::PodKey;
    use longshore_core::pod::step::{StepError, StepResult};
    use serde_json::json;

    use super::*;

    fn pod(source: PodSource) -> DesiredPod {
        let spec = json!({"initContainers": [{"name": "first"}], "containers": [{"name": "web"}]});
        DesiredPod {
            key: PodKey::new("default", "web"),
            uid: "u".into(),
            pod: Arc::new(serde_json::from_value(json!({"spec": spec})).unwrap()),
            source,
            seen_at: Timestamp::UNIX_EPOCH,
            deletion: None,
        }
    }

    #[test]
    fn starts_are_counted_under_the_kubelets_names() {
        let metrics = PodMetrics::default();
        let pod = pod(PodSource::Api);
        let start = |name: &str| Step::StartContainer { container: name.into(), id: "1".into() };
        let error = StepError { reason: "RunContainerError".into(), message: "no".into(), retryable: true };
        let took = Duration::from_millis(40);
        metrics.step_ended(&pod, &start("first"), took, &StepOutcome::Done(StepResult::Done));
        metrics.step_ended(&pod, &start("web"), took, &StepOutcome::Failed(error));
        metrics.step_ended(&pod, &Step::RemovePodDirs, took, &StepOutcome::Done(StepResult::Done));
        metrics.taken_on(&pod);
        metrics.refused("OutOfcpu");
        metrics.evicted();
        let text = metrics.render(&PodsView::default(), "n1", Timestamp::from_second(1_000).unwrap());
        for line in [
            "# TYPE kubelet_runtime_operations_total counter",
            "kubelet_runtime_operations_total{operation_type=\"start_container\"} 2",
            "kubelet_runtime_operations_errors_total{operation_type=\"start_container\"} 1",
            "kubelet_runtime_operations_duration_seconds_count{operation_type=\"start_container\"} 2",
            "kubelet_started_containers_total{container_type=\"init_container\"} 1",
            "kubelet_started_containers_errors_total{container_type=\"container\",code=\"RunContainerError\"} 1",
            "kubelet_containers_per_pod_count_sum 2.0",
            "kubelet_admission_rejections_total{reason=\"OutOfcpu\"} 1",
            "kubelet_evictions{eviction_signal=\"emptydirfs.limit\"} 1",
            "kubelet_running_pods 0",
            "kubelet_node_name{node=\"n1\"} 1",
            "process_start_time_seconds 1000.0",
        ] {
            assert!(text.lines().any(|found| found == line), "no line {line} in:\n{text}");
        }
        assert!(!text.contains("EOF"), "{text}");
    }

    #[test]
    fn probes_have_their_pod_in_their_labels() {
        let probe = ProbeStats {
            pod: "u".into(),
            key: PodKey::new("default", "web"),
            container: "web".into(),
            kind: ProbeKind::Readiness,
            tries: 7,
            failures: 2,
            last_took: Duration::ZERO,
            last_message: String::new(),
        };
        let text = render_probes(&[probe]);
        let labels = |result| {
            format!(
                "{{probe_type=\"Readiness\",result=\"{result}\",container=\"web\",pod=\"web\",namespace=\"default\",pod_uid=\"u\"}}"
            )
        };
        assert!(text.contains(&format!("prober_probe_total{} 5\n", labels("successful"))), "{text}");
        assert!(text.contains(&format!("prober_probe_total{} 2\n", labels("failed"))), "{text}");
    }
}
