//! The files of a joined node on the disk: what is there already is never replaced without being told to.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use longshore_core::bootstrap::{JoinFile, JoinFolders, signs_of_a_node};

use super::JoinError;
use crate::certificates::write_whole;

/// Writes what differs; gives one line per file.
pub(super) fn write(
    folders: &JoinFolders,
    files: &[JoinFile],
    force: bool,
    dry_run: bool,
) -> Result<Vec<String>, JoinError> {
    let signs: Vec<PathBuf> =
        signs_of_a_node(folders).into_iter().filter(|path| path.symlink_metadata().is_ok()).collect();
    let replaced =
        files.iter().filter(|file| !holds(file)).map(|file| file.path.clone()).filter(|path| path.exists());
    let in_the_way: Vec<PathBuf> = signs.iter().cloned().chain(replaced).collect();
    if !in_the_way.is_empty() && !force && !dry_run {
        return Err(JoinError::Joined(in_the_way));
    }
    let mut lines = Vec::new();
    for file in files {
        let (path, what) = (file.path.display(), file.what);
        if holds(file) && has_mode(file) {
            lines.push(format!("unchanged {path} ({what})"));
        } else if dry_run {
            lines.push(format!("would write {path} ({what}, {} bytes)", file.text.len()));
        } else {
            write_one(file)?;
            lines.push(format!("wrote {path} ({what})"));
        }
    }
    // Last: until everything is written, a node that works goes on being the one it was.
    for path in &signs {
        lines.push(match dry_run {
            true => format!("would put aside {}", path.display()),
            false => put_aside(path)?,
        });
    }
    Ok(lines)
}

fn holds(file: &JoinFile) -> bool {
    fs::read_to_string(&file.path).is_ok_and(|text| text == file.text)
}

/// A credential that others may read is none any more, whatever it holds.
fn has_mode(file: &JoinFile) -> bool {
    fs::metadata(&file.path).is_ok_and(|found| found.permissions().mode() & 0o7777 == file.mode)
}

/// A node's old identity must not speak for it in the new cluster.
fn put_aside(path: &Path) -> Result<String, JoinError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".before-join");
    let aside = PathBuf::from(name);
    fs::rename(path, &aside).map_err(|source| JoinError::Write { path: path.to_owned(), source })?;
    Ok(format!("put aside {} as {}", path.display(), aside.display()))
}

fn write_one(file: &JoinFile) -> Result<(), JoinError> {
    let failed = |source: io::Error| JoinError::Write { path: file.path.clone(), source };
    if let Some(folder) = file.path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(failed)?;
    }
    write_whole(&file.path, file.text.as_bytes(), file.mode).map_err(failed)
}
