//! Carries out steps: one small function per step, each a few calls to the runtime, the disk or the
//! cgroup tree, deciding nothing. Every step can be done again after any failure.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use longshore_core::ids::{ContainerId, ContainerName, PodUid, SandboxId};
use longshore_core::pod::desired::DesiredPod;
use longshore_core::pod::leftover::Noted;
use longshore_core::pod::logs::{link_name, links_folder};
use longshore_core::pod::observed::{
    ContainerState, ObservedContainer, ObservedPod, ObservedSandbox, SandboxState,
};
use longshore_core::pod::snapshot::{CgroupDriver, NodeContext};
use longshore_core::pod::spec::SandboxSpec;
use longshore_core::pod::step::{
    CreateContainer, Hook, PodCgroup, Step, StepError, StepKind, StepOutcome, StepResult, StopContainer,
    VolumeAction,
};
use longshore_cri::{Containers, CriError, ErrorKind, Observer, Sandboxes};
use tokio::time::Instant;

use super::Recorder;
use super::clock::Clock;
use super::gate::{Gate, Slot};
use super::messages::ExitMessages;
use super::steps::{Execute, StepJob, StepReport};
use crate::images::ImagePuller;
use crate::journal::Journal;
use crate::logs;
use crate::text::error_chain;
use crate::volumes::{Dir, VolumeError, Volumes};

/// Deadline of steps on this node's own disk and cgroups.
const LOCAL_DEADLINE: Duration = Duration::from_secs(120);
/// A step that has had its turn for this long hands it on and continues: a network plugin or a disk that hangs
/// must not hold up other pods. An end is expected to be short; a start in an emulated machine is not.
const END_HANGS_AFTER: Duration = Duration::from_secs(3);
const START_HANGS_AFTER: Duration = Duration::from_secs(30);
/// A container gets at least this long between its stop signal and SIGKILL, also when its preStop
/// hook used up the grace (behaviours 17, 18).
const LEAST_GRACE: Duration = Duration::from_secs(2);
/// Longest time a postStart hook may take; the API has no bound, a daemon needs one.
const POST_START_DEADLINE: Duration = Duration::from_secs(3600);

/// The pod level of the cgroup tree.
#[async_trait]
pub trait PodCgroups: Send + Sync + std::fmt::Debug {
    /// Makes the cgroup with its parents and gives it these limits.
    async fn ensure(&self, driver: CgroupDriver, cgroup: &PodCgroup) -> Result<(), StepError>;
    /// Kills what is left in it and removes it with what is below; fine where it is gone.
    async fn remove(&self, driver: CgroupDriver, path: &str) -> Result<(), StepError>;
    /// Processes that the kernel killed for memory in it and below since it was made; `None` where it is not
    /// there or does not count.
    async fn oom_kills(&self, _driver: CgroupDriver, _path: &str) -> Option<u64> {
        None
    }
}

/// Runs lifecycle hooks.
#[async_trait]
pub trait Hooks: Send + Sync + std::fmt::Debug {
    /// Runs one hook in or against a container within `timeout`.
    ///
    /// # Errors
    /// One line that says what the hook answered.
    async fn run(&self, container: &ContainerId, hook: &Hook, timeout: Duration) -> Result<(), String>;
}

/// Whether the runtime answers; steps that need it wait here while it does not.
pub type RuntimeUp = tokio::sync::watch::Receiver<bool>;

/// What steps act on.
pub struct Executor {
    pub clock: Clock,
    pub sandboxes: Arc<dyn Sandboxes>,
    pub containers: Arc<dyn Containers>,
    pub observer: Observer,
    pub images: ImagePuller,
    pub volumes: Volumes,
    pub cgroups: Arc<dyn PodCgroups>,
    pub hooks: Arc<dyn Hooks>,
    pub journal: Arc<Journal>,
    /// Of what brings a pod up.
    pub starts: Gate,
    /// Of what follows the end of a pod's containers.
    pub stops: Gate,
    pub runtime_up: RuntimeUp,
    pub messages: ExitMessages,
    pub recorder: Arc<dyn Recorder>,
}

impl std::fmt::Debug for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executor")
            .field("starts", &self.starts)
            .field("stops", &self.stops)
            .finish_non_exhaustive()
    }
}

type Outcome = Result<StepResult, StepError>;

