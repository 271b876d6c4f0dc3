//! An in-process container runtime with scripted containers and faults, for tests and benches.
//!
//! It keeps state and refuses what containerd refuses; every wait is tokio's, so that paused clocks work.
//! [`FakeRuntime::runtime`] gives the same handles the real client gives: the very same client code over
//! the very same messages, only without a socket. [`FakeCriServer`] serves the same fake on a real socket.

mod busy;
mod faults;
mod in_process;
mod script;
mod server;
mod service;
pub mod specs;
mod state;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

pub use faults::{Effect, Fault, When};
pub(crate) use in_process::InProcess;
pub use script::{ExecScript, Exit, OnStop, PullError, PullScript, Run};
pub use server::FakeCriServer;

use crate::Runtime;
use crate::api::v1;
use crate::client::{CriClient, Timeouts};
use crate::counters::{CallCounters, Operation};
use crate::runtime_info::CgroupDriver;
use busy::Busy;
use faults::Faults;
use state::{Change, Phase, State};

/// Events a subscriber may lag behind; containerd drops what is beyond its own bound too.
const EVENT_BUFFER: usize = 1024;

/// How a fake runtime is set up.
#[derive(Clone, Debug)]
pub struct FakeOptions {
    /// Serves GetContainerEvents.
    pub events: bool,
    /// `None`: RuntimeConfig is unimplemented, as in containerd 1.7.
    pub cgroup_driver: Option<CgroupDriver>,
    /// What Version answers.
    pub api_version: String,
    /// Writes the output of containers into their log files, as the runtime does.
    pub write_logs: bool,
    /// Images without a script can be pulled.
    pub pull_unknown: bool,
    /// Of the random faults.
    pub seed: u64,
    /// The runtime's time when it is made; it runs on with tokio's clock.
    pub starts_at: Timestamp,
}

impl Default for FakeOptions {
    fn default() -> Self {
        Self {
            events: true,
            cgroup_driver: Some(CgroupDriver::Cgroupfs),
            api_version: "v1".to_owned(),
            write_logs: false,
            pull_unknown: true,
            seed: 0,
            starts_at: Timestamp::constant(1_767_225_600, 0),
        }
    }
}

/// A container runtime in this process. Clones are the same runtime. Make it inside a tokio runtime.
#[derive(Clone)]
pub struct FakeRuntime {
    inner: Arc<Inner>,
}

impl fmt::Debug for FakeRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeRuntime")
    }
}

impl Default for FakeRuntime {
    fn default() -> Self {
        Self::new(FakeOptions::default())
    }
}

struct Inner {
    options: FakeOptions,
    state: Mutex<State>,
    settings: Mutex<Settings>,
    faults: Mutex<Faults>,
    counters: CallCounters,
    busy: Busy,
    events: broadcast::Sender<v1::ContainerEventResponse>,
    /// Counts changes of state, for those who wait for one.
    changed: watch::Sender<u64>,
    down: watch::Sender<bool>,
    /// Counts how often the event streams were cut.
    cut: watch::Sender<u64>,
    /// Events still to come that nobody hears.
    swallowed: AtomicU64,
    made: Instant,
    last: AtomicI64,
}

