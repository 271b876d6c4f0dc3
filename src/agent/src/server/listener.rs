//! Connections of the kubelet's API: taken one by one, bounded in number, in the bytes of a head, and in the
//! time a peer may take to say something. What is answered is the service's business.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::body::Answer;
use crate::connections;

/// Connections at the same time; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 512;
/// The handshake of TLS has to be done within this.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// A head has to be there within this, counted from the connection or from the answer before.
const HEAD_WITHIN: Duration = Duration::from_secs(30);
/// A request's head may be this long; a command line of exec is in it.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Requests of one HTTP/2 connection at the same time, as Go's servers have it; the API server opens another
/// connection for more.
const MAX_STREAMS: u32 = 250;
/// Bytes that wait for one slow reader, per request.
const MAX_WAITING: usize = 64 << 10;
/// Connections without a request are closed after between two and three of these.
const IDLE_LOOK: Duration = Duration::from_secs(30);
/// A peer that is gone is noticed after this.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_ANSWER: Duration = Duration::from_secs(20);

/// The other side of a connection.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    /// From where it came.
    pub(super) addr: SocketAddr,
    /// What it showed in the handshake, its own first; it holds the key of that.
    pub(super) chain: Arc<[CertificateDer<'static>]>,
    /// Its place among the connections: who takes the connection over holds this on.
    pub(super) slot: Arc<OwnedSemaphorePermit>,
}

/// Answers requests.
pub(super) trait Service: Send + Sync + 'static {
    fn answer(&self, peer: Peer, request: Request<Incoming>) -> impl Future<Output = Answer> + Send;
}

/// Serves until `stop` is cancelled; connections under way are cut then.
pub(super) async fn serve<S: Service>(
    listener: TcpListener,
    tls: TlsAcceptor,
    service: Arc<S>,
    stop: CancellationToken,
) {
    connections::take(
        "kubelet API",
        MAX_CONNECTIONS,
        &stop,
        async || listener.accept().await,
        |(stream, addr), slot| {
            let (tls, service, stop) = (tls.clone(), service.clone(), stop.clone());
            tokio::spawn(async move {
                let served =
                    stop.run_until_cancelled(serve_connection((stream, addr), tls, service, slot)).await;
                if let Some(Err(error)) = served {
                    tracing::debug!(%error, peer = %addr, "a connection ended early");
                }
            });
        },
    )
    .await;
}

async fn serve_connection<S: Service>(
    (stream, addr): (TcpStream, SocketAddr),
    tls: TlsAcceptor,
    service: Arc<S>,
    slot: OwnedSemaphorePermit,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(PING_EVERY).with_interval(PING_ANSWER).with_retries(3);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    let stream = tokio::time::timeout(HANDSHAKE_WITHIN, tls.accept(stream)).await??;
    let session = stream.get_ref().1;
    let is_http2 = session.alpn_protocol() == Some(b"h2");
    let chain: Vec<_> =
        session.peer_certificates().unwrap_or_default().iter().map(|one| one.clone().into_owned()).collect();
    let peer = Peer { addr, chain: chain.into(), slot: Arc::new(slot) };
    if is_http2 { http2(stream, peer, service).await } else { http1(stream, peer, service).await }
}

/// Requests of one connection that are being answered, until their bodies were sent.
#[derive(Clone, Debug, Default)]
struct Busy(Arc<AtomicUsize>);

struct BusyOne(Arc<AtomicUsize>);

impl Busy {
    fn one(&self) -> BusyOne {
        self.0.fetch_add(1, Ordering::Relaxed);
        BusyOne(self.0.clone())
    }
}

impl Drop for BusyOne {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn http1<S: Service>(stream: TlsStream<TcpStream>, peer: Peer, service: Arc<S>) -> io::Result<()> {
    let service = service_fn(move |request| {
        let (service, peer) = (service.clone(), peer.clone());
        async move { Ok::<_, Infallible>(service.answer(peer, request).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        // Counts for the silence between two requests too.
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await
        .map_err(io::Error::other)
}

async fn http2<S: Service>(stream: TlsStream<TcpStream>, peer: Peer, service: Arc<S>) -> io::Result<()> {
    let busy = Busy::default();
    let counted = busy.clone();
    let service = service_fn(move |request| {
        let (service, peer, one) = (service.clone(), peer.clone(), counted.one());
        async move {
            let answer = service.answer(peer, request).await;
            Ok::<_, Infallible>(answer.map(|body| super::body::holding(body, one)))
        }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .max_concurrent_streams(MAX_STREAMS)
        .max_send_buf_size(MAX_WAITING)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_ANSWER)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let mut looks = tokio::time::interval(IDLE_LOOK);
    let mut idle = 0;
    loop {
        tokio::select! {
            result = connection.as_mut() => return result.map_err(io::Error::other),
            _ = looks.tick() => {
                idle = if busy.0.load(Ordering::Relaxed) == 0 { idle + 1 } else { 0 };
                match idle {
                    3 => connection.as_mut().graceful_shutdown(),
                    // It was told, and did not go.
                    4.. => return Ok(()),
                    _ => {}
                }
            }
        }
    }
}
