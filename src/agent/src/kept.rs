//! Small files of the daemon's own that keep one value from one run to the next, as JSON, replaced whole. What is in
//! them can be done without: a file that is gone or broken is a value of nothing. Pods' records are in `pods`.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::volumes::{Dir, VolumeError};

/// The value; nothing where there is no such file or it cannot be understood. `what` names it in the log.
pub fn load<T: DeserializeOwned + Default>(path: &Path, what: &str) -> T {
    let Ok(text) = std::fs::read(path) else { return T::default() };
    serde_json::from_slice(&text).unwrap_or_else(|error| {
        tracing::warn!(%error, path = %path.display(), "{what} is not readable and is skipped");
        T::default()
    })
}

/// Replaces the file whole, mode 0600: secrets may be in it.
///
/// # Errors
/// With the path, where the folder is not there or the file cannot be written.
pub fn save<T: Serialize + ?Sized>(path: &Path, value: &T) -> Result<(), VolumeError> {
    let failed = |source| VolumeError::Io { action: "encode", path: path.to_path_buf(), source };
    let text = serde_json::to_vec(value).map_err(|error| failed(error.into()))?;
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Err(VolumeError::BadPath { path: path.to_path_buf() });
    };
    Dir::open(folder)?.replace(name, &text, 0o600)
}
