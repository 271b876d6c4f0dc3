//! What the daemon tells its command line over the admin socket: plain serde values.
//! Additive only: an older CLI must read a newer daemon's answers.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde::{Deserialize, Serialize};

use crate::ids::{ContainerName, PodKey, PodUid};
use crate::image::gc::{GcPlan, GcPolicy, ImageDisk};
use crate::pod::desired::PodSource;
use crate::pod::lifecycle::Lifecycle;
use crate::pod::local::{ProbeResult, StepFailure};
use crate::pod::observed::ObservedPod;
use crate::pod::snapshot::{ProbeKind, Waiting};
use crate::pod::step::StepKey;

/// One pod as the daemon sees it: the whole truth for ps, get, describe, why and timeline.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodView {
    pub key: PodKey,
    pub uid: PodUid,
    pub source: PodSource,
    pub pod: Arc<Pod>,
    pub status: Arc<PodStatus>,
    pub lifecycle: Lifecycle,
    pub observed: Arc<ObservedPod>,
    pub waiting: Vec<Waiting>,
    /// Steps under way and since when.
    pub in_flight: Vec<(StepKey, Timestamp)>,
    pub failures: Vec<(StepKey, StepFailure)>,
    /// The newest verdict of each probe that has one.
    #[serde(default)]
    pub probes: Vec<ProbeView>,
    /// Instances whose postStart hook failed, newest first.
    #[serde(default)]
    pub failed_hooks: Vec<FailedHook>,
}

/// A postStart hook that failed, and with it its instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedHook {
    pub container: ContainerName,
    /// What it answered, one line.
    pub message: String,
}

/// One probe's verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeView {
    pub container: ContainerName,
    pub kind: ProbeKind,
    pub result: ProbeResult,
}

/// One finished or running step, or a state change, of a pod's timeline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimelineEntry {
    pub at: Timestamp,
    /// Milliseconds the step took; None while it runs and for instants.
    pub took_ms: Option<u64>,
    /// `create sandbox`, `Ready`, `container web exited`, ...
    pub what: String,
    pub outcome: TimelineOutcome,
    /// Detail or error, one line.
    pub detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TimelineOutcome {
    Running,
    Done,
    Failed,
    Event,
}

/// A problem with an input that no pod can carry: a broken manifest, a duplicate name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceProblem {
    /// File path, with line where known: `web.yaml:12`.
    pub place: String,
    /// What object, where it could be read: `Pod default/web`.
    pub object: Option<String>,
    pub message: String,
    pub since: Timestamp,
}

/// The node in one screen.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeView {
    pub name: String,
    pub ips: Vec<IpAddr>,
    pub version: String,
    pub started_at: Timestamp,
    /// Name and version as the runtime reports; Err text while it does not answer.
    pub runtime: Result<String, String>,
    pub network: Result<(), String>,
    /// Sources with their state: `manifests /etc/longshore/manifests: 12 files`.
    pub sources: Vec<String>,
    pub problems: Vec<SourceProblem>,
    /// Service mode in force and why it was chosen.
    pub service_mode: String,
    pub service_mode_reason: String,
}

/// The images of the node and what a collection would do to them now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagesView {
    pub policy: GcPolicy,
    /// The file system they are on; `None` where it cannot be measured.
    pub disk: Option<ImageDisk>,
    /// Why it cannot.
    pub problem: Option<String>,
    pub plan: GcPlan,
}

/// The answer to "why is it so?": one sentence a person can act on, and what to do next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyView {
    /// `pod default/web` or `node worker-1`.
    pub subject: String,
    /// Nothing is wrong; the sentence then says what it is doing.
    pub ok: bool,
    pub sentence: String,
    /// What to do or to look at, one command or edit each, most useful first.
    pub next_steps: Vec<String>,
    /// The facts the sentence rests on, one line each.
    pub facts: Vec<String>,
}

/// Why a request to the admin socket was not answered. Sent with a 4xx or 5xx status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorView {
    /// One line, lower case, naming the object.
    pub error: String,
    /// What to do about it, one line.
    #[serde(default)]
    pub hint: Option<String>,
}

/// Kinds of objects the daemon keeps beside pods and can show as its source wrote them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ObjectKind {
    Service,
    EndpointSlice,
    ConfigMap,
    Secret,
}

impl ObjectKind {
    /// Plural in lower case, as in the API's paths.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
            Self::ConfigMap => "configmaps",
            Self::Secret => "secrets",
        }
    }

    /// Reads kind names as kubectl takes them: singular, plural or short, in any case.
    pub fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "service" | "services" | "svc" => Some(Self::Service),
            "endpointslice" | "endpointslices" | "eps" => Some(Self::EndpointSlice),
            "configmap" | "configmaps" | "cm" => Some(Self::ConfigMap),
            "secret" | "secrets" => Some(Self::Secret),
            _ => None,
        }
    }
}
