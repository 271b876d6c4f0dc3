//! The kernel's mount table as volumes use it: by path, over the kernel crate's mounts by identity.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use longshore_kernel::mount::{self, BindOptions, MountError, TmpfsOptions};

use super::Mounts;

/// The mounts of this mount namespace.
#[derive(Clone, Debug)]
pub struct KernelMounts(pub Arc<dyn mount::Mounts>);

impl Mounts for KernelMounts {
    fn is_mount_point(&self, path: &Path) -> io::Result<bool> {
        Ok(self.0.mounted_at(path).map_err(to_io)?.is_some())
    }

    fn mount_tmpfs(&self, target: &Path, size: Option<u64>) -> io::Result<()> {
        let folder = mount::open_path(target).map_err(to_io)?;
        let options = TmpfsOptions { size, mode: Some(0o755), no_swap: true };
        self.0.mount_tmpfs(folder.as_fd(), options).map_err(to_io)
    }

    fn bind(&self, source: BorrowedFd<'_>, target: &Path, readonly: bool) -> io::Result<()> {
        let target = mount::open_path(target).map_err(to_io)?;
        let options = BindOptions { read_only: readonly, recursive: false };
        self.0.bind(source, target.as_fd(), options).map_err(to_io)
    }

    fn unmount(&self, target: &Path) -> io::Result<()> {
        match self.0.mounted_at(target).map_err(to_io)? {
            Some(id) => self.0.unmount(target, id).map_err(to_io),
            None => Ok(()),
        }
    }
}

/// The path is named by who asked; what the kernel said is kept with its number.
fn to_io(error: MountError) -> io::Error {
    match error {
        MountError::Io { source, .. } => source.into(),
        error => io::Error::other(error),
    }
}
