//! The conditions of the node (kubelet-surface B6): what is wrong, since when, in the API's spelling.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::NodeCondition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// How the node is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// One sentence each; empty: the node is ready.
    pub not_ready: Vec<String>,
    pub memory_pressure: bool,
    pub disk_pressure: bool,
    pub pid_pressure: bool,
}

/// The conditions of now. Times of the last change are kept from `prior` while the value stays; the
/// heartbeat is `now`. Ready comes last, as clients expect.
pub fn conditions(health: &Health, prior: &[NodeCondition], now: Timestamp) -> Vec<NodeCondition> {
    let pressures = [
        (
            "MemoryPressure",
            health.memory_pressure,
            ("KubeletHasInsufficientMemory", "the node has little memory left"),
            ("KubeletHasSufficientMemory", "the node has enough memory"),
        ),
        (
            "DiskPressure",
            health.disk_pressure,
            ("KubeletHasDiskPressure", "the node has little disk space left"),
            ("KubeletHasNoDiskPressure", "the node has enough disk space"),
        ),
        (
            "PIDPressure",
            health.pid_pressure,
            ("KubeletHasInsufficientPID", "the node has few process ids left"),
            ("KubeletHasSufficientPID", "the node has enough process ids"),
        ),
    ];
    let mut all: Vec<NodeCondition> = pressures
        .into_iter()
        .map(|(kind, holds, bad, good)| {
            let (reason, message) = if holds { bad } else { good };
            condition(kind, holds, reason, message, prior, now)
        })
        .collect();
    let ready = health.not_ready.is_empty();
    let (reason, message) = if ready {
        ("KubeletReady", "the node is ready".to_owned())
    } else {
        ("KubeletNotReady", health.not_ready.join("; "))
    };
    all.push(condition("Ready", ready, reason, &message, prior, now));
    all
}

fn condition(
    kind: &str,
    holds: bool,
    reason: &str,
    message: &str,
    prior: &[NodeCondition],
    now: Timestamp,
) -> NodeCondition {
    let status = if holds { "True" } else { "False" };
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    let same = prior.iter().find(|old| old.type_ == kind && old.status == status);
    let since = same.and_then(|old| old.last_transition_time.clone()).unwrap_or_else(|| now.clone());
    NodeCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_heartbeat_time: Some(now),
        last_transition_time: Some(since),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn times_of_change_stay_while_the_value_stays() {
        let first =
            conditions(&Health { not_ready: vec!["no network".into()], ..Health::default() }, &[], at(10));
        let second = conditions(&Health::default(), &first, at(20));
        let third = conditions(&Health::default(), &second, at(30));
        let shown = |all: &[NodeCondition], kind: &str| {
            let one = all.iter().find(|one| one.type_ == kind).unwrap();
            let second = |time: &Option<Time>| time.as_ref().unwrap().0.as_second();
            (one.status.clone(), second(&one.last_transition_time), second(&one.last_heartbeat_time))
        };
        assert_eq!(shown(&first, "Ready"), ("False".into(), 10, 10));
        assert_eq!(shown(&second, "Ready"), ("True".into(), 20, 20));
        assert_eq!(shown(&third, "Ready"), ("True".into(), 20, 30));
        assert_eq!(shown(&third, "MemoryPressure"), ("False".into(), 10, 30));
        assert_eq!(first.last().unwrap().message.as_deref(), Some("no network"));
        assert_eq!(third.last().unwrap().type_, "Ready");
    }
}
