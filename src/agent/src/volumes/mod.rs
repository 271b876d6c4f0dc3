//! What a pod has on the node's disk: its folder, volumes, subPath binds, hosts file, termination
//! logs (layout of kubelet-surface B8, so that a kubelet's pods are adopted and the reverse).
//! Executes [`VolumeAction`]s; which volume is wanted with which content is decided in `core`.
//!
//! All functions block on the file system: call them from a blocking thread. All are idempotent.

mod dir;
mod empty_dir;
mod host_path;
mod mount_table;
mod publish;
mod sub_path;
mod usage;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use longshore_core::ids::{ContainerName, PodUid};
use longshore_core::pod::step::{StepError, SubPathMount, VolumeAction, VolumeSource};

pub use dir::Dir;
pub use mount_table::KernelMounts;
pub use usage::disk_usage;

/// Why something on disk could not be set up or released.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("{action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is no path a volume may have below its own folder")]
    BadPath { path: PathBuf },
    #[error("{path} is a mount point: it is left alone, and so is what is below it")]
    MountedBelow { path: PathBuf },
    #[error("{path} is nested too deep to be removed; remove it by hand")]
    TooDeep { path: PathBuf },
    #[error("hostPath {path} {problem}")]
    HostPath { path: PathBuf, problem: String },
    #[error("subPath {sub_path:?} of {volume}")]
    SubPath {
        sub_path: String,
        volume: PathBuf,
        #[source]
        source: Box<VolumeError>,
    },
}

impl VolumeError {
    fn io(action: &'static str, path: &Path, errno: rustix::io::Errno) -> Self {
        Self::Io { action, path: path.to_path_buf(), source: errno.into() }
    }

    /// The kind of the file system's answer, where there was one.
    pub fn kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Io { source, .. } => Some(source.kind()),
            Self::SubPath { source, .. } => source.kind(),
            _ => None,
        }
    }

    /// In the words pods' conditions and events use. Everything may mend itself when somebody frees
    /// space or creates the path, so it is worth another try; a bad path never is.
    pub fn to_step_error(&self) -> StepError {
        let mut message = crate::text::error_chain(self);
        if matches!(self.kind(), Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)) {
            message.push_str("; free space there, what was published before is kept");
        }
        StepError { reason: "FailedMount".into(), message, retryable: !matches!(self, Self::BadPath { .. }) }
    }
}

/// What volumes need of the mount table. The calls block.
pub trait Mounts: Send + Sync + std::fmt::Debug {
    /// Whether something is mounted exactly at this path.
    fn is_mount_point(&self, path: &Path) -> io::Result<bool>;
    /// Mounts an empty tmpfs, `noswap` where the kernel can; `size` in bytes.
    fn mount_tmpfs(&self, target: &Path, size: Option<u64>) -> io::Result<()>;
    /// Binds the opened file or folder onto `target`, which exists and has the same type.
    fn bind(&self, source: BorrowedFd<'_>, target: &Path, readonly: bool) -> io::Result<()>;
    /// Takes off the topmost mount at exactly this path.
    fn unmount(&self, target: &Path) -> io::Result<()>;
}

/// Sets up and releases what pods have below `<root>/pods/<uid>`.
#[derive(Clone, Debug)]
pub struct Volumes {
    root: PathBuf,
    mounts: Arc<dyn Mounts>,
}

/// Content of `emptyDir` and friends is the pod's business; only the way there is closed.
const POD_FOLDER_MODE: u32 = 0o750;

impl Volumes {
    /// `root` is the daemon's root folder (`/var/lib/kubelet`); it must exist.
    pub fn new(root: PathBuf, mounts: Arc<dyn Mounts>) -> Self {
        Self { root, mounts }
    }

    /// `<root>/pods/<uid>` with its fixed folders, and one folder per container.
    pub fn prepare_pod_dirs(&self, uid: &PodUid, containers: &[ContainerName]) -> Result<(), VolumeError> {
        let pod = self.pods()?.ensure_child(uid.as_str(), POD_FOLDER_MODE)?;
        pod.make_child("volumes", POD_FOLDER_MODE)?;
        pod.make_child("plugins", POD_FOLDER_MODE)?;
        let folder = pod.ensure_child("containers", POD_FOLDER_MODE)?;
        for container in containers {
            folder.make_child(container.as_str(), POD_FOLDER_MODE)?;
        }
        Ok(())
    }

