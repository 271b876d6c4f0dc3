//! Mounts of a container: its volumes, sub-paths, the hosts file and the termination log
//! (pkg/kubelet/kubelet_pods.go makeMounts).

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};

use crate::pod::env::{Finished, TooLong};
use crate::pod::refs::RefError;
use crate::pod::spec::{ContainerMount, MountPropagation};
use crate::pod::step::{SubPathMount, VolumeAction};

/// Longest path the kernel takes, bytes (PATH_MAX).
const MAX_PATH: usize = 4096;

/// What the mounts of one container are made from.
#[derive(Clone, Copy, Debug)]
pub struct MountInputs<'a> {
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub pod_dir: &'a Path,
    pub volumes: &'a [VolumeAction],
    pub env: &'a [(String, String)],
    /// Number of this instance: each has a termination log of its own.
    pub attempt: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mounts {
    pub mounts: Vec<ContainerMount>,
    pub sub_paths: Vec<SubPathMount>,
    pub termination_log: Option<PathBuf>,
    /// Whether the pod's hosts file is mounted; not where the container mounts its own.
    pub hosts_file: bool,
}

pub fn mounts(inputs: &MountInputs<'_>) -> Result<Mounts, RefError> {
    let mut made = Mounts::default();
    for (index, mount) in inputs.container.volume_mounts.iter().flatten().enumerate() {
        volume_mount(inputs, index, mount, &mut made)?;
    }
    if !made.mounts.iter().any(|mount| mount.container_path == "/etc/hosts") {
        made.mounts.push(plain_mount("/etc/hosts", &inputs.pod_dir.join("etc-hosts")));
        made.hosts_file = true;
    }
    if let Some(at) = inputs.container.termination_message_path.as_deref().filter(|at| !at.is_empty()) {
        let path = termination_log(inputs);
        made.mounts.push(plain_mount(at, &path));
        made.termination_log = Some(path);
    }
    Ok(made)
}

fn plain_mount(at: &str, host: &Path) -> ContainerMount {
    ContainerMount {
        container_path: at.to_owned(),
        host_path: host.to_string_lossy().into_owned(),
        readonly: false,
        recursive_readonly: false,
        selinux_relabel: true,
        propagation: MountPropagation::Private,
    }
}

/// `pods/<uid>/containers/<container>/<8 hex>` (kubelet-surface B8); the number is the instance's,
/// so that doing the step again finds the same file.
fn termination_log(inputs: &MountInputs<'_>) -> PathBuf {
    inputs.pod_dir.join("containers").join(&inputs.container.name).join(format!("{:08x}", inputs.attempt))
}

fn volume_mount(
    inputs: &MountInputs<'_>,
    index: usize,
    mount: &VolumeMount,
    made: &mut Mounts,
) -> Result<(), RefError> {
    let user = format!("mount {} of container {}", mount.mount_path, inputs.container.name);
    let Some(volume) = inputs.volumes.iter().find(|volume| volume.volume == mount.name) else {
        let problem = format!("the pod has no volume {}", mount.name);
        return Err(RefError::Invalid { user, problem });
    };
    let readonly = mount.read_only.unwrap_or(false);
    let host_path = match sub_path(inputs, mount, &user)? {
        None => volume.path.clone(),
        Some(sub_path) => {
            let target = inputs
                .pod_dir
                .join("volume-subpaths")
                .join(&mount.name)
                .join(&inputs.container.name)
                .join(index.to_string());
            let volume_path = volume.path.clone();
            made.sub_paths.push(SubPathMount { volume_path, sub_path, target: target.clone(), readonly });
            target
        }
    };
    made.mounts.push(ContainerMount {
        container_path: absolute(&mount.mount_path),
        host_path: host_path.to_string_lossy().into_owned(),
        readonly,
        recursive_readonly: readonly && mount.recursive_read_only.as_deref() == Some("Enabled"),
        selinux_relabel: true,
        propagation: match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => MountPropagation::HostToContainer,
            Some("Bidirectional") => MountPropagation::Bidirectional,
            _ => MountPropagation::Private,
        },
    });
    Ok(())
}

