//! The whole node half against the fake runtime: manifests in a folder, a paused clock, faults,
//! and the daemon killed anywhere. What a container is and what time costs comes from the fake.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use clap::Parser;
use k8s_openapi::api::core::v1::PodStatus;
use longshore_core::ids::PodKey;
use longshore_core::image::gc::ImageDisk;
use longshore_core::wire::PodView;
use longshore_cri::Operation;
use longshore_cri::fake::{Effect, FakeOptions, FakeRuntime, Fault, PullScript, Run, When};
use longshore_kernel::cgroup::FakeCgroups;

use super::*;
use crate::config::{self, AgentArgs};
use crate::probes::exec::ContainerExec;

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    args: AgentArgs,
}

/// Mounts that only remember, as a test may not mount; they may refuse, before or after the act.
#[derive(Debug, Default)]
struct NoMounts(Mutex<std::collections::BTreeSet<PathBuf>>, Mutex<Option<Refusal>>);

/// A disk of 100 GiB with so many free; it may refuse to be asked.
#[derive(Debug, Default)]
struct FakeDisk(Mutex<Option<u64>>);

impl DiskSpace for FakeDisk {
    fn space(&self, path: &Path) -> Result<ImageDisk, String> {
        let free = self.0.lock().unwrap().ok_or(format!("{}: no such file", path.display()))?;
        Ok(ImageDisk { total_bytes: 100 << 30, available_bytes: free << 30 })
    }
}

/// How an operation on the node's own kernel goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// Nothing was done.
    Before,
    /// It was done, and whoever asked never heard.
    After,
}

impl Mounts for NoMounts {
    fn is_mount_point(&self, path: &Path) -> std::io::Result<bool> {
        Ok(self.0.lock().unwrap().contains(path))
    }
    fn mount_tmpfs(&self, target: &Path, _size: Option<u64>) -> std::io::Result<()> {
        let refusal = *self.1.lock().unwrap();
        if refusal == Some(Refusal::Before) {
            return Err(std::io::ErrorKind::PermissionDenied.into());
        }
        self.0.lock().unwrap().insert(target.to_path_buf());
        if refusal.is_some() { Err(std::io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    }
    fn bind(&self, _: std::os::fd::BorrowedFd<'_>, target: &Path, _: bool) -> std::io::Result<()> {
        self.0.lock().unwrap().insert(target.to_path_buf());
        Ok(())
    }
    fn unmount(&self, target: &Path) -> std::io::Result<()> {
        if self.1.lock().unwrap().is_some() {
            return Err(std::io::ErrorKind::ResourceBusy.into());
        }
        self.0.lock().unwrap().remove(target);
        Ok(())
    }
}

/// A node: its disk and its runtime, which outlive daemons.
struct TestNode {
    disk: tempfile::TempDir,
    fake: FakeRuntime,
    clock: Clock,
    mounts: Arc<NoMounts>,
    cgroups: Arc<FakeCgroups>,
    images_disk: Arc<FakeDisk>,
    settings: Settings,
}

/// One run of the daemon on it.
struct Daemon {
    half: NodeHalf,
    stop: CancellationToken,
}

impl TestNode {
    fn new() -> Self {
        let disk = tempfile::tempdir().unwrap();
        let at = |name: &str| disk.path().join(name).display().to_string();
        std::fs::create_dir(disk.path().join("manifests")).unwrap();
        let line = ["agent", "--standalone", "--manifests", &at("manifests"), "--root-dir", &at("root")];
        let mut settings = config::load(&Cli::parse_from(line).args).unwrap();
        settings.pods.pod_logs_dir = disk.path().join("logs");
        settings.roles.proxy = false;
        settings.cgroups.per_qos = false;
        settings.node.name = Some("node".into());
        // The manifests' source knows only the system's clock; all begin at the same time.
        let options =
            FakeOptions { starts_at: jiff::Timestamp::now(), write_logs: true, ..FakeOptions::default() };
        let clock = Clock::following_tokio(options.starts_at);
        let fake = FakeRuntime::new(options);
        Self {
            fake,
            clock,
            mounts: Arc::default(),
            cgroups: Arc::default(),
            images_disk: Arc::default(),
            disk,
            settings,
        }
    }

    fn boot(&self) -> Daemon {
        let runtime = self.fake.runtime();
        let exec: Arc<dyn ContainerExec> = Arc::new(RuntimeExec(runtime.streams.clone()));
        let world = World {
            clock: self.clock,
            mounts: self.mounts.clone(),
            cgroups: match self.settings.cgroups.per_qos {
                true => Arc::new(cgroups::CgroupTree {
                    cgroupfs: self.cgroups.clone(),
                    systemd: self.cgroups.clone(),
                }),
                false => Arc::new(cgroups::NoCgroups),
            },
            hooks: Arc::new(HookRunner::new(exec.clone())),
            attempt: Arc::new(RealAttempt::new(exec)),
            disk: self.images_disk.clone(),
            runtime,
            facts: facts(),
            registries: NodeCredentials::default(),
            control_plane: None,
            certificates: Certificates::default(),
        };
        let state = make_folders(&self.settings.pods.root_dir).unwrap();
        let stop = CancellationToken::new();
        let half = NodeHalf::new(&self.settings, world, None, &state, stop.clone()).unwrap();
        let (starting, settings, ended) = (half.clone(), self.settings.clone(), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = ended.cancelled() => {}
                result = starting.start(&settings) => {
                    result.unwrap();
                    starting.keep_running(&ended).await;
                }
            }
        });
        Daemon { half, stop }
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.disk.path().join("manifests").join(file);
        let fresh = self.disk.path().join("fresh");
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(fresh, path).unwrap();
    }

