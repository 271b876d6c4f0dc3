//! Questions about one snapshot that planner, status and probes all ask, answered in one place.

use std::net::IpAddr;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod, PodStatus};

use crate::ids::ContainerName;
use crate::pod::containers::{PodContainer, Role, containers, is_host_network, spec};
use crate::pod::hooks::Target;
use crate::pod::local::{HookState, ProbeResults};
use crate::pod::observed::{ContainerState, ObservedContainer, ObservedSandbox, SandboxState};
use crate::pod::render::{
    CONTAINER_HASH, DELETION_GRACE, PORTS, PRE_STOP, TERMINATION_GRACE, container_hash,
};
use crate::pod::restart::{after_seconds, should_restart};
use crate::pod::snapshot::PodSnapshot;
use crate::pod::step::{Hook, StepKey, StepKind};

/// A container that was up this long before the agent is adopted with what it had (behaviours 24).
const ADOPTED_AFTER: SignedDuration = SignedDuration::from_secs(10);
/// Where neither spec nor annotations say (the API's default).
const DEFAULT_GRACE: Duration = Duration::from_secs(30);

/// One snapshot with its containers in order.
#[derive(Debug)]
pub struct Facts<'a> {
    pub snapshot: &'a PodSnapshot<'a>,
    pub containers: Vec<PodContainer<'a>>,
}

impl<'a> Facts<'a> {
    pub fn new(snapshot: &'a PodSnapshot<'a>) -> Self {
        Self { snapshot, containers: containers(&snapshot.desired.pod) }
    }

