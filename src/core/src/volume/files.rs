//! The files of configMap, secret, downwardAPI and projected volumes: keys to paths, modes,
//! optional parts, bounds (pkg/volume/{configmap,secret,downwardapi,projected}).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, ServiceAccountTokenProjection, Volume, VolumeProjection,
};

use crate::pod::fields::FieldSource;
use crate::pod::refs::{Data, Lookup, RefError};
use crate::pod::snapshot::PodSnapshot;
use crate::pod::step::VolumeFile;
use crate::pod::token;

/// Bytes one volume may publish: eight objects of the API's own limit of 1 MiB.
const MAX_BYTES: usize = 8 << 20;
const DEFAULT_MODE: i32 = 0o644;
/// As the kubelet gives tokens without a user or group of the pod (KEP-2451): any user of the container may
/// read it, as images run as users the node knows nothing of.
const TOKEN_MODE: i32 = 0o644;

/// The files of a volume that publishes files.
#[derive(Debug)]
pub struct Published {
    pub files: Vec<VolumeFile>,
    pub in_memory: bool,
}

/// `None` for a volume of another kind.
pub fn published(snapshot: &PodSnapshot<'_>, volume: &Volume) -> Result<Option<Published>, RefError> {
    let user = format!("volume {}", volume.name);
    let mut tree = Tree { snapshot, user: &user, files: BTreeMap::new() };
    let in_memory = if let Some(source) = &volume.config_map {
        tree.mode(source.default_mode).object("ConfigMap", &source.name, source.optional, &source.items)?;
        false
    } else if let Some(source) = &volume.secret {
        let name = source.secret_name.as_deref().unwrap_or_default();
        tree.mode(source.default_mode).object("Secret", name, source.optional, &source.items)?;
        true
    } else if let Some(source) = &volume.downward_api {
        tree.mode(source.default_mode).downward(source.items.as_deref().unwrap_or_default())?;
        false
    } else if let Some(source) = &volume.projected {
        for projection in source.sources.iter().flatten() {
            tree.mode(source.default_mode).projection(projection)?;
        }
        source
            .sources
            .iter()
            .flatten()
            .any(|projection| projection.secret.is_some() || projection.service_account_token.is_some())
    } else {
        return Ok(None);
    };
    tree.check_bounds()?;
    Ok(Some(Published { files: tree.into_files(), in_memory }))
}

/// Files by path; a later source replaces an earlier one, as upstream does.
struct Tree<'a> {
    snapshot: &'a PodSnapshot<'a>,
    user: &'a str,
    files: BTreeMap<String, VolumeFile>,
}

/// A tree with the mode of what is put in next.
struct WithMode<'t, 'a> {
    tree: &'t mut Tree<'a>,
    mode: i32,
}

impl<'a> Tree<'a> {
    fn mode(&mut self, mode: Option<i32>) -> WithMode<'_, 'a> {
        WithMode { tree: self, mode: mode.unwrap_or(DEFAULT_MODE) }
    }

    fn invalid(&self, problem: String) -> RefError {
        RefError::Invalid { user: self.user.to_owned(), problem }
    }

    fn put(&mut self, path: &str, mode: i32, data: &[u8]) -> Result<(), RefError> {
        let path =
            clean_path(path).ok_or_else(|| self.invalid(format!("path {path:?} leaves the volume")))?;
        let mode = u32::try_from(mode & 0o777).unwrap_or(0o644);
        self.files.insert(path.clone(), VolumeFile { path, mode, data: data.to_vec() });
        Ok(())
    }

    /// No file stands where another needs a folder, and all of them fit.
    fn check_bounds(&self) -> Result<(), RefError> {
        let total: usize = self.files.values().map(|file| file.data.len()).sum();
        if total > MAX_BYTES {
            return Err(self.invalid(format!("its files have {total} bytes, more than {MAX_BYTES}")));
        }
        for path in self.files.keys() {
            let parents = path.match_indices('/').map(|(end, _)| &path[..end]);
            for parent in parents {
                if self.files.contains_key(parent) {
                    return Err(self.invalid(format!("{parent:?} would be a file and a folder")));
                }
            }
        }
        Ok(())
    }

    fn into_files(self) -> Vec<VolumeFile> {
        self.files.into_values().collect()
    }
}

