//! TLS of the kubelet's API: the certificate it shows, which may change while it runs, and whose client
//! certificates it believes. A client's certificate is asked for in the handshake and judged with each
//! request: so a new authority and an expiry count on open connections too, and a caller with another
//! authority's certificate may still show a token, as with the kubelet.

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use longshore_core::kubelet_api::access::User;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};

use crate::certificates::{Serve, write_whole};
use crate::config::ServerTls;
use crate::text::error_chain;

/// Files with certificates are looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Larger files are no certificates, bytes.
const MAX_BYTES: u64 = 1 << 20;
/// Life of a certificate we make for ourselves.
const SELF_SIGNED_YEARS: i16 = 1;

/// Why the server cannot speak TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} has no {what} in PEM", path.display())]
    Pem { path: PathBuf, what: &'static str },
    #[error("{} cannot be used", path.display())]
    Unusable {
        path: PathBuf,
        #[source]
        source: rustls::Error,
    },
    #[error("cannot make a certificate")]
    Make(#[source] rcgen::Error),
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
}

/// The certificate the server shows; connections made after [`ServingCertificate::set`] see the new one.
#[derive(Debug, Default)]
pub struct ServingCertificate {
    current: RwLock<Option<Arc<CertifiedKey>>>,
}

impl ServingCertificate {
    pub fn set(&self, certificate: CertifiedKey) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(certificate));
    }

    /// `None` before the first one; handshakes fail then.
    pub fn current(&self) -> Option<Arc<CertifiedKey>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Serve for ServingCertificate {
    fn serve(&self, pair: &Path) {
        match load_pair(pair, pair) {
            Ok(certificate) => self.set(certificate),
            Err(error) => tracing::warn!(
                "the new serving certificate is not taken up, callers of the kubelet API go on seeing the one of \
                 before: {}",
                error_chain(&error)
            ),
        }
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current()
    }
}

/// Whose client certificates count; nobody's where no authority is named.
#[derive(Debug, Default)]
pub(super) struct ClientAuthority {
    verifier: RwLock<Option<Arc<dyn ClientCertVerifier>>>,
}

impl ClientAuthority {
    /// # Errors
    /// Where the file has no certificates, or one that is none.
    pub(super) fn load(&self, path: &Path) -> Result<(), TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(path)? {
            let unusable = |source| TlsError::Unusable { path: path.to_owned(), source };
            roots.add(certificate).map_err(unusable)?;
        }
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
        let unusable = |error| TlsError::Unusable {
            path: path.to_owned(),
            source: rustls::Error::General(format!("{error}")),
        };
        let verifier = builder.build().map_err(unusable)?;
        *self.verifier.write().unwrap_or_else(PoisonError::into_inner) = Some(verifier);
        Ok(())
    }

    /// The user of a chain whose key the peer has shown to hold.
    ///
    /// # Errors
    /// Why the chain does not count, one line.
    pub(super) fn user(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<User, String> {
        let verifier = self.verifier.read().unwrap_or_else(PoisonError::into_inner).clone();
        let verifier = verifier.ok_or("no authority of client certificates is configured")?;
        let (own, between) = chain.split_first().ok_or("the chain is empty")?;
        verifier.verify_client_cert(own, between, now).map_err(|error| error.to_string())?;
        subject(own)
    }
}

/// Common name and organisations are user and groups (pkg/apis: x509 CommonNameUserConversion).
fn subject(certificate: &CertificateDer<'_>) -> Result<User, String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| format!("the certificate cannot be read: {error}"))?;
    let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        attribute.as_str().map(str::to_owned).map_err(|error| format!("the subject cannot be read: {error}"))
    };
    let mut names = parsed.subject().iter_common_name();
    let name = match (names.next(), names.next()) {
        (Some(name), None) => text(name)?,
        // Of two names nobody could say which one was meant.
        _ => return Err("the subject has not exactly one common name".to_owned()),
    };
    if name.is_empty() {
        return Err("the subject's common name is empty".to_owned());
    }
    let groups = parsed.subject().iter_organization().map(text).collect::<Result<Vec<_>, _>>()?;
    Ok(User { name, groups, ..User::default() })
}

/// Asks every client for a certificate and believes only that it holds the key.
#[derive(Debug)]
struct Asking {
    algorithms: WebPkiSupportedAlgorithms,
    asks: bool,
}

