//! Whether, when and as which number a container runs again (behaviours 9, 11, 14, 20, 21).

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use sha2::{Digest, Sha256};

use crate::ids::ContainerName;
use crate::pod::containers::{PodContainer, Role, spec};
use crate::pod::local::CrashBackoff;
use crate::pod::observed::{ContainerState, ObservedContainer, ObservedPod};
use crate::pod::render::RESTART_COUNT;

const FIRST_DELAY_SECONDS: u32 = 10;

/// Whether an exit with this code is followed by another run.
pub fn should_restart(pod: &Pod, container: &PodContainer<'_>, exit_code: i32) -> bool {
    if let Some(rule) = rule_for(&container.spec, exit_code) {
        return rule == "Restart";
    }
    match container.role {
        Role::Sidecar => true,
        Role::Ephemeral => false,
        // An init container that succeeded is done, whatever the policy says.
        Role::Init => exit_code != 0 && policy(pod, &container.spec) != "Never",
        Role::Main => match policy(pod, &container.spec).as_str() {
            "Never" => false,
            "OnFailure" => exit_code != 0,
            _ => true,
        },
    }
}

/// The container's own policy, else the pod's.
fn policy(pod: &Pod, container: &Container) -> String {
    let own = container.restart_policy.clone();
    own.or_else(|| spec(pod).restart_policy.clone()).unwrap_or_else(|| "Always".to_owned())
}

/// The action of the first restart rule that matches (KEP-5307).
fn rule_for(container: &Container, exit_code: i32) -> Option<&str> {
    container.restart_policy_rules.iter().flatten().find_map(|rule| {
        let codes = rule.exit_codes.as_ref()?;
        let listed = codes.values.iter().flatten().any(|code| *code == exit_code);
        let matches = if codes.operator == "NotIn" { !listed } else { listed };
        matches.then_some(rule.action.as_str())
    })
}

/// The number a container instance carries: what the runtime kept, whichever is higher.
pub fn restart_count(instance: &ObservedContainer) -> u32 {
    let noted = instance.annotations.get(RESTART_COUNT).and_then(|text| text.parse().ok()).unwrap_or(0);
    instance.attempt.max(noted)
}

/// The number of the next instance: one more than any there is or that the last status told of, 0 for
/// the first. Records that somebody removed from the runtime do not make it count anew.
pub fn next_attempt(observed: &ObservedPod, prior: Option<&PodStatus>, name: &ContainerName) -> u32 {
    let instances = observed.containers.iter().filter(|container| container.name == *name);
    let told = prior.into_iter().flat_map(|prior| {
        let lists =
            [&prior.container_statuses, &prior.init_container_statuses, &prior.ephemeral_container_statuses];
        lists.into_iter().flatten().flatten()
    });
    // A status without an id told of no instance.
    let told = told.filter(|status| status.name == name.as_str() && status.container_id.is_some());
    let told = told.map(|status| u32::try_from(status.restart_count).unwrap_or(0));
    instances.map(restart_count).chain(told).max().map_or(0, |highest| highest.saturating_add(1))
}

/// Identity of what resets the back-off: image and resources (behaviours 21).
pub fn backoff_key(container: &Container) -> u64 {
    // These types always serialize, in a fixed order.
    let text = serde_json::to_vec(&(&container.image, &container.resources)).unwrap_or_default();
    let digest = Sha256::digest(&text);
    let mut head = [0u8; 8];
    head.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(head)
}

/// When an instance ended.
pub fn finished_at(instance: &ObservedContainer) -> Option<Timestamp> {
    match &instance.state {
        ContainerState::Exited { finished_at, .. } => Some(*finished_at),
        _ => None,
    }
}

/// The back-off in force after the exit of `instance`, given the one before it: the first restart is
/// at once, then 10 s doubling to `max`; an instance that ran for twice `max` starts over.
pub fn backoff_after(
    before: Option<&CrashBackoff>,
    key_hash: u64,
    instance: &ObservedContainer,
    max: Duration,
) -> Option<CrashBackoff> {
    let ContainerState::Exited { started_at, finished_at, .. } = &instance.state else {
        return before.cloned();
    };
    let last_exit = *finished_at;
    let fresh = CrashBackoff { key_hash, delay_seconds: 0, last_exit };
    let Some(before) = before.filter(|before| before.key_hash == key_hash) else { return Some(fresh) };
    if before.last_exit >= last_exit {
        return Some(before.clone());
    }
    let stable = SignedDuration::try_from(max.saturating_mul(2)).unwrap_or(SignedDuration::MAX);
    if started_at.is_some_and(|started| last_exit.duration_since(started) > stable) {
        return Some(fresh);
    }
    let limit = u32::try_from(max.as_secs()).unwrap_or(u32::MAX);
    let doubled = before.delay_seconds.saturating_mul(2).max(FIRST_DELAY_SECONDS);
    Some(CrashBackoff { delay_seconds: doubled.min(limit), ..fresh })
}

