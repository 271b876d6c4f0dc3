//! Publishing a set of files so that readers see all of the old or all of the new content: a fresh
//! timestamped folder, then `..data` renamed onto it, then the links people see (behaviours 32).
//! No decision about content lives here.
//!
//! Files are not synced to disk: content is compared with what is wanted at every start of the agent
//! and before each update, so what a power loss cut short is written again before a container uses it.

use std::collections::BTreeSet;
use std::path::Path;

use jiff::Timestamp;
use longshore_core::pod::step::VolumeFile;

use super::VolumeError;
use super::dir::Dir;

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// Makes the directory show exactly `files`; answers whether anything was written.
///
/// On an error the content published before stays as it is, and what was written of the new is removed.
pub fn publish(
    dir: &Dir,
    files: &[VolumeFile],
    group: Option<u32>,
    now: Timestamp,
) -> Result<bool, VolumeError> {
    let current = dir.link_target(DATA)?;
    if let Some(current) = &current
        && same_content(dir, current, files)?
    {
        link_names(dir, files)?;
        remove_stale(dir, files, current)?;
        return Ok(false);
    }
    let fresh = fresh_name(dir, now)?;
    if let Err(error) = write_all(dir, &fresh, files, group).and_then(|()| switch(dir, &fresh)) {
        // What made the write fail may make the removal fail too; the next publish sweeps it.
        let _ = dir.remove_tree(&fresh);
        return Err(error);
    }
    link_names(dir, files)?;
    remove_stale(dir, files, &fresh)?;
    Ok(true)
}

/// A folder name that sorts by time and is not taken: `..2026_11_21_13_10_00.123456789`.
fn fresh_name(dir: &Dir, now: Timestamp) -> Result<String, VolumeError> {
    let stem = now.strftime("..%Y_%m_%d_%H_%M_%S").to_string();
    let mut nanos = now.subsec_nanosecond().unsigned_abs();
    loop {
        let name = format!("{stem}.{nanos:09}");
        if dir.stat_of(&name)?.is_none() {
            return Ok(name);
        }
        nanos += 1;
    }
}

fn write_all(dir: &Dir, fresh: &str, files: &[VolumeFile], group: Option<u32>) -> Result<(), VolumeError> {
    // With a group, folders hand it on (setgid) and the group may read, as fsGroup promises for
    // read-only content.
    let folder_mode = if group.is_some() { 0o2755 } else { 0o755 };
    let root = dir.ensure_child(fresh, folder_mode)?;
    if let Some(gid) = group {
        root.set_group(gid)?;
        root.set_mode(folder_mode)?;
    }
    for file in files {
        let path = Path::new(&file.path);
        let parent = match path.parent().filter(|p| !p.as_os_str().is_empty()) {
            Some(parent) => root.ensure_path(parent, folder_mode)?,
            None => root.again()?,
        };
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else {
            return Err(VolumeError::BadPath { path: path.to_path_buf() });
        };
        let mode = if group.is_some() { file.mode | 0o440 } else { file.mode };
        parent.write_new(name, &file.data, mode & 0o777, group)?;
    }
    Ok(())
}

fn switch(dir: &Dir, fresh: &str) -> Result<(), VolumeError> {
    dir.remove_file(DATA_NEW)?;
    dir.symlink(fresh, DATA_NEW)?;
    dir.rename(DATA_NEW, DATA)
}

/// First components of the files' paths: the names people see in the volume.
fn visible(files: &[VolumeFile]) -> BTreeSet<&str> {
    files.iter().filter_map(|file| file.path.split('/').next()).collect()
}

fn link_names(dir: &Dir, files: &[VolumeFile]) -> Result<(), VolumeError> {
    for name in visible(files) {
        let target = format!("{DATA}/{name}");
        if dir.link_target(name)?.as_deref() == Some(&target) {
            continue;
        }
        dir.remove_tree(name)?;
        dir.symlink(&target, name)?;
    }
    Ok(())
}

/// Removes links to names that are gone and folders of earlier content, also those a crash left.
fn remove_stale(dir: &Dir, files: &[VolumeFile], current: &str) -> Result<(), VolumeError> {
    let wanted = visible(files);
    for name in dir.names()? {
        if name == DATA || name == current || wanted.contains(name.as_str()) {
            continue;
        }
        let ours = name.starts_with("..2") || name == DATA_NEW;
        let old_link = dir.link_target(&name)?.is_some_and(|target| target.starts_with("..data/"));
        if ours || old_link {
            dir.remove_tree(&name)?;
        }
    }
    Ok(())
}

