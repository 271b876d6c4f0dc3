//! Writes events: one after the other, at a bounded rate, and never waited for. What is written anew and
//! what counts up is decided in `longshore_core::event`.

use std::time::Duration;

use jiff::Timestamp;
use longshore_core::event::{Correlator, Event, Write};
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::client::{ApiClient, PatchKind};
use crate::error::ApiError;
use crate::path::Path;

/// Events that wait to be written; more are dropped.
const QUEUE: usize = 1024;
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_secs(2);
/// Who speaks: clients look for these names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    Kubelet,
    KubeProxy,
}

impl Component {
    fn as_str(self) -> &'static str {
        match self {
            Component::Kubelet => "kubelet",
            Component::KubeProxy => "kube-proxy",
        }
    }
}

/// Takes events. Cheap to clone; telling never waits.
#[derive(Clone, Debug)]
pub struct Events {
    queue: mpsc::Sender<Event>,
}

impl Events {
    /// Dropped where too many wait: events are a courtesy.
    pub fn tell(&self, event: Event) {
        if self.queue.try_send(event).is_err() {
            tracing::debug!("an event is dropped: too many wait to be written");
        }
    }
}

/// How fast events may be written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EventRate {
    /// eventRecordQPS; 0 is no limit.
    pub per_second: u32,
    /// eventBurst.
    pub burst: u32,
}

/// The task that writes them.
#[derive(Debug)]
pub struct EventWriter {
    client: ApiClient,
    component: Component,
    node: String,
    rate: EventRate,
    queue: mpsc::Receiver<Event>,
    correlator: Correlator,
}

/// A writer and the handle to tell it.
pub fn events(client: ApiClient, component: Component, node: &str, rate: EventRate) -> (Events, EventWriter) {
    let (sender, queue) = mpsc::channel(QUEUE);
    let (node, correlator) = (node.to_owned(), Correlator::default());
    (Events { queue: sender }, EventWriter { client, component, node, rate, queue, correlator })
}

impl EventWriter {
    /// Writes until all handles are gone.
    pub async fn run(mut self) {
        let mut budget = f64::from(self.rate.burst.max(1));
        let mut counted = Instant::now();
        while let Some(event) = self.queue.recv().await {
            if self.rate.per_second > 0 {
                let rate = f64::from(self.rate.per_second);
                budget += counted.elapsed().as_secs_f64() * rate;
                budget = budget.min(f64::from(self.rate.burst.max(1)));
                counted = Instant::now();
                if budget < 1.0 {
                    tokio::time::sleep(Duration::from_secs_f64((1.0 - budget) / rate)).await;
                }
                budget -= 1.0;
            }
            self.take(event).await;
        }
    }

    async fn take(&mut self, event: Event) {
        let write = self.correlator.take(event.clone());
        for tries in 1..=TRIES {
            match self.write(&write).await {
                Ok(()) => return,
                // It was removed (events live an hour): told anew.
                Err(error) if error.is_not_found() && matches!(write, Write::Again { .. }) => {
                    if let Write::Again { name, .. } = &write {
                        self.correlator.forget(name);
                    }
                    let write = self.correlator.take(event);
                    if let Err(error) = self.write(&write).await {
                        tracing::debug!("event: {}", error.one_line());
                    }
                    return;
                }
                Err(error) if error.is_retryable() && tries < TRIES => {
                    tokio::time::sleep(error.retry_after().unwrap_or(PAUSE)).await;
                }
                // A namespace that ends takes no events any more, for example.
                Err(error) => {
                    tracing::debug!("event: {}", error.one_line());
                    return;
                }
            }
        }
    }

    async fn write(&self, write: &Write) -> Result<(), ApiError> {
        // The server says what it was told.
        let result: Result<IgnoredAny, ApiError> = match write {
            Write::Nothing => return Ok(()),
            Write::New { name, event } => {
                let path = Path::core_in(namespace(event), "events");
                self.client.create(&path, &self.object(name, event)).await
            }
            Write::Again { name, count, event } => {
                let patch = json!({
                    "count": count, "lastTimestamp": seconds(event.at), "message": event.message,
                });
                let path = Path::core_in(namespace(event), "events").then(name);
                self.client.patch(&path, PatchKind::Merge, &patch).await
            }
        };
        result.map(drop)
    }

    fn object(&self, name: &str, event: &Event) -> Value {
        let about = &event.about;
        let at = seconds(event.at);
        let component = self.component.as_str();
        let mut involved = json!({
            "apiVersion": api_version(about.kind), "kind": about.kind, "name": about.name, "uid": about.uid,
        });
        if !about.namespace.is_empty() {
            involved["namespace"] = json!(about.namespace);
        }
        if !about.field_path.is_empty() {
            involved["fieldPath"] = json!(about.field_path);
        }
        json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": name, "namespace": namespace(event)},
            "involvedObject": involved,
            "reason": event.reason, "message": event.message, "type": event.severity.as_str(),
            "source": {"component": component, "host": self.node},
            "reportingComponent": component, "reportingInstance": self.node,
            "firstTimestamp": at, "lastTimestamp": at, "count": 1,
        })
    }
}

/// Of the kinds that events are about.
fn api_version(kind: &str) -> &'static str {
    match kind {
        "EndpointSlice" => "discovery.k8s.io/v1",
        _ => "v1",
    }
}

/// Events of objects of the whole cluster are in `default`.
fn namespace(event: &Event) -> &str {
    if event.about.namespace.is_empty() { "default" } else { &event.about.namespace }
}

fn seconds(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second()).unwrap_or(at).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FakeApi, Fault};
    use longshore_core::event::About;
    use longshore_core::pod::events::Severity;

    const EVENTS: &str = "/api/v1/namespaces/d/events";

    fn event(message: &str) -> Event {
        let about = About {
            kind: "Pod",
            namespace: "d".into(),
            name: "p".into(),
            uid: "u".into(),
            field_path: "spec.containers{c}".into(),
        };
        let at = Timestamp::from_second(1).unwrap();
        Event { about, severity: Severity::Normal, reason: "Started".into(), message: message.into(), at }
    }

    #[tokio::test(start_paused = true)]
    async fn events_are_written_through_faults_and_count_up() {
        let api = FakeApi::default();
        let (events, writer) =
            events(api.client(), Component::Kubelet, "n1", EventRate { per_second: 50, burst: 100 });
        tokio::spawn(writer.run());
        api.order("POST", EVENTS, 2, Fault::Refuse(500, None));
        for _ in 0..3 {
            events.tell(event("a"));
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(api.calls("POST").len(), 3);
        let patched = api.calls("PATCH");
        assert_eq!(patched.len(), 2, "{patched:?}");
        let object = api.object(patched[0].trim_start_matches("PATCH ")).unwrap();
        assert_eq!((&object["count"], &object["source"]["host"]), (&json!(3), &json!("n1")));
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_kept_and_a_flood_is_dropped() {
        let api = FakeApi::default();
        let (events, writer) =
            events(api.client(), Component::Kubelet, "n1", EventRate { per_second: 1, burst: 5 });
        tokio::spawn(writer.run());
        for n in 0..5000 {
            let mut one = event("a");
            one.about.name = format!("p{n}");
            events.tell(one);
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        let written = api.calls("POST").len();
        assert!((10..=17).contains(&written), "{written}");
    }
}
