//! YAML or JSON text as a tree in which every value knows its file, line and column, and typed
//! reading out of that tree: errors and unknown fields come with their place and their path.
//! Configuration files and manifests are both read through here. No files are opened in this module.

mod parse;
mod reader;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

pub use parse::{MAX_DEPTH, parse};
pub use reader::{Reading, read};

/// Where a value was written.
#[derive(Clone, PartialEq, Eq)]
pub struct Place {
    /// File path, or the flag: `flag --max-pods`.
    pub source: Arc<str>,
    /// From 1; 0 where the source has no lines.
    pub line: u32,
    /// From 1; 0 where unknown.
    pub column: u32,
}

impl Place {
    /// Whether it is the command line.
    pub fn is_flag(&self) -> bool {
        self.source.starts_with("flag --")
    }

    /// A place without lines: a flag, or a file as a whole.
    pub fn whole(source: &str) -> Self {
        Self { source: Arc::from(source), line: 0, column: 0 }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
            if self.column > 0 {
                write!(f, ":{}", self.column)?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A value and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub place: Place,
    pub value: Value,
}

/// A field of a mapping: its name, where the name stands, its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    pub name: String,
    pub place: Place,
    pub node: Node,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Field>),
}

/// What is wrong in a document, and where. Never holds a scalar's value from a Secret: serde's
/// messages quote values of the wrong type, so readers of Secrets must not show `message` blindly.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {}{message}", self.path_prefix())]
pub struct DocumentError {
    pub place: Place,
    /// `spec.containers[0].image`; empty for the document itself.
    pub path: String,
    pub message: String,
}

impl DocumentError {
    /// `path: `, or nothing where the document itself is meant; for messages.
    pub fn path_prefix(&self) -> String {
        if self.path.is_empty() { String::new() } else { format!("{}: ", self.path) }
    }
}

impl Node {
    /// The field `name` of a mapping.
    pub fn get(&self, name: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(fields) => fields.iter().find(|field| field.name == name).map(|field| &field.node),
            _ => None,
        }
    }

    pub fn as_text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The node at a dotted path of mapping fields (`authentication.webhook.enabled`).
    pub fn at(&self, path: &str) -> Option<&Node> {
        path.split('.').try_fold(self, |node, name| node.get(name))
    }

    /// JSON merge patch (RFC 7396): mappings merge field by field, `null` removes, everything else
    /// replaces. Places stay those of the text each value came from.
    pub fn merge_patch(&mut self, patch: Node) {
        let Value::Map(changes) = patch.value else {
            *self = patch;
            return;
        };
        if !matches!(self.value, Value::Map(_)) {
            *self = Node { place: patch.place, value: Value::Map(Vec::new()) };
        }
        let Value::Map(fields) = &mut self.value else { return };
        for change in changes {
            let known = fields.iter().position(|field| field.name == change.name);
            match (known, &change.node.value) {
                (Some(index), Value::Null) => {
                    fields.remove(index);
                }
                (None, Value::Null) => {}
                (Some(index), _) => fields[index].node.merge_patch(change.node),
                (None, _) => {
                    let mut node = Node { place: change.node.place.clone(), value: Value::Null };
                    node.merge_patch(change.node);
                    fields.push(Field { name: change.name, place: change.place, node });
                }
            }
        }
    }

    /// A tree from a JSON value, all of it at one place: what a flag stands for.
    pub fn from_json(place: &Place, json: serde_json::Value) -> Self {
        let value = match json {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(flag) => Value::Bool(flag),
            serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(int), _) => Value::Int(int),
                (None, Some(uint)) => Value::Uint(uint),
                (None, None) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(text) => Value::Text(text),
            serde_json::Value::Array(items) => {
                Value::List(items.into_iter().map(|item| Self::from_json(place, item)).collect())
            }
            serde_json::Value::Object(map) => Value::Map(
                map.into_iter()
                    .map(|(name, json)| Field {
                        name,
                        place: place.clone(),
                        node: Self::from_json(place, json),
                    })
                    .collect(),
            ),
        };
        Self { place: place.clone(), value }
    }
}
