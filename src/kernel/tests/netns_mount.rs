//! `RealMounts` against the kernel, in a mount namespace of each test's own.

#![allow(clippy::unwrap_used)]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use longshore_kernel::mount::{
    BindOptions, MountEntry, MountError, Mounts, Propagation, RealMounts, TmpfsOptions, open_path,
    remove_dir_if_empty, remove_tree_within_one_mount,
};

fn in_mount_ns(body: impl FnOnce(&Path) + Send) {
    let folder = tempfile::tempdir().unwrap();
    // A thread of its own: the namespace goes with it, and no other test sees its mounts.
    let path = folder.path().canonicalize().unwrap();
    let entered = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
            make_all_private();
            body(&path);
            Ok::<(), nix::errno::Errno>(())
        });
        thread.join()
    });
    match entered {
        Ok(Ok(())) => {}
        Ok(Err(err)) => common::skip("netns", &format!("no mount namespace: {err}")),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn make_all_private() {
    use nix::mount::{MsFlags, mount};
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>).unwrap();
}

fn folder(root: &Path, name: &str) -> std::path::PathBuf {
    let path = root.join(name);
    fs::create_dir(&path).unwrap();
    path
}

fn listed(below: &Path) -> Vec<MountEntry> {
    RealMounts.list_below(below).unwrap()
}

#[test]
fn a_tmpfs_has_its_size_and_mode_and_goes_by_identity() {
    in_mount_ns(|root| {
        let target = folder(root, "memory");
        assert_eq!(RealMounts.mounted_at(&target), Ok(None));
        assert_eq!(RealMounts.mounted_at(&root.join("none")), Ok(None));
        let options = TmpfsOptions { size: Some(1 << 20), mode: Some(0o1770), no_swap: true };
        RealMounts.mount_tmpfs(open_path(&target).unwrap().as_fd(), options).unwrap();
        let id = RealMounts.mounted_at(&target).unwrap().unwrap();
        assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o7777, 0o1770);
        assert!(fs::write(target.join("big"), vec![0; 2 << 20]).is_err(), "more than its size");
        let mount = listed(&target).pop().unwrap();
        assert_eq!((mount.id, mount.fs_type.as_str()), (id, "tmpfs"));

        RealMounts.mount_tmpfs(open_path(&target).unwrap().as_fd(), TmpfsOptions::default()).unwrap();
        let top = RealMounts.mounted_at(&target).unwrap().unwrap();
        assert_ne!(top, id, "mounts stack");
        let err = RealMounts.unmount(&target, id).unwrap_err();
        assert_eq!(err, MountError::Replaced { path: target.clone(), found: top });
        RealMounts.unmount(&target, top).unwrap();
        RealMounts.unmount(&target, id).unwrap();
        RealMounts.unmount(&target, id).unwrap();
        assert_eq!(listed(&target), []);
    });
}

#[test]
fn a_read_only_bind_covers_what_is_mounted_below() {
    in_mount_ns(|root| {
        let (source, target) = (folder(root, "source"), folder(root, "target"));
        let inner = folder(&source, "inner");
        RealMounts.mount_tmpfs(open_path(&inner).unwrap().as_fd(), TmpfsOptions::default()).unwrap();
        fs::write(inner.join("file"), "x").unwrap();
        let bind = |options| {
            let (from, to) = (open_path(&source).unwrap(), open_path(&target).unwrap());
            RealMounts.bind(from.as_fd(), to.as_fd(), options).unwrap();
        };
        bind(BindOptions { read_only: true, recursive: true });
        assert_eq!(fs::read_to_string(target.join("inner/file")).unwrap(), "x");
        for path in ["new", "inner/new"] {
            assert!(fs::write(target.join(path), "x").is_err(), "{path}");
            fs::write(source.join(path), "x").unwrap();
        }
        assert!(listed(&target).iter().all(|mount| mount.read_only));
        let id = RealMounts.mounted_at(&target).unwrap().unwrap();
        let busy = RealMounts.unmount(&target, id).unwrap_err();
        assert!(busy.is_retryable(), "something is mounted below: {busy}");
        let below = RealMounts.mounted_at(&target.join("inner")).unwrap().unwrap();
        RealMounts.unmount(&target.join("inner"), below).unwrap();
        RealMounts.unmount(&target, id).unwrap();

        bind(BindOptions { read_only: false, recursive: false });
        assert!(!target.join("inner/file").exists(), "not recursive");
        fs::write(target.join("written"), "x").unwrap();
        assert!(source.join("written").exists());
    });
}

#[test]
fn a_file_is_bound_on_a_file() {
    in_mount_ns(|root| {
        let (source, target) = (root.join("source"), root.join("target"));
        fs::write(&source, "new").unwrap();
        fs::write(&target, "old").unwrap();
        let (from, to) = (open_path(&source).unwrap(), open_path(&target).unwrap());
        RealMounts.bind(from.as_fd(), to.as_fd(), BindOptions::default()).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "new");
    });
}

#[test]
fn removal_stops_at_a_mount_and_nothing_in_it_goes() {
    in_mount_ns(|root| {
        let tree = folder(root, "tree");
        fs::write(tree.join("file"), "x").unwrap();
        let inner = folder(&tree, "inner");
        let data = folder(root, "data");
        fs::write(data.join("precious"), "x").unwrap();
        // A bind of the same file system: the device number is the same, the mount is not.
        let (from, to) = (open_path(&data).unwrap(), open_path(&inner).unwrap());
        RealMounts.bind(from.as_fd(), to.as_fd(), BindOptions::default()).unwrap();
        let parent = fs::File::open(root).unwrap();
        let err = remove_tree_within_one_mount(parent.as_fd(), OsStr::new("tree")).unwrap_err();
        assert_eq!(err, MountError::MountInside { path: "tree/inner".into() });
        assert!(data.join("precious").exists());
        let tree_fd = fs::File::open(&tree).unwrap();
        assert_eq!(remove_dir_if_empty(tree_fd.as_fd(), OsStr::new("inner")), Ok(false));

        drop((from, to));
        let id = RealMounts.mounted_at(&inner).unwrap().unwrap();
        RealMounts.unmount(&inner, id).unwrap();
        remove_tree_within_one_mount(parent.as_fd(), OsStr::new("tree")).unwrap();
        assert!(!tree.exists() && data.join("precious").exists());
    });
}

#[test]
fn propagation_is_set_and_listed() {
    in_mount_ns(|root| {
        let target = folder(root, "target");
        RealMounts.mount_tmpfs(open_path(&target).unwrap().as_fd(), TmpfsOptions::default()).unwrap();
        for (propagation, shared) in
            [(Propagation::Shared, true), (Propagation::Private, false), (Propagation::Slave, false)]
        {
            RealMounts.set_propagation(&target, propagation).unwrap();
            assert_eq!(listed(&target)[0].shared, shared, "{propagation:?}");
        }
    });
}
