//! The Service dataplane: one task that owns IPVS, our nf_tables tables and the dummy device, and keeps
//! them as `longshore_core::ruleset` says. Here are its settings, its inbox and the handle the rest of
//! the daemon holds; decisions are in core, effects in `kernel`.

#[cfg(test)]
mod audit_tests;
mod engine;
mod flows;
mod former;
#[cfg(test)]
mod former_tests;
mod health;
mod inbox;
mod iptables;
mod kernel;
mod metrics;
#[cfg(test)]
mod ranges_tests;
mod settings;
mod task;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod without_nft_tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use longshore_core::explain::{Explanation, Query};
use longshore_core::ids::ObjectKey;
use longshore_core::ruleset::chains::{ChainConfig, PodInterface};
pub use longshore_core::ruleset::choice::ModeRequest;
use longshore_core::ruleset::ipvs::{IpvsTimeouts, Scheduler, UnknownScheduler};
use longshore_core::ruleset::node::{ConntrackWish, NodePortAddresses};
use longshore_core::service::Family;
use longshore_core::service::cidr::Cidr;
use longshore_core::service::health::HealthCheck;
use longshore_core::service::problems::ObjectProblem;
use longshore_core::service::standalone::Output;
use longshore_core::service::types::{EndpointSlice, Service};
use longshore_core::service::view::{DataplaneView, DiffView, FrontendView, ServiceRow};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::admin::ServiceReads;
use crate::config::{self, DataplaneSettings, ModeTuning, PerMode};
use crate::pods::Clock;
pub use engine::Engine;
pub use flows::{TrackedFlows, kernel_flows};
pub use former::cleanup;
pub use health::ProxyHealth;
use inbox::Inbox;
pub use iptables::OpenIptables;
pub use kernel::{Kernel, KernelError, OpenKernel, UdpFlows};
pub use metrics::{Figures, ProxyMetrics};
pub use settings::make_settings;

/// Metrics are given without the task's own part after this.
const SCRAPE_AT_MOST: Duration = Duration::from_secs(2);

/// Problems of objects that wait to be told as events.
const PROBLEMS_KEPT: usize = 256;

/// How the dataplane is set.
#[derive(Clone, Debug)]
pub struct DataplaneConfig {
    pub mode: ModeRequest,
    pub scheduler: Scheduler,
    pub chains: ChainConfig,
    /// Pods are told by the node's own pod networks, which [`Change::PodNetworks`] may bring.
    pub by_pod_networks: bool,
    /// `None`: as the mode has it by default.
    pub node_port_addresses: Option<NodePortAddresses>,
    pub node_name: String,
    /// The node's own addresses, the primary one of each family.
    pub node_ips: Vec<IpAddr>,
    /// They were detected, and follow the default routes.
    pub follow_primary: bool,
    pub strict_arp: bool,
    /// Connection time-outs of IPVS; zeroes leave the kernel's.
    pub timeouts: IpvsTimeouts,
    /// Virtual servers in these belong to others and are left alone.
    pub exclude_cidrs: Vec<Cidr>,
    /// Masquerade and periods; those of the mode in force count.
    pub tuning: PerMode<ModeTuning>,
    /// iptables mode serves node ports on 127.0.0.1 too.
    pub localhost_node_ports: bool,
    pub conntrack: ConntrackWish,
    /// Online processors, by which the connection tracker is sized.
    pub cpus: u32,
    /// How often draining real servers are looked at.
    pub drain_period: Duration,
    /// Version of the running kernel, major and minor.
    pub kernel_version: (u32, u32),
}

impl DataplaneConfig {
    /// A node with everything else as kube-proxy has it by default.
    pub fn new(mode: ModeRequest, node_name: &str, node_ips: Vec<IpAddr>) -> Self {
        DataplaneConfig {
            mode,
            scheduler: Scheduler::Rr,
            chains: ChainConfig {
                masquerade_mark: 1 << ModeTuning::default().masquerade_bit,
                masquerade_all: false,
                cluster_cidrs: Vec::new(),
                pod_interface: None,
                service_ranges: Vec::new(),
            },
            by_pod_networks: false,
            node_port_addresses: None,
            node_name: node_name.to_owned(),
            node_ips,
            follow_primary: false,
            strict_arp: false,
            timeouts: IpvsTimeouts::default(),
            exclude_cidrs: Vec::new(),
            tuning: PerMode::default(),
            localhost_node_ports: true,
            conntrack: ConntrackWish::default(),
            cpus: 1,
            drain_period: Duration::from_secs(60),
            kernel_version: (6, 12),
        }
    }

