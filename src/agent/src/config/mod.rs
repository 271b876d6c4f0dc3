//! Configuration: defaults, the two Kubernetes files, drop-ins and flags -> one [`Settings`] value.
//! Files are read here and nowhere else in the daemon; the rules are in `rules`, free of effects.

mod args;
mod cipher_suites;
mod credential_providers;
mod difference;
#[cfg(test)]
mod docs;
mod fields;
mod flags;
mod gates;
pub mod kubelet;
pub mod proxy;
#[cfg(test)]
mod proxy_fields_tests;
mod proxy_rules;
mod rules;
mod server_rules;
mod settings;
#[cfg(test)]
mod tests;
pub use longshore_core::go_duration as units;

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

pub use args::AgentArgs;
#[cfg(test)]
pub(crate) use cipher_suites::OFFERED as OFFERED_SUITES;
pub use difference::{Difference, difference};
pub use fields::{Effect, FieldInfo};
pub use flags::{FLAGS, Flag, Form, GivenFlags, Target};
pub use settings::*;

use crate::document::{self, DocumentError, Field, Node, Place, Value};

/// Larger configuration files are refused, bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read configuration {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("configuration {} is larger than {MAX_CONFIG_BYTES} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error(transparent)]
    Document(#[from] DocumentError),
    #[error("{place}: {message}")]
    Kind { place: Place, message: String },
    #[error("--{flag}: {message}")]
    Flag { flag: String, message: String },
    /// One line per broken rule.
    #[error("{}", list(.0))]
    Rules(Vec<DocumentError>),
}

