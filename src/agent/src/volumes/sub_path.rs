//! subPath: opens a path inside a volume without ever leaving it, and binds what was opened.
//!
//! The kernel resolves the path (`openat2` with RESOLVE_BENEATH, kernel 5.6): links that stay inside
//! the volume work (a configMap's files are such links), a link that leads out is refused, and no
//! swap between check and use can help an attacker, as the bind is made from the open descriptor.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use longshore_core::pod::step::SubPathMount;
use rustix::fs::{self, FileType, Mode, OFlags, ResolveFlags};

use super::dir::Dir;
use super::{Mounts, VolumeError};

/// Binds `mount` onto `name` in `parent`; keeps a bind that already shows the same file.
pub(super) fn bind(
    mounts: &dyn Mounts,
    mount: &SubPathMount,
    parent: &Dir,
    name: &str,
) -> Result<(), VolumeError> {
    let source = open_inside(&mount.volume_path, &mount.sub_path)?;
    let wanted = fs::fstat(&source)
        .map_err(|e| VolumeError::io("stat", &mount.volume_path.join(&mount.sub_path), e))?;
    let target = parent.path().join(name);
    let failed = |action| {
        let path = target.clone();
        move |source| VolumeError::Io { action, path, source }
    };
    while mounts.is_mount_point(&target).map_err(failed("look at"))? {
        let shown = parent.stat_of(name)?;
        if shown.is_some_and(|s| (s.st_dev, s.st_ino) == (wanted.st_dev, wanted.st_ino)) {
            return Ok(());
        }
        mounts.unmount(&target).map_err(failed("unmount"))?;
    }
    let is_dir = FileType::from_raw_mode(wanted.st_mode) == FileType::Directory;
    make_target(parent, name, is_dir)?;
    mounts.bind(source.as_fd(), &target, mount.readonly).map_err(failed("bind onto"))
}

/// An empty file or folder to mount on; one of the wrong type from an earlier try is replaced.
fn make_target(parent: &Dir, name: &str, is_dir: bool) -> Result<(), VolumeError> {
    if let Some(stat) = parent.stat_of(name)?
        && (FileType::from_raw_mode(stat.st_mode) == FileType::Directory) != is_dir
    {
        parent.remove_tree(name)?;
    }
    if is_dir {
        return parent.ensure_child(name, 0o750).map(|_| ());
    }
    match parent.stat_of(name)? {
        Some(_) => Ok(()),
        None => parent.write_new(name, b"", 0o640, None),
    }
}

/// Opens `sub_path` below `volume`, making missing folders on the way as the API promises.
fn open_inside(volume: &Path, sub_path: &str) -> Result<OwnedFd, VolumeError> {
    let root = Dir::open(volume)?;
    let path = Path::new(sub_path);
    if !path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(VolumeError::BadPath { path: path.to_path_buf() });
    }
    match resolve(&root, path) {
        Err(rustix::io::Errno::NOENT) => {}
        result => return result.map_err(|e| VolumeError::io("open", &volume.join(path), e)),
    }
    make_below(&root, path)?;
    resolve(&root, path).map_err(|e| VolumeError::io("open", &volume.join(path), e))
}

fn resolve(root: &Dir, path: &Path) -> Result<OwnedFd, rustix::io::Errno> {
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), how)
}

/// Makes the missing folders of `path`, each with the permissions of the volume's root.
fn make_below(root: &Dir, path: &Path) -> Result<(), VolumeError> {
    let mode = Mode::from_raw_mode(root.stat()?.st_mode & 0o7777);
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
    let mut dir: OwnedFd = root.as_fd().try_clone_to_owned().map_err(|source| VolumeError::Io {
        action: "open",
        path: root.path().to_path_buf(),
        source,
    })?;
    let mut done = root.path().to_path_buf();
    for component in path.components() {
        let name = component.as_os_str();
        done.push(name);
        match fs::mkdirat(&dir, name, mode) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(VolumeError::io("make folder", &done, e)),
        }
        dir = fs::openat2(&dir, name, flags, Mode::empty(), how)
            .map_err(|e| VolumeError::io("open", &done, e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opens(volume: &Path, sub_path: &str) -> bool {
        open_inside(volume, sub_path).is_ok()
    }

    #[test]
    fn nothing_leads_out_of_the_volume() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("volume");
        std::fs::create_dir_all(volume.join("inner")).unwrap();
        std::fs::write(root.path().join("secret"), "x").unwrap();
        std::fs::write(volume.join("inner/file"), "x").unwrap();
        let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, volume.join(name)).unwrap();
        link("inner", "stays");
        link("../secret", "leaves");
        link("/etc", "absolute");
        link("..", "up");
        assert!(opens(&volume, "inner/file"));
        assert!(opens(&volume, "stays/file"));
        assert!(opens(&volume, "made/on/the/way"));
        assert!(volume.join("made/on/the/way").is_dir());
        for path in
            ["leaves", "absolute/passwd", "up/secret", "../secret", "/etc/passwd", "inner/../../secret"]
        {
            assert!(!opens(&volume, path), "{path}");
        }
    }
}
