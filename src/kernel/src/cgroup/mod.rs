//! Control groups, version 2: the `Cgroups` trait with drivers for the cgroup file system and for
//! systemd, a reader of the kernel's figures and, with the feature `fake`, groups in memory. Names and
//! values of the groups are decided in `longshore_core`.

#[cfg(any(test, feature = "fake"))]
mod fake;
mod fs;
pub mod stat;
mod systemd;

use std::path::{Component, Path};

use async_trait::async_trait;
use longshore_core::pod::step::CgroupLimits;
use nix::errno::Errno;

#[cfg(any(test, feature = "fake"))]
pub use fake::FakeCgroups;
pub use fs::FsCgroups;
pub use stat::{CgroupStat, MemoryEvents};
pub use systemd::SystemdCgroups;

/// Where the version 2 hierarchy is mounted (`cgroups(7)`).
pub const DEFAULT_ROOT: &str = "/sys/fs/cgroup";

/// Why an operation on a control group failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CgroupError {
    /// The mount is missing or of version 1.
    #[error(
        "{0} is not a cgroup v2 hierarchy: boot with systemd.unified_cgroup_hierarchy=1 or mount cgroup2 there"
    )]
    NotV2(String),
    /// The path leaves the hierarchy.
    #[error("cgroup path {0:?} must be absolute and without . and ..")]
    BadPath(String),
    /// A limit needs a controller that the kernel or a parent does not offer.
    #[error("cgroup {path}: controller {controller} is not available in {at}")]
    NoController {
        /// The group.
        path: String,
        /// The controller.
        controller: &'static str,
        /// The ancestor that lacks it.
        at: String,
    },
    /// An operation on a group's file or folder failed.
    #[error("cgroup {path}: {op}")]
    Io {
        /// The group.
        path: String,
        /// What was done: `make`, `set memory.max to 1024`, `kill` ...
        op: String,
        /// The cause.
        #[source]
        source: Errno,
    },
    /// systemd refused, or did not do it.
    #[error("cgroup {path}: systemd: {op}: {detail}")]
    Systemd {
        /// The group.
        path: String,
        /// What was asked for.
        op: &'static str,
        /// systemd's words.
        detail: String,
        /// Whether it may well work a moment later.
        retryable: bool,
    },
}

impl CgroupError {
    /// Whether the same operation may well succeed a moment later.
    pub fn is_retryable(&self) -> bool {
        match self {
            CgroupError::Io { source, .. } => {
                matches!(
                    source,
                    Errno::EBUSY | Errno::EAGAIN | Errno::EINTR | Errno::ENOMEM | Errno::ENOTEMPTY
                )
            }
            CgroupError::Systemd { retryable, .. } => *retryable,
            CgroupError::NotV2(_) | CgroupError::BadPath(_) | CgroupError::NoController { .. } => false,
        }
    }
}

/// Control groups below one root. Paths are those of the cgroup file system (`/kubepods/burstable/podX`
/// or `/kubepods.slice/kubepods-podX.slice`), whatever the driver.
#[async_trait]
pub trait Cgroups: Send + Sync {
    /// Make sure that the group exists, with its parents, and has exactly these limits.
    async fn ensure(&self, path: &str, limits: &CgroupLimits) -> Result<(), CgroupError>;

    /// The group's figures; `None` when it does not exist.
    async fn stat(&self, path: &str) -> Result<Option<CgroupStat>, CgroupError>;

    /// How often things happened to the group's memory, descendants included, also those that are gone;
    /// `None` when it does not exist or the memory controller is not on. One file, where [`Self::stat`] reads ten.
    async fn memory_events(&self, path: &str) -> Result<Option<MemoryEvents>, CgroupError>;

    /// Kill every process in the group and below (`cgroup.kill`, kernel 5.14). A success when the group
    /// does not exist. Returns before the processes are gone.
    async fn kill(&self, path: &str) -> Result<(), CgroupError>;

    /// Remove the group and those below. `EBUSY` while there are processes; a success when it does not
    /// exist.
    async fn remove(&self, path: &str) -> Result<(), CgroupError>;

    /// Whether the group exists.
    async fn exists(&self, path: &str) -> Result<bool, CgroupError>;

    /// The names of the groups directly below one, sorted; empty when it does not exist.
    async fn children(&self, path: &str) -> Result<Vec<String>, CgroupError>;
}

/// The path below the root, without its first slash.
fn relative(path: &str) -> Result<&Path, CgroupError> {
    let bad = || CgroupError::BadPath(path.to_owned());
    let relative = Path::new(path.strip_prefix('/').ok_or_else(bad)?);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    if plain { Ok(relative) } else { Err(bad()) }
}

/// The controllers a limit needs.
fn needed(limits: &CgroupLimits) -> Vec<&'static str> {
    let needs = [
        ("cpu", limits.cpu_weight.is_some() || limits.cpu_max.is_some()),
        ("memory", limits.memory_max.is_some()),
        ("pids", limits.pids_max.is_some()),
        ("hugetlb", !limits.hugetlb.is_empty()),
    ];
    needs.iter().filter(|(_, needed)| *needed).map(|(name, _)| *name).collect()
}
