//! One container of a pod that is to run: what its newest instance asks for now. Create, start,
//! postStart, watch over, end, wait, again; each decision a few lines with its rule.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;

use crate::ids::ContainerName;
use crate::image::provider::PodAccount;
use crate::image::pull_secrets::{self, PullSecrets};
use crate::pod::containers::{PodContainer, Role, is_host_network};
use crate::pod::hooks::Target;
use crate::pod::local::HookState;
use crate::pod::observed::{ContainerState, ObservedContainer, ObservedSandbox};
use crate::pod::render::{ContainerPlace, create_container};
use crate::pod::restart::{
    after_seconds, backoff_after, backoff_key, finished_at, next_attempt, should_restart,
};
use crate::pod::step::{PullPolicy, Step, StepKind, StopContainer, VolumeAction};

use super::draft::{Draft, Wish};

/// Instances kept per container: the newest, and the one before it for `logs --previous`.
const KEPT_INSTANCES: usize = 2;

/// A pull secret that the control plane has not told by then counts as missing.
const SECRETS_WITHIN_SECONDS: i64 = 15;

/// Characters of an ended container's own words that a message repeats.
const MAX_LAST_WORDS: usize = 200;

/// Where containers are made.
#[derive(Clone, Copy)]
pub(super) struct Place<'p> {
    pub sandbox: &'p ObservedSandbox,
    /// `None` while one is not set up: what runs is watched over, nothing new is made.
    pub volumes: Option<&'p [VolumeAction]>,
    pub pod_ips: &'p [IpAddr],
}

/// How far a container has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Being pulled, made, started, hooked or ended.
    UnderWay,
    /// Waits for a back-off or for something outside.
    Resting,
    /// Runs; not yet through its startup probe.
    Running,
    /// Runs, and what may come after it may come.
    Started,
    /// Ended for good.
    Over,
}

/// Moves one container on.
pub(super) fn keep(draft: &mut Draft<'_, '_>, container: &PodContainer<'_>, place: &Place<'_>) -> Progress {
    if draft.facts.is_busy(&container.name) {
        return Progress::UnderWay;
    }
    let Some(instance) = draft.facts.latest(&container.name) else { return create(draft, container, place) };
    let here = instance.sandbox == place.sandbox.id;
    match &instance.state {
        ContainerState::Created if !here || draft.facts.is_outdated(&container.spec, instance) => {
            remove(draft, instance);
            Progress::UnderWay
        }
        ContainerState::Created => {
            let step = Step::StartContainer { container: container.name.clone(), id: instance.id.clone() };
            under_way(draft.want(step))
        }
        ContainerState::Running { .. } => running(draft, container, instance),
        // What it does cannot be told; it is ended and then judged by its exit.
        ContainerState::Unknown => {
            let grace = draft.facts.grace(Some(instance));
            stop(draft, instance, grace, "its state is unknown to the runtime".to_owned())
        }
        ContainerState::Exited { exit_code, .. } => exited(draft, container, instance, *exit_code, place),
    }
}

fn under_way(wish: Wish) -> Progress {
    match wish {
        Wish::Now => Progress::UnderWay,
        Wish::Resting => Progress::Resting,
    }
}

/// A running instance: ended where it must be, else led through its hook.
fn running(
    draft: &mut Draft<'_, '_>,
    container: &PodContainer<'_>,
    instance: &ObservedContainer,
) -> Progress {
    let facts = draft.facts;
    if let Some((grace, reason)) = reason_to_stop(draft, container, instance) {
        return stop(draft, instance, grace, reason);
    }
    if container.role == Role::Init {
        return Progress::UnderWay;
    }
    if !facts.is_post_start_done(&container.spec, instance) {
        return post_start(draft, container, instance);
    }
    tell_unready(draft, container, instance);
    if facts.is_startup_done(&container.spec, instance) { Progress::Started } else { Progress::Running }
}

/// A container that runs and does not serve says which probe it waits for.
fn tell_unready(draft: &mut Draft<'_, '_>, container: &PodContainer<'_>, instance: &ObservedContainer) {
    let facts = draft.facts;
    let given = &container.spec;
    if facts.is_ready(given, instance) || container.role == Role::Ephemeral {
        return;
    }
    let results = facts.probe_results(instance);
    let (kind, result) = if facts.is_startup_done(given, instance) {
        ("readiness", results.readiness)
    } else {
        ("startup", results.startup)
    };
    let said = match result {
        Some(result) if !result.message.is_empty() => format!(" fails: {}", result.message),
        Some(_) => " fails".to_owned(),
        None => " has not succeeded yet".to_owned(),
    };
    let name = &container.name;
    draft.wait("ContainersNotReady", Some(name), format!("the {kind} probe of container {name}{said}"), None);
}

