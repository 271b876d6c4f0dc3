//! A node joined to a control plane: its pods come from the API server and their statuses go there, its
//! Node object and lease are kept, Services and what pods refer to are watched. Every part is one task
//! with the few handles it needs; calls to the API server are in `longshore_cluster`.

mod machine;
mod mirrors;
mod node;
mod pods;
mod recorder;
mod references;
mod runtime_classes;
mod service_cidrs;
mod services;
mod static_pods;
mod statuses;
mod tokens;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use longshore_cluster::events::{Component, EventRate, EventWriter, events};
use longshore_cluster::pod_status::PodStatuses;
use longshore_cluster::{ApiClient, Kubeconfig, KubeconfigError, Selector, TlsTransport, Watch, path};
use longshore_core::pod::desired::{DesiredPod, PodSource};
use longshore_core::pod::events::Severity;
use longshore_core::pod::observed::ObservedPod;
use longshore_cri::Runtime;
use tokio::sync::watch;

use crate::certificates::{CertificateError, node_kubeconfig};
use crate::config::{JoinSettings, Settings};
use crate::dataplane::DataplaneHandle;
use crate::node::{Facts, Node};
use crate::pods::follow::RuntimeHealth;
use crate::pods::{Clock, PodsView, Recorder};
use crate::sources::ObjectStore;
use crate::sourcing::Sourcing;
use mirrors::Mirrors;
use node::NodeParts;
use pods::ApiPods;
use recorder::EventRecorder;
use references::References;
pub use services::{ClusterServices, Containers};
use static_pods::StaticPods;
use tokens::Tokens;

/// Without a word of the API server for so long at start, the pods of the last run are started as they
/// were then.
const OFFLINE_AFTER: Duration = Duration::from_secs(10);

/// A client with the credentials of a kubeconfig. Nothing is called yet.
///
/// # Errors
/// Where the file is not one.
pub fn client(kubeconfig: &Path) -> Result<ApiClient, KubeconfigError> {
    let config = Kubeconfig::read(kubeconfig)?;
    Ok(ApiClient::new(Arc::new(TlsTransport::new(config))))
}

/// Clients of the control plane; equal where one kubeconfig serves for both.
#[derive(Clone, Debug)]
pub struct Clients {
    pub node: ApiClient,
    pub services: ApiClient,
}

impl Clients {
    /// The node's certificate may still have to be got; calls fail until it is there.
    ///
    /// # Errors
    /// Where a kubeconfig is not one.
    pub fn open(settings: &JoinSettings) -> Result<Self, CertificateError> {
        let node = ApiClient::new(Arc::new(TlsTransport::new(node_kubeconfig(settings)?)));
        let services = settings.services_kubeconfig.as_deref().map(client).transpose()?;
        Ok(Self { services: services.unwrap_or_else(|| node.clone()), node })
    }
}

/// What the parts of a joined node hold of the rest of the daemon.
#[derive(Clone)]
pub struct Handles {
    pub clock: Clock,
    pub sourcing: Arc<Sourcing>,
    pub objects: ObjectStore,
    pub node: Node,
    pub view: PodsView,
    pub health: watch::Receiver<RuntimeHealth>,
    pub runtime: Runtime,
    pub facts: Facts,
    pub dataplane: Option<DataplaneHandle>,
}

impl std::fmt::Debug for Handles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handles").finish_non_exhaustive()
    }
}

/// What is written to the API server: made first, as pods tell it what they do.
#[derive(Debug)]
pub struct Upstream {
    clients: Clients,
    statuses: PodStatuses,
    mirrors: Mirrors,
    recorder: EventRecorder,
    events: EventWriter,
}

impl Upstream {
    pub fn new(clients: Clients, join: &JoinSettings, clock: Clock, node: &str) -> Self {
        let statuses = PodStatuses::new(clients.node.clone());
        let mirrors = Mirrors::new(clients.node.clone(), statuses.clone(), node);
        let (handle, events) = events(clients.node.clone(), Component::Kubelet, node, join.event_rate);
        let recorder =
            EventRecorder { clock, events: handle, mirrors: mirrors.clone(), node: node.to_owned() };
        Self { clients, statuses, mirrors, recorder, events }
    }

    /// Hears what the pods' steps do.
    pub fn recorder(&self) -> Arc<dyn Recorder> {
        Arc::new(self.recorder.clone())
    }
}

/// The joined node before and while it runs.
pub struct Joined {
    clients: Clients,
    handles: Handles,
    pods: Arc<ApiPods>,
    statuses: PodStatuses,
    mirrors: Mirrors,
    recorder: EventRecorder,
    /// Until it is started.
    events: Mutex<Option<EventWriter>>,
    event_rate: EventRate,
    node: NodeParts,
    static_pods: StaticPods,
}

