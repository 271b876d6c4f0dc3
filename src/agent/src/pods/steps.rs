//! The steps of one pod that are under way: each its own task, none twice, each with a span that
//! carries pod, uid and step. What a step does is in `execute.rs`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use longshore_core::ids::PodUid;
use longshore_core::pod::desired::DesiredPod;
use longshore_core::pod::observed::ObservedPod;
use longshore_core::pod::snapshot::NodeContext;
use longshore_core::pod::step::{Step, StepError, StepKey, StepOutcome};
use tokio::task::{Id, JoinError, JoinSet};
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

#[derive(Debug)]
struct Running {
    step: Step,
    cancel: CancellationToken,
}

#[derive(Debug, Default)]
pub(super) struct Steps {
    tasks: JoinSet<StepReport>,
    running: HashMap<Id, Running>,
}

impl Steps {
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    pub fn start(&mut self, executor: Arc<dyn Execute>, job: StepJob) {
        let cancel = CancellationToken::new();
        let token = cancel.clone();
        let step = job.step.clone();
        let uid = job.desired.uid.clone();
        let span = tracing::info_span!("step", pod = %job.desired.key, uid = %uid, step = %step.key());
        let work = async move {
            tokio::select! {
                biased;
                () = token.cancelled() => {
                    // The call may or may not have reached the runtime: look.
                    let reading = executor.read(&uid).await;
                    StepReport { outcome: StepOutcome::Cancelled, waited: Duration::ZERO, reading }
                }
                report = executor.execute(job) => report,
            }
        };
        let id = self.tasks.spawn(work.instrument(span)).id();
        self.running.insert(id, Running { step, cancel });
    }

    /// Asks a step to stop half way; its end comes as [`StepOutcome::Cancelled`].
    pub fn cancel(&self, key: &StepKey) {
        for running in self.running.values().filter(|running| running.step.key() == *key) {
            running.cancel.cancel();
        }
    }

    /// The next step that ends; never resolves while none is under way.
    pub async fn next(&mut self) -> Ended {
        let Some(joined) = self.tasks.join_next_with_id().await else {
            return std::future::pending().await;
        };
        self.ended(joined)
    }

    /// One more that has ended, without waiting for any.
    pub fn next_now(&mut self) -> Option<Ended> {
        let joined = self.tasks.try_join_next_with_id()?;
        Some(self.ended(joined))
    }

    fn ended(&mut self, joined: Result<(Id, StepReport), JoinError>) -> Ended {
        let (id, report, panicked) = match joined {
            Ok((id, report)) => (id, report, false),
            Err(error) => (error.id(), panic_report(), true),
        };
        let running = self.running.remove(&id).expect("every task was entered when it was spawned");
        Ended { step: running.step, report, panicked }
    }
}

fn panic_report() -> StepReport {
    StepReport::from(StepOutcome::Failed(StepError {
        reason: "InternalError".into(),
        message: "the agent failed inside this step; its log has a backtrace, please report it".into(),
        retryable: true,
    }))
}
