//! The daemon put together: plain constructors, one after the other. Nothing here decides; what a
//! part does is in its own folder.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use async_trait::async_trait;
use jiff::Timestamp;
use longshore_cluster::ApiClient;
use longshore_core::certificates::Wish;
use longshore_core::ids::ContainerId;
use longshore_core::pod::desired::DesiredPod;
use longshore_core::pod::step::Hook;
use longshore_core::pod::{plan, snapshot, status};
use longshore_cri::{CgroupDriver, CriClient, Runtime, Timeouts};
use longshore_kernel::mount::RealMounts;
use longshore_kernel::route::RealRoutes;
use sd_notify::NotifyState;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::admin::{self, AdminReads, AdminSocket, ImageReads, PeerPolicy, ServiceReads};
use crate::certificates::Certificates;
use crate::cgroups;
use crate::config::{AgentArgs, Settings};
use crate::dataplane::DataplaneHandle;
use crate::empty_dirs::EmptyDirs;
use crate::hooks::HookRunner;
use crate::image_gc::{DiskSpace, ImageCollector, RealDisk};
use crate::images::ImagePuller;
use crate::joined::{Clients, Handles, Joined, Upstream};
use crate::journal::Journal;
use crate::leftovers::Leftovers;
use crate::lock::InstanceLock;
use crate::logs::ContainerLogs;
use crate::metrics::PodMetrics;
use crate::node::{self, Facts, Node};
use crate::pods::execute::{Executor, Hooks, PodCgroups};
use crate::pods::follow::{Follower, Listening, RuntimeHealth};
use crate::pods::messages::ExitMessages;
use crate::pods::oom::OomKills;
use crate::pods::{
    Clock, Deps, Gate, KernelStalls, NoRecorder, Planner, PodRecord, Pods, PodsView, Recorder, Records,
    Stalls,
};
use crate::probes::Prober;
use crate::probes::attempt::{Attempt, RealAttempt};
use crate::probes::exec::RuntimeExec;
use crate::process;
use crate::proxy;
use crate::reads::{NodeViews, PodViews};
use crate::registry::NodeCredentials;
use crate::reload::{Live, Reload};
use crate::server;
use crate::services::{News, StandaloneServices};
use crate::sources::{Change, ManifestOptions, Manifests, ObjectStore};
use crate::sourcing::Sourcing;
use crate::supervisor;
use crate::text::error_chain;
use crate::volumes::{KernelMounts, Mounts, Volumes};

/// Starts, and ends, at once, at least and at most; what is sustained is learned between.
const AT_ONCE_AT_LEAST: usize = 2;
const AT_ONCE_AT_MOST: usize = 256;

/// Adopted pods show how they are within this, or are looked at as they come.
const SHOWN_WITHIN: std::time::Duration = std::time::Duration::from_secs(2);

/// A first certificate that is approved by itself is there within this.
const CERTIFICATE_WITHIN: std::time::Duration = std::time::Duration::from_secs(20);

/// The world the daemon works on; tests give fakes.
pub struct World {
    pub clock: Clock,
    pub runtime: Runtime,
    pub mounts: Arc<dyn Mounts>,
    pub cgroups: Arc<dyn PodCgroups>,
    pub hooks: Arc<dyn Hooks>,
    pub attempt: Arc<dyn Attempt>,
    pub disk: Arc<dyn DiskSpace>,
    pub facts: Facts,
    /// What the node has for image registries.
    pub registries: NodeCredentials,
    /// `None` while the node runs alone.
    pub control_plane: Option<Clients>,
    /// What keeps the node's certificates, where it joins one.
    pub certificates: Certificates,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("facts", &self.facts).finish_non_exhaustive()
    }
}

/// The node half of a daemon that runs. Dropping `stop`'s last clone does not end it; cancelling does.
#[derive(Clone, Debug)]
pub struct NodeHalf {
    pub pods: Pods,
    pub node: Node,
    pub objects: ObjectStore,
    pub sourcing: Arc<Sourcing>,
    pub records: Records,
    pub health: watch::Receiver<RuntimeHealth>,
    pub live: Live,
    pub collector: Arc<ImageCollector>,
    state: PathBuf,
    leftovers: Leftovers,
    joined: Option<Arc<Joined>>,
    certificates: Certificates,
    dataplane: Option<DataplaneHandle>,
    follower: Arc<Follower>,
    runtime: Runtime,
    prober: Prober,
    counted: PodMetrics,
    tasks: Tasks,
}

