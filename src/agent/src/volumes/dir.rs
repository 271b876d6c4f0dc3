//! An open directory. Everything below it is named relative to its descriptor and no component is
//! followed as a symlink, so that a pod that swaps folders for links never makes the agent write or
//! delete outside. Only the way to the root folder itself is the administrator's and trusted.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, StatxFlags};

use super::VolumeError;

/// Permission bits of a directory or file, without its type.
pub type Bits = u32;

const OPEN_DIR: OFlags =
    OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::RDONLY);

/// Nested folders that a removal follows.
const MAX_TREE_DEPTH: usize = 1024;

/// A directory held open; `path` is for messages only.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    /// Opens an absolute path; symlinks on the way are followed, so use it for trusted roots only.
    pub fn open(path: &Path) -> Result<Self, VolumeError> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        let fd = fs::open(path, flags, Mode::empty()).map_err(|e| VolumeError::io("open", path, e))?;
        Ok(Self { fd, path: path.to_path_buf() })
    }

    /// Where this directory was when it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory `name` in this one; an error where it is a symlink or no directory.
    pub fn child(&self, name: &str) -> Result<Self, VolumeError> {
        let path = self.path.join(name);
        let fd = fs::openat(&self.fd, name, OPEN_DIR, Mode::empty())
            .map_err(|e| VolumeError::io("open", &path, e))?;
        Ok(Self { fd, path })
    }

    /// Like [`Dir::child`], `None` where nothing has that name.
    pub fn child_if_there(&self, name: &str) -> Result<Option<Self>, VolumeError> {
        match self.child(name) {
            Ok(dir) => Ok(Some(dir)),
            Err(error) if error.kind() == Some(io::ErrorKind::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens the directory `name`, made where it is missing. A new one gets exactly `mode`, whatever the umask.
    pub fn ensure_child(&self, name: &str, mode: Bits) -> Result<Self, VolumeError> {
        match self.child_if_there(name)? {
            Some(dir) => Ok(dir),
            None => {
                self.make_child(name, mode)?;
                self.child(name)
            }
        }
    }

    /// Makes the directory `name` where it is missing, likewise, and does not open it.
    pub fn make_child(&self, name: &str, mode: Bits) -> Result<(), VolumeError> {
        match fs::mkdirat(&self.fd, name, Mode::from_raw_mode(mode)) {
            Ok(()) if is_masked(mode) => self.child(name)?.set_mode(mode),
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::EXIST) => {
                let there = self.stat_of(name)?.map(|stat| FileType::from_raw_mode(stat.st_mode));
                match there {
                    Some(FileType::Directory) => Ok(()),
                    _ => Err(VolumeError::io("make folder", &self.path.join(name), rustix::io::Errno::EXIST)),
                }
            }
            Err(e) => Err(VolumeError::io("make folder", &self.path.join(name), e)),
        }
    }

    /// [`Dir::ensure_child`] for each component of a relative path.
    pub fn ensure_path(&self, relative: &Path, mode: Bits) -> Result<Self, VolumeError> {
        let mut dir = self.again()?;
        for component in relative.components() {
            let name = component.as_os_str().to_str().unwrap_or_default();
            if name.is_empty() || name == ".." || name == "/" {
                return Err(VolumeError::BadPath { path: relative.to_path_buf() });
            }
            dir = dir.ensure_child(name, mode)?;
        }
        Ok(dir)
    }

    /// A second handle on the same directory.
    pub fn again(&self) -> Result<Self, VolumeError> {
        let fd = self.fd.try_clone().map_err(|source| VolumeError::Io {
            action: "open",
            path: self.path.clone(),
            source,
        })?;
        Ok(Self { fd, path: self.path.clone() })
    }

    pub fn set_mode(&self, mode: Bits) -> Result<(), VolumeError> {
        fs::fchmod(&self.fd, Mode::from_raw_mode(mode)).map_err(|e| VolumeError::io("chmod", &self.path, e))
    }

    pub fn set_group(&self, gid: u32) -> Result<(), VolumeError> {
        fs::fchown(&self.fd, None, Some(fs::Gid::from_raw(gid)))
            .map_err(|e| VolumeError::io("chgrp", &self.path, e))
    }

    /// Mode bits, group and type-free identity of this directory.
    pub fn stat(&self) -> Result<fs::Stat, VolumeError> {
        fs::fstat(&self.fd).map_err(|e| VolumeError::io("stat", &self.path, e))
    }

    /// Names in this directory as the file system has them: a pod may use any bytes.
    pub(super) fn raw_names(&self) -> Result<Vec<CString>, VolumeError> {
        let failed = |e| VolumeError::io("list", &self.path, e);
        let mut names = Vec::new();
        for entry in fs::Dir::read_from(&self.fd).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_owned();
            if name.as_bytes() != b"." && name.as_bytes() != b".." {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// [`Dir::child`] by a name of any bytes.
    pub(super) fn raw_child(&self, name: &CStr) -> Result<Self, VolumeError> {
        let path = self.path.join(OsStr::from_bytes(name.to_bytes()));
        let fd = fs::openat(&self.fd, name, OPEN_DIR, Mode::empty())
            .map_err(|e| VolumeError::io("open", &path, e))?;
        Ok(Self { fd, path })
    }

    /// [`Dir::stat_of`] by a name of any bytes.
    pub(super) fn raw_stat_of(&self, name: &CStr) -> Result<Option<fs::Stat>, VolumeError> {
        match fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(e) => Err(VolumeError::io("stat", &self.path.join(OsStr::from_bytes(name.to_bytes())), e)),
        }
    }

    /// Names in this directory, sorted, without `.` and `..`; names that are not UTF-8 are an error,
    /// as nothing here ever wrote one.
    pub fn names(&self) -> Result<Vec<String>, VolumeError> {
        let failed = |e| VolumeError::io("list", &self.path, e);
        let mut names = Vec::new();
        for entry in fs::Dir::read_from(&self.fd).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            match entry.file_name().to_str() {
                Ok("." | "..") => {}
                Ok(name) => names.push(name.to_owned()),
                Err(_) => return Err(VolumeError::BadPath { path: self.path.join("(not UTF-8)") }),
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Writes a file that must not exist yet, with exactly this mode and, where given, group.
    pub fn write_new(
        &self,
        name: &str,
        data: &[u8],
        mode: Bits,
        group: Option<u32>,
    ) -> Result<(), VolumeError> {
        let path = self.path.join(name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // With the group still to be set nobody else may open it before.
        let at_first = if group.is_some() { 0o600 } else { mode };
        let fd = fs::openat(&self.fd, name, flags, Mode::from_raw_mode(at_first))
            .map_err(|e| VolumeError::io("create", &path, e))?;
        let mut rest = data;
        while !rest.is_empty() {
            let written = rustix::io::retry_on_intr(|| rustix::io::write(&fd, rest))
                .map_err(|e| VolumeError::io("write", &path, e))?;
            rest = &rest[written..];
        }
        if let Some(gid) = group {
            fs::fchown(&fd, None, Some(fs::Gid::from_raw(gid)))
                .map_err(|e| VolumeError::io("chgrp", &path, e))?;
        }
        if at_first == mode && !is_masked(mode) {
            return Ok(());
        }
        fs::fchmod(&fd, Mode::from_raw_mode(mode)).map_err(|e| VolumeError::io("chmod", &path, e))
    }

    /// Replaces a file whole: readers see the old or the new content, never half of it.
    pub fn replace(&self, name: &str, data: &[u8], mode: Bits) -> Result<(), VolumeError> {
        let temporary = format!(".{name}.new");
        let write = || self.write_new(&temporary, data, mode, None);
        let written = match write() {
            // What a killed daemon left.
            Err(error) if error.kind() == Some(io::ErrorKind::AlreadyExists) => {
                self.remove_file(&temporary).and_then(|()| write())
            }
            written => written,
        };
        let written = written.and_then(|()| self.rename(&temporary, name));
        if written.is_err() {
            // On a full disk half a file takes space that is missing elsewhere; the next try removes it anyway.
            let _ = self.remove_file(&temporary);
        }
        written
    }

    /// The whole content of a regular file; `None` where it is missing.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, VolumeError> {
        let path = self.path.join(name);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = match fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(e) => return Err(VolumeError::io("open", &path, e)),
        };
        let mut data = Vec::new();
        let mut file = std::fs::File::from(fd);
        io::Read::read_to_end(&mut file, &mut data).map_err(|source| VolumeError::Io {
            action: "read",
            path,
            source,
        })?;
        Ok(Some(data))
    }

    pub fn rename(&self, from: &str, to: &str) -> Result<(), VolumeError> {
        fs::renameat(&self.fd, from, &self.fd, to)
            .map_err(|e| VolumeError::io("rename to", &self.path.join(to), e))
    }

    pub fn symlink(&self, target: &str, name: &str) -> Result<(), VolumeError> {
        fs::symlinkat(target, &self.fd, name).map_err(|e| VolumeError::io("link", &self.path.join(name), e))
    }

    /// Where the symlink `name` points; `None` where nothing has that name or it is no symlink.
    pub fn link_target(&self, name: &str) -> Result<Option<String>, VolumeError> {
        match fs::readlinkat(&self.fd, name, Vec::new()) {
            Ok(target) => Ok(target.into_string().ok()),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::INVAL) => Ok(None),
            Err(e) => Err(VolumeError::io("read link", &self.path.join(name), e)),
        }
    }

    /// Status of `name` itself, not of what a symlink points to; `None` where it is missing.
    pub fn stat_of(&self, name: &str) -> Result<Option<fs::Stat>, VolumeError> {
        match fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(e) => Err(VolumeError::io("stat", &self.path.join(name), e)),
        }
    }

    /// Removes a file or symlink; fine where it is already gone.
    pub fn remove_file(&self, name: &str) -> Result<(), VolumeError> {
        match fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(e) => Err(VolumeError::io("remove", &self.path.join(name), e)),
        }
    }

    /// Removes an empty directory; fine where it is already gone.
    pub fn remove_dir(&self, name: &str) -> Result<(), VolumeError> {
        match fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(e) => Err(VolumeError::io("remove", &self.path.join(name), e)),
        }
    }

    /// Removes `name` and all below it, but never crosses a mount point (invariant 8): the tree is
    /// left as it is from the first mount found, and the error names it. Names below may be any bytes.
    pub fn remove_tree(&self, name: &str) -> Result<(), VolumeError> {
        let name = CString::new(name).map_err(|_| VolumeError::BadPath { path: self.path.join(name) })?;
        self.remove_raw(&name, 0)
    }

    fn remove_raw(&self, name: &CStr, depth: usize) -> Result<(), VolumeError> {
        let path = || self.path.join(OsStr::from_bytes(name.to_bytes()));
        let Some(stat) = self.raw_stat_of(name)? else { return Ok(()) };
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if is_dir {
            // Deeper trees exist only where somebody wants to exhaust the agent's stack.
            if depth > MAX_TREE_DEPTH {
                return Err(VolumeError::TooDeep { path: path() });
            }
            let dir = self.raw_child(name)?;
            if dir.mount_id()? != self.mount_id()? {
                return Err(VolumeError::MountedBelow { path: dir.path });
            }
            for entry in dir.raw_names()? {
                dir.remove_raw(&entry, depth + 1)?;
            }
        }
        let flags = if is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        match fs::unlinkat(&self.fd, name, flags) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(e) => Err(VolumeError::io("remove", &path(), e)),
        }
    }

    /// The id of the mount this directory is on (statx(2), kernel 5.8). It differs across a bind
    /// mount of the same file system, where the device number does not.
    pub fn mount_id(&self) -> Result<u64, VolumeError> {
        let statx = fs::statx(&self.fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)
            .map_err(|e| VolumeError::io("stat", &self.path, e))?;
        Ok(statx.stx_mnt_id)
    }

    /// Whether another file system or bind is mounted on `name`.
    pub fn is_mount_point(&self, name: &str) -> Result<bool, VolumeError> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        match fs::statx(&self.fd, name, flags, StatxFlags::MNT_ID) {
            Ok(statx) => Ok(statx.stx_mnt_id != self.mount_id()?),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(e) => Err(VolumeError::io("stat", &self.path.join(name), e)),
        }
    }
}

