//! `/exec`, `/attach`, `/portForward` and `/run`. The first three are a way through to the runtime's
//! streaming server: its URL is asked for, the upgrade is handed on, and then bytes go both ways untouched,
//! whatever protocol they speak. Nothing of the caller's request but the upgrade itself gets through.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, Version, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use longshore_core::ids::ContainerId;
use longshore_core::kubelet_api::query::{Query, StreamOptions, ports};
use longshore_core::kubelet_api::route::{ContainerTarget, PodTarget};
use longshore_core::pod::observed::SandboxState;
use longshore_core::wire::PodView;
use longshore_cri::{CriError, StreamIo, StreamingUrl, StreamingUrlError, Streams};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::body::{self, Answer};
use super::listener::Peer;
use super::pods::find;
use crate::pods::PodsView;

/// Asking the runtime and switching the connection have to be done within this.
const SWITCH_WITHIN: Duration = Duration::from_secs(30);
/// Longest refusal of the runtime that is handed on.
const MAX_REFUSAL: usize = 64 << 10;
/// Longest head of the runtime's answer.
const MAX_HEAD: usize = 64 << 10;
/// Headers of an upgrade, and all of the caller's that get through.
const UPGRADE_HEADERS: [&str; 8] = [
    "upgrade",
    "origin",
    "user-agent",
    "x-stream-protocol-version",
    "sec-websocket-key",
    "sec-websocket-version",
    "sec-websocket-protocol",
    "sec-websocket-extensions",
];

/// Answers with streams.
pub(super) struct StreamRoutes {
    pub(super) pods: PodsView,
    pub(super) streams: Arc<dyn Streams>,
    /// Streams and commands under way at the same time.
    pub(super) places: Arc<Semaphore>,
}

/// Why there is no stream.
struct Refused(StatusCode, String);

impl From<Refused> for Answer {
    fn from(Refused(status, message): Refused) -> Self {
        body::text(status, format!("{message}\n"))
    }
}

fn refused(status: StatusCode, message: impl Into<String>) -> Refused {
    Refused(status, message.into())
}

impl From<CriError> for Refused {
    fn from(error: CriError) -> Self {
        refused(StatusCode::INTERNAL_SERVER_ERROR, error.one_line())
    }
}

impl From<StreamingUrlError> for Refused {
    fn from(error: StreamingUrlError) -> Self {
        let message = match error {
            StreamingUrlError::NoSense => error.to_string(),
            StreamingUrlError::WantsTls => format!(
                "{error}; turn that off, it listens on this node only (containerd: enable_tls_streaming = false)"
            ),
        };
        refused(StatusCode::INTERNAL_SERVER_ERROR, message)
    }
}

impl StreamRoutes {
    pub(super) async fn exec(
        &self,
        target: &ContainerTarget,
        peer: &Peer,
        request: Request<Incoming>,
    ) -> Answer {
        let query = query_of(&request);
        let url = async {
            let options = options(&query)?;
            if options.command.is_empty() {
                return Err(refused(StatusCode::BAD_REQUEST, "you must specify at least 1 word of command"));
            }
            let id = self.running(target)?;
            Ok(self.streams.exec_url(&id, &options.command, stream_io(&options)).await?)
        };
        self.open(peer, request, url).await
    }

    pub(super) async fn attach(
        &self,
        target: &ContainerTarget,
        peer: &Peer,
        request: Request<Incoming>,
    ) -> Answer {
        let query = query_of(&request);
        let url = async {
            let options = options(&query)?;
            let id = self.running(target)?;
            Ok(self.streams.attach_url(&id, stream_io(&options)).await?)
        };
        self.open(peer, request, url).await
    }

    pub(super) async fn port_forward(
        &self,
        target: &PodTarget,
        peer: &Peer,
        request: Request<Incoming>,
    ) -> Answer {
        let query = query_of(&request);
        let url = async {
            let ports = ports(&Query::parse(&query).map_err(bad_request)?).map_err(bad_request)?;
            let view = self.pod(target)?;
            let ready = view.observed.sandboxes.iter().find(|sandbox| sandbox.state == SandboxState::Ready);
            let sandbox = ready.ok_or_else(|| {
                refused(StatusCode::NOT_FOUND, format!("pod \"{}\" is not running", target.pod))
            })?;
            Ok(self.streams.port_forward_url(&sandbox.id, &ports).await?)
        };
        self.open(peer, request, url).await
    }

