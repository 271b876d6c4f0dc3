//! Services of a node without a control plane: their addresses are given here, their endpoints are
//! the node's own ready pods or the slices of files, and both go to the dataplane as they change.
//! Who is eligible and who gets which address is decided in `core`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use longshore_core::ids::{ObjectKey, PodKey};
use longshore_core::pod::lifecycle::Lifecycle;
use longshore_core::service::allocate::Pools;
use longshore_core::service::select::BackendPod;
use longshore_core::service::standalone::{Output, Standalone};
use longshore_core::service::types::Service;
use longshore_core::service::{cidr::Cidr, env};
use longshore_core::wire::{ObjectKind, PodView, SourceProblem};
use tokio::sync::mpsc;

use crate::dataplane::{Change as ToDataplane, DataplaneHandle};
use crate::node::Node;
use crate::pods::PodsView;
use crate::reads::SourceReads;
use crate::sources::{Change, KeptSlice, Manifests};

/// Where addresses come from, the API server's defaults.
const SERVICE_CIDR: &str = "10.96.0.0/12";
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;
/// Between two looks at the pods.
const LOOK_PAUSE: Duration = Duration::from_millis(5);
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

/// The pods as they were last looked at.
#[derive(Debug, Default)]
struct KnownPods {
    look: u64,
    /// With the look that saw them last.
    pods: BTreeMap<PodKey, (Arc<PodView>, u64)>,
}

/// The pools a standalone node gives addresses from.
fn pools() -> Pools {
    Pools { service_cidrs: SERVICE_CIDR.parse::<Cidr>().into_iter().collect(), node_ports: NODE_PORTS }
}

impl StandaloneServices {
    pub async fn run(mut self) {
        let mut state = Standalone::new(pools());
        let mut known = KnownPods::default();
        let mut changes = self.pods.changes();
        loop {
            tokio::select! {
                news = self.news.recv() => match news {
                    Some(news) => self.take_waiting(&mut state, &mut known, news).await,
                    None => return,
                },
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.look_at_pods(&mut state, &mut known);
                    // A change alone is heard at once; of many, those that come meanwhile cost one look.
                    tokio::time::sleep(LOOK_PAUSE).await;
                }
            }
        }
    }

    /// Takes these news and those behind them. The variables of containers are made of all Services each
    /// time, and so once for many.
    async fn take_waiting(&mut self, state: &mut Standalone, known: &mut KnownPods, first: News) {
        let mut next = Some(first);
        let mut services_changed = false;
        while let Some(news) = next {
            match news {
                News::Source(change) => services_changed |= self.take(state, change),
                News::SourcesSynced { pods } => {
                    // Pods may start after this, with the variables of all Services.
                    self.node.set_service_env(env::variables(state.services()));
                    services_changed = false;
                    self.wait_for_adopted(pods).await;
                    self.look_at_pods(state, known);
                    tell_synced(&self.dataplane);
                }
            }
            next = self.news.try_recv().ok();
        }
        if services_changed {
            self.node.set_service_env(env::variables(state.services()));
        }
    }

    /// Whether a Service changed.
    fn take(&self, state: &mut Standalone, change: Change) -> bool {
        let outputs = match change {
            Change::Service(_, Some(service)) => state.upsert_service(service),
            Change::Service(key, None) => state.remove_service(&key),
            Change::EndpointSlice(_, Some(slice)) => {
                self.dataplane.tell(ToDataplane::Slice(Box::new(slice.read())));
                return false;
            }
            Change::EndpointSlice(key, None) => {
                self.dataplane.tell(ToDataplane::SliceGone(key));
                return false;
            }
            Change::Pod(_) | Change::ConfigMap(..) | Change::Secret(..) => return false,
        };
        self.tell(outputs);
        true
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

    /// Called for every change of any pod: what did not change costs a comparison and nothing else.
    fn look_at_pods(&self, state: &mut Standalone, known: &mut KnownPods) {
        known.look += 1;
        for view in self.pods.list() {
            // A life that waits for another of its name has no address yet; the other one counts.
            if matches!(view.lifecycle, Lifecycle::Queued { .. }) {
                continue;
            }
            if let Some((old, seen)) = known.pods.get_mut(&view.key) {
                *seen = known.look;
                if Arc::ptr_eq(old, &view) {
                    continue;
                }
            }
            known.pods.insert(view.key.clone(), (view.clone(), known.look));
            let node = self.node.now().name.clone();
            match BackendPod::of(&view.pod, &view.status, &node, is_terminating(&view)) {
                Some(pod) => self.tell(state.upsert_pod(pod)),
                None => self.tell(state.remove_pod(&view.key)),
            }
        }
        let gone = |(_, seen): &(Arc<PodView>, u64)| *seen < known.look;
        let keys: Vec<PodKey> =
            known.pods.iter().filter(|(_, pod)| gone(pod)).map(|(key, _)| key.clone()).collect();
        for key in keys {
            known.pods.remove(&key);
            self.tell(state.remove_pod(&key));
        }
    }

    fn tell(&self, outputs: Vec<Output>) {
        for output in outputs {
            self.dataplane.tell(output);
        }
    }
}

