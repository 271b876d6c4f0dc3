//! What the fake runtime has: sandboxes, containers, images, and the rules of going from one state to
//! the next, as containerd has them. Synchronous and without waiting; time comes in as a number.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tonic::Status;

use super::script::{Run, reason_of};
use crate::api::v1;

#[derive(Debug)]
pub(super) struct Sandbox {
    pub(super) config: v1::PodSandboxConfig,
    pub(super) handler: String,
    pub(super) ready: bool,
    pub(super) created_at: i64,
    /// Empty with host network.
    pub(super) ip: String,
}

#[derive(Debug)]
pub(super) struct Container {
    pub(super) config: v1::ContainerConfig,
    pub(super) sandbox: String,
    pub(super) created_at: i64,
    pub(super) phase: Phase,
    pub(super) run: Run,
    /// The values in force after updates.
    pub(super) resources: Option<v1::LinuxContainerResources>,
}

#[derive(Clone, Debug)]
pub(super) enum Phase {
    Created,
    Running { started_at: i64 },
    Exited { started_at: i64, finished_at: i64, code: i32, reason: String, message: String },
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) sandboxes: BTreeMap<String, Sandbox>,
    pub(super) containers: BTreeMap<String, Container>,
    /// By id.
    pub(super) images: BTreeMap<String, v1::Image>,
    /// Scripts by `namespace/pod/container` or by container name.
    pub(super) scripts: HashMap<String, Vec<Run>>,
    /// How many instances of a container (pod uid, name) were created.
    instances: HashMap<(String, String), usize>,
    /// Container names of every start that took effect, in order.
    pub(super) starts: Vec<String>,
    made: u64,
    /// Networks that cannot be set up: why.
    pub(super) network_error: Option<String>,
    pub(super) next_ip: u32,
}

/// What changed, for the event stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) kind: v1::ContainerEventType,
    pub(super) subject: String,
    pub(super) sandbox: String,
}

impl Change {
    fn of(kind: v1::ContainerEventType, subject: &str, sandbox: &str) -> Self {
        Self { kind, subject: subject.to_owned(), sandbox: sandbox.to_owned() }
    }
}

impl State {
    /// Runtime ids are 64 hexadecimal digits; these count up, so that a test's log reads well.
    fn id(&mut self, prefix: char) -> String {
        self.made += 1;
        format!("{prefix}{:063x}", self.made)
    }

    pub(super) fn run_sandbox(
        &mut self,
        request: v1::RunPodSandboxRequest,
        now: i64,
    ) -> Result<(String, Vec<Change>), Status> {
        let config = request.config.ok_or_else(|| Status::invalid_argument("sandbox config is nil"))?;
        let name = sandbox_name(&config)?;
        if let Some(holder) =
            self.sandboxes.iter().find(|(_, other)| sandbox_name(&other.config).is_ok_and(|n| n == name))
        {
            let text = format!(
                "failed to reserve sandbox name {name:?}: name {name:?} is reserved for {:?}",
                holder.0
            );
            return Err(Status::unknown(text));
        }
        let host_network = network_mode(&config) == v1::NamespaceMode::Node;
        if let (Some(why), false) = (&self.network_error, host_network) {
            return Err(Status::unknown(format!("failed to setup network for sandbox: {why}")));
        }
        let ip = if host_network { String::new() } else { self.address() };
        let id = self.id('5');
        let sandbox = Sandbox { config, handler: request.runtime_handler, ready: true, created_at: now, ip };
        self.sandboxes.insert(id.clone(), sandbox);
        let kinds =
            [v1::ContainerEventType::ContainerCreatedEvent, v1::ContainerEventType::ContainerStartedEvent];
        let changes = kinds.map(|kind| Change::of(kind, &id, &id)).to_vec();
        Ok((id, changes))
    }

    /// 10.88.0.0/16, one after the other.
    fn address(&mut self) -> String {
        self.next_ip += 1;
        format!("10.88.{}.{}", (self.next_ip >> 8) & 0xff, self.next_ip & 0xff)
    }

    /// Kills everything in it. Unknown and stopped ones are fine.
    pub(super) fn stop_sandbox(&mut self, id: &str, now: i64) -> Vec<Change> {
        let inside = self.inside(id);
        let mut changes: Vec<Change> =
            inside.iter().filter_map(|container| self.finish(container, 137, "Error", now)).collect();
        if let Some(sandbox) = self.sandboxes.get_mut(id).filter(|sandbox| sandbox.ready) {
            sandbox.ready = false;
            changes.push(Change::of(v1::ContainerEventType::ContainerStoppedEvent, id, id));
        }
        changes
    }

