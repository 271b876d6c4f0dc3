//! An API server in this process: objects, versions, lists, watches, patches, deletions, and faults on
//! order. It refuses what the real one refuses of what a node does; it admits and defaults nothing.

mod objects;
mod serve;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

use crate::client::ApiClient;
use crate::error::ApiError;
use crate::transport::{Opened, Transport};
use objects::{Address, Objects};

/// What goes wrong with a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Answered with this status and, where set, `Retry-After` in seconds.
    Refuse(u16, Option<u64>),
    /// Never answered.
    Hang,
    /// The connection breaks.
    Break,
    /// The answer is no JSON.
    Garbage,
    /// Carried out, and the connection breaks before the answer.
    BreakAfter,
}

/// A fault for calls to come.
#[derive(Clone, Debug)]
pub struct Order {
    /// `GET`, `PATCH`, ...; `WATCH` for a watch.
    pub verb: &'static str,
    /// How the path begins.
    pub path: String,
    /// How many calls it hits.
    pub times: u32,
    pub fault: Fault,
}

#[derive(Debug, Default)]
struct State {
    objects: Objects,
    orders: Vec<Order>,
    /// `PATCH /api/v1/...`, in the order they came.
    calls: Vec<String>,
    connections: Vec<AbortHandle>,
    /// New connections are refused.
    down: bool,
    without_streaming: bool,
    /// Fields it does not know, as an older server: dropped wherever they are written.
    unknown_fields: Vec<&'static str>,
    /// Watches tell each change twice, and then all before it once more, the newest first.
    repeats: bool,
    /// Pods that are deleted are gone at once, as if they ran nowhere.
    opened: u64,
}

/// A handle; clones are one server.
#[derive(Clone, Debug)]
pub struct FakeApi {
    state: Arc<Mutex<State>>,
    /// The newest version: wakes watches.
    version: watch::Sender<u64>,
}

impl Default for FakeApi {
    fn default() -> Self {
        Self { state: Arc::default(), version: watch::Sender::new(0) }
    }
}

impl FakeApi {
    /// A client of this server.
    pub fn client(&self) -> ApiClient {
        ApiClient::new(Arc::new(FakeTransport(self.clone())))
    }

    /// Serves on a port of the loopback too, with this TLS; gives the address.
    ///
    /// # Errors
    /// Where no port can be had.
    pub async fn listen(&self, tls: rustls::ServerConfig) -> std::io::Result<SocketAddr> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let (api, acceptor) = (self.clone(), TlsAcceptor::from(Arc::new(tls)));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A client that does not believe the server ends the handshake; the next one may.
                if let Ok(stream) = acceptor.accept(stream).await {
                    tokio::spawn(serve::connection(api.clone(), stream));
                }
            }
        });
        Ok(addr)
    }

    /// Creates or replaces an object; `path` is its own, for example `/api/v1/namespaces/d/pods/a`.
    pub fn put(&self, path: &str, object: Value) {
        self.change(|objects| objects.put(&Address::of(path), object));
    }

    /// Removes an object at once, as a forced deletion does.
    pub fn remove(&self, path: &str) {
        self.change(|objects| objects.remove(&Address::of(path)));
    }

    /// An object as it is now.
    pub fn object(&self, path: &str) -> Option<Value> {
        self.lock().objects.get(&Address::of(path)).cloned()
    }

    /// All objects of a collection, in the order of their names.
    pub fn list(&self, path: &str) -> Vec<Value> {
        self.lock().objects.list(&Address::of(path), "")
    }

    /// Calls to come go wrong.
    pub fn order(&self, verb: &'static str, path: &str, times: u32, fault: Fault) {
        self.lock().orders.push(Order { verb, path: path.to_owned(), times, fault });
    }

    /// All calls so far whose text contains `part`.
    pub fn calls(&self, part: &str) -> Vec<String> {
        self.lock().calls.iter().filter(|call| call.contains(part)).cloned().collect()
    }

    /// Breaks all connections.
    pub fn break_connections(&self) {
        self.lock().connections.drain(..).for_each(|connection| connection.abort());
    }

    /// Refuses new connections, and breaks those there are; or serves again.
    pub fn set_down(&self, down: bool) {
        self.lock().down = down;
        if down {
            self.break_connections();
        }
    }

    /// Forgets what happened so far: versions from before are too old to go on from.
    pub fn compact(&self) {
        self.lock().objects.compact();
    }

    /// Streaming lists are refused, as by servers before 1.34.
    pub fn refuse_streaming_lists(&self) {
        self.lock().without_streaming = true;
    }

    /// Fields of these names are dropped from whatever is written, as by a server that does not know them.
    pub fn forget_fields(&self, names: &[&'static str]) {
        self.lock().unknown_fields = names.to_vec();
    }

    /// From now on watches tell each change twice, and then all before it once more, the newest first.
    pub fn repeat_events(&self) {
        self.lock().repeats = true;
    }

    /// Sends a bookmark to every watch.
    pub fn bookmark(&self) {
        self.change(Objects::bookmark);
    }

    /// Connections opened so far.
    pub fn opened(&self) -> u64 {
        self.lock().opened
    }

    fn change(&self, change: impl FnOnce(&mut Objects)) {
        let version = {
            let mut state = self.lock();
            change(&mut state.objects);
            state.objects.version()
        };
        self.version.send_replace(version);
    }

    fn fault(&self, verb: &str, path: &str) -> Option<Fault> {
        let mut state = self.lock();
        state.calls.push(format!("{verb} {path}"));
        let hits =
            |order: &&mut Order| order.times > 0 && order.verb == verb && path.starts_with(&order.path);
        let order = state.orders.iter_mut().find(hits)?;
        order.times -= 1;
        Some(order.fault.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connections through pipes in memory.
#[derive(Debug)]
struct FakeTransport(FakeApi);

#[async_trait]
impl Transport for FakeTransport {
    async fn open(&self) -> Result<Opened, ApiError> {
        // As long as a connection takes; with a paused clock it costs nothing.
        tokio::time::sleep(Duration::from_millis(1)).await;
        if self.0.lock().down {
            let source = std::io::ErrorKind::ConnectionRefused.into();
            return Err(ApiError::Connect { server: self.authority().to_owned(), source });
        }
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let connection = tokio::spawn(serve::connection(self.0.clone(), theirs));
        let mut state = self.0.lock();
        state.opened += 1;
        state.connections.push(connection.abort_handle());
        Ok(Opened { stream: Box::new(ours), generation: 0, bearer: None })
    }

    fn generation(&self) -> u64 {
        0
    }

    fn authority(&self) -> &str {
        "fake.test:6443"
    }

    fn base(&self) -> &str {
        ""
    }
}
