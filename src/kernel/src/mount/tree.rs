//! Removing folders without ever crossing a mount point or following a symbolic link (invariant 8): each
//! step goes from an open folder to a name in it, and the kernel itself refuses to leave the mount
//! (`openat2` with RESOLVE_NO_XDEV). What is removed and when is the caller's decision.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, openat2, renameat, statat, unlinkat};
use rustix::io::Errno;

use super::{MountError, path_of};

/// Folders deeper than this are moved up before they are removed, so that a pod's deep tree can neither
/// use up our descriptors nor our stack.
const MAX_DEPTH: usize = 64;

/// Open a file or folder below a folder: no way out of it, no symbolic links, no other mount.
pub fn open_beneath(folder: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, MountError> {
    open_step(folder, path, flags).map_err(|err| match err {
        Errno::XDEV => MountError::MountInside { path: path_of(folder).join(path) },
        err => MountError::io(path_of(folder).join(path), "open", err),
    })
}

fn open_step(folder: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    loop {
        match openat2(folder, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // A rename elsewhere raced with the look-up of `..`-safe paths; the kernel asks to try again.
            Err(Errno::AGAIN | Errno::INTR) => {}
            outcome => return outcome,
        }
    }
}

/// Remove the empty folder `name`; whether it is gone. `false` means that something is in it, or mounted
/// on it. One that does not exist is gone.
pub fn remove_dir_if_empty(folder: BorrowedFd<'_>, name: &OsStr) -> Result<bool, MountError> {
    match unlinkat(folder, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST | Errno::BUSY) => Ok(false),
        Err(err) => Err(MountError::io(path_of(folder).join(name), "remove the folder", err)),
    }
}

/// Remove `name` and everything below it, as long as all of it lies on the mount `folder` lies on. At a
/// mount point it stops with [`MountError::MountInside`]; what was removed before stays removed. A
/// success when `name` does not exist.
pub fn remove_tree_within_one_mount(folder: BorrowedFd<'_>, name: &OsStr) -> Result<(), MountError> {
    let name = CString::new(name.as_bytes())
        .map_err(|_| MountError::io(path_of(folder), "remove a name with a NUL", Errno::INVAL))?;
    let mut removal = Removal { folder, moved: Vec::new(), next: 0 };
    removal.remove(folder, &name, &PathBuf::from(OsStr::from_bytes(name.as_bytes())), 0)?;
    while let Some((name, path)) = removal.moved.pop() {
        removal.remove(folder, &name, &path, 0)?;
    }
    Ok(())
}

struct Removal<'a> {
    folder: BorrowedFd<'a>,
    /// Deep folders that were moved up, with where they came from.
    moved: Vec<(CString, PathBuf)>,
    next: u64,
}

