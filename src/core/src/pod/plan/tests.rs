use proptest::prelude::*;
use serde_json::{Value, json};

use super::model::{Act, Model};
use super::*;
use crate::ids::ObjectKey;
use crate::pod::desired::{EndCause, PodSource};
use crate::pod::fixture::{Fixture, at, exited, running, sandbox};
use crate::pod::local::{ProbeResult, ProbeResults};
use crate::pod::observed::SandboxState;
use crate::pod::snapshot::ObjectRef;
use crate::pod::step::{PullPolicy, Step, StepError, StepKey, StepKind, StepOutcome, StepResult};
use crate::volume::VolumeContents;

fn names(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(|step| step.key().to_string()).collect()
}

fn manifest(spec: Value) -> Value {
    json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec})
}

fn web() -> Value {
    json!({"containers": [{"name": "web", "image": "w:1"}]})
}

/// Folders and cgroup are there.
fn prepared(spec: Value) -> Fixture {
    let mut fixture = Fixture::new(manifest(spec));
    for kind in [StepKind::PreparePodDirs, StepKind::EnsureCgroup] {
        fixture.local.done.insert(StepKey { kind, subject: String::new() });
    }
    fixture
}

/// A prepared pod in a ready sandbox.
fn up(spec: Value, instances: Vec<crate::pod::observed::ObservedContainer>) -> Fixture {
    let mut fixture = prepared(spec);
    fixture.observed.sandboxes.push(sandbox());
    fixture.observed.containers = instances;
    fixture
}

fn reasons(plan: &Plan) -> Vec<&str> {
    plan.waiting.iter().map(|waiting| waiting.reason.as_str()).collect()
}

#[test]
fn a_simple_pod_goes_its_way() {
    let mut model = Model::new(
        manifest(json!({
        "volumes": [{"name": "data", "emptyDir": {}}, {"name": "etc", "hostPath": {"path": "/etc"}}],
        "containers": [{"name": "web", "image": "w:1", "lifecycle": {"postStart": {"exec": {"command": ["x"]}}}}]})),
        1,
    );
    assert!(model.settle(50));
    assert_eq!(
        model.log,
        [
            "prepare pod folders",
            "set up pod cgroup",
            "pull image for web",
            "prepare volume data",
            "prepare volume etc",
            "create sandbox",
            "create container web",
            "start container web",
            "run postStart of web"
        ]
    );
    assert!(model.last.as_ref().unwrap().waiting.is_empty());
    model.log.clear();
    model.delete(5);
    assert!(model.settle(50));
    assert_eq!(
        model.log,
        [
            "stop container web",
            "stop sandbox s0",
            "remove container c1",
            "release volume data",
            "remove sandbox s0",
            "remove pod cgroup",
            "remove pod folders"
        ]
    );
    assert!(matches!(model.fixture.lifecycle, Lifecycle::Released { .. }));
}

#[test]
fn a_new_pod_begins_with_what_needs_nothing() {
    let fixture = Fixture::new(manifest(web()));
    let made = plan(&fixture.snapshot());
    assert_eq!(names(&made), ["prepare pod folders", "set up pod cgroup", "pull image for web"]);
    let mut flat = Fixture::new(manifest(web()));
    flat.node.cgroups.per_qos = false;
    assert_eq!(names(&plan(&flat.snapshot())), ["prepare pod folders", "pull image for web"]);
}

#[test]
fn an_adopted_pod_is_only_verified() {
    let mut fixture = Fixture::new(manifest(json!({
        "volumes": [{"name": "data", "emptyDir": {}}],
        "initContainers": [{"name": "init", "image": "w:1"}],
        "containers": [{"name": "web", "image": "w:1", "lifecycle": {"postStart": {"exec": {"command": ["x"]}}},
            "startupProbe": {"tcpSocket": {"port": 1}}}]})));
    fixture.node.agent_started_at = at(1000);
    fixture.now = at(1000);
    fixture.observed.sandboxes.push(sandbox());
    fixture.observed.containers = vec![running("c", "web", 3, at(20))];
    assert_eq!(names(&plan(&fixture.snapshot())), ["prepare pod folders", "set up pod cgroup"]);
    for kind in [StepKind::PreparePodDirs, StepKind::EnsureCgroup] {
        fixture.local.done.insert(StepKey { kind, subject: String::new() });
    }
    assert_eq!(names(&plan(&fixture.snapshot())), ["prepare volume data"]);
    fixture.local.volumes.insert("data".into(), 0);
    let made = plan(&fixture.snapshot());
    assert_eq!(names(&made), [] as [&str; 0]);
    assert!(made.waiting.is_empty() && made.cancel.is_empty());
}

