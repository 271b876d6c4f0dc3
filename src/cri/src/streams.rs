//! Processes and byte streams in containers: run and wait, or a URL of the runtime's streaming server.

use std::time::Duration;

use async_trait::async_trait;
use longshore_core::ids::{ContainerId, SandboxId};

use crate::api::v1;
use crate::client::CriClient;
use crate::convert;
use crate::counters::Operation;
use crate::error::CriError;

/// Commands and streams in containers. The URLs are for one connection each, within about a minute.
#[async_trait]
pub trait Streams: Send + Sync {
    /// Runs a command and waits for it. After `timeout` (whole seconds, rounded up) the runtime kills it
    /// and the error is `DeadlineExceeded`; `None` waits for ever.
    async fn exec_sync(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, CriError>;
    /// URL for `exec`.
    async fn exec_url(&self, id: &ContainerId, command: &[String], io: StreamIo) -> Result<String, CriError>;
    /// URL for `attach`.
    async fn attach_url(&self, id: &ContainerId, io: StreamIo) -> Result<String, CriError>;
    /// URL for port forwarding into a pod.
    async fn port_forward_url(&self, id: &SandboxId, ports: &[u16]) -> Result<String, CriError>;
}

/// What a command in a container gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOutput {
    pub exit_code: i32,
    /// At most 16 MiB together with `stderr`; the runtime cuts.
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// The streams of an interactive session; at least one must be on, and `stderr` must be off with `tty`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamIo {
    pub tty: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

#[async_trait]
impl Streams for CriClient {
    async fn exec_sync(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, CriError> {
        // Past its own timeout the runtime still has to kill the process and say so.
        let deadline = timeout.map(|timeout| timeout + self.timeouts().unary);
        let call = self.call(Operation::ExecSync, id).deadline(deadline);
        let request = v1::ExecSyncRequest {
            container_id: id.to_string(),
            cmd: command.to_vec(),
            timeout: timeout.map_or(0, |timeout| convert::whole_seconds(timeout).max(1)),
        };
        let answer = self.run(&call, request, |mut c, r| async move { c.exec_sync(r).await }).await?;
        Ok(ExecOutput { exit_code: answer.exit_code, stdout: answer.stdout, stderr: answer.stderr })
    }

    async fn exec_url(&self, id: &ContainerId, command: &[String], io: StreamIo) -> Result<String, CriError> {
        let call = self.call(Operation::Exec, id);
        let request = v1::ExecRequest {
            container_id: id.to_string(),
            cmd: command.to_vec(),
            tty: io.tty,
            stdin: io.stdin,
            stdout: io.stdout,
            stderr: io.stderr,
        };
        let answer = self.run(&call, request, |mut c, r| async move { c.exec(r).await }).await?;
        call.present("url", Some(answer.url).filter(|url| !url.is_empty()))
    }

    async fn attach_url(&self, id: &ContainerId, io: StreamIo) -> Result<String, CriError> {
        let call = self.call(Operation::Attach, id);
        let request = v1::AttachRequest {
            container_id: id.to_string(),
            tty: io.tty,
            stdin: io.stdin,
            stdout: io.stdout,
            stderr: io.stderr,
        };
        let answer = self.run(&call, request, |mut c, r| async move { c.attach(r).await }).await?;
        call.present("url", Some(answer.url).filter(|url| !url.is_empty()))
    }

    async fn port_forward_url(&self, id: &SandboxId, ports: &[u16]) -> Result<String, CriError> {
        let call = self.call(Operation::PortForward, id);
        let request = v1::PortForwardRequest {
            pod_sandbox_id: id.to_string(),
            port: ports.iter().map(|port| i32::from(*port)).collect(),
        };
        let answer = self.run(&call, request, |mut c, r| async move { c.port_forward(r).await }).await?;
        call.present("url", Some(answer.url).filter(|url| !url.is_empty()))
    }
}
