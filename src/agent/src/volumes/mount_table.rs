//! The kernel's mount table as volumes use it (mount(2), statx(2)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, mount_remount, unmount,
};

use super::Mounts;

/// The real mount table of this mount namespace.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealMounts;

impl Mounts for RealMounts {
    fn is_mount_point(&self, path: &Path) -> io::Result<bool> {
        // Needs no parsing of mountinfo and sees a bind of the same file system (kernel 5.8).
        match statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, StatxFlags::empty()) {
            Ok(stat) => Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    fn mount_tmpfs(&self, target: &Path, size: Option<u64>) -> io::Result<()> {
        let size = size.map(|bytes| format!("size={bytes}"));
        let options = |noswap: bool| {
            let words = size.iter().map(String::as_str).chain(noswap.then_some("noswap"));
            std::ffi::CString::new(words.collect::<Vec<_>>().join(",")).expect("no NUL in digits and words")
        };
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        match mount("tmpfs", target, "tmpfs", flags, options(true).as_c_str()) {
            // noswap came with kernel 6.4; before, secrets may be swapped as with every agent.
            Err(rustix::io::Errno::INVAL) => {
                Ok(mount("tmpfs", target, "tmpfs", flags, options(false).as_c_str())?)
            }
            result => Ok(result?),
        }
    }

    fn bind(&self, source: BorrowedFd<'_>, target: &Path, readonly: bool) -> io::Result<()> {
        mount_bind(format!("/proc/self/fd/{}", source.as_raw_fd()), target)?;
        mount_change(target, MountPropagationFlags::PRIVATE)?;
        if readonly {
            mount_remount(target, MountFlags::BIND | MountFlags::RDONLY, c"")?;
        }
        Ok(())
    }

    fn unmount(&self, target: &Path) -> io::Result<()> {
        // Lazily where it is busy: nobody new can get in, and the last user's exit frees it.
        match unmount(target, UnmountFlags::NOFOLLOW) {
            Err(rustix::io::Errno::BUSY) => {
                Ok(unmount(target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)?)
            }
            result => Ok(result?),
        }
    }
}
