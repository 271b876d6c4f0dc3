//! What `fieldRef` and `resourceFieldRef` read: fields of the pod and of its containers' resources
//! (pkg/fieldpath, pkg/api/v1/resource/helpers.go).

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};

use crate::pod::containers::containers;
use crate::pod::snapshot::{NodeContext, PodSnapshot};
use crate::resources::quantity::{Amount, amount, amount_or_zero};

/// What a field may look at.
#[derive(Clone, Copy, Debug)]
pub struct FieldSource<'a> {
    pub pod: &'a Pod,
    pub uid: &'a str,
    pub node: &'a NodeContext,
    pub pod_ips: &'a [IpAddr],
}

impl<'a> FieldSource<'a> {
    pub fn new(snapshot: &PodSnapshot<'a>, pod_ips: &'a [IpAddr]) -> Self {
        Self { pod: &snapshot.desired.pod, uid: snapshot.desired.uid.as_str(), node: snapshot.node, pod_ips }
    }

    /// The value of a field path; `None` where the path is not known.
    pub fn field(&self, path: &str) -> Option<String> {
        let metadata = &self.pod.metadata;
        if let Some((map, key)) = subscript(path) {
            let map = match map {
                "metadata.labels" => &metadata.labels,
                "metadata.annotations" => &metadata.annotations,
                _ => return None,
            };
            return Some(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default());
        }
        let spec = self.pod.spec.as_ref();
        Some(match path {
            "metadata.name" => metadata.name.clone().unwrap_or_default(),
            "metadata.namespace" => metadata.namespace.clone().unwrap_or_default(),
            "metadata.uid" => self.uid.to_owned(),
            "metadata.labels" => quoted_lines(metadata.labels.iter().flatten()),
            "metadata.annotations" => quoted_lines(metadata.annotations.iter().flatten()),
            "spec.nodeName" => self.node.name.clone(),
            "spec.serviceAccountName" => {
                spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_default()
            }
            "status.hostIP" => self.node.ips.first().map(IpAddr::to_string).unwrap_or_default(),
            "status.hostIPs" => joined(&self.node.ips),
            "status.podIP" => self.pod_ips.first().map(IpAddr::to_string).unwrap_or_default(),
            "status.podIPs" => joined(self.pod_ips),
            _ => return None,
        })
    }

    /// The value of a resource field; `own` is the container that asks, where one does.
    pub fn resource(&self, selector: &ResourceFieldSelector, own: Option<&Container>) -> Option<String> {
        let divisor = match &selector.divisor {
            Some(divisor) => amount(divisor).ok()?,
            None => Amount::from_units(1),
        };
        let name = selector.container_name.as_deref().filter(|name| !name.is_empty());
        let all = containers(self.pod);
        let container = match name {
            Some(name) => {
                all.iter().find(|container| container.name.as_str() == name).map(|found| &*found.spec)?
            }
            None => own?,
        };
        let amount = resource_amount(container, &selector.resource, self.node)?;
        Some(amount.divided_by(divisor).to_string())
    }
}

fn resource_amount(container: &Container, field: &str, node: &NodeContext) -> Option<Amount> {
    let (list, resource) = field.split_once('.')?;
    let requirements = container.resources.as_ref();
    let limit = requirements.and_then(|all| all.limits.as_ref()).and_then(|limits| limits.get(resource));
    match (list, limit) {
        ("limits", Some(limit)) => Some(amount_or_zero(Some(limit))),
        // Without a limit the whole node is what the container may use.
        ("limits", None) => Some(match resource {
            "cpu" => Amount::from_millis(i64::try_from(node.allocatable_cpu_millis).unwrap_or(i64::MAX)),
            "memory" => Amount::from_units(i64::try_from(node.allocatable_memory_bytes).unwrap_or(i64::MAX)),
            _ => Amount::ZERO,
        }),
        ("requests", _) => {
            let requests = requirements.and_then(|all| all.requests.as_ref());
            Some(amount_or_zero(requests.and_then(|requests| requests.get(resource))))
        }
        _ => None,
    }
}

