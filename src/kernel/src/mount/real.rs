//! `Mounts` on the kernel (5.12 or later: `mount_setattr`).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change,
    move_mount, open_tree, unmount,
};

use super::table::{below, parse_mountinfo};
use super::{BindOptions, MountEntry, MountError, MountId, Mounts, Propagation, TmpfsOptions, path_of};

/// The mounts of the calling thread's mount namespace.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealMounts;

impl Mounts for RealMounts {
    fn mounted_at(&self, path: &Path) -> Result<Option<MountId>, MountError> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        match statx(CWD, path, flags, StatxFlags::MNT_ID) {
            Ok(found) => {
                let is_root = found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
                Ok(is_root.then_some(MountId(found.stx_mnt_id)))
            }
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
            Err(err) => Err(MountError::io(path, "look up its mount", err)),
        }
    }

    fn mount_tmpfs(&self, target: BorrowedFd<'_>, options: TmpfsOptions) -> Result<(), MountError> {
        let fail = |op| move |err| MountError::io(path_of(target), op, err);
        let filesystem = match tmpfs(options) {
            // A kernel without the option: the caller prefers a tmpfs that may be swapped to none.
            Err(rustix::io::Errno::INVAL) if options.no_swap => {
                tmpfs(TmpfsOptions { no_swap: false, ..options })
            }
            made => made,
        };
        let filesystem = filesystem.map_err(fail("make a tmpfs"))?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        let mount = fsmount(filesystem.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(fail("make a tmpfs"))?;
        attach(mount.as_fd(), target).map_err(fail("mount a tmpfs"))
    }

    fn bind(
        &self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        options: BindOptions,
    ) -> Result<(), MountError> {
        let mut flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        if options.recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        let tree =
            open_tree(source, "", flags).map_err(|err| MountError::io(path_of(source), "bind", err))?;
        if options.read_only {
            set_read_only(tree.as_fd(), options.recursive)
                .map_err(|err| MountError::io(path_of(source), "make a bind read-only", err))?;
        }
        attach(tree.as_fd(), target).map_err(|err| MountError::io(path_of(target), "mount a bind", err))
    }

    fn unmount(&self, path: &Path, id: MountId) -> Result<(), MountError> {
        match self.mounted_at(path)? {
            None => return Ok(()),
            Some(found) if found != id => return Err(MountError::Replaced { path: path.to_owned(), found }),
            Some(_) => {}
        }
        match unmount(path, UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
            Err(err) => Err(MountError::io(path, "unmount", err)),
        }
    }

    fn set_propagation(&self, path: &Path, propagation: Propagation) -> Result<(), MountError> {
        let flags = match propagation {
            Propagation::Private => MountPropagationFlags::PRIVATE,
            Propagation::Slave => MountPropagationFlags::DOWNSTREAM,
            Propagation::Shared => MountPropagationFlags::SHARED,
        };
        mount_change(path, flags).map_err(|err| MountError::io(path, "set its propagation", err))
    }

    fn list_below(&self, folder: &Path) -> Result<Vec<MountEntry>, MountError> {
        let file = "/proc/thread-self/mountinfo";
        let text = std::fs::read(file).map_err(|err| MountError::io(file, "read", err))?;
        Ok(below(parse_mountinfo(&text), folder))
    }
}

fn tmpfs(options: TmpfsOptions) -> Result<OwnedFd, rustix::io::Errno> {
    let filesystem = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let fd = filesystem.as_fd();
    fsconfig_set_string(fd, "source", "tmpfs")?;
    if let Some(size) = options.size {
        // 0 would mean no limit at all.
        fsconfig_set_string(fd, "size", size.max(1).to_string())?;
    }
    if let Some(mode) = options.mode {
        fsconfig_set_string(fd, "mode", format!("{mode:o}"))?;
    }
    if options.no_swap {
        fsconfig_set_flag(fd, "noswap")?;
    }
    fsconfig_create(fd)?;
    Ok(filesystem)
}

fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), rustix::io::Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", target, "", flags)
}

/// `struct mount_attr` of `linux/mount.h`.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Make a tree read-only that is not attached anywhere yet.
fn set_read_only(tree: BorrowedFd<'_>, recursive: bool) -> Result<(), Errno> {
    const MOUNT_ATTR_RDONLY: u64 = 1;
    let attributes = MountAttr { attr_set: MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: no library has this call yet. The path is a NUL-terminated literal, the struct lives until
    // the call returns, its length is passed along, and the kernel only reads from both.
    #[allow(unsafe_code)]
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    };
    Errno::result(outcome).map(drop)
}
