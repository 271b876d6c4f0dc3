//! What clients are told as events: steps as they begin and end, changes of pods' views, the node's own
//! milestones. The words are core's; here is only where they go.

use std::time::Duration;

use longshore_cluster::events::Events;
use longshore_core::event::{About, Event};
use longshore_core::pod::desired::{DesiredPod, PodSource};
use longshore_core::pod::events::{PodEvent, Severity, began, ended, field_path, of_views, pulls};
use longshore_core::pod::step::{Step, StepOutcome};
use longshore_core::wire::PodView;

use super::mirrors::Mirrors;
use crate::pods::{Clock, Recorder};

/// Turns what happens into events.
#[derive(Clone, Debug)]
pub(super) struct EventRecorder {
    pub clock: Clock,
    pub events: Events,
    pub mirrors: Mirrors,
    pub node: String,
}

impl EventRecorder {
    /// What changed from one published view of a pod to the next.
    pub fn views(&self, before: Option<&PodView>, now: &PodView) {
        for event in of_views(before, now) {
            self.tell(&now.source, &now.key, now.uid.as_str(), &now.pod, event);
        }
    }

    /// Of the node itself.
    pub fn node(&self, severity: Severity, reason: &str, message: &str) {
        let about = About::node(&self.node);
        let (reason, message, at) = (reason.to_owned(), message.to_owned(), self.clock.now());
        self.events.tell(Event { about, severity, reason, message, at });
    }

    fn tell(
        &self,
        source: &PodSource,
        key: &longshore_core::ids::PodKey,
        uid: &str,
        pod: &k8s_openapi::api::core::v1::Pod,
        event: PodEvent,
    ) {
        // Of a static pod clients only know the mirror.
        let uid = match source {
            PodSource::Api => Some(uid.to_owned()),
            PodSource::File { .. } => self.mirrors.uid_of(key).map(|uid| uid.to_string()),
            PodSource::Runtime => None,
        };
        let Some(uid) = uid else { return };
        let about = About {
            kind: "Pod",
            namespace: key.namespace.to_string(),
            name: key.name.to_string(),
            uid,
            field_path: field_path(pod, event.container.as_ref()).unwrap_or_default(),
        };
        let PodEvent { severity, reason, message, .. } = event;
        self.events.tell(Event { about, severity, reason, message, at: self.clock.now() });
    }

    fn step(&self, pod: &DesiredPod, event: Option<PodEvent>) {
        if let Some(event) = event {
            self.tell(&pod.source, &pod.key, pod.uid.as_str(), &pod.pod, event);
        }
    }
}

impl Recorder for EventRecorder {
    fn began(&self, pod: &DesiredPod, step: &Step) {
        self.step(pod, began(step));
    }

    fn pulls(&self, pod: &DesiredPod, step: &Step) {
        self.step(pod, pulls(step));
    }

    fn ended(&self, pod: &DesiredPod, step: &Step, outcome: &StepOutcome, took: Duration) {
        self.step(pod, ended(step, outcome, took));
    }
}