    pub(super) fn remove_sandbox(&mut self, id: &str, now: i64) -> Vec<Change> {
        let mut changes = self.stop_sandbox(id, now);
        for container in self.inside(id) {
            changes.extend(self.remove_container(&container, now));
        }
        if self.sandboxes.remove(id).is_some() {
            changes.push(Change::of(v1::ContainerEventType::ContainerDeletedEvent, id, id));
        }
        changes
    }

    fn inside(&self, sandbox: &str) -> Vec<String> {
        let of = |(id, container): (&String, &Container)| (container.sandbox == sandbox).then(|| id.clone());
        self.containers.iter().filter_map(of).collect()
    }

    pub(super) fn create_container(
        &mut self,
        request: v1::CreateContainerRequest,
        now: i64,
    ) -> Result<(String, Change), Status> {
        let config = request.config.ok_or_else(|| Status::invalid_argument("container config is nil"))?;
        let sandbox = self.sandboxes.get(&request.pod_sandbox_id).ok_or_else(|| {
            Status::not_found(format!("failed to find sandbox id {:?}: not found", request.pod_sandbox_id))
        })?;
        if !sandbox.ready {
            let id = &request.pod_sandbox_id;
            let text =
                format!("failed to get sandbox container task: no running task found: task {id} not found");
            return Err(Status::not_found(text));
        }
        let pod = sandbox_metadata(&sandbox.config)?.clone();
        let metadata =
            config.metadata.clone().ok_or_else(|| Status::invalid_argument("container metadata is nil"))?;
        let image = config.image.as_ref().map(|image| image.image.clone()).unwrap_or_default();
        if self.image(&image).is_none() {
            return Err(Status::not_found(format!("failed to resolve image {image:?}: not found")));
        }
        if let Some(holder) = self.holder(&pod, &metadata) {
            let name =
                format!("{}_{}_{}_{}_{}", metadata.name, pod.name, pod.namespace, pod.uid, metadata.attempt);
            let text = format!(
                "failed to reserve container name {name:?}: name {name:?} is reserved for {holder:?}"
            );
            return Err(Status::unknown(text));
        }
        let run = self.next_run(&pod, &metadata.name);
        if let Some(text) = &run.create_error {
            return Err(Status::unknown(text.clone()));
        }
        let id = self.id('c');
        let change = Change::of(v1::ContainerEventType::ContainerCreatedEvent, &id, &request.pod_sandbox_id);
        let resources = config.linux.as_ref().and_then(|linux| linux.resources.clone());
        let sandbox = request.pod_sandbox_id;
        let container = Container { config, sandbox, created_at: now, phase: Phase::Created, run, resources };
        self.containers.insert(id.clone(), container);
        Ok((id, change))
    }

    /// Who has the name of a container already.
    fn holder(&self, pod: &v1::PodSandboxMetadata, metadata: &v1::ContainerMetadata) -> Option<String> {
        let same = |(_, container): &(&String, &Container)| {
            let sandbox = self.sandboxes.get(&container.sandbox);
            let of_pod = sandbox.and_then(|sandbox| sandbox.config.metadata.as_ref());
            container.config.metadata.as_ref() == Some(metadata)
                && of_pod.is_some_and(|other| (&other.uid, &other.name) == (&pod.uid, &pod.name))
        };
        self.containers.iter().find(same).map(|(id, _)| id.clone())
    }

    fn next_run(&mut self, pod: &v1::PodSandboxMetadata, name: &str) -> Run {
        let count = self.instances.entry((pod.uid.clone(), name.to_owned())).or_default();
        let nth = *count;
        *count += 1;
        let full = format!("{}/{}/{name}", pod.namespace, pod.name);
        let runs = self.scripts.get(&full).or_else(|| self.scripts.get(name));
        runs.and_then(|runs| runs.get(nth).or(runs.last())).cloned().unwrap_or_default()
    }