/// Services and slices of files alone, for a daemon that runs no pods and never looks at any.
pub struct ServiceFiles {
    dataplane: DataplaneHandle,
    state: Mutex<FileState>,
    manifests: OnceLock<Manifests>,
}

/// What was read, as the files have it, and the addresses given.
struct FileState {
    standalone: Standalone,
    services: BTreeMap<ObjectKey, Arc<Service>>,
    slices: BTreeMap<ObjectKey, KeptSlice>,
}

impl std::fmt::Debug for ServiceFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceFiles").field("manifests", &self.manifests).finish_non_exhaustive()
    }
}

impl ServiceFiles {
    pub fn new(dataplane: DataplaneHandle) -> Self {
        let state = FileState {
            standalone: Standalone::new(pools()),
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
        };
        ServiceFiles { dataplane, state: Mutex::new(state), manifests: OnceLock::new() }
    }

    /// The watched folder, for its problems and its line in `why node`.
    pub fn show(&self, manifests: Manifests) {
        // There is one folder per daemon; a second one would be a mistake in the wiring.
        let _ = self.manifests.set(manifests);
    }

    /// Takes one change further. Pods, ConfigMaps and Secrets are the other half's.
    pub fn take(&self, change: Change) {
        let mut state = self.state();
        let outputs = match change {
            Change::Service(key, Some(service)) => {
                state.services.insert(key, service.clone());
                state.standalone.upsert_service(service)
            }
            Change::Service(key, None) => {
                state.services.remove(&key);
                state.standalone.remove_service(&key)
            }
            Change::EndpointSlice(key, Some(slice)) => {
                let told = Output::Slice(Box::new(slice.read()));
                state.slices.insert(key, slice);
                vec![told]
            }
            Change::EndpointSlice(key, None) => {
                state.slices.remove(&key);
                vec![Output::SliceGone(key)]
            }
            Change::Pod(_) | Change::ConfigMap(..) | Change::Secret(..) => Vec::new(),
        };
        outputs.into_iter().for_each(|output| self.dataplane.tell(output));
    }

    /// Every file was read once.
    pub fn synced(&self) {
        tell_synced(&self.dataplane);
    }

    fn state(&self) -> MutexGuard<'_, FileState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SourceReads for ServiceFiles {
    fn sources(&self) -> Vec<String> {
        self.manifests.get().map(Manifests::summary).into_iter().collect()
    }

    fn problems(&self) -> Vec<SourceProblem> {
        self.manifests.get().map(Manifests::problems).unwrap_or_default()
    }

    fn objects(&self, kind: ObjectKind) -> Vec<ObjectKey> {
        let state = self.state();
        match kind {
            ObjectKind::Service => state.services.keys().cloned().collect(),
            ObjectKind::EndpointSlice => state.slices.keys().cloned().collect(),
            ObjectKind::ConfigMap | ObjectKind::Secret => Vec::new(),
        }
    }

