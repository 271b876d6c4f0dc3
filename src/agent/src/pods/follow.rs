//! Following the runtime: its events wake workers at once, its health decides whether steps may ask
//! it anything, and an audit finds what no event told. Nothing here decides about pods.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use jiff::Timestamp;
use longshore_core::ids::PodUid;
use longshore_core::pod::observed::{ContainerState, ObservedPod, SandboxState};
use longshore_cri::{
    ContainerEvents, ContainerPhase, CriError, ErrorKind, EventKind, Observer, PodDigest, RuntimeEvent,
    RuntimeInfo,
};
use tokio::sync::{Notify, watch};

use super::clock::Clock;
use super::inbox::Part;
use super::messages::ExitMessages;
use super::{Pods, PodsView};

/// Between audits where events come.
pub const AUDIT_PERIOD: Duration = Duration::from_secs(60);
/// Between listings where the runtime has no events: a crashed container has to run again within a second.
const RELIST_PERIOD: Duration = Duration::from_millis(700);
/// Between listings until the first event has come. Containerd before 2.0 hands each event to one subscriber,
/// the one that waits longest, and notices only then that it has gone: what a daemon before this one left
/// subscribed takes the next event with it.
const PROOF_PERIOD: Duration = Duration::from_secs(2);
const HEALTH_PERIOD: Duration = Duration::from_secs(5);
const HEALTH_PERIOD_DOWN: Duration = Duration::from_millis(500);
const RESUBSCRIBE_PAUSE: Duration = Duration::from_millis(500);

/// How the runtime is, as people and pods should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeHealth {
    /// Name and version; empty before the first answer.
    pub runtime: String,
    /// Err: what is wrong and since when.
    pub answers: Result<(), String>,
    /// Err: what the runtime says of the pod network.
    pub network: Result<(), String>,
    pub since: Timestamp,
}

/// How the runtime's news is had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listening {
    /// Events come.
    Events,
    /// Subscribed, and nothing has come by this subscription yet.
    Unproven,
    /// The runtime has no events.
    Lists,
}

impl Listening {
    /// Time between listings.
    fn period(self) -> Duration {
        match self {
            Listening::Events => AUDIT_PERIOD,
            Listening::Unproven => PROOF_PERIOD,
            Listening::Lists => RELIST_PERIOD,
        }
    }
}

/// Watches one runtime on behalf of all pods.
pub struct Follower {
    pub clock: Clock,
    pub pods: Pods,
    pub observer: Observer,
    pub events: Arc<dyn ContainerEvents>,
    pub info: Arc<dyn RuntimeInfo>,
    pub health: watch::Sender<RuntimeHealth>,
    pub up: watch::Sender<bool>,
    /// Asks for a health check now.
    pub check: Notify,
    /// Asks for an audit now.
    pub audit: Notify,
    pub listening: watch::Sender<Listening>,
    pub messages: ExitMessages,
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follower").field("health", &self.health).finish_non_exhaustive()
    }
}

impl Follower {
    /// Hands events to the workers for as long as the daemon runs.
    pub async fn follow_events(&self) {
        loop {
            let mut events = self.events.subscribe();
            self.now_listening(Listening::Unproven);
            // What happened before the subscription stood is found by listing.
            self.audit.notify_one();
            while let Some(event) = events.next().await {
                match event {
                    Ok(event) => {
                        self.now_listening(Listening::Events);
                        self.take_event(event).await;
                    }
                    Err(error) if error.kind == ErrorKind::Unimplemented => {
                        tracing::info!(
                            "the runtime has no container events; listing it every {RELIST_PERIOD:?}"
                        );
                        self.now_listening(Listening::Lists);
                        self.audit.notify_one();
                        return;
                    }
                    Err(error) => {
                        tracing::warn!(error = error.one_line(), "the runtime's events broke off");
                        break;
                    }
                }
            }
            self.check.notify_one();
            tokio::time::sleep(RESUBSCRIBE_PAUSE).await;
            // Without an answer there is nothing to subscribe to.
            let _ = self.up.subscribe().wait_for(|up| *up).await;
        }
    }

    fn now_listening(&self, how: Listening) {
        self.listening.send_if_modified(|listening| std::mem::replace(listening, how) != how);
    }

    async fn take_event(&self, event: RuntimeEvent) {
        let uid = event.pod.clone().or_else(|| owner(&self.pods.view(), &event.subject));
        let Some(uid) = uid else { return };
        let removed = (event.kind == EventKind::Deleted).then(|| event.subject.clone());
        if event.sandbox.is_none() && event.containers.is_none() && removed.is_none() {
            self.reread(&uid).await;
            return;
        }
        let mut containers = event.containers.unwrap_or_default();
        self.messages.add(&uid, &mut containers).await;
        let part = Part { at: event.at, sandbox: event.sandbox, containers, removed };
        self.pods.event(&uid, part);
    }