/// Behaviours 18, 19, 20: another image, a probe that gave up, a hook that failed.
fn reason_to_stop(
    draft: &Draft<'_, '_>,
    container: &PodContainer<'_>,
    instance: &ObservedContainer,
) -> Option<(Duration, String)> {
    let facts = draft.facts;
    let grace = facts.grace(Some(instance));
    if facts.is_outdated(&container.spec, instance) {
        return Some((grace, "its definition changed".to_owned()));
    }
    let results = facts.probe_results(instance);
    let probes = [
        ("startup", &container.spec.startup_probe, results.startup),
        ("liveness", &container.spec.liveness_probe, results.liveness),
    ];
    for (kind, probe, result) in probes {
        if let (Some(probe), Some(result)) = (probe, result)
            && !result.healthy
        {
            let own = probe.termination_grace_period_seconds.and_then(|seconds| u64::try_from(seconds).ok());
            return Some((
                own.map_or(grace, Duration::from_secs),
                format!("{kind} probe failed: {}", result.message),
            ));
        }
    }
    match facts.snapshot.local.post_start.get(&instance.id) {
        Some(HookState::Failed { message }) => Some((grace, format!("postStart hook failed: {message}"))),
        _ => None,
    }
}

fn post_start(
    draft: &mut Draft<'_, '_>,
    container: &PodContainer<'_>,
    instance: &ObservedContainer,
) -> Progress {
    let ips = draft.facts.pod_ips();
    let pod_ip = ips.first().copied();
    let ports = container.spec.ports.as_deref().unwrap_or_default();
    let handler = container.spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref());
    let Some(hook) = handler.and_then(|handler| Target { ports, pod_ip }.hook(handler)) else {
        return Progress::Started;
    };
    let step = Step::PostStart { container: container.name.clone(), id: instance.id.clone(), hook, pod_ip };
    under_way(draft.want(step))
}

/// Ends an instance outside of the pod's own end.
pub(super) fn stop(
    draft: &mut Draft<'_, '_>,
    instance: &ObservedContainer,
    grace: Duration,
    reason: String,
) -> Progress {
    let pre_stop = draft.facts.pre_stop(instance).filter(|_| !grace.is_zero());
    let pod_ip = draft.facts.pod_ips().first().copied();
    let (container, id) = (instance.name.clone(), instance.id.clone());
    under_way(draft.want(Step::StopContainer(StopContainer {
        container,
        id,
        pre_stop,
        pod_ip,
        grace,
        reason,
    })))
}

pub(super) fn remove(draft: &mut Draft<'_, '_>, instance: &ObservedContainer) {
    if !draft.facts.is_busy(&instance.name) {
        draft.want(Step::RemoveContainer { container: instance.name.clone(), id: instance.id.clone() });
    }
}

/// An instance that ended: over, or again after the back-off (behaviours 21).
fn exited(
    draft: &mut Draft<'_, '_>,
    container: &PodContainer<'_>,
    instance: &ObservedContainer,
    exit_code: i32,
    place: &Place<'_>,
) -> Progress {
    let facts = draft.facts;
    // Init containers run again in a new sandbox, even those that succeeded in the old one.
    let again_here = container.role == Role::Init && instance.sandbox != place.sandbox.id;
    let outdated = facts.is_outdated(&container.spec, instance);
    if !again_here && !outdated && !should_restart(facts.pod(), container, exit_code) {
        return Progress::Over;
    }
    if let Some((delay, until)) = backing_off(draft, container, instance) {
        // Nothing in the text counts down: an unchanged state has an unchanged status.
        let code = exit_text(facts.snapshot.local.post_start.get(&instance.id), instance, exit_code);
        let message = format!("{code}; back-off of {delay} s before it runs again");
        draft.wait("CrashLoopBackOff", Some(&container.name), message, Some(until));
        return Progress::Resting;
    }
    create(draft, container, place)
}

/// How an instance ended, in words: its failed hook where that ended it, else its code and last words.
fn exit_text(hook: Option<&HookState>, instance: &ObservedContainer, exit_code: i32) -> String {
    if let Some(HookState::Failed { message }) = hook {
        return format!("container {} was ended because its postStart failed: {message}", instance.name);
    }
    let (reason, said) = match &instance.state {
        ContainerState::Exited { reason, message, .. } => (reason.as_str(), message.as_str()),
        _ => ("", ""),
    };
    let reason = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
    let first_line = said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    let said: String = first_line.chars().take(MAX_LAST_WORDS).collect();
    let said = if said.is_empty() { said } else { format!(": {said}") };
    format!("container {} ended with exit code {exit_code}{reason}{said}", instance.name)
}

fn backing_off(
    draft: &Draft<'_, '_>,
    container: &PodContainer<'_>,
    instance: &ObservedContainer,
) -> Option<(u32, Timestamp)> {
    let snapshot = draft.facts.snapshot;
    let before = snapshot.local.backoff.get(&container.name);
    let state =
        backoff_after(before, backoff_key(&container.spec), instance, snapshot.node.max_restart_backoff)?;
    let until = after_seconds(finished_at(instance)?, i64::from(state.delay_seconds));
    (until > draft.now()).then_some((state.delay_seconds, until))
}