    fn object(&self, kind: ObjectKind, key: &ObjectKey) -> Option<serde_json::Value> {
        let state = self.state();
        match kind {
            ObjectKind::Service => serde_json::to_value(&**state.services.get(key)?).ok(),
            ObjectKind::EndpointSlice => serde_json::to_value(state.slices.get(key)?.read()).ok(),
            ObjectKind::ConfigMap | ObjectKind::Secret => None,
        }
    }
}

/// Everything was heard. The ranges of Services' addresses are a control plane's to say: the pool here
/// is only the default, and a lone machine may have neighbours in it.
fn tell_synced(dataplane: &DataplaneHandle) {
    dataplane.tell(ToDataplane::ServiceRanges(Vec::new()));
    dataplane.tell(ToDataplane::SourcesSynced);
}

fn is_terminating(view: &PodView) -> bool {
    !matches!(view.lifecycle, Lifecycle::Syncing | Lifecycle::Queued { .. })
}

#[cfg(test)]
mod tests {
    use longshore_core::ruleset::trace::{Fate, Origin};
    use longshore_kernel::nft::FakeNft;
    use serde_json::{Value, json};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::dataplane::{DataplaneConfig, Kernel, ModeRequest, OpenKernel, dataplane};
    use crate::pods::Clock;

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> Arc<T> {
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[tokio::test]
    async fn a_daemon_without_pods_serves_the_slices_of_files() {
        let node = std::net::IpAddr::from([192, 168, 0, 1]);
        let kernel = Kernel::fake(Arc::new(FakeNft::new()), node);
        let stop = CancellationToken::new();
        let config = DataplaneConfig::new(ModeRequest::Nftables, "n1", vec![node]);
        let open = OpenKernel::new(move || Ok(kernel.clone()));
        let (handle, task) = dataplane(config, open, Clock::System, stop.clone());
        let task = tokio::spawn(task);
        let files = ServiceFiles::new(handle.clone());
        let key = ObjectKey::new("ns", "web");
        files.take(Change::Service(
            key.clone(),
            Some(read(json!({"metadata": {"name": "web", "namespace": "ns"},
                "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}}))),
        ));
        files.take(Change::EndpointSlice(
            ObjectKey::new("ns", "web-1"),
            Some(KeptSlice::new(&read(json!({"metadata": {"name": "web-1", "namespace": "ns",
                    "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
                "endpoints": [{"addresses": ["10.244.1.1"]}], "ports": [{"port": 8080}]})))),
        ));
        files.synced();
        handle.synced().wait_for(|done| *done).await.unwrap();
        let query = longshore_core::explain::Query {
            dst: "10.96.0.1:80".parse().unwrap(),
            protocol: longshore_core::ruleset::Protocol::Tcp,
            origin: Origin::Node,
            src: node,
        };
        let answer = handle.explain(query).await.unwrap();
        let Fate::Endpoints(to) = &answer.fate else { panic!("{}", answer.sentence) };
        assert_eq!(to[0].to.to_string(), "10.244.1.1:8080");
        assert_eq!(files.objects(ObjectKind::Service), std::slice::from_ref(&key));
        assert_eq!(files.object(ObjectKind::Service, &key).unwrap()["spec"]["clusterIP"], "10.96.0.1");
        let rival = ObjectKey::new("ns", "zoo");
        files.take(Change::Service(
            rival.clone(),
            Some(read(json!({"metadata": {"name": "zoo", "namespace": "ns"},
                "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 81}]}}))),
        ));
        let problems = async || handle.list().await.unwrap().pop().unwrap().problems.join("\n");
        let rows = async || while !problems().await.contains("10.96.0.1 is taken by Service ns/web") {};
        tokio::time::timeout(Duration::from_secs(10), rows()).await.expect("svc list says who has it");
        files.take(Change::Service(key.clone(), None));
        assert_eq!(files.objects(ObjectKind::Service), [rival]);
        stop.cancel();
        task.await.unwrap();
    }
}
