//! Services and EndpointSlices of the cluster, straight to the dataplane, and the variables containers
//! get of them; what is wrong with them goes back as events.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use longshore_cluster::events::{Component, EventRate, Events, events};
use longshore_cluster::{ApiClient, Piece, Selector, Unreadable, Watch, path::Path};
use longshore_core::event::{About, Event};
use longshore_core::ids::ObjectKey;
use longshore_core::pod::events::Severity;
use longshore_core::service::problems::{INVALID_SERVICE, INVALID_SLICE, ObjectProblem, SERVICE, SLICE};
use longshore_core::service::types::{EndpointSlice, Service};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::service_cidrs;
use crate::dataplane::{Change, DataplaneHandle};
use crate::node::Node;
use crate::pods::Clock;
use crate::sourcing::Sourcing;

/// Slices no proxy has to program, and Services of other proxies (KEP-2447): not even sent to us.
const SLICES: &str = "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name";
/// Variables are made from all Services: for the first change at once, and not for each of a thousand.
const ENV_EVERY: Duration = Duration::from_millis(500);

/// Keeps the dataplane told.
#[derive(Debug)]
pub struct ClusterServices {
    pub client: ApiClient,
    pub dataplane: DataplaneHandle,
    /// Who tells events, and how fast.
    pub node: String,
    pub event_rate: EventRate,
    pub clock: Clock,
    /// Where pods run as well, their containers get variables of the Services.
    pub containers: Option<Containers>,
}

/// Where the variables of containers go.
#[derive(Debug)]
pub struct Containers {
    pub node: Node,
    pub sourcing: Arc<Sourcing>,
}

enum Told {
    Services(Piece<Service>),
    Slices(Piece<EndpointSlice>),
}

