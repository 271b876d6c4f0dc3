//! postStart and preStop: carried out here, within the time they are given; when they run and what
//! their failure means is decided by the plan. Dropping the future ends a hook (behaviours 18).

use std::sync::Arc;
use std::time::Duration;

use longshore_core::ids::ContainerId;
use longshore_core::pod::step::Hook;

use crate::probes::attempt::one_line;
use crate::probes::exec::{ContainerExec, ExecError};
use crate::probes::http::{HttpClient, HttpError, HttpRequest};

/// Why a hook did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    #[error("the hook did not end within {0:?}")]
    Timeout(Duration),
    #[error("the command exited with code {code}: {output}")]
    ExitCode { code: i32, output: String },
    #[error("the runtime could not run the command")]
    Exec(#[source] ExecError),
    #[error("HTTP GET")]
    Http(#[source] HttpError),
    #[error("connect to {host} port {port}")]
    Connect {
        host: String,
        port: u16,
        #[source]
        source: std::io::Error,
    },
}

/// Runs hooks against real containers.
#[derive(Debug)]
pub struct HookRunner {
    http: HttpClient,
    exec: Arc<dyn ContainerExec>,
}

impl HookRunner {
    pub fn new(exec: Arc<dyn ContainerExec>) -> Self {
        Self { http: HttpClient::for_hooks(), exec }
    }

    /// Runs one hook, for at most `limit`.
    ///
    /// # Errors
    /// What it answered, or that it did not.
    pub async fn run_hook(
        &self,
        container: &ContainerId,
        hook: &Hook,
        limit: Duration,
    ) -> Result<(), HookError> {
        let run = async {
            match hook {
                // A sleep longer than the time there is is no failure: it slept as long as it could.
                Hook::Sleep { duration } => {
                    tokio::time::sleep((*duration).min(limit)).await;
                    Ok(())
                }
                Hook::Exec { command } => self.exec(container, command, limit).await,
                Hook::TcpSocket { host, port } => connect(host, *port).await,
                Hook::HttpGet { scheme, host, port, path, headers } => {
                    self.get(&HttpRequest { scheme, host, port: *port, path, headers }).await
                }
            }
        };
        if let Hook::Sleep { .. } = hook {
            return run.await;
        }
        tokio::time::timeout(limit, run).await.unwrap_or(Err(HookError::Timeout(limit)))
    }

    async fn exec(
        &self,
        container: &ContainerId,
        command: &[String],
        limit: Duration,
    ) -> Result<(), HookError> {
        match self.exec.exec(container, command, limit).await {
            Ok(done) if done.exit_code == 0 => Ok(()),
            Ok(done) => {
                let output = one_line(&String::from_utf8_lossy(&done.output));
                Err(HookError::ExitCode { code: done.exit_code, output })
            }
            Err(ExecError::Timeout) => Err(HookError::Timeout(limit)),
            Err(error) => Err(HookError::Exec(error)),
        }
    }

    /// Any answer is success: a hook asks for an action, not for health. A server that answers a TLS
    /// greeting in plain text is asked in plain text, without the author's credentials.
    async fn get(&self, request: &HttpRequest<'_>) -> Result<(), HookError> {
        let first = self.http.get(request).await;
        let fall_back = matches!(&first, Err(error) if error.speaks_no_tls());
        if !fall_back {
            return first.map(drop).map_err(HookError::Http);
        }
        tracing::warn!(
            host = request.host,
            port = request.port,
            "a hook's HTTPS server speaks HTTP; asked by HTTP"
        );
        let headers: Vec<(String, String)> = request
            .headers
            .iter()
            .filter(|(name, _)| !name.eq_ignore_ascii_case("authorization"))
            .cloned()
            .collect();
        let plain = HttpRequest { scheme: "HTTP", headers: &headers, ..*request };
        self.http.get(&plain).await.map(drop).map_err(HookError::Http)
    }
}

async fn connect(host: &str, port: u16) -> Result<(), HookError> {
    let connected = tokio::net::TcpStream::connect((host, port)).await;
    connected.map(drop).map_err(|source| HookError::Connect { host: host.to_owned(), port, source })
}

#[cfg(test)]
mod tests;
