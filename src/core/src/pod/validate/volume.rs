//! Rules for `spec.volumes`: names, one supported source each, paths inside the volume.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, PodSpec, Volume, VolumeProjection};

use super::{Problems, names, quantity};
use crate::volume::{SUPPORTED, source_name};

/// Checks all volumes; returns their names for the mounts.
pub(super) fn volumes(problems: &mut Problems, spec: &PodSpec) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        let path = format!("spec.volumes[{index}]");
        names::label(problems, &format!("{path}.name"), &volume.name);
        if !seen.insert(volume.name.clone()) {
            let problem = format!("{} is the name of two volumes", volume.name);
            problems.add(&format!("{path}.name"), problem, "give each volume its own name");
        }
        source(problems, &path, volume);
    }
    seen
}

fn source(problems: &mut Problems, path: &str, volume: &Volume) {
    let sources = source_name(volume);
    match sources.as_slice() {
        [] => problems.add(path, "has no source", format!("give it one of {}", SUPPORTED.join(", "))),
        [one] if !SUPPORTED.contains(&one.as_str()) => problems.add(
            &format!("{path}.{one}"),
            format!("volumes of kind {one} are not supported"),
            format!("use one of {}", SUPPORTED.join(", ")),
        ),
        [_] => details(problems, path, volume),
        several => {
            problems.add(path, format!("has {} sources: {}", several.len(), several.join(", ")), "keep one");
        }
    }
}

fn details(problems: &mut Problems, path: &str, volume: &Volume) {
    if let Some(source) = &volume.empty_dir {
        if let Some(medium) = source.medium.as_deref().filter(|medium| !matches!(*medium, "" | "Memory")) {
            let problem = format!("{medium:?} is not supported");
            problems.add(&format!("{path}.emptyDir.medium"), problem, "leave it out for disk, or use Memory");
        }
        if let Some(limit) = &source.size_limit {
            quantity(problems, &format!("{path}.emptyDir.sizeLimit"), &limit.0);
        }
    }
    if let Some(source) = &volume.host_path {
        host_path(problems, &format!("{path}.hostPath"), &source.path, source.type_.as_deref());
    }
    if let Some(source) = &volume.config_map {
        let path = format!("{path}.configMap");
        object_name(problems, &format!("{path}.name"), &source.name);
        mode(problems, &format!("{path}.defaultMode"), source.default_mode);
        items(problems, &path, source.items.as_deref());
    }
    if let Some(source) = &volume.secret {
        let path = format!("{path}.secret");
        object_name(
            problems,
            &format!("{path}.secretName"),
            source.secret_name.as_deref().unwrap_or_default(),
        );
        mode(problems, &format!("{path}.defaultMode"), source.default_mode);
        items(problems, &path, source.items.as_deref());
    }
    if let Some(source) = &volume.downward_api {
        let path = format!("{path}.downwardAPI");
        mode(problems, &format!("{path}.defaultMode"), source.default_mode);
        downward(problems, &path, source.items.as_deref());
    }
    if let Some(source) = &volume.projected {
        mode(problems, &format!("{path}.projected.defaultMode"), source.default_mode);
        for (index, projection) in source.sources.iter().flatten().enumerate() {
            projected(problems, &format!("{path}.projected.sources[{index}]"), projection);
        }
    }
}

fn host_path(problems: &mut Problems, path: &str, host: &str, kind: Option<&str>) {
    if !host.starts_with('/') {
        problems.add(
            &format!("{path}.path"),
            format!("{host:?} is not absolute"),
            "write the whole path from /",
        );
    }
    if host.split('/').any(|part| part == "..") {
        problems.add(&format!("{path}.path"), format!("{host:?} contains '..'"), "write it without '..'");
    }
    let kinds =
        ["", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice"];
    problems.one_of(&format!("{path}.type"), kind, &kinds);
}

fn object_name(problems: &mut Problems, field: &str, name: &str) {
    if name.is_empty() {
        problems.add(field, "is missing", "name the object");
    } else {
        names::subdomain(problems, field, name);
    }
}

fn mode(problems: &mut Problems, field: &str, mode: Option<i32>) {
    if let Some(mode) = mode
        && !(0..=0o777).contains(&mode)
    {
        problems.add(field, format!("{mode} is no file mode"), "use 0000 to 0777 (decimal 0 to 511 in JSON)");
    }
}

fn items(problems: &mut Problems, path: &str, items: Option<&[KeyToPath]>) {
    for (index, item) in items.unwrap_or_default().iter().enumerate() {
        let path = format!("{path}.items[{index}]");
        if item.key.is_empty() {
            problems.add(&format!("{path}.key"), "is missing", "name the key");
        }
        file_path(problems, &format!("{path}.path"), &item.path);
        mode(problems, &format!("{path}.mode"), item.mode);
    }
}

/// The published tree keeps names that start with `..` for itself.
fn file_path(problems: &mut Problems, field: &str, path: &str) {
    names::relative_path(problems, field, path);
    if path.starts_with("..") && !path.starts_with("../") && path != ".." {
        problems.add(field, format!("{path:?} starts with '..'"), "choose another name");
    }
}

fn downward(problems: &mut Problems, path: &str, items: Option<&[DownwardAPIVolumeFile]>) {
    for (index, item) in items.unwrap_or_default().iter().enumerate() {
        let path = format!("{path}.items[{index}]");
        file_path(problems, &format!("{path}.path"), &item.path);
        mode(problems, &format!("{path}.mode"), item.mode);
        if item.field_ref.is_some() == item.resource_field_ref.is_some() {
            problems.add(&path, "must have exactly one source", "give fieldRef or resourceFieldRef");
        }
        if item.resource_field_ref.as_ref().is_some_and(|field| field.container_name.is_none()) {
            problems.add(
                &format!("{path}.resourceFieldRef.containerName"),
                "is missing",
                "name the container",
            );
        }
    }
}

fn projected(problems: &mut Problems, path: &str, projection: &VolumeProjection) {
    if projection.service_account_token.is_some()
        || projection.cluster_trust_bundle.is_some()
        || projection.pod_certificate.is_some()
    {
        problems.add(
            path,
            "tokens and certificates come from a control plane and are not supported here",
            "project configMap, secret or downwardAPI only",
        );
    }
    if let Some(source) = &projection.config_map {
        object_name(problems, &format!("{path}.configMap.name"), &source.name);
        items(problems, &format!("{path}.configMap"), source.items.as_deref());
    }
    if let Some(source) = &projection.secret {
        object_name(problems, &format!("{path}.secret.name"), &source.name);
        items(problems, &format!("{path}.secret"), source.items.as_deref());
    }
    if let Some(source) = &projection.downward_api {
        downward(problems, &format!("{path}.downwardAPI"), source.items.as_deref());
    }
}
