//! What was downloaded or built for the nodes, kept outside the clone by content hash, so that a second run takes
//! seconds. An entry is complete or absent: it is built beside its place and renamed.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

/// How many entries of one name are kept; older ones belong to recipes nobody uses any more.
const KEPT: usize = 3;

/// `${LONGSHORE_CACHE:-~/.cache/longshore}`.
///
/// # Errors
/// Where neither that nor HOME is set, or the folder cannot be made.
pub fn dir() -> Result<PathBuf> {
    let dir = match env::var_os("LONGSHORE_CACHE") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(env::var_os("HOME").context("neither LONGSHORE_CACHE nor HOME is set")?)
            .join(".cache/longshore"),
    };
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

/// The key of an entry: 16 hex digits over everything that decides its content.
pub fn key(parts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        let part = part.as_ref();
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The entry `NAME-KEY`, built first where it is absent. `build` gets the path to make (a file or a folder).
/// A second process waits for the first.
///
/// # Errors
/// What `build` says; nothing is left in the entry's place then.
pub fn entry(name: &str, key: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let dir = dir()?;
    let path = dir.join(format!("{name}-{key}"));
    let lock = File::create(dir.join(format!("{name}.lock")))?;
    let _held = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .context("cannot lock the cache")?;
    if !path.exists() {
        let part = dir.join(format!("{name}-{key}.part"));
        remove(&part)?;
        build(&part).with_context(|| format!("cannot build {name}"))?;
        fs::rename(&part, &path).with_context(|| format!("{name} was not built"))?;
        forget_old(&dir, name, &path)?;
    }
    // Used entries are the young ones.
    if let Ok(file) = File::open(&path) {
        file.set_modified(SystemTime::now()).or_else(|e| if path.is_dir() { Ok(()) } else { Err(e) })?;
    }
    Ok(path)
}

fn remove(path: &Path) -> Result<()> {
    let result = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn forget_old(dir: &Path, name: &str, keep: &Path) -> Result<()> {
    let is_entry = |path: &PathBuf| {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        file.strip_prefix(&format!("{name}-")).is_some_and(|key| key.len() == 16)
    };
    let mut entries: Vec<(SystemTime, PathBuf)> = fs::read_dir(dir)?
        .flatten()
        .map(|e| e.path())
        .filter(|p| p != keep && is_entry(p))
        .filter_map(|p| Some((p.metadata().ok()?.modified().ok()?, p)))
        .collect();
    entries.sort();
    let surplus = (entries.len() + 1).saturating_sub(KEPT);
    entries.iter().take(surplus).try_for_each(|(_, path)| remove(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_depends_on_every_part_and_its_borders() {
        assert_eq!(key(["ab", "c"]), key(["ab", "c"]));
        assert_ne!(key(["ab", "c"]), key(["a", "bc"]));
        assert_eq!(key(["a"]).len(), 16);
    }
}
