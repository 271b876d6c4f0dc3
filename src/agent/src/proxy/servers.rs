//! The two servers of the proxy half: health for load balancers and probes (10256), metrics for
//! scrapers and people (10249). Paths, bodies and headers are kube-proxy's.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio_util::sync::CancellationToken;

use crate::config::ProxyServers;
use crate::dataplane::DataplaneHandle;
use crate::plain_http;

/// An address that is taken is tried again after this.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);
/// Browsers must not guess what a body is.
pub(super) const NO_SNIFF: (HeaderName, HeaderValue) =
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));

/// Starts both; they end with `stop`. An address that cannot be had is named in `svc status` and tried
/// again, or ends the start where the configuration says so.
///
/// # Errors
/// With `bindAddressHardFail`, an address that cannot be listened on.
pub async fn start(
    settings: &ProxyServers,
    dataplane: &DataplaneHandle,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let metrics = metrics_router(Answers {
        dataplane: dataplane.clone(),
        configz: serde_json::json!({"kubeproxy.config.k8s.io": settings.configz}),
    });
    let servers = [
        ("healthzBindAddress", settings.healthz, health_router(dataplane.clone())),
        ("metricsBindAddress", settings.metrics, metrics),
    ];
    for (field, addr, router) in servers {
        let Some(addr) = addr else { continue };
        let first = plain_http::listen(addr).await;
        if let (true, Err(_)) = (settings.hard_fail, &first) {
            first.with_context(|| format!("{field}: listen on {addr}"))?;
            continue;
        }
        tokio::spawn(keep_serving(Server { field, addr, router }, first, dataplane.clone(), stop.clone()));
    }
    Ok(())
}

struct Server {
    /// The configuration's field that names the address.
    field: &'static str,
    addr: SocketAddr,
    router: Router,
}

async fn keep_serving(
    server: Server,
    mut listening: std::io::Result<tokio::net::TcpListener>,
    dataplane: DataplaneHandle,
    stop: CancellationToken,
) {
    let Server { field, addr, router } = server;
    loop {
        match listening {
            Ok(listener) => {
                dataplane.note(field, None);
                return plain_http::serve(listener, router, stop).await;
            }
            Err(error) => {
                let problem = format!("{field}: cannot listen on {addr}: {error}; tried again");
                if dataplane.note(field, Some(problem.clone())) {
                    tracing::warn!("{problem}");
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LISTEN_AGAIN) => {}
        }
        listening = plain_http::listen(addr).await;
    }
}

/// A JSON answer with kube-proxy's headers.
pub(super) fn answer(well: bool, body: serde_json::Value) -> Response {
    let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [NO_SNIFF], Json(body)).into_response()
}

fn health_router(dataplane: DataplaneHandle) -> Router {
    Router::new().route("/healthz", get(healthz)).route("/livez", get(livez)).with_state(dataplane)
}

async fn healthz(State(dataplane): State<DataplaneHandle>) -> Response {
    let (well, body) = dataplane.health().healthz();
    let response = answer(well, body);
    dataplane.metrics().healthz_answered(response.status().as_u16());
    response
}

async fn livez(State(dataplane): State<DataplaneHandle>) -> Response {
    let (well, body) = dataplane.health().livez();
    let response = answer(well, body);
    dataplane.metrics().livez_answered(response.status().as_u16());
    response
}

#[derive(Clone)]
struct Answers {
    dataplane: DataplaneHandle,
    configz: serde_json::Value,
}

fn metrics_router(answers: Answers) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/proxyMode", get(proxy_mode))
        .route("/configz", get(|State(answers): State<Answers>| async move { Json(answers.configz) }))
        .route("/healthz", get(|| async { "ok" }))
        .with_state(answers)
}

async fn metrics(State(answers): State<Answers>) -> Response {
    let text = answers.dataplane.scrape().await;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, kind), NO_SNIFF], text).into_response()
}

async fn proxy_mode(State(answers): State<Answers>) -> Response {
    ([NO_SNIFF], answers.dataplane.view().mode.clone()).into_response()
}