    /// The hosts file the pod's containers share. Written in place when it exists: containers have
    /// bound that very file and would not see a renamed one.
    pub fn write_hosts(&self, uid: &PodUid, content: &str) -> Result<(), VolumeError> {
        let pod = self.pods()?.child(uid.as_str())?;
        match pod.read("etc-hosts")? {
            Some(old) if old == content.as_bytes() => Ok(()),
            Some(_) => overwrite(&pod, "etc-hosts", content.as_bytes()),
            None => pod.write_new("etc-hosts", content.as_bytes(), 0o644, None),
        }
    }

    /// Creates the file a container's termination message goes to, world-writable as any user in
    /// the container may write it.
    pub fn create_termination_log(&self, path: &Path) -> Result<(), VolumeError> {
        let (parent, name) = self.parent_of(path)?;
        match parent.stat_of(&name)? {
            Some(_) => Ok(()),
            None => parent.write_new(&name, b"", 0o666, None),
        }
    }

    /// Sets up one volume, or brings its content up to date.
    pub fn prepare(&self, action: &VolumeAction, now: Timestamp) -> Result<(), VolumeError> {
        match &action.source {
            VolumeSource::HostPath { kind } => host_path::check(&action.path, kind),
            VolumeSource::EmptyDir => {
                let dir = self.volume_dir(&action.path, 0o777)?;
                empty_dir::share_with_group(&dir, action.fs_group)
            }
            VolumeSource::EmptyDirMemory { size } => {
                let dir = self.volume_dir(&action.path, 0o777)?;
                self.ensure_tmpfs(&action.path, *size)?;
                // The mount hides the folder opened before it.
                drop(dir);
                let dir = self.volume_dir(&action.path, 0o777)?;
                dir.set_mode(0o777)?;
                empty_dir::share_with_group(&dir, action.fs_group)
            }
            VolumeSource::Files { files, in_memory } => {
                let mut dir = self.volume_dir(&action.path, 0o755)?;
                if *in_memory {
                    self.ensure_tmpfs(&action.path, None)?;
                    dir = self.volume_dir(&action.path, 0o755)?;
                    dir.set_mode(0o755)?;
                }
                publish::publish(&dir, files, action.fs_group, now).map(|_| ())
            }
        }
    }

    /// Binds a path inside a volume to where the container's mount takes it from.
    pub fn bind_sub_path(&self, mount: &SubPathMount) -> Result<(), VolumeError> {
        let (parent, name) = self.parent_of(&mount.target)?;
        sub_path::bind(&*self.mounts, mount, &parent, &name).map_err(|source| VolumeError::SubPath {
            sub_path: mount.sub_path.clone(),
            volume: mount.volume_path.clone(),
            source: Box::new(source),
        })
    }

    /// Takes a volume's mounts off, subPath binds first, then removes its folder.
    pub fn release(&self, uid: &PodUid, volume: &str) -> Result<(), VolumeError> {
        let Some(pod) = self.pods()?.child_if_there(uid.as_str())? else { return Ok(()) };
        if let Some(binds) = pod.child_if_there("volume-subpaths")?
            && let Some(of_volume) = binds.child_if_there(volume)?
        {
            self.unmount_children(&of_volume, 2)?;
            binds.remove_tree(volume)?;
        }
        let Some(volumes) = pod.child_if_there("volumes")? else { return Ok(()) };
        for plugin in volumes.names()? {
            let plugin = volumes.child(&plugin)?;
            if plugin.stat_of(volume)?.is_some() {
                self.unmount_all(&plugin.path().join(volume))?;
                plugin.remove_tree(volume)?;
            }
        }
        Ok(())
    }

    /// Removes the pod's folder. Fails, removing nothing below it, where something is still mounted.
    pub fn remove_pod_dirs(&self, uid: &PodUid) -> Result<(), VolumeError> {
        let pods = self.pods()?;
        let Some(pod) = pods.child_if_there(uid.as_str())? else { return Ok(()) };
        if let Some(binds) = pod.child_if_there("volume-subpaths")? {
            self.unmount_children(&binds, 3)?;
        }
        if let Some(volumes) = pod.child_if_there("volumes")? {
            self.unmount_children(&volumes, 2)?;
        }
        pods.remove_tree(uid.as_str())
    }