#[async_trait]
impl Execute for Executor {
    async fn execute(&self, job: StepJob) -> StepReport {
        let begin = Instant::now();
        let kind = job.step.key().kind;
        if needs_runtime(kind) {
            // The sender lives as long as the daemon; without it there is nothing to wait for.
            let _ = self.runtime_up.clone().wait_for(|up| *up).await;
        }
        let mut waited = begin.elapsed();
        let result = match &job.step {
            Step::PullImage { image, policy, secrets, .. } => {
                let pulls = || self.recorder.pulls(&job.desired, &job.step);
                let (result, pull_waited) = self.images.ensure(image, *policy, secrets, pulls).await;
                waited += pull_waited;
                result.map(StepResult::Image).map_err(|error| secrets.explain(error))
            }
            _ => {
                let (result, gate_waited) = self.in_turn(&job).await;
                waited += gate_waited;
                result
            }
        };
        match result {
            Ok(result) => StepReport { outcome: StepOutcome::Done(result), waited, reading: None },
            Err(error) => {
                // Whatever the runtime did before it failed is looked up, not guessed.
                let reading = if needs_runtime(kind) { self.read(&job.desired.uid).await } else { None };
                StepReport { outcome: StepOutcome::Failed(error), waited, reading }
            }
        }
    }

    async fn read(&self, uid: &PodUid) -> Option<ObservedPod> {
        let mut pod = self.observer.observe_pod(uid, self.clock.now()).await.ok().flatten()?;
        self.messages.add_to_pod(&mut pod).await;
        Some(pod)
    }

    async fn forget(&self, desired: &DesiredPod, node: &NodeContext) {
        self.messages.forget(&desired.uid);
        let logs_root = node.pod_logs_dir.clone();
        let logs = log_folder(desired);
        let removed = self
            .on_disk(move |_| match Dir::open(&logs_root) {
                Ok(root) => root.remove_tree(&logs),
                Err(error) if error.kind() == Some(std::io::ErrorKind::NotFound) => Ok(()),
                Err(error) => Err(error),
            })
            .await;
        if let Err(error) = removed {
            tracing::warn!(pod = %desired.key, uid = %desired.uid, error = error.message, "logs stay behind");
        }
    }
}

fn needs_runtime(kind: StepKind) -> bool {
    matches!(
        kind,
        StepKind::PullImage
            | StepKind::CreateSandbox
            | StepKind::CreateContainer
            | StepKind::StartContainer
            | StepKind::StopContainer
            | StepKind::StopSandbox
            | StepKind::RemoveContainer
            | StepKind::RemoveSandbox
    )
}

impl Executor {
    /// Carries a step out when it is its turn; answers also how long that was waited for.
    async fn in_turn(&self, job: &StepJob) -> (Outcome, Duration) {
        let kind = job.step.key().kind;
        let (gate, hangs_after) = match kind {
            StepKind::CreateSandbox | StepKind::CreateContainer | StepKind::StartContainer => {
                (&self.starts, START_HANGS_AFTER)
            }
            StepKind::StopSandbox | StepKind::RemoveContainer | StepKind::RemoveSandbox => {
                (&self.stops, END_HANGS_AFTER)
            }
            _ => return (self.carry_out(job).await, Duration::ZERO),
        };
        // What needs nothing of the runtime neither waits nor counts as its time.
        if let Step::CreateContainer(create) = &job.step
            && let Err(error) = self.prepare_container_files(job, create).await
        {
            return (Err(error), Duration::ZERO);
        }
        let begin = Instant::now();
        let slot = gate.enter(kind, job.order).await;
        let waited = begin.elapsed();
        (self.in_slot(job, slot, hangs_after).await, waited)
    }

    /// A call that does not come back holds other pods up no longer than `hangs_after`.
    async fn in_slot(&self, job: &StepJob, slot: Slot, hangs_after: Duration) -> Outcome {
        let mut work = std::pin::pin!(self.carry_out(job));
        match tokio::time::timeout(hangs_after, &mut work).await {
            Ok(result) => {
                if result.is_ok() {
                    slot.done();
                }
                result
            }
            Err(_) => {
                slot.hangs();
                work.await
            }
        }
    }

