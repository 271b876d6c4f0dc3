//! The client against a real runtime: what the wire and containerd's answers look like, not only ours.
//!
//! `make test-node` runs it on the native node. By hand: `LONGSHORE_TEST_RUNTIME` is the endpoint,
//! `LONGSHORE_TEST_IMAGE` a busybox image it has; a runtime with CNI is all it needs, every pod is made and
//! removed by its test. `cargo test -p longshore-cri --test node_containerd -- --ignored --test-threads=1`
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use jiff::Timestamp;
use longshore_core::ids::{ContainerId, PodUid, SandboxId};
use longshore_core::pod::observed::{ContainerState, ObservedContainer, ObservedPod, SandboxState};
use longshore_core::pod::spec::{LinuxResources, NamespaceMode, SandboxSpec};
use longshore_cri::events::EventKind;
use longshore_cri::fake::specs;
use longshore_cri::{
    ContainerFilter, CriClient, CriError, ErrorKind, ImagePull, PullFailure, Runtime, SandboxFilter,
    StreamIo, Timeouts,
};

async fn runtime() -> Runtime {
    let endpoint = std::env::var("LONGSHORE_TEST_RUNTIME").expect("LONGSHORE_TEST_RUNTIME is the endpoint");
    Runtime::new(CriClient::connect(&endpoint, Timeouts::default()).await.unwrap())
}

fn image() -> String {
    std::env::var("LONGSHORE_TEST_IMAGE").expect("LONGSHORE_TEST_IMAGE is a busybox image the runtime has")
}

/// A pod of one test. Whatever an earlier run left under its name is removed first.
struct Pod {
    runtime: Runtime,
    spec: SandboxSpec,
    sandbox: SandboxId,
}

impl Pod {
    async fn new(name: &str, change: impl FnOnce(&mut SandboxSpec)) -> Self {
        let runtime = runtime().await;
        let mut spec = specs::sandbox_spec(name, 0);
        spec.log_directory = format!("/var/log/pods/default_{name}_{}", spec.uid);
        change(&mut spec);
        remove_all(&runtime, &spec.uid).await;
        let sandbox = runtime.sandboxes.run_sandbox(&spec).await.unwrap();
        Self { runtime, spec, sandbox }
    }

    async fn create(&self, name: &str, attempt: u32, script: &str) -> Result<ContainerId, CriError> {
        let mut spec = specs::container_spec(&self.spec.key.name, name, attempt);
        spec.image_ref = self.runtime.images.image_status(&image()).await?.unwrap().image_ref;
        spec.user_image = image();
        spec.command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        spec.annotations.insert("io.kubernetes.container.hash".to_owned(), "1a2b".to_owned());
        self.runtime.containers.create_container(&self.sandbox, &spec, &self.spec).await
    }

    async fn start(&self, name: &str, script: &str) -> ContainerId {
        let id = self.create(name, 0, script).await.unwrap();
        self.runtime.containers.start_container(&id).await.unwrap();
        id
    }

    async fn status(&self, id: &ContainerId) -> ObservedContainer {
        self.runtime.containers.container_status(id, &self.sandbox).await.unwrap()
    }

    async fn observed(&self) -> Option<ObservedPod> {
        self.runtime.observer().observe_pod(&self.spec.uid, Timestamp::now()).await.unwrap()
    }