/// `at` plus a number of seconds, kept in range.
pub fn after_seconds(at: Timestamp, seconds: i64) -> Timestamp {
    at.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::containers::containers;
    use crate::pod::fixture::{at, exited, pod};
    use serde_json::json;

    #[test]
    fn policy_rules_and_roles_decide() {
        let rule = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
        let main = |extra: serde_json::Value| {
            let mut container = json!({"name": "a", "image": "i"});
            container.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            container
        };
        let cases = [
            ("Always", "containers", main(json!({})), [true, true, true]),
            ("OnFailure", "containers", main(json!({})), [false, true, true]),
            ("Never", "containers", main(json!({})), [false, false, false]),
            ("Never", "containers", main(json!({"restartPolicy": "OnFailure"})), [false, true, true]),
            (
                "Never",
                "containers",
                main(json!({"restartPolicy": "Never", "restartPolicyRules": rule})),
                [false, false, true],
            ),
            ("Always", "initContainers", main(json!({})), [false, true, true]),
            ("Never", "initContainers", main(json!({})), [false, false, false]),
            ("Never", "initContainers", main(json!({"restartPolicy": "Always"})), [true, true, true]),
        ];
        for (policy, list, container, expected) in cases {
            let mut spec = json!({"restartPolicy": policy, "containers": []});
            spec.as_object_mut().unwrap().insert(list.to_owned(), json!([container]));
            let pod = pod(json!({"metadata": {"name": "w"}, "spec": spec}));
            let all = containers(&pod);
            let made = [0, 1, 42].map(|code| should_restart(&pod, &all[0], code));
            assert_eq!(made, expected, "{policy} {list} {container}");
        }
    }

    #[test]
    fn the_count_goes_on_where_records_are_gone() {
        use k8s_openapi::api::core::v1::ContainerStatus;
        let told = |count, id: Option<&str>| PodStatus {
            container_statuses: Some(vec![ContainerStatus {
                name: "a".to_owned(),
                restart_count: count,
                container_id: id.map(str::to_owned),
                ..ContainerStatus::default()
            }]),
            ..PodStatus::default()
        };
        let mut observed = crate::pod::fixture::Fixture::new(json!({"spec": {"containers": []}})).observed;
        let name = ContainerName::from("a");
        assert_eq!(next_attempt(&observed, None, &name), 0);
        assert_eq!(next_attempt(&observed, Some(&told(0, None)), &name), 0);
        assert_eq!(next_attempt(&observed, Some(&told(4, Some("containerd://x"))), &name), 5);
        observed.containers = vec![exited("x", "a", 6, at(1), at(2), 1)];
        assert_eq!(next_attempt(&observed, Some(&told(4, Some("containerd://x"))), &name), 7);
    }

    #[test]
    fn back_off_doubles_and_starts_over() {
        let max = Duration::from_secs(300);
        let mut now = 0;
        let mut state: Option<CrashBackoff> = None;
        let mut delays = Vec::new();
        for _ in 0..8 {
            let instance = exited("a", "c", 0, at(now), at(now + 1), 1);
            state = backoff_after(state.as_ref(), 7, &instance, max);
            delays.push(state.as_ref().unwrap().delay_seconds);
            now += 500;
        }
        assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300]);
        let same = exited("a", "c", 0, at(now - 500), at(now - 499), 1);
        assert_eq!(backoff_after(state.as_ref(), 7, &same, max), state, "one exit counts once");
        let stable = exited("b", "c", 1, at(now), at(now + 601), 1);
        assert_eq!(backoff_after(state.as_ref(), 7, &stable, max).unwrap().delay_seconds, 0);
        let changed = exited("b", "c", 1, at(now), at(now + 1), 1);
        assert_eq!(backoff_after(state.as_ref(), 8, &changed, max).unwrap().delay_seconds, 0);
    }
}