#[test]
fn sandboxes_are_replaced_when_unusable() {
    let not_ready = || crate::pod::observed::ObservedSandbox { state: SandboxState::NotReady, ..sandbox() };
    let other =
        |id: &str, attempt| crate::pod::observed::ObservedSandbox { id: id.into(), attempt, ..sandbox() };
    let mut wrong_network = sandbox();
    wrong_network.host_network = true;
    let mut no_ip = sandbox();
    no_ip.ips.clear();
    let live = || vec![running("c", "web", 0, at(1))];
    let dead = || vec![exited("c", "web", 0, at(1), at(2), 1)];
    let cases = [
        ("none", vec![], vec![], vec!["create sandbox"]),
        ("died", vec![not_ready()], dead(), vec!["create sandbox"]),
        ("died under a container", vec![not_ready()], live(), vec!["stop container web"]),
        ("two ready", vec![other("s1", 1), sandbox()], dead(), vec!["stop sandbox s1", "stop sandbox s0"]),
        ("wrong network", vec![wrong_network], dead(), vec!["stop sandbox s0"]),
        ("no address", vec![no_ip.clone()], dead(), vec!["stop sandbox s0"]),
        ("no address, but it runs", vec![no_ip], live(), vec![]),
        ("old one empty", vec![other("s1", 1), not_ready()], vec![], vec!["remove sandbox s0"]),
    ];
    for (what, sandboxes, instances, expected) in cases {
        let mut fixture = prepared(web());
        fixture.observed.sandboxes = sandboxes;
        fixture.observed.containers = instances;
        let made = plan(&fixture.snapshot());
        let steps: Vec<String> = names(&made).into_iter().filter(|name| !name.starts_with("pull")).collect();
        assert_eq!(steps, expected, "{what}");
        if let Some(Step::CreateSandbox(spec)) =
            made.steps.iter().find(|s| s.key().kind == StepKind::CreateSandbox)
        {
            assert_eq!(spec.attempt as usize, fixture.observed.sandboxes.len(), "{what}");
        }
    }
}

#[test]
fn finished_pods_get_no_new_sandbox() {
    for (policy, code, cause) in
        [("Never", 1, true), ("OnFailure", 0, true), ("OnFailure", 1, false), ("Always", 0, false)]
    {
        let mut fixture =
            prepared(json!({"restartPolicy": policy, "containers": [{"name": "web", "image": "w:1"}]}));
        fixture
            .observed
            .sandboxes
            .push(crate::pod::observed::ObservedSandbox { state: SandboxState::NotReady, ..sandbox() });
        fixture.observed.containers = vec![exited("c", "web", 0, at(1), at(2), code)];
        let made = plan(&fixture.snapshot());
        let finished = matches!(made.lifecycle, Lifecycle::Terminating { cause: EndCause::Finished, .. });
        assert_eq!(finished, cause, "{policy} {code}");
        assert_eq!(names(&made).contains(&"create sandbox".to_owned()), !cause, "{policy} {code}");
    }
}

#[test]
fn crashes_back_off_and_say_so() {
    let mut model = Model::new(manifest(web()), 1);
    model.scripts.insert("web".into(), vec![Act::Exits { after: 1, code: 3 }]);
    for _ in 0..60 {
        model.turn();
        if model.container("web").is_some_and(|c| c.attempt == 3) {
            break;
        }
        model.settle(1);
    }
    // Ends at 1, again at once; ends at 2, 10 s; ends at 13, 20 s.
    let started = |model: &Model, attempt: u32| {
        model.fixture.observed.containers.iter().find(|c| c.attempt == attempt).map(|c| c.created_at)
    };
    assert_eq!(started(&model, 2), Some(at(12)));
    assert_eq!(started(&model, 3), Some(at(33)));
    let mut fixture = up(web(), vec![exited("c", "web", 1, at(1), at(2), 3)]);
    fixture.now = at(5);
    let key_hash =
        crate::pod::restart::backoff_key(&fixture.desired.pod.spec.as_ref().unwrap().containers[0]);
    fixture.local.backoff.insert(
        "web".into(),
        crate::pod::local::CrashBackoff { key_hash, delay_seconds: 10, last_exit: at(2) },
    );
    let made = plan(&fixture.snapshot());
    assert_eq!((reasons(&made), made.wake_at), (vec!["CrashLoopBackOff"], Some(at(12))));
    let message = "container web ended with exit code 3 (Error); back-off of 10 s before it runs again";
    assert_eq!(made.waiting[0].message, message);
    assert_eq!(names(&made), [] as [&str; 0]);
    if let crate::pod::observed::ContainerState::Exited { message, .. } =
        &mut fixture.observed.containers[0].state
    {
        *message = "\nno database\nat db:1\n".into();
    }
    let message =
        "container web ended with exit code 3 (Error): no database; back-off of 10 s before it runs again";
    assert_eq!(plan(&fixture.snapshot()).waiting[0].message, message, "its own words");
    let failed = crate::pod::local::HookState::Failed { message: "no such program".into() };
    let id = fixture.observed.containers[0].id.clone();
    fixture.local.post_start.insert(id.clone(), failed);
    let message = "container web was ended because its postStart failed: no such program; back-off of 10 s before it runs again";
    assert_eq!(plan(&fixture.snapshot()).waiting[0].message, message, "the hook that ended it");
    fixture.local.post_start.remove(&id);
    fixture.edit(|pod| pod.spec.as_mut().unwrap().containers[0].image = Some("w:2".into()));
    assert_eq!(names(&plan(&fixture.snapshot())), ["pull image for web"], "another image starts over");
}

