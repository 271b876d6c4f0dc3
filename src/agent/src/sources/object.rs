//! One manifest document -> one typed object, or what is wrong with it in words a person can act on.
//! Pure. Unknown fields are faults here: a mistyped field would otherwise be silently without effect.

use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use longshore_core::ids::ObjectKey;
use longshore_core::pod::default::{default, manifest_uid};
use longshore_core::pod::validate::validate;
use longshore_core::service::types::{EndpointSlice, Service};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::document::{self, DocumentError, Node, Value};

/// The kinds a folder may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    ConfigMap,
    Secret,
    Service,
    EndpointSlice,
    Pod,
}

impl Kind {
    const ALL: [Kind; 5] = [Kind::ConfigMap, Kind::Secret, Kind::Service, Kind::EndpointSlice, Kind::Pod];

    pub fn as_str(self) -> &'static str {
        match self {
            Kind::ConfigMap => "ConfigMap",
            Kind::Secret => "Secret",
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Pod => "Pod",
        }
    }

    fn api_version(self) -> &'static str {
        match self {
            Kind::EndpointSlice => "discovery.k8s.io/v1",
            _ => "v1",
        }
    }

    fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// What an object is known by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    pub kind: Kind,
    pub key: ObjectKey,
}

impl fmt::Display for ObjectId {
    /// `Pod default/web`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.key)
    }
}

/// A read object. Pods are defaulted and valid.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    ConfigMap(Arc<ConfigMap>),
    Secret(Arc<Secret>),
    Service(Arc<Service>),
    EndpointSlice(KeptSlice),
    Pod { pod: Arc<Pod>, uid: longshore_core::ids::PodUid },
}

/// An EndpointSlice as the bytes of its JSON. A folder of ten thousand Services has as many slices, which
/// are looked at when they change and when somebody asks: a struct and six texts for each endpoint would take
/// three times as much.
#[derive(Clone, PartialEq, Eq)]
pub struct KeptSlice(Arc<[u8]>);

impl KeptSlice {
    pub fn new(slice: &EndpointSlice) -> Self {
        Self(serde_json::to_vec(slice).expect("plain data serializes").into())
    }

    pub fn read(&self) -> EndpointSlice {
        serde_json::from_slice(&self.0).expect("it was written from a slice")
    }
}

impl fmt::Debug for KeptSlice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

/// What is wrong with one document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// From 1; 0 where unknown.
    pub line: u32,
    /// `Pod default/web`, where so much could be read.
    pub object: Option<String>,
    pub message: String,
    /// Of a kind that is none of ours: nothing this file said before can be meant by it.
    pub foreign: bool,
}

/// Kinds of controllers and where in them the pod template is.
const TEMPLATES: &[(&str, &str)] = &[
    ("Deployment", "spec.template"),
    ("ReplicaSet", "spec.template"),
    ("ReplicationController", "spec.template"),
    ("StatefulSet", "spec.template"),
    ("DaemonSet", "spec.template"),
    ("Job", "spec.template"),
    ("CronJob", "spec.jobTemplate.spec.template"),
];

/// Reads one document; a List gives one result per item.
pub fn read_document(node: &Node) -> Vec<Result<(ObjectId, Object), Fault>> {
    let kind = node.get("kind").and_then(Node::as_text).unwrap_or_default();
    match node.get("items").map(|items| &items.value) {
        Some(Value::List(items)) if kind.ends_with("List") => items.iter().flat_map(read_document).collect(),
        _ => vec![read_object(node, kind)],
    }
}

