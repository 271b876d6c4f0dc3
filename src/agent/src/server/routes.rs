//! One way for every request: who calls, which path it is, whether the caller may, and only then the answer.
//! The port without authentication takes the same way from the third step on, for fewer paths.

use std::sync::Arc;

use http::{Method, Request, StatusCode, header};
use hyper::body::Incoming;
use longshore_core::kubelet_api::access::forbidden;
use longshore_core::kubelet_api::query::Query;
use longshore_core::kubelet_api::route::{Metrics, Route, Verb, needed};
use longshore_core::kubelet_api::summary::{cadvisor_metrics, resource_metrics, summary};
use tokio::sync::Semaphore;

use super::body::{self, Answer};
use super::callers::Callers;
use super::checkpoint::Checkpoints;
use super::listener::{Peer, Service};
use super::logs::Logs;
use super::metrics::{self, DaemonMetrics};
use super::node_logs::NodeLogs;
use super::pods;
use super::profiles::Profiles;
use super::stats::Stats;
use super::streams::StreamRoutes;
use crate::pods::PodsView;
use crate::probes::Prober;

/// Requests at the same time, up to the head of their answer: who may call is asked for all of them.
const MAX_REQUESTS: usize = 1000;
/// No request of this API has a body that counts; longer ones are mischief, bytes.
const MAX_BODY: u64 = 64 << 10;

/// What answers are made of.
pub(super) struct Answers {
    pub(super) pods: PodsView,
    pub(super) logs: Logs,
    pub(super) streams: StreamRoutes,
    pub(super) stats: Stats,
    pub(super) metrics: DaemonMetrics,
    pub(super) checkpoints: Checkpoints,
    pub(super) prober: Prober,
    /// `enableDebuggingHandlers`.
    pub(super) debugging: bool,
    pub(super) profiles: Profiles,
    pub(super) node_logs: NodeLogs,
    /// The configuration as `/configz` shows it.
    pub(super) configz: serde_json::Value,
    /// The flags that were given, one a line.
    pub(super) flags: String,
    pub(super) started: jiff::Timestamp,
}

/// The server with TLS.
pub(super) struct Guarded {
    callers: Callers,
    answers: Arc<Answers>,
    /// For requests until their head is answered, those of strangers among them.
    places: Semaphore,
}

impl Guarded {
    pub(super) fn new(callers: Callers, answers: Arc<Answers>) -> Self {
        Self { callers, answers, places: Semaphore::new(MAX_REQUESTS) }
    }
}

impl Service for Guarded {
    async fn answer(&self, peer: Peer, request: Request<Incoming>) -> Answer {
        let Ok(_place) = self.places.try_acquire() else { return body::busy("requests") };
        let Some(user) = self.callers.who(&peer, request.headers()).await else {
            return body::text(StatusCode::UNAUTHORIZED, "Unauthorized");
        };
        let route = Route::parse(request.uri().path());
        self.answers.metrics.requests.count(request.method(), route.as_ref(), "readwrite");
        let Some(verb) = Verb::of_method(request.method().as_str()) else { return not_allowed() };
        let needed = needed(route.as_ref(), verb);
        match self.callers.may(&peer, &user, &needed).await {
            Ok(true) => {}
            Ok(false) => return body::text(StatusCode::FORBIDDEN, forbidden(&user, &needed)),
            Err(_) => {
                let message =
                    format!("Authorization error (user={}, verb={})\n", user.name, needed.verb.name());
                return body::text(StatusCode::INTERNAL_SERVER_ERROR, message);
            }
        }
        let Some(route) = route else { return body::text(StatusCode::NOT_FOUND, "404 page not found\n") };
        if route.is_debugging() && !self.answers.debugging {
            return body::text(StatusCode::METHOD_NOT_ALLOWED, "Debug endpoints are disabled.\n");
        }
        if !route.verbs().contains(&verb) {
            return not_allowed();
        }
        if has_long_body(&request) {
            return body::text(StatusCode::PAYLOAD_TOO_LARGE, "the request's body is too long\n");
        }
        match route {
            Route::Exec(target) => self.answers.streams.exec(&target, &peer, request).await,
            Route::Attach(target) => self.answers.streams.attach(&target, &peer, request).await,
            Route::PortForward(target) => self.answers.streams.port_forward(&target, &peer, request).await,
            route => self.answers.plain(&route, request.uri().query().unwrap_or_default()).await,
        }
    }
}