#[test]
fn what_must_be_replaced_is_stopped_with_its_grace() {
    let probe = |own: Option<i64>| json!({"tcpSocket": {"port": 1}, "terminationGracePeriodSeconds": own});
    let stop = |fixture: &Fixture| {
        plan(&fixture.snapshot()).steps.iter().find_map(|step| match step {
            Step::StopContainer(stop) => Some((stop.grace.as_secs(), stop.reason.clone())),
            _ => None,
        })
    };
    let with = |container: Value, set: fn(&mut ProbeResults, ProbeResult)| {
        let mut all = json!({"name": "web", "image": "w:1"});
        all.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
        let spec = json!({"terminationGracePeriodSeconds": 20, "containers": [all]});
        let mut fixture = up(spec, vec![running("c", "web", 0, at(1))]);
        let mut results = ProbeResults::default();
        set(&mut results, ProbeResult { healthy: false, since: at(3), message: "refused".into() });
        fixture.local.probes.insert("c".into(), results);
        fixture
    };
    let live = with(json!({"livenessProbe": probe(None)}), |all, result| all.liveness = Some(result));
    assert_eq!(stop(&live), Some((20, "liveness probe failed: refused".to_owned())));
    let own = with(json!({"livenessProbe": probe(Some(3))}), |all, result| all.liveness = Some(result));
    assert_eq!(stop(&own), Some((3, "liveness probe failed: refused".to_owned())));
    let start = with(json!({"startupProbe": probe(Some(4))}), |all, result| all.startup = Some(result));
    assert_eq!(stop(&start), Some((4, "startup probe failed: refused".to_owned())));
    let ready = with(json!({"readinessProbe": {"tcpSocket": {"port": 1}}}), |all, result| {
        all.readiness = Some(result)
    });
    assert_eq!(stop(&ready), None, "readiness never kills");
    let told = plan(&ready.snapshot()).waiting;
    assert_eq!(told[0].message, "the readiness probe of container web fails: refused");
    let mut changed = up(web(), vec![running("c", "web", 0, at(1))]);
    changed.observed.containers[0].annotations.insert(crate::pod::render::CONTAINER_HASH.into(), "1".into());
    assert_eq!(stop(&changed), Some((30, "its definition changed".to_owned())));
}

#[test]
fn what_runs_is_watched_over_while_a_volume_is_away() {
    let spec = json!({"volumes": [{"name": "v", "configMap": {"name": "no"}}], "containers": [
        {"name": "web", "image": "w:1", "livenessProbe": {"tcpSocket": {"port": 1}}}]});
    let mut fixture = up(spec, vec![running("c", "web", 0, at(1))]);
    let failed = ProbeResult { healthy: false, since: at(3), message: "refused".into() };
    fixture
        .local
        .probes
        .insert("c".into(), ProbeResults { liveness: Some(failed), ..ProbeResults::default() });
    let made = plan(&fixture.snapshot());
    assert_eq!((reasons(&made), names(&made)), (vec!["FailedMount"], vec!["stop container web".to_owned()]));
}

#[test]
fn a_failed_post_start_ends_the_container() {
    let spec = json!({"containers": [{"name": "web", "image": "w:1", "lifecycle": {"postStart": {"exec": {"command": ["x"]}}}}]});
    let mut fixture = up(spec, vec![running("c", "web", 0, at(1))]);
    fixture.now = at(2);
    assert_eq!(names(&plan(&fixture.snapshot())), ["run postStart of web"]);
    let failed = crate::pod::local::HookState::Failed { message: "exit code 1".into() };
    fixture.local.post_start.insert("c".into(), failed);
    assert_eq!(names(&plan(&fixture.snapshot())), ["stop container web"]);
    fixture.local.post_start.insert("c".into(), crate::pod::local::HookState::Done);
    assert_eq!(names(&plan(&fixture.snapshot())), [] as [&str; 0]);
}

