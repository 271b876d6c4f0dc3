//! Container statuses: states, last states, counts, readiness (behaviours 9-11, 16, 24, 51).

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::pod::containers::{PodContainer, Role};
use crate::pod::desired::EndCause;
use crate::pod::facts::Facts;
use crate::pod::observed::{ContainerState, ObservedContainer};
use crate::pod::restart::{restart_count, should_restart};
use crate::pod::snapshot::Plan;

use super::seconds;

/// Bytes of one termination message, and of all messages of a pod (behaviours 51).
const MAX_MESSAGE: usize = 4096;
const MAX_POD_MESSAGES: usize = 12 * 1024;
/// Exit code of a container whose record vanished (behaviours 10).
const UNKNOWN_EXIT: i32 = 137;

/// Statuses by list of the spec, in the spec's order.
#[derive(Debug, Default)]
pub(super) struct Statuses {
    pub init: Vec<ContainerStatus>,
    pub main: Vec<ContainerStatus>,
    pub ephemeral: Vec<ContainerStatus>,
}

impl Statuses {
    pub fn of(&self, role: Role, index: usize) -> Option<&ContainerStatus> {
        match role {
            Role::Init | Role::Sidecar => self.init.get(index),
            Role::Main => self.main.get(index),
            Role::Ephemeral => self.ephemeral.get(index),
        }
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut ContainerStatus> {
        self.init.iter_mut().chain(&mut self.main).chain(&mut self.ephemeral)
    }
}

pub(super) fn statuses(facts: &Facts<'_>, plan: &Plan) -> Statuses {
    let mut all = Statuses::default();
    // A pod that was refused never had containers to speak of.
    if matches!(plan.lifecycle.cause(), Some(EndCause::Rejected { .. })) {
        return all;
    }
    for container in &facts.containers {
        let made = Maker { facts, plan, container }.status();
        match container.role {
            Role::Init | Role::Sidecar => all.init.push(made),
            Role::Main => all.main.push(made),
            Role::Ephemeral => all.ephemeral.push(made),
        }
    }
    bound_messages(&mut all);
    all
}

struct Maker<'m, 'a> {
    facts: &'m Facts<'a>,
    plan: &'m Plan,
    container: &'m PodContainer<'a>,
}

impl Maker<'_, '_> {
    fn status(&self) -> ContainerStatus {
        let latest = self.facts.latest(&self.container.name);
        let prior = self.prior();
        match (latest, prior) {
            (Some(instance), _) => self.of_instance(instance),
            (None, Some(prior)) if prior.container_id.is_some() => self.of_vanished(prior),
            (None, _) => self.of_none(),
        }
    }

    /// The status last published for this container.
    fn prior(&self) -> Option<&ContainerStatus> {
        let prior = self.facts.snapshot.prior?;
        let list = match self.container.role {
            Role::Init | Role::Sidecar => &prior.init_container_statuses,
            Role::Main => &prior.container_statuses,
            Role::Ephemeral => &prior.ephemeral_container_statuses,
        };
        list.iter().flatten().find(|status| status.name == self.container.name.as_str())
    }

    fn of_instance(&self, instance: &ObservedContainer) -> ContainerStatus {
        let ended = self.ended(instance);
        let before =
            self.facts.instances(&self.container.name).nth(1).and_then(|instance| self.ended(instance));
        let (state, last_state) = match (&instance.state, ended) {
            (ContainerState::Running { started_at }, _) => (running(*started_at), before),
            (ContainerState::Created, _) => (self.waiting(), before),
            (ContainerState::Exited { exit_code, .. }, Some(ended)) => {
                self.after_exit(*exit_code, ended, before)
            }
            (_, ended) => (ApiState { terminated: ended, ..ApiState::default() }, before),
        };
        let given = &self.container.spec;
        let is_ready = match self.container.role {
            // An init container is ready once it succeeded.
            Role::Init => matches!(instance.state, ContainerState::Exited { exit_code: 0, .. }),
            Role::Ephemeral => false,
            Role::Main | Role::Sidecar => self.facts.is_ready(given, instance),
        };
        let is_started = match self.container.role {
            Role::Init => instance.is_running(),
            _ => instance.is_running() && self.facts.is_startup_done(given, instance),
        };
        ContainerStatus {
            name: given.name.clone(),
            state: Some(state),
            last_state: Some(ApiState { terminated: last_state, ..ApiState::default() }),
            ready: is_ready,
            started: Some(is_started),
            restart_count: i32::try_from(restart_count(instance)).unwrap_or(i32::MAX),
            image: if instance.image.is_empty() {
                given.image.clone().unwrap_or_default()
            } else {
                instance.image.clone()
            },
            image_id: instance.image_ref.clone(),
            container_id: Some(self.id(instance)),
            resources: given.resources.clone().filter(|_| instance.is_running()),
            allocated_resources: given.resources.as_ref().and_then(|resources| resources.requests.clone()),
            volume_mounts: self.volume_mounts(),
            ..ContainerStatus::default()
        }
    }

