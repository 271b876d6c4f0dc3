//! The dataplane's loop: waits for whatever comes first and runs one round. A change that arrives while
//! it is idle is applied at once; those that arrive during a round are taken together with the next.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use longshore_core::ids::ObjectKey;
use longshore_core::service::problems::ObjectProblem;
use longshore_core::service::view::DataplaneView;
use longshore_kernel::memory;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::engine::Engine;
use super::inbox::Inbox;
use super::metrics::Round;
use super::{Change, HealthChecks, ProxyHealth, ProxyMetrics, Request};
use crate::pods::Clock;

pub(super) struct Task {
    pub(super) engine: Engine,
    pub(super) inbox: Arc<Inbox>,
    pub(super) questions: mpsc::Receiver<Request>,
    pub(super) view: watch::Sender<Arc<DataplaneView>>,
    pub(super) synced: watch::Sender<bool>,
    pub(super) checks: watch::Sender<Arc<HealthChecks>>,
    pub(super) problems: broadcast::Sender<ObjectProblem>,
    pub(super) health: ProxyHealth,
    pub(super) metrics: ProxyMetrics,
    pub(super) latency: Latency,
    pub(super) pace: Pace,
    pub(super) clock: Clock,
    pub(super) stop: CancellationToken,
}

impl Task {
    /// Runs until stopped. What is in the kernel stays there: connections outlive the daemon.
    pub(super) async fn run(mut self) {
        self.engine.start().await;
        self.round().await;
        let period = |every| {
            let mut timer = interval_at(Instant::now() + every, every);
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
            timer
        };
        let mut audits = period(self.engine.audit_period());
        let mut drains = period(self.engine.drain_period());
        let mut answering = true;
        loop {
            let retry = self.engine.next_retry().map(|at| self.clock.until(at));
            let turn = self.pace.turn;
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = self.inbox.arrived(), if turn.is_none() => if self.pace.too_early() {
                    continue;
                },
                () = sleep_until(turn.unwrap_or_else(Instant::now)), if turn.is_some() => {}
                () = sleep(retry.unwrap_or_default()), if retry.is_some() => {}
                _ = audits.tick() => {
                    self.engine.audit(self.clock.now()).await;
                }
                by = self.engine.touched_by_others() => self.engine.mend(by, self.clock.now()).await,
                _ = drains.tick(), if self.engine.is_draining() || self.engine.wants_to_retire() => {
                    self.engine.drain(self.clock.now()).await;
                    self.engine.retire().await;
                }
                question = self.questions.recv(), if answering => match question {
                    Some(question) => {
                        if !self.answer(question).await {
                            continue;
                        }
                    }
                    None => answering = false,
                },
            }
            self.round().await;
        }
    }

    async fn round(&mut self) {
        let mut addresses_changed = false;
        self.health.take();
        self.metrics.taken();
        for change in self.inbox.take() {
            self.latency.note(&change);
            addresses_changed |= self.engine.take(change);
        }
        self.tell_problems();
        if addresses_changed {
            self.engine.host_addresses_changed().await;
        }
        let first = !self.engine.is_synced();
        let round = self.engine.sync(self.clock.now()).await;
        self.pace.ended(round.map(|round| (round.took, round.full)), self.engine.min_sync_period());
        self.tell(round);
        if round.is_some_and(|round| round.full) {
            // What a look at everything takes is more than what is kept of it. Nobody waits for this.
            tokio::task::spawn_blocking(memory::give_back);
        }
        if first && self.engine.wants_to_retire() {
            self.engine.retire().await;
            self.view.send_replace(Arc::new(self.engine.view()));
        }
    }

    fn tell_problems(&mut self) {
        for problem in self.engine.take_problems() {
            let about = &problem.about;
            tracing::warn!(
                reason = problem.reason,
                "{} {}/{}: {}",
                about.kind,
                about.namespace,
                about.name,
                problem.message
            );
            // Without a control plane nobody listens.
            let _ = self.problems.send(problem);
        }
    }

    fn tell(&mut self, round: Option<Round>) {
        let now = self.clock.now();
        if let Some(round) = round {
            self.metrics.synced(round, self.engine.is_nftables(), now);
        }
        if self.engine.keeps_up() {
            self.health.update();
            self.latency.programmed(now).for_each(|took| self.metrics.programmed(took));
        }
        if let Some((deleted, took)) = self.engine.take_flows_compared() {
            self.metrics.flows_compared(deleted, took);
        }
        self.health.set_timeout(self.engine.audit_period() * 2);
        if let Some(checks) = self.engine.take_health_checks() {
            self.checks.send_if_modified(|old| {
                let news = **old != checks;
                if news {
                    *old = Arc::new(checks);
                }
                news
            });
        }
        self.view.send_replace(Arc::new(self.engine.view()));
        let synced = self.engine.is_synced();
        self.synced.send_if_modified(|was| std::mem::replace(was, synced) != synced);
    }

    /// Whether the answer changed something.
    async fn answer(&mut self, question: Request) -> bool {
        // Whoever asked may have gone: then nobody hears the answer.
        match question {
            Request::List(reply) => drop(reply.send(self.engine.list())),
            Request::Explain(query, reply) => drop(reply.send(self.engine.explain(&query))),
            Request::Frontends(reply) => drop(reply.send(self.engine.frontends())),
            Request::Diff(reply) => drop(reply.send(self.engine.diff().await)),
            Request::Repair(reply) => {
                let view = self.engine.repair(self.clock.now()).await;
                let _ = reply.send(view);
                return true;
            }
            Request::Pending(reply) => drop(reply.send(self.engine.pending())),
            Request::Figures(reply) => drop(reply.send(self.engine.figures())),
            Request::Audit(reply) => {
                let found = self.engine.audit(self.clock.now()).await;
                let _ = reply.send(found);
                return true;
            }
        }
        false
    }
}

