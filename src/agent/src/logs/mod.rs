//! Keeps containers' logs small and findable: rotates those that grew too large, and keeps the links to
//! them that log shippers follow. What is to be done is decided in `longshore_core::pod::logs`.

mod files;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use longshore_core::ids::ContainerId;
use longshore_core::pod::logs::{LogLimits, LogStep, link_name, links_folder, rotation};
use longshore_cri::{ContainerUpkeep, CriError};
use tokio::sync::watch;

use crate::pods::{Clock, PodsView};
use crate::text::error_chain;

pub use files::{LogFileError, link, remove_with_rotated, unlink};

/// How logs are kept; replaced while the daemon runs when its configuration is read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSettings {
    pub limits: LogLimits,
    /// Logs rotated at once (`containerLogMaxWorkers`).
    pub workers: usize,
    /// Between two looks at all logs (`containerLogMonitorInterval`).
    pub interval: Duration,
}

/// Why a log was not rotated.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    #[error(transparent)]
    File(#[from] LogFileError),
    /// The log is where it was before.
    #[error("the runtime did not reopen log {}: {}", path.display(), source.one_line())]
    Reopen { path: PathBuf, source: CriError },
}

/// The logs of all pods of this node.
pub struct ContainerLogs {
    pub settings: watch::Receiver<LogSettings>,
    pub pods: PodsView,
    pub upkeep: Arc<dyn ContainerUpkeep>,
    pub clock: Clock,
    /// `/var/log/pods`.
    pub folder: PathBuf,
}

impl std::fmt::Debug for ContainerLogs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ContainerLogs").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl ContainerLogs {
    /// Looks at all logs from time to time, for as long as it is polled.
    pub async fn keep(self) {
        loop {
            let settings = *self.settings.borrow();
            tokio::time::sleep(settings.interval).await;
            self.keep_links().await;
            self.look(settings).await;
        }
    }

    /// One look at every log that is written.
    async fn look(&self, settings: LogSettings) {
        let logs: Vec<(PathBuf, ContainerId)> = self
            .pods
            .list()
            .iter()
            .flat_map(|pod| pod.observed.containers.iter().filter(|container| container.is_running()))
            .filter(|container| !container.log_path.is_empty())
            .map(|container| (PathBuf::from(&container.log_path), container.id.clone()))
            .collect();
        let work: Vec<_> = logs.iter().map(|(path, id)| self.look_at(path, id, settings.limits)).collect();
        stream::iter(work).buffer_unordered(settings.workers.max(1)).collect::<()>().await;
    }

    async fn look_at(&self, path: &Path, id: &ContainerId, limits: LogLimits) {
        if let Err(error) = self.rotate_where_large(path, id, limits).await {
            tracing::warn!(container = %id, error = error_chain(&error), "log not rotated");
        }
    }

    /// Rotates one log where it is too large. A log that is gone is none.
    ///
    /// # Errors
    /// Of the disk, or of the runtime, in which case the log is where it was.
    async fn rotate_where_large(
        &self,
        path: &Path,
        id: &ContainerId,
        limits: LogLimits,
    ) -> Result<(), RotateError> {
        let Some(bytes) = files::size(path)? else { return Ok(()) };
        if bytes < limits.max_bytes {
            return Ok(());
        }
        let others = files::beside(path)?;
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        for step in rotation(&name, bytes, &others, limits, self.clock.now()) {
            match step {
                LogStep::Remove(old) => files::remove(&path.with_file_name(old))?,
                LogStep::Compress(old) => {
                    let old = path.with_file_name(old);
                    let work = tokio::task::spawn_blocking(move || files::compress(&old));
                    work.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
                }
                LogStep::Rotate { to } => self.rotate(path, &path.with_file_name(to), id).await?,
            }
        }
        tracing::info!(container = %id, log = %path.display(), bytes, "log rotated");
        Ok(())
    }

    async fn rotate(&self, path: &Path, to: &Path, id: &ContainerId) -> Result<(), RotateError> {
        files::rename(path, to)?;
        if let Err(source) = self.upkeep.reopen_log(id).await {
            // The runtime goes on writing to the file it has: under its old name people find it.
            files::rename(to, path)?;
            return Err(RotateError::Reopen { path: path.to_path_buf(), source });
        }
        Ok(())
    }

    /// Links to every log there is, and none to a log that is gone.
    async fn keep_links(&self) {
        let folder = links_folder(&self.folder);
        let wanted: Vec<(String, PathBuf)> = self
            .pods
            .list()
            .iter()
            .flat_map(|pod| {
                let logged =
                    pod.observed.containers.iter().filter(|container| !container.log_path.is_empty());
                logged.map(|container| {
                    let name = link_name(&pod.key, &container.name, &container.id);
                    (name, PathBuf::from(&container.log_path))
                })
            })
            .collect();
        let logs = self.folder.clone();
        let work = tokio::task::spawn_blocking(move || files::keep_links(&folder, &logs, &wanted));
        match work.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = error_chain(&error), "links to logs"),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
}
