//! Credentials as they are on disk now: certificate authority, client certificate or token. Read again
//! when a file changes, so that a rotated certificate is used without a restart.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::Instant;

use crate::kubeconfig::{Kubeconfig, Login, Source};

/// A changed file is noticed within this.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Larger credential files are refused, bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Why the credentials cannot be used; never quotes them.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{place} holds no {what} in PEM form")]
    Pem { place: String, what: &'static str },
    #[error("{place}: the key and certificates do not make a TLS identity")]
    Tls {
        place: String,
        #[source]
        source: rustls::Error,
    },
    #[error("{place}: the authority's certificate cannot be used")]
    Authority {
        place: String,
        #[source]
        source: rustls::Error,
    },
    #[error("{host:?} is neither an address nor a name that a server's certificate can be for")]
    Name { host: String },
    #[error("{place}: the token is empty or has characters no header can carry")]
    Token { place: String },
}

/// Everything one connection needs. `generation` moves when any file changes.
#[derive(Clone)]
pub struct Identity {
    pub generation: u64,
    pub tls: Arc<ClientConfig>,
    /// The value of the `Authorization` header.
    pub bearer: Option<http::HeaderValue>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("generation", &self.generation)
            .field("bearer", &self.bearer.is_some())
            .finish_non_exhaustive()
    }
}

/// What a file looked like when it was read.
type Signature = Vec<Option<(u64, u64, i64, i64)>>;

struct Seen {
    identity: Identity,
    signature: Signature,
    looked_at: Instant,
}

/// The credentials of a kubeconfig.
pub struct Credentials {
    authority: Source,
    login: Login,
    seen: Mutex<Option<Seen>>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("login", &self.login).finish_non_exhaustive()
    }
}

impl Credentials {
    pub fn new(config: &Kubeconfig) -> Self {
        Self { authority: config.authority.clone(), login: config.login.clone(), seen: Mutex::new(None) }
    }

    /// The identity of now. Files that have become unreadable keep the last one that worked.
    ///
    /// # Errors
    /// Where there is none that worked.
    pub fn current(&self) -> Result<Identity, CredentialsError> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(seen) = seen.as_ref().filter(|seen| now.duration_since(seen.looked_at) < LOOK_EVERY) {
            return Ok(seen.identity.clone());
        }
        let signature = self.signature();
        if let Some(seen) = seen.as_mut().filter(|seen| seen.signature == signature) {
            seen.looked_at = now;
            return Ok(seen.identity.clone());
        }
        let generation = seen.as_ref().map_or(0, |seen| seen.identity.generation + 1);
        match (self.load(generation), seen.as_mut()) {
            (Ok(identity), _) => {
                *seen = Some(Seen { identity: identity.clone(), signature, looked_at: now });
                Ok(identity)
            }
            // Half written, most likely: the next look finds it whole.
            (Err(error), Some(seen)) => {
                tracing::warn!(%error, "changed credentials cannot be used; going on with those of before");
                seen.looked_at = now;
                Ok(seen.identity.clone())
            }
            (Err(error), None) => Err(error),
        }
    }

    fn files(&self) -> Vec<&Path> {
        let sources = match &self.login {
            Login::Certificate { certificate, key } => vec![&self.authority, certificate, key],
            Login::Token(token) => vec![&self.authority, token],
        };
        sources
            .into_iter()
            .filter_map(|source| match source {
                Source::File(path) => Some(path.as_path()),
                Source::Inline(_) => None,
            })
            .collect()
    }

    fn signature(&self) -> Signature {
        let look = |path: &Path| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec()))
        };
        self.files().into_iter().map(look).collect()
    }

    fn load(&self, generation: u64) -> Result<Identity, CredentialsError> {
        let roots = roots(&self.authority)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls_error = |place: String| move |source: rustls::Error| CredentialsError::Tls { place, source };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(tls_error(place(&self.authority)))?
            .with_root_certificates(roots);
        let (mut tls, bearer) = match &self.login {
            Login::Certificate { certificate, key } => {
                let chain = certificates(certificate)?;
                let pem = read(key)?;
                let key_der = PrivateKeyDer::from_pem_slice(&pem)
                    .map_err(|_| CredentialsError::Pem { place: place(key), what: "private key" })?;
                let tls =
                    builder.with_client_auth_cert(chain, key_der).map_err(tls_error(place(certificate)))?;
                (tls, None)
            }
            Login::Token(source) => (builder.with_no_client_auth(), Some(bearer(source)?)),
        };
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Identity { generation, tls: Arc::new(tls), bearer })
    }
}

fn place(source: &Source) -> String {
    match source {
        Source::Inline(_) => "the kubeconfig".to_owned(),
        Source::File(path) => path.display().to_string(),
    }
}

fn read(source: &Source) -> Result<Vec<u8>, CredentialsError> {
    match source {
        Source::Inline(bytes) => Ok(bytes.clone()),
        Source::File(path) => {
            let failed = |source| CredentialsError::Read { path: path.clone(), source };
            if std::fs::metadata(path).map_err(failed)?.len() > MAX_BYTES {
                return Err(failed(std::io::Error::other(format!("it is larger than {MAX_BYTES} bytes"))));
            }
            std::fs::read(path).map_err(failed)
        }
    }
}

fn certificates(source: &Source) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let wrong = || CredentialsError::Pem { place: place(source), what: "certificate" };
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(source)?).collect();
    all.ok().filter(|all| !all.is_empty()).ok_or_else(wrong)
}

fn roots(source: &Source) -> Result<RootCertStore, CredentialsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(source)? {
        let unusable = |error| CredentialsError::Authority { place: place(source), source: error };
        roots.add(certificate).map_err(unusable)?;
    }
    Ok(roots)
}

fn bearer(source: &Source) -> Result<http::HeaderValue, CredentialsError> {
    let wrong = || CredentialsError::Token { place: place(source) };
    let token = String::from_utf8(read(source)?).map_err(|_| wrong())?;
    let token = token.trim();
    if token.is_empty() {
        return Err(wrong());
    }
    let mut value = http::HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| wrong())?;
    value.set_sensitive(true);
    Ok(value)
}
