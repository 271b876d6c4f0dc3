//! The exec probe and what both probes and hooks need of the runtime: run a command and wait.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use longshore_core::ids::ContainerId;
use longshore_cri::{ErrorKind, ExecOutput, Streams};

use super::attempt::Outcome;

/// Longest output that is looked at, bytes (as the kubelet's 10 KiB).
const MAX_OUTPUT: usize = 10 * 1024;

/// What a command in a container gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Executed {
    pub exit_code: i32,
    /// stdout and stderr.
    pub output: Vec<u8>,
}

/// Why a command gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExecError {
    #[error("the command did not end within its time")]
    Timeout,
    #[error("{0}")]
    Runtime(String),
}

/// Runs commands in containers (CRI ExecSync).
#[async_trait]
pub trait ContainerExec: Send + Sync {
    /// Runs a command and waits for it; the runtime kills it after `timeout`.
    async fn exec(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Duration,
    ) -> Result<Executed, ExecError>;
}

impl fmt::Debug for dyn ContainerExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ContainerExec")
    }
}

/// The runtime itself, by CRI ExecSync.
pub struct RuntimeExec(pub Arc<dyn Streams>);

impl fmt::Debug for RuntimeExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RuntimeExec")
    }
}

#[async_trait]
impl ContainerExec for RuntimeExec {
    async fn exec(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Duration,
    ) -> Result<Executed, ExecError> {
        match self.0.exec_sync(id, command, Some(timeout)).await {
            Ok(ExecOutput { exit_code, mut stdout, mut stderr }) => {
                stdout.truncate(MAX_OUTPUT);
                stderr.truncate(MAX_OUTPUT - stdout.len());
                stdout.append(&mut stderr);
                Ok(Executed { exit_code, output: stdout })
            }
            Err(error) if error.kind == ErrorKind::DeadlineExceeded => Err(ExecError::Timeout),
            Err(error) => Err(ExecError::Runtime(crate::text::error_chain(&error))),
        }
    }
}

pub(super) async fn run(
    exec: &dyn ContainerExec,
    id: &ContainerId,
    command: &[String],
    timeout: Duration,
) -> Outcome {
    match exec.exec(id, command, timeout).await {
        Ok(Executed { exit_code: 0, output }) => Outcome::Success(shown(&output)),
        Ok(Executed { exit_code, output }) => {
            Outcome::Failure(format!("exit code {exit_code}: {}", shown(&output)))
        }
        Err(ExecError::Timeout) => {
            Outcome::Failure(format!("the command did not end within {}s", timeout.as_secs_f64()))
        }
        Err(ExecError::Runtime(message)) => Outcome::Error(message),
    }
}

fn shown(output: &[u8]) -> String {
    String::from_utf8_lossy(&output[..output.len().min(MAX_OUTPUT)]).trim().to_owned()
}
