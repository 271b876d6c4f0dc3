//! The admin socket's client: one GET per call, JSON in, bounded. It knows when the daemon is down,
//! so that callers can read the runtime themselves.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use longshore_core::wire::ErrorView;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::error::{CliError, chain};

/// An answer may be this long: some hundred pods with their whole objects are far below it.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// The daemon answers from memory; longer than this and it hangs.
const DEADLINE: Duration = Duration::from_secs(10);

/// Why the daemon gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens: the caller may look at the runtime itself.
    #[error("the longshore agent does not run ({path})")]
    Down { path: PathBuf },
    #[error("only root may use {path}")]
    Denied { path: PathBuf },
    /// The daemon answered no.
    #[error("{}", .0.error)]
    Refused(ErrorView),
    #[error("the longshore agent on {path} gave no answer within {} s", DEADLINE.as_secs())]
    Silent { path: PathBuf },
    #[error("the longshore agent on {path} cannot be understood: {reason}")]
    Garbled { path: PathBuf, reason: String },
}

impl ClientError {
    pub fn is_down(&self) -> bool {
        matches!(self, Self::Down { .. })
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        let message = error.to_string();
        match error {
            ClientError::Down { .. } => Self::new(message)
                .hint("start it (systemctl start longshore) or see why it ended (journalctl -u longshore)"),
            ClientError::Denied { .. } => Self::new(message).hint("run the command as root (sudo)"),
            ClientError::Refused(view) => Self { message, hint: view.hint, code: crate::error::FAILED },
            ClientError::Silent { .. } => {
                Self::new(message).hint("see journalctl -u longshore, then longshore doctor")
            }
            ClientError::Garbled { .. } => Self::new(message)
                .hint("do the command and the daemon have the same version? (longshore version)"),
        }
    }
}

/// The daemon, reached by its socket.
#[derive(Clone, Debug)]
pub struct Daemon {
    path: PathBuf,
}

impl Daemon {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    pub fn socket(&self) -> &Path {
        &self.path
    }

    /// Reads one view. `path` starts with `/v1/` and is already percent-encoded.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let bytes = tokio::time::timeout(DEADLINE, self.fetch(path))
            .await
            .map_err(|_| ClientError::Silent { path: self.path.clone() })??;
        serde_json::from_slice(&bytes).map_err(|error| self.garbled(&error.to_string()))
    }

    fn garbled(&self, reason: &str) -> ClientError {
        ClientError::Garbled { path: self.path.clone(), reason: reason.to_string() }
    }

    async fn connect(&self) -> Result<UnixStream, ClientError> {
        UnixStream::connect(&self.path).await.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::Down { path: self.path.clone() }
            }
            io::ErrorKind::PermissionDenied => ClientError::Denied { path: self.path.clone() },
            _ => self.garbled(&error.to_string()),
        })
    }

    async fn fetch(&self, path: &str) -> Result<Bytes, ClientError> {
        let stream = self.connect().await?;
        let garbled = |error: hyper::Error| self.garbled(&chain(&error));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(garbled)?;
        let driver = tokio::spawn(connection);
        let request = http::Request::get(path)
            .header(http::header::HOST, "longshore")
            .body(Empty::<Bytes>::new())
            .map_err(|error| self.garbled(&error.to_string()))?;
        let response = sender.send_request(request).await.map_err(garbled)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await
            .map_err(|error| self.garbled(&error.to_string()))?
            .to_bytes();
        driver.abort();
        if status.is_success() {
            return Ok(body);
        }
        match serde_json::from_slice::<ErrorView>(&body) {
            Ok(view) => Err(ClientError::Refused(view)),
            Err(_) => Err(self.garbled(&format!("HTTP {status}"))),
        }
    }
}
