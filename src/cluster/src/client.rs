//! Calls to the API server over one HTTP/2 connection that is opened when needed, pinged while open and
//! replaced when it broke or the credentials changed. Every answer is bounded in bytes and in time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use jiff::Timestamp;
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::error::ApiError;
use crate::object;
use crate::path::Path;
use crate::transport::Transport;

/// A ping is sent after so much silence, and has to be answered so fast: a dead connection is noticed
/// within 9 s.
const PING_AFTER: Duration = Duration::from_secs(5);
const PING_ANSWER: Duration = Duration::from_secs(4);
/// Bytes the server may send unasked, per stream and for the connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// A call that is no watch has to be answered whole within this.
const CALL_WITHIN: Duration = Duration::from_secs(30);
/// Largest answer that is no watch. A page of 500 pods of the largest size would be larger; pages are
/// asked for by number and the API bounds an object at 1.5 MiB.
const MAX_ANSWER: usize = 64 << 20;
/// Largest refusal that is read.
const MAX_REFUSAL: usize = 64 << 10;
/// A connection that the server has closed says so within this.
const AT_ONCE: Duration = Duration::from_secs(1);
/// Times a call is repeated because the server said when to come back.
const REPEATS: u32 = 4;
/// The longest the server can make one call wait between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How a patch is meant (RFC 7386, or Kubernetes' own).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    /// Maps merge, lists are replaced, null removes.
    Merge,
    /// Lists with merge keys merge by them.
    Strategic,
}

impl PatchKind {
    fn content_type(self) -> &'static str {
        match self {
            Self::Merge => "application/merge-patch+json",
            Self::Strategic => "application/strategic-merge-patch+json",
        }
    }
}

/// Whether the server can be reached, as the last call found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reachable {
    /// Nothing was asked yet.
    Unknown,
    Yes,
    No {
        why: String,
        since: Timestamp,
    },
}

/// Calls one API server. Cheap to clone; clones share the connection.
#[derive(Clone, Debug)]
pub struct ApiClient {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    transport: Arc<dyn Transport>,
    user_agent: HeaderValue,
    open: Mutex<Option<Open>>,
    /// One dials at a time; the others then find its connection.
    dialing: Semaphore,
    reachable: watch::Sender<Reachable>,
    opened: AtomicU64,
}

#[derive(Debug)]
struct Open {
    usable: Usable,
    generation: u64,
    task: JoinHandle<()>,
}

/// What a call needs of the open connection.
#[derive(Clone, Debug)]
struct Usable {
    /// Counts connections.
    id: u64,
    sender: SendRequest<Full<Bytes>>,
    bearer: Option<HeaderValue>,
}

impl Drop for Open {
    fn drop(&mut self) {
        // Streams that are still open end with it; watches come back on the next connection.
        self.task.abort();
    }
}

/// One call before it is sent.
struct Call<'a> {
    method: Method,
    path: &'a Path,
    body: Option<(&'static str, Bytes)>,
}

impl Call<'_> {
    /// `GET /api/v1/nodes/a`, for messages.
    fn name(&self) -> String {
        format!("{} {}", self.method, self.path.plain())
    }
}

impl ApiClient {
    pub fn new(transport: Arc<dyn Transport>) -> Self {
        Self {
            inner: Arc::new(Inner {
                transport,
                user_agent: HeaderValue::from_static(concat!("longshore/", env!("CARGO_PKG_VERSION"))),
                open: Mutex::new(None),
                dialing: Semaphore::new(1),
                reachable: watch::Sender::new(Reachable::Unknown),
                opened: AtomicU64::new(0),
            }),
        }
    }

    /// A client of the same server with a connection of its own.
    #[must_use]
    pub fn apart(&self) -> Self {
        Self::new(self.inner.transport.clone())
    }

    /// `HOST:PORT` of the server.
    pub fn server(&self) -> &str {
        self.inner.transport.authority()
    }

    /// Whether the server answers; changes as calls find out.
    pub fn reachable(&self) -> watch::Receiver<Reachable> {
        self.inner.reachable.subscribe()
    }