/// Tasks of the daemon: all end when it stops.
#[derive(Clone, Debug)]
struct Tasks {
    stop: CancellationToken,
}

impl Tasks {
    /// Services of a node without a control plane; gives where their sources tell of them.
    fn serve_alone(
        &self,
        dataplane: DataplaneHandle,
        node: &Node,
        pods: PodsView,
    ) -> mpsc::UnboundedSender<News> {
        let (sender, news) = mpsc::unbounded_channel();
        let services = StandaloneServices { dataplane, node: node.clone(), pods, news };
        self.spawn(services.run());
        sender
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = work => {}
            }
        });
    }
}

/// Runs the daemon until SIGTERM. Pods are left as they are.
///
/// # Errors
/// What makes starting pointless: another daemon on the same root, a root folder that cannot be
/// written, an endpoint that is none.
pub async fn run(args: &AgentArgs, settings: Settings) -> anyhow::Result<()> {
    if !settings.roles.node {
        return proxy::run(settings).await;
    }
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    process::apply(&settings.node);
    let stop = CancellationToken::new();
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    process::refuse_swap(&settings.node, &swaps).map_err(anyhow::Error::msg)?;
    let asked = Arc::new(Notify::new());
    let reload = asked.clone();
    supervisor::handle_signals(stop.clone(), move || reload.notify_one())?;
    tokio::spawn(supervisor::keep_watchdog_fed());
    let state = make_folders(&settings.pods.root_dir)?;
    let _lock = InstanceLock::take(&state.join("lock"))?;
    let routes = RealRoutes::open().context("open the routing table")?;
    let facts = Facts::read(&routes, settings.dns.resolv_conf.as_deref()).await?;
    let runtime = connect(&settings)?;
    let exec = Arc::new(RuntimeExec(runtime.streams.clone()));
    let control_plane = settings.join.as_ref().map(Clients::open).transpose()?;
    let name = node::context(&settings, &facts, None, Timestamp::now()).name;
    let certificates = match settings.join.as_ref().zip(control_plane.as_ref()) {
        Some((join, clients)) => Certificates::start(join, &name, &clients.node, Clock::System, &stop)?,
        None => Certificates::default(),
    };
    let world = World {
        clock: Clock::System,
        mounts: Arc::new(KernelMounts(Arc::new(RealMounts))),
        cgroups: cgroups::for_settings(&settings.cgroups)?,
        hooks: Arc::new(HookRunner::new(exec.clone())),
        attempt: Arc::new(RealAttempt::new(exec)),
        disk: Arc::new(RealDisk),
        registries: NodeCredentials::of_node(&settings)
            .with_tokens(control_plane.as_ref().map(|clients| clients.node.clone())),
        runtime,
        facts,
        control_plane,
        certificates,
    };
    let client = world.control_plane.as_ref().map(|clients| clients.node.clone());
    let dataplane = match settings.roles.proxy {
        true => Some(proxy::start(&settings, &world.facts, &stop).await?),
        false => None,
    };
    let mut half = NodeHalf::new(&settings, world, dataplane, &state, stop.clone())?;
    half.serve_api(&settings, client, &stop)?;
    let socket = AdminSocket::bind(&settings.admin.socket, PeerPolicy::default()).await?;
    let reads = half.reads();
    let reload = Reload { args: args.clone(), settings: settings.clone(), live: half.live.clone(), asked };
    half.tasks.spawn(reload.follow());
    let serving = tokio::spawn(admin::serve(socket, reads, stop.clone()));
    tokio::select! {
        () = stop.cancelled() => {}
        result = half.start(&settings) => {
            result?;
            supervisor::notify(&[NotifyState::Ready]);
            tracing::info!(pods = half.pods.workers(), "ready");
            half.keep_running(&stop).await;
        }
    }
    half.records.flush().await;
    serving.await.context("the admin socket's task")?;
    Ok(())
}