fn read_object(node: &Node, kind_name: &str) -> Result<(ObjectId, Object), Fault> {
    let line = node.place.line;
    if !matches!(node.value, Value::Map(_)) {
        let message = "is not an object; each document must be one object with kind and metadata".to_owned();
        return Err(Fault { line, object: None, message, foreign: false });
    }
    let key = key_of(node);
    let object = key.as_ref().map(|key| format!("{kind_name} {key}"));
    let Some(kind) = Kind::of(kind_name) else {
        let message = foreign_kind(node, kind_name);
        let foreign = !kind_name.is_empty();
        return Err(Fault { line, object: object.filter(|_| foreign), message, foreign });
    };
    let key = key.ok_or_else(|| nameless(node, kind_name))?;
    let id = ObjectId { kind, key };
    let fault = |line: u32, message: String| Fault { line, object: object.clone(), message, foreign: false };
    let version = node.get("apiVersion").and_then(Node::as_text).unwrap_or("missing");
    if version != kind.api_version() {
        let message = format!("apiVersion: is {version}; a {kind_name} must have {}", kind.api_version());
        return Err(fault(line, message));
    }
    if let Some(message) = bad_name(&id.key.name).or_else(|| bad_name(&id.key.namespace)) {
        return Err(fault(line, message));
    }
    let value = match kind {
        Kind::ConfigMap => read_strictly::<ConfigMap>(node, kind).map(|map| Object::ConfigMap(Arc::new(map))),
        Kind::Secret => read_strictly::<Secret>(node, kind).map(|secret| Object::Secret(Arc::new(secret))),
        Kind::Service => read_strictly::<k8s_openapi::api::core::v1::Service>(node, kind)
            .and_then(|_| read_slim(node))
            .map(|service| Object::Service(Arc::new(service))),
        Kind::EndpointSlice => read_strictly::<k8s_openapi::api::discovery::v1::EndpointSlice>(node, kind)
            .and_then(|_| read_slim(node))
            .map(|slice: EndpointSlice| Object::EndpointSlice(KeptSlice::new(&slice))),
        Kind::Pod => read_strictly::<Pod>(node, kind).and_then(|pod| checked_pod(pod, &id.key, node)),
    };
    value.map(|value| (id.clone(), value)).map_err(|error| {
        let message = format!("{}{}", error.path_prefix(), error.message);
        fault(if error.place.line > 0 { error.place.line } else { line }, message)
    })
}

fn key_of(node: &Node) -> Option<ObjectKey> {
    let name = node.at("metadata.name").and_then(Node::as_text).filter(|name| !name.is_empty())?;
    let namespace = node.at("metadata.namespace").and_then(Node::as_text).filter(|text| !text.is_empty());
    Some(ObjectKey::new(namespace.unwrap_or("default"), name))
}

fn nameless(node: &Node, kind_name: &str) -> Fault {
    // `name: yes` and `name: 5` are no text to YAML.
    let written = node.at("metadata.name").filter(|name| !matches!(name.value, Value::Null | Value::Text(_)));
    let (place, message) = match written {
        Some(name) => (&name.place, "metadata.name: is not text; put it in quotes"),
        None => (&node.place, "metadata.name: is missing; give the object a name"),
    };
    let object = Some(kind_name.to_owned());
    Fault { line: place.line, object, message: message.to_owned(), foreign: false }
}

/// Names end up in paths and host names (RFC 1123 subdomains in the API's rules).
fn bad_name(name: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let ok = name.len() <= 253
        && name.starts_with(plain)
        && name.ends_with(plain)
        && name.chars().all(|c| plain(c) || c == '-' || c == '.');
    (!ok).then(|| {
        format!(
            "metadata.name: {name:?} is not allowed; use lower case letters, digits, '-' and '.', at most 253"
        )
    })
}

/// Reads with the API's full type, so that every field it has is accepted and no other.
fn read_strictly<T: DeserializeOwned>(node: &Node, kind: Kind) -> Result<T, DocumentError> {
    // `kind` and `apiVersion` were looked at before, and the API's own types know them.
    let reading = document::read::<T>(node).map_err(|mut error| {
        // serde quotes the value it refuses, and this one may be a password.
        if kind == Kind::Secret {
            "is not of the type it must have; give text in stringData or base64 in data"
                .clone_into(&mut error.message);
        } else if error.message.contains("expected a string") {
            error.message.push_str("; put it in quotes");
        }
        error
    })?;
    match reading.unknown.into_iter().next() {
        None => Ok(reading.value),
        Some(mut unknown) => {
            unknown.message = format!("unknown field; a {} has none of this name here", kind.as_str());
            Err(unknown)
        }
    }
}

fn read_slim<T: DeserializeOwned>(node: &Node) -> Result<T, DocumentError> {
    document::read::<T>(&without_type(node)).map(|reading| reading.value)
}

