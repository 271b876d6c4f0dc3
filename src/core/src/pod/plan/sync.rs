//! A pod that is to run: what must be there first, then its containers in order, then what is left
//! over from before. Independent things are wanted at once.

use crate::pod::containers::Role;
use crate::pod::step::{PodCgroup, Step, StepKind};
use crate::resources::qos::qos_class;
use crate::resources::{cgroup_names, cgroup_values};

use super::containers::{self, Place, Progress};
use super::draft::Draft;
use super::{sandbox, volumes};

pub(super) fn sync(draft: &mut Draft<'_, '_>) {
    if let Some(deadline) = draft.facts.active_deadline() {
        draft.wake(deadline);
    }
    let dirs = folders(draft);
    let cgroup = cgroup(draft);
    let volumes = if dirs { volumes::volumes(draft) } else { None };
    containers::pull_ahead(draft);
    let sandbox = sandbox::sandbox(draft, dirs && cgroup);
    if let Some(sandbox) = sandbox {
        let pod_ips = draft.facts.pod_ips();
        run(draft, &Place { sandbox, volumes: volumes.as_deref(), pod_ips: &pod_ips });
    }
    containers::remove_old(draft);
    sandbox::remove_old(draft);
    cancel_hooks_of_the_dead(draft);
}

fn folders(draft: &mut Draft<'_, '_>) -> bool {
    if draft.is_done(StepKind::PreparePodDirs, "") {
        return true;
    }
    let containers = draft.facts.containers.iter().map(|container| container.name.clone()).collect();
    draft.want(Step::PreparePodDirs { containers });
    false
}

fn cgroup(draft: &mut Draft<'_, '_>) -> bool {
    let snapshot = draft.facts.snapshot;
    let settings = &snapshot.node.cgroups;
    if !settings.per_qos || draft.is_done(StepKind::EnsureCgroup, "") {
        return true;
    }
    let path = cgroup_names::pod(settings, qos_class(draft.facts.pod()), &snapshot.desired.uid);
    let limits = cgroup_values::pod_limits(draft.facts.pod(), settings);
    draft.want(Step::EnsureCgroup(PodCgroup { path, limits }));
    false
}

/// Ephemeral containers whenever there is a sandbox; init containers one after the other; main ones
/// once all of these are done (behaviours 15, 16).
fn run(draft: &mut Draft<'_, '_>, place: &Place<'_>) {
    let facts = draft.facts;
    for container in facts.of_role(Role::Ephemeral) {
        containers::keep(draft, container, place);
    }
    if !init(draft, place) {
        return;
    }
    // The order of the main containers is kept up to the end of postStart, as the kubelet does:
    // people use the first one's hook to hold back the second. One that rests holds back nobody.
    for container in facts.of_role(Role::Main) {
        if containers::keep(draft, container, place) == Progress::UnderWay {
            break;
        }
    }
    // Those behind it are still watched over where they run.
    for container in facts.of_role(Role::Main) {
        if facts.latest(&container.name).is_some_and(|instance| instance.is_running()) {
            containers::keep(draft, container, place);
        }
    }
}

/// Brings the init containers forward; true once all are done. Sidecars are kept running all along.
fn init(draft: &mut Draft<'_, '_>, place: &Place<'_>) -> bool {
    let facts = draft.facts;
    let main_exists =
        facts.of_role(Role::Main).any(|container| facts.latest_in_sandbox(&container.name).is_some());
    let inits: Vec<_> = facts
        .containers
        .iter()
        .filter(|container| matches!(container.role, Role::Init | Role::Sidecar))
        .collect();
    // A later init container that exists proves that the earlier ones were done, even where their
    // records are gone.
    let reached = if main_exists {
        inits.len()
    } else {
        inits.iter().rposition(|container| facts.latest_in_sandbox(&container.name).is_some()).unwrap_or(0)
    };
    for (position, container) in inits.iter().enumerate() {
        let progress = match container.role {
            Role::Init if position < reached => continue,
            _ => containers::keep(draft, container, place),
        };
        let passed = match container.role {
            Role::Sidecar => position < reached || progress == Progress::Started,
            _ => progress == Progress::Over,
        };
        if !passed {
            return false;
        }
    }
    true
}

/// A postStart hook of a container that does not run any more has nobody to serve.
fn cancel_hooks_of_the_dead(draft: &mut Draft<'_, '_>) {
    let facts = draft.facts;
    draft.cancel(&[StepKind::PostStart], |key| {
        facts.latest(&key.subject.as_str().into()).is_some_and(|instance| instance.is_running())
    });
}