    fn remove(&self, file: &str) {
        std::fs::remove_file(self.disk.path().join("manifests").join(file)).unwrap();
    }

    /// Waits, in the tests' own time, until something holds; how long it took.
    async fn until(&self, what: &str, limit: u64, holds: impl Fn() -> bool) -> Duration {
        let begin = tokio::time::Instant::now();
        while !holds() {
            assert!(begin.elapsed() < Duration::from_secs(limit), "not so within {limit} s: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        begin.elapsed()
    }

    /// What a daemon that was killed before its first record leaves no trace of: the records, and the
    /// manifest that somebody removed meanwhile.
    fn forget_records(&self, file: &str) {
        self.remove(file);
        for record in std::fs::read_dir(self.settings.pods.root_dir.join("longshore/pods")).unwrap() {
            std::fs::remove_file(record.unwrap().path()).unwrap();
        }
    }

    /// Cgroups of pods, of all classes.
    fn pod_cgroups(&self) -> Vec<String> {
        let mut paths = self.cgroups.paths();
        paths.retain(|path| path.rsplit('/').next().is_some_and(|name| name.starts_with("pod")));
        paths
    }

    fn pods_on_disk(&self) -> usize {
        std::fs::read_dir(self.settings.pods.root_dir.join("pods")).unwrap().count()
    }
}

impl Daemon {
    fn pod(&self, name: &str) -> Option<Arc<PodView>> {
        self.half.pods.view().get(&PodKey::new("default", name))
    }

    fn status(&self, name: &str) -> PodStatus {
        self.pod(name).map(|view| (*view.status).clone()).unwrap_or_default()
    }

    fn is_ready(&self, name: &str) -> bool {
        crate::pods::is_ready(&self.status(name))
    }

    fn phase(&self, name: &str) -> String {
        self.status(name).phase.unwrap_or_default()
    }

    /// kill -9: nothing is written or told any more.
    async fn kill(self) {
        self.stop.cancel();
        // Blocking work under way ends on its own, as a system call of a killed process would.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn facts() -> Facts {
    Facts {
        hostname: "node".into(),
        ips: vec!["10.0.0.1".parse().unwrap()],
        cpus: 2,
        memory_bytes: 1 << 32,
        swap_bytes: 0,
        dns: Default::default(),
        hugepage_sizes: Vec::new(),
        kernel_version: (6, 12),
    }
}

fn manifest(name: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 5\n\
         {more}  containers:\n  - {{name: {name}, image: \"example.org/app:1\"}}\n"
    )
}

#[tokio::test(start_paused = true)]
async fn a_pod_starts_with_few_calls_and_leaves_nothing() {
    let node = TestNode::new();
    let daemon = node.boot();
    node.until("ready for pods", 5, || daemon.half.node.now().network.is_ok()).await;
    let lists = |node: &TestNode| node.fake.calls(Operation::ListContainers);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let lists_before = lists(&node);
    node.write("web.yaml", &manifest("web", ""));
    node.until("Ready", 10, || daemon.is_ready("web")).await;
    assert_eq!(daemon.phase("web"), "Running");
    assert!(daemon.status("web").pod_ip.is_some());
    // What a start costs the runtime is asserted, so that it does not grow unseen.
    let calls = [
        Operation::RunPodSandbox,
        Operation::PodSandboxStatus,
        Operation::CreateContainer,
        Operation::StartContainer,
        Operation::PullImage,
    ];
    assert_eq!(calls.map(|operation| node.fake.calls(operation)), [1; 5]);
    assert_eq!(lists(&node), lists_before, "a start needs no listing");
    assert!(node.fake.calls(Operation::ImageStatus) <= 2);

    node.remove("web.yaml");
    let took = node.until("gone", 30, || daemon.pod("web").is_none()).await;
    assert!(took < Duration::from_secs(5), "a container that ends at once waits for no grace: {took:?}");
    assert_eq!((node.fake.counts(), node.pods_on_disk()), ((0, 0), 0));
    assert!(!node.disk.path().join("logs/default_web").exists());
}

#[tokio::test(start_paused = true)]
async fn a_critical_pod_ends_the_least_of_others() {
    let node = TestNode::new();
    let daemon = node.boot();
    let asking = |name: &str, priority: u32, cpu: &str| {
        let resources = format!("app:1\", resources: {{requests: {{cpu: {cpu}}}}}");
        manifest(name, &format!("  priority: {priority}\n")).replace("app:1\"", &resources)
    };
    node.write("small.yaml", &asking("small", 0, "500m"));
    node.write("large.yaml", &asking("large", 0, "1"));
    node.until("Ready", 10, || daemon.is_ready("small") && daemon.is_ready("large")).await;
    node.write("other.yaml", &asking("other", 0, "1"));
    node.until("refused", 10, || daemon.status("other").reason.as_deref() == Some("OutOfcpu")).await;
    node.write("vital.yaml", &asking("vital", 2_000_000_000, "1"));
    node.until("Ready", 10, || daemon.is_ready("vital")).await;
    node.until("made room", 30, || daemon.phase("small") == "Failed").await;
    let ended = daemon.status("small");
    assert_eq!(ended.reason.as_deref(), Some("Preempting"));
    assert_eq!(ended.message.as_deref(), Some("ended to make room for the critical pod default/vital"));
    assert!(daemon.is_ready("large"), "no more than needed");
    // It stays so for the next daemon, and takes no room.
    tokio::time::sleep(Duration::from_secs(1)).await;
    daemon.kill().await;
    let daemon = node.boot();
    node.until("still told", 20, || daemon.status("small").reason.as_deref() == Some("Preempting")).await;
    node.until("adopted", 20, || daemon.is_ready("vital") && daemon.is_ready("large")).await;
    assert_eq!(node.fake.starts().len(), 3, "nothing was started again");
}

#[tokio::test(start_paused = true)]
async fn a_private_image_is_pulled_with_the_pods_secret() {
    let node = TestNode::new();
    node.fake.script_pull("example.org/app:1", PullScript::wants("robot", "hush"));
    let daemon = node.boot();
    node.write("web.yaml", &manifest("web", "  imagePullSecrets: [{name: none}, {name: key}]\n"));
    let waiting = || daemon.pod("web").and_then(|view| view.waiting.first().cloned());
    node.until("refused", 60, || waiting().is_some_and(|first| first.reason == "ErrImagePull")).await;
    let message = waiting().unwrap().message;
    assert!(message.contains("pull secret default/none is not there"), "{message}");
    node.write(
        "key.yaml",
        "apiVersion: v1\nkind: Secret\nmetadata: {name: key}\ntype: kubernetes.io/dockerconfigjson\n\
         stringData:\n  .dockerconfigjson: |\n    {\"auths\": {\n      \"https://example.org/v1/\": {\"auth\": \"cm9ib3Q6aHVzaA==\"},\n      \"example.org/app\": {\"username\": \"robot\", \"password\": \"old\"}}}\n",
    );
    // The more exact place is tried first, and refused.
    node.until("Ready", 60, || daemon.is_ready("web")).await;
    assert!(!format!("{:?}", daemon.pod("web")).contains("hush"));
}

#[tokio::test(start_paused = true)]
async fn a_crash_is_answered_within_a_second_and_then_with_patience() {
    let node = TestNode::new();
    let daemon = node.boot();
    node.write("web.yaml", &manifest("web", ""));
    node.until("Ready", 10, || daemon.is_ready("web")).await;
    let mut pauses = Vec::new();
    for starts in 2..=4 {
        assert_eq!(node.fake.kill("web", 1), 1);
        pauses.push(node.until("started again", 60, || node.fake.starts().len() == starts).await.as_secs());
        node.until("runs", 5, || daemon.is_ready("web")).await;
    }
    assert_eq!(pauses[0], 0, "the first restart is at once");
    assert!((9..=11).contains(&pauses[1]) && (19..=21).contains(&pauses[2]), "{pauses:?}");
    let restarts = daemon.status("web").container_statuses.unwrap()[0].restart_count;
    assert_eq!(restarts, 3);
}

#[tokio::test(start_paused = true)]
async fn a_stubborn_container_gets_its_grace_and_no_more() {
    let node = TestNode::new();
    node.fake.script("web", vec![Run::forever().ignores_stop()]);
    let daemon = node.boot();
    node.write("web.yaml", &manifest("web", ""));
    node.until("Ready", 10, || daemon.is_ready("web")).await;
    node.remove("web.yaml");
    let took = node.until("gone", 60, || daemon.pod("web").is_none()).await;
    assert!((5..=8).contains(&took.as_secs()), "{took:?}");
    assert_eq!((node.fake.counts(), node.pods_on_disk()), ((0, 0), 0));
}

#[tokio::test(start_paused = true)]
async fn a_pod_waits_for_its_config_map_and_says_so() {
    let node = TestNode::new();
    let daemon = node.boot();
    let volumes = "  volumes: [{name: settings, configMap: {name: late}}]\n";
    node.write("web.yaml", &manifest("web", volumes));
    let waits =
        || daemon.pod("web").is_some_and(|pod| pod.waiting.iter().any(|w| w.message.contains("late")));
    node.until("says what it waits for", 10, waits).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(node.fake.calls(Operation::StartContainer), 0);
    node.write("late.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: late}\ndata: {key: value}\n");
    let took = node.until("Ready", 30, || daemon.is_ready("web")).await;
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_is_away_for_a_minute_costs_no_pod() {
    let node = TestNode::new();
    let daemon = node.boot();
    node.write("web.yaml", &manifest("web", ""));
    node.until("Ready", 10, || daemon.is_ready("web")).await;
    node.fake.go_down();
    node.until("noticed", 10, || daemon.half.health.borrow().answers.is_err()).await;
    node.write("late.yaml", &manifest("late", ""));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(daemon.is_ready("web"), "nobody knows of anything wrong with it");
    let why = longshore_core::why::why_node(&crate::admin::NodeReads::node(&*daemon.half.reads().node));
    assert!(why.sentence.contains("does not answer, down since"), "{}", why.sentence);
    node.fake.come_back();
    let took = node.until("the new pod is Ready", 30, || daemon.is_ready("late")).await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(node.fake.starts(), ["web", "late"]);
    assert!(daemon.is_ready("web"));
}

#[tokio::test(start_paused = true)]
async fn with_one_call_in_ten_failing_all_pods_still_come_and_go() {
    let node = TestNode::new();
    let daemon = node.boot();
    node.until("ready for pods", 5, || daemon.half.node.now().network.is_ok()).await;
    node.fake.add_random_faults(10);
    let names: Vec<String> = (0..10).map(|n| format!("pod-{n}")).collect();
    for name in &names {
        node.write(&format!("{name}.yaml"), &manifest(name, ""));
    }
    node.until("all Ready", 600, || names.iter().all(|name| daemon.is_ready(name))).await;
    for name in &names {
        node.remove(&format!("{name}.yaml"));
    }
    node.until("all gone", 900, || names.iter().all(|name| daemon.pod(name).is_none())).await;
    assert_eq!((node.fake.counts(), node.pods_on_disk()), ((0, 0), 0));
}

#[tokio::test(start_paused = true)]
async fn a_restart_of_the_daemon_is_seen_by_no_container() {
    let node = TestNode::new();
    let daemon = node.boot();
    let names: Vec<String> = (0..5).map(|n| format!("pod-{n}")).collect();
    for name in &names {
        node.write(&format!("{name}.yaml"), &manifest(name, ""));
    }
    node.until("all Ready", 60, || names.iter().all(|name| daemon.is_ready(name))).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let ids = |daemon: &Daemon| -> Vec<_> {
        names.iter().map(|name| daemon.pod(name).map(|pod| pod.observed.containers[0].id.clone())).collect()
    };
    let before = ids(&daemon);
    daemon.kill().await;
    let changing = [
        Operation::RunPodSandbox,
        Operation::StopPodSandbox,
        Operation::CreateContainer,
        Operation::StartContainer,
        Operation::StopContainer,
        Operation::RemoveContainer,
        Operation::PullImage,
    ];
    let calls = changing.map(|operation| node.fake.calls(operation));
    let daemon = node.boot();
    node.until("all there", 10, || names.iter().all(|name| daemon.pod(name).is_some())).await;
    assert!(names.iter().all(|name| daemon.is_ready(name)), "never seen as anything but Ready");
    tokio::time::sleep(Duration::from_secs(180)).await;
    assert_eq!(changing.map(|operation| node.fake.calls(operation)), calls);
    assert_eq!(ids(&daemon), before);
}

#[tokio::test(start_paused = true)]
async fn an_exit_is_seen_where_a_former_daemons_subscription_takes_the_event() {
    let node = TestNode::new();
    let daemon = node.boot();
    node.write("web.yaml", &manifest("web", ""));
    node.until("Ready", 10, || daemon.is_ready("web")).await;
    daemon.kill().await;
    let daemon = node.boot();
    node.until("adopted", 10, || daemon.is_ready("web")).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    node.fake.swallow_events(1);
    assert_eq!(node.fake.kill("web", 1), 1);
    node.until("started again", 3, || node.fake.starts().len() == 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_kill_at_any_moment_of_a_start_or_an_end_is_mended_by_the_next_daemon() {
    // Each call takes 20 ms, so every step is under way at one of these moments.
    for moment in (0..200).step_by(10) {
        let node = TestNode::new();
        node.fake.set_cost_of_all(Duration::from_millis(20));
        let daemon = node.boot();
        node.until("ready for pods", 5, || daemon.half.node.now().network.is_ok()).await;
        node.write("web.yaml", &manifest("web", "  volumes: [{name: v, emptyDir: {medium: Memory}}]\n"));
        node.until("taken on", 5, || daemon.pod("web").is_some()).await;
        tokio::time::sleep(Duration::from_millis(moment)).await;
        daemon.kill().await;

        let daemon = node.boot();
        node.until(&format!("Ready, killed at {moment} ms"), 60, || daemon.is_ready("web")).await;
        assert_eq!(node.fake.running(), ["web"], "killed at {moment} ms");
        node.remove("web.yaml");
        node.until("asked to end", 5, || {
            daemon.pod("web").is_none_or(|pod| {
                !matches!(pod.lifecycle, longshore_core::pod::lifecycle::Lifecycle::Syncing)
            })
        })
        .await;
        tokio::time::sleep(Duration::from_millis(moment)).await;
        daemon.kill().await;

        let daemon = node.boot();
        let gone =
            || node.fake.counts() == (0, 0) && node.pods_on_disk() == 0 && daemon.half.pods.workers() == 0;
        node.until(&format!("gone, killed {moment} ms into the end"), 60, gone).await;
        assert!(node.mounts.0.lock().unwrap().is_empty(), "mounts left, killed at {moment} ms");
        daemon.kill().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_finished_pod_is_remembered_and_not_run_again() {
    let node = TestNode::new();
    node.fake.script("job", vec![Run::exits(Duration::from_secs(1), 0)]);
    let daemon = node.boot();
    node.write("job.yaml", &manifest("job", "  restartPolicy: Never\n"));
    node.until("Succeeded", 30, || daemon.phase("job") == "Succeeded").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(node.pods_on_disk(), 0, "its folder goes with its end");
    let before = daemon.status("job").container_statuses.unwrap();
    daemon.kill().await;
    let daemon = node.boot();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(daemon.phase("job"), "Succeeded");
    let after = daemon.status("job").container_statuses.unwrap();
    assert_eq!(after, before, "exit code, message, restart count and id stay what they were");
    assert!(after[0].container_id.as_ref().is_some_and(|id| id.starts_with("fake://")), "{after:?}");
    assert_eq!(node.fake.starts(), ["job"]);
    node.remove("job.yaml");
    node.until("gone", 30, || daemon.pod("job").is_none() && node.fake.counts() == (0, 0)).await;
}

#[tokio::test(start_paused = true)]
async fn an_edit_replaces_the_pod_and_back_again() {
    let node = TestNode::new();
    let daemon = node.boot();
    let first = manifest("web", "");
    let second = manifest("web", "  hostname: other\n");
    node.write("web.yaml", &first);
    node.until("Ready", 10, || daemon.is_ready("web")).await;
    let uid = daemon.pod("web").unwrap().uid.clone();
    node.write("web.yaml", &second);
    let replaced = || daemon.is_ready("web") && daemon.pod("web").is_some_and(|pod| pod.uid != uid);
    node.until("replaced", 30, replaced).await;
    // Back to the first text before the second life is up: the same uid comes to life again.
    node.write("web.yaml", &first);
    let back = || daemon.is_ready("web") && daemon.pod("web").is_some_and(|pod| pod.uid == uid);
    node.until("back", 30, back).await;
    assert_eq!(node.fake.running().len(), 1);
    assert_eq!(node.pods_on_disk(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pod_the_node_has_no_room_for_is_refused_and_shown_until_it_goes() {
    let node = TestNode::new();
    let with_port = |name: &str| {
        manifest(name, "").replace("app:1\"}", "app:1\", ports: [{containerPort: 80, hostPort: 8080}]}")
    };
    let daemon = node.boot();
    node.write("a.yaml", &with_port("first"));
    node.until("first Ready", 10, || daemon.is_ready("first")).await;
    node.write("b.yaml", &with_port("second"));
    node.until("refused", 10, || daemon.phase("second") == "Failed").await;
    let status = daemon.status("second");
    assert_eq!(status.reason.as_deref(), Some("NodePorts"));
    let message = status.message.unwrap();
    assert!(message.contains("default/first") && message.contains("8080"), "{message}");
    assert_eq!(node.fake.calls(Operation::RunPodSandbox), 1);

    daemon.kill().await;
    let daemon = node.boot();
    node.until("first adopted", 10, || daemon.is_ready("first")).await;
    node.until("still refused", 10, || daemon.phase("second") == "Failed").await;
    node.write("b.yaml", &with_port("second").replace("8080", "8081"));
    node.until("mended", 20, || daemon.is_ready("second")).await;
    node.remove("b.yaml");
    node.until("gone", 30, || daemon.pod("second").is_none()).await;
    assert!(daemon.is_ready("first"));
}

/// Where a start is cut off: what the node's kernel or the runtime does not do or does not answer.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Cgroup,
    Mount(Refusal),
    Sandbox,
    Container,
}

#[tokio::test(start_paused = true)]
async fn a_kill_before_the_first_record_leaves_nothing_after_the_next_start() {
    let cuts =
        [Cut::Cgroup, Cut::Mount(Refusal::Before), Cut::Mount(Refusal::After), Cut::Sandbox, Cut::Container];
    for cut in cuts {
        let mut node = TestNode::new();
        node.settings.cgroups.per_qos = true;
        let hang = |operation, effect| Fault { operation: Some(operation), when: When::Always, effect };
        match cut {
            Cut::Cgroup => node.cgroups.faults.script("pod", nix::errno::Errno::EIO, u32::MAX),
            Cut::Mount(refusal) => *node.mounts.1.lock().unwrap() = Some(refusal),
            Cut::Sandbox => node.fake.add_fault(hang(Operation::RunPodSandbox, Effect::Hang)),
            Cut::Container => node.fake.add_fault(hang(Operation::CreateContainer, Effect::HangAfter)),
        }
        let daemon = node.boot();
        node.until("ready for pods", 5, || daemon.half.node.now().network.is_ok()).await;
        let burstable = manifest("web", "  volumes: [{name: v, emptyDir: {medium: Memory}}]\n")
            .replace("app:1\"", "app:1\", resources: {requests: {cpu: 10m}}");
        node.write("web.yaml", &burstable);
        node.until("taken on", 5, || daemon.pod("web").is_some()).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(node.pods_on_disk(), 1, "{cut:?}: the folder comes first");
        daemon.kill().await;
        node.forget_records("web.yaml");
        node.fake.clear_faults();
        node.cgroups.faults.clear();
        *node.mounts.1.lock().unwrap() = None;
        let left = (node.pod_cgroups().len(), node.mounts.0.lock().unwrap().len(), node.fake.counts());
        let expected = match cut {
            Cut::Cgroup => (0, 1, (0, 0)),
            Cut::Mount(Refusal::Before) => (1, 0, (1, 0)),
            Cut::Mount(Refusal::After) => (1, 1, (1, 0)),
            Cut::Sandbox => (1, 1, (0, 0)),
            Cut::Container => (1, 1, (1, 1)),
        };
        assert_eq!(left, expected, "{cut:?}: what the kill left");

        let daemon = node.boot();
        let gone = || {
            node.pods_on_disk() == 0
                && node.pod_cgroups().is_empty()
                && node.mounts.0.lock().unwrap().is_empty()
                && node.fake.counts() == (0, 0)
                && daemon.half.pods.workers() == 0
        };
        node.until(&format!("{cut:?}: nothing left"), 120, gone).await;
        let journal = std::fs::read_to_string(node.settings.pods.root_dir.join("longshore/journal")).unwrap();
        assert!(journal.lines().last().is_some_and(|line| line.starts_with("{\"nothing\"")), "{journal}");
        daemon.kill().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_left_over_stays_until_every_source_was_heard() {
    let node = TestNode::new();
    let pods = node.settings.pods.root_dir.join("pods");
    let left = pods.join("aaaaaaaa-2222-8333-8444-555555555555/volumes/kubernetes.io~empty-dir/data");
    std::fs::create_dir_all(&left).unwrap();
    std::fs::create_dir_all(pods.join("lost+found")).unwrap();
    let (folder, away) = (node.disk.path().join("manifests"), node.disk.path().join("away"));
    std::fs::rename(&folder, &away).unwrap();
    let daemon = node.boot();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(left.exists(), "the folder of manifests may yet name it");
    std::fs::rename(&away, &folder).unwrap();
    node.until("gone", 60, || !pods.join("aaaaaaaa-2222-8333-8444-555555555555").exists()).await;
    assert!(pods.join("lost+found").exists(), "no pod's folder");
    node.until("no worker left", 10, || daemon.half.pods.workers() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_mount_that_does_not_come_off_keeps_what_is_below_it_and_links_are_not_followed() {
    let node = TestNode::new();
    let uid = "aaaaaaaa-2222-8333-8444-555555555555";
    let pod = node.settings.pods.root_dir.join("pods").join(uid);
    let mount = pod.join("volumes/kubernetes.io~empty-dir/ram");
    std::fs::create_dir_all(&mount).unwrap();
    std::fs::write(mount.join("precious"), "x").unwrap();
    let outside = node.disk.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("precious"), "x").unwrap();
    std::os::unix::fs::symlink(&outside, pod.join("volumes/kubernetes.io~empty-dir/link")).unwrap();
    node.mounts.0.lock().unwrap().insert(mount.clone());
    *node.mounts.1.lock().unwrap() = Some(Refusal::Before);
    let daemon = node.boot();
    let views = || daemon.half.pods.view().list();
    let said =
        || views().iter().any(|view| view.failures.iter().any(|(_, f)| f.error.message.contains("unmount")));
    node.until("says what is in the way", 30, said).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(mount.join("precious").exists() && node.pods_on_disk() == 1);
    *node.mounts.1.lock().unwrap() = None;
    node.until("gone", 300, || !pod.exists() && daemon.half.pods.workers() == 0).await;
    assert!(outside.join("precious").exists());
}

#[tokio::test(start_paused = true)]
async fn an_adopted_pod_keeps_its_place_before_its_manifest_is_read() {
    // The newcomer's file is read first, the adopted pod's record is or is not there.
    for recorded in [true, false] {
        let node = TestNode::new();
        let with_port = |name: &str| {
            manifest(name, "").replace("app:1\"}", "app:1\", ports: [{containerPort: 80, hostPort: 8080}]}")
        };
        let daemon = node.boot();
        node.write("z.yaml", &with_port("first"));
        node.until("first Ready", 10, || daemon.is_ready("first")).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        daemon.kill().await;
        if !recorded {
            node.forget_records("z.yaml");
            node.write("z.yaml", &with_port("first"));
        }
        node.write("a.yaml", &with_port("second"));
        let daemon = node.boot();
        node.until("refused", 20, || daemon.phase("second") == "Failed").await;
        assert_eq!(daemon.status("second").reason.as_deref(), Some("NodePorts"), "recorded: {recorded}");
        node.until("first adopted", 10, || daemon.is_ready("first")).await;
        assert_eq!(node.fake.starts(), ["first"]);
        daemon.kill().await;
    }
}

#[tokio::test(start_paused = true)]
async fn unused_images_go_when_the_disk_is_full_and_used_ones_stay() {
    let node = TestNode::new();
    node.fake.add_image("example.org/old:1");
    let daemon = node.boot();
    node.write("web.yaml", &manifest("web", ""));
    node.until("Ready", 10, || daemon.is_ready("web")).await;
    let images = || async {
        let view = daemon.half.collector.look().await.unwrap();
        let mut names: Vec<String> = view.plan.images.iter().map(|it| it.image.names[0].clone()).collect();
        names.sort();
        names
    };
    let both = ["example.org/app:1", "example.org/old:1"];
    // A disk that cannot be asked, and one with room: nothing goes.
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(images().await, both);
    *node.images_disk.0.lock().unwrap() = Some(50);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(images().await, both);
    *node.images_disk.0.lock().unwrap() = Some(5);
    node.fake.add_fault(Fault::nth(Operation::RemoveImage, 1, tonic::Code::Internal, "busy"));
    tokio::time::sleep(Duration::from_secs(700)).await;
    assert_eq!(images().await, ["example.org/app:1"], "tried again after it was refused");
    assert!(daemon.is_ready("web"));
}

#[tokio::test(start_paused = true)]
async fn a_volume_over_its_limit_ends_its_pod_and_no_other() {
    let node = TestNode::new();
    let daemon = node.boot();
    let limited = "  volumes: [{name: scratch, emptyDir: {sizeLimit: 1Mi}}]\n";
    node.write("a.yaml", &manifest("small", limited));
    node.write("b.yaml", &manifest("large", limited));
    node.until("both Ready", 20, || daemon.is_ready("small") && daemon.is_ready("large")).await;
    let volume = |name: &str| {
        let uid = daemon.pod(name).unwrap().uid.clone();
        let below = format!("pods/{uid}/volumes/kubernetes.io~empty-dir/scratch/file");
        node.settings.pods.root_dir.join(below)
    };
    std::fs::write(volume("small"), vec![1; 100 << 10]).unwrap();
    std::fs::write(volume("large"), vec![1; 2 << 20]).unwrap();
    node.until("evicted", 120, || daemon.phase("large") == "Failed").await;
    let status = daemon.status("large");
    assert_eq!(status.reason.as_deref(), Some("Evicted"));
    assert!(
        status.message.as_ref().is_some_and(|text| text.contains("scratch") && text.contains("1Mi")),
        "{status:?}"
    );
    assert_eq!(node.fake.running(), ["small"]);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(daemon.is_ready("small") && daemon.phase("large") == "Failed");
    daemon.kill().await;
    let daemon = node.boot();
    node.until("still told", 20, || daemon.status("large").reason.as_deref() == Some("Evicted")).await;
    assert_eq!(node.fake.running(), ["small"]);
}

#[tokio::test(start_paused = true)]
async fn a_started_container_has_one_line_and_a_link_to_its_log() {
    let node = TestNode::new();
    let daemon = node.boot();
    node.write("web.yaml", &manifest("web", ""));
    node.until("Ready", 10, || daemon.is_ready("web")).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    let view = daemon.pod("web").unwrap();
    let lines = daemon.half.pods.view().timeline(&view.uid).unwrap();
    let runs: Vec<_> = lines.iter().filter(|line| line.what == "container web runs").collect();
    assert_eq!(runs.len(), 1, "{lines:?}");
    let id = &view.observed.containers[0].id;
    let link = node.disk.path().join(format!("containers/web_default_web-{id}.log"));
    let target = std::fs::read_link(&link).unwrap();
    assert_eq!(target, Path::new(&view.observed.containers[0].log_path));
    node.remove("web.yaml");
    node.until("gone", 30, || daemon.pod("web").is_none()).await;
    assert!(std::fs::read_link(&link).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_config_map_outlives_a_restart_with_a_broken_file() {
    let node = TestNode::new();
    let daemon = node.boot();
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: page}\ndata: {key: value}\n";
    node.write("a.yaml", map);
    node.write("web.yaml", &manifest("web", "  volumes: [{name: page, configMap: {name: page}}]\n"));
    node.until("Ready", 10, || daemon.is_ready("web")).await;
    daemon.kill().await;
    node.write("a.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: page\n");
    let daemon = node.boot();
    node.until("adopted", 10, || daemon.is_ready("web")).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let waiting = &daemon.pod("web").unwrap().waiting;
    assert!(waiting.is_empty(), "{waiting:?}");
    assert_eq!(daemon.half.objects.all().config_maps.len(), 1);
    daemon.kill().await;
    node.remove("a.yaml");
    let daemon = node.boot();
    node.until("adopted", 10, || daemon.is_ready("web")).await;
    node.until("the map is gone with its file", 10, || daemon.half.objects.all().config_maps.is_empty())
        .await;
}