impl Removal<'_> {
    fn remove(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        path: &Path,
        depth: usize,
    ) -> Result<(), MountError> {
        let fail = |op| move |err: Errno| MountError::io(path, op, err);
        match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            Err(err) => return Err(fail("look up")(err)),
            Ok(found) if FileType::from_raw_mode(found.st_mode) != FileType::Directory => {
                return match unlinkat(parent, name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => Ok(()),
                    // A file something is mounted on.
                    Err(Errno::BUSY) => Err(MountError::MountInside { path: path.to_owned() }),
                    Err(err) => Err(fail("remove")(err)),
                };
            }
            Ok(_) => {}
        }
        if depth >= MAX_DEPTH {
            return self.move_up(parent, name, path);
        }
        let step = Path::new(OsStr::from_bytes(name.to_bytes()));
        let opened = match open_step(parent, step, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW) {
            Ok(opened) => opened,
            Err(Errno::NOENT) => return Ok(()),
            Err(Errno::XDEV) => return Err(MountError::MountInside { path: path.to_owned() }),
            Err(err) => return Err(fail("open")(err)),
        };
        self.remove_content(opened.as_fd(), path, depth)?;
        match unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::BUSY) => Err(MountError::MountInside { path: path.to_owned() }),
            Err(err) => Err(fail("remove the folder")(err)),
        }
    }

    fn remove_content(
        &mut self,
        opened: BorrowedFd<'_>,
        path: &Path,
        depth: usize,
    ) -> Result<(), MountError> {
        let read = |err: Errno| MountError::io(path, "list", err);
        for entry in Dir::read_from(opened).map_err(read)? {
            let entry = entry.map_err(read)?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                let below = path.join(OsStr::from_bytes(name.to_bytes()));
                self.remove(opened, name, &below, depth + 1)?;
            }
        }
        Ok(())
    }

    /// Move a folder that is too deep beside the one being removed. A rename cannot cross a mount, and
    /// fails on a mount point.
    fn move_up(&mut self, parent: BorrowedFd<'_>, name: &CStr, path: &Path) -> Result<(), MountError> {
        loop {
            self.next += 1;
            let fresh = CString::new(format!(".removing-{}-{}", std::process::id(), self.next))
                .expect("a formatted number has no NUL");
            match renameat(parent, name, self.folder, &fresh) {
                Ok(()) => {
                    self.moved.push((fresh, path.to_owned()));
                    return Ok(());
                }
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::ISDIR | Errno::NOTDIR) => {}
                Err(Errno::BUSY | Errno::XDEV) => {
                    return Err(MountError::MountInside { path: path.to_owned() });
                }
                Err(err) => return Err(MountError::io(path, "move a deep folder", err)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_tree_goes_and_what_its_links_point_to_stays() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("keep"), "x").unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("a/b/c")).unwrap();
        fs::write(tree.join("a/b/file"), "x").unwrap();
        std::os::unix::fs::symlink(outside.path(), tree.join("a/link")).unwrap();
        fs::write(dir.path().join("neighbour"), "x").unwrap();
        let folder = fs::File::open(dir.path()).unwrap();
        remove_tree_within_one_mount(folder.as_fd(), OsStr::new("tree")).unwrap();
        assert!(!tree.exists());
        assert!(outside.path().join("keep").exists() && dir.path().join("neighbour").exists());
        remove_tree_within_one_mount(folder.as_fd(), OsStr::new("tree")).unwrap();

        std::os::unix::fs::symlink(outside.path(), dir.path().join("tree")).unwrap();
        remove_tree_within_one_mount(folder.as_fd(), OsStr::new("tree")).unwrap();
        assert!(outside.path().join("keep").exists(), "the link went, not its target");
    }

    #[test]
    fn a_very_deep_tree_goes_too() {
        let dir = tempfile::tempdir().unwrap();
        let folder = fs::File::open(dir.path()).unwrap();
        let mut at = rustix::fs::openat(folder.as_fd(), ".", OFlags::RDONLY, Mode::empty()).unwrap();
        for _ in 0..1500 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, "d", OFlags::RDONLY, Mode::empty()).unwrap();
        }
        remove_tree_within_one_mount(folder.as_fd(), OsStr::new("d")).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing moved up is left");
    }

    #[test]
    fn opening_beneath_a_folder_never_leaves_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("in")).unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("out")).unwrap();
        let folder = fs::File::open(dir.path()).unwrap();
        for path in ["../", "/etc/passwd", "out/passwd", "in/../../x", "out"] {
            assert!(open_beneath(folder.as_fd(), Path::new(path), OFlags::PATH).is_err(), "{path}");
        }
        open_beneath(folder.as_fd(), Path::new("in"), OFlags::PATH).unwrap();
    }

    #[test]
    fn only_an_empty_folder_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("full/x")).unwrap();
        fs::create_dir(dir.path().join("empty")).unwrap();
        let folder = fs::File::open(dir.path()).unwrap();
        let remove = |name: &str| remove_dir_if_empty(folder.as_fd(), OsStr::new(name)).unwrap();
        assert_eq!((remove("full"), remove("empty"), remove("none")), (false, true, true));
    }
}