impl std::fmt::Debug for Joined {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Joined").field("clients", &self.clients).finish_non_exhaustive()
    }
}

impl Joined {
    pub fn new(upstream: Upstream, settings: &Settings, join: &JoinSettings, handles: Handles) -> Self {
        handles.objects.fetch_from_control_plane();
        handles.sourcing.show_control_plane(upstream.clients.node.clone());
        let Upstream { clients, statuses, mirrors, recorder, events } = upstream;
        let pods = ApiPods {
            client: clients.node.clone(),
            node: handles.node.clone(),
            mirrors: mirrors.clone(),
            clock: handles.clock,
            sourcing: handles.sourcing.clone(),
            references: References::new(clients.node.clone(), handles.objects.clone()),
            tokens: Tokens::new(clients.node.clone(), handles.objects.clone()),
            statuses: statuses.clone(),
            known: Mutex::default(),
            synced: watch::Sender::new(false),
        };
        let node = NodeParts::new(settings, join, &handles);
        let events = Mutex::new(Some(events));
        let static_pods = StaticPods::default();
        Self {
            clients,
            pods: Arc::new(pods),
            statuses,
            mirrors,
            recorder,
            events,
            event_rate: join.event_rate,
            node,
            handles,
            static_pods,
        }
    }

    /// A pod of the folder as this node runs it: a static pod, shown in the API by its mirror.
    pub fn static_pod(&self, desired: DesiredPod) -> DesiredPod {
        let desired = self.static_pods.on_node(desired, &self.handles.node.now().name);
        self.mirrors.want(&desired);
        desired
    }

    /// What runs at the start: static pods among it may be those of another program, and go on. To be called before
    /// the first [`Self::static_pod`]; `state` is the daemon's own folder.
    pub fn found<'a>(&self, state: &Path, running: impl IntoIterator<Item = &'a ObservedPod>) {
        self.static_pods.found(state.join("static-pods.json"), running);
    }

    /// Starts all parts; answers once the API server has told its pods, or [`OFFLINE_AFTER`] without a
    /// word of it, with the pods of `remembered` wanted as they were.
    pub async fn start(&self, remembered: Vec<DesiredPod>, spawn: impl Fn(Task)) {
        spawn(Box::pin(self.statuses.clone().run()));
        if let Some(events) = self.events.lock().unwrap_or_else(PoisonError::into_inner).take() {
            spawn(Box::pin(events.run()));
        }
        self.recorder.node(Severity::Normal, "Starting", "Starting longshore.");
        let telling = statuses::Telling {
            statuses: self.statuses.clone(),
            mirrors: self.mirrors.clone(),
            recorder: self.recorder.clone(),
        };
        spawn(Box::pin(telling.run(self.handles.view.clone())));
        let told = self.node.start(&self.clients.node, &self.handles, &spawn);
        spawn(Box::pin(node::tell_milestones(told.clone(), self.recorder.clone())));
        spawn(Box::pin(self.mirrors.clone().run(told)));
        if let Some(dataplane) = &self.handles.dataplane {
            let services = ClusterServices {
                client: self.clients.services.clone(),
                dataplane: dataplane.clone(),
                node: self.handles.node.now().name.clone(),
                event_rate: self.event_rate,
                clock: self.handles.clock,
                containers: Some(Containers {
                    node: self.handles.node.clone(),
                    sourcing: self.handles.sourcing.clone(),
                }),
            };
            spawn(Box::pin(services.run()));
        }
        spawn(Box::pin(runtime_classes::follow(self.clients.node.clone(), self.handles.node.clone())));
        let name = self.handles.node.now().name.clone();
        let selector = Selector::all(path::Path::pods()).fields(format!("spec.nodeName={name}"));
        let watch = Watch::new(self.clients.node.clone(), selector);
        let pods = self.pods.clone();
        spawn(Box::pin(watch.run_by_piece(move |piece| pods.take(piece))));
        let mut synced = self.pods.synced.subscribe();
        if tokio::time::timeout(OFFLINE_AFTER, synced.wait_for(|synced| *synced)).await.is_err() {
            self.go_on_without(remembered);
        }
    }

    /// The last known pods, as they were wanted when their records were written.
    fn go_on_without(&self, remembered: Vec<DesiredPod>) {
        let known: Vec<_> = remembered.into_iter().filter(|pod| pod.source == PodSource::Api).collect();
        let count = known.len();
        known.into_iter().for_each(|pod| self.pods.remember(pod));
        // Services are told by the same server: what the kernel has of before has to do.
        self.handles.node.set_services_synced();
        tracing::warn!(pods = count, "the API server does not answer; going on with the pods of before");
    }

    /// Whether the API server has told its pods: before, nothing may be ended for not being wanted.
    pub fn synced(&self) -> watch::Receiver<bool> {
        self.pods.synced.subscribe()
    }
}

/// A task of the joined node.
pub type Task = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;
