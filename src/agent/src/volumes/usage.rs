//! How much of the disk a folder of a pod takes. Other file systems below it are not counted, links are
//! not followed, and a file with several names counts once.

use std::collections::HashSet;
use std::ffi::CString;
use std::path::Path;

use rustix::fs::{FileType, Stat};

use super::VolumeError;
use super::dir::Dir;

/// Folders nested deeper are not looked into: a pod must not be able to exhaust the agent's stack.
pub(super) const MAX_DEPTH: usize = 512;

/// Bytes of the blocks below `path`, the folder's own included. Blocks on the file system: call it from
/// a blocking thread.
///
/// # Errors
/// Where the folder itself cannot be opened. What vanishes or cannot be read below it counts nothing.
pub fn disk_usage(path: &Path) -> Result<u64, VolumeError> {
    let dir = Dir::open(path)?;
    let mount = dir.mount_id()?;
    let mut count = Count { mount, seen: HashSet::new(), bytes: 0 };
    count.add(&dir.stat()?);
    count.below(&dir, 0);
    Ok(count.bytes)
}

struct Count {
    mount: u64,
    /// Files with several names.
    seen: HashSet<(u64, u64)>,
    bytes: u64,
}

impl Count {
    fn add(&mut self, stat: &Stat) {
        if stat.st_nlink > 1
            && FileType::from_raw_mode(stat.st_mode) != FileType::Directory
            && !self.seen.insert((stat.st_dev, stat.st_ino))
        {
            return;
        }
        // st_blocks counts 512 bytes each, whatever the file system's own block (stat(2)).
        self.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
    }

    fn below(&mut self, dir: &Dir, depth: usize) {
        let Ok(names) = dir.raw_names() else { return };
        for name in names {
            let Ok(Some(stat)) = dir.raw_stat_of(&name) else { continue };
            self.add(&stat);
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory && depth < MAX_DEPTH {
                self.enter(dir, &name, depth);
            }
        }
    }

    fn enter(&mut self, dir: &Dir, name: &CString, depth: usize) {
        let Ok(child) = dir.raw_child(name) else { return };
        if child.mount_id().is_ok_and(|mount| mount == self.mount) {
            self.below(&child, depth + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_count_once_and_links_lead_nowhere() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("volume");
        std::fs::create_dir_all(volume.join("a/b")).unwrap();
        std::fs::write(root.path().join("outside"), vec![1; 1 << 20]).unwrap();
        let empty = disk_usage(&volume).unwrap();
        std::os::unix::fs::symlink("../outside", volume.join("link")).unwrap();
        std::fs::write(volume.join("a/b/file"), vec![1; 256 << 10]).unwrap();
        std::fs::hard_link(volume.join("a/b/file"), volume.join("again")).unwrap();
        let used = disk_usage(&volume).unwrap() - empty;
        assert!((256 << 10..320 << 10).contains(&used), "{used}");
        assert!(disk_usage(&root.path().join("none")).is_err());
    }
}
