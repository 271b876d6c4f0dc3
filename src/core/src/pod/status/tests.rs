use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};
use serde_json::{Value, json};

use super::*;
use crate::pod::desired::{Deletion, EndCause};
use crate::pod::fixture::{Fixture, at, exited, instance, running, sandbox};
use crate::pod::lifecycle::Lifecycle;
use crate::pod::local::{ProbeResult, ProbeResults};
use crate::pod::observed::{ContainerState, ObservedContainer};
use crate::pod::plan::plan;

fn fixture(spec: Value, instances: Vec<ObservedContainer>) -> Fixture {
    let mut fixture =
        Fixture::new(json!({"metadata": {"name": "web", "namespace": "default", "generation": 3},
        "spec": spec}));
    fixture.now = at(1000);
    fixture.observed.sandboxes.push(sandbox());
    fixture.observed.containers = instances;
    fixture
}

fn status(fixture: &Fixture) -> PodStatus {
    let snapshot = fixture.snapshot();
    pod_status(&snapshot, &plan(&snapshot))
}

fn one(policy: &str) -> Value {
    json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "i:1"}]})
}

fn condition<'s>(status: &'s PodStatus, kind: &str) -> &'s k8s_openapi::api::core::v1::PodCondition {
    status.conditions.as_ref().unwrap().iter().find(|condition| condition.type_ == kind).unwrap()
}

fn main(status: &PodStatus) -> &ContainerStatus {
    &status.container_statuses.as_ref().unwrap()[0]
}

#[test]
fn phases_follow_containers_and_policy() {
    let two = |policy: &str| {
        json!({"restartPolicy": policy,
        "containers": [{"name": "a", "image": "i:1"}, {"name": "b", "image": "i:1"}]})
    };
    let init = |policy: &str| {
        json!({"restartPolicy": policy, "initContainers": [{"name": "i", "image": "i:1"}],
        "containers": [{"name": "a", "image": "i:1"}]})
    };
    let sidecar = |policy: &str| {
        json!({"restartPolicy": policy,
        "initContainers": [{"name": "s", "image": "i:1", "restartPolicy": "Always"}],
        "containers": [{"name": "a", "image": "i:1"}]})
    };
    let up = |name: &str| running(name, name, 0, at(10));
    let done = |name: &str, code| exited(name, name, 0, at(10), at(20), code);
    let cases = [
        (one("Always"), vec![], "Pending"),
        (one("Always"), vec![up("a")], "Running"),
        (one("Always"), vec![done("a", 0)], "Running"),
        (one("OnFailure"), vec![done("a", 1)], "Running"),
        (one("OnFailure"), vec![done("a", 0)], "Succeeded"),
        (one("Never"), vec![done("a", 0)], "Succeeded"),
        (one("Never"), vec![done("a", 3)], "Failed"),
        (two("Never"), vec![done("a", 3), up("b")], "Running"),
        (two("Never"), vec![done("a", 0), done("b", 1)], "Failed"),
        (two("Always"), vec![up("a")], "Pending"),
        (init("Always"), vec![], "Pending"),
        (init("Always"), vec![up("i")], "Pending"),
        (init("Always"), vec![done("i", 1)], "Pending"),
        (init("Never"), vec![done("i", 1)], "Failed"),
        (init("Never"), vec![done("i", 0), up("a")], "Running"),
        (sidecar("Always"), vec![up("s")], "Pending"),
        (sidecar("Always"), vec![up("s"), up("a")], "Running"),
        (sidecar("Never"), vec![up("s"), done("a", 0)], "Running"),
        (sidecar("Never"), vec![done("s", 137), done("a", 0)], "Succeeded"),
    ];
    for (spec, instances, phase) in cases {
        let fixture = fixture(spec.clone(), instances.clone());
        let states: Vec<_> = instances.iter().map(|i| (&i.name, &i.state)).collect();
        assert_eq!(status(&fixture).phase.as_deref(), Some(phase), "{spec} {states:?}");
    }
}

