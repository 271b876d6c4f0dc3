//! The fake server's objects with versions and a history for watches. No HTTP here.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// Where an object or collection is: `/api/v1` or `/apis/G/V`, resource, and how far it is narrowed.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Address {
    group: String,
    pub resource: String,
    pub namespace: String,
    pub name: String,
    pub sub: String,
}

impl Address {
    /// Of a path without its query; a path that is none has an empty resource.
    pub fn of(path: &str) -> Self {
        let mut parts = path.trim_matches('/').split('/').map(unescape);
        let mut next = || parts.next().unwrap_or_default();
        let group = match next().as_str() {
            "api" => format!("/api/{}", next()),
            "apis" => format!("/apis/{}/{}", next(), next()),
            _ => return Self::default(),
        };
        let first = next();
        let (namespace, resource, name, sub) = if first == "namespaces" {
            let namespace = next();
            let resource = next();
            if resource.is_empty() {
                (String::new(), first, namespace, String::new())
            } else {
                (namespace, resource, next(), next())
            }
        } else {
            (String::new(), first, next(), next())
        };
        Self { group, resource, namespace, name, sub }
    }

    fn holds(&self, other: &Address) -> bool {
        self.group == other.group
            && self.resource == other.resource
            && (self.namespace.is_empty() || self.namespace == other.namespace)
    }

    fn object(&self) -> Self {
        Self { sub: String::new(), ..self.clone() }
    }
}

fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digits: Vec<u8> = rest.by_ref().take(2).collect();
        let code = std::str::from_utf8(&digits).ok().and_then(|digits| u8::from_str_radix(digits, 16).ok());
        out.extend(code);
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// `a=b&c=d`, unescaped.
pub(super) fn query(text: &str) -> BTreeMap<String, String> {
    text.split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(k, v)| (k.to_owned(), unescape(v)))
        .collect()
}

/// One thing that happened.
#[derive(Clone, Debug)]
pub(super) struct Happened {
    pub version: u64,
    /// `ADDED`, `MODIFIED`, `DELETED` or `BOOKMARK`.
    pub kind: &'static str,
    pub at: Address,
    pub object: Value,
}