/// What a test may change while the runtime runs.
#[derive(Debug, Default)]
struct Settings {
    costs: HashMap<Operation, Duration>,
    execs: HashMap<String, ExecScript>,
    pulls: HashMap<String, PullScript>,
    /// By container name: nanoseconds of CPU time, bytes of working set.
    usage: HashMap<String, (u64, u64)>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakeRuntime {
    pub fn new(options: FakeOptions) -> Self {
        let faults = Mutex::new(Faults::new(options.seed));
        let inner = Inner {
            options,
            state: Mutex::default(),
            settings: Mutex::default(),
            faults,
            counters: CallCounters::default(),
            busy: Busy::default(),
            events: broadcast::Sender::new(EVENT_BUFFER),
            changed: watch::Sender::new(0),
            down: watch::Sender::new(false),
            cut: watch::Sender::new(0),
            swallowed: AtomicU64::new(0),
            made: Instant::now(),
            last: AtomicI64::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    /// A client of this runtime without a socket, with the usual deadlines.
    pub fn client(&self) -> CriClient {
        self.client_with(Timeouts::default())
    }

    pub fn client_with(&self, timeouts: Timeouts) -> CriClient {
        CriClient::in_process(InProcess::new(self.clone()), timeouts, Arc::default())
    }

    /// All handles, as the agent takes them.
    pub fn runtime(&self) -> Runtime {
        Runtime::new(self.client())
    }

    // ---- scripts ----

    /// What the instances of a container do, one after the other; the last is repeated. `container` is a
    /// container's name, or `namespace/pod/container`, which wins.
    pub fn script(&self, container: &str, runs: Vec<Run>) {
        locked(&self.inner.state).scripts.insert(container.to_owned(), runs);
    }

    /// What commands in containers of this name give from now on.
    pub fn script_exec(&self, container: &str, script: ExecScript) {
        locked(&self.inner.settings).execs.insert(container.to_owned(), script);
    }

    /// What pulling this image does from now on.
    pub fn script_pull(&self, image: &str, script: PullScript) {
        locked(&self.inner.settings).pulls.insert(image.to_owned(), script);
    }

    /// Puts an image into the store without a pull; its id.
    pub fn add_image(&self, name: &str) -> String {
        locked(&self.inner.state).add_image(name)
    }

    /// Usage that containers of this name tell: nanoseconds of CPU time, bytes of working set.
    pub fn set_usage(&self, container: &str, cpu_nanoseconds: u64, working_set: u64) {
        locked(&self.inner.settings).usage.insert(container.to_owned(), (cpu_nanoseconds, working_set));
    }

    /// How long each call of `operation` takes on top of what it waits for.
    pub fn set_cost(&self, operation: Operation, cost: Duration) {
        locked(&self.inner.settings).costs.insert(operation, cost);
    }

    /// The same cost for every call.
    pub fn set_cost_of_all(&self, cost: Duration) {
        let mut settings = locked(&self.inner.settings);
        settings.costs.extend(Operation::ALL.iter().map(|operation| (*operation, cost)));
    }

    // ---- faults ----

    pub fn add_fault(&self, fault: Fault) {
        locked(&self.inner.faults).add(fault);
    }

    /// So many of a hundred calls fail, half of them after they were carried out.
    pub fn add_random_faults(&self, percent: u8) {
        Fault::random(percent).into_iter().for_each(|fault| self.add_fault(fault));
    }

    pub fn clear_faults(&self) {
        locked(&self.inner.faults).clear();
    }

    /// The runtime's daemon is stopped: calls are refused, those in flight and the event streams break.
    /// Containers live on.
    pub fn go_down(&self) {
        self.inner.down.send_replace(true);
    }

    pub fn come_back(&self) {
        self.inner.down.send_replace(false);
    }

    /// Down now, back after `duration`.
    pub fn down_for(&self, duration: Duration) {
        self.go_down();
        let inner = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            tokio::time::sleep(duration).await;
            if let Some(inner) = inner.upgrade() {
                inner.down.send_replace(false);
            }
        });
    }

    /// While set, no sandbox gets a network and the condition NetworkReady is false, with this text.
    pub fn break_network(&self, why: Option<&str>) {
        locked(&self.inner.state).network_error = why.map(str::to_owned);
    }

    /// Breaks every event stream that is open; a new one can be had at once. What happens between is
    /// not told.
    pub fn break_events(&self) {
        self.inner.cut.send_modify(|count| *count += 1);
    }

    /// The next `count` events reach nobody: containerd before 2.0 hands them to subscribers that have gone.
    pub fn swallow_events(&self, count: u64) {
        self.inner.swallowed.store(count, Ordering::Relaxed);
    }

    /// The runtime has lost every sandbox of this pod and its containers, without a word; how many
    /// sandboxes there were.
    pub fn lose_pod(&self, pod: &str) -> usize {
        let lost = locked(&self.inner.state).lose_pod(pod);
        self.inner.changed.send_modify(|count| *count += 1);
        lost
    }

    // ---- what happens to containers from outside ----

    /// Ends the running container with this id; `false` where there is none.
    pub fn kill_id(&self, id: &str, code: i32) -> bool {
        self.inner.finish(id, code, "")
    }

    /// Ends every running container of this name (`code`, reason by code); how many there were.
    pub fn kill(&self, container: &str, code: i32) -> usize {
        let ids = self.running_ids(container);
        ids.iter().filter(|id| self.inner.finish(id, code, "")).count()
    }

    /// The kernel kills every running container of this name for its memory.
    pub fn oom_kill(&self, container: &str) -> usize {
        self.running_ids(container).iter().filter(|id| self.inner.finish(id, 137, "OOMKilled")).count()
    }

    /// The sandbox process of every sandbox of this pod dies: the sandbox is not ready and all in it is dead.
    pub fn kill_sandboxes(&self, pod: &str) -> usize {
        let now = self.inner.now();
        let mut state = locked(&self.inner.state);
        let of_pod = |name: &str, config: &v1::PodSandboxConfig| {
            config.metadata.as_ref().is_some_and(|m| m.name == name)
        };
        let ids: Vec<String> = state
            .sandboxes
            .iter()
            .filter(|(_, sandbox)| sandbox.ready && of_pod(pod, &sandbox.config))
            .map(|(id, _)| id.clone())
            .collect();
        let changes = ids.iter().flat_map(|id| state.stop_sandbox(id, now)).collect();
        self.inner.tell(state, changes);
        ids.len()
    }

    /// The node was rebooted: nothing runs, nothing was said, sandboxes are left over not ready.
    pub fn reboot(&self) {
        let now = self.inner.now();
        locked(&self.inner.state).reboot(now);
        self.inner.changed.send_modify(|count| *count += 1);
    }

    // ---- what a test looks at ----

    /// The runtime's time.
    pub fn now(&self) -> Timestamp {
        Timestamp::from_nanosecond(i128::from(self.inner.now())).unwrap_or(Timestamp::MAX)
    }

    /// Calls of this operation that came in, whatever became of them.
    pub fn calls(&self, operation: Operation) -> u64 {
        self.inner.counters.of(operation).calls
    }

    /// All calls that came in.
    pub fn counters(&self) -> &CallCounters {
        &self.inner.counters
    }

    /// How long at least one call was under way, all such times together; a call that is now is not in.
    pub fn busy(&self) -> Duration {
        self.inner.busy.total()
    }

    /// Names of the containers that were started, in order, repeats included.
    pub fn starts(&self) -> Vec<String> {
        locked(&self.inner.state).starts.clone()
    }

    /// Names of the containers that run now, sorted.
    pub fn running(&self) -> Vec<String> {
        let state = locked(&self.inner.state);
        let mut names: Vec<String> = state
            .containers
            .values()
            .filter(|container| matches!(container.phase, Phase::Running { .. }))
            .filter_map(|container| Some(container.config.metadata.as_ref()?.name.clone()))
            .collect();
        names.sort();
        names
    }

    /// Ready sandboxes and running containers: the runtime's time of their start, by id.
    pub fn tasks(&self) -> BTreeMap<String, i64> {
        let state = locked(&self.inner.state);
        let ready = state.sandboxes.iter().filter(|(_, it)| it.ready);
        let sandboxes = ready.map(|(id, sandbox)| (id.clone(), sandbox.created_at));
        let containers = state.containers.iter().filter_map(|(id, container)| match container.phase {
            Phase::Running { started_at } => Some((id.clone(), started_at)),
            _ => None,
        });
        sandboxes.chain(containers).collect()
    }

    /// Sandboxes and containers that exist, in whatever state.
    pub fn counts(&self) -> (usize, usize) {
        let state = locked(&self.inner.state);
        (state.sandboxes.len(), state.containers.len())
    }

    /// What containers of this name were last created with.
    pub fn last_config(&self, container: &str) -> Option<v1::ContainerConfig> {
        let state = locked(&self.inner.state);
        let named =
            |config: &v1::ContainerConfig| config.metadata.as_ref().is_some_and(|m| m.name == container);
        let last = state.containers.values().filter(|it| named(&it.config)).max_by_key(|it| it.created_at)?;
        Some(last.config.clone())
    }

    fn running_ids(&self, name: &str) -> Vec<String> {
        let state = locked(&self.inner.state);
        let named = |config: &v1::ContainerConfig| config.metadata.as_ref().is_some_and(|m| m.name == name);
        state
            .containers
            .iter()
            .filter(|(_, it)| matches!(it.phase, Phase::Running { .. }) && named(&it.config))
            .map(|(id, _)| id.clone())
            .collect()
    }
}

impl Inner {
    /// Nanoseconds since the epoch, growing with every look, so that no two objects have one time.
    fn now(&self) -> i64 {
        let elapsed = i64::try_from(self.made.elapsed().as_nanos()).unwrap_or(i64::MAX);
        let start = i64::try_from(self.options.starts_at.as_nanosecond()).unwrap_or(0);
        let now = start.saturating_add(elapsed);
        let last = self.last.fetch_max(now, Ordering::Relaxed);
        if last >= now { self.last.fetch_add(1, Ordering::Relaxed) + 1 } else { now }
    }

