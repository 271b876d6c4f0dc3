//! Mounts and the removal of folders beside them: the `Mounts` trait, its real implementation on the
//! kernel's descriptor-based calls (`fsopen`, `open_tree`, `move_mount`) and, with the feature `fake`,
//! mounts in memory. Targets are open descriptors, so that no path is resolved twice; a mount is known
//! by its id. All calls may wait for a disk: use them off the async threads.

#[cfg(any(test, feature = "fake"))]
mod fake;
mod real;
pub mod table;
mod tree;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

#[cfg(any(test, feature = "fake"))]
pub use fake::FakeMounts;
pub use real::RealMounts;
pub use table::MountEntry;
pub use tree::{open_beneath, remove_dir_if_empty, remove_tree_within_one_mount};

/// The kernel's number of a mount (`STATX_MNT_ID`, the first field of mountinfo). Unique among mounts
/// that exist; it may be given again once the mount is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MountId(pub u64);

/// A tmpfs to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TmpfsOptions {
    /// Most bytes it may hold; `None` is the kernel's default, half of the memory.
    pub size: Option<u64>,
    /// Permissions of its root, such as `0o1777`; `None` is 0o1777.
    pub mode: Option<u32>,
    /// Keep its content out of swap, where the kernel can (6.4); for secrets.
    pub no_swap: bool,
}

/// A bind mount to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BindOptions {
    /// Writes through it fail; the source is not changed. It is read-only from its first moment.
    pub read_only: bool,
    /// Mounts below the source come along.
    pub recursive: bool,
}

/// Whether mounts made below one mount appear below its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Neither way.
    Private,
    /// From the host to here (`HostToContainer`).
    Slave,
    /// Both ways (`Bidirectional`).
    Shared,
}

/// Why an operation on mounts or folders failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    /// A system call failed.
    #[error("{}: {op}", path.display())]
    Io {
        /// The path, as well as it is known.
        path: PathBuf,
        /// What was done.
        op: &'static str,
        /// The cause.
        #[source]
        source: Errno,
    },
    /// Something else is mounted there than the caller knows of; it was left alone.
    #[error("{}: mount {} is not the one that was made here: it is left alone", path.display(), found.0)]
    Replaced {
        /// Where.
        path: PathBuf,
        /// What is there.
        found: MountId,
    },
    /// A folder that was to be removed has a mount in it; it was left alone from there on.
    #[error("{}: is a mount point: it is left alone, and so is what is below it", path.display())]
    MountInside {
        /// The mount point.
        path: PathBuf,
    },
}

impl MountError {
    /// Whether the same call may well succeed a moment later.
    pub fn is_retryable(&self) -> bool {
        match self {
            MountError::Io { source, .. } => {
                matches!(
                    source,
                    Errno::EBUSY | Errno::EAGAIN | Errno::EINTR | Errno::ENOMEM | Errno::ENOTEMPTY
                )
            }
            // Gone once its owner unmounts it.
            MountError::MountInside { .. } => true,
            MountError::Replaced { .. } => false,
        }
    }

    fn io(path: impl Into<PathBuf>, op: &'static str, source: impl IntoErrno) -> Self {
        MountError::Io { path: path.into(), op, source: source.into_errno() }
    }
}

/// Both system call libraries in use have an errno of their own.
trait IntoErrno {
    fn into_errno(self) -> Errno;
}

impl IntoErrno for Errno {
    fn into_errno(self) -> Errno {
        self
    }
}

impl IntoErrno for rustix::io::Errno {
    fn into_errno(self) -> Errno {
        Errno::from_raw(self.raw_os_error())
    }
}

impl IntoErrno for std::io::Error {
    fn into_errno(self) -> Errno {
        Errno::from_raw(self.raw_os_error().unwrap_or(0))
    }
}

/// The mounts of one mount namespace.
pub trait Mounts: Send + Sync + std::fmt::Debug {
    /// The topmost mount at exactly this path, without following a final symbolic link; `None` where
    /// nothing is mounted or nothing exists.
    fn mounted_at(&self, path: &Path) -> Result<Option<MountId>, MountError>;

    /// Mount an empty tmpfs on an open folder.
    fn mount_tmpfs(&self, target: BorrowedFd<'_>, options: TmpfsOptions) -> Result<(), MountError>;

    /// Mount an open file or folder on another of the same kind.
    fn bind(
        &self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        options: BindOptions,
    ) -> Result<(), MountError>;

    /// Unmount the mount at a path, if it is the one meant; a success when nothing is mounted there.
    fn unmount(&self, path: &Path, id: MountId) -> Result<(), MountError>;

    /// Set how the mount at a path propagates.
    fn set_propagation(&self, path: &Path, propagation: Propagation) -> Result<(), MountError>;

    /// The mounts at and below a folder, outermost first.
    fn list_below(&self, folder: &Path) -> Result<Vec<MountEntry>, MountError>;
}

/// Open a mount's target or source for [`Mounts::bind`] and [`Mounts::mount_tmpfs`]: the file or folder
/// itself, never what a final symbolic link points to.
pub fn open_path(path: &Path) -> Result<OwnedFd, MountError> {
    use rustix::fs::{Mode, OFlags, open};
    open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .map_err(|err| MountError::io(path, "open", err))
}

/// Where a descriptor points to, for error texts and the fake.
fn path_of(fd: BorrowedFd<'_>) -> PathBuf {
    use std::os::fd::AsRawFd;
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    std::fs::read_link(&link).unwrap_or_else(|_| PathBuf::from(link))
}
