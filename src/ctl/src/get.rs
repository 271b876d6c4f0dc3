//! `longshore get`: objects as their sources wrote them, pods with their present status.

use longshore_core::ids::ObjectKey;
use longshore_core::wire::{NodeView, ObjectKind, PodView};
use serde_json::Value;

use crate::error::CliError;
use crate::output::{Format, Rows, Screen, mood, print, structured};
use crate::pods::Node;
use crate::target::{PodName, distance};

/// What `get` was asked for: a kind, and one object of it.
#[derive(Clone, Debug)]
pub struct Request {
    pub kind: String,
    pub name: Option<String>,
    pub namespace: Option<String>,
}

impl Request {
    /// Takes `svc/web` apart, as kubectl does.
    pub fn new(kind: String, name: Option<String>, namespace: Option<String>) -> Self {
        match (&name, kind.split_once('/')) {
            (None, Some((kind, name))) => {
                Self { kind: kind.to_string(), name: Some(name.to_string()), namespace }
            }
            _ => Self { kind, name, namespace },
        }
    }
}

/// Shows one object, or the names of all of a kind.
pub async fn run(node: &Node, screen: &Screen, request: &Request) -> Result<(), CliError> {
    match request.kind.to_ascii_lowercase().as_str() {
        "pod" | "pods" | "po" => pods(node, screen, request).await,
        "node" | "nodes" | "no" => show_node(node, screen).await,
        kind => match ObjectKind::parse(kind) {
            Some(kind) => objects(node, screen, request, kind).await,
            None => Err(unknown_kind(kind)),
        },
    }
}

fn unknown_kind(kind: &str) -> CliError {
    let kinds = ["pods", "services", "endpointslices", "configmaps", "secrets", "node"];
    let near =
        kinds.iter().min_by_key(|known| distance(known, kind)).filter(|known| distance(known, kind) <= 2);
    let error = CliError::usage(format!("the agent keeps no {kind}"));
    match near {
        Some(near) => error.hint(format!("did you mean {near}?")),
        None => error.hint(format!("it has {}", kinds.join(", "))),
    }
}

async fn pods(node: &Node, screen: &Screen, request: &Request) -> Result<(), CliError> {
    let namespace = request.namespace.as_deref();
    if matches!(screen.format, Format::Table | Format::Wide) && request.name.is_none() {
        return crate::ps::run(node, screen, namespace, false).await;
    }
    let mut views: Vec<PodView> = node.daemon.get("/v1/pods").await?;
    views.sort_by(|a, b| a.key.cmp(&b.key));
    let Some(name) = &request.name else {
        views.retain(|view| namespace.is_none_or(|namespace| namespace == &*view.key.namespace));
        let items = views.iter().map(with_status).collect::<Result<Vec<_>, _>>()?;
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": items});
        return structured(screen, &list).map(drop);
    };
    let key = PodName::parse(name, namespace)?.choose(views.iter().map(|view| &view.key))?;
    let Some(view) = views.iter().find(|view| view.key == key) else {
        return Err(CliError::new(format!("there is no pod {key} on this node")));
    };
    show(screen, &with_status(view)?)
}

/// The pod as the API would show it: what was wanted, with the status of now.
fn with_status(view: &PodView) -> Result<Value, CliError> {
    let mut pod = (*view.pod).clone();
    pod.status = Some((*view.status).clone());
    serde_json::to_value(pod).map_err(|error| CliError::new(error.to_string()))
}

/// One object: as YAML where no other form was asked for.
fn show(screen: &Screen, object: &Value) -> Result<(), CliError> {
    let format = if screen.format == Format::Json { Format::Json } else { Format::Yaml };
    structured(&Screen { format, ..*screen }, object).map(drop)
}

async fn objects(node: &Node, screen: &Screen, request: &Request, kind: ObjectKind) -> Result<(), CliError> {
    let mut keys: Vec<ObjectKey> = node.daemon.get(&format!("/v1/objects/{}", kind.plural())).await?;
    keys.sort();
    let namespace = request.namespace.as_deref();
    if let Some(name) = &request.name {
        let key = choose(&keys, name, namespace, kind)?;
        return show(screen, &fetch(node, kind, &key).await?);
    }
    keys.retain(|key| namespace.is_none_or(|namespace| namespace == &*key.namespace));
    if matches!(screen.format, Format::Json | Format::Yaml) {
        let mut items = Vec::new();
        for key in &keys {
            items.push(fetch(node, kind, key).await?);
        }
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": items});
        return structured(screen, &list).map(drop);
    }
    if keys.is_empty() {
        eprintln!("no {}", kind.plural());
        return Ok(());
    }
    let mut rows = Rows::new(&["NAMESPACE", "NAME"]);
    for key in &keys {
        rows.push(vec![key.namespace.to_string(), key.name.to_string()]);
    }
    print(&rows.render(screen, mood))
}

async fn fetch(node: &Node, kind: ObjectKind, key: &ObjectKey) -> Result<Value, CliError> {
    let object =
        node.daemon.get(&format!("/v1/objects/{}/{}/{}", kind.plural(), key.namespace, key.name)).await?;
    Ok(complete(object, kind))
}

