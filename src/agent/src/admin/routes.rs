//! The routes of the admin API: each reads one view and returns it as JSON.
//! Version 1 is additive only; a field never changes its meaning.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{Path, Query as UrlQuery, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use longshore_core::explain::Query;
use longshore_core::ids::{ObjectKey, PodKey};
use longshore_core::ruleset::Protocol;
use longshore_core::ruleset::trace::Origin;
use longshore_core::wire::{ErrorView, ObjectKind};

use super::{AdminReads, PodReads};

/// Requests carry no body so far; anything longer is a mistake or mischief.
const MAX_BODY_BYTES: u64 = 64 * 1024;

/// The one path that is asked for by POST.
const REPAIR: &str = "/v1/dataplane/repair";

/// All routes over these reads.
pub(super) fn router(reads: AdminReads) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/v1/node", get(node))
        .route("/v1/problems", get(problems))
        .route("/v1/pods", get(pods))
        .route("/v1/pods/{namespace}/{name}", get(pod))
        .route("/v1/pods/{namespace}/{name}/timeline", get(timeline))
        .route("/v1/why/node", get(why_node))
        .route("/v1/why/{namespace}/{name}", get(why_pod))
        .route("/v1/images", get(images))
        .route("/v1/services", get(services))
        .route("/v1/dataplane", get(dataplane))
        .route("/v1/dataplane/frontends", get(frontends))
        .route("/v1/dataplane/diff", get(diff))
        .route(REPAIR, post(repair))
        .route("/v1/explain", get(explain))
        .route("/v1/objects/{kind}", get(objects))
        .route("/v1/objects/{kind}/{namespace}/{name}", get(object))
        .fallback(|| async {
            refuse(
                StatusCode::NOT_FOUND,
                "the daemon has no such path",
                Some("is the command newer than the daemon?"),
            )
        })
        .layer(middleware::from_fn(read_only_and_small))
        .with_state(reads)
}

/// A router that answers everything with one refusal.
pub(super) fn refusing(reason: String) -> Router {
    Router::new().fallback(move || {
        let reason = reason.clone();
        async move { refuse(StatusCode::FORBIDDEN, &reason, Some("run the command as root (sudo)")) }
    })
}

fn refuse(status: StatusCode, error: &str, hint: Option<&str>) -> Response {
    let body = ErrorView { error: error.to_string(), hint: hint.map(str::to_string) };
    (status, Json(body)).into_response()
}

async fn read_only_and_small(request: Request, next: Next) -> Response {
    let reads = request.method() == Method::GET || request.method() == Method::HEAD;
    let repairs = request.method() == Method::POST && request.uri().path() == REPAIR;
    if !reads && !repairs {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "the admin API is read-only: use GET", None);
    }
    let length = request.headers().get(header::CONTENT_LENGTH);
    let too_long = match length.map(|value| value.to_str().ok().and_then(|text| text.parse::<u64>().ok())) {
        None => request.headers().contains_key(header::TRANSFER_ENCODING),
        Some(length) => length.is_none_or(|bytes| bytes > MAX_BODY_BYTES),
    };
    if too_long {
        return refuse(StatusCode::PAYLOAD_TOO_LARGE, "the request's body is too long", None);
    }
    next.run(request).await
}

async fn node(State(reads): State<AdminReads>) -> Response {
    Json(reads.node.node()).into_response()
}

async fn problems(State(reads): State<AdminReads>) -> Response {
    Json(reads.node.node().problems).into_response()
}

async fn why_node(State(reads): State<AdminReads>) -> Response {
    Json(reads.node.why_node()).into_response()
}

async fn pods(State(reads): State<AdminReads>) -> Response {
    match &reads.pods {
        Some(pods) => Json(pods.pods()).into_response(),
        None => node_role_off(),
    }
}

async fn pod(State(reads): State<AdminReads>, Path((namespace, name)): Path<(String, String)>) -> Response {
    one_pod(&reads, namespace, name, PodReads::pod)
}

async fn timeline(
    State(reads): State<AdminReads>,
    Path((namespace, name)): Path<(String, String)>,
) -> Response {
    one_pod(&reads, namespace, name, PodReads::timeline)
}

async fn why_pod(
    State(reads): State<AdminReads>,
    Path((namespace, name)): Path<(String, String)>,
) -> Response {
    one_pod(&reads, namespace, name, PodReads::why)
}