    /// Names in the folder of all pods: uids, whether or not anything wants them, and what else
    /// somebody put there.
    pub fn pods_on_disk(&self) -> Result<Vec<String>, VolumeError> {
        self.pods()?.names()
    }

    /// Volumes and subPath binds a pod has on disk, by volume.
    pub fn volumes_on_disk(&self, uid: &PodUid) -> Result<BTreeSet<String>, VolumeError> {
        let mut found = BTreeSet::new();
        let Some(pod) = self.pods()?.child_if_there(uid.as_str())? else { return Ok(found) };
        if let Some(binds) = pod.child_if_there("volume-subpaths")? {
            found.extend(binds.names()?);
        }
        if let Some(volumes) = pod.child_if_there("volumes")? {
            for plugin in volumes.names()? {
                found.extend(volumes.child(&plugin)?.names()?);
            }
        }
        Ok(found)
    }

    fn pods(&self) -> Result<Dir, VolumeError> {
        Dir::open(&self.root)?.ensure_child("pods", POD_FOLDER_MODE)
    }

    /// Opens (making it where needed) a folder below the root, `mode` applying to a new last one.
    fn volume_dir(&self, path: &Path, mode: u32) -> Result<Dir, VolumeError> {
        let (parent, name) = self.parent_of(path)?;
        parent.ensure_child(&name, mode)
    }

    /// The parent folder of a path below the root, made where it is missing, and the last name.
    fn parent_of(&self, path: &Path) -> Result<(Dir, String), VolumeError> {
        let bad = || VolumeError::BadPath { path: path.to_path_buf() };
        let below = path.strip_prefix(&self.root).map_err(|_| bad())?;
        if !below.components().all(|c| matches!(c, Component::Normal(_))) {
            return Err(bad());
        }
        let name = below.file_name().and_then(|n| n.to_str()).ok_or_else(bad)?.to_owned();
        let root = Dir::open(&self.root)?;
        let parent = match below.parent().filter(|p| !p.as_os_str().is_empty()) {
            Some(parent) => root.ensure_path(parent, POD_FOLDER_MODE)?,
            None => root,
        };
        Ok((parent, name))
    }

    fn ensure_tmpfs(&self, path: &Path, size: Option<u64>) -> Result<(), VolumeError> {
        let failed = |source| VolumeError::Io { action: "mount tmpfs on", path: path.to_path_buf(), source };
        if self.mounts.is_mount_point(path).map_err(failed)? {
            return Ok(());
        }
        self.mounts.mount_tmpfs(path, size).map_err(failed)
    }

    /// Takes off every mount stacked at exactly this path.
    fn unmount_all(&self, path: &Path) -> Result<(), VolumeError> {
        let failed = |source| VolumeError::Io { action: "unmount", path: path.to_path_buf(), source };
        while self.mounts.is_mount_point(path).map_err(failed)? {
            self.mounts.unmount(path).map_err(failed)?;
        }
        Ok(())
    }

    /// Unmounts what is mounted up to `depth` levels below a folder of ours, deepest last: a mount
    /// hides what it covers, so it goes before anything below is looked at.
    fn unmount_children(&self, dir: &Dir, depth: u32) -> Result<(), VolumeError> {
        for name in dir.names()? {
            self.unmount_all(&dir.path().join(&name))?;
            let is_dir = dir.stat_of(&name)?.is_some_and(|s| {
                rustix::fs::FileType::from_raw_mode(s.st_mode) == rustix::fs::FileType::Directory
            });
            if depth > 1 && is_dir {
                self.unmount_children(&dir.child(&name)?, depth - 1)?;
            }
        }
        Ok(())
    }
}

fn overwrite(dir: &Dir, name: &str, data: &[u8]) -> Result<(), VolumeError> {
    use rustix::fs::{Mode, OFlags};
    let path = dir.path().join(name);
    let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd =
        rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(|e| VolumeError::io("open", &path, e))?;
    io::Write::write_all(&mut std::fs::File::from(fd), data).map_err(|source| VolumeError::Io {
        action: "write",
        path,
        source,
    })
}

#[cfg(test)]
mod tests;
