//! Containers: the traits the agent works with and their CRI implementation.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use longshore_core::ids::{ContainerId, ContainerName, PodUid, SandboxId};
use longshore_core::pod::observed::ObservedContainer;
use longshore_core::pod::spec::{ContainerSpec, LinuxResources, SandboxSpec};

use crate::api::v1;
use crate::client::{CriClient, gone_is_done};
use crate::convert::{self, Listing};
use crate::counters::Operation;
use crate::error::CriError;

/// Life of containers. Every call can be repeated after any failure but `create_container`, whose name
/// (pod, container, attempt) stays taken: list the pod before creating it again.
#[async_trait]
pub trait Containers: Send + Sync {
    /// Creates a container in a ready sandbox; nothing runs yet. `sandbox_spec` is what the sandbox was
    /// run with. `NotFound` is of the image or of the sandbox, also of one that is no longer ready.
    async fn create_container(
        &self,
        sandbox: &SandboxId,
        spec: &ContainerSpec,
        sandbox_spec: &SandboxSpec,
    ) -> Result<ContainerId, CriError>;
    /// Starts a created container; a container runs once.
    async fn start_container(&self, id: &ContainerId) -> Result<(), CriError>;
    /// Stop signal, `grace` (whole seconds, rounded up), SIGKILL; returns when it is dead. A container
    /// that is gone counts as stopped. Deadline: the usual and the grace.
    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), CriError>;
    /// Removes it, by force if it runs; a container that is gone counts as removed.
    async fn remove_container(&self, id: &ContainerId) -> Result<(), CriError>;
    /// All about one container. CRI's status does not say which sandbox it is in; lists do.
    async fn container_status(
        &self,
        id: &ContainerId,
        sandbox: &SandboxId,
    ) -> Result<ObservedContainer, CriError>;
    /// The containers that match, in no order.
    async fn list_containers(&self, filter: &ContainerFilter) -> Result<Listing<ListedContainer>, CriError>;
}

/// What is done with containers while they run.
#[async_trait]
pub trait ContainerUpkeep: Send + Sync {
    /// Changes cgroup values; `None` fields are left as they are.
    async fn update_resources(&self, id: &ContainerId, resources: &LinuxResources) -> Result<(), CriError>;
    /// Makes the runtime write to a new log file, after the old one was renamed.
    async fn reopen_log(&self, id: &ContainerId) -> Result<(), CriError>;
    /// Writes the container's state to the file `location`, absolute; `within` is for the runtime itself.
    /// Many runtimes do not have this (`Unimplemented`).
    async fn checkpoint(
        &self,
        id: &ContainerId,
        location: &str,
        within: Option<Duration>,
    ) -> Result<(), CriError>;
    /// Usage of the running containers that match (`state` is not looked at).
    async fn container_stats(&self, filter: &ContainerFilter) -> Result<Listing<ContainerUsage>, CriError>;
}

/// A container's state without its data, as lists tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ContainerPhase {
    Created,
    Running,
    Exited,
    Unknown,
}

/// Which containers to list; unset fields match everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerFilter {
    pub id: Option<ContainerId>,
    pub sandbox: Option<SandboxId>,
    pub pod: Option<PodUid>,
    pub state: Option<ContainerPhase>,
}

/// What a list tells of a container: neither times nor exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedContainer {
    pub id: ContainerId,
    pub sandbox: SandboxId,
    /// `None` for what was not made by a kubelet or by longshore (no pod uid label): leave it alone.
    pub pod: Option<PodUid>,
    pub name: ContainerName,
    pub attempt: u32,
    pub phase: ContainerPhase,
    pub created_at: Timestamp,
}

/// Usage of one container; `None` where the runtime does not tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerUsage {
    pub id: ContainerId,
    pub pod: Option<PodUid>,
    pub name: ContainerName,
    /// When the cgroup was read; `None` where the runtime does not tell.
    pub at: Option<Timestamp>,
    /// Nanoseconds of CPU time since it was created, over all cores.
    pub cpu_nanoseconds: Option<u64>,
    /// Usage less inactive file cache, bytes.
    pub memory_working_set: Option<u64>,
    pub memory_usage: Option<u64>,
    pub memory_rss: Option<u64>,
    pub page_faults: Option<u64>,
    pub major_page_faults: Option<u64>,
    pub swap_usage: Option<u64>,
    /// Bytes and inodes of the writable layer.
    pub layer_bytes: Option<u64>,
    pub layer_inodes: Option<u64>,
}