/// A round longer than this makes the next one wait as long again, so that a flood of changes takes
/// half of the time at most.
const SHORT_ROUND: Duration = Duration::from_millis(20);
const PAUSE_AT_MOST: Duration = Duration::from_secs(1);

/// When the next round may be: at once where none was lately, else together with what comes meanwhile.
#[derive(Debug, Default)]
pub(super) struct Pace {
    not_before: Option<Instant>,
    /// Changes wait until then.
    turn: Option<Instant>,
}

impl Pace {
    /// Something arrived; whether it has to wait for its turn.
    fn too_early(&mut self) -> bool {
        self.turn = self.not_before.filter(|at| *at > Instant::now());
        self.turn.is_some()
    }

    /// A round ended that took so long, if there was anything to do. One that looked at everything, as the
    /// first does, tells of no flood. `min` is `minSyncPeriod`.
    fn ended(&mut self, round: Option<(Duration, bool)>, min: Option<Duration>) {
        self.turn = None;
        let Some((took, full)) = round else { return };
        let by_itself = if full || took < SHORT_ROUND { Duration::ZERO } else { took.min(PAUSE_AT_MOST) };
        self.not_before = Some(Instant::now() + min.unwrap_or(by_itself));
    }
}

/// Since when changes of endpoints wait to be in the kernel, by what EndpointSlices say of it
/// (`endpoints.kubernetes.io/last-change-trigger-time`). Of a change told twice the first counts.
#[derive(Debug)]
pub(super) struct Latency {
    /// Older changes were programmed by an earlier run.
    started: Timestamp,
    newest: BTreeMap<ObjectKey, Timestamp>,
    waiting: Vec<Timestamp>,
}

impl Latency {
    pub(super) fn new(started: Timestamp) -> Self {
        Latency { started, newest: BTreeMap::new(), waiting: Vec::new() }
    }

    fn note(&mut self, change: &Change) {
        match change {
            Change::Slice(slice) => {
                let text = slice.metadata.annotations.last_change_trigger_time.as_deref();
                let Some(at) = text.and_then(|text| text.parse::<Timestamp>().ok()) else { return };
                let before = self.newest.insert(slice.key(), at);
                if at > self.started && before != Some(at) {
                    self.waiting.push(at);
                }
            }
            Change::SliceGone(key) => drop(self.newest.remove(key)),
            _ => {}
        }
    }

    /// All that waited is in the kernel: how long each took.
    fn programmed(&mut self, now: Timestamp) -> impl Iterator<Item = Duration> + use<> {
        let took = move |at: Timestamp| Duration::try_from(now.duration_since(at)).unwrap_or_default();
        std::mem::take(&mut self.waiting).into_iter().map(took)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_round_follows_at_once_when_idle_and_waits_its_turn_under_load() {
        let seconds = Duration::from_secs;
        let part = |millis| Some((Duration::from_millis(millis), false));
        // What the last round took and whether it looked at everything, `minSyncPeriod`, and how long a
        // change right after it waits.
        let table = [
            (None, Some(seconds(9)), Duration::ZERO),
            (part(2), None, Duration::ZERO),
            (part(300), None, Duration::from_millis(300)),
            (part(20_000), None, seconds(1)),
            (Some((seconds(20), true)), None, Duration::ZERO),
            (Some((seconds(20), true)), Some(seconds(2)), seconds(2)),
            (part(2), Some(seconds(2)), seconds(2)),
            (part(20_000), Some(Duration::ZERO), Duration::ZERO),
        ];
        for (round, min, want) in table {
            let mut pace = Pace::default();
            pace.ended(round, min);
            assert_eq!(pace.too_early(), !want.is_zero(), "{round:?} {min:?}");
            assert_eq!(
                pace.turn.map(|at| at - Instant::now()).unwrap_or_default(),
                want,
                "{round:?} {min:?}"
            );
            tokio::time::advance(seconds(2)).await;
            assert!(!pace.too_early(), "idle long enough");
        }
    }

    #[test]
    fn a_change_told_twice_is_measured_once_and_old_ones_never() {
        let at = |second: i64| Timestamp::from_second(1_800_000_000 + second).unwrap();
        let slice = |name: &str, trigger: &str| {
            let value = serde_json::json!({"metadata": {"name": name, "namespace": "ns",
                "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": trigger}},
                "addressType": "IPv4", "endpoints": [], "ports": []});
            Change::Slice(Box::new(serde_json::from_value(value).unwrap()))
        };
        let mut latency = Latency::new(at(0));
        let (old, new) = (at(-5).to_string(), at(1).to_string());
        for (name, trigger) in [("a", &new), ("a", &new), ("b", &old), ("c", &"soon".to_owned())] {
            latency.note(&slice(name, trigger));
        }
        assert_eq!(latency.programmed(at(4)).collect::<Vec<_>>(), [Duration::from_secs(3)]);
        latency.note(&slice("a", &new));
        assert_eq!(latency.programmed(at(5)).count(), 0);
        latency.note(&slice("a", &at(6).to_string()));
        latency.note(&Change::SliceGone(ObjectKey::new("ns", "a")));
        latency.note(&slice("a", &at(6).to_string()));
        assert_eq!(latency.programmed(at(7)).count(), 2, "made anew, it is another");
    }
}
