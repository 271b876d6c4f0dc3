//! Services of a node without a control plane: their addresses are given here, their endpoints are
//! the node's own ready pods, and both go to the dataplane as they change. One task owns the state;
//! who is eligible and who gets which address is decided in `core`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use longshore_core::ids::PodKey;
use longshore_core::pod::lifecycle::Lifecycle;
use longshore_core::service::allocate::Pools;
use longshore_core::service::select::BackendPod;
use longshore_core::service::standalone::{Output, Standalone};
use longshore_core::service::{cidr::Cidr, env};
use longshore_core::wire::PodView;
use tokio::sync::mpsc;

use crate::dataplane::{Change as ToDataplane, DataplaneHandle};
use crate::node::Node;
use crate::pods::PodsView;
use crate::sources::Change;

/// Where addresses come from, the API server's defaults.
const SERVICE_CIDR: &str = "10.96.0.0/12";
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;
/// Adopted pods have said how they are within this, or are looked at as they come.
const ADOPTED_WITHIN: Duration = Duration::from_secs(2);

/// What the task hears beside the pods.
#[derive(Debug)]
pub enum News {
    Source(Change),
    /// Every source has told all it has; so many pods are to say how they are.
    SourcesSynced {
        pods: usize,
    },
}

/// Keeps the dataplane told; ends when the senders of `news` are gone.
pub struct StandaloneServices {
    pub dataplane: DataplaneHandle,
    pub node: Node,
    pub pods: PodsView,
    pub news: mpsc::UnboundedReceiver<News>,
}

impl std::fmt::Debug for StandaloneServices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StandaloneServices").finish_non_exhaustive()
    }
}

/// The pools a standalone node gives addresses from.
fn pools() -> Pools {
    Pools { service_cidrs: SERVICE_CIDR.parse::<Cidr>().into_iter().collect(), node_ports: NODE_PORTS }
}

impl StandaloneServices {
    pub async fn run(mut self) {
        let mut state = Standalone::new(pools());
        let mut known = BTreeMap::new();
        let mut changes = self.pods.changes();
        loop {
            tokio::select! {
                news = self.news.recv() => match news {
                    Some(News::Source(change)) => self.take(&mut state, change),
                    Some(News::SourcesSynced { pods }) => {
                        self.wait_for_adopted(pods).await;
                        self.look_at_pods(&mut state, &mut known);
                        self.dataplane.tell(ToDataplane::SourcesSynced);
                    }
                    None => return,
                },
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.look_at_pods(&mut state, &mut known);
                }
            }
        }
    }

    fn take(&self, state: &mut Standalone, change: Change) {
        let outputs = match change {
            Change::Service(_, Some(service)) => state.upsert_service(*service),
            Change::Service(key, None) => state.remove_service(&key),
            Change::EndpointSlice(_, Some(slice)) => return self.dataplane.tell(ToDataplane::Slice(slice)),
            Change::EndpointSlice(key, None) => return self.dataplane.tell(ToDataplane::SliceGone(key)),
            Change::Pod(_) | Change::ConfigMap(..) | Change::Secret(..) => return,
        };
        self.node.set_service_env(env::variables(state.services()));
        self.tell(outputs);
    }

    /// Until every adopted pod has published how it is: their readiness belongs to the first sync.
    async fn wait_for_adopted(&self, pods: usize) {
        let mut changes = self.pods.changes();
        let all_said = async {
            while self.pods.list().len() < pods {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        // A pod that says nothing for so long is no reason to serve no Service.
        let _ = tokio::time::timeout(ADOPTED_WITHIN, all_said).await;
    }

    fn look_at_pods(&self, state: &mut Standalone, known: &mut BTreeMap<PodKey, Arc<PodView>>) {
        let mut gone: BTreeSet<PodKey> = known.keys().cloned().collect();
        for view in self.pods.list() {
            // A life that waits for another of its name has no address yet; the other one counts.
            if matches!(view.lifecycle, Lifecycle::Queued { .. }) {
                continue;
            }
            gone.remove(&view.key);
            if known.get(&view.key).is_some_and(|old| Arc::ptr_eq(old, &view)) {
                continue;
            }
            known.insert(view.key.clone(), view.clone());
            let node = self.node.now().name.clone();
            match BackendPod::of(&view.pod, &view.status, &node, is_terminating(&view)) {
                Some(pod) => self.tell(state.upsert_pod(pod)),
                None => self.tell(state.remove_pod(&view.key)),
            }
        }
        for key in gone {
            known.remove(&key);
            self.tell(state.remove_pod(&key));
        }
    }

    fn tell(&self, outputs: Vec<Output>) {
        for output in outputs {
            self.dataplane.tell(output);
        }
    }
}

fn is_terminating(view: &PodView) -> bool {
    !matches!(view.lifecycle, Lifecycle::Syncing | Lifecycle::Queued { .. })
}