    /// `<runtime>://<id>`, as the API has it.
    fn id(&self, instance: &ObservedContainer) -> String {
        format!("{}://{}", self.facts.snapshot.node.runtime_name, instance.id)
    }

    /// How an instance ended. What it said came from a file that goes with the pod's folder: once it was
    /// told it stays told, also by an agent that never read the file.
    fn ended(&self, instance: &ObservedContainer) -> Option<ContainerStateTerminated> {
        let mut ended = terminated(instance, self.id(instance))?;
        if ended.message.is_none() {
            ended.message = self.told_message(instance);
        }
        Some(ended)
    }

    fn told_message(&self, instance: &ObservedContainer) -> Option<String> {
        let prior = self.prior()?;
        let states = [&prior.state, &prior.last_state].into_iter().flatten();
        let mut ends = states.filter_map(|state| state.terminated.as_ref());
        let of_instance = ends.find(|end| is_id_of(end.container_id.as_deref(), instance))?;
        of_instance.message.clone()
    }

    /// An exit that is followed by another run shows as waiting once the plan waits for something;
    /// one that is final stays terminated.
    fn after_exit(
        &self,
        exit_code: i32,
        ended: ContainerStateTerminated,
        before: Option<ContainerStateTerminated>,
    ) -> (ApiState, Option<ContainerStateTerminated>) {
        let again = self.plan.lifecycle.cause().is_none()
            && should_restart(self.facts.pod(), self.container, exit_code);
        match self.told_waiting().filter(|_| again) {
            Some(waiting) => (ApiState { waiting: Some(waiting), ..ApiState::default() }, Some(ended)),
            None => (ApiState { terminated: Some(ended), ..ApiState::default() }, before),
        }
    }

    /// No record of an instance that was there (behaviours 10): its end stays what it was, or is
    /// unknown; where another run follows, that is what it waits for.
    fn of_vanished(&self, prior: &ContainerStatus) -> ContainerStatus {
        let known = prior.state.as_ref().and_then(|state| state.terminated.clone());
        let ended = known.clone().unwrap_or_else(|| {
            let started_at =
                prior.state.as_ref().and_then(|state| state.running.as_ref()?.started_at.clone());
            ContainerStateTerminated {
                exit_code: UNKNOWN_EXIT,
                reason: Some("ContainerStatusUnknown".to_owned()),
                message: Some("the container's record is gone from the runtime".to_owned()),
                container_id: prior.container_id.clone(),
                started_at,
                ..ContainerStateTerminated::default()
            }
        });
        let was_waiting = prior.state.as_ref().is_some_and(|state| state.waiting.is_some());
        let last = prior.last_state.as_ref().and_then(|state| state.terminated.clone());
        let again = self.plan.lifecycle.cause().is_none()
            && should_restart(self.facts.pod(), self.container, ended.exit_code);
        let (state, last_state) = if was_waiting {
            (self.waiting(), last)
        } else if again {
            (self.waiting(), Some(ended))
        } else {
            (ApiState { terminated: Some(ended), ..ApiState::default() }, last)
        };
        let succeeded = state.terminated.as_ref().is_some_and(|end| end.exit_code == 0);
        ContainerStatus {
            state: Some(state),
            last_state: Some(ApiState { terminated: last_state, ..ApiState::default() }),
            ready: self.container.role == Role::Init && succeeded,
            started: Some(false),
            ..prior.clone()
        }
    }

    fn of_none(&self) -> ContainerStatus {
        ContainerStatus {
            name: self.container.spec.name.clone(),
            state: Some(self.waiting()),
            last_state: Some(ApiState::default()),
            ready: false,
            started: Some(false),
            restart_count: 0,
            image: self.container.spec.image.clone().unwrap_or_default(),
            volume_mounts: self.volume_mounts(),
            ..ContainerStatus::default()
        }
    }

