//! HTTP GET for probes and hooks: one connection per request, no proxy, no keep-alive, any certificate,
//! redirects only within the same host, answers read to 10 KiB (pkg/probe/http).

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, HOST, LOCATION, USER_AGENT as USER_AGENT_HEADER};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::attempt::Outcome;
use super::tcp::unbracketed;

/// What servers see of us; many logs and middle boxes look for the word probe.
pub const USER_AGENT: &str = concat!("longshore-probe/", env!("CARGO_PKG_VERSION"));
/// More redirects than this are a failure.
const MAX_REDIRECTS: usize = 10;
/// Longest body that is read, bytes.
const MAX_BODY: usize = 10 * 1024;

/// What to ask for, as the pod's author wrote it.
#[derive(Clone, Copy, Debug)]
pub struct HttpRequest<'a> {
    /// `HTTP` or `HTTPS`.
    pub scheme: &'a str,
    pub host: &'a str,
    pub port: u16,
    /// With a query, where it has one.
    pub path: &'a str,
    pub headers: &'a [(String, String)],
}

/// What came back.
#[derive(Clone, Debug)]
pub struct HttpAnswer {
    pub status: u16,
    /// The first 10 KiB.
    pub body: Bytes,
    /// A redirect to another host that was not followed.
    pub redirect_elsewhere: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("the request cannot be made: {0}")]
    Request(String),
    #[error("connect to {host} port {port}")]
    Connect {
        host: String,
        port: u16,
        #[source]
        source: std::io::Error,
    },
    /// The other side does not speak TLS, or not one we share.
    #[error("TLS with {host} port {port}")]
    Tls {
        host: String,
        port: u16,
        #[source]
        source: std::io::Error,
    },
    #[error("the connection broke")]
    Broken(#[from] hyper::Error),
    #[error("stopped after {MAX_REDIRECTS} redirects")]
    TooManyRedirects,
}

impl HttpError {
    /// The server answered a TLS greeting with plain text: most likely it speaks HTTP.
    pub fn speaks_no_tls(&self) -> bool {
        let Self::Tls { source, .. } = self else { return false };
        let inner = source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        matches!(inner, Some(rustls::Error::InvalidMessage(_)))
    }
}

/// Makes requests. Cheap to clone.
#[derive(Clone)]
pub struct HttpClient {
    tls: TlsConnector,
    user_agent: &'static str,
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpClient").field("user_agent", &self.user_agent).finish_non_exhaustive()
    }
}

impl HttpClient {
    pub fn for_probes() -> Self {
        Self::new(USER_AGENT)
    }

    pub fn for_hooks() -> Self {
        Self::new(concat!("longshore-lifecycle/", env!("CARGO_PKG_VERSION")))
    }

    fn new(user_agent: &'static str) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("ring has the default protocol versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate { provider }))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Self { tls: TlsConnector::from(Arc::new(config)), user_agent }
    }

    /// The request as a probe: 200 to 399 is success, and so is a redirect elsewhere.
    pub async fn probe(&self, request: &HttpRequest<'_>) -> Outcome {
        match self.get(request).await {
            Ok(HttpAnswer { redirect_elsewhere: Some(place), status, .. }) => {
                Outcome::Success(format!("HTTP {status}, a redirect to {place} that is not followed"))
            }
            Ok(HttpAnswer { status, .. }) if (200..400).contains(&status) => {
                Outcome::Success(format!("HTTP {status}"))
            }
            Ok(HttpAnswer { status, .. }) => Outcome::Failure(format!("HTTP {status}")),
            Err(error @ HttpError::Request(_)) => Outcome::Error(error.to_string()),
            Err(error) => Outcome::Failure(crate::text::error_chain(&error)),
        }
    }