impl WithMode<'_, '_> {
    fn object(
        &mut self,
        kind: &'static str,
        name: &str,
        optional: Option<bool>,
        items: &Option<Vec<KeyToPath>>,
    ) -> Result<(), RefError> {
        let snapshot = self.tree.snapshot;
        let lookup = Lookup {
            objects: snapshot.objects,
            namespace: &snapshot.desired.key.namespace,
            optional: optional.unwrap_or(false),
            user: self.tree.user,
        };
        let data = if kind == "Secret" { lookup.secret(name)? } else { lookup.config_map(name)? };
        let Some(data) = data else { return Ok(()) };
        let items = items.as_deref().unwrap_or_default();
        if items.is_empty() {
            return self.whole(data);
        }
        for item in items {
            if let Some(bytes) = lookup.key(kind, name, &item.key)? {
                self.tree.put(&item.path, item.mode.unwrap_or(self.mode), bytes)?;
            }
        }
        Ok(())
    }

    fn whole(&mut self, data: Data<'_>) -> Result<(), RefError> {
        for (key, bytes) in data.entries() {
            self.tree.put(key, self.mode, bytes)?;
        }
        Ok(())
    }

    fn downward(&mut self, items: &[DownwardAPIVolumeFile]) -> Result<(), RefError> {
        // Addresses are not among the fields a file may have, so none are needed.
        let fields = FieldSource::new(self.tree.snapshot, &[]);
        for item in items {
            let value = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), _) => fields.field(&field.field_path),
                (None, Some(selector)) => fields.resource(selector, None),
                (None, None) => None,
            };
            let value = value
                .ok_or_else(|| self.tree.invalid(format!("the source of {:?} is not known", item.path)))?;
            self.tree.put(&item.path, item.mode.unwrap_or(self.mode), value.as_bytes())?;
        }
        Ok(())
    }

    /// A token that was not issued yet is waited for.
    fn token(&mut self, source: &ServiceAccountTokenProjection) -> Result<(), RefError> {
        let Some(tokens) = &self.tree.snapshot.objects.tokens else {
            return Err(self.tree.invalid("serviceAccountToken needs a control plane".to_owned()));
        };
        let spec = token::spec(source.audience.as_deref(), source.expiration_seconds);
        let Some(token) = tokens.get(&spec) else {
            let account = token::service_account(&self.tree.snapshot.desired.pod).to_owned();
            return Err(RefError::TokenMissing { account, user: self.tree.user.to_owned() });
        };
        self.tree.put(&source.path, TOKEN_MODE, token.as_bytes())
    }

    fn projection(&mut self, projection: &VolumeProjection) -> Result<(), RefError> {
        if let Some(source) = &projection.config_map {
            self.object("ConfigMap", &source.name, source.optional, &source.items)?;
        }
        if let Some(source) = &projection.secret {
            self.object("Secret", &source.name, source.optional, &source.items)?;
        }
        if let Some(source) = &projection.downward_api {
            self.downward(source.items.as_deref().unwrap_or_default())?;
        }
        if let Some(source) = &projection.service_account_token {
            self.token(source)?;
        }
        if projection.cluster_trust_bundle.is_some() || projection.pod_certificate.is_some() {
            return Err(self.tree.invalid("certificates need a control plane".to_owned()));
        }
        Ok(())
    }
}