    /// From the daemon's settings; also says what of them has no effect here.
    ///
    /// # Errors
    /// A scheduler the kernel does not know.
    pub fn from_settings(
        settings: &DataplaneSettings,
        node_name: &str,
        node_ips: Vec<IpAddr>,
        (kernel_version, cpus): ((u32, u32), u32),
    ) -> Result<(Self, Vec<String>), UnknownScheduler> {
        let mut warnings = Vec::new();
        let scheduler = match settings.ipvs.scheduler.as_str() {
            "" => Scheduler::Rr,
            name => name.parse()?,
        };
        let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        let config = DataplaneConfig {
            mode: mode(settings),
            scheduler,
            chains: chains(settings, &mut warnings),
            by_pod_networks: matches!(settings.detect_local, config::DetectLocal::NodeCidr(_)),
            node_port_addresses: match &settings.node_ports {
                config::NodePortAddresses::Default => None,
                config::NodePortAddresses::Primary => Some(NodePortAddresses::Primary),
                config::NodePortAddresses::Within(within) => Some(NodePortAddresses::Within(cidrs(within))),
            },
            node_name: node_name.to_owned(),
            node_ips: with_bind_address(node_ips, settings.bind_address),
            follow_primary: false,
            strict_arp: settings.ipvs.strict_arp,
            timeouts: IpvsTimeouts {
                tcp: seconds(settings.ipvs.tcp_timeout),
                tcp_fin: seconds(settings.ipvs.tcp_fin_timeout),
                udp: seconds(settings.ipvs.udp_timeout),
            },
            exclude_cidrs: cidrs(&settings.ipvs.exclude),
            tuning: settings.tuning,
            localhost_node_ports: settings.localhost_node_ports,
            conntrack: settings.conntrack,
            cpus,
            drain_period: Duration::from_secs(60),
            kernel_version,
        };
        Ok((config, warnings))
    }
}

/// `bindAddress` stands for the detected address of its family, or for all of them where that has none.
fn with_bind_address(mut detected: Vec<IpAddr>, bind: Option<IpAddr>) -> Vec<IpAddr> {
    if let Some(bind) = bind {
        detected.retain(|addr| addr.is_ipv6() != bind.is_ipv6());
        detected.insert(0, bind);
    }
    detected
}

/// Networks whose virtual servers belong to others.
pub fn excluded(settings: &DataplaneSettings) -> Vec<Cidr> {
    cidrs(&settings.ipvs.exclude)
}

fn mode(settings: &DataplaneSettings) -> ModeRequest {
    match settings.mode {
        config::DataplaneMode::Auto => ModeRequest::Auto,
        config::DataplaneMode::Ipvs => ModeRequest::Ipvs,
        config::DataplaneMode::Nftables => ModeRequest::Nftables,
        config::DataplaneMode::Iptables => ModeRequest::Iptables,
    }
}

fn cidrs(all: &[config::Cidr]) -> Vec<Cidr> {
    all.iter().filter_map(|cidr| Cidr::new(cidr.address, cidr.prefix)).collect()
}

fn chains(settings: &DataplaneSettings, warnings: &mut Vec<String>) -> ChainConfig {
    let mut chains = ChainConfig {
        // The mode's own come in when it is known.
        masquerade_mark: 1 << ModeTuning::default().masquerade_bit,
        masquerade_all: false,
        cluster_cidrs: Vec::new(),
        pod_interface: None,
        service_ranges: Vec::new(),
    };
    match &settings.detect_local {
        config::DetectLocal::ClusterCidr(within) => chains.cluster_cidrs = cidrs(within),
        config::DetectLocal::Bridge(name) => chains.pod_interface = Some(PodInterface::Named(name.clone())),
        config::DetectLocal::InterfacePrefix(prefix) => {
            chains.pod_interface = Some(PodInterface::Prefixed(prefix.clone()));
        }
        config::DetectLocal::NodeCidr(within) => {
            chains.cluster_cidrs = cidrs(within);
            if within.is_empty() {
                warnings.push(
                    "detectLocalMode NodeCIDR: the node's own pod network is not known yet; without a control \
                     plane it is podCIDR of the kubelet's file"
                        .to_owned(),
                );
            }
        }
    }
    chains
}

/// Something the dataplane should know. Latest wins: a Service told twice before it was looked at is
/// programmed once.
#[derive(Debug)]
pub enum Change {
    Service(Box<Service>),
    ServiceGone(ObjectKey),
    Slice(Box<EndpointSlice>),
    SliceGone(ObjectKey),
    /// What a Service of a file asked for and did not get, one sentence each.
    Lacking(ObjectKey, Vec<String>),
    /// The node's zone label.
    Zone(Option<String>),
    /// The node's own pod networks, as its Node object has them: `detectLocalMode: NodeCIDR`.
    PodNetworks(Vec<Cidr>),
    /// The ranges Services get their addresses from, as the control plane's ServiceCIDRs say; none where
    /// there is nobody to say it. In force once Services are.
    ServiceRanges(Vec<Cidr>),
    /// An interface or address of the host changed.
    HostAddresses,
    /// Every source has told all it has: from now on what nobody wants is removed, and nothing is
    /// programmed before. In standalone mode that includes the readiness of adopted pods.
    SourcesSynced,
}

