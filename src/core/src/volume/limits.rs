//! `emptyDir.sizeLimit` on disk: which volumes have one, and what to say of a pod that is over it
//! (pkg/kubelet/eviction, emptyDirLimitEviction). Pure; measuring is the agent's.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;

use crate::resources::container_resources::CRITICAL_PRIORITY;
use crate::resources::quantity::amount;

/// Seconds a pod gets that is over its limit.
pub const GRACE_SECONDS: u32 = 1;

/// A volume that may not grow beyond its limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitedVolume {
    pub name: String,
    pub path: PathBuf,
    pub limit_bytes: u64,
    /// The limit as the pod's author wrote it.
    pub limit: String,
}

/// The volumes of a pod that have a limit nobody but the agent keeps: a tmpfs has its size from the
/// kernel. Critical pods are never ended for their own limit (behaviours 27).
pub fn limited(pod: &Pod, pod_dir: &Path) -> Vec<LimitedVolume> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    if spec.priority.unwrap_or(0) >= CRITICAL_PRIORITY {
        return Vec::new();
    }
    let volumes = spec.volumes.iter().flatten().filter_map(|volume| {
        let source = volume.empty_dir.as_ref().filter(|source| source.medium.as_deref() != Some("Memory"))?;
        let limit = source.size_limit.as_ref()?;
        let limit_bytes = amount(limit).ok()?.unsigned_value();
        let path = pod_dir.join("volumes/kubernetes.io~empty-dir").join(&volume.name);
        let name = volume.name.clone();
        (limit_bytes > 0).then(|| LimitedVolume { name, path, limit_bytes, limit: limit.0.clone() })
    });
    volumes.collect()
}

/// What to tell of a volume of this size; `None` while it keeps to its limit.
pub fn over_limit(volume: &LimitedVolume, used_bytes: u64) -> Option<String> {
    (used_bytes > volume.limit_bytes).then(|| {
        format!(
            "emptyDir volume {} uses {used_bytes} bytes, more than its sizeLimit of {}",
            volume.name, volume.limit
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::fixture::pod;
    use serde_json::json;

    #[test]
    fn limits_on_disk_are_kept_by_the_agent() {
        let volumes = json!([
            {"name": "scratch", "emptyDir": {"sizeLimit": "1Mi"}},
            {"name": "free", "emptyDir": {}},
            {"name": "ram", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "zero", "emptyDir": {"sizeLimit": "0"}},
            {"name": "host", "hostPath": {"path": "/x"}}]);
        let given = |priority: i32| {
            pod(
                json!({"spec": {"priority": priority, "volumes": volumes, "containers": [{"name": "a", "image": "i"}]}}),
            )
        };
        let found = limited(&given(0), Path::new("/k/pods/u"));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].path, Path::new("/k/pods/u/volumes/kubernetes.io~empty-dir/scratch"));
        assert_eq!(over_limit(&found[0], 1 << 20), None);
        let text = over_limit(&found[0], (1 << 20) + 1).unwrap();
        assert_eq!(text, "emptyDir volume scratch uses 1048577 bytes, more than its sizeLimit of 1Mi");
        assert!(limited(&given(CRITICAL_PRIORITY), Path::new("/k/pods/u")).is_empty());
    }
}
