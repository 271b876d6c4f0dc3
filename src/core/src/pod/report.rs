//! What the API server is told of a pod: the patch that makes its status say what ours says, and no more
//! than that (behaviours 6-8). Conditions and fields that others own are never in it.

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::{Map, Value, json};

use crate::pod::facts::is_terminal;

/// Conditions a node owns (kubelet-surface B7).
pub const OWN_CONDITIONS: [&str; 5] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

/// The condition of pods that are ended for others. Whoever does it owns it, and says so by its reason.
pub const DISRUPTION: &str = "DisruptionTarget";
pub const DISRUPTION_BY_US: &str = "TerminationByKubelet";

/// Fields of the status a node owns, beside the conditions.
const OWN_FIELDS: [&str; 13] = [
    "phase",
    "reason",
    "message",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "startTime",
    "qosClass",
    "observedGeneration",
    "initContainerStatuses",
    "containerStatuses",
    "ephemeralContainerStatuses",
];

/// Lists that a strategic merge would merge by key, so that an address once told would stay for ever.
const REPLACED: [&str; 2] = ["hostIPs", "podIPs"];

/// The strategic merge patch from what the server has to what we know; `None` where it says the same.
/// The patch names the uid: a pod of the same name that came since refuses it.
pub fn status_patch(server: &Pod, ours: &PodStatus) -> Option<Value> {
    let there = object(server.status.as_ref());
    let mut wanted = object(Some(ours));
    // A final phase set by others (pod garbage collection, an eviction) is final for us too.
    if let Some(status) = server.status.as_ref().filter(|status| is_terminal(status) && !is_terminal(ours)) {
        wanted.insert("phase".to_owned(), json!(status.phase));
        wanted.insert("reason".to_owned(), json!(status.reason));
        wanted.insert("message".to_owned(), json!(status.message));
    }
    let mut changes = Map::new();
    for field in OWN_FIELDS {
        let (has, wants) =
            (there.get(field).unwrap_or(&Value::Null), wanted.get(field).unwrap_or(&Value::Null));
        if has == wants {
            continue;
        }
        let mut change = wants.clone();
        if let (true, Value::Array(list)) = (REPLACED.contains(&field), &mut change) {
            list.push(json!({"$patch": "replace"}));
        }
        changes.insert(field.to_owned(), change);
    }
    let conditions = changed_conditions(&there, &wanted);
    if !conditions.is_empty() {
        changes.insert("conditions".to_owned(), Value::Array(conditions));
    }
    (!changes.is_empty()).then(|| json!({"metadata": {"uid": server.metadata.uid}, "status": changes}))
}

fn object(status: Option<&PodStatus>) -> Map<String, Value> {
    match status.map(serde_json::to_value) {
        Some(Ok(Value::Object(map))) => map,
        _ => Map::new(),
    }
}

fn changed_conditions(there: &Map<String, Value>, wanted: &Map<String, Value>) -> Vec<Value> {
    let list = |map: &Map<String, Value>| match map.get("conditions") {
        Some(Value::Array(list)) => list.clone(),
        _ => Vec::new(),
    };
    let is_own = |one: &Value| match one["type"].as_str() {
        Some(DISRUPTION) => one["reason"] == DISRUPTION_BY_US,
        kind => kind.is_some_and(|kind| OWN_CONDITIONS.contains(&kind)),
    };
    let has = list(there);
    let mut changed: Vec<Value> =
        list(wanted).into_iter().filter(|one| is_own(one) && !has.contains(one)).collect();
    for one in &mut changed {
        // A reason that is gone has to be taken away; merging a map never removes.
        let before = has.iter().find(|old| old["type"] == one["type"]);
        let gone = before.and_then(Value::as_object).into_iter().flatten();
        let gone: Vec<String> =
            gone.filter(|(key, _)| one.get(key).is_none()).map(|(key, _)| key.clone()).collect();
        for key in gone {
            one[key] = Value::Null;
        }
    }
    changed
}

/// The last status of a pod of which nothing is left: it has to be final before the object may go. What
/// had not come to an end by itself has failed.
pub fn last_status(mut status: PodStatus) -> PodStatus {
    if !is_terminal(&status) {
        status.phase = Some("Failed".to_owned());
    }
    status
}

/// How much a change of a status matters to others; the greater goes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// It is for people.
    #[default]
    Plain,
    /// Others look for the pod's address, and it can wait a moment for what may follow it.
    First,
    /// Readiness and final phases steer traffic and controllers.
    AtOnce,
}