    async fn reread(&self, uid: &PodUid) {
        match self.observer.observe_pod(uid, self.clock.now()).await {
            Ok(Some(mut pod)) => {
                self.messages.add_to_pod(&mut pod).await;
                self.pods.observe(pod);
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(%uid, error = error.one_line(), "pod could not be read"),
        }
    }

    /// Compares what the runtime lists with what is known, again and again.
    pub async fn keep_auditing(&self) {
        let mut listening = self.listening.subscribe();
        loop {
            let period = listening.borrow_and_update().period();
            tokio::select! {
                () = tokio::time::sleep(period) => {}
                () = self.audit.notified() => {}
                Ok(()) = listening.changed() => continue,
            }
            if !*self.up.borrow() {
                continue;
            }
            if let Err(error) = self.audit_once().await {
                tracing::warn!(error = error.one_line(), "audit");
                self.check.notify_one();
            }
        }
    }

    /// One comparison; pods that differ are read again in full.
    ///
    /// # Errors
    /// Of the listing or the first reading that fails.
    pub async fn audit_once(&self) -> Result<(), CriError> {
        let at = self.clock.now();
        let mut listed = self.observer.digests().await?;
        for view in self.pods.view().list() {
            let now = listed.remove(&view.uid).unwrap_or_default();
            if now == digest(&view.observed) {
                continue;
            }
            let read = self.observer.observe_pod(&view.uid, self.clock.now()).await?;
            let mut pod = read.unwrap_or_else(|| nothing(&view.observed, at));
            self.messages.add_to_pod(&mut pod).await;
            self.pods.audited(pod);
        }
        for uid in listed.into_keys() {
            if let Some(pod) = self.observer.observe_pod(&uid, self.clock.now()).await? {
                self.pods.audited(pod);
            }
        }
        Ok(())
    }

    /// Asks the runtime how it is, and says what came of it.
    pub async fn keep_checking(&self) {
        loop {
            let period = if *self.up.borrow() { HEALTH_PERIOD } else { HEALTH_PERIOD_DOWN };
            tokio::select! {
                () = tokio::time::sleep(period) => {}
                () = self.check.notified() => {}
            }
            self.check_once().await;
        }
    }

    /// One question and its consequences.
    pub async fn check_once(&self) {
        let was_up = *self.up.borrow();
        let answer = self.info.status().await;
        let mut health = self.health.borrow().clone();
        let now = self.clock.now();
        match answer {
            Ok(status) => {
                if !was_up {
                    health.since = now;
                    if let Ok(version) = self.info.version().await {
                        health.runtime = format!("{} {}", version.name, version.version);
                    }
                    tracing::info!(runtime = health.runtime, "the runtime answers");
                }
                health.answers = match status.condition("RuntimeReady") {
                    Some(condition) if !condition.status => {
                        Err(format!("{}: {}", condition.reason, condition.message))
                    }
                    _ => Ok(()),
                };
                health.network = match status.condition("NetworkReady") {
                    Some(condition) if !condition.status => {
                        Err(format!("{}: {}", condition.reason, condition.message))
                    }
                    _ => Ok(()),
                };
                self.tell(health);
                self.up.send_if_modified(|up| !std::mem::replace(up, true));
                if !was_up {
                    self.audit.notify_one();
                }
            }
            Err(error) => {
                if was_up || health.answers.is_ok() {
                    health.since = now;
                    tracing::error!(
                        error = error.one_line(),
                        "the runtime does not answer; what runs goes on"
                    );
                }
                health.answers =
                    Err(format!("down since {}: {}", health.since.strftime("%H:%M:%SZ"), error.one_line()));
                self.tell(health);
                self.up.send_if_modified(|up| std::mem::replace(up, false));
            }
        }
    }

    fn tell(&self, health: RuntimeHealth) {
        self.health.send_if_modified(|old| {
            let news = *old != health;
            *old = health;
            news
        });
    }
}

/// The pod a runtime id belongs to.
fn owner(view: &PodsView, id: &str) -> Option<PodUid> {
    let has = |pod: &ObservedPod| {
        pod.sandboxes.iter().any(|s| s.id.as_str() == id)
            || pod.containers.iter().any(|c| c.id.as_str() == id)
    };
    view.list().into_iter().find(|view| has(&view.observed)).map(|view| view.uid.clone())
}

fn nothing(pod: &ObservedPod, at: Timestamp) -> ObservedPod {
    ObservedPod { sandboxes: Vec::new(), containers: Vec::new(), observed_at: at, ..pod.clone() }
}

/// What a listing would say of the pod as it is known.
fn digest(pod: &ObservedPod) -> PodDigest {
    let phase = |state: &ContainerState| match state {
        ContainerState::Created => ContainerPhase::Created,
        ContainerState::Running { .. } => ContainerPhase::Running,
        ContainerState::Exited { .. } => ContainerPhase::Exited,
        ContainerState::Unknown => ContainerPhase::Unknown,
    };
    let sandboxes: BTreeMap<_, SandboxState> =
        pod.sandboxes.iter().map(|s| (s.id.clone(), s.state)).collect();
    let containers = pod.containers.iter().map(|c| (c.id.clone(), phase(&c.state))).collect();
    PodDigest { sandboxes, containers }
}
