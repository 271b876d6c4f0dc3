//! The workers' mechanics against a planner of a few lines and an executor that does as told:
//! coalescing, one at a time, panics, lives in sequence. What a real plan does is tested with the
//! whole agent.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use longshore_core::pod::desired::{Deletion, EndCause, PodSource};
use longshore_core::pod::observed::{ObservedSandbox, SandboxState};
use longshore_core::pod::snapshot::{CgroupDriver, CgroupSettings, DnsSettings};
use longshore_core::pod::step::{Step, StepError, StepKind, StepOutcome, StepResult};
use longshore_core::wire::PodView;

use super::*;

/// Wants the folders made, and removed again when the pod is to end.
fn plan(snapshot: &PodSnapshot<'_>) -> Plan {
    if snapshot.desired.key.name.starts_with("panic") && snapshot.local.done.is_empty() {
        let panics = PANICS.fetch_add(1, Ordering::Relaxed);
        assert!(panics >= 2, "the planner fails on this pod");
    }
    if &*snapshot.desired.key.name == "counted" {
        PLANS.fetch_add(1, Ordering::Relaxed);
    }
    let done = |kind| snapshot.local.done.iter().any(|key| key.kind == kind);
    let retry_at = snapshot.local.failures.values().map(|f| f.retry_at).max().filter(|at| *at > snapshot.now);
    let mut plan = Plan {
        lifecycle: snapshot.lifecycle.clone(),
        steps: Vec::new(),
        cancel: Vec::new(),
        waiting: Vec::new(),
        wake_at: retry_at,
        probes: Vec::new(),
    };
    let ending = snapshot.desired.deletion.is_some();
    match snapshot.lifecycle {
        Lifecycle::Queued { .. } | Lifecycle::Released { .. } => {}
        _ if retry_at.is_some() => {}
        _ if ending && done(StepKind::RemovePodDirs) => {
            plan.lifecycle = Lifecycle::Released { cause: EndCause::Deleted, at: snapshot.now };
        }
        _ if ending => plan.steps.push(Step::RemovePodDirs),
        _ if !done(StepKind::PreparePodDirs) => {
            plan.steps.push(Step::PreparePodDirs { containers: Vec::new() })
        }
        _ => {}
    }
    plan
}

static PANICS: AtomicU32 = AtomicU32::new(0);
/// Plans made for pods named so.
static PLANS: AtomicU32 = AtomicU32::new(0);

/// Takes 100 ms for a step, and counts what is under way per pod.
#[derive(Debug, Default)]
struct Executor {
    under_way: Mutex<BTreeMap<PodUid, u32>>,
    executed: Mutex<Vec<(PodUid, StepKind)>>,
    fail: AtomicU32,
    panic: AtomicU32,
}

#[async_trait]
impl Execute for Executor {
    async fn execute(&self, job: StepJob) -> StepReport {
        let uid = job.desired.uid.clone();
        let now = {
            let mut map = self.under_way.lock().unwrap();
            let count = map.entry(uid.clone()).or_default();
            *count += 1;
            *count
        };
        assert_eq!(now, 1, "{uid} is worked on twice at once");
        tokio::time::sleep(Duration::from_millis(100)).await;
        *self.under_way.lock().unwrap().get_mut(&uid).unwrap() -= 1;
        self.executed.lock().unwrap().push((uid, job.step.key().kind));
        let take = |counter: &AtomicU32| {
            counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok()
        };
        assert!(!take(&self.panic), "this step panics");
        if take(&self.fail) {
            let error = StepError { reason: "Failed".into(), message: "as told".into(), retryable: true };
            return StepOutcome::Failed(error).into();
        }
        StepOutcome::Done(StepResult::Done).into()
    }

    async fn read(&self, _uid: &PodUid) -> Option<ObservedPod> {
        None
    }

    async fn forget(&self, _desired: &DesiredPod, _node: &NodeContext) {}
}

#[derive(Debug)]
struct NoObjects(watch::Sender<u64>);

impl Objects for NoObjects {
    fn referenced(&self, _pod: &Pod) -> ReferencedObjects {
        ReferencedObjects::default()
    }
    fn changes(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }
}

#[derive(Debug)]
struct NoProbes;

impl Probing for NoProbes {
    fn want(&self, _pod: &DesiredPod, _probes: Vec<ProbeTarget>) {}
}