impl From<Output> for Change {
    fn from(output: Output) -> Self {
        match output {
            Output::Service(service) => Change::Service(service),
            Output::ServiceGone(key) => Change::ServiceGone(key),
            Output::Slice(slice) => Change::Slice(slice),
            Output::SliceGone(key) => Change::SliceGone(key),
            Output::Lacking(key, lacking) => Change::Lacking(key, lacking),
        }
    }
}

/// A question to the task.
#[derive(Debug)]
enum Request {
    List(oneshot::Sender<Vec<ServiceRow>>),
    Explain(Query, oneshot::Sender<Explanation>),
    Frontends(oneshot::Sender<Vec<FrontendView>>),
    Diff(oneshot::Sender<DiffView>),
    Repair(oneshot::Sender<DiffView>),
    Pending(oneshot::Sender<Vec<String>>),
    Audit(oneshot::Sender<u64>),
    Figures(oneshot::Sender<Figures>),
}

/// The health check ports that should be answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthChecks {
    pub checks: Vec<HealthCheck>,
    /// The node's addresses they are answered at; `None` is all of them.
    pub addresses: Option<BTreeSet<IpAddr>>,
}

/// Problems of the parts around the task, by what they are about; shown among its warnings.
#[derive(Debug, Default)]
struct Notes(Mutex<BTreeMap<String, String>>);

impl Notes {
    /// Whether that is news.
    fn set(&self, about: &str, problem: Option<String>) -> bool {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match problem {
            Some(problem) => notes.insert(about.to_owned(), problem.clone()) != Some(problem),
            None => notes.remove(about).is_some(),
        }
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// The dataplane has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the dataplane task has ended")]
pub struct DataplaneGone;

/// What the rest of the daemon holds of the dataplane; cheap to clone.
#[derive(Clone, Debug)]
pub struct DataplaneHandle {
    inbox: Arc<Inbox>,
    requests: mpsc::Sender<Request>,
    view: watch::Receiver<Arc<DataplaneView>>,
    synced: watch::Receiver<bool>,
    checks: watch::Receiver<Arc<HealthChecks>>,
    problems: broadcast::Sender<ObjectProblem>,
    health: ProxyHealth,
    metrics: ProxyMetrics,
    notes: Arc<Notes>,
}

impl DataplaneHandle {
    /// Whether the rules keep up.
    pub fn health(&self) -> &ProxyHealth {
        &self.health
    }

    pub fn metrics(&self) -> &ProxyMetrics {
        &self.metrics
    }

    /// Health check ports as they should be answered, whenever that changes.
    pub fn watch_health_checks(&self) -> watch::Receiver<Arc<HealthChecks>> {
        self.checks.clone()
    }

    /// What is wrong with Services and slices, each problem once. From now on: who listens late has lost
    /// those of before, and who is slow the oldest.
    pub fn problems(&self) -> broadcast::Receiver<ObjectProblem> {
        self.problems.subscribe()
    }

    /// Shows a problem of a part around the dataplane among its warnings, or takes it back; true where
    /// that is news.
    pub fn note(&self, about: &str, problem: Option<String>) -> bool {
        self.notes.set(about, problem)
    }

    /// All metrics as text. A task that is busy for long gives its part as it was never asked.
    pub async fn scrape(&self) -> String {
        let figures = tokio::time::timeout(SCRAPE_AT_MOST, self.ask(Request::Figures)).await;
        let figures = figures.ok().and_then(Result::ok).unwrap_or_default();
        self.metrics.render(&self.view(), figures)
    }

    /// Tell the dataplane something. Never waits.
    pub fn tell(&self, change: impl Into<Change>) {
        self.inbox.put(change.into());
    }

    /// Becomes true once the first full sync is in the kernel, or once it is known that this kernel
    /// cannot serve Services: ordinary pods wait for it.
    pub fn synced(&self) -> watch::Receiver<bool> {
        self.synced.clone()
    }

    /// How the dataplane is doing.
    pub fn view(&self) -> Arc<DataplaneView> {
        let view = self.view.borrow().clone();
        let notes = self.notes.all();
        if notes.is_empty() {
            return view;
        }
        let mut view = DataplaneView::clone(&view);
        view.warnings.extend(notes);
        Arc::new(view)
    }

    /// A receiver of every new view.
    pub fn watch_view(&self) -> watch::Receiver<Arc<DataplaneView>> {
        self.view.clone()
    }

    /// The rows of `svc list`.
    ///
    /// # Errors
    /// When the task has ended.
    pub async fn list(&self) -> Result<Vec<ServiceRow>, DataplaneGone> {
        self.ask(Request::List).await
    }

    /// Why a packet ends where it does.
    ///
    /// # Errors
    /// When the task has ended.
    pub async fn explain(&self, query: Query) -> Result<Explanation, DataplaneGone> {
        self.ask(|reply| Request::Explain(query, reply)).await
    }

    /// Every address Services are reached at.
    ///
    /// # Errors
    /// When the task has ended.
    pub async fn frontends(&self) -> Result<Vec<FrontendView>, DataplaneGone> {
        self.ask(Request::Frontends).await
    }

    /// What is wanted against what the kernel holds, read anew: `svc diff`.
    ///
    /// # Errors
    /// When the task has ended.
    pub async fn diff(&self) -> Result<DiffView, DataplaneGone> {
        self.ask(Request::Diff).await
    }

    /// The same after the differences were repaired: `svc diff --repair`.
    ///
    /// # Errors
    /// When the task has ended.
    pub async fn repair(&self) -> Result<DiffView, DataplaneGone> {
        self.ask(Request::Repair).await
    }

    /// Kernel changes still due, as operations in words.
    ///
    /// # Errors
    /// When the task has ended.
    pub async fn pending(&self) -> Result<Vec<String>, DataplaneGone> {
        self.ask(Request::Pending).await
    }

    /// Audit now, as is done from time to time: compare the kernel with what is believed of it, and repair
    /// it; returns how many objects differed.
    ///
    /// # Errors
    /// When the task has ended.
    pub async fn audit(&self) -> Result<u64, DataplaneGone> {
        self.ask(Request::Audit).await
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, DataplaneGone> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| DataplaneGone)?;
        answer.await.map_err(|_| DataplaneGone)
    }
}

#[async_trait]
impl ServiceReads for DataplaneHandle {
    async fn services(&self) -> Vec<ServiceRow> {
        self.list().await.unwrap_or_default()
    }

