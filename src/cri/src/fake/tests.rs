//! The fake refuses what containerd refuses, keeps time, breaks on order; and the client reads it all.

use std::time::Duration;

use futures_util::StreamExt;
use longshore_core::ids::{ContainerId, SandboxId};
use longshore_core::pod::observed::{ContainerState, SandboxState};
use tokio::time::Instant;

use super::specs::{container_spec, sandbox_spec};
use super::*;
use crate::containers::ContainerFilter;
use crate::error::ErrorKind;
use crate::events::EventKind;
use crate::images::{ImagePull, RegistryAuth};
use crate::pull_failure::PullFailure;

async fn sandbox(runtime: &Runtime, pod: &str) -> SandboxId {
    runtime.sandboxes.run_sandbox(&sandbox_spec(pod, 0)).await.unwrap()
}

async fn container(runtime: &Runtime, pod: &str, name: &str, attempt: u32) -> (SandboxId, ContainerId) {
    let sandboxes = runtime.sandboxes.list_sandboxes(&Default::default()).await.unwrap().items;
    let found = sandboxes.into_iter().find(|item| &*item.key.name == pod);
    let id = match found {
        Some(item) => item.id,
        None => sandbox(runtime, pod).await,
    };
    runtime.images.pull_image(ImagePull { image: "web:1", auth: None, sandbox: None }).await.unwrap();
    let spec = container_spec(pod, name, attempt);
    let made = runtime.containers.create_container(&id, &spec, &sandbox_spec(pod, 0)).await.unwrap();
    (id, made)
}

async fn started(runtime: &Runtime, pod: &str, name: &str) -> (SandboxId, ContainerId) {
    let (sandbox, id) = container(runtime, pod, name, 0).await;
    runtime.containers.start_container(&id).await.unwrap();
    (sandbox, id)
}

async fn state(runtime: &Runtime, at: &(SandboxId, ContainerId)) -> ContainerState {
    runtime.containers.container_status(&at.1, &at.0).await.unwrap().state
}

