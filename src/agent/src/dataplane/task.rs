//! The dataplane's loop: waits for whatever comes first and runs one round. A change that arrives while
//! it is idle is applied at once; those that arrive during a round are taken together with the next.

use std::sync::Arc;

use longshore_core::service::view::DataplaneView;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};
use tokio_util::sync::CancellationToken;

use super::Request;
use super::engine::Engine;
use super::inbox::Inbox;
use crate::pods::Clock;

pub(super) struct Task {
    pub(super) engine: Engine,
    pub(super) inbox: Arc<Inbox>,
    pub(super) questions: mpsc::Receiver<Request>,
    pub(super) view: watch::Sender<Arc<DataplaneView>>,
    pub(super) synced: watch::Sender<bool>,
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
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = self.inbox.arrived() => {}
                () = sleep(retry.unwrap_or_default()), if retry.is_some() => {}
                _ = audits.tick() => {
                    self.engine.audit(self.clock.now()).await;
                }
                _ = drains.tick(), if self.engine.is_draining() => self.engine.drain(self.clock.now()).await,
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
        for change in self.inbox.take() {
            addresses_changed |= self.engine.take(change);
        }
        if addresses_changed {
            self.engine.host_addresses_changed().await;
        }
        self.engine.sync(self.clock.now()).await;
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
            Request::Audit(reply) => {
                let found = self.engine.audit(self.clock.now()).await;
                let _ = reply.send(found);
                return true;
            }
        }
        false
    }
}
