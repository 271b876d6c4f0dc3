//! Mounts in memory, by the paths their targets were opened at. Files are real: a test gives it folders
//! of its own. Refuses what the kernel refuses of these calls.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

use super::table::below;
use super::{BindOptions, MountEntry, MountError, MountId, Mounts, Propagation, TmpfsOptions, path_of};
use crate::fake::Faults;

/// Mounts in memory.
#[derive(Debug, Default)]
pub struct FakeMounts {
    /// Scripted faults; texts are `<path>: mount a tmpfs`, `...: mount a bind`, `...: unmount`.
    pub faults: Faults,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    mounts: Vec<MountEntry>,
    busy: Vec<PathBuf>,
    next: u64,
}

impl FakeMounts {
    /// No mounts.
    pub fn new() -> Self {
        FakeMounts::default()
    }

    /// The mounts, in the order they were made.
    pub fn mounts(&self) -> Vec<MountEntry> {
        self.lock().mounts.clone()
    }

    /// Make a path's mount busy, or not: a process has a file in it open.
    pub fn set_busy(&self, path: &Path, busy: bool) {
        let mut inner = self.lock();
        inner.busy.retain(|known| known != path);
        if busy {
            inner.busy.push(path.to_owned());
        }
    }

    /// Mount something behind the agent's back.
    pub fn mount_foreign(&self, path: &Path) -> MountId {
        self.lock().add(path.to_owned(), "ext4", "/dev/sdb1".to_owned(), false)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, path: &Path, op: &'static str) -> Result<(), MountError> {
        let fault = self.faults.check(&format!("{}: {op}", path.display()));
        fault.map_err(|errno| MountError::io(path, op, errno))
    }
}

impl Inner {
    fn add(&mut self, path: PathBuf, fs_type: &str, source: String, read_only: bool) -> MountId {
        self.next += 1;
        let parent = self.mounts.iter().rev().find(|mount| path.starts_with(&mount.path));
        let parent = parent.map_or(MountId(0), |mount| mount.id);
        let id = MountId(1000 + self.next);
        self.mounts.push(MountEntry {
            id,
            parent,
            root: PathBuf::from("/"),
            path,
            fs_type: fs_type.to_owned(),
            source,
            read_only,
            shared: false,
        });
        id
    }

    fn top(&self, path: &Path) -> Option<usize> {
        self.mounts.iter().rposition(|mount| mount.path == path)
    }
}

impl Mounts for FakeMounts {
    fn mounted_at(&self, path: &Path) -> Result<Option<MountId>, MountError> {
        self.check(path, "look up its mount")?;
        let inner = self.lock();
        Ok(inner.top(path).map(|at| inner.mounts[at].id))
    }

    fn mount_tmpfs(&self, target: BorrowedFd<'_>, _: TmpfsOptions) -> Result<(), MountError> {
        let path = path_of(target);
        self.check(&path, "mount a tmpfs")?;
        if !path.is_dir() {
            return Err(MountError::io(path, "mount a tmpfs", Errno::ENOTDIR));
        }
        self.lock().add(path, "tmpfs", "tmpfs".to_owned(), false);
        Ok(())
    }

    fn bind(
        &self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        options: BindOptions,
    ) -> Result<(), MountError> {
        let (source, path) = (path_of(source), path_of(target));
        self.check(&path, "mount a bind")?;
        if source.is_dir() != path.is_dir() {
            return Err(MountError::io(path, "mount a bind", Errno::ENOTDIR));
        }
        self.lock().add(path, "bind", source.display().to_string(), options.read_only);
        Ok(())
    }

    fn unmount(&self, path: &Path, id: MountId) -> Result<(), MountError> {
        self.check(path, "unmount")?;
        let mut inner = self.lock();
        let Some(at) = inner.top(path) else { return Ok(()) };
        let found = inner.mounts[at].id;
        if found != id {
            return Err(MountError::Replaced { path: path.to_owned(), found });
        }
        let has_children = inner.mounts.iter().any(|mount| mount.parent == id);
        if has_children || inner.busy.iter().any(|busy| busy == path) {
            return Err(MountError::io(path, "unmount", Errno::EBUSY));
        }
        inner.mounts.remove(at);
        Ok(())
    }

    fn set_propagation(&self, path: &Path, propagation: Propagation) -> Result<(), MountError> {
        self.check(path, "set its propagation")?;
        let mut inner = self.lock();
        let at = inner.top(path).ok_or_else(|| MountError::io(path, "set its propagation", Errno::EINVAL))?;
        inner.mounts[at].shared = propagation == Propagation::Shared;
        Ok(())
    }

    fn list_below(&self, folder: &Path) -> Result<Vec<MountEntry>, MountError> {
        self.check(folder, "list mounts")?;
        Ok(below(self.mounts(), folder))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::open_path;
    use super::*;

    #[test]
    fn a_mount_is_unmounted_by_identity_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        let mounts = FakeMounts::new();
        mounts.mount_tmpfs(open_path(&path).unwrap().as_fd(), TmpfsOptions::default()).unwrap();
        let ours = mounts.mounted_at(&path).unwrap().unwrap();
        let theirs = mounts.mount_foreign(&path);
        let err = mounts.unmount(&path, ours).unwrap_err();
        assert_eq!(err, MountError::Replaced { path: path.clone(), found: theirs });
        mounts.unmount(&path, theirs).unwrap();
        mounts.set_busy(&path, true);
        assert!(mounts.unmount(&path, ours).unwrap_err().is_retryable());
        mounts.set_busy(&path, false);
        mounts.unmount(&path, ours).unwrap();
        mounts.unmount(&path, ours).unwrap();
        assert_eq!(mounts.mounted_at(&path).unwrap(), None);
    }

    #[test]
    fn a_file_is_not_bound_on_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let (source, target) = (open_path(&file).unwrap(), open_path(dir.path()).unwrap());
        let outcome = FakeMounts::new().bind(source.as_fd(), target.as_fd(), BindOptions::default());
        assert!(matches!(outcome, Err(MountError::Io { source: Errno::ENOTDIR, .. })));
    }
}