impl ClientCertVerifier for Asking {
    fn offer_client_auth(&self) -> bool {
        self.asks
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        // Judged by `ClientAuthority::user` with every request; alone this makes nobody anyone.
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// TLS 1.2 and above, HTTP/2 and HTTP/1.1; nothing is resumed, so that every connection shows its
/// certificate anew.
///
/// # Errors
/// Where the suites leave nothing to speak.
pub(super) fn server_config(
    settings: &ServerTls,
    shown: Arc<ServingCertificate>,
    asks: bool,
) -> Result<ServerConfig, TlsError> {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites.retain(|suite| {
        let name = suite.suite().as_str().unwrap_or_default();
        // As in Go, those of TLS 1.3 are not chosen.
        suite.tls13().is_some() || settings.cipher_suites.contains(&name)
    });
    let algorithms = provider.signature_verification_algorithms;
    let versions: &[&rustls::SupportedProtocolVersion] =
        if settings.only_tls13 { &[&rustls::version::TLS13] } else { rustls::ALL_VERSIONS };
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .map_err(TlsError::Setup)?
        .with_client_cert_verifier(Arc::new(Asking { algorithms, asks }))
        .with_cert_resolver(shown);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The certificate to begin with: the configured one, else one that signs itself, kept in the folder of
/// certificates as the kubelet keeps it.
///
/// # Errors
/// Where a named file cannot be used, or none can be made.
pub(super) fn first_certificate(
    settings: &ServerTls,
    node: &str,
    ips: &[IpAddr],
) -> Result<CertifiedKey, TlsError> {
    if let Some((certificate, key)) = &settings.files {
        return load_pair(certificate, key);
    }
    let (certificate, key) = (settings.folder.join("kubelet.crt"), settings.folder.join("kubelet.key"));
    if let Ok(pair) = load_pair(&certificate, &key)
        && !is_expired(&pair)
    {
        return Ok(pair);
    }
    let (certificate_pem, key_pem) = self_signed(node, ips)?;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&settings.folder)
        .map_err(|source| TlsError::File { action: "make folder", path: settings.folder.clone(), source })?;
    for (path, text, mode) in [(&key, &key_pem, 0o600), (&certificate, &certificate_pem, 0o644)] {
        let failed = |source| TlsError::File { action: "write", path: path.clone(), source };
        write_whole(path, text.as_bytes(), mode).map_err(failed)?;
    }
    load_pair(&certificate, &key)
}

fn self_signed(node: &str, ips: &[IpAddr]) -> Result<(String, String), TlsError> {
    let mut names: Vec<String> = vec![node.to_owned()];
    names.extend(ips.iter().map(ToString::to_string));
    let mut params = rcgen::CertificateParams::new(names).map_err(TlsError::Make)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, node);
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    // The 29th of February is not in every year.
    let day = |year: i16, day: i8| {
        rcgen::date_time_ymd(i32::from(year), today.month().unsigned_abs(), day.unsigned_abs())
    };
    params.not_before = day(today.year(), today.day().min(28).saturating_sub(1).max(1));
    params.not_after = day(today.year() + SELF_SIGNED_YEARS, today.day().min(28));
    let key = rcgen::KeyPair::generate().map_err(TlsError::Make)?;
    let certificate = params.self_signed(&key).map_err(TlsError::Make)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn is_expired(pair: &CertifiedKey) -> bool {
    let Some(own) = pair.cert.first() else { return true };
    match x509_parser::parse_x509_certificate(own) {
        Ok((_, parsed)) => !parsed.validity().is_valid(),
        Err(_) => true,
    }
}

/// A certificate with its chain, and its key.
///
/// # Errors
/// Where a file cannot be read, or the two do not belong together.
pub fn load_pair(certificate: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(certificate)?;
    let key_der = PrivateKeyDer::from_pem_slice(&read(key)?)
        .map_err(|_| TlsError::Pem { path: key.to_owned(), what: "private key" })?;
    CertifiedKey::from_der(chain, key_der, &provider())
        .map_err(|source| TlsError::Unusable { path: certificate.to_owned(), source })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    let wrong = || TlsError::Pem { path: path.to_owned(), what: "certificate" };
    all.ok().filter(|all| !all.is_empty()).ok_or_else(wrong)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::File { action: "read", path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(failed)?.len() > MAX_BYTES {
        return Err(failed(io::Error::other(format!("it is larger than {MAX_BYTES} bytes"))));
    }
    std::fs::read(path).map_err(failed)
}

/// When the files were written, as far as they are there.
type Written = Vec<Option<SystemTime>>;

fn written(paths: &[&Path]) -> Written {
    paths.iter().map(|path| std::fs::metadata(path).and_then(|found| found.modified()).ok()).collect()
}

/// Takes up files that change; what cannot be used is told once and leaves the one before in force.
pub(super) async fn follow_files(
    pair: Option<(PathBuf, PathBuf)>,
    shown: Arc<ServingCertificate>,
    authority_file: Option<PathBuf>,
    authority: Arc<ClientAuthority>,
) {
    let pair_paths: Vec<&Path> =
        pair.iter().flat_map(|(one, other)| [one.as_path(), other.as_path()]).collect();
    let authority_paths: Vec<&Path> = authority_file.iter().map(PathBuf::as_path).collect();
    let (mut pair_seen, mut authority_seen) = (written(&pair_paths), written(&authority_paths));
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = written(&pair_paths);
        if let Some((certificate, key)) = pair.as_ref().filter(|_| now != pair_seen) {
            pair_seen = now;
            match load_pair(certificate, key) {
                Ok(pair) => {
                    shown.set(pair);
                    tracing::info!(file = %certificate.display(), "serving certificate taken up");
                }
                Err(error) => tracing::warn!(
                    "tlsCertFile and tlsPrivateKeyFile were changed and cannot be used, callers go on seeing the \
                     certificate of before: {}",
                    error_chain(&error)
                ),
            }
        }
        let now = written(&authority_paths);
        if let Some(file) = authority_file.as_ref().filter(|_| now != authority_seen) {
            authority_seen = now;
            match authority.load(file) {
                Ok(()) => tracing::info!(file = %file.display(), "client authority taken up"),
                Err(error) => tracing::warn!(
                    "authentication.x509.clientCAFile was changed and cannot be used, the authority of before \
                     goes on counting: {}",
                    error_chain(&error)
                ),
            }
        }
    }
}