    async fn carry_out(&self, job: &StepJob) -> Outcome {
        let uid = &job.desired.uid;
        match &job.step {
            Step::PreparePodDirs { containers } => self.prepare_pod_dirs(job, containers.clone()).await,
            Step::EnsureCgroup(cgroup) => self.ensure_cgroup(job, cgroup).await,
            Step::PrepareVolume(action) | Step::UpdateVolume(action) => {
                self.prepare_volume(action.clone()).await
            }
            Step::PullImage { .. } => Ok(StepResult::Done),
            Step::CreateSandbox(spec) => self.create_sandbox(spec).await,
            Step::CreateContainer(create) => self.create_container(create).await,
            Step::StartContainer { container, id } => self.start_container(job, container, id).await,
            Step::PostStart { id, hook, .. } => self.post_start(id, hook).await,
            Step::StopContainer(stop) => self.stop_container(job, stop).await,
            Step::StopSandbox { id } => self.stop_sandbox(job, id).await,
            Step::RemoveContainer { id, .. } => self.remove_container(job, id).await,
            Step::RemoveSandbox { id } => {
                self.sandboxes.remove_sandbox(id).await.map_err(|e| failed("FailedKillPod", &e))?;
                Ok(StepResult::Removed(id.to_string()))
            }
            Step::ReleaseVolume { volume } => {
                let (uid, volume) = (uid.clone(), volume.clone());
                self.on_disk(move |volumes| volumes.release(&uid, &volume)).await
            }
            Step::RemoveCgroup { paths } => within(LOCAL_DEADLINE, self.remove_cgroups(job, paths)).await,
            Step::RemovePodDirs => {
                let uid = uid.clone();
                self.on_disk(move |volumes| volumes.remove_pod_dirs(&uid)).await
            }
        }
    }

    async fn prepare_pod_dirs(&self, job: &StepJob, containers: Vec<ContainerName>) -> Outcome {
        let uid = job.desired.uid.clone();
        let known = self.journal.noted(&uid);
        let leftover =
            Noted { key: job.desired.key.clone(), cgroup: known.and_then(|leftover| leftover.cgroup) };
        self.note(&uid, &leftover)?;
        let logs = job.node.pod_logs_dir.join(log_folder(&job.desired));
        self.on_disk(move |volumes| {
            volumes.prepare_pod_dirs(&uid, &containers)?;
            make_log_dir(&logs)
        })
        .await
    }

    async fn ensure_cgroup(&self, job: &StepJob, cgroup: &PodCgroup) -> Outcome {
        let leftover = Noted { key: job.desired.key.clone(), cgroup: Some(cgroup.path.clone()) };
        self.note(&job.desired.uid, &leftover)?;
        within(LOCAL_DEADLINE, self.cgroups.ensure(job.node.cgroups.driver, cgroup)).await
    }

    async fn remove_cgroups(&self, job: &StepJob, paths: &[String]) -> Result<(), StepError> {
        for path in paths {
            self.cgroups.remove(job.node.cgroups.driver, path).await?;
        }
        Ok(())
    }

    fn note(&self, uid: &PodUid, leftover: &Noted) -> Result<(), StepError> {
        self.journal.may_leave(uid, leftover).map_err(|error| local_error("FailedMount", &error))
    }

    async fn prepare_volume(&self, action: VolumeAction) -> Outcome {
        let content_hash = longshore_core::volume::content_hash(&action);
        let now = self.clock.now();
        self.on_disk(move |volumes| volumes.prepare(&action, now)).await?;
        Ok(StepResult::Volume { content_hash })
    }

    async fn create_sandbox(&self, spec: &SandboxSpec) -> Outcome {
        let reason = "FailedCreatePodSandBox";
        // The first one's was made with the pod's folders; a later one may come after somebody's clean-up.
        if spec.attempt > 0 {
            let logs = spec.log_directory.clone();
            self.on_disk(move |_| make_log_dir(Path::new(&logs))).await?;
        }
        let id = self.sandboxes.run_sandbox(spec).await.map_err(|e| failed(reason, &e))?;
        let sandbox = self.sandboxes.sandbox_status(&id).await.map_err(|e| failed(reason, &e))?;
        Ok(StepResult::Sandbox(sandbox))
    }

