//! How a connection to the API server is opened: TCP and TLS in production, a pipe to the fake in tests.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::credentials::Credentials;
use crate::error::ApiError;
use crate::kubeconfig::Kubeconfig;

/// TCP and TLS have to be done within this.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// Bytes both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection just opened, and with which credentials.
pub struct Opened {
    pub stream: Box<dyn Duplex>,
    /// Of the credentials; another number means that they have changed since.
    pub generation: u64,
    pub bearer: Option<http::HeaderValue>,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").field("generation", &self.generation).finish_non_exhaustive()
    }
}

/// Opens connections to one API server.
#[async_trait]
pub trait Transport: Send + Sync + std::fmt::Debug {
    /// # Errors
    /// Where the server cannot be reached or is not who it should be.
    async fn open(&self) -> Result<Opened, ApiError>;

    /// The generation a connection opened now would have.
    fn generation(&self) -> u64;

    /// `HOST:PORT`, for requests and messages.
    fn authority(&self) -> &str;

    /// Path before `/api`, without a final slash.
    fn base(&self) -> &str;
}

/// TCP and TLS with the credentials of a kubeconfig.
#[derive(Debug)]
pub struct TlsTransport {
    config: Kubeconfig,
    authority: String,
    credentials: Arc<Credentials>,
}

impl TlsTransport {
    pub fn new(config: Kubeconfig) -> Self {
        let credentials = Arc::new(Credentials::new(&config));
        Self { authority: config.authority_text(), config, credentials }
    }

    async fn connect(&self) -> Result<Opened, ApiError> {
        let server = || self.authority.clone();
        let failed = |source| ApiError::Connect { server: server(), source };
        let identity = self.credentials.current()?;
        let tcp = TcpStream::connect((self.config.host.as_str(), self.config.port)).await.map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        let name = self.config.tls_server_name.as_deref().unwrap_or(&self.config.host).to_owned();
        let name = ServerName::try_from(name).map_err(|error| failed(std::io::Error::other(error)))?;
        let stream = TlsConnector::from(identity.tls).connect(name, tcp).await.map_err(failed)?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(ApiError::NoHttp2 { server: server() });
        }
        Ok(Opened { stream: Box::new(stream), generation: identity.generation, bearer: identity.bearer })
    }
}

#[async_trait]
impl Transport for TlsTransport {
    async fn open(&self) -> Result<Opened, ApiError> {
        let timeout = |_| ApiError::ConnectTimeout { server: self.authority.clone(), after: CONNECT_WITHIN };
        tokio::time::timeout(CONNECT_WITHIN, self.connect()).await.map_err(timeout)?
    }

    fn generation(&self) -> u64 {
        self.credentials.current().map_or(0, |identity| identity.generation)
    }

    fn authority(&self) -> &str {
        &self.authority
    }

    fn base(&self) -> &str {
        &self.config.base
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::{Value, json};

    use super::*;
    use crate::client::ApiClient;
    use crate::fake::FakeApi;
    use crate::path::Path;
    use crate::test_tls::{Flaw, authority, server};

    fn transport(server: SocketAddr, authority: &str) -> TlsTransport {
        let authority = STANDARD.encode(authority);
        let text = format!(
            "apiVersion: v1
kind: Config
current-context: a
contexts: [{{name: a, context: {{cluster: c, user: u}}}}]
clusters: [{{name: c, cluster: {{server: 'https://{server}', certificate-authority-data: {authority}}}}}]
users: [{{name: u, user: {{token: secret}}}}]
"
        );
        TlsTransport::new(Kubeconfig::parse(std::path::Path::new("kubeconfig"), &text).unwrap())
    }

    #[tokio::test]
    async fn only_the_kubeconfigs_server_is_spoken_to_and_a_refusal_says_what_is_wrong() {
        let (api, (meant, pem), (other, _)) = (FakeApi::default(), authority("meant"), authority("other"));
        api.put("/api/v1/nodes/a", json!({"metadata": {"name": "a"}}));
        let own = &["127.0.0.1"][..];
        let cases = [
            (server(&meant, own, Flaw::None), None),
            (server(&other, own, Flaw::None), Some("UnknownIssuer")),
            (server(&meant, &["other.test"], Flaw::None), Some("not valid for name")),
            (server(&meant, own, Flaw::Expired), Some("expired")),
            (server(&meant, own, Flaw::NotYetValid), Some("not valid yet")),
            (server(&meant, own, Flaw::Forged), Some("BadSignature")),
        ];
        for (config, refusal) in cases {
            let addr = api.listen(config).await.unwrap();
            let client = ApiClient::new(Arc::new(transport(addr, &pem)));
            let got: Result<Value, _> = client.get(&Path::node("a")).await;
            match refusal {
                None => assert_eq!(got.unwrap()["metadata"]["name"], "a"),
                Some(text) => {
                    let error = got.unwrap_err();
                    let line = error.one_line();
                    assert!(line.contains(text) && line.contains(&addr.to_string()), "{text}: {line}");
                    assert!(error.is_retryable() && !line.contains("secret"), "{line}");
                }
            }
        }
        assert_eq!(api.calls("").len(), 1, "nobody else saw a request, nor the token in it");
    }

    #[tokio::test]
    async fn a_server_that_takes_the_connection_and_says_nothing_is_given_up() {
        let (_, pem) = authority("meant");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let transport = transport(listener.local_addr().unwrap(), &pem);
        tokio::time::pause();
        let error = transport.open().await.unwrap_err();
        assert!(matches!(error, ApiError::ConnectTimeout { .. }), "{}", error.one_line());
        drop(listener);
    }
}
