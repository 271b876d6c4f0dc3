//! What clients are told of a pod as events, with the kubelet's reasons (kubelet-surface B7): of steps as
//! they begin and end, and of changes between two published views. Values in, values out.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use crate::ids::ContainerName;
use crate::pod::containers::containers;
use crate::pod::snapshot::ProbeKind;
use crate::pod::step::{Step, StepKind, StepOutcome};
use crate::wire::PodView;

/// How bad it is, as the API spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    Normal,
    Warning,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// One thing to tell of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodEvent {
    pub severity: Severity,
    pub reason: String,
    pub message: String,
    /// Where it is about one container.
    pub container: Option<ContainerName>,
}

impl PodEvent {
    fn new(severity: Severity, reason: &str, message: String, container: Option<&ContainerName>) -> Self {
        Self { severity, reason: reason.to_owned(), message, container: container.cloned() }
    }
}

/// `spec.containers{web}`: the part of the pod an event is about.
pub fn field_path(pod: &Pod, container: Option<&ContainerName>) -> Option<String> {
    let name = container?;
    let found = containers(pod).into_iter().find(|known| known.name == *name)?;
    Some(format!("spec.{}{{{name}}}", found.list()))
}

/// Of a step that begins.
pub fn began(step: &Step) -> Option<PodEvent> {
    match step {
        Step::StopContainer(stop) => Some(PodEvent::new(
            Severity::Normal,
            "Killing",
            format!("Stopping container {}: {}", stop.container, stop.reason),
            Some(&stop.container),
        )),
        Step::PullImage { secrets, .. } if !secrets.problems.is_empty() => Some(PodEvent::new(
            Severity::Warning,
            "FailedToRetrieveImagePullSecret",
            format!("{}; images are pulled without", secrets.problems.join("; ")),
            None,
        )),
        _ => None,
    }
}

/// Of an image that is not on the node, or asked for anew: its pull begins.
pub fn pulls(step: &Step) -> Option<PodEvent> {
    let Step::PullImage { container, image, .. } = step else { return None };
    Some(PodEvent::new(Severity::Normal, "Pulling", format!("Pulling image {image:?}"), Some(container)))
}

/// Of a step that ended.
pub fn ended(step: &Step, outcome: &StepOutcome, took: Duration) -> Option<PodEvent> {
    match outcome {
        StepOutcome::Done(_) => done(step, took),
        StepOutcome::Failed(error) => Some(failed(step, &error.message)),
        StepOutcome::Cancelled => None,
    }
}

fn done(step: &Step, took: Duration) -> Option<PodEvent> {
    let normal =
        |reason, message, container| Some(PodEvent::new(Severity::Normal, reason, message, Some(container)));
    match step {
        Step::PullImage { container, image, .. } => {
            normal("Pulled", format!("Image {image:?} is there after {} ms", took.as_millis()), container)
        }
        Step::CreateContainer(create) => {
            normal("Created", format!("Created container {}", create.spec.name), &create.spec.name)
        }
        Step::StartContainer { container, .. } => {
            normal("Started", format!("Started container {container}"), container)
        }
        _ => None,
    }
}

fn failed(step: &Step, message: &str) -> PodEvent {
    let (reason, container) = match step {
        Step::PullImage { container, .. } | Step::StartContainer { container, .. } => {
            ("Failed", Some(container))
        }
        Step::CreateContainer(create) => ("Failed", Some(&create.spec.name)),
        Step::PostStart { container, .. } => ("FailedPostStartHook", Some(container)),
        Step::PrepareVolume(_) | Step::UpdateVolume(_) => ("FailedMount", None),
        Step::CreateSandbox(_) => ("FailedCreatePodSandBox", None),
        Step::EnsureCgroup(_) => ("FailedCreatePodContainer", None),
        Step::StopContainer(stop) => ("FailedKillPod", Some(&stop.container)),
        Step::StopSandbox { .. } => ("FailedKillPod", None),
        Step::PreparePodDirs { .. }
        | Step::RemoveContainer { .. }
        | Step::RemoveSandbox { .. }
        | Step::ReleaseVolume { .. }
        | Step::RemoveCgroup { .. }
        | Step::RemovePodDirs => ("FailedSync", None),
    };
    let message = match step {
        Step::PullImage { image, .. } => format!("Failed to pull image {image:?}: {message}"),
        other => format!("{}: {message}", other.key()),
    };
    PodEvent::new(Severity::Warning, reason, message, container)
}