    /// Starts it; the caller arranges the end its run asks for. `Err` may come with a change of state.
    pub(super) fn start_container(&mut self, id: &str, now: i64) -> (Result<Run, Status>, Option<Change>) {
        let Some(container) = self.containers.get_mut(id) else { return (Err(no_container(id)), None) };
        if !matches!(container.phase, Phase::Created) {
            let text = format!("container is in {:?} state", container.phase.state().as_str_name());
            return (
                Err(Status::unknown(format!("failed to set starting state for container {id:?}: {text}"))),
                None,
            );
        }
        if !self.sandboxes.get(&container.sandbox).is_some_and(|sandbox| sandbox.ready) {
            let text = format!("sandbox container {:?} is not running", container.sandbox);
            return (Err(Status::unknown(text)), None);
        }
        if let Some(text) = container.run.start_error.clone() {
            container.phase = Phase::Exited {
                started_at: 0,
                finished_at: now,
                code: 128,
                reason: "StartError".to_owned(),
                message: text.clone(),
            };
            let change = Change::of(v1::ContainerEventType::ContainerStoppedEvent, id, &container.sandbox);
            return (Err(Status::unknown(text)), Some(change));
        }
        container.phase = Phase::Running { started_at: now };
        self.starts.push(container.config.metadata.as_ref().map(|m| m.name.clone()).unwrap_or_default());
        let change = Change::of(v1::ContainerEventType::ContainerStartedEvent, id, &container.sandbox);
        (Ok(container.run.clone()), Some(change))
    }

    /// The end of a running container; nothing where it does not run.
    pub(super) fn finish(&mut self, id: &str, code: i32, reason: &str, now: i64) -> Option<Change> {
        let container = self.containers.get_mut(id)?;
        let Phase::Running { started_at } = container.phase else { return None };
        let reason = if reason.is_empty() { reason_of(code) } else { reason }.to_owned();
        container.phase =
            Phase::Exited { started_at, finished_at: now, code, reason, message: String::new() };
        Some(Change::of(v1::ContainerEventType::ContainerStoppedEvent, id, &container.sandbox))
    }

    /// By force, as containerd does it; unknown ones are fine.
    pub(super) fn remove_container(&mut self, id: &str, now: i64) -> Vec<Change> {
        let mut changes: Vec<Change> = self.finish(id, 137, "Error", now).into_iter().collect();
        if let Some(container) = self.containers.remove(id) {
            changes.push(Change::of(v1::ContainerEventType::ContainerDeletedEvent, id, &container.sandbox));
        }
        changes
    }

    /// The running container, or why nothing can be done in it.
    pub(super) fn running(&self, id: &str) -> Result<&Container, Status> {
        let container = self.containers.get(id).ok_or_else(|| no_container(id))?;
        match container.phase {
            Phase::Running { .. } => Ok(container),
            _ => Err(Status::unknown(format!(
                "container is in {} state",
                container.phase.state().as_str_name()
            ))),
        }
    }

    /// By id, tag or digest.
    pub(super) fn image(&self, name: &str) -> Option<&v1::Image> {
        let named =
            |image: &&v1::Image| image.repo_tags.iter().chain(&image.repo_digests).any(|tag| tag == name);
        self.images.get(name).or_else(|| self.images.values().find(named))
    }

    pub(super) fn add_image(&mut self, name: &str) -> String {
        if let Some(image) = self.image(name) {
            return image.id.clone();
        }
        let id = format!("sha256:{}", self.id('1'));
        let repository = name.split_once('@').map_or(name, |(repository, _)| repository);
        let repository = repository.rsplit_once(':').map_or(repository, |(repository, _)| repository);
        let digest = if name.contains('@') { name.to_owned() } else { format!("{repository}@{id}") };
        let image = v1::Image {
            id: id.clone(),
            repo_tags: if name.contains('@') { Vec::new() } else { vec![name.to_owned()] },
            repo_digests: vec![digest],
            size: 4 << 20,
            ..Default::default()
        };
        self.images.insert(id.clone(), image);
        id
    }

    /// After a reboot of the node: nothing runs and nobody saw how it ended.
    pub(super) fn reboot(&mut self, now: i64) {
        for sandbox in self.sandboxes.values_mut() {
            sandbox.ready = false;
        }
        let all: BTreeSet<String> = self.containers.keys().cloned().collect();
        for id in all {
            self.finish(&id, 255, "Unknown", now);
        }
    }

    /// Forgets the sandboxes of a pod and all in them, as if they had never been; how many sandboxes.
    pub(super) fn lose_pod(&mut self, pod: &str) -> usize {
        let of_pod = |sandbox: &Sandbox| sandbox.config.metadata.as_ref().is_some_and(|m| m.name == pod);
        let lost: Vec<String> =
            self.sandboxes.iter().filter(|(_, it)| of_pod(it)).map(|(id, _)| id.clone()).collect();
        self.containers.retain(|_, container| !lost.contains(&container.sandbox));
        self.sandboxes.retain(|id, _| !lost.contains(id));
        lost.len()
    }

    // ---- what is told ----

