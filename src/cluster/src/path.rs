//! Paths of the API and their queries, spelled in one place and escaped by construction.

use std::fmt;

/// A path with its query, ready to be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Path {
    text: String,
    has_query: bool,
}

impl Path {
    fn new(parts: &[&str]) -> Self {
        let mut text = String::new();
        for part in parts {
            text.push('/');
            escape(part, &mut text);
        }
        Self { text, has_query: false }
    }

    /// Of the core group, of the whole cluster: `/api/v1/<resource>`.
    pub fn core(resource: &str) -> Self {
        Self::new(&["api", "v1", resource])
    }

    /// Of the core group, in a namespace.
    pub fn core_in(namespace: &str, resource: &str) -> Self {
        Self::new(&["api", "v1", "namespaces", namespace, resource])
    }

    /// Of another group, of the whole cluster: `/apis/<group>/<version>/<resource>`.
    pub fn group(group: &str, version: &str, resource: &str) -> Self {
        Self::new(&["apis", group, version, resource])
    }

    /// Of another group, in a namespace.
    pub fn group_in(group: &str, version: &str, namespace: &str, resource: &str) -> Self {
        Self::new(&["apis", group, version, "namespaces", namespace, resource])
    }

    pub fn nodes() -> Self {
        Self::core("nodes")
    }

    pub fn node(name: &str) -> Self {
        Self::nodes().then(name)
    }

    pub fn pods() -> Self {
        Self::core("pods")
    }

    pub fn pod(namespace: &str, name: &str) -> Self {
        Self::core_in(namespace, "pods").then(name)
    }

    pub fn services() -> Self {
        Self::core("services")
    }

    pub fn endpoint_slices() -> Self {
        Self::group("discovery.k8s.io", "v1", "endpointslices")
    }

    pub fn service_cidrs() -> Self {
        Self::group("networking.k8s.io", "v1", "servicecidrs")
    }

    pub fn lease(namespace: &str, name: &str) -> Self {
        Self::leases(namespace).then(name)
    }

    pub fn leases(namespace: &str) -> Self {
        Self::group_in("coordination.k8s.io", "v1", namespace, "leases")
    }

    /// One part deeper: an object's name, or a subresource. Only before any query.
    #[must_use]
    pub fn then(mut self, part: &str) -> Self {
        debug_assert!(!self.has_query, "a path is complete before its query");
        self.text.push('/');
        escape(part, &mut self.text);
        self
    }

    /// Adds a query parameter.
    #[must_use]
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.text.push(if self.has_query { '&' } else { '?' });
        self.has_query = true;
        self.text.push_str(key);
        self.text.push('=');
        escape(value, &mut self.text);
        self
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Without the query, for messages.
    pub fn plain(&self) -> &str {
        self.text.split('?').next().unwrap_or_default()
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// RFC 3986's unreserved characters stay.
fn escape(text: &str, out: &mut String) {
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_values_are_escaped() {
        let path = Path::pod("ns", "../../secrets?x").with("fieldSelector", "spec.nodeName=a&b");
        assert_eq!(
            path.as_str(),
            "/api/v1/namespaces/ns/pods/..%2F..%2Fsecrets%3Fx?fieldSelector=spec.nodeName%3Da%26b"
        );
        assert_eq!(path.plain(), "/api/v1/namespaces/ns/pods/..%2F..%2Fsecrets%3Fx");
        let twice = Path::nodes().with("watch", "true").with("limit", "5");
        assert_eq!(twice.as_str(), "/api/v1/nodes?watch=true&limit=5");
    }
}