fn list(violations: &[DocumentError]) -> String {
    violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// A configuration file of one kind, typed, with its tree for places.
#[derive(Clone, Debug)]
pub(crate) struct Loaded<T> {
    pub value: T,
    pub tree: Node,
}

/// Reads everything the flags name and applies the rules.
///
/// # Errors
/// A file that cannot be read or is not what it should be, and all rules broken at once.
pub fn load(args: &AgentArgs) -> Result<Settings, ConfigError> {
    let mut warnings = Vec::new();
    let mut kubelet_tree = match &args.config {
        Some(path) => read_kind(path, kubelet::KIND, &[kubelet::API_VERSION])?,
        None => empty_tree("KubeletConfiguration"),
    };
    for path in args.config_dir.iter().map(|dir| drop_ins(dir)).collect::<Result<Vec<_>, _>>()?.concat() {
        kubelet_tree.merge_patch(read_kind(&path, kubelet::KIND, &[kubelet::API_VERSION])?);
    }
    let mut proxy_tree = match &args.proxy_config {
        Some(path) => read_kind(path, proxy::KIND, &[proxy::API_VERSION])?,
        None => empty_tree("KubeProxyConfiguration"),
    };
    let node = args.roles.iter().any(|role| role.trim() == "node");
    apply_flags(&args.fields, node, (&mut kubelet_tree, &mut proxy_tree), &mut warnings)?;
    let mut kubelet: Loaded<kubelet::KubeletConfiguration> = typed(kubelet_tree, &mut warnings)?;
    let mut proxy: Loaded<proxy::KubeProxyConfiguration> = typed(proxy_tree, &mut warnings)?;
    kubelet.value.fill_zeroes();
    proxy.value.fill_zeroes();
    proxy.value.fill_sections();
    warn_without_effect(&kubelet.tree, kubelet::KUBELET_FIELDS, &mut warnings);
    warn_without_effect(&proxy.tree, proxy::PROXY_FIELDS, &mut warnings);
    warnings.extend(gates::warnings(&kubelet.tree, &kubelet.value.feature_gates));
    warnings.extend(gates::warnings(&proxy.tree, &proxy.value.feature_gates));
    if args.standalone && !args.node_labels.is_empty() {
        let labels = args.node_labels.join(",");
        warnings.push(format!("flag --node-labels ({labels}) has no effect without a control plane"));
    }
    let credential_providers = credential_providers::load(args, &mut warnings)?;
    let mut settings = rules::settings(args, &kubelet, &proxy, warnings).map_err(ConfigError::Rules)?;
    settings.images.credential_providers = credential_providers;
    Ok(settings)
}

/// The files a configuration is read from now, whether or not they can be read.
pub fn files(args: &AgentArgs) -> Vec<PathBuf> {
    let named = [&args.config, &args.proxy_config].into_iter().flatten().cloned();
    // A folder that cannot be read is told when it is loaded.
    let dropped = args.config_dir.iter().filter_map(|dir| drop_ins(dir).ok()).flatten();
    named.chain(dropped).collect()
}

fn empty_tree(source: &str) -> Node {
    Node { place: Place::whole(source), value: Value::Map(Vec::new()) }
}

fn read_text(path: &Path) -> Result<String, ConfigError> {
    let read = |source| ConfigError::Read { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(read)?.len() > MAX_CONFIG_BYTES {
        return Err(ConfigError::TooLarge { path: path.to_owned() });
    }
    std::fs::read_to_string(path).map_err(read)
}

/// The one document of a file, with the right `kind` and `apiVersion`, both taken out.
fn read_kind(path: &Path, kind: &str, api_versions: &[&str]) -> Result<Node, ConfigError> {
    let source = path.display().to_string();
    let mut documents = document::parse(&source, &read_text(path)?)?;
    if documents.len() != 1 {
        let message = format!("holds {} documents; it must hold one {kind}", documents.len());
        return Err(ConfigError::Kind { place: Place::whole(&source), message });
    }
    let mut tree = documents.remove(0);
    for (name, expected) in [("kind", &[kind][..]), ("apiVersion", api_versions)] {
        let found = tree.get(name).and_then(Node::as_text).unwrap_or("missing").to_owned();
        if !expected.contains(&found.as_str()) {
            let place = tree.get(name).map_or(&tree.place, |node| &node.place).clone();
            return Err(ConfigError::Kind {
                place,
                message: format!("{name} is {found}; it must be {}", expected.join(" or ")),
            });
        }
    }
    if let Value::Map(fields) = &mut tree.value {
        fields.retain(|field| field.name != "kind" && field.name != "apiVersion");
    }
    Ok(tree)
}

/// All `*.conf` below a folder in the order of their paths, as the kubelet takes them (KEP-3983).
fn drop_ins(dir: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        let read = |source| ConfigError::Read { path: folder.clone(), source };
        for entry in std::fs::read_dir(&folder).map_err(read)? {
            let path = entry.map_err(read)?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "conf") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn typed<T: DeserializeOwned>(tree: Node, warnings: &mut Vec<String>) -> Result<Loaded<T>, ConfigError> {
    let reading = document::read::<T>(&tree)?;
    // Unknown fields do not stop a kubelet either: it reads strictly, says so, and reads leniently.
    warnings.extend(reading.unknown.iter().map(|unknown| format!("{unknown}; it is ignored")));
    Ok(Loaded { value: reading.value, tree })
}

fn apply_flags(
    given: &GivenFlags,
    node: bool,
    (kubelet, proxy): (&mut Node, &mut Node),
    warnings: &mut Vec<String>,
) -> Result<(), ConfigError> {
    for (flag, texts) in &given.0 {
        let (tree, paths) = match flag.target {
            Target::Kubelet(path) => (&mut *kubelet, vec![path]),
            Target::Either { kubelet: path, .. } if node => (&mut *kubelet, vec![path]),
            Target::Proxy(path) | Target::Either { proxy: path, .. } => (&mut *proxy, vec![path]),
            Target::ProxyBoth(paths) => (&mut *proxy, paths.to_vec()),
            Target::Nothing => {
                warnings.push(format!("flag --{} has no effect", flag.name));
                continue;
            }
        };
        let json = flags::field_value(flag.form, texts)
            .map_err(|message| ConfigError::Flag { flag: flag.name.to_owned(), message })?;
        for path in paths {
            let node = Node::from_json(&Place::whole(&format!("flag --{}", flag.name)), json.clone());
            set_at(tree, path, node, flag.form == Form::Gates);
        }
    }
    Ok(())
}

/// Puts a value at a dotted path, making the mappings on the way.
fn set_at(tree: &mut Node, path: &str, node: Node, merge: bool) {
    let (name, rest) = path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
    if !matches!(tree.value, Value::Map(_)) {
        tree.value = Value::Map(Vec::new());
    }
    let Value::Map(fields) = &mut tree.value else { return };
    let index = fields.iter().position(|field| field.name == name).unwrap_or_else(|| {
        let empty = Node { place: node.place.clone(), value: Value::Null };
        fields.push(Field { name: name.to_owned(), place: node.place.clone(), node: empty });
        fields.len() - 1
    });
    match rest {
        Some(rest) => set_at(&mut fields[index].node, rest, node, merge),
        None if merge => fields[index].node.merge_patch(node),
        None => fields[index].node = node,
    }
}

/// Says of every field that was written down and does nothing yet that it does nothing yet.
fn warn_without_effect(tree: &Node, table: &[FieldInfo], warnings: &mut Vec<String>) {
    for field in table.iter().filter(|field| field.effect == Effect::Later) {
        if let Some(node) = tree.get(field.name) {
            warnings.push(format!("{}: {}: has no effect in this version", node.place, field.name));
        }
    }
}
