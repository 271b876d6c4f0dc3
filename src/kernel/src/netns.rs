//! Network namespaces: a namespace is its inode and device, not its path; work inside one happens on a
//! thread made for it, which ends with the work, so that no thread of a pool is left in it.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};

/// What a network namespace is to the kernel. Two paths with the same identity are one namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetNsId {
    /// Device of the nsfs.
    pub device: u64,
    /// Inode within it.
    pub inode: u64,
}

/// Why work in a namespace could not be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetNsError {
    /// The namespace's file could not be opened.
    #[error("open network namespace {}", path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Errno,
    },
    /// The thread could not enter it.
    #[error("enter network namespace {}; this needs CAP_SYS_ADMIN", path.display())]
    Enter {
        /// Its path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Errno,
    },
    /// No new namespace could be made.
    #[error("make a network namespace; this needs CAP_SYS_ADMIN")]
    Make(#[source] Errno),
    /// No thread could be started.
    #[error("start a thread for a network namespace")]
    Thread(#[source] Errno),
    /// The work panicked.
    #[error("the work in a network namespace panicked")]
    Panicked,
}

impl NetNsError {
    /// Whether the same call may well succeed a moment later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, NetNsError::Thread(_))
    }
}

/// An open network namespace; it lives as long as this value, whatever happens to its path.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    path: PathBuf,
    id: NetNsId,
}

impl NetNs {
    /// Open the namespace bound at `path` (`/run/netns/...`, `/proc/<pid>/ns/net`).
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, NetNsError> {
        let path = path.into();
        let fail = |err: std::io::Error, path: &Path| NetNsError::Open {
            path: path.to_owned(),
            source: Errno::from_raw(err.raw_os_error().unwrap_or(0)),
        };
        let file = File::open(&path).map_err(|err| fail(err, &path))?;
        let metadata = file.metadata().map_err(|err| fail(err, &path))?;
        let id = NetNsId { device: metadata.dev(), inode: metadata.ino() };
        Ok(NetNs { file, path, id })
    }

    /// A namespace made for this value, with nothing in it but loopback, down.
    ///
    /// # Errors
    /// [`NetNsError::Make`] without CAP_SYS_ADMIN.
    pub fn new() -> Result<Self, NetNsError> {
        let made = run_in_new(NetNs::current)??;
        // The thread it was opened by is gone; the descriptor is not.
        let path = format!("/proc/{}/fd/{}", std::process::id(), made.file.as_raw_fd()).into();
        Ok(NetNs { path, ..made })
    }

    /// How other programs can name it while this value lives.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The namespace of a process.
    pub fn of_process(pid: u32) -> Result<Self, NetNsError> {
        NetNs::open(format!("/proc/{pid}/ns/net"))
    }

    /// The calling thread's namespace.
    pub fn current() -> Result<Self, NetNsError> {
        NetNs::open("/proc/thread-self/ns/net")
    }

    /// What the kernel knows it by.
    pub fn id(&self) -> NetNsId {
        self.id
    }

    /// Run `work` within the namespace, on a thread of its own, and wait for it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetNsError> {
        on_thread(
            || {
                setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)
                    .map_err(|source| NetNsError::Enter { path: self.path.clone(), source })
            },
            work,
        )
    }
}

/// Run `work` within a network namespace made for it, which goes when the thread and everything opened
/// in it are gone. For probes and tests: nothing done there touches the host.
pub fn run_in_new<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, NetNsError> {
    on_thread(|| unshare(CloneFlags::CLONE_NEWNET).map_err(NetNsError::Make), work)
}

fn on_thread<T: Send>(
    enter: impl FnOnce() -> Result<(), NetNsError> + Send,
    work: impl FnOnce() -> T + Send,
) -> Result<T, NetNsError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, || enter().map(|()| work()))
            .map_err(|err| NetNsError::Thread(Errno::from_raw(err.raw_os_error().unwrap_or(0))))?;
        thread.join().map_err(|_| NetNsError::Panicked)?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_known_by_its_inode_not_its_path() {
        let one = NetNs::current().unwrap();
        let other = NetNs::of_process(std::process::id()).unwrap();
        assert_eq!(one.id(), other.id());
    }

    #[test]
    fn a_missing_namespace_is_named() {
        let err = NetNs::open("/run/netns/no-such").unwrap_err();
        assert_eq!(err.to_string(), "open network namespace /run/netns/no-such");
    }
}