    /// Tells of changes that were made to `state`. Events are put together under the same lock, so that
    /// they come in the order things happened.
    fn tell(&self, state: MutexGuard<'_, State>, changes: Vec<Change>) {
        for change in &changes {
            let less = |left: u64| left.checked_sub(1);
            if self.swallowed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok() {
                continue;
            }
            // Without subscribers nobody hears it, as with containerd.
            let _ = self.events.send(state.event(change, self.now()));
        }
        drop(state);
        if !changes.is_empty() {
            self.changed.send_modify(|count| *count += 1);
        }
    }

    /// Ends a running container; `false` where it does not run.
    fn finish(&self, id: &str, code: i32, reason: &str) -> bool {
        let now = self.now();
        let mut state = locked(&self.state);
        let changes: Vec<Change> = state.finish(id, code, reason, now).into_iter().collect();
        let ended = !changes.is_empty();
        self.tell(state, changes);
        ended
    }

    fn is_running(&self, id: &str) -> bool {
        locked(&self.state).running(id).is_ok()
    }

    /// Until the container does not run.
    async fn ended(&self, id: &str) {
        let mut changed = self.changed.subscribe();
        while self.is_running(id) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Until the runtime goes down; at once where it is.
async fn gone_down(down: &mut watch::Receiver<bool>) {
    // An error would mean that the runtime itself is gone, and with it every call.
    let _ = down.wait_for(|down| *down).await;
}

/// The process of a container goes on whether or not somebody waits for it.
fn finish_later(inner: Weak<Inner>, id: String, exit: Exit) {
    tokio::spawn(async move {
        tokio::time::sleep(exit.after).await;
        if let Some(inner) = inner.upgrade() {
            inner.finish(&id, exit.code, &exit.reason);
        }
    });
}
