//! The calls of the fake runtime: faults and costs first, then the state. Calls that are not here are
//! unimplemented, as in an older runtime.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, async_trait};

use super::faults::{Effect, lost};
use super::script::{ExecScript, Exit, OnStop, Run};
use super::state::{Container, no_container, no_sandbox};
use super::{FakeRuntime, finish_later, gone_down, locked};
use crate::api::v1;
use crate::api::v1::image_service_server::ImageService;
use crate::api::v1::runtime_service_server::RuntimeService;
use crate::counters::Operation;
use crate::runtime_info::CgroupDriver;

type Reply<T> = Result<Response<T>, Status>;

impl FakeRuntime {
    /// One call: counted, hit by faults, delayed by its cost, carried out.
    async fn serve<T>(
        &self,
        operation: Operation,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Reply<T> {
        let started = Instant::now();
        let _busy = self.inner.busy.begin();
        let mut down = self.inner.down.subscribe();
        let result = tokio::select! {
            biased;
            _ = gone_down(&mut down) => Err(Status::unavailable("the runtime is down")),
            result = self.attempt(operation, work) => result,
        };
        self.inner.counters.record(operation, started.elapsed(), result.is_err());
        result.map(Response::new)
    }

    async fn attempt<T>(
        &self,
        operation: Operation,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let effect = locked(&self.inner.faults).next(operation);
        match &effect {
            Some(Effect::Fail(code, text)) => return Err(Status::new(*code, text.clone())),
            Some(Effect::Hang) => return std::future::pending().await,
            Some(Effect::LoseAnswer | Effect::HangAfter | Effect::Late(_)) | None => {}
        }
        let cost = locked(&self.inner.settings).costs.get(&operation).copied().unwrap_or_default();
        if !cost.is_zero() {
            tokio::time::sleep(cost).await;
        }
        let result = work.await;
        match effect {
            Some(Effect::LoseAnswer) => Err(lost()),
            Some(Effect::HangAfter) => std::future::pending().await,
            Some(Effect::Late(by)) => {
                tokio::time::sleep(by).await;
                result
            }
            _ => result,
        }
    }

    async fn start(&self, id: String) -> Result<v1::StartContainerResponse, Status> {
        let now = self.inner.now();
        let mut state = locked(&self.inner.state);
        let (result, change) = state.start_container(&id, now);
        let path = state.containers.get(&id).map(|container| state.log_path(container)).unwrap_or_default();
        self.inner.tell(state, change.into_iter().collect());
        let run = result?;
        self.write_log(&path, &run)?;
        if let Some(exit) = run.exit {
            // At once means before the answer: the fastest crash a caller can see.
            if exit.after.is_zero() {
                self.inner.finish(&id, exit.code, &exit.reason);
            } else {
                finish_later(Arc::downgrade(&self.inner), id, exit);
            }
        }
        Ok(v1::StartContainerResponse {})
    }

    fn write_log(&self, path: &str, run: &Run) -> Result<(), Status> {
        if !self.inner.options.write_logs || path.is_empty() {
            return Ok(());
        }
        let mut text = String::new();
        for line in &run.output {
            text.push_str(&format!("{} stdout F {line}\n", self.now()));
        }
        let folder = std::path::Path::new(path).parent().unwrap_or(std::path::Path::new("/"));
        std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(path, text))
            .map_err(|error| Status::unknown(format!("failed to create container loggers: {path}: {error}")))
    }

    /// Stop signal, grace, SIGKILL. What is not running is stopped already.
    async fn stop(&self, id: String, grace: Duration) -> Result<v1::StopContainerResponse, Status> {
        let on_stop = match locked(&self.inner.state).running(&id) {
            Ok(container) => container.run.on_stop.clone(),
            Err(_) => return Ok(v1::StopContainerResponse {}),
        };
        if !grace.is_zero() {
            if let OnStop::ExitAfter { after, code } = on_stop {
                // The process has the signal now, even if the caller goes away.
                let exit = Exit { after, code, reason: String::new() };
                finish_later(Arc::downgrade(&self.inner), id.clone(), exit);
            }
            let _ = tokio::time::timeout(grace, self.inner.ended(&id)).await;
        }
        self.inner.finish(&id, 137, "Error");
        Ok(v1::StopContainerResponse {})
    }