/// The root folder and the daemon's own below it.
fn make_folders(root: &Path) -> anyhow::Result<PathBuf> {
    let state = root.join("longshore");
    for folder in [root.to_path_buf(), root.join("pods"), state.clone(), state.join("pods")] {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(&folder)
            .with_context(|| format!("make folder {}", folder.display()))?;
    }
    Ok(state)
}

fn connect(settings: &Settings) -> anyhow::Result<Runtime> {
    let timeouts = Timeouts { unary: settings.runtime.request_timeout };
    let uri = |path: &Path| format!("unix://{}", path.display());
    let client = CriClient::new(&uri(&settings.runtime.endpoint), timeouts)?;
    let images = client.at(&uri(&settings.runtime.image_endpoint))?;
    Ok(Runtime::new(client).with_images(images))
}

#[async_trait]
impl Hooks for HookRunner {
    async fn run(
        &self,
        container: &ContainerId,
        hook: &Hook,
        timeout: std::time::Duration,
    ) -> Result<(), String> {
        self.run_hook(container, hook, timeout).await.map_err(|error| error_chain(&error))
    }
}

/// What follows the runtime's events and health; `up` is told when the runtime answers.
fn follower(
    pods: &Pods,
    runtime: &Runtime,
    up: watch::Sender<bool>,
    messages: ExitMessages,
    clock: Clock,
) -> Arc<Follower> {
    Arc::new(Follower {
        clock,
        pods: pods.clone(),
        observer: runtime.observer(),
        events: runtime.events.clone(),
        info: runtime.info.clone(),
        health: watch::Sender::new(not_asked(clock.now())),
        up,
        check: Notify::new(),
        audit: Notify::new(),
        listening: watch::Sender::new(Listening::Unproven),
        messages,
    })
}

impl NodeHalf {
    /// Everything constructed, nothing running yet. `state` is the daemon's own folder.
    pub fn new(
        settings: &Settings,
        world: World,
        dataplane: Option<DataplaneHandle>,
        state: &Path,
        stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        let tasks = Tasks { stop: stop.clone() };
        let clock = world.clock;
        let now = clock.now();
        let node = Node::new(node::context(settings, &world.facts, None, now));
        let live = Live::new(settings, node.clone(), world.facts.clone());
        let objects = ObjectStore::default();
        let records = Records::new(state.join("pods"));
        let journal = Arc::new(Journal::open(&state.join("journal"))?);
        let up = watch::Sender::new(false);
        let runtime = world.runtime.clone();
        let kills = OomKills::new(world.cgroups.clone(), node.subscribe());
        let messages = ExitMessages::new(settings.pods.root_dir.clone(), Some(kills));
        let at_first = usize::try_from(world.facts.cpus).unwrap_or_default().max(AT_ONCE_AT_LEAST);
        let stalls: Arc<dyn Stalls> = Arc::new(KernelStalls::default());
        let volumes = Volumes::new(settings.pods.root_dir.clone(), world.mounts);
        let upstream = upstream(settings, world.control_plane, clock, &node);
        let recorder =
            upstream.as_ref().map_or_else(|| Arc::new(NoRecorder) as Arc<dyn Recorder>, Upstream::recorder);
        let executor = Executor {
            clock,
            sandboxes: runtime.sandboxes.clone(),
            containers: runtime.containers.clone(),
            observer: runtime.observer(),
            images: ImagePuller::new(runtime.images.clone(), settings.images.max_parallel_pulls)
                .with_rate(live.pull_rate.clone())
                .with_credentials(world.registries),
            volumes: volumes.clone(),
            cgroups: world.cgroups.clone(),
            hooks: world.hooks,
            journal: journal.clone(),
            starts: Gate::new(AT_ONCE_AT_LEAST, at_first, AT_ONCE_AT_MOST, stalls.clone()),
            stops: Gate::new(AT_ONCE_AT_LEAST, at_first, AT_ONCE_AT_MOST, stalls),
            runtime_up: up.subscribe(),
            messages: messages.clone(),
            recorder: recorder.clone(),
        };
        let prober = Prober::new(settings.probes, world.attempt, clock);
        let counted = PodMetrics::default();
        let pods = Pods::new(Deps {
            clock,
            planner: Planner { plan: plan::plan, status: status::pod_status },
            executor: Arc::new(executor),
            objects: Arc::new(objects.clone()),
            probes: Arc::new(prober.clone()),
            recorder,
            node: node.subscribe(),
            view: PodsView::default(),
            records: records.clone(),
            journal: journal.clone(),
            metrics: counted.clone(),
            stop,
        });
        let verdicts = pods.clone();
        tasks.spawn(prober.clone().run(Arc::new(move |verdict| {
            verdicts.verdict(&verdict.pod, verdict.container, verdict.kind, verdict.result);
        })));
        let follower = follower(&pods, &runtime, up, messages, clock);
        let health_reader = follower.health.subscribe();
        let alone = dataplane.clone().filter(|_| upstream.is_none());
        let to_services = alone.map(|dataplane| tasks.serve_alone(dataplane, &node, pods.view()));
        let sourcing = Arc::new(Sourcing::new(pods.clone(), objects.clone(), to_services));
        if let Some(dataplane) = &dataplane {
            tasks.spawn(open_the_gate(node.clone(), dataplane.clone()));
        }
        tasks.spawn(cgroups::keep_qos_levels(world.cgroups, node.subscribe(), pods.view()));
        let leftovers = Leftovers { pods: pods.clone(), journal, volumes };
        let collector = look_after(settings, &tasks, &pods, &live, (&runtime, world.disk, clock));
        let mut half = Self {
            pods,
            node,
            objects,
            sourcing,
            records,
            health: health_reader,
            live,
            collector,
            state: state.to_path_buf(),
            leftovers,
            joined: None,
            certificates: world.certificates,
            dataplane,
            follower,
            runtime,
            prober,
            counted,
            tasks,
        };
        half.joined = upstream.zip(settings.join.as_ref()).map(|(upstream, join)| {
            Arc::new(Joined::new(upstream, settings, join, half.handles(world.facts)))
        });
        Ok(half)
    }

