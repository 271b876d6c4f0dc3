//! The containers of a pod in one order with their roles, so that nobody walks three lists.
//! Only the shape of the spec; nothing about what runs.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec};

use crate::ids::ContainerName;

/// What a container is to its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Runs to completion before the next one starts.
    Init,
    /// An init container with restartPolicy Always (KEP-753): runs beside the main ones.
    Sidecar,
    Main,
    /// Added to a running pod for debugging; never restarted.
    Ephemeral,
}

#[derive(Clone, Debug)]
pub struct PodContainer<'a> {
    pub role: Role,
    /// Position within `initContainers`, `containers` or `ephemeralContainers`.
    pub index: usize,
    pub name: ContainerName,
    pub spec: Cow<'a, Container>,
}

impl PodContainer<'_> {
    /// The list of the spec it stands in, for field paths.
    pub fn list(&self) -> &'static str {
        match self.role {
            Role::Init | Role::Sidecar => "initContainers",
            Role::Main => "containers",
            Role::Ephemeral => "ephemeralContainers",
        }
    }
}

/// The spec of a pod; an absent one is an empty one.
pub fn spec(pod: &Pod) -> Cow<'_, PodSpec> {
    pod.spec.as_ref().map_or_else(|| Cow::Owned(PodSpec::default()), Cow::Borrowed)
}

/// Init containers and sidecars in order, then main ones, then ephemeral ones.
pub fn containers(pod: &Pod) -> Vec<PodContainer<'_>> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let init = spec.init_containers.iter().flatten().enumerate().map(|(index, container)| PodContainer {
        role: if is_sidecar(container) { Role::Sidecar } else { Role::Init },
        index,
        name: container.name.as_str().into(),
        spec: Cow::Borrowed(container),
    });
    let main = spec.containers.iter().enumerate().map(|(index, container)| PodContainer {
        role: Role::Main,
        index,
        name: container.name.as_str().into(),
        spec: Cow::Borrowed(container),
    });
    let ephemeral =
        spec.ephemeral_containers.iter().flatten().enumerate().map(|(index, container)| PodContainer {
            role: Role::Ephemeral,
            index,
            name: container.name.as_str().into(),
            spec: Cow::Owned(ephemeral_as_container(container)),
        });
    init.chain(main).chain(ephemeral).collect()
}

/// Whether an init container is a sidecar.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

fn ephemeral_as_container(ephemeral: &EphemeralContainer) -> Container {
    Container {
        args: ephemeral.args.clone(),
        command: ephemeral.command.clone(),
        env: ephemeral.env.clone(),
        env_from: ephemeral.env_from.clone(),
        image: ephemeral.image.clone(),
        image_pull_policy: ephemeral.image_pull_policy.clone(),
        name: ephemeral.name.clone(),
        security_context: ephemeral.security_context.clone(),
        stdin: ephemeral.stdin,
        stdin_once: ephemeral.stdin_once,
        termination_message_path: ephemeral.termination_message_path.clone(),
        termination_message_policy: ephemeral.termination_message_policy.clone(),
        tty: ephemeral.tty,
        volume_mounts: ephemeral.volume_mounts.clone(),
        working_dir: ephemeral.working_dir.clone(),
        restart_policy: Some("Never".to_owned()),
        ..Container::default()
    }
}

pub fn is_host_network(pod: &Pod) -> bool {
    spec_flag(pod, |spec| spec.host_network)
}

fn spec_flag(pod: &Pod, flag: impl Fn(&PodSpec) -> Option<bool>) -> bool {
    pod.spec.as_ref().and_then(flag).unwrap_or(false)
}
