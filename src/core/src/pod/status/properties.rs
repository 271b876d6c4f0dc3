//! Properties of planner and status over arbitrary observations: also those no orderly run leads to.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::pod_status;
use crate::pod::desired::{Deletion, EndCause};
use crate::pod::fixture::{Fixture, at, instance, sandbox};
use crate::pod::lifecycle::Lifecycle;
use crate::pod::local::{HookState, ProbeResult, ProbeResults};
use crate::pod::observed::{ContainerState, ObservedContainer, ObservedSandbox, SandboxState};
use crate::pod::plan::plan;
use crate::pod::step::{Step, StepKey, StepKind};

fn spec() -> impl Strategy<Value = Value> {
    (prop::sample::select(vec!["Always", "OnFailure", "Never"]), any::<bool>(), any::<bool>()).prop_map(
        |(policy, sidecar, probed)| {
            let tcp = json!({"tcpSocket": {"port": 1}});
            let mut init = json!({"name": "i", "image": "w:1"});
            if sidecar {
                init["restartPolicy"] = json!("Always");
            }
            let mut main = json!({"name": "a", "image": "w:1"});
            if probed {
                main["startupProbe"] = tcp.clone();
                main["livenessProbe"] = tcp.clone();
                main["readinessProbe"] = tcp;
                main["lifecycle"] = json!({"postStart": {"exec": {"command": ["x"]}}});
            }
            json!({"restartPolicy": policy, "initContainers": [init],
                "containers": [main, {"name": "b", "image": "w:1"}],
                "volumes": [{"name": "v", "emptyDir": {}}]})
        },
    )
}

fn state() -> impl Strategy<Value = ContainerState> {
    prop_oneof![
        Just(ContainerState::Created),
        Just(ContainerState::Unknown),
        (0i64..50).prop_map(|second| ContainerState::Running { started_at: at(second) }),
        (0i64..50, prop::sample::select(vec![0, 1, 137])).prop_map(|(second, exit_code)| {
            ContainerState::Exited {
                started_at: Some(at(second)),
                finished_at: at(second + 5),
                exit_code,
                reason: String::new(),
                message: "m".to_owned(),
            }
        }),
    ]
}

fn instances() -> impl Strategy<Value = Vec<ObservedContainer>> {
    let one = (prop::sample::select(vec!["i", "a", "b", "stranger"]), state(), 0u32..3);
    prop::collection::vec(one, 0..7).prop_map(|list| {
        let made = list.into_iter().enumerate().map(|(n, (name, state, sandbox))| ObservedContainer {
            sandbox: format!("s{sandbox}").into(),
            ..instance(&format!("c{n}"), name, 10 - n as u32, state)
        });
        made.collect()
    })
}

fn sandboxes() -> impl Strategy<Value = Vec<ObservedSandbox>> {
    prop::collection::vec((any::<bool>(), any::<bool>(), any::<bool>()), 0..3).prop_map(|list| {
        let count = list.len() as u32;
        let made = list.into_iter().enumerate().map(|(n, (ready, address, host_network))| {
            let attempt = count - 1 - n as u32;
            let state = if ready { SandboxState::Ready } else { SandboxState::NotReady };
            let ips = if address { sandbox().ips } else { Vec::new() };
            ObservedSandbox {
                id: format!("s{attempt}").into(),
                attempt,
                state,
                ips,
                host_network,
                ..sandbox()
            }
        });
        made.collect()
    })
}

fn lifecycle() -> impl Strategy<Value = Lifecycle> {
    let cause = prop::sample::select(vec![EndCause::Deleted, EndCause::Finished, EndCause::DeadlineExceeded]);
    prop_oneof![
        Just(Lifecycle::Queued { behind: "u".into() }),
        Just(Lifecycle::Syncing),
        cause.clone().prop_map(|cause| Lifecycle::Terminating { cause, since: at(40), deadline: at(70) }),
        cause.clone().prop_map(|cause| Lifecycle::Terminated { cause, at: at(40) }),
        cause.prop_map(|cause| Lifecycle::Released { cause, at: at(40) }),
    ]
}

