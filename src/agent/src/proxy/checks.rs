//! One small HTTP server for each Service with a `healthCheckNodePort`: load balancers ask it whether
//! this node has endpoints of its own. Opened, counted and closed as Services change; which should be
//! open is decided in `longshore_core::service::health`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use longshore_core::ids::ObjectKey;
use longshore_core::service::health::{HealthCheck, ListenerStep, listener_steps};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::servers;
use crate::dataplane::{DataplaneHandle, HealthChecks, ProxyHealth};
use crate::plain_http;

/// A port that is taken is tried again after this.
const LISTEN_AGAIN: Duration = Duration::from_secs(10);
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// The open listeners.
struct Listeners {
    dataplane: DataplaneHandle,
    open: BTreeMap<ObjectKey, Listener>,
    addresses: Option<BTreeSet<IpAddr>>,
}

struct Listener {
    check: watch::Sender<HealthCheck>,
    stop: CancellationToken,
    /// Not every address could be had.
    incomplete: bool,
}

/// Keeps the listeners as the dataplane says until `stop`.
pub async fn run(dataplane: DataplaneHandle, stop: CancellationToken) {
    let mut wanted = dataplane.watch_health_checks();
    let mut listeners = Listeners { dataplane, open: BTreeMap::new(), addresses: None };
    loop {
        let checks = wanted.borrow_and_update().clone();
        listeners.follow(&checks).await;
        let retry = listeners.open.values().any(|listener| listener.incomplete);
        tokio::select! {
            () = stop.cancelled() => return listeners.close_all(),
            changed = wanted.changed() => if changed.is_err() { return listeners.close_all() },
            () = tokio::time::sleep(LISTEN_AGAIN), if retry => listeners.close_incomplete(),
        }
    }
}

impl Listeners {
    async fn follow(&mut self, wanted: &HealthChecks) {
        if self.addresses != wanted.addresses {
            self.close_all();
            self.addresses.clone_from(&wanted.addresses);
        }
        let open: BTreeMap<ObjectKey, HealthCheck> =
            self.open.iter().map(|(key, listener)| (key.clone(), listener.check.borrow().clone())).collect();
        for step in listener_steps(&open, &wanted.checks) {
            match step {
                ListenerStep::Close(service) => self.close(&service),
                ListenerStep::Count(service, count) => {
                    if let Some(listener) = self.open.get(&service) {
                        listener.check.send_modify(|check| check.local_endpoints = count);
                    }
                }
                ListenerStep::Open(check) => self.open(check).await,
            }
        }
    }

    async fn open(&mut self, check: HealthCheck) {
        let (key, port) = (check.service.clone(), check.port);
        let (sender, reader) = watch::channel(check);
        let stop = CancellationToken::new();
        let router = router(reader, self.dataplane.health().clone());
        let everywhere = BTreeSet::from([IpAddr::from(Ipv6Addr::UNSPECIFIED)]);
        let mut problems = Vec::new();
        for addr in self.addresses.as_ref().unwrap_or(&everywhere) {
            let addr = SocketAddr::new(*addr, port);
            match plain_http::listen(addr).await {
                Ok(listener) => {
                    tokio::spawn(plain_http::serve(listener, router.clone(), stop.clone()));
                }
                Err(error) => problems.push(format!("{addr}: {error}")),
            }
        }
        let incomplete = !problems.is_empty();
        let problem = incomplete.then(|| {
            format!(
                "Service {key}: healthCheckNodePort {port} cannot be answered ({}); tried again",
                problems.join(", ")
            )
        });
        if let Some(problem) = &problem
            && self.dataplane.note(&note_key(&key), Some(problem.clone()))
        {
            tracing::warn!("{problem}");
        } else if problem.is_none() {
            self.dataplane.note(&note_key(&key), None);
        }
        self.open.insert(key, Listener { check: sender, stop, incomplete });
    }

    fn close(&mut self, service: &ObjectKey) {
        if let Some(listener) = self.open.remove(service) {
            listener.stop.cancel();
            self.dataplane.note(&note_key(service), None);
        }
    }

    fn close_all(&mut self) {
        let all: Vec<ObjectKey> = self.open.keys().cloned().collect();
        all.iter().for_each(|service| self.close(service));
    }

    /// Those are opened anew by the next look, their notes staying until it worked.
    fn close_incomplete(&mut self) {
        self.open.retain(|_, listener| {
            if listener.incomplete {
                listener.stop.cancel();
            }
            !listener.incomplete
        });
    }
}

fn note_key(service: &ObjectKey) -> String {
    format!("healthCheckNodePort {service}")
}

/// kube-proxy answers every path alike.
fn router(check: watch::Receiver<HealthCheck>, health: ProxyHealth) -> Router {
    Router::new().fallback(answer).with_state(Arc::new((check, health)))
}

async fn answer(State(state): State<Arc<(watch::Receiver<HealthCheck>, ProxyHealth)>>) -> Response {
    let (check, health) = &*state;
    let check = check.borrow().clone();
    let healthy = health.is_healthy();
    let mut response = servers::answer(check.status(healthy) == 200, check.body(healthy));
    response.headers_mut().insert(WEIGHT, HeaderValue::from(check.local_endpoints));
    response
}