impl ClusterServices {
    /// Runs for ever; ends by being dropped.
    pub async fn run(self) {
        let (events, writer) = events(self.client.clone(), Component::KubeProxy, &self.node, self.event_rate);
        if self.containers.is_none() {
            // Beside the pods the other half says it.
            events.tell(started(&self.node, self.clock.now()));
        }
        let telling = tell_problems(self.dataplane.problems(), &events, self.clock);
        let (news, mut told) = mpsc::unbounded_channel();
        let services = Watch::new(self.client.clone(), Selector::all(Path::services()));
        let slices = Watch::new(self.client.clone(), Selector::all(Path::endpoint_slices()).labels(SLICES));
        let to_slices = news.clone();
        // The receiver lives as long as the watches do.
        let to_services = move |told| drop(news.send(Told::Services(told)));
        let to_slices = move |told| drop(to_slices.send(Told::Slices(told)));
        let watching =
            async { tokio::join!(services.run_by_piece(to_services), slices.run_by_piece(to_slices)) };
        let taking = async {
            let mut state = State::new(events.clone());
            let mut env_at: Option<Instant> = None;
            let mut earliest = Instant::now();
            loop {
                let due = async {
                    match env_at {
                        Some(at) => tokio::time::sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    told = told.recv() => {
                        let Some(told) = told else { return };
                        if self.take(&mut state, told) {
                            env_at.get_or_insert_with(|| earliest.max(Instant::now()));
                        }
                    }
                    () = due => {
                        env_at = None;
                        earliest = Instant::now() + ENV_EVERY;
                        self.tell_env();
                    }
                }
            }
        };
        let ranges = service_cidrs::follow(self.client.clone(), self.dataplane.clone());
        tokio::select! {
            _ = watching => {}
            () = taking => {}
            () = telling => {}
            () = ranges => {}
            () = writer.run() => {}
        }
    }

    /// Answers whether Services changed, after all of them were told once.
    fn take(&self, state: &mut State, told: Told) -> bool {
        let (is_service, first) = match &told {
            Told::Services(Piece::Listed(_)) => (true, !std::mem::replace(&mut state.services_told, true)),
            Told::Slices(Piece::Listed(_)) => (false, !std::mem::replace(&mut state.slices_told, true)),
            Told::Services(_) => (state.services_told, false),
            Told::Slices(_) => (false, false),
        };
        match told {
            Told::Services(piece) => self.services(state, piece),
            Told::Slices(piece) => self.slices(state, piece),
        }
        if first && is_service {
            // Containers of the first pods have them too.
            self.tell_env();
        }
        if first && state.services_told && state.slices_told {
            self.dataplane.tell(Change::SourcesSynced);
        }
        is_service
    }

    fn services(&self, state: &mut State, piece: Piece<Service>) {
        match piece {
            Piece::Begins => {}
            Piece::Listed(now) => {
                self.forget_unlisted(state, SERVICE, &now);
                for key in state.services.difference(&now) {
                    self.set_service(key, None);
                }
                state.services = now;
            }
            Piece::Set(key, service) => {
                self.forget_unreadable(state, SERVICE, &key);
                self.set_service(&key, Some(service));
                state.services.insert(key);
            }
            Piece::Gone(key, _) => {
                self.forget_unreadable(state, SERVICE, &key);
                self.set_service(&key, None);
                state.services.remove(&key);
            }
            Piece::Unreadable(object) => self.unreadable(state, (SERVICE, INVALID_SERVICE), &object),
        }
    }

    fn set_service(&self, key: &ObjectKey, service: Option<Service>) {
        if let Some(containers) = &self.containers {
            containers.sourcing.note_service(key, service.as_ref());
        }
        self.dataplane.tell(match service {
            Some(service) => Change::Service(Box::new(service)),
            None => Change::ServiceGone(key.clone()),
        });
    }

    fn slices(&self, state: &mut State, piece: Piece<EndpointSlice>) {
        match piece {
            Piece::Begins => {}
            Piece::Listed(now) => {
                self.forget_unlisted(state, SLICE, &now);
                for key in state.slices.difference(&now) {
                    self.dataplane.tell(Change::SliceGone(key.clone()));
                }
                state.slices = now;
            }
            Piece::Set(key, slice) => {
                self.forget_unreadable(state, SLICE, &key);
                self.dataplane.tell(Change::Slice(Box::new(slice)));
                state.slices.insert(key);
            }
            Piece::Gone(key, _) => {
                self.forget_unreadable(state, SLICE, &key);
                self.dataplane.tell(Change::SliceGone(key.clone()));
                state.slices.remove(&key);
            }
            Piece::Unreadable(object) => self.unreadable(state, (SLICE, INVALID_SLICE), &object),
        }
    }

    /// What cannot be read is left as it was, and said.
    fn unreadable(
        &self,
        state: &mut State,
        (kind, reason): (&'static str, &'static str),
        object: &Unreadable,
    ) {
        let Unreadable { key, uid, problem } = object;
        tracing::error!(object = %key, problem, "a {kind} of the API server cannot be read and is left alone");
        let sentence = format!("cannot be read and is left as it was: {problem}");
        self.dataplane.note(&about(kind, key), Some(format!("{}: {sentence}", about(kind, key))));
        let problem = ObjectProblem::new(kind, (key, *uid), reason, &[sentence]);
        state.events.tell((problem, self.clock.now()).into());
        state.unreadable.insert((kind, key.clone()));
    }

    /// One that can be read now, or is gone.
    fn forget_unreadable(&self, state: &mut State, kind: &'static str, key: &ObjectKey) {
        if !state.unreadable.is_empty() && state.unreadable.remove(&(kind, key.clone())) {
            self.dataplane.note(&about(kind, key), None);
        }
    }

    /// Those of a kind that are not among these.
    fn forget_unlisted(&self, state: &mut State, kind: &'static str, now: &HashSet<ObjectKey>) {
        let is_gone = |(of, key): &&(&'static str, ObjectKey)| *of == kind && !now.contains(key);
        let gone: Vec<_> = state.unreadable.iter().filter(is_gone).cloned().collect();
        gone.iter().for_each(|(kind, key)| self.forget_unreadable(state, kind, key));
    }

    fn tell_env(&self) {
        let Some(containers) = &self.containers else { return };
        if let Some(variables) = containers.sourcing.new_service_variables() {
            containers.node.set_service_env(variables);
        }
    }
}

struct State {
    services: HashSet<ObjectKey>,
    slices: HashSet<ObjectKey>,
    services_told: bool,
    slices_told: bool,
    /// What could not be read, by kind.
    unreadable: HashSet<(&'static str, ObjectKey)>,
    events: Events,
}

impl State {
    fn new(events: Events) -> Self {
        State {
            services: HashSet::new(),
            slices: HashSet::new(),
            services_told: false,
            slices_told: false,
            unreadable: HashSet::new(),
            events,
        }
    }
}

/// The proxy alone is up: kube-proxy says so once it has begun to listen to the API server, before anything
/// is programmed, of a Node whose uid is its name (`birthCry` in cmd/kube-proxy/app/server.go).
fn started(node: &str, at: Timestamp) -> Event {
    let about = About::node(node);
    Event {
        about,
        severity: Severity::Normal,
        reason: "Starting".to_owned(),
        message: "Starting longshore.".to_owned(),
        at,
    }
}

fn about(kind: &str, key: &ObjectKey) -> String {
    format!("{kind} {key}")
}

async fn tell_problems(mut problems: broadcast::Receiver<ObjectProblem>, events: &Events, clock: Clock) {
    loop {
        match problems.recv().await {
            Ok(problem) => events.tell((problem, clock.now()).into()),
            Err(RecvError::Lagged(count)) => tracing::debug!(count, "events of Services are dropped"),
            Err(RecvError::Closed) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use longshore_cluster::fake::{FakeApi, Fault};
    use longshore_core::explain::Query;
    use longshore_core::ruleset::Protocol;
    use longshore_core::ruleset::trace::Origin;
    use longshore_kernel::nft::FakeNft;
    use serde_json::{Value, json};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::dataplane::{DataplaneConfig, Kernel, ModeRequest, OpenKernel, dataplane};

    const SERVICES: &str = "/api/v1/namespaces/ns/services/";
    const RANGE: &str = "/apis/networking.k8s.io/v1/servicecidrs/kubernetes";
    const SLICE_OF_WEB: &str = "/apis/discovery.k8s.io/v1/namespaces/ns/endpointslices/web-1";

    fn uid(number: u32) -> String {
        format!("0a1b2c3d-0000-4fff-8abc-{number:012}")
    }

    /// A dataplane on fakes that hears of the Services of this server.
    fn follow(api: &FakeApi) -> DataplaneHandle {
        let address = IpAddr::from([192, 168, 0, 1]);
        let kernel = Kernel::fake(Arc::new(FakeNft::new()), address);
        let config = DataplaneConfig::new(ModeRequest::Nftables, "n1", vec![address]);
        let clock = Clock::following_tokio(Timestamp::from_second(1_800_000_000).unwrap());
        let open = OpenKernel::new(move || Ok(kernel.clone()));
        let (dataplane, task) = dataplane(config, open, clock, CancellationToken::new());
        tokio::spawn(task);
        let services = ClusterServices {
            client: api.client(),
            dataplane: dataplane.clone(),
            node: "n1".to_owned(),
            event_rate: EventRate { per_second: 0, burst: 1 },
            clock,
            containers: None,
        };
        tokio::spawn(services.run());
        dataplane
    }

    fn put(api: &FakeApi, name: &str, number: u32, spec: Value) {
        let metadata = json!({"name": name, "namespace": "ns", "uid": uid(number)});
        api.put(&format!("{SERVICES}{name}"), json!({"metadata": metadata, "spec": spec}));
    }

    /// Objects that events are about, with reason, message and count.
    fn told(api: &FakeApi) -> Vec<String> {
        let events = api.list("/api/v1/namespaces/ns/events");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut told: Vec<String> = events
            .iter()
            .map(|event| {
                assert_eq!(event["source"], json!({"component": "kube-proxy", "host": "n1"}));
                let object = &event["involvedObject"];
                let about = ["apiVersion", "kind", "name", "uid"].map(|field| text(&object[field])).join(" ");
                let (reason, message) = (text(&event["reason"]), text(&event["message"]));
                format!("{about} {reason}: {message} x{}", event["count"])
            })
            .collect();
        told.sort();
        told
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_served_is_an_event_of_its_object_once() {
        let api = FakeApi::default();
        let good = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
        put(&api, "web", 1, good.clone());
        put(&api, "odd", 2, json!({"clusterIP": "10.96.0.2", "ports": [{"port": 0}]}));
        put(&api, "unread", 3, json!({"clusterIP": "10.96.0.3", "ports": "none"}));
        let labels = json!({"kubernetes.io/service-name": "web"});
        let slice = json!({"metadata": {"name": "web-1", "namespace": "ns", "uid": uid(4), "labels": labels},
            "addressType": "IPv4", "endpoints": [{"addresses": ["127.0.0.1"]}], "ports": [{"port": 80}]});
        api.put(SLICE_OF_WEB, slice.clone());
        let dataplane = follow(&api);
        dataplane.synced().wait_for(|synced| *synced).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let all = told(&api);
        let want = [
            format!(
                "discovery.k8s.io/v1 EndpointSlice web-1 {} InvalidEndpointSlice: EndpointSlice ns/web-1: \
                     127.0.0.1 is a loopback address, which no endpoint can have x1",
                uid(4)
            ),
            format!(
                "v1 Service odd {} InvalidService: spec.ports[0].port: 0 is outside 1..=65535 x1",
                uid(2)
            ),
        ];
        assert_eq!([&all[0], &all[1]], [&want[0], &want[1]]);
        let unread =
            format!("v1 Service unread {} InvalidService: cannot be read and is left as it was", uid(3));
        assert!(all[2].starts_with(&unread), "{all:?}");
        let shown = |view: &longshore_core::service::view::DataplaneView| view.warnings.join("\n");
        assert!(
            shown(&dataplane.view()).contains("Service ns/unread: cannot be read"),
            "{:?}",
            dataplane.view()
        );

        // A new list tells everything again.
        api.compact();
        api.break_connections();
        api.put(SLICE_OF_WEB, slice);
        put(&api, "unread", 3, good.clone());
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(told(&api), all);
        assert!(!shown(&dataplane.view()).contains("ns/unread"), "{:?}", dataplane.view());
    }
    /// What `svc explain` says of an address in the range that no Service has, once Services are there.
    async fn said_of_nobody(dataplane: &DataplaneHandle) -> String {
        dataplane.synced().wait_for(|synced| *synced).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        let query = Query {
            dst: "10.96.0.77:80".parse().unwrap(),
            protocol: Protocol::Tcp,
            origin: Origin::Pod,
            src: IpAddr::from([10, 244, 1, 9]),
        };
        dataplane.explain(query).await.unwrap().sentence
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_of_the_range_that_no_service_has_are_dropped_while_it_is_known() {
        let api = FakeApi::default();
        let range =
            json!({"metadata": {"name": "kubernetes", "uid": uid(9)}, "spec": {"cidrs": ["10.96.0.0/16"]}});
        api.put(RANGE, range);
        let dataplane = follow(&api);
        assert_eq!(
            said_of_nobody(&dataplane).await,
            "10.96.0.77:80/tcp is dropped: no Service has 10.96.0.77, which is in 10.96.0.0/16, a range of \
             Services' addresses"
        );
        api.remove(RANGE);
        assert!(said_of_nobody(&dataplane).await.ends_with("routed like any other"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_proxy_alone_says_of_its_node_that_it_has_started() {
        let api = FakeApi::default();
        let _dataplane = follow(&api);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let events = api.list("/api/v1/namespaces/default/events");
        assert_eq!(events.len(), 1);
        let node = json!({"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "n1"});
        assert_eq!(events[0]["involvedObject"], node);
        assert_eq!(events[0]["source"], json!({"component": "kube-proxy", "host": "n1"}));
        assert_eq!((&events[0]["reason"], &events[0]["type"]), (&json!("Starting"), &json!("Normal")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_shows_no_ranges_holds_no_service_up() {
        for code in [403, 404] {
            let api = FakeApi::default();
            api.order("GET", "/apis/networking.k8s.io/v1/servicecidrs", u32::MAX, Fault::Refuse(code, None));
            put(&api, "web", 1, json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}));
            let dataplane = follow(&api);
            assert!(said_of_nobody(&dataplane).await.ends_with("routed like any other"));
            assert_eq!(dataplane.list().await.unwrap().len(), 1, "{code}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_became_unreadable_is_served_as_it_was_until_it_is_deleted() {
        let api = FakeApi::default();
        put(&api, "web", 1, json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}));
        let dataplane = follow(&api);
        dataplane.synced().wait_for(|synced| *synced).await.unwrap();
        put(&api, "web", 1, json!({"clusterIP": "10.96.0.1", "ports": "none"}));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(dataplane.list().await.unwrap().len(), 1);
        assert!(dataplane.view().warnings.iter().any(|text| text.contains("ns/web")));
        api.remove(&format!("{SERVICES}web"));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(dataplane.list().await.unwrap(), []);
        assert!(!dataplane.view().warnings.iter().any(|text| text.contains("ns/web")));
    }
}