pub(crate) fn node_context() -> NodeContext {
    NodeContext {
        runtime_name: "containerd".to_owned(),
        max_pods: 3,
        allowed_unsafe_sysctls: Vec::new(),
        swap_bytes: 0,
        name: "node".into(),
        ips: vec!["10.0.0.1".parse().unwrap()],
        root_dir: "/nowhere".into(),
        pod_logs_dir: "/nowhere/logs".into(),
        cgroups: CgroupSettings {
            per_qos: false,
            driver: CgroupDriver::Cgroupfs,
            root: String::new(),
            cpu_cfs_quota: true,
            cpu_cfs_period_us: 100_000,
            pod_pids_limit: None,
            single_process_oom_kill: false,
            limited_swap: false,
        },
        dns: DnsSettings::default(),
        network: Ok(()),
        services_synced: true,
        service_env: Arc::default(),
        allocatable_cpu_millis: 2000,
        allocatable_memory_bytes: 1 << 32,
        capacity_memory_bytes: 1 << 32,
        max_restart_backoff: Duration::from_secs(300),
        seccomp_default: false,
        agent_started_at: Timestamp::UNIX_EPOCH,
        hugepage_sizes: Vec::new(),
        runtime_classes: None,
        placement: None,
    }
}

struct World {
    pods: Pods,
    executor: Arc<Executor>,
    metrics: PodMetrics,
    clock: Clock,
    _node: watch::Sender<Arc<NodeContext>>,
    _root: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let executor = Arc::new(Executor::default());
        let metrics = PodMetrics::default();
        let clock = Clock::following_tokio(Timestamp::from_second(1_800_000_000).unwrap());
        let (node_sender, node) = watch::channel(Arc::new(node_context()));
        let pods = Pods::new(Deps {
            clock,
            planner: Planner { plan, status: |_, _| PodStatus::default() },
            executor: executor.clone(),
            objects: Arc::new(NoObjects(watch::channel(0).0)),
            recorder: Arc::new(NoRecorder),
            probes: Arc::new(NoProbes),
            node,
            view: PodsView::default(),
            records: Records::new(root.path().to_path_buf()),
            journal: Arc::new(Journal::open(&root.path().join("journal")).unwrap()),
            metrics: metrics.clone(),
            stop: CancellationToken::new(),
        });
        Self { pods, executor, metrics, clock, _node: node_sender, _root: root }
    }

    fn pod(&self, name: &str, uid: &str) -> DesiredPod {
        let metadata = ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() };
        DesiredPod {
            key: PodKey::new("default", name),
            uid: uid.into(),
            pod: Arc::new(Pod { metadata, ..Pod::default() }),
            source: PodSource::Api,
            seen_at: self.clock.now(),
            deletion: None,
        }
    }

    fn ending(&self, name: &str, uid: &str) -> DesiredPod {
        let deletion =
            Deletion { requested_at: self.clock.now(), grace_seconds: 30, cause: EndCause::Deleted };
        DesiredPod { deletion: Some(deletion), ..self.pod(name, uid) }
    }

    fn executed(&self) -> Vec<(String, StepKind)> {
        let executed = self.executor.executed.lock().unwrap();
        executed.iter().map(|(uid, kind)| (uid.to_string(), *kind)).collect()
    }
}

