//! Conditions of a pod (behaviours 13, 38; pkg/kubelet/status/generate.go). Our own are computed
//! anew with their transition times kept; those of others stay.

use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::pod::containers::{Role, is_host_network, spec};
use crate::pod::desired::{EndCause, PodSource};
use crate::pod::facts::Facts;
use crate::pod::observed::SandboxState;
use crate::pod::report::{DISRUPTION, DISRUPTION_BY_US, OWN_CONDITIONS};

use super::containers::Statuses;
use super::phase::{FAILED, SUCCEEDED, has_begun, has_succeeded};
use super::seconds;

/// A condition's value with its reason and message where it is not simply true.
struct Verdict {
    kind: &'static str,
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

pub(super) fn conditions(facts: &Facts<'_>, phase: &str, all: &Statuses) -> Vec<PodCondition> {
    let containers_ready = containers_ready(facts, phase, all);
    let verdicts = [
        ready_to_start(facts),
        initialized(facts, phase, all),
        ready(facts, &containers_ready),
        containers_ready,
        Verdict { kind: "PodScheduled", holds: true, reason: None, message: None },
    ];
    let disruption = disruption(facts, phase);
    let ours = disruption.is_some();
    let own = verdicts.into_iter().chain(disruption).map(|verdict| condition(facts, verdict));
    let foreign = foreign(facts).filter(|condition| !(ours && condition.type_ == DISRUPTION));
    own.chain(foreign.cloned()).collect()
}

/// Controllers that count failures of pods leave those out that were ended for others (KEP-3329). Told with the final
/// phase, not before: until then the pod may still end by itself. A pod that is evicted for its own limit has itself
/// to blame. Once told it stays, as those of others do, who may have told it before.
fn disruption(facts: &Facts<'_>, phase: &str) -> Option<Verdict> {
    let Some(EndCause::Preempted { message }) = facts.snapshot.lifecycle.cause() else { return None };
    let message = Some(message.clone());
    let verdict = Verdict { kind: DISRUPTION, holds: true, reason: Some(DISRUPTION_BY_US), message };
    matches!(phase, FAILED | SUCCEEDED).then_some(verdict)
}

/// Conditions of others: a pod of the API server has them in its object, any other in what was said before.
fn foreign<'a>(facts: &Facts<'a>) -> impl Iterator<Item = &'a PodCondition> {
    let snapshot = facts.snapshot;
    let told = match snapshot.desired.source {
        PodSource::Api => snapshot.desired.pod.status.as_ref(),
        PodSource::File { .. } | PodSource::Runtime => snapshot.prior,
    };
    let all = told.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    all.filter(|condition| !OWN_CONDITIONS.contains(&condition.type_.as_str()))
}

/// The time of the last change is kept while the value stays.
fn condition(facts: &Facts<'_>, verdict: Verdict) -> PodCondition {
    let snapshot = facts.snapshot;
    let status = if verdict.holds { "True" } else { "False" };
    let prior = snapshot.prior.and_then(|prior| prior.conditions.as_ref()).into_iter().flatten();
    let same = prior.into_iter().find(|old| old.type_ == verdict.kind && old.status == status);
    let since = same.and_then(|old| old.last_transition_time.clone()).unwrap_or(Time(seconds(snapshot.now)));
    PodCondition {
        type_: verdict.kind.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.map(str::to_owned),
        message: verdict.message,
        last_transition_time: Some(since),
        last_probe_time: None,
        observed_generation: snapshot.desired.pod.metadata.generation,
    }
}

/// There is a sandbox with a network.
fn ready_to_start(facts: &Facts<'_>) -> Verdict {
    let newest = facts.snapshot.observed.sandboxes.first();
    let holds = newest.is_some_and(|sandbox| {
        sandbox.state == SandboxState::Ready && (is_host_network(facts.pod()) || !sandbox.ips.is_empty())
    });
    Verdict { kind: "PodReadyToStartContainers", holds, reason: None, message: None }
}

/// True once a main container has begun, whatever a sidecar does later.
fn initialized(facts: &Facts<'_>, phase: &str, all: &Statuses) -> Verdict {
    let kind = "Initialized";
    if phase == SUCCEEDED {
        return Verdict { kind, holds: true, reason: Some("PodCompleted"), message: None };
    }
    let begun = all.main.iter().any(has_begun);
    let open: Vec<&str> = facts
        .containers
        .iter()
        .filter(|container| matches!(container.role, Role::Init | Role::Sidecar))
        .filter(|container| {
            all.of(container.role, container.index).is_none_or(|status| match container.role {
                Role::Sidecar => status.started != Some(true),
                _ => !has_succeeded(status),
            })
        })
        .map(|container| container.name.as_str())
        .collect();
    if begun || open.is_empty() {
        return Verdict { kind, holds: true, reason: None, message: None };
    }
    let reason = if phase == FAILED { "PodFailed" } else { "ContainersNotInitialized" };
    let message = format!("containers with incomplete status: [{}]", open.join(" "));
    Verdict { kind, holds: false, reason: Some(reason), message: Some(message) }
}

fn containers_ready(facts: &Facts<'_>, phase: &str, all: &Statuses) -> Verdict {
    let kind = "ContainersReady";
    if phase == SUCCEEDED {
        return Verdict { kind, holds: false, reason: Some("PodCompleted"), message: None };
    }
    if phase == FAILED {
        return Verdict { kind, holds: false, reason: Some("PodFailed"), message: None };
    }
    let counted =
        facts.containers.iter().filter(|container| matches!(container.role, Role::Main | Role::Sidecar));
    let (mut unready, mut unknown) = (Vec::new(), Vec::new());
    for container in counted {
        match all.of(container.role, container.index) {
            None => unknown.push(container.name.as_str()),
            Some(ContainerStatus { ready: false, .. }) => unready.push(container.name.as_str()),
            Some(_) => {}
        }
    }
    let mut parts = Vec::new();
    if !unknown.is_empty() {
        parts.push(format!("containers with unknown status: [{}]", unknown.join(" ")));
    }
    if !unready.is_empty() {
        parts.push(format!("containers with unready status: [{}]", unready.join(" ")));
    }
    if parts.is_empty() {
        return Verdict { kind, holds: true, reason: None, message: None };
    }
    Verdict { kind, holds: false, reason: Some("ContainersNotReady"), message: Some(parts.join(", ")) }
}

/// Containers ready, and every readiness gate said so by whoever owns it.
fn ready(facts: &Facts<'_>, containers: &Verdict) -> Verdict {
    let kind = "Ready";
    if !containers.holds {
        return Verdict {
            kind,
            holds: false,
            reason: containers.reason,
            message: containers.message.clone(),
        };
    }
    let spec = spec(facts.pod());
    let open: Vec<String> = spec
        .readiness_gates
        .iter()
        .flatten()
        .map(|gate| &gate.condition_type)
        .filter(|gate| {
            let found = foreign(facts).find(|condition| condition.type_ == **gate);
            found.is_none_or(|condition| condition.status != "True")
        })
        .map(|gate| format!("condition {gate:?} of the readiness gates is not true"))
        .collect();
    if open.is_empty() {
        return Verdict { kind, holds: true, reason: None, message: None };
    }
    Verdict { kind, holds: false, reason: Some("ReadinessGatesNotReady"), message: Some(open.join(", ")) }
}