    async fn dataplane(&self) -> DataplaneView {
        DataplaneView::clone(&self.view())
    }

    async fn explain(&self, query: Query) -> Explanation {
        match DataplaneHandle::explain(self, query).await {
            Ok(explanation) => explanation,
            Err(error) => Explanation::unknown(&query, &error.to_string()),
        }
    }

    async fn frontends(&self) -> Vec<FrontendView> {
        DataplaneHandle::frontends(self).await.unwrap_or_default()
    }

    async fn diff(&self, repair: bool) -> DiffView {
        let answer = if repair { self.repair().await } else { DataplaneHandle::diff(self).await };
        answer.unwrap_or_else(|error| DiffView { error: Some(error.to_string()), ..DiffView::default() })
    }
}

/// Make the dataplane; the future is the task and ends when `stop` is cancelled, leaving everything in
/// the kernel as it is.
pub fn dataplane(
    config: DataplaneConfig,
    kernel: OpenKernel,
    clock: Clock,
    stop: CancellationToken,
) -> (DataplaneHandle, impl Future<Output = ()> + Send) {
    let mut families = vec![Family::V4];
    if config.node_ips.iter().any(IpAddr::is_ipv6) {
        families.push(Family::V6);
    }
    let metrics = ProxyMetrics::new(&families);
    let health = ProxyHealth::new(clock, &families, ModeTuning::default().sync_period * 2);
    let inbox = Arc::new(Inbox::new(clock, health.clone(), metrics.clone()));
    let (checks_out, checks) = watch::channel(Arc::default());
    let (problems, _) = broadcast::channel(PROBLEMS_KEPT);
    let (requests, questions) = mpsc::channel(16);
    let (view_out, view) = watch::channel(Arc::new(DataplaneView::default()));
    let (synced_out, synced) = watch::channel(false);
    let task = task::Task {
        engine: Engine::new(config, kernel),
        inbox: inbox.clone(),
        questions,
        view: view_out,
        synced: synced_out,
        checks: checks_out,
        problems: problems.clone(),
        health: health.clone(),
        metrics: metrics.clone(),
        latency: task::Latency::new(clock.now()),
        pace: task::Pace::default(),
        clock,
        stop,
    };
    let notes = Arc::default();
    (DataplaneHandle { inbox, requests, view, synced, checks, problems, health, metrics, notes }, task.run())
}
