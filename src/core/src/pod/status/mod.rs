//! The status of a pod as a pure function of its snapshot and plan (kubelet-surface B7, behaviours
//! 7-13, 24, 38, 50, 51). Times are cut to seconds and lists have a fixed order, so that an unchanged
//! pod has an unchanged status.

mod conditions;
mod containers;
mod phase;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{HostIP, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::pod::desired::EndCause;
use crate::pod::facts::Facts;
use crate::pod::facts::is_terminal;
use crate::pod::snapshot::{Plan, PodSnapshot};
use crate::resources::qos::qos_class;

/// The status to publish. `plan` is the plan made from the same snapshot: what it waits for is what
/// waiting containers show.
pub fn pod_status(snapshot: &PodSnapshot<'_>, plan: &Plan) -> PodStatus {
    let facts = Facts::new(snapshot);
    let cause = plan.lifecycle.cause();
    let all = containers::statuses(&facts, plan);
    let phase = phase::phase(&facts, cause, &all);
    let (reason, message) = reason(snapshot.prior, cause);
    let pod_ips = pod_ips(&facts);
    let host_ips = &snapshot.node.ips;
    let conditions = conditions::conditions(&facts, phase, &all);
    PodStatus {
        phase: Some(phase.to_owned()),
        reason,
        message,
        conditions: Some(conditions),
        init_container_statuses: some_list(all.init),
        container_statuses: some_list(all.main),
        ephemeral_container_statuses: some_list(all.ephemeral),
        host_ip: host_ips.first().map(IpAddr::to_string),
        host_ips: some_list(host_ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect()),
        pod_ip: pod_ips.first().cloned(),
        pod_ips: some_list(pod_ips.into_iter().map(|ip| PodIP { ip }).collect()),
        qos_class: Some(qos_class(facts.pod()).to_string()),
        start_time: Some(Time(seconds(facts.start_time()))),
        observed_generation: snapshot.desired.pod.metadata.generation,
        ..foreign(snapshot.prior)
    }
}

/// Fields that others own stay as they are.
fn foreign(prior: Option<&PodStatus>) -> PodStatus {
    let Some(prior) = prior else { return PodStatus::default() };
    PodStatus {
        nominated_node_name: prior.nominated_node_name.clone(),
        resource_claim_statuses: prior.resource_claim_statuses.clone(),
        ..PodStatus::default()
    }
}

fn some_list<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

/// Whole seconds, as the API's times have them.
pub(super) fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// The pod's own reason and message: why it was ended, kept once it was told with a final phase.
fn reason(prior: Option<&PodStatus>, cause: Option<&EndCause>) -> (Option<String>, Option<String>) {
    let told = prior.filter(|prior| is_terminal(prior) && prior.reason.is_some());
    if let Some(prior) = told {
        return (prior.reason.clone(), prior.message.clone());
    }
    match cause {
        Some(EndCause::DeadlineExceeded) => (
            Some("DeadlineExceeded".to_owned()),
            Some("the pod ran longer than its activeDeadlineSeconds".to_owned()),
        ),
        Some(EndCause::Rejected { reason, message }) => {
            (Some(reason.clone()), Some(format!("Pod was rejected: {message}")))
        }
        Some(EndCause::Preempted { message }) => (Some("Preempting".to_owned()), Some(message.clone())),
        Some(EndCause::Evicted { message }) => (Some("Evicted".to_owned()), Some(message.clone())),
        Some(EndCause::Deleted | EndCause::Replaced | EndCause::Finished | EndCause::Orphaned) | None => {
            (None, None)
        }
    }
}

/// Addresses stay in the status after the sandbox is gone (behaviours 50).
fn pod_ips(facts: &Facts<'_>) -> Vec<String> {
    let now = facts.pod_ips();
    if now.is_empty() {
        let prior = facts.snapshot.prior.and_then(|prior| prior.pod_ips.clone()).unwrap_or_default();
        return prior.into_iter().map(|ip| ip.ip).collect();
    }
    now.iter().map(IpAddr::to_string).collect()
}
