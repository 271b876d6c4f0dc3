//! The node's own object and lease: facts and health are gathered here, what is written of them is decided
//! in core, and `longshore_cluster` writes it.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeRuntimeHandler, NodeRuntimeHandlerFeatures};
use longshore_cluster::lease::Lease;
use longshore_cluster::node::{Condition, Frequencies, NodeKeeper};
use longshore_cluster::path::Path;
use longshore_cluster::{ApiClient, News, Selector, Watch};
use longshore_core::node::conditions::Health;
use longshore_core::node::report::ready_event;
use longshore_core::node::{NodeFacts, Room, images};
use longshore_core::pod::events::Severity;
use longshore_core::resources::placement::Placement;
use longshore_cri::{Runtime, RuntimeHandler};
use tokio::sync::watch;

use super::recorder::EventRecorder;
use super::{Handles, Task, machine};
use crate::config::{JoinSettings, Settings};
use crate::dataplane::{Change, DataplaneHandle};
use crate::pods::follow::RuntimeHealth;

/// Memory and disk kept from pods by default: the kubelet's hard eviction thresholds.
const EVICTION_MEMORY: u64 = 100 << 20;
const EVICTION_STORAGE_PERCENT: u64 = 10;
/// Where the node is, for endpoints that are near.
const ZONE: &str = "topology.kubernetes.io/zone";
/// Images are listed this often; they are only a hint to the scheduler.
const IMAGES_EVERY: Duration = Duration::from_secs(60);

/// What is known of the node before it runs.
#[derive(Debug)]
pub(super) struct NodeParts {
    facts: NodeFacts,
    join: JoinSettings,
    condition: watch::Sender<Condition>,
}

impl NodeParts {
    pub(super) fn new(settings: &Settings, join: &JoinSettings, handles: &Handles) -> Self {
        let context = handles.node.now();
        let facts = NodeFacts {
            name: context.name.clone(),
            hostname: handles.facts.hostname.to_lowercase(),
            ips: context.ips.clone(),
            labels: settings.node.labels.clone(),
            taints: join.taints.clone(),
            provider_id: join.provider_id.clone(),
            room: room(settings, handles),
            system: machine::system_info(""),
            port: settings.server.https.map(|addr| addr.port()),
        };
        let condition = Condition { facts: facts.clone(), ..Condition::default() };
        Self { facts, join: join.clone(), condition: watch::Sender::new(condition) }
    }

    /// Gives the object as the server tells it.
    pub(super) fn start(
        &self,
        client: &ApiClient,
        handles: &Handles,
        spawn: &impl Fn(Task),
    ) -> watch::Receiver<Option<Node>> {
        let told = watch::Sender::new(None);
        let reading = told.subscribe();
        let selector = Selector::all(Path::nodes()).fields(format!("metadata.name={}", self.facts.name));
        let (node, dataplane) = (handles.node.clone(), handles.dataplane.clone());
        let own = OwnNode { told: told.clone(), node, dataplane };
        spawn(Box::pin(Watch::new(client.clone(), selector).run(move |news| own.take(news))));
        let owner = watch::Sender::new(None);
        let lease = Lease { node: self.facts.name.clone(), duration_seconds: self.join.lease_seconds };
        spawn(Box::pin(lease.keep(client.apart(), owner.subscribe())));
        spawn(Box::pin(tell_owner(told.subscribe(), owner)));
        let keeper = NodeKeeper {
            client: client.clone(),
            name: self.facts.name.clone(),
            frequencies: Frequencies { update: self.join.update_every, report: self.join.report_every },
            register: self.join.register,
            now: self.condition.subscribe(),
            told,
        };
        let gather = Gather {
            runtime: handles.runtime.clone(),
            max_images: self.join.max_images,
            condition: self.condition.clone(),
        };
        let (health, first_word) = (handles.health.clone(), self.condition.subscribe());
        spawn(Box::pin(gather.follow(health)));
        spawn(Box::pin(async move {
            // What is registered says how the node is, not that nothing is known yet.
            let mut first_word = first_word;
            let _ = tokio::time::timeout(FIRST_WORD_WITHIN, first_word.changed()).await;
            keeper.run().await;
        }));
        reading
    }
}

/// The runtime has answered within this, or the node registers as not ready.
const FIRST_WORD_WITHIN: Duration = Duration::from_secs(2);

fn room(settings: &Settings, handles: &Handles) -> Room {
    let reserved = |resource: &str| {
        let millis = settings.node.reserved_millis.get(resource).copied().unwrap_or(0);
        u64::try_from(millis).unwrap_or(0)
    };
    let storage = machine::storage_bytes(&settings.pods.root_dir);
    Room {
        cpu_millis: handles.facts.cpus * 1000,
        reserved_cpu_millis: reserved("cpu"),
        memory_bytes: handles.facts.memory_bytes,
        reserved_memory_bytes: reserved("memory") / 1000 + EVICTION_MEMORY,
        storage_bytes: storage,
        reserved_storage_bytes: reserved("ephemeral-storage") / 1000
            + storage / 100 * EVICTION_STORAGE_PERCENT,
        pods: u64::from(settings.pods.max_pods),
        hugepages: machine::hugepages(std::path::Path::new("/sys/kernel/mm/hugepages")),
    }
}

/// The node's own object as others change it.
struct OwnNode {
    told: watch::Sender<Option<Node>>,
    node: crate::node::Node,
    dataplane: Option<DataplaneHandle>,
}