    async fn exit(&self, id: &ContainerId) -> (i32, String) {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            match self.status(id).await.state {
                ContainerState::Exited { exit_code, reason, .. } => return (exit_code, reason),
                state => assert!(Instant::now() < until, "still {state:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn remove(self) {
        remove_all(&self.runtime, &self.spec.uid).await;
        assert_eq!(self.observed().await, None);
    }
}

async fn remove_all(runtime: &Runtime, uid: &PodUid) {
    let filter = SandboxFilter { pod: Some(uid.clone()), ..Default::default() };
    for sandbox in runtime.sandboxes.list_sandboxes(&filter).await.unwrap().items {
        runtime.sandboxes.stop_sandbox(&sandbox.id).await.unwrap();
        runtime.sandboxes.remove_sandbox(&sandbox.id).await.unwrap();
    }
}

fn kind<T>(result: Result<T, CriError>) -> ErrorKind {
    match result {
        Ok(_) => panic!("it should have failed"),
        Err(error) => {
            println!("    {}", error.one_line());
            error.kind
        }
    }
}

#[tokio::test]
#[ignore = "needs a real runtime: LONGSHORE_TEST_RUNTIME, LONGSHORE_TEST_IMAGE"]
async fn the_runtime_tells_who_it_is() {
    let runtime = runtime().await;
    let version = runtime.info.version().await.unwrap();
    println!("    {} {} CRI {}", version.name, version.version, version.api_version);
    let status = runtime.info.status().await.unwrap();
    assert!(status.runtime_ready() && status.network_ready(), "{status:?}");
    println!(
        "    cgroup driver {:?}, handlers {:?}",
        runtime.info.cgroup_driver().await.unwrap(),
        status.handlers
    );
}

#[tokio::test]
#[ignore = "needs a real runtime: LONGSHORE_TEST_RUNTIME, LONGSHORE_TEST_IMAGE"]
async fn images_are_found_and_failed_pulls_classified() {
    let runtime = runtime().await;
    let present = runtime.images.image_status(&image()).await.unwrap().unwrap();
    assert!(present.image_ref.starts_with("sha256:") && present.size_bytes > 0, "{present:?}");
    let listing = runtime.images.list_images().await.unwrap();
    assert!(listing.rejected.is_empty(), "{:?}", listing.rejected);
    assert!(listing.items.iter().any(|stored| stored.tags.contains(&image())), "{:?}", listing.items);
    assert_eq!(runtime.images.image_status("longshore.test/absent:1").await.unwrap(), None);
    let usage = runtime.images.image_fs_info().await.unwrap();
    assert!(usage.images[0].used_bytes.is_some(), "{usage:?}");

    let pull = async |image| runtime.images.pull_image(ImagePull { image, auth: None, sandbox: None }).await;
    assert_eq!(kind(pull("Not A Name").await), ErrorKind::ImagePull(PullFailure::InvalidName));
    let nowhere = pull("localhost:1/absent:1").await;
    assert_eq!(kind(nowhere), ErrorKind::ImagePull(PullFailure::RegistryUnavailable));
    runtime.images.remove_image("longshore.test/absent:1").await.unwrap();
}

#[tokio::test]
#[ignore = "needs a real runtime: LONGSHORE_TEST_RUNTIME, LONGSHORE_TEST_IMAGE"]
async fn a_pod_lives_and_is_seen() {
    let pod = Pod::new("cri-life", |_| {}).await;
    let id = pod.start("app", "echo out; sleep 1000").await;
    let seen = pod.observed().await.unwrap();
    assert_eq!((seen.key.clone(), seen.sandboxes.len(), seen.containers.len()), (pod.spec.key.clone(), 1, 1));
    let sandbox = &seen.sandboxes[0];
    assert_eq!((&sandbox.id, sandbox.state, sandbox.ips.len()), (&pod.sandbox, SandboxState::Ready, 1));
    assert!(!sandbox.host_network && sandbox.labels == pod.spec.labels);
    let container = &seen.containers[0];
    assert!(container.is_running(), "{container:?}");
    assert_eq!((&container.id, container.image.as_str()), (&id, image().as_str()));
    assert!(!container.image_ref.is_empty());
    assert_eq!(container.annotations["io.kubernetes.container.hash"], "1a2b");
    assert_eq!(container.log_path, format!("{}/app/0.log", pod.spec.log_directory));
    let age = Timestamp::now().duration_since(container.created_at);
    assert!((0..60).contains(&age.as_secs()), "{age:?}");

    let all = pod.runtime.observer().list_all(Timestamp::now()).await.unwrap();
    assert_eq!(all.pods[&pod.spec.uid].containers.len(), 1);
    assert!(all.rejected.is_empty(), "{:?}", all.rejected);
    let digests = pod.runtime.observer().digests().await.unwrap();
    assert_eq!(digests[&pod.spec.uid].containers.len(), 1);
    pod.remove().await;
}

#[tokio::test]
#[ignore = "needs a real runtime: LONGSHORE_TEST_RUNTIME, LONGSHORE_TEST_IMAGE"]
async fn exit_codes_and_reasons_are_read() {
    let pod = Pod::new("cri-exit", |_| {}).await;
    let good = pod.start("good", "exit 0").await;
    assert_eq!(pod.exit(&good).await, (0, "Completed".to_owned()));
    let bad = pod.start("bad", "exit 3").await;
    assert_eq!(pod.exit(&bad).await, (3, "Error".to_owned()));
    let deaf = pod.start("deaf", "trap '' TERM; while :; do sleep 0.1; done").await;
    let begun = Instant::now();
    pod.runtime.containers.stop_container(&deaf, Duration::from_secs(2)).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(pod.exit(&deaf).await.0, 137);
    let polite = pod.start("polite", "trap 'exit 5' TERM; while :; do sleep 0.1; done").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    pod.runtime.containers.stop_container(&polite, Duration::from_secs(30)).await.unwrap();
    assert_eq!(pod.exit(&polite).await.0, 5);
    pod.remove().await;
}

#[tokio::test]
#[ignore = "needs a real runtime: LONGSHORE_TEST_RUNTIME, LONGSHORE_TEST_IMAGE"]
async fn it_refuses_what_the_fake_refuses() {
    let pod = Pod::new("cri-refuse", |_| {}).await;
    let id = pod.start("app", "sleep 1000").await;
    assert_eq!(kind(pod.runtime.sandboxes.run_sandbox(&pod.spec).await), ErrorKind::AlreadyExists);
    assert_eq!(kind(pod.create("app", 0, "true").await), ErrorKind::AlreadyExists);
    assert_eq!(kind(pod.runtime.containers.start_container(&id).await), ErrorKind::Other);
    let mut absent = specs::container_spec(&pod.spec.key.name, "absent", 0);
    absent.image_ref = "longshore.test/absent:1".to_owned();
    let created = pod.runtime.containers.create_container(&pod.sandbox, &absent, &pod.spec).await;
    assert_eq!(kind(created), ErrorKind::NotFound);
    let nobody = ContainerId::from("0123456789abcdef");
    assert_eq!(kind(pod.runtime.containers.start_container(&nobody).await), ErrorKind::NotFound);
    assert_eq!(
        kind(pod.runtime.containers.container_status(&nobody, &pod.sandbox).await),
        ErrorKind::NotFound
    );
    pod.runtime.containers.stop_container(&nobody, Duration::from_secs(1)).await.unwrap();
    pod.runtime.containers.remove_container(&nobody).await.unwrap();
    pod.runtime.sandboxes.remove_sandbox(&SandboxId::from("0123456789abcdef")).await.unwrap();

    pod.runtime.sandboxes.stop_sandbox(&pod.sandbox).await.unwrap();
    assert_eq!(pod.exit(&id).await.0, 137, "stopping the sandbox kills what is in it");
    let seen = pod.observed().await.unwrap();
    assert_eq!((seen.sandboxes[0].state, seen.sandboxes[0].ips.len()), (SandboxState::NotReady, 0));
    assert_eq!(kind(pod.create("late", 0, "true").await), ErrorKind::NotFound);
    assert_eq!(kind(pod.runtime.upkeep.reopen_log(&id).await), ErrorKind::Other);
    pod.remove().await;
}

#[tokio::test]
#[ignore = "needs a real runtime: LONGSHORE_TEST_RUNTIME, LONGSHORE_TEST_IMAGE"]
async fn removing_a_running_container_is_by_force() {
    let pod = Pod::new("cri-force", |_| {}).await;
    let id = pod.start("app", "sleep 1000").await;
    pod.runtime.containers.remove_container(&id).await.unwrap();
    pod.runtime.containers.remove_container(&id).await.unwrap();
    assert_eq!(pod.observed().await.unwrap().containers.len(), 0);
    pod.remove().await;
}

#[tokio::test]
#[ignore = "needs a real runtime: LONGSHORE_TEST_RUNTIME, LONGSHORE_TEST_IMAGE"]
async fn a_command_that_is_not_there_is_a_start_error() {
    let pod = Pod::new("cri-start", |_| {}).await;
    let mut spec = specs::container_spec(&pod.spec.key.name, "app", 0);
    spec.image_ref = image();
    spec.command = vec!["/no/such/file".to_owned()];
    let id = pod.runtime.containers.create_container(&pod.sandbox, &spec, &pod.spec).await.unwrap();
    assert_eq!(kind(pod.runtime.containers.start_container(&id).await), ErrorKind::Other);
    let (code, reason) = pod.exit(&id).await;
    assert!(reason == "StartError" && code == 128, "{code} {reason}");
    pod.remove().await;
}

#[tokio::test]
#[ignore = "needs a real runtime: LONGSHORE_TEST_RUNTIME, LONGSHORE_TEST_IMAGE"]
async fn commands_run_and_streams_are_prepared() {
    let pod = Pod::new("cri-exec", |_| {}).await;
    let id = pod.start("app", "sleep 1000").await;
    let streams = &pod.runtime.streams;
    let shell = |script: &str| ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let seen = streams.exec_sync(&id, &shell("echo out; echo err >&2; exit 4"), None).await.unwrap();
    assert_eq!((seen.exit_code, &*seen.stdout, &*seen.stderr), (4, &b"out\n"[..], &b"err\n"[..]));
    let begun = Instant::now();
    let late = streams.exec_sync(&id, &shell("sleep 60"), Some(Duration::from_secs(1))).await;
    assert_eq!(kind(late), ErrorKind::DeadlineExceeded);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let io = StreamIo { stdout: true, ..Default::default() };
    for url in [
        streams.exec_url(&id, &shell("true"), io).await.unwrap(),
        streams.attach_url(&id, io).await.unwrap(),
        streams.port_forward_url(&pod.sandbox, &[80]).await.unwrap(),
    ] {
        assert!(url.starts_with("http://"), "{url}");
    }
    pod.runtime.upkeep.reopen_log(&id).await.unwrap();
    let filter = ContainerFilter { pod: Some(pod.spec.uid.clone()), ..Default::default() };
    let usage = pod.runtime.upkeep.container_stats(&filter).await.unwrap();
    println!("    usage {usage:?}");
    assert!(usage.rejected.is_empty());
    let more = LinuxResources { cpu_shares: Some(100), ..Default::default() };
    // A runtime without cgroups takes the values and changes nothing, or says why it cannot.
    println!(
        "    update {:?}",
        pod.runtime.upkeep.update_resources(&id, &more).await.map_err(|e| e.one_line())
    );
    pod.remove().await;
}

#[tokio::test]
#[ignore = "needs a real runtime: LONGSHORE_TEST_RUNTIME, LONGSHORE_TEST_IMAGE"]
async fn host_network_has_no_addresses() {
    let host = |spec: &mut SandboxSpec| {
        spec.security.namespaces.network = NamespaceMode::Node;
        spec.hostname = String::new();
    };
    let pod = Pod::new("cri-host", host).await;
    let seen = pod.observed().await.unwrap();
    assert_eq!((seen.sandboxes[0].host_network, seen.sandboxes[0].ips.len()), (true, 0));
    pod.remove().await;
}

#[tokio::test]
#[ignore = "needs a real runtime: LONGSHORE_TEST_RUNTIME, LONGSHORE_TEST_IMAGE"]
async fn events_come_with_the_pod() {
    let mut events = runtime().await.events.subscribe();
    let pod = tokio::spawn(async {
        // The subscription stands some time after its first poll; the runtime does not say when.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let pod = Pod::new("cri-events", |_| {}).await;
        let id = pod.start("app", "exit 6").await;
        pod.exit(&id).await;
        (pod, id)
    });
    let mut heard = Vec::new();
    let stopped = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            match events.next().await.expect("the stream goes on") {
                Ok(event) if event.pod == Some(PodUid::from("uid-cri-events")) => heard.push(event),
                Ok(_) => {}
                Err(error) => panic!("{}", error.one_line()),
            }
            let last = heard.last();
            if last.is_some_and(|event| event.kind == EventKind::Stopped) {
                return;
            }
        }
    });
    stopped.await.expect("a container that ends is told");
    let (pod, id) = pod.await.unwrap();
    for event in &heard {
        println!(
            "    {:?} {} containers {:?}",
            event.kind,
            event.subject,
            event.containers.as_ref().map(Vec::len)
        );
    }
    let last = heard.last().unwrap();
    assert_eq!((last.subject.as_str(), last.key.clone()), (id.as_str(), Some(pod.spec.key.clone())));
    let container = &last.containers.as_ref().unwrap()[0];
    assert!(matches!(container.state, ContainerState::Exited { exit_code: 6, .. }), "{container:?}");
    pod.remove().await;
}