/// The daemon keeps only the fields it uses: puts the kind in and leaves out what is not set.
fn complete(mut object: Value, kind: ObjectKind) -> Value {
    drop_unset(&mut object);
    let (version, name) = match kind {
        ObjectKind::Service => ("v1", "Service"),
        ObjectKind::ConfigMap => ("v1", "ConfigMap"),
        ObjectKind::Secret => ("v1", "Secret"),
        ObjectKind::EndpointSlice => ("discovery.k8s.io/v1", "EndpointSlice"),
    };
    if let Value::Object(fields) = &mut object {
        fields.entry("apiVersion").or_insert_with(|| version.into());
        fields.entry("kind").or_insert_with(|| name.into());
    }
    object
}

fn drop_unset(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(drop_unset);
            fields.retain(|_, value| !is_unset(value));
        }
        Value::Array(items) => items.iter_mut().for_each(drop_unset),
        _ => {}
    }
}

fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

fn choose(
    keys: &[ObjectKey],
    name: &str,
    namespace: Option<&str>,
    kind: ObjectKind,
) -> Result<ObjectKey, CliError> {
    let (namespace, name) = match name.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (namespace, name),
    };
    let mut found: Vec<&ObjectKey> = keys
        .iter()
        .filter(|key| *key.name == *name && namespace.is_none_or(|namespace| namespace == &*key.namespace))
        .collect();
    found.sort_by_key(|key| &*key.namespace != "default");
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        [first, ..] if &*first.namespace == "default" => Ok((*first).clone()),
        [] => {
            let near = keys.iter().min_by_key(|key| distance(&key.name, name));
            let error = CliError::new(format!("there is no {name} among the {}", kind.plural()));
            Err(match near.filter(|key| distance(&key.name, name) <= 2) {
                Some(near) => error.hint(format!("did you mean {near}?")),
                None => error.hint(format!("longshore get {} shows those there are", kind.plural())),
            })
        }
        _ => Err(CliError::new(format!("{name} is in several namespaces")).hint("say which with -n")),
    }
}

async fn show_node(node: &Node, screen: &Screen) -> Result<(), CliError> {
    let view: NodeView = node.daemon.get("/v1/node").await?;
    if structured(screen, &view)? {
        return Ok(());
    }
    print(&node_text(&view))
}

/// The node on one screen.
pub fn node_text(view: &NodeView) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: &str| text.push_str(&format!("{label:<14}{value}\n"));
    line("Name:", &view.name);
    line("Addresses:", &view.ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
    line("Agent:", &format!("longshore {}, started {}", view.version, view.started_at));
    match &view.runtime {
        Ok(runtime) => line("Runtime:", runtime),
        Err(error) => line("Runtime:", &format!("does not answer: {error}")),
    }
    match &view.network {
        Ok(()) => line("Network:", "ready"),
        Err(error) => line("Network:", &format!("not ready: {error}")),
    }
    let reason = if view.service_mode_reason.is_empty() { "" } else { ": " };
    let mode = if view.service_mode.is_empty() { "not served" } else { view.service_mode.as_str() };
    line("Services:", &format!("{mode}{reason}{}", view.service_mode_reason));
    for source in &view.sources {
        line("Source:", source);
    }
    for problem in &view.problems {
        let object = problem.object.as_ref().map_or(String::new(), |object| format!("{object}: "));
        line("Problem:", &format!("{}: {object}{}", problem.place, problem.message));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_found_by_name_and_guessed() {
        let keys =
            [ObjectKey::new("a", "page"), ObjectKey::new("default", "page"), ObjectKey::new("b", "other")];
        let cases = [
            ("page", None, Ok("default/page")),
            ("a/page", None, Ok("a/page")),
            ("page", Some("a"), Ok("a/page")),
            ("other", None, Ok("b/other")),
            ("othr", None, Err("did you mean b/other?")),
            ("nothing", None, Err("longshore get configmaps shows those there are")),
        ];
        for (name, namespace, expected) in cases {
            match (choose(&keys, name, namespace, ObjectKind::ConfigMap), expected) {
                (Ok(key), Ok(want)) => assert_eq!(key.to_string(), want),
                (Err(error), Err(hint)) => assert_eq!(error.hint.as_deref(), Some(hint), "{name}"),
                (got, _) => panic!("{name}: {got:?}"),
            }
        }
    }

    #[test]
    fn slim_objects_are_shown_as_objects() {
        let slim = serde_json::json!({"metadata": {"name": "web", "labels": {}},
            "spec": {"clusterIP": "10.0.0.1", "externalIPs": [], "ports": [{"port": 80, "appProtocol": null}]},
            "status": {"loadBalancer": {"ingress": []}}});
        let whole = serde_json::json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]}});
        assert_eq!(complete(slim, ObjectKind::Service), whole);
    }

    #[test]
    fn kind_and_name_may_be_one_word() {
        let request = Request::new("svc/web".into(), None, None);
        assert_eq!((request.kind.as_str(), request.name.as_deref()), ("svc", Some("web")));
        assert_eq!(unknown_kind("sevices").hint.as_deref(), Some("did you mean services?"));
    }
}
