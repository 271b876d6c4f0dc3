//! The node's own Node object: created or set right at start, created anew when somebody deleted it, its
//! status written when it is worth it. What is written is decided in `longshore_core::node`.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerImage, Node, NodeCondition, NodeRuntimeHandler, NodeStatus};
use longshore_core::node::conditions::{Health, conditions};
use longshore_core::node::{self, NodeFacts, report};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::backoff::{Backoff, between};
use crate::client::{ApiClient, PatchKind};
use crate::error::ApiError;
use crate::path::Path;

/// While the node is not ready yet its status is looked at this often, for as long as
/// [`FAST_FOR`]: a node should be used the moment it can be.
const FAST: Duration = Duration::from_millis(100);
const FAST_FOR: Duration = Duration::from_secs(120);

/// What of the node can change while the daemon runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Condition {
    pub health: Health,
    pub images: Vec<ContainerImage>,
    /// What the runtime can make sandboxes by, in the order of their names.
    pub handlers: Vec<NodeRuntimeHandler>,
    pub facts: NodeFacts,
}

/// How often the status is computed and written.
#[derive(Clone, Copy, Debug)]
pub struct Frequencies {
    /// nodeStatusUpdateFrequency.
    pub update: Duration,
    /// nodeStatusReportFrequency: an unchanged status is written this often.
    pub report: Duration,
}

/// Keeps the Node object.
#[derive(Debug)]
pub struct NodeKeeper {
    pub client: ApiClient,
    pub name: String,
    pub frequencies: Frequencies,
    /// Whether the object may be created (registerNode).
    pub register: bool,
    /// What to say; a change is written at once.
    pub now: watch::Receiver<Condition>,
    /// The object as the server last told it; `None` once it is known to be gone: then it is made anew.
    pub told: watch::Sender<Option<Node>>,
}

/// What was written last, and when.
#[derive(Debug, Default)]
struct Written {
    status: Option<NodeStatus>,
    at: Option<Instant>,
    /// The pause until an unchanged status is written, drawn anew for each write.
    report_after: Duration,
}

impl NodeKeeper {
    /// Runs for ever; ends by being dropped.
    pub async fn run(mut self) {
        let started = Instant::now();
        let mut backoff = Backoff::new(FAST, Duration::from_secs(7));
        let mut written = Written::default();
        let mut told = self.told.subscribe();
        loop {
            let pause = match self.once(&mut written).await {
                Ok(()) => {
                    backoff.reset();
                    let ready = self.now.borrow().health.not_ready.is_empty();
                    let fast = !ready && started.elapsed() < FAST_FOR;
                    if fast { FAST } else { self.frequencies.update }
                }
                Err(error) => {
                    if backoff.tries() == 0 {
                        tracing::warn!(node = self.name, "Node object: {}", error.one_line());
                    }
                    error.retry_after().unwrap_or_default().max(backoff.pause())
                }
            };
            let failed = backoff.tries() > 0;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // A change is no reason to hammer a server that just failed.
                Ok(()) = self.now.changed(), if !failed => {}
                Ok(_) = told.wait_for(Option::is_none), if !failed => {}
            }
        }
    }

    async fn once(&mut self, written: &mut Written) -> Result<(), ApiError> {
        if self.told.borrow().is_none() {
            let there = self.registered().await?;
            *written = Written::default();
            self.told.send_replace(Some(there));
        }
        self.report(written).await
    }

    /// The object, made or set right where needed.
    async fn registered(&self) -> Result<Node, ApiError> {
        let now = self.now.borrow().clone();
        if self.register {
            let status = status(&now, &[], Timestamp::now());
            let made = self.client.create(&Path::nodes(), &node::new_node(&now.facts, status)).await;
            match made {
                Ok(node) => {
                    tracing::info!(node = self.name, "registered");
                    return Ok(node);
                }
                Err(error) if error.is_already_exists() => {}
                Err(error) => return Err(error),
            }
        }
        let there: Node = self.client.get(&Path::node(&self.name)).await?;
        match node::reconcile(&now.facts, &there) {
            None => Ok(there),
            Some(patch) => self.client.patch(&Path::node(&self.name), PatchKind::Strategic, &patch).await,
        }
    }

    async fn report(&mut self, written: &mut Written) -> Result<(), ApiError> {
        let now = self.now.borrow_and_update().clone();
        let prior = written.status.as_ref().and_then(|status| status.conditions.clone());
        let prior = prior.unwrap_or_else(|| self.told_conditions());
        let status = status(&now, &prior, Timestamp::now());
        let since = written.at.map_or(Duration::MAX, |at| at.elapsed());
        let contradicted = {
            let told = self.told.borrow();
            let told = told.as_ref().and_then(|node| node.status.as_ref());
            told.is_some_and(|told| report::is_contradicted(told, &status))
        };
        if !contradicted && !report::is_due(written.status.as_ref(), &status, since, written.report_after) {
            return Ok(());
        }
        let path = Path::node(&self.name).then("status");
        let patch = report::status_patch(&status);
        let told: Result<Node, _> = self.client.patch(&path, PatchKind::Strategic, &patch).await;
        match told {
            Ok(node) => {
                let half = self.frequencies.report / 2;
                *written = Written {
                    status: Some(status),
                    at: Some(Instant::now()),
                    report_after: between(half, self.frequencies.report + half),
                };
                self.told.send_replace(Some(node));
                Ok(())
            }
            // Deleted by somebody: the next turn makes it anew.
            Err(error) if error.is_not_found() => {
                tracing::warn!(node = self.name, "the Node object is gone; it is made anew");
                self.told.send_replace(None);
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    fn told_conditions(&self) -> Vec<NodeCondition> {
        let told = self.told.borrow();
        told.as_ref().and_then(|node| node.status.as_ref()?.conditions.clone()).unwrap_or_default()
    }
}

fn status(now: &Condition, prior: &[NodeCondition], at: Timestamp) -> NodeStatus {
    let conditions = conditions(&now.health, prior, at);
    node::node_status(&now.facts, conditions, now.images.clone(), now.handlers.clone())
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;