/// The document without `kind` and `apiVersion`, which slim types do not carry.
fn without_type(node: &Node) -> Node {
    let mut node = node.clone();
    if let Value::Map(fields) = &mut node.value {
        fields.retain(|field| field.name != "kind" && field.name != "apiVersion");
    }
    node
}

fn checked_pod(written: Pod, key: &ObjectKey, node: &Node) -> Result<Object, DocumentError> {
    let uid = match written.metadata.uid.as_deref().filter(|uid| !uid.is_empty()) {
        Some(uid) => uid.into(),
        None => manifest_uid(&key.namespace, &key.name, &written),
    };
    let mut pod = default(written);
    let problems = validate(&pod);
    if let Some(first) = problems.first() {
        let place = place_of_field(node, &first.field);
        // One line: all problems, the first with its place.
        let message = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; also ");
        return Err(DocumentError { place, path: String::new(), message });
    }
    pod.metadata.uid = Some(uid.to_string());
    Ok(Object::Pod { pod: Arc::new(pod), uid })
}

/// The place of `spec.containers[0].image`, or of its nearest ancestor that is there.
fn place_of_field(node: &Node, field: &str) -> document::Place {
    let mut here = node;
    for part in field.split('.') {
        let (name, index) = match part.split_once('[') {
            Some((name, rest)) => (name, rest.trim_end_matches(']').parse::<usize>().ok()),
            None => (part, None),
        };
        let Some(next) = here.get(name) else { break };
        here = next;
        if let (Some(index), Value::List(items)) = (index, &here.value) {
            let Some(item) = items.get(index) else { break };
            here = item;
        }
    }
    here.place.clone()
}

/// What to say of a kind that is not one of ours.
fn foreign_kind(node: &Node, kind: &str) -> String {
    let ours = Kind::ALL.map(Kind::as_str).join(", ");
    if kind.is_empty() {
        return format!("kind: is missing; give one of {ours}");
    }
    match TEMPLATES.iter().find(|(name, _)| *name == kind) {
        Some((_, path)) => {
            let pod = node.at(path).and_then(|template| template_pod(node, template));
            let pod = pod.map(|yaml| format!("; write the Pod itself:\n{yaml}")).unwrap_or_default();
            format!("a {kind} needs a control plane, and there is none in standalone mode{pod}")
        }
        None => format!("kind: {kind} is not run from a folder; it may hold {ours}"),
    }
}

/// The Pod a controller would make from its template, as YAML.
fn template_pod(node: &Node, template: &Node) -> Option<String> {
    let json = document::read::<serde_json::Value>(template).ok()?.value;
    let mut metadata = serde_json::Map::new();
    let key = key_of(node)?;
    metadata.insert("name".into(), key.name.to_string().into());
    if &*key.namespace != "default" {
        metadata.insert("namespace".into(), key.namespace.to_string().into());
    }
    for field in ["labels", "annotations"] {
        if let Some(value) = json.pointer(&format!("/metadata/{field}")) {
            metadata.insert(field.into(), value.clone());
        }
    }
    let pod = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": json.get("spec")?,
    });
    serde_saphyr::to_string(&pod).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_kept_slice_is_the_slice_in_a_third_of_the_bytes() {
        let endpoint = |number: u32| {
            json!({"addresses": [format!("10.0.0.{number}")], "nodeName": "node-1", "conditions": {"ready": true},
                "targetRef": {"kind": "Pod", "namespace": "shop", "name": format!("web-7d4b9c6f5-{number}")}})
        };
        let value = json!({"metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"name": "p", "port": 80}],
            "endpoints": (0..10).map(endpoint).collect::<Vec<_>>()});
        let mut slice: EndpointSlice = serde_json::from_value(value).unwrap();
        slice.endpoints[0].hints.for_zones =
            vec![longshore_core::service::types::Named { name: "a".to_owned() }];
        let kept = KeptSlice::new(&slice);
        assert_eq!(kept.read(), slice);
        assert!(kept.0.len() < 2000, "{} bytes: {kept:?}", kept.0.len());
    }
}