    async fn create_container(&self, create: &CreateContainer) -> Outcome {
        let reason = "CreateContainerError";
        let spec = &create.spec;
        let made = self.containers.create_container(&create.sandbox, spec, &create.sandbox_spec).await;
        let id = made.map_err(|e| failed(reason, &e))?;
        // Not the time of the question: a reading taken between the two cannot know of it yet, and what
        // it lacks must not look removed.
        let created_at = self.clock.now();
        // The answer has the id only; the rest is what was asked for. An event or the next reading
        // says the same in the runtime's words.
        Ok(StepResult::Container(ObservedContainer {
            id,
            sandbox: create.sandbox.clone(),
            name: spec.name.clone(),
            attempt: spec.attempt,
            state: ContainerState::Created,
            created_at,
            image: spec.user_image.clone(),
            image_ref: spec.image_ref.clone(),
            labels: spec.labels.clone(),
            annotations: spec.annotations.clone(),
            log_path: format!("{}/{}", create.sandbox_spec.log_directory, spec.log_path),
        }))
    }

    /// What a container's mounts and log need on disk before the runtime is asked.
    async fn prepare_container_files(
        &self,
        job: &StepJob,
        create: &CreateContainer,
    ) -> Result<(), StepError> {
        let uid = job.desired.uid.clone();
        let hosts_file = create.hosts_file.clone();
        let (sub_paths, termination_log) = (create.sub_paths.clone(), create.termination_log.clone());
        let log = Path::new(&create.sandbox_spec.log_directory).join(&create.spec.log_path);
        self.on_disk(move |volumes| {
            if let Some(own) = &hosts_file {
                // A pod on the host's network sees the node's names, then what it asked for itself.
                let mut hosts = match own.copy_node {
                    true => std::fs::read_to_string("/etc/hosts").unwrap_or_default(),
                    false => String::new(),
                };
                hosts.push_str(&own.content);
                volumes.write_hosts(&uid, &hosts)?;
            }
            for mount in &sub_paths {
                volumes.bind_sub_path(mount)?;
            }
            if let Some(path) = &termination_log {
                volumes.create_termination_log(path)?;
            }
            log.parent().map_or(Ok(()), make_log_dir)
        })
        .await
        .map(|_| ())
    }

    async fn start_container(&self, job: &StepJob, name: &ContainerName, id: &ContainerId) -> Outcome {
        let created = job.observed.containers.iter().find(|c| c.id == *id);
        let link = async {
            if let Some(created) = created {
                self.link_log(job, created).await;
            }
        };
        self.messages.begin(&job.desired.uid).await;
        // The link is made while the runtime is at work; its target need not be there yet.
        let (started, ()) = tokio::join!(self.containers.start_container(id), link);
        started.map_err(|e| failed("RunContainerError", &e))?;
        match created {
            Some(created) => {
                let state = ContainerState::Running { started_at: self.clock.now() };
                Ok(StepResult::Container(ObservedContainer { state, ..created.clone() }))
            }
            None => Err(StepError {
                reason: "RunContainerError".into(),
                message: format!("container {name} was started and is not among those known"),
                retryable: true,
            }),
        }
    }

    /// The link that log shippers find the log by; a container is no worse for having none.
    async fn link_log(&self, job: &StepJob, container: &ObservedContainer) {
        let folder = links_folder(&job.node.pod_logs_dir);
        let name = link_name(&job.desired.key, &container.name, &container.id);
        let log = PathBuf::from(&container.log_path);
        let linked = tokio::task::spawn_blocking(move || logs::link(&folder, &name, &log)).await;
        if let Ok(Err(error)) = linked {
            tracing::warn!(error = error_chain(&error), "no link to the log");
        }
    }

    async fn post_start(&self, id: &ContainerId, hook: &Hook) -> Outcome {
        let result = self.hooks.run(id, hook, POST_START_DEADLINE).await;
        result.map(|()| StepResult::Done).map_err(|message| StepError {
            reason: "PostStartHookError".into(),
            message,
            retryable: false,
        })
    }