/// A relative mount path counts from the container's root.
fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

/// subPath, or subPathExpr after expansion; refused where it would leave the volume.
fn sub_path(inputs: &MountInputs<'_>, mount: &VolumeMount, user: &str) -> Result<Option<String>, RefError> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let path = match (given(&mount.sub_path), given(&mount.sub_path_expr)) {
        (Some(path), _) => path,
        (None, Some(expression)) => {
            let long = |TooLong| RefError::Invalid {
                user: user.to_owned(),
                problem: format!("its sub-path has more than {MAX_PATH} bytes"),
            };
            Finished::new(inputs.env).expand(&expression, MAX_PATH).map_err(long)?
        }
        (None, None) => return Ok(None),
    };
    if path.starts_with('/') || path.split('/').any(|part| part == "..") || path.contains("$(") {
        let problem =
            format!("sub-path {path:?} must be relative, without '..' and with known variables only");
        return Err(RefError::Invalid { user: user.to_owned(), problem });
    }
    Ok(Some(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::step::VolumeSource;
    use serde_json::json;

    fn made(container: serde_json::Value) -> Result<Mounts, RefError> {
        let container: Container = serde_json::from_value(container).unwrap();
        let volumes = [VolumeAction {
            volume: "data".to_owned(),
            path: PathBuf::from("/pods/u/volumes/kubernetes.io~empty-dir/data"),
            source: VolumeSource::EmptyDir,
            fs_group: None,
        }];
        let env = [("NAME".to_owned(), "web".to_owned()), ("BAD".to_owned(), "../x".to_owned())];
        mounts(&MountInputs {
            pod: &Pod::default(),
            container: &container,
            pod_dir: Path::new("/pods/u"),
            volumes: &volumes,
            env: &env,
            attempt: 3,
        })
    }

    #[test]
    fn mounts_volumes_sub_paths_and_own_files() {
        let made =
            made(json!({"name": "c", "terminationMessagePath": "/dev/termination-log", "volumeMounts": [
            {"name": "data", "mountPath": "/data", "readOnly": true, "mountPropagation": "HostToContainer"},
            {"name": "data", "mountPath": "sub", "subPathExpr": "logs/$(NAME)"}]}))
            .unwrap();
        let paths: Vec<(&str, &str)> = made
            .mounts
            .iter()
            .map(|mount| (mount.container_path.as_str(), mount.host_path.as_str()))
            .collect();
        assert_eq!(
            paths,
            [
                ("/data", "/pods/u/volumes/kubernetes.io~empty-dir/data"),
                ("/sub", "/pods/u/volume-subpaths/data/c/1"),
                ("/etc/hosts", "/pods/u/etc-hosts"),
                ("/dev/termination-log", "/pods/u/containers/c/00000003"),
            ]
        );
        assert!(made.mounts[0].readonly);
        assert_eq!(made.mounts[0].propagation, MountPropagation::HostToContainer);
        assert_eq!(made.sub_paths[0].sub_path, "logs/web");
    }

    #[test]
    fn own_hosts_file_wins_and_escapes_are_refused() {
        let own = made(json!({"name": "c", "volumeMounts": [
            {"name": "data", "mountPath": "/etc/hosts", "subPath": "hosts"}]}))
        .unwrap();
        assert!(!own.hosts_file);
        for mount in [
            json!({"name": "data", "mountPath": "/d", "subPathExpr": "$(BAD)"}),
            json!({"name": "data", "mountPath": "/d", "subPathExpr": "$(NONE)"}),
            json!({"name": "data", "mountPath": "/d", "subPath": "/etc"}),
            json!({"name": "data", "mountPath": "/d", "subPathExpr": "$(NAME)".repeat(2000)}),
            json!({"name": "none", "mountPath": "/d"}),
        ] {
            assert!(made(json!({"name": "c", "volumeMounts": [mount.clone()]})).is_err(), "{mount}");
        }
    }
}