/// Whether the process's umask takes something of this mode away. Nothing here ever changes it; where it is not
/// known, everything may be.
fn is_masked(mode: Bits) -> bool {
    static UMASK: OnceLock<Bits> = OnceLock::new();
    let mask = *UMASK.get_or_init(|| {
        // proc_pid_status(5); umask(2) can only be asked by changing it.
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let umask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
        umask.and_then(|octal| Bits::from_str_radix(octal.trim(), 8).ok()).unwrap_or(0o777)
    });
    mode & mask != 0
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_removed_without_following_its_links() {
        let root = tempfile::tempdir().unwrap();
        let outside = root.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("precious"), "x").unwrap();
        let dir = Dir::open(root.path()).unwrap();
        let tree = dir.ensure_path(Path::new("tree/deeper"), 0o750).unwrap();
        tree.symlink("../../outside", "link").unwrap();
        tree.write_new("file", b"1", 0o644, None).unwrap();
        // A container may use any bytes in a name.
        std::fs::write(tree.path().join(OsStr::from_bytes(b"\xff\xfe")), "x").unwrap();
        dir.remove_tree("tree").unwrap();
        assert!(!root.path().join("tree").exists());
        assert!(outside.join("precious").exists());
    }

    #[test]
    fn a_symlink_in_the_place_of_a_folder_is_refused() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", root.path().join("volumes")).unwrap();
        let dir = Dir::open(root.path()).unwrap();
        assert!(dir.ensure_child("volumes", 0o750).is_err());
        assert!(dir.ensure_path(Path::new("../x"), 0o750).is_err());
    }

    #[test]
    fn modes_do_not_depend_on_the_umask() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        let open = dir.ensure_child("open", 0o777).unwrap();
        assert_eq!(open.stat().unwrap().st_mode & 0o7777, 0o777);
        dir.write_new("log", b"", 0o666, None).unwrap();
        assert_eq!(dir.stat_of("log").unwrap().unwrap().st_mode & 0o7777, 0o666);
    }
}