/// Why a change is refused: status code and reason.
pub(super) type Refusal = (u16, &'static str);

#[derive(Debug, Default)]
pub(super) struct Objects {
    version: u64,
    /// History before this is forgotten.
    compacted: u64,
    uids: u64,
    all: BTreeMap<Address, Value>,
    history: Vec<Happened>,
}

impl Objects {
    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn get(&self, at: &Address) -> Option<&Value> {
        self.all.get(&at.object())
    }

    /// Objects of a collection that a field selector leaves.
    pub fn list(&self, at: &Address, fields: &str) -> Vec<Value> {
        self.all
            .iter()
            .filter(|(key, object)| at.holds(key) && selected(object, fields))
            .map(|(_, o)| o.clone())
            .collect()
    }

    /// What happened in a collection after `version`; `None` where that is forgotten.
    pub fn since(&self, at: &Address, fields: &str, version: u64) -> Option<Vec<Happened>> {
        if version < self.compacted {
            return None;
        }
        let fits = |one: &&Happened| {
            one.version > version
                && (one.kind == "BOOKMARK" || (at.holds(&one.at) && selected(&one.object, fields)))
        };
        Some(self.history.iter().filter(fits).cloned().collect())
    }

    pub fn compact(&mut self) {
        self.compacted = self.version;
        self.history.clear();
    }

    pub fn bookmark(&mut self) {
        self.version += 1;
        let object = json!({"metadata": {"resourceVersion": self.version.to_string()}});
        self.history.push(Happened {
            version: self.version,
            kind: "BOOKMARK",
            at: Address::default(),
            object,
        });
    }

    pub fn put(&mut self, at: &Address, mut object: Value) {
        self.version += 1;
        let before = self.all.get(&at.object());
        let uid = before.and_then(|before| before["metadata"]["uid"].as_str().map(str::to_owned));
        let metadata = &mut object["metadata"];
        metadata["name"] = json!(at.name);
        if !at.namespace.is_empty() {
            metadata["namespace"] = json!(at.namespace);
        }
        metadata["resourceVersion"] = json!(self.version.to_string());
        if metadata["uid"].is_null() {
            self.uids += 1;
            metadata["uid"] = json!(uid.unwrap_or_else(|| format!("uid-{}", self.uids)));
        }
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.note(kind, at, object.clone());
        self.all.insert(at.object(), object);
    }

    pub fn remove(&mut self, at: &Address) {
        if let Some(mut object) = self.all.remove(&at.object()) {
            self.version += 1;
            object["metadata"]["resourceVersion"] = json!(self.version.to_string());
            self.note("DELETED", at, object);
        }
    }

    fn note(&mut self, kind: &'static str, at: &Address, object: Value) {
        self.history.push(Happened { version: self.version, kind, at: at.object(), object });
    }

    pub fn create(&mut self, at: &Address, object: Value) -> Result<Value, Refusal> {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let at = Address { name, ..at.clone() };
        if self.all.contains_key(&at) {
            return Err((409, "AlreadyExists"));
        }
        self.put(&at, object);
        self.get(&at).cloned().ok_or((500, "InternalError"))
    }

    pub fn patch(&mut self, at: &Address, patch: &Value) -> Result<Value, Refusal> {
        let there = self.get(at).cloned().ok_or((404, "NotFound"))?;
        let wanted = &patch["metadata"]["uid"];
        if !wanted.is_null() && *wanted != there["metadata"]["uid"] {
            return Err((409, "Conflict"));
        }
        let mut object = there.clone();
        merge(&mut object, patch);
        if at.sub == "status" {
            // A status cannot change the rest.
            let status = object["status"].take();
            object = there.clone();
            object["status"] = status;
        }
        if object != there {
            self.put(at, object);
        }
        self.get(at).cloned().ok_or((404, "NotFound"))
    }

    pub fn delete(&mut self, at: &Address, options: &Value) -> Result<Value, Refusal> {
        let mut there = self.get(at).cloned().ok_or((404, "NotFound"))?;
        let wanted = &options["preconditions"]["uid"];
        if !wanted.is_null() && *wanted != there["metadata"]["uid"] {
            return Err((409, "Conflict"));
        }
        let grace = options["gracePeriodSeconds"].as_i64().unwrap_or(30);
        if at.resource == "pods" && grace > 0 && there["spec"]["nodeName"].is_string() {
            there["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:30Z");
            there["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
            self.put(at, there.clone());
        } else {
            self.remove(at);
        }
        Ok(there)
    }
}

/// The two selectors a node uses.
fn selected(object: &Value, fields: &str) -> bool {
    fields.split(',').filter_map(|field| field.split_once('=')).all(|(field, value)| {
        let pointer = format!("/{}", field.replace('.', "/"));
        object.pointer(&pointer).and_then(Value::as_str).unwrap_or_default() == value
    })
}

/// A strategic merge as far as nodes' and pods' statuses need it: conditions merge by type, a list with
/// the replace directive is taken without it, other lists as they are.
fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    for (key, change) in patch {
        match change {
            Value::Null => drop(object.as_object_mut().and_then(|map| map.remove(key))),
            Value::Array(list) if key == "conditions" => merge_conditions(&mut object[key.as_str()], list),
            Value::Array(list) => {
                object[key.as_str()] =
                    list.iter().filter(|item| item.get("$patch").is_none()).cloned().collect();
            }
            _ => merge(&mut object[key.as_str()], change),
        }
    }
}

fn merge_conditions(there: &mut Value, changes: &[Value]) {
    if !there.is_array() {
        *there = Value::Array(Vec::new());
    }
    let Value::Array(there) = there else { return };
    for change in changes {
        match there.iter_mut().find(|one| one["type"] == change["type"]) {
            Some(one) => merge(one, change),
            None => {
                let mut new = Value::Null;
                merge(&mut new, change);
                there.push(new);
            }
        }
    }
}
