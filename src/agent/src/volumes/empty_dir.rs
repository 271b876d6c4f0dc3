//! emptyDir: who may use the folder. Its making and its tmpfs are in `mod.rs`.

use super::VolumeError;
use super::dir::Dir;

/// Hands the folder to the pod's group: group-writable, and setgid so that files made in it
/// belong to that group too (pod security context, `fsGroup`).
pub(super) fn share_with_group(dir: &Dir, group: Option<u32>) -> Result<(), VolumeError> {
    let Some(gid) = group else { return Ok(()) };
    let stat = dir.stat()?;
    if stat.st_gid == gid && stat.st_mode & 0o2070 == 0o2070 {
        return Ok(());
    }
    // chown(2) clears setgid, so the mode comes second.
    dir.set_group(gid)?;
    dir.set_mode((stat.st_mode & 0o777) | 0o2770)
}