    async fn stop_container(&self, job: &StepJob, stop: &StopContainer) -> Outcome {
        let begin = Instant::now();
        if let Some(hook) = &stop.pre_stop {
            // A failed preStop is told and stops nothing.
            if let Err(message) = self.hooks.run(&stop.id, hook, stop.grace).await {
                tracing::warn!(container = %stop.container, message, "preStop failed");
            }
        }
        let left = match stop.grace {
            Duration::ZERO => Duration::ZERO,
            grace => grace.saturating_sub(begin.elapsed()).max(LEAST_GRACE),
        };
        self.containers.stop_container(&stop.id, left).await.map_err(|e| failed("FailedKillPod", &e))?;
        let Some(known) = job.observed.containers.iter().find(|c| c.id == stop.id) else {
            return Ok(StepResult::Done);
        };
        match self.containers.container_status(&stop.id, &known.sandbox).await {
            Ok(mut container) => {
                self.messages.add(&job.desired.uid, std::slice::from_mut(&mut container)).await;
                Ok(StepResult::Container(container))
            }
            Err(error) if error.kind == ErrorKind::NotFound => Ok(StepResult::Removed(stop.id.to_string())),
            Err(error) => Err(failed("FailedKillPod", &error)),
        }
    }

    async fn stop_sandbox(&self, job: &StepJob, id: &SandboxId) -> Outcome {
        self.sandboxes.stop_sandbox(id).await.map_err(|e| failed("FailedKillPod", &e))?;
        // The call answered that it is stopped, whatever a cached status still says.
        let stopped =
            |sandbox| StepResult::Sandbox(ObservedSandbox { state: SandboxState::NotReady, ..sandbox });
        if let Some(known) = job.observed.sandboxes.iter().find(|sandbox| sandbox.id == *id) {
            return Ok(stopped(known.clone()));
        }
        match self.sandboxes.sandbox_status(id).await {
            Ok(sandbox) => Ok(stopped(sandbox)),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(StepResult::Removed(id.to_string())),
            Err(error) => Err(failed("FailedKillPod", &error)),
        }
    }

    async fn remove_container(&self, job: &StepJob, id: &ContainerId) -> Outcome {
        self.containers.remove_container(id).await.map_err(|e| failed("FailedKillPod", &e))?;
        if let Some(container) = job.observed.containers.iter().find(|c| c.id == *id) {
            let folder = links_folder(&job.node.pod_logs_dir);
            let name = link_name(&job.desired.key, &container.name, id);
            let log = Some(PathBuf::from(&container.log_path)).filter(|log| log.is_absolute());
            let removed = tokio::task::spawn_blocking(move || {
                logs::unlink(&folder, &name)?;
                log.map_or(Ok(()), |log| logs::remove_with_rotated(&log))
            });
            if let Ok(Err(error)) = removed.await {
                return Err(local_error("FailedKillPod", &error));
            }
        }
        Ok(StepResult::Removed(id.to_string()))
    }

    /// Work on the disk, off the async threads.
    async fn on_disk<F>(&self, work: F) -> Outcome
    where
        F: FnOnce(&Volumes) -> Result<(), VolumeError> + Send + 'static,
    {
        let volumes = self.volumes.clone();
        let task = tokio::task::spawn_blocking(move || work(&volumes));
        match tokio::time::timeout(LOCAL_DEADLINE, task).await {
            Ok(Ok(result)) => result.map(|()| StepResult::Done).map_err(|error| error.to_step_error()),
            Ok(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
            Err(_) => Err(late()),
        }
    }
}

async fn within(deadline: Duration, work: impl Future<Output = Result<(), StepError>>) -> Outcome {
    tokio::time::timeout(deadline, work).await.unwrap_or_else(|_| Err(late())).map(|()| StepResult::Done)
}

fn late() -> StepError {
    StepError {
        reason: "DeadlineExceeded".into(),
        message: format!(
            "not done within {} s; is a disk or a mount of this node hanging?",
            LOCAL_DEADLINE.as_secs()
        ),
        retryable: true,
    }
}

fn failed(reason: &str, error: &CriError) -> StepError {
    StepError {
        reason: reason.into(),
        message: error.one_line(),
        retryable: error.is_retryable() || error.kind == ErrorKind::AlreadyExists,
    }
}

fn local_error(reason: &str, error: &dyn std::error::Error) -> StepError {
    StepError { reason: reason.into(), message: error_chain(error), retryable: true }
}

/// The pod's folder below that of all pods' logs.
fn log_folder(desired: &DesiredPod) -> String {
    format!("{}_{}_{}", desired.key.namespace, desired.key.name, desired.uid)
}

/// Folders of logs are the runtime's to write and people's to read.
fn make_log_dir(path: &Path) -> Result<(), VolumeError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.map_err(|source| VolumeError::Io { action: "make folder", path: path.to_path_buf(), source })
}