#[async_trait]
impl Containers for CriClient {
    async fn create_container(
        &self,
        sandbox: &SandboxId,
        spec: &ContainerSpec,
        sandbox_spec: &SandboxSpec,
    ) -> Result<ContainerId, CriError> {
        let call =
            self.call(Operation::CreateContainer, format_args!("{} of {}", spec.name, sandbox_spec.key));
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_string(),
            config: Some(convert::container_config(spec)),
            sandbox_config: Some(convert::sandbox_config(sandbox_spec)),
        };
        let answer = self.run(&call, request, |mut c, r| async move { c.create_container(r).await }).await?;
        let id = convert::id(&call.object, "container_id", &answer.container_id);
        id.map(ContainerId::from).map_err(|error| call.bad_answer(error))
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), CriError> {
        let call = self.call(Operation::StartContainer, id);
        let request = v1::StartContainerRequest { container_id: id.to_string() };
        self.run(&call, request, |mut c, r| async move { c.start_container(r).await }).await.map(drop)
    }

    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), CriError> {
        let call = self.call(Operation::StopContainer, id).deadline(Some(self.timeouts().unary + grace));
        let request =
            v1::StopContainerRequest { container_id: id.to_string(), timeout: convert::whole_seconds(grace) };
        gone_is_done(self.run(&call, request, |mut c, r| async move { c.stop_container(r).await }).await)
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), CriError> {
        let call = self.call(Operation::RemoveContainer, id);
        let request = v1::RemoveContainerRequest { container_id: id.to_string() };
        gone_is_done(self.run(&call, request, |mut c, r| async move { c.remove_container(r).await }).await)
    }

    async fn container_status(
        &self,
        id: &ContainerId,
        sandbox: &SandboxId,
    ) -> Result<ObservedContainer, CriError> {
        let call = self.call(Operation::ContainerStatus, id);
        let request = v1::ContainerStatusRequest { container_id: id.to_string(), verbose: false };
        let answer = self.run(&call, request, |mut c, r| async move { c.container_status(r).await }).await?;
        let status = call.present("status", answer.status)?;
        convert::observed_container(&status, sandbox).map_err(|error| call.bad_answer(error))
    }

    async fn list_containers(&self, filter: &ContainerFilter) -> Result<Listing<ListedContainer>, CriError> {
        let call = self.call_itself(Operation::ListContainers);
        let request = v1::ListContainersRequest { filter: Some(convert::container_filter(filter)) };
        let answer = self.run(&call, request, |mut c, r| async move { c.list_containers(r).await }).await?;
        Ok(Listing::collect(answer.containers.iter().map(convert::listed_container)))
    }
}

#[async_trait]
impl ContainerUpkeep for CriClient {
    async fn update_resources(&self, id: &ContainerId, resources: &LinuxResources) -> Result<(), CriError> {
        let call = self.call(Operation::UpdateContainerResources, id);
        let request = v1::UpdateContainerResourcesRequest {
            container_id: id.to_string(),
            linux: Some(convert::linux_resources(resources)),
            ..Default::default()
        };
        self.run(&call, request, |mut c, r| async move { c.update_container_resources(r).await })
            .await
            .map(drop)
    }

    async fn reopen_log(&self, id: &ContainerId) -> Result<(), CriError> {
        let call = self.call(Operation::ReopenContainerLog, id);
        let request = v1::ReopenContainerLogRequest { container_id: id.to_string() };
        self.run(&call, request, |mut c, r| async move { c.reopen_container_log(r).await }).await.map(drop)
    }

    async fn checkpoint(
        &self,
        id: &ContainerId,
        location: &str,
        within: Option<Duration>,
    ) -> Result<(), CriError> {
        let deadline = within.map(|within| self.timeouts().unary + within);
        let call = self.call(Operation::CheckpointContainer, id).deadline(deadline);
        let request = v1::CheckpointContainerRequest {
            container_id: id.to_string(),
            location: location.to_owned(),
            timeout: within.map_or(0, convert::whole_seconds),
        };
        self.run(&call, request, |mut c, r| async move { c.checkpoint_container(r).await }).await.map(drop)
    }

    async fn container_stats(&self, filter: &ContainerFilter) -> Result<Listing<ContainerUsage>, CriError> {
        let call = self.call_itself(Operation::ListContainerStats);
        let request = v1::ListContainerStatsRequest { filter: Some(convert::stats_filter(filter)) };
        let answer =
            self.run(&call, request, |mut c, r| async move { c.list_container_stats(r).await }).await?;
        Ok(Listing::collect(answer.stats.iter().map(convert::container_usage)))
    }
}
