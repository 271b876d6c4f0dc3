//! Space and inodes of the file system a path lies on. When that is too little is decided in
//! `longshore_core`.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::statvfs::statvfs;

/// Space of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskUsage {
    /// Bytes in all.
    pub total: u64,
    /// Bytes that an ordinary user can still have; the root user's reserve is not in it.
    pub available: u64,
    /// Bytes in use.
    pub used: u64,
    /// Inodes in all; 0 on a file system that makes them as needed (btrfs).
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
}

/// The file system could not be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: read the space of its file system", path.display())]
pub struct DiskError {
    /// The path.
    pub path: PathBuf,
    /// The cause.
    #[source]
    pub source: Errno,
}

impl DiskError {
    /// Whether the same call may well succeed a moment later.
    pub fn is_retryable(&self) -> bool {
        !matches!(self.source, Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES | Errno::ENOSYS)
    }
}

/// The space of the file system `path` lies on. May wait for a disk, and for ever for a dead NFS server:
/// use it off the async threads, with a deadline.
pub fn usage(path: &Path) -> Result<DiskUsage, DiskError> {
    let found = statvfs(path).map_err(|source| DiskError { path: path.to_owned(), source })?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.fragment_size());
    Ok(DiskUsage {
        total: bytes(found.blocks()),
        available: bytes(found.blocks_available()),
        used: bytes(found.blocks().saturating_sub(found.blocks_free())),
        inodes: found.files(),
        inodes_free: found.files_free(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_tells_its_space_and_a_missing_path_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let usage_now = usage(dir.path()).unwrap();
        assert!(usage_now.total > 0);
        assert!(usage_now.used + usage_now.available <= usage_now.total, "{usage_now:?}");
        let err = usage(Path::new("/no/such/path")).unwrap_err();
        assert_eq!(err.to_string(), "/no/such/path: read the space of its file system");
        assert!(!err.is_retryable());
    }
}
