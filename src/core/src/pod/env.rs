//! A container's environment: Service variables, then envFrom, then env, later ones winning, with
//! `$(VAR)` expansion (behaviours 53). Pure; a reference that cannot be followed is an error to wait on.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, EnvFromSource, EnvVar};

pub use crate::pod::fields::{is_field_path_known, is_resource_field_known};

use crate::pod::fields::FieldSource;
use crate::pod::refs::{Lookup, RefError};
use crate::pod::snapshot::PodSnapshot;

/// Bytes of a container's environment, and of its command: the kernel starts no process with more of both
/// together (fs/exec.c, bprm_stack_limits). Variables that hold others twice each double thirty times in a
/// manifest of a page.
pub const MAX_BYTES: usize = 6 << 20;

/// Variables in the order in which they were first set; setting again replaces in place.
#[derive(Default)]
struct Variables {
    list: Vec<(String, String)>,
    index: BTreeMap<String, usize>,
    /// Of all names and values.
    bytes: usize,
}

impl Variables {
    /// # Errors
    /// Where it does not fit any more.
    fn set(&mut self, name: String, value: String) -> Result<(), TooLong> {
        let before = self.index.get(&name).map(|position| &mut self.list[*position].1);
        let freed = before.as_ref().map_or(0, |value| value.len());
        let taken = value.len() + if before.is_some() { 0 } else { name.len() };
        self.bytes = self.bytes - freed + taken;
        if self.bytes > MAX_BYTES {
            return Err(TooLong);
        }
        match before {
            Some(before) => *before = value,
            None => {
                self.index.insert(name.clone(), self.list.len());
                self.list.push((name, value));
            }
        }
        Ok(())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.index.get(name).map(|position| self.list[*position].1.as_str())
    }
}

/// The environment of a container, without what the image adds.
pub fn environment(
    snapshot: &PodSnapshot<'_>,
    container: &Container,
    pod_ips: &[IpAddr],
) -> Result<Vec<(String, String)>, RefError> {
    let too_long = |TooLong| RefError::too_long(format!("the environment of container {}", container.name));
    let mut variables = Variables::default();
    for (name, value) in service_variables(snapshot) {
        variables.set(name, value).map_err(too_long)?;
    }
    for source in container.env_from.iter().flatten() {
        for (name, value) in env_from(snapshot, container, source)? {
            variables.set(name, value).map_err(too_long)?;
        }
    }
    let fields = FieldSource::new(snapshot, pod_ips);
    for variable in container.env.iter().flatten() {
        if let Some(value) = env_value(snapshot, container, variable, &fields, &variables)? {
            variables.set(variable.name.clone(), value).map_err(too_long)?;
        }
    }
    Ok(variables.list)
}

/// The Services of the pod's namespace where enableServiceLinks asks for them; the API server's own
/// (`kubernetes` in `default`) always.
fn service_variables(snapshot: &PodSnapshot<'_>) -> Vec<(String, String)> {
    let links = snapshot.desired.pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
    let all = &snapshot.node.service_env;
    let namespace = &*snapshot.desired.key.namespace;
    let master = all.get("default").into_iter().flatten().filter(|(name, _)| name.starts_with("KUBERNETES_"));
    let own = all.get(namespace).into_iter().flatten().filter(|_| links);
    master.chain(own).cloned().collect()
}

fn env_from(
    snapshot: &PodSnapshot<'_>,
    container: &Container,
    source: &EnvFromSource,
) -> Result<Vec<(String, String)>, RefError> {
    let user = format!("envFrom of container {}", container.name);
    let lookup = |optional: Option<bool>| Lookup {
        objects: snapshot.objects,
        namespace: &snapshot.desired.key.namespace,
        optional: optional.unwrap_or(false),
        user: &user,
    };
    let data = match (&source.config_map_ref, &source.secret_ref) {
        (Some(reference), _) => lookup(reference.optional).config_map(&reference.name)?,
        (None, Some(reference)) => lookup(reference.optional).secret(&reference.name)?,
        (None, None) => None,
    };
    let prefix = source.prefix.as_deref().unwrap_or_default();
    let entries = data.map(|data| data.entries()).unwrap_or_default();
    // A key that cannot be a variable's name is left out, as upstream does with an event.
    let usable = entries.into_iter().filter(|(key, _)| !key.contains('=') && !key.is_empty());
    Ok(usable
        .map(|(key, value)| (format!("{prefix}{key}"), String::from_utf8_lossy(value).into_owned()))
        .collect())
}

