//! What to do for each volume of a pod, as values: where it lives, what it is made of, which files
//! it publishes and the hash that tells whether they changed. Mounting and writing is the agent's.

pub mod files;
pub mod limits;

use std::collections::BTreeMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Volume};
use sha2::{Digest, Sha256};

use crate::pod::containers;
use crate::pod::refs::RefError;
use crate::pod::snapshot::PodSnapshot;
use crate::pod::step::{VolumeAction, VolumeSource};
use crate::resources::quantity::amount;

/// Kinds of volumes this version sets up.
pub const SUPPORTED: &[&str] = &["emptyDir", "hostPath", "configMap", "secret", "downwardAPI", "projected"];

/// The names of the sources a volume gives, as the API spells them; exactly one is right.
pub fn source_name(volume: &Volume) -> Vec<String> {
    // The API type has one optional field per source; its JSON form lists those that are given.
    match serde_json::to_value(volume) {
        Ok(serde_json::Value::Object(fields)) => {
            fields.keys().filter(|key| *key != "name").cloned().collect()
        }
        _ => Vec::new(),
    }
}

/// Folder of a pod below the agent's root (kubelet-surface B8).
pub fn pod_dir(snapshot: &PodSnapshot<'_>) -> PathBuf {
    snapshot.node.root_dir.join("pods").join(snapshot.desired.uid.as_str())
}

/// What to do for one volume, or what it waits for.
pub fn action(snapshot: &PodSnapshot<'_>, volume: &Volume) -> Result<VolumeAction, RefError> {
    let source = source(snapshot, volume)?;
    placed(snapshot, volume, source).ok_or_else(|| unsupported(volume))
}

/// A volume as it stands, without what it publishes: where it is, for mounts.
pub fn published_action(snapshot: &PodSnapshot<'_>, volume: &Volume) -> Option<VolumeAction> {
    placed(snapshot, volume, VolumeSource::Files { files: Vec::new(), in_memory: false })
}

/// `None` for a kind that is not supported.
fn placed(snapshot: &PodSnapshot<'_>, volume: &Volume, source: VolumeSource) -> Option<VolumeAction> {
    let path = match &volume.host_path {
        Some(host) => PathBuf::from(&host.path),
        None => {
            let plugin = format!("kubernetes.io~{}", plugin(volume)?);
            pod_dir(snapshot).join("volumes").join(plugin).join(&volume.name)
        }
    };
    let security = containers::spec(&snapshot.desired.pod).security_context.clone().unwrap_or_default();
    // A folder of the node is never chowned for a pod.
    let fs_group =
        security.fs_group.filter(|_| volume.host_path.is_none()).and_then(|group| u32::try_from(group).ok());
    Some(VolumeAction { volume: volume.name.clone(), path, source, fs_group })
}

/// Name of a kind's folder as the kubelet spells it.
fn plugin(volume: &Volume) -> Option<&'static str> {
    let kinds = [
        ("empty-dir", volume.empty_dir.is_some()),
        ("configmap", volume.config_map.is_some()),
        ("secret", volume.secret.is_some()),
        ("downward-api", volume.downward_api.is_some()),
        ("projected", volume.projected.is_some()),
    ];
    kinds.into_iter().find(|(_, given)| *given).map(|(name, _)| name)
}

fn source(snapshot: &PodSnapshot<'_>, volume: &Volume) -> Result<VolumeSource, RefError> {
    if let Some(host) = &volume.host_path {
        return Ok(VolumeSource::HostPath { kind: host.type_.clone().unwrap_or_default() });
    }
    if let Some(empty) = &volume.empty_dir {
        return Ok(empty_dir(empty));
    }
    let found = files::published(snapshot, volume)?.ok_or_else(|| unsupported(volume))?;
    Ok(VolumeSource::Files { files: found.files, in_memory: found.in_memory })
}

fn unsupported(volume: &Volume) -> RefError {
    let sources = source_name(volume);
    let kind = sources.first().map_or("a volume without source", String::as_str);
    RefError::Invalid {
        user: format!("volume {}", volume.name),
        problem: format!("{kind} is not supported; use one of {}", SUPPORTED.join(", ")),
    }
}

fn empty_dir(source: &EmptyDirVolumeSource) -> VolumeSource {
    if source.medium.as_deref() != Some("Memory") {
        return VolumeSource::EmptyDir;
    }
    let size =
        source.size_limit.as_ref().and_then(|limit| amount(limit).ok()).map(|limit| limit.unsigned_value());
    VolumeSource::EmptyDirMemory { size: size.filter(|size| *size > 0) }
}

/// What each volume of a pod is to publish, as the identity of its content, or why it cannot be made. It follows
/// from the pod, the objects it refers to and the node alone: whoever plans often works it out once per change of
/// one of these and hands it to the plans between ([`PodSnapshot::contents`]), so that no plan reads the objects'
/// data again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeContents(BTreeMap<String, Result<u64, RefError>>);

impl VolumeContents {
    /// Of the pod as it is wanted now.
    pub fn of(snapshot: &PodSnapshot<'_>) -> Self {
        let spec = containers::spec(&snapshot.desired.pod);
        let content = |volume: &Volume| action(snapshot, volume).map(|action| content_hash(&action));
        let volumes = spec.volumes.iter().flatten();
        Self(volumes.map(|volume| (volume.name.clone(), content(volume))).collect())
    }

    /// Whether the volume is to publish just this.
    pub fn is(&self, volume: &str, content: u64) -> bool {
        self.0.get(volume).is_some_and(|wanted| *wanted == Ok(content))
    }
}

/// Identity of a volume's published content; 0 for volumes without content of their own.
pub fn content_hash(action: &VolumeAction) -> u64 {
    let VolumeSource::Files { files, .. } = &action.source else { return 0 };
    let mut hasher = Sha256::new();
    for file in files {
        hasher.update((file.path.len() as u64).to_le_bytes());
        hasher.update(file.path.as_bytes());
        hasher.update(file.mode.to_le_bytes());
        hasher.update((file.data.len() as u64).to_le_bytes());
        hasher.update(&file.data);
    }
    let digest = hasher.finalize();
    let mut head = [0u8; 8];
    head.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(head).max(1)
}