/// Relative, without `.`, `..` and doubled slashes; `None` for what leaves the volume or collides
/// with the names the atomic writer keeps for itself (`..data`).
fn clean_path(path: &str) -> Option<String> {
    if path.starts_with('/') || path.starts_with("..") {
        return None;
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.is_empty() || parts.iter().any(|part| *part == ".." || part.contains('\0')) {
        return None;
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::fixture::Fixture;
    use crate::pod::step::VolumeSource;
    use crate::volume::{action, content_hash};
    use serde_json::{Value, json};

    fn fixture() -> Fixture {
        let mut fixture = Fixture::new(json!({
            "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "web", "image": "w:1", "resources": {"limits": {"cpu": "2"}}}],
                "securityContext": {"fsGroup": 2000}}
        }));
        fixture.config_map("c", &[("a", "1"), ("b", "2")]);
        fixture.secret("s", &[("key", "hush")]);
        fixture
    }

    fn made(fixture: &Fixture, volume: Value) -> Result<VolumeAction, RefError> {
        action(&fixture.snapshot(), &serde_json::from_value(volume).unwrap())
    }

    use crate::pod::step::VolumeAction;

    fn listing(action: &VolumeAction) -> Vec<String> {
        let VolumeSource::Files { files, .. } = &action.source else { panic!("no files: {action:?}") };
        let line = |file: &VolumeFile| {
            format!("{} {:o} {}", file.path, file.mode, String::from_utf8_lossy(&file.data))
        };
        files.iter().map(line).collect()
    }

    #[test]
    fn publishes_keys_items_modes_and_fields() {
        let cases = [
            (json!({"name": "v", "configMap": {"name": "c"}}), vec!["a 644 1", "b 644 2"]),
            (
                json!({"name": "v", "configMap": {"name": "c", "defaultMode": 0o400, "items": [
                    {"key": "b", "path": "deep/er/b"}, {"key": "a", "path": "x", "mode": 0o755}]}}),
                vec!["deep/er/b 400 2", "x 755 1"],
            ),
            (json!({"name": "v", "secret": {"secretName": "s"}}), vec!["key 644 hush"]),
            (json!({"name": "v", "secret": {"secretName": "none", "optional": true}}), vec![]),
            (
                json!({"name": "v", "downwardAPI": {"items": [
                    {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                    {"path": "cpu", "resourceFieldRef": {"containerName": "web", "resource": "limits.cpu"}}]}}),
                vec!["cpu 644 2", "labels 644 app=\"web\""],
            ),
            (
                json!({"name": "v", "projected": {"sources": [
                    {"configMap": {"name": "c", "items": [{"key": "a", "path": "one"}]}},
                    {"secret": {"name": "s"}},
                    {"downwardAPI": {"items": [{"path": "n", "fieldRef": {"fieldPath": "metadata.name"}}]}}]}}),
                vec!["key 644 hush", "n 644 web", "one 644 1"],
            ),
        ];
        for (volume, expected) in cases {
            let made = made(&fixture(), volume.clone()).unwrap_or_else(|error| panic!("{volume}: {error}"));
            assert_eq!(listing(&made), expected, "{volume}");
            assert_eq!(made.fs_group, Some(2000));
        }
    }

    #[test]
    fn says_what_is_missing_or_wrong() {
        let cases = [
            (
                json!({"name": "v", "configMap": {"name": "no"}}),
                "ConfigMap default/no is not there, needed by volume v: create it, or mark the reference optional",
            ),
            (
                json!({"name": "v", "secret": {"secretName": "s", "items": [{"key": "x", "path": "x"}]}}),
                "Secret default/s has no key \"x\", needed by volume v: add the key, or mark the reference optional",
            ),
            (
                json!({"name": "v", "configMap": {"name": "c", "items": [{"key": "a", "path": "../../etc"}]}}),
                "volume v cannot be made: path \"../../etc\" leaves the volume",
            ),
            (
                json!({"name": "v", "configMap": {"name": "c", "items": [{"key": "a", "path": "x"}, {"key": "b", "path": "x/y"}]}}),
                "volume v cannot be made: \"x\" would be a file and a folder",
            ),
            (
                json!({"name": "v", "nfs": {"server": "s", "path": "/"}}),
                "volume v cannot be made: nfs is not supported; use one of emptyDir, hostPath, configMap, secret, downwardAPI, projected",
            ),
        ];
        for (volume, message) in cases {
            assert_eq!(made(&fixture(), volume).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn knows_places_media_and_hashes() {
        let base = fixture();
        let root = "/var/lib/kubelet/pods/11111111-2222-8333-8444-555555555555/volumes";
        let empty = made(&base, json!({"name": "v", "emptyDir": {}})).unwrap();
        assert_eq!(empty.path.to_str(), Some(format!("{root}/kubernetes.io~empty-dir/v").as_str()));
        assert_eq!((empty.source.clone(), content_hash(&empty)), (VolumeSource::EmptyDir, 0));
        let memory =
            made(&base, json!({"name": "v", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}})).unwrap();
        assert_eq!(memory.source, VolumeSource::EmptyDirMemory { size: Some(1 << 20) });
        let host =
            made(&base, json!({"name": "v", "hostPath": {"path": "/etc", "type": "Directory"}})).unwrap();
        assert_eq!((host.path.to_str(), host.fs_group), (Some("/etc"), None));
        let config = json!({"name": "v", "configMap": {"name": "c"}});
        let before = content_hash(&made(&base, config.clone()).unwrap());
        let mut changed = fixture();
        changed.config_map("c", &[("a", "1"), ("b", "3")]);
        assert_ne!(before, content_hash(&made(&changed, config.clone()).unwrap()));
        assert_eq!(before, content_hash(&made(&fixture(), config).unwrap()));
    }
}