#[test]
fn a_final_phase_is_withheld_while_something_runs_and_never_left() {
    let mut fixture = fixture(one("Always"), vec![running("a", "a", 0, at(10))]);
    fixture.desired.deletion = Some(Deletion {
        requested_at: at(1000),
        grace_seconds: 30,
        cause: EndCause::Evicted { message: "low on memory".into() },
    });
    let ending = status(&fixture);
    assert_eq!(ending.phase.as_deref(), Some("Running"));
    fixture.prior = Some(ending);
    fixture.observed.containers = vec![exited("a", "a", 0, at(10), at(20), 0)];
    fixture.observed.sandboxes.clear();
    fixture.lifecycle =
        Lifecycle::Terminated { cause: EndCause::Evicted { message: "low on memory".into() }, at: at(1000) };
    let ended = status(&fixture);
    assert_eq!((ended.phase.as_deref(), ended.reason.as_deref()), (Some("Failed"), Some("Evicted")));
    fixture.prior = Some(ended);
    fixture.observed.containers.clear();
    let later = status(&fixture);
    assert_eq!(later.phase.as_deref(), Some("Failed"));
    assert_eq!(
        main(&later).state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code,
        0,
        "the record was kept"
    );
    assert_eq!(later.pod_ip.as_deref(), Some("10.0.0.5"));
}

#[test]
fn a_pod_has_one_address_of_each_family_and_the_nodes_first_family_leads() {
    let (v4, v6) = (&["192.0.2.10"][..], &["2001:db8::10", "192.0.2.10"][..]);
    let cases: [(&[&str], &[&str], &[&str]); 6] = [
        (v4, &["10.0.0.5", "fd00::5"], &["10.0.0.5", "fd00::5"]),
        (v4, &["fd00::5", "10.0.0.5"], &["10.0.0.5", "fd00::5"]),
        (v6, &["10.0.0.5", "fd00::5"], &["fd00::5", "10.0.0.5"]),
        (v6, &["10.0.0.5"], &["10.0.0.5"]),
        (&[], &["fd00::5", "10.0.0.5"], &["10.0.0.5", "fd00::5"]),
        (v4, &["10.0.0.5", "10.1.0.5", "fd00::5", "fd00::6"], &["10.0.0.5", "fd00::5"]),
    ];
    let ips = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
    for (node, told, expected) in cases {
        let mut fixture = fixture(one("Always"), vec![running("a", "a", 0, at(10))]);
        fixture.node.ips = ips(node);
        fixture.observed.sandboxes[0].ips = ips(told);
        let status = status(&fixture);
        let listed: Vec<String> = status.pod_ips.iter().flatten().map(|one| one.ip.clone()).collect();
        assert_eq!(listed, expected, "{node:?} {told:?}");
        assert_eq!(status.pod_ip.as_deref(), Some(expected[0]), "{node:?} {told:?}");
        let hosts: Vec<String> = status.host_ips.iter().flatten().map(|one| one.ip.clone()).collect();
        assert_eq!(hosts, node);
    }
}

#[test]
fn a_preempted_pod_is_told_as_disrupted_with_its_final_phase_and_an_evicted_one_is_not() {
    let preempted = || EndCause::Preempted { message: "made room".into() };
    let told = |status: &PodStatus| {
        let all = status.conditions.iter().flatten().filter(|one| one.type_ == "DisruptionTarget");
        all.map(|one| (one.status.clone(), one.reason.clone(), one.message.clone())).collect::<Vec<_>>()
    };
    let mut fixture = fixture(one("Always"), vec![running("a", "a", 0, at(10))]);
    fixture.desired.deletion =
        Some(Deletion { requested_at: at(1000), grace_seconds: 30, cause: preempted() });
    fixture.lifecycle = Lifecycle::Terminating { cause: preempted(), since: at(1000), deadline: at(1030) };
    assert_eq!(told(&status(&fixture)), [], "it may still end by itself");
    fixture.observed.containers = vec![exited("a", "a", 0, at(10), at(20), 0)];
    fixture.observed.sandboxes.clear();
    fixture.lifecycle = Lifecycle::Terminated { cause: preempted(), at: at(1000) };
    let ended = status(&fixture);
    let expected = ("True".to_owned(), Some("TerminationByKubelet".to_owned()), Some("made room".to_owned()));
    assert_eq!((ended.phase.as_deref(), told(&ended)), (Some("Failed"), vec![expected.clone()]));
    // It stays when nobody knows the cause any more, once.
    fixture.prior = Some(ended);
    assert_eq!(told(&status(&fixture)), std::slice::from_ref(&expected));
    fixture.lifecycle = Lifecycle::Terminated { cause: EndCause::Finished, at: at(1000) };
    assert_eq!(told(&status(&fixture)), [expected]);
    fixture.prior = None;
    let evicted = EndCause::Evicted { message: "over its limit".into() };
    fixture.lifecycle = Lifecycle::Terminated { cause: evicted, at: at(1000) };
    assert_eq!(told(&status(&fixture)), []);
}

