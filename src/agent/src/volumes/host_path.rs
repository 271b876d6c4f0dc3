//! hostPath: checks the path has the type the pod asked for, or makes it (API: `hostPath.type`).
//! The path is the node's own and its links are followed, as the runtime will follow them.

use std::fs::{DirBuilder, FileType, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use super::VolumeError;

/// Checks `path` against a `hostPath.type`; the empty type asks for nothing.
pub(super) fn check(path: &Path, kind: &str) -> Result<(), VolumeError> {
    let found = match std::fs::metadata(path) {
        Ok(metadata) => Some(metadata.file_type()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(VolumeError::Io { action: "look at", path: path.to_path_buf(), source }),
    };
    let is = |wanted: fn(&FileType) -> bool| found.as_ref().map(wanted);
    let (fits, wanted) = match kind {
        "" => return Ok(()),
        "DirectoryOrCreate" if found.is_none() => return make_dir(path),
        "FileOrCreate" if found.is_none() => return make_file(path),
        "Directory" | "DirectoryOrCreate" => (is(FileType::is_dir), "a directory"),
        "File" | "FileOrCreate" => (is(FileType::is_file), "a file"),
        "Socket" => (is(|t| t.is_socket()), "a socket"),
        "CharDevice" => (is(|t| t.is_char_device()), "a character device"),
        "BlockDevice" => (is(|t| t.is_block_device()), "a block device"),
        other => return Err(problem(path, format!("has the unknown type {other:?}"))),
    };
    match fits {
        Some(true) => Ok(()),
        Some(false) => Err(problem(path, format!("is not {wanted}, as its type {kind} asks"))),
        None => Err(problem(path, format!("does not exist, and its type {kind} does not create it"))),
    }
}

fn problem(path: &Path, problem: String) -> VolumeError {
    VolumeError::HostPath { path: path.to_path_buf(), problem }
}

fn make_dir(path: &Path) -> Result<(), VolumeError> {
    DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(|source| VolumeError::Io {
        action: "make folder",
        path: path.to_path_buf(),
        source,
    })
}

/// The parent must exist: only the file itself is created (API).
fn make_file(path: &Path) -> Result<(), VolumeError> {
    match OpenOptions::new().write(true).create_new(true).mode(0o644).open(path) {
        Ok(_) => Ok(()),
        // Made by another pod of the same hostPath in between: just as good.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(VolumeError::Io { action: "create", path: path.to_path_buf(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_takes_what_it_says_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        std::fs::create_dir(at("dir")).unwrap();
        std::fs::write(at("file"), "").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("sock")).unwrap();
        let cases = [
            ("", "missing", true),
            ("Directory", "dir", true),
            ("Directory", "file", false),
            ("Directory", "missing", false),
            ("File", "file", true),
            ("File", "dir", false),
            ("Socket", "sock", true),
            ("Socket", "file", false),
            ("CharDevice", "file", false),
            ("BlockDevice", "missing", false),
            ("DirectoryOrCreate", "new/deep", true),
            ("DirectoryOrCreate", "file", false),
            ("FileOrCreate", "dir/new", true),
            ("FileOrCreate", "nowhere/new", false),
            ("Nonsense", "file", false),
        ];
        for (kind, name, fits) in cases {
            let result = check(&at(name), kind);
            assert_eq!(result.is_ok(), fits, "{kind} on {name}: {result:?}");
        }
        assert!(at("new/deep").is_dir() && at("dir/new").is_file());
        assert!(check(Path::new("/dev/null"), "CharDevice").is_ok());
        let error = check(&at("missing"), "Directory").unwrap_err().to_string();
        assert!(error.contains("does not exist"), "{error}");
    }
}