    /// What the joined half holds of this one.
    fn handles(&self, facts: Facts) -> Handles {
        Handles {
            clock: self.follower.clock,
            sourcing: self.sourcing.clone(),
            objects: self.objects.clone(),
            node: self.node.clone(),
            view: self.pods.view(),
            health: self.health.clone(),
            runtime: self.runtime.clone(),
            facts,
            dataplane: self.dataplane.clone(),
        }
    }

    /// Starts the kubelet's API, and what keeps its certificate where the control plane is to sign it.
    fn serve_api(
        &mut self,
        settings: &Settings,
        client: Option<ApiClient>,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let reviews = client.clone().map(|client| Arc::new(client) as Arc<dyn server::Reviews>);
        let parts = self.server_parts(settings, reviews);
        let shown = server::start(&settings.server, parts, stop).context("start the kubelet API")?;
        let signed = settings.join.as_ref().filter(|join| join.certificates.serving);
        if let (Some(join), Some(client), Some(_)) = (signed, client, settings.server.https) {
            let context = self.node.now();
            let names = [context.name.clone()];
            // Names and addresses are those of the start; they do not change while the daemon runs.
            let wish = Wish::serving(&context.name, names, context.ips.iter().copied());
            self.certificates.keep_serving(join, wish, (&client, shown), self.follower.clock, stop);
        }
        Ok(())
    }

    /// What the kubelet's API is made of.
    fn server_parts(&self, settings: &Settings, reviews: Option<Arc<dyn server::Reviews>>) -> server::Parts {
        let context = self.node.now();
        server::Parts {
            node: context.name.clone(),
            ips: context.ips.clone(),
            clock: self.follower.clock,
            pods: self.pods.view(),
            runtime: self.runtime.clone(),
            prober: self.prober.clone(),
            counted: self.counted.clone(),
            certificates: self.certificates.clone(),
            pod_logs: settings.pods.pod_logs_dir.clone(),
            root: settings.pods.root_dir.clone(),
            reviews,
        }
    }

