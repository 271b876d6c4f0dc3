//! Services and EndpointSlices of the cluster, straight to the dataplane, and the variables containers
//! get of them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use longshore_cluster::{ApiClient, Piece, Selector, Watch, path::Path};
use longshore_core::ids::ObjectKey;
use longshore_core::service::types::{EndpointSlice, Service};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::dataplane::{Change, DataplaneHandle};
use crate::node::Node;
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
            let mut state = State::default();
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
        tokio::select! { _ = watching => {}, () = taking => {} }
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
                for key in state.services.difference(&now) {
                    self.set_service(key, None);
                }
                state.services = now;
            }
            Piece::Set(key, service) => {
                self.set_service(&key, Some(service));
                state.services.insert(key);
            }
            Piece::Gone(key, _) => {
                self.set_service(&key, None);
                state.services.remove(&key);
            }
            Piece::Unreadable(key, problem) => unreadable("Service", &key, &problem),
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
                for key in state.slices.difference(&now) {
                    self.dataplane.tell(Change::SliceGone(key.clone()));
                }
                state.slices = now;
            }
            Piece::Set(key, slice) => {
                self.dataplane.tell(Change::Slice(Box::new(slice)));
                state.slices.insert(key);
            }
            Piece::Gone(key, _) => {
                self.dataplane.tell(Change::SliceGone(key.clone()));
                state.slices.remove(&key);
            }
            Piece::Unreadable(key, problem) => unreadable("EndpointSlice", &key, &problem),
        }
    }

    fn tell_env(&self) {
        let Some(containers) = &self.containers else { return };
        if let Some(variables) = containers.sourcing.new_service_variables() {
            containers.node.set_service_env(variables);
        }
    }
}

#[derive(Default)]
struct State {
    services: HashSet<ObjectKey>,
    slices: HashSet<ObjectKey>,
    services_told: bool,
    slices_told: bool,
}

fn unreadable(kind: &str, key: &ObjectKey, problem: &str) {
    tracing::error!(object = %key, problem, "a {kind} of the API server cannot be read and is left alone");
}