async fn after(millis: u64) {
    tokio::time::sleep(Duration::from_millis(millis)).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_comes_and_goes_and_leaves_nothing() {
    let world = World::new();
    world.pods.desire(world.pod("web", "u1"));
    after(500).await;
    assert_eq!(world.executed(), [("u1".to_owned(), StepKind::PreparePodDirs)]);
    assert_eq!(world.pods.view().list().len(), 1);
    let timeline = world.pods.view().timeline(&"u1".into()).unwrap();
    let line = timeline.iter().find(|line| line.what == "prepare pod folders").unwrap();
    assert!((100..150).contains(&line.took_ms.unwrap()), "{line:?}");
    world.pods.desire(world.ending("web", "u1"));
    after(500).await;
    assert_eq!(world.pods.workers(), 0);
    assert!(world.pods.view().list().is_empty());
}

#[tokio::test(start_paused = true)]
async fn pods_taken_on_can_be_waited_for_until_they_are_shown() {
    let world = World::new();
    for uid in ["u1", "u2"] {
        world.pods.desire(world.pod(uid, uid));
    }
    assert!(world.pods.view().list().is_empty(), "their workers have not run");
    world.pods.all_shown(Duration::from_secs(2)).await;
    assert_eq!(world.pods.view().list().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_again_is_told_of_the_pods_published_since() {
    let world = World::new();
    let view = world.pods.view();
    let keys = |pods: Vec<Arc<PodView>>| -> Vec<String> {
        pods.iter().map(|pod| pod.key.name.to_string()).collect()
    };
    for uid in ["u1", "u2", "u3"] {
        world.pods.desire(world.pod(uid, uid));
    }
    after(500).await;
    let (all, seen) = view.published_since(0);
    assert_eq!(all.len(), 3);
    let (nothing, same) = view.published_since(seen);
    assert_eq!((nothing.len(), same), (0, seen));
    // What went is told by `departures`, and is no publication any more.
    world.pods.desire(world.ending("u1", "u1"));
    world.pods.desire(world.ending("u2", "u2"));
    after(50).await;
    let (ending, later) = view.published_since(seen);
    assert_eq!((keys(ending), later > seen), (vec!["u1".to_owned(), "u2".to_owned()], true));
    after(500).await;
    assert_eq!(keys(view.published_since(0).0), ["u3"]);
}

#[tokio::test(start_paused = true)]
async fn news_during_a_step_never_starts_it_twice() {
    let world = World::new();
    for _ in 0..20 {
        world.pods.desire(world.pod("web", "u1"));
        after(10).await;
    }
    after(500).await;
    assert_eq!(world.executed().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_says_nothing_new_makes_no_plan() {
    let world = World::new();
    world.pods.desire(world.pod("counted", "u1"));
    after(500).await;
    let event = |state| {
        let sandbox = ObservedSandbox {
            id: "s".into(),
            attempt: 0,
            state,
            created_at: Timestamp::UNIX_EPOCH,
            ips: Vec::new(),
            host_network: false,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        };
        Part { at: world.clock.now(), sandbox: Some(sandbox), containers: Vec::new(), removed: None }
    };
    let plans = PLANS.load(Ordering::Relaxed);
    for (what, part, more) in [
        ("news", event(SandboxState::Ready), 1),
        ("the same again", event(SandboxState::Ready), 0),
        ("a change", event(SandboxState::NotReady), 1),
        ("a late reading", event(SandboxState::Ready), 0),
        ("its end", Part { removed: Some("s".into()), sandbox: None, ..event(SandboxState::NotReady) }, 1),
        (
            "its end told twice",
            Part { removed: Some("s".into()), sandbox: None, ..event(SandboxState::NotReady) },
            0,
        ),
    ] {
        let before = PLANS.load(Ordering::Relaxed);
        world.pods.event(&"u1".into(), part);
        after(10).await;
        assert_eq!(PLANS.load(Ordering::Relaxed) - before, more, "{what}");
    }
    assert!(plans <= 3, "{plans} plans for a pod of one step");
}

#[tokio::test(start_paused = true)]
async fn the_next_life_of_a_name_waits_for_the_one_before() {
    let world = World::new();
    world.pods.desire(world.pod("web", "old"));
    after(500).await;
    world.pods.desire(world.pod("web", "new"));
    after(500).await;
    assert_eq!(world.executed().len(), 1, "the new life has to wait");
    let queued = world.pods.view().by_uid(&"new".into()).unwrap();
    assert_eq!(queued.lifecycle, Lifecycle::Queued { behind: "old".into() });
    assert_eq!(&*world.pods.view().get(&PodKey::new("default", "web")).unwrap().uid.to_string(), "old");
    world.pods.desire(world.ending("web", "old"));
    after(500).await;
    let kinds: Vec<_> = world.executed();
    assert_eq!(kinds[1], ("old".to_owned(), StepKind::RemovePodDirs));
    assert_eq!(kinds[2], ("new".to_owned(), StepKind::PreparePodDirs));
}

#[tokio::test(start_paused = true)]
async fn a_deletion_is_never_taken_back_and_its_grace_only_shrinks() {
    let old = Deletion { requested_at: Timestamp::UNIX_EPOCH, grace_seconds: 30, cause: EndCause::Deleted };
    let grace = |seconds| Some(Deletion { grace_seconds: seconds, cause: EndCause::Replaced, ..old.clone() });
    let cases = [(None, 30), (grace(60), 30), (grace(5), 5)];
    for (new, wanted) in cases {
        let result = fold::deletion(Some(&old), new.clone()).unwrap();
        assert_eq!((result.grace_seconds, &result.cause), (wanted, &EndCause::Deleted), "{new:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_or_panicking_step_is_tried_again_later() {
    let world = World::new();
    world.executor.fail.store(2, Ordering::Relaxed);
    world.executor.panic.store(1, Ordering::Relaxed);
    world.pods.desire(world.pod("web", "u1"));
    after(60_000).await;
    assert_eq!(world.executed().len(), 4, "one panic, two failures, one success");
    assert_eq!(world.metrics.step_panics.get(), 1);
    assert!(world.pods.view().by_uid(&"u1".into()).unwrap().failures.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_one_worker_is_survived_and_the_others_go_on() {
    let world = World::new();
    world.pods.desire(world.pod("panic", "u1"));
    world.pods.desire(world.pod("web", "u2"));
    after(500).await;
    assert_eq!(world.executed(), [("u2".to_owned(), StepKind::PreparePodDirs)]);
    after(10_000).await;
    assert_eq!(world.metrics.worker_panics.get(), 2);
    assert_eq!(world.executed().len(), 2, "the planner works again, and so does the pod");
}