#[test]
fn waits_are_said_with_object_and_mend() {
    let mut network = prepared(web());
    network.node.network = Err("cni plugin not initialized".into());
    let made = plan(&network.snapshot());
    assert_eq!(
        (reasons(&made), names(&made)),
        (vec!["NetworkNotReady"], vec!["pull image for web".to_owned()])
    );
    network.edit(|pod| pod.spec.as_mut().unwrap().host_network = Some(true));
    assert!(names(&plan(&network.snapshot())).contains(&"create sandbox".to_owned()), "host network goes on");

    let mut services = up(web(), vec![]);
    services.node.services_synced = false;
    let image =
        crate::pod::step::ImagePresent { image_ref: "i".into(), size_bytes: 1, user: Default::default() };
    services.local.images.insert("web".into(), image.clone());
    let made = plan(&services.snapshot());
    assert_eq!((reasons(&made), names(&made)), (vec!["ServicesNotSynced"], vec![]));

    let mut missing = up(
        json!({"volumes": [{"name": "v", "configMap": {"name": "no"}}],
        "containers": [{"name": "web", "image": "w:1"}]}),
        vec![],
    );
    missing.local.images.insert("web".into(), image.clone());
    let made = plan(&missing.snapshot());
    assert_eq!((reasons(&made), names(&made)), (vec!["FailedMount"], vec![]));
    assert_eq!(
        made.waiting[0].message,
        "ConfigMap default/no is not there, needed by volume v: create it, or mark the reference optional"
    );
    missing.config_map("no", &[("a", "b")]);
    assert_eq!(names(&plan(&missing.snapshot())), ["prepare volume v"]);
    // Once published, its object may go: a container that ended runs again with what is there.
    missing.local.volumes.insert("v".into(), 7);
    missing.objects.config_maps.clear();
    let made = plan(&missing.snapshot());
    assert_eq!(
        (reasons(&made), names(&made)),
        (vec!["FailedMount"], vec!["create container web".to_owned()])
    );

    let mut env = up(
        json!({"containers": [{"name": "web", "image": "w:1", "envFrom": [{"secretRef": {"name": "no"}}]}]}),
        vec![],
    );
    env.local.images.insert("web".into(), image);
    let made = plan(&env.snapshot());
    assert_eq!((reasons(&made), names(&made)), (vec!["CreateContainerConfigError"], vec![]));
    assert_eq!(made.waiting[0].container.as_ref().map(|name| name.as_str()), Some("web"));
    env.secret("no", &[("A", "b")]);
    assert_eq!(names(&plan(&env.snapshot())), ["create container web"]);
}