    /// Makes the request and follows redirects within the host.
    ///
    /// # Errors
    /// No connection, no TLS, no HTTP, or redirects without end.
    pub async fn get(&self, request: &HttpRequest<'_>) -> Result<HttpAnswer, HttpError> {
        let headers = self.headers(request.headers)?;
        let mut target = Target::new(request)?;
        for _ in 0..=MAX_REDIRECTS {
            let exchange = self.once(&target, &headers).await?;
            match exchange.location.and_then(|location| target.resolve(&location)) {
                Some(next) if next.host == target.host => target = next,
                elsewhere => {
                    let redirect_elsewhere = elsewhere.map(|next| next.authority());
                    let status = exchange.status.as_u16();
                    return Ok(HttpAnswer { status, body: exchange.body, redirect_elsewhere });
                }
            }
        }
        Err(HttpError::TooManyRedirects)
    }

    /// The author's headers and ours where the author gave none; an empty `Accept` or `User-Agent`
    /// of the author removes ours.
    fn headers(&self, given: &[(String, String)]) -> Result<HeaderMap, HttpError> {
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            let name: HeaderName =
                name.parse().map_err(|_| HttpError::Request(format!("{name:?} is no header name")))?;
            let value: HeaderValue = value
                .parse()
                .map_err(|_| HttpError::Request(format!("the value of header {name} is not allowed")))?;
            headers.append(name, value);
        }
        for (name, ours) in [(USER_AGENT_HEADER, self.user_agent), (ACCEPT, "*/*")] {
            match headers.get(&name) {
                None => drop(headers.insert(name, HeaderValue::from_static(ours))),
                Some(value) if value.is_empty() => drop(headers.remove(&name)),
                Some(_) => {}
            }
        }
        Ok(headers)
    }

    async fn once(&self, target: &Target, headers: &HeaderMap) -> Result<Exchange, HttpError> {
        let stream = TcpStream::connect((target.host.as_str(), target.port))
            .await
            .map_err(|source| HttpError::Connect { host: target.host.clone(), port: target.port, source })?;
        if !target.tls {
            return over_http1(stream, target, headers).await;
        }
        let name = rustls::pki_types::ServerName::try_from(target.host.clone())
            .map_err(|_| HttpError::Request(format!("{:?} is no host name", target.host)))?;
        let stream = self.tls.connect(name, stream).await.map_err(|source| HttpError::Tls {
            host: target.host.clone(),
            port: target.port,
            source,
        })?;
        match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => over_http2(stream, target, headers).await,
            _ => over_http1(stream, target, headers).await,
        }
    }
}

/// Where one request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    tls: bool,
    /// Without brackets.
    host: String,
    port: u16,
    path: String,
}

impl Target {
    fn new(request: &HttpRequest<'_>) -> Result<Self, HttpError> {
        let slash = if request.path.starts_with('/') { "" } else { "/" };
        let path = format!("{slash}{}", request.path);
        // A fragment is never sent; what else does not fit a URL is told.
        let path = path.split('#').next().unwrap_or("/").to_owned();
        path.parse::<http::uri::PathAndQuery>()
            .map_err(|error| HttpError::Request(format!("path {path:?}: {error}")))?;
        Ok(Self {
            tls: request.scheme.eq_ignore_ascii_case("https"),
            host: unbracketed(request.host).to_owned(),
            port: request.port,
            path,
        })
    }

    /// Where a Location leads; `None` where it is no HTTP place.
    fn resolve(&self, location: &str) -> Option<Self> {
        if let Some(rest) = location.strip_prefix("//") {
            let scheme = if self.tls { "https" } else { "http" };
            return self.resolve(&format!("{scheme}://{rest}"));
        }
        if !location.contains("://") {
            let path = match location.strip_prefix('/') {
                Some(_) => location.to_owned(),
                None => {
                    let folder = self
                        .path
                        .split('?')
                        .next()
                        .unwrap_or("/")
                        .rsplit_once('/')
                        .map_or("", |(folder, _)| folder);
                    format!("{folder}/{location}")
                }
            };
            return Some(Self { path, ..self.clone() });
        }
        let uri: Uri = location.parse().ok()?;
        let tls = match uri.scheme_str()? {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        Some(Self {
            tls,
            host: unbracketed(uri.host()?).to_owned(),
            port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            path: uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string),
        })
    }