    pub(super) fn sandbox_status(&self, id: &str) -> Option<v1::PodSandboxStatus> {
        let sandbox = self.sandboxes.get(id)?;
        let security = sandbox.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let options = security.and_then(|security| security.namespace_options.clone());
        Some(v1::PodSandboxStatus {
            id: id.to_owned(),
            metadata: sandbox.config.metadata.clone(),
            state: sandbox.state().into(),
            created_at: sandbox.created_at,
            // containerd forgets the address with the network namespace.
            network: Some(v1::PodSandboxNetworkStatus {
                ip: if sandbox.ready { sandbox.ip.clone() } else { String::new() },
                additional_ips: Vec::new(),
            }),
            linux: Some(v1::LinuxPodSandboxStatus { namespaces: Some(v1::Namespace { options }) }),
            labels: sandbox.config.labels.clone(),
            annotations: sandbox.config.annotations.clone(),
            runtime_handler: sandbox.handler.clone(),
        })
    }

    pub(super) fn container_status(&self, id: &str) -> Option<v1::ContainerStatus> {
        let container = self.containers.get(id)?;
        let (started_at, finished_at, exit_code, reason, message) = match container.phase.clone() {
            Phase::Created => (0, 0, 0, String::new(), String::new()),
            Phase::Running { started_at } => (started_at, 0, 0, String::new(), String::new()),
            Phase::Exited { started_at, finished_at, code, reason, message } => {
                (started_at, finished_at, code, reason, message)
            }
        };
        let image = container.config.image.clone().unwrap_or_default();
        let stored = self.image(&image.image);
        Some(v1::ContainerStatus {
            id: id.to_owned(),
            metadata: container.config.metadata.clone(),
            state: container.phase.state().into(),
            created_at: container.created_at,
            started_at,
            finished_at,
            exit_code,
            image_ref: stored.and_then(|image| image.repo_digests.first().cloned()).unwrap_or_default(),
            image_id: stored.map(|image| image.id.clone()).unwrap_or_default(),
            image: Some(image),
            reason,
            message,
            labels: container.config.labels.clone(),
            annotations: container.config.annotations.clone(),
            mounts: container.config.mounts.clone(),
            log_path: self.log_path(container),
            resources: Some(v1::ContainerResources { linux: container.resources.clone(), windows: None }),
            ..Default::default()
        })
    }

    /// The log folder of the sandbox and the file of the container.
    pub(super) fn log_path(&self, container: &Container) -> String {
        let folder =
            self.sandboxes.get(&container.sandbox).map(|sandbox| sandbox.config.log_directory.as_str());
        match folder {
            Some(folder) if !folder.is_empty() && !container.config.log_path.is_empty() => {
                format!("{folder}/{}", container.config.log_path)
            }
            _ => String::new(),
        }
    }

    pub(super) fn event(&self, change: &Change, now: i64) -> v1::ContainerEventResponse {
        let statuses = self.inside(&change.sandbox);
        v1::ContainerEventResponse {
            container_id: change.subject.clone(),
            container_event_type: change.kind.into(),
            created_at: now,
            pod_sandbox_status: self.sandbox_status(&change.sandbox),
            containers_statuses: statuses.iter().filter_map(|id| self.container_status(id)).collect(),
        }
    }
}

impl Sandbox {
    pub(super) fn state(&self) -> v1::PodSandboxState {
        if self.ready { v1::PodSandboxState::SandboxReady } else { v1::PodSandboxState::SandboxNotready }
    }
}

impl Phase {
    pub(super) fn state(&self) -> v1::ContainerState {
        match self {
            Self::Created => v1::ContainerState::ContainerCreated,
            Self::Running { .. } => v1::ContainerState::ContainerRunning,
            Self::Exited { .. } => v1::ContainerState::ContainerExited,
        }
    }
}

pub(super) fn no_container(id: &str) -> Status {
    Status::not_found(format!("an error occurred when try to find container {id:?}: not found"))
}

pub(super) fn no_sandbox(id: &str) -> Status {
    Status::not_found(format!("an error occurred when try to find sandbox {id:?}: not found"))
}

fn sandbox_metadata(config: &v1::PodSandboxConfig) -> Result<&v1::PodSandboxMetadata, Status> {
    config.metadata.as_ref().ok_or_else(|| Status::invalid_argument("sandbox metadata is nil"))
}

fn sandbox_name(config: &v1::PodSandboxConfig) -> Result<String, Status> {
    let metadata = sandbox_metadata(config)?;
    Ok(format!("{}_{}_{}_{}", metadata.name, metadata.namespace, metadata.uid, metadata.attempt))
}

fn network_mode(config: &v1::PodSandboxConfig) -> v1::NamespaceMode {
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    security
        .and_then(|security| security.namespace_options.as_ref())
        .map_or(v1::NamespaceMode::Pod, |options| options.network())
}
