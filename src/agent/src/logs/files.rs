//! Log files on disk: small operations that can be done again after any failure. The folders are the
//! runtime's and root's; nothing a container can write decides a path here.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use longshore_core::pod::logs::is_rotated;

/// What the disk refused.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}", path.display())]
pub struct LogFileError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogFileError {
    let path = path.to_path_buf();
    move |source| LogFileError { action, path, source }
}

/// Bytes of a log; `None` where it is gone.
pub(super) fn size(path: &Path) -> Result<Option<u64>, LogFileError> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("look at", path)(error)),
    }
}

/// Names of all files in a log's folder.
pub(super) fn beside(path: &Path) -> Result<Vec<String>, LogFileError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed("list", folder))? {
        names.extend(entry.map_err(failed("list", folder))?.file_name().into_string());
    }
    Ok(names)
}

/// Removes a file; fine where it is gone.
pub(super) fn remove(path: &Path) -> Result<(), LogFileError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<(), LogFileError> {
    std::fs::rename(from, to).map_err(failed("rename", from))
}

/// Writes `<path>.gz` whole or not at all, then removes `path`.
pub(super) fn compress(path: &Path) -> Result<(), LogFileError> {
    let with = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let (half, whole) = (with(".tmp"), with(".gz"));
    let written = (|| {
        let mut source = File::open(path)?;
        let mut encoder = GzEncoder::new(File::create(&half)?, Compression::default());
        io::copy(&mut source, &mut encoder)?;
        encoder.finish()?.sync_all()?;
        std::fs::rename(&half, &whole)
    })();
    written.map_err(failed("compress", path))?;
    remove(path)
}

/// Removes a log and everything it was rotated to.
///
/// # Errors
/// The first file that cannot be removed.
pub fn remove_with_rotated(path: &Path) -> Result<(), LogFileError> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    match beside(path) {
        Ok(others) => {
            for other in others.iter().filter(|other| is_rotated(&name, other)) {
                remove(&path.with_file_name(other))?;
            }
        }
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    remove(path)
}

/// Makes the link `folder/name` to a log, or makes it anew where it leads elsewhere.
///
/// # Errors
/// Of the disk.
pub fn link(folder: &Path, name: &str, log: &Path) -> Result<(), LogFileError> {
    let path = folder.join(name);
    if std::fs::read_link(&path).is_ok_and(|target| target == log) {
        return Ok(());
    }
    std::fs::create_dir_all(folder).map_err(failed("make folder", folder))?;
    remove(&path)?;
    std::os::unix::fs::symlink(log, &path).map_err(failed("make link", &path))
}

/// Removes the link `folder/name`; fine where it is gone.
///
/// # Errors
/// Of the disk.
pub fn unlink(folder: &Path, name: &str) -> Result<(), LogFileError> {
    remove(&folder.join(name))
}

/// All wanted links, and none into `logs` that leads nowhere. A link to elsewhere is somebody else's.
pub(super) fn keep_links(
    folder: &Path,
    logs: &Path,
    wanted: &[(String, PathBuf)],
) -> Result<(), LogFileError> {
    for (name, log) in wanted.iter().filter(|(_, log)| log.exists()) {
        link(folder, name, log)?;
    }
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("list", folder)(error)),
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let ours = std::fs::read_link(&path).is_ok_and(|target| target.starts_with(logs));
        if ours && !path.exists() {
            remove(&path)?;
        }
    }
    Ok(())
}
