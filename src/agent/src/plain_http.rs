//! Small HTTP servers for strangers: bounded in connections, heads and time, read-only. Here are the
//! listening, its retries and the serving of one connection; what is answered is the routers' business.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::connections;

/// Connections of one server at the same time; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;
/// A request's head may be this long; every legal one is far shorter.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// A connection that does not finish its request's head within this is closed, idle ones included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection ends after this whatever it does, so that slow readers hold no place for ever.
const CONNECTION_AT_MOST: Duration = Duration::from_secs(60);

/// Listens; an unspecified IPv6 address takes IPv4 too, and stands for IPv4 where there is no IPv6.
pub async fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(addr).await {
        Err(error) if addr.ip().is_unspecified() && error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => {
            TcpListener::bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), addr.port())).await
        }
        outcome => outcome,
    }
}

/// Serves until `stop` is cancelled; connections under way are cut then.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let router = router.layer(middleware::from_fn(read_only));
    let what = listener.local_addr().map_or_else(|_| "a server".to_owned(), |at| format!("server on {at}"));
    connections::take(
        &what,
        MAX_CONNECTIONS,
        &stop,
        async || listener.accept().await.map(|(stream, _)| stream),
        |stream, place| {
            let (router, stop) = (router.clone(), stop.clone());
            tokio::spawn(async move {
                stop.run_until_cancelled(serve_connection(stream, router)).await;
                drop(place);
            });
        },
    )
    .await;
}

async fn serve_connection(stream: TcpStream, router: Router) {
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    if let Ok(Err(error)) = tokio::time::timeout(CONNECTION_AT_MOST, connection).await {
        tracing::debug!(%error, "connection ended early");
    }
}

async fn read_only(request: Request, next: Next) -> Response {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return (StatusCode::METHOD_NOT_ALLOWED, "read-only: use GET\n").into_response();
    }
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Everything the server answers to these bytes, until it closes.
    async fn exchange(addr: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A server that closes on bytes it has not read resets the connection; what came before counts.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn only_short_reads_are_answered_and_stop_frees_the_port() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let router = Router::new().route("/", get(|| async { "well" }));
        let task = tokio::spawn(serve(listener, router, stop.clone()));
        let close = "Host: x\r\nConnection: close\r\n\r\n";
        let get = exchange(addr, &format!("GET / HTTP/1.1\r\n{close}")).await;
        assert!(get.starts_with("HTTP/1.1 200") && get.ends_with("well"), "{get}");
        let post = exchange(addr, &format!("POST / HTTP/1.1\r\nContent-Length: 3\r\n{close}abc")).await;
        assert!(post.starts_with("HTTP/1.1 405"), "{post}");
        let long = format!("GET / HTTP/1.1\r\nX: {}\r\n{close}", "a".repeat(MAX_HEAD_BYTES));
        let long = exchange(addr, &long).await;
        assert!(!long.contains(" 200 "), "{long}");
        stop.cancel();
        task.await.unwrap();
        listen(addr).await.expect("the port is free again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_nothing_is_let_go() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let router = Router::new().route("/", get(|| async { "well" }));
        tokio::spawn(serve(listener, router, stop.clone()));
        let began = tokio::time::Instant::now();
        let answer = exchange(addr, "GET / HT").await;
        assert!(answer.is_empty() || answer.contains(" 408 "), "{answer}");
        assert!(began.elapsed() <= CONNECTION_AT_MOST, "{:?}", began.elapsed());
        stop.cancel();
    }
}
