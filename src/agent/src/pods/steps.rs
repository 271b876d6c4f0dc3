//! The steps of one pod that are under way, none twice, each with a span that carries pod, uid and step. They are
//! futures of the worker's own task, so that a pod goes from an answer to its next call without another task's
//! turn in between. What a step does is in `execute.rs`.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use longshore_core::ids::PodUid;
use longshore_core::pod::desired::DesiredPod;
use longshore_core::pod::observed::ObservedPod;
use longshore_core::pod::snapshot::NodeContext;
use longshore_core::pod::step::{Step, StepError, StepKey, StepOutcome};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// Carries out steps. The real one is `execute::Executor`.
#[async_trait]
pub trait Execute: Send + Sync + std::fmt::Debug + 'static {
    /// Carries out one step, deciding nothing. Has its own deadline.
    async fn execute(&self, job: StepJob) -> StepReport;
    /// Reads what the runtime has of a pod, after a step whose end is not known.
    async fn read(&self, uid: &PodUid) -> Option<ObservedPod>;
    /// Removes what people may still have wanted to read while the pod was known: its logs.
    async fn forget(&self, desired: &DesiredPod, node: &NodeContext);
}

/// One step with what its execution needs beside the step itself.
#[derive(Clone, Debug)]
pub struct StepJob {
    pub step: Step,
    pub desired: Arc<DesiredPod>,
    pub node: Arc<NodeContext>,
    pub observed: Arc<ObservedPod>,
    /// Orders pods at the start gate: smaller was wanted earlier.
    pub order: u64,
}

/// What came of a step.
#[derive(Clone, Debug)]
pub struct StepReport {
    pub outcome: StepOutcome,
    /// Time spent waiting for a slot or for the same image's pull by another pod.
    pub waited: Duration,
    /// What the runtime has now, where the step's own answer does not tell.
    pub reading: Option<ObservedPod>,
}

impl From<StepOutcome> for StepReport {
    fn from(outcome: StepOutcome) -> Self {
        Self { outcome, waited: Duration::ZERO, reading: None }
    }
}

/// A step that ended, and how.
#[derive(Debug)]
pub(super) struct Ended {
    pub step: Step,
    pub report: StepReport,
    pub panicked: bool,
}

#[derive(Debug, Default)]
pub(super) struct Steps {
    under_way: FuturesUnordered<BoxFuture<'static, Ended>>,
    cancels: HashMap<StepKey, CancellationToken>,
}

impl Steps {
    pub fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// The step begins when its end is waited for next.
    pub fn start(&mut self, executor: Arc<dyn Execute>, job: StepJob) {
        let cancel = CancellationToken::new();
        let (step, key, uid) = (job.step.clone(), job.step.key(), job.desired.uid.clone());
        let span = tracing::info_span!("step", pod = %job.desired.key, uid = %uid, step = %key);
        self.cancels.insert(key, cancel.clone());
        let work = async move {
            tokio::select! {
                biased;
                () = cancel.cancelled() => {
                    // The call may or may not have reached the runtime: look.
                    let reading = executor.read(&uid).await;
                    StepReport { outcome: StepOutcome::Cancelled, waited: Duration::ZERO, reading }
                }
                report = executor.execute(job) => report,
            }
        };
        // What a step leaves half done when it panics is what it leaves when the daemon is killed there.
        let ended = AssertUnwindSafe(work.instrument(span)).catch_unwind().map(|report| match report {
            Ok(report) => Ended { step, report, panicked: false },
            Err(_) => Ended { step, report: panic_report(), panicked: true },
        });
        self.under_way.push(ended.boxed());
    }

    /// Asks a step to stop half way; its end comes as [`StepOutcome::Cancelled`].
    pub fn cancel(&self, key: &StepKey) {
        if let Some(cancel) = self.cancels.get(key) {
            cancel.cancel();
        }
    }

    /// The next step that ends; never resolves while none is under way.
    pub async fn next(&mut self) -> Ended {
        let Some(ended) = self.under_way.next().await else { return std::future::pending().await };
        self.cancels.remove(&ended.step.key());
        ended
    }

    /// One more that has ended, without waiting for any.
    pub fn next_now(&mut self) -> Option<Ended> {
        self.next().now_or_never()
    }
}

fn panic_report() -> StepReport {
    StepReport::from(StepOutcome::Failed(StepError {
        reason: "InternalError".into(),
        message: "the agent failed inside this step; its log has a backtrace, please report it".into(),
        retryable: true,
    }))
}
