//! The tcpSocket probe: a connection that is made, and closed at once, is success.
//!
//! The kubelet sets SO_LINGER of one second here. In an asynchronous program a lingering close blocks
//! the thread that closes, a whole second where the pod just died, so it is left out: all it could
//! change is how long an unanswered FIN is waited for.

use tokio::net::TcpStream;

use super::attempt::Outcome;

pub(super) async fn connect(host: &str, port: u16) -> Outcome {
    match TcpStream::connect((unbracketed(host), port)).await {
        Ok(_) => Outcome::Success("connected".to_owned()),
        Err(error) => Outcome::Failure(format!("connect to {host} port {port}: {error}")),
    }
}

/// `[::1]` as people write it in URLs.
pub(super) fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}
