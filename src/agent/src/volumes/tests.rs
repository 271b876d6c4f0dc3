//! The whole of a pod's folder on a temporary disk, with a mount table that only remembers.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;

use longshore_core::pod::step::VolumeFile;

use super::*;

/// Remembers what is mounted where; refuses what the kernel refuses.
#[derive(Debug, Default)]
struct MountTable(Mutex<BTreeSet<PathBuf>>);

impl Mounts for MountTable {
    fn is_mount_point(&self, path: &Path) -> io::Result<bool> {
        Ok(self.0.lock().unwrap().contains(path))
    }
    fn mount_tmpfs(&self, target: &Path, _size: Option<u64>) -> io::Result<()> {
        std::fs::metadata(target)?;
        self.0.lock().unwrap().insert(target.to_path_buf());
        Ok(())
    }
    fn bind(&self, _source: BorrowedFd<'_>, target: &Path, _readonly: bool) -> io::Result<()> {
        std::fs::metadata(target)?;
        self.0.lock().unwrap().insert(target.to_path_buf());
        Ok(())
    }
    fn unmount(&self, target: &Path) -> io::Result<()> {
        match self.0.lock().unwrap().remove(target) {
            true => Ok(()),
            false => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

struct World {
    root: tempfile::TempDir,
    table: Arc<MountTable>,
    volumes: Volumes,
    uid: PodUid,
}

impl World {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let table = Arc::new(MountTable::default());
        let volumes = Volumes::new(root.path().to_path_buf(), table.clone());
        Self { root, table, volumes, uid: PodUid::from("u1") }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.root.path().join("pods/u1").join(below)
    }

    fn prepare(&self, below: &str, source: VolumeSource) -> Result<(), VolumeError> {
        let name = below.rsplit('/').next().unwrap().to_owned();
        let action = VolumeAction { volume: name, path: self.path(below), source, fs_group: None };
        self.volumes.prepare(&action, Timestamp::UNIX_EPOCH)
    }

    fn mounted(&self) -> usize {
        self.table.0.lock().unwrap().len()
    }
}

#[test]
fn a_pod_leaves_nothing_behind() {
    let world = World::new();
    world.volumes.prepare_pod_dirs(&world.uid, &[ContainerName::from("web")]).unwrap();
    world.prepare("volumes/kubernetes.io~empty-dir/scratch", VolumeSource::EmptyDir).unwrap();
    world
        .prepare("volumes/kubernetes.io~empty-dir/ram", VolumeSource::EmptyDirMemory { size: Some(1 << 20) })
        .unwrap();
    let files = vec![VolumeFile { path: "key".into(), mode: 0o400, data: b"k".to_vec() }];
    world
        .prepare("volumes/kubernetes.io~secret/tls", VolumeSource::Files { files, in_memory: true })
        .unwrap();
    world.volumes.create_termination_log(&world.path("containers/web/abcdef01")).unwrap();
    world.volumes.write_hosts(&world.uid, "127.0.0.1 localhost\n").unwrap();
    let sub = SubPathMount {
        volume_path: world.path("volumes/kubernetes.io~secret/tls"),
        sub_path: "key".into(),
        target: world.path("volume-subpaths/tls/web/0"),
        readonly: true,
    };
    world.volumes.bind_sub_path(&sub).unwrap();
    assert_eq!(world.mounted(), 3);
    let mode = |p: &str| std::fs::metadata(world.path(p)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("volumes/kubernetes.io~empty-dir/scratch"), 0o777);
    assert_eq!(mode("containers/web/abcdef01"), 0o666);
    assert_eq!(mode(""), 0o750);

    for volume in ["scratch", "ram", "tls", "never-there"] {
        world.volumes.release(&world.uid, volume).unwrap();
        world.volumes.release(&world.uid, volume).unwrap();
    }
    assert_eq!(world.mounted(), 0);
    world.volumes.remove_pod_dirs(&world.uid).unwrap();
    world.volumes.remove_pod_dirs(&world.uid).unwrap();
    assert!(world.volumes.pods_on_disk().unwrap().is_empty());
}

#[test]
fn preparing_again_changes_nothing() {
    let world = World::new();
    world.volumes.prepare_pod_dirs(&world.uid, &[]).unwrap();
    for _ in 0..2 {
        world
            .prepare("volumes/kubernetes.io~empty-dir/ram", VolumeSource::EmptyDirMemory { size: None })
            .unwrap();
        std::fs::write(world.path("volumes/kubernetes.io~empty-dir/ram/of-the-pod"), "data").unwrap();
        world.prepare("volumes/kubernetes.io~empty-dir/scratch", VolumeSource::EmptyDir).unwrap();
    }
    assert_eq!(world.mounted(), 1);
    assert!(world.path("volumes/kubernetes.io~empty-dir/ram/of-the-pod").exists());
}

#[test]
fn the_hosts_file_keeps_its_inode() {
    use std::os::unix::fs::MetadataExt;
    let world = World::new();
    world.volumes.prepare_pod_dirs(&world.uid, &[]).unwrap();
    world.volumes.write_hosts(&world.uid, "one\n").unwrap();
    let before = std::fs::metadata(world.path("etc-hosts")).unwrap().ino();
    world.volumes.write_hosts(&world.uid, "two and longer\n").unwrap();
    world.volumes.write_hosts(&world.uid, "3\n").unwrap();
    assert_eq!(std::fs::metadata(world.path("etc-hosts")).unwrap().ino(), before);
    assert_eq!(std::fs::read_to_string(world.path("etc-hosts")).unwrap(), "3\n");
}

#[test]
fn paths_outside_the_root_are_refused() {
    let world = World::new();
    world.volumes.prepare_pod_dirs(&world.uid, &[]).unwrap();
    assert!(world.prepare("volumes/../../../../etc/x", VolumeSource::EmptyDir).is_err());
    assert!(world.volumes.create_termination_log(Path::new("/etc/motd-of-longshore")).is_err());
}

/// A whole disk needs a real file system to be full: the kernel's own /dev/full stands in for it
/// as far as the message goes.
#[test]
fn a_full_disk_is_said_in_words() {
    let error = VolumeError::Io {
        action: "write",
        path: "/r/pods/u1/v".into(),
        source: io::Error::from(rustix::io::Errno::NOSPC),
    };
    let step = error.to_step_error();
    assert!(step.message.starts_with("write /r/pods/u1/v: "), "{}", step.message);
    assert!(step.message.contains("free space"), "{}", step.message);
    assert!(step.retryable);
}