#[test]
fn container_states_and_reasons() {
    let mut fixture = fixture(one("Always"), vec![]);
    fixture.observed.sandboxes.clear();
    let waiting =
        |status: &PodStatus| main(status).state.as_ref().unwrap().waiting.clone().unwrap().reason.unwrap();
    assert_eq!(waiting(&status(&fixture)), "ContainerCreating");
    fixture.observed.sandboxes.push(sandbox());
    fixture.observed.containers =
        vec![exited("b", "a", 1, at(995), at(999), 2), exited("a", "a", 0, at(10), at(20), 1)];
    let key_hash =
        crate::pod::restart::backoff_key(&fixture.desired.pod.spec.as_ref().unwrap().containers[0]);
    let backoff = crate::pod::local::CrashBackoff { key_hash, delay_seconds: 40, last_exit: at(999) };
    fixture.local.backoff.insert("a".into(), backoff);
    for kind in ["PreparePodDirs", "EnsureCgroup"] {
        let kind = serde_json::from_value(json!(kind)).unwrap();
        fixture.local.done.insert(crate::pod::step::StepKey { kind, subject: String::new() });
    }
    let crashed = status(&fixture);
    assert_eq!(waiting(&crashed), "CrashLoopBackOff");
    let container = main(&crashed);
    assert_eq!(container.restart_count, 1);
    let last = container.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (2, Some("Error")));
    assert!(!container.ready && container.started == Some(false));
    assert_eq!(crashed.phase.as_deref(), Some("Running"));
}

#[test]
fn a_vanished_container_counts_as_ended() {
    let mut fixture = fixture(one("Never"), vec![running("a", "a", 0, at(10))]);
    fixture.prior = Some(status(&fixture));
    fixture.observed.containers.clear();
    let state = status(&fixture);
    let ended = main(&state).state.as_ref().unwrap().terminated.clone().unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_deref()), (137, Some("ContainerStatusUnknown")));
}

#[test]
fn readiness_follows_probes_and_survives_a_restart() {
    let spec =
        json!({"containers": [{"name": "a", "image": "i:1", "readinessProbe": {"tcpSocket": {"port": 1}}}]});
    let mut fixture = fixture(spec, vec![running("x", "a", 0, at(10))]);
    let unready = status(&fixture);
    assert_eq!(condition(&unready, "Ready").status, "False");
    assert_eq!(condition(&unready, "Ready").message.as_deref(), Some("containers with unready status: [a]"));
    assert_eq!(condition(&unready, "Ready").observed_generation, Some(3));
    let result = |healthy| Some(ProbeResult { healthy, since: at(11), message: String::new() });
    fixture
        .local
        .probes
        .insert("x".into(), ProbeResults { readiness: result(true), ..ProbeResults::default() });
    let ready = status(&fixture);
    assert_eq!(condition(&ready, "Ready").status, "True");
    // The agent starts anew: the result is lost, the container is not.
    fixture.local.probes.clear();
    fixture.node.agent_started_at = at(500);
    fixture.now = at(2000);
    fixture.prior = Some(ready.clone());
    assert_eq!(status(&fixture), ready, "nothing moves, not even a time");
    fixture.prior = Some(unready);
    assert_eq!(condition(&status(&fixture), "Ready").status, "False", "what was not ready stays so");
}

#[test]
fn transition_times_move_with_the_value_only() {
    let mut fixture = fixture(one("Always"), vec![]);
    let first = status(&fixture);
    assert_eq!(condition(&first, "Ready").last_transition_time.as_ref().unwrap().0, at(1000));
    fixture.prior = Some(first);
    fixture.now = Timestamp::from_millisecond(at(1500).as_millisecond() + 250).unwrap();
    fixture.observed.containers = vec![running("a", "a", 0, at(1400))];
    let second = status(&fixture);
    assert_eq!(
        condition(&second, "Ready").last_transition_time.as_ref().unwrap().0,
        at(1500),
        "cut to seconds"
    );
    assert_eq!(condition(&second, "PodScheduled").last_transition_time.as_ref().unwrap().0, at(1000));
}