#[test]
fn a_pull_takes_the_pods_secrets_and_waits_for_unread_ones_a_while() {
    let spec =
        json!({"imagePullSecrets": [{"name": "key"}], "containers": [{"name": "web", "image": "r.io/w:1"}]});
    let mut fixture = prepared(spec);
    let wanted = ObjectRef::Secret(ObjectKey::new("default", "key"));
    fixture.objects.unfetched.insert(wanted.clone());
    fixture.now = at(1);
    let made = plan(&fixture.snapshot());
    assert!(!names(&made).contains(&"pull image for web".to_owned()), "{made:?}");
    assert_eq!(made.waiting[0].message, "pull secret default/key is being read from the control plane");
    assert_eq!(made.wake_at, Some(at(15)));
    let secrets = |fixture: &Fixture| {
        let steps = plan(&fixture.snapshot()).steps.into_iter();
        let mut pulls = steps.filter_map(|step| match step {
            Step::PullImage { secrets, .. } => Some(secrets),
            _ => None,
        });
        pulls.next().expect("a pull is planned")
    };
    fixture.now = at(15);
    let late = secrets(&fixture);
    assert_eq!(late.problems, ["pull secret default/key could not be read from the control plane"]);
    fixture.objects.unfetched.remove(&wanted);
    fixture.now = at(1);
    assert_eq!(secrets(&fixture).problems, ["pull secret default/key is not there"]);
    fixture.secret("key", &[(".dockercfg", r#"{"r.io": {"username": "u", "password": "hush"}}"#)]);
    let key = fixture.objects.secrets.values_mut().next().map(std::sync::Arc::make_mut).unwrap();
    key.type_ = Some("kubernetes.io/dockercfg".to_owned());
    let found = secrets(&fixture);
    assert_eq!((found.credentials.len(), found.problems.len()), (1, 0));
    assert!(!format!("{:?}", plan(&fixture.snapshot())).contains("hush"));
}

/// The pull of [`web`]'s image.
fn pull(policy: PullPolicy) -> Step {
    Step::PullImage {
        container: "web".into(),
        image: "w:1".into(),
        policy,
        secrets: crate::image::pull_secrets::PullSecrets::default(),
    }
}

#[test]
fn a_failed_pull_rests_and_shows_both_reasons() {
    let mut fixture = prepared(web());
    let step = pull(PullPolicy::IfNotPresent);
    let error = StepError { reason: "ErrImagePull".into(), message: "no such host".into(), retryable: true };
    fixture.local.record(&step, &StepOutcome::Failed(error), at(0));
    fixture.now = at(0);
    let made = plan(&fixture.snapshot());
    assert_eq!((reasons(&made), made.wake_at), (vec!["ErrImagePull"], Some(at(1))));
    fixture.now = at(2);
    let made = plan(&fixture.snapshot());
    assert_eq!((reasons(&made), made.wake_at), (vec!["ImagePullBackOff"], Some(at(10))));
    assert!(!names(&made).contains(&"pull image for web".to_owned()));
    fixture.now = at(10);
    let made = plan(&fixture.snapshot());
    assert!(names(&made).contains(&"pull image for web".to_owned()));
    assert_eq!(reasons(&made), ["ErrImagePull"], "still said while it is tried again");
}

#[test]
fn an_image_that_nobody_pulls_is_told_as_that_while_it_rests() {
    let mut fixture = prepared(web());
    let step = pull(PullPolicy::Never);
    for reason in ["ErrImageNeverPull", "InvalidImageName", "RegistryUnavailable"] {
        let error = StepError { reason: reason.into(), message: "no".into(), retryable: true };
        fixture.local.record(&step, &StepOutcome::Failed(error), at(0));
        fixture.now = at(2);
        let shown = if reason == "RegistryUnavailable" { "ImagePullBackOff" } else { reason };
        assert_eq!(reasons(&plan(&fixture.snapshot())), [shown]);
    }
}

#[test]
fn changed_content_is_published_anew() {
    let spec = json!({"volumes": [{"name": "v", "configMap": {"name": "c"}}], "containers": [{"name": "web", "image": "w:1"}]});
    let mut model = Model::new(manifest(spec), 1);
    model.fixture.config_map("c", &[("a", "1")]);
    assert!(model.settle(50));
    model.log.clear();
    model.fixture.config_map("c", &[("a", "2")]);
    assert!(model.settle(50));
    assert_eq!(model.log, ["update volume v"]);
}

#[test]
fn contents_worked_out_before_change_no_plan() {
    let spec = json!({"volumes": [{"name": "v", "configMap": {"name": "c"}}, {"name": "e", "emptyDir": {}},
            {"name": "s", "secret": {"secretName": "s"}}],
        "containers": [{"name": "web", "image": "w:1", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]});
    let mut model = Model::new(manifest(spec), 1);
    let same_plan = |model: &Model, said: &str| {
        let contents = VolumeContents::of(&model.fixture.snapshot());
        let with = PodSnapshot { contents: Some(&contents), ..model.fixture.snapshot() };
        assert_eq!(plan(&with), plan(&model.fixture.snapshot()), "{said}");
    };
    same_plan(&model, "both objects missing");
    model.fixture.config_map("c", &[("a", "1")]);
    model.fixture.secret("s", &[("k", "1")]);
    same_plan(&model, "nothing published");
    assert!(model.settle(50));
    same_plan(&model, "all published");
    model.fixture.config_map("c", &[("a", "2")]);
    same_plan(&model, "one to be updated");
    model.fixture.objects.secrets.clear();
    same_plan(&model, "one taken away");
}

#[test]
fn sidecars_start_first_and_end_last() {
    let spec = json!({"initContainers": [
            {"name": "s1", "image": "w:1", "restartPolicy": "Always"},
            {"name": "i1", "image": "w:1"},
            {"name": "s2", "image": "w:1", "restartPolicy": "Always"}],
        "containers": [{"name": "a", "image": "w:1"}, {"name": "b", "image": "w:1"}]});
    let mut model = Model::new(manifest(spec), 1);
    model.scripts.insert("i1".into(), vec![Act::Exits { after: 2, code: 0 }]);
    assert!(model.settle(80));
    let starts: Vec<&str> =
        model.log.iter().filter_map(|step| step.strip_prefix("start container ")).collect();
    assert_eq!(starts, ["s1", "i1", "s2", "a", "b"]);
    model.crash("s1", 1);
    model.log.clear();
    assert!(model.settle(80));
    assert_eq!(
        model.log,
        ["pull image for s1", "create container s1", "start container s1"],
        "restarted, nothing else moves"
    );
    model.log.clear();
    model.delete(30);
    assert!(model.settle(80));
    let stops: Vec<&str> = model.log.iter().filter_map(|step| step.strip_prefix("stop container ")).collect();
    assert_eq!(stops, ["a", "b", "s2", "s1"]);
}

#[test]
fn time_up_ends_everyone_and_shorter_grace_begins_again() {
    let spec = json!({"initContainers": [{"name": "s", "image": "w:1", "restartPolicy": "Always"}],
        "containers": [{"name": "a", "image": "w:1", "lifecycle": {"preStop": {"sleep": {"seconds": 1}}}}]});
    let mut fixture = up(spec, vec![running("a1", "a", 0, at(1)), running("s1", "s", 0, at(1))]);
    fixture.now = at(100);
    fixture.desired.deletion = Some(crate::pod::desired::Deletion {
        requested_at: at(100),
        grace_seconds: 30,
        cause: EndCause::Deleted,
    });
    let graces = |plan: &Plan| -> Vec<(String, u64, bool)> {
        plan.steps
            .iter()
            .filter_map(|step| match step {
                Step::StopContainer(stop) => {
                    Some((stop.container.to_string(), stop.grace.as_secs(), stop.pre_stop.is_some()))
                }
                _ => None,
            })
            .collect()
    };
    let made = plan(&fixture.snapshot());
    assert_eq!(graces(&made), [("a".to_owned(), 30, true)]);
    assert_eq!(made.wake_at, Some(at(130)));
    fixture.lifecycle = made.lifecycle;
    fixture.local.begin(&made.steps[0], at(100));
    fixture.now = at(105);
    fixture.desired.deletion.as_mut().unwrap().grace_seconds = 10;
    let shorter = plan(&fixture.snapshot());
    assert_eq!(shorter.cancel, [made.steps[0].key()]);
    assert_eq!(graces(&shorter), []);
    fixture.local.in_flight.clear();
    fixture.lifecycle = shorter.lifecycle;
    assert_eq!(graces(&plan(&fixture.snapshot())), [("a".to_owned(), 5, false)]);
    fixture.now = at(110);
    assert_eq!(graces(&plan(&fixture.snapshot())), [("a".to_owned(), 2, false), ("s".to_owned(), 2, false)]);
    fixture.desired.deletion.as_mut().unwrap().grace_seconds = 0;
    assert_eq!(graces(&plan(&fixture.snapshot()))[0], ("a".to_owned(), 0, false));
}

#[test]
fn deadline_orphans_and_old_instances() {
    let mut late = up(
        json!({"activeDeadlineSeconds": 60, "containers": [{"name": "web", "image": "w:1"}]}),
        vec![running("c", "web", 0, at(1))],
    );
    late.now = at(10);
    assert_eq!(plan(&late.snapshot()).wake_at, Some(at(60)));
    late.now = at(60);
    assert!(matches!(
        plan(&late.snapshot()).lifecycle,
        Lifecycle::Terminating { cause: EndCause::DeadlineExceeded, .. }
    ));

    let mut orphan = up(json!({"containers": []}), vec![running("c", "web", 0, at(1))]);
    orphan.edit(|pod| pod.spec = None);
    orphan.desired.source = crate::pod::desired::PodSource::Runtime;
    let annotations = &mut orphan.observed.containers[0].annotations;
    annotations.insert(crate::pod::render::TERMINATION_GRACE.into(), "7".into());
    annotations.insert(crate::pod::render::PRE_STOP.into(), "{\"exec\":{\"command\":[\"bye\"]}}".into());
    orphan.now = at(10);
    let made = plan(&orphan.snapshot());
    let Step::StopContainer(stop) = &made.steps[0] else { panic!("{:?}", made.steps) };
    assert_eq!(stop.grace.as_secs(), 7);
    assert_eq!(stop.pre_stop, Some(crate::pod::step::Hook::Exec { command: vec!["bye".into()] }));

    let old = up(
        web(),
        vec![
            running("c3", "web", 3, at(9)),
            exited("c2", "web", 2, at(5), at(6), 1),
            exited("c1", "web", 1, at(3), at(4), 1),
            exited("c0", "web", 0, at(1), at(2), 1),
        ],
    );
    assert_eq!(names(&plan(&old.snapshot())), ["remove container c1", "remove container c0"]);
}

#[test]
fn a_lost_sandbox_is_made_again_with_all_in_it() {
    let spec = json!({"initContainers": [{"name": "i", "image": "w:1"}], "containers": [{"name": "a", "image": "w:1"}]});
    let mut model = Model::new(manifest(spec), 1);
    model.scripts.insert("i".into(), vec![Act::Exits { after: 1, code: 0 }]);
    assert!(model.settle(60));
    model.lose_sandbox();
    model.log.clear();
    assert!(model.settle(60));
    let begun: Vec<&str> = model.log.iter().filter(|s| !s.starts_with("pull")).map(String::as_str).collect();
    assert_eq!(
        begun[..5],
        [
            "create sandbox",
            "create container i",
            "start container i",
            "create container a",
            "start container a"
        ]
    );
    assert_eq!(model.container("a").map(|c| c.attempt), Some(1));
}

fn container(name: String) -> impl Strategy<Value = Value> {
    any::<bool>().prop_map(move |hook| {
        let mut container = json!({"name": name, "image": "w:1"});
        if hook {
            container["lifecycle"] =
                json!({"postStart": {"exec": {"command": ["x"]}}, "preStop": {"sleep": {"seconds": 1}}});
        }
        container
    })
}

prop_compose! {
    fn any_spec()(
        policy in prop::sample::select(vec!["Always", "OnFailure", "Never"]),
        main in (1usize..4).prop_flat_map(|n| (0..n).map(|i| container(format!("m{i}"))).collect::<Vec<_>>()),
        sidecars in prop::collection::vec(any::<bool>(), 0..4),
        volumes in 0usize..3,
    ) -> Value {
        let init: Vec<Value> = sidecars.iter().enumerate().map(|(i, sidecar)| {
            let mut container = json!({"name": format!("i{i}"), "image": "w:1"});
            if *sidecar {
                container["restartPolicy"] = json!("Always");
            }
            container
        }).collect();
        let volumes: Vec<Value> = (0..volumes).map(|i| json!({"name": format!("v{i}"), "emptyDir": {}})).collect();
        json!({"restartPolicy": policy, "containers": main, "initContainers": init, "volumes": volumes})
    }
}

/// Scripts: init containers fail a few times and then succeed; main ones crash a few times and then
/// stay or succeed.
fn scripted(model: &mut Model, crashes: u32, ends: bool) {
    let crash = Act::Exits { after: 1, code: 1 };
    let all: Vec<(String, crate::pod::containers::Role)> = crate::pod::containers::containers(model.pod())
        .iter()
        .map(|c| (c.name.to_string(), c.role))
        .collect();
    for (name, role) in all {
        let last = match role {
            crate::pod::containers::Role::Init => Act::Exits { after: 2, code: 0 },
            crate::pod::containers::Role::Main if ends => Act::Exits { after: 3, code: 0 },
            _ => Act::Stays,
        };
        let mut script = vec![crash; crashes as usize];
        script.push(last);
        model.scripts.insert(name, script);
    }
}

fn is_released(model: &Model) -> bool {
    matches!(model.fixture.lifecycle, Lifecycle::Released { .. })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever fails on the way, a pod comes to rest: running as wanted or released; then nothing
    /// is left to do, and a deletion releases everything. The model checks each step's rules.
    #[test]
    fn every_pod_comes_to_rest(
        spec in any_spec(),
        seed in any::<u64>(),
        crashes in 0u32..3,
        ends in any::<bool>(),
        fail_percent in 0u64..30,
        slowest in 0i64..4,
        kill_after in prop::option::of(1usize..40),
        keep_calls in any::<bool>(),
    ) {
        let mut model = Model::new(manifest(spec), seed);
        // A pod whose containers end by themselves under Always goes on for ever.
        let always = model.pod().spec.as_ref().unwrap().restart_policy.as_deref() == Some("Always");
        scripted(&mut model, crashes, ends && !always);
        model.fail_percent = fail_percent;
        model.slowest = slowest;
        if let Some(turns) = kill_after {
            model.settle(turns);
            model.restart_agent(keep_calls);
        }
        prop_assert!(model.settle(3000), "no rest: {:?}\n{:?}", model.last, model.log);
        let made = model.turn();
        prop_assert!(made.steps.is_empty() && made.cancel.is_empty() && made.waiting.is_empty(), "{made:?}");
        if matches!(made.lifecycle, Lifecycle::Syncing) {
            for main in &model.pod().spec.as_ref().unwrap().containers {
                prop_assert!(model.container(&main.name).is_some_and(|c| c.is_running()), "{} does not run", main.name);
            }
        }
        model.delete(30);
        prop_assert!(model.settle(3000), "no end: {:?}\n{:?}", model.last, model.log);
        prop_assert!(is_released(&model));
        prop_assert!(model.fixture.observed.containers.is_empty() && model.fixture.observed.sandboxes.is_empty());
    }

    /// Deleted at any moment, with the agent killed at any other, everything is released.
    #[test]
    fn deletion_always_ends(
        spec in any_spec(),
        seed in any::<u64>(),
        before in 0usize..40,
        between in 0usize..20,
        keep_calls in any::<bool>(),
        grace in 0u32..40,
        fail_percent in 0u64..30,
    ) {
        let mut model = Model::new(manifest(spec), seed);
        scripted(&mut model, 1, false);
        model.fail_percent = fail_percent;
        model.slowest = 3;
        model.settle(before);
        model.delete(grace);
        model.settle(between);
        model.restart_agent(keep_calls);
        prop_assert!(model.settle(3000), "no end: {:?}\n{:?}", model.last, model.log);
        prop_assert!(is_released(&model));
        prop_assert!(model.fixture.observed.containers.is_empty() && model.fixture.observed.sandboxes.is_empty());
    }

    /// A restart of the agent beside a pod that runs only verifies what is there.
    #[test]
    fn adoption_touches_nothing(spec in any_spec(), seed in any::<u64>()) {
        let mut model = Model::new(manifest(spec), seed);
        scripted(&mut model, 0, false);
        prop_assert!(model.settle(500));
        model.fixture.now = crate::pod::restart::after_seconds(model.fixture.now, 60);
        model.log.clear();
        model.restart_agent(false);
        prop_assert!(model.settle(500));
        for step in &model.log {
            let verifies = step == "prepare pod folders" || step == "set up pod cgroup" || step.starts_with("prepare volume");
            prop_assert!(verifies, "{step}");
        }
    }
}

#[test]
fn a_pod_without_a_spec_is_released_from_every_place_it_may_have_been_in() {
    let mut fixture = Fixture::new(json!({"metadata": {"name": "lost"}, "spec": {"containers": []}}));
    fixture.desired.source = PodSource::Runtime;
    fixture.node.cgroups.driver = crate::pod::snapshot::CgroupDriver::Cgroupfs;
    fixture.local.journalled_cgroup = Some("/kubepods.slice/old.slice".to_owned());
    fixture.local.volumes.insert("ram".to_owned(), 0);
    fixture.lifecycle = Lifecycle::Terminated { cause: EndCause::Orphaned, at: at(0) };
    let uid = fixture.desired.uid.clone();
    let mut all = Vec::new();
    for _ in 0..4 {
        for step in plan(&fixture.snapshot()).steps {
            fixture.local.begin(&step, at(1));
            fixture.local.record(&step, &StepOutcome::Done(StepResult::Done), at(1));
            all.push(step);
        }
    }
    let cgroups = [
        "/kubepods.slice/old.slice".to_owned(),
        format!("/kubepods/besteffort/pod{uid}"),
        format!("/kubepods/burstable/pod{uid}"),
        format!("/kubepods/pod{uid}"),
    ];
    let expected = [
        Step::ReleaseVolume { volume: "ram".to_owned() },
        Step::RemoveCgroup { paths: cgroups.to_vec() },
        Step::RemovePodDirs,
    ];
    assert_eq!(all, expected);
}

#[test]
fn a_stop_that_is_begun_anew_with_less_time_runs_no_hook_again() {
    let hook = json!({"preStop": {"exec": {"command": ["bye"]}}});
    let spec = json!({"terminationGracePeriodSeconds": 60,
        "containers": [{"name": "web", "image": "w:1", "lifecycle": hook}]});
    let mut fixture = up(spec, vec![running("c1", "web", 0, at(0))]);
    let deletion = |grace| crate::pod::desired::Deletion {
        requested_at: at(100),
        grace_seconds: grace,
        cause: EndCause::Deleted,
    };
    fixture.now = at(100);
    fixture.desired.deletion = Some(deletion(60));
    let stop = |fixture: &Fixture| {
        let plan = plan(&fixture.snapshot());
        let step = plan.steps.iter().find(|step| step.key().kind == StepKind::StopContainer).cloned();
        (plan, step)
    };
    let (first, Some(begun)) = stop(&fixture) else { panic!("nothing is stopped") };
    let Step::StopContainer(ref stopping) = begun else { panic!() };
    assert!(stopping.pre_stop.is_some());
    fixture.lifecycle = first.lifecycle;
    fixture.local.begin(&begun, at(100));
    // Ten seconds later somebody wants it to end sooner.
    fixture.now = at(110);
    fixture.desired.deletion = Some(deletion(20));
    let (sooner, _) = stop(&fixture);
    assert_eq!(sooner.cancel, [begun.key()]);
    fixture.lifecycle = sooner.lifecycle;
    fixture.local.record(&begun, &StepOutcome::Cancelled, at(110));
    let (_, Some(Step::StopContainer(again))) = stop(&fixture) else { panic!("not stopped again") };
    assert_eq!((again.pre_stop, again.grace.as_secs()), (None, 10));
}
