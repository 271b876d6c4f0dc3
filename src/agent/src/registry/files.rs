//! Docker configuration files of the node, read when an image is pulled: logging in needs no restart.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use longshore_core::image::docker_config::{self, Format, MAX_BYTES};
use longshore_core::image::keyring::Keyring;

use crate::text::error_chain;

/// The files in the order they are looked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Files {
    paths: Arc<Vec<PathBuf>>,
    /// What was said last of a file: the same fault is told once, not with each pull.
    told: Arc<Mutex<HashMap<PathBuf, String>>>,
}

#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("cannot be read")]
    Read(#[source] io::Error),
    #[error(transparent)]
    Fault(#[from] docker_config::ConfigFault),
}

impl Files {
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths: Arc::new(paths), told: Arc::default() }
    }

    /// Of the first file that is there and can be used; empty where none is.
    pub async fn keyring(&self) -> Keyring {
        if self.paths.is_empty() {
            return Keyring::default();
        }
        let files = self.clone();
        let read = tokio::task::spawn_blocking(move || files.first_usable());
        read.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    fn first_usable(&self) -> Keyring {
        for path in &*self.paths {
            let read = read(path);
            self.tell(path, read.as_ref().err());
            if let Ok(Some(keyring)) = read {
                return keyring;
            }
        }
        Keyring::default()
    }

    fn tell(&self, path: &Path, error: Option<&FileError>) {
        let said = error.map(|error| error_chain(error)).unwrap_or_default();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let before = told.insert(path.to_owned(), said.clone()).unwrap_or_default();
        if !said.is_empty() && said != before {
            tracing::warn!(path = %path.display(), problem = said, "registry credentials of the node are left out");
        }
    }
}

/// `None` where there is no such file.
fn read(path: &Path) -> Result<Option<Keyring>, FileError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError::Read(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(FileError::Read)?;
    Ok(Some(docker_config::read(Format::ConfigJson, &bytes)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_file_that_can_be_used_counts_and_is_read_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let files = Files::new(vec![path("a"), path("b")]);
        let user = async || {
            let found = files.keyring().await.fitting("r.io/web");
            found.first().map(|credential| credential.username.clone())
        };
        let entry =
            |user: &str| format!(r#"{{"auths": {{"r.io": {{"username": "{user}", "password": "p"}}}}}}"#);
        assert_eq!(user().await, None);
        std::fs::write(path("b"), entry("b")).unwrap();
        assert_eq!(user().await.as_deref(), Some("b"));
        std::fs::write(path("a"), "{").unwrap();
        assert_eq!(user().await.as_deref(), Some("b"), "a torn file stops nothing");
        std::fs::write(path("a"), entry("a")).unwrap();
        assert_eq!(user().await.as_deref(), Some("a"));
        std::fs::remove_file(path("a")).unwrap();
        std::fs::create_dir(path("a")).unwrap();
        assert_eq!(user().await.as_deref(), Some("b"), "a folder is no file");
    }
}