    async fn exec(&self, request: v1::ExecSyncRequest) -> Result<v1::ExecSyncResponse, Status> {
        let name = self.running_name(&request.container_id)?;
        let script: ExecScript = locked(&self.inner.settings).execs.get(&name).cloned().unwrap_or_default();
        let limit =
            u64::try_from(request.timeout).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs);
        if let Some(limit) = limit.filter(|limit| *limit < script.takes) {
            tokio::time::sleep(limit).await;
            let text =
                format!("failed to exec in container: timeout {limit:?} exceeded: context deadline exceeded");
            return Err(Status::deadline_exceeded(text));
        }
        tokio::time::sleep(script.takes).await;
        Ok(v1::ExecSyncResponse { stdout: script.stdout, stderr: script.stderr, exit_code: script.exit_code })
    }

    fn running_name(&self, id: &str) -> Result<String, Status> {
        let state = locked(&self.inner.state);
        let container = state.running(id)?;
        Ok(container.config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default())
    }

    async fn pull(&self, request: v1::PullImageRequest) -> Result<v1::PullImageResponse, Status> {
        let name = request.image.map(|image| image.image).unwrap_or_default();
        let script = locked(&self.inner.settings).pulls.get(&name).cloned();
        if script.is_none() && !self.inner.options.pull_unknown {
            return Err(Status::not_found(format!(
                "failed to resolve reference {name:?}: {name}: not found"
            )));
        }
        let script = script.unwrap_or_default();
        tokio::time::sleep(script.takes).await;
        if let Some(wanted) = script.wants {
            let given = request.auth.map(|auth| (auth.username, auth.password));
            if given != Some(wanted) {
                return Err(Status::unknown(super::script::REFUSED));
            }
        }
        if let Some(failure) = script.failure {
            match failure.times {
                Some(0) => {}
                Some(_) => {
                    let mut settings = locked(&self.inner.settings);
                    let left = settings
                        .pulls
                        .get_mut(&name)
                        .and_then(|script| script.failure.as_mut()?.times.as_mut());
                    left.into_iter().for_each(|left| *left = left.saturating_sub(1));
                    return Err(Status::new(failure.code, failure.text));
                }
                None => return Err(Status::new(failure.code, failure.text)),
            }
        }
        Ok(v1::PullImageResponse { image_ref: self.add_image(&name) })
    }

    fn statuses(&self) -> Vec<v1::RuntimeCondition> {
        let broken = locked(&self.inner.state).network_error.clone();
        let condition = |kind: &str, bad: Option<String>, reason: &str| v1::RuntimeCondition {
            r#type: kind.to_owned(),
            status: bad.is_none(),
            reason: if bad.is_some() { reason.to_owned() } else { String::new() },
            message: bad.unwrap_or_default(),
        };
        vec![condition("RuntimeReady", None, ""), condition("NetworkReady", broken, "NetworkPluginNotReady")]
    }

    fn usage(&self, id: &str, container: &Container) -> v1::ContainerStats {
        let metadata = container.config.metadata.clone();
        let name = metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
        let (cpu, memory) = locked(&self.inner.settings).usage.get(&name).copied().unwrap_or_default();
        let timestamp = self.inner.now();
        v1::ContainerStats {
            attributes: Some(v1::ContainerAttributes {
                id: id.to_owned(),
                metadata,
                labels: container.config.labels.clone(),
                annotations: container.config.annotations.clone(),
            }),
            cpu: Some(v1::CpuUsage {
                timestamp,
                usage_core_nano_seconds: Some(v1::UInt64Value { value: cpu }),
                ..Default::default()
            }),
            memory: Some(v1::MemoryUsage {
                timestamp,
                working_set_bytes: Some(v1::UInt64Value { value: memory }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }
}

fn labels_match(
    wanted: &std::collections::HashMap<String, String>,
    labels: &std::collections::HashMap<String, String>,
) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn text_matches(wanted: &str, text: &str) -> bool {
    wanted.is_empty() || wanted == text
}

/// Events from now on; broken off when the runtime goes down or the streams are cut.
fn event_stream(
    events: broadcast::Receiver<v1::ContainerEventResponse>,
    down: watch::Receiver<bool>,
    cut: watch::Receiver<u64>,
) -> impl Stream<Item = Result<v1::ContainerEventResponse, Status>> + Send {
    stream::unfold(Some((events, down, cut)), |streams| async move {
        let (mut events, mut down, mut cut) = streams?;
        loop {
            tokio::select! {
                biased;
                _ = gone_down(&mut down) => {
                    return Some((Err(Status::unavailable("the runtime is down")), None));
                }
                _ = cut.changed() => return Some((Err(lost()), None)),
                event = events.recv() => match event {
                    Ok(event) => return Some((Ok(event), Some((events, down, cut)))),
                    // Too slow: what was missed is gone, as with containerd.
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                },
            }
        }
    })
}

#[async_trait]
impl RuntimeService for FakeRuntime {
    async fn version(&self, _: Request<v1::VersionRequest>) -> Reply<v1::VersionResponse> {
        self.serve(Operation::Version, async {
            Ok(v1::VersionResponse {
                version: "0.1.0".to_owned(),
                runtime_name: "fake".to_owned(),
                runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
                runtime_api_version: self.inner.options.api_version.clone(),
            })
        })
        .await
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Reply<v1::StatusResponse> {
        self.serve(Operation::Status, async {
            let status = Some(v1::RuntimeStatus { conditions: self.statuses() });
            Ok(v1::StatusResponse { status, ..Default::default() })
        })
        .await
    }

    async fn runtime_config(&self, _: Request<v1::RuntimeConfigRequest>) -> Reply<v1::RuntimeConfigResponse> {
        self.serve(Operation::RuntimeConfig, async {
            let driver = match self.inner.options.cgroup_driver {
                Some(CgroupDriver::Systemd) => v1::CgroupDriver::Systemd,
                Some(CgroupDriver::Cgroupfs) => v1::CgroupDriver::Cgroupfs,
                None => return Err(Status::unimplemented("unknown method RuntimeConfig")),
            };
            let linux = Some(v1::LinuxRuntimeConfiguration { cgroup_driver: driver.into() });
            Ok(v1::RuntimeConfigResponse { linux })
        })
        .await
    }

    async fn update_runtime_config(
        &self,
        _: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Reply<v1::UpdateRuntimeConfigResponse> {
        self.serve(Operation::UpdateRuntimeConfig, async { Ok(v1::UpdateRuntimeConfigResponse {}) }).await
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Reply<v1::RunPodSandboxResponse> {
        self.serve(Operation::RunPodSandbox, async {
            let now = self.inner.now();
            let mut state = locked(&self.inner.state);
            let (pod_sandbox_id, changes) = state.run_sandbox(request.into_inner(), now)?;
            self.inner.tell(state, changes);
            Ok(v1::RunPodSandboxResponse { pod_sandbox_id })
        })
        .await
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Reply<v1::StopPodSandboxResponse> {
        self.serve(Operation::StopPodSandbox, async {
            let now = self.inner.now();
            let mut state = locked(&self.inner.state);
            let changes = state.stop_sandbox(&request.into_inner().pod_sandbox_id, now);
            self.inner.tell(state, changes);
            Ok(v1::StopPodSandboxResponse {})
        })
        .await
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Reply<v1::RemovePodSandboxResponse> {
        self.serve(Operation::RemovePodSandbox, async {
            let now = self.inner.now();
            let mut state = locked(&self.inner.state);
            let changes = state.remove_sandbox(&request.into_inner().pod_sandbox_id, now);
            self.inner.tell(state, changes);
            Ok(v1::RemovePodSandboxResponse {})
        })
        .await
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Reply<v1::PodSandboxStatusResponse> {
        self.serve(Operation::PodSandboxStatus, async {
            let id = request.into_inner().pod_sandbox_id;
            let status = locked(&self.inner.state).sandbox_status(&id).ok_or_else(|| no_sandbox(&id))?;
            Ok(v1::PodSandboxStatusResponse { status: Some(status), ..Default::default() })
        })
        .await
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Reply<v1::ListPodSandboxResponse> {
        self.serve(Operation::ListPodSandbox, async {
            let filter = request.into_inner().filter.unwrap_or_default();
            let state = locked(&self.inner.state);
            let matching = state.sandboxes.iter().filter(|(id, sandbox)| {
                text_matches(&filter.id, id)
                    && filter.state.as_ref().is_none_or(|wanted| wanted.state() == sandbox.state())
                    && labels_match(&filter.label_selector, &sandbox.config.labels)
            });
            let items = matching.map(|(id, sandbox)| v1::PodSandbox {
                id: id.clone(),
                metadata: sandbox.config.metadata.clone(),
                state: sandbox.state().into(),
                created_at: sandbox.created_at,
                labels: sandbox.config.labels.clone(),
                annotations: sandbox.config.annotations.clone(),
                runtime_handler: sandbox.handler.clone(),
            });
            Ok(v1::ListPodSandboxResponse { items: items.collect() })
        })
        .await
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Reply<v1::CreateContainerResponse> {
        self.serve(Operation::CreateContainer, async {
            let now = self.inner.now();
            let mut state = locked(&self.inner.state);
            let (container_id, change) = state.create_container(request.into_inner(), now)?;
            self.inner.tell(state, vec![change]);
            Ok(v1::CreateContainerResponse { container_id })
        })
        .await
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Reply<v1::StartContainerResponse> {
        self.serve(Operation::StartContainer, self.start(request.into_inner().container_id)).await
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Reply<v1::StopContainerResponse> {
        let request = request.into_inner();
        let grace = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
        self.serve(Operation::StopContainer, self.stop(request.container_id, grace)).await
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Reply<v1::RemoveContainerResponse> {
        self.serve(Operation::RemoveContainer, async {
            let now = self.inner.now();
            let mut state = locked(&self.inner.state);
            let changes = state.remove_container(&request.into_inner().container_id, now);
            self.inner.tell(state, changes);
            Ok(v1::RemoveContainerResponse {})
        })
        .await
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Reply<v1::ContainerStatusResponse> {
        self.serve(Operation::ContainerStatus, async {
            let id = request.into_inner().container_id;
            let status = locked(&self.inner.state).container_status(&id).ok_or_else(|| no_container(&id))?;
            Ok(v1::ContainerStatusResponse { status: Some(status), ..Default::default() })
        })
        .await
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Reply<v1::ListContainersResponse> {
        self.serve(Operation::ListContainers, async {
            let filter = request.into_inner().filter.unwrap_or_default();
            let state = locked(&self.inner.state);
            let matching = state.containers.iter().filter(|(id, container)| {
                text_matches(&filter.id, id)
                    && text_matches(&filter.pod_sandbox_id, &container.sandbox)
                    && filter.state.as_ref().is_none_or(|wanted| wanted.state() == container.phase.state())
                    && labels_match(&filter.label_selector, &container.config.labels)
            });
            let items = matching.map(|(id, container)| v1::Container {
                id: id.clone(),
                pod_sandbox_id: container.sandbox.clone(),
                metadata: container.config.metadata.clone(),
                image: container.config.image.clone(),
                state: container.phase.state().into(),
                created_at: container.created_at,
                labels: container.config.labels.clone(),
                annotations: container.config.annotations.clone(),
                ..Default::default()
            });
            Ok(v1::ListContainersResponse { containers: items.collect() })
        })
        .await
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Reply<v1::UpdateContainerResourcesResponse> {
        self.serve(Operation::UpdateContainerResources, async {
            let request = request.into_inner();
            let mut state = locked(&self.inner.state);
            state.running(&request.container_id)?;
            if let Some(container) = state.containers.get_mut(&request.container_id) {
                container.resources = request.linux;
            }
            Ok(v1::UpdateContainerResourcesResponse {})
        })
        .await
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Reply<v1::ReopenContainerLogResponse> {
        self.serve(Operation::ReopenContainerLog, async {
            let state = locked(&self.inner.state);
            let path = state.log_path(state.running(&request.into_inner().container_id)?);
            drop(state);
            self.write_log(&path, &Run::default())?;
            Ok(v1::ReopenContainerLogResponse {})
        })
        .await
    }

    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> Reply<v1::ListContainerStatsResponse> {
        self.serve(Operation::ListContainerStats, async {
            let filter = request.into_inner().filter.unwrap_or_default();
            let state = locked(&self.inner.state);
            let matching = state.containers.iter().filter(|(id, container)| {
                state.running(id).is_ok()
                    && text_matches(&filter.id, id)
                    && text_matches(&filter.pod_sandbox_id, &container.sandbox)
                    && labels_match(&filter.label_selector, &container.config.labels)
            });
            let stats = matching.map(|(id, container)| self.usage(id, container)).collect();
            Ok(v1::ListContainerStatsResponse { stats })
        })
        .await
    }

    async fn exec_sync(&self, request: Request<v1::ExecSyncRequest>) -> Reply<v1::ExecSyncResponse> {
        self.serve(Operation::ExecSync, FakeRuntime::exec(self, request.into_inner())).await
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Reply<v1::ExecResponse> {
        self.serve(Operation::Exec, async {
            let id = request.into_inner().container_id;
            self.running_name(&id)?;
            Ok(v1::ExecResponse { url: format!("http://127.0.0.1:0/exec/{id}") })
        })
        .await
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Reply<v1::AttachResponse> {
        self.serve(Operation::Attach, async {
            let id = request.into_inner().container_id;
            self.running_name(&id)?;
            Ok(v1::AttachResponse { url: format!("http://127.0.0.1:0/attach/{id}") })
        })
        .await
    }

    async fn port_forward(&self, request: Request<v1::PortForwardRequest>) -> Reply<v1::PortForwardResponse> {
        self.serve(Operation::PortForward, async {
            let id = request.into_inner().pod_sandbox_id;
            match locked(&self.inner.state).sandboxes.get(&id) {
                None => Err(no_sandbox(&id)),
                Some(sandbox) if !sandbox.ready => {
                    Err(Status::unknown(format!("sandbox container {id:?} is not running")))
                }
                Some(_) => {
                    Ok(v1::PortForwardResponse { url: format!("http://127.0.0.1:0/portforward/{id}") })
                }
            }
        })
        .await
    }

    async fn get_container_events(
        &self,
        _: Request<v1::GetEventsRequest>,
    ) -> Reply<BoxStream<v1::ContainerEventResponse>> {
        self.serve(Operation::GetContainerEvents, async {
            if !self.inner.options.events {
                return Err(Status::unimplemented("unknown method GetContainerEvents"));
            }
            let inner = &self.inner;
            let events =
                event_stream(inner.events.subscribe(), inner.down.subscribe(), inner.cut.subscribe());
            Ok(Box::pin(events) as BoxStream<v1::ContainerEventResponse>)
        })
        .await
    }
}

#[async_trait]
impl ImageService for FakeRuntime {
    async fn list_images(&self, _: Request<v1::ListImagesRequest>) -> Reply<v1::ListImagesResponse> {
        self.serve(Operation::ListImages, async {
            let images = locked(&self.inner.state).images.values().cloned().collect();
            Ok(v1::ListImagesResponse { images })
        })
        .await
    }

    async fn image_status(&self, request: Request<v1::ImageStatusRequest>) -> Reply<v1::ImageStatusResponse> {
        self.serve(Operation::ImageStatus, async {
            let name = request.into_inner().image.map(|image| image.image).unwrap_or_default();
            let image = locked(&self.inner.state).image(&name).cloned();
            Ok(v1::ImageStatusResponse { image, ..Default::default() })
        })
        .await
    }

    async fn pull_image(&self, request: Request<v1::PullImageRequest>) -> Reply<v1::PullImageResponse> {
        self.serve(Operation::PullImage, self.pull(request.into_inner())).await
    }

    async fn remove_image(&self, request: Request<v1::RemoveImageRequest>) -> Reply<v1::RemoveImageResponse> {
        self.serve(Operation::RemoveImage, async {
            let name = request.into_inner().image.map(|image| image.image).unwrap_or_default();
            let mut state = locked(&self.inner.state);
            if let Some(id) = state.image(&name).map(|image| image.id.clone()) {
                state.images.remove(&id);
            }
            Ok(v1::RemoveImageResponse {})
        })
        .await
    }

    async fn image_fs_info(&self, _: Request<v1::ImageFsInfoRequest>) -> Reply<v1::ImageFsInfoResponse> {
        self.serve(Operation::ImageFsInfo, async {
            let used = locked(&self.inner.state).images.values().map(|image| image.size).sum();
            let usage = v1::FilesystemUsage {
                timestamp: self.inner.now(),
                fs_id: Some(v1::FilesystemIdentifier { mountpoint: "/var/lib/fake".to_owned() }),
                used_bytes: Some(v1::UInt64Value { value: used }),
                inodes_used: Some(v1::UInt64Value { value: 1 }),
            };
            Ok(v1::ImageFsInfoResponse { image_filesystems: vec![usage], ..Default::default() })
        })
        .await
    }
}
