//! Connections to an API server by who has no credentials yet: the first one believes nobody, since what
//! to believe is what it is to learn; the second one checks the authority that was learned.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::credentials::CredentialsError;
use crate::error::ApiError;
use crate::transport::{Opened, Transport};

const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// Connections without credentials.
#[derive(Debug)]
pub struct DiscoveryTransport {
    host: String,
    port: u16,
    /// Whom the server's certificate has to be for, where it is checked.
    name: ServerName<'static>,
    authority: String,
    tls: Arc<ClientConfig>,
}

impl DiscoveryTransport {
    /// Believes whoever answers. What is read this way has to be proved by other means.
    ///
    /// # Errors
    /// A host that no certificate can be for.
    pub fn believing_anybody(host: &str, port: u16) -> Result<Self, CredentialsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(wrong)?;
        let anybody = Arc::new(Anybody(provider));
        let tls = builder.dangerous().with_custom_certificate_verifier(anybody).with_no_client_auth();
        Self::new(host, port, tls)
    }

    /// Believes a server whose certificate one of these authorities, PEM, has issued.
    ///
    /// # Errors
    /// Where they are none, or the host is one that no certificate can be for.
    pub fn believing(host: &str, port: u16, authority: &[u8]) -> Result<Self, CredentialsError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(authority) {
            roots.add(certificate.map_err(|_| none())?).map_err(wrong)?;
        }
        if roots.is_empty() {
            return Err(none());
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(wrong)?;
        Self::new(host, port, builder.with_root_certificates(roots).with_no_client_auth())
    }

    fn new(host: &str, port: u16, mut tls: ClientConfig) -> Result<Self, CredentialsError> {
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|_| CredentialsError::Name { host: host.to_owned() })?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let authority =
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        Ok(Self { host: host.to_owned(), port, name, authority, tls: Arc::new(tls) })
    }

    async fn connect(&self) -> Result<Opened, ApiError> {
        let failed = |source| ApiError::Connect { server: self.authority.clone(), source };
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(failed)?;
        let connector = TlsConnector::from(self.tls.clone());
        let stream = connector.connect(self.name.clone(), tcp).await.map_err(failed)?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(ApiError::NoHttp2 { server: self.authority.clone() });
        }
        Ok(Opened { stream: Box::new(stream), generation: 0, bearer: None })
    }
}

fn wrong(source: rustls::Error) -> CredentialsError {
    CredentialsError::Authority { place: "cluster-info".into(), source }
}

fn none() -> CredentialsError {
    CredentialsError::Pem { place: "cluster-info".into(), what: "certificate" }
}

#[async_trait]
impl Transport for DiscoveryTransport {
    async fn open(&self) -> Result<Opened, ApiError> {
        let timeout = |_| ApiError::ConnectTimeout { server: self.authority.clone(), after: CONNECT_WITHIN };
        tokio::time::timeout(CONNECT_WITHIN, self.connect()).await.map_err(timeout)?
    }

    fn generation(&self) -> u64 {
        0
    }

    fn authority(&self) -> &str {
        &self.authority
    }

    fn base(&self) -> &str {
        ""
    }
}

/// Takes every certificate; the handshake's own signatures are checked all the same.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::client::ApiClient;
    use crate::fake::FakeApi;
    use crate::path::Path;
    use crate::test_tls::{Flaw, authority, server};

    async fn read(transport: DiscoveryTransport) -> Result<Value, ApiError> {
        ApiClient::new(Arc::new(transport)).get(&Path::core_in("d", "configmaps").then("a")).await
    }

    #[tokio::test]
    async fn only_a_server_of_the_authority_by_its_name_and_key_is_believed() {
        let (api, (meant, pem), (other, _)) = (FakeApi::default(), authority("meant"), authority("other"));
        api.put("/api/v1/namespaces/d/configmaps/a", json!({"metadata": {"name": "a"}}));
        let own = &["127.0.0.1"][..];
        // The server, whether it is believed unseen, and what is said where it is checked.
        let cases = [
            (server(&meant, own, Flaw::None), true, None),
            (server(&other, own, Flaw::None), true, Some("UnknownIssuer")),
            (server(&meant, &["other.test"], Flaw::None), true, Some("not valid for name")),
            (server(&meant, own, Flaw::Expired), true, Some("expired")),
            // A certificate is public: who shows it without its key is nobody, also where nobody is checked.
            (server(&meant, own, Flaw::Forged), false, None),
        ];
        for (number, (config, unseen, refusal)) in cases.into_iter().enumerate() {
            let port = api.listen(config).await.unwrap().port();
            let anybody = DiscoveryTransport::believing_anybody("127.0.0.1", port).unwrap();
            assert_eq!(read(anybody).await.is_ok(), unseen, "case {number}");
            let checked = DiscoveryTransport::believing("127.0.0.1", port, pem.as_bytes()).unwrap();
            let got = read(checked).await;
            match refusal {
                None => assert_eq!(got.is_ok(), unseen, "case {number}"),
                Some(text) => {
                    let error = got.unwrap_err();
                    assert!(error.is_untrusted() && error.one_line().contains(text), "{}", error.one_line());
                }
            }
        }
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_no_impostor() {
        let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let error =
            read(DiscoveryTransport::believing_anybody("127.0.0.1", port).unwrap()).await.unwrap_err();
        assert!(!error.is_untrusted() && error.one_line().contains("refused"), "{}", error.one_line());
    }

    #[test]
    fn what_cannot_be_checked_is_refused_before_anybody_is_asked() {
        let wrong = |host: &str, pem: &str| {
            DiscoveryTransport::believing(host, 6443, pem.as_bytes()).unwrap_err().to_string()
        };
        let (_, pem) = authority("meant");
        assert!(wrong("a_b!", &pem).contains("neither an address nor a name"));
        assert!(wrong("api.test", "").contains("holds no certificate"));
        let nonsense = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";
        assert!(wrong("api.test", nonsense).contains("authority's certificate cannot be used"));
    }
}