/// Whether a variable may read this field.
pub fn is_field_path_known(path: &str) -> bool {
    if let Some((map, key)) = subscript(path) {
        return matches!(map, "metadata.labels" | "metadata.annotations") && !key.is_empty();
    }
    matches!(
        path,
        "metadata.name"
            | "metadata.namespace"
            | "metadata.uid"
            | "spec.nodeName"
            | "spec.serviceAccountName"
            | "status.hostIP"
            | "status.hostIPs"
            | "status.podIP"
            | "status.podIPs"
    )
}

/// Whether `resourceFieldRef.resource` names something.
pub fn is_resource_field_known(field: &str) -> bool {
    field.split_once('.').is_some_and(|(list, resource)| {
        matches!(list, "limits" | "requests")
            && (matches!(resource, "cpu" | "memory" | "ephemeral-storage")
                || resource.starts_with("hugepages-"))
    })
}

/// `metadata.labels['a/b']` -> (`metadata.labels`, `a/b`).
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

fn joined(ips: &[IpAddr]) -> String {
    ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")
}

/// `key="value"` lines with Go's %q quoting, as downward API files have them.
fn quoted_lines<'a>(entries: impl Iterator<Item = (&'a String, &'a String)>) -> String {
    let lines: Vec<String> = entries.map(|(key, value)| format!("{key}={}", go_quoted(value))).collect();
    lines.join("\n")
}

fn go_quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            control if control.is_control() => quoted.push_str(&format!("\\x{:02x}", u32::from(control))),
            plain => quoted.push(plain),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::fixture::{node, pod};
    use serde_json::json;

    #[test]
    fn reads_fields_and_resources() {
        let pod = pod(json!({
            "metadata": {"name": "web", "namespace": "default", "labels": {"a": "1", "b/c": "x\"y"}},
            "spec": {"serviceAccountName": "sa", "containers": [{"name": "web", "image": "w",
                "resources": {"limits": {"cpu": "1500m"}, "requests": {"memory": "1Gi"}}}]}
        }));
        let node = node();
        let ips = ["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        let source = FieldSource { pod: &pod, uid: "u-1", node: &node, pod_ips: &ips };
        let cases = [
            ("metadata.name", "web"),
            ("metadata.uid", "u-1"),
            ("metadata.labels['b/c']", "x\"y"),
            ("metadata.annotations['none']", ""),
            ("metadata.labels", "a=\"1\"\nb/c=\"x\\\"y\""),
            ("spec.nodeName", "node"),
            ("spec.serviceAccountName", "sa"),
            ("status.hostIP", "192.0.2.10"),
            ("status.podIPs", "10.0.0.5,fd00::5"),
        ];
        for (path, expected) in cases {
            assert_eq!(source.field(path).as_deref(), Some(expected), "{path}");
        }
        assert_eq!(source.field("spec.containers"), None);
        let read = |resource: &str, divisor: Option<&str>| {
            let selector = ResourceFieldSelector {
                container_name: Some("web".to_owned()),
                resource: resource.to_owned(),
                divisor: divisor
                    .map(|text| k8s_openapi::apimachinery::pkg::api::resource::Quantity(text.to_owned())),
            };
            source.resource(&selector, None)
        };
        assert_eq!(read("limits.cpu", None).as_deref(), Some("2"));
        assert_eq!(read("limits.cpu", Some("1m")).as_deref(), Some("1500"));
        assert_eq!(read("requests.memory", Some("1Mi")).as_deref(), Some("1024"));
        assert_eq!(read("requests.cpu", None).as_deref(), Some("2"), "the limit by default");
        assert_eq!(read("requests.ephemeral-storage", None).as_deref(), Some("0"));
        assert_eq!(read("limits.memory", Some("1Gi")).as_deref(), Some("4"), "node allocatable");
        assert_eq!(read("limits", None), None);
    }
}