    /// What the admin socket may read of this half.
    pub fn reads(&self) -> AdminReads {
        let context = self.node.now();
        let node = NodeViews {
            name: context.name.clone(),
            ips: context.ips.clone(),
            started_at: context.agent_started_at,
            health: self.health.clone(),
            sources: self.sourcing.clone(),
            dataplane: self.dataplane.clone(),
            certificates: self.certificates.clone(),
        };
        let pods = PodViews { pods: self.pods.view(), clock: self.follower.clock };
        let services = self.dataplane.clone().map(|dataplane| Arc::new(dataplane) as Arc<dyn ServiceReads>);
        let images = Some(self.collector.clone() as Arc<dyn ImageReads>);
        AdminReads { node: Arc::new(node), pods: Some(Arc::new(pods)), services, images }
    }

    /// Adopts what runs, then hears the sources; answers once every source was heard once. While the
    /// runtime does not answer this waits: nothing could be adopted or started.
    pub async fn start(&self, settings: &Settings) -> anyhow::Result<()> {
        let follower = self.follower.clone();
        follower.check_once().await;
        self.tasks.spawn({
            let follower = follower.clone();
            async move { follower.keep_checking().await }
        });
        self.tasks.spawn(tell_network(self.node.clone(), self.health.clone()));
        self.tasks.spawn(self.records.clone().write_all());
        if !*follower.up.borrow() {
            supervisor::status("waiting for the container runtime");
            // The sender lives in the follower.
            let _ = follower.up.subscribe().wait_for(|up| *up).await;
        }
        if let Some(driver) = follower.info.cgroup_driver().await.ok().flatten() {
            self.node.set_cgroup_driver(match driver {
                CgroupDriver::Systemd => snapshot::CgroupDriver::Systemd,
                CgroupDriver::Cgroupfs => snapshot::CgroupDriver::Cgroupfs,
            });
        }
        if let Ok(version) = follower.info.version().await {
            self.node.set_runtime_name(&version.name);
        }
        let remembered = self.adopt().await?;
        self.tasks.spawn({
            let follower = follower.clone();
            async move { follower.follow_events().await }
        });
        self.tasks.spawn(async move { follower.keep_auditing().await });
        if let Some(folder) = &settings.sources.manifests {
            let sourcing = self.sourcing.clone();
            let options = ManifestOptions {
                folder: folder.clone(),
                audit_period: settings.sources.audit_period,
                memory: Some(self.state.join("manifests.json")),
            };
            let joined = self.joined.clone();
            let sink = Arc::new(move |change| match (&joined, change) {
                (None, change) => sourcing.take(change),
                (Some(joined), Change::Pod(pod)) => {
                    sourcing.take(Change::Pod(Box::new(joined.static_pod(*pod))));
                }
                // Of a node that has joined, a folder is for static pods; all else comes from the API server.
                (Some(_), _) => {}
            });
            let manifests = Manifests::start(options, remembered.clone(), sink);
            let mut synced = manifests.synced();
            self.sourcing.show(manifests);
            let _ = synced.wait_for(|synced| *synced).await;
        }
        if let Some(joined) = &self.joined {
            supervisor::status("waiting for the client certificate");
            // Without it no call can work; whoever approves may take hours, and the pods of before need none.
            let usable = self.certificates.usable(self.follower.clock);
            if tokio::time::timeout(CERTIFICATE_WITHIN, usable).await.is_err() {
                tracing::warn!("there is no client certificate yet; going on without the API server");
            }
            supervisor::status("waiting for the API server");
            joined.start(remembered, |task| self.tasks.spawn(task)).await;
        }
        self.end_unclaimed();
        let (leftovers, told) = (self.leftovers.clone(), self.joined.as_ref().map(|joined| joined.synced()));
        self.tasks.spawn(async move {
            if let Some(mut told) = told {
                // Before, anything on the disk may still be wanted. The sender lives as long as this task.
                let _ = told.wait_for(|told| *told).await;
            }
            leftovers.clean_up().await;
        });
        self.sourcing.synced();
        // Who is told that the daemon is ready finds every pod when it asks.
        self.pods.all_shown(SHOWN_WITHIN).await;
        supervisor::status("running");
        Ok(())
    }