fn one_pod<T: serde::Serialize>(
    reads: &AdminReads,
    namespace: String,
    name: String,
    read: fn(&dyn PodReads, &PodKey) -> Option<T>,
) -> Response {
    let Some(pods) = &reads.pods else { return node_role_off() };
    let key = PodKey::new(namespace, name);
    match read(pods.as_ref(), &key) {
        Some(view) => Json(view).into_response(),
        None => refuse(StatusCode::NOT_FOUND, &format!("there is no pod {key} on this node"), None),
    }
}

fn node_role_off() -> Response {
    refuse(
        StatusCode::NOT_FOUND,
        "this daemon runs no pods: its node role is off",
        Some("start the agent with --roles node,proxy"),
    )
}

fn proxy_role_off() -> Response {
    refuse(
        StatusCode::NOT_FOUND,
        "this daemon serves no Services: its proxy role is off",
        Some("start the agent with --roles node,proxy"),
    )
}

async fn images(State(reads): State<AdminReads>) -> Response {
    let Some(images) = &reads.images else { return node_role_off() };
    match images.images().await {
        Ok(view) => Json(view).into_response(),
        Err(problem) => {
            refuse(StatusCode::BAD_GATEWAY, &problem, Some("longshore doctor checks the runtime"))
        }
    }
}

async fn services(State(reads): State<AdminReads>) -> Response {
    match &reads.services {
        Some(services) => Json(services.services().await).into_response(),
        None => proxy_role_off(),
    }
}

async fn dataplane(State(reads): State<AdminReads>) -> Response {
    match &reads.services {
        Some(services) => Json(services.dataplane().await).into_response(),
        None => proxy_role_off(),
    }
}

async fn frontends(State(reads): State<AdminReads>) -> Response {
    match &reads.services {
        Some(services) => Json(services.frontends().await).into_response(),
        None => proxy_role_off(),
    }
}

async fn diff(State(reads): State<AdminReads>) -> Response {
    match &reads.services {
        Some(services) => Json(services.diff(false).await).into_response(),
        None => proxy_role_off(),
    }
}

async fn repair(State(reads): State<AdminReads>) -> Response {
    match &reads.services {
        Some(services) => Json(services.diff(true).await).into_response(),
        None => proxy_role_off(),
    }
}

/// The question of `/v1/explain`.
#[derive(serde::Deserialize)]
struct ExplainParameters {
    /// `10.96.0.10:53`.
    addr: SocketAddr,
    /// `tcp`, `udp` or `sctp`; TCP where it is not said.
    protocol: Option<String>,
    from: Origin,
    /// The client's address.
    src: IpAddr,
}

async fn explain(
    State(reads): State<AdminReads>,
    parameters: Result<UrlQuery<ExplainParameters>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let Some(services) = &reads.services else { return proxy_role_off() };
    let parameters = match parameters {
        Ok(UrlQuery(parameters)) => parameters,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, &error.body_text(), None),
    };
    let wanted = parameters.protocol.unwrap_or_else(|| "tcp".into()).to_ascii_lowercase();
    let Some(protocol) = Protocol::ALL.into_iter().find(|protocol| protocol.to_string() == wanted) else {
        return refuse(StatusCode::BAD_REQUEST, "the protocol is none of tcp, udp, sctp", None);
    };
    let query = Query { dst: parameters.addr, protocol, origin: parameters.from, src: parameters.src };
    Json(services.explain(query).await).into_response()
}

async fn objects(State(reads): State<AdminReads>, Path(kind): Path<String>) -> Response {
    match ObjectKind::parse(&kind) {
        Some(kind) => Json(reads.node.objects(kind)).into_response(),
        None => refuse(StatusCode::NOT_FOUND, &format!("the daemon keeps no {kind}"), None),
    }
}

async fn object(
    State(reads): State<AdminReads>,
    Path((kind, namespace, name)): Path<(String, String, String)>,
) -> Response {
    let Some(kind) = ObjectKind::parse(&kind) else {
        return refuse(StatusCode::NOT_FOUND, &format!("the daemon keeps no {kind}"), None);
    };
    let key = ObjectKey::new(namespace, name);
    match reads.node.object(kind, &key) {
        Some(object) => Json(object).into_response(),
        None => {
            refuse(StatusCode::NOT_FOUND, &format!("there is no {key} among the {}", kind.plural()), None)
        }
    }
}
