//! What the admin socket shows: views over the pods, the node and the sources. Reads only.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use longshore_core::ids::{ObjectKey, PodKey};
use longshore_core::why;
use longshore_core::wire::{NodeView, ObjectKind, PodView, SourceProblem, TimelineEntry, WhyView};
use tokio::sync::watch;

use crate::admin::{NodeReads, PodReads};
use crate::certificates::Certificates;
use crate::dataplane::DataplaneHandle;
use crate::pods::follow::RuntimeHealth;
use crate::pods::{Clock, PodsView};

/// The pods' side of the admin socket.
#[derive(Clone, Debug)]
pub struct PodViews {
    pub pods: PodsView,
    pub clock: Clock,
}

impl PodReads for PodViews {
    fn pods(&self) -> Vec<PodView> {
        self.pods.list().iter().map(|view| (**view).clone()).collect()
    }

    fn pod(&self, key: &PodKey) -> Option<PodView> {
        self.pods.get(key).map(|view| (*view).clone())
    }

    fn timeline(&self, key: &PodKey) -> Option<Vec<TimelineEntry>> {
        self.pods.timeline(&self.pods.get(key)?.uid)
    }

    fn why(&self, key: &PodKey) -> Option<WhyView> {
        Some(why::why_pod(&*self.pods.get(key)?, self.clock.now()))
    }
}

/// Lines and problems of everything the node hears objects from.
pub trait SourceReads: Send + Sync {
    /// One line per source.
    fn sources(&self) -> Vec<String>;
    fn problems(&self) -> Vec<SourceProblem>;
    fn objects(&self, kind: ObjectKind) -> Vec<ObjectKey>;
    fn object(&self, kind: ObjectKind, key: &ObjectKey) -> Option<serde_json::Value>;
}

/// The node's side of the admin socket.
pub struct NodeViews {
    pub name: String,
    pub ips: Vec<IpAddr>,
    pub started_at: Timestamp,
    pub health: watch::Receiver<RuntimeHealth>,
    pub sources: Arc<dyn SourceReads>,
    /// `None` while the proxy role is off.
    pub dataplane: Option<DataplaneHandle>,
    pub certificates: Certificates,
}

impl std::fmt::Debug for NodeViews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeViews").field("name", &self.name).finish_non_exhaustive()
    }
}

impl NodeReads for NodeViews {
    fn node(&self) -> NodeView {
        let health = self.health.borrow().clone();
        let dataplane = self.dataplane.as_ref().map(DataplaneHandle::view);
        let (service_mode, service_mode_reason) =
            dataplane.map(|view| (view.mode.clone(), view.reason.clone())).unwrap_or_default();
        let now = Timestamp::now();
        let mut sources = self.sources.sources();
        sources.extend(self.certificates.lines(now));
        let mut problems = self.sources.problems();
        problems.extend(self.certificates.problems(now).into_iter().map(|(path, message)| SourceProblem {
            place: path.display().to_string(),
            object: None,
            message,
            since: now,
        }));
        NodeView {
            name: self.name.clone(),
            ips: self.ips.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            started_at: self.started_at,
            runtime: health.answers.map(|()| health.runtime),
            network: health.network,
            sources,
            problems,
            service_mode,
            service_mode_reason,
        }
    }

    fn why_node(&self) -> WhyView {
        why::why_node(&self.node())
    }

    fn objects(&self, kind: ObjectKind) -> Vec<ObjectKey> {
        self.sources.objects(kind)
    }

    fn object(&self, kind: ObjectKind, key: &ObjectKey) -> Option<serde_json::Value> {
        self.sources.object(kind, key)
    }
}