prop_compose! {
    fn any_fixture()(
        spec in spec(),
        instances in instances(),
        sandboxes in sandboxes(),
        lifecycle in lifecycle(),
        prepared in any::<bool>(),
        deleted in any::<bool>(),
        verdicts in prop::collection::vec((0usize..7, any::<bool>(), any::<bool>()), 0..4),
        flying in prop::collection::vec((0usize..4, prop::sample::select(vec!["a", "b", "i"])), 0..3),
        agent_started in prop::sample::select(vec![0i64, 60]),
    ) -> Fixture {
        let mut fixture = Fixture::new(json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec}));
        fixture.now = at(60);
        fixture.node.agent_started_at = at(agent_started);
        fixture.observed.containers = instances;
        fixture.observed.sandboxes = sandboxes;
        fixture.lifecycle = lifecycle;
        if prepared {
            for kind in [StepKind::PreparePodDirs, StepKind::EnsureCgroup] {
                fixture.local.done.insert(StepKey { kind, subject: String::new() });
            }
            fixture.local.volumes.insert("v".to_owned(), 0);
        }
        if deleted {
            fixture.desired.deletion =
                Some(Deletion { requested_at: at(50), grace_seconds: 30, cause: EndCause::Deleted });
        }
        for (n, healthy, hooked) in verdicts {
            let result = Some(ProbeResult { healthy, since: at(55), message: "refused".to_owned() });
            let id = crate::ids::ContainerId::from(format!("c{n}"));
            let results = ProbeResults { startup: result.clone(), liveness: result.clone(), readiness: result };
            fixture.local.probes.insert(id.clone(), results);
            if hooked {
                fixture.local.post_start.insert(id, HookState::Done);
            }
        }
        let kinds = [StepKind::PullImage, StepKind::CreateContainer, StepKind::StartContainer, StepKind::StopContainer];
        for (kind, name) in flying {
            fixture.local.in_flight.insert(StepKey { kind: kinds[kind], subject: name.to_owned() }, at(58));
        }
        let max = fixture.node.max_restart_backoff;
        fixture.local.observe(&fixture.desired, &fixture.observed, max);
        fixture
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    /// The same world gives the same status: no endless loop of writes (behaviours 8), and a second
    /// look with the first one's status as prior changes nothing, not even a time.
    #[test]
    fn a_status_is_a_fixed_point(fixture in any_fixture()) {
        let mut fixture = fixture;
        let snapshot = fixture.snapshot();
        let made = plan(&snapshot);
        let first = pod_status(&snapshot, &made);
        fixture.prior = Some(first.clone());
        fixture.lifecycle = made.lifecycle;
        fixture.now = at(60) + jiff::SignedDuration::from_millis(1);
        let snapshot = fixture.snapshot();
        let mut again = plan(&snapshot);
        // Releasing may go on by itself; the status of one lifecycle is what is compared.
        again.lifecycle = fixture.lifecycle.clone();
        prop_assert_eq!(first, pod_status(&snapshot, &again));
    }

    /// Whatever is seen, a plan names each step once, cancels only what is in flight, stops only what
    /// may run, and makes nothing beside an instance that may still run.
    #[test]
    fn a_plan_is_sane(fixture in any_fixture()) {
        let snapshot = fixture.snapshot();
        let made = plan(&snapshot);
        let mut keys: Vec<StepKey> = made.steps.iter().map(Step::key).collect();
        keys.sort();
        let count = keys.len();
        keys.dedup();
        prop_assert_eq!(count, keys.len());
        for key in &made.cancel {
            prop_assert!(fixture.local.in_flight.contains_key(key) && !keys.contains(key), "{}", key);
        }
        let of = |id: &crate::ids::ContainerId| fixture.observed.containers.iter().find(|c| c.id == *id);
        for step in &made.steps {
            let sane = match step {
                Step::StopContainer(stop) => of(&stop.id).is_some_and(ObservedContainer::may_run),
                Step::RemoveContainer { id, .. } => of(id).is_some_and(|c| !c.is_running()),
                Step::StartContainer { id, .. } => of(id).is_some_and(|c| c.state == ContainerState::Created),
                Step::CreateContainer(create) => {
                    let name = &create.spec.name;
                    !fixture.observed.containers.iter().any(|c| c.name == *name && c.may_run())
                }
                Step::CreateSandbox(_) => !fixture.observed.containers.iter().any(ObservedContainer::may_run),
                _ => true,
            };
            prop_assert!(sane, "{} of {:?}", step.key(), fixture.observed);
        }
        let syncing = matches!(made.lifecycle, Lifecycle::Syncing);
        let makes = made.steps.iter().any(|step| matches!(step, Step::CreateSandbox(_) | Step::CreateContainer(_)));
        prop_assert!(syncing || !makes, "something is made for a pod that ends");
        prop_assert!(made.wake_at.is_none_or(|wake| wake > fixture.now));
    }
}
