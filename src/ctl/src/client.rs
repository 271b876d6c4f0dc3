//! The admin socket's client: one request per call, JSON in, bounded. It knows when the daemon is down,
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
        self.ask(http::Method::GET, path).await
    }

    /// Asks the daemon to do something and reads what came of it.
    pub async fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.ask(http::Method::POST, path).await
    }

    async fn ask<T: DeserializeOwned>(&self, method: http::Method, path: &str) -> Result<T, ClientError> {
        let bytes = tokio::time::timeout(DEADLINE, self.fetch(method, path))
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

    async fn fetch(&self, method: http::Method, path: &str) -> Result<Bytes, ClientError> {
        let stream = self.connect().await?;
        let garbled = |error: hyper::Error| self.garbled(&chain(&error));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(garbled)?;
        let driver = tokio::spawn(connection);
        let request = http::Request::builder()
            .method(method)
            .uri(path)
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    /// Answers one request with these bytes and keeps what was asked.
    fn answering(path: &Path, answer: Vec<u8>) -> tokio::task::JoinHandle<String> {
        let listener = UnixListener::bind(path).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            // The client may hang up before it has read everything.
            let _ = stream.write_all(&answer).await;
            String::from_utf8(request).unwrap()
        })
    }

    fn answer(status: &str, body: &str) -> Vec<u8> {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }

    #[tokio::test]
    async fn answers_and_refusals_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let cases: [(Vec<u8>, Result<u32, &str>); 6] = [
            (answer("200 OK", "7"), Ok(7)),
            (
                answer("404 Not Found", r#"{"error":"there is no pod a/b","hint":"look"}"#),
                Err("error: there is no pod a/b\nhint: look"),
            ),
            (answer("500 Internal Server Error", "oops"), Err("HTTP 500")),
            (answer("200 OK", "not json"), Err("cannot be understood")),
            (b"what is this\r\n\r\n".to_vec(), Err("cannot be understood")),
            (answer("200 OK", "7")[..30].to_vec(), Err("cannot be understood")),
        ];
        for (number, (bytes, expected)) in cases.into_iter().enumerate() {
            let path = folder.path().join(number.to_string());
            let server = answering(&path, bytes);
            let got = Daemon::new(&path).get::<u32>("/v1/x").await.map_err(CliError::from);
            assert!(server.await.unwrap().starts_with("GET /v1/x HTTP/1.1\r\n"));
            match (got, expected) {
                (Ok(value), Ok(want)) => assert_eq!(value, want),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{number}: {error}"),
                (got, _) => panic!("{number}: {got:?}"),
            }
        }
    }

    #[tokio::test]
    async fn an_endless_answer_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", MAX_ANSWER_BYTES + 1);
        let server = answering(&path, [head.into_bytes(), vec![b' '; MAX_ANSWER_BYTES + 1]].concat());
        let error = Daemon::new(&path).get::<u32>("/v1/x").await.unwrap_err();
        assert!(error.to_string().contains("cannot be understood"), "{error}");
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_daemon_that_is_down_is_known_as_such() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing.sock");
        assert!(Daemon::new(&missing).get::<u32>("/").await.unwrap_err().is_down());
        // A killed daemon leaves its socket behind.
        let stale = folder.path().join("stale.sock");
        drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
        let error = Daemon::new(&stale).get::<u32>("/").await.unwrap_err();
        assert!(error.is_down());
        assert!(CliError::from(error).to_string().contains("\nhint: start it (systemctl start longshore)"));
    }
}