/// `None`: the variable is left out, as an optional reference that points nowhere is.
fn env_value(
    snapshot: &PodSnapshot<'_>,
    container: &Container,
    variable: &EnvVar,
    fields: &FieldSource<'_>,
    before: &Variables,
) -> Result<Option<String>, RefError> {
    let Some(source) = &variable.value_from else {
        let value = variable.value.as_deref().unwrap_or_default();
        let too_long =
            |TooLong| RefError::too_long(format!("the environment of container {}", container.name));
        return expand(value, |name| before.get(name), MAX_BYTES).map(Some).map_err(too_long);
    };
    let user = format!("variable {} of container {}", variable.name, container.name);
    let invalid = |problem: String| RefError::Invalid { user: user.clone(), problem };
    if let Some(field) = &source.field_ref {
        let value = fields.field(&field.field_path);
        return value.map(Some).ok_or_else(|| invalid(format!("field {:?} is not known", field.field_path)));
    }
    if let Some(selector) = &source.resource_field_ref {
        let value = fields.resource(selector, Some(container));
        return value
            .map(Some)
            .ok_or_else(|| invalid(format!("resource {:?} is not known", selector.resource)));
    }
    let lookup = |optional: Option<bool>| Lookup {
        objects: snapshot.objects,
        namespace: &snapshot.desired.key.namespace,
        optional: optional.unwrap_or(false),
        user: &user,
    };
    let bytes = if let Some(reference) = &source.config_map_key_ref {
        lookup(reference.optional).key("ConfigMap", &reference.name, &reference.key)?
    } else if let Some(reference) = &source.secret_key_ref {
        lookup(reference.optional).key("Secret", &reference.name, &reference.key)?
    } else {
        return Err(invalid(
            "its source is not supported; use fieldRef, configMapKeyRef or secretKeyRef".to_owned(),
        ));
    };
    Ok(bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned()))
}

/// More than was allowed would have come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// Replaces `$(NAME)`; `$$` is a `$`, and a name that is not known stays as it is written
/// (third_party/forked/golang/expansion).
///
/// # Errors
/// Where it comes to more than `limit` bytes.
pub fn expand<'v>(
    text: &str,
    value_of: impl Fn(&str) -> Option<&'v str>,
    limit: usize,
) -> Result<String, TooLong> {
    let mut expanded = String::new();
    let mut put = |part: &str| {
        expanded.push_str(part);
        if expanded.len() > limit { Err(TooLong) } else { Ok(()) }
    };
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        put(&rest[..dollar])?;
        let after = &rest[dollar + 1..];
        if let Some(escaped) = after.strip_prefix('$') {
            put("$")?;
            rest = escaped;
        } else if let Some((name, behind)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match value_of(name) {
                Some(value) => put(value)?,
                None => put(&format!("$({name})"))?,
            }
            rest = behind;
        } else {
            put("$")?;
            rest = after;
        }
    }
    put(rest)?;
    Ok(expanded)
}

/// [`expand`] over a finished environment, for command, args and subPathExpr.
#[derive(Clone, Debug)]
pub struct Finished<'a>(HashMap<&'a str, &'a str>);

impl<'a> Finished<'a> {
    pub fn new(env: &'a [(String, String)]) -> Self {
        Self(env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect())
    }