/// Whether the folder `current` holds exactly these files with this content.
fn same_content(dir: &Dir, current: &str, files: &[VolumeFile]) -> Result<bool, VolumeError> {
    let Some(root) = dir.child_if_there(current)? else { return Ok(false) };
    let mut found = 0;
    for file in files {
        let path = Path::new(&file.path);
        let mut folder = root.again()?;
        for component in path.parent().into_iter().flat_map(Path::components) {
            let name = component.as_os_str().to_str().unwrap_or_default();
            match folder.child_if_there(name)? {
                Some(next) => folder = next,
                None => return Ok(false),
            }
        }
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if folder.read(name)?.as_deref() != Some(&file.data[..]) {
            return Ok(false);
        }
        found += 1;
    }
    Ok(found == count_files(&root)?)
}

fn count_files(dir: &Dir) -> Result<usize, VolumeError> {
    let mut count = 0;
    for name in dir.names()? {
        let is_dir = dir.stat_of(&name)?.is_some_and(|s| {
            rustix::fs::FileType::from_raw_mode(s.st_mode) == rustix::fs::FileType::Directory
        });
        count += if is_dir { count_files(&dir.child(&name)?)? } else { 1 };
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, data: &str) -> VolumeFile {
        VolumeFile { path: path.into(), mode: 0o644, data: data.as_bytes().to_vec() }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    #[test]
    fn files_appear_change_and_go_and_nothing_old_stays() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        let show = |name: &str| std::fs::read_to_string(root.path().join(name)).ok();

        assert!(publish(&dir, &[file("a", "1"), file("sub/b", "2")], None, at(0)).unwrap());
        assert_eq!((show("a"), show("sub/b")), (Some("1".into()), Some("2".into())));
        assert!(
            !publish(&dir, &[file("a", "1"), file("sub/b", "2")], None, at(1)).unwrap(),
            "same content again"
        );

        assert!(publish(&dir, &[file("a", "one"), file("c", "3")], None, at(1)).unwrap());
        assert_eq!((show("a"), show("sub/b"), show("c")), (Some("one".into()), None, Some("3".into())));
        let names = dir.names().unwrap();
        assert_eq!(names.iter().filter(|n| n.starts_with("..2")).count(), 1, "{names:?}");
        assert!(!names.contains(&"sub".to_owned()), "{names:?}");
    }

    #[test]
    fn a_failed_write_keeps_the_old_content() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        publish(&dir, &[file("a", "old")], None, at(0)).unwrap();
        // A file in the place of a folder makes the second write of the set fail.
        let clash = [file("a", "new"), file("x", "1"), file("x/y", "2")];
        assert!(publish(&dir, &clash, None, at(1)).is_err());
        assert_eq!(std::fs::read_to_string(root.path().join("a")).unwrap(), "old");
        assert_eq!(dir.names().unwrap().iter().filter(|n| n.starts_with("..2")).count(), 1);
    }

    #[test]
    fn leftovers_of_a_crash_are_swept() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        publish(&dir, &[file("a", "1")], None, at(0)).unwrap();
        let half = dir.ensure_child("..2027_01_15_00_00_00.000000001", 0o755).unwrap();
        half.write_new("a", b"half", 0o644, None).unwrap();
        dir.symlink("..2027_01_15_00_00_00.000000001", DATA_NEW).unwrap();
        publish(&dir, &[file("a", "1")], None, at(5)).unwrap();
        let names = dir.names().unwrap();
        assert_eq!(names.len(), 3, "{names:?}");
    }

    #[test]
    fn modes_are_exact_and_a_group_adds_reading() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        let gid = rustix::process::getgid().as_raw();
        let secret = VolumeFile { path: "key".into(), mode: 0o400, data: b"k".to_vec() };
        publish(&dir, std::slice::from_ref(&secret), None, at(0)).unwrap();
        let mode = |p: &str| {
            use std::os::unix::fs::PermissionsExt;
            std::fs::metadata(root.path().join(p)).unwrap().permissions().mode() & 0o7777
        };
        assert_eq!(mode("key"), 0o400);
        let other = VolumeFile { data: b"other".to_vec(), ..secret };
        publish(&dir, &[other], Some(gid), at(1)).unwrap();
        assert_eq!(mode("key"), 0o440);
        assert_eq!(mode("..data/"), 0o2755);
    }
}