    fn waiting(&self) -> ApiState {
        let waiting = self.told_waiting().unwrap_or_else(|| {
            let has_init = self.facts.of_role(Role::Init).next().is_some()
                || self.facts.of_role(Role::Sidecar).next().is_some();
            let reason = if has_init { "PodInitializing" } else { "ContainerCreating" };
            ContainerStateWaiting { reason: Some(reason.to_owned()), message: None }
        });
        ApiState { waiting: Some(waiting), ..ApiState::default() }
    }

    /// What the plan says about this container.
    fn told_waiting(&self) -> Option<ContainerStateWaiting> {
        let name = &self.container.name;
        let told = self.plan.waiting.iter().find(|waiting| waiting.container.as_ref() == Some(name))?;
        let known = API_REASONS.contains(&told.reason.as_str());
        let reason = if known { told.reason.clone() } else { "ContainerCreating".to_owned() };
        Some(ContainerStateWaiting { reason: Some(reason), message: Some(told.message.clone()) })
    }

    fn volume_mounts(&self) -> Option<Vec<VolumeMountStatus>> {
        let mounts = self.container.spec.volume_mounts.as_ref()?;
        let made = mounts.iter().map(|mount| VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: mount.read_only,
            recursive_read_only: mount
                .read_only
                .filter(|readonly| *readonly)
                .map(|_| mount.recursive_read_only.clone().unwrap_or_else(|| "Disabled".to_owned())),
            volume_status: None,
        });
        Some(made.collect()).filter(|list: &Vec<_>| !list.is_empty())
    }
}

/// Waiting reasons that clients know (kubelet-surface B7).
const API_REASONS: [&str; 16] = [
    "ContainerCreating",
    "PodInitializing",
    "CrashLoopBackOff",
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
    "CreateContainerConfigError",
    "CreateContainerError",
    "PreCreateHookError",
    "PreStartHookError",
    "PostStartHookError",
    "RunContainerError",
];

/// Whether an id of the API is of this instance, whatever the runtime was called then.
fn is_id_of(id: Option<&str>, instance: &ObservedContainer) -> bool {
    id.and_then(|id| id.split_once("://")).is_some_and(|(_, id)| id == instance.id.as_str())
}

fn running(started_at: Timestamp) -> ApiState {
    let running = ContainerStateRunning { started_at: Some(Time(seconds(started_at))) };
    ApiState { running: Some(running), ..ApiState::default() }
}

/// The end of an instance that ended or that nobody knows of any more.
fn terminated(instance: &ObservedContainer, id: String) -> Option<ContainerStateTerminated> {
    match &instance.state {
        ContainerState::Exited { started_at, finished_at, exit_code, reason, message } => {
            let by_code = if *exit_code == 0 { "Completed" } else { "Error" };
            let reason = if reason.is_empty() { by_code } else { reason.as_str() };
            Some(ContainerStateTerminated {
                exit_code: *exit_code,
                reason: Some(reason.to_owned()),
                message: Some(cut(message, MAX_MESSAGE)).filter(|message| !message.is_empty()),
                started_at: started_at.map(|at| Time(seconds(at))),
                finished_at: Some(Time(seconds(*finished_at))),
                container_id: Some(id),
                signal: None,
            })
        }
        ContainerState::Unknown => Some(ContainerStateTerminated {
            exit_code: UNKNOWN_EXIT,
            reason: Some("ContainerStatusUnknown".to_owned()),
            message: Some("the runtime does not know the container's state".to_owned()),
            container_id: Some(id),
            ..ContainerStateTerminated::default()
        }),
        ContainerState::Created | ContainerState::Running { .. } => None,
    }
}

/// The pod's messages share 12 KiB evenly.
fn bound_messages(all: &mut Statuses) {
    let share = MAX_POD_MESSAGES / all.all_mut().count().max(1);
    for status in all.all_mut() {
        for state in [&mut status.state, &mut status.last_state].into_iter().flatten() {
            if let Some(message) = state.terminated.as_mut().and_then(|end| end.message.as_mut()) {
                *message = cut(message, share.min(MAX_MESSAGE));
            }
        }
    }
}

/// At most `limit` bytes, at a character's end.
fn cut(text: &str, limit: usize) -> String {
    text[..text.floor_char_boundary(limit)].to_owned()
}