#[test]
fn foreign_conditions_stay_and_gate_readiness() {
    let spec =
        json!({"readinessGates": [{"conditionType": "lb"}], "containers": [{"name": "a", "image": "i:1"}]});
    let mut fixture = fixture(spec, vec![running("a", "a", 0, at(10))]);
    let gated = status(&fixture);
    assert_eq!(condition(&gated, "ContainersReady").status, "True");
    assert_eq!(condition(&gated, "Ready").reason.as_deref(), Some("ReadinessGatesNotReady"));
    let mut prior = gated;
    let gate: k8s_openapi::api::core::v1::PodCondition =
        serde_json::from_value(json!({"type": "lb", "status": "True"})).unwrap();
    prior.conditions.as_mut().unwrap().push(gate);
    fixture.prior = Some(prior);
    let open = status(&fixture);
    assert_eq!(condition(&open, "Ready").status, "True");
    assert_eq!(condition(&open, "lb").status, "True");
}

#[test]
fn messages_share_their_bound() {
    let names: Vec<String> = (0..8).map(|n| format!("c{n}")).collect();
    let containers: Vec<Value> = names.iter().map(|name| json!({"name": name, "image": "i:1"})).collect();
    let long = "é".repeat(3000);
    let ended = |name: &String| {
        let state = ContainerState::Exited {
            started_at: None,
            finished_at: at(5),
            exit_code: 0,
            reason: String::new(),
            message: long.clone(),
        };
        instance(name, name, 0, state)
    };
    let fixture = fixture(
        json!({"restartPolicy": "Never", "containers": containers}),
        names.iter().map(ended).collect(),
    );
    let status = status(&fixture);
    let total: usize = status
        .container_statuses
        .iter()
        .flatten()
        .map(|status| {
            status.state.as_ref().unwrap().terminated.as_ref().unwrap().message.as_ref().unwrap().len()
        })
        .sum();
    assert!(total <= 12 * 1024 && total > 11 * 1024, "{total}");
}

#[test]
fn a_rejected_pod_says_why() {
    let mut fixture = fixture(one("Always"), vec![]);
    fixture.observed.sandboxes.clear();
    let cause = EndCause::Rejected { reason: "OutOfcpu".into(), message: "needs 9 CPUs, 4 are free".into() };
    fixture.desired.deletion = Some(Deletion { requested_at: at(1000), grace_seconds: 0, cause });
    let status = status(&fixture);
    assert_eq!(status.phase.as_deref(), Some("Failed"));
    assert_eq!(status.reason.as_deref(), Some("OutOfcpu"));
    assert_eq!(status.message.as_deref(), Some("Pod was rejected: needs 9 CPUs, 4 are free"));
    assert_eq!(status.container_statuses, None);
}

#[test]
fn what_a_container_said_at_its_end_is_told_on_after_its_file_is_gone() {
    let mut ended = exited("c1", "a", 2, at(10), at(20), 3);
    if let ContainerState::Exited { message, .. } = &mut ended.state {
        *message = "no such database".into();
    }
    let mut fixture = fixture(one("Never"), vec![ended]);
    let before = status(&fixture);
    let end = |status: &PodStatus| main(status).state.as_ref().unwrap().terminated.clone().unwrap();
    assert_eq!(end(&before).container_id.as_deref(), Some("cri-o://c1"));
    // A new agent reads the record, and the runtime, which never knew the message.
    fixture.observed.containers = vec![exited("c1", "a", 2, at(10), at(20), 3)];
    fixture.prior = Some(before.clone());
    let after = status(&fixture);
    assert_eq!(end(&after).message.as_deref(), Some("no such database"));
    assert_eq!(after, before);
    // Another instance said nothing of the kind.
    fixture.observed.containers = vec![exited("c2", "a", 3, at(30), at(40), 3)];
    assert_eq!(end(&status(&fixture)).message, None);
}
