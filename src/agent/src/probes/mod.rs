//! Probes of all containers of this node: one task keeps the schedule, a bounded number of tries run
//! beside it, and verdicts go to the pods' workers at once. When a verdict changes is decided in
//! `longshore_core::probe`, which try is due in `schedule`; how a try is made in one file per protocol.

pub mod attempt;
pub mod exec;
mod grpc;
pub mod http;
mod schedule;
mod tcp;
#[cfg(test)]
mod tests;

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use longshore_core::ids::{ContainerId, PodKey, PodUid};
use longshore_core::pod::desired::DesiredPod;
use longshore_core::pod::local::ProbeResult;
use longshore_core::pod::snapshot::{ProbeKind, ProbeTarget};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::config::ProbeSettings;
use crate::pods::{Clock, Probing};
use attempt::{Attempt, Outcome};
use schedule::{Due, Schedule};
pub use schedule::{ProbeStats, ProbeTotals};

/// A verdict that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub pod: PodUid,
    pub key: PodKey,
    pub container: ContainerId,
    pub kind: ProbeKind,
    pub result: ProbeResult,
}

/// Takes verdicts; called from the probing task, must not block.
pub type VerdictSink = Arc<dyn Fn(Verdict) + Send + Sync>;

/// The probe engine. Cheap to clone; all clones are one engine.
#[derive(Clone)]
pub struct Prober {
    inner: Arc<Inner>,
}

struct Inner {
    schedule: Mutex<Schedule>,
    wake: Notify,
    attempt: Arc<dyn Attempt>,
    clock: Clock,
}

impl fmt::Debug for Prober {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prober").field("totals", &self.totals()).finish_non_exhaustive()
    }
}

impl Prober {
    /// An engine that makes no try before [`Prober::run`].
    pub fn new(settings: ProbeSettings, attempt: Arc<dyn Attempt>, clock: Clock) -> Self {
        let schedule = Mutex::new(Schedule::new(settings, Instant::now(), clock.now()));
        Self { inner: Arc::new(Inner { schedule, wake: Notify::new(), attempt, clock }) }
    }

    /// These probes, and no others, run for the pod from now on. A probe that was there before with
    /// the same container instance and kind goes on with its counts.
    pub fn want_for(&self, uid: &PodUid, key: &PodKey, targets: Vec<ProbeTarget>) {
        let changed = self.lock().want(uid, key, targets, Instant::now(), self.inner.clock.now());
        if changed {
            self.inner.wake.notify_one();
        }
    }

    /// Every probe with its counts.
    pub fn stats(&self) -> Vec<ProbeStats> {
        self.lock().stats()
    }

    /// `/metrics/probes` of a kubelet.
    pub fn metrics_text(&self) -> String {
        crate::metrics::render_probes(&self.stats())
    }

    /// Counts over all probes since the start.
    pub fn totals(&self) -> ProbeTotals {
        self.lock().totals()
    }

    /// Makes tries and tells verdicts for as long as it is polled.
    pub async fn run(self, verdicts: VerdictSink) {
        let mut tries: JoinSet<(Due, Outcome)> = JoinSet::new();
        loop {
            for due in self.due_now() {
                let attempt = self.inner.attempt.clone();
                tries.spawn(async move {
                    let tried =
                        AssertUnwindSafe(attempt::with_retries(&*attempt, &due.target)).catch_unwind().await;
                    let outcome = tried.unwrap_or_else(|_| Outcome::Error("the try panicked".to_owned()));
                    (due, outcome)
                });
            }
            let next = self.lock().next_due();
            tokio::select! {
                // Panics are answers too, and nobody else can cancel a try.
                Some(Ok((due, outcome))) = tries.join_next() => self.finished(&due, outcome, &verdicts),
                () = self.inner.wake.notified() => {}
                () = sleep_until(next) => {}
            }
        }
    }

    fn due_now(&self) -> Vec<Due> {
        self.lock().due(Instant::now())
    }

    fn finished(&self, due: &Due, outcome: Outcome, verdicts: &VerdictSink) {
        let verdict = self.lock().finished(due, outcome, Instant::now(), self.inner.clock.now());
        if let Some(verdict) = verdict {
            tracing::info!(
                pod = %verdict.key, uid = %verdict.pod, container = %due.target.container,
                probe = ?verdict.kind, healthy = verdict.result.healthy,
                "probe verdict: {}", verdict.result.message
            );
            verdicts(verdict);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Schedule> {
        self.inner.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Probing for Prober {
    fn want(&self, pod: &DesiredPod, probes: Vec<ProbeTarget>) {
        self.want_for(&pod.uid, &pod.key, probes);
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