/// How urgent the step from one status to the next is.
pub fn urgency(before: Option<&PodStatus>, now: &PodStatus) -> Urgency {
    let ready = |status: &PodStatus| {
        let all = status.conditions.iter().flatten();
        all.into_iter().find(|one| one.type_ == "Ready").map(|one| one.status.clone())
    };
    let ended = is_terminal(now) && !before.is_some_and(is_terminal);
    match before {
        _ if ended => Urgency::AtOnce,
        None => Urgency::Plain,
        Some(before) if ready(before) != ready(now) => Urgency::AtOnce,
        Some(before) if before.pod_ip != now.pod_ip => Urgency::First,
        Some(_) => Urgency::Plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::from_value;

    fn server(status: Value) -> Pod {
        from_value(json!({"metadata": {"name": "p", "uid": "u1"}, "status": status})).unwrap()
    }

    fn ours(status: Value) -> PodStatus {
        from_value(status).unwrap()
    }

    #[test]
    fn a_disruption_of_ours_is_told_and_one_of_others_is_left_alone() {
        let told = |reason: &str| json!([{"type": "DisruptionTarget", "status": "True", "reason": reason}]);
        let patch = |there: Value, wanted: Value| {
            let patch =
                status_patch(&server(json!({"conditions": there})), &ours(json!({"conditions": wanted})));
            patch.map(|patch| patch["status"]["conditions"].clone())
        };
        let (by_us, by_others) = (told("TerminationByKubelet"), told("EvictionByEvictionAPI"));
        assert_eq!(patch(json!([]), by_us.clone()), Some(by_us.clone()));
        assert_eq!(patch(by_others.clone(), by_us.clone()), Some(by_us.clone()));
        assert_eq!(patch(by_us.clone(), by_us), None);
        assert_eq!(patch(json!([]), by_others), None);
    }

    #[test]
    fn the_same_status_needs_no_patch_and_others_conditions_are_left_alone() {
        let status = json!({"phase": "Running", "podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}],
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "example.com/gate", "status": "True"}]});
        assert_eq!(status_patch(&server(status.clone()), &ours(status.clone())), None);
        let mut other = status.clone();
        other["conditions"][1]["status"] = json!("False");
        assert_eq!(status_patch(&server(status), &ours(other)), None);
    }

    #[test]
    fn only_what_differs_is_patched() {
        let cases = [
            (json!({"phase": "Pending"}), json!({"phase": "Running"}), json!({"phase": "Running"})),
            (json!({"reason": "X"}), json!({}), json!({"reason": null})),
            (
                json!({"podIPs": [{"ip": "10.0.0.1"}]}),
                json!({"podIPs": [{"ip": "10.0.0.2"}]}),
                json!({"podIPs": [{"ip": "10.0.0.2"}, {"$patch": "replace"}]}),
            ),
            (
                json!({"conditions": [{"type": "Ready", "status": "False", "reason": "R"}, {"type": "Initialized", "status": "True"}]}),
                json!({"conditions": [{"type": "Ready", "status": "True"}, {"type": "Initialized", "status": "True"}]}),
                json!({"conditions": [{"type": "Ready", "status": "True", "reason": null}]}),
            ),
            // A final phase of others stays, and so does its reason.
            (
                json!({"phase": "Failed", "reason": "Evicted"}),
                json!({"phase": "Running", "podIP": "1.2.3.4"}),
                json!({"podIP": "1.2.3.4"}),
            ),
        ];
        for (has, wants, expected) in cases {
            let patch = status_patch(&server(has.clone()), &ours(wants)).unwrap();
            assert_eq!(patch, json!({"metadata": {"uid": "u1"}, "status": expected}), "{has}");
        }
    }

    #[test]
    fn the_last_status_is_final() {
        for (phase, expected) in [("Pending", "Failed"), ("Running", "Failed"), ("Succeeded", "Succeeded")] {
            let last = last_status(ours(json!({"phase": phase})));
            assert_eq!(last.phase.as_deref(), Some(expected));
        }
    }

    #[test]
    fn readiness_and_ends_are_told_at_once_and_addresses_first() {
        let status = |ready: &str, ip: &str, phase: &str| {
            ours(json!({"phase": phase, "podIP": ip, "conditions": [{"type": "Ready", "status": ready}]}))
        };
        let base = status("False", "1.1.1.1", "Running");
        for (now, expected) in [
            (status("False", "1.1.1.1", "Pending"), Urgency::Plain),
            (status("True", "1.1.1.1", "Running"), Urgency::AtOnce),
            (status("False", "1.1.1.2", "Running"), Urgency::First),
            (status("False", "1.1.1.1", "Failed"), Urgency::AtOnce),
        ] {
            assert_eq!(urgency(Some(&base), &now), expected, "{now:?}");
        }
        let failed = status("False", "1.1.1.1", "Failed");
        assert_eq!(urgency(None, &base), Urgency::Plain);
        assert_eq!(urgency(None, &failed), Urgency::AtOnce);
        assert_eq!(urgency(Some(&failed), &failed), Urgency::Plain);
    }
}
