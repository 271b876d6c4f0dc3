//! Certificates on disk, as the kubelet keeps them: one dated file with certificate and key, and a link to
//! the newest that is swapped in one step, so that every reader sees a whole pair. The key of a request
//! under way is kept beside them until its certificate is stored.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use longshore_core::certificates::{CertificateFacts, Purpose, read_certificate};

use super::{CertificateError, Key, read_bounded};

/// The files of one certificate of the node.
#[derive(Clone, Debug)]
pub struct CertificateStore {
    folder: PathBuf,
    purpose: Purpose,
}

impl CertificateStore {
    pub fn new(folder: &Path, purpose: Purpose) -> Self {
        Self { folder: folder.to_owned(), purpose }
    }

    /// The link that always names the newest.
    pub fn current_path(&self) -> PathBuf {
        self.folder.join(format!("{}-current.pem", self.purpose.stem()))
    }

    fn key_path(&self) -> PathBuf {
        self.folder.join(format!("{}.key.tmp", self.purpose.stem()))
    }

    /// The newest certificate; what cannot be used counts as none and is told in the log.
    pub fn current(&self) -> Option<CertificateFacts> {
        let path = self.current_path();
        let bytes = match read_bounded(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the certificate cannot be read");
                return None;
            }
        };
        let facts = read_certificate(&bytes).and_then(|facts| match holds_key(&bytes) {
            true => Ok(facts),
            false => Err("holds no private key".to_owned()),
        });
        facts
            .map_err(
                |problem| tracing::warn!(path = %path.display(), problem, "the certificate is of no use"),
            )
            .ok()
    }

    /// The key of the request under way, or a new one. A daemon that was killed goes on with the same key,
    /// and so with the same request.
    ///
    /// # Errors
    /// Where it cannot be made or stored.
    pub fn key(&self) -> Result<Key, CertificateError> {
        let path = self.key_path();
        let kept = read_bounded(&path).ok().and_then(|pem| Key::read(&pem));
        // One that has its certificate was left by a kill between the two last steps.
        let used = self.current().map(|facts| facts.key_hash);
        if let Some(kept) = kept.filter(|kept| Some(kept.hash()) != used) {
            return Ok(kept);
        }
        let key = Key::generate()?;
        self.make_folder()?;
        write_private(&path, key.pem().as_bytes())?;
        Ok(key)
    }

    /// The request under way has ended: the next one has a key of its own.
    pub fn forget_key(&self) {
        let path = self.key_path();
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "the key of an ended request cannot be removed");
        }
    }

    /// Stores a certificate with its key and makes it the current one.
    ///
    /// # Errors
    /// Where a file cannot be written; the one of before then stays the current one.
    pub fn save(&self, certificate: &[u8], key: &str, now: Timestamp) -> Result<(), CertificateError> {
        self.make_folder()?;
        let mut pair = certificate.to_vec();
        if pair.last() != Some(&b'\n') {
            pair.push(b'\n');
        }
        pair.extend_from_slice(key.as_bytes());
        let path =
            self.folder.join(format!("{}-{}.pem", self.purpose.stem(), now.strftime("%Y-%m-%d-%H-%M-%S")));
        write_private(&path, &pair)?;
        let link = self.current_path();
        let new = self.folder.join(format!(".{}-current.pem.new", self.purpose.stem()));
        let failed = |source| CertificateError::File { what: "swap the link", path: link.clone(), source };
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        symlink(&path, &new).map_err(failed)?;
        fs::rename(&new, &link).map_err(failed)?;
        sync(&self.folder).map_err(failed)
    }

    fn make_folder(&self) -> Result<(), CertificateError> {
        let made = DirBuilder::new().recursive(true).mode(0o755).create(&self.folder);
        made.map_err(|source| CertificateError::File {
            what: "make folder",
            path: self.folder.clone(),
            source,
        })
    }
}

fn holds_key(pem: &[u8]) -> bool {
    String::from_utf8_lossy(pem).contains("PRIVATE KEY-----")
}

/// Writes a file that only root reads.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), CertificateError> {
    let written = write_whole(path, bytes, 0o600);
    written.map_err(|source| CertificateError::File { what: "write", path: path.to_owned(), source })
}

/// Writes a file whole or not at all, with a mode.
///
/// # Errors
/// Where that does not work; what was there then stays.
pub fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    // A bare name has the empty path for a parent, which is the working folder and cannot be opened.
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = folder.join(format!(".{name}.new"));
    // Another's leftover could have another mode.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = write_new(&new, bytes, mode).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        // It may hold half a key; the error of before is the one that says something.
        let _ = fs::remove_file(&new);
    }
    written.and_then(|()| sync(folder))
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    // The creation mask may have taken bits off.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_whole_or_nothing_is_left_of_the_try() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.key");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        write_whole(&path, b"one", 0o644).unwrap();
        // Another's leftover with another mode, and a file of before with a wider one.
        fs::write(folder.path().join(".a.key.new"), "old").unwrap();
        write_whole(&path, b"two", 0o600).unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), mode()), ("two", 0o600));
        // A folder in the place of the file refuses the last step.
        fs::remove_file(&path).unwrap();
        fs::create_dir_all(path.join("below")).unwrap();
        assert!(write_whole(&path, b"three", 0o600).is_err());
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|one| one.unwrap().file_name()).collect();
        assert_eq!(left, ["a.key"]);
    }

    #[test]
    fn a_bare_name_is_written_to_the_working_folder() {
        let name = format!("written-by-a-test-{}", std::process::id());
        let written = write_whole(Path::new(&name), b"x", 0o600);
        let read = fs::read(&name);
        let _ = fs::remove_file(&name);
        written.unwrap();
        assert_eq!(read.unwrap(), b"x");
    }
}
