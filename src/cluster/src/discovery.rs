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
    authority: String,
    tls: Arc<ClientConfig>,
}

impl DiscoveryTransport {
    /// Believes whoever answers. What is read this way has to be proved by other means.
    ///
    /// # Errors
    /// Where TLS cannot be set up.
    pub fn believing_anybody(host: &str, port: u16) -> Result<Self, CredentialsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(wrong)?;
        let anybody = Arc::new(Anybody(provider));
        let tls = builder.dangerous().with_custom_certificate_verifier(anybody).with_no_client_auth();
        Ok(Self::new(host, port, tls))
    }

    /// Believes a server whose certificate one of these authorities, PEM, has issued.
    ///
    /// # Errors
    /// Where they are none.
    pub fn believing(host: &str, port: u16, authority: &[u8]) -> Result<Self, CredentialsError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(authority) {
            let none = |_| CredentialsError::Pem { place: "cluster-info".into(), what: "certificate" };
            roots.add(certificate.map_err(none)?).map_err(wrong)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(wrong)?;
        Ok(Self::new(host, port, builder.with_root_certificates(roots).with_no_client_auth()))
    }

    fn new(host: &str, port: u16, mut tls: ClientConfig) -> Self {
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let authority =
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        Self { host: host.to_owned(), port, authority, tls: Arc::new(tls) }
    }

    async fn connect(&self) -> Result<Opened, ApiError> {
        let failed = |source| ApiError::Connect { server: self.authority.clone(), source };
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(failed)?;
        let name = ServerName::try_from(self.host.clone());
        let name = name.map_err(|error| failed(std::io::Error::other(error)))?;
        let stream = TlsConnector::from(self.tls.clone()).connect(name, tcp).await.map_err(failed)?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(ApiError::NoHttp2 { server: self.authority.clone() });
        }
        Ok(Opened { stream: Box::new(stream), generation: 0, bearer: None })
    }
}

fn wrong(source: rustls::Error) -> CredentialsError {
    CredentialsError::Tls { place: "cluster-info".into(), source }
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
