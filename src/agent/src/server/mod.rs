//! The kubelet's API of this node: HTTPS for the control plane and everyone it lets in, a port without
//! authentication where one is asked for, and a health check. What a request needs and means is decided in
//! `longshore_core::kubelet_api`; here are the connections, the callers and the answers.

mod body;
mod callers;
mod checkpoint;
mod listener;
mod log_files;
mod logs;
mod metrics;
mod node_logs;
mod pods;
mod profiles;
mod routes;
mod seldom;
mod stats;
mod streams;
#[cfg(test)]
mod tests;
mod tls;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::get;
use longshore_cri::Runtime;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::certificates::Certificates;
use crate::config::{KubeletServer, RightsRules};
use crate::metrics::PodMetrics;
use crate::plain_http;
use crate::pods::{Clock, PodsView};
use crate::probes::Prober;
use crate::text::error_chain;
use callers::Callers;
pub use callers::Reviews;
use routes::{Answers, Guarded};
use tls::ClientAuthority;
pub use tls::{ServingCertificate, TlsError, load_pair};

/// Logs on their way at the same time; each may hold a few hundred KiB while its reader is slow.
const MAX_LOGS: usize = 200;
/// Where the node's own logs are, as the kubelet has it.
const NODE_LOGS: &str = "/var/log";
/// What reads the journal. By its path: nothing of the daemon's environment decides what is run.
const JOURNAL: &str = "/usr/bin/journalctl";
/// Streams into containers at the same time.
const MAX_STREAMS: usize = 200;
/// An address that is taken is tried again after this.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);

/// What the server holds of the rest of the daemon.
pub struct Parts {
    /// The node's name, as its object has it.
    pub node: String,
    pub ips: Vec<IpAddr>,
    pub clock: Clock,
    pub pods: PodsView,
    pub runtime: Runtime,
    pub prober: Prober,
    /// What the pod workers count.
    pub counted: PodMetrics,
    /// The node's own, for who asks how long they last.
    pub certificates: Certificates,
    /// `podLogsDir`.
    pub pod_logs: PathBuf,
    /// `--root-dir`.
    pub root: PathBuf,
    /// Whom tokens and rights are asked of; `None` without a control plane.
    pub reviews: Option<Arc<dyn Reviews>>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("node", &self.node).finish_non_exhaustive()
    }
}

/// Starts everything the configuration asks for; it ends with `stop`. Gives the certificate that is shown, for
/// who gets a better one.
///
/// # Errors
/// Where TLS cannot be set up with what the configuration names.
pub fn start(
    settings: &KubeletServer,
    parts: Parts,
    stop: &CancellationToken,
) -> Result<Arc<ServingCertificate>, TlsError> {
    let shown = Arc::new(ServingCertificate::default());
    if let Some(addr) = settings.healthz {
        let router = Router::new()
            .route("/healthz", get(|| async { "ok" }))
            .route("/healthz/{check}", get(|| async { "ok" }));
        tokio::spawn(serve_plain("healthzBindAddress", addr, router, stop.clone()));
    }
    let needs_api = matches!(settings.rights, RightsRules::Webhook { .. });
    let nobody = needs_api && parts.reviews.is_none();
    if nobody && settings.https.is_some() {
        tracing::info!(
            "no kubelet API: without a control plane nobody could be given rights (authorization.mode)"
        );
    }
    let answers = Arc::new(answers(settings, &parts, &shown));
    if let Some(addr) = settings.read_only {
        let router = Router::new().fallback(read_only).with_state(answers.clone());
        tokio::spawn(serve_plain("readOnlyPort", addr, router, stop.clone()));
    }
    let Some(addr) = settings.https.filter(|_| !nobody) else { return Ok(shown) };
    shown.set(tls::first_certificate(&settings.tls, &parts.node, &parts.ips)?);
    let authority = Arc::new(ClientAuthority::default());
    if let Some(file) = &settings.callers.client_ca {
        authority.load(file)?;
    }
    let config = tls::server_config(&settings.tls, shown.clone(), settings.callers.client_ca.is_some())?;
    let (pair, ca) = (settings.tls.files.clone(), settings.callers.client_ca.clone());
    let following = tls::follow_files(pair, shown.clone(), ca, authority.clone());
    let (callers, rights) = (settings.callers.clone(), settings.rights);
    let callers = Callers::new(callers, rights, parts.node, authority, parts.reviews);
    let service = Arc::new(Guarded::new(callers, answers));
    let stopped = stop.clone();
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let serving = async {
            let Some(listener) = listen("address", addr, &stopped).await else { return };
            tracing::info!(%addr, "kubelet API");
            listener::serve(listener, acceptor, service, stopped.clone()).await;
        };
        tokio::select! {
            () = stopped.cancelled() => {}
            () = serving => {}
            () = following => {}
        }
    });
    Ok(shown)
}