    /// Runs a command and answers with what it wrote.
    pub(super) async fn run(&self, target: &ContainerTarget, query: &str) -> Answer {
        let ran = async {
            let query = Query::parse(query).map_err(bad_request)?;
            let command: Vec<String> =
                query.get("cmd").unwrap_or_default().split(' ').map(str::to_owned).collect();
            let id = self.running(target)?;
            let output = self.streams.exec_sync(&id, &command, None).await?;
            Ok::<_, Refused>(output)
        };
        let Ok(_place) = self.places.clone().try_acquire_owned() else { return body::busy("streams") };
        match ran.await {
            Ok(output) if output.exit_code == 0 => {
                let all = [output.stdout, output.stderr].concat();
                body::answer(StatusCode::OK, "text/plain; charset=utf-8", body::whole(all))
            }
            Ok(output) => {
                let code = output.exit_code;
                body::text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    format!("command terminated with exit code {code}\n"),
                )
            }
            Err(refused) => refused.into(),
        }
    }

    fn pod(&self, target: &PodTarget) -> Result<Arc<PodView>, Refused> {
        find(&self.pods, target).ok_or_else(|| refused(StatusCode::NOT_FOUND, "pod does not exist"))
    }

    /// The instance of a container that runs now.
    fn running(&self, target: &ContainerTarget) -> Result<ContainerId, Refused> {
        let view = self.pod(&target.pod)?;
        let mut instances = view.observed.containers.iter();
        let found = instances
            .find(|container| container.name.as_str() == target.container && container.is_running())
            .map(|container| container.id.clone());
        found.ok_or_else(|| {
            refused(StatusCode::NOT_FOUND, format!("container not found (\"{}\")", target.container))
        })
    }

    async fn open(
        &self,
        peer: &Peer,
        mut request: Request<Incoming>,
        url: impl Future<Output = Result<String, Refused>>,
    ) -> Answer {
        let Ok(place) = self.places.clone().try_acquire_owned() else { return body::busy("streams") };
        let held = (place, peer.slot.clone());
        let switched = async {
            check_upgrade(&request)?;
            let url = url.await?;
            switch(&mut request, &url, held).await
        };
        match tokio::time::timeout(SWITCH_WITHIN, switched).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(refused)) => refused.into(),
            Err(_) => {
                let message = format!(
                    "the runtime's streaming server gave no answer within {} s",
                    SWITCH_WITHIN.as_secs()
                );
                refused(StatusCode::GATEWAY_TIMEOUT, message).into()
            }
        }
    }
}

fn query_of(request: &Request<Incoming>) -> String {
    request.uri().query().unwrap_or_default().to_owned()
}

fn bad_request(why: String) -> Refused {
    refused(StatusCode::BAD_REQUEST, why)
}

fn options(query: &str) -> Result<StreamOptions, Refused> {
    StreamOptions::parse(&Query::parse(query).map_err(bad_request)?).map_err(bad_request)
}

fn stream_io(options: &StreamOptions) -> StreamIo {
    StreamIo { tty: options.tty, stdin: options.stdin, stdout: options.stdout, stderr: options.stderr }
}

/// An upgrade is of HTTP/1.1 and has no body: what came after the head would be taken for the stream's own
/// bytes by one side and for a body by the other.
fn check_upgrade(request: &Request<Incoming>) -> Result<(), Refused> {
    let headers = request.headers();
    let asks = headers.get_all(header::CONNECTION).iter().any(|value| {
        let words = value.to_str().unwrap_or_default().split(',').map(str::trim);
        words.into_iter().any(|word| word.eq_ignore_ascii_case("upgrade"))
    });
    let mut protocols = headers.get_all(header::UPGRADE).iter();
    let known = match (protocols.next().and_then(|value| value.to_str().ok()), protocols.next()) {
        (Some(protocol), None) => {
            protocol.eq_ignore_ascii_case("SPDY/3.1") || protocol.eq_ignore_ascii_case("websocket")
        }
        _ => false,
    };
    if request.version() != Version::HTTP_11 || !asks || !known {
        return Err(refused(StatusCode::BAD_REQUEST, "Upgrade request required"));
    }
    let lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let has_body = headers.contains_key(header::TRANSFER_ENCODING)
        || lengths.into_iter().any(|length| length.as_bytes() != b"0");
    if has_body {
        return Err(refused(StatusCode::BAD_REQUEST, "an upgrade request has no body"));
    }
    Ok(())
}

