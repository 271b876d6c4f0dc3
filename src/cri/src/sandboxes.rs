//! Pod sandboxes: the trait the agent works with and its CRI implementation.

use async_trait::async_trait;
use jiff::Timestamp;
use longshore_core::ids::{PodKey, PodUid, SandboxId};
use longshore_core::pod::observed::{ObservedSandbox, SandboxState};
use longshore_core::pod::spec::SandboxSpec;

use crate::api::v1;
use crate::client::{CriClient, gone_is_done};
use crate::convert::{self, Listing};
use crate::counters::Operation;
use crate::error::CriError;

/// Life of pod sandboxes. Every call can be repeated after any failure but `run_sandbox`, whose name
/// (pod, uid, attempt) stays taken: list the pod before running it again.
#[async_trait]
pub trait Sandboxes: Send + Sync {
    /// Runs a sandbox, with its network set up when this returns. Deadline: twice the usual.
    async fn run_sandbox(&self, spec: &SandboxSpec) -> Result<SandboxId, CriError>;
    /// Kills what runs in it and gives its network back; a sandbox that is gone counts as stopped.
    async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), CriError>;
    /// Removes it with its containers; a sandbox that is gone counts as removed.
    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), CriError>;
    /// All about one sandbox, addresses included.
    async fn sandbox_status(&self, id: &SandboxId) -> Result<ObservedSandbox, CriError>;
    /// The sandboxes that match, in no order.
    async fn list_sandboxes(&self, filter: &SandboxFilter) -> Result<Listing<ListedSandbox>, CriError>;
}

/// Which sandboxes to list; unset fields match everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SandboxFilter {
    pub id: Option<SandboxId>,
    pub pod: Option<PodUid>,
    pub state: Option<SandboxState>,
}

/// What a list tells of a sandbox: no addresses, no network mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedSandbox {
    pub id: SandboxId,
    /// `None` for what was not made by a kubelet or by longshore (no pod uid label): leave it alone.
    pub pod: Option<PodUid>,
    pub key: PodKey,
    pub attempt: u32,
    pub state: SandboxState,
    pub created_at: Timestamp,
}

#[async_trait]
impl Sandboxes for CriClient {
    async fn run_sandbox(&self, spec: &SandboxSpec) -> Result<SandboxId, CriError> {
        let call = self.call(Operation::RunPodSandbox, &spec.key).deadline(Some(self.timeouts().unary * 2));
        let request = v1::RunPodSandboxRequest {
            config: Some(convert::sandbox_config(spec)),
            runtime_handler: spec.runtime_handler.clone(),
        };
        let answer = self.run(&call, request, |mut c, r| async move { c.run_pod_sandbox(r).await }).await?;
        let id = convert::id(&call.object, "pod_sandbox_id", &answer.pod_sandbox_id);
        id.map(SandboxId::from).map_err(|error| call.bad_answer(error))
    }

    async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), CriError> {
        let call = self.call(Operation::StopPodSandbox, id);
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: id.to_string() };
        gone_is_done(self.run(&call, request, |mut c, r| async move { c.stop_pod_sandbox(r).await }).await)
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), CriError> {
        let call = self.call(Operation::RemovePodSandbox, id);
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_string() };
        gone_is_done(self.run(&call, request, |mut c, r| async move { c.remove_pod_sandbox(r).await }).await)
    }

    async fn sandbox_status(&self, id: &SandboxId) -> Result<ObservedSandbox, CriError> {
        let call = self.call(Operation::PodSandboxStatus, id);
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_string(), verbose: false };
        let answer =
            self.run(&call, request, |mut c, r| async move { c.pod_sandbox_status(r).await }).await?;
        let status = call.present("status", answer.status)?;
        convert::observed_sandbox(&status).map_err(|error| call.bad_answer(error))
    }

    async fn list_sandboxes(&self, filter: &SandboxFilter) -> Result<Listing<ListedSandbox>, CriError> {
        let call = self.call_itself(Operation::ListPodSandbox);
        let request = v1::ListPodSandboxRequest { filter: Some(convert::sandbox_filter(filter)) };
        let answer = self.run(&call, request, |mut c, r| async move { c.list_pod_sandbox(r).await }).await?;
        Ok(Listing::collect(answer.items.iter().map(convert::listed_sandbox)))
    }
}