impl Answers {
    /// Answers that are no streams.
    async fn plain(&self, route: &Route, query: &str) -> Answer {
        match route {
            Route::Healthz => body::text(StatusCode::OK, "ok"),
            Route::Pods => pods::pods(&self.pods),
            Route::RunningPods => pods::running(&self.pods),
            Route::ContainerLogs(target) => self.logs.container(target, query).await,
            Route::NodeLogs(parts) => self.node_logs.answer(parts, query).await,
            Route::Run(target) => self.streams.run(target, query).await,
            Route::Configz => {
                body::json(serde_json::json!({"kubeletconfig": self.configz}).to_string().into_bytes())
            }
            Route::Statusz => self.statusz(),
            Route::Flagz => body::text(StatusCode::OK, format!("\nkubelet flagz\n\n{}", self.flags)),
            Route::Pprof(page) => self.profiles.answer(*page, query),
            Route::Exec(_) | Route::Attach(_) | Route::PortForward(_) => not_allowed(),
            Route::Summary => match Query::parse(query) {
                Ok(query) => {
                    let only = query.flag("only_cpu_and_memory");
                    body::json(summary(&self.stats.read().await, only).to_string().into_bytes())
                }
                Err(why) => body::text(StatusCode::BAD_REQUEST, format!("{why}\n")),
            },
            Route::Metrics(kind) => {
                let text = self.metrics(*kind).await;
                body::answer(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", body::whole(text))
            }
            Route::Checkpoint(target) => self.checkpoints.make(target, query).await,
        }
    }

    async fn metrics(&self, kind: Metrics) -> String {
        match kind {
            Metrics::Daemon => self.metrics.text(),
            Metrics::Resource => resource_metrics(&self.stats.read().await),
            Metrics::Cadvisor => cadvisor_metrics(&self.stats.read().await),
            Metrics::Probes => self.prober.metrics_text(),
            Metrics::Slis => metrics::slis(),
        }
    }

    /// The port without authentication.
    pub(super) async fn read_only(&self, method: &Method, path: &str, query: &str) -> Answer {
        let route = Route::parse(path).filter(Route::is_read_only);
        self.metrics.requests.count(method, route.as_ref(), "readonly");
        match route {
            None => body::text(StatusCode::NOT_FOUND, "404 page not found\n"),
            Some(_) if method != Method::GET => not_allowed(),
            Some(route) => self.plain(&route, query).await,
        }
    }

    fn statusz(&self) -> Answer {
        let now = jiff::Timestamp::now();
        let up = now.duration_since(self.started).as_secs();
        let text = format!(
            "\nkubelet statusz\n\nStarted: {}\nUp: {} hr {:02} min {:02} sec\nBinary version: longshore {}\n",
            self.started,
            up / 3600,
            up / 60 % 60,
            up % 60,
            env!("CARGO_PKG_VERSION"),
        );
        body::text(StatusCode::OK, text)
    }
}

fn not_allowed() -> Answer {
    body::text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed\n")
}

fn has_long_body(request: &Request<Incoming>) -> bool {
    let length = request.headers().get(header::CONTENT_LENGTH);
    match length.map(|value| value.to_str().ok().and_then(|text| text.parse::<u64>().ok())) {
        None => request.headers().contains_key(header::TRANSFER_ENCODING),
        Some(length) => length.is_none_or(|bytes| bytes > MAX_BODY),
    }
}
