//! The admin API: HTTP/1.1 and JSON over a unix socket that only root can use.
//! Here are the reads it needs from the rest of the daemon, the socket and the accept loop; the
//! routes are in `routes.rs`. Nothing here decides or changes anything.

mod routes;
mod socket;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use longshore_core::explain::{Explanation, Query};
use longshore_core::ids::{ObjectKey, PodKey};
use longshore_core::service::view::{DataplaneView, DiffView, FrontendView, ServiceRow};
use longshore_core::wire::{ImagesView, NodeView, ObjectKind, PodView, TimelineEntry, WhyView};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connections;
pub use socket::{AdminError, AdminSocket, PeerPolicy};

/// Where the socket is unless the configuration says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/longshore/longshore.sock";

/// Connections served at the same time; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 32;
/// A request's head may be this long; every legal one is far shorter.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// A connection that does not finish its request's head within this is closed.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// What the admin API reads of the pods. Implemented where the pod workers publish their views.
pub trait PodReads: Send + Sync + 'static {
    /// All pods, in any order.
    fn pods(&self) -> Vec<PodView>;
    /// The life of this pod that a person means: the running one before a queued one.
    fn pod(&self, key: &PodKey) -> Option<PodView>;
    /// Steps and events of the pod, oldest first.
    fn timeline(&self, key: &PodKey) -> Option<Vec<TimelineEntry>>;
    /// Why the pod is in the state it is in.
    fn why(&self, key: &PodKey) -> Option<WhyView>;
}

/// What the admin API reads of the node and its sources.
pub trait NodeReads: Send + Sync + 'static {
    fn node(&self) -> NodeView;
    fn why_node(&self) -> WhyView;
    /// Names of the objects of a kind.
    fn objects(&self, kind: ObjectKind) -> Vec<ObjectKey>;
    /// One object as its source wrote it.
    fn object(&self, kind: ObjectKind, key: &ObjectKey) -> Option<serde_json::Value>;
}

/// What the admin API reads of the Services. Asynchronous, because one task owns the dataplane and
/// answers between two changes.
#[async_trait]
pub trait ServiceReads: Send + Sync + 'static {
    async fn services(&self) -> Vec<ServiceRow>;
    async fn dataplane(&self) -> DataplaneView;
    async fn explain(&self, query: Query) -> Explanation;
    async fn frontends(&self) -> Vec<FrontendView>;
    /// What is wanted against what the kernel holds; with `repair`, after the kernel was brought back to
    /// it. The only request that leads to a change, and one the daemon would make by itself with its
    /// next audit.
    async fn diff(&self, repair: bool) -> DiffView;
}

/// What the admin API reads of the images. Asynchronous, because the runtime is asked.
#[async_trait]
pub trait ImageReads: Send + Sync + 'static {
    /// # Errors
    /// In words, where the runtime does not list its images.
    async fn images(&self) -> Result<ImagesView, String>;
}

/// Everything the routes may read. A role that is off has no reads.
#[derive(Clone)]
pub struct AdminReads {
    pub node: Arc<dyn NodeReads>,
    pub pods: Option<Arc<dyn PodReads>>,
    pub services: Option<Arc<dyn ServiceReads>>,
    pub images: Option<Arc<dyn ImageReads>>,
}

impl std::fmt::Debug for AdminReads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminReads")
            .field("pods", &self.pods.is_some())
            .field("services", &self.services.is_some())
            .finish_non_exhaustive()
    }
}

/// Serves the socket until `stop` is cancelled, then lets requests under way end.
/// The socket's file is removed when this returns.
pub async fn serve(socket: AdminSocket, reads: AdminReads, stop: CancellationToken) {
    let router = routes::router(reads);
    let tasks = TaskTracker::new();
    connections::take(
        "admin socket",
        MAX_CONNECTIONS,
        &stop,
        || socket.accept(),
        |stream, place| {
            let router = match socket.refusal(&stream) {
                None => router.clone(),
                Some(refusal) => routes::refusing(refusal),
            };
            let stop = stop.clone();
            tasks.spawn(async move {
                serve_connection(stream, router, stop).await;
                drop(place);
            });
        },
    )
    .await;
    tasks.close();
    tasks.wait().await;
}

async fn serve_connection(stream: UnixStream, router: axum::Router, stop: CancellationToken) {
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let result = tokio::select! {
        result = &mut connection => result,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "admin socket: connection ended early");
    }
}