/// Of what changed from one published view to the next: back-offs that begin, probes that fail, refusals,
/// objects that are missing.
pub fn of_views(before: Option<&PodView>, now: &PodView) -> Vec<PodEvent> {
    let mut events = Vec::new();
    for waiting in &now.waiting {
        let known = before.is_some_and(|before| {
            before.waiting.iter().any(|old| {
                (&old.reason, &old.container, &old.until)
                    == (&waiting.reason, &waiting.container, &waiting.until)
            })
        });
        let reason = match waiting.reason.as_str() {
            "CrashLoopBackOff" | "ImagePullBackOff" => "BackOff",
            "FailedMount" => "FailedMount",
            // Of a step that failed it was told as that ended.
            "FailedCreatePodSandBox" if !has_failed(now, StepKind::CreateSandbox) => "FailedCreatePodSandBox",
            _ => continue,
        };
        if !known {
            // The pull that failed was the warning.
            let rests = waiting.reason == "ImagePullBackOff";
            let severity = if rests { Severity::Normal } else { Severity::Warning };
            events.push(PodEvent::new(severity, reason, waiting.message.clone(), waiting.container.as_ref()));
        }
    }
    for probe in now.probes.iter().filter(|probe| !probe.result.healthy) {
        let known = before.is_some_and(|before| before.probes.contains(probe));
        if !known {
            let kind = match probe.kind {
                ProbeKind::Startup => "Startup",
                ProbeKind::Liveness => "Liveness",
                ProbeKind::Readiness => "Readiness",
            };
            let message = format!("{kind} probe failed: {}", probe.result.message);
            events.push(PodEvent::new(Severity::Warning, "Unhealthy", message, Some(&probe.container)));
        }
    }
    let reason = |view: &PodView| view.status.reason.clone();
    if let Some(told) = reason(now).filter(|_| before.and_then(reason).is_none()) {
        let message = now.status.message.clone().unwrap_or_default();
        events.push(PodEvent::new(Severity::Warning, &told, message, None));
    }
    events
}

fn has_failed(view: &PodView, kind: StepKind) -> bool {
    view.failures.iter().any(|(step, _)| step.kind == kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::pull_secrets::PullSecrets;
    use crate::pod::step::{PullPolicy, StepError, StepResult};
    use serde_json::json;

    #[test]
    fn steps_are_told_with_the_kubelets_reasons() {
        let pull = Step::PullImage {
            container: "web".into(),
            image: "w:1".into(),
            policy: PullPolicy::Always,
            secrets: PullSecrets::default(),
        };
        let start = Step::StartContainer { container: "web".into(), id: "1".into() };
        let error =
            StepOutcome::Failed(StepError { reason: "E".into(), message: "no".into(), retryable: true });
        let done = StepOutcome::Done(StepResult::Done);
        let reason = |event: Option<PodEvent>| event.map(|event| event.reason);
        assert_eq!(reason(pulls(&pull)).as_deref(), Some("Pulling"));
        assert_eq!(reason(pulls(&start)), None);
        for (step, outcome, expected) in [
            (&pull, &done, Some((Severity::Normal, "Pulled"))),
            (&pull, &error, Some((Severity::Warning, "Failed"))),
            (&start, &done, Some((Severity::Normal, "Started"))),
            (&Step::RemovePodDirs, &done, None),
            (&Step::RemovePodDirs, &error, Some((Severity::Warning, "FailedSync"))),
            (&start, &StepOutcome::Cancelled, None),
        ] {
            let told = ended(step, outcome, Duration::from_millis(5));
            let told = told.as_ref().map(|event| (event.severity, event.reason.as_str()));
            assert_eq!(told, expected, "{step:?} {outcome:?}");
        }
    }

    #[test]
    fn pull_secrets_that_cannot_be_used_are_told_as_the_pull_begins() {
        let pull = |problems: &[&str]| Step::PullImage {
            container: "web".into(),
            image: "w:1".into(),
            policy: PullPolicy::Always,
            secrets: PullSecrets {
                problems: problems.iter().map(|problem| (*problem).to_owned()).collect(),
                ..PullSecrets::default()
            },
        };
        assert_eq!(began(&pull(&[])), None);
        let told = began(&pull(&["pull secret d/s is not there"])).unwrap();
        assert_eq!(
            (told.reason.as_str(), told.message.as_str()),
            ("FailedToRetrieveImagePullSecret", "pull secret d/s is not there; images are pulled without")
        );
    }

    #[test]
    fn the_part_of_the_pod_is_named() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {
            "initContainers": [{"name": "i"}], "containers": [{"name": "c"}]}}))
        .unwrap();
        for (name, expected) in
            [("i", Some("spec.initContainers{i}")), ("c", Some("spec.containers{c}")), ("x", None)]
        {
            assert_eq!(field_path(&pod, Some(&name.into())).as_deref(), expected);
        }
    }
}
