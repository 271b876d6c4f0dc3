//! Counters of the daemon itself, in Prometheus form; upstream's names where dashboards expect them.
//! One struct per part, registered once; hot paths only add.

use std::sync::atomic::AtomicU64;

use longshore_core::pod::step::StepKind;
use longshore_core::wire::TimelineOutcome;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StepLabels {
    pub step: String,
    pub outcome: &'static str,
}

/// What the pod workers count.
#[derive(Clone, Debug)]
pub struct PodMetrics {
    pub worker_panics: Counter,
    pub step_panics: Counter,
    /// Changes the audit found that no event had told of.
    pub audit_findings: Counter,
    /// Steps held back because they were done again and again without effect.
    pub held_steps: Counter,
    steps: Family<StepLabels, Counter>,
    step_seconds: Family<StepLabels, Histogram, fn() -> Histogram>,
}

/// From a file's write to a slow pull.
const STEP_BUCKETS: [f64; 12] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0];

impl PodMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            worker_panics: Counter::default(),
            step_panics: Counter::default(),
            audit_findings: Counter::default(),
            held_steps: Counter::default(),
            steps: Family::default(),
            step_seconds: Family::new_with_constructor(|| Histogram::new(STEP_BUCKETS)),
        };
        let mut add = |name: &str, help: &str, counter: &Counter<u64, AtomicU64>| {
            registry.register(name, help, counter.clone());
        };
        add("longshore_pod_worker_panics", "Panics caught in pod workers", &metrics.worker_panics);
        add("longshore_pod_step_panics", "Panics caught in steps", &metrics.step_panics);
        add(
            "longshore_pod_audit_findings",
            "Changes found by listing that no event told",
            &metrics.audit_findings,
        );
        add("longshore_pod_held_steps", "Steps held back for having no effect", &metrics.held_steps);
        registry.register("longshore_pod_steps", "Steps that ended", metrics.steps.clone());
        registry.register("longshore_pod_step_seconds", "Time steps took", metrics.step_seconds.clone());
        metrics
    }

    pub fn step_ended(&self, kind: StepKind, took_ms: u64, outcome: TimelineOutcome) {
        let outcome = match outcome {
            TimelineOutcome::Done => "done",
            TimelineOutcome::Failed => "failed",
            TimelineOutcome::Running | TimelineOutcome::Event => "cancelled",
        };
        let labels = StepLabels { step: format!("{kind:?}"), outcome };
        self.steps.get_or_create(&labels).inc();
        self.step_seconds.get_or_create(&labels).observe(took_ms as f64 / 1000.0);
    }
}

/// All metrics in the OpenMetrics text form.
pub fn render(registry: &Registry) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = text::encode(&mut out, registry);
    out
}