fn ended(state: &ContainerState) -> (i32, &str) {
    match state {
        ContainerState::Exited { exit_code, reason, .. } => (*exit_code, reason),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_lives_and_is_seen() {
    let fake = FakeRuntime::default();
    let runtime = fake.runtime();
    let (sandbox, id) = started(&runtime, "web", "app").await;
    let observer = runtime.observer();
    let uid = sandbox_spec("web", 0).uid;
    let pod = observer.observe_pod(&uid, fake.now()).await.unwrap().unwrap();
    assert_eq!(
        (pod.key.to_string(), pod.sandboxes.len(), pod.containers.len()),
        ("default/web".into(), 1, 1)
    );
    assert_eq!((&pod.sandboxes[0].id, pod.sandboxes[0].state), (&sandbox, SandboxState::Ready));
    assert_eq!(pod.sandboxes[0].ips, ["10.88.0.1".parse::<std::net::IpAddr>().unwrap()]);
    assert!(pod.containers[0].is_running());
    assert_eq!((&*pod.containers[0].image, &pod.containers[0].sandbox), ("web:1", &sandbox));
    assert!(pod.containers[0].image_ref.starts_with("web@sha256:"));

    runtime.containers.stop_container(&id, Duration::from_secs(30)).await.unwrap();
    runtime.sandboxes.stop_sandbox(&sandbox).await.unwrap();
    runtime.sandboxes.remove_sandbox(&sandbox).await.unwrap();
    assert_eq!(observer.observe_pod(&uid, fake.now()).await.unwrap(), None);
    assert_eq!(fake.counts(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn it_refuses_what_containerd_refuses() {
    let fake = FakeRuntime::default();
    let runtime = fake.runtime();
    let containers = &runtime.containers;
    let at = started(&runtime, "web", "app").await;
    let kind = |error: crate::CriError| error.kind;

    let again = runtime.sandboxes.run_sandbox(&sandbox_spec("web", 0)).await.unwrap_err();
    assert_eq!(kind(again), ErrorKind::AlreadyExists, "the sandbox's name is taken");
    let again =
        containers.create_container(&at.0, &container_spec("web", "app", 0), &sandbox_spec("web", 0)).await;
    assert_eq!(kind(again.unwrap_err()), ErrorKind::AlreadyExists, "the container's name is taken");
    assert_eq!(
        kind(containers.start_container(&at.1).await.unwrap_err()),
        ErrorKind::Other,
        "a container starts once"
    );
    let mut absent = container_spec("web", "other", 0);
    absent.image_ref = "absent:1".to_owned();
    let error = containers.create_container(&at.0, &absent, &sandbox_spec("web", 0)).await.unwrap_err();
    assert_eq!(kind(error), ErrorKind::NotFound, "the image is not there");

    runtime.sandboxes.stop_sandbox(&at.0).await.unwrap();
    let error =
        containers.create_container(&at.0, &container_spec("web", "app", 1), &sandbox_spec("web", 0)).await;
    assert_eq!(kind(error.unwrap_err()), ErrorKind::NotFound, "the sandbox is not ready");
    assert_eq!(ended(&state(&runtime, &at).await), (137, "Error"), "stopping the sandbox killed it");
    let command = ["true".to_owned()];
    assert!(runtime.streams.exec_sync(&at.1, &command, None).await.is_err(), "it does not run");
    assert!(runtime.upkeep.reopen_log(&at.1).await.is_err(), "it does not run");

    let nobody = ContainerId::from("nobody");
    assert_eq!(kind(containers.start_container(&nobody).await.unwrap_err()), ErrorKind::NotFound);
    containers.stop_container(&nobody, Duration::ZERO).await.unwrap();
    containers.remove_container(&nobody).await.unwrap();
    runtime.sandboxes.remove_sandbox(&SandboxId::from("nobody")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn removing_is_by_force() {
    let fake = FakeRuntime::default();
    let runtime = fake.runtime();
    let at = started(&runtime, "web", "app").await;
    runtime.containers.remove_container(&at.1).await.unwrap();
    assert_eq!((fake.counts(), fake.running().len()), ((1, 0), 0));
}

#[tokio::test(start_paused = true)]
async fn stopping_takes_what_the_process_takes() {
    let cases = [
        (Run::forever(), 30, 0, 143),
        (Run::forever().stops_after(Duration::from_secs(5), 0), 30, 5, 0),
        (Run::forever().stops_after(Duration::from_secs(60), 0), 30, 30, 137),
        (Run::forever().ignores_stop(), 30, 30, 137),
        (Run::forever().ignores_stop(), 0, 0, 137),
        (Run::exits(Duration::from_secs(2), 3).ignores_stop(), 30, 2, 3),
    ];
    for (run, grace, takes, code) in cases {
        let fake = FakeRuntime::default();
        fake.script("app", vec![run.clone()]);
        let runtime = fake.runtime();
        let at = started(&runtime, "web", "app").await;
        let begun = Instant::now();
        runtime.containers.stop_container(&at.1, Duration::from_secs(grace)).await.unwrap();
        assert_eq!(
            (begun.elapsed().as_secs(), ended(&state(&runtime, &at).await).0),
            (takes, code),
            "{run:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn instances_follow_their_script() {
    let fake = FakeRuntime::default();
    fake.script(
        "default/web/app",
        vec![Run::crashes(7), Run::oom_killed(Duration::from_secs(1)), Run::cannot_start("no such file")],
    );
    let runtime = fake.runtime();
    let first = container(&runtime, "web", "app", 0).await;
    runtime.containers.start_container(&first.1).await.unwrap();
    assert_eq!(ended(&state(&runtime, &first).await), (7, "Error"));

    let second = container(&runtime, "web", "app", 1).await;
    runtime.containers.start_container(&second.1).await.unwrap();
    assert!(matches!(state(&runtime, &second).await, ContainerState::Running { .. }));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(ended(&state(&runtime, &second).await), (137, "OOMKilled"));

    let third = container(&runtime, "web", "app", 2).await;
    let error = runtime.containers.start_container(&third.1).await.unwrap_err();
    assert!(error.one_line().ends_with("no such file"), "{}", error.one_line());
    assert_eq!(ended(&state(&runtime, &third).await), (128, "StartError"));
    assert_eq!(fake.starts(), ["app", "app"]);

    let order: Vec<u32> = runtime
        .observer()
        .observe_pod(&sandbox_spec("web", 0).uid, fake.now())
        .await
        .unwrap()
        .unwrap()
        .containers
        .iter()
        .map(|container| container.attempt)
        .collect();
    assert_eq!(order, [2, 1, 0], "newest first");
}

#[tokio::test(start_paused = true)]
async fn calls_cost_what_was_set_and_are_counted() {
    let fake = FakeRuntime::default();
    fake.set_cost(Operation::Version, Duration::from_millis(250));
    let runtime = fake.runtime();
    let begun = Instant::now();
    runtime.info.version().await.unwrap();
    assert_eq!(begun.elapsed(), Duration::from_millis(250));
    fake.add_fault(Fault::nth(Operation::Version, 1, tonic::Code::Internal, "x"));
    runtime.info.version().await.unwrap_err();
    let seen = runtime.counters.of(Operation::Version);
    assert_eq!((seen.calls, seen.errors, seen.duration), (2, 1, Duration::from_millis(250)));
    assert_eq!(fake.calls(Operation::Version), 2);
}

#[tokio::test(start_paused = true)]
async fn deadlines_end_calls_that_hang_but_no_pull() {
    let fake = FakeRuntime::default();
    fake.add_fault(Fault { operation: None, when: When::First(2), effect: Effect::Hang });
    let runtime = Runtime::new(fake.client_with(Timeouts { unary: Duration::from_secs(10) }));
    let begun = Instant::now();
    let error = runtime.info.status().await.unwrap_err();
    assert_eq!((error.kind, begun.elapsed().as_secs()), (ErrorKind::DeadlineExceeded, 10));
    let error = runtime.sandboxes.run_sandbox(&sandbox_spec("web", 0)).await.unwrap_err();
    assert_eq!((error.kind, begun.elapsed().as_secs()), (ErrorKind::DeadlineExceeded, 30), "twice the usual");

    fake.script_pull("slow:1", PullScript::slow(Duration::from_secs(3600)));
    runtime.images.pull_image(ImagePull { image: "slow:1", auth: None, sandbox: None }).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn stopping_may_take_its_grace_on_top_of_the_deadline() {
    let fake = FakeRuntime::default();
    fake.script("app", vec![Run::forever().ignores_stop()]);
    let runtime = Runtime::new(fake.client_with(Timeouts { unary: Duration::from_secs(10) }));
    let at = started(&runtime, "web", "app").await;
    runtime.containers.stop_container(&at.1, Duration::from_secs(600)).await.unwrap();
    assert_eq!(ended(&state(&runtime, &at).await).0, 137);
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_leaves_its_work_behind() {
    let fake = FakeRuntime::default();
    let lose =
        Fault { operation: Some(Operation::RunPodSandbox), when: When::Nth(1), effect: Effect::LoseAnswer };
    fake.add_fault(lose);
    let runtime = fake.runtime();
    let error = runtime.sandboxes.run_sandbox(&sandbox_spec("web", 0)).await.unwrap_err();
    assert!(error.outcome_unknown() && error.is_retryable(), "{error:?}");
    let found = runtime.observer().observe_pod(&sandbox_spec("web", 0).uid, fake.now()).await.unwrap();
    assert_eq!(found.unwrap().sandboxes.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_is_down_breaks_calls_and_events_and_keeps_containers() {
    let fake = FakeRuntime::default();
    let runtime = fake.runtime();
    started(&runtime, "web", "app").await;
    let mut events = runtime.events.subscribe();
    fake.set_cost(Operation::Status, Duration::from_secs(60));
    let in_flight = tokio::spawn({
        let info = runtime.info.clone();
        async move { info.status().await }
    });
    let heard = tokio::spawn(async move { events.next().await });
    tokio::time::sleep(Duration::from_secs(1)).await;

    fake.down_for(Duration::from_secs(60));
    assert_eq!(in_flight.await.unwrap().unwrap_err().kind, ErrorKind::Unavailable);
    assert_eq!(heard.await.unwrap().unwrap().unwrap_err().kind, ErrorKind::Unavailable);
    assert_eq!(runtime.info.version().await.unwrap_err().kind, ErrorKind::Unavailable);
    let pull = runtime.images.pull_image(ImagePull { image: "web:1", auth: None, sandbox: None }).await;
    assert_eq!(pull.unwrap_err().kind, ErrorKind::Unavailable, "the runtime is away, not the registry");
    tokio::time::sleep(Duration::from_secs(61)).await;
    runtime.info.version().await.unwrap();
    assert_eq!(fake.running(), ["app"]);
}

#[tokio::test(start_paused = true)]
async fn events_tell_what_happened_and_the_pod_after_it() {
    let fake = FakeRuntime::default();
    let runtime = fake.runtime();
    let mut events = runtime.events.subscribe();
    let heard = tokio::spawn(async move {
        let mut heard = Vec::new();
        while heard.len() < 6 {
            heard.push(events.next().await.unwrap().unwrap());
        }
        heard
    });
    tokio::time::sleep(Duration::from_millis(1)).await;
    let (sandbox, id) = started(&runtime, "web", "app").await;
    fake.kill("app", 1);
    runtime.sandboxes.remove_sandbox(&sandbox).await.unwrap();

    let heard = heard.await.unwrap();
    let brief: Vec<(EventKind, &str)> =
        heard.iter().map(|event| (event.kind, event.subject.as_str())).collect();
    let (sandbox, id) = (sandbox.as_str(), id.as_str());
    let wanted = [
        (EventKind::Created, sandbox),
        (EventKind::Started, sandbox),
        (EventKind::Created, id),
        (EventKind::Started, id),
        (EventKind::Stopped, id),
        (EventKind::Stopped, sandbox),
    ];
    assert_eq!(brief, wanted);
    let died = &heard[4];
    assert_eq!(died.pod, Some(sandbox_spec("web", 0).uid));
    assert_eq!(ended(&died.containers.as_ref().unwrap()[0].state), (1, "Error"));
}

#[tokio::test(start_paused = true)]
async fn a_runtime_without_events_and_configuration_says_so() {
    let options = FakeOptions { events: false, cgroup_driver: None, ..Default::default() };
    let runtime = FakeRuntime::new(options).runtime();
    let first = runtime.events.subscribe().next().await.unwrap().unwrap_err();
    assert_eq!(first.kind, ErrorKind::Unimplemented);
    assert_eq!(runtime.info.cgroup_driver().await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn another_api_version_is_refused() {
    let fake = FakeRuntime::new(FakeOptions { api_version: "v1alpha2".to_owned(), ..Default::default() });
    let error = fake.client().check_version().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unimplemented);
    assert!(error.one_line().contains("v1alpha2"), "{}", error.one_line());
}

#[tokio::test(start_paused = true)]
async fn pulls_follow_their_script_and_are_classified() {
    let fake = FakeRuntime::default();
    let runtime = fake.runtime();
    fake.script_pull("nope:1", PullScript::not_found("nope:1"));
    fake.script_pull("secret:1", PullScript::refused());
    fake.script_pull("later:1", PullScript::unreachable(1));
    let pull = async |image| runtime.images.pull_image(ImagePull { image, auth: None, sandbox: None }).await;
    let kind = |result: Result<String, crate::CriError>| result.unwrap_err().kind;
    assert_eq!(kind(pull("nope:1").await), ErrorKind::ImagePull(PullFailure::NotFound));
    assert_eq!(kind(pull("secret:1").await), ErrorKind::ImagePull(PullFailure::Refused));
    assert_eq!(kind(pull("later:1").await), ErrorKind::ImagePull(PullFailure::RegistryUnavailable));
    fake.script_pull("private:1", PullScript::wants("u", "p"));
    assert_eq!(kind(pull("private:1").await), ErrorKind::ImagePull(PullFailure::Refused));
    let auth = RegistryAuth { username: "u".into(), password: "p".into(), ..RegistryAuth::default() };
    let given = ImagePull { image: "private:1", auth: Some(&auth), sandbox: None };
    runtime.images.pull_image(given).await.unwrap();
    runtime.images.remove_image("private:1").await.unwrap();
    let id = pull("later:1").await.unwrap();
    let present = runtime.images.image_status("later:1").await.unwrap().unwrap();
    assert_eq!(present.image_ref, id);
    assert_eq!(runtime.images.list_images().await.unwrap().items[0].tags, ["later:1"]);
    assert_eq!(runtime.images.image_fs_info().await.unwrap().images[0].used_bytes, Some(present.size_bytes));
    runtime.images.remove_image("later:1").await.unwrap();
    runtime.images.remove_image("later:1").await.unwrap();
    assert_eq!(runtime.images.image_status("later:1").await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn commands_answer_or_run_out_of_time() {
    let fake = FakeRuntime::default();
    let runtime = fake.runtime();
    let at = started(&runtime, "web", "app").await;
    let command = ["check".to_owned()];
    let output = ExecScript { exit_code: 3, stdout: b"out".to_vec(), ..Default::default() };
    fake.script_exec("app", output);
    let seen = runtime.streams.exec_sync(&at.1, &command, Some(Duration::from_secs(1))).await.unwrap();
    assert_eq!((seen.exit_code, &*seen.stdout), (3, &b"out"[..]));
    fake.script_exec("app", ExecScript { takes: Duration::from_secs(9), ..Default::default() });
    let begun = Instant::now();
    let error =
        runtime.streams.exec_sync(&at.1, &command, Some(Duration::from_millis(1500))).await.unwrap_err();
    assert_eq!((error.kind, begun.elapsed().as_secs()), (ErrorKind::DeadlineExceeded, 2));
    runtime.streams.exec_sync(&at.1, &command, None).await.unwrap();
    let url = runtime.streams.exec_url(&at.1, &command, Default::default()).await.unwrap();
    assert!(url.contains(at.1.as_str()));
    assert!(runtime.streams.port_forward_url(&at.0, &[80]).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_broken_network_stops_new_sandboxes_but_not_those_of_the_host() {
    let fake = FakeRuntime::default();
    let runtime = fake.runtime();
    fake.break_network(Some("cni plugin not initialized"));
    let status = runtime.info.status().await.unwrap();
    assert!(status.runtime_ready() && !status.network_ready());
    let error = runtime.sandboxes.run_sandbox(&sandbox_spec("web", 0)).await.unwrap_err();
    assert!(error.one_line().contains("cni plugin not initialized"), "{}", error.one_line());
    let mut host = sandbox_spec("host", 0);
    host.security.namespaces.network = longshore_core::pod::spec::NamespaceMode::Node;
    let id = runtime.sandboxes.run_sandbox(&host).await.unwrap();
    let seen = runtime.sandboxes.sandbox_status(&id).await.unwrap();
    assert_eq!((seen.host_network, seen.ips.len()), (true, 0));
    fake.break_network(None);
    runtime.sandboxes.run_sandbox(&sandbox_spec("web", 0)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn all_pods_are_listed_and_a_change_shows_in_the_digest() {
    let fake = FakeRuntime::default();
    let runtime = fake.runtime();
    for pod in ["a", "b", "c"] {
        started(&runtime, pod, "app").await;
    }
    let mut foreign = sandbox_spec("foreign", 0);
    foreign.labels.clear();
    runtime.sandboxes.run_sandbox(&foreign).await.unwrap();
    let observer = runtime.observer();
    let all = observer.list_all(fake.now()).await.unwrap();
    assert_eq!((all.pods.len(), all.rejected.len()), (3, 0), "what has no pod uid is another program's");
    assert!(all.pods.values().all(|pod| pod.containers.len() == 1 && pod.sandboxes[0].ips.len() == 1));

    let before = observer.digests().await.unwrap();
    assert_eq!(before, observer.digests().await.unwrap());
    fake.kill_sandboxes("b");
    let after = observer.digests().await.unwrap();
    let changed: Vec<_> = after.iter().filter(|(uid, digest)| before.get(*uid) != Some(digest)).collect();
    assert_eq!(changed.len(), 1);
    assert_eq!(changed[0].0, &sandbox_spec("b", 0).uid);
    fake.reboot();
    assert_eq!(fake.running().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn usage_and_resources_are_kept() {
    let fake = FakeRuntime::default();
    let runtime = fake.runtime();
    let at = started(&runtime, "web", "app").await;
    fake.set_usage("app", 5_000, 1 << 20);
    let usage = runtime.upkeep.container_stats(&ContainerFilter::default()).await.unwrap().items;
    assert_eq!((usage[0].cpu_nanoseconds, usage[0].memory_working_set), (Some(5_000), Some(1 << 20)));
    let more = longshore_core::pod::spec::LinuxResources { cpu_shares: Some(77), ..Default::default() };
    runtime.upkeep.update_resources(&at.1, &more).await.unwrap();
    let state = locked(&fake.inner.state);
    let resources = state.container_status(at.1.as_str()).and_then(|status| status.resources?.linux);
    assert_eq!(resources.unwrap().cpu_shares, 77);
}

#[tokio::test]
async fn logs_are_written_and_reopened() {
    let folder = tempfile::tempdir().unwrap();
    let fake = FakeRuntime::new(FakeOptions { write_logs: true, ..Default::default() });
    fake.script("app", vec![Run { output: vec!["hello".to_owned()], ..Run::forever() }]);
    let runtime = fake.runtime();
    let mut spec = sandbox_spec("web", 0);
    spec.log_directory = folder.path().display().to_string();
    let sandbox = runtime.sandboxes.run_sandbox(&spec).await.unwrap();
    fake.add_image("web:1");
    let id =
        runtime.containers.create_container(&sandbox, &container_spec("web", "app", 0), &spec).await.unwrap();
    runtime.containers.start_container(&id).await.unwrap();
    let path = runtime.containers.container_status(&id, &sandbox).await.unwrap().log_path;
    assert!(std::fs::read_to_string(&path).unwrap().ends_with(" stdout F hello\n"));
    std::fs::rename(&path, format!("{path}.old")).unwrap();
    runtime.upkeep.reopen_log(&id).await.unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_works_over_a_socket_and_finds_the_runtime_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cri.sock");
    let fake = FakeRuntime::default();
    let server = FakeCriServer::serve(fake.clone(), &path).await.unwrap();
    let client = CriClient::connect(&server.endpoint(), Timeouts::default()).await.unwrap();
    let runtime = Runtime::new(client);
    let mut events = runtime.events.subscribe();
    let heard =
        tokio::spawn(async move { (events.next().await, events.by_ref().skip(1).next().await, events) });
    // Only the server knows when the subscription stands.
    while fake.inner.events.receiver_count() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let at = started(&runtime, "web", "app").await;
    let (first, second, mut events) = heard.await.unwrap();
    assert_eq!(first.unwrap().unwrap().subject, at.0.as_str());
    assert_eq!(second.unwrap().unwrap().subject, at.1.as_str());
    runtime.containers.stop_container(&at.1, Duration::from_secs(1)).await.unwrap();
    let pod = runtime.observer().observe_pod(&sandbox_spec("web", 0).uid, fake.now()).await.unwrap().unwrap();
    assert_eq!(ended(&pod.containers[0].state), (143, "Error"));

    server.stop().await;
    while let Some(event) = events.next().await {
        if let Err(error) = event {
            assert_eq!(error.kind, ErrorKind::Unavailable);
        }
    }
    let error = runtime.info.version().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{}", error.one_line());
    let _server = FakeCriServer::serve(fake.clone(), &path).await.unwrap();
    runtime.info.version().await.unwrap();
    assert_eq!(fake.counts(), (1, 1), "what the runtime had is still there");
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_larger_than_one_message_are_read_in_parts() {
    let folder = tempfile::tempdir().unwrap();
    let fake = FakeRuntime::default();
    let server = FakeCriServer::serve(fake.clone(), &folder.path().join("cri.sock")).await.unwrap();
    let inside = fake.runtime();
    // Twenty pods whose sandbox and container each carry 1 MiB of annotations: 20 MiB a list.
    fake.add_image("web:1");
    for nth in 0..20 {
        let pod = format!("pod-{nth}");
        let mut spec = sandbox_spec(&pod, 0);
        spec.annotations.insert("large".to_owned(), "x".repeat(1 << 20));
        let sandbox = inside.sandboxes.run_sandbox(&spec).await.unwrap();
        let mut container = container_spec(&pod, "app", 0);
        container.annotations = spec.annotations.clone();
        inside.containers.create_container(&sandbox, &container, &spec).await.unwrap();
        if nth % 2 == 0 {
            inside.sandboxes.stop_sandbox(&sandbox).await.unwrap();
        }
    }
    let runtime = Runtime::new(CriClient::connect(&server.endpoint(), Timeouts::default()).await.unwrap());
    let error = runtime.sandboxes.list_sandboxes(&Default::default()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::TooLarge);
    let all = runtime.observer().list_all(fake.now()).await.unwrap();
    assert_eq!(all.pods.len(), 20);
    assert!(all.pods.values().all(|pod| pod.sandboxes.len() == 1 && pod.containers.len() == 1));
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_is_what_was_so_when_the_call_came() {
    let fake = FakeRuntime::default();
    let runtime = fake.runtime();
    let late = Effect::Late(Duration::from_secs(3));
    fake.add_fault(Fault { operation: Some(Operation::ListPodSandbox), when: When::Nth(1), effect: late });
    let begin = Instant::now();
    let old = tokio::spawn({
        let runtime = runtime.clone();
        async move { runtime.sandboxes.list_sandboxes(&Default::default()).await.unwrap().items.len() }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    sandbox(&runtime, "web").await;
    assert_eq!((old.await.unwrap(), fake.counts()), (0, (1, 0)));
    assert_eq!(begin.elapsed(), Duration::from_secs(3));
    assert_eq!(runtime.sandboxes.list_sandboxes(&Default::default()).await.unwrap().items.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lost_pod_is_gone_without_an_event_and_a_cut_stream_can_be_had_again() {
    let fake = FakeRuntime::default();
    let runtime = fake.runtime();
    let at = started(&runtime, "web", "app").await;
    assert_eq!(fake.tasks().keys().map(String::as_str).collect::<Vec<_>>(), [at.0.as_str(), at.1.as_str()]);
    let mut events = fake.inner.events.subscribe();
    assert_eq!((fake.lose_pod("nobody"), fake.lose_pod("web")), (0, 1));
    assert_eq!(fake.counts(), (0, 0));
    assert!(events.try_recv().is_err(), "nothing is said of it");
    assert!(!fake.kill_id(at.1.as_str(), 1));

    let mut stream = runtime.events.subscribe();
    let heard = tokio::spawn(async move { (stream.next().await, stream) });
    while fake.inner.events.receiver_count() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    fake.break_events();
    let (broken, _stream) = heard.await.unwrap();
    assert_eq!(broken.unwrap().unwrap_err().kind, ErrorKind::Unavailable);
    assert!(fake.tasks().is_empty());
}