    /// # Errors
    /// As [`expand`].
    pub fn expand(&self, text: &str, limit: usize) -> Result<String, TooLong> {
        expand(text, |name| self.0.get(name).copied(), limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::fixture::Fixture;
    use serde_json::json;

    #[test]
    fn expands_as_upstream() {
        let value_of = |name: &str| match name {
            "A" => Some("1"),
            "EMPTY" => Some(""),
            _ => None,
        };
        let cases = [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(B)", "$(B)"),
            ("$(EMPTY)", ""),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("end$", "end$"),
            ("$()", "$()"),
            ("$$$$", "$$"),
        ];
        for (text, expected) in cases {
            assert_eq!(expand(text, value_of, 100).as_deref(), Ok(expected), "{text}");
        }
    }

    fn fixture() -> Fixture {
        let mut fixture = Fixture::new(json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"containers": [{"name": "web", "image": "w:1"}]}
        }));
        fixture.config_map("settings", &[("COLOR", "red"), ("SIZE", "big")]);
        fixture.secret("login", &[("TOKEN", "s3cret")]);
        fixture.node.service_env = std::sync::Arc::new(BTreeMap::from([(
            "default".to_owned(),
            vec![
                ("KUBERNETES_SERVICE_HOST".to_owned(), "10.96.0.1".to_owned()),
                ("WEB_SERVICE_HOST".to_owned(), "10.96.0.2".to_owned()),
            ],
        )]));
        fixture
    }

    fn made(fixture: &Fixture, container: serde_json::Value) -> Result<BTreeMap<String, String>, RefError> {
        let container: Container = serde_json::from_value(container).unwrap();
        let ips = ["10.0.0.5".parse().unwrap()];
        environment(&fixture.snapshot(), &container, &ips).map(|list| list.into_iter().collect())
    }

    #[test]
    fn later_sources_win_and_expand() {
        let env = made(
            &fixture(),
            json!({"name": "web",
                "envFrom": [{"configMapRef": {"name": "settings"}}, {"prefix": "P_", "secretRef": {"name": "login"}}],
                "env": [
                    {"name": "SIZE", "value": "small"},
                    {"name": "WEB_SERVICE_HOST", "value": "mine"},
                    {"name": "URL", "value": "http://$(KUBERNETES_SERVICE_HOST)/$(COLOR)$$(COLOR)$(NONE)"},
                    {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    {"name": "T", "valueFrom": {"secretKeyRef": {"name": "login", "key": "TOKEN"}}},
                    {"name": "GONE", "valueFrom": {"configMapKeyRef": {"name": "no", "key": "k", "optional": true}}}
                ]}),
        )
        .unwrap();
        let expected = [
            ("COLOR", "red"),
            ("SIZE", "small"),
            ("P_TOKEN", "s3cret"),
            ("WEB_SERVICE_HOST", "mine"),
            ("URL", "http://10.96.0.1/red$(COLOR)$(NONE)"),
            ("IP", "10.0.0.5"),
            ("T", "s3cret"),
        ];
        for (name, value) in expected {
            assert_eq!(env.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert!(!env.contains_key("GONE"));
    }

    #[test]
    fn a_missing_object_is_named_with_its_mend() {
        let cases = [
            (
                json!([{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "no", "key": "k"}}}]),
                "ConfigMap default/no is not there, needed by variable A of container web: create it, or mark the reference optional",
            ),
            (
                json!([{"name": "A", "valueFrom": {"secretKeyRef": {"name": "login", "key": "k"}}}]),
                "Secret default/login has no key \"k\", needed by variable A of container web: add the key, or mark the reference optional",
            ),
        ];
        for (env, message) in cases {
            let error = made(&fixture(), json!({"name": "web", "env": env})).unwrap_err();
            assert_eq!(error.to_string(), message);
            assert!(error.waits_for_object());
        }
    }

    #[test]
    fn service_links_can_be_left_out() {
        let mut fixture = fixture();
        fixture.edit(|pod| pod.spec.as_mut().unwrap().enable_service_links = Some(false));
        let env = made(&fixture, json!({"name": "web"})).unwrap();
        assert_eq!(env.keys().collect::<Vec<_>>(), ["KUBERNETES_SERVICE_HOST"]);
    }

    #[test]
    fn ten_thousand_variables_are_made_and_refer_to_each_other() {
        let mut env = vec![json!({"name": "V0", "value": "x"})];
        env.extend((1..10_000).map(|n| json!({"name": format!("V{n}"), "value": format!("$(V{})", n - 1)})));
        let made = made(&fixture(), json!({"name": "web", "env": env})).unwrap();
        assert_eq!(made.get("V9999").map(String::as_str), Some("x"));
        // What is set again takes the place of what was there before, and counts once.
        let large = "x".repeat(MAX_BYTES / 2);
        let again = vec![json!({"name": "A", "value": large}); 5];
        assert!(super::tests::made(&fixture(), json!({"name": "web", "env": again})).is_ok());
    }

    #[test]
    fn an_environment_that_no_process_could_have_is_refused_before_it_is_made() {
        let mut env = vec![json!({"name": "V0", "value": "0123456789"})];
        env.extend(
            (1..64).map(|n| json!({"name": format!("V{n}"), "value": format!("$(V{0})$(V{0})", n - 1)})),
        );
        let error = made(&fixture(), json!({"name": "web", "env": env})).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the environment of container web cannot be made: it has more than 6291456 bytes, with which the \
             kernel starts no process"
        );
        assert!(!error.waits_for_object());
        // One value alone, before it is put to the others.
        let text = "$(A)".repeat(1000);
        let value = "x".repeat(100_000);
        assert_eq!(expand(&text, |_| Some(value.as_str()), MAX_BYTES), Err(TooLong));
    }
}