    /// # Errors
    /// As [`ApiError`] lists them; so for all calls below.
    pub async fn get<T: DeserializeOwned>(&self, path: &Path) -> Result<T, ApiError> {
        self.call(Call { method: Method::GET, path, body: None }).await
    }

    /// # Errors
    /// See [`ApiClient::get`].
    pub async fn create<T: DeserializeOwned>(
        &self,
        path: &Path,
        object: &impl Serialize,
    ) -> Result<T, ApiError> {
        self.with_body(Method::POST, path, "application/json", object).await
    }

    /// # Errors
    /// See [`ApiClient::get`].
    pub async fn patch<T: DeserializeOwned>(
        &self,
        path: &Path,
        kind: PatchKind,
        patch: &impl Serialize,
    ) -> Result<T, ApiError> {
        self.with_body(Method::PATCH, path, kind.content_type(), patch).await
    }

    /// Deletes; `options` is a `DeleteOptions`.
    ///
    /// # Errors
    /// See [`ApiClient::get`].
    pub async fn delete(&self, path: &Path, options: &impl Serialize) -> Result<(), ApiError> {
        let gone: Result<IgnoredAny, _> =
            self.with_body(Method::DELETE, path, "application/json", options).await;
        gone.map(drop)
    }

    async fn with_body<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &Path,
        content_type: &'static str,
        object: &impl Serialize,
    ) -> Result<T, ApiError> {
        let call = || format!("{method} {}", path.plain());
        let body = serde_json::to_vec(object).map_err(|source| ApiError::Encode { call: call(), source })?;
        self.call(Call { method, path, body: Some((content_type, body.into())) }).await
    }

    async fn call<T: DeserializeOwned>(&self, call: Call<'_>) -> Result<T, ApiError> {
        let timeout = || ApiError::Timeout { call: call.name(), after: CALL_WITHIN };
        let mut repeats = 0;
        loop {
            let once = async {
                let response = self.send(&call).await?;
                read_whole(response.into_body(), MAX_ANSWER, &call.name()).await
            };
            let answer = tokio::time::timeout(CALL_WITHIN, once).await.unwrap_or_else(|_| Err(timeout()));
            self.note(&answer);
            match answer {
                Ok(body) => {
                    return std::str::from_utf8(&body)
                        .map_err(serde::de::Error::custom)
                        .and_then(object::read)
                        .map_err(|source| ApiError::Decode { call: call.name(), source });
                }
                // The server's own flow control says when to come back (API Priority and Fairness).
                Err(error) if repeats < REPEATS && error.retry_after().is_some() => {
                    repeats += 1;
                    let pause = error.retry_after().unwrap_or_default().min(LONGEST_PAUSE);
                    tokio::time::sleep(pause).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// A GET whose body is read as it comes: watches. Only the head has a deadline.
    ///
    /// # Errors
    /// See [`ApiClient::get`].
    pub async fn stream(&self, path: &Path) -> Result<Incoming, ApiError> {
        let call = Call { method: Method::GET, path, body: None };
        let timeout = || ApiError::Timeout { call: call.name(), after: CALL_WITHIN };
        let head = tokio::time::timeout(CALL_WITHIN, self.send(&call)).await;
        let head = head.unwrap_or_else(|_| Err(timeout()));
        self.note(&head);
        head.map(Response::into_body)
    }

    fn note<T>(&self, answer: &Result<T, ApiError>) {
        let now = match answer {
            Ok(_) | Err(ApiError::Refused { .. } | ApiError::TooLarge { .. }) => Reachable::Yes,
            Err(error) => Reachable::No { why: error.one_line(), since: Timestamp::now() },
        };
        self.inner.reachable.send_if_modified(|before| {
            let news = std::mem::discriminant(before) != std::mem::discriminant(&now);
            if news {
                match &now {
                    Reachable::No { why, .. } => {
                        tracing::warn!(server = self.server(), "API server lost: {why}")
                    }
                    _ => tracing::info!(server = self.server(), "API server answers"),
                }
                *before = now;
            }
            news
        });
    }

    /// Sends and gives the head of a good answer; what was refused is an error.
    async fn send(&self, call: &Call<'_>) -> Result<Response<Incoming>, ApiError> {
        let mut open = self.connection().await?;
        let request = self.request(call, open.bearer.as_ref());
        let broken = |source| ApiError::Broken { call: call.name(), source };
        let begun = Instant::now();
        let sent = match open.sender.send_request(request).await {
            // The server closed the connection as we wrote to it. A question can be asked again; of all
            // else only what the server never saw. One that fell silent is no reason for more patience.
            Err(error)
                if (error.is_canceled() || error.is_closed() || call.method == Method::GET)
                    && begun.elapsed() < AT_ONCE =>
            {
                self.forget(open.id);
                let mut open = self.connection().await?;
                let sent = open.sender.send_request(self.request(call, open.bearer.as_ref())).await;
                if sent.is_err() {
                    self.forget(open.id);
                }
                sent
            }
            Err(error) => {
                self.forget(open.id);
                Err(error)
            }
            sent => sent,
        };
        let response = sent.map_err(broken)?;
        let code = response.status().as_u16();
        if code < 400 {
            return Ok(response);
        }
        let after = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let after = after.and_then(|text| text.parse().ok()).map(Duration::from_secs);
        let body = read_whole(response.into_body(), MAX_REFUSAL, &call.name()).await.unwrap_or_default();
        Err(ApiError::refused(call.name(), code, &body, after))
    }

    fn request(&self, call: &Call<'_>, bearer: Option<&HeaderValue>) -> Request<Full<Bytes>> {
        let transport = &self.inner.transport;
        let uri = format!("https://{}{}{}", transport.authority(), transport.base(), call.path);
        let (content_type, body) = match &call.body {
            Some((content_type, body)) => (Some(*content_type), body.clone()),
            None => (None, Bytes::new()),
        };
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = call.method.clone();
        // Authority and path are escaped by construction; an impossible one asks for the root and is refused.
        *request.uri_mut() = uri.parse().unwrap_or_default();
        let headers = request.headers_mut();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(header::USER_AGENT, self.inner.user_agent.clone());
        if let Some(content_type) = content_type {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        if let Some(bearer) = bearer {
            headers.insert(header::AUTHORIZATION, bearer.clone());
        }
        request
    }

    async fn connection(&self) -> Result<Usable, ApiError> {
        if let Some(usable) = self.usable() {
            return Ok(usable);
        }
        // The semaphore is never closed.
        let _dialing = self.inner.dialing.acquire().await;
        if let Some(usable) = self.usable() {
            return Ok(usable);
        }
        let opened = self.inner.transport.open().await?;
        let handshake = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PING_ANSWER)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(64 << 10)
            .handshake(TokioIo::new(opened.stream));
        let broken =
            |source| ApiError::Broken { call: format!("the handshake with {}", self.server()), source };
        let (sender, connection) = handshake.await.map_err(broken)?;
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the API server ended");
            }
        });
        let id = self.inner.opened.fetch_add(1, Ordering::Relaxed);
        let usable = Usable { id, sender, bearer: opened.bearer };
        *self.slot() = Some(Open { usable: usable.clone(), generation: opened.generation, task });
        Ok(usable)
    }

    /// The open connection, while it works and was opened with the credentials of now.
    fn usable(&self) -> Option<Usable> {
        let generation = self.inner.transport.generation();
        let mut slot = self.slot();
        let works = |open: &Open| !open.usable.sender.is_closed() && open.generation == generation;
        if !slot.as_ref().is_some_and(works) {
            *slot = None;
        }
        slot.as_ref().map(|open| open.usable.clone())
    }

    /// Forgets a connection that broke, unless another has taken its place.
    fn forget(&self, id: u64) {
        let mut slot = self.slot();
        if slot.as_ref().is_some_and(|open| open.usable.id == id) {
            *slot = None;
        }
    }

    fn slot(&self) -> MutexGuard<'_, Option<Open>> {
        self.inner.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The whole body, at most `limit` bytes.
async fn read_whole(mut body: Incoming, limit: usize, call: &str) -> Result<Bytes, ApiError> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|source| ApiError::Broken { call: call.to_owned(), source })?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > limit {
            return Err(ApiError::TooLarge { call: call.to_owned(), limit });
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