fn answers(settings: &KubeletServer, parts: &Parts, shown: &Arc<ServingCertificate>) -> Answers {
    let readers = Arc::new(Semaphore::new(MAX_LOGS));
    Answers {
        pods: parts.pods.clone(),
        logs: logs::Logs {
            pods: parts.pods.clone(),
            clock: parts.clock,
            folder: parts.pod_logs.clone(),
            readers: readers.clone(),
        },
        node_logs: node_logs::NodeLogs {
            folder: NODE_LOGS.into(),
            files: settings.node_logs,
            queries: settings.node_log_queries,
            journal: JOURNAL.into(),
            readers,
        },
        streams: streams::StreamRoutes {
            pods: parts.pods.clone(),
            streams: parts.runtime.streams.clone(),
            places: Arc::new(Semaphore::new(MAX_STREAMS)),
        },
        stats: stats::Stats {
            node: parts.node.clone(),
            clock: parts.clock,
            pods: parts.pods.clone(),
            runtime: parts.runtime.clone(),
            root: parts.root.clone(),
            earlier: Mutex::default(),
            unread: seldom::Seldom::default(),
        },
        metrics: metrics::DaemonMetrics {
            node: parts.node.clone(),
            pods: parts.pods.clone(),
            counted: parts.counted.clone(),
            started: parts.clock.now(),
            requests: metrics::Requests::default(),
            clock: parts.clock,
            certificates: parts.certificates.clone(),
            shown: shown.clone(),
        },
        checkpoints: checkpoint::Checkpoints {
            pods: parts.pods.clone(),
            upkeep: parts.runtime.upkeep.clone(),
            clock: parts.clock,
            folder: parts.root.join("checkpoints"),
        },
        prober: parts.prober.clone(),
        debugging: settings.debugging,
        profiles: profiles::Profiles { enabled: settings.profiling },
        configz: settings.configz.clone(),
        flags: settings.flags.clone(),
        started: parts.clock.now(),
    }
}

async fn read_only(State(answers): State<Arc<Answers>>, request: Request) -> Response {
    let uri = request.uri();
    let answer = answers.read_only(request.method(), uri.path(), uri.query().unwrap_or_default()).await;
    answer.map(axum::body::Body::new)
}

async fn serve_plain(field: &'static str, addr: SocketAddr, router: Router, stop: CancellationToken) {
    if let Some(listener) = listen(field, addr, &stop).await {
        plain_http::serve(listener, router, stop).await;
    }
}

/// Listens as soon as the address can be had; `None` where the daemon stops before.
async fn listen(field: &'static str, addr: SocketAddr, stop: &CancellationToken) -> Option<TcpListener> {
    let mut told = false;
    loop {
        match plain_http::listen(addr).await {
            Ok(listener) => return Some(listener),
            Err(error) if !told => {
                told = true;
                tracing::warn!("{field}: cannot listen on {addr}: {}; tried again", error_chain(&error));
            }
            Err(_) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(LISTEN_AGAIN) => {}
        }
    }
}