/// Hands the upgrade on and joins the two connections once both have switched.
async fn switch(
    request: &mut Request<Incoming>,
    url: &str,
    held: (OwnedSemaphorePermit, Arc<OwnedSemaphorePermit>),
) -> Result<Answer, Refused> {
    let runtime = |error: hyper::Error| {
        refused(StatusCode::BAD_GATEWAY, format!("the runtime's streaming server: {error}"))
    };
    let StreamingUrl { server, target } = StreamingUrl::parse(url)?;
    let target: Uri = target.parse().map_err(|_| StreamingUrlError::NoSense)?;
    let stream = TcpStream::connect(&server).await.map_err(|error| {
        refused(StatusCode::BAD_GATEWAY, format!("cannot reach the runtime's streaming server: {error}"))
    })?;
    // Key strokes are small and must not wait for each other.
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(runtime)?;
    tokio::spawn(connection.with_upgrades());
    let mut onward = Request::new(Empty::<Bytes>::new());
    *onward.method_mut() = request.method().clone();
    *onward.uri_mut() = target;
    *onward.headers_mut() = upgrade_headers(request.headers(), &server);
    let mut response = sender.send_request(onward).await.map_err(runtime)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return refusal(response).await;
    }
    let ours = hyper::upgrade::on(request);
    let theirs = hyper::upgrade::on(&mut response);
    tokio::spawn(join(ours, theirs, held));
    let mut answer = Response::new(body::whole(Bytes::new()));
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *answer.headers_mut() = response.headers().clone();
    Ok(answer)
}

fn upgrade_headers(asked: &HeaderMap, address: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for name in UPGRADE_HEADERS.map(HeaderName::from_static) {
        for value in asked.get_all(&name) {
            if let Some(value) = without_bearer(value) {
                headers.append(name.clone(), value);
            }
        }
    }
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    // Made of a URL, so it is always one.
    headers.insert(
        header::HOST,
        HeaderValue::try_from(address).unwrap_or(HeaderValue::from_static("localhost")),
    );
    headers
}

/// Browsers hide their token in the list of protocols; it is for us, not for the runtime.
fn without_bearer(value: &HeaderValue) -> Option<HeaderValue> {
    const BEARER: &str = "base64url.bearer.authorization.k8s.io.";
    let text = value.to_str().ok()?;
    if !text.contains(BEARER) {
        return Some(value.clone());
    }
    let left: Vec<&str> =
        text.split(',').map(str::trim).filter(|protocol| !protocol.starts_with(BEARER)).collect();
    HeaderValue::try_from(left.join(", ")).ok().filter(|_| !left.is_empty())
}

/// A refusal goes back as it is; anything between is no answer to an upgrade.
async fn refusal(response: Response<Incoming>) -> Result<Answer, Refused> {
    let status = response.status();
    if status.as_u16() < 400 {
        let message = format!("the runtime's streaming server did not switch: {status}");
        return Err(refused(StatusCode::INTERNAL_SERVER_ERROR, message));
    }
    let body = Limited::new(response.into_body(), MAX_REFUSAL).collect().await;
    let text = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned()).unwrap_or_default();
    Ok(body::text(status, text))
}

/// Bytes both ways until one side is done; the places are held as long.
async fn join(ours: OnUpgrade, theirs: OnUpgrade, held: (OwnedSemaphorePermit, Arc<OwnedSemaphorePermit>)) {
    let both = async { tokio::try_join!(ours, theirs) };
    match tokio::time::timeout(SWITCH_WITHIN, both).await {
        Ok(Ok((ours, theirs))) => {
            let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
            if let Err(error) = tokio::io::copy_bidirectional(&mut ours, &mut theirs).await {
                tracing::debug!(%error, "a stream ended early");
            }
        }
        Ok(Err(error)) => tracing::debug!(%error, "a stream was not switched"),
        Err(_) => tracing::debug!("a stream was not switched in time"),
    }
    drop(held);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_upgrade_gets_through() {
        let mut asked = HeaderMap::new();
        for (name, value) in [
            ("upgrade", "SPDY/3.1"),
            ("connection", "Upgrade, X-Secret"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
            ("x-stream-protocol-version", "v3.channel.k8s.io"),
            ("authorization", "Bearer secret"),
            ("cookie", "secret"),
            ("x-forwarded-for", "1.2.3.4"),
            ("host", "elsewhere"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("impersonate-user", "admin"),
            ("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.c2VjcmV0, v4.channel.k8s.io"),
        ] {
            asked.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let mut seen: Vec<String> = upgrade_headers(&asked, "127.0.0.1:9")
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        seen.sort();
        let expected = [
            "connection: Upgrade",
            "host: 127.0.0.1:9",
            "sec-websocket-protocol: v4.channel.k8s.io",
            "upgrade: SPDY/3.1",
            "x-stream-protocol-version: v3.channel.k8s.io",
            "x-stream-protocol-version: v4.channel.k8s.io",
        ];
        assert_eq!(seen, expected);
    }
}