impl OwnNode {
    fn take(&self, news: News<Node>) {
        let now = match news {
            News::All(all) => all.into_iter().next().map(|(_, node)| node),
            News::Set(_, node) => Some(node),
            News::Gone(..) => None,
            News::Unreadable(_, problem) => {
                tracing::error!(problem, "the Node object cannot be read");
                return;
            }
        };
        if let Some(node) = &now {
            self.node.set_placement(placement(node));
        }
        if let (Some(node), Some(dataplane)) = (&now, &self.dataplane) {
            let labels = node.metadata.labels.as_ref();
            dataplane.tell(Change::Zone(labels.and_then(|labels| labels.get(ZONE).cloned())));
        }
        self.told.send_replace(now);
    }
}

/// What the object says of the pods it takes.
pub(super) fn placement(node: &Node) -> Placement {
    Placement {
        name: node.metadata.name.clone().unwrap_or_default(),
        labels: node.metadata.labels.clone().unwrap_or_default(),
        taints: node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default(),
    }
}

/// The lease belongs to the Node object, once that is there.
async fn tell_owner(mut told: watch::Receiver<Option<Node>>, owner: watch::Sender<Option<String>>) {
    loop {
        let uid = told.borrow_and_update().as_ref().and_then(|node| node.metadata.uid.clone());
        owner.send_if_modified(|known| {
            let news = *known != uid;
            *known = uid;
            news
        });
        if told.changed().await.is_err() {
            return;
        }
    }
}

/// Tells every change of Ready as an event, and that the machine was booted anew since the object was
/// written last.
pub(super) async fn tell_milestones(mut told: watch::Receiver<Option<Node>>, recorder: EventRecorder) {
    let mut before = Vec::new();
    let mut boot = machine::system_info("").boot_id;
    loop {
        let known = told
            .borrow()
            .as_ref()
            .and_then(|node| Some(node.status.as_ref()?.node_info.as_ref()?.boot_id.clone()));
        if known.is_some_and(|known| !known.is_empty() && !boot.is_empty() && known != boot) {
            let message = format!("Node {} has been rebooted, boot id: {boot}", recorder.node);
            recorder.node(Severity::Warning, "Rebooted", &message);
            // Once.
            boot.clear();
        }
        let now = told.borrow_and_update().as_ref().and_then(|node| node.status.as_ref()?.conditions.clone());
        if let Some(now) = now {
            if let Some((severity, reason)) = ready_event(&before, &now) {
                let message = format!("Node {} status is now: {reason}", recorder.node);
                recorder.node(severity, reason, &message);
            }
            before = now;
        }
        if told.changed().await.is_err() {
            return;
        }
    }
}

/// Follows what the node's conditions depend on.
struct Gather {
    runtime: Runtime,
    max_images: Option<usize>,
    condition: watch::Sender<Condition>,
}

impl Gather {
    async fn follow(self, mut health: watch::Receiver<RuntimeHealth>) {
        let mut images_at = tokio::time::interval(IMAGES_EVERY);
        loop {
            let now = health.borrow_and_update().clone();
            self.take(&now).await;
            tokio::select! {
                changed = health.changed() => if changed.is_err() { return },
                _ = images_at.tick() => self.list_images().await,
            }
        }
    }

    async fn take(&self, now: &RuntimeHealth) {
        let mut not_ready = Vec::new();
        if let Err(problem) = &now.answers {
            not_ready.push(format!("container runtime is down: {problem}"));
        } else if let Err(problem) = &now.network {
            not_ready.push(format!("container runtime network not ready: {problem}"));
        }
        let (version, handlers) = match now.answers {
            Ok(()) => (self.runtime.info.version().await.ok(), self.handlers().await),
            Err(_) => (None, None),
        };
        self.condition.send_if_modified(|condition| {
            let before = condition.clone();
            if let Some(version) = version {
                condition.facts.system.container_runtime_version =
                    format!("{}://{}", version.name, version.version);
            }
            if let Some(handlers) = handlers {
                condition.handlers = handlers;
            }
            condition.health = Health { not_ready, ..Health::default() };
            *condition != before
        });
    }

    /// `None` where the runtime does not answer.
    async fn handlers(&self) -> Option<Vec<NodeRuntimeHandler>> {
        let status = self.runtime.info.status().await.ok()?;
        let handler = |handler: RuntimeHandler| NodeRuntimeHandler {
            name: Some(handler.name),
            features: Some(NodeRuntimeHandlerFeatures {
                recursive_read_only_mounts: Some(handler.recursive_read_only_mounts),
                user_namespaces: Some(handler.user_namespaces),
            }),
        };
        let mut handlers: Vec<_> = status.handlers.into_iter().map(handler).collect();
        // Runtimes tell them out of a map.
        handlers.sort_by(|a, b| a.name.cmp(&b.name));
        Some(handlers)
    }

    async fn list_images(&self) {
        let Ok(listing) = self.runtime.images.list_images().await else { return };
        let all = listing.items.into_iter().map(|image| {
            let names = image.digests.into_iter().chain(image.tags).collect();
            (names, image.size_bytes)
        });
        let shown = images(all.collect(), self.max_images);
        self.condition.send_if_modified(|condition| {
            let news = condition.images != shown;
            condition.images = shown;
            news
        });
    }
}