    /// Ends what no source wants. While the API server has not told its pods, it may want anything.
    fn end_unclaimed(&self) {
        if self.joined.as_ref().is_none_or(|joined| *joined.synced().borrow()) {
            self.sourcing.end_unclaimed(self.follower.clock.now());
        }
    }

    /// What runs and what an earlier run of the daemon knew of it; gives the pods that were wanted then.
    async fn adopt(&self) -> anyhow::Result<Vec<DesiredPod>> {
        let found = loop {
            match self.follower.observer.list_all(self.follower.clock.now()).await {
                Ok(found) => break found,
                Err(error) if error.is_retryable() => {
                    tracing::warn!(error = error.one_line(), "listing what runs; trying again");
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                }
                Err(error) => return Err(error).context("list what runs"),
            }
        };
        let mut running: Vec<_> = found.pods.into_values().collect();
        for pod in &mut running {
            self.follower.messages.add_to_pod(pod).await;
            self.follower.messages.begin(&pod.uid).await;
        }
        for rejected in &found.rejected {
            tracing::error!(
                problem = rejected.problem,
                "the runtime has something that cannot be read; it is left alone"
            );
        }
        let records = self.records.load()?;
        tracing::info!(running = running.len(), records = records.len(), "adopting");
        let wanted =
            records.values().filter(|record| record.deletion.is_none()).map(PodRecord::desired).collect();
        if let Some(joined) = &self.joined {
            joined.found(&self.state, &running);
        }
        self.pods.found(running, records);
        Ok(wanted)
    }

    /// Ends, from time to time, what appeared in the runtime and no source wants; until `stop`.
    pub async fn keep_running(&self, stop: &CancellationToken) {
        let mut ticks = tokio::time::interval(std::time::Duration::from_secs(10));
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => self.end_unclaimed(),
            }
        }
    }
}

/// The runtime's health before its first answer.
fn not_asked(now: Timestamp) -> RuntimeHealth {
    RuntimeHealth {
        runtime: String::new(),
        answers: Err("it has not been asked yet".into()),
        network: Err("the runtime has not been asked yet".into()),
        since: now,
    }
}

/// What is written to the control plane, where the node joins one.
fn upstream(settings: &Settings, clients: Option<Clients>, clock: Clock, node: &Node) -> Option<Upstream> {
    let join = settings.join.as_ref()?;
    Some(Upstream::new(clients?, join, clock, &node.now().name))
}

/// What is looked after beside the pods' own workers: logs, images, disk volumes.
fn look_after(
    settings: &Settings,
    tasks: &Tasks,
    pods: &Pods,
    live: &Live,
    (runtime, disk, clock): (&Runtime, Arc<dyn DiskSpace>, Clock),
) -> Arc<ImageCollector> {
    let logs = ContainerLogs {
        settings: live.logs.subscribe(),
        pods: pods.view(),
        upkeep: runtime.upkeep.clone(),
        clock,
        folder: settings.pods.pod_logs_dir.clone(),
    };
    tasks.spawn(logs.keep());
    tasks.spawn(EmptyDirs { pods: pods.clone(), root: settings.pods.root_dir.clone() }.keep());
    let policy = live.image_gc.subscribe();
    let collector = ImageCollector::new(runtime.images.clone(), pods.view(), policy, disk, clock);
    let collector = Arc::new(collector);
    let keeper = collector.clone();
    tasks.spawn(async move { keeper.keep().await });
    collector
}

/// Ordinary pods wait for the first full sync of Services.
async fn open_the_gate(node: Node, dataplane: DataplaneHandle) {
    if dataplane.synced().wait_for(|synced| *synced).await.is_ok() {
        node.set_services_synced();
    }
}

/// Pods plan with what the runtime says of the network, and with its absence.
async fn tell_network(node: Node, mut health: watch::Receiver<RuntimeHealth>) {
    loop {
        let now = health.borrow_and_update().clone();
        node.set_network(match now.answers {
            Err(problem) => Err(format!("the runtime does not answer, {problem}")),
            Ok(()) => now.network,
        });
        if health.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
#[path = "wiring_tests.rs"]
mod tests;
