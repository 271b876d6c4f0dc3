//! After the end: volumes, then cgroup, then folders are released, and what the runtime keeps is
//! thinned out or forgotten (behaviours 5, 29, 43).

use std::collections::BTreeSet;
use std::time::Duration;

use crate::pod::containers::spec;
use crate::pod::desired::PodSource;
use crate::pod::lifecycle::forgets_runtime;
use crate::pod::observed::{ContainerState, ObservedContainer, SandboxState};
use crate::pod::step::{Step, StepKind};
use crate::resources::cgroup_names;
use crate::resources::qos::{QosClass, qos_class};

use super::draft::Draft;
use super::{containers, sandbox};

/// What a container gets that was not known to run.
const STRAY_GRACE: Duration = Duration::from_secs(2);

pub(super) fn release(draft: &mut Draft<'_, '_>) {
    if !forget(draft) || !volumes_released(draft) || !cgroup_removed(draft) {
        return;
    }
    if !draft.is_done(StepKind::RemovePodDirs, "") {
        draft.want(Step::RemovePodDirs);
    }
}

/// What the runtime still has of the pod: all of it goes with the pod, else only what is too old.
/// False while something still runs.
pub(super) fn forget(draft: &mut Draft<'_, '_>) -> bool {
    if strays_left(draft) {
        return false;
    }
    if !forgets_runtime(draft.facts) {
        containers::remove_old(draft);
        sandbox::remove_old(draft);
        return true;
    }
    let observed = draft.facts.snapshot.observed;
    for instance in &observed.containers {
        containers::remove(draft, instance);
    }
    if observed.containers.is_empty() {
        for sandbox in &observed.sandboxes {
            draft.want(Step::RemoveSandbox { id: sandbox.id.clone() });
        }
    }
    true
}

/// A call whose answer was lost may have left something running after the end; it is ended first.
fn strays_left(draft: &mut Draft<'_, '_>) -> bool {
    let observed = draft.facts.snapshot.observed;
    for instance in observed.containers.iter().filter(|instance| instance.may_run()) {
        if instance.state == ContainerState::Created {
            containers::remove(draft, instance);
        } else if !draft.facts.is_busy(&instance.name) {
            containers::stop(draft, instance, STRAY_GRACE, "its pod has ended".to_owned());
        }
    }
    let up = || observed.sandboxes.iter().filter(|sandbox| sandbox.state == SandboxState::Ready);
    if !draft.facts.sandbox_in_use() {
        for sandbox in up() {
            draft.want(Step::StopSandbox { id: sandbox.id.clone() });
        }
    }
    observed.containers.iter().any(ObservedContainer::may_run) || up().next().is_some()
}

/// A folder of the node needs no release; all others do, whether this agent set them up or one before.
fn volumes_released(draft: &mut Draft<'_, '_>) -> bool {
    let spec = spec(draft.facts.pod());
    let of_spec = spec.volumes.iter().flatten().filter(|volume| volume.host_path.is_none());
    let known = draft.facts.snapshot.local.volumes.keys().cloned();
    let host: BTreeSet<&str> = spec
        .volumes
        .iter()
        .flatten()
        .filter(|volume| volume.host_path.is_some())
        .map(|volume| volume.name.as_str())
        .collect();
    let mut names: BTreeSet<String> = of_spec.map(|volume| volume.name.clone()).collect();
    names.extend(known.filter(|name| !host.contains(name.as_str())));
    let mut released = true;
    for volume in names {
        if !draft.is_done(StepKind::ReleaseVolume, &volume) {
            released = false;
            draft.want(Step::ReleaseVolume { volume });
        }
    }
    released
}

fn cgroup_removed(draft: &mut Draft<'_, '_>) -> bool {
    let paths = cgroups(draft);
    if paths.is_empty() || draft.is_done(StepKind::RemoveCgroup, "") {
        return true;
    }
    draft.want(Step::RemoveCgroup { paths: paths.into_iter().collect() });
    false
}

/// Where the pod's cgroup is: by its class, and where the journal noted one. Nobody knows the class of a
/// pod without a spec, so that it is looked for in all of them.
fn cgroups(draft: &Draft<'_, '_>) -> BTreeSet<String> {
    let snapshot = draft.facts.snapshot;
    let settings = &snapshot.node.cgroups;
    let mut paths = BTreeSet::new();
    if !settings.per_qos {
        return paths;
    }
    let classes = match snapshot.desired.source {
        PodSource::Runtime => vec![QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort],
        PodSource::File { .. } | PodSource::Api => vec![qos_class(draft.facts.pod())],
    };
    paths.extend(classes.into_iter().map(|class| cgroup_names::pod(settings, class, &snapshot.desired.uid)));
    paths.extend(snapshot.local.journalled_cgroup.clone());
    paths
}