    pub fn pod(&self) -> &'a Pod {
        &self.snapshot.desired.pod
    }

    pub fn of_role(&self, role: Role) -> impl DoubleEndedIterator<Item = &PodContainer<'a>> {
        self.containers.iter().filter(move |container| container.role == role)
    }

    /// The newest sandbox where it can hold containers: alone ready, of the wanted network, with an
    /// address (behaviours 14). One whose containers run is kept even if its address is not known,
    /// because the address may only be missing from the reading.
    pub fn sandbox(&self) -> Option<&'a ObservedSandbox> {
        let sandboxes = &self.snapshot.observed.sandboxes;
        let newest = sandboxes.first()?;
        let ready = sandboxes.iter().filter(|sandbox| sandbox.state == SandboxState::Ready).count();
        let host_network = is_host_network(self.pod());
        let has_address = host_network || !newest.ips.is_empty() || self.holds_running(newest);
        let usable = ready == 1
            && newest.state == SandboxState::Ready
            && newest.host_network == host_network
            && has_address;
        usable.then_some(newest)
    }

    fn holds_running(&self, sandbox: &ObservedSandbox) -> bool {
        self.snapshot
            .observed
            .containers
            .iter()
            .any(|container| container.sandbox == sandbox.id && container.is_running())
    }

    /// The node's addresses for host-network pods, else those of the newest sandbox that has some: one of each
    /// family, that of the node's first address first (behaviours 50).
    pub fn pod_ips(&self) -> Vec<IpAddr> {
        let node = &self.snapshot.node.ips;
        if is_host_network(self.pod()) {
            return node.clone();
        }
        let sandboxes = &self.snapshot.observed.sandboxes;
        let told = sandboxes.iter().map(|sandbox| &sandbox.ips).find(|ips| !ips.is_empty());
        told.map(|told| one_of_each_family(node, told)).unwrap_or_default()
    }

    pub fn instances(&self, name: &ContainerName) -> impl Iterator<Item = &'a ObservedContainer> {
        self.snapshot.observed.containers.iter().filter(move |container| container.name == *name)
    }

    pub fn latest(&self, name: &ContainerName) -> Option<&'a ObservedContainer> {
        self.instances(name).next()
    }

    /// The newest instance within the newest sandbox, whatever its state: init containers run again
    /// in each sandbox.
    pub fn latest_in_sandbox(&self, name: &ContainerName) -> Option<&'a ObservedContainer> {
        let sandbox = &self.snapshot.observed.sandboxes.first()?.id;
        self.instances(name).find(|container| container.sandbox == *sandbox)
    }

    /// A call that makes, starts or ends an instance of this container has not answered yet.
    pub fn is_busy(&self, name: &ContainerName) -> bool {
        const KINDS: [StepKind; 3] =
            [StepKind::CreateContainer, StepKind::StartContainer, StepKind::StopContainer];
        KINDS.iter().any(|kind| self.in_flight(*kind, name.as_str()))
            || self
                .instances(name)
                .any(|instance| self.in_flight(StepKind::RemoveContainer, instance.id.as_str()))
    }

    pub fn in_flight(&self, kind: StepKind, subject: &str) -> bool {
        let key = StepKey { kind, subject: subject.to_owned() };
        self.snapshot.local.in_flight.contains_key(&key)
    }

    pub fn any_in_flight(&self, kinds: &[StepKind]) -> bool {
        self.snapshot.local.in_flight.keys().any(|key| kinds.contains(&key.kind))
    }

    /// Something runs, or a call that makes something run has not answered: the sandbox is in use.
    pub fn sandbox_in_use(&self) -> bool {
        self.snapshot.observed.containers.iter().any(ObservedContainer::may_run)
            || self.any_in_flight(&[StepKind::CreateContainer, StepKind::StartContainer])
    }

    /// Started long enough before the agent that its hooks and startup probe are history.
    pub fn is_adopted(&self, instance: &ObservedContainer) -> bool {
        let ContainerState::Running { started_at } = instance.state else { return false };
        self.snapshot.node.agent_started_at.duration_since(started_at) > ADOPTED_AFTER
    }

    pub fn probe_results(&self, instance: &ObservedContainer) -> ProbeResults {
        self.snapshot.local.probes.get(&instance.id).cloned().unwrap_or_default()
    }

    /// Whether the postStart hook, where there is one, is over.
    pub fn is_post_start_done(&self, container: &Container, instance: &ObservedContainer) -> bool {
        let has_hook = container.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.post_start.is_some());
        match self.snapshot.local.post_start.get(&instance.id) {
            _ if !has_hook => true,
            Some(HookState::Done) => true,
            Some(_) => false,
            None => self.is_adopted(instance),
        }
    }

    /// Whether the startup probe, where there is one, has succeeded.
    pub fn is_startup_done(&self, container: &Container, instance: &ObservedContainer) -> bool {
        match (&container.startup_probe, self.probe_results(instance).startup) {
            (None, _) => true,
            (Some(_), Some(result)) => result.healthy,
            (Some(_), None) => self.is_adopted(instance),
        }
    }

    /// Running, startup probe passed, postStart over: the next init container may start (KEP-753).
    pub fn is_started(&self, container: &Container, instance: &ObservedContainer) -> bool {
        instance.is_running()
            && self.is_post_start_done(container, instance)
            && self.is_startup_done(container, instance)
    }

    /// Ready by its readiness probe; an adopted one stays what it was until its first result.
    pub fn is_ready(&self, container: &Container, instance: &ObservedContainer) -> bool {
        if !instance.is_running() || !self.is_startup_done(container, instance) {
            return false;
        }
        if container.readiness_probe.is_none() {
            return true;
        }
        match self.probe_results(instance).readiness {
            Some(result) => result.healthy,
            None => self.is_adopted(instance) && self.was_ready(instance),
        }
    }

    /// What the last status said of this very instance; without one, that it served.
    fn was_ready(&self, instance: &ObservedContainer) -> bool {
        let Some(prior) = self.snapshot.prior else { return true };
        let statuses = prior.container_statuses.iter().chain(prior.init_container_statuses.iter()).flatten();
        let mut of_instance = statuses.filter(|status| {
            status.container_id.as_deref().is_some_and(|id| id.ends_with(instance.id.as_str()))
        });
        of_instance.next().is_none_or(|status| status.ready)
    }

    /// The instance runs something else than the spec says (behaviours 20). One without the
    /// annotation was not made by a kubelet; it is left alone.
    pub fn is_outdated(&self, container: &Container, instance: &ObservedContainer) -> bool {
        let noted = instance.annotations.get(CONTAINER_HASH);
        noted.is_some_and(|noted| *noted != format!("{:x}", container_hash(container)))
    }

    /// Grace for ending a container outside of a deletion: the spec's, else what was noted on the
    /// instance when it was made (behaviours 19).
    pub fn grace(&self, instance: Option<&ObservedContainer>) -> Duration {
        let seconds = spec(self.pod()).termination_grace_period_seconds;
        let noted =
            |key: &str| instance.and_then(|instance| instance.annotations.get(key)?.parse::<i64>().ok());
        let seconds = seconds.or_else(|| noted(DELETION_GRACE)).or_else(|| noted(TERMINATION_GRACE));
        seconds.and_then(|seconds| u64::try_from(seconds).ok()).map_or(DEFAULT_GRACE, Duration::from_secs)
    }

    /// The preStop hook of an instance: from the spec, else as noted on the instance.
    /// None once it was begun.
    pub fn pre_stop(&self, instance: &ObservedContainer) -> Option<Hook> {
        if self.snapshot.local.pre_stop.contains(&instance.id) {
            return None;
        }
        let pod_ip = self.pod_ips().first().copied();
        let known = self.containers.iter().find(|container| container.name == instance.name);
        if let Some(container) = known {
            let ports = container.spec.ports.as_deref().unwrap_or_default();
            return Target { ports, pod_ip }.hook(container.spec.lifecycle.as_ref()?.pre_stop.as_ref()?);
        }
        let handler: LifecycleHandler = serde_json::from_str(instance.annotations.get(PRE_STOP)?).ok()?;
        let ports =
            instance.annotations.get(PORTS).and_then(|text| serde_json::from_str::<Vec<_>>(text).ok());
        Target { ports: &ports.unwrap_or_default(), pod_ip }.hook(&handler)
    }

    /// When the pod began here: what the status said, else its oldest sandbox, else when it was seen.
    pub fn start_time(&self) -> Timestamp {
        if let Some(time) = self.snapshot.prior.and_then(|prior| prior.start_time.as_ref()) {
            return time.0;
        }
        let oldest = self.snapshot.observed.sandboxes.iter().map(|sandbox| sandbox.created_at).min();
        oldest.map_or(self.snapshot.desired.seen_at, |oldest| oldest.min(self.snapshot.desired.seen_at))
    }

    /// When `activeDeadlineSeconds` runs out.
    pub fn active_deadline(&self) -> Option<Timestamp> {
        let seconds = spec(self.pod()).active_deadline_seconds?;
        Some(after_seconds(self.start_time(), seconds))
    }

    /// All containers are done for good (behaviours 12, 14): the main ones ended and are not to run
    /// again, or an init container failed for good.
    pub fn is_finished(&self) -> bool {
        if self.snapshot.prior.is_some_and(is_terminal) {
            return true;
        }
        let main_ended = self.of_role(Role::Main).all(|container| self.is_over(container));
        let any_main = self.of_role(Role::Main).next().is_some();
        (any_main && main_ended) || self.failed_init().is_some()
    }

    /// The latest instance ended and no other follows. A container whose call is under way is not over.
    fn is_over(&self, container: &PodContainer<'_>) -> bool {
        match self.latest(&container.name).map(|instance| &instance.state) {
            Some(ContainerState::Exited { exit_code, .. }) => {
                !should_restart(self.pod(), container, *exit_code) && !self.is_busy(&container.name)
            }
            _ => false,
        }
    }

    /// The init container whose failure ended the pod; none once a main container was made.
    pub fn failed_init(&self) -> Option<&PodContainer<'a>> {
        if self.of_role(Role::Main).any(|container| self.latest_in_sandbox(&container.name).is_some()) {
            return None;
        }
        self.of_role(Role::Init).find(|container| {
            let state = self.latest_in_sandbox(&container.name).map(|instance| &instance.state);
            matches!(state, Some(ContainerState::Exited { exit_code, .. })
                if *exit_code != 0 && !should_restart(self.pod(), container, *exit_code))
        })
    }

    /// Nothing of the pod runs and no call that could change that is under way.
    pub fn nothing_runs(&self) -> bool {
        const RISKY: [StepKind; 6] = [
            StepKind::CreateSandbox,
            StepKind::CreateContainer,
            StepKind::StartContainer,
            StepKind::StopContainer,
            StepKind::StopSandbox,
            StepKind::RemoveContainer,
        ];
        let observed = self.snapshot.observed;
        !self.any_in_flight(&RISKY)
            && !observed.containers.iter().any(ObservedContainer::may_run)
            && !observed.sandboxes.iter().any(|sandbox| sandbox.state == SandboxState::Ready)
    }
}

/// The pod's addresses as everyone is told them: runtimes tell any number in any order (sortPodIPs in
/// pkg/kubelet/kubelet_pods.go).
fn one_of_each_family(node: &[IpAddr], told: &[IpAddr]) -> Vec<IpAddr> {
    let v6_first = node.first().is_some_and(IpAddr::is_ipv6);
    let first_of = |v6: bool| told.iter().copied().find(|ip| ip.is_ipv6() == v6);
    [v6_first, !v6_first].into_iter().filter_map(first_of).collect()
}

/// A phase that is never left (behaviours 7).
pub fn is_terminal(status: &PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}
