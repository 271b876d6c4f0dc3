//! When the node's status is worth writing, and what is written: at once where something changed that
//! others act on, else only from time to time, because every write is stored and sent to all watchers.

use std::time::Duration;

use k8s_openapi::api::core::v1::{NodeCondition, NodeStatus};
use serde_json::{Map, Value, json};

use crate::pod::events::Severity;

/// Whether two statuses tell readers something different. Heartbeat times do not count.
pub fn differs(a: &NodeStatus, b: &NodeStatus) -> bool {
    let bare = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        // Order says nothing; others add conditions of their own.
        if let Some(all) = &mut status.conditions {
            all.sort_by(|a, b| a.type_.cmp(&b.type_));
        }
        status
    };
    bare(a) != bare(b)
}

/// Whether to write now. `since` is the time since the last write that worked.
pub fn is_due(
    written: Option<&NodeStatus>,
    now: &NodeStatus,
    since: Duration,
    report_every: Duration,
) -> bool {
    written.is_none_or(|written| since >= report_every || differs(written, now))
}

/// Whether the object says something else than we do: the control plane calls a node's conditions unknown
/// when it has not heard of it for a while.
pub fn is_contradicted(told: &NodeStatus, now: &NodeStatus) -> bool {
    let status = |status: &NodeStatus, kind: &str| {
        let all = status.conditions.iter().flatten();
        all.into_iter().find(|one| one.type_ == kind).map(|one| one.status.clone())
    };
    let ours = now.conditions.iter().flatten();
    ours.into_iter().any(|one| status(told, &one.type_).as_ref() != Some(&one.status))
}

/// The strategic merge patch of the node's own part of the status. Addresses are replaced as a whole:
/// merged by their type, a second address of a family would take the place of the first.
pub fn status_patch(status: &NodeStatus) -> Value {
    let own = serde_json::to_value(status).unwrap_or_else(|_| Value::Object(Map::new()));
    let mut own = match own {
        Value::Object(own) => own,
        _ => Map::new(),
    };
    if let Some(Value::Array(addresses)) = own.get_mut("addresses") {
        addresses.push(json!({"$patch": "replace"}));
    }
    json!({"status": own})
}

/// A change of Ready since the last status: the name of the event to tell.
pub fn ready_event(before: &[NodeCondition], now: &[NodeCondition]) -> Option<(Severity, &'static str)> {
    let ready =
        |all: &[NodeCondition]| all.iter().find(|one| one.type_ == "Ready").map(|one| one.status == "True");
    match (ready(before), ready(now)) {
        (Some(false) | None, Some(true)) => Some((Severity::Normal, "NodeReady")),
        (Some(true), Some(false)) => Some((Severity::Normal, "NodeNotReady")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::conditions::{Health, conditions};
    use jiff::Timestamp;
    use k8s_openapi::api::core::v1::NodeAddress;

    fn status(second: i64, ready: bool) -> NodeStatus {
        let not_ready = if ready { vec![] } else { vec!["x".to_owned()] };
        let health = Health { not_ready, ..Health::default() };
        let mut conditions = conditions(&health, &[], Timestamp::from_second(second).unwrap());
        for condition in &mut conditions {
            condition.last_transition_time = None;
        }
        NodeStatus { conditions: Some(conditions), ..NodeStatus::default() }
    }

    #[test]
    fn a_heartbeat_alone_waits_and_a_change_does_not() {
        let every = Duration::from_secs(300);
        let minute = Duration::from_secs(60);
        assert!(is_due(None, &status(0, true), Duration::ZERO, every));
        assert!(!is_due(Some(&status(0, true)), &status(60, true), minute, every));
        assert!(is_due(Some(&status(0, true)), &status(60, false), minute, every));
        assert!(is_due(Some(&status(0, true)), &status(60, true), every, every));
        let (ready, not) = (status(0, true), status(0, false));
        assert!(is_contradicted(&not, &ready) && is_contradicted(&NodeStatus::default(), &ready));
        assert!(!is_contradicted(&ready, &status(60, true)));
        let of = |status: &NodeStatus| status.conditions.clone().unwrap();
        assert_eq!(ready_event(&[], &of(&ready)), Some((Severity::Normal, "NodeReady")));
        assert_eq!(ready_event(&of(&ready), &of(&not)), Some((Severity::Normal, "NodeNotReady")));
        assert_eq!(ready_event(&of(&ready), &of(&ready)), None);
    }

    #[test]
    fn addresses_are_replaced_as_a_whole() {
        let address = |ip: &str| NodeAddress { type_: "InternalIP".into(), address: ip.into() };
        let status = NodeStatus {
            addresses: Some(vec![address("10.0.0.1"), address("fd00::1")]),
            ..NodeStatus::default()
        };
        let patch = status_patch(&status);
        assert_eq!(patch["status"]["addresses"][2], json!({"$patch": "replace"}));
        assert_eq!(patch["status"]["addresses"].as_array().unwrap().len(), 3);
    }
}