/// A new instance: once services, volumes and image are there.
fn create(draft: &mut Draft<'_, '_>, container: &PodContainer<'_>, place: &Place<'_>) -> Progress {
    let facts = draft.facts;
    let snapshot = facts.snapshot;
    if !snapshot.node.services_synced && !is_host_network(facts.pod()) {
        let message =
            "the node's Services are not in the kernel yet; containers start after their first sync";
        draft.wait("ServicesNotSynced", Some(&container.name), message, None);
        return Progress::Resting;
    }
    let Some(image) = snapshot.local.images.get(&container.name) else { return pull(draft, container) };
    let Some(volumes) = place.volumes else { return Progress::UnderWay };
    let attempt = next_attempt(snapshot.observed, snapshot.prior, &container.name);
    let target = ContainerPlace {
        sandbox: &place.sandbox.id,
        sandbox_attempt: place.sandbox.attempt,
        pod_ips: place.pod_ips,
        volumes,
        image,
        attempt,
    };
    match create_container(snapshot, container, &target) {
        Ok(made) => under_way(draft.want(Step::CreateContainer(Box::new(made)))),
        Err(error) => {
            draft.wait("CreateContainerConfigError", Some(&container.name), error.to_string(), None);
            Progress::Resting
        }
    }
}

fn pull(draft: &mut Draft<'_, '_>, container: &PodContainer<'_>) -> Progress {
    let policy = match container.spec.image_pull_policy.as_deref() {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        _ => PullPolicy::IfNotPresent,
    };
    let begun = draft.facts.in_flight(StepKind::PullImage, container.name.as_str());
    if !begun && waits_for_secrets(draft, container) {
        return Progress::Resting;
    }
    let snapshot = draft.facts.snapshot;
    let image = container.spec.image.clone().unwrap_or_default();
    // Those of a pull under way were handed over when it began.
    let secrets = match begun {
        true => PullSecrets::default(),
        false => PullSecrets {
            account: PodAccount::of(snapshot.desired),
            ..pull_secrets::for_image(&snapshot.desired.pod, snapshot.objects, &image)
        },
    };
    under_way(draft.want(Step::PullImage { container: container.name.clone(), image, policy, secrets }))
}

/// Secrets that are being read are waited for, but not for ever: a node that was cut off from its control plane
/// still starts pods whose images it has.
fn waits_for_secrets(draft: &mut Draft<'_, '_>, container: &PodContainer<'_>) -> bool {
    let snapshot = draft.facts.snapshot;
    let unread = pull_secrets::unread(&snapshot.desired.pod, snapshot.objects);
    let Some(first) = unread.first() else { return false };
    let since = snapshot.desired.seen_at.max(snapshot.node.agent_started_at);
    let until = after_seconds(since, SECRETS_WITHIN_SECONDS);
    if until <= snapshot.now {
        return false;
    }
    let message = format!("pull secret {first} is being read from the control plane");
    draft.wait("ContainerCreating", Some(&container.name), message, Some(until));
    true
}

/// Images of containers that never ran are fetched while the rest is prepared.
pub(super) fn pull_ahead(draft: &mut Draft<'_, '_>) {
    let facts = draft.facts;
    for container in &facts.containers {
        let needed = facts.latest(&container.name).is_none()
            && !facts.is_busy(&container.name)
            && !facts.snapshot.local.images.contains_key(&container.name)
            && !is_passed(draft, container);
        if needed {
            pull(draft, container);
        }
    }
}

/// An init container whose record is gone although a later container ran: its time is over.
fn is_passed(draft: &Draft<'_, '_>, container: &PodContainer<'_>) -> bool {
    let facts = draft.facts;
    let later = |other: &&PodContainer<'_>| {
        other.role == Role::Main || (other.role == Role::Init && other.index > container.index)
    };
    container.role == Role::Init
        && facts.containers.iter().filter(later).any(|other| facts.latest_in_sandbox(&other.name).is_some())
}

/// Everything in an unusable sandbox ends before a new one is made.
pub(super) fn stop_for_new_sandbox(draft: &mut Draft<'_, '_>) {
    for instance in draft.facts.snapshot.observed.containers.iter().filter(|instance| instance.may_run()) {
        if matches!(instance.state, ContainerState::Created) {
            remove(draft, instance);
        } else if !draft.facts.is_busy(&instance.name) {
            let grace = draft.facts.grace(Some(instance));
            stop(draft, instance, grace, "the pod's sandbox is being replaced".to_owned());
        }
    }
}

/// Ended instances beyond those kept.
pub(super) fn remove_old(draft: &mut Draft<'_, '_>) {
    let facts = draft.facts;
    let mut names: Vec<&ContainerName> =
        facts.snapshot.observed.containers.iter().map(|instance| &instance.name).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let old = facts.instances(name).skip(KEPT_INSTANCES).filter(|instance| !instance.may_run());
        for instance in old.collect::<Vec<_>>() {
            remove(draft, instance);
        }
    }
}