    /// `host`, or `host:port` where the port is not the scheme's own.
    fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let usual = if self.tls { 443 } else { 80 };
        if self.port == usual { host } else { format!("{host}:{}", self.port) }
    }
}

fn request(target: &Target, headers: &HeaderMap, uri: String) -> Result<Request<Empty<Bytes>>, HttpError> {
    let mut request = Request::new(Empty::new());
    *request.method_mut() = Method::GET;
    *request.uri_mut() =
        uri.parse().map_err(|error| HttpError::Request(format!("path {:?}: {error}", target.path)))?;
    *request.headers_mut() = headers.clone();
    Ok(request)
}

async fn over_http1<S>(stream: S, target: &Target, headers: &HeaderMap) -> Result<Exchange, HttpError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut request = request(target, headers, target.path.clone())?;
    let host = target
        .authority()
        .parse()
        .map_err(|_| HttpError::Request("the host does not fit a header".to_owned()))?;
    request.headers_mut().entry(HOST).or_insert(host);
    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    driven(connection, sender.send_request(request)).await
}

async fn over_http2<S>(stream: S, target: &Target, headers: &HeaderMap) -> Result<Exchange, HttpError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // In HTTP/2 the author's Host is the authority.
    let host = headers
        .get(HOST)
        .and_then(|host| host.to_str().ok())
        .map_or_else(|| target.authority(), str::to_owned);
    let mut request = request(target, headers, format!("https://{host}{}", target.path))?;
    request.headers_mut().remove(HOST);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    driven(connection, sender.send_request(request)).await
}

/// One request and its answer, redirects not yet looked at.
#[derive(Debug)]
struct Exchange {
    status: StatusCode,
    /// Of a redirect.
    location: Option<String>,
    body: Bytes,
}

/// The answer, with the connection driven beside it in the same task: whoever gives up waiting closes
/// the connection by that and leaves nothing behind.
async fn driven(
    connection: impl Future<Output = Result<(), hyper::Error>>,
    answer: impl Future<Output = Result<Response<Incoming>, hyper::Error>>,
) -> Result<Exchange, HttpError> {
    let reading = async {
        let (head, body) = answer.await?.into_parts();
        let location = head.status.is_redirection().then(|| head.headers.get(LOCATION)).flatten();
        let location = location.and_then(|location| location.to_str().ok()).map(str::to_owned);
        Ok(Exchange { status: head.status, location, body: read_bounded(body).await? })
    };
    let (mut reading, mut connection) = (pin!(reading), pin!(connection));
    let mut connected = true;
    loop {
        tokio::select! {
            exchange = &mut reading => return exchange,
            // The server closed; what it sent before is still to be read.
            _ = &mut connection, if connected => connected = false,
        }
    }
}

/// The first 10 KiB; what a server sends beyond, or fails to send after, is of no interest.
async fn read_bounded(mut body: Incoming) -> Result<Bytes, HttpError> {
    let mut read = Vec::new();
    while read.len() < MAX_BODY {
        let Some(frame) = body.frame().await else { break };
        if let Ok(data) = frame?.into_data() {
            let room = MAX_BODY - read.len();
            read.extend_from_slice(&data[..data.len().min(room)]);
        }
    }
    Ok(read.into())
}

/// Pods' certificates are their own business: a probe asks for an answer, not for an identity.
#[derive(Debug)]
struct AnyCertificate {
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl rustls::client::danger::ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &rustls::pki_types::CertificateDer<'_>,
        _intermediates: &[rustls::pki_types::CertificateDer<'_>],
        _server_name: &rustls::pki_types::ServerName<'_>,
        _ocsp_response: &[u8],
        _now: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &rustls::pki_types::CertificateDer<'_>,
        _dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &rustls::pki_types::CertificateDer<'_>,
        _dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
