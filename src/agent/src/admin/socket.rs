//! The admin socket's file: made by one daemon only, readable by root only, never left stale.
//! What is said over it is not known here.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};

/// Why the admin socket could not be made.
#[derive(Debug, Error)]
pub enum AdminError {
    /// Another daemon holds the lock or answers on the socket.
    #[error("another longshore agent is running on {path}; stop it first (systemctl stop longshore)")]
    InUse { path: PathBuf },
    /// There is a file that is not a socket; it is not ours to delete.
    #[error("{path} exists and is not a socket; remove it or choose another path")]
    NotASocket { path: PathBuf },
    #[error("cannot {action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Which users the daemon answers (SO_PEERCRED, unix(7)). The file's mode refuses others already;
/// this holds where a bind mount or a chmod opened the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerPolicy {
    pub allowed_uid: u32,
}

impl Default for PeerPolicy {
    /// Root only.
    fn default() -> Self {
        Self { allowed_uid: 0 }
    }
}

/// A bound admin socket. Dropping it removes the file and frees the lock.
#[derive(Debug)]
pub struct AdminSocket {
    path: PathBuf,
    listener: UnixListener,
    policy: PeerPolicy,
    /// Held as long as the daemon lives: the only race-free sign that the socket is in use.
    _lock: Flock<File>,
}

impl AdminSocket {
    /// Binds `path` with mode 0600; the folder is made with mode 0750 where it is missing.
    /// A socket left by a daemon that was killed is replaced; a live one is refused.
    pub async fn bind(path: &Path, policy: PeerPolicy) -> Result<Self, AdminError> {
        let failed = |action, source| AdminError::Io { action, path: path.to_path_buf(), source };
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o750)
                .create(folder)
                .map_err(|e| failed("make the folder of", e))?;
        }
        let lock = lock_beside(path)?;
        clear_stale(path).await?;
        // Bound under a private name and renamed when its mode is right: there is no moment at which
        // another user can connect.
        let private = beside(path, "new");
        match std::fs::remove_file(&private) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("clear the way for", error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&private).map_err(|e| failed("bind", e))?;
        std::fs::set_permissions(&private, Permissions::from_mode(0o600))
            .map_err(|e| failed("set the mode of", e))?;
        std::fs::rename(&private, path).map_err(|e| failed("move into place", e))?;
        Ok(Self { path: path.to_path_buf(), listener, policy, _lock: lock })
    }

    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }

    /// Why the peer of this connection gets no answer; None where it may ask.
    pub(super) fn refusal(&self, stream: &UnixStream) -> Option<String> {
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == self.policy.allowed_uid => None,
            Ok(peer) => Some(format!(
                "user id {} may not use the admin socket, only user id {} may",
                peer.uid(),
                self.policy.allowed_uid
            )),
            Err(error) => Some(format!("the peer's user id cannot be read: {error}")),
        }
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        // The lock file stays: removing it would let two daemons lock two different files.
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "admin socket was gone already");
        }
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

fn lock_beside(path: &Path) -> Result<Flock<File>, AdminError> {
    let lock_path = beside(path, "lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&lock_path)
        .map_err(|source| AdminError::Io { action: "open", path: lock_path.clone(), source })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => AdminError::InUse { path: path.to_path_buf() },
        other => AdminError::Io { action: "lock", path: lock_path, source: other.into() },
    })
}

/// Nothing answers on a stale socket. One that answers belongs to a daemon we share no lock with.
async fn clear_stale(path: &Path) -> Result<(), AdminError> {
    let kind = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(AdminError::Io { action: "look at", path: path.to_path_buf(), source }),
    };
    if !kind.is_socket() {
        return Err(AdminError::NotASocket { path: path.to_path_buf() });
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(AdminError::InUse { path: path.to_path_buf() }),
        // The rename over it replaces the stale file in one step.
        Err(_) => Ok(()),
    }
}
